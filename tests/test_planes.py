"""The Fourier planes of charts, and what brightness does to spectra."""

from __future__ import annotations

import itertools

import healpy as hp
import numpy as np
import pytest
import scipy.ndimage

from pysm_vae.sky.coupling import Coupling
from pysm_vae.sky.planes import (
    BLOCK_CELLS,
    COARSE_DEPTH,
    HALO_CELLS,
    MEAN_SCALE,
    Plane,
    Spectra,
    bspline_response,
    large_share,
    spline_values,
)
from pysm_vae.sky.tiling import CELL, CELLS
from pysm_vae.stats.spectra import radial_spectrum

DEPTH = 3


@pytest.fixture(scope="module")
def plane() -> Plane:
    return Plane(CELLS, DEPTH)


def on_sky(plane: Plane) -> float:
    """Mean size on the sky of a plane's pixels, radians."""
    return MEAN_SCALE * CELL / 2**plane.depth


def d_ell(plane: Plane, fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Multipoles and mean D_l of fields."""
    number, power = radial_spectrum(fields, width=0.35)
    ell = number / plane.size * 2 * np.pi / on_sky(plane)
    return ell, ell**2 * power.mean(axis=0) * on_sky(plane) ** 2 / (2 * np.pi)


# Planes


@pytest.mark.parametrize("slope", [2.0, -0.5])
def test_white_fields_become_the_power_law(plane, rng, slope):
    white = rng.standard_normal((4, plane.size, plane.size)).astype(np.float32)
    response = plane.filter((plane.ell / 80) ** slope, np.ones_like(plane.ell))
    patterns = spline_values(plane.fields(plane.waves(white) * response))
    ell, found = d_ell(plane, patterns)
    bands = np.geomspace(60, 480, 10)
    for low, high in itertools.pairwise(bands):
        band = (ell >= low) & (ell < high)
        ratio = np.average(found[band] / (ell[band] / 80) ** slope, weights=ell[band])
        # There are thousands of modes in a band, but for the first.
        assert ratio == pytest.approx(1, abs=0.06), (low, high)
    # Below Nyquist the patterns are cut, so that the spline can follow them.
    assert found[ell > 0.8 * np.pi / on_sky(plane)].max() < 1e-3 * found[ell < 480].max()


def test_the_cut_is_where_it_is_asked_for():
    """At lmax if the grid could hold more: all of the power below it, none from 1.5 times it."""
    wide, narrow = Plane(CELLS, 4), Plane(CELLS, 4, lmax=300.0)
    below, above = narrow.ell <= 300, narrow.ell >= 450
    np.testing.assert_allclose(_response(narrow)[below], _response(wide)[below], rtol=1e-6)
    np.testing.assert_allclose(_response(narrow)[above], 0, atol=1e-20)
    ratio = _response(narrow)[~(below | above)] / _response(wide)[~(below | above)]
    assert ((ratio > 0) & (ratio <= 1)).all()
    assert (np.diff(ratio[np.argsort(narrow.ell[~(below | above)])]) < 1e-6).all()
    # The wider of the two ends where its grid has to.
    nyquist = np.pi / on_sky(wide)
    assert _response(wide)[wide.ell > 0.78 * nyquist].max() < 1e-20
    inside = (wide.ell < 0.62 * nyquist) & (wide.cycles > 0.1)
    assert _response(wide)[inside].min() > 1e-8


def _response(plane: Plane) -> np.ndarray:
    return plane.filter(np.ones_like(plane.ell), np.ones_like(plane.ell)).astype(float)


def test_filter_divides_the_generators_spectrum_out(plane):
    once = _response(plane)
    quarter = plane.filter(np.ones_like(plane.ell), np.full_like(plane.ell, 4.0))
    np.testing.assert_allclose(quarter, once / 2, rtol=1e-5)
    assert once[0, 0] == 0


def test_waves_and_fields_are_inverse_inside_the_margin(rng):
    plane = Plane(12, 3, margin=2.0)
    fields = rng.standard_normal((2, plane.size, plane.size))
    back = plane.fields(plane.waves(fields))
    inside = slice(16, -16)
    np.testing.assert_allclose(back[:, inside, inside], fields[:, inside, inside], atol=1e-6)
    # Across the margin they fall to nothing, smoothly.
    edge = back / fields
    assert np.abs(edge[:, :, [0, -1]]).max() < 0.01
    np.testing.assert_allclose(edge[:, 50, 8], np.sin(0.5 * np.pi * 8.5 / 16) ** 2, rtol=1e-4)


def test_stokes_keep_power(plane, rng):
    e, b = rng.standard_normal((2, *plane.ell.shape))
    q, u = plane.stokes(e, b)
    kept = np.s_[1:, 1:]
    np.testing.assert_allclose((q**2 + u**2)[kept], (e**2 + b**2)[kept], rtol=1e-4)


def test_stokes_are_the_formula_of_the_tiling(plane):
    """(E + iB)(ky² - kx² - 2i kx ky) / k², of real E and B at single modes."""
    y, x = np.indices((plane.size, plane.size)) * 2 * np.pi / plane.size
    for kx, ky in ((5, 0), (0, 7), (6, 6), (4, -9)):
        pattern = np.cos(kx * x + ky * y)
        wave = np.fft.rfft2(pattern)
        k2 = kx**2 + ky**2
        expected = pattern * (ky**2 - kx**2) / k2, pattern * (-2 * kx * ky) / k2
        found = plane.fields(np.stack(plane.stokes(wave, 0 * wave)))
        np.testing.assert_allclose(found, expected, atol=1e-6)
        found = plane.fields(np.stack(plane.stokes(0 * wave, wave)))
        np.testing.assert_allclose(found, [-expected[1], expected[0]], atol=1e-6)


def test_parts_add_up_to_the_whole():
    """At every multipole, and each where it ought to be."""
    whole, small = (_response(Plane(CELLS, COARSE_DEPTH, part=part)) for part in ("whole", "small"))
    ell = Plane(CELLS, COARSE_DEPTH).ell
    large = large_share(ell) * whole
    np.testing.assert_allclose(large + small, whole, rtol=1e-5, atol=1e-7 * whole.max())
    some = whole > 0
    assert (small[(ell < 100) & some] < 1e-3 * whole[(ell < 100) & some]).all()


def test_blocks_make_what_the_whole_chart_would(rng):
    """The small part block by block, with halos, against that of all the chart at once."""
    depth = COARSE_DEPTH + 1
    chart = Plane(CELLS, depth, part="small")
    block = Plane(int(BLOCK_CELLS + 2 * HALO_CELLS), depth, part="small", margin=HALO_CELLS / 3)
    everything = Plane(CELLS, depth)

    # A field as red as dust: what the filters flatten is what would ring at a block's edges.
    def red(ell):
        return np.maximum(ell, 20.0) ** -2.9

    white = rng.standard_normal((chart.size, chart.size)).astype(np.float32)
    wave = np.fft.rfft2(white) * np.sqrt(red(chart.ell))
    field = np.fft.irfft2(wave).astype(np.float32)

    def patterns(plane, field):
        power = (plane.ell / 80) ** -0.5
        return spline_values(plane.fields(plane.waves(field) * plane.filter(power, red(plane.ell))))

    expected = patterns(chart, field)
    scale = patterns(everything, field)[200:-200, 200:-200].std()
    side, halo = (int(cells * 2**depth) for cells in (BLOCK_CELLS, HALO_CELLS))
    for row, column in ((1, 1), (2, 3), (3, 2)):
        rows, columns = (slice(n * side - halo, (n + 1) * side + halo) for n in (row, column))
        found = patterns(block, field[rows, columns])[halo:-halo, halo:-halo]
        rows, columns = (slice(n * side, (n + 1) * side) for n in (row, column))
        np.testing.assert_allclose(found, expected[rows, columns], atol=0.01 * scale)
        assert np.std(found - expected[rows, columns]) < 2e-3 * scale


# Spectra of generators


def law(cycles: np.ndarray) -> np.ndarray:
    return 30 * cycles**-2.6


def entry(depth: int, end: float = 0.0) -> dict:
    """Of a field with a power law's spectrum and pixels that take some away near Nyquist."""
    cycles = np.geomspace(1 / 32, 2 ** (depth - 1), 8 * (depth + 4) + 1)
    fall = np.exp(-end * (cycles / 2 ** (depth - 1)) ** 4)
    power = law(cycles) * 4.0**depth * fall
    return {"depth": depth, "cycles": list(cycles), "power": list(power)}


def test_spectra_are_those_of_the_table():
    spectra = Spectra([entry(3), entry(4)])
    for depth in (3, 4):
        cycles = np.geomspace(1 / 32, 2 ** (depth - 1), 50)
        np.testing.assert_allclose(spectra(cycles, depth), law(cycles) * 4.0**depth, rtol=1e-9)
    # Beyond the table the first and the last number stand.
    assert spectra(np.array([1e-3]), 3) == spectra(np.array([1 / 32]), 3)
    assert spectra(np.array([100.0]), 3) == spectra(np.array([4.0]), 3)


def test_deeper_than_measured_the_spectrum_goes_on():
    """As the same power law, and with the same fall at the end of the finer grid."""
    spectra = Spectra([entry(5, end=0.8), entry(6, end=0.8)])
    for depth in (7, 8):
        want = entry(depth, end=0.8)
        found = spectra(np.array(want["cycles"]), depth)
        np.testing.assert_allclose(found, want["power"], rtol=0.02)


# Splines


def test_spline_response_is_that_of_its_taps():
    taps = np.zeros(16)
    taps[[-1, 0, 1]] = 1 / 6, 4 / 6, 1 / 6
    np.testing.assert_allclose(
        bspline_response(np.fft.fftfreq(16)), np.fft.fft(taps).real, atol=1e-14
    )


def test_spline_values_undo_the_prefilter(rng):
    fields = rng.standard_normal((3, 24, 24))
    coefficients = np.stack([scipy.ndimage.spline_filter(f, mode="grid-wrap") for f in fields])
    np.testing.assert_allclose(spline_values(coefficients), fields, atol=1e-12)


# Coupling


def test_coupling_of_a_uniform_sky_changes_nothing():
    coupling = Coupling(np.ones(hp.nside2npix(32)))
    power = np.where(coupling.grid_ell > 100, 1.0, 0.0)
    ell = coupling.ell
    inside = (ell > 130) & (ell < 0.9 * ell.max())
    same, other = coupling.spin(power)
    np.testing.assert_allclose(coupling.scalar(power)[inside], 1, rtol=1e-6)
    np.testing.assert_allclose(same[inside], 1, rtol=1e-6)
    np.testing.assert_allclose(other, 0, atol=1e-6)
    np.testing.assert_allclose(coupling.scalar(power)[ell < 70], 0, atol=1e-6)


def test_coupling_keeps_a_white_spectrum_and_all_power(rng):
    theta, phi = hp.pix2ang(32, np.arange(hp.nside2npix(32)))
    coupling = Coupling(1 + np.cos(12 * theta) * np.cos(9 * phi))
    white = coupling.grid_ell**2
    np.testing.assert_allclose(coupling.scalar(white)[5:], coupling.ell[5:] ** 2, rtol=0.02)
    same, other = coupling.spin(white)
    np.testing.assert_allclose(same + other, coupling.scalar(white), rtol=1e-9)


def test_coupling_predicts_what_brightness_does(rng):
    """E patterns with a sharp edge at l = 100 times a mottled map, against the prediction."""
    nside, lmax = 128, 300
    ell = np.arange(lmax + 1)
    d = np.where(ell > 100, (np.maximum(ell, 1) / 80) ** -0.5, 0.0)
    cl = 2 * np.pi * d / np.maximum(ell * (ell + 1), 1)

    def draw(cl):
        white = rng.standard_normal((2, hp.Alm.getsize(len(cl) - 1)))
        return hp.almxfl((white[0] + 1j * white[1]) / np.sqrt(2), np.sqrt(cl))

    mottled = hp.alm2map(draw(np.exp(-0.5 * (np.arange(65) / 25.0) ** 2)), nside)
    mottled = np.exp(0.7 * mottled / mottled.std())
    alm = draw(cl)
    maps = np.array(hp.alm2map([0 * alm, alm, 0 * alm], nside, pol=True)) * mottled
    _, ee, bb = hp.anafast(maps, lmax=lmax, iter=1)[:3] / np.mean(mottled**2)
    coupling = Coupling(hp.ud_grade(mottled, 64))
    grid = (np.maximum(coupling.grid_ell, 1) / 80) ** -0.5
    predicted = coupling.spin(np.where(coupling.grid_ell > 100, grid, 0.0))
    assert 0.3 > max(predicted[1]) > 0.03
    for centre, want_e, want_b in zip(coupling.ell, *predicted, strict=True):
        if not 50 < centre < 200:
            continue
        band = (ell > centre - 9) & (ell < centre + 9)
        d_e, d_b = (np.mean((ell * (ell + 1) * c / (2 * np.pi))[band]) for c in (ee, bb))
        assert d_e == pytest.approx(want_e, rel=0.1, abs=0.03), centre
        assert d_b == pytest.approx(want_b, rel=0.2, abs=0.01), centre
