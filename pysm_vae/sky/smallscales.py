"""The dust's I, Q and U in log-pol-tens space: a template and the small scales drawn for it.

The generator draws three fields, T, E and B. They are brought to power laws, high-passed above the
split of the template, and E and B given the chart's weights and turned into Q and U.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numba
import numpy as np

from pysm_vae.sky.calibration import Spectrum
from pysm_vae.sky.canvas import Between, Canvas
from pysm_vae.sky.ground import BRIGHTEST, shared_ground
from pysm_vae.sky.largescales import spline
from pysm_vae.sky.patterns import Adding, Layers, Patterns
from pysm_vae.sky.planes import Plane, spline_values
from pysm_vae.sky.seams import Energy, seam_fade, seam_gains, steep_gain
from pysm_vae.sky.templates import SPLIT, Template
from pysm_vae.sky.tiling import CELLS, see, spline_values_at
from pysm_vae.threads import over
from pysm_vae.vae.generator import Generator

#: As :func:`pysm_vae.sky.ground.bounded` has it.
KNEE = math.log(BRIGHTEST[0])
RANGE = math.log(BRIGHTEST[1]) - KNEE


class SmallScales(Patterns):
    """Seeded small scales, laid on a template.

    Parameters
    ----------
    generator : Generator
        What draws them.
    template : Template
        The large scales; a conditional generator draws T for them.
    seed : int or Between
        With the weights and the template, it decides the sky.
    nside : int
        Of the pixels.
    spectrum : Spectrum
        Slopes, EE/BB, TE and the amplitude.
    split : (float, float)
        Where the template hands over; see :func:`pysm_vae.sky.templates.taper`.
    """

    fields = ("T", "E", "B")
    groups = (slice(0, 1), slice(1, 3))
    turned = slice(1, 3)
    steep = slice(0, 1)

    def __init__(
        self,
        generator: Generator,
        template: Template,
        *,
        seed: int | Between,
        nside: int,
        spectrum: Spectrum | None = None,
        split: tuple[float, float] = SPLIT,
    ) -> None:
        spectrum = Spectrum() if spectrum is None else spectrum
        self.ground = shared_ground(generator, template, spectrum, tuple(split))
        tiling, slopes = self.ground.tiling, spectrum.slopes
        super().__init__(generator, tiling, seed=seed, nside=nside, slopes=slopes)

    def draw(
        self,
        pixels: np.ndarray | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Draw the sky, large scales and small: i, q and u; see :meth:`Patterns.draw`."""
        maps = super().draw(pixels, progress)
        limits = self.ground.most_polarised
        over(maps.shape[1], lambda start, stop: _bound_polarisation(start, stop, maps, *limits))
        return maps

    def _canvas(self, tile: int) -> Canvas:
        return self.ground.canvas(tile, self.seed)

    def _own(self, tile: int, fields: np.ndarray) -> np.ndarray:
        fields[0] -= self.ground.large.target(tile, self._plane.depth)
        return fields

    def _filters_of(self, plane: Plane) -> dict[str, np.ndarray]:
        return self.ground.filters(plane)

    def _filtered(
        self, plane: Plane, filters: dict[str, np.ndarray], fields: np.ndarray
    ) -> np.ndarray:
        return self.ground.waves(plane, filters, fields)

    def _chart(self, tile: int, places: np.ndarray | None = None) -> Adding:
        if self.ground.levels.any():
            layers = self.layers(tile, places)
            offset = np.ascontiguousarray(spline(self._offset(tile, layers.coarse[0]))[None])
        else:
            # At the ends of the windows a spline needs a pixel that a grid of cells has not.
            size = 2 * CELLS
            offset, nothing = np.zeros((1, size, size)), np.zeros((3, size, size), np.float32)
            # A kurtosis of zero: no gains.
            energy = Energy(np.ones((2, size, size)), np.zeros((2, 4)))
            layers = Layers(nothing, nothing[:, :0, :0], energy)
        patterns = layers.coarse, layers.fine, *layers.energy
        ground = self.ground.crowded, self.ground.polarisation
        chart = self.ground.large.splines[tile], offset, *patterns, *ground

        def add(vectors: np.ndarray, where: np.ndarray, maps: np.ndarray) -> None:
            _add(*(vectors, tile, *self.tiling.geometry, *chart, where, maps))

        return add

    def _offset(self, tile: int, t: np.ndarray) -> np.ndarray:
        """What keeps the mean intensity, of the spline coefficients of T."""
        large = self.ground.large
        # Smooth enough to be the same in the pixels between its own.
        known = min(self._plane.depth, large.depth)
        rough, _ = large.values(tile, known)
        finer = 2 ** (self._plane.depth - known)
        return self.ground.offset(spline_values(t) * np.kron(rough, np.ones((finer, finer), "f4")))


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _add(
    vectors, tile, centres, easts, norths, overlap,
    large, offset, coarse, fine, energies, numbers, crowded, polarisation, where, maps,
):  # fmt: skip
    """Add one chart's fields at some points."""
    npix = vectors.shape[0]
    weights, places, turns = np.empty(npix), np.empty((npix, 2)), np.empty((npix, 2))
    see(vectors, tile, centres, easts, norths, overlap, weights, places, turns)
    ground, mean = np.empty(4), np.empty(1)
    small, finer, gains = np.empty(3), np.zeros(3), np.empty(2)
    for p in range(npix):
        if weights[p] == 0.0:
            continue
        spline_values_at(large, places[p], ground)
        spline_values_at(offset, places[p], mean)
        spline_values_at(coarse, places[p], small)
        if fine.shape[1] > 0:
            spline_values_at(fine, places[p], finer)
        seam_gains(energies, numbers, weights[p], weights[p], places[p], gains)
        share = weights[p] * weights[p]
        crowding = 1.0 / math.sqrt(1.0 + math.exp(ground[1] - crowded))
        factor = weights[p] * crowding
        # Both are 1 on most of the sky.
        steep = fade = 1.0
        if weights[p] < 1.0:
            steep, fade = steep_gain(weights[p]), seam_fade(weights[p])
        t = crowding * ground[0] * gains[0] * (steep * small[0] + finer[0])
        if t > KNEE:
            t = KNEE + RANGE * math.tanh((t - KNEE) / RANGE)
        polarised = (ground[2] ** 2 + ground[3] ** 2) / polarisation**2
        modulation = crowding * math.sqrt(0.5 * (1.0 + polarised))
        weight = weights[p] * gains[1]
        q = share * ground[2] + modulation * (fade * small[1] + weight * finer[1])
        u = share * ground[3] + modulation * (fade * small[2] + weight * finer[2])
        pixel = where[p]
        maps[0, pixel] += share * ground[1] + weights[p] * t + factor * factor * mean[0]
        maps[1, pixel] += turns[p, 0] * q - turns[p, 1] * u
        maps[2, pixel] += turns[p, 1] * q + turns[p, 0] * u


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _bound_polarisation(start, stop, maps, knee, end):
    """Hold the length of (q, u) below an end, from a knee on."""
    for n in range(start, stop):
        q, u = float(maps[1, n]), float(maps[2, n])
        p = math.sqrt(q * q + u * u)
        if p > knee:
            factor = (knee + (end - knee) * math.tanh((p - knee) / (end - knee))) / p
            maps[1, n] = q * factor
            maps[2, n] = u * factor
