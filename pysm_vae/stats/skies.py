"""Gaussian controls of whole skies.

A non-Gaussian sky is judged beside Gaussian ones that share all that is not texture: its large
scales, its spectra and, for the harder control, where on the sky its small scales are strong.
"""

from __future__ import annotations

import healpy as hp
import numpy as np

from pysm_vae.sky.templates import from_log_pol_tens, to_log_pol_tens

_MATCH_STEPS = 3
"""Steps that match the spectra: of 20 % that modulation moves between scales, 1 % is left."""

_BANDS_PER_OCTAVE = 4
"""Bands in which spectra are matched, narrow enough for a power law, wide enough for few skies."""

_LEAST = 0.05
"""Modulation's variance is at least this fraction of its median: smoothing may ring below zero."""


class GaussianSkies:
    r"""Skies with the large scales, spectra and modulation of given ones, but Gaussian textures.

    The modulated kind is to the sphere what `pysm_vae.stats.controls.modulated_gaussian` is to
    patches, and how PySM's d10 to d12 are made. In log-pol-tens space, with s the small scales of
    the skies (what they add to the large scales) and n a Gaussian field with T, E and B spectra,

    .. math:: (i, q, u) = (i, q, u)_\mathrm{large} + m\,n, \qquad
              m^2 = G_\mathrm{fwhm} * \langle s^2\rangle_\mathrm{skies},

    m of i and one for both q and u. Without modulation, n is stationary and is added to I, Q and U.
    In both, the spectra of n are adjusted until what it adds to I, Q and U under the mask has, in
    the mean, the TT, EE, BB and TE of what the skies' small scales add.

    Parameters
    ----------
    skies : ndarray, shape (n, 3, npix)
        I, Q, U of one or more skies that share their large scales, HEALPix RING, any unit. The
        more, the less of their chance is in modulation and spectra.
    large : ndarray, shape (3, npix)
        Their large scales, such as ``VAEDust(...).template.maps(nside)``.
    rng : numpy.random.Generator
        For the draws that the spectra are adjusted with.
    modulated : bool
        Whether the small scales are as strong at each place as the skies' are.
    fwhm : float
        Degrees over which the modulation is smoothed. Well above the wavelength of the largest
        small scales, or it would copy structures, no longer their surroundings.
    mask : ndarray, shape (npix,), optional
        Weight of the pixels on which spectra are matched; all alike by default.
    lmax : int, optional
        Highest multipole of the small scales; by default 2.5 nside.

    Attributes
    ----------
    cl : ndarray, shape (4, lmax + 1)
        TT, EE, BB and TE of n.
    modulation : ndarray, shape (3, npix)
        m of i, q and u; ones without modulation.

    Raises
    ------
    ValueError
        If the shapes do not fit, a sky has I <= P or values that are not finite, or the mask is
        empty.
    """

    def __init__(
        self,
        skies: np.ndarray,
        large: np.ndarray,
        rng: np.random.Generator,
        *,
        modulated: bool = True,
        fwhm: float = 5.0,
        mask: np.ndarray | None = None,
        lmax: int | None = None,
    ) -> None:
        skies, large = np.asarray(skies, np.float64), np.asarray(large, np.float64)
        if large.ndim != 2 or len(large) != 3 or not hp.isnpixok(large.shape[1]):
            raise ValueError(f"large has shape {large.shape}: give full-sky I, Q, U, (3, npix)")
        if skies.ndim != 3 or skies.shape[1:] != large.shape or not len(skies):
            raise ValueError(
                f"skies of shape {skies.shape} do not fit large scales of shape {large.shape}: "
                f"give (n, 3, {large.shape[1]})"
            )
        if not (np.isfinite(skies).all() and np.isfinite(large).all()):
            raise ValueError("skies and large scales must be finite everywhere")
        self.nside = hp.npix2nside(large.shape[1])
        self.lmax = int(2.5 * self.nside) if lmax is None else int(lmax)
        mask = np.ones(large.shape[1]) if mask is None else np.asarray(mask, np.float64)
        if mask.shape != large.shape[1:] or not mask.any():
            raise ValueError(f"the mask must have {large.shape[1]} pixels, not all zero")
        self._mask, self._modulated, self._large = mask, modulated, large
        self._ground = to_log_pol_tens(large) if modulated else large
        self.modulation = np.ones_like(large)
        small = skies - large
        if modulated:
            fields = np.array([to_log_pol_tens(sky) for sky in skies]) - self._ground
            square = (fields**2).mean(axis=0)
            smooth = [
                hp.smoothing(each, fwhm=np.radians(fwhm), lmax=2 * self.nside, iter=1)
                for each in (square[0], 0.5 * (square[1] + square[2]))
            ]
            rms = [np.sqrt(np.maximum(each, _LEAST * np.median(each))) for each in smooth]
            self.modulation = np.array([rms[0], rms[1], rms[1]])
        target = self._mean_spectra(small)
        start = fields / self.modulation if modulated else small
        self.cl = self._mean_spectra(start)
        for _ in range(_MATCH_STEPS):
            found = self._mean_spectra([self.draw(rng) - large for _ in skies])
            self.cl = self._adjusted(target, found)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Draw one sky.

        Parameters
        ----------
        rng : numpy.random.Generator
            Which one.

        Returns
        -------
        ndarray, shape (3, npix)
            I, Q, U in the skies' unit. Modulated ones have I > P everywhere.
        """
        fields = self._ground + self.modulation * self._pattern(rng)
        return from_log_pol_tens(fields) if self._modulated else fields

    def _pattern(self, rng: np.random.Generator) -> np.ndarray:
        """Stationary Gaussian T, Q and U, (3, npix)."""
        tt, ee, bb = np.maximum(self.cl[:3], 0.0)
        both = np.sqrt(tt * ee)
        ratio = np.divide(self.cl[3], both, out=np.zeros_like(both), where=both > 0).clip(-1, 1)
        size = hp.Alm.getsize(self.lmax)
        real, imaginary = rng.standard_normal((2, 3, size))
        waves = (real + 1j * imaginary) / np.sqrt(2)
        # The modes of m = 0 come first; they are real.
        waves[:, : self.lmax + 1] = real[:, : self.lmax + 1]
        t = hp.almxfl(waves[0], np.sqrt(tt))
        e = hp.almxfl(waves[0], ratio * np.sqrt(ee))
        e += hp.almxfl(waves[1], np.sqrt((1 - ratio**2) * ee))
        b = hp.almxfl(waves[2], np.sqrt(bb))
        return np.array(hp.alm2map([t, e, b], self.nside))

    def _mean_spectra(self, maps: np.ndarray | list[np.ndarray]) -> np.ndarray:
        """Mean TT, EE, BB and TE under the mask, (4, lmax + 1), in bands."""
        spectra = [hp.anafast(each * self._mask, lmax=self.lmax, iter=1)[:4] for each in maps]
        return _banded(np.mean(spectra, axis=0) / np.mean(self._mask**2))

    def _adjusted(self, target: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Spectra of n after a step: powers by the ratio, TE by the ratio of correlations."""
        power = np.divide(target[:3], found[:3], out=np.ones_like(found[:3]), where=found[:3] > 0)
        cross = np.sqrt(power[0] * power[1]) * self.cl[3]
        # Towards the correlation that is asked for, in units of the one that n may have.
        wanted, got = (_correlation(each) for each in (target, found))
        cl = np.array([*(power * self.cl[:3]), cross])
        cl[3] += (wanted - got) * np.sqrt(np.maximum(cl[0] * cl[1], 0.0))
        return cl


def _correlation(spectra: np.ndarray) -> np.ndarray:
    both = np.sqrt(np.maximum(spectra[0] * spectra[1], 0.0))
    return np.divide(spectra[3], both, out=np.zeros_like(both), where=both > 0)


def _banded(spectra: np.ndarray) -> np.ndarray:
    """ℓ² C_ℓ averaged in bands and interpolated, so that chance from ℓ to ℓ is not copied."""
    ell = np.arange(spectra.shape[1])
    band = np.floor(_BANDS_PER_OCTAVE * np.log2(np.maximum(ell, 1))).astype(int)
    _, index = np.unique(band[2:], return_inverse=True)
    weight = 2 * ell[2:] + 1
    count = np.bincount(index, weight)
    centre = np.bincount(index, weight * np.log(ell[2:])) / count
    smooth = np.zeros_like(spectra)
    for row, values in zip(smooth, spectra, strict=True):
        mean = np.bincount(index, weight * ell[2:] ** 2 * values[2:]) / count
        row[2:] = np.interp(np.log(ell[2:]), centre, mean) / ell[2:] ** 2
    return smooth
