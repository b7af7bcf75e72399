r"""Skies that follow a given map of intensity where it is observed, and are random elsewhere.

Let :math:`d` be the logarithm of the map, :math:`t` that of the template's intensity and
:math:`a` what a random sky has above it, in the same sense. In harmonic space, with the map's beam
B, its noise N and the spectrum S of the logarithm, the factor

.. math:: F = \frac{B S}{B^2 S + N}

takes from the map what it knows (Wiener 1949). With a draw n of the noise,

.. math:: \delta_d = F * (d - B * t), \qquad \delta_a = F * (B * a + n)

are alike in their statistics, and :math:`a - \delta_a` does not correlate with :math:`\delta_a`
(Hoffman & Ribak 1991, ApJ 380, L5). So the sky

.. math:: t + a - (1 - \cos\vartheta)\,\delta_a + \sin\vartheta\;\delta_d

has the variance of a random one at every place, whatever the angle: it is random at
:math:`\vartheta = 0` and a constrained realisation at :math:`\pi/2`. The angle rises from one to
the other inside of the boundary, within ``EDGE`` of it; outside the sky is left as it is. What the
map does not resolve stays the random sky's.

The template's own scales have an angle of their own, which rises within up to ``WIDE_EDGE``: where
template and map differ in these, a narrow edge would show as a step.

Intensity alone is constrained: Q and U keep their fractions of it.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import healpy as hp
import numpy as np
import pysm3.units as u
from scipy.spatial import cKDTree

from pysm_vae.files import file_stamp
from pysm_vae.mapfiles import read_healpix
from pysm_vae.region import region_pixels
from pysm_vae.sky.canvas import Between, seeded_latents
from pysm_vae.sky.templates import FREQ_REF, Template, evaluated, map_unit, to_uK_RJ

log = logging.getLogger(__name__)

#: Degrees within the boundary over which the map takes over from the random sky. Within one degree
#: small scales would have 10 to 15 % more variance there, since their amplitudes would change so
#: fast; within two it is 5 % (``benchmarks/constrained.py``).
EDGE = 2.0
#: The same for the template's own scales, or half of the way to the middle of the region.
WIDE_EDGE = 10.0
#: Part of the edge in which the map and the random sky start, before they are filtered: a step at
#: the boundary would ring.
START = 0.25
#: A map is followed up to these multiples of nside, its own or the sky's: from the first on less
#: and less. HEALPix holds no more without errors.
CUT = (1.5, 2.0)
#: A factor below this is as good as none.
NEGLIGIBLE = 0.01
#: Slopes that the spectrum C_ℓ of a map's logarithm may have.
SLOPES = (-4.0, -1.0)
#: Multipoles on which it is measured, and their lowest number of nside.
FIT_ELL = (8.0, 768.0)
#: The coarsest maps of use.
LEAST_NSIDE = 16
#: First word of the noise's key; charts have the numbers below.
NOISE_KEY = 12

# Pixels whose directions are in memory at a time.
_CHUNK = 1 << 20

#: Draws i, q and u of the random sky: at an nside, on a list of its pixels.
Draw = Callable[[int, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class ObservedMap:
    """Intensity where it is known.

    Attributes
    ----------
    name : str
        What messages call it.
    nside : int
        Resolution.
    coordinates : {"G", "C", "E"}
        Of its pixels.
    pixels : ndarray of int64, shape (n,)
        RING, rising.
    logarithm : ndarray, float64, shape (n,)
        Of the intensity: in µK_RJ, or in any unit.
    noise : ndarray, float64, shape (n,)
        Standard deviation of the noise over the intensity.
    relative : bool
        Whether its level says nothing, and is the template's.
    """

    name: str
    nside: int
    coordinates: str
    pixels: np.ndarray
    logarithm: np.ndarray
    noise: np.ndarray
    relative: bool


class Footprint:
    """Pixels of a map, and how far within them a place is.

    Parameters
    ----------
    observed : ObservedMap
        The map.
    """

    def __init__(self, observed: ObservedMap) -> None:
        nside = observed.nside
        self._nside = nside
        self._known = np.zeros(hp.nside2npix(nside), bool)
        self._known[observed.pixels] = True
        self._turn = hp.Rotator(coord=["G", observed.coordinates]).mat
        # No point of an unknown pixel is farther from its centre.
        self._radius = hp.max_pixrad(nside)
        border = [
            np.unique(near[(near >= 0) & ~self._known[near]])
            for near in (
                hp.get_all_neighbours(nside, part).ravel()
                for part in np.array_split(observed.pixels, 1 + len(observed.pixels) // 2**20)
            )
        ]
        border = np.unique(np.concatenate(border))
        self._border = cKDTree(np.transpose(hp.pix2vec(nside, border))) if len(border) else None
        self._places = self._candidates(observed)

    def distance(self, vectors: np.ndarray, most: float) -> np.ndarray:
        """Distance from the boundary.

        Parameters
        ----------
        vectors : ndarray, shape (3, n)
            Galactic directions.
        most : float
            The largest distance of interest, degrees.

        Returns
        -------
        ndarray, shape (n,)
            Degrees: 0 outside, up to ``most`` inside.
        """
        turned = _turned(self._turn, vectors)
        known = self._known[hp.vec2pix(self._nside, *turned)]
        distance = np.where(known, most, 0.0)
        if self._border is not None:
            inside = np.flatnonzero(known)
            bound = np.radians(most) + self._radius
            far, _ = self._border.query(turned.T[inside], distance_upper_bound=bound)
            # At these angles a chord is as long as its arc, to half a per cent.
            distance[inside] = np.clip(np.degrees(far - self._radius), 0, most)
        return distance

    def pixels(self, nside: int) -> np.ndarray:
        """Pixels of a Galactic map that may be within it, RING, rising."""
        level, nested = self._places
        if nside < level:
            return np.unique(hp.nest2ring(nside, nested // (level // nside) ** 2))
        finer = (nside // level) ** 2
        children = nested[:, None] * finer + np.arange(finer)
        return np.sort(hp.nest2ring(nside, children.ravel()))

    def _candidates(self, observed: ObservedMap) -> tuple[int, np.ndarray]:
        """Large nested Galactic pixels that hold all of the map, and their nside."""
        level = min(32, observed.nside)
        vectors = np.array(hp.pix2vec(observed.nside, observed.pixels))
        found = np.unique(hp.vec2pix(level, *_turned(self._turn.T, vectors), nest=True))
        # A pixel whose centre lies in one may reach into the next.
        near = hp.get_all_neighbours(level, found, nest=True).ravel()
        return level, np.unique(np.concatenate([found, near[near >= 0]]))


class Constraint:
    """What makes skies of one template follow a map.

    Parameters
    ----------
    observed : ObservedMap
        The map.
    template : Template
        The large scales of the skies.
    fwhm : float
        Of the map's Gaussian beam, radians.

    Raises
    ------
    ValueError
        If the map is too coarse, its region too small, or the noise hides all of it.
    """

    def __init__(self, observed: ObservedMap, template: Template, fwhm: float) -> None:
        if observed.nside < LEAST_NSIDE:
            raise ValueError(
                f"{observed.name} has nside {observed.nside}: too coarse to follow; give it at "
                f"nside {LEAST_NSIDE} or finer"
            )
        self.observed = observed
        self.template = template
        self.fwhm = fwhm
        self.footprint = Footprint(observed)
        turn = hp.Rotator(coord=[observed.coordinates, "G"]).mat
        vectors = _turned(turn, np.array(hp.pix2vec(observed.nside, observed.pixels)))
        distance = self.footprint.distance(vectors, 2 * WIDE_EDGE)
        self._wide = float(np.clip(0.5 * distance.max(), EDGE, WIDE_EDGE))
        self._start = _step(distance / (START * EDGE))
        if not self._start.any():
            raise ValueError(
                f"{observed.name} is nowhere observed over more than two of its pixels: unmask "
                "more of the sky, or give a finer map"
            )
        if distance.max() < EDGE:
            log.warning(
                "%s is followed only in part: it is nowhere %g degrees from its boundary",
                observed.name,
                EDGE,
            )
        weight = np.sin(0.5 * np.pi * _step(distance / EDGE)) ** 2
        blurred = replace(template, alm=self._blurred(template.alm))
        self._missing = observed.logarithm - log_intensity(blurred.fields(*hp.vec2ang(vectors.T)))
        level = float(np.average(self._missing, weights=weight))
        if observed.relative:
            self._missing -= level
        elif abs(level) > np.log(1.5):
            log.warning(
                "%s is %.2g times the template where it is observed: check its unit and frequency, "
                "or give constrain_unit='relative'",
                observed.name,
                np.exp(level),
            )
        area = hp.nside2pixarea(observed.nside)
        self._noise_power = float(np.average(observed.noise**2, weights=weight)) * area
        self._spectrum = self._fitted(weight)
        self._wanted: dict[int, np.ndarray] = {}

    def add(
        self,
        fields: np.ndarray,
        *,
        nside: int,
        pixels: np.ndarray | None,
        seed: int | Between,
        draw: Draw,
    ) -> None:
        """Make a random sky follow the map.

        A pixel's values do not depend, to the last bit, on which others there are.

        Parameters
        ----------
        fields : ndarray, float32, shape (3, npix)
            Its i, q and u; i is changed in place, where the map is observed.
        nside : int
            Resolution.
        pixels : ndarray of int, shape (npix,), or None
            RING, Galactic; None for all of the sky.
        seed : int or Between
            Of the sky: it decides the draw of the noise, too.
        draw : callable
            Draws the same sky at a coarser nside, on a list of pixels.
        """
        asked = self.footprint.pixels(nside) if pixels is None else np.asarray(pixels)
        parts = [asked[first : first + _CHUNK] for first in range(0, len(asked), _CHUNK)]
        found = [self._distance(nside, part, self._wide) for part in parts]
        distance = np.concatenate([np.zeros(0), *found])
        inside = np.flatnonzero(distance)
        if not len(inside):
            return
        distance, asked = distance[inside], asked[inside]
        where = asked if pixels is None else inside
        level, of_map, of_sky = self.factors(nside)
        free = fields if level == nside and pixels is None else None
        own = self._own(free, level, of_sky, seed, draw)
        place = hp.pix2ang(nside, asked)
        large = _large(len(of_map) - 1, self.template.lmax)
        for share, width in ((large, self._wide), (1 - large, EDGE)):
            if not share.any():
                # A coarse sky has none but the template's own scales.
                continue
            angle = 0.5 * np.pi * _step(distance / width)
            change = np.sin(angle) * _values(self._followed(level, of_map), share, place)
            change -= (1 - np.cos(angle)) * _values(own, share, place)
            fields[0, where] += change

    def factors(self, nside: int) -> tuple[int, np.ndarray, np.ndarray]:
        """What takes the map's own scales from it, and from the random sky, for a sky's nside.

        Returns
        -------
        level : int
            The nside that holds them.
        of_map, of_sky : ndarray, shape (2 level + 1,)
            By multipole. Both are the Wiener factor up to ``CUT``, where the sky turns from the map
            to what is random as it does in space, and keeps its variance.
        """
        level = min(nside, self.observed.nside)
        factor = self._wiener(2 * level)
        known = np.flatnonzero(factor * self._beam(2 * level) > NEGLIGIBLE)
        while level > LEAST_NSIDE and known[-1] < CUT[0] * level / 2:
            level //= 2
        ell = np.arange(2 * level + 1)
        low, high = (edge * level for edge in CUT)
        angle = 0.5 * np.pi * _step((high - ell) / (high - low))
        factor = factor[: len(ell)]
        return level, factor * np.sin(angle), factor * (1 - np.cos(angle))

    def _distance(self, nside: int, pixels: np.ndarray, most: float) -> np.ndarray:
        return self.footprint.distance(np.array(hp.pix2vec(nside, pixels)), most)

    def _wiener(self, lmax: int) -> np.ndarray:
        beam = self._beam(lmax)
        level, slope = self._spectrum
        power = np.exp(level) * np.maximum(np.arange(lmax + 1), 1.0) ** slope
        return beam * power / (beam**2 * power + self._noise_power)

    def _beam(self, lmax: int) -> np.ndarray:
        return hp.gauss_beam(self.fwhm, lmax=lmax)

    def _blurred(self, alm: np.ndarray) -> np.ndarray:
        """Harmonics of i, q, u whose i is seen through the beam."""
        beam = self._beam(hp.Alm.getlmax(alm.shape[1]))
        return np.stack([hp.almxfl(alm[0], beam), *alm[1:]])

    def _galactic(self, alm: np.ndarray) -> np.ndarray:
        """Harmonics of a map in the coordinates of the observed one, turned."""
        if self.observed.coordinates == "G":
            return alm
        return hp.Rotator(coord=[self.observed.coordinates, "G"]).rotate_alm(alm)

    def _own(
        self,
        fields: np.ndarray | None,
        level: int,
        factor: np.ndarray,
        seed: int | Between,
        draw: Draw,
    ) -> np.ndarray:
        """Harmonics of what the map would show of a random sky above the template."""
        observed, lmax = self.observed, len(factor) - 1
        pixels = self.footprint.pixels(level)
        start = _step(self._distance(level, pixels, EDGE) / (START * EDGE))
        pixels, start = pixels[start > 0], start[start > 0]
        random = draw(level, pixels) if fields is None else fields[:, pixels]
        large = self.template.fields(*hp.pix2ang(level, pixels))
        own = start * (log_intensity(random) - log_intensity(large))
        alm = hp.almxfl(_harmonics(level, pixels, own, lmax), self._beam(lmax))
        white = seeded_latents([observed.pixels.shape], [(NOISE_KEY, 0, 0, 0, 0)], seed)[0][0]
        noise = self._start * observed.noise * white
        # White as it is, it needs no iterations.
        alm += self._galactic(_harmonics(observed.nside, observed.pixels, noise, lmax, 0))
        return hp.almxfl(alm, factor)

    def _followed(self, level: int, factor: np.ndarray) -> np.ndarray:
        """Harmonics of what the map has above the template; the same for all skies."""
        if level not in self._wanted:
            observed, lmax = self.observed, len(factor) - 1
            alm = _harmonics(observed.nside, observed.pixels, self._start * self._missing, lmax)
            self._wanted[level] = hp.almxfl(self._galactic(alm), factor)
        return self._wanted[level]

    def _fitted(self, weight: np.ndarray) -> tuple[float, float]:
        """Logarithm of the level at ℓ = 1, and slope, of C_ℓ of the map's logarithm."""
        observed = self.observed
        area = hp.nside2pixarea(observed.nside) * weight.sum()
        low = max(FIT_ELL[0], 2 * np.pi / np.sqrt(area))
        high = min(FIT_ELL[1], CUT[0] * observed.nside)
        if high < 2 * low:
            raise ValueError(
                f"{observed.name} is observed on {np.degrees(np.degrees(area)):.2g} square "
                f"degrees: too few for its nside of {observed.nside}. Unmask more of the sky, or "
                "give a finer map"
            )
        lmax = int(high)
        mean = np.average(observed.logarithm, weights=weight)
        found = _harmonics(
            observed.nside, observed.pixels, weight * (observed.logarithm - mean), lmax
        )
        # The mean power of a field under a window.
        share = np.sum(weight**2) / hp.nside2npix(observed.nside)
        modes = (2 * np.arange(lmax + 1) + 1) * share
        beam = self._beam(lmax) ** 2
        edges = np.geomspace(low, high, 8).astype(int)
        rows = []
        for first, last in itertools.pairwise(edges):
            band = slice(first, last)
            power = np.average(hp.alm2cl(found)[band] / share, weights=modes[band])
            blur = np.average(beam[band], weights=modes[band])
            if blur > 0.25 and power > 1.5 * self._noise_power:
                ell = np.average(np.log(np.arange(first, last)), weights=modes[band])
                rows.append((ell, np.log((power - self._noise_power) / blur), modes[band].sum()))
        if len(rows) < 2:
            raise ValueError(
                f"{observed.name} is lost in its noise ({self.observed.noise.max():.2g} of the "
                "intensity in a pixel): smooth it, or give the noise that it has"
            )
        ell, power, count = np.transpose(rows)
        slope = float(np.clip(np.polyfit(ell, power, 1, w=np.sqrt(count))[0], *SLOPES))
        return float(np.average(power - slope * ell, weights=count)), slope


