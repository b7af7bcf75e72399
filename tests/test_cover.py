"""What is drawn of a chart is what can be seen of it, and does not depend on what is asked for."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pysm_vae.sky.cover import (
    LARGEST,
    MARGIN_CELLS,
    SMALLER,
    SMALLER_FROM,
    SQUARES,
    Rectangle,
    blocks,
    chart_cover,
    left_out,
    strips,
    whole_chart,
    with_halos,
)
from pysm_vae.sky.planes import BLOCK_CELLS, HALO_CELLS
from pysm_vae.sky.tiling import CELL, CELLS, Tiling

REACH = 13
SIDE = SQUARES * CELLS


@pytest.fixture(scope="module")
def tiling() -> Tiling:
    return Tiling()


def painted(rectangles, size: int) -> np.ndarray:
    """How often each pixel of a grid is covered."""
    found = np.zeros((size, size), int)
    for top, bottom, left, right in rectangles:
        assert 0 <= top <= bottom <= size
        assert 0 <= left <= right <= size
        found[top:bottom, left:right] += 1
    return found


def windows(rectangles, size: int):
    """With their margins."""
    for top, bottom, left, right in rectangles:
        yield Rectangle(
            max(0, top - REACH), min(size, bottom + REACH),
            max(0, left - REACH), min(size, right + REACH),
        )  # fmt: skip


@pytest.mark.parametrize("tile", [0, 3, 8])
@pytest.mark.parametrize("depth", [3, 5, 6])
def test_all_that_can_be_seen_is_drawn_once(tiling, tile, depth):
    octaves = chart_cover(tiling, tile, depth, REACH).octaves
    assert len(octaves) == depth
    for level, octave in enumerate(octaves):
        size = CELLS << level
        covered = painted(octave, size)
        assert covered.max() == 1
        # The window, and a margin of a cell all around it.
        place = (np.arange(size) + 0.5) * CELLS / size
        seen = np.argwhere(tiling.window_on(tile, SIDE) > 0)[::7] / SQUARES
        for y, x in np.linspace(-MARGIN_CELLS, MARGIN_CELLS, 3)[:, None] * [[1, 1]]:
            rows = np.searchsorted(place, np.clip(seen[:, 0] + y, 0.5, CELLS - 0.5))
            columns = np.searchsorted(place, np.clip(seen[:, 1] + x, 0.5, CELLS - 0.5))
            assert covered[np.minimum(rows, size - 1), np.minimum(columns, size - 1)].all()
        height, width = SMALLER if level >= SMALLER_FROM else LARGEST
        assert max(each.bottom - each.top for each in octave) <= height
        assert max(each.right - each.left for each in octave) <= width
    # What a finer octave's windows see of a coarser one is there.
    for level, (coarse, fine) in enumerate(pairwise(octaves)):
        size = CELLS << (level + 1)
        covered = painted(coarse, size // 2).repeat(2, axis=0).repeat(2, axis=1)
        assert covered[painted(windows(fine, size), size) > 0].all()


def test_charts_are_hardly_drawn_beyond_what_is_seen(tiling):
    """The finest octave, which costs most."""
    for depth in (5, 6):
        size = CELLS << (depth - 1)
        drawn = painted(chart_cover(tiling, 2, depth, REACH).octaves[-1], size).mean()
        seen = (tiling.window_on(2, SIDE) > 0).mean()
        assert seen < drawn < 1.35 * seen


@pytest.mark.parametrize("whole", [0, 2, 4])
def test_a_part_takes_what_it_needs(tiling, whole):
    cover = chart_cover(tiling, 4, 6, REACH)
    wanted = np.zeros((SIDE, SIDE), bool)
    wanted[90:99, 70:77] = wanted[91, 100] = True
    taken = cover.part(wanted, whole)
    assert [len(octave) for octave in taken[:whole]] == [len(o) for o in cover.octaves[:whole]]
    size = CELLS << 5
    assert 0 < len(taken[-1]) < 0.2 * len(cover.octaves[-1])
    fine = wanted.repeat(size // SIDE, axis=0).repeat(size // SIDE, axis=1)
    assert painted(taken[-1], size)[fine].all()
    # Little more than that, in pieces of the rectangles, beside which there is nothing.
    assert painted(taken[-1], size).sum() < 2.5 * fine.sum()
    for level, (octave, every) in enumerate(zip(taken, cover.octaves, strict=True)):
        assert (painted(octave, CELLS << level) <= painted(every, CELLS << level)).all()
        for one in octave:
            assert any(
                each.top <= one.top < one.bottom <= each.bottom
                and each.left <= one.left < one.right <= each.right
                for each in every
            )
    for level, (coarse, finer) in enumerate(pairwise(taken)):
        size = CELLS << (level + 1)
        covered = painted(coarse, size // 2).repeat(2, axis=0).repeat(2, axis=1)
        assert covered[painted(windows(finer, size), size) > 0].all()
    nothing = cover.part(np.zeros_like(wanted), 0)
    assert nothing == [[]] * 6


def test_left_out_and_covered_are_everything(tiling):
    for octave, level in ((chart_cover(tiling, 1, 4, REACH).octaves[3], 3), ([], 1)):
        size = CELLS << level
        rest = list(left_out(octave, size))
        np.testing.assert_array_equal(painted([*octave, *rest], size), 1)
    assert painted(whole_chart(4, REACH)[3], CELLS << 3).all()
    assert sum(map(len, strips(whole_chart(4, REACH)[3]))) == len(whole_chart(4, REACH)[3])


@pytest.mark.parametrize("tile", [0, 3, 8])
def test_blocks_cover_the_window_once(tiling, tile):
    found = blocks(tiling, tile)
    margin, side = 100, int(BLOCK_CELLS * SQUARES)
    times = np.zeros((SIDE + 2 * margin,) * 2, int)
    for row, column in found + margin:
        times[row : row + side, column : column + side] += 1
    assert times.max() == 1
    window = np.pad(tiling.window_on(tile, SIDE) > 0, margin)
    # The spline takes two pixels more: less than a square.
    for shift in (-1, 0, 1):
        for axis in (0, 1):
            assert times[np.roll(window, shift, axis)].all()
    # Fewer than if they were all in one square lattice.
    assert len(found) * BLOCK_CELLS**2 < 1.45 * window.sum() / SQUARES**2


def test_blocks_of_places_are_those_around_them(tiling):
    everything = {tuple(each) for each in blocks(tiling, 2).tolist()}
    place = np.array([[0.11, -0.07]])
    found = blocks(tiling, 2, place)
    assert {tuple(each) for each in found.tolist()} < everything
    assert 1 <= len(found) <= 4
    x, y = (place[0] / CELL + CELLS / 2) * SQUARES
    halo = int(HALO_CELLS * SQUARES)
    squares = with_halos(found)
    assert squares[int(y - halo) : int(y + halo), int(x - halo) : int(x + halo)].all()
    assert squares.sum() <= len(found) * (BLOCK_CELLS * SQUARES + 2 * halo) ** 2
    assert not len(blocks(tiling, 2, place[:0]))
