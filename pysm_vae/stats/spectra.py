"""Flat-sky power spectra and band-pass filters of square, non-periodic patches.

Patches are arrays ``(n, size, size)`` with a pixel size in arcminutes. A mode of wave vector ``k``
(cycles per radian) has the multipole ``ℓ = 2π|k|``. A patch cut out of the sky is not periodic, so
spectra are taken under a taper, and filters work on the mirror image of the patch, which has no
jump at its edges.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import fft

from pysm_vae.threads import threads

ARCMIN = np.pi / (180 * 60)
"""One arcminute in radians."""

_EDGE_OCTAVES = 0.5
"""Half-width, in octaves, of the cosine edges of a band. Narrower ones ring further in space: half
of it nearly doubles the error that the unknown sky beyond the edge makes in the interior."""

_CHUNK_PIXELS = 2**22
"""Pixels transformed at once (about 0.1 GB of work space in double precision)."""


def check_patches(patches: np.ndarray, name: str = "patches") -> np.ndarray:
    """Return patches as a float64 array once they are known to be fit for use.

    Parameters
    ----------
    patches : array, shape (n, size, size)
        One or more square patches.
    name : str
        What to call them in an error.

    Raises
    ------
    ValueError
        If the array is not three-dimensional and square, is empty, is smaller than 8 pixels, or
        has values that are not finite.
    """
    patches = np.asarray(patches, dtype=np.float64)
    if patches.ndim != 3 or patches.shape[1] != patches.shape[2]:
        raise ValueError(
            f"{name} must have the shape (n, size, size), not {patches.shape}. "
            "Give a single patch as patch[None]."
        )
    if patches.shape[0] < 1 or patches.shape[1] < 8:
        raise ValueError(
            f"{name} of the shape {patches.shape}: at least one patch of 8 x 8 pixels is needed."
        )
    bad = ~np.isfinite(patches).all(axis=(1, 2))
    if bad.any():
        raise ValueError(
            f"{name}: {bad.sum()} of {len(patches)} patches have NaN or infinite pixels (the first "
            f"is number {np.flatnonzero(bad)[0]}). Leave them out or fill the pixels first."
        )
    return patches


def fundamental(size: int, pixel_size: float) -> float:
    """Multipole of one cycle per patch, ``2π / (size · pixel)``.

    Parameters
    ----------
    size : int
        Pixels on a side.
    pixel_size : float
        Arcminutes.

    Raises
    ------
    ValueError
        If the pixel size is not a positive number.
    """
    if not (np.isfinite(pixel_size) and pixel_size > 0):
        raise ValueError(f"pixel_size must be a positive number of arcminutes, not {pixel_size}.")
    return 2 * np.pi / (size * pixel_size * ARCMIN)


def nyquist(pixel_size: float) -> float:
    """Highest multipole along an axis of the grid, ``π / pixel``; pixel size in arcminutes."""
    return fundamental(2, pixel_size)


def _check_lmax(lmax: float, pixel_size: float, name: str) -> None:
    limit = nyquist(pixel_size)
    # A relative margin, since callers may compute the Nyquist multipole in another order.
    if lmax > limit * (1 + 1e-9):
        raise ValueError(
            f"{name} = {lmax:.1f} lies beyond the Nyquist multipole {limit:.1f} of {pixel_size:g}' "
            "pixels. Lower it or use smaller pixels."
        )


def apodisation(size: int, width: float = 0.15) -> np.ndarray:
    """Separable cosine (Tukey) taper, 1 in the middle and falling towards 0 at the edges.

    Parameters
    ----------
    size : int
        Pixels on a side.
    width : float
        Fraction of the side that is tapered at *each* edge, 0 (no taper) to 0.5 (Hann).

    Returns
    -------
    array, shape (size, size)

    Raises
    ------
    ValueError
        If ``width`` is not between 0 and 0.5.
    """
    if not 0 <= width <= 0.5:
        raise ValueError(f"width must lie between 0 and 0.5, not {width}.")
    line = np.ones(size)
    if width > 0:
        # Distance from pixel centres to the nearest edge: no pixel gets exactly zero weight.
        pixel = np.arange(size)
        depth = (np.minimum(pixel, size - 1 - pixel) + 0.5) / (width * size)
        line = np.sin(0.5 * np.pi * np.minimum(depth, 1)) ** 2
    return np.outer(line, line)


def chunks(n: int, size: int) -> Iterator[slice]:
    """Slices over ``n`` patches that keep the work space of transforms bounded."""
    step = max(1, _CHUNK_PIXELS // size**2)
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def wavenumbers(size: int) -> np.ndarray:
    """|k| of the modes of a real transform, in cycles per patch, shape (size, size // 2 + 1)."""
    return size * np.hypot(fft.fftfreq(size)[:, None], fft.rfftfreq(size)[None, :])


def _binned_power(
    patches: np.ndarray,
    window: np.ndarray,
    index: np.ndarray,
    n_bins: int,
    others: np.ndarray | None = None,
) -> np.ndarray:
    """Mean of ``|FFT(w (x − x̄))|² / Σw²`` over the modes of each bin, shape (n, n_bins).

    With ``others``, of the real part of the product with their modes: the cross-power.
    ``index`` holds the bin of every mode of the real transform, −1 for modes in none; every bin
    has at least one mode. White noise of unit variance gives 1.
    """
    n, size, _ = patches.shape
    # A real transform holds one of each pair of conjugate modes, but both of the axes' columns.
    multiplicity = np.full(index.shape, 2.0)
    multiplicity[:, 0] = 1
    if size % 2 == 0:
        multiplicity[:, -1] = 1
    flat = index.ravel()
    order = np.argsort(flat, kind="stable")
    order = order[np.searchsorted(flat[order], 0) :]
    starts = np.searchsorted(flat[order], np.arange(n_bins))
    weight = multiplicity.ravel()[order]
    total = np.add.reduceat(weight, starts)
    power = np.empty((n, n_bins))

    def transform(values: np.ndarray) -> np.ndarray:
        mean = (values * window).sum(axis=(1, 2), keepdims=True) / window.sum()
        return fft.rfft2(window * (values - mean), workers=threads())

    for part in chunks(n, size):
        modes = transform(patches[part])
        partner = modes if others is None else transform(others[part])
        squared = modes.real * partner.real + modes.imag * partner.imag
        squared = squared.reshape(len(modes), -1)[:, order]
        power[part] = np.add.reduceat(squared * weight, starts, axis=1) / total
    return power / (window**2).sum()


def _bin_index(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bin of each value in half-open bins (the last one closed), −1 outside."""
    index = np.searchsorted(edges, values, side="right") - 1
    index[values == edges[-1]] = len(edges) - 2
    index[(values < edges[0]) | (values > edges[-1])] = -1
    return index


def ell_bins(
    size: int,
    pixel_size: float,
    lmin: float | None = None,
    lmax: float | None = None,
    n: int = 16,
    spacing: str = "log",
) -> np.ndarray:
    """Edges of multipole bins, each of which holds at least one mode of the patch.

    Parameters
    ----------
    size : int
        Pixels on a side.
    pixel_size : float
        Arcminutes.
    lmin, lmax : float, optional
        Range. By default from one cycle per patch to the Nyquist multipole.
    n : int
        Bins wanted. Bins without a mode are merged with their neighbour above, so that fewer may
        come back.
    spacing : {"log", "linear"}
        Equal steps in ln ℓ or in ℓ.

    Returns
    -------
    array, shape (nb + 1,)
        Increasing edges.

    Raises
    ------
    ValueError
        If the range is empty, goes beyond the Nyquist multipole or holds no mode, ``n`` < 1, or
        the spacing is unknown.
    """
    base = fundamental(size, pixel_size)
    lmin = base if lmin is None else float(lmin)
    lmax = base * (size / 2) if lmax is None else float(lmax)
    if n < 1:
        raise ValueError(f"n must be at least 1 bin, not {n}.")
    if not 0 < lmin < lmax:
        raise ValueError(f"multipole range {lmin} to {lmax}: give 0 < lmin < lmax.")
    _check_lmax(lmax, pixel_size, "lmax")
    if spacing == "log":
        edges = np.geomspace(lmin, lmax, n + 1)
    elif spacing == "linear":
        edges = np.linspace(lmin, lmax, n + 1)
    else:
        raise ValueError(f"spacing must be 'log' or 'linear', not {spacing!r}.")
    index = _bin_index(base * wavenumbers(size), edges)
    counts = np.bincount(index[index >= 0], minlength=n)
    if not counts.any():
        raise ValueError(
            f"no mode of a patch of {size} pixels of {pixel_size:g}' has a multipole between "
            f"{lmin:.1f} and {lmax:.1f}: its modes are multiples of {base:.1f}."
        )
    # Keep an edge only where the bin that it opens, or those merged into it, has modes below.
    filled = np.flatnonzero(counts)
    return np.concatenate([edges[:1], edges[filled[1:]], edges[-1:]])


def flat_spectrum(
    patches: np.ndarray, pixel_size: float, bins: np.ndarray, width: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    r"""Binned flat-sky power spectrum of each patch under a taper.

    .. math:: C_\ell = \frac{\Omega_p}{N_p \langle w^2\rangle}
              \Big\langle \Big|\sum_x w(x)\,(f(x) - \bar f)\,e^{-2\pi i k x}\Big|^2
              \Big\rangle_{2\pi|k| \in \mathrm{bin}}

    with Ω_p the solid angle of a pixel, N_p the pixels of a patch and f̄ the mean weighted with the
    taper w (the usual pseudo-spectrum normalised for the lost power; Hivon et al. 2002, ApJ 567, 2,
    for a smooth spectrum). The taper mixes neighbouring modes, which of a steep spectrum lifts the
    low ones: with C_ℓ ∝ ℓ^−2.8 and the default taper by 25 % at 5 cycles per patch, 6 % at 8, 2.5 %
    at 10 and 1 % at 16 (with ``width=0.35``: 6 %, 2 %, 1.3 %, 0.5 %). It is the same for all sets
    of patches of one size and about the same spectrum, so that ratios hardly feel it.

    Parameters
    ----------
    patches : array, shape (n, size, size)
        In any unit.
    pixel_size : float
        Arcminutes.
    bins : array, shape (nb + 1,)
        Edges in multipole, as from `ell_bins`.
    width : float
        Of the `apodisation`.

    Returns
    -------
    ell : array, shape (nb,)
        Mean multipole of each bin's modes.
    cl : array, shape (n, nb)
        Power in (patch unit)² sr.

    Raises
    ------
    ValueError
        If the patches or the edges are unfit, or a bin has no mode or goes beyond Nyquist.
    """
    patches = check_patches(patches)
    size = patches.shape[-1]
    index, centre = _multipole_bins(size, pixel_size, bins)
    power = _binned_power(patches, apodisation(size, width), index, len(centre))
    return centre, power * (pixel_size * ARCMIN) ** 2


def _multipole_bins(
    size: int, pixel_size: float, bins: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bin of every mode of the real transform, and the mean multipole of each bin's modes."""
    edges = np.asarray(bins, dtype=np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError("bins must be two or more increasing edges in multipole.")
    ell = fundamental(size, pixel_size) * wavenumbers(size)
    _check_lmax(edges[-1], pixel_size, "the last edge of bins")
    index = _bin_index(ell, edges)
    used = index >= 0
    counts = np.bincount(index[used], minlength=len(edges) - 1)
    if not counts.all():
        empty = int(np.flatnonzero(counts == 0)[0])
        raise ValueError(
            f"the bin from {edges[empty]:.1f} to {edges[empty + 1]:.1f} holds no mode of a patch "
            f"of {size} pixels of {pixel_size:g}'. Take edges from ell_bins."
        )
    return index, np.bincount(index[used], weights=ell[used]) / counts


def flat_correlation(
    first: np.ndarray,
    second: np.ndarray,
    pixel_size: float,
    bins: np.ndarray,
    width: float = 0.15,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Correlation of each pair of patches, mode by mode, in bins of multipole.

    .. math:: r_\ell = \frac{C^{12}_\ell}{\sqrt{C^{11}_\ell C^{22}_\ell}}

    with the tapered spectra of `flat_spectrum` and their cross-spectrum: 1 where the patches are
    the same but for a positive factor, and 0 on average where they are independent.

    Parameters
    ----------
    first, second : arrays, shape (n, size, size)
        In any unit.
    pixel_size, bins, width
        As `flat_spectrum` takes them.

    Returns
    -------
    ell : array, shape (nb,)
        Mean multipole of each bin's modes.
    correlation : array, shape (n, nb)
        Between −1 and 1.

    Raises
    ------
    ValueError
        If the patches or the edges are unfit, or the sets differ in shape.
    """
    first, second = check_patches(first), check_patches(second)
    if first.shape != second.shape:
        raise ValueError(
            f"patches of shapes {first.shape} and {second.shape} make no pairs: give two sets of "
            "the same shape."
        )
    size = first.shape[-1]
    index, centre = _multipole_bins(size, pixel_size, bins)
    window = apodisation(size, width)
    cross = _binned_power(first, window, index, len(centre), second)
    one, other = (_binned_power(each, window, index, len(centre)) for each in (first, second))
    return centre, cross / np.sqrt(one * other)


def detrend(patches: np.ndarray, degree: int = 3) -> np.ndarray:
    """Take the best-fitting polynomial out of each patch.

    What is larger than a patch would otherwise leak into all its modes.

    Parameters
    ----------
    patches : array, shape (..., size, size)
        Any number of patches.
    degree : int
        Total degree of the polynomial in x and y.

    Returns
    -------
    array, shape (..., size, size)
        In the precision of the input.
    """
    size = patches.shape[-1]
    axis = np.linspace(-1, 1, size)
    powers = [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]
    terms = np.array([np.outer(axis**i, axis**j).ravel() for i, j in powers])
    basis = np.linalg.qr(terms.T)[0].astype(patches.dtype)
    # One product a patch: a product of them all would round each by how many there are.
    flat = patches.reshape(-1, 1, size * size)
    return (flat - (flat @ basis) @ basis.T).reshape(patches.shape)


def radial_spectrum(patches: np.ndarray, width: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Azimuthally averaged power per integer wavenumber, for transfer functions.

    Parameters
    ----------
    patches : array, shape (n, size, size)
        In any unit.
    width : float
        Of the `apodisation`; 0 for periodic patches.

    Returns
    -------
    wavenumber : array, shape (size // 2,)
        1, 2, … cycles per patch. Modes are rounded to the nearest.
    power : array, shape (n, size // 2)
        In (patch unit)², such that white noise of unit variance gives 1.

    Raises
    ------
    ValueError
        If the patches are unfit.
    """
    patches = check_patches(patches)
    size = patches.shape[-1]
    index = np.rint(wavenumbers(size)).astype(int) - 1
    index[index >= size // 2] = -1
    power = _binned_power(patches, apodisation(size, width), index, size // 2)
    return np.arange(1, size // 2 + 1), power


def cosine_step(ell: np.ndarray, centre: float) -> np.ndarray:
    """Rise from 0 to 1 around a multipole along half a cosine in ln ℓ (an octave in all).

    ``cosine_step(ℓ, c)`` and ``1 − cosine_step(ℓ, c)`` are complementary in amplitude; their square
    roots are complementary in power.
    """
    octaves = np.log2(np.maximum(ell, 1e-300) / centre)
    phase = np.clip(octaves / (2 * _EDGE_OCTAVES) + 0.5, 0, 1)
    return np.sin(0.5 * np.pi * phase) ** 2


def mirror_wavenumbers(size: int) -> np.ndarray:
    """|k| of the modes of the mirrored patch (a DCT-II), in cycles per patch, (size, size)."""
    half = 0.5 * np.arange(size)
    return np.hypot(half[:, None], half[None, :])


def mirror_filter(patches: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Multiply the modes of the mirrored patches by a response.

    The type-II cosine transform is the Fourier transform of the patch continued by its mirror
    image, so that this is the convolution of that continued field with an isotropic kernel, and a
    gradient across the patch leaves no step at its edges.

    Parameters
    ----------
    patches : array, shape (n, size, size)
    response : array, shape (size, size)
        On `mirror_wavenumbers`.

    Returns
    -------
    array, shape (n, size, size)
    """
    modes = fft.dctn(patches, axes=(1, 2), norm="ortho", workers=threads())
    modes *= response
    return fft.idctn(modes, axes=(1, 2), norm="ortho", overwrite_x=True, workers=threads())


def bandpass_filter(
    patches: np.ndarray, pixel_size: float, lmin: float | None, lmax: float | None
) -> tuple[np.ndarray, slice]:
    """Isotropic band-pass with cosine edges an octave wide, centred on ``lmin`` and ``lmax``.

    The patch is continued by its mirror image (see `mirror_filter`). What lies beyond the edge is
    unknown all the same, and enters as far as the filter's kernel reaches: half a wavelength of the
    lowest multipole kept is left out of the interior. There the rms error, measured on Gaussian
    fields with C_ℓ ∝ ℓ⁻³, is 6 % of the filtered field's rms for a high-pass and 9 % for an octave.

    Parameters
    ----------
    patches : array, shape (n, size, size)
    pixel_size : float
        Arcminutes.
    lmin, lmax : float or None
        Multipoles of half amplitude. None for an open end; the mean is removed unless ``lmin`` is
        None. Neighbouring bands add up to one.

    Returns
    -------
    filtered : array, shape (n, size, size)
    interior : slice
        For both axes: ``filtered[:, interior, interior]`` is safe from edge effects.

    Raises
    ------
    ValueError
        If the patches are unfit, the band is empty or beyond Nyquist, or the patch too small for
        an interior of at least a quarter of its side.
    """
    patches = check_patches(patches)
    size = patches.shape[-1]
    base = fundamental(size, pixel_size)
    if lmin is None and lmax is None:
        raise ValueError("give lmin, lmax or both: a band open at both ends filters nothing.")
    if (lmin is not None and not lmin > 0) or (lmax is not None and not lmax > (lmin or 0)):
        raise ValueError(f"band {lmin} to {lmax}: give 0 < lmin < lmax, or None for an open end.")
    for name, limit in (("lmin", lmin), ("lmax", lmax)):
        if limit is not None:
            _check_lmax(limit, pixel_size, name)
    lowest = lmax if lmin is None else lmin
    margin = int(np.ceil(np.pi / (lowest * pixel_size * ARCMIN)))
    if size - 2 * margin < max(size // 4, 1):
        raise ValueError(
            f"multipole {lowest:.0f} spans {2 * margin} of the {size} pixels of the patch: too "
            "little is left free of edge effects. Raise it or use larger patches."
        )
    ell = base * mirror_wavenumbers(size)
    response = np.ones_like(ell)
    if lmin is not None:
        response *= cosine_step(ell, lmin)
    if lmax is not None:
        response *= 1 - cosine_step(ell, lmax)
    return mirror_filter(patches, response), slice(margin, size - margin)


def standardise(patches: np.ndarray) -> np.ndarray:
    """Each patch with zero mean and unit variance.

    Parameters
    ----------
    patches : array, shape (n, ny, nx)

    Raises
    ------
    ValueError
        If a patch is constant.
    """
    centred = patches - patches.mean(axis=(1, 2), keepdims=True)
    scale = centred.std(axis=(1, 2), keepdims=True)
    # Rounding leaves a constant patch a tiny scale in place of zero.
    constant = scale <= 1e-12 * np.abs(patches).max(axis=(1, 2), keepdims=True)
    if constant.any():
        raise ValueError(
            f"patch {np.flatnonzero(constant.ravel())[0]} is constant and cannot be scaled to unit "
            "variance. Leave it out."
        )
    return centred / scale
