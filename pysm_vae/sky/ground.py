"""What all skies of one template and one generator have in common, worked out once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import healpy as hp
import numpy as np
import scipy.fft
import scipy.ndimage
from scipy.integrate import trapezoid

from pysm_vae.files import data_path
from pysm_vae.kept import kept
from pysm_vae.sky.calibration import (
    CALIBRATION_NSIDE,
    NODES,
    PIVOT,
    Calibrator,
    Spectrum,
    latitude_mask,
    latitude_weight,
    pattern_power,
)
from pysm_vae.sky.canvas import Between, Canvas
from pysm_vae.sky.cover import whole_chart
from pysm_vae.sky.largescales import LargeScales, coarser, finer
from pysm_vae.sky.planes import Plane, Spectra, spline_values
from pysm_vae.sky.templates import Template, from_log_pol_tens, handover
from pysm_vae.sky.tiling import CELL, CELLS, Tiling, axis, local_scale
from pysm_vae.threads import in_order, over, threads
from pysm_vae.vae.generator import Generator

#: Seeds of the canvases that are measured, three T fields each; larger than any that would be
#: chosen for a sky. One field's excess scatters by 15 %, since its bright places weigh most.
SEEDS = tuple(range(2**80, 2**80 + 2))
#: Octaves of the grid on which the small scales are calibrated.
DEPTH = 3
#: Octaves of the grid, and the number of charts, on which the deficit is followed further: finer
#: scales have more modes.
DEFICIT_DEPTH = 4
DEFICIT_CHARTS = 3
#: Multipoles on which the excess of T's spectrum is measured.
EXCESS_ELL = (110.0, 480.0)
#: Where the intensity is so many times its median at high latitude, fluctuations start to average
#: out along the line of sight.
CROWDED = 20.0
#: Where T raises the intensity by more than the first factor it starts to saturate, and it ends
#: short of the second. Planck's maps of Taurus and Chamaeleon, at 5', nowhere exceed 9 times what
#: they are when smoothed to 1.5 degrees.
BRIGHTEST = (3.0, 10.0)
#: The same for the polarisation fraction, from the first value on or from the template's own
#: largest, if that is larger. Planck 2018 XII (A&A 641, A12): 0.22 at 80'.
MOST_POLARISED = (0.2, 0.25)
#: The exponential of T keeps the mean intensity within this width (FWHM, degrees).
OFFSET_WIDTH = 6.0
#: Lengths on the sky over those on a chart, at which the hand-over to its own modes is worked out.
SCALES = (0.88, 0.94, 1.0)
#: Octaves of the grid on which that mean is known.
OFFSET_DEPTH = 1
#: What scales finer than the calibration's add to the intensity is taken back within this width
#: (FWHM, degrees) and a pixel of its grid: up to multipoles of about 400. Those begin at 490.
LEAK_WIDTH = 0.4
# Lines of a grid that a thread takes at a time.
_ROWS = 30
# Multipole beyond any grid.
_HIGHEST = 1e5
#: What is measured: T's power drawn for the template over that of a blind pattern, about 1, 2, …
#: cycles a chart, and the coefficients of :meth:`Ground.excess`.
CALIBRATION = ("deficit", "excess")


class Ground:
    """The calibrated ground that small scales are drawn on.

    Parameters
    ----------
    generator : Generator
        What draws them.
    template : Template
        The large scales.
    spectrum : Spectrum
        What is asked of the small scales.
    split : (float, float)
        Where the template hands over.
    shipped : bool
        Take the calibration that comes with the package, where it is of these. (It is measured by
        ``data/build_ground.py``, and takes longer than anything else that a first map needs.)

    Attributes
    ----------
    tiling : Tiling
        The charts.
    large : LargeScales
        The template on them.
    levels : ndarray, shape (3, len(NODES))
        D_ℓ of the T, E and B patterns at the nodes, over their power laws.
    crowded : float
        The template's i where fluctuations start to average out; see :meth:`crowding`.
    polarisation : float
        Root mean square length of the template's (q, u) at high latitude; see :meth:`modulation`.
    most_polarised : (float, float)
        Length of (q, u) from which it saturates, and where it ends.
    """

    def __init__(
        self,
        generator: Generator,
        template: Template,
        spectrum: Spectrum,
        split: tuple[float, float],
        *,
        shipped: bool = True,
    ) -> None:
        self.generator = generator
        self.spectrum = spectrum
        self.tiling = Tiling()
        self.large = LargeScales(template, generator, self.tiling, split)
        angles = hp.pix2ang(CALIBRATION_NSIDE, np.arange(hp.nside2npix(CALIBRATION_NSIDE)))
        fields = template.fields(*angles)
        calm = latitude_mask(CALIBRATION_NSIDE) > 0
        self.crowded = np.median(fields[0, calm]) + np.log(CROWDED)
        start, end = np.arctanh(MOST_POLARISED)
        knee = max(start, np.hypot(fields[1], fields[2]).max())
        self.most_polarised = knee, knee + end - start
        # A template of intensity alone must not divide zero by zero.
        polarised = np.sqrt(np.mean(fields[1, calm] ** 2 + fields[2, calm] ** 2))
        self.polarisation = max(polarised, np.finfo(np.float32).eps)
        calibrator = Calibrator(
            from_log_pol_tens(fields),
            spectrum,
            split,
            self.large.roughness(*angles),
            self.crowding(fields[0]),
            self.modulation(fields[1], fields[2]),
        )
        self._spectra = Spectra(generator.spectra)
        self._deficit = np.ones(1)
        self._excess = np.zeros(2)
        self._gains = [
            (share, _lacking(split, scale))
            for share, scale in zip(_near_scales(), SCALES, strict=True)
        ]
        levels = calibrator.temperature()
        if generator.conditional and levels.any():
            found = _shipped(generator, template, spectrum, split) if shipped else None
            if found is None:
                card = json.dumps(generator.card, sort_keys=True)
                of = [card.encode(), template.alm.tobytes(), repr((spectrum, split)).encode()]
                found = kept("ground", of, lambda: self._measure(levels, split))
            self._deficit, self._excess = (np.array(found[key]) for key in CALIBRATION)
        self.levels = np.array([levels, *calibrator.polarisation(levels, self.excess)])

    @property
    def calibration(self) -> dict[str, list[float]]:
        """What was measured: all that the package ships of it."""
        return dict(zip(CALIBRATION, (self._deficit.tolist(), self._excess.tolist()), strict=True))

    def crowding(self, i: np.ndarray) -> np.ndarray:
        r"""Factor on the fluctuations where many clouds share a line of sight.

        N independent clouds have relative fluctuations of :math:`1/\sqrt N`, and N grows with the
        intensity; so :math:`(1 + I/I_0)^{-1/2}`, with :math:`I_0` twenty times the template's
        median at \|b\| > 30 degrees. It also keeps the bright plane's small scales, which its steep
        profile would spread over all multipoles, out of the large ones.

        Parameters
        ----------
        i : ndarray
            The template's i.
        """
        return 1 / np.sqrt(1 + np.exp(i - self.crowded))

    def modulation(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        r"""Factor on E and B patterns where the template is polarised more, or less.

        :math:`\sqrt{(1 + p^2/\bar p^2)/2}` with p the length of (q, u), so that half of their
        variance follows the large-scale polarised intensity. Not all: where the field's directions
        cancel along the line of sight, small scales do not.

        Parameters
        ----------
        q, u : ndarray
            The template's.
        """
        return np.sqrt((1 + (q**2 + u**2) / self.polarisation**2) / 2)

    def excess(self, ell: np.ndarray) -> np.ndarray:
        """Power of what T patterns add to the intensity over that of a faint, blind pattern.

        Patches drawn for the template vary more where it is brighter, as the dust does; such places
        weigh most in a spectrum of intensity, and the exponential stretches them further. A power
        law on ``EXCESS_ELL``, constant beyond.
        """
        return np.exp(np.polyval(self._excess, np.log(np.clip(ell, *EXCESS_ELL) / PIVOT)))

    def canvas(self, tile: int, seed: int | Between, conditioned: int = 1) -> Canvas:
        """What draws the fields of one chart: T, or the first few of them, for the template.

        The template lacks power above the split, and a network that is given too smooth a map draws
        too little for it; so the coarsest map's own modes supply what the taper has taken.
        """
        target = self.large.target(tile, 0)
        return Canvas(
            self.generator,
            tile,
            seed,
            offset=target,
            gains=self._gains,
            conditioned=conditioned,
        )

    def offset(
        self, t: np.ndarray, larger: np.ndarray | None = None, further: float = 1.0
    ) -> np.ndarray:
        r"""What to add to T so that its exponential has unit mean around each place.

        Where T has scales that ``larger`` lacks, the exponential makes larger ones of them: by
        their own squares, and by their products with what is there. What keeps the mean m of the
        exponential within ``LEAK_WIDTH``, but for what T itself has at such scales, is

        .. math:: -\ln(m[e^T] / m[e^L]) + m[T - L] ,

        so that the intensity's large scales are those of the exponential of L.

        Parameters
        ----------
        t : ndarray, shape (size, size)
            On a chart.
        larger : ndarray, shape (size, size), optional
            L; by default T.
        further : float
            Factor on what is done about the scales that only T has: their variance and that of yet
            finer ones over theirs, if there are any that are not in T.

        Returns
        -------
        ndarray
            On the chart's grid of ``OFFSET_DEPTH`` octaves, or of ``DEPTH`` if ``larger`` is given.
        """
        if larger is None:
            mean = _brightness(t, OFFSET_DEPTH)
            return -np.log(_within(mean, OFFSET_WIDTH, OFFSET_DEPTH))
        all_of_it, known = (_brightness(each, DEPTH) for each in (t, larger))
        step = 2 ** (DEPTH - OFFSET_DEPTH)
        offset = -np.log(_within(coarser(known, step), OFFSET_WIDTH, OFFSET_DEPTH))
        own = coarser(t - larger, len(t) // len(known))
        means = [_within(each, LEAK_WIDTH, DEPTH) for each in (all_of_it, known, own)]
        leak = np.log(means[0] / means[1]) - means[2]
        return finer(offset, step) - further * leak

    def variance(self, passed: Callable[[np.ndarray], np.ndarray]) -> float:
        """Variance of T patterns, where roughness and crowding are 1.

        Parameters
        ----------
        passed : callable
            Of multipoles: share of the amplitude that patterns have.
        """
        log_ell = np.linspace(np.log(NODES[0]), np.log(_HIGHEST), 2000)
        ell = np.exp(log_ell)
        power = pattern_power(ell, self.levels[0], self.spectrum.slopes[0]) / self.excess(ell)
        return float(trapezoid(power * passed(ell) ** 2, log_ell))

    def filters(self, plane: Plane) -> dict[str, np.ndarray]:
        """Filters of a plane for T, E, B, and for the part of E that is made of T's field."""
        power = [
            pattern_power(plane.ell, level, slope)
            for level, slope in zip(self.levels, self.spectrum.slopes, strict=True)
        ]
        drawn = self._spectra(plane.cycles, plane.depth)
        for_template = drawn * self._deficit_at(plane.cycles)
        # T and E share a part of one pattern, each with its own slope.
        shared = self.spectrum.te_correlation(plane.ell)
        return {
            "T": plane.filter(power[0] / self.excess(plane.ell), for_template),
            "E": plane.filter((1 - shared**2) * power[1], drawn),
            "B": plane.filter(power[2], drawn),
            "TE": np.sign(shared).astype(np.float32)
            * plane.filter(shared**2 * power[1], for_template),
        }

    def waves(self, plane: Plane, filters: dict[str, np.ndarray], fields: np.ndarray) -> np.ndarray:
        """Waves of the spline coefficients of T, E, B patterns that have their spectra.

        Parameters
        ----------
        plane : Plane
            Of the fields.
        filters : dict
            What :meth:`filters` has for it.
        fields : ndarray, shape (3, size, size)
            As drawn.

        Returns
        -------
        ndarray, complex64, shape (3, size, size // 2 + 1)
        """
        t, e, b = plane.waves(fields)
        return np.stack([filters["T"] * t, filters["TE"] * t + filters["E"] * e, filters["B"] * b])

    def _deficit_at(self, cycles: np.ndarray) -> np.ndarray:
        numbers = np.arange(1, len(self._deficit) + 1)
        return np.exp(np.interp(cycles * CELLS, numbers, np.log(self._deficit)))

    def _measure(self, levels: np.ndarray, split: tuple[float, float]) -> dict[str, np.ndarray]:
        """Measure, at high latitude, how what is drawn for the template differs from the prior's.

        It lacks the large scales, which the template has, and its octaves vary a little more or
        less: the deficit. And its spectrum in the map is higher: the excess.
        """
        plane = Plane(CELLS, DEPTH)
        ell = plane.ell_of(_numbers(DEPTH) / CELLS)
        used = (ell > EXCESS_ELL[0]) & (ell < EXCESS_ELL[1])
        wanted = pattern_power(plane.ell, levels, self.spectrum.slopes[0])
        spectrum = self._spectra(plane.cycles, DEPTH)
        # What a faint pattern, drawn for no template, would have.
        response = plane.filter(wanted, spectrum) * plane.interpolation
        masks = [self._calm(tile, DEPTH) for tile in range(self.tiling.ntiles)]

        def measured(tile: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
            mask = masks[tile]
            rough, i = self.large.values(tile, DEPTH)
            crowding, intensity = self.crowding(i), mask * np.exp(i)
            # The same latents for every sky: this belongs to the template and the weights.
            fields = np.concatenate([self._drawn_for_template(tile, s, DEPTH) for s in SEEDS])
            drawn = np.mean([_power(mask * t) for t in fields], axis=0)
            prior = _mean_power(mask, spectrum)
            faint = _mean_power(intensity * crowding * rough, spectrum * response**2)
            chart = plane.waves(fields), intensity, rough, crowding
            return np.array([drawn, prior, faint]), chart

        tiles = [tile for tile, mask in enumerate(masks) if mask.any()]
        found, charts = zip(*in_order(measured, tiles, threads()), strict=True)
        drawn, prior, faint = np.sum(found, axis=0)
        calmest = np.argsort([-mask.sum() for mask in masks])[:DEFICIT_CHARTS]
        self._deficit = self._followed(
            _smoothed(drawn / prior, ell > 1.2 * split[1]), [int(tile) for tile in calmest]
        )
        for_template = self._spectra(plane.cycles, DEPTH) * self._deficit_at(plane.cycles)
        # The exponential depends on the amplitude, so twice.
        for _ in range(2):
            filters = plane.filter(wanted / self.excess(plane.ell), for_template)
            powers = in_order(partial(self._added, plane, filters), charts, threads())
            added = np.sum(list(powers), axis=0)
            log_ell = np.log(ell[used] / PIVOT)
            # As the logarithm of ell has it, all octaves count alike.
            ratio = np.log(added[used] / faint[used])
            self._excess += np.polyfit(log_ell, ratio, 1, w=ell[used] ** -0.5)
        return {"deficit": self._deficit, "excess": self._excess}

    def _added(
        self, plane: Plane, filters: np.ndarray, chart: tuple[np.ndarray, ...]
    ) -> np.ndarray:
        """Mean power of what T patterns add to the intensity of a chart, of waves that it has."""
        waves, intensity, rough, crowding = chart
        powers = []
        for wave in waves:
            t = spline_values(plane.fields(filters * wave)) * rough
            offset = finer(self.offset(t), 2 ** (DEPTH - OFFSET_DEPTH))
            t = bounded(crowding * t) + crowding**2 * offset
            powers.append(_power(intensity * np.expm1(t)))
        return np.mean(powers, axis=0)

    def _followed(self, deficit: np.ndarray, charts: list[int]) -> np.ndarray:
        """The deficit, followed to smaller scales on a few charts."""
        plane = Plane(CELLS, DEFICIT_DEPTH)
        spectrum = self._spectra(plane.cycles, DEFICIT_DEPTH)

        def measured(tile: int) -> np.ndarray:
            mask = self._calm(tile, DEFICIT_DEPTH)
            fields = self._drawn_for_template(tile, SEEDS[0], DEFICIT_DEPTH)
            drawn = np.mean([_power(mask * t) for t in fields], axis=0)
            return np.array([drawn, _mean_power(mask, spectrum)])

        drawn, prior = np.sum(list(in_order(measured, charts, threads())), axis=0)
        further = _smoothed(drawn / prior, np.arange(len(drawn)) >= len(deficit) // 2)
        # These charts' own level does not count, only how it changes from where all are known.
        known = slice(len(deficit) // 2, 3 * len(deficit) // 4)
        further *= np.mean(deficit[known]) / np.mean(further[known])
        share = np.linspace(0, 1, known.stop - known.start)
        further[known] = (1 - share) * deficit[known] + share * further[known]
        return np.concatenate([deficit[: known.start], further[known.start :]])

    def _drawn_for_template(self, tile: int, seed: int, depth: int) -> np.ndarray:
        """Fields drawn for the template on a chart, less the template's own."""
        octaves = whole_chart(depth, self.generator.reach)
        *_, fields = self.canvas(tile, seed, conditioned=3).draw(octaves)
        return fields - self.large.target(tile, depth)

    def _calm(self, tile: int, depth: int) -> np.ndarray:
        """Mask of high latitudes on a chart's grid, within its window."""
        size = CELLS << depth
        height = self.tiling.vectors(tile, size)[..., 2]
        return self.tiling.window_on(tile, size) * latitude_weight(np.arcsin(height))


def bounded(t: np.ndarray) -> np.ndarray:
    """T fluctuations (of ln I) that raise the intensity within ``BRIGHTEST``.

    Shape and precision as given.
    """
    knee, end = (math.log(factor) for factor in BRIGHTEST)
    above = np.maximum(t - knee, 0) / (end - knee)
    return np.minimum(t, knee) + (end - knee) * np.tanh(above)


def _brightness(t: np.ndarray, depth: int) -> np.ndarray:
    """Means of the exponential of T, as it is bounded, at the pixels of a coarser grid."""
    size = CELLS << depth
    block, found = len(t) // size, np.empty((size, size), t.dtype)

    def rows(start: int, stop: int) -> None:
        found[start:stop] = coarser(np.exp(bounded(t[start * block : stop * block])), block)

    over(size, rows, piece=_ROWS)
    return found


def _within(field: np.ndarray, width: float, depth: int) -> np.ndarray:
    """Means of a field on a chart's grid within a width (FWHM, degrees) of each place."""
    pixels = np.radians(width) / (CELL / 2**depth)
    return scipy.ndimage.gaussian_filter(field, pixels / np.sqrt(8 * np.log(2)))


def calibrated(
    generator: Generator, template: Template, spectrum: Spectrum, split: tuple[float, float]
) -> dict[str, Any]:
    """What a calibration is of, for the one that is shipped: weights, template and what is asked.

    A template by the power of its coefficients, whose last bits differ between machines.
    """
    parts = generator.sha256, generator.spectra, repr(spectrum), list(split)
    return {
        "sha256": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(),
        "coefficients": template.alm.shape[1],
        "power": np.sum(np.abs(template.alm) ** 2, axis=1).tolist(),
    }


def _shipped(
    generator: Generator, template: Template, spectrum: Spectrum, split: tuple[float, float]
) -> dict[str, list[float]] | None:
    """The calibration that is shipped, if it is of these."""
    stored = json.loads(data_path("ground.json").read_text())
    wanted = calibrated(generator, template, spectrum, split)
    same = np.allclose(stored["of"].pop("power"), wanted.pop("power"), rtol=1e-5, atol=0)
    return stored if same and stored["of"] == wanted else None


@lru_cache(maxsize=4)
def shared_ground(
    generator: Generator, template: Template, spectrum: Spectrum, split: tuple[float, float]
) -> Ground:
    """The ground of these, worked out at the first call and kept."""
    return Ground(generator, template, spectrum, split)


def _lacking(split: tuple[float, float], scale: float) -> np.ndarray:
    """Amplitude of what the template leaves to the coarsest map's modes.

    Where lengths on the sky are ``scale`` times those on the chart.
    """
    k = np.hypot(np.fft.fftfreq(CELLS)[:, None], np.fft.rfftfreq(CELLS))
    return np.sqrt(1 - handover(2 * np.pi * k / (CELL * scale), *split) ** 2)


def _near_scales() -> np.ndarray:
    """How near the scale of each cell of a chart is to each of ``SCALES``: linear shares."""
    place = np.interp(local_scale(axis(CELLS), axis(CELLS)), SCALES, np.arange(len(SCALES)))
    return np.maximum(1 - np.abs(place - np.arange(len(SCALES))[:, None, None]), 0)


def _numbers(depth: int) -> np.ndarray:
    """Whole wavenumbers on a chart's grid, in cycles a side."""
    return np.arange(1, (CELLS << depth) // 2 + 1)


def _smoothed(ratio: np.ndarray, above: np.ndarray) -> np.ndarray:
    """A ratio of spectra, averaged over half an octave where it is ``above`` all steps."""
    number = np.arange(1, len(ratio) + 1)
    apart = np.log2(number[:, None] / number[above])
    # There are as many modes as the wavenumber is high; the last ones are cut.
    weights = np.exp(-0.5 * (apart / 0.2) ** 2) * number[above] * (number[above] < 0.8 * number[-1])
    return np.where(above, weights @ ratio[above] / weights.sum(axis=1), ratio)


def _power(field: np.ndarray) -> np.ndarray:
    """Mean power of a field that falls to zero at the edges, about 1, 2, … cycles a side."""
    return _averaged(np.abs(scipy.fft.rfft2(field)) ** 2)


def _mean_power(window: np.ndarray, power: np.ndarray) -> np.ndarray:
    """What :func:`_power` gives on average for a random field of some power under a window."""
    shape = window.shape
    spread = scipy.fft.irfft2(np.abs(scipy.fft.rfft2(window)) ** 2, s=shape)
    return _averaged(scipy.fft.rfft2(spread * scipy.fft.irfft2(power, s=shape)).real)


def _averaged(power: np.ndarray) -> np.ndarray:
    """Means of a plane's modes about 1, 2, … cycles a side."""
    size = len(power)
    k = np.hypot(np.fft.fftfreq(size, 1 / size)[:, None], np.fft.rfftfreq(size, 1 / size))
    index = np.rint(k).astype(int).ravel()
    return (np.bincount(index, power.ravel()) / np.bincount(index))[1 : size // 2 + 1]
