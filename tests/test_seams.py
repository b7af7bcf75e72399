"""What blending takes from the intermittency of patterns, and that it is given back."""

from __future__ import annotations

import os

import numpy as np
import pytest
import scipy.ndimage

from pysm_vae.sky import _forget_stale_code
from pysm_vae.sky.calibration import Spectrum
from pysm_vae.sky.seams import blended, gains_of, local_energy, steep_gain
from pysm_vae.sky.templates import SPLIT, handover
from pysm_vae.sky.tiling import CELL, CELLS, OVERLAP, Tiling, View, axis, smooth_step

SIZE = CELLS << 3
GROUPS = (slice(0, 1), slice(1, 3))


def intermittent(rng: np.random.Generator, scatter: float) -> np.ndarray:
    """Three Gaussian fields; the first has an energy of its own, the others share one."""
    fields = scipy.ndimage.gaussian_filter(rng.standard_normal((3, SIZE, SIZE)), (0, 2, 2))
    for group in GROUPS:
        logs = scipy.ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)), 6)
        fields[group] *= np.exp(0.5 * scatter * logs / logs.std())
    return (fields / fields.std(axis=(1, 2), keepdims=True)).astype(np.float32)


def kurtosis(values: np.ndarray) -> np.ndarray:
    """Excess kurtosis of each row."""
    return np.mean(values**4, axis=1) / np.mean(values**2, axis=1) ** 2 - 3


def sums(rng: np.random.Generator, scatter: float, places: np.ndarray) -> list[np.ndarray]:
    """Of two charts: the first's values, and the sums of both as they are and with the gains."""
    half = np.full(len(places), np.sqrt(0.5))
    view = View(np.arange(len(places)), half, places, np.tile([1.0, 0.0], (len(places), 1)))
    plain = np.zeros((3, len(places)))
    regained = np.zeros((3, len(places)))
    for _ in range(2):
        fields = intermittent(rng, scatter)
        (values,) = Tiling().evaluate(view, [fields])
        gains = gains_of(*local_energy(fields, GROUPS), half, places)
        plain += values * half
        regained += values * half * gains[[0, 1, 1]]
    return [values, plain, regained]


def test_a_sum_of_charts_is_as_intermittent_as_each(rng):
    """Where charts have the same weight: half of the kurtosis without, about all of it with."""
    places = rng.uniform(-0.35 * CELLS * CELL, 0.35 * CELLS * CELL, (40000, 2))
    found = [sums(rng, 0.8, places) for _ in range(6)]
    one, plain, regained = np.mean([[kurtosis(v) for v in draw] for draw in found], axis=0)
    assert one.min() > 1
    np.testing.assert_allclose(plain / one, 0.5, atol=0.12)
    np.testing.assert_allclose(regained / one, 0.9, atol=0.2)
    _, plain, regained = np.mean([[np.var(v, axis=1) for v in draw] for draw in found], axis=0)
    np.testing.assert_allclose(regained, plain, rtol=0.06)


@pytest.mark.parametrize("low", [100, 150, 200, 300])
def test_steep_patterns_vary_between_charts_as_inside(low):
    """Above any multipole, of T's power law; without the factor windows have moved 2 % more there.

    The mean over all random fields, of two charts that meet along a line.
    """
    pixel = CELL * CELLS / SIZE
    x = axis(SIZE)
    left, right = (
        1 - smooth_step.py_func(np.clip(s * 2 * x / np.radians(OVERLAP), 0, 1)) for s in (1, -1)
    )
    weights = np.array([left, right]) / np.hypot(left, right)
    kx, ky = 2 * np.pi / pixel * np.fft.fftfreq(SIZE), 2 * np.pi / pixel * np.fft.rfftfreq(SIZE)
    ell = np.maximum(np.hypot(kx, ky[:, None]), 1)
    power = (1 - handover(ell, *SPLIT) ** 2) * ell ** (Spectrum().slopes[0] - 2)
    high_pass = np.clip((ell - 0.9 * low) / (0.2 * low), 0, 1)
    waves = np.exp(1j * np.outer(kx, x))
    share = (weights**2).max(axis=0)
    ratios = []
    for windows in (weights, weights * steep_gain(weights)):
        variance = np.zeros(SIZE)
        for window in windows:
            spread = np.fft.fft(window * waves)
            for row, passed in zip(power, high_pass, strict=True):
                variance += row @ np.abs(np.fft.ifft(spread * passed)) ** 2
        ratios.append(
            variance[share < 0.75].mean() / variance[(share > 0.99) & (abs(x) < 0.4)].mean()
        )
    assert ratios[0] == pytest.approx(1.022, abs=0.01)
    assert ratios[1] == pytest.approx(1, abs=0.01)


