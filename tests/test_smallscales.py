"""Small scales by themselves: what the sky's other tests cannot see."""

from __future__ import annotations

import healpy as hp
import numpy as np
import pytest

from pysm_vae.sky.calibration import Spectrum, latitude_mask
from pysm_vae.sky.smallscales import CROWDED, ROUGHNESS_RANGE, SmallScales
from pysm_vae.sky.templates import load_template
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
def drawn(small, large_scales):
    told = []
    fields = small.fields(large_scales, progress=lambda *state: told.append(state))
    return fields, told


def test_progress_ends_with_all_tiles(drawn):
    done, total = np.array(drawn[1]).T
    assert (np.diff(done) >= 0).all()
    assert (total == 768).all()
    assert done[-1] == 768


def test_crowding_is_a_square_root_law(small, large_scales):
    median = np.median(large_scales[0, latitude_mask(NSIDE) > 0])
    limit = median + np.log(CROWDED)
    assert small.crowding(limit) == pytest.approx(np.sqrt(0.5), rel=0.02)
    assert small.crowding(limit - 9) == pytest.approx(1, abs=1e-3)
    assert small.crowding(limit + 8) / small.crowding(limit + 6) == pytest.approx(
        np.exp(-1), rel=0.01
    )


def test_roughness_is_held_in_range(small):
    assert small.roughness.min() >= ROUGHNESS_RANGE[0]
    assert small.roughness.max() <= ROUGHNESS_RANGE[1]
    assert np.median(small.roughness) == pytest.approx(1)


def test_the_mean_intensity_stays(drawn, large_scales):
    """In cells as large as a tile, small scales neither add nor take intensity."""
    intensity = np.exp(large_scales[0])
    with_small = hp.ud_grade(intensity * np.exp(drawn[0][0]), 8)
    ratio = with_small / hp.ud_grade(intensity, 8)
    assert ratio.mean() == pytest.approx(1, abs=0.003)
    # Without the tiles' offsets the mean would be 1 + variance / 2.
    assert abs(ratio.mean() - 1) < 0.2 * drawn[0][0].var() / 2
    assert ratio.std() < 0.03


def test_no_seams(small, large_scales, monkeypatch):
    """Where two tiles meet, the patterns vary as much as inside: four skies, each good to 3 %."""
    # Above the brightest sky's crowding the patterns are what they are everywhere.
    faint = large_scales.copy()
    faint[0] -= 20
    tiles, weights = small.tiling.weights(NSIDE, np.arange(hp.nside2npix(NSIDE)))
    rough = np.sqrt((weights**2 * small.roughness[tiles] ** 2).sum(axis=1))
    nearest = (weights**2).max(axis=1)
    inside, seam = nearest > 0.99, nearest < 0.75
    ratios = []
    for seed in range(4):
        monkeypatch.setattr(small, "seed", seed)
        t, q, u = small.fields(faint)
        ratios.append([f[seam].var() / f[inside].var() for f in (t / rough, q, u)])
    np.testing.assert_allclose(np.mean(ratios, axis=0), 1, atol=0.04)


def test_no_amplitude_is_no_small_scales(template, large_scales):
    none = SmallScales(
        load_generator(), template, seed=0, nside=NSIDE, spectrum=Spectrum(amplitude=0.0)
    )
    pixels = hp.query_disc(NSIDE, hp.ang2vec(40, 50, lonlat=True), np.radians(3))
    np.testing.assert_array_equal(none.fields(large_scales[:, pixels], pixels), 0)
