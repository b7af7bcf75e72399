"""Spectra, moments, Minkowski functionals, controls and distances against closed forms."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from scipy import fft, ndimage, signal, stats

from pysm_vae.stats import compare, controls, minkowski, moments, spectra

ARCMIN = np.pi / 10800
PIXEL = 3.75


def gaussian_field(
    rng: np.random.Generator,
    n: int,
    size: int,
    pixel: float,
    cl: Callable[[np.ndarray], np.ndarray],
    factor: int = 2,
) -> np.ndarray:
    """Patches of known C_ℓ, cut out of periodic fields ``factor`` times wider (so non-periodic)."""
    wide = factor * size
    step = pixel * ARCMIN
    ell = 2 * np.pi * np.hypot(fft.fftfreq(wide, step)[:, None], fft.rfftfreq(wide, step)[None])
    ell[0, 0] = 1
    amplitude = np.sqrt(cl(ell)) / step
    amplitude[0, 0] = 0
    noise = fft.rfft2(rng.standard_normal((n, wide, wide)))
    return fft.irfft2(noise * amplitude, (wide, wide))[:, :size, :size]


def dust_like(ell: np.ndarray) -> np.ndarray:
    """A spectrum as steep as dust's, with a 5' beam."""
    return (ell / 100) ** -2.8 * np.exp(-((ell * 5 * ARCMIN) ** 2) / (8 * np.log(2)))


def lognormal(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """A non-Gaussian field: the exponential of a Gaussian one, standardised."""
    field = gaussian_field(rng, n, size, PIXEL, dust_like)
    return spectra.standardise(np.exp(0.8 * field / field.std()))


# --- spectra -------------------------------------------------------------------------------------


def test_apodisation_is_a_tukey_taper() -> None:
    window = spectra.apodisation(64, 0.25)
    # Tukey's window on a grid twice as fine has our pixel centres as every other sample.
    line = signal.windows.tukey(129, 0.5)[1::2]
    np.testing.assert_allclose(window, np.outer(line, line), atol=1e-12)
    np.testing.assert_array_equal(spectra.apodisation(16, 0), 1)
    with pytest.raises(ValueError, match="width"):
        spectra.apodisation(64, 0.6)


@pytest.mark.parametrize(
    ("size", "pixel", "slope", "lowest"), [(96, 3.75, -2.8, 10), (65, 6.0, -1.0, 4)]
)
def test_spectrum_of_a_known_field(
    rng: np.random.Generator, size: int, pixel: float, slope: float, lowest: int
) -> None:
    def cl(ell: np.ndarray) -> np.ndarray:
        return 7.0 * (ell / 300) ** slope

    n = 60
    patches = gaussian_field(rng, n, size, pixel, cl) + 40
    edges = spectra.ell_bins(size, pixel, lmin=lowest * spectra.fundamental(size, pixel), n=10)
    ell, found = spectra.flat_spectrum(patches, pixel, edges)
    assert found.shape == (n, 10)
    # The mean of C_ℓ over each bin's modes, counted on the whole plane.
    freq = fft.fftfreq(size, pixel * ARCMIN)
    modes = 2 * np.pi * np.hypot(freq[:, None], freq[None])
    inside = [modes[(modes >= low) & (modes < high)] for low, high in pairwise(edges)]
    expected = np.array([cl(m).mean() for m in inside])
    # Of the steep spectrum, about 2 % leaks into the lowest of these bins.
    leak = 0.02 * expected * (slope < -2)
    pull = (found.mean(0) - expected) / np.hypot(found.std(0, ddof=1) / np.sqrt(n), leak)
    assert np.abs(pull).max() < 4
    assert np.mean(pull**2) < 3
    np.testing.assert_allclose(found.mean(0), expected, rtol=0.1)
    np.testing.assert_allclose(ell, [m.mean() for m in inside], rtol=0.02)


def test_spectrum_by_direct_sum(rng: np.random.Generator) -> None:
    patch = rng.standard_normal((1, 8, 8))
    # A bin that holds one pair of conjugate modes' worth of multipoles: |k| = √2.
    base = spectra.fundamental(8, 10.0)
    _, found = spectra.flat_spectrum(patch, 10.0, np.array([1.4, 1.5]) * base)
    window = spectra.apodisation(8)
    field = window * (patch[0] - (window * patch[0]).sum() / window.sum())
    y, x = np.mgrid[:8, :8]
    power = [
        abs((field * np.exp(-2j * np.pi * (a * y + b * x) / 8)).sum()) ** 2
        for a, b in [(1, 1), (1, -1)]
    ]
    expected = np.mean(power) / (64 * np.mean(window**2)) * (10 * ARCMIN) ** 2
    np.testing.assert_allclose(found[0, 0], expected)


def test_correlation_of_known_mixtures(rng: np.random.Generator) -> None:
    """Fields that share their low multipoles, and a part of their high ones."""
    wide = gaussian_field(rng, 60, 64, PIXEL, lambda ell: ell**-1.0)
    other = gaussian_field(rng, 60, 64, PIXEL, lambda ell: ell**-1.0)
    edges = spectra.ell_bins(64, PIXEL, n=6)
    ell, same = spectra.flat_correlation(wide, 5 - 3 * wide, PIXEL, edges)
    np.testing.assert_allclose(same, -1)
    np.testing.assert_allclose(ell, spectra.flat_spectrum(wide, PIXEL, edges)[0])
    mixed = 0.6 * wide + 0.8 * other
    _, found = spectra.flat_correlation(wide, mixed, PIXEL, edges)
    assert found.shape == (60, len(edges) - 1)
    np.testing.assert_allclose(found[:, 2:].mean(axis=0), 0.6, atol=0.06)
    # By hand, from whole transforms of one pair.
    window = spectra.apodisation(64)
    modes = [
        fft.fft2(window * (p[0] - (window * p[0]).sum() / window.sum())) for p in (wide, mixed)
    ]
    k = 2 * np.pi * np.hypot(*np.meshgrid(*[fft.fftfreq(64, PIXEL * ARCMIN)] * 2))
    inside = (k >= edges[3]) & (k < edges[4])
    one, two = (m[inside] for m in modes)
    expected = (one * two.conj()).real.sum() / np.linalg.norm(one) / np.linalg.norm(two)
    assert found[0, 3] == pytest.approx(expected)
    with pytest.raises(ValueError, match="make no pairs"):
        spectra.flat_correlation(wide, other[:5], PIXEL, edges)


def test_radial_spectrum(rng: np.random.Generator) -> None:
    cycles, power = spectra.radial_spectrum(rng.standard_normal((200, 33, 33)))
    np.testing.assert_array_equal(cycles, np.arange(1, 17))
    # The removed mean takes its share of the lowest wavenumbers.
    np.testing.assert_allclose(power.mean(0)[4:], 1, atol=0.08)
    # A wave of five cycles without taper: (amplitude² / 4) · pixels in each of two modes.
    wave = np.broadcast_to(3 * np.cos(2 * np.pi * 5 * np.arange(32) / 32), (1, 32, 32))
    _, power = spectra.radial_spectrum(wave, width=0)
    freq = fft.fftfreq(32, 1 / 32)
    ring = np.rint(np.hypot(freq[:, None], freq[None])) == 5
    np.testing.assert_allclose(power[0, 4], 2 * 9 / 4 * 32**2 / ring.sum())
    np.testing.assert_allclose(np.delete(power[0], 4), 0, atol=1e-20)


@pytest.mark.parametrize("spacing", ["log", "linear"])
@pytest.mark.parametrize("n", [1, 7, 60, 300])
def test_ell_bins_all_hold_modes(spacing: str, n: int) -> None:
    edges = spectra.ell_bins(48, PIXEL, n=n, spacing=spacing)
    assert len(edges) <= n + 1
    assert edges[0] == spectra.fundamental(48, PIXEL)
    np.testing.assert_allclose(edges[-1], 180 * 60 / PIXEL)
    ell, _ = spectra.flat_spectrum(np.random.default_rng(0).random((1, 48, 48)), PIXEL, edges)
    assert ((ell >= edges[:-1]) & (ell <= edges[1:])).all()


def test_octave_bands_add_up(rng: np.random.Generator) -> None:
    patches = rng.standard_normal((2, 64, 64))
    parts = [
        spectra.bandpass_filter(patches, PIXEL, low, high)[0]
        for low, high in [(None, 300), (300, 600), (600, 1200), (1200, None)]
    ]
    np.testing.assert_allclose(sum(parts), patches, atol=1e-12)


def test_bandpass_of_a_wave_and_of_a_larger_field(rng: np.random.Generator) -> None:
    # A plane wave inside the band passes, one outside does not.
    size = 128
    x = np.arange(size) * PIXEL * ARCMIN
    inside, outside = (np.broadcast_to(np.cos(ell * x), (1, size, size)) for ell in (600, 150))
    out, mid = spectra.bandpass_filter(inside + 5, PIXEL, 300, 1200)
    assert np.abs((out - inside)[:, mid, mid]).max() < 0.1
    assert (out - inside)[:, mid, mid].std() < 0.03
    out, mid = spectra.bandpass_filter(outside + 5, PIXEL, 300, 1200)
    assert np.abs(out[:, mid, mid]).max() < 0.1
    assert out[:, mid, mid].std() < 0.03
    # The interior does not know where the patch was cut.
    big = gaussian_field(rng, 6, 3 * size, PIXEL, dust_like, factor=1)
    middle = slice(size, 2 * size)
    for band, limit in [((200, None), 0.08), ((200, 400), 0.12)]:
        truth = spectra.bandpass_filter(big, PIXEL, *band)[0][:, middle, middle]
        found, mid = spectra.bandpass_filter(big[:, middle, middle], PIXEL, *band)
        error = (found - truth)[:, mid, mid].std() / truth[:, mid, mid].std()
        assert error < limit
        assert mid.stop - mid.start >= 96


# --- moments -------------------------------------------------------------------------------------


def test_band_moments(rng: np.random.Generator) -> None:
    bands = [(360.0, 720.0), (720.0, 1440.0)]
    gaussian = gaussian_field(rng, 40, 96, PIXEL, dust_like)
    skew, kurt = moments.band_moments(gaussian, PIXEL, bands)
    assert skew.shape == kurt.shape == (40, 2)
    assert np.abs(skew.mean(0)).max() < 4 * (skew.std(0) / np.sqrt(40)).max()
    assert np.abs(kurt.mean(0)).max() < 4 * (kurt.std(0) / np.sqrt(40)).max()
    # Against scipy.stats on the filtered interior.
    field = lognormal(rng, 5, 96)
    skew, kurt = moments.band_moments(field, PIXEL, bands)
    out, mid = spectra.bandpass_filter(field, PIXEL, *bands[1])
    flat = out[:, mid, mid].reshape(5, -1)
    np.testing.assert_allclose(skew[:, 1], stats.skew(flat, axis=1))
    np.testing.assert_allclose(kurt[:, 1], stats.kurtosis(flat, axis=1))
    assert kurt.min() > 0.5
    with pytest.raises(ValueError, match="constant"):
        moments.band_moments(np.zeros((1, 96, 96)), PIXEL, bands)


def test_moments_by_brightness(rng: np.random.Generator) -> None:
    """White noise of a known amplitude and kurtosis in each half of a patch."""
    n, size, grid = 40, 64, 8
    brightness = np.zeros((n, grid, grid))
    brightness[:, :, grid // 2 :] = 1
    noise = rng.standard_normal((n, size, size))
    # A heavy-tailed field on the right: Laplace noise has an excess kurtosis of 3.
    noise[:, :, size // 2 :] = 3 * rng.laplace(scale=np.sqrt(0.5), size=(n, size, size // 2))
    lmin = 0.35 * spectra.nyquist(PIXEL)
    rms, kurtosis = moments.moments_by_brightness(
        noise, PIXEL, lmin, brightness, np.array([-np.inf, 0.5, np.inf])
    )
    # The filter is the same on both sides, but for what it mixes across the border.
    assert np.median(rms[:, 1] / rms[:, 0]) == pytest.approx(3, rel=0.1)
    assert np.median(kurtosis[:, 0]) == pytest.approx(0, abs=0.4)
    assert np.median(kurtosis[:, 1]) > 1
    # A value on an edge is the brighter class; a class without pixels is unknown.
    rms, _ = moments.moments_by_brightness(
        noise, PIXEL, lmin, brightness, np.array([-np.inf, 1, 2, np.inf])
    )
    assert np.isfinite(rms[:, :2]).all()
    assert np.isnan(rms[:, 2]).all()
    assert (rms[:, 1] > rms[:, 0]).all()
    with pytest.raises(ValueError, match="m a divisor of 64"):
        moments.moments_by_brightness(noise, PIXEL, lmin, brightness[:, :7, :7], np.arange(3))


def test_pixel_histogram(rng: np.random.Generator) -> None:
    edges = np.linspace(-2, 2, 9)
    found = moments.pixel_histogram(rng.standard_normal((3, 128, 128)), edges)
    expected = np.diff(stats.norm.cdf(edges)) / 0.5
    # The rarest bin holds 700 pixels of each patch: 4 % of scatter, at most four times that.
    np.testing.assert_allclose(found, np.broadcast_to(expected, (3, 8)), rtol=0.15)
    np.testing.assert_allclose(found.sum(1), expected.sum(), rtol=0.01)
    # Pixels outside are missed, not hidden.
    assert (found.sum(1) * 0.5).max() < 0.97


# --- Minkowski functionals -----------------------------------------------------------------------


@pytest.mark.parametrize("pixel_size", [1.0, 2.5])
def test_minkowski_of_a_gaussian_field(rng: np.random.Generator, pixel_size: float) -> None:
    # C ∝ exp(−k²s²) has the correlation exp(−r²/4s²), so a derivative's variance is 1/(2s²).
    s = 3.0
    n = 40

    def cl(ell: np.ndarray) -> np.ndarray:
        return np.exp(-((ell * s * ARCMIN) ** 2))

    # In one periodic field the variance of this spectrum is 1/(4πs²), in pixels of an arcminute.
    patches = gaussian_field(rng, n, 160, 1.0, cl) * np.sqrt(4 * np.pi) * s * ARCMIN
    nu = np.linspace(-3, 3, 13)
    found = minkowski.minkowski_functionals(patches, nu, pixel_size=pixel_size)
    tau = 0.5 / (s * pixel_size) ** 2
    expected = minkowski.gaussian_minkowski(nu, tau)
    for curves, closed_form in zip(found, expected, strict=True):
        error = curves.std(0, ddof=1) / np.sqrt(n)
        # Marching squares lose about 1 % at s = 3 pixels.
        allowed = 4 * error + 0.012 * np.abs(closed_form)
        assert (np.abs(curves.mean(0) - closed_form) < allowed).all()
        shape = (curves.mean(0) * closed_form).sum() / (closed_form**2).sum()
        assert shape == pytest.approx(1, abs=0.03)


def test_gaussian_closed_form_by_random_jets(rng: np.random.Generator) -> None:
    """v1 = p(ν) ⟨|∇f|⟩ / 4 and v2 = p(ν) ⟨κ|∇f|⟩ / 2π over derivatives drawn at f = ν."""
    tau, n, nu = 0.3, 1_000_000, 0.8
    fx, fy = rng.normal(0, np.sqrt(tau), (2, n))
    # For the correlation exp(−τr²/2): ⟨f_xx²⟩ = 3τ², ⟨f_xx f_yy⟩ = ⟨f_xy²⟩ = τ², ⟨f_xx f⟩ = −τ. So
    # given f, f_xx and f_yy have the mean −τf, the variance 2τ² and no covariance.
    fxx, fyy = rng.normal(-tau * nu, np.sqrt(2) * tau, (2, n))
    fxy = rng.normal(0, tau, n)
    squared = fx**2 + fy**2
    bending = -(fx**2 * fyy - 2 * fx * fy * fxy + fy**2 * fxx) / squared
    density = stats.norm.pdf(nu)
    v0, v1, v2 = minkowski.gaussian_minkowski(np.array([nu]), tau)
    assert v0[0] == pytest.approx(stats.norm.sf(nu))
    assert v1[0] == pytest.approx(density * np.sqrt(squared).mean() / 4, rel=0.003)
    assert v2[0] == pytest.approx(density * bending.mean() / (2 * np.pi), rel=0.01)


def test_minkowski_of_a_disc_and_a_ring() -> None:
    size = 101
    y, x = np.mgrid[:size, :size] - 50.3
    radius = np.hypot(x, y)
    patches = np.stack([-radius, -np.abs(radius - 25), radius])
    v0, v1, v2 = minkowski.minkowski_functionals(patches, np.array([-10.0, 20.0]))
    cells = (size - 1) ** 2
    area = np.pi * np.array([10**2, 35**2 - 15**2]) / size**2
    np.testing.assert_allclose(v0[:2, 0], area, rtol=0.01)
    length = 2 * np.pi * np.array([10, 35 + 15]) / (4 * cells)
    np.testing.assert_allclose(v1[:2, 0], length, rtol=0.003)
    # One region; a ring has a hole; the plane less a disc is one hole (the frame does not count).
    np.testing.assert_allclose(v2 * cells, [[1, 0], [0, 0], [0, -1]], atol=1e-9)


def test_euler_number_against_labels(rng: np.random.Generator) -> None:
    """Regions less holes, counted by scipy, on patches whose frame lies below every threshold."""
    patches = ndimage.gaussian_filter(rng.standard_normal((6, 64, 64)), (0, 2, 2))
    patches -= patches.min() - 0.01
    for edge in (0, -1):
        patches[:, edge] = patches[:, :, edge] = 0
    nu = np.quantile(patches, [0.3, 0.5, 0.7, 0.9, 0.98])
    found = minkowski.minkowski_functionals(patches, nu)[2] * 63**2
    four, eight = ndimage.generate_binary_structure(2, 1), np.ones((3, 3))
    for patch, numbers in zip(patches, found, strict=True):
        for level, number in zip(nu, numbers, strict=True):
            inside = patch > level
            # Diagonals all apart, or all joined; bilinear saddles lie between.
            apart = ndimage.label(inside, four)[1] - (ndimage.label(~inside, eight)[1] - 1)
            joined = ndimage.label(inside, eight)[1] - (ndimage.label(~inside, four)[1] - 1)
            assert joined - 1e-9 <= number <= apart + 1e-9
            assert number == pytest.approx(round(number))
            # Each diagonal pair changes the number by one.
            diagonal = (inside[1:, 1:] & inside[:-1, :-1] & ~inside[1:, :-1] & ~inside[:-1, 1:]) | (
                ~inside[1:, 1:] & ~inside[:-1, :-1] & inside[1:, :-1] & inside[:-1, 1:]
            )
            assert apart - joined == diagonal.sum()


def test_contour_length_against_contourpy(rng: np.random.Generator) -> None:
    contourpy = pytest.importorskip("contourpy")
    patches = rng.standard_normal((3, 24, 24))  # white noise: every kind of cell, saddles too
    nu = np.array([-1.0, 0.1, 0.9])
    found = minkowski.minkowski_functionals(patches, nu)[1] * 4 * 23**2
    for patch, lengths in zip(patches, found, strict=True):
        lines = contourpy.contour_generator(z=patch, quad_as_tri=False)
        smooth = contourpy.contour_generator(z=ndimage.zoom(patch, 185 / 24, order=1))
        for level, length in zip(nu, lengths, strict=True):
            other = sum(np.hypot(*np.diff(p, axis=0).T).sum() for p in lines.lines(level))
            # contourpy joins ambiguous cells by the mean of their corners, we by the saddle.
            assert length == pytest.approx(other, rel=0.02)
            finer = sum(np.hypot(*np.diff(p, axis=0).T).sum() for p in smooth.lines(level))
            assert length == pytest.approx(finer / 8, rel=0.05)


def test_minkowski_symmetry_and_scale(rng: np.random.Generator) -> None:
    patches = rng.standard_normal((2, 32, 32))
    nu = np.linspace(-2, 2, 9)
    v0, v1, v2 = minkowski.minkowski_functionals(patches, nu)
    m0, m1, m2 = minkowski.minkowski_functionals(-patches, nu)
    np.testing.assert_allclose(m0[:, ::-1], 1 - v0)
    np.testing.assert_allclose(m1[:, ::-1], v1)
    np.testing.assert_allclose(m2[:, ::-1], -v2, atol=1e-12)
    turned = minkowski.minkowski_functionals(np.rot90(patches, axes=(1, 2)), nu)
    np.testing.assert_allclose(turned, (v0, v1, v2), atol=1e-12)
    raw = minkowski.minkowski_functionals(spectra.standardise(patches), nu)
    scaled = minkowski.minkowski_functionals(5 * patches + 3, nu, standardised=True)
    np.testing.assert_allclose(scaled, raw, atol=1e-9)


def test_overlap_and_curve_distance(rng: np.random.Generator) -> None:
    spread = np.array([-1.0, 0, 1])[:, None]  # mean 0 and standard deviation 1
    a = np.broadcast_to(spread, (3, 5))
    assert minkowski.band_overlap(a, a) == 1
    assert minkowski.curve_distance(a, a) == 0
    # Bands [−1, 1] and [0, 2]: 1 of 3. Bands [−1, 1] and [−2, 2]: 2 of 4.
    assert minkowski.band_overlap(a, a + 1) == pytest.approx(1 / 3)
    assert minkowski.band_overlap(a, 2 * a) == pytest.approx(1 / 2)
    assert minkowski.band_overlap(a, a + 2.5) == 0
    assert minkowski.curve_distance(a, a + 1.5) == pytest.approx(1.5)
    # Pooled variance (1 + 4) / 2.
    assert minkowski.curve_distance(a, 2 * a + 1) == pytest.approx(1 / np.sqrt(2.5))
    b = rng.standard_normal((7, 5)) + 0.3
    assert minkowski.band_overlap(a, b) == pytest.approx(minkowski.band_overlap(b, a))
    assert minkowski.curve_distance(a, b) == pytest.approx(minkowski.curve_distance(b, a))
    line = np.ones((2, 5))
    assert minkowski.band_overlap(line, line) == 1
    assert minkowski.band_overlap(line, 2 * line) == 0
    assert minkowski.curve_distance(line, 2 * line) == np.inf
    with pytest.raises(ValueError, match="two curves"):
        minkowski.band_overlap(a[:1], a)
    with pytest.raises(ValueError, match="shapes"):
        minkowski.curve_distance(a, a[:, :3])


# --- controls ------------------------------------------------------------------------------------


def test_expected_spectrum_of_cut_patches(rng: np.random.Generator) -> None:
    """The fit's forward model against patches that are really cut out and tapered."""
    size = 24
    grid = 0.5 * spectra.wavenumbers(2 * size)
    spectrum = np.maximum(grid, 0.5) ** -3.0
    spectrum[0, 0] = 0
    noise = fft.rfft2(rng.standard_normal((6000, 2 * size, 2 * size)))
    patches = fft.irfft2(noise * np.sqrt(spectrum), (2 * size, 2 * size))[:, :size, :size]
    power = spectra.radial_spectrum(patches)[1]
    error = power.std(0) / np.sqrt(len(power))
    expected = controls._tapered_expectation(spectrum, size)
    assert (np.abs(power.mean(0) - expected) < 4 * error).all()
    np.testing.assert_allclose(power.mean(0), expected, rtol=0.06)


