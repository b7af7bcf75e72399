"""The spectra that small scales are asked for, and the patterns that give them."""

from __future__ import annotations

import healpy as hp
import numpy as np
import pytest

from pysm_vae.sky.calibration import (
    CALIBRATION_NSIDE,
    NODES,
    PIVOT,
    Calibrator,
    Spectrum,
    latitude_mask,
    pattern_power,
)
from pysm_vae.sky.templates import SPLIT, handover

NPIX = hp.nside2npix(CALIBRATION_NSIDE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slopes": (-0.8, -0.4)}, "slopes"),
        ({"slopes": (-0.8, -0.4, np.nan)}, "slopes"),
        ({"ee_to_bb": 0.0}, "ee_to_bb"),
        ({"te_ratio": 1.2}, "te_ratio"),
        ({"te_slope": 5.0}, "te_slope"),
        ({"amplitude": -1.0}, "amplitude"),
    ],
)
def test_spectrum_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Spectrum(**arguments)


def test_mask_is_empty_at_low_latitude():
    mask = latitude_mask(32)
    b = np.abs(90 - np.degrees(hp.pix2ang(32, np.arange(len(mask)))[0]))
    assert mask[b < 30].max() == 0
    assert mask[b > 40.1].min() == 1
    assert mask.mean() == pytest.approx(np.mean(np.cos(np.radians(90 - b)) > 0.57), abs=0.02)


def test_te_has_its_slope():
    """The correlation is what makes C^TE a power law of its own, as far as it can."""
    spectrum = Spectrum(slopes=(-0.8, -0.4, -0.5), te_ratio=0.3, te_slope=-0.5)
    ell = np.array([40.0, 80.0, 800.0])
    correlation = spectrum.te_correlation(ell)
    te = correlation * (ell / PIVOT) ** (-0.8 / 2) * (ell / PIVOT) ** (-0.4 / 2)
    np.testing.assert_allclose(te, 0.3 * (ell / PIVOT) ** -0.5)
    assert Spectrum(te_slope=2.0).te_correlation(np.array([1e4]))[0] == 1


def test_pattern_power_is_a_power_law_between_nodes():
    ell = np.array([50.0, 80.0, 400.0, 1000.0])
    power = pattern_power(ell, np.full(len(NODES), 3.0), -0.5)
    np.testing.assert_allclose(power, [0.0, 3.0, *(3 * (ell[2:] / PIVOT) ** -0.5)])


@pytest.fixture(scope="module")
def calibrators():
    """Calibrators of a uniform sky with faint Gaussian fluctuations of a known spectrum."""
    rng = np.random.default_rng(5)
    lmax = 128
    ell = np.maximum(np.arange(lmax + 1), 1)
    slopes = Spectrum().slopes
    d_80 = np.array([1e-3, 4e-5, 2e-5])
    alm = []
    for level, slope in zip(d_80, slopes, strict=True):
        cl = 2 * np.pi * level * (ell / PIVOT) ** slope / (ell * (ell + 1.0))
        white = rng.standard_normal((2, hp.Alm.getsize(lmax)))
        filtered = np.sqrt(cl) * handover(ell)
        alm.append(hp.almxfl((white[0] + 1j * white[1]) / np.sqrt(2), filtered))
    maps = np.array(hp.alm2map(np.array(alm), CALIBRATION_NSIDE, pol=True))
    maps[0] += 1.0
    ones = np.ones(NPIX)
    return {
        factor: Calibrator(maps, Spectrum(amplitude=factor), SPLIT, ones, ones, ones)
        for factor in (1.0, 2.0)
    }, d_80


def test_levels_continue_the_template(calibrators):
    """Well above the split, where windows no longer matter, the patterns have the law itself."""
    calibrator, d_80 = calibrators[0][1.0], calibrators[1]
    levels = calibrator.temperature()
    e, b = calibrator.polarisation(levels, np.ones_like)
    for level, want in zip((levels, e, b), d_80, strict=True):
        assert (level >= 0).all()
        assert level[0] == 0
        assert level[-2:].mean() == pytest.approx(want, rel=0.15)


def test_amplitude_scales_the_power(calibrators):
    single, double = (calibrators[0][factor].temperature() for factor in (1.0, 2.0))
    np.testing.assert_allclose(double, 4 * single, rtol=1e-6)
