"""Drawing on a chart: octave after octave of one continuous plane, from latents that have places.

What is drawn in a cell depends on latents within a fixed reach of it, and a cell's latents on its
place and the seed alone. So a plane can be drawn in blocks that fit together without a seam, only
where it is wanted, and each block is the same whatever else is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pysm_vae.sky.tiling import CELLS
from pysm_vae.vae.generator import THORNE_DEPTH, Generator, draw_latents

#: Pixels a side of the blocks in which grids are refined, coarser ones as a whole. On small blocks
#: much of the work is for their margins.
WHOLE = 8 * CELLS
#: The same from this octave on, where large blocks would draw much that nobody asked for.
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
        self, whole: int, depth: int = 0, wanted: np.ndarray | None = None
    ) -> Iterator[np.ndarray]:
        """Draw the fields, coarse to fine.

        Parameters
        ----------
        whole : int
            Octaves that are drawn on all of the chart.
        depth : int
            Octaves of the finest grid, if it is finer than that.
        wanted : ndarray of bool, shape (CELLS, CELLS)
            Cells of which the finest grid is wanted.

        Yields
        ------
        ndarray, float32, shape (fields, size, size)
            After 1, 2, … octaves: ``CELLS`` times two to that power pixels a side. Blocks that
            neither are wanted nor bear on what is are zero.
        """
        field = self._coarsest()
        needed = [np.ones((_blocks(level),) * 2, bool) for level in range(whole)]
        if depth > whole:
            needed += _needed(depth, wanted, self.generator.reach)[whole:]
        for level, blocks in enumerate(needed):
            field = self._refine(field, level, blocks)
            yield field

    def _coarsest(self) -> np.ndarray:
        white = seeded_latents([(CELLS, CELLS)], self._places(0, 0, 0), self.seed)[0]
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

    def _places(self, octave: int, row: int, column: int) -> list[tuple[int, ...]]:
        return [(self.tile, FIELDS.index(name), octave, row, column) for name in self.fields]

    def _refine(self, field: np.ndarray, level: int, blocks: np.ndarray) -> np.ndarray:
        """One octave more, in the blocks that are needed."""
        size, reach = field.shape[-1], self.generator.reach
        block = size // len(blocks)
        shape = (block, block, self.generator.network.latents)
        # Whole blocks of latents, as each is drawn from its own key, with room for the margins.
        drawn: dict[tuple[int, int], np.ndarray] = {}
        number = len(self.fields)
        finer = np.zeros((number, 2 * size, 2 * size), np.float32)
        for row in np.flatnonzero(blocks.any(axis=1)).tolist():
            # What is above the row before is done with.
            drawn = {key: latents for key, latents in drawn.items() if key[0] >= row - 1}
            columns = np.flatnonzero(blocks[row]).tolist()
            around = {column: list(_around((row, column), reach, block)) for column in columns}
            # Beyond the chart are the latents of its other side: as good as any.
            seen = {(i % len(blocks), j % len(blocks)) for each in around.values() for i, j in each}
            missing = sorted(seen - drawn.keys())
            # All of a row at once, which keeps all cores busy.
            places = [place for key in missing for place in self._places(level + 1, *key)]
            found = seeded_latents([shape], places, self.seed)[0]
            drawn |= dict(zip(missing, found.reshape(len(missing), number, *shape), strict=True))
            for column in columns:
                corner = row * block, column * block
                latents = np.zeros((number, block + 2 * reach, block + 2 * reach, shape[-1]), "f4")
                for i, j in around[column]:
                    source = drawn[i % len(blocks), j % len(blocks)]
                    _paste(latents, source, (i * block, j * block), corner, reach)
                window = [_mirrored(place, block, reach, size) for place in corner]
                coarse = field[:, window[0][:, None], window[1]]
                rows, cols = (slice(2 * place, 2 * (place + block)) for place in corner)
                finer[:, rows, cols] = self.generator.refine(coarse, latents, level, reach)
        return finer


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


def _blocks(level: int) -> int:
    """Blocks a side of the grid that an octave refines."""
    size = CELLS << level
    return max(1, size // (BLOCK if level >= SMALL_FROM else WHOLE))


def _needed(depth: int, wanted: np.ndarray, reach: int) -> list[np.ndarray]:
    """Which blocks of each octave are to be drawn, coarse to fine."""
    needed: list[np.ndarray] = []
    for level in reversed(range(depth)):
        number = _blocks(level)
        blocks = np.zeros((number, number), bool)
        if level == depth - 1:
            for place in np.argwhere(wanted) * number / CELLS:
                low, high = np.floor(place), np.ceil(place + number / CELLS)
                blocks[int(low[0]) : int(high[0]), int(low[1]) : int(high[1])] = True
        else:
            # The windows of the finer octave's blocks, on this one's grid of finer pixels.
            size = CELLS << (level + 1)
            side, window = size // number, size // len(needed[-1])
            for row, column in np.argwhere(needed[-1]):
                spans = []
                for place in (row, column):
                    first = (place * window - reach) // side
                    last = ((place + 1) * window + reach - 1) // side
                    spans.append(slice(max(0, first), last + 1))
                blocks[tuple(spans)] = True
        needed.append(blocks)
    return needed[::-1]


def _around(block: tuple[int, int], reach: int, side: int) -> Iterator[tuple[int, int]]:
    """Blocks that a window of a block with its margins touches, some of them beyond the chart."""
    more = -(-reach // side)
    for i in range(block[0] - more, block[0] + more + 1):
        for j in range(block[1] - more, block[1] + more + 1):
            yield i, j


def _mirrored(place: int, block: int, reach: int, size: int) -> np.ndarray:
    """Rows of a window at a place with its margins; beyond the chart, its mirror image."""
    rows = np.arange(place - reach, place + block + reach)
    return np.minimum(np.abs(rows + 0.5) - 0.5, 2 * size - 1 - rows).astype(int)


def _paste(
    window: np.ndarray,
    source: np.ndarray,
    corner: tuple[int, int],
    place: tuple[int, int],
    reach: int,
) -> None:
    """Copy what a window at ``place``, with its margins, sees of a source at ``corner``."""
    into, out_of = [], []
    for axis in (0, 1):
        start = place[axis] - reach
        low = max(start, corner[axis])
        high = min(start + window.shape[axis + 1], corner[axis] + source.shape[axis + 1])
        into.append(slice(low - start, high - start))
        out_of.append(slice(low - corner[axis], high - corner[axis]))
    window[:, into[0], into[1]] = source[:, out_of[0], out_of[1]]
