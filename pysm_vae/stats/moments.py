"""One-point statistics of patches: histograms, and skewness and kurtosis per multipole band."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pysm_vae.stats.spectra import bandpass_filter, check_patches, standardise


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
