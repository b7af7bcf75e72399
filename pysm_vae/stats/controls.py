"""Gaussian controls: what a set of patches would look like with nothing but its spectrum.

They are the floor of every comparison. A statistic that cannot tell a set from its control does not
see the structure that makes dust more than a Gaussian field; a generator that is no closer to the
sky than the control has learned the spectrum and no more.
"""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage

from pysm_vae.stats.spectra import (
    apodisation,
    check_patches,
    cosine_step,
    fundamental,
    mirror_filter,
    mirror_wavenumbers,
    radial_spectrum,
    wavenumbers,
)
from pysm_vae.threads import threads

_FIT_STEPS = 20
"""Steps of the spectrum fit; a steep spectrum has settled to 0.1 % after about ten."""

_MATCH_STEPS = 3
"""Steps that match the modulated set's spectrum: of 10 % leaked by modulation, three leave 1 %."""


def _loglog(where: np.ndarray, wavenumber: np.ndarray, power: np.ndarray) -> np.ndarray:
    """Interpolate a spectrum in logs, held constant beyond both its ends."""
    return np.exp(np.interp(np.log(np.maximum(where, 1e-9)), np.log(wavenumber), np.log(power)))


def _tapered_expectation(spectrum: np.ndarray, size: int) -> np.ndarray:
    """Spectrum that `radial_spectrum` finds, in the mean, of patches cut from a periodic field.

    ``spectrum`` is the field's, on the grid of a real transform of twice the size. With ξ its
    covariance and w the taper, the tapered modes F(k) have ``⟨F(k) F*(0)⟩ = FT[w · (ξ ∗ w)]`` and
    ``⟨|F(k)|²⟩ = FT[ξ · (w ⋆ w)]``; the removal of the weighted mean makes of F(k)
    ``F(k) − W(k) F(0) / W(0)``. All lags of a patch fit into the doubled grid: no approximation.
    """
    double = (2 * size, 2 * size)
    window = apodisation(size)
    padded = fft.rfft2(window, double, workers=threads())
    covariance = fft.irfft2(spectrum, double, workers=threads())
    overlap = fft.irfft2(np.abs(padded) ** 2, double, workers=threads())
    # The even modes of the doubled grid are those of the patch.
    squared = fft.rfft2(covariance * overlap, workers=threads()).real[::2, ::2]
    blurred = fft.irfft2(spectrum * padded, double, workers=threads())[:size, :size]
    cross = fft.rfft2(window * blurred, workers=threads())
    ratio = padded[::2, ::2] / padded[0, 0].real
    power = squared - 2 * (cross * ratio.conj()).real + np.abs(ratio) ** 2 * cross[0, 0].real
    power /= (window**2).sum()
    index = np.rint(wavenumbers(size)).astype(int) - 1
    inside = (index >= 0) & (index < size // 2)
    twice = np.full(index.shape, 2.0)
    twice[:, 0] = 1
    if size % 2 == 0:
        twice[:, -1] = 1
    sums = np.bincount(index[inside], weights=(power * twice)[inside])
    return sums / np.bincount(index[inside], weights=twice[inside])


def _draw(n: int, size: int, target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Patches of a Gaussian field whose mean `radial_spectrum` is the target."""
    cycles = np.arange(1, size // 2 + 1)
    grid = 0.5 * wavenumbers(2 * size)
    power = target
    for _ in range(_FIT_STEPS):
        spectrum = _loglog(grid, cycles, power)
        spectrum[0, 0] = 0
        power = power * target / _tapered_expectation(spectrum, size)
    amplitude = np.sqrt(_loglog(grid, cycles, power))
    amplitude[0, 0] = 0
    patches = np.empty((n, size, size))
    for patch in patches:
        noise = fft.rfft2(rng.standard_normal((2 * size, 2 * size)), workers=threads())
        field = fft.irfft2(noise * amplitude, (2 * size, 2 * size), workers=threads())
        patch[:] = field[:size, :size]
    return patches


def _mean_spectrum(patches: np.ndarray) -> np.ndarray:
    mean = radial_spectrum(patches)[1].mean(axis=0)
    if not (mean > 0).all():
        raise ValueError(
            f"the patches have no power at {np.flatnonzero(mean <= 0)[0] + 1} cycles per patch: "
            "no control can be drawn. Leave out constant patches, or use larger pixels."
        )
    return mean


def gaussian_like(patches: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian patches with the mean spectrum of a set.

    The isotropic spectrum of a periodic field of twice the size is fitted such that patches cut
    from it have, in the mean, the set's mean `radial_spectrum` (taper and removal of the mean
    accounted for). One patch is cut from each of ``n`` such fields, so that none is periodic.

    Parameters
    ----------
    patches : array, shape (n, size, size)
        In any unit.
    rng : numpy.random.Generator

    Returns
    -------
    array, shape (n, size, size)
        In the same unit, each with zero mean (a spectrum does not know the mean).

    Raises
    ------
    ValueError
        If the patches are unfit or have no power at some wavenumber.
    """
    patches = check_patches(patches)
    drawn = _draw(len(patches), patches.shape[-1], _mean_spectrum(patches), rng)
    return drawn - drawn.mean(axis=(1, 2), keepdims=True)


def modulated_gaussian(
    patches: np.ndarray,
    pixel_size: float,
    rng: np.random.Generator,
    *,
    modulation_fwhm: float,
    split: float = 100.0,
    keep_large_scales: bool = True,
) -> np.ndarray:
    r"""Gaussian small scales of the set's mean spectrum, modulated in amplitude by each patch.

    What PySM's d10 amounts to: Gaussian small scales
    that are brighter where the large scales say so. For each patch f,

    .. math:: g = L f + T * (m \cdot H\,n),\qquad
              m^2 \propto G_\mathrm{fwhm} * (H f)^2,\quad \langle m^2\rangle = 1

    n is Gaussian with the set's mean spectrum (see `gaussian_like`), L and H are low- and
    high-passes at the split, complementary in power (``L² + H² = 1``, an octave wide). The
    modulation m is the local rms of the patch's own small scales, smoothed; its mean square is 1
    over the *set*, so that patches keep their relative amplitudes. T(ℓ), close to 1, undoes what
    the modulation leaks from scale to scale: it matches the set's mean spectrum above the split.

    Parameters
    ----------
    patches : array, shape (n, size, size)
    pixel_size : float
        Arcminutes.
    rng : numpy.random.Generator
    modulation_fwhm : float
        Arcminutes over which the modulation is smoothed. Smaller than about the wavelength at the
        split it would copy the patch's structures, no longer their surroundings.
    split : float
        Multipole below which the patch itself is kept.
    keep_large_scales : bool
        False replaces f in ``L f`` by another Gaussian draw: nothing of the patch is left but its
        modulation.

    Returns
    -------
    array, shape (n, size, size)
        In the patches' unit, each with zero mean.

    Raises
    ------
    ValueError
        If the patches are unfit, the split lies outside the patch's multipoles, or the FWHM is not
        positive or wider than the patch.
    """
    patches = check_patches(patches)
    n, size, _ = patches.shape
    base = fundamental(size, pixel_size)
    if not base / 2 < split < base * size / 2:
        raise ValueError(
            f"split = {split} must lie between the patch's lowest multipole {base / 2:.1f} and "
            f"its Nyquist multipole {base * size / 2:.1f}."
        )
    if not 0 < modulation_fwhm <= size * pixel_size:
        raise ValueError(
            f"modulation_fwhm = {modulation_fwhm} must be positive and at most the patch's side, "
            f"{size * pixel_size:g} arcminutes."
        )
    target = _mean_spectrum(patches)
    cycles = np.arange(1, size // 2 + 1)
    mirrored = mirror_wavenumbers(size)
    high = cosine_step(base * mirrored, split)
    low, high = np.sqrt(1 - high), np.sqrt(high)

    sigma = modulation_fwhm / pixel_size / np.sqrt(8 * np.log(2))
    local = mirror_filter(patches, high) ** 2
    local = ndimage.gaussian_filter(local, (0, sigma, sigma), mode="reflect")
    modulation = np.sqrt(local / local.mean())

    small = modulation * mirror_filter(_draw(n, size, target, rng), high)
    # Another draw than the small scales': within the octave where both contribute they would add up
    # in amplitude, not in power.
    large = mirror_filter(patches if keep_large_scales else _draw(n, size, target, rng), low)
    above = base * cycles > split
    for _ in range(_MATCH_STEPS):
        found = radial_spectrum(large + small)[1].mean(axis=0)
        transfer = np.where(above, np.sqrt(target / found), 1.0)
        small = mirror_filter(small, np.interp(mirrored, cycles, transfer))
    patches = large + small
    return patches - patches.mean(axis=(1, 2), keepdims=True)
