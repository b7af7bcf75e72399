"""The sky's fields on any HEALPix pixels: drawn on twelve charts, filtered, laid on the sphere.

On each chart the generator draws three fields, T, E and B. In its Fourier plane they are brought to
power laws, high-passed above the split of the template, and turned into the chart's Q and U; the
projection does the rest. Nothing here transforms the whole sky, so a pixel depends only on the
charts that cover it, and on fine grids only on its surroundings.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import healpy as hp
import numba
import numpy as np
import scipy.ndimage

from pysm_vae.sky.calibration import Spectrum
from pysm_vae.sky.canvas import mosaic
from pysm_vae.sky.ground import BRIGHTEST, DEPTH, shared_ground
from pysm_vae.sky.largescales import spline
from pysm_vae.sky.planes import (
    BLOCK_CELLS,
    COARSE_DEPTH,
    CUT,
    HALO_CELLS,
    MEAN_SCALE,
    Plane,
    spline_values,
)
from pysm_vae.sky.templates import SPLIT, Template
from pysm_vae.sky.tiling import BLOCK, CELL, CELLS, axis, spline_values_at
from pysm_vae.vae.generator import THORNE_DEPTH, Generator

#: Patterns keep their spectrum up to this multiple of nside, and a grid is fine enough if it holds
#: that. At 1.5 times it they have nothing left: HEALPix could not tell it from larger scales.
BAND_LIMIT = 1.9
#: As :func:`pysm_vae.sky.ground.bounded` has it.
KNEE = math.log(BRIGHTEST[0])
RANGE = math.log(BRIGHTEST[1]) - KNEE
#: Octaves of the finest grids, for nside 8192.
MAX_DEPTH = 8


class SmallScales:
    """Seeded small scales, laid on a template.

    Parameters
    ----------
    generator : Generator
        What draws them.
    template : Template
        The large scales; a conditional generator draws T for them.
    seed : int
        With the weights and the template, it decides the sky.
    nside : int
        Of the pixels; decides how fine the charts' grids must be, not what they show.
    spectrum : Spectrum
        Slopes, EE/BB, TE and the amplitude.
    split : (float, float)
        Where the template hands over; see :func:`pysm_vae.sky.templates.taper`.

    Attributes
    ----------
    lmax : float
        Multipole up to which the patterns keep their spectrum.
    """

    def __init__(
        self,
        generator: Generator,
        template: Template,
        *,
        seed: int,
        nside: int,
        spectrum: Spectrum | None = None,
        split: tuple[float, float] = SPLIT,
    ) -> None:
        self.generator = generator
        self.seed = seed
        self.nside = nside
        spectrum = Spectrum() if spectrum is None else spectrum
        wanted = BAND_LIMIT * nside
        self.depth = THORNE_DEPTH
        if generator.conditional:
            depths = range(DEPTH, MAX_DEPTH + 1)
            self.depth = next((d for d in depths if _band_limit(d) >= wanted), MAX_DEPTH)
        depth = min(self.depth, COARSE_DEPTH)
        self.ground = shared_ground(generator, template, spectrum, tuple(split))
        self.tiling = self.ground.tiling
        self.lmax = min(_band_limit(self.depth), wanted)
        fine = self.depth > COARSE_DEPTH
        part = "large" if fine else "whole"
        self._plane = Plane(CELLS, depth, wanted, part=part)
        self._filters = self.ground.filters(self._plane)
        if fine:
            cells = int(BLOCK_CELLS + 2 * HALO_CELLS)
            self._block = Plane(cells, self.depth, wanted, part="small", margin=HALO_CELLS / 3)
            self._block_filters = self.ground.filters(self._block)

    def draw(
        self,
        pixels: np.ndarray | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Draw the sky on a set of pixels: large scales and small.

        Parameters
        ----------
        pixels : ndarray of int, optional
            RING pixels; all of the sky by default.
        progress : callable, optional
            Told (charts drawn, charts in all) as the work goes on.

        Returns
        -------
        ndarray, float32, shape (3, npix)
            i, q and u. A pixel's values do not depend on which other pixels are asked for.
        """
        npix = hp.nside2npix(self.nside) if pixels is None else len(pixels)
        fields = np.zeros((3, npix), np.float32)
        charts, total = self.tiling.charts(self.nside, pixels), self.tiling.ntiles
        if pixels is not None:
            charts = [(tile, where) for tile, where in charts if len(where)]
            total = len(charts)
        for number, (tile, where) in enumerate(charts, start=1):
            self._add(fields, tile, where, where if pixels is None else pixels[where])
            if progress is not None:
                progress(number, total)
        _bound_polarisation(fields, *self.ground.most_polarised)
        return fields

    def patterns(self, tile: int, places: np.ndarray) -> list[np.ndarray]:
        """Draw the patterns of one chart.

        Parameters
        ----------
        tile : int
            Number of the chart.
        places : ndarray, shape (n, 2)
            Where on the chart they are wanted, radians.

        Returns
        -------
        list of ndarray, each (fields, size, size)
            Spline coefficients: of the offset that keeps the mean intensity; of T, Q and U in the
            chart's frame; and, if the grid is finer than that of whole charts, of what is to be
            added to these.
        """
        large = self.ground.large
        depth = self._plane.depth
        if not self.generator.conditional:
            coarse = mosaic(self.generator, tile, self.seed)
        else:
            canvas = self.ground.canvas(tile, self.seed)
            blocks = _blocks(places)
            # Whatever a block's filters see is drawn, so that it is the same for any set of pixels.
            octaves = canvas.draw(depth, self.depth, _cells(blocks))
            for number, finest in enumerate(octaves, start=1):
                if number == depth:
                    coarse = finest
            coarse[0] -= large.target(tile, depth)
        coarse *= self._stretch(axis(coarse.shape[1]), axis(coarse.shape[2]))
        patterns = self.ground.patterns(self._plane, self._filters, coarse)
        # Smooth enough to be the same in the pixels between its own.
        known = min(depth, large.depth)
        rough, _ = large.values(tile, known)
        finer = 2 ** (depth - known)
        rough = np.kron(rough, np.ones((finer, finer), np.float32))
        offset = spline(self.ground.offset(spline_values(patterns[0]) * rough))
        layers = [offset[None], patterns]
        if self.depth > depth:
            layers.append(self._fine_patterns(finest, blocks))
        return layers

    def _add(self, fields: np.ndarray, tile: int, where: np.ndarray, pixels: np.ndarray) -> None:
        """Add one chart's share to the fields at some places."""
        view = self.tiling.locate(tile, self.nside, pixels)
        if not len(view.where):
            return
        layers = [np.zeros((1, CELLS, CELLS)), np.zeros((3, CELLS, CELLS), np.float32)]
        if self.ground.levels.any():
            layers = self.patterns(tile, view.places)
        offset, patterns = layers[:2]
        fine = layers[2] if len(layers) > 2 else patterns[:, :0, :0]
        splines = self.ground.large.splines[tile], offset, patterns, fine
        _lay(*splines, self.ground.crowded, *view[1:], where[view.where], fields)

    def _fine_patterns(self, fields: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        """What a fine grid adds to the patterns, in some blocks of a chart."""
        size = fields.shape[1]
        side, halo = BLOCK_CELLS << self.depth, int(HALO_CELLS * 2**self.depth)
        coordinates = axis(size)
        patterns = np.zeros_like(fields)
        for row, column in np.argwhere(blocks):
            spans, window = [], []
            for number in (row, column):
                start = number * side - halo
                spans.append(slice(max(0, start), min(size, start + side + 2 * halo)))
                window.append(slice(spans[-1].start - start, spans[-1].stop - start))
            rows, columns = spans
            piece = np.zeros((3, self._block.size, self._block.size), np.float32)
            stretch = self._stretch(coordinates[rows], coordinates[columns])
            piece[:, window[0], window[1]] = fields[:, rows, columns] * stretch
            piece = self.ground.patterns(self._block, self._block_filters, piece)
            inner = slice(halo, halo + side)
            rows, columns = (slice(number * side, (number + 1) * side) for number in (row, column))
            patterns[:, rows, columns] = piece[:, inner, inner]
        return patterns

    def _stretch(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Factor on fields at places on a chart that keeps their spectra from changing with scale.

        Where lengths on the sky are s times those on the chart, a spectrum D_ℓ of slope p comes out
        s^p times as high. The three slopes differ by so little that their mean serves all.
        """
        scale = 1 / (1 + (y[:, None] ** 2 + x**2) / 4) / MEAN_SCALE
        return (scale ** (-0.5 * np.mean(self.ground.spectrum.slopes))).astype(np.float32)


@numba.njit(cache=True, error_model="numpy", parallel=True)
def _lay(large, offset, patterns, fine, crowded, weights, places, turns, where, fields):
    """Add one chart's fields at the pixels of a view."""
    npix = places.shape[0]
    for block in numba.prange((npix + BLOCK - 1) // BLOCK):
        taps, ground, mean = np.empty((2, 4)), np.empty(4), np.empty(1)
        small, finer = np.empty(3), np.zeros(3)
        for p in range(block * BLOCK, min((block + 1) * BLOCK, npix)):
            spline_values_at(large, places[p], taps, ground)
            spline_values_at(offset, places[p], taps, mean)
            spline_values_at(patterns, places[p], taps, small)
            if fine.shape[1] > 0:
                spline_values_at(fine, places[p], taps, finer)
            share = weights[p] * weights[p]
            crowding = 1.0 / math.sqrt(1.0 + math.exp(ground[1] - crowded))
            factor = weights[p] * crowding
            t = crowding * ground[0] * (small[0] + finer[0])
            if t > KNEE:
                t = KNEE + RANGE * math.tanh((t - KNEE) / RANGE)
            q = share * ground[2] + factor * (small[1] + finer[1])
            u = share * ground[3] + factor * (small[2] + finer[2])
            pixel = where[p]
            fields[0, pixel] += share * ground[1] + weights[p] * t + factor * factor * mean[0]
            fields[1, pixel] += turns[p, 0] * q - turns[p, 1] * u
            fields[2, pixel] += turns[p, 1] * q + turns[p, 0] * u


@numba.njit(cache=True, error_model="numpy", parallel=True)
def _bound_polarisation(fields, knee, end):
    """Hold the length of (q, u) below an end, from a knee on."""
    for n in numba.prange(fields.shape[1]):
        q, u = float(fields[1, n]), float(fields[2, n])
        p = math.sqrt(q * q + u * u)
        if p > knee:
            factor = (knee + (end - knee) * math.tanh((p - knee) / (end - knee))) / p
            fields[1, n] = q * factor
            fields[2, n] = u * factor


def _band_limit(depth: int) -> float:
    """Multipole up to which a grid keeps spectra."""
    return CUT[0] * np.pi * 2**depth / (CELL * MEAN_SCALE)


def _blocks(places: np.ndarray) -> np.ndarray:
    """Blocks of a fine grid in which, or right beside which, there are places."""
    # The spline needs two pixels more; a quarter of a cell is at least that.
    quarter = 4 * CELLS
    x, y = np.floor(4 * (places / CELL + CELLS / 2)).astype(int).T
    near = np.zeros((quarter, quarter), bool)
    near[y, x] = True
    near = scipy.ndimage.binary_dilation(near, np.ones((3, 3)))
    number = CELLS // BLOCK_CELLS
    return near.reshape(number, quarter // number, number, quarter // number).any(axis=(1, 3))


def _cells(blocks: np.ndarray) -> np.ndarray:
    """Cells of a chart that blocks of a fine grid, with their halos, are made of."""
    cells = np.zeros((CELLS, CELLS), bool)
    for row, column in np.argwhere(blocks) * BLOCK_CELLS:
        rows, columns = (
            slice(max(0, int(np.floor(start - HALO_CELLS))), start + BLOCK_CELLS + 2)
            for start in (row, column)
        )
        cells[rows, columns] = True
    return cells