def log_intensity(fields: np.ndarray) -> np.ndarray:
    """Logarithm of the intensity of log-pol-tens fields: i + ln cosh p, of shape (3, n)."""
    i, q, p = np.asarray(fields, np.float64)
    return i + np.log(np.cosh(np.hypot(q, p)))


def load_constraint(
    spec: str | Path | u.Quantity | np.ndarray,
    template: Template,
    *,
    mask: str | Path | np.ndarray | None = None,
    noise: float | str | u.Quantity = 0.01,
    fwhm: float | str | u.Quantity = 0.0,
    unit: str | None = None,
    freq_ref: u.Quantity = FREQ_REF,
) -> Constraint:
    """A map to follow, from wherever the user has it.

    Parameters
    ----------
    spec : str, path, Quantity or ndarray of shape (npix,)
        The intensity: a HEALPix FITS file (its first column), in any ordering and coordinates, of
        all of the sky or a part; or a full-sky array, RING, Galactic. Pixels that are missing, NaN
        or UNSEEN are not observed.
    template : Template
        The large scales of the skies.
    mask : str, path or ndarray of shape (npix,), optional
        What of it is observed: a disc (``"120,-30,5"``: Galactic longitude, latitude, radius), a
        FITS mask, or an array in RING order, Galactic, of any nside; not where it is 0, NaN or
        UNSEEN.
    noise : float, str or Quantity
        Standard deviation of the noise of a pixel: a number is a part of the intensity, a
        brightness (``"3 uK_RJ"``) the same everywhere.
    fwhm : float, str or Quantity
        Of the map's beam, in arcmin if it has no unit.
    unit : str, optional
        Of the map, in place of the header's: K_CMB, K_RJ or MJy/sr, with any prefix; or
        ``"relative"`` for whatever is proportional to the intensity, such as a column density: its
        level is then the template's.
    freq_ref : Quantity
        The frequency of the map, and of the template.

    Returns
    -------
    Constraint

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        If the map cannot be followed; the message says why, and what to do.
    """
    for name, value in (("constrain", spec), ("constrain_mask", mask)):
        if isinstance(value, bool | int | float) or not (
            value is None or isinstance(value, str | Path | np.ndarray)
        ):
            raise TypeError(f"{name} must be the path of a map, or an array, not {value!r}")
    noise, fwhm = _noise(noise), _fwhm(fwhm)
    if unit is not None and not isinstance(unit, str | u.UnitBase):
        raise TypeError(f"constrain_unit must be a unit, or 'relative', not {unit!r}")
    key = (noise, fwhm, None if unit is None else str(unit), freq_ref.to_value(u.GHz).item())
    if isinstance(spec, np.ndarray) or isinstance(mask, np.ndarray):
        return _constraint(spec, mask, template, *key)
    if not Path(spec).is_file():
        raise FileNotFoundError(f"constrain {str(spec)!r}: there is no such file; give a FITS map")
    stamp = None
    if mask is not None:
        # A disc is no file.
        stamp = file_stamp(mask) if Path(mask).is_file() else (str(mask),)
    # Read once, so that all skies of a process share what is worked out for a map.
    return _from_file(file_stamp(spec), stamp, template, *key)


