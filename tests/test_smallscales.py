"""Small scales by themselves: what the sky's other tests cannot see."""

from __future__ import annotations

from dataclasses import replace

import ducc0
import healpy as hp
import numpy as np
import pysm3.units as u
import pytest
from astropy.io import fits
from scipy.ndimage import gaussian_filter

from pysm_vae.sky import ground as module
from pysm_vae.sky.calibration import Spectrum, latitude_mask
from pysm_vae.sky.ground import (
    BRIGHTEST,
    CROWDED,
    EXCESS_ELL,
    MOST_POLARISED,
    OFFSET_DEPTH,
    SCALES,
    Ground,
    _mean_power,
    _power,
    bounded,
    shared_ground,
)
from pysm_vae.sky.largescales import (
    GEOMETRY_ELL,
    ROUGHNESS_RANGE,
    LargeScales,
    finer,
    spline,
)
from pysm_vae.sky.planes import Plane, large_share
from pysm_vae.sky.seams import gains_of, steep_gain
from pysm_vae.sky.smallscales import SmallScales, _add
from pysm_vae.sky.templates import SPLIT, embedded_template, handover, load_template
from pysm_vae.sky.tiling import CELL, CELLS, Tiling, axis
from pysm_vae.vae.generator import load_generator

NSIDE = 64


@pytest.fixture(scope="module")
def template():
    return load_template("embedded")


@pytest.fixture(scope="module")
def large_scales(template):
    return template.fields(*hp.pix2ang(NSIDE, np.arange(hp.nside2npix(NSIDE))))


@pytest.fixture(scope="module")
def small(template):
    return SmallScales(load_generator(), template, seed=0, nside=NSIDE)


@pytest.fixture(scope="module")
def ground(small):
    return small.ground


@pytest.fixture(scope="module")
def drawn(small):
    told = []
    return small.draw(progress=lambda *state: told.append(state)), told


