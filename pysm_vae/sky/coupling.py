r"""What windows and brightness do to the spectra of patterns.

A pattern that is drawn on a tile and multiplied by the tile's window, and then by the intensity
that it sits on, has its spectrum spread by the power spectrum of that product, and some of its E
made B. On a flat patch, with :math:`\xi` the correlation function of the window times that of the
intensity (one at zero lag),

.. math:: C^{out}(k) = \sum_{k'} K(k - k')\, C(k'), \qquad K = \mathcal{F}\,\xi,

for a scalar, and with :math:`\cos^2 2(\phi_k - \phi_{k'})` (E to E, B to B) or :math:`\sin^2` (E to
B, B to E) in the sum for polarisation.
"""

from __future__ import annotations

import healpy as hp
import numpy as np
import scipy.fft
from scipy.interpolate import CubicSpline

from pysm_vae.sky.tiling import Tiling


class Coupling:
    """The spread of spectra by a tiling's windows and a modulation of the sky.

    Parameters
    ----------
    tiling : Tiling
        The windows. Its chart, doubled, is the grid of the Fourier plane.
    modulation : ndarray, shape (npix,)
        HEALPix map that multiplies the patterns: intensity, crowding and mask.

    Attributes
    ----------
    ell : ndarray, shape (n,)
        Mean multipoles of the bands in which spectra come out, one fundamental wide.
    """

    def __init__(self, tiling: Tiling, modulation: np.ndarray) -> None:
        grid = 2 * tiling.size
        pixel = np.radians(tiling.pixel_size / 60)
        k = scipy.fft.fftfreq(grid, 1 / grid)
        radius = np.hypot(k[:, None], k)
        self._grid_ell = radius * 2 * np.pi / (grid * pixel)
        self._turn = np.exp(4j * np.arctan2(k[:, None], k))
        self._correlation = _windows(tiling) * _modulation(modulation, radius * pixel)
        # The modes of each band; the mean and the corners beyond Nyquist are left out.
        self._band = np.where(radius < grid // 2, np.rint(radius).astype(int), 0)
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


def _windows(tiling: Tiling) -> np.ndarray:
    """Mean correlation function of the tiles' windows on the doubled chart, 1 at zero lag."""
    nside = 8 * tiling.tile_nside
    ids, weights = tiling.weights(nside, np.arange(hp.nside2npix(nside)))
    # Tiles of one ring are alike, and the hemispheres mirror each other.
    northern = np.arange(tiling.ntiles // 2)
    rings = hp.pix2ring(tiling.tile_nside, northern)
    total = np.zeros((2 * tiling.size, 2 * tiling.size))
    _, first, share = np.unique(rings, return_index=True, return_counts=True)
    for tile, number in zip(first, share, strict=True):
        window = np.where(ids == tile, weights, 0.0).sum(axis=1)
        theta, phi = hp.vec2ang(tiling.vectors(tile).reshape(-1, 3))
        chart = hp.get_interp_val(window, theta, phi).reshape(tiling.size, tiling.size)
        waves = scipy.fft.fft2(chart, s=total.shape)
        total += number * scipy.fft.ifft2(np.abs(waves) ** 2).real
    return total / total[0, 0]


def _modulation(modulation: np.ndarray, lag: np.ndarray) -> np.ndarray:
    """Correlation function of a map at lags in radians, 1 at zero lag."""
    lmax = 2 * hp.npix2nside(modulation.size)
    cl = hp.anafast(modulation, lmax=lmax, iter=1)
    angle = np.linspace(0, min(lag.max(), np.pi), 400)
    series = cl * (2 * np.arange(lmax + 1) + 1)
    values = np.polynomial.legendre.legval(np.cos(angle), series)
    return CubicSpline(angle, values / values[0])(lag)