@lru_cache(maxsize=2)
def _from_file(stamp: tuple, mask: tuple | None, template: Template, *rest: Any) -> Constraint:
    return _constraint(stamp[0], None if mask is None else mask[0], template, *rest)


def _constraint(
    spec: str | Path | np.ndarray,
    mask: str | Path | np.ndarray | None,
    template: Template,
    noise: float | u.Quantity,
    fwhm: float,
    unit: str | None,
    freq_ghz: float,
) -> Constraint:
    nside, coordinates, pixels, values, name = _read(spec)
    if unit is not None:
        named = u.dimensionless_unscaled if unit == "relative" else _named_unit(unit)
        values = values.value << named
    relative = unit == "relative"
    if not relative:
        freq_ref = freq_ghz * u.GHz
        try:
            values = to_uK_RJ(values, freq_ref, name) * u.uK_RJ
        except u.UnitsError as error:
            raise ValueError(
                f"{error} Or name the unit: constrain_unit='uK_RJ'; of what is but proportional to "
                "the intensity, 'relative'."
            ) from error
    elif isinstance(noise, u.Quantity):
        raise ValueError(
            "constrain_noise of a 'relative' map must be a number: its part of the intensity"
        )
    values = values.value
    if mask is None:
        seen = np.isfinite(values)
    else:
        seen = _masked(mask, nside, coordinates, pixels)
        lost = np.count_nonzero(~np.isfinite(values[seen]))
        if lost:
            raise ValueError(
                f"{name} has {lost} NaN, infinite or UNSEEN pixels within constrain_mask: leave "
                "them out of the mask, or fill them"
            )
    if not seen.any():
        raise ValueError(f"{name} has no observed pixel: check constrain_mask")
    pixels, values = pixels[seen], values[seen]
    dark = np.count_nonzero(values <= 0)
    if dark:
        raise ValueError(
            f"{name} is not positive in {dark} of {len(values)} observed pixels, so it has no "
            "logarithm there: mask them, smooth the map, or add its monopole"
        )
    if isinstance(noise, u.Quantity):
        noise = to_uK_RJ(noise, freq_ghz * u.GHz, "constrain_noise")
        rms = noise / values
        if np.sqrt(np.mean(rms**2)) > 1:
            raise ValueError(
                f"constrain_noise is as large as the intensity of {name} in its pixels: smooth "
                "the map, or leave faint sky out with constrain_mask"
            )
    else:
        rms = np.full(len(values), noise)
    order = np.argsort(pixels)
    observed = ObservedMap(
        name=name,
        nside=nside,
        coordinates=coordinates,
        pixels=pixels[order],
        logarithm=np.log(values[order]),
        noise=rms[order],
        relative=relative,
    )
    return Constraint(observed, template, fwhm)


