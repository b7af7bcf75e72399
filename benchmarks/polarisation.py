"""The polarised sky: fractions, small scales that follow brightness, faint fields, non-Gaussianity.

``python benchmarks/polarisation.py --nside 256 --seeds 5 --out DIR`` writes polarisation.json and
pictures. Further options name real maps to compare with.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import healpy as hp
import numpy as np
import typer
from astropy.io import fits
from astropy.wcs import WCS
from common import console, write_figure, write_json
from polarisation_pages import (
    sentences,
    shape_figure,
    sky_figure,
    tables,
    taurus_figure,
    zoom_figure,
)
from rich.console import Console
from scipy.ndimage import gaussian_filter
from scipy.special import erfc

from pysm_vae.files import writable_folder
from pysm_vae.sky.calibration import PIVOT, Spectrum, latitude_mask, latitude_weight
from pysm_vae.sky.smallscales import SmallScales
from pysm_vae.sky.templates import from_log_pol_tens, load_template
from pysm_vae.stats.minkowski import band_overlap, curve_distance, minkowski_functionals
from pysm_vae.stats.moments import band_moments
from pysm_vae.stats.spectra import apodisation, bandpass_filter, cosine_step
from pysm_vae.vae.generator import load_generator
from pysm_vae.vae.patches import tangent_grid

app = typer.Typer(pretty_exceptions_enable=False)

FIELDS = ("T", "Q", "U", "E", "B")
#: Resolution at which polarisation fractions are compared with the reference.
COARSE = 64
#: Beam (FWHM, degrees) that takes the reference's noise away.
SMOOTH = 6.0
PERCENTILES = (50.0, 95.0, 99.9, 100.0)
FRACTION_EDGES = np.linspace(0, 0.4, 81)
#: Small scales, for the amplitude that follows brightness.
SMALL_ELL = 150.0
BRIGHTNESS_BINS = 12
# Small fields, as in the paper on PySM's models (arXiv:2502.20452, "Dust Emission Over the Sky"):
# discs of 400 square degrees at |b| > 30 degrees, with edges tapered by a Gaussian of 2 degrees
# FWHM; R is the mean of BB in the first two bands over that in the last four. The paper centres
# them on the pixels of nside 8; they overlap so much that a quarter of them tells the same.
DISC_NSIDE, DISC_LATITUDE = 4, 30.0
DISC_RADIUS = np.arccos(1 - 400 * np.radians(1) ** 2 / (2 * np.pi))
DISC_EDGE = np.radians(2) / np.sqrt(8 * np.log(2))
DISC_BANDS = (40, 70, 110, 160, 220, 290, 370)
#: Patches, about the pixels of nside 4: their side and pixel in degrees and arcmin.
PATCH_LATITUDE, PATCH_SIDE, PATCH_NSIDE = 35.0, 12.8, 4
#: High pass for the Minkowski functionals, as the paper has it, and their thresholds.
MINKOWSKI_ELL = 200.0
THRESHOLDS = np.linspace(-3, 3, 25)
CONTROLS = ("modulated Gaussian", "Gaussian log-pol-tens")
#: Taurus: beam of Planck's maps (arcmin), nside of our sky, side (degrees), bands.
TAURUS_BEAM, TAURUS_NSIDE, TAURUS_SIDE = 10.0, 1024, 15.0
TAURUS_BANDS = ((100, 200), (200, 400), (400, 800))


@dataclass
class Sky:
    """One sky at full resolution.

    Attributes
    ----------
    small : SmallScales
        What drew it.
    large, fields : ndarray, shape (3, npix)
        Log-pol-tens fields of the template alone, and with small scales.
    """

    small: SmallScales
    large: np.ndarray
    fields: np.ndarray

    @classmethod
    def draw(cls, weights: str, nside: int, seed: int) -> Sky:
        """The preset ``vae0``, with other weights if so wanted."""
        template = load_template("embedded")
        small = SmallScales(load_generator(weights), template, seed=seed, nside=nside)
        large = template.fields(*hp.pix2ang(nside, np.arange(hp.nside2npix(nside))))
        return cls(small, large, small.draw().astype(np.float64))

    @property
    def nside(self) -> int:
        """Of the maps."""
        return self.small.nside

    @property
    def maps(self) -> np.ndarray:
        """I, Q, U."""
        return from_log_pol_tens(self.fields)

    @property
    def template(self) -> np.ndarray:
        """I, Q, U of the template alone."""
        return from_log_pol_tens(self.large)

    def modulation(self) -> np.ndarray:
        """What patterns of i, q and u are multiplied with, shape (3, npix)."""
        ground = self.small.ground
        crowding = ground.crowding(self.large[0])
        rough = ground.large.roughness(*hp.pix2ang(self.nside, np.arange(crowding.size)))
        return np.array([rough * crowding, crowding, crowding])


# Polarisation fractions


def fraction(maps: np.ndarray) -> dict[str, Any]:
    """P/I of I, Q, U maps: percentiles and histograms at |b| > 20 degrees and everywhere."""
    values = np.hypot(maps[1], maps[2]) / maps[0]
    lat = hp.pix2ang(hp.npix2nside(values.size), np.arange(values.size), lonlat=True)[1]
    found = {}
    for name, used in (("|b| > 20", np.abs(lat) > 20), ("full sky", np.full(values.size, True))):
        counts = np.histogram(values[used], FRACTION_EDGES)[0]
        density = counts / used.sum() / np.diff(FRACTION_EDGES)
        found[name] = {
            "percentiles": np.percentile(values[used], PERCENTILES).tolist(),
            "density": density.tolist(),
        }
    return found


def pattern_correlation(maps: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Correlation of Q and U at l from 2 to 20 of two sets of I, Q, U maps."""
    nside = hp.npix2nside(maps.shape[1])
    found = {}
    for name, mask in (("|b| > 30", latitude_mask(nside)), ("full sky", 1.0)):
        pair = [hp.map2alm(m * mask, lmax=20, pol=True)[1:] for m in (maps, reference)]
        # Modes of m > 0 stand for two.
        double = 1 + (hp.Alm.getlm(20)[1] > 0)
        cross, one, other = (
            np.sum(double * (a * b.conj()).real)
            for a, b in ((pair[0], pair[1]), (pair[0], pair[0]), (pair[1], pair[1]))
        )
        found[name] = float(cross / np.sqrt(one * other))
    return found


