"""Gaussian controls of whole skies: what they share with the skies, and what they do not."""

from __future__ import annotations

import healpy as hp
import numpy as np
import pytest

from pysm_vae.sky.templates import from_log_pol_tens, to_log_pol_tens
from pysm_vae.stats.skies import GaussianSkies

NSIDE = 32
LMAX = 2 * NSIDE
NPIX = hp.nside2npix(NSIDE)
# Strong in one direction, weak in the opposite one.
MODULATION = 1.0 + 0.7 * hp.pix2vec(NSIDE, np.arange(NPIX))[0]


def large_scales() -> np.ndarray:
    """A smooth sky with I > P."""
    x, y, z = hp.pix2vec(NSIDE, np.arange(NPIX))
    return np.stack([10.0 + 2.0 * z, 0.4 * x, 0.4 * y])


def made_up_sky(rng: np.random.Generator) -> np.ndarray:
    """Modulated, intermittent small scales of T, E and B, T and E correlated."""
    ell = np.arange(LMAX + 1)
    high = np.where(ell > 12, 1.0 / np.maximum(ell, 1) ** 1.3, 0.0)
    waves = rng.standard_normal((3, 2, hp.Alm.getsize(LMAX)))
    t, e, b = (hp.almxfl(real + 1j * imaginary, high) for real, imaginary in waves)
    fields = np.array(hp.alm2map([t, 0.5 * t + 0.5 * e, 0.4 * b], NSIDE))
    fields = fields / fields.std(axis=1, keepdims=True) * [[0.06], [0.01], [0.008]]
    # Bursts, a lognormal factor: what gives them kurtosis.
    burst = np.exp(1.2 * hp.alm2map(hp.almxfl(waves[0, 0] + 0j, 3.0 * high), NSIDE))
    ground = to_log_pol_tens(large_scales())
    return from_log_pol_tens(ground + MODULATION * burst * fields)


@pytest.fixture(scope="module")
def skies() -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(3))
    return np.array([made_up_sky(rng) for _ in range(4)])


def power(maps: np.ndarray, large: np.ndarray) -> np.ndarray:
    """Mean TT, EE, BB, TE of small scales between l = 16 and 56, in four bands."""
    cl = np.mean([hp.anafast(each - large, lmax=LMAX, iter=1)[:4] for each in maps], axis=0)
    return np.array([cl[:, low : low + 10].mean(axis=1) for low in (16, 26, 36, 46)])


def excess_kurtosis(maps: np.ndarray, large: np.ndarray, modulation: np.ndarray) -> float:
    """Of the logarithm of the intensity's small scales, over their modulation."""
    values = np.log(maps[:, 0] / large[0]) / modulation
    return float(np.mean(values**4) / np.mean(values**2) ** 2 - 3)


@pytest.mark.parametrize("modulated", [True, False])
def test_spectra_are_those_of_the_skies(skies: np.ndarray, modulated: bool) -> None:
    large = large_scales()
    rng = np.random.Generator(np.random.Philox(4))
    control = GaussianSkies(skies, large, rng, modulated=modulated, fwhm=20.0)
    drawn = np.array([control.draw(rng) for _ in range(8)])
    wanted, found = power(skies, large), power(drawn, large)
    np.testing.assert_allclose(found[:, :3], wanted[:, :3], rtol=0.2)
    np.testing.assert_allclose(found[:, :3].mean(0), wanted[:, :3].mean(0), rtol=0.1)
    te = [each[:, 3] / np.sqrt(each[:, 0] * each[:, 1]) for each in (wanted, found)]
    np.testing.assert_allclose(te[1], te[0], atol=0.1)
    assert np.all(te[0] > 0.1)


def test_small_scales_are_strong_where_the_skies_are_and_gaussian(skies: np.ndarray) -> None:
    large = large_scales()
    rng = np.random.Generator(np.random.Philox(5))
    assert excess_kurtosis(skies, large, MODULATION) > 1.0
    for modulated in (True, False):
        control = GaussianSkies(skies, large, rng, modulated=modulated, fwhm=20.0)
        drawn = np.array([control.draw(rng) for _ in range(4)])
        square = ((drawn - large)[:, 0] / large[0]) ** 2
        bright, faint = (MODULATION > 1.5), (MODULATION < 0.5)
        ratio = np.sqrt(square[:, bright].mean() / square[:, faint].mean())
        if modulated:
            expected = np.sqrt(np.mean(MODULATION[bright] ** 2) / np.mean(MODULATION[faint] ** 2))
            assert ratio == pytest.approx(expected, rel=0.2)
            assert abs(excess_kurtosis(drawn, large, control.modulation[0])) < 0.3
            assert np.all(drawn[:, 0] > np.hypot(drawn[:, 1], drawn[:, 2]))
        else:
            # I is alike everywhere, so that I over its large scales varies by theirs alone.
            assert ratio == pytest.approx(1.0, abs=0.1)


def test_a_stream_is_a_sky(skies: np.ndarray) -> None:
    large = large_scales()
    one, other = (
        GaussianSkies(skies[:1], large, np.random.Generator(np.random.Philox(6))) for _ in range(2)
    )
    draws = [each.draw(np.random.Generator(np.random.Philox(7))) for each in (one, other)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], one.draw(np.random.Generator(np.random.Philox(8))))


def test_what_does_not_fit_is_named(skies: np.ndarray, rng: np.random.Generator) -> None:
    large = large_scales()
    with pytest.raises(ValueError, match="large has shape"):
        GaussianSkies(skies, large[0], rng)
    with pytest.raises(ValueError, match="do not fit"):
        GaussianSkies(skies[0], large, rng)
    with pytest.raises(ValueError, match="finite"):
        GaussianSkies(skies * np.nan, large, rng)
    with pytest.raises(ValueError, match="mask"):
        GaussianSkies(skies, large, rng, mask=np.zeros(NPIX))
