r"""Fourier planes of the charts: from what a generator draws to patterns of a set spectrum.

A field whose mean power spectrum is :math:`C^{gen}` is multiplied by

.. math:: \sqrt{C^{target}_\ell / C^{gen}_\ell}\; b_\ell, \qquad
          C^{target}_\ell = 2\pi D_\ell / \ell^2

with b the cut below the grid's Nyquist frequency, and divided by the response of the cubic
B-spline that the projection interpolates with.

What reaches far, the high-pass at the split and the turning of E and B into Q and U, is done on a
whole chart at 16 pixels a cell. Finer grids add to that what a low-pass about ℓ = 570 leaves out.
The filters of that part hardly reach a cell, so that it is made block by block, where it is wanted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.fft
import scipy.ndimage
from scipy.special import erfc

from pysm_vae.sky.tiling import CELL
from pysm_vae.threads import threads

#: The patterns are cut between these fractions of the grid's Nyquist frequency, where the cubic
#: spline still interpolates to a few per cent.
CUT = (0.62, 0.78)
#: Root mean square length on the sky over length on the chart, within a chart's pentagon.
MEAN_SCALE = 0.958
#: Octaves of the finest grid of whole charts: 16 pixels a cell.
COARSE_DEPTH = 4
#: Cells of a block of a finer grid, and of the halo that its filters need: each in quarters, which
#: charts are counted in (:mod:`pysm_vae.sky.cover`), and with its halos a block has whole cells.
BLOCK_CELLS = 4.5
HALO_CELLS = 0.75
# Where, and within which width, blocks take over from the whole chart.
_TAKE_OVER = (570.0, 180.0)


class Plane:
    """Fourier plane of a square piece of a chart.

    Parameters
    ----------
    cells : int
        Cells a side: ``CELLS`` for a chart, or those of a block with its halo.
    depth : int
        There are ``2**depth`` pixels a cell.
    lmax : float
        Multipole from which patterns are cut, to nothing at 1.5 times it, where the grid itself
        does not cut them before.
    part : {"whole", "small"}
        Which multipoles the patterns have: all of them, or those that blocks of a finer grid add to
        :func:`large_share` of what a whole chart makes.
    margin : float
        Cells over which a field falls to zero at the edges, so that it is periodic.

    Attributes
    ----------
    size : int
        Pixels a side.
    ell : ndarray, shape (size, size // 2 + 1)
        Multipole of each mode, at a chart's mean scale.
    interpolation : ndarray, float32, shape (size, size // 2 + 1)
        What the spline makes of each mode of its coefficients, at its knots.
    """

    def __init__(
        self,
        cells: int,
        depth: int,
        lmax: float = np.inf,
        *,
        part: str = "whole",
        margin: float = 1.0,
    ) -> None:
        self.size = cells << depth
        self.depth = depth
        pixel = CELL / 2**depth
        ky = scipy.fft.fftfreq(self.size)[:, None]
        kx = scipy.fft.rfftfreq(self.size)[None, :]
        frequency = np.hypot(kx, ky)
        # The mean has no direction and is never kept; any number spares a division by zero.
        frequency[0, 0] = 1.0 / self.size
        self.cycles = frequency * 2**depth
        on_sky = MEAN_SCALE * pixel
        self.ell = self.ell_of(self.cycles)
        self._lmax = lmax
        self._part = part
        self.interpolation = interpolation(self.size).astype(np.float32)
        self._common = self.passed(self.ell) / self.interpolation / on_sky
        self._common[0, 0] = 0.0
        self._cosine = ((ky**2 - kx**2) / frequency**2).astype(np.float32)
        self._sine = (-2 * kx * ky / frequency**2).astype(np.float32)
        # A cosine step to zero at the edges.
        inside = (np.arange(self.size) + 0.5) / (margin * 2**depth)
        edge = np.sin(0.5 * np.pi * np.clip(np.minimum(inside, inside[::-1]), 0, 1)) ** 2
        self._taper = np.outer(edge, edge).astype(np.float32)

    @staticmethod
    def ell_of(cycles: np.ndarray) -> np.ndarray:
        """Multipoles of wavenumbers in cycles a cell, at a chart's mean scale."""
        return 2 * np.pi * cycles / (CELL * MEAN_SCALE)

    def passed(self, ell: np.ndarray) -> np.ndarray:
        """Share of the amplitude at multipoles that patterns have; shape as given."""
        part = {"whole": 1.0, "small": 1.0 - large_share(ell)}[self._part]
        return part * resolved_share(ell, self.depth, self._lmax)

    def filter(self, power: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Filter from fields to the spline coefficients of patterns.

        Parameters
        ----------
        power : ndarray, shape (size, size // 2 + 1)
            D_ℓ of the patterns at each mode.
        drawn : ndarray, shape (size, size // 2 + 1)
            Mean power of the fields at each mode (white noise of unit variance: 1).

        Returns
        -------
        ndarray, float32, shape (size, size // 2 + 1)
        """
        target = np.sqrt(2 * np.pi * power) / self.ell
        return (target * self._common / np.sqrt(drawn)).astype(np.float32)

    def waves(self, fields: np.ndarray) -> np.ndarray:
        """Transform of fields ``(..., size, size)`` that fall to zero at the edges."""
        return scipy.fft.rfft2(fields * self._taper, workers=threads())

    def turned(self, fields: np.ndarray) -> np.ndarray:
        """Turn E and B into Q and U.

        Parameters
        ----------
        fields : ndarray, float32, shape (2, size, size)
            Values or spline coefficients of E and B, zero at the edges: they are not tapered.

        Returns
        -------
        ndarray, float32, shape (2, size, size)
            Q and U, as :meth:`stokes` has them.
        """
        return self.fields(np.stack(self.stokes(*scipy.fft.rfft2(fields, workers=threads()))))

    def fields(self, waves: np.ndarray) -> np.ndarray:
        """Inverse of :meth:`waves`."""
        return scipy.fft.irfft2(waves, s=(self.size, self.size), workers=threads())

    def stokes(self, e: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Q and U on the chart of E and B with HEALPix's signs; see :mod:`pysm_vae.sky.tiling`."""
        return e * self._cosine - b * self._sine, e * self._sine + b * self._cosine


class Spectra:
    """Mean power spectrum of what a generator draws, at any depth.

    Parameters
    ----------
    entries : list of dict
        See :func:`pysm_vae.vae.generator.measure_spectra`.
    """

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self._tables = {
            entry["depth"]: (np.log(entry["cycles"]), np.log(entry["power"])) for entry in entries
        }

    def __call__(self, cycles: np.ndarray, depth: int) -> np.ndarray:
        """Power at wavenumbers in cycles a cell; a power law between those of the table.

        On grids finer than the finest measured one the spectrum goes on as a power law, and ends
        as that one does: the same step of the network draws all these octaves.
        """
        known = min(depth, max(self._tables))
        cycles_known, power = self._tables[known]
        if depth > known:
            # As far as neither the last octaves nor the first say otherwise.
            end = cycles_known[-1]
            straight = (cycles_known > end - np.log(16)) & (cycles_known < end - np.log(4))
            slope = np.polyfit(cycles_known[straight], power[straight], 1)[0]
            shift = (depth - known) * np.log(2)
            last = cycles_known > end - np.log(4)
            power = np.concatenate([power[~last], power[last] + slope * shift])
            cycles_known = np.concatenate([cycles_known[~last], cycles_known[last] + shift])
            # White noise of unit variance has less power in each of more pixels' modes.
            power = power + 2 * shift
        return np.exp(np.interp(np.log(cycles), cycles_known, power))


def band_limit(depth: int) -> float:
    """Multipole up to which patterns keep their spectra on a grid of so many octaves."""
    return CUT[0] * np.pi * 2**depth / (CELL * MEAN_SCALE)


def resolved_share(ell: np.ndarray, depth: int, lmax: float = np.inf) -> np.ndarray:
    """Share of the amplitude at multipoles that patterns keep on a grid of so many octaves.

    ``lmax`` as :class:`Plane` has it.
    """
    end = band_limit(depth)
    low, high = min(end, lmax), min(end * CUT[1] / CUT[0], 1.5 * lmax)
    return np.cos(0.5 * np.pi * np.clip((ell - low) / (high - low), 0, 1)) ** 2


def large_share(ell: np.ndarray) -> np.ndarray:
    """Share of the amplitude at multipoles that is left to a whole chart where there are blocks."""
    return 0.5 * erfc((ell - _TAKE_OVER[0]) / _TAKE_OVER[1])


def bspline_response(k: np.ndarray) -> np.ndarray:
    """Fourier response of the sampled cubic B-spline along one axis.

    Dividing the transform of samples by it, once an axis, gives the coefficients of the cubic
    spline through these samples: B3(k) = (2 + cos 2πk) / 3 (Unser 1999, IEEE Signal Processing
    Magazine 16(6), 22).

    Parameters
    ----------
    k : array
        Frequency in cycles per pixel.

    Returns
    -------
    array
        The response, between 1/3 (Nyquist) and 1 (k = 0).
    """
    return (2 + np.cos(2 * np.pi * np.asarray(k))) / 3


def interpolation(size: int) -> np.ndarray:
    """:func:`bspline_response` at the modes of a grid, shape (size, size // 2 + 1)."""
    return np.outer(
        bspline_response(scipy.fft.fftfreq(size)), bspline_response(scipy.fft.rfftfreq(size))
    )


def spline_values(coefficients: np.ndarray) -> np.ndarray:
    """Values of cubic splines at their knots; those at the edge are not meaningful.

    Parameters
    ----------
    coefficients : ndarray, shape (..., size, size)

    Returns
    -------
    ndarray, shape (..., size, size)
    """
    for axis in (-2, -1):
        coefficients = scipy.ndimage.correlate1d(
            coefficients, (1 / 6, 2 / 3, 1 / 6), axis, mode="wrap"
        )
    return coefficients