# Amplitude and brightness


def small_polarisation(maps: np.ndarray, lmax: int) -> np.ndarray:
    """Mean square of Q and U above ``SMALL_ELL``, shape (npix,)."""
    high = cosine_step(np.arange(lmax + 1), SMALL_ELL)
    alm = [hp.almxfl(a, high) for a in hp.map2alm(maps, lmax=lmax, iter=1)]
    _, q, u = hp.alm2map(alm, hp.npix2nside(maps.shape[1]), pol=True)
    return 0.5 * (q**2 + u**2)


def follow(square: np.ndarray, template: np.ndarray, latitude: float = 20.0) -> dict[str, Any]:
    """How the small scales' rms goes with the large scales' brightness.

    Parameters
    ----------
    square : ndarray, shape (npix,)
        From :func:`small_polarisation`.
    template : ndarray, shape (3, npix)
        I, Q, U of the large scales.
    latitude : float
        Smaller ones are left out.
    """
    nside = hp.npix2nside(square.size)
    used = np.abs(hp.pix2ang(nside, np.arange(square.size), lonlat=True)[1]) > latitude
    large = {"I": template[0], "P": np.hypot(template[1], template[2])}
    found: dict[str, Any] = {"above": SMALL_ELL}
    for name, values in large.items():
        edges = np.percentile(values[used], np.linspace(0, 100, BRIGHTNESS_BINS + 1))
        label = np.clip(np.digitize(values[used], edges) - 1, 0, BRIGHTNESS_BINS - 1)
        count = np.bincount(label)
        mean = np.bincount(label, values[used]) / count
        rms = np.sqrt(np.bincount(label, square[used]) / count)
        slope = np.polyfit(np.log(mean), np.log(rms), 1)[0]
        found[name] = {"brightness": mean.tolist(), "rms": rms.tolist(), "slope": float(slope)}
    # Both at once, in cells of 3.7 degrees.
    cells = [hp.ud_grade(values, 16) for values in (square, *large.values(), used.astype(float))]
    whole = cells[3] == 1
    rms, i, p = (np.log(values[whole]) for values in cells[:3])
    design = np.stack([np.ones_like(i), i, p - i], axis=1)
    powers = np.linalg.lstsq(design, 0.5 * rms, rcond=None)[0]
    found["together"] = {"I": float(powers[1]), "P/I": float(powers[2])}
    return found


# Small fields