def test_gaussian_control(rng: np.random.Generator) -> None:
    patches = np.tile(lognormal(rng, 20, 64), (8, 1, 1))
    drawn = controls.gaussian_like(patches, rng)
    edges = spectra.ell_bins(64, PIXEL, n=8)
    _, ours = spectra.flat_spectrum(drawn, PIXEL, edges)
    target = spectra.flat_spectrum(patches, PIXEL, edges)[1].mean(0)
    error = ours.std(0) / np.sqrt(len(ours))
    assert (np.abs(ours.mean(0) - target) < 4 * error + 0.01 * target).all()
    np.testing.assert_allclose(ours.mean(0)[4:], target[4:], rtol=0.05)
    bands = [(360.0, 720.0), (720.0, 1440.0)]
    assert np.abs(moments.band_moments(drawn, PIXEL, bands)[1].mean(0)).max() < 0.1
    assert moments.band_moments(patches, PIXEL, bands)[1].mean(0).min() > 1
    # Not periodic: opposite edges differ as strangers do, not as neighbours.
    step = np.abs(drawn[:, 0] - drawn[:, -1]).mean()
    assert step > 3 * np.abs(np.diff(drawn, axis=1)).mean()


@pytest.mark.parametrize("keep", [True, False])
def test_modulated_control(rng: np.random.Generator, keep: bool) -> None:
    n, size, split = 64, 96, 150.0
    patches = lognormal(rng, n, size)
    drawn = controls.modulated_gaussian(
        patches, PIXEL, rng, modulation_fwhm=90, split=split, keep_large_scales=keep
    )
    edges = spectra.ell_bins(size, PIXEL, n=10)
    ell, ours = spectra.flat_spectrum(drawn, PIXEL, edges)
    target = spectra.flat_spectrum(patches, PIXEL, edges)[1].mean(0)
    ratio = ours.mean(0) / target
    np.testing.assert_allclose(ratio[ell > 1.5 * split], 1, atol=0.04)
    np.testing.assert_allclose(ratio[ell > 400], 1, atol=0.02)
    # Large scales: those of the patch, or of a stranger.
    low = [spectra.bandpass_filter(p, PIXEL, None, 90)[0] for p in (patches, drawn)]
    correlation = np.corrcoef(low[0].ravel(), low[1].ravel())[0, 1]
    assert correlation > 0.98 if keep else abs(correlation) < 0.4
    # Small scales: strangers to the patch's, but of its local strength.
    filtered = [spectra.bandpass_filter(p, PIXEL, 400, None) for p in (patches, drawn)]
    high = [field[:, mid, mid] for field, mid in filtered]
    assert abs(np.corrcoef(high[0].ravel(), high[1].ravel())[0, 1]) < 0.03
    strength = [ndimage.gaussian_filter(h**2, (0, 10, 10)) for h in high]
    assert np.corrcoef(np.log(strength[0]).ravel(), np.log(strength[1]).ravel())[0, 1] > 0.7
    # Modulation alone makes some kurtosis, less than the field's.
    bands = [(720.0, 1440.0)]
    ours = np.median(moments.band_moments(drawn, PIXEL, bands)[1])
    assert 0.1 < ours < np.median(moments.band_moments(patches, PIXEL, bands)[1])


