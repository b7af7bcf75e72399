"""The Fourier plane of a chart, and what windows and brightness do to spectra."""

from __future__ import annotations

import healpy as hp
import numpy as np
import pytest

from pysm_vae.sky.charts import Chart, spline_values
from pysm_vae.sky.coupling import Coupling
from pysm_vae.sky.tiling import Tiling, spline_coefficients
from pysm_vae.stats.spectra import radial_spectrum


@pytest.fixture(scope="module")
def tiling():
    return Tiling(8, 72)


@pytest.fixture(scope="module")
def chart(tiling):
    return Chart(72, np.radians(tiling.pixel_size / 60) * 72)


def test_white_patches_become_the_power_law(chart, tiling, rng):
    pixel = np.radians(tiling.pixel_size / 60)
    white = rng.standard_normal((60, 72, 72)).astype(np.float32)
    response = chart.filter((chart.ell / 80) ** 2.0, np.ones(36))
    patterns = spline_values(chart.patches(chart.waves(white) * response))
    number, power = radial_spectrum(patterns)
    ell = number / 72 * 2 * np.pi / pixel
    d_ell = ell**2 * power.mean(axis=0) * pixel**2 / (2 * np.pi)
    resolved = (ell > 100) & (ell < 500)
    np.testing.assert_allclose(d_ell[resolved], (ell[resolved] / 80) ** 2.0, rtol=0.1)
    # Below Nyquist the patterns are cut, so that the spline can follow them.
    assert d_ell[ell > 0.85 * np.pi / pixel].max() < 1e-3 * d_ell.max()


def test_filter_divides_the_generators_spectrum_out(chart):
    power = np.ones_like(chart.ell)
    once = chart.filter(power, np.ones(36))
    quarter = chart.filter(power, np.full(36, 4.0))
    np.testing.assert_allclose(quarter, once / 2, rtol=1e-5)


def test_waves_and_patches_are_inverse(chart, rng):
    patches = rng.standard_normal((2, 72, 72))
    np.testing.assert_allclose(chart.patches(chart.waves(patches)), patches, atol=1e-12)


def test_spline_values_undo_the_prefilter(rng):
    patches = rng.standard_normal((3, 24, 24))
    values = spline_values(spline_coefficients(patches))
    np.testing.assert_allclose(values[:, 2:-2, 2:-2], patches[:, 2:-2, 2:-2], atol=1e-12)


def test_stokes_keep_power(chart, rng):
    e, b = rng.standard_normal((2, *chart.ell.shape))
    q, u = chart.stokes(e, b)
    kept = np.s_[1:, 1:]
    np.testing.assert_allclose((q**2 + u**2)[kept], (e**2 + b**2)[kept], rtol=1e-4)


def test_coupling_keeps_a_white_spectrum_and_all_power(tiling):
    coupling = Coupling(tiling, np.ones(hp.nside2npix(32)))
    white = coupling.grid_ell**2
    np.testing.assert_allclose(coupling.scalar(white)[5:], coupling.ell[5:] ** 2, rtol=0.02)
    same, other = coupling.spin(white)
    np.testing.assert_allclose(same + other, coupling.scalar(white), rtol=1e-9)


def test_coupling_predicts_what_the_windows_do(tiling, chart, rng):
    """E patterns with a sharp edge at l = 100, laid on the sphere, against the prediction."""
    power = np.where(chart.ell > 100, (chart.ell / 80) ** -0.5, 0.0)
    response = chart.filter(power, np.ones(36))
    patches = rng.standard_normal((tiling.ntiles, 72, 72)).astype(np.float32)
    coefficients = np.zeros((3, *patches.shape), np.float32)
    for i, patch in enumerate(patches):
        e = chart.waves(patch) * response
        coefficients[1:, i] = chart.patches(np.stack(chart.stokes(e, 0 * e)))
    nside = 128
    maps = tiling.project(coefficients, nside)
    _, ee, bb = hp.anafast(maps, lmax=260, iter=1)[:3]
    coupling = Coupling(tiling, np.ones(hp.nside2npix(32)))
    grid = np.where(coupling.grid_ell > 100, np.maximum(coupling.grid_ell, 1) / 80, 1.0) ** -0.5
    predicted = coupling.spin(np.where(coupling.grid_ell > 100, grid, 0.0))
    ell = np.arange(261)
    for centre, want_e, want_b in zip(coupling.ell, *predicted, strict=True):
        if not 70 < centre < 230:
            continue
        band = (ell > centre - 7) & (ell < centre + 7)
        d_e, d_b = (np.mean((ell * (ell + 1) * cl / (2 * np.pi))[band]) for cl in (ee, bb))
        assert d_e == pytest.approx(want_e, rel=0.1, abs=0.03), centre
        assert d_b == pytest.approx(want_b, rel=0.2, abs=0.01), centre


def test_modulation_spreads_more(tiling):
    """A map that varies within a few degrees broadens the edge of a spectrum."""
    npix = hp.nside2npix(32)
    theta, _ = hp.pix2ang(32, np.arange(npix))
    flat = Coupling(tiling, np.ones(npix))
    striped = Coupling(tiling, 1 + np.cos(30 * theta))
    edge = np.where(flat.grid_ell > 100, 1.0, 0.0)
    below = np.argmin(abs(flat.ell - 75))
    assert striped.scalar(edge)[below] > 1.3 * flat.scalar(edge)[below]