def _read(spec: str | Path | np.ndarray) -> tuple[int, str, np.ndarray, u.Quantity, str]:
    """Resolution, coordinates, RING pixels, values and name of a map."""
    if isinstance(spec, np.ndarray):
        values = u.Quantity(spec, dtype=np.float64)
        name = "the map to constrain"
        if values.ndim != 1 or not hp.isnpixok(len(values)):
            raise ValueError(
                f"{name} has the shape {values.shape}, which no full-sky HEALPix map of the "
                "intensity has: give one list of 12 nside² pixels"
            )
        bad = hp.mask_bad(values.value)
        values = np.where(bad, np.nan, values.value) << values.unit
        return hp.npix2nside(len(values)), "G", np.arange(len(values)), values, name
    name = f"constrain {str(spec)!r}"
    read = read_healpix(spec, "constrain", most=1)
    coordinates = read.coordinates
    if not coordinates:
        log.warning("%s has no COORDSYS in its header: taken as Galactic", spec)
    elif coordinates not in "GCE":
        raise ValueError(f"{name}: COORDSYS = {coordinates!r} is not G, C or E")
    pixels = np.arange(hp.nside2npix(read.nside)) if read.pixels is None else read.pixels
    if read.nest:
        pixels = hp.nest2ring(read.nside, pixels)
    values = u.Quantity(read.maps[0], map_unit(read.units[0]))
    return read.nside, coordinates or "G", pixels, values, name


