"""The dust's I, Q and U in log-pol-tens space: a template and the small scales drawn for it.

The generator draws three fields, T, E and B. They are brought to power laws, high-passed above the
split of the template, and E and B given the chart's weights and turned into Q and U.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numba
import numpy as np

from pysm_vae.sky.calibration import Spectrum
from pysm_vae.sky.canvas import Between, Canvas
from pysm_vae.sky.ground import BRIGHTEST, DEPTH, shared_ground
from pysm_vae.sky.largescales import spline
from pysm_vae.sky.patterns import Adding, Layers, Patterns
from pysm_vae.sky.planes import Plane, large_share, resolved_share
from pysm_vae.sky.seams import seam_fade, seam_gains, steep_gain
from pysm_vae.sky.templates import SPLIT, Template
from pysm_vae.sky.tiling import at, see, spot
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
        # Multipoles that the calibration has seen, of those that whole charts have.
        self._larger, self._further = None, 1.0
        if self._plane.depth > DEPTH:
            self._larger = resolved_share(self._plane.ell, DEPTH).astype(np.float32)
            self._further = self._variance_beyond()

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
        if not self.ground.levels.any():
            return self._adding(tile, self._nothing())
        return super()._chart(tile, places)

    def _adding(self, tile: int, layers: Layers) -> Adding:
        patterns = layers.coarse, layers.fine, *layers.energy
        chart = self.ground.large.splines[tile], layers.offset, *patterns
        numbers = self.ground.crowded, self.ground.polarisation

        def add(vectors: np.ndarray, where: np.ndarray, maps: np.ndarray) -> None:
            _add(*(vectors, tile, *self.tiling.geometry, *chart, *numbers, where, maps))

        return add

    def _offset(self, tile: int, waves: np.ndarray) -> np.ndarray:
        """What keeps the intensity; see :meth:`pysm_vae.sky.ground.Ground.offset`.

        By what the exponential does to T. What blocks add is not known but where it is wanted, so
        that it is taken to do more of the same, in proportion to its variance.
        """
        large, plane = self.ground.large, self._plane
        t = (waves[0] * plane.interpolation)[None]
        if self._larger is not None:
            t = np.concatenate([t, t * self._larger])
        # Smooth enough to be the same in the pixels between its own.
        rough = large.values(tile, min(plane.depth, large.depth))[0].astype(np.float32)
        block = plane.size // len(rough)
        fields = plane.fields(t) * rough.repeat(block, axis=0).repeat(block, axis=1)
        larger = fields[1] if len(fields) > 1 else None
        return spline(self.ground.offset(fields[0], larger, self._further)).astype(np.float32)

    def _variance_beyond(self) -> float:
        """Variance of T that the calibration has not seen, over what whole charts have of it."""
        plane, variance = self._plane, self.ground.variance
        seen, known = variance(partial(resolved_share, depth=DEPTH)), variance(plane.passed)
        every = known
        if self.depth > plane.depth:
            every = variance(
                lambda ell: plane.passed(ell) * large_share(ell) + self._block.passed(ell)
            )
        # Mosaics of patches have a fine grid at any nside, even where it has nothing to hold.
        return (every - seen) / (known - seen) if known > seen else 1.0


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _add(
    vectors, tile, centres, easts, norths, overlap,
    large, offset, coarse, fine, energies, numbers, crowded, polarisation, where, maps,
):  # fmt: skip
    """Add one chart's fields at some points."""
    npix = vectors.shape[0]
    weights, places, turns = np.empty(npix), np.empty((npix, 2)), np.empty((npix, 2))
    see(vectors, tile, centres, easts, norths, overlap, weights, places, turns)
    gains = np.empty(2)
    for p in range(npix):
        weight = weights[p]
        if weight == 0.0:
            continue
        # Field by field, which is faster than any loop.
        mean = at(offset, spot(offset.shape[0], places[p]))
        on = spot(large.shape[1], places[p])
        rough, i = at(large[0], on), at(large[1], on)
        large_q, large_u = at(large[2], on), at(large[3], on)
        on = spot(coarse.shape[1], places[p])
        small_t, small_q, small_u = at(coarse[0], on), at(coarse[1], on), at(coarse[2], on)
        fine_t = fine_q = fine_u = np.float32(0.0)
        if fine.shape[1] > 0:
            on = spot(fine.shape[1], places[p])
            fine_t, fine_q, fine_u = at(fine[0], on), at(fine[1], on), at(fine[2], on)
        # On most of the sky all these are 1.
        steep = fade = gains[0] = gains[1] = 1.0
        if weight < 1.0:
            seam_gains(energies, numbers, weight, weight, places[p], gains)
            steep, fade = steep_gain(weight), seam_fade(weight)
        share = weight * weight
        crowding = 1.0 / math.sqrt(1.0 + math.exp(i - crowded))
        factor = weight * crowding
        t = crowding * rough * gains[0] * (steep * small_t + fine_t)
        if t > KNEE:
            t = KNEE + RANGE * math.tanh((t - KNEE) / RANGE)
        polarised = (large_q**2 + large_u**2) / polarisation**2
        modulation = crowding * math.sqrt(0.5 * (1.0 + polarised))
        own = weight * gains[1]
        q = share * large_q + modulation * (fade * small_q + own * fine_q)
        u = share * large_u + modulation * (fade * small_u + own * fine_u)
        pixel = where[p]
        maps[0, pixel] += share * i + weight * t + factor * factor * mean
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