def test_controls_are_reproducible(rng: np.random.Generator) -> None:
    patches = lognormal(rng, 4, 32)
    one, same, other = (
        controls.modulated_gaussian(
            patches, PIXEL, np.random.default_rng(s), modulation_fwhm=30, split=300
        )
        for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1


# --- scattering and comparisons ------------------------------------------------------------------


def test_morlet_bank() -> None:
    for octave in range(4):
        wave = compare._morlet(64, octave, 1, 1)
        assert wave[0, 0] == pytest.approx(0, abs=1e-12)
        peak = np.unravel_index(wave.argmax(), wave.shape)
        ky, kx = (2 * np.pi * fft.fftfreq(64)[i] for i in peak)
        assert np.hypot(kx, ky) == pytest.approx(0.75 * np.pi / 2**octave, abs=0.1)
        assert np.arctan2(ky, kx) == pytest.approx(np.pi / 4, abs=0.01)


def test_scattering_against_plain_convolution(rng: np.random.Generator) -> None:
    """Subsampling and reduction against full-resolution convolutions."""
    patches = 2.5 * ndimage.gaussian_filter(rng.standard_normal((2, 64, 64)), (0, 1, 1))
    octaves = 4
    window = spectra.apodisation(64)
    weight = window / window.sum()

    def convolve(field: np.ndarray, j: int, t: int) -> np.ndarray:
        tapered = window * (field - (weight * field).sum())
        return np.abs(fft.ifft2(fft.fft2(tapered) * compare._morlet(64, j, t, 1)))

    expected = []
    for patch in patches:
        envelopes = [[convolve(patch, j, t) for t in range(4)] for j in range(octaves)]
        first = np.log([[(weight * e).sum() for e in row] for row in envelopes])
        clustered, straight = [], []
        for j in range(octaves):
            for k in range(j + 1, octaves):
                second = np.log(
                    [[(weight * convolve(e, k, u)).sum() for u in range(4)] for e in envelopes[j]]
                )
                clustered.append((second - first[j][:, None]).mean())
                across = second[[0, 1, 2, 3], [2, 3, 0, 1]].mean()
                straight.append(np.trace(second) / 4 - across)
        expected.append(np.r_[first.mean(1), first.std(1), clustered, straight])
    found = compare.scattering_coefficients(patches, octaves)
    assert found.shape == (2, 20)
    np.testing.assert_allclose(found, expected, atol=0.03)


def test_scattering_sees_shape_and_scale(rng: np.random.Generator) -> None:
    octaves = 4
    patches = ndimage.gaussian_filter(rng.standard_normal((6, 64, 64)), (0, 1.5, 1.5))
    base = compare.scattering_coefficients(patches, octaves)
    # A factor moves ln S1 and nothing else.
    moved = compare.scattering_coefficients(3 * patches + 1, octaves) - base
    np.testing.assert_allclose(moved[:, :octaves], np.log(3), atol=1e-9)
    np.testing.assert_allclose(moved[:, octaves:], 0, atol=1e-9)
    # Quarter turns permute the orientations (up to the pixel that anchors the subsampling).
    turned = compare.scattering_coefficients(np.rot90(patches, axes=(1, 2)), octaves)
    np.testing.assert_allclose(turned[:, : 2 * octaves], base[:, : 2 * octaves], atol=0.05)
    # Stripes are anisotropic.
    stripes = ndimage.gaussian_filter(rng.standard_normal((6, 64, 64)), (0, 6, 1))
    found = compare.scattering_coefficients(stripes, octaves)
    assert found[:, octaves + 1].min() > 3 * base[:, octaves + 1].max()
    # A size that is no multiple of 8 is cropped.
    odd = compare.scattering_coefficients(np.pad(patches, ((0, 0), (1, 2), (1, 2))), octaves)
    np.testing.assert_allclose(odd, base)


@pytest.fixture(scope="module")
def sets() -> dict[str, compare.Summary]:
    """Two draws of a non-Gaussian field, a different field, and both controls of the first."""
    rng = np.random.default_rng(7)
    first, second = lognormal(rng, 32, 96), lognormal(rng, 32, 96)
    found = {
        "first": first,
        "second": second,
        "third": lognormal(rng, 32, 96),
        "gaussian": controls.gaussian_like(first, rng),
        "modulated": controls.modulated_gaussian(first, PIXEL, rng, modulation_fwhm=120),
    }
    return {name: compare.summarise(patches, PIXEL) for name, patches in found.items()}


def test_distance_is_zero_for_the_same_and_symmetric(sets: dict[str, compare.Summary]) -> None:
    itself = compare.distance(sets["first"], sets["first"])
    assert tuple(itself) == compare.DISTANCES
    np.testing.assert_allclose(list(itself.values()), 0, atol=1e-12)
    one = compare.distance(sets["first"], sets["gaussian"])
    other = compare.distance(sets["gaussian"], sets["first"])
    np.testing.assert_allclose(list(one.values()), list(other.values()))
    for v in ("minkowski_v0", "minkowski_v1", "minkowski_v2"):
        curves = getattr(sets["first"], v)
        assert minkowski.band_overlap(curves, curves) == pytest.approx(1)


def test_distances_by_hand(sets: dict[str, compare.Summary]) -> None:
    a = sets["first"]
    changes = {
        "spectrum": a.spectrum * np.exp(0.3),
        "skewness": a.skewness + 0.2,
        "kurtosis": np.sinh(np.arcsinh(a.kurtosis) + 0.4),
        # Four bins of a width of 1/8 are half a standard deviation.
        "histogram": np.roll(a.histogram, 4, axis=1),
        "scattering": a.scattering + 0.7 * a.scattering.std(axis=0, ddof=1),
    }
    shifted = compare.distance(
        a, compare.Summary(**{f: changes.get(f, getattr(a, f)) for f in a.__dataclass_fields__})
    )
    for name, value in {
        "spectrum": 0.3,
        "skewness": 0.2,
        "kurtosis": 0.4,
        "histogram": 0.5,
        "scattering": 0.7,
    }.items():
        assert shifted[name] == pytest.approx(value, rel=0.01)
    assert shifted["minkowski_v1"] == 0


@pytest.mark.parametrize(("control", "factor"), [("gaussian", 5), ("modulated", 2.5)])
def test_controls_are_told_from_the_field(
    sets: dict[str, compare.Summary], control: str, factor: float
) -> None:
    """Shape statistics see what the spectrum, by construction, does not."""
    ratio = compare.yardstick(sets[control], sets["second"], [sets["first"], sets["third"]])
    for name in ("kurtosis", "minkowski_v0", "minkowski_v1", "minkowski_v2", "scattering"):
        assert ratio[name] > factor, name
    assert compare.distance(sets[control], sets["first"])["spectrum"] < 0.3
    for v in ("minkowski_v0", "minkowski_v1", "minkowski_v2"):
        real, fake = (
            minkowski.band_overlap(getattr(sets["second"], v), getattr(sets[name], v))
            for name in ("first", control)
        )
        assert fake < 0.75 * real


def test_yardstick(sets: dict[str, compare.Summary]) -> None:
    first, second, third = (sets[name] for name in ("first", "second", "third"))
    ones = compare.yardstick(third, second, [third])
    np.testing.assert_allclose(list(ones.values()), 1)
    ratio = compare.yardstick(sets["gaussian"], second, [first, third])
    units = [compare.distance(real, second)["kurtosis"] for real in (first, third)]
    ours = compare.distance(sets["gaussian"], second)["kurtosis"]
    assert ratio["kurtosis"] == pytest.approx(ours / np.mean(units))
    with pytest.raises(ValueError, match="at least one real region"):
        compare.yardstick(first, second, [])
    with pytest.raises(ValueError, match="other regions"):
        compare.yardstick(first, second, [second])


def test_json(sets: dict[str, compare.Summary]) -> None:
    plain = json.loads(json.dumps(sets["first"].to_json(), allow_nan=False))
    assert plain["n"] == 32
    np.testing.assert_allclose(plain["kurtosis"]["median"], np.median(sets["first"].kurtosis, 0))
    ratios = compare.yardstick(sets["gaussian"], sets["first"], [sets["second"]])
    assert json.loads(json.dumps(ratios, allow_nan=False)) == ratios
    patch = np.random.default_rng(0).standard_normal((1, 64, 64))
    single = compare.summarise(patch, PIXEL, bands=[(600, None)])
    plain = json.loads(json.dumps(single.to_json(), allow_nan=False))
    assert plain["bands"] == [[600.0, None]]
    assert plain["spectrum"]["std"] is None


def test_summarise_does_not_depend_on_units(rng: np.random.Generator) -> None:
    patches = lognormal(rng, 3, 64)
    one = compare.summarise(patches, PIXEL)
    other = compare.summarise(20 + 0.1 * patches, PIXEL)
    np.testing.assert_allclose(list(compare.distance(one, other).values()), 0, atol=1e-6)
    raw = compare.summarise(0.1 * patches, PIXEL, standardise=False)
    np.testing.assert_allclose(raw.spectrum, 0.01 * one.spectrum)


def test_summarise_is_fast(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    patches = rng.standard_normal((64, 128, 128))
    compare.summarise(patches[:2], PIXEL)  # compiles
    start = time.process_time()
    compare.summarise(patches, PIXEL)
    assert time.process_time() - start < 10


# --- bad input -----------------------------------------------------------------------------------

GOOD = np.random.default_rng(3).standard_normal((2, 64, 64))
NAN = np.where(np.arange(64) == 5, np.nan, GOOD)


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        (NAN, "NaN"),
        (GOOD[0], "shape"),
        (GOOD[:, :40], "shape"),
        (GOOD[:0], "at least one"),
        (GOOD[:, :4, :4], "8 x 8"),
    ],
)
@pytest.mark.parametrize(
    "function",
    [
        lambda p: spectra.flat_spectrum(p, PIXEL, np.array([200.0, 1000.0])),
        lambda p: spectra.radial_spectrum(p),
        lambda p: spectra.bandpass_filter(p, PIXEL, 400, None),
        lambda p: moments.band_moments(p, PIXEL, [(400, 800)]),
        lambda p: moments.pixel_histogram(p, np.linspace(-3, 3, 7)),
        lambda p: minkowski.minkowski_functionals(p, np.linspace(-1, 1, 3)),
        lambda p: controls.gaussian_like(p, np.random.default_rng(0)),
        lambda p: controls.modulated_gaussian(
            p, PIXEL, np.random.default_rng(0), modulation_fwhm=60
        ),
        lambda p: compare.summarise(p, PIXEL),
    ],
)
def test_unfit_patches(
    function: Callable[[np.ndarray], object], patches: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        function(patches)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectra.flat_spectrum(GOOD, PIXEL, [100, 3000]), "Nyquist"),
        (lambda: spectra.flat_spectrum(GOOD, PIXEL, [300, 200]), "increasing"),
        (lambda: spectra.flat_spectrum(GOOD, PIXEL, [100, 101, 400]), "holds no mode"),
        (lambda: spectra.flat_spectrum(GOOD, -1.0, [100, 200]), "pixel_size"),
        (lambda: spectra.ell_bins(64, PIXEL, lmax=3000), "Nyquist"),
        (lambda: spectra.ell_bins(64, PIXEL, lmin=100, lmax=101), "no mode"),
        (lambda: spectra.ell_bins(64, PIXEL, lmin=0), "lmin"),
        (lambda: spectra.ell_bins(64, PIXEL, n=0), "at least 1"),
        (lambda: spectra.ell_bins(64, PIXEL, spacing="cubic"), "spacing"),
        (lambda: spectra.bandpass_filter(GOOD, PIXEL, 400, 3000), "Nyquist"),
        (lambda: spectra.bandpass_filter(GOOD, PIXEL, 3000, None), "Nyquist"),
        (lambda: spectra.bandpass_filter(GOOD, PIXEL, None, None), "both"),
        (lambda: spectra.bandpass_filter(GOOD, PIXEL, 400, 300), "lmin < lmax"),
        (lambda: spectra.bandpass_filter(GOOD, PIXEL, 60, None), "edge effects"),
        (lambda: moments.band_moments(GOOD, PIXEL, []), "at least one"),
        (lambda: moments.band_moments(GOOD, PIXEL, [(1000, 4000)]), "Nyquist"),
        (lambda: moments.pixel_histogram(GOOD, [1, 0]), "increasing"),
        (lambda: minkowski.minkowski_functionals(GOOD, [0, np.nan]), "thresholds"),
        (lambda: minkowski.minkowski_functionals(GOOD, [1, 0]), "thresholds"),
        (lambda: minkowski.minkowski_functionals(GOOD, [0.0], pixel_size=0), "pixel_size"),
        (lambda: minkowski.gaussian_minkowski([0.0], -1.0), "negative"),
        (lambda: spectra.standardise(np.ones((1, 9, 9)) * 0.1), "constant"),
        (lambda: controls.gaussian_like(np.zeros((2, 32, 32)), np.random.default_rng()), "power"),
        (lambda: modulated(modulation_fwhm=0), "modulation_fwhm"),
        (lambda: modulated(modulation_fwhm=400), "modulation_fwhm"),
        (lambda: modulated(modulation_fwhm=60, split=5000), "split"),
        (lambda: compare.default_bands(60), "octave"),
        (lambda: compare.summarise(GOOD, PIXEL, octaves=6), "octaves"),
        (lambda: compare.summarise(GOOD, PIXEL, octaves=1), "at least 2"),
        (lambda: compare.summarise(GOOD, PIXEL, bands=[(1000, 4000)]), "Nyquist"),
    ],
)
def test_bad_options(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def modulated(**options: float) -> np.ndarray:
    return controls.modulated_gaussian(GOOD, PIXEL, np.random.default_rng(0), **options)


def test_summaries_must_match() -> None:
    one = compare.summarise(GOOD, PIXEL)
    with pytest.raises(ValueError, match="lmin_high_pass"):
        compare.distance(one, compare.summarise(GOOD, PIXEL, lmin_high_pass=300))
    with pytest.raises(ValueError, match="pixel_size"):
        compare.distance(one, compare.summarise(GOOD, 3.0))
    with pytest.raises(ValueError, match="scattering"):
        compare.distance(one, compare.summarise(GOOD, PIXEL, octaves=3))
    with pytest.raises(ValueError, match="two patches"):
        compare.distance(one, compare.summarise(GOOD[:1], PIXEL))


def test_real_sky_is_not_gaussian(shared_data, rng: np.random.Generator) -> None:
    """Taurus against its modulated Gaussian, on the yardstick of its own halves."""
    from astropy.io import fits

    field = fits.getdata(shared_data / "planck_taurus_lognh.fits").squeeze().astype(float)
    field = field.reshape(279, 2, 279, 2).mean(axis=(1, 3))
    pixel = 3.44
    halves = [
        spectra.standardise(
            np.stack([field[y : y + 96, x : x + 96] for y in range(0, 184, 26) for x in columns])
        )
        for columns in ((0, 20, 43), (140, 160, 183))
    ]
    fake = controls.modulated_gaussian(halves[0], pixel, rng, modulation_fwhm=120)
    one, other, control = (compare.summarise(p, pixel) for p in (*halves, fake))
    ratio = compare.yardstick(control, other, [one])
    # Measured: 1.5 to 4.2. The patches overlap, and few are independent: leave room.
    for name in ("minkowski_v0", "minkowski_v1", "minkowski_v2", "scattering"):
        assert ratio[name] > 1.2, name
