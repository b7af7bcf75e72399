r"""The Fourier plane of a tile's chart: from patches of a generator to patterns of a set spectrum.

A chart is mirrored at its edges, which makes it periodic without steps. A pattern whose mean power
spectrum is :math:`C^{gen}_\ell` is multiplied by

.. math:: \sqrt{C^{target}_\ell / C^{gen}_\ell}\; b_\ell, \qquad
          C^{target}_\ell = 2\pi D_\ell / \ell^2

with b the cut below the chart's Nyquist frequency, and divided by the response of
the cubic B-spline that the projection interpolates with.
"""

from __future__ import annotations

import numpy as np
import scipy.fft

from pysm_vae.sky.tiling import bspline_prefilter_response

#: The patterns are cut between these fractions of the chart's Nyquist frequency, where the cubic
#: spline still interpolates to a few per cent.
CUT = (0.62, 0.78)


class Chart:
    """Fourier plane of charts of one size.

    Parameters
    ----------
    size : int
        Pixels a side.
    width : float
        Side in radians.
    lmax : float
        Multipole from which patterns are cut, to nothing at 1.5 times it, where the chart itself
        does not cut them before.

    Attributes
    ----------
    ell : ndarray, shape (2 size, size + 1)
        Multipole of each mode of the mirrored chart.
    """

    def __init__(self, size: int, width: float, lmax: float = np.inf) -> None:
        self.size = size
        pixel = width / size
        ky = scipy.fft.fftfreq(2 * size)[:, None]
        kx = scipy.fft.rfftfreq(2 * size)[None, :]
        frequency = np.hypot(kx, ky)
        # The mean has no direction and is never kept; any number spares a division by zero.
        frequency[0, 0] = 1.0
        self._number = frequency * size
        self.ell = 2 * np.pi * frequency / pixel
        low, high = (min(CUT[0] * np.pi / pixel, lmax), min(CUT[1] * np.pi / pixel, 1.5 * lmax))
        cut = np.clip((self.ell - low) / (high - low), 0, 1)
        response = np.outer(
            bspline_prefilter_response(scipy.fft.fftfreq(2 * size)),
            bspline_prefilter_response(scipy.fft.rfftfreq(2 * size)),
        )
        self._common = np.cos(0.5 * np.pi * cut) ** 2 / response / pixel
        self._common[0, 0] = 0.0
        self._cosine = ((ky**2 - kx**2) / frequency**2).astype(np.float32)
        self._sine = (-2 * kx * ky / frequency**2).astype(np.float32)

    def filter(self, power: np.ndarray, generated: np.ndarray) -> np.ndarray:
        """Filter from patches to the spline coefficients of patterns.

        Parameters
        ----------
        power : ndarray, shape (2 size, size + 1)
            D_ℓ of the patterns at each mode.
        generated : ndarray, shape (size // 2,)
            Mean power of the patches at 1, 2, … cycles a patch (white noise: 1).

        Returns
        -------
        ndarray, float32, shape (2 size, size + 1)
        """
        known = np.log(np.arange(1, len(generated) + 1))
        # A power law between whole wavenumbers.
        log_generated = np.interp(np.log(self._number), known, np.log(generated))
        target = np.sqrt(2 * np.pi * power) / self.ell
        return (target * self._common * np.exp(-0.5 * log_generated)).astype(np.float32)

    def waves(self, patches: np.ndarray) -> np.ndarray:
        """Transform of patches ``(..., size, size)``, mirrored at their edges."""
        pad = [(0, 0)] * (patches.ndim - 2) + [(0, self.size)] * 2
        return scipy.fft.rfft2(np.pad(patches, pad, mode="symmetric"), workers=-1)

    def patches(self, waves: np.ndarray) -> np.ndarray:
        """Inverse of :meth:`waves`."""
        full = scipy.fft.irfft2(waves, s=(2 * self.size, 2 * self.size), workers=-1)
        return full[..., : self.size, : self.size]

    def stokes(self, e: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Q and U on the chart of E and B with HEALPix's signs; see :mod:`pysm_vae.sky.tiling`."""
        return e * self._cosine - b * self._sine, e * self._sine + b * self._cosine


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
        neighbours = np.roll(coefficients, 1, axis) + np.roll(coefficients, -1, axis)
        coefficients = (4 * coefficients + neighbours) / 6
    return coefficients
