"""What is drawn of a chart: a square of which a pentagon is needed, covered by rectangles.

An octave is refined window by window, and each window has a margin that is drawn in vain; so
windows are large, and lie where something is needed. Rectangles belong to the chart and to the
depth of its grids, not to the pixels that are asked for: a part of the sky takes what it needs of
them, and beyond them there is nothing, so that it is the same as in the full sky to the last bit.
The blocks in which fine grids are filtered (:mod:`pysm_vae.sky.planes`) belong to the chart, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np
import scipy.ndimage

from pysm_vae.sky.planes import BLOCK_CELLS, HALO_CELLS
from pysm_vae.sky.tiling import CELLS, Tiling, occupied

#: Squares along the side of a cell. What is needed of a chart is counted in them.
SQUARES = 4
#: Cells around a chart's window in which its fields are drawn: as far as the filters of fine grids
#: see, and further than those of any detail.
MARGIN_CELLS = HALO_CELLS
#: Most rows and columns of a rectangle, in pixels of the grid that is refined: the larger, the less
#: work for margins, and the more that charts draw beyond what can be seen of them.
LARGEST = (180, 360)
#: The same from this octave on, where a rectangle is no more than a few cells.
SMALLER = (120, 240)
SMALLER_FROM = 4
# Squares along the side of a chart, of a block, and of its halo.
_SIDE = SQUARES * CELLS
_BLOCK = int(SQUARES * BLOCK_CELLS)
_HALO = int(SQUARES * HALO_CELLS)


class Rectangle(NamedTuple):
    """Pixels of the grid that an octave refines.

    Attributes
    ----------
    top, bottom, left, right : int
        First row and the one after the last, and the same of columns.
    """

    top: int
    bottom: int
    left: int
    right: int


class Cover:
    """Rectangles in which the octaves of a chart are refined.

    Parameters
    ----------
    needed : ndarray of bool, shape (SQUARES * CELLS, SQUARES * CELLS)
        What is needed of every octave.
    depth : int
        How many octaves there are.
    reach : int
        Pixels of the coarser grid, beyond one, that decide what is drawn in it.

    Attributes
    ----------
    octaves : list of list of Rectangle
        Of each octave, coarse to fine: all that is needed of it, and what finer ones see of it.
        They do not overlap; those of a strip have the same rows.
    """

    def __init__(self, needed: np.ndarray, depth: int, reach: int) -> None:
        self._reach = reach
        self.octaves: list[list[Rectangle]] = []
        seen = np.zeros_like(needed)
        for level in reversed(range(depth)):
            octave = _rectangles(_on_grid(needed | seen, level), level)
            self.octaves.insert(0, octave)
            seen = self._seen(octave, level)

    def part(self, wanted: np.ndarray, whole: int) -> list[list[Rectangle]]:
        """What a part of a chart takes of these rectangles.

        Parameters
        ----------
        wanted : ndarray of bool, shape (SQUARES * CELLS, SQUARES * CELLS)
            The part, of the finest octave.
        whole : int
            Octaves of which all is taken.

        Returns
        -------
        list of list of Rectangle
            As :attr:`octaves`.
        """
        taken: list[list[Rectangle]] = []
        for level in reversed(range(len(self.octaves))):
            octave = self.octaves[level]
            if level >= whole:
                mask = _on_grid(wanted, level)
                octave = [each for strip in strips(octave) for each in _trimmed(strip, mask, level)]
            taken.insert(0, octave)
            wanted = self._seen(octave, level)
        return taken

    def _seen(self, octave: Iterable[Rectangle], level: int) -> np.ndarray:
        """Squares that are seen when some rectangles of an octave are refined."""
        seen, size = np.zeros((_SIDE, _SIDE), bool), CELLS << level
        for top, bottom, left, right in octave:
            window = Rectangle(
                max(0, top - self._reach),
                min(size, bottom + self._reach),
                max(0, left - self._reach),
                min(size, right + self._reach),
            )
            seen[_squares(window, level, _SIDE)] = True
        return seen


def strips(rectangles: Iterable[Rectangle]) -> Iterator[list[Rectangle]]:
    """Rectangles of an octave that have the same rows, from top to bottom."""
    for _, strip in groupby(rectangles, key=lambda each: each.top):
        yield list(strip)


def left_out(rectangles: Iterable[Rectangle], size: int) -> Iterator[Rectangle]:
    """Rectangles of a grid of ``size`` pixels a side that cover what those of an octave do not.

    Where strips follow each other, and so do the rectangles of a strip, as in :class:`Cover`.
    """
    row = 0
    for strip in strips(rectangles):
        top, bottom = strip[0].top, strip[0].bottom
        yield Rectangle(row, top, 0, size)
        yield Rectangle(top, bottom, 0, strip[0].left)
        yield Rectangle(top, bottom, strip[-1].right, size)
        row = bottom
    yield Rectangle(row, size, 0, size)


def in_common(first: int, number: int, start: int, size: int) -> tuple[slice, slice]:
    """Where what two spans have in common lies in each of them.

    Of ``number`` places from ``first`` on, and of ``size`` from ``start`` on.
    """
    low, high = max(first, start), min(first + number, start + size)
    return slice(low - first, high - first), slice(low - start, high - start)


def whole_chart(depth: int, reach: int) -> list[list[Rectangle]]:
    """Rectangles that cover all of a chart; see :class:`Cover`."""
    return _whole(depth, reach).octaves


@lru_cache(maxsize=16)
def _whole(depth: int, reach: int) -> Cover:
    return Cover(np.ones((_SIDE, _SIDE), bool), depth, reach)


def chart_cover(tiling: Tiling, tile: int, depth: int, reach: int) -> Cover:
    """Cover of what can be seen of a chart through its window.

    Parameters
    ----------
    tiling : Tiling
        The charts.
    tile : int
        Number of the chart.
    depth, reach : int
        As :class:`Cover`.
    """
    return _chart_cover(tiling.overlap, tiling.kind(tile), depth, reach)


@lru_cache(maxsize=16)
def _chart_cover(overlap: float, tile: int, depth: int, reach: int) -> Cover:
    window = Tiling(overlap).window_on(tile, _SIDE) > 0
    return Cover(_widened(window, int(MARGIN_CELLS * SQUARES)), depth, reach)


def blocks(tiling: Tiling, tile: int, places: np.ndarray | None = None) -> np.ndarray:
    """Blocks of a fine grid in which, or right beside which, patterns are wanted.

    Parameters
    ----------
    tiling, tile
        As :func:`chart_cover`.
    places : ndarray, shape (n, 2), optional
        Where on the chart they are wanted, radians; by default wherever it has weight.

    Returns
    -------
    ndarray of int, shape (number, 2)
        First row and column of each, in squares of the chart, which they may leave; they have
        ``BLOCK_CELLS`` cells a side.
    """
    found = _chart_blocks(tiling.overlap, tiling.kind(tile))
    if places is None:
        return found
    # The spline needs two pixels more than there are places in; a square is at least that.
    near = _widened(occupied(places, _SIDE), 1)
    return found[[near[_block_squares(*each, halo=0)].any() for each in found.tolist()]]


def with_halos(found: np.ndarray) -> np.ndarray:
    """Squares of a chart that some blocks, with their halos, are made of."""
    squares = np.zeros((_SIDE, _SIDE), bool)
    for row, column in found.tolist():
        squares[_block_squares(row, column, halo=_HALO)] = True
    return squares


@lru_cache(maxsize=4)
def _chart_blocks(overlap: float, tile: int) -> np.ndarray:
    """All blocks of a chart: rows of them, each over what the window has there."""
    # Where it has weight at all, a window has some in the middle of the square or of the next one.
    window = _widened(Tiling(overlap).window_on(tile, _SIDE) > 0, 2)
    side, top = _BLOCK, int(np.flatnonzero(window.any(axis=1))[0])
    layouts = []
    for start in range(top - side + 1, top + 1):
        layout = []
        for row in range(start, _SIDE, side):
            columns = np.flatnonzero(window[max(0, row) : row + side].any(axis=0))
            if len(columns):
                left, width = columns[0], columns[-1] + 1 - columns[0]
                number = -(-width // side)
                # As far beyond the window on the one side as on the other.
                left -= (number * side - width) // 2
                layout += [(row, int(left) + n * side) for n in range(number)]
        layouts.append(layout)
    found = np.array(min(layouts, key=len))
    found.flags.writeable = False
    return found


def _block_squares(row: int, column: int, *, halo: int) -> tuple[slice, slice]:
    """Squares of a chart in which a block lies, with so many more on each side."""
    return tuple(slice(max(0, first - halo), first + _BLOCK + halo) for first in (row, column))  # type: ignore[return-value]


def _widened(squares: np.ndarray, by: int) -> np.ndarray:
    """Squares and those that are so near to them, along rows and columns or both."""
    return scipy.ndimage.binary_dilation(squares, np.ones((2 * by + 1,) * 2))


def _on_grid(squares: np.ndarray, level: int) -> np.ndarray:
    """Squares of a chart, as pixels of a grid that has fewer."""
    pixels = min(CELLS << level, _SIDE)
    block = _SIDE // pixels
    return squares.reshape(pixels, block, pixels, block).max(axis=(1, 3))


def _squares(rectangle: Rectangle, level: int, number: int) -> tuple[slice, slice]:
    """Squares, of so many a side, in which a rectangle of an octave lies."""
    size = CELLS << level
    top, bottom, left, right = rectangle
    return tuple(  # type: ignore[return-value]
        slice(first * number // size, -(-last * number // size))
        for first, last in ((top, bottom), (left, right))
    )


def _trimmed(strip: Sequence[Rectangle], wanted: np.ndarray, level: int) -> Iterator[Rectangle]:
    """Rectangles of a strip as far as something is wanted in them; again of the same rows."""
    pixels = (CELLS << level) // len(wanted)
    inside = [wanted[_squares(each, level, len(wanted))] for each in strip]
    rows = np.flatnonzero(np.any([each.any(axis=1) for each in inside], axis=0))
    for (top, _, left, _), each in zip(strip, inside, strict=True):
        columns = np.flatnonzero(each.any(axis=0))
        if len(columns):
            yield Rectangle(
                top + pixels * int(rows[0]),
                top + pixels * int(rows[-1] + 1),
                left + pixels * int(columns[0]),
                left + pixels * int(columns[-1] + 1),
            )


def _rectangles(needed: np.ndarray, level: int) -> list[Rectangle]:
    """Strips about equally high, each cut into pieces about equally wide."""
    size = CELLS << level
    scale = size // len(needed)
    height, width = SMALLER if level >= SMALLER_FROM else LARGEST
    found = []
    for top, bottom in _pieces(needed.max(axis=1), height // scale):
        for left, right in _pieces(needed[top:bottom].max(axis=0), width // scale):
            found.append(Rectangle(*(scale * edge for edge in (top, bottom, left, right))))
    return found


def _pieces(needed: np.ndarray, longest: int) -> list[tuple[int, int]]:
    """Pieces of a row, about equally long, from the first to the last that is needed."""
    where = np.flatnonzero(needed)
    if not len(where):
        return []
    first, last = where[0], where[-1] + 1
    edges = np.linspace(first, last, -(-(last - first) // longest) + 1)
    return list(pairwise(np.rint(edges).astype(int).tolist()))