def _masked(
    mask: str | Path | np.ndarray, nside: int, coordinates: str, pixels: np.ndarray
) -> np.ndarray:
    """Which of a map's pixels a mask takes for observed, by their centres."""
    if isinstance(mask, np.ndarray):
        if mask.ndim != 1 or not hp.isnpixok(len(mask)):
            raise ValueError(
                f"constrain_mask has the shape {mask.shape}, which no full-sky HEALPix map has"
            )
        level, frame = hp.npix2nside(len(mask)), "G"
        number = np.asarray(mask, np.float64)
        wanted = np.isfinite(number) & ~hp.mask_bad(number) & (number != 0)
    elif Path(mask).is_file():
        read = read_healpix(mask, "constrain_mask", most=1)
        level, frame = read.nside, read.coordinates or "G"
        wanted = np.zeros(hp.nside2npix(level), bool)
        own = np.arange(len(wanted)) if read.pixels is None else read.pixels
        own = own[np.isfinite(read.maps[0]) & (read.maps[0] != 0)]
        wanted[hp.nest2ring(level, own) if read.nest else own] = True
    else:
        # A disc turned to other coordinates needs a finer grid to be round.
        level, frame = (nside if coordinates == "G" else max(nside, 512)), "G"
        wanted = np.zeros(hp.nside2npix(level), bool)
        try:
            wanted[region_pixels(mask, level)] = True
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"constrain_mask: {error}") from error
    vectors = np.array(hp.pix2vec(nside, pixels))
    turned = _turned(hp.Rotator(coord=[coordinates, frame]).mat, vectors)
    return wanted[hp.vec2pix(level, *turned)]


