"""One-point statistics of patches: histograms, and skewness and kurtosis per multipole band."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pysm_vae.stats.spectra import bandpass_filter, check_patches, standardise

# A mean square of fewer pixels says little about a class of brightness.
_FEWEST_PIXELS = 32


def band_moments(
    patches: np.ndarray, pixel_size: float, bands: Sequence[tuple[float, float | None]]
) -> tuple[np.ndarray, np.ndarray]:
    """Skewness and excess kurtosis of each patch in multipole bands.

    ``⟨x³⟩/⟨x²⟩^{3/2}`` and ``⟨x⁴⟩/⟨x²⟩² − 3`` over the pixels of the band-passed patch that edge
    effects do not reach (see `bandpass_filter`), about their own mean. Both are zero for a Gaussian
    field of very many independent cells. In one patch the variance is measured on the same few
    cells, which biases the kurtosis low by about 6 over their number: judge a band by comparison
    with a Gaussian control of the same size.

    Parameters
    ----------
    patches : array, shape (n, size, size)
    pixel_size : float
        Arcminutes.
    bands : sequence of (lmin, lmax)
        Multipoles; None for an open end.

    Returns
    -------
    skewness : array, shape (n, nb)
    excess_kurtosis : array, shape (n, nb)

    Raises
    ------
    ValueError
        If the patches or a band are unfit (see `bandpass_filter`), there is no band, or a patch has
        no structure in one.
    """
    patches = check_patches(patches)
    if len(bands) == 0:
        raise ValueError("bands must name at least one (lmin, lmax).")
    skewness = np.empty((len(patches), len(bands)))
    kurtosis = np.empty_like(skewness)
    for number, (lmin, lmax) in enumerate(bands):
        filtered, interior = bandpass_filter(patches, pixel_size, lmin, lmax)
        field = standardise(filtered[:, interior, interior])
        squared = field**2
        skewness[:, number] = (squared * field).mean(axis=(1, 2))
        kurtosis[:, number] = (squared**2).mean(axis=(1, 2)) - 3
    return skewness, kurtosis


def moments_by_brightness(
    patches: np.ndarray,
    pixel_size: float,
    lmin: float,
    brightness: np.ndarray,
    edges: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Amplitude and excess kurtosis of each patch's small scales where it is faint or bright.

    Parameters
    ----------
    patches : array, shape (n, size, size)
        In any unit.
    pixel_size : float
        Arcminutes.
    lmin : float
        Multipole above which scales are small. Pixels that the edges of the patch reach do not
        count (see `bandpass_filter`).
    brightness : array, shape (n, m, m)
        Of blocks of the patch, such as its block means: ``size`` is a multiple of m.
    edges : array, shape (nc + 1,)
        Increasing edges of the classes of brightness. A value on an edge counts as brighter, and
        the outer classes are open.

    Returns
    -------
    rms : array, shape (n, nc)
        In the patches' unit; NaN where a patch has fewer than 32 such pixels.
    excess_kurtosis : array, shape (n, nc)
        ``⟨x⁴⟩/⟨x²⟩² − 3`` of the pixels of the class; NaN likewise.

    Raises
    ------
    ValueError
        If the arguments are unfit.
    """
    patches = check_patches(patches)
    n, size, _ = patches.shape
    brightness = np.asarray(brightness, np.float64)
    grid = brightness.shape[-1]
    if brightness.shape != (n, grid, grid) or size % grid:
        raise ValueError(
            f"brightness of shape {brightness.shape} does not fit {n} patches of {size} pixels: "
            f"it must be ({n}, m, m), with m a divisor of {size}."
        )
    filtered, interior = bandpass_filter(patches, pixel_size, lmin, None)
    small = filtered[:, interior, interior].reshape(n, -1)
    inner = np.searchsorted(np.asarray(edges)[1:-1], brightness, side="right")
    label = np.repeat(np.repeat(inner, size // grid, axis=1), size // grid, axis=2)
    label = label[:, interior, interior].reshape(n, -1)
    rms = np.full((n, len(edges) - 1), np.nan)
    kurtosis = np.full_like(rms, np.nan)
    for i in range(n):
        for number in range(rms.shape[1]):
            squared = small[i, label[i] == number] ** 2
            if len(squared) >= _FEWEST_PIXELS:
                variance = squared.mean()
                rms[i, number] = np.sqrt(variance)
                kurtosis[i, number] = (squared**2).mean() / variance**2 - 3
    return rms, kurtosis


def pixel_histogram(patches: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Probability density of the pixel values of each patch.

    Parameters
    ----------
    patches : array, shape (n, size, size)
    edges : array, shape (nb + 1,)
        Increasing edges, in the patches' unit. The last bin includes its upper edge.

    Returns
    -------
    array, shape (n, nb)
        Per unit of the patches. Its integral is the fraction of pixels within the edges, so that
        pixels outside are not hidden by the normalisation.

    Raises
    ------
    ValueError
        If the patches or the edges are unfit.
    """
    patches = check_patches(patches)
    edges = np.asarray(edges, dtype=np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError("edges must be two or more increasing pixel values.")
    counts = np.stack([np.histogram(patch, edges)[0] for patch in patches])
    return counts / (patches[0].size * np.diff(edges))
