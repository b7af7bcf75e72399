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