def _harmonics(
    nside: int, pixels: np.ndarray, values: np.ndarray, lmax: int, iterations: int = 1
) -> np.ndarray:
    """Harmonics of a map that is zero but on some pixels."""
    full = np.zeros(hp.nside2npix(nside))
    full[pixels] = values
    return hp.map2alm(full, lmax=lmax, iter=iterations)


def _turned(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Rotated vectors, shape (3, n)."""
    # A product of matrices would have other last bits for another number of vectors or threads.
    return np.array(
        [row[0] * vectors[0] + row[1] * vectors[1] + row[2] * vectors[2] for row in matrix]
    )


def _large(lmax: int, template_lmax: int) -> np.ndarray:
    """Share of the template's own scales: 1 up to half of its band, 0 beyond, by multipole."""
    ell = np.maximum(np.arange(lmax + 1), 1)
    return np.cos(0.5 * np.pi * _step(np.log2(2 * ell / template_lmax))) ** 2


def _values(alm: np.ndarray, share: np.ndarray, place: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """A share of harmonics' scales, at angles."""
    lmax = int(np.flatnonzero(share)[-1])
    return evaluated(
        hp.resize_alm(hp.almxfl(alm, share), len(share) - 1, len(share) - 1, lmax, lmax)[None],
        0,
        *place,
    )[0]


def _step(x: np.ndarray) -> np.ndarray:
    """Quintic step from 0 to 1, twice differentiable."""
    x = np.clip(x, 0, 1)
    return x**3 * (10 + x * (6 * x - 15))


def _noise(value: Any) -> float | u.Quantity:
    """A part of the intensity, or a brightness."""
    remedy = (
        "constrain_noise must be above 0: the part of the intensity that a pixel's noise is, less "
        f"than 1, or a brightness such as '3 uK_RJ'; got {value!r}"
    )
    try:
        quantity = u.Quantity(value)
        if isinstance(value, bool) or not quantity.isscalar or not 0 < quantity.value < np.inf:
            raise ValueError
    except (TypeError, ValueError) as error:
        raise ValueError(remedy) from error
    if quantity.unit != u.dimensionless_unscaled:
        return quantity
    if quantity.value >= 1:
        raise ValueError(remedy)
    return float(quantity.value)


def _fwhm(value: Any) -> float:
    """Width of a beam, radians."""
    try:
        quantity = u.Quantity(value)
        if quantity.unit == u.dimensionless_unscaled:
            quantity = quantity.value * u.arcmin
        width = float(quantity.to_value(u.rad))
        if isinstance(value, bool) or not 0 <= width < np.radians(10):
            raise ValueError
    except (TypeError, ValueError) as error:
        raise ValueError(
            "constrain_fwhm must be the width of the map's beam in arcmin, 0 or more and less "
            f"than 600, not {value!r}"
        ) from error
    return width


def _named_unit(text: str) -> u.UnitBase:
    unit = map_unit(text)
    if isinstance(unit, u.UnrecognizedUnit) or unit == u.dimensionless_unscaled:
        raise ValueError(
            f"constrain_unit {text!r} is no unit: give uK_RJ, K_CMB, MJy/sr or the like, or "
            "'relative'"
        )
    return unit
