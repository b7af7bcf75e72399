"""Drawing on a chart: octave after octave of one continuous plane, from latents that have places.

What is drawn in a cell depends on latents within a fixed reach of it, and a cell's latents on its
place and the seed alone. So a plane can be drawn in blocks that fit together without a seam, only
where it is wanted, and each block is the same whatever else is drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pysm_vae.sky.cover import Rectangle, in_common, left_out, strips
from pysm_vae.sky.tiling import CELLS
from pysm_vae.threads import over
from pysm_vae.vae.generator import THORNE_DEPTH, Generator, draw_latents

#: Pixels a side of the blocks of latents that have a key of their own, up to the whole of a grid.
WHOLE = 8 * CELLS
#: The same from this octave on, where large blocks would have much that nobody asked for.
BLOCK = 4 * CELLS
SMALL_FROM = 4

#: All that is ever drawn. A field's latents are keyed by its place here.
FIELDS = ("T", "E", "B", "beta", "temperature")


@dataclass(frozen=True)
class Between:
    r"""A sky on the path from one seed's to another's.

    Its latents are :math:`\cos(\pi t/2)\,a + \sin(\pi t/2)\,b` of theirs: standard normal as both
    are, all along, since they are independent.

    Parameters
    ----------
    first, second : int
        The seeds, different ones.
    fraction : float
        t, above 0 and below 1: the path's ends are skies of plain seeds.
    """

    first: int
    second: int
    fraction: float


def seeded_latents(
    shapes: Sequence[tuple[int, ...]], places: Sequence[tuple[int, ...]], seed: int | Between
) -> list[np.ndarray]:
    """Draw standard normal latents of a sky.

    Parameters
    ----------
    shapes : sequence of tuple
        As :func:`pysm_vae.vae.generator.draw_latents`.
    places : sequence of tuple of int
        What, with the seed, each is keyed by.
    seed : int or Between
        Of the sky.

    Returns
    -------
    list of ndarray, float32, each (len(places), *shape)
    """
    if isinstance(seed, Between):
        angle = 0.5 * np.pi * seed.fraction
        first, second = (seeded_latents(shapes, places, s) for s in (seed.first, seed.second))
        cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return [cosine * a + sine * b for a, b in zip(first, second, strict=True)]
    # A seed may take more than a word, and zeros at the end do not count: so it comes last.
    return draw_latents(shapes, [(*place, seed) for place in places])


class Canvas:
    """Some fields of one chart.

    Parameters
    ----------
    generator : Generator
        Draws them.
    tile : int
        Number of the chart.
    seed : int or Between
        Of the sky. With the chart, the field and the place, it decides the latents.
    fields : tuple of str
        Which of ``FIELDS``.
    offset : ndarray, shape (CELLS, CELLS), optional
        What the coarsest map of the first field is drawn about; with ``gains``, the amplitude of
        each of its modes, it may come from large scales that are already there.
    gains : sequence of (ndarray, ndarray), optional
        Factors on the coarsest map's own modes of the first field, (CELLS, CELLS // 2 + 1), each
        behind its share at the cells, (CELLS, CELLS).
    conditioned : int
        How many fields, not only the first, are drawn so; more where T itself is studied.
    """

    def __init__(
        self,
        generator: Generator,
        tile: int,
        seed: int | Between,
        *,
        fields: tuple[str, ...] = FIELDS[:3],
        offset: np.ndarray | None = None,
        gains: Sequence[tuple[np.ndarray, np.ndarray]] = (),
        conditioned: int = 1,
    ) -> None:
        self.generator = generator
        self.tile = tile
        self.seed = seed
        self.fields = fields
        self._offset = offset
        self._gains = gains
        self._conditioned = conditioned

    def draw(
        self, octaves: Sequence[Sequence[Rectangle]], whole: int | None = None
    ) -> Iterator[np.ndarray]:
        """Draw the fields, coarse to fine.

        Parameters
        ----------
        octaves : sequence of sequence of Rectangle
            Where each octave is drawn; see :mod:`pysm_vae.sky.cover`.
        whole : int, optional
            In the first so many octaves (by default all), what is not drawn is as the coarser one
            has it; in the others it is zero.

        Yields
        ------
        ndarray, float32, shape (fields, size, size)
            After 1, 2, … octaves: ``CELLS`` times two to that power pixels a side.
        """
        field = self._coarsest()
        for level, rectangles in enumerate(octaves):
            field = self._refine(field, level, rectangles, whole is None or level < whole)
            yield field

    def _coarsest(self) -> np.ndarray:
        white = seeded_latents([(CELLS, CELLS)], self.places_of(0, 0, 0), self.seed)[0]
        field = self.generator.coarse_plane(white)
        for each in field[: self._conditioned]:
            if self._gains:
                modes = np.fft.rfft2(each)
                each[:] = sum(
                    share * np.fft.irfft2(modes * gain, s=each.shape) for share, gain in self._gains
                )
            if self._offset is not None:
                each += self._offset
        return field

    def places_of(self, octave: int, row: int, column: int) -> list[tuple[int, ...]]:
        """What a block of latents is keyed by, for each field."""
        return [(self.tile, FIELDS.index(name), octave, row, column) for name in self.fields]

    def _refine(
        self, field: np.ndarray, level: int, rectangles: Sequence[Rectangle], whole: bool
    ) -> np.ndarray:
        """One octave more, in some rectangles."""
        size, reach = field.shape[-1], self.generator.reach
        number = len(self.fields)
        # Where a part of a fine grid is left out, nothing should cost anything.
        finer = np.zeros((number, 2 * size, 2 * size), np.float32)
        if whole:
            for top, bottom, left, right in left_out(rectangles, size):
                part = field[:, top:bottom, left:right]
                rows, columns = slice(2 * top, 2 * bottom), slice(2 * left, 2 * right)
                finer[:, rows, columns] = part.repeat(2, axis=1).repeat(2, axis=2)
        latents = _Latents(self, level)
        for strip in strips(rectangles):
            windows = [_Window(each, reach, size) for each in strip]
            latents.keep(windows)
            pieces = [
                (window, fields)
                for window in windows
                for fields in self.generator.batches(number, window.shape)
            ]

            def refine(start: int, _: int, pieces: list[tuple[_Window, slice]] = pieces) -> None:
                window, fields = pieces[start]
                coarse = window.of(field[fields])
                drawn = self.generator.refine(coarse, latents.of(window, fields), level, reach)
                top, bottom, left, right = window.rectangle
                finer[fields, 2 * top : 2 * bottom, 2 * left : 2 * right] = drawn

            over(len(pieces), refine, piece=1)
        return finer


class _Window:
    """A rectangle with its margins.

    Attributes
    ----------
    rectangle : Rectangle
        Without them.
    corner : (int, int)
        First row and column with them, which may lie beyond the chart.
    shape : (int, int)
        With them.
    """

    def __init__(self, rectangle: Rectangle, margin: int, size: int) -> None:
        self.rectangle = rectangle
        top, bottom, left, right = rectangle
        self.corner = top - margin, left - margin
        self.shape = bottom - top + 2 * margin, right - left + 2 * margin
        self._inside = min(self.corner) >= 0 and max(bottom, right) + margin <= size

    def of(self, fields: np.ndarray) -> np.ndarray:
        """What it shows of a chart, (fields, size, size); beyond it, of its mirror image."""
        if self._inside:
            rows, columns = (
                slice(first, first + number)
                for first, number in zip(self.corner, self.shape, strict=True)
            )
            return fields[:, rows, columns]
        y, x = (
            _mirrored(np.arange(first, first + number), fields.shape[-1])
            for first, number in zip(self.corner, self.shape, strict=True)
        )
        return fields[:, y[:, None], x]

    def blocks(self, side: int) -> Iterator[tuple[int, int]]:
        """Blocks of the grid that it touches, some of them beyond the chart."""
        rows, columns = (
            range(first // side, -(-(first + number) // side))
            for first, number in zip(self.corner, self.shape, strict=True)
        )
        return itertools.product(rows, columns)


class _Latents:
    """Latents of one octave of a chart: blocks of them, each drawn from its own key.

    Parameters
    ----------
    canvas : Canvas
        What is drawn.
    level : int
        Number of the octave.
    """

    def __init__(self, canvas: Canvas, level: int) -> None:
        self._canvas = canvas
        self._level = level
        size = CELLS << level
        self._side = min(size, BLOCK if level >= SMALL_FROM else WHOLE)
        self._blocks = size // self._side
        self._drawn: dict[tuple[int, int], np.ndarray] = {}

    def _key(self, block: tuple[int, int]) -> tuple[int, int]:
        # Beyond the chart are the latents of its other side: as good as any.
        return block[0] % self._blocks, block[1] % self._blocks

    def keep(self, windows: Sequence[_Window]) -> None:
        """Have the latents of some windows, and no others."""
        keys = {self._key(block) for window in windows for block in window.blocks(self._side)}
        self._drawn = {key: drawn for key, drawn in self._drawn.items() if key in keys}
        canvas = self._canvas
        shape = (self._side, self._side, canvas.generator.network.latents)
        # One by one, so that each is let go when it is done with.
        for key in sorted(keys - self._drawn.keys()):
            places = canvas.places_of(self._level + 1, *key)
            (self._drawn[key],) = seeded_latents([shape], places, canvas.seed)

    def of(self, window: _Window, fields: slice) -> np.ndarray:
        """Latents of some fields in one of the windows, (fields, rows, columns, latents)."""
        canvas, side = self._canvas, self._side
        number = len(canvas.fields[fields])
        found = np.empty((number, *window.shape, canvas.generator.network.latents), np.float32)
        for block in window.blocks(side):
            (rows, own_rows), (columns, own_columns) = (
                in_common(first, number, side * place, side)
                for first, number, place in zip(window.corner, window.shape, block, strict=True)
            )
            source = self._drawn[self._key(block)]
            found[:, rows, columns] = source[fields, own_rows, own_columns]
        return found


def _mirrored(places: np.ndarray, size: int) -> np.ndarray:
    """Rows of a chart, or columns, at any places: beyond it, those of its mirror image."""
    return np.minimum(np.abs(places + 0.5) - 0.5, 2 * size - 1 - places).astype(int)


def mosaic(
    generator: Generator, tile: int, seed: int | Between, fields: tuple[str, ...] = FIELDS[:3]
) -> np.ndarray:
    """Some fields of one chart, of patches whose size is fixed.

    Neighbours overlap by half, under windows whose squares sum to one.

    Parameters
    ----------
    generator : Generator
        Draws the patches.
    tile, seed, fields
        As :class:`Canvas`.

    Returns
    -------
    ndarray, float32, shape (fields, size, size)
        ``THORNE_DEPTH`` octaves above the cells.
    """
    size, step = CELLS << THORNE_DEPTH, generator.size // 2
    starts = range(-step, size, step)
    window = np.sin(np.pi * (np.arange(generator.size) + 0.5) / generator.size)
    window = np.outer(window, window).astype(np.float32)
    field = np.zeros((len(fields), size + 4 * step, size + 4 * step), np.float32)
    shapes = generator.latent_shapes()
    for number, name in enumerate(fields):
        for row, y in enumerate(starts):
            places = [(tile, FIELDS.index(name), row, column) for column in range(len(starts))]
            patches = generator.decode(seeded_latents(shapes, places, seed))
            for x, patch in zip(starts, patches, strict=True):
                rows = slice(y + step, y + step + generator.size)
                field[number, rows, x + step : x + step + generator.size] += window * patch
    return field[:, step : step + size, step : step + size]
