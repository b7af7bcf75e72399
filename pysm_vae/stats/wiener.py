"""Gaussian constrained realisations: the classical way to fill a hole, and the control of others.

The field is Gaussian with a given isotropic spectrum, and goes on as its mirror image beyond the
edges of the patch. With ``s`` a draw of the field and ``n`` one of the noise,

    x = s + S A' (A S A' + N)^-1 (d - A s - n)

is a draw of the field given data ``d`` (Hoffman & Ribak 1991, ApJ 380, L5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import fft

from pysm_vae.stats.spectra import mirror_filter, mirror_wavenumbers

if TYPE_CHECKING:
    from pysm_vae.vae.inference import Observation

_TOLERANCE = 1e-4
_MOST_STEPS = 3000
# Draws that one step of the amplitude is estimated from, and steps.
_AMPLITUDE_DRAWS = 4
_AMPLITUDE_STEPS = 10


def mirror_power(patches: np.ndarray) -> np.ndarray:
    """Mean power of patches on the modes of `mirror_wavenumbers`, averaged over directions.

    Parameters
    ----------
    patches : ndarray, shape (n, size, size)
        Their means are left out.

    Returns
    -------
    ndarray, shape (size, size)
        White noise of unit variance gives 1; the mean, 0.
    """
    size = patches.shape[-1]
    modes = fft.dctn(patches, axes=(1, 2), norm="ortho")
    power = np.mean(modes**2, axis=0)
    number = np.rint(2 * mirror_wavenumbers(size)).astype(int)
    # Of the mean there is a wavenumber of its own.
    mean = np.bincount(number.ravel(), power.ravel()) / np.maximum(np.bincount(number.ravel()), 1)
    mean[0] = 0.0
    return mean[number]


def constrained_realisations(
    power: np.ndarray,
    observation: Observation,
    n: int,
    rng: np.random.Generator,
    *,
    mean: float = 0.0,
    mean_spread: float = 1.0,
    fit_amplitude: bool = True,
) -> np.ndarray:
    """Draw Gaussian fields given data.

    Parameters
    ----------
    power : ndarray, shape (size, size)
        Of the field, as from `mirror_power`.
    observation : Observation
        The data, with a noise that is independent from pixel to pixel.
    n : int
        Draws.
    rng : numpy.random.Generator
    mean, mean_spread : float
        Expectation and standard deviation of the patch's mean.
    fit_amplitude : bool
        Scale the power to what the data say, by expectation maximisation.

    Returns
    -------
    ndarray, shape (n, size, size)

    Raises
    ------
    ValueError
        If shapes do not agree, or the noise is given as a spectrum.
    """
    size = observation.size
    if power.shape != (size, size):
        raise ValueError(f"the power has the shape {power.shape}, the data {(size, size)}")
    if observation.noise_power is not None:
        raise ValueError("Gaussian realisations take noise of one number or a map, no spectrum")
    power = power.copy()
    used = power > 0
    if fit_amplitude:
        for _ in range(_AMPLITUDE_STEPS):
            power[0, 0] = size**2 * mean_spread**2
            drawn = _draw(power, observation, _AMPLITUDE_DRAWS, rng, mean)
            modes = fft.dctn(drawn, axes=(1, 2), norm="ortho")
            power[used] *= np.mean(modes[:, used] ** 2 / power[used])
    power[0, 0] = size**2 * mean_spread**2
    return _draw(power, observation, n, rng, mean)


def _draw(
    power: np.ndarray, observation: Observation, n: int, rng: np.random.Generator, mean: float
) -> np.ndarray:
    size = observation.size
    root = np.sqrt(power)
    weight = np.where(observation.mask, np.broadcast_to(observation.noise, power.shape) ** -2.0, 0)
    seen_root = root if observation.response is None else root * observation.response
    white = rng.standard_normal((n, size, size))
    noise = rng.standard_normal((n, size, size)) * np.sqrt(weight)

    # In modes of unit variance u the data are A u with the weight W: (1 + A' W A) u = A' W d.
    def there(modes: np.ndarray) -> np.ndarray:
        return fft.idctn(seen_root * modes, axes=(1, 2), norm="ortho")

    def back(patches: np.ndarray) -> np.ndarray:
        return seen_root * fft.dctn(patches, axes=(1, 2), norm="ortho")

    # What is drawn has the right mean and covariance at once (Papandreou & Yuille 2010).
    right = back(weight * (observation.data - mean) + noise) + white
    found = np.zeros_like(right)
    residual = right.copy()
    direction = residual.copy()
    squared = np.sum(residual**2, axis=(1, 2), keepdims=True)
    enough = _TOLERANCE**2 * squared
    for _ in range(_MOST_STEPS):
        if (squared <= enough).all():
            break
        curved = direction + back(weight * there(direction))
        step = squared / np.maximum(np.sum(direction * curved, axis=(1, 2), keepdims=True), 1e-300)
        found += step * direction
        residual -= step * curved
        before = squared
        squared = np.sum(residual**2, axis=(1, 2), keepdims=True)
        direction = residual + squared / np.maximum(before, 1e-300) * direction
    return mean + mirror_filter(fft.idctn(found, axes=(1, 2), norm="ortho"), root)
