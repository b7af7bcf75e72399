"""What the large scales are on the charts, and what they ask of the small ones."""

from __future__ import annotations

from functools import lru_cache

import healpy as hp
import numpy as np
import scipy.ndimage
import scipy.sparse
from scipy.interpolate import BSpline, make_interp_spline

from pysm_vae.sky.planes import Plane
from pysm_vae.sky.templates import Template, handover
from pysm_vae.sky.tiling import CELL, CELLS, Tiling
from pysm_vae.vae.generator import Generator

#: Large scales are sampled this many times in the shortest of their waves.
OVERSAMPLING = 7.0
#: HEALPix resolution at which the sky's roughness is measured.
NSIDE = 64
#: Below these multipoles the sky's slopes are geometry: the disc's, not the dust's texture.
GEOMETRY_ELL = 16.0
#: The roughness of a place is that of the sky within this width (FWHM, degrees) around it.
ROUGHNESS_WIDTH = 12.0
#: Roughness is held within these factors of its median: near the Galactic plane the template
#: varies by the geometry of the disc, not by the texture of the dust.
ROUGHNESS_RANGE = (0.5, 2.0)
# Pixels that a spline's field goes on: of a kink there, a factor of 0.27 is left in each.
_BEYOND = 20


class LargeScales:
    """The template on the charts, and the maps that a conditional generator draws T for.

    Such a map is the template's i, less its largest scales, over the roughness of the place: the
    amplitude that its texture has there, in units of the network's own coarsest maps.

    Parameters
    ----------
    template : Template
        The large scales.
    generator : Generator
        For the scale of its coarsest maps.
    tiling : Tiling
        The charts.
    split : (float, float)
        Where the template hands over.

    Attributes
    ----------
    size : int
        Pixels a side of the charts' grids.
    splines : ndarray, float32, shape (12, 4, size, size)
        Cubic B-spline coefficients on each chart of the roughness (over its median over the sky,
        within ``ROUGHNESS_RANGE``) and of i, q and u in the chart's frame.
    """

    def __init__(
        self,
        template: Template,
        generator: Generator,
        tiling: Tiling,
        split: tuple[float, float],
    ) -> None:
        self.template = template
        self.tiling = tiling
        wave = 2 * np.pi / template.lmax
        self.depth = max(1, int(np.ceil(np.log2(OVERSAMPLING * CELL / wave))))
        self.size = CELLS << self.depth
        self._texture, self._roughness, self._median = None, None, 1.0
        if generator.conditional:
            self._measure_roughness(generator, split)
        self._fields = [self._sample(tile) for tile in range(tiling.ntiles)]
        self.splines = np.array(
            [[spline(field) for field in each[:4]] for each in self._fields], np.float32
        )

    def target(self, tile: int, depth: int) -> np.ndarray:
        """The map that T is drawn for, at the pixels of a chart's grid.

        Parameters
        ----------
        tile : int
            Number of the chart.
        depth : int
            There are ``2**depth`` pixels a cell.

        Returns
        -------
        ndarray, float32, shape (CELLS << depth, CELLS << depth)
            In the network's units; zero if the generator is not conditional.
        """
        return self._at(self._fields[tile][4], depth).astype(np.float32)

    def values(self, tile: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Roughness and i at the pixels of a chart's grid of ``2**depth`` pixels a cell."""
        return self._at(self._fields[tile][0], depth), self._at(self._fields[tile][1], depth)

    def _at(self, field: np.ndarray, depth: int) -> np.ndarray:
        if depth == self.depth:
            return field
        if depth > self.depth:
            return finer(field, 1 << (depth - self.depth))
        return coarser(field, 1 << (self.depth - depth))

    def roughness(self, theta: np.ndarray, phi: np.ndarray) -> np.ndarray:
        """Roughness over its median, at any positions (radians)."""
        if self._roughness is None:
            return np.ones_like(theta)
        values = hp.get_interp_val(self._roughness, theta, phi) / self._median
        return np.clip(values, *ROUGHNESS_RANGE)

    def _measure_roughness(self, generator: Generator, split: tuple[float, float]) -> None:
        lmax = self.template.lmax
        self._texture = hp.almxfl(self.template.alm[0], _high_pass(np.arange(lmax + 1)))
        found = hp.alm2map(self._texture, NSIDE)
        square = hp.smoothing(found**2, fwhm=np.radians(ROUGHNESS_WIDTH), lmax=2 * NSIDE, iter=1)
        # Of the network's maps, as far as the template reaches.
        power = generator.coarse_power(CELLS)
        k = np.fft.fftfreq(CELLS)
        mode = Plane.ell_of(np.hypot(*np.meshgrid(k, k)))
        own = np.mean(power * (handover(mode, *split) * _high_pass(mode)) ** 2)
        # Ringing of the smoothing must not make it negative.
        self._roughness = np.sqrt(np.maximum(square, 1e-4 * np.median(square)) / own)
        self._median = np.median(self._roughness)

    def _sample(self, tile: int) -> np.ndarray:
        """Roughness, i, q, u and the target on one chart, (5, size, size)."""
        vectors = self.tiling.vectors(tile, self.size).reshape(-1, 3)
        theta, phi = hp.vec2ang(vectors)
        i, q, u = self.template.fields(theta, phi)
        cos2, sin2 = self.tiling.turns(tile, vectors)
        frame = np.stack([cos2 * q + sin2 * u, cos2 * u - sin2 * q])
        rough, target = np.ones_like(i), np.zeros_like(i)
        if self._texture is not None:
            rough = self.roughness(theta, phi)
            alm = np.stack([self._texture, *2 * [np.zeros_like(self._texture)]])
            texture = Template(name="texture", alm=alm).fields(theta, phi)[0]
            target = texture / hp.get_interp_val(self._roughness, theta, phi)
        return np.stack([rough, i, *frame, target]).reshape(5, self.size, self.size)


def _high_pass(ell: np.ndarray) -> np.ndarray:
    """Amplitude of what is taken for texture at multipoles."""
    return -np.expm1(-0.5 * (ell / GEOMETRY_ELL) ** 2)


def spline(field: np.ndarray) -> np.ndarray:
    """Coefficients of the cubic spline through a field that goes on, straight, beyond its edges."""
    beyond = np.pad(field, _BEYOND, mode="reflect", reflect_type="odd")
    return scipy.ndimage.spline_filter(beyond, mode="mirror")[_BEYOND:-_BEYOND, _BEYOND:-_BEYOND]


def coarser(fields: np.ndarray, factor: int) -> np.ndarray:
    """Means of fields, (..., size, size), over the pixels of a grid ``factor`` times as coarse."""
    # Line by line: a mean along so short an axis takes ten times as long.
    nothing = np.zeros((), fields.dtype)
    rows = sum((fields[..., first::factor, :] for first in range(factor)), nothing)
    return sum((rows[..., first::factor] for first in range(factor)), nothing) / factor**2


def finer(field: np.ndarray, factor: int) -> np.ndarray:
    """A cubic spline through a square field, at the pixels of a grid ``factor`` times as fine.

    With sparse matrices, which no BLAS multiplies: its threads wait for the next ones by spinning,
    and take the cores from those that draw.
    """
    x = np.arange(len(field))
    values = _spline_values(len(field), factor)
    for _ in range(2):
        field = (values @ make_interp_spline(x, field).c).T
    return field


@lru_cache(maxsize=8)
def _spline_values(size: int, factor: int) -> scipy.sparse.csr_array:
    """From the coefficients of a spline to its values on the finer grid."""
    knots = make_interp_spline(np.arange(size), np.zeros(size)).t
    fine = (np.arange(size * factor) + 0.5) / factor - 0.5
    return BSpline.design_matrix(fine, knots, 3, extrapolate=True)
