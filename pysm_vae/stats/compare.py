"""One table for every comparison: the statistics of a set of patches and distances between sets.

`summarise` measures a set once, `distance` compares two summaries, and `yardstick` puts a generator
on the scale of real sky: how far it is from a region it never saw, over how far another real region
is from there. Regions of real sky differ, so that 1, not 0, is the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
from scipy import fft

from pysm_vae.stats import spectra
from pysm_vae.stats.minkowski import curve_distance, minkowski_functionals
from pysm_vae.stats.moments import band_moments, pixel_histogram
from pysm_vae.threads import threads

THRESHOLDS = np.linspace(-3, 3, 25)
"""Thresholds of the Minkowski functionals, in standard deviations."""

HISTOGRAM_EDGES = np.linspace(-6, 6, 97)
"""Histogram edges, in standard deviations; pixels beyond are counted in the last bins."""

ORIENTATIONS = 4
"""Wavelet orientations, 45° apart."""

_LOWEST_BAND = 180.0
"""Lower end of the default bands: three cycles across a patch of 6°."""


@dataclass(frozen=True)
class Summary:
    """Statistics of each patch of a set (made by `summarise`).

    Attributes
    ----------
    pixel_size : float
        Arcminutes.
    size : int
        Pixels on a side.
    lmin_high_pass : float
        High-pass multipole ahead of the Minkowski functionals.
    ell : array, shape (nb,)
        Mean multipole of the spectrum's bins.
    spectrum : array, shape (n, nb)
        C_ℓ in (patch unit)² sr.
    histogram_edges : array, shape (nh + 1,)
    histogram : array, shape (n, nh)
        Probability density of pixel values.
    bands : array, shape (nm, 2)
        Multipole bands of the moments; infinity for an open end.
    skewness, kurtosis : arrays, shape (n, nm)
        The kurtosis is the excess over 3.
    thresholds : array, shape (nt,)
    minkowski_v0, minkowski_v1, minkowski_v2 : arrays, shape (n, nt)
        Of the high-passed patch, standardised; in pixel units.
    scattering : array, shape (n, nc)
        Log scattering coefficients, see `scattering_coefficients`.
    """

    pixel_size: float
    size: int
    lmin_high_pass: float
    ell: np.ndarray
    spectrum: np.ndarray
    histogram_edges: np.ndarray
    histogram: np.ndarray
    bands: np.ndarray
    skewness: np.ndarray
    kurtosis: np.ndarray
    thresholds: np.ndarray
    minkowski_v0: np.ndarray
    minkowski_v1: np.ndarray
    minkowski_v2: np.ndarray
    scattering: np.ndarray

    def __len__(self) -> int:
        """Patches in the set."""
        return len(self.spectrum)

    def to_json(self) -> dict[str, object]:
        """Plain numbers and lists for a JSON file: axes, and each statistic over the set.

        A statistic becomes its ``mean``, ``std`` (None for a single patch), ``p16``, ``median`` and
        ``p84`` over the patches. The open end of a band becomes None.
        """
        out: dict[str, object] = {"n": len(self)}
        for name, value in asdict(self).items():
            if name in _STATISTICS:
                p16, median, p84 = np.percentile(value, [16, 50, 84], axis=0)
                out[name] = {
                    "mean": value.mean(axis=0).tolist(),
                    "std": value.std(axis=0, ddof=1).tolist() if len(self) > 1 else None,
                    "p16": p16.tolist(),
                    "median": median.tolist(),
                    "p84": p84.tolist(),
                }
            elif name == "bands":
                out[name] = [[x if np.isfinite(x) else None for x in b] for b in value.tolist()]
            else:
                out[name] = value.tolist() if isinstance(value, np.ndarray) else value
        return out


_STATISTICS = (
    "spectrum",
    "histogram",
    "skewness",
    "kurtosis",
    "minkowski_v0",
    "minkowski_v1",
    "minkowski_v2",
    "scattering",
)

DISTANCES = (
    "spectrum",
    "histogram",
    "minkowski_v0",
    "minkowski_v1",
    "minkowski_v2",
    "skewness",
    "kurtosis",
    "scattering",
)
"""Names of the distances, in the order of the report's table."""


def default_bands(pixel_size: float) -> list[tuple[float, float]]:
    """Octaves from ℓ = 180 up, as many as lie wholly below the Nyquist multipole.

    Parameters
    ----------
    pixel_size : float
        Arcminutes.

    Raises
    ------
    ValueError
        If not even one octave does.
    """
    octaves = int(np.floor(np.log2(spectra.nyquist(pixel_size) / _LOWEST_BAND)))
    if octaves < 1:
        raise ValueError(
            f"pixels of {pixel_size:g}' resolve no octave above ℓ = {_LOWEST_BAND:g}. Give bands."
        )
    return [(_LOWEST_BAND * 2**j, _LOWEST_BAND * 2 ** (j + 1)) for j in range(octaves)]