def disc(nside: int, centre: np.ndarray) -> np.ndarray:
    """A field's mask, shape (npix,)."""
    there = hp.query_disc(nside, centre, DISC_RADIUS + 4 * DISC_EDGE)
    cosine = np.clip(np.array(hp.pix2vec(nside, there)).T @ centre, -1, 1)
    mask = np.zeros(hp.nside2npix(nside))
    mask[there] = 0.5 * erfc((np.arccos(cosine) - DISC_RADIUS) / (np.sqrt(2) * DISC_EDGE))
    return mask


def disc_powers(alm: np.ndarray, intensity: np.ndarray) -> np.ndarray:
    """BB of small fields.

    Parameters
    ----------
    alm : ndarray, shape (2, nalm)
        E and B of the sky away from the plane, at least to l = 370.
    intensity : ndarray, shape (12 * 128**2,)
        Large-scale intensity.

    Returns
    -------
    ndarray, shape (5, fields)
        Mean D_l of the first two bands and of the last four, of B taken from the sky before it is
        cut, as a scalar, so that no mask turns E into B; the same of the cut Q and U, as the paper
        has them; and the field's mean intensity.
    """
    nside, lmax, ends = 128, DISC_BANDS[-1], 2 * [hp.Alm.getlmax(alm.shape[1])]
    e, b = (hp.resize_alm(a, *ends, lmax, lmax) for a in alm)
    maps = np.array([hp.alm2map(b, nside), *hp.alm2map([0 * e, e, b], nside, pol=True)[1:]])
    centres = np.array(hp.pix2vec(DISC_NSIDE, np.arange(hp.nside2npix(DISC_NSIDE)))).T
    ell = np.arange(lmax + 1)
    rows = []
    for centre in centres[np.abs(centres[:, 2]) > np.sin(np.radians(DISC_LATITUDE))]:
        mask = disc(nside, centre)
        cl = hp.anafast(maps * mask, lmax=lmax, iter=0, use_pixel_weights=False)
        row = []
        for power in (cl[0], cl[2]):
            d = ell * (ell + 1) * power / (2 * np.pi * np.mean(mask**2))
            means = [d[first:end].mean() for first, end in itertools.pairwise(DISC_BANDS)]
            row += [np.mean(means[:2]), np.mean(means[2:])]
        rows.append([*row, np.average(intensity, weights=mask)])
    return np.array(rows).T


def high_sky(maps: np.ndarray, lmax: int) -> np.ndarray:
    """E and B of a sky without its plane: a mask's edge at 5 to 15 degrees, far from the fields."""
    nside = hp.npix2nside(maps.shape[1])
    lat = 0.5 * np.pi - hp.pix2ang(nside, np.arange(maps.shape[1]))[0]
    return hp.map2alm(maps * latitude_weight(lat, 5.0), lmax=lmax, iter=1)[1:]


def power_law(seed: int, lmax: int) -> np.ndarray:
    """E and B of a Gaussian sky with the power laws that are asked for."""
    ell = np.maximum(np.arange(lmax + 1), 1)
    _, *slopes = Spectrum.slopes
    roots = np.zeros((2, 2, lmax + 1))
    for k, (slope, level) in enumerate(zip(slopes, (Spectrum.ee_to_bb, 1.0), strict=True)):
        roots[k, k] = np.sqrt(level * (ell / PIVOT) ** slope / (ell * (ell + 1)))
    roots[..., :2] = 0
    return gaussian_alms(roots, np.random.Generator(np.random.Philox([3, seed])))


