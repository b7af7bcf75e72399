"""The classifier: it must tell apart what differs, and not what does not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import trapezoid

from pysm_vae.stats import twosample
from pysm_vae.stats.twosample import TwoSample, both_ways, halves, roc, two_sample_auc
from pysm_vae.vae.patches import PatchSet

SIZE = 32
STEPS = 60


def red(rng: np.random.Generator, n: int, slope: float = 3.0) -> np.ndarray:
    """Gaussian patches of a power-law spectrum, cut from larger periodic fields."""
    k = np.hypot(np.fft.fftfreq(2 * SIZE)[:, None], np.fft.rfftfreq(2 * SIZE)[None, :])
    k[0, 0] = np.inf
    noise = np.fft.rfft2(rng.standard_normal((n, 2 * SIZE, 2 * SIZE)))
    return np.fft.irfft2(noise * k ** (-slope / 2))[:, :SIZE, :SIZE]


def test_other_spectrum_is_told_apart(rng):
    result = two_sample_auc(
        red(rng, 40), red(rng, 20, 3.8), red(rng, 60), red(rng, 50, 3.8), steps=STEPS
    )
    assert result.auc > 0.95
    assert result.patches == (60, 50)


def test_same_spectrum_is_not(rng):
    result = two_sample_auc(red(rng, 40), red(rng, 20), red(rng, 100), red(rng, 100), steps=STEPS)
    assert abs(result.auc - 0.5) < 4 * result.error
    # An AUC of one half has a known variance: (n + m + 1) / (12 n m).
    assert result.error == pytest.approx(np.sqrt(201 / 12e4), rel=0.05)


def test_structure_that_spectra_do_not_show(rng):
    """The same spectrum with other phases: lines instead of noise."""
    lines = np.cumsum((rng.random((140, SIZE, SIZE)) < 0.02).astype(float), axis=1)
    modes = np.fft.rfft2(lines - lines.mean(axis=(1, 2), keepdims=True))
    phases = np.fft.rfft2(rng.standard_normal(lines.shape))
    noise = np.fft.irfft2(np.abs(modes) * phases / np.abs(phases))
    result = two_sample_auc(lines[:60], noise[:60], lines[60:], noise[60:], steps=STEPS)
    assert result.auc > 0.9


def test_seeded_without_global_state(rng):
    sets = [red(rng, 8) for _ in range(4)]
    first = two_sample_auc(*sets, seed=5, steps=4)
    np.random.default_rng(0)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    again = two_sample_auc(*sets, seed=5, steps=4)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    np.testing.assert_allclose(first.true_positives, again.true_positives)
    assert first.auc == again.auc
    other = two_sample_auc(*sets, seed=6, steps=4)
    assert first.auc != other.auc


def test_roc_by_hand():
    result = roc(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0]))
    # Pairs won: 1 of 3 and a tie, then 3 of 3.
    assert result.auc == pytest.approx((1.5 + 3) / 6)
    np.testing.assert_allclose(result.false_positives, [0, 0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(result.true_positives, [0, 0.5, 0.5, 1, 1])
    area = trapezoid(result.true_positives, result.false_positives)
    assert result.auc == pytest.approx(area)
    assert roc(np.zeros(3), np.ones(4)).error == 0
    with pytest.raises(ValueError, match="at least one patch"):
        roc(np.zeros(0), np.ones(2))


def patch_set(lon: np.ndarray, lat: np.ndarray) -> PatchSet:
    n = len(lon)
    return PatchSet(
        patches=np.zeros((n, 4, 4), np.float32),
        mean=np.zeros(n),
        scale=np.ones(n),
        lon=lon,
        lat=lat,
        angle=np.zeros(n),
        pixel_size=np.ones(n),
        source=np.full(n, "sky"),
        region=np.full(n, "sky:0"),
    )


@pytest.mark.parametrize("flip", [False, True])
def test_halves_share_no_sky(flip):
    """A strip 13 by 5 degrees of patches of 4, whichever way it lies."""
    x, y = (a.ravel() for a in np.meshgrid(np.arange(-6.5, 7), np.arange(-2.0, 3)))
    lon, lat = (y, x) if flip else (x, y)
    first, second = halves(patch_set(lon % 360, lat), 4.0)
    apart = [np.abs(c[first][:, None] - c[second]) for c in (lon, lat)]
    assert (np.maximum(*apart) >= 4).all()
    # Nothing but the middle 4 degrees of centres goes, from both sides.
    assert 50 <= len(first) + len(second) <= 52
    assert abs(len(first) - len(second)) <= 1
    assert min(map(len, halves(patch_set(lon % 360, lat), 20.0))) == 0


def test_halves_that_touch_nowhere_keep_all():
    lon = np.array([350.0, 355.0, 5.0, 10.0])
    first, second = halves(patch_set(lon, np.zeros(4)), 4.9)
    assert sorted([*first, *second]) == [0, 1, 2, 3]
    assert {*first} in ({0, 1}, {2, 3})


def test_both_ways_scores_all(rng):
    one, other = (red(rng, 8), red(rng, 10)), (red(rng, 6, 5.0), red(rng, 7, 5.0))
    result = both_ways(one, other, steps=20)
    assert result.patches == (18, 13)
    assert 0.8 < result.auc <= 1
    # The mean curve has the mean area.
    area = trapezoid(result.true_positives, result.false_positives)
    assert area == pytest.approx(result.auc, abs=0.02)
    assert result.true_positives[-1] == 1
    assert TwoSample(**vars(result)).to_json()["patches"] == [18, 13]


def test_more_patches_of_the_first_kind_only_train(rng, monkeypatch):
    """Other sky has the weight of the first set's own patches, and is not scored."""
    one, other, more = (red(rng, 2), red(rng, 3)), (red(rng, 4), red(rng, 5)), red(rng, 7)
    seen = []

    def look(*sets, seed, steps):
        seen.append(sets)
        return roc(np.zeros(2), np.ones(2))

    monkeypatch.setattr(twosample, "two_sample_auc", look)
    both_ways(one, other, like_one=more)
    for i, (learned, *rest) in enumerate(seen):
        own = learned[:-7]
        assert len(own) in (6, 8)
        np.testing.assert_array_equal(own, np.tile(one[i], (len(own) // len(one[i]), 1, 1)))
        np.testing.assert_array_equal(learned[-7:], more)
        for found, expected in zip(rest, (other[i], one[1 - i], other[1 - i]), strict=True):
            assert found is expected


@pytest.mark.parametrize(
    ("shapes", "steps", "message"),
    [
        (((2, 16, 16), (2, 16, 16), (2, 16, 16), (2, 32, 32)), 1, r"\[16, 32\] pixels"),
        (((2, 16, 16),) * 4, 0, "at least one step"),
        (((2, 16),) * 4, 1, "shape"),
    ],
)
def test_bad_input(rng, shapes, steps, message):
    with pytest.raises(ValueError, match=message):
        two_sample_auc(*(rng.standard_normal(s) for s in shapes), steps=steps)