def evaluate(alm: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """A scalar's harmonic sum at any directions."""
    theta, phi = hp.vec2ang(vectors.reshape(-1, 3))
    values = ducc0.sht.synthesis_general(
        alm=alm[None],
        spin=0,
        lmax=hp.Alm.getlmax(len(alm)),
        loc=np.stack([theta, phi], axis=1),
        epsilon=1e-10,
    )
    return values.reshape(vectors.shape[:-1])


def block_means(field: np.ndarray, block: int) -> np.ndarray:
    size = len(field) // block
    return field.reshape(size, block, size, block).mean(axis=(1, 3))


# Large scales on the charts


@pytest.mark.parametrize("tile", [0, 4, 10])
def test_values_are_the_templates(ground, template, tile):
    """i on grids as fine as the large scales', finer and coarser, and the splines' q and u."""
    large = ground.large
    scale = template.fields(*hp.pix2ang(8, np.arange(768))).std(axis=1)
    at_large = ground.tiling.vectors(tile, large.size)
    expected = template.fields(*hp.vec2ang(at_large.reshape(-1, 3)))
    expected = expected.reshape(3, large.size, large.size)
    _, i = large.values(tile, large.depth)
    np.testing.assert_allclose(i, expected[0], atol=1e-6)
    _, i = large.values(tile, 0)
    np.testing.assert_allclose(i, block_means(expected[0], 1 << large.depth), atol=1e-6)
    # Between its points the spline is as good as the oversampling is.
    rough, i = large.values(tile, large.depth + 1)
    fine = ground.tiling.vectors(tile, 2 * large.size)
    middle = slice(large.size // 4, -large.size // 4)
    error = i[middle, middle] - evaluate(template.alm[0], fine[middle, middle])
    assert error.std() < 1e-3 * scale[0]
    theta, phi = hp.vec2ang(fine.reshape(-1, 3))
    np.testing.assert_allclose(rough.ravel(), large.roughness(theta, phi), atol=0.02 * rough.max())
    # q and u are in the chart's frame.
    found = large.splines[tile]
    assert found.shape == (4, large.size, large.size)
    cos2, sin2 = ground.tiling.turns(tile, at_large.reshape(-1, 3)).reshape(2, *i[::2, ::2].shape)
    q, u = (spline_back(found[n]) for n in (2, 3))
    np.testing.assert_allclose(q * cos2 - u * sin2, expected[1], atol=1e-3 * scale[1])
    np.testing.assert_allclose(q * sin2 + u * cos2, expected[2], atol=1e-3 * scale[2])


def spline_back(coefficients: np.ndarray) -> np.ndarray:
    """Values of a spline that goes on straight at its ends, at its knots."""
    padded = np.pad(coefficients, 1, mode="reflect", reflect_type="odd")
    rows = (padded[:-2] + 4 * padded[1:-1] + padded[2:]) / 6
    return (rows[:, :-2] + 4 * rows[:, 1:-1] + rows[:, 2:]) / 6


def test_target_is_the_texture_over_its_roughness(ground, template):
    """Where roughness is within its range, target and roughness give the high-passed i."""
    large = ground.large
    ell = np.arange(template.lmax + 1)
    texture = hp.almxfl(template.alm[0], 1 - np.exp(-0.5 * (ell / GEOMETRY_ELL) ** 2))
    products, ratios = [], []
    for tile in range(12):
        vectors = ground.tiling.vectors(tile, large.size)
        high_passed = evaluate(texture, vectors)
        rough, _ = large.values(tile, large.depth)
        within = (rough > ROUGHNESS_RANGE[0]) & (rough < ROUGHNESS_RANGE[1])
        target = large.target(tile, large.depth)
        assert target.dtype == np.float32
        products.append((target * rough)[within])
        ratios.append(high_passed[within])
    products, ratios = np.concatenate(products), np.concatenate(ratios)
    factor = products @ ratios / (ratios @ ratios)
    np.testing.assert_allclose(products, factor * ratios, atol=0.03 * products.std())
    # Averaged over the cells, it is what the coarsest maps are drawn about: the network's units.
    calm = [
        large.target(tile, 0)[
            np.abs(hp.vec2ang(v.reshape(-1, 3), lonlat=True)[1]).reshape(45, 45) > 40
        ]
        for tile, v in ((t, ground.tiling.vectors(t, CELLS)) for t in (0, 1, 11))
    ]
    own = np.sqrt(np.mean(large_power()))
    assert 0.4 * own < np.concatenate(calm).std() < 1.6 * own
    np.testing.assert_allclose(
        large.target(3, 0), block_means(large.target(3, large.depth), 1 << large.depth), atol=1e-5
    )


def large_power() -> np.ndarray:
    """The network's coarsest maps' power where the template has any."""
    k = np.fft.fftfreq(CELLS)
    mode = 2 * np.pi * np.hypot(*np.meshgrid(k, k)) / CELL
    return load_generator().coarse_power(CELLS) * (mode < SPLIT[1])


def test_roughness_is_held_in_range(ground, large_scales):
    angles = hp.pix2ang(NSIDE, np.arange(hp.nside2npix(NSIDE)))
    rough = ground.large.roughness(*angles)
    assert rough.min() >= ROUGHNESS_RANGE[0]
    assert rough.max() <= ROUGHNESS_RANGE[1]
    assert np.median(rough) == pytest.approx(1, rel=1e-3)
    # It varies, and slowly.
    assert rough.std() > 0.1
    near = hp.get_all_neighbours(NSIDE, np.arange(len(rough)))[0]
    assert np.abs(rough - rough[near])[near >= 0].max() < 0.2


def test_blind_generators_have_no_target(template):
    large = LargeScales(template, load_generator("thorne2021"), Tiling(), SPLIT)
    assert not large.target(5, 3).any()
    np.testing.assert_array_equal(large.roughness(np.ones(3), np.zeros(3)), 1)
    np.testing.assert_allclose(large.values(5, large.depth)[0], 1)


def test_finer_grids_share_the_centre(rng):
    """Pixels of the finer grid lie inside those of the coarse; smooth fields come out exact."""
    y, x = np.indices((60, 60)) / 60
    fine_y, fine_x = (np.indices((240, 240)) + 0.5) / 240 - 0.5 / 60

    def smooth(y, x):
        return np.sin(5 * x + 2 * y) + np.exp(y)

    np.testing.assert_allclose(finer(smooth(y, x), 4), smooth(fine_y, fine_x), atol=2e-5)
    field = rng.standard_normal((60, 60))
    np.testing.assert_allclose(finer(field, 1), field, atol=1e-12)
    np.testing.assert_allclose(spline_back(spline(field)), field, atol=1e-10)


# The ground


def test_ground_is_shared(small, template):
    again = SmallScales(load_generator(), template, seed=5, nside=256)
    assert again.ground is small.ground
    assert shared_ground(load_generator(), template, Spectrum(), SPLIT) is small.ground


def test_the_shipped_calibration_is_what_is_measured(ground, template, monkeypatch):
    """``data/build_ground.py`` has to be run again if not. Other processors round otherwise."""
    monkeypatch.setattr(module, "kept", lambda name, of, measure: measure())
    measured = Ground(load_generator(), template, Spectrum(), SPLIT, shipped=False).calibration
    for key, values in ground.calibration.items():
        np.testing.assert_allclose(values, measured[key], rtol=2e-3, atol=1e-5, err_msg=key)

    # Of anything else it is measured.
    def found(*of):
        return module._shipped(load_generator(), *of)

    # To the last bits of another machine.
    assert found(replace(template, alm=template.alm * (1 + 1e-7)), Spectrum(), SPLIT) is not None
    assert found(template, Spectrum(amplitude=2.0), SPLIT) is None
    assert found(template, Spectrum(), (40.0, 80.0)) is None
    assert found(replace(template, alm=template.alm * 1.001), Spectrum(), SPLIT) is None
    assert found(embedded_template(), Spectrum(), SPLIT) is None


def test_crowding_is_a_square_root_law(ground, large_scales):
    median = np.median(large_scales[0, latitude_mask(NSIDE) > 0])
    limit = median + np.log(CROWDED)
    assert ground.crowding(limit) == pytest.approx(np.sqrt(0.5), rel=0.02)
    assert ground.crowding(limit - 9) == pytest.approx(1, abs=1e-3)
    assert ground.crowding(limit + 8) / ground.crowding(limit + 6) == pytest.approx(
        np.exp(-1), rel=0.01
    )


def test_offset_keeps_the_mean_of_the_exponential(ground, rng):
    """To 1 % in places a few degrees wide, of a field whose amplitude varies."""
    size = CELLS << 3
    y, _ = np.indices((size, size)) / size
    t = gaussian_filter(rng.standard_normal((size, size)), 1.0)
    t *= (0.1 + 0.4 * y) / t.std()
    offset = ground.offset(t)
    assert offset.shape == (CELLS << OFFSET_DEPTH,) * 2
    with_offset = np.exp(t + finer(offset, 8 >> OFFSET_DEPTH))
    assert with_offset.mean() == pytest.approx(1, abs=0.003)
    # In squares of nine cells, 17 degrees.
    apart = block_means(with_offset, 72) - 1
    assert np.sqrt(np.mean(apart**2)) < 0.01
    assert np.abs(apart).max() < 0.03
    without = block_means(np.exp(t), 72)
    assert without.max() > 1.1
    np.testing.assert_allclose(ground.offset(np.zeros((size, size))), 0, atol=1e-12)


def test_finer_scales_add_nothing_to_larger_ones(ground, rng):
    """To the exponential's, of scales that are strong where those are; and stay as they are."""
    size = CELLS << 4
    k = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * CELLS * 16
    multipole = 2 * np.pi * k / (CELLS * CELL * 0.958)

    def field(low, high):
        waves = np.fft.rfft2(rng.standard_normal((size, size)))
        found = np.fft.irfft2(waves * ((multipole > low) & (multipole < high)))
        return found / found.std()

    larger = 0.2 * field(100, 480)
    own = 0.1 * field(620, 970)
    t = larger + own * np.exp(larger + 0.5 * field(100, 300))
    fine = np.fft.irfft2(np.fft.rfft2(t - larger) * (multipole > 580))
    t = larger + fine
    without, offset = ground.offset(larger), ground.offset(t, larger)
    large, kept = (finer(each, size // len(each)) for each in (without, offset))

    def power(field, low, high):
        return (np.abs(np.fft.rfft2(field)) ** 2)[(multipole > low) & (multipole < high)].sum()

    wanted = np.exp(larger + large)
    leak = [np.exp(t + each) - wanted for each in (large, kept)]
    for low, high, left in ((0, 150, 0.02), (150, 300, 0.1)):
        assert power(leak[1], low, high) < left * power(leak[0], low, high)
    assert power(kept - large, 580, 1000) < 1e-3 * power(fine, 580, 1000)
    # As much again of what is finer still.
    twice = ground.offset(t, larger, further=2.0)
    np.testing.assert_allclose(twice - offset, offset - ground.offset(larger, larger), atol=1e-6)


def test_mean_power_is_that_of_many_fields(rng):
    """A red field under a window that is not in the middle."""
    size = 64
    k = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    k[0, 0] = np.inf
    power = k**-2.5
    edge = np.hanning(size)
    window = np.outer(edge, edge * np.linspace(0, 2, size))
    found = np.zeros(size // 2)
    for _ in range(400):
        white = np.fft.rfft2(rng.standard_normal((size, size)))
        found += _power(window * np.fft.irfft2(white * np.sqrt(power))) / 400
    ratio = found / _mean_power(window, power)
    np.testing.assert_allclose(ratio[3:], 1, atol=0.06)
    assert ratio.mean() == pytest.approx(1, abs=0.01)


def test_bright_places_saturate():
    t = np.linspace(-5, 20, 1000)
    knee, end = np.log(BRIGHTEST)
    found = bounded(t)
    np.testing.assert_array_equal(found[t < knee], t[t < knee])
    assert (np.diff(found) >= 0).all()
    assert np.diff(found).max() < 1.001 * np.diff(t).max()
    assert end - 1e-6 < found.max() <= end


def test_bounds_hold_on_the_sky(template, large_scales):
    """With five times the amplitude, at any of its pixels; and skies as they are hardly feel it."""
    strong = SmallScales(
        load_generator(), template, seed=0, nside=NSIDE, spectrum=Spectrum(amplitude=5.0)
    )
    fields = strong.draw()
    length = np.hypot(fields[1], fields[2])
    knee, end = strong.ground.most_polarised
    # The template's own largest fraction is 0.20.
    assert knee == pytest.approx(np.arctanh(MOST_POLARISED[0]), rel=0.05)
    assert (length > knee).sum() > 50
    assert knee < length.max() < end * 1.0001
    rise = fields[0] - large_scales[0]
    assert 0.9 < rise.max() < np.log(BRIGHTEST[1]) * np.sqrt(2)


@pytest.mark.parametrize("t", [0.3, 2.5])
def test_pixels_get_what_the_ground_says(ground, t):
    """The compiled loop has the formulas of crowding, modulation and bound once more: the same.

    In a seam, where patterns have gains; but for Q and U of a whole chart, which have had theirs,
    and have nothing to fade where there is so much weight.
    """
    rough, i, q, u = 1.3, ground.crowded - 0.5, 0.05, -0.08
    layer = np.ones((1, CELLS, CELLS))
    mean = -0.1
    large = (layer * np.array([rough, i, q, u])[:, None, None]).astype("f4")
    offset = np.full((2 * CELLS, 2 * CELLS), mean, "f4")
    patterns = (layer * np.array([t, 0.02, 0.03])[:, None, None]).astype("f4")
    # A pixel in a seam of the first chart.
    weights = ground.tiling.window(0, np.array(hp.pix2vec(64, np.arange(20000))).T)
    pixel = np.argmin(np.abs(weights - 0.8))
    vector, weight = np.array([hp.pix2vec(64, pixel)]), weights[pixel]
    fine = (layer * np.array([0.1, -0.01, 0.04])[:, None, None]).astype("f4")
    energy = np.tile(layer, (2, 1, 1)), np.array([[0.5, 1.2, 1.3, 2.0], [-0.3, 0.4, 0.6, 1.5]])
    gains = gains_of(*energy, np.array([weight]), np.zeros((1, 2)))[:, 0]
    assert np.all(np.abs(gains - 1) > 0.02)
    maps = np.zeros((3, 1), "f4")
    _add(
        *(vector, 0, *ground.tiling.geometry),
        *(large, offset, patterns, fine, *energy),
        *(ground.crowded, ground.polarisation, np.array([0]), maps),
    )
    crowding = ground.crowding(i)
    modulation, finer_weight = crowding * ground.modulation(q, u), weight * gains[1]
    want = [
        weight**2 * i
        + weight * bounded(crowding * rough * gains[0] * np.array(steep_gain(weight) * t + 0.1))
        + (weight * crowding) ** 2 * mean,
        weight**2 * q + modulation * (0.02 - finer_weight * 0.01),
        weight**2 * u + modulation * (0.03 + finer_weight * 0.04),
    ]
    cosine, sine = ground.tiling.turns(0, vector)[:, 0]
    want[1:] = [cosine * want[1] - sine * want[2], sine * want[1] + cosine * want[2]]
    np.testing.assert_allclose(maps[:, 0], want, rtol=1e-5)


def test_intensity_alone_gets_no_polarisation(template):
    """A template without Q and U: small scales of I, and none of what it does not have."""
    maps = template.maps(NSIDE)
    maps[1:] = 0
    alone = load_template(maps * u.uK_RJ)
    fields = SmallScales(load_generator(), alone, seed=0, nside=NSIDE).draw()
    large = alone.fields(*hp.pix2ang(NSIDE, np.arange(hp.nside2npix(NSIDE))))
    assert (fields[0] - large[0]).std() > 0.03
    assert np.abs(fields[1:]).max() < 1e-3


def test_no_cloud_is_brighter_than_the_bound(shared_data):
    """Planck's Taurus and Chamaeleon at 5', over themselves at 1.5 degrees."""
    for name, log, beam in (
        ("planck_taurus_lognh", True, 1.72),
        ("planck_chamaeleon", False, 2.35),
    ):
        with fits.open(shared_data / f"{name}.fits") as hdus:
            image = next(hdu.data for hdu in hdus if hdu.data is not None).squeeze().astype(float)
        image = 10**image if log else image
        smooth = gaussian_filter(image, 90 / beam / np.sqrt(8 * np.log(2)))
        ratio = (image / smooth)[60:-60, 60:-60].max()
        assert 6 < ratio < 9 < BRIGHTEST[1]


def test_calibration_is_sane(ground):
    """T drawn for the template lacks what the template has, and hardly anything beyond it."""
    ell = np.array([2.0, 20.0, 110.0, 200.0, 480.0, 5000.0])
    excess = ground.excess(ell)
    assert ((excess > 0.5) & (excess < 5)).all()
    assert (excess[:2] == ground.excess(np.array(EXCESS_ELL))[0]).all()
    assert excess[-1] == excess[-2]
    number = np.arange(1, len(ground._deficit) + 1)
    multipole = 2 * np.pi * number / (CELLS * CELL * 0.958)
    deficit = ground._deficit
    assert (deficit > 0).all()
    assert deficit[multipole < 40].max() < 0.1
    beyond = deficit[multipole > 1.25 * SPLIT[1]]
    # What is drawn for a map differs from the prior by less than two thirds in power.
    assert np.abs(np.log(beyond)).max() < 0.5
    # What is left of chance there would make the filters ring.
    assert np.abs(np.diff(np.log(beyond))).max() < 0.02
    assert ground.levels.shape[0] == 3
    assert (ground.levels >= 0).all()
    assert (ground.levels[:, 3:] > 0).all()
    # E is asked for twice B.
    assert 1.3 < (ground.levels[1] / np.maximum(ground.levels[2], 1e-300))[4:].mean() < 3.5


# Skies


def test_progress_ends_with_all_charts(drawn):
    assert drawn[1] == [(number, 12) for number in range(1, 13)]


def test_the_mean_intensity_stays(drawn, large_scales):
    """In cells of some degrees, small scales neither add nor take intensity."""
    intensity = np.exp(large_scales[0])
    with_small = hp.ud_grade(np.exp(drawn[0][0].astype(float)), 8)
    ratio = with_small / hp.ud_grade(intensity, 8)
    assert ratio.mean() == pytest.approx(1, abs=0.003)
    # Without the offset the mean would be 1 + variance / 2.
    variance = (drawn[0][0] - large_scales[0]).var()
    assert abs(ratio.mean() - 1) < 0.2 * variance / 2
    assert ratio.std() < 0.03


def test_no_seams(template):
    """Where charts meet, patterns vary as much as on either side: two skies, each good to 3 %."""
    nside = 128
    pixels = np.arange(hp.nside2npix(nside))
    angles = hp.pix2ang(nside, pixels)
    large = template.fields(*angles)
    tiling = Tiling()
    nearest = (tiling.weights(nside)[1] ** 2).max(axis=1)
    cosines = np.stack(hp.pix2vec(nside, pixels), axis=1) @ tiling.centres.T
    first, second = np.sort(np.degrees(np.arccos(np.clip(cosines, -1, 1))), axis=1)[:, :2].T
    seam, beside = nearest < 0.8, (nearest == 1) & (second - first < 7)
    assert 0.03 < seam.mean() < beside.mean()
    ratios = []
    for seed in (0, 1):
        small = SmallScales(load_generator(), template, seed=seed, nside=nside)
        patterns = (small.draw() - large) / small.ground.crowding(large[0])
        patterns[0] /= small.ground.large.roughness(*angles)
        ratios.append([np.abs(f[seam]).mean() / np.abs(f[beside]).mean() for f in patterns])
    np.testing.assert_allclose(np.mean(ratios, axis=0), 1, atol=0.05)


def test_t_takes_over_from_the_template_by_the_local_scale(ground):
    """Where lengths on the sky are s times the chart's, a mode k is one of l = 2 pi k / s."""
    shares, gains = (np.array(each) for each in zip(*ground._gains, strict=True))
    place = axis(CELLS)
    scale = 1 / (1 + (place[:, None] ** 2 + place**2) / 4)
    inside = Tiling().window_on(1, CELLS) > 0
    assert scale[inside].min() < 0.9
    np.testing.assert_allclose(shares.sum(axis=0), 1)
    np.testing.assert_allclose(np.tensordot(SCALES, shares, 1)[inside], scale[inside], rtol=1e-6)
    # Along an axis; with the template's, which is given by its own multipole, all power is there.
    ell = 2 * np.pi * np.fft.rfftfreq(CELLS) / CELL
    for each, gain in zip(SCALES, gains, strict=True):
        np.testing.assert_allclose(gain[0] ** 2 + handover(ell / each) ** 2, 1)


def test_no_amplitude_is_no_small_scales(template, large_scales):
    none = SmallScales(
        load_generator(), template, seed=0, nside=NSIDE, spectrum=Spectrum(amplitude=0.0)
    )
    assert not none.ground.levels.any()
    error = none.draw() - large_scales
    assert (error.std(axis=1) < 1e-3 * large_scales.std(axis=1)).all()


@pytest.mark.parametrize("threads", ["1", "5"])
def test_skies_do_not_depend_on_threads(threads, small, drawn, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    np.testing.assert_array_equal(small.draw(), drawn[0])


def test_a_partial_sky_has_the_full_ones_bits(small, drawn):
    """Whole charts, in any order; and pixels of one chart alone."""
    for centre, radius in (((40, 50), 5), ((0, 90), 2), ((18, 0), 3)):
        pixels = hp.query_disc(NSIDE, hp.ang2vec(*centre, lonlat=True), np.radians(radius))[::-1]
        np.testing.assert_array_equal(small.draw(pixels), drawn[0][:, pixels])
    assert small.draw(np.empty(0, np.int64)).shape == (3, 0)


@pytest.fixture(scope="module")
def fine(template):
    return SmallScales(load_generator(), template, seed=0, nside=1024)


@pytest.fixture(scope="module")
def disc(fine):
    """Pixels about a corner where four blocks of chart 1 meet, and the sky there."""
    corner = np.array([18 - CELLS / 2, 27 - CELLS / 2]) * CELL
    tangent = corner[0] * fine.tiling.easts[1] + corner[1] * fine.tiling.norths[1]
    quarter = (corner**2).sum() / 4
    centre = ((1 - quarter) * fine.tiling.centres[1] + tangent) / (1 + quarter)
    pixels = hp.query_disc(1024, centre, np.radians(4))
    return centre, pixels, fine.draw(pixels)


def test_variance_of_patterns(ground):
    """Of a whole chart, from its filter; and blocks add to a chart's what its own grid lacks."""
    plane = Plane(CELLS, 3)
    drawn = ground._spectra(plane.cycles, 3) * ground._deficit_at(plane.cycles)
    power = (ground.filters(plane)["T"] * plane.interpolation) ** 2 * drawn
    # Of a real field's modes half are given, but for those at either end.
    total = 2 * power.sum() - power[:, [0, -1]].sum()
    assert ground.variance(plane.passed) == pytest.approx(total / plane.size**2, rel=0.01)
    chart, block = Plane(CELLS, 4), Plane(6, 5, part="small")
    together = ground.variance(lambda ell: chart.passed(ell) * large_share(ell) + block.passed(ell))
    assert together == pytest.approx(ground.variance(Plane(6, 5).passed), rel=1e-3)
    assert together - ground.variance(chart.passed) > 0.03 * together


def test_blocks_of_a_fine_grid_keep_the_mean_intensity(template, disc):
    """Of strong patterns. Without what is done about it three skies are too bright by 0.9 %."""
    centre, *_ = disc
    means = []
    for nside in (256, 1024):
        pixels = hp.query_disc(nside, centre, np.radians(6))
        large = template.fields(*hp.pix2ang(nside, pixels))[0]
        skies = [
            SmallScales(
                load_generator(), template, seed=seed, nside=nside, spectrum=Spectrum(amplitude=3.0)
            )
            for seed in range(3)
        ]
        means.append(np.mean([np.exp(sky.draw(pixels)[0] - large).mean() for sky in skies]))
    assert means[1] / means[0] == pytest.approx(1, abs=0.005)


def test_blocks_of_a_fine_grid_have_the_same_bits(fine, disc):
    """Whichever of them are drawn."""
    assert fine.depth == 5
    _, pixels, fields = disc
    view = fine.tiling.locate(1, 1024, pixels)
    assert len(view.where) == len(pixels)
    x, y = (view.places / CELL + CELLS / 2).T
    for part in ((x < 17.5) & (y < 26.5), (x > 18.5) & (y < 26.5)):
        assert part.sum() > 1000
        np.testing.assert_array_equal(fine.draw(pixels[part]), fields[:, part])


def test_blocks_of_a_fine_grid_have_no_seams(fine, disc):
    """Steps across the blocks' edges are as large as elsewhere."""
    _, pixels, fields = disc
    places = fine.tiling.locate(1, 1024, pixels).places / CELL + CELLS / 2
    index = np.full(hp.nside2npix(1024), -1)
    index[pixels] = np.arange(len(pixels))
    for direction in (0, 2):
        near = index[hp.get_all_neighbours(1024, pixels)[direction]]
        both = near >= 0
        steps = np.abs(fields[:, near] - fields)[:, both]
        here, there = places[both] - (18, 27), places[near[both]] - (18, 27)
        across = ((here < 0) != (there < 0)).any(axis=1)
        beside = (np.abs(here) < 0.3).any(axis=1) & ~across
        assert across.sum() > 150
        ratio = steps[:, across].mean(axis=1) / steps[:, beside].mean(axis=1)
        np.testing.assert_allclose(ratio, 1, atol=0.25)


def test_the_same_sky_at_another_nside(template, disc):
    """Whole charts at nside 256, blocks at 1024: smoothed to 1 degree they are one sky."""
    centre, pixels, fields = disc
    coarse = SmallScales(load_generator(), template, seed=0, nside=256)
    there = hp.query_disc(256, centre, np.radians(4))
    smoothed, large = [], []
    points = hp.query_disc(64, centre, np.radians(2))
    for nside, where, values in ((1024, pixels, fields), (256, there, coarse.draw(there))):
        vectors = np.stack(hp.pix2vec(nside, where), axis=1)
        around = np.stack(hp.pix2vec(64, points), axis=1)
        weights = np.exp((around @ vectors.T - 1) / (np.radians(1) / np.sqrt(8 * np.log(2))) ** 2)
        weights /= weights.sum(axis=1, keepdims=True)
        smoothed.append(weights @ values.T)
        large.append(weights @ template.fields(*hp.pix2ang(nside, where)).T)
    patterns = smoothed[0] - large[0]
    assert (patterns.std(axis=0) > 1e-3).all()
    difference = smoothed[1] - smoothed[0]
    assert (difference.std(axis=0) < 0.03 * patterns.std(axis=0)).all()