def small_fields(skies: np.ndarray, laws: np.ndarray) -> dict[str, Any]:
    """R, and whether faint fields have more small-scale power than the others let expect.

    Parameters
    ----------
    skies, laws : ndarray, shape (seeds, 5, fields)
        From :func:`disc_powers`, of skies and of Gaussian skies with a power law.
    """
    low, high, low_cut, high_cut, brightness = np.moveaxis(skies, 1, 0)
    # By rank, so that none is empty where fields are equally bright.
    rank = np.argsort(np.argsort(brightness, axis=None, kind="stable"))
    quarter = (4 * rank // rank.size).reshape(brightness.shape)
    # What the fields make of a power law: their edges leak large scales into the low bands.
    law = laws[:, 0].sum() / laws[:, 1].sum()
    # Faint fields against the trend of the brighter ones.
    x, y = np.log(brightness), np.log(high)
    trend = np.polyfit(x[quarter > 0], y[quarter > 0], 1)
    off = y - np.polyval(trend, x)
    quarters = [quarter == k for k in range(4)]
    return {
        "R": _mean_std(low / high),
        "R of a power law": _mean_std(laws[:, 0] / laws[:, 1]),
        "R of cut Q, U": _mean_std(low_cut / high_cut),
        "R of cut Q, U of a power law": _mean_std(laws[:, 2] / laws[:, 3]),
        "R by quarter of brightness": [_mean_std((low / high)[k]) for k in quarters],
        # Of summed power, which a field that happens to have little at large scales cannot inflate.
        "small scales over a power law's, by quarter": [
            float(law * high[k].sum() / low[k].sum()) for k in quarters
        ],
        "power of intensity in the brighter fields": float(trend[0]),
        "faintest quarter over the trend of the others": float(np.exp(off[quarters[0]].mean())),
        "brightness": brightness[0].tolist(),
        "low": low[0].tolist(),
        "high": high[0].tolist(),
        "law": float(law),
    }


def _mean_std(values: np.ndarray) -> list[float]:
    return [float(values.mean()), float(values.std())]


# Non-Gaussianity


def gaussian_alms(roots: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian harmonics.

    Parameters
    ----------
    roots : ndarray, shape (n, n, lmax + 1)
        Cholesky factors of the spectra.

    Returns
    -------
    ndarray, complex, shape (n, nalm)
    """
    lmax = roots.shape[2] - 1
    ell, m = hp.Alm.getlm(lmax)
    white = rng.standard_normal((2, len(roots), ell.size))
    white = np.where(m == 0, white[0], (white[0] + 1j * white[1]) / np.sqrt(2))
    # healpy 1.17 takes no harmonics that are transposed.
    return np.einsum("ijl,jl->il", roots[:, :, ell], white, order="C")


def gaussian_like(patterns: np.ndarray, lmax: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian T, Q, U maps with the spectra that patterns have at high latitude."""
    nside = hp.npix2nside(patterns.shape[1])
    mask = latitude_mask(nside)
    tt, ee, bb, te = hp.anafast(patterns * mask, lmax=lmax, iter=1)[:4] / np.mean(mask**2)
    roots = np.zeros((3, 3, lmax + 1))
    roots[0, 0] = np.sqrt(np.maximum(tt, 0))
    some = roots[0, 0] > 0
    roots[1, 0, some] = te[some] / roots[0, 0, some]
    roots[1, 1] = np.sqrt(np.maximum(ee - roots[1, 0] ** 2, 0))
    roots[2, 2] = np.sqrt(np.maximum(bb, 0))
    roots[..., :2] = 0
    return np.array(hp.alm2map(gaussian_alms(roots, rng), nside, pol=True))


def control(sky: Sky, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Small scales of I, Q, U with a sky's spectra and modulation, and nothing else of it.

    ``"modulated Gaussian"``: Gaussian patterns times the large-scale intensity. ``"Gaussian
    log-pol-tens"``: Gaussian patterns added to the template's i, q and u, as d10 has them, so that
    the exponential makes them non-Gaussian as it does the sky.
    """
    lmax = int(sky.small.lmax)
    modulation = sky.modulation()
    if kind == CONTROLS[0]:
        modulation = modulation * sky.template[0]
        return gaussian_like((sky.maps - sky.template) / modulation, lmax, rng) * modulation
    patterns = (sky.fields - sky.large) / modulation
    # The mean of the exponential is not to change, as it does not in the sky.
    small = gaussian_like(patterns, lmax, rng) * modulation
    small[0] -= 0.5 * np.var(small[0] / modulation[0]) * modulation[0] ** 2
    return from_log_pol_tens(sky.large + small) - sky.template


def cut(small: np.ndarray, lmax: int) -> dict[str, np.ndarray]:
    """Patches of T, Q, U, E and B, each (n, size, size).

    Pixels are half as wide as the shortest waves. Q and U refer to the meridian of each pixel.
    """
    nside = hp.npix2nside(small.shape[1])
    alm = hp.map2alm(small, lmax=lmax, iter=1)
    maps = [*small, *(hp.alm2map(a, nside) for a in alm[1:])]
    lon, lat = hp.pix2ang(PATCH_NSIDE, np.arange(hp.nside2npix(PATCH_NSIDE)), lonlat=True)
    size, pixel = patch_grid(nside)
    places = [
        tangent_grid(x, y, size, pixel)
        for x, y in zip(lon, lat, strict=True)
        if abs(y) > PATCH_LATITUDE
    ]
    lon, lat = np.moveaxis(np.array(places), 1, 0)
    return {
        name: hp.get_interp_val(values, lon, lat, lonlat=True)
        for name, values in zip(FIELDS, maps, strict=True)
    }


def patch_grid(nside: int) -> tuple[int, float]:
    """Pixels a side of a patch, and their size in arcmin."""
    size = nside // 4
    return size, 60 * PATCH_SIDE / size


def bands(lmax: float) -> list[tuple[float, float]]:
    """Octaves from l = 100 on, as far as there is power."""
    return [(low, 2 * low) for low in (100.0, 200.0, 400.0) if 2 * low < lmax]


def shape(patches: np.ndarray, pixel: float, octaves: list[tuple[float, float]]) -> dict[str, Any]:
    """Kurtosis of octaves, (n, bands), and Minkowski functionals, each (n, thresholds)."""
    filtered, inner = bandpass_filter(patches, pixel, MINKOWSKI_ELL, None)
    curves = minkowski_functionals(filtered[:, inner, inner], THRESHOLDS, standardised=True)
    return {
        "kurtosis": band_moments(patches, pixel, octaves)[1],
        **{f"V{k}": curve for k, curve in enumerate(curves)},
    }


def apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Difference of two sets' means over the scatter of one of each, along the first axis."""
    scatter = one.var(axis=0, ddof=1) + other.var(axis=0, ddof=1)
    return (one.mean(axis=0) - other.mean(axis=0)) / np.sqrt(scatter)


def compare(sets: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Skies beside their controls.

    Parameters
    ----------
    sets : dict
        Of ``"sky"`` and each control, what :func:`shape` has for one field of each seed.

    Returns
    -------
    dict
        Kurtosis: means over patches, averaged over seeds, and the scatter of seeds. Minkowski
        functionals: the distance of a sky's mean curve from its control's, in units of the scatter
        of one patch, beside that of two controls; and the overlap of the bands. Sigmas are those
        of one sky and one control (of two seeds, distances have none).
    """
    found: dict[str, Any] = {}
    for name, seeds in sets.items():
        kurtosis = np.array([seed["kurtosis"].mean(axis=0) for seed in seeds])
        entry: dict[str, Any] = {
            "kurtosis": kurtosis.mean(axis=0).tolist(),
            "scatter of skies": kurtosis.std(axis=0, ddof=1).tolist(),
        }
        own = np.array([seed["kurtosis"].mean(axis=0) for seed in sets["sky"]])
        for k in range(3):
            curve = np.concatenate([seed[f"V{k}"] for seed in seeds])
            entry[f"V{k}"] = {
                "mean": curve.mean(axis=0).tolist(),
                "scatter of patches": curve.std(axis=0).tolist(),
            }
            if name != "sky":
                pairs = [(s[f"V{k}"], c[f"V{k}"]) for s, c in zip(sets["sky"], seeds, strict=True)]
                distance = np.array([curve_distance(*pair) for pair in pairs])
                among = np.array(
                    [
                        curve_distance(one[f"V{k}"], other[f"V{k}"])
                        for number, one in enumerate(seeds)
                        for other in seeds[:number]
                    ]
                )
                overlap = np.mean([band_overlap(*pair) for pair in pairs])
                entry[f"V{k}"] |= {
                    "distance": float(distance.mean()),
                    "distance of two controls": float(among.mean()),
                    "sigmas": float(apart(distance, among)) if len(among) > 1 else None,
                    "overlap": float(overlap),
                }
        if name != "sky":
            entry["sigmas"] = apart(own, kurtosis).tolist()
        found[name] = entry
    return found


# Taurus


def read_taurus(q: Path, u: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Q and U of a flat map, (2, size, size), longitudes, latitudes and the pixel in arcmin.

    Two by two pixels are averaged. With U in the COSMO convention, which neither the files nor
    their origin state, E exceeds B above l = 300, as it does in dust; with IAU's it does not.

    Raises
    ------
    ValueError
        If the two maps differ in size or have pixels without a value.
    """
    with fits.open(q) as first, fits.open(u) as second:
        maps = [np.asarray(hdu[0].data, np.float64) for hdu in (first, second)]
        wcs = WCS(first[0].header)
    if maps[0].shape != maps[1].shape or not all(np.isfinite(m).all() for m in maps):
        raise ValueError(f"{str(q)!r} and {str(u)!r} must be two images of one size without holes")
    pixel = 2 * 60 * abs(float(wcs.wcs.cdelt[0] * wcs.wcs.get_pc()[0, 0]))
    size = 2 * int(0.5 * min(maps[0].shape[0], 120 * TAURUS_SIDE / pixel))
    start = [(n - size) // 2 for n in maps[0].shape]
    y, x = (np.arange(size // 2) * 2 + 0.5 + s for s in start)
    lon, lat = wcs.pixel_to_world_values(*np.meshgrid(x, y))
    rows, columns = (slice(s, s + size) for s in start)
    coarse = [m[rows, columns].reshape(size // 2, 2, size // 2, 2).mean(axis=(1, 3)) for m in maps]
    return np.array(coarse), lon, lat, pixel


def our_taurus(weights: str, seed: int, lon: np.ndarray, lat: np.ndarray, pixel: float) -> Any:
    """Q and U of a sky at the same place, with Planck's beam, (2, size, size)."""
    template = load_template("embedded")
    small = SmallScales(load_generator(weights), template, seed=seed, nside=TAURUS_NSIDE)
    stencil, weight = hp.get_interp_weights(TAURUS_NSIDE, lon.ravel(), lat.ravel(), lonlat=True)
    pixels, places = np.unique(stencil, return_inverse=True)
    maps = from_log_pol_tens(small.draw(pixels).astype(np.float64))[1:]
    found = (weight * maps[:, places.reshape(stencil.shape)]).sum(axis=1).reshape(2, *lon.shape)
    sigma = TAURUS_BEAM / pixel / np.sqrt(8 * np.log(2))
    return gaussian_filter(found, (0, sigma, sigma))


def flat_e_b(maps: np.ndarray, pixel: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Transforms of E and B of a tapered flat map (columns run west), and the modes' multipoles.

    The signs are those of :mod:`pysm_vae.sky.tiling`.
    """
    size = maps.shape[-1]
    taper = apodisation(size, 0.25)
    mean = (maps * taper).sum(axis=(1, 2), keepdims=True) / taper.sum()
    q, u = np.fft.rfft2((maps - mean) * taper)
    ky, kx = np.fft.fftfreq(size)[:, None], -np.fft.rfftfreq(size)[None, :]
    k2 = kx**2 + ky**2
    ell = 2 * np.pi * np.sqrt(k2) / (pixel * np.radians(1 / 60))
    k2[0, 0] = 1.0
    cosine, sine = (ky**2 - kx**2) / k2, -2 * kx * ky / k2
    return cosine * q + sine * u, cosine * u - sine * q, ell


def taurus_statistics(maps: np.ndarray, pixel: float) -> dict[str, Any]:
    """EE/BB and kurtosis of Q and U of one field in ``TAURUS_BANDS``, and V2's largest value."""
    e, b, ell = flat_e_b(maps, pixel)
    # Columns of a real transform but the first and last stand for two.
    double = np.full(ell.shape, 2.0)
    double[:, 0] = 1
    ratios = []
    for low, high in TAURUS_BANDS:
        weight = double * ((ell >= low) & (ell < high))
        ratios.append(float((weight * np.abs(e) ** 2).sum() / (weight * np.abs(b) ** 2).sum()))
    judged = shape(maps, pixel, list(TAURUS_BANDS))
    return {
        "EE/BB": ratios,
        "kurtosis": judged["kurtosis"].mean(axis=0).tolist(),
        **{f"V{k}": judged[f"V{k}"].mean(axis=0).tolist() for k in range(3)},
    }


# The report


def measure(
    weights: str, nside: int, seeds: int, reference: Path | None, shown: Console
) -> tuple[dict[str, Any], Sky]:
    """Measure all but Taurus: what polarisation.json holds, and the first sky for its picture."""
    squares, discs, laws, skies = [], [], [], []
    octaves: list[tuple[float, float]] = []
    sets: dict[str, Any] = {f: {name: [] for name in ("sky", *CONTROLS)} for f in FIELDS}
    for seed in range(seeds):
        shown.print(f"seed {seed}")
        sky = Sky.draw(weights, nside, seed)
        maps, lmax = sky.maps, int(sky.small.lmax)
        octaves = bands(lmax)
        if seed == 0:
            skies.append(sky)
        squares.append(small_polarisation(maps, lmax))
        coarse = hp.ud_grade(sky.template[0], 128)
        discs.append(disc_powers(high_sky(maps, lmax), coarse))
        laws.append(disc_powers(power_law(seed, lmax), coarse))
        rng = np.random.Generator(np.random.Philox([4, seed]))
        small = {"sky": maps - sky.template, **{k: control(sky, k, rng) for k in CONTROLS}}
        for name, each in small.items():
            for field, patches in cut(each, lmax).items():
                sets[field][name].append(shape(patches, patch_grid(sky.nside)[1], octaves))
    first = skies[0]
    report: dict[str, Any] = {
        "weights": weights,
        "nside": first.nside,
        "seeds": seeds,
        "lmax": first.small.lmax,
        "P/I": {
            "sky": fraction(first.maps),
            "template": fraction(first.template),
            f"sky, nside {COARSE}": fraction(hp.ud_grade(first.maps, COARSE)),
        },
        "P/I percentiles": PERCENTILES,
        "P/I edges": FRACTION_EDGES.tolist(),
        "amplitude": follow(np.mean(squares, axis=0), first.template),
        "small fields": small_fields(np.array(discs), np.array(laws)),
        "bands": octaves,
        "thresholds": THRESHOLDS.tolist(),
        "non-Gaussianity": {field: compare(sets[field]) for field in FIELDS},
    }
    if reference is not None:
        planck = hp.ud_grade(hp.read_map(reference, field=(0, 1, 2), dtype=np.float64), COARSE)
        ours = load_template("embedded").maps(COARSE)
        report["P/I"][f"reference, nside {COARSE}"] = fraction(planck)
        for name, each in (("template", ours), ("reference", planck)):
            smooth = hp.smoothing(each, fwhm=np.radians(SMOOTH))
            report["P/I"][f"{name}, {SMOOTH:g} degrees"] = fraction(smooth)
        report["pattern of Q, U at l < 20"] = pattern_correlation(ours, planck)
    return report, first


def measure_taurus(
    weights: str, seeds: int, q: Path, u: Path, shown: Console
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Planck's Taurus and ours: statistics, and maps for the picture."""
    planck, lon, lat, pixel = read_taurus(q, u)
    report: dict[str, Any] = {
        "bands": TAURUS_BANDS,
        "Planck": taurus_statistics(planck, pixel),
        "ours": [],
    }
    maps = {"Planck": planck}
    for seed in range(seeds):
        shown.print(f"Taurus, seed {seed}")
        ours = our_taurus(weights, seed, lon, lat, pixel)
        maps.setdefault("vae0", ours)
        report["ours"].append(taurus_statistics(ours, pixel))
    return report, maps


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder of what comes out.")],
    nside: Annotated[int, typer.Option(min=256, help="Of the skies.")] = 256,
    seeds: Annotated[int, typer.Option(min=2, help="Skies to average.")] = 5,
    weights: Annotated[str, typer.Option(help="Shipped weights, or a model card.")] = "default",
    reference: Annotated[
        Path | None,
        typer.Option(exists=True, help="Planck-based I, Q, U in Galactic coordinates, HEALPix."),
    ] = None,
    taurus_q: Annotated[
        Path | None, typer.Option(exists=True, help="Planck's Q of Taurus, an image.")
    ] = None,
    taurus_u: Annotated[
        Path | None, typer.Option(exists=True, help="Its U; with --taurus-q.")
    ] = None,
) -> None:
    """Measure the polarised sky of the embedded template with small scales."""
    if (taurus_q is None) != (taurus_u is None):
        raise typer.BadParameter("--taurus-q and --taurus-u go together: give both, or none")
    shown = console()
    writable_folder(out)
    report, first = measure(weights, nside, seeds, reference, shown)
    write_figure(zoom_figure(first.maps, first.template), out / "zoom.png")
    write_figure(sky_figure(report), out / "polarisation.png")
    write_figure(shape_figure(report), out / "shapes.png")
    if taurus_q is not None and taurus_u is not None:
        report["Taurus"], maps = measure_taurus(weights, seeds, taurus_q, taurus_u, shown)
        write_figure(taurus_figure(report, maps), out / "taurus.png")
    write_json(report, out / "polarisation.json")
    for each in tables(report):
        shown.print(each)
    for line in sentences(report):
        shown.print(line)


if __name__ == "__main__":
    app()
