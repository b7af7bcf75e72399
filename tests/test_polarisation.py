"""Q and U of small scales on the sphere: pure E stays pure, and no orientation is special."""

from __future__ import annotations

import copy

import healpy as hp
import numpy as np
import pytest

from pysm_vae.sky.largescales import LargeScales
from pysm_vae.sky.smallscales import SmallScales
from pysm_vae.sky.templates import SPLIT, Template, load_template
from pysm_vae.vae.generator import load_generator


def small_scales(nside: int) -> SmallScales:
    return SmallScales(load_generator(), load_template("embedded"), seed=0, nside=nside)


def lay(small: SmallScales, tile: int, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The T, Q and U patterns of a chart on those pixels where it has weight, times that."""
    view = small.tiling.locate(tile, small.nside, pixels)
    return pixels[view.where], small.laid(small.layers(tile, view.places), view)


def test_pure_e_has_hardly_any_b():
    """Of a whole sky's patterns without B, by the machinery of skies, seams included.

    Without the intensity that modulates them: that turns E into B, as it does in the sky.
    """
    nside = 512
    small = small_scales(nside)
    # The filters are shared by nothing else.
    small._filters["B"] = np.zeros_like(small._filters["B"])
    maps = np.zeros((2, hp.nside2npix(nside)))
    for tile, pixels in small.tiling.charts(nside):
        where, patterns = lay(small, tile, pixels)
        maps[:, where] += patterns[1:]
    ee, bb = (hp.alm2cl(alm) for alm in hp.map2alm_spin(maps, 2, lmax=1000))
    modes = 2 * np.arange(1001) + 1
    for low, high in ((100, 150), (150, 250), (250, 500), (500, 1000)):
        band = slice(low, high)
        assert (modes * bb)[band].sum() < 0.001 * (modes * ee)[band].sum(), (low, high)


def test_charts_end_smoothly():
    """Of one chart, Q and U are next to nothing where it ends, and no steeper there than inside."""
    small = small_scales(256)
    pixels = dict(small.tiling.charts(256))[3]
    view = small.tiling.locate(3, 256, pixels)
    values = small.laid(small.layers(3, view.places), view)[1:]
    inside = values[:, view.weights == 1].std()
    for weight in (0.002, 0.01, 0.05):
        assert np.abs(values[:, view.weights < weight]).max(initial=0) < 2 * weight**0.5 * inside
    # From one pixel of a ring to the next one.
    steps = np.diff(values) / inside
    steps[:, np.diff(pixels[view.where]) > 1] = 0
    edge = view.weights[1:] < 0.2
    assert np.abs(steps[:, edge]).max() < np.abs(steps[:, ~edge]).max()
    assert steps[:, edge].std() < 0.3 * steps[:, ~edge].std()


def rotated(alm: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Harmonics of i (or T), E and B, which are scalars, of a rotated sky."""
    angles = (
        np.arctan2(matrix[2, 1], -matrix[2, 0]),
        np.arccos(matrix[2, 2]),
        np.arctan2(matrix[1, 2], matrix[0, 2]),
    )
    result = [row.copy() for row in alm]
    for row in result:
        hp.rotate_alm(row, *angles)
    return np.array(result)


@pytest.mark.parametrize("onto", [0, 9])
def test_any_chart_draws_the_same_sky(onto, monkeypatch):
    """A template is turned so that what chart 1 saw lies on another, far away and askew.

    With the same latents, that chart draws the same small scales, in T, Q and U of its own frame
    as well as in T, E and B on the sphere.
    """
    nside, first = 128, 1
    small = small_scales(nside)
    tiling = small.tiling
    triads = [
        np.array([tiling.centres[tile], tiling.easts[tile], tiling.norths[tile]]).T
        for tile in (first, onto)
    ]
    matrix = triads[1] @ triads[0].T
    template = load_template("embedded")
    turned = Template(name="turned", alm=rotated(template.alm, matrix))
    # A template's calibration belongs to the Galaxy's plane: it must not turn.
    other, own = copy.copy(small), small.ground
    other.ground = copy.copy(own)
    other.ground.large = LargeScales(turned, own.generator, tiling, SPLIT)

    def canvas(tile, seed, conditioned=1):
        made = type(own).canvas(other.ground, tile, seed, conditioned)
        made.tile = first
        return made

    monkeypatch.setattr(other.ground, "canvas", canvas, raising=False)
    # Roughness comes from a map of nside 64, the others from harmonics.
    for k, tolerance in enumerate((0.02, 1e-4, 1e-4, 1e-4)):
        want = own.large.splines[first][k]
        assert np.std(other.ground.large.splines[onto][k] - want) < tolerance * want.std()

    skies, pixels = [], np.arange(hp.nside2npix(nside))
    for each, tile in ((small, first), (other, onto)):
        where, patterns = lay(each, tile, pixels)
        cosine = tiling.centres[tile] @ np.array(hp.pix2vec(nside, where))
        fade = np.cos(0.5 * np.pi * np.clip(np.degrees(np.arccos(cosine)) / 28, 0, 1)) ** 2
        # Within the chart's own pentagon, where its weight is one.
        maps = np.zeros((3, len(pixels)))
        maps[:, where] = patterns * fade
        skies.append(hp.map2alm(maps, lmax=240, iter=2))
    for a, b in zip(rotated(skies[0], matrix), skies[1], strict=True):
        assert hp.alm2cl(a - b).sum() < 1e-3 * hp.alm2cl(b).sum()
    # Unturned it is another sky.
    for a, b in zip(skies[0], skies[1], strict=True):
        assert hp.alm2cl(a - b).sum() > hp.alm2cl(b).sum()
