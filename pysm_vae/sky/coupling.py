r"""What brightness does to the spectra of patterns.

A pattern that is multiplied by the intensity that it sits on has its spectrum spread by the power
spectrum of the intensity, and some of its E made B. On a flat patch, with :math:`\xi` the
correlation function of the intensity (one at zero lag),

.. math:: C^{out}(k) = \sum_{k'} K(k - k')\, C(k'), \qquad K = \mathcal{F}\,\xi,

for a scalar, and with :math:`\cos^2 2(\phi_k - \phi_{k'})` (E to E, B to B) or :math:`\sin^2` (E to
B, B to E) in the sum for polarisation. The windows of the charts, which act on a twentieth of the
sky, are left out.
"""

from __future__ import annotations

import healpy as hp
import numpy as np
import scipy.fft
from scipy.interpolate import CubicSpline

#: Side of the flat patch in degrees, and its pixels a side.
WIDTH = 20.0
GRID = 144


class Coupling:
    """The spread of spectra by a modulation of the sky.

    Parameters
    ----------
    modulation : ndarray, shape (npix,)
        HEALPix map that multiplies the patterns: intensity, crowding and mask.

    Attributes
    ----------
    ell : ndarray, shape (n,)
        Mean multipoles of the bands in which spectra come out, one fundamental wide.
    """

    def __init__(self, modulation: np.ndarray) -> None:
        pixel = np.radians(WIDTH) / GRID
        k = scipy.fft.fftfreq(GRID, 1 / GRID)
        radius = np.hypot(k[:, None], k)
        self._grid_ell = radius * 2 * np.pi / (GRID * pixel)
        self._turn = np.exp(4j * np.arctan2(k[:, None], k))
        self._correlation = _modulation(modulation, radius * pixel)
        # The modes of each band; the mean and the corners beyond Nyquist are left out.
        self._band = np.where(radius < GRID // 2, np.rint(radius).astype(int), 0)
        self._count = np.bincount(self._band.ravel())
        self.ell = self._mean(self._grid_ell)

    def scalar(self, power: np.ndarray) -> np.ndarray:
        """D_ℓ of a scalar, in bands, from D_ℓ of its patterns at :attr:`grid_ell`."""
        return self._out(self._spread(self._modes(power)).real)

    def spin(self, power: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """D_ℓ of E and of B, in bands, from D_ℓ of patterns that are all E."""
        modes = self._modes(power)
        same = self._spread(modes).real
        turned = (self._spread(modes * self._turn) / self._turn).real
        return self._out(0.5 * (same + turned)), self._out(0.5 * (same - turned))

    @property
    def grid_ell(self) -> np.ndarray:
        """Multipole of each mode of the grid; the mean's is 0."""
        return self._grid_ell

    def _modes(self, power: np.ndarray) -> np.ndarray:
        ell = np.where(self._grid_ell > 0, self._grid_ell, np.inf)
        return power / ell**2

    def _spread(self, modes: np.ndarray) -> np.ndarray:
        return scipy.fft.fft2(scipy.fft.ifft2(modes) * self._correlation)

    def _out(self, modes: np.ndarray) -> np.ndarray:
        return self._mean(modes * self._grid_ell**2)

    def _mean(self, modes: np.ndarray) -> np.ndarray:
        return (np.bincount(self._band.ravel(), modes.ravel()) / self._count)[1:]


def _modulation(modulation: np.ndarray, lag: np.ndarray) -> np.ndarray:
    """Correlation function of a map at lags in radians, 1 at zero lag."""
    lmax = 2 * hp.npix2nside(modulation.size)
    cl = hp.anafast(modulation, lmax=lmax, iter=1)
    angle = np.linspace(0, min(lag.max(), np.pi), 400)
    series = cl * (2 * np.arange(lmax + 1) + 1)
    values = np.polynomial.legendre.legval(np.cos(angle), series)
    return CubicSpline(angle, values / values[0])(lag)