def test_gains_leave_the_variance_of_any_field(rng):
    """Of a chart with few bright spots, too, which no log-normal energy describes."""
    fields = intermittent(rng, 0.3)
    y, x = np.indices((SIZE, SIZE)) / SIZE
    fields *= 1 + 6 * np.exp(-((x - 0.4) ** 2 + (y - 0.6) ** 2) / (2 * 0.03**2))
    places = rng.uniform(-0.35 * CELLS * CELL, 0.35 * CELLS * CELL, (100000, 2))
    half = np.full(len(places), np.sqrt(0.5))
    gains = gains_of(*local_energy(fields, GROUPS), half, places)[[0, 1, 1]]
    view = View(np.arange(len(places)), half, places, np.tile([1.0, 0.0], (len(places), 1)))
    (values,) = Tiling().evaluate(view, [fields])
    # The bright spots have the largest, 1.1 over the weight.
    assert gains.max() == pytest.approx(1.1 * np.sqrt(2))
    before, after = (np.mean(each**2, axis=1) for each in (values, gains * values))
    np.testing.assert_allclose(after, before, rtol=0.1)


def test_blended_fields_have_weights_and_gains(rng):
    """On a chart's grid, and nothing where it has no weight."""
    fields = intermittent(rng, 1.0)[1:]
    energy = local_energy(fields, (slice(0, 1), slice(1, 2)))
    window = Tiling().window_on(3, SIZE)
    found = blended(fields, energy, window, window)
    assert np.all(found[:, window == 0] == 0)
    np.testing.assert_array_equal(found[:, window == 1], fields[:, window == 1])
    rows, columns = np.nonzero((window > 0.3) & (window < 0.9))
    places = np.stack([axis(SIZE)[columns], axis(SIZE)[rows]], axis=1)
    weights = window[rows, columns].astype(float)
    want = fields[:, rows, columns] * weights * gains_of(*energy, weights, places)
    np.testing.assert_allclose(found[:, rows, columns], want, rtol=1e-5)


def test_gaussian_fields_stay_as_they_are(rng):
    fields = intermittent(rng, 0.0)
    places = rng.uniform(-0.5, 0.5, (500, 2))
    gains = gains_of(*local_energy(fields, GROUPS), np.full(500, np.sqrt(0.5)), places)
    assert np.abs(gains - 1).max() < 0.02


def test_only_seams_are_touched(rng):
    energy = local_energy(intermittent(rng, 1.0), GROUPS)
    places = rng.uniform(-0.5, 0.5, (500, 2))
    assert np.all(gains_of(*energy, np.ones(500), places) == 1)
    nearly = gains_of(*energy, np.full(500, np.sqrt(0.999)), places)
    np.testing.assert_allclose(nearly, 1, atol=0.01)


def test_finer_grids_have_the_same_energies(rng):
    """With patterns on scales that only they hold, as strong as all others."""
    coarse = intermittent(rng, 1.0)
    fine = scipy.ndimage.zoom(coarse, (1, 2, 2), order=1, grid_mode=True, mode="grid-constant")
    checks = (-1.0) ** np.add.outer(np.arange(2 * SIZE), np.arange(2 * SIZE))
    first, second = (local_energy(fields, GROUPS) for fields in (coarse, fine + checks))
    inside = (slice(None), *2 * (slice(20, -20),))
    ratio = second.splines[inside] / first.splines[inside]
    # Without the patterns of its own, the same: what is left is the interpolation's.
    assert ratio.mean() == pytest.approx(1, abs=0.15)
    assert ratio.std() < 0.1


def test_fields_of_nothing_do_not_count(rng):
    """Of a group: E has its gains where there is no B."""
    fields = intermittent(rng, 1.0)
    fields[2] = 0
    together, alone = (local_energy(fields, [group]) for group in (GROUPS[1], slice(1, 2)))
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one, other)


def test_large_scales_do_not_count(rng):
    """A Gaussian wave of many degrees, as strong as they are, leaves fields as intermittent."""
    fields = intermittent(rng, 0.8)
    waves = scipy.ndimage.gaussian_filter(rng.standard_normal((3, SIZE, SIZE)), (0, 40, 40))
    both = fields + (waves / waves.std()).astype(np.float32)
    inside = (slice(None), *2 * (slice(SIZE // 8, -SIZE // 8),))
    counted, alone = (kurtosis(each[inside].reshape(3, -1)) for each in (both, fields))
    assert np.all(counted < 0.7 * alone)
    found, expected = (local_energy(each, GROUPS).numbers for each in (both, fields))
    np.testing.assert_allclose(found, expected, rtol=0.1)


@pytest.mark.parametrize("depth", [3, 4])
def test_nothing_has_gains(depth):
    """Patterns of no amplitude, as of polarisation if there is none."""
    nothing = np.zeros((3, CELLS << depth, CELLS << depth), np.float32)
    places = np.zeros((1, 2))
    assert np.all(gains_of(*local_energy(nothing, GROUPS), np.array([0.7]), places) == 1)


def test_compiled_code_is_not_older_than_what_it_calls(tmp_path):
    """After an edit of one source, what was compiled before is gone, of any source."""
    cache = tmp_path / "__pycache__"
    cache.mkdir()
    for number, name in enumerate(["caller.py", "__pycache__/old.nbi", "callee.py", "new.nbi"]):
        path = cache / name if name == "new.nbi" else tmp_path / name
        path.touch()
        os.utime(path, (number, number))
    _forget_stale_code(tmp_path)
    assert [path.name for path in cache.iterdir()] == ["new.nbi"]