def _morlet(size: int, octave: int, orientation: int, step: int) -> np.ndarray:
    """Fourier transform of a Morlet wavelet, on the modes kept when subsampled by ``step``.

    Centre frequency ``3π/4 · 2^(−j)`` radians a pixel under a round Gaussian envelope of
    ``0.8 · 2^j`` pixels: the constants of Kymatio for four orientations (Andreux et al. 2020, JMLR
    21, 60). The subtracted Gaussian gives zero mean.
    """
    scale = 2.0**octave
    sigma, centre = 0.8 * scale, 0.75 * np.pi / scale
    angle = np.pi * orientation / ORIENTATIONS
    count = size // step
    line = 2 * np.pi * fft.fftfreq(count) * count / size
    ky, kx = line[:, None], line[None, :]
    shifted = (kx - centre * np.cos(angle)) ** 2 + (ky - centre * np.sin(angle)) ** 2
    still = kx**2 + ky**2 + centre**2
    return np.exp(-0.5 * sigma**2 * shifted) - np.exp(-0.5 * sigma**2 * still)


def _crop(modes: np.ndarray, step: int) -> np.ndarray:
    """Low modes of (…, size, size) transforms: those of the field subsampled by ``step``."""
    if step == 1:
        return modes
    size = modes.shape[-1]
    keep = np.abs(fft.fftfreq(size) * size + 0.25) < 0.5 * (size // step)
    return modes[..., keep, :][..., keep] / step**2


def scattering_octaves(size: int) -> int:
    """Octaves used by default: the widest wavelet has about three periods across the patch."""
    return max(int(np.log2(size)) - 2, 2)


def scattering_coefficients(patches: np.ndarray, octaves: int | None = None) -> np.ndarray:
    r"""Log scattering coefficients of each patch, to second order (Mallat 2012).

    With Morlet wavelets ψ of J octaves and four orientations, and ⟨⟩ the taper-weighted mean,
    ``S1(j, θ) = ⟨|x ∗ ψ_jθ|⟩`` and ``S2(j, θ, j', θ') = ⟨||x ∗ ψ_jθ| ∗ ψ_j'θ'|⟩`` for j' > j.
    Orientations are reduced to an isotropic part and one that measures shapes (after Cheng & Ménard
    2021, arXiv:2112.01288). The coefficients, in this order:

    1. ``mean_θ ln S1`` (J): the amplitude of each octave;
    2. ``std_θ ln S1`` (J): the anisotropy of each octave;
    3. ``mean ln S2/S1`` over θ and θ' (J(J−1)/2 pairs j < j'): how clustered the structures are;
    4. ``mean ln S2(θ' = θ) − mean ln S2(θ' ⊥ θ)`` (as many): straight or round.

    The patch, and each envelope |x ∗ ψ|, loses its mean and is tapered before it is transformed, as
    it is not periodic. Convolutions with wide wavelets are subsampled: their tails beyond 2.7 times
    the centre frequency are cut.

    Parameters
    ----------
    patches : array, shape (n, size, size)
        Cropped at the edges to a multiple of 2^(J−1) pixels.
    octaves : int, optional
        J, from 2; `scattering_octaves` by default.

    Returns
    -------
    array, shape (n, 2 J + J (J − 1))

    Raises
    ------
    ValueError
        If the patches are unfit or constant, J < 2, or the size does not allow J octaves.
    """
    patches = spectra.check_patches(patches)
    n, size, _ = patches.shape
    octaves = scattering_octaves(size) if octaves is None else octaves
    if octaves < 2:
        raise ValueError(f"octaves must be at least 2, not {octaves}.")
    if size < 2 ** (octaves + 1):
        raise ValueError(
            f"patches of {size} pixels do not allow {octaves} octaves, which need at least "
            f"{2 ** (octaves + 1)}. Lower octaves."
        )
    spare = size % 2 ** (octaves - 1)
    size -= spare
    patches = patches[:, spare // 2 : spare // 2 + size, spare // 2 : spare // 2 + size]
    # Octave j is sampled every 2^(j−1) pixels, so that its centre is at 3/8 of the sampling rate's
    # Nyquist frequency.
    steps = [2 ** max(j - 1, 0) for j in range(octaves)]
    bank = [
        np.stack([_morlet(size, j, t, steps[j]) for t in range(ORIENTATIONS)])
        for j in range(octaves)
    ]
    window = spectra.apodisation(size)
    weights = [window[::s, ::s] / window[::s, ::s].sum() for s in steps]
    pairs = [(j, k) for j in range(octaves) for k in range(j + 1, octaves)]
    first = np.empty((n, octaves, ORIENTATIONS))
    second = np.empty((n, len(pairs), ORIENTATIONS, ORIENTATIONS))
    workers = threads()
    for number, patch in enumerate(spectra.standardise(patches)):
        # The patch's scale drops out here and is put back into S1.
        modes = fft.fft2(window * (patch - (patch * weights[0]).sum()), workers=workers)
        for j in range(octaves):
            part = _crop(modes, steps[j]) * bank[j]
            envelope = np.abs(fft.ifft2(part, workers=workers))
            first[number, j] = np.einsum("txy,xy->t", envelope, weights[j])
            if j == octaves - 1:
                break
            # Without its mean, or wide wavelets would see the taper.
            envelope -= first[number, j][:, None, None]
            taper = window[:: steps[j], :: steps[j]]
            envelope_modes = fft.fft2(taper * envelope, workers=workers)
            for index, (low, k) in enumerate(pairs):
                if low == j:
                    part = _crop(envelope_modes, steps[k] // steps[j])[:, None] * bank[k][None]
                    wave = np.abs(fft.ifft2(part, workers=workers))
                    second[number, index] = np.einsum("tuxy,xy->tu", wave, weights[k])
    scale = patches.std(axis=(1, 2))
    log_first = np.log(first)
    low_octave = np.array([j for j, _ in pairs])
    log_second = np.log(second) - log_first[:, low_octave, :, None]
    t = np.arange(ORIENTATIONS)
    parallel = log_second[:, :, t, t].mean(axis=-1)
    crossed = log_second[:, :, t, (t + ORIENTATIONS // 2) % ORIENTATIONS].mean(axis=-1)
    return np.concatenate(
        [
            log_first.mean(axis=-1) + np.log(scale)[:, None],
            log_first.std(axis=-1),
            log_second.mean(axis=(-2, -1)),
            parallel - crossed,
        ],
        axis=1,
    )


def summarise(
    patches: np.ndarray,
    pixel_size: float,
    *,
    lmin_high_pass: float = 200.0,
    thresholds: np.ndarray = THRESHOLDS,
    bands: Sequence[tuple[float, float | None]] | None = None,
    bins: np.ndarray | None = None,
    octaves: int | None = None,
    standardise: bool = True,
) -> Summary:
    """Measure every statistic of a set of patches.

    Parameters
    ----------
    patches : array, shape (n, size, size)
        Log-intensity.
    pixel_size : float
        Arcminutes.
    lmin_high_pass : float
        High-pass ahead of the Minkowski functionals; 200 is the field's choice (ForSE).
    thresholds : array, shape (nt,)
        Of the Minkowski functionals, in standard deviations.
    bands : sequence of (lmin, lmax), optional
        Multipole bands of skewness and kurtosis; `default_bands` if not given.
    bins : array, shape (nb + 1,), optional
        Multipole edges of the spectrum, by default those of `ell_bins`.
    octaves : int, optional
        Of the scattering coefficients, see `scattering_coefficients`.
    standardise : bool
        Scale each patch to zero mean and unit variance first. Changes nothing for standardised
        patches, and puts sets in other units on the same footing.

    Returns
    -------
    Summary

    Raises
    ------
    ValueError
        If the patches, or an option, are unfit for the pixel and patch size.
    """
    patches = spectra.check_patches(patches)
    size = patches.shape[-1]
    bands = default_bands(pixel_size) if bands is None else list(bands)
    bins = spectra.ell_bins(size, pixel_size) if bins is None else bins
    if standardise:
        patches = spectra.standardise(patches)
    ell, spectrum = spectra.flat_spectrum(patches, pixel_size, bins)
    skewness, kurtosis = band_moments(patches, pixel_size, bands)
    small, interior = spectra.bandpass_filter(patches, pixel_size, lmin_high_pass, None)
    curves = minkowski_functionals(small[:, interior, interior], thresholds, standardised=True)
    # Rare pixels beyond the histogram must not drop out of the comparison.
    clipped = np.clip(patches, HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1])
    return Summary(
        pixel_size=float(pixel_size),
        size=size,
        lmin_high_pass=float(lmin_high_pass),
        ell=ell,
        spectrum=spectrum,
        histogram_edges=HISTOGRAM_EDGES.copy(),
        histogram=pixel_histogram(clipped, HISTOGRAM_EDGES),
        bands=np.array([(low, np.inf if high is None else high) for low, high in bands]),
        skewness=skewness,
        kurtosis=kurtosis,
        thresholds=np.asarray(thresholds, dtype=np.float64),
        minkowski_v0=curves[0],
        minkowski_v1=curves[1],
        minkowski_v2=curves[2],
        scattering=scattering_coefficients(patches, octaves),
    )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def distance(a: Summary, b: Summary) -> dict[str, float]:
    """Distances between two sets, each symmetric and zero for the same set.

    - ``spectrum``: rms over bins of the difference of the median ln C_ℓ;
    - ``histogram``: area between the mean cumulative distributions of pixel values (the Wasserstein
      distance of the mean histograms), in standard deviations;
    - ``minkowski_v0``, ``_v1``, ``_v2``: `curve_distance` of the curves;
    - ``skewness``: rms over bands of the difference of the medians over patches (means would follow
      a few extreme patches);
    - ``kurtosis``: the same for the inverse hyperbolic sine of the excess kurtosis, linear about 0
      and logarithmic above 1: real regions differ by factors, and plain differences would let the
      region with the largest kurtosis alone decide;
    - ``scattering``: rms over coefficients of the difference of the means, each in units of the
      pooled standard deviation of that coefficient.

    Parameters
    ----------
    a, b : Summary
        Two or more patches each, measured alike.

    Returns
    -------
    dict
        Keys as in `DISTANCES`.

    Raises
    ------
    ValueError
        If the summaries were measured with different options, or one has a single patch.
    """
    for field in fields(Summary):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if field.name in _STATISTICS:
            same = one.shape[1:] == other.shape[1:]
        else:
            same = np.shape(one) == np.shape(other) and np.allclose(one, other, rtol=1e-9)
        if not same:
            raise ValueError(
                f"the summaries differ in {field.name}: measure both with the same options, patch "
                "size and pixel size."
            )
    if min(len(a), len(b)) < 2:
        raise ValueError("each summary needs at least two patches, since their scatter is used.")

    def medians_apart(one: np.ndarray, other: np.ndarray) -> float:
        return _rms(np.median(one, axis=0) - np.median(other, axis=0))

    width = np.diff(a.histogram_edges)
    apart = (a.histogram.mean(axis=0) - b.histogram.mean(axis=0)) * width
    means = a.scattering.mean(axis=0) - b.scattering.mean(axis=0)
    pooled = 0.5 * (a.scattering.var(axis=0, ddof=1) + b.scattering.var(axis=0, ddof=1))
    # Only identical patches have no scatter; equal means are then at no distance.
    in_sigmas = np.divide(
        means, np.sqrt(pooled), out=np.where(means == 0, 0.0, np.inf), where=pooled > 0
    )
    return {
        "spectrum": medians_apart(np.log(a.spectrum), np.log(b.spectrum)),
        "histogram": float(np.sum(np.abs(np.cumsum(apart)) * width)),
        "minkowski_v0": curve_distance(a.minkowski_v0, b.minkowski_v0),
        "minkowski_v1": curve_distance(a.minkowski_v1, b.minkowski_v1),
        "minkowski_v2": curve_distance(a.minkowski_v2, b.minkowski_v2),
        "skewness": medians_apart(a.skewness, b.skewness),
        "kurtosis": medians_apart(np.arcsinh(a.kurtosis), np.arcsinh(b.kurtosis)),
        "scattering": _rms(in_sigmas),
    }


def yardstick(
    generated: Summary, held_out: Summary, real_regions: Sequence[Summary]
) -> dict[str, float]:
    """Distance of generated patches from a held-out region on the scale of real sky.

    ``D(generated, held out) / median_r D(real region r, held out)``: 1 means that generated patches
    look as much like a new region of sky as another real region does.

    Parameters
    ----------
    generated, held_out : Summary
    real_regions : sequence of Summary
        Regions other than the held-out one.

    Returns
    -------
    dict
        Keys as in `DISTANCES`, plain floats.

    Raises
    ------
    ValueError
        If there is no real region, one is the held-out region itself (distance zero), or summaries
        were measured with different options.
    """
    if len(real_regions) == 0:
        raise ValueError("real_regions is empty: the yardstick needs at least one real region.")
    real = [distance(region, held_out) for region in real_regions]
    ours = distance(generated, held_out)
    ratios = {}
    for name in DISTANCES:
        unit = float(np.median([entry[name] for entry in real]))
        if unit <= 0:
            raise ValueError(
                f"the real regions are at no {name} distance from the held-out one: they must be "
                "other regions of sky."
            )
        ratios[name] = ours[name] / unit
    return ratios
