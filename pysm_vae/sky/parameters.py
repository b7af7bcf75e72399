"""Small scales of the dust's spectral index and temperature.

The machinery of the dust's own small scales, with latents of their own: filaments in β and T, which
make frequencies decorrelate. What is drawn has unit variance over all scales, whatever the nside.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import pysm3.units as u
from scipy.integrate import quad

from pysm_vae.sky.calibration import PIVOT
from pysm_vae.sky.canvas import Between
from pysm_vae.sky.patterns import Adding, Layers, Patterns
from pysm_vae.sky.planes import Plane, Spectra
from pysm_vae.sky.seams import seam_gains
from pysm_vae.sky.sed import emission
from pysm_vae.sky.templates import SPLIT, handover
from pysm_vae.sky.tiling import Tiling, at, see, spot
from pysm_vae.vae.generator import Generator

#: Fluctuations beyond the first number of standard deviations saturate, and end at the second.
BOUNDS = (3.0, 5.0)
#: Fluctuations leave the mean SED as it is at the reference frequency and at this multiple of it:
#: 150 GHz for 353 GHz.
NEUTRAL = 0.425


class ParameterScales(Patterns):
    r"""Seeded fluctuations of β and T, in standard deviations.

    Their spectrum is :math:`D_\ell \propto (1 - h_\ell^2)\,\ell^p`, with h what the split leaves to
    large scales (:func:`pysm_vae.sky.templates.handover`), and their variance
    :math:`\int D_\ell\,\mathrm{d}\ln\ell = 1`. A map shows what part of that its pixels resolve.

    Parameters
    ----------
    generator : Generator
        What draws them; as for no template, as nothing in a template says how β and T vary.
    seed : int or Between
        With the weights, it decides the fluctuations.
    nside : int
        Of the pixels.
    slope : float
        p, below 0.
    split : (float, float)
        Multipoles between which they set in.

    Raises
    ------
    ValueError
        If the slope is not negative: the variance of all scales would be infinite.
    """

    fields = ("beta", "temperature")
    groups = (slice(0, 1), slice(1, 2))

    def __init__(
        self,
        generator: Generator,
        *,
        seed: int | Between,
        nside: int,
        slope: float,
        split: tuple[float, float] = SPLIT,
    ) -> None:
        if not -3.0 < slope < 0.0:
            raise ValueError(
                f"the slope of D_ell of beta and temperature must lie between -3 and 0, not {slope}"
            )
        self._split = split
        self._spectra = Spectra(generator.spectra)

        def shape(x: float) -> float:
            return float(_missing(PIVOT * np.exp(x), split)) * math.exp(slope * x)

        # The taper ends within the second limit; beyond it there is nothing but the power law.
        low, high = (math.log(edge / PIVOT) for edge in split)
        variance = quad(shape, low, high)[0] - math.exp(slope * high) / slope
        self._level = 1.0 / variance
        self._slope = slope
        slopes = [slope] * len(self.fields)
        super().__init__(generator, Tiling(), seed=seed, nside=nside, slopes=slopes)

    def _filters_of(self, plane: Plane) -> dict[str, np.ndarray]:
        power = self._level * _missing(plane.ell, self._split) * (plane.ell / PIVOT) ** self._slope
        return {"both": plane.filter(power, self._spectra(plane.cycles, plane.depth))}

    def _filtered(
        self, plane: Plane, filters: dict[str, np.ndarray], fields: np.ndarray
    ) -> np.ndarray:
        return filters["both"] * plane.waves(fields)

    def _adding(self, tile: int, layers: Layers) -> Adding:
        chart = layers.coarse, layers.fine, *layers.energy

        def add(vectors: np.ndarray, where: np.ndarray, maps: np.ndarray) -> None:
            _add(*(vectors, tile, *self.tiling.geometry, *chart, where, maps))

        return add


def bounded(fluctuations: np.ndarray) -> np.ndarray:
    """Fluctuations, in standard deviations, held within ``BOUNDS``; shape as given."""
    knee, end = BOUNDS
    above = np.maximum(np.abs(fluctuations) - knee, 0) / (end - knee)
    inside = np.minimum(np.abs(fluctuations), knee)
    return np.copysign(inside + (end - knee) * np.tanh(above), fluctuations)


def neutral_shift(
    beta_scatter: float, temperature_scatter: float, *, temperature: float, freq_ref: u.Quantity
) -> float:
    r"""What to add to β so that fluctuations of β and T do not brighten the mean sky.

    The SED is convex in β and T: at a frequency ν, Gaussian fluctuations of β raise its mean by
    :math:`\exp(\sigma^2 \ln^2(\nu/\nu_{ref}) / 2)`. A shift of β takes that back at ``NEUTRAL``
    times the reference frequency, and most of it elsewhere.

    Parameters
    ----------
    beta_scatter, temperature_scatter : float
        Standard deviations; of T in kelvin.
    temperature : float
        Mean temperature, kelvin.
    freq_ref : Quantity
        Reference frequency.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    beta, warm = (grid.ravel() for grid in np.meshgrid(beta_scatter * nodes, nodes))
    factors = emission(
        np.ones((3, beta.size)),
        NEUTRAL * freq_ref,
        freq_ref_I=freq_ref,
        freq_ref_P=freq_ref,
        beta=beta,
        # Nine nodes reach 4.5 standard deviations, less than the bounds.
        temperature=temperature + temperature_scatter * warm,
    )[0]
    still = emission(
        np.ones((3, 1)),
        NEUTRAL * freq_ref,
        freq_ref_I=freq_ref,
        freq_ref_P=freq_ref,
        beta=0.0,
        temperature=temperature,
    )[0, 0]
    mean = np.average(factors, weights=np.outer(weights, weights).ravel())
    return -float(np.log(mean / still)) / math.log(NEUTRAL)


def _missing(ell: np.ndarray, split: tuple[float, float]) -> np.ndarray:
    """Fraction of the power that the split takes from large scales."""
    return 1 - handover(ell, *split) ** 2


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _add(
    vectors, tile, centres, easts, norths, overlap, coarse, fine, energies, numbers, where, maps
):
    """Add one chart's scalar fields at some points."""
    npix, number = vectors.shape[0], coarse.shape[0]
    weights, places, turns = np.empty(npix), np.empty((npix, 2)), np.empty((npix, 2))
    see(vectors, tile, centres, easts, norths, overlap, weights, places, turns)
    gains = np.empty(number)
    for p in range(npix):
        if weights[p] == 0.0:
            continue
        on_coarse, on_fine = spot(coarse.shape[1], places[p]), spot(fine.shape[1], places[p])
        seam_gains(energies, numbers, weights[p], weights[p], places[p], gains)
        for k in range(number):
            value = at(coarse[k], on_coarse)
            if fine.shape[1] > 0:
                value += at(fine[k], on_fine)
            maps[k, where[p]] += weights[p] * gains[k] * value
