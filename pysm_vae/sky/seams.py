r"""What patterns lose where charts are blended, and how they get it back.

Where two independent charts overlap with weights :math:`w`, :math:`\sum w^2 = 1`, their sum keeps
the variance; but of an excess kurtosis :math:`\kappa` only :math:`\kappa\sum w^4` is left, half of
it in the middle. Dust is intermittent because its local energy is: about log-normal, a field of its
own. So each chart is made *more* intermittent before the sum, by a power of its local energy e,

.. math:: x \to x\,(e/\hat e)^{\gamma/2}, \qquad
          (1+\gamma)^2 = 1 + \frac{1}{s^2}\ln\frac{3 + \kappa/D}{3 + \kappa}.

To a Gaussian field under a log-normal energy, with :math:`s^2` the variance of :math:`\ln e`, that
gives a kurtosis of :math:`\kappa/D`, and with :math:`D = \sum w^4` to the sum one of
:math:`\kappa`; the variance stays as it was with
:math:`\ln\hat e = \overline{\ln e} + (2+\gamma)s^2/2`. Patterns are not quite that. Of two
charts :math:`\sum w^4 = 1 - 2y^2` with :math:`y = w\sqrt{1-w^2}`, half as much at most; what gives
patterns their kurtosis above :math:`\ell = 100` to 200 is

.. math:: D = 1 - 0.2\,y - 1.32\,y^2 ,

less in the middle, and more on the sides, where waves that reach into the other chart lose their
phase. In :math:`\hat e`, :math:`s^2` is what keeps the variance on the chart where
:math:`w^2 = 1/2`. No factor is more than :math:`1.1/w`: no structure gets brighter, by more than a
tenth, than it would be within a chart. Where three charts meet, it is as if there were two.

E and B are multiplied as they are, scalars, on the chart's grid, before they are turned into Q and
U. Were it done after, windows, which vary over 2.9°, would turn some of E into B. What is turned
reaches beyond its window; so those of E and B are narrower, and Q and U fade to zero
(:func:`seam_fade`) where the chart ends. (Of D, the second term is of the chart's weight, the third
of theirs.) What finer grids add, above :math:`\ell \approx 570`, is turned block by block, and gets
weights, and gains that it shares, as Q and U: at such scales a window is nearly constant.

Windows also move power from scales as large as they are to smaller ones, and T's large scales have
more to give than E's and B's: between charts T would vary too much above the split
(:func:`steep_gain`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numba
import numpy as np
import scipy.fft

from pysm_vae.sky.largescales import coarser
from pysm_vae.sky.planes import interpolation, spline_values
from pysm_vae.sky.tiling import CELLS, at, axis, smooth_step, spot
from pysm_vae.threads import over, threads

#: Octaves of the grid of energies: half a degree, of which the cubic spline makes 0.8. Narrower
#: than a seam, and wide enough that an energy is not that of a single wave.
ENERGY_DEPTH = 2
# Octaves of the grid on which fields are squared: what finer ones show hardly counts.
_SQUARED_DEPTH = 3
# Of its pixels, the scale of a Gaussian that leaves half of what there is at a multipole of 90.
_LARGE = 3.5
# This much of a chart, at each edge, where fields end, is not looked at.
_EDGE = 1 / 8
# After so many steps the variance is kept to a few parts in a thousand.
_STEPS = 4
#: Share of T's variance above ℓ = 100 to 300 that windows have moved there, where two weights are
#: equal: of random fields with T's slope, and nothing that the template has.
MOVED = 0.025
#: Overlap of the windows of E and B over that of the charts.
NARROWER = 0.55
# What dilutes the kurtosis of patterns in a sum: factors of y of the chart's window, and of y² of
# their own; see above. Measured on pairs of charts along straight lines.
_DILUTION = (0.2, 1.32)
# Of two equal weights, y is 1/2.
_MOST_DILUTED = 1 - 0.5 * _DILUTION[0] - 0.25 * _DILUTION[1]
# Rows of a chart that a thread takes at a time.
_ROWS = 64
# No structure gets brighter by more than this factor.
_BRIGHTER = 1.1
# A chart's weight where that of its E and B ends, between two charts.
_LEFT = 1 - smooth_step.py_func(NARROWER)
_FADE = _LEFT / math.hypot(1, _LEFT)


class Energy(NamedTuple):
    """Local energies of the patterns of a chart.

    Attributes
    ----------
    splines : float64 array, shape (groups, size, size)
        Coefficients of positive splines.
    numbers : float64 array, shape (groups, 4)
        Mean and variance of the energy's logarithm, that variance as it counts for the patterns'
        variance, and their excess kurtosis.
    """

    splines: np.ndarray
    numbers: np.ndarray


def local_energy(patterns: np.ndarray, groups: Sequence[slice]) -> Energy:
    r"""Local energies of patterns, of what they have above :math:`\ell \approx 90`.

    Larger scales, of which T has more than E and B, are less intermittent.

    Parameters
    ----------
    patterns : array, shape (fields, size, size)
        Spline coefficients on a grid of ``_SQUARED_DEPTH`` octaves or more of a whole chart. Finer
        ones are averaged to it.
    groups : sequence of slice
        Fields that share an energy. Those that are zero everywhere do not count.

    Returns
    -------
    Energy
        Of each group; of nothing, one that gives no gains.
    """
    patterns = coarser(patterns, patterns.shape[-1] // (CELLS << _SQUARED_DEPTH))
    waves = scipy.fft.rfft2(patterns, workers=threads())
    squares = scipy.fft.irfft2(waves * _small_scales(patterns.shape[-1]), workers=threads()) ** 2
    means = coarser(squares, squares.shape[-1] // (CELLS << ENERGY_DEPTH))
    some = np.array([field.any() for field in patterns])
    splines, numbers = [], []
    for group in groups:
        which = np.arange(len(patterns))[group]
        which = which[some[which]] if some[which].any() else which[:1]
        # Where there is no pattern its energy is of no account, but it has a logarithm.
        mean = np.maximum(means[which].mean(axis=0), np.finfo(np.float32).tiny).astype(float)
        logs = _inner(np.log(spline_values(mean)))
        splines.append(mean)
        numbers.append(_numbers(_inner(squares[which]), _inner(mean), logs))
    return Energy(np.array(splines), np.array(numbers))


@lru_cache(maxsize=2)
def _small_scales(size: int) -> np.ndarray:
    """From the spline coefficients of a periodic field to its values, less those of large scales.

    Of the modes, (size, size // 2 + 1).
    """
    squared = scipy.fft.fftfreq(size)[:, None] ** 2 + scipy.fft.rfftfreq(size) ** 2
    large = np.exp(-2 * (np.pi * _LARGE) ** 2 * squared)
    return (interpolation(size) * (1 - large)).astype(np.float32)


def _numbers(
    squares: np.ndarray, means: np.ndarray, logs: np.ndarray
) -> tuple[float, float, float, float]:
    """What `Energy` has of fields: from squares, their means in blocks, and logs of energies."""
    mean, variance = logs.mean(), logs.var()
    power = squares.mean(axis=(1, 2), keepdims=True)
    if not power.all():
        return mean, variance, variance, 0.0
    kurtosis = max(np.mean((squares / power) ** 2) - 3, 0.0)
    stretch = _stretch(kurtosis, _MOST_DILUTED, variance)
    if not stretch > 0:
        return mean, variance, variance, 0.0
    factors = np.exp(_exponent(stretch) * (logs - mean))
    grown = 0.0
    for _ in range(_STEPS):
        # Of equal weights, 1/w² is 2.
        held = np.minimum(factors * math.exp(-grown), 2 * _BRIGHTER**2)
        grown += math.log(np.mean(means * held) / means.mean())
    return mean, variance, 2 * grown / stretch, kurtosis


def _inner(field: np.ndarray) -> np.ndarray:
    edge = int(field.shape[-1] * _EDGE)
    return field[..., edge:-edge, edge:-edge]


def gains_of(
    splines: np.ndarray, numbers: np.ndarray, weights: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """Factors on a chart's patterns at places, of those that have the chart's own weights.

    Parameters
    ----------
    splines, numbers : array
        An `Energy`.
    weights : array, shape (n,)
        The chart's.
    places : array, shape (n, 2)
        x and y on the chart, radians.

    Returns
    -------
    array, shape (groups, n)
    """
    gains = np.empty((len(places), len(splines)))
    _gains(splines, numbers, weights, places, gains)
    return gains.T


@numba.njit(cache=True, error_model="numpy")
def _gains(splines, numbers, weights, places, gains):
    for p in range(len(places)):
        seam_gains(splines, numbers, weights[p], weights[p], places[p], gains[p])


def blended(
    fields: np.ndarray, energy: Energy, window: np.ndarray, chart: np.ndarray
) -> np.ndarray:
    """Scalar patterns of a chart with its weights and gains.

    Parameters
    ----------
    fields : float32 array, shape (fields, size, size)
        Spline coefficients on the chart's grid, finer than anything that windows do.
    energy : Energy
        Of each of them.
    window, chart : float32 array, each (size, size)
        Their weights there, and the chart's: no narrower.

    Returns
    -------
    float32 array, shape (fields, size, size)
        Spline coefficients.
    """
    found = np.empty_like(fields)
    blend = fields, *energy, window, chart, axis(fields.shape[-1]), found
    over(fields.shape[-1], lambda start, stop: _blend(start, stop, *blend), piece=_ROWS)
    return found


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _blend(start, stop, fields, splines, numbers, window, chart, coordinates, found):
    # Element by element: what acts on whole rows takes seconds to compile.
    number, size, _ = fields.shape
    for i in range(start, stop):
        place, gains = np.empty(2), np.empty(number)
        place[1] = coordinates[i]
        for j in range(size):
            weight = window[i, j]
            for f in range(number):
                found[f, i, j] = weight * fields[f, i, j]
            if weight > 0.0 and chart[i, j] < 1.0:
                place[0] = coordinates[j]
                own, whole = np.float64(weight), np.float64(chart[i, j])
                seam_gains(splines, numbers, own, whole, place, gains)
                for f in range(number):
                    found[f, i, j] *= gains[f]


@numba.njit(cache=True, error_model="numpy")
def seam_fade(weight):
    """Factor on Q and U of E and B that have their weights, where a chart has ``weight``.

    1 where E and B have weight, and smoothly to zero where the chart ends. Of one or of many.
    """
    # Where a chart ends its weight goes as the cube of the distance.
    return smooth_step(np.cbrt(np.minimum(weight / _FADE, 1.0)))


@numba.njit(cache=True, error_model="numpy")
def _other(weight):
    """A weight times the other chart's, if there are two. Of one or of many."""
    return weight * np.sqrt(np.maximum(1.0 - weight * weight, 0.0))


@numba.njit(cache=True, error_model="numpy")
def steep_gain(weight):
    """Factor on T, where a chart has ``weight``, for what windows move above the split.

    Of one or of many. What finer grids add is too far above to get any.
    """
    return 1.0 - MOVED * _other(weight)


@numba.njit(cache=True, error_model="numpy")
def _stretch(kurtosis, diluted, variance):
    """What is added to the variance of the energy's logarithm, over it."""
    return math.log((3.0 + kurtosis / diluted) / (3.0 + kurtosis)) / variance


@numba.njit(cache=True, error_model="numpy")
def _exponent(stretch):
    return math.sqrt(1.0 + stretch) - 1.0


@numba.njit(cache=True, error_model="numpy")
def seam_gains(splines, numbers, weight, chart, place, gains):
    """Fill ``gains`` with the factor on each group's patterns at one place; for compiled code.

    ``splines`` and ``numbers`` are an `Energy`, ``weight`` is that of the patterns, above 0, and
    ``chart`` the chart's, ``place`` has shape (2,), ``gains`` (groups,).
    """
    if chart == 1.0:
        for g in range(len(gains)):
            gains[g] = 1.0
        return
    # As if no more than two charts met.
    diluted = 1.0 - _DILUTION[0] * _other(chart) - _DILUTION[1] * _other(weight) ** 2
    where = spot(splines.shape[1], place)
    for g in range(len(gains)):
        mean, variance, counted, kurtosis = numbers[g]
        if kurtosis == 0.0:
            gains[g] = 1.0
            continue
        stretch = _stretch(kurtosis, diluted, variance)
        above = _exponent(stretch) * (math.log(at(splines[g], where)) - mean)
        gains[g] = min(math.exp(0.5 * (above - 0.5 * stretch * counted)), _BRIGHTER / weight)
