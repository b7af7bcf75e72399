"""The scores of benchmarks/inverse.py, against closed forms for a Gaussian."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    inverse = importlib.import_module("inverse")


@pytest.fixture
def samples(rng) -> np.ndarray:
    return rng.standard_normal((4000, 6, 6))


def test_scores(samples):
    truth = np.full((6, 6), 0.7)
    assert inverse.log_score(truth, samples) == pytest.approx(norm.logpdf(0.7), abs=0.01)
    # Gneiting & Raftery 2007, eq. 21.
    expected = 0.7 * (2 * norm.cdf(0.7) - 1) + 2 * norm.pdf(0.7) - 1 / np.sqrt(np.pi)
    assert inverse.crps(truth, samples) == pytest.approx(expected, abs=0.01)


def test_coverage(samples, rng):
    mask = np.zeros((6, 6), bool)
    mask[:3] = True
    truths = rng.standard_normal((300, 6, 6))
    # Hidden pixels lie twice as far out as they should.
    truths[:, ~mask] *= 2
    found = [inverse.covered(truth, samples, mask) for truth in truths]
    assert np.mean([f["0.68"]["seen"] for f in found]) == pytest.approx(0.68, abs=0.03)
    assert np.mean([f["0.95"]["seen"] for f in found]) == pytest.approx(0.95, abs=0.02)
    hidden = 2 * norm.cdf(norm.ppf(0.84) / 2) - 1
    assert np.mean([f["0.68"]["hidden"] for f in found]) == pytest.approx(hidden, abs=0.03)


def test_masks_hide_something():
    for mask in inverse.some_masks(32).values():
        assert 0.4 < mask.mean() < 0.95


def test_textures_are_those_of_the_hidden_part(rng):
    hidden = np.zeros((64, 64), bool)
    hidden[16:48, 16:48] = True
    wave = np.broadcast_to(np.sin(2 * np.pi * np.arange(64) / 6), (64, 64))
    # Noise outside must not count; a wave of six pixels is of the second octave.
    patches = np.stack([wave, 3 * wave + np.where(hidden, 0, 0.1 * rng.standard_normal((64, 64)))])
    power, kurtosis = inverse.textures(patches, hidden).swapaxes(0, 1)
    assert power[0, 1] == pytest.approx(np.log(0.5), abs=0.1)
    assert power[1, 1] - power[0, 1] == pytest.approx(2 * np.log(3), abs=0.01)
    assert power[0, 0] < power[0, 1] - 1
    # A sine's.
    assert kurtosis[:, 1] == pytest.approx(-1.5, abs=0.05)


def test_posteriors_are_calibrated():
    """One small patch of the model's own; `benchmarks/inverse.py` takes a hundred."""
    pytest.importorskip("tensorflow_probability")
    found = inverse.judged(0, "default", 32, 1, draws=120, warmup=60, seed=1)
    # Quantiles of n independent draws hold (n - 1) / (n + 1) of what they should; these draws of
    # seen pixels are worth some sixty.
    short = 59 / 61
    for level, seen, hidden in ((0.68, 0.05, 0.25), (0.95, 0.03, 0.12)):
        held = found.coverage[f"{level:g}"]
        assert held["seen"] == pytest.approx(short * level, abs=seen)
        assert held["hidden"] == pytest.approx(short * level, abs=hidden)
    # The mean of so many ranks, uniform from 0 to 99, scatters by 14.
    assert np.mean(found.ranks["seen"]) == pytest.approx(49.5, abs=30)
