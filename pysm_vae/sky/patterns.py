"""Patterns of a sky on any HEALPix pixels: drawn on twelve charts, filtered, laid on the sphere.

On each chart the generator draws fields; in its Fourier plane they are brought to power laws; the
projection does the rest. Nothing here transforms the whole sky, so a pixel depends only on the
charts that cover it, and on fine grids only on its surroundings.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

import healpy as hp
import numpy as np

from pysm_vae.sky.canvas import Between, Canvas, mosaic
from pysm_vae.sky.cover import SQUARES, blocks, chart_cover, in_common, with_halos
from pysm_vae.sky.ground import DEPTH
from pysm_vae.sky.planes import (
    BLOCK_CELLS,
    COARSE_DEPTH,
    HALO_CELLS,
    MEAN_SCALE,
    Plane,
    band_limit,
    large_share,
)
from pysm_vae.sky.seams import (
    NARROWER,
    Energy,
    blended,
    gains_of,
    local_energy,
    seam_fade,
    steep_gain,
)
from pysm_vae.sky.tiling import CELLS, Tiling, View, axis, directions, local_scale
from pysm_vae.threads import at_once, in_order, over
from pysm_vae.vae.generator import THORNE_DEPTH, Generator

#: Patterns keep their spectrum up to this multiple of nside, and a grid is fine enough if it holds
#: that. At 1.5 times it they have nothing left: HEALPix could not tell it from larger scales.
BAND_LIMIT = 1.9
#: Octaves of the finest grids, for nside 8192.
MAX_DEPTH = 8
# Charts are drawn at the same time as far as they fit in so many bytes; each takes some copies of
# its grids.
_CHARTS_MEMORY = 1_500_000_000
_COPIES = 6


#: Adds something to maps, given the directions of some pixels and their places in the maps.
Adding: TypeAlias = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


class Layers(NamedTuple):
    """Patterns of one chart, as arrays for compiled code.

    Attributes
    ----------
    coarse, fine : float32 array, each (fields, size, size)
        Spline coefficients, and of what is to be added to these if the grid is finer than that of
        whole charts; else the second is empty. ``coarse`` has weights and gains already in fields
        that are turned into others.
    energy : Energy
        Of the groups of fields that share gains at pixels.
    offset : float32 array, shape (size, size)
        Spline coefficients of what is to be added besides; see :meth:`Patterns._offset`.
    """

    coarse: np.ndarray
    fine: np.ndarray
    energy: Energy
    offset: np.ndarray


class Patterns(ABC):
    """Seeded patterns of some fields, on any pixels.

    Parameters
    ----------
    generator : Generator
        What draws them.
    tiling : Tiling
        The charts.
    seed : int or Between
        With the weights, it decides the patterns.
    nside : int
        Of the pixels; decides how fine the charts' grids must be, not what they show. (Between
        charts they are a little more or less intermittent at nside 64 than at 256 and above.)
    slopes : sequence of float
        Of the D_ℓ of what is drawn.

    Attributes
    ----------
    fields : tuple of str
        What is drawn; of :data:`pysm_vae.sky.canvas.FIELDS`.
    groups : tuple of slice
        Fields that share gains at pixels, one group after the other.
    turned : slice
        Fields that are turned into others; on grids of whole charts they get their weights before.
    steep : slice
        Fields whose small scales count alone, beside large ones of more power.
    depth : int
        There are ``2**depth`` pixels a cell on the finest grids.
    lmax : float
        Multipole up to which the patterns keep their spectrum.
    """

    fields: tuple[str, ...]
    groups: tuple[slice, ...]
    turned: slice = slice(0, 0)
    steep: slice = slice(0, 0)

    def __init__(
        self,
        generator: Generator,
        tiling: Tiling,
        *,
        seed: int | Between,
        nside: int,
        slopes: Sequence[float],
    ) -> None:
        self.generator = generator
        self.tiling = tiling
        self._narrower = Tiling(NARROWER * tiling.overlap)
        self.seed = seed
        self.nside = nside
        self._powers = -0.5 * np.array(slopes, np.float32)[:, None, None]
        wanted = BAND_LIMIT * nside
        self.depth = THORNE_DEPTH
        if generator.conditional:
            depths = range(DEPTH, MAX_DEPTH + 1)
            self.depth = next((d for d in depths if band_limit(d) >= wanted), MAX_DEPTH)
        self.lmax = min(band_limit(self.depth), wanted)
        self._plane = Plane(CELLS, min(self.depth, COARSE_DEPTH), wanted)
        self._filters = self._filters_of(self._plane)
        if self.depth > COARSE_DEPTH:
            self._share = large_share(self._plane.ell).astype(np.float32)
            cells = int(BLOCK_CELLS + 2 * HALO_CELLS)
            self._block = Plane(cells, self.depth, wanted, part="small", margin=HALO_CELLS / 3)
            self._block_filters = self._filters_of(self._block)

    def draw(
        self,
        pixels: np.ndarray | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Draw the sky on a set of pixels.

        Parameters
        ----------
        pixels : ndarray of int, optional
            RING pixels; all of the sky by default.
        progress : callable, optional
            Told (charts drawn, charts in all) as the work goes on.

        Returns
        -------
        ndarray, float32, shape (fields, npix)
            A pixel's values do not depend on which other pixels are asked for.
        """
        npix = hp.nside2npix(self.nside) if pixels is None else len(pixels)
        maps = np.zeros((len(self.fields), npix), np.float32)
        charts, total = self.tiling.charts(self.nside, pixels), self.tiling.ntiles
        if pixels is not None:
            charts = [(tile, where) for tile, where in charts if len(where)]
            total = len(charts)

        def drawn(chart: tuple[int, np.ndarray]) -> tuple[np.ndarray, Adding | None]:
            tile, where = chart
            if pixels is None:
                return where, self._chart(tile)
            places = self.tiling.locate(tile, self.nside, pixels[where]).places
            return where, self._chart(tile, places) if len(places) else None

        def lay(add: Adding, where: np.ndarray) -> None:
            def piece(start: int, stop: int) -> None:
                part = where[start:stop]
                add(directions(self.nside, part if pixels is None else pixels[part]), part, maps)

            over(len(where), piece)

        together = min(at_once(), max(1, _CHARTS_MEMORY // self._memory(npix)))
        with ThreadPoolExecutor(1) as pool:
            # What lays charts is compiled, if it has to be, while the first of them are drawn.
            nowhere = np.empty((0, 3)), np.empty(0, np.int64), maps
            pool.submit(self._adding(0, self._nothing()), *nowhere)
            for number, (where, add) in enumerate(in_order(drawn, charts, together), start=1):
                if add is not None:
                    lay(add, where)
                if progress is not None:
                    progress(number, total)
        return maps

    def _memory(self, npix: int) -> int:
        """Bytes that a chart takes while it is drawn, of a sky on so many pixels."""
        whole, fine = ((CELLS << depth) ** 2 for depth in (self._plane.depth, self.depth))
        # Where a part of a fine grid is wanted, rows of it are held in which there is something.
        rows = min(1.0, math.sqrt(self.tiling.ntiles * npix / hp.nside2npix(self.nside)))
        size = whole if fine == whole else whole + int(rows * fine)
        return _COPIES * np.dtype(np.float32).itemsize * len(self.fields) * size

    @abstractmethod
    def _filters_of(self, plane: Plane) -> dict[str, np.ndarray]:
        """Filters of a plane, by name."""

    @abstractmethod
    def _filtered(
        self, plane: Plane, filters: dict[str, np.ndarray], fields: np.ndarray
    ) -> np.ndarray:
        """Waves of the patterns that filters make of fields, (fields, size, size // 2 + 1)."""

    @abstractmethod
    def _adding(self, tile: int, layers: Layers) -> Adding:
        """What adds one chart's share to maps."""

    def _chart(self, tile: int, places: np.ndarray | None = None) -> Adding:
        """Draw one chart, as :meth:`layers` does, and give what adds its share to maps."""
        return self._adding(tile, self.layers(tile, places))

    def _nothing(self) -> Layers:
        """Layers of a chart without patterns."""
        # At the ends of the windows a spline needs a pixel that a grid of cells has not.
        size, groups = 2 * CELLS, len(self.groups)
        empty = np.zeros((len(self.fields), size, size), np.float32)
        # A kurtosis of zero: no gains.
        energy = Energy(np.ones((groups, size, size)), np.zeros((groups, 4)))
        return Layers(empty, empty[:, :0, :0], energy, empty[0])

    def _canvas(self, tile: int) -> Canvas:
        """What draws the fields of one chart."""
        return Canvas(self.generator, tile, self.seed, fields=self.fields)

    def _own(self, tile: int, fields: np.ndarray) -> np.ndarray:
        """Drawn fields, less what they were drawn about."""
        del tile
        return fields

    def _offset(self, tile: int, waves: np.ndarray) -> np.ndarray:
        """What is to be added to the first field besides, on one chart, as a spline; often nothing.

        Of the waves of all patterns that the grid of whole charts can hold.
        """
        del tile, waves
        return self._nothing().offset

    def layers(self, tile: int, places: np.ndarray | None = None) -> Layers:
        """Draw the patterns of one chart.

        Parameters
        ----------
        tile : int
            Number of the chart.
        places : ndarray, optional
            As :func:`pysm_vae.sky.cover.blocks`.

        Returns
        -------
        Layers
        """
        depth = self._plane.depth
        if not self.generator.conditional:
            coarse = mosaic(self.generator, tile, self.seed, self.fields)
        else:
            cover = chart_cover(self.tiling, tile, self.depth, self.generator.reach)
            drawn = cover.octaves
            if self.depth > depth:
                found = blocks(self.tiling, tile, places)
                # Whatever a block's filters see is drawn, so that it is the same for any pixels.
                drawn = cover.part(with_halos(found), depth)
            for number, finest in enumerate(self._canvas(tile).draw(drawn, depth), start=1):
                if number == depth:
                    coarse = finest
            coarse = self._own(tile, coarse)
        coarse *= self._stretch(axis(coarse.shape[1]), axis(coarse.shape[2]))
        patterns, offset = self._coarse_patterns(tile, coarse)
        fine = patterns[:, :0, :0]
        if self.depth > depth:
            fine = self._fine_patterns(finest, found)
            # The largest of all there is, and no longer needed.
            del finest
        each = [slice(f, f + 1) for f in range(len(patterns))[self.turned]]
        splines, numbers = local_energy(patterns, [*self.groups, *each])
        shared = len(self.groups)
        if each:
            window, chart = (
                tiling.window_on(tile, len(patterns[0])) for tiling in (self._narrower, self.tiling)
            )
            own = Energy(splines[shared:], numbers[shared:])
            scalars = blended(patterns[self.turned], own, window, chart)
            patterns[self.turned] = self._plane.turned(scalars)
        return Layers(patterns, fine, Energy(splines[:shared], numbers[:shared]), offset)

    def _coarse_patterns(self, tile: int, fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Patterns on the grid of a whole chart, and what is to be added besides."""
        waves = self._filtered(self._plane, self._filters, fields)
        offset = self._offset(tile, waves)
        if self.depth > self._plane.depth:
            waves *= self._share
        return self._plane.fields(waves), offset

    def laid(self, layers: Layers, view: View) -> np.ndarray:
        """Values of one chart's patterns at pixels, with its weights and gains.

        Parameters
        ----------
        layers : Layers
            The patterns.
        view : View
            The pixels.

        Returns
        -------
        ndarray, shape (fields, n)
            Q and U, if there are three fields, in the pixels' frames.
        """
        (coarse,) = self.tiling.evaluate(view, [layers.coarse])
        coarse[self.steep] *= steep_gain(view.weights)
        values = np.zeros_like(coarse)
        if layers.fine.size:
            (values,) = self.tiling.evaluate(view, [layers.fine])
        plain = np.ones(len(values), bool)
        plain[self.turned] = False
        values[plain] += coarse[plain]
        gains = gains_of(*layers.energy, view.weights, view.places)
        for group, gain in zip(self.groups, gains, strict=True):
            values[group] *= gain * view.weights
        values[~plain] += seam_fade(view.weights) * coarse[~plain]
        return values

    def _fine_patterns(self, fields: np.ndarray, found: np.ndarray) -> np.ndarray:
        """What a fine grid adds to the patterns, in some blocks of a chart."""
        size, piece = fields.shape[1], self._block.size
        halo = int(HALO_CELLS * 2**self.depth)
        coordinates = axis(size)
        # Not `zeros_like`, which would fill what is hardly ever read.
        patterns = np.zeros(fields.shape, fields.dtype)
        for corner in (found * 2**self.depth // SQUARES).tolist():
            # Blocks may leave the chart, where there is nothing.
            (own_rows, rows), (own_columns, columns) = (
                in_common(first - halo, piece, 0, size) for first in corner
            )
            block = np.zeros((len(fields), piece, piece), np.float32)
            stretch = self._stretch(coordinates[rows], coordinates[columns])
            block[:, own_rows, own_columns] = fields[:, rows, columns] * stretch
            waves = self._filtered(self._block, self._block_filters, block)
            if len(waves[self.turned]):
                waves[self.turned] = self._block.stokes(*waves[self.turned])
            inner = slice(halo, piece - halo)
            block = self._block.fields(waves)[:, inner, inner]
            (own_rows, rows), (own_columns, columns) = (
                in_common(first, piece - 2 * halo, 0, size) for first in corner
            )
            patterns[:, rows, columns] = block[:, own_rows, own_columns]
        return patterns

    def _stretch(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Factors on fields at places on a chart that keep their spectra from changing with scale.

        Where lengths on the sky are s times those on the chart, a spectrum D_ℓ of slope p comes out
        s^p times as high.
        """
        y, x = (coordinate.astype(np.float32) for coordinate in (y, x))
        return np.exp(self._powers * np.log(local_scale(y, x) / np.float32(MEAN_SCALE)))
