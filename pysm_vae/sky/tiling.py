r"""Twelve charts that cover the sphere, and the compiled way from a chart to HEALPix pixels.

The charts are stereographic, about the vertices of an icosahedron (one at each pole), and each
serves the sky that is nearest to its centre: a pentagon 63° from side to side. Everything within
a chart is drawn on one continuous plane, so that there are seams only where two charts meet.

Chart
    A point at distance :math:`d` from the centre lies at radius :math:`2\tan(d/2)`, in its true
    bearing (FITS ``STG``; Calabretta & Greisen 2002, section 5.1.4). The projection is conformal:
    nothing is sheared, so patterns stay isotropic and E does not turn into B. Lengths on the sky
    are :math:`s = \cos^2(d/2)` times those on the chart, 1 at the centre and 0.89 at the corners.
    The axes at the centre are x along :math:`e_\varphi` (east, growing longitude) and y along
    :math:`-e_\theta` (north). A chart is a square of ``CELLS`` x ``CELLS`` cells, and a grid on it
    has a power of two of pixels a cell. Arrays are ``[row, column] = [y, x]``, and the centre of
    the chart is at pixel ``(size - 1) / 2``. Drawn with the origin at the bottom, a chart is the
    mirror image of the usual picture of the sky, where east is on the left.

Windows
    A softened Voronoi partition. With :math:`d_t` the great-circle distance to the centre of chart
    t and c a quintic step from 1 (argument :math:`\le 0`) to 0 (:math:`\ge 1`),

    .. math:: r_t = \prod_{s:\,d_s < d_t} c\big((d_t - d_s) / \mathrm{overlap}\big), \qquad
              w_t = r_t \Big/ \sqrt{\textstyle\sum_s r_s^2} .

    The nearest chart has r = 1, a chart farther than the nearest by ``overlap`` or more has r = 0,
    and :math:`\sum w^2 = 1`, so independent charts keep their variance. A step in the excess over
    the *nearest* chart would have a kink wherever the nearest chart changes inside a triple
    overlap; the product has none, and since the step (in amplitude, not in power) has two
    vanishing derivatives at both ends, the weights themselves are twice differentiable.

Polarisation
    Q and U are in HEALPix's COSMO convention: the angle is counted from :math:`e_\theta` (south)
    towards :math:`e_\varphi` (east). A chart's Q and U refer to its axes, which are at each point
    those of its centre carried there along the great circle, and are rotated to the pixel's own
    axes. On the chart, HEALPix's E and B at wavevector (kx, ky) are therefore

    .. math:: Q + iU = (E + iB)\, (k_y^2 - k_x^2 - 2i\, k_x k_y) / k^2 .
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import ducc0
import healpy as hp
import numba
import numpy as np

from pysm_vae.threads import over

#: Side of a cell in radians, at the centre of a chart: with 16 pixels a cell, the patterns of
#: nside 512 end where the chart's grid does (see :mod:`pysm_vae.sky.planes`).
CELL = 0.03344
#: Cells along the side of a chart. The windows need 43.0; the rest keeps the edges' effects away.
CELLS = 45
#: Default overlap in degrees, and the widest: the chart still holds every window with a cell to
#: spare on each side.
OVERLAP = 2.9
#: Pixels worked on at a time: bounds the memory used beside the output.
CHUNK = 1 << 17
# At most so many windows overlap: at the corners of the pentagons.
_MOST = 3
# Distance in radians of a pentagon's sides from its centre: half of that between two centres.
_INRADIUS = 0.5 * math.acos(1 / math.sqrt(5))


def _axes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres of the charts, and the unit vectors east and north there, each (12, 3)."""
    lower = math.atan(0.5)
    latitude = np.array([math.pi / 2, *5 * [lower], *5 * [-lower], -math.pi / 2])
    longitude = np.radians([0, *range(0, 360, 72), *range(36, 396, 72), 0])
    zero = np.zeros_like(longitude)
    cosine, sine = np.cos(latitude), np.sin(latitude)
    centres = np.stack([cosine * np.cos(longitude), cosine * np.sin(longitude), sine], axis=1)
    easts = np.stack([-np.sin(longitude), np.cos(longitude), zero], axis=1)
    return centres, easts, np.cross(centres, easts)


@numba.njit(cache=True, error_model="numpy")
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@numba.njit(cache=True, error_model="numpy")
def smooth_step(x):
    """Quintic step from 0 at 0 to 1 at 1, twice differentiable with what is constant beyond."""
    return x * x * x * (10.0 + x * (6.0 * x - 15.0))


@numba.njit(cache=True, error_model="numpy")
def _window(vector, centres, overlap, tiles, weights):
    """Fill ``tiles`` and ``weights`` with those of non-zero weight at one point; count them."""
    largest, nearest = -1.0, 0
    for t in range(centres.shape[0]):
        cosine = _dot(vector, centres[t])
        if cosine > largest:
            largest, nearest = cosine, t
    if largest > math.cos(_INRADIUS - 0.5 * overlap):
        tiles[0], weights[0] = nearest, 1.0
        return 1
    distance = np.empty(_MOST)
    least = math.cos(math.acos(largest) + overlap)
    count = 0
    for t in range(centres.shape[0]):
        cosine = _dot(vector, centres[t])
        if cosine > least and count < _MOST:
            tiles[count] = t
            distance[count] = cosine
            count += 1
    if count == 1:
        weights[0] = 1.0
        return 1
    for a in range(count):
        distance[a] = math.acos(distance[a])
    power = 0.0
    for a in range(count):
        raw = 1.0
        for b in range(count):
            x = (distance[a] - distance[b]) / overlap
            if x >= 1.0:
                raw = 0.0
            elif x > 0.0:
                raw *= 1.0 - smooth_step(x)
        weights[a] = raw
        power += raw * raw
    kept = 0
    for a in range(count):
        if weights[a] > 0.0:
            tiles[kept] = tiles[a]
            weights[kept] = weights[a] / math.sqrt(power)
            kept += 1
    return kept


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _windows(vectors, centres, overlap, tiles, weights):
    """Tiles and weights of pixels, padded with -1 and 0."""
    for p in range(vectors.shape[0]):
        count = _window(vectors[p], centres, overlap, tiles[p], weights[p])
        for rest in range(count, _MOST):
            tiles[p, rest] = -1
            weights[p, rest] = 0.0


@numba.njit(cache=True, error_model="numpy")
def _chart(vector, centre, east, north, place, turn):
    """A point's x and y on a chart, and cos and sin of twice the chart's turn there."""
    n0, n1, n2 = vector[0], vector[1], vector[2]
    eastward = n0 * east[0] + n1 * east[1]
    northward = n0 * north[0] + n1 * north[1] + n2 * north[2]
    inverse = 1.0 / (1.0 + n0 * centre[0] + n1 * centre[1] + n2 * centre[2])
    place[0] = 2.0 * inverse * eastward
    place[1] = 2.0 * inverse * northward
    # The point's east (its third component is 0) and north.
    sine = math.sqrt(n0 * n0 + n1 * n1)
    e0, e1 = 0.0, 1.0
    if sine > 0.0:
        e0, e1 = -n1 / sine, n0 / sine
    m0, m1, m2 = -n2 * e1, n2 * e0, sine
    # The chart's east carried along the great circle from its centre to the point,
    # E - (E.n)(C + n)/(1 + C.n), on the point's east and north: the angle psi by which the
    # chart's axes are turned from the point's.
    carry = eastward * inverse
    cosine = east[0] * e0 + east[1] * e1 - carry * (centre[0] * e0 + centre[1] * e1)
    sinus = east[0] * m0 + east[1] * m1
    sinus -= carry * (centre[0] * m0 + centre[1] * m1 + centre[2] * m2)
    turn[0] = cosine * cosine - sinus * sinus
    turn[1] = 2.0 * cosine * sinus


@numba.njit(cache=True, error_model="numpy", nogil=True)
def see(vectors, tile, centres, easts, norths, overlap, weights, places, turns):
    """Fill the weight of one chart at points, and their places and turns on it.

    For compiled code, too. The point opposite to the chart's centre has no place, but infinities.
    """
    tiles, found = np.empty(_MOST, np.int64), np.empty(_MOST)
    inside = math.cos(_INRADIUS - 0.5 * overlap)
    for p in range(vectors.shape[0]):
        cosine = _dot(vectors[p], centres[tile])
        if cosine > inside:
            weights[p] = 1.0
        else:
            # Most are so near to another chart, or so far from any, that there is no more to it.
            other = -1.0
            for t in range(centres.shape[0]):
                if t != tile:
                    other = max(other, _dot(vectors[p], centres[t]))
            distance = math.acos(max(-1.0, cosine))
            if other >= math.cos(distance - overlap):
                weights[p] = 0.0
            elif other <= math.cos(distance + overlap):
                weights[p] = 1.0
            else:
                weights[p] = 0.0
                for a in range(_window(vectors[p], centres, overlap, tiles, found)):
                    if tiles[a] == tile:
                        weights[p] = found[a]
        _chart(vectors[p], centres[tile], easts[tile], norths[tile], places[p], turns[p])


@numba.njit(cache=True, error_model="numpy")
def _keep_seen(start, weights, places, turns, count, where, kept_weights, kept_places, kept_turns):
    """Append the points with weight, which begin at ``start``, to a view that has ``count``."""
    for p in range(len(weights)):
        if weights[p] > 0.0:
            where[count] = start + p
            kept_weights[count] = weights[p]
            # Element by element: rows take seconds to compile.
            for k in range(2):
                kept_places[count, k] = places[p, k]
                kept_turns[count, k] = turns[p, k]
            count += 1
    return count


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _evaluate(start, stop, coeffs, places, turns, out):
    """Cubic splines at places on the chart; the last two fields are Q and U if there are three."""
    nfields = coeffs.shape[0]
    values = np.empty(nfields)
    for p in range(start, stop):
        where = spot(coeffs.shape[1], places[p])
        for f in range(nfields):
            values[f] = at(coeffs[f], where)
        if nfields > 2:
            q, u = values[nfields - 2], values[nfields - 1]
            values[nfields - 2] = turns[p, 0] * q - turns[p, 1] * u
            values[nfields - 1] = turns[p, 1] * q + turns[p, 0] * u
        for f in range(nfields):
            out[f, p] = values[f]


@numba.njit(cache=True, error_model="numpy")
def spot(size, place):
    """Find a place on a chart's grid of ``size`` pixels a side; for compiled code.

    Gives the first row and column of the 16 pixels whose cubic B-splines are not zero there, and
    the splines' values along rows and columns. :func:`at` takes it.
    """
    scale = size / (CELLS * CELL)
    x = 0.5 * (size - 1) + place[0] * scale
    y = 0.5 * (size - 1) + place[1] * scale
    ix, iy = math.floor(x), math.floor(y)
    down, across = _taps(np.float32(y - iy)), _taps(np.float32(x - ix))
    # Unsigned, so that no access is looked at for a negative index.
    return np.uintp(iy - 1), np.uintp(ix - 1), down, across


# A sum in another order is as good, and lets the compiler work on four columns at a time; which
# order that is does not depend on the place. In loops over fields it tries to work on several
# fields instead, which is several times slower.
@numba.njit(cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def at(coeffs, where):
    """Value of a cubic spline at a :func:`spot`; for compiled code.

    ``coeffs`` has shape (size, size); single precision is the fastest.
    """
    top, j0, (d0, d1, d2, d3), (a0, a1, a2, a3) = where
    one = np.uintp(1)
    second = top + one
    third = second + one
    r0, r1, r2, r3 = coeffs[top], coeffs[second], coeffs[third], coeffs[third + one]
    j1 = j0 + one
    j2 = j1 + one
    j3 = j2 + one
    c0 = d0 * r0[j0] + d1 * r1[j0] + d2 * r2[j0] + d3 * r3[j0]
    c1 = d0 * r0[j1] + d1 * r1[j1] + d2 * r2[j1] + d3 * r3[j1]
    c2 = d0 * r0[j2] + d1 * r1[j2] + d2 * r2[j2] + d3 * r3[j2]
    c3 = d0 * r0[j3] + d1 * r1[j3] + d2 * r2[j3] + d3 * r3[j3]
    return a0 * c0 + a1 * c1 + a2 * c2 + a3 * c3


@numba.njit(cache=True, error_model="numpy")
def _taps(u):
    """Weights of the four cubic B-splines that are non-zero at fraction ``u`` of a pixel."""
    one, three, four, six = np.float32(1), np.float32(3), np.float32(4), np.float32(6)
    v = one - u
    return (
        v * v * v / six,
        (four + u * u * (three * u - six)) / six,
        (four + v * v * (three * v - six)) / six,
        u * u * u / six,
    )


class View(NamedTuple):
    """Pixels as a chart sees them.

    Attributes
    ----------
    where : int64 array, shape (n,)
        Which of the pixels that were asked for have weight on the chart.
    weights : float64 array, shape (n,)
        The chart's weight on them.
    places : float64 array, shape (n, 2)
        Their x and y on the chart, radians.
    turns : float64 array, shape (n, 2)
        The cosine and sine of twice the chart's turn there; see :meth:`Tiling.turns`.
    """

    where: np.ndarray
    weights: np.ndarray
    places: np.ndarray
    turns: np.ndarray

    def part(self, piece: slice) -> View:
        """Some of the pixels."""
        return View(*(array[piece] for array in self))


class Tiling:
    """The charts, their windows, and the values of splines on them at HEALPix pixels.

    Chart 0 is about the north pole, 1 to 5 about latitude 26.6° and longitudes 0°, 72°, …, 6 to 10
    about latitude -26.6° and longitudes 36°, 108°, …, 11 about the south pole. The module's
    docstring gives the projection, the windows and the polarisation convention.

    Parameters
    ----------
    overlap : float
        In degrees: how much farther than the nearest chart's centre another chart's still
        contributes, which is about the width of the strip shared by two neighbours.

    Attributes
    ----------
    ntiles : int
        Twelve.
    overlap : float
        In degrees.
    radius : float
        Largest distance in radians from a chart's centre at which it has weight.
    centres, easts, norths : array, shape (12, 3)
        Unit vectors: the centre of each chart and its axes x and y there.

    Raises
    ------
    ValueError
        If the overlap is out of its range.
    """

    def __init__(self, overlap: float = OVERLAP) -> None:
        if not 0 < overlap <= OVERLAP:
            raise ValueError(
                f"overlap must be above 0 and at most {OVERLAP} degrees, not {overlap}"
            )
        self.overlap = float(overlap)
        self.centres, self.easts, self.norths = _axes()
        self.ntiles = len(self.centres)
        # Straight on beyond a corner of its pentagon, where three charts meet at 120°, the chart's
        # centre gets farther than its neighbours' by one and a half times the way; on a sphere by a
        # little less, hence the tenth.
        corner = math.acos(math.sqrt((5 + 2 * math.sqrt(5)) / 15))
        self.radius = corner + 1.1 * math.radians(self.overlap) / 1.5

    def vectors(self, tile: int, size: int) -> np.ndarray:
        """Directions of the pixel centres of a chart's grid.

        Parameters
        ----------
        tile : int
            Number of the chart.
        size : int
            Pixels a side.

        Returns
        -------
        array, shape (size, size, 3)
            Unit vectors, ``[y, x]``.
        """
        x, y = axis(size)[None, :, None], axis(size)[:, None, None]
        quarter = (x**2 + y**2) / 4
        tangent = x * self.easts[tile] + y * self.norths[tile]
        return ((1 - quarter) * self.centres[tile] + tangent) / (1 + quarter)

    def charts(
        self, nside: int, pixels: np.ndarray | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Charts in turn, each with the pixels that it may have weight on.

        Parameters
        ----------
        nside : int
            Resolution of the pixels.
        pixels : array of int, shape (npix,), optional
            RING pixels, in any order; by default the full sky.

        Yields
        ------
        tile : int
            Number of a chart.
        where : int64 array
            Indices into the list of pixels, or the pixels of the full sky, that are within
            :attr:`radius` of its centre. Maybe none.
        """
        if pixels is None:
            for tile, centre in enumerate(self.centres):
                yield tile, hp.query_disc(nside, centre, self.radius)
            return
        near = np.zeros(len(pixels), np.uint16)
        for start in range(0, len(pixels), CHUNK):
            vectors = directions(nside, pixels[start : start + CHUNK])
            # Not by a BLAS; see `pysm_vae.sky.largescales.finer`.
            inside = np.einsum("pk,tk->pt", vectors, self.centres) >= math.cos(self.radius)
            near[start : start + CHUNK] = inside @ (1 << np.arange(self.ntiles))
        for tile in range(self.ntiles):
            yield tile, np.flatnonzero(near & (1 << tile))

    def locate(self, tile: int, nside: int, pixels: np.ndarray) -> View:
        """See where HEALPix pixels lie on a chart.

        Parameters
        ----------
        tile : int
            Number of the chart.
        nside : int
            Resolution of the pixels.
        pixels : array of int64, shape (npix,)
            RING pixels.

        Returns
        -------
        View
            Of those pixels on which the chart has weight.
        """
        view = View(
            np.empty(len(pixels), np.int64),
            np.empty(len(pixels)),
            np.empty((len(pixels), 2)),
            np.empty((len(pixels), 2)),
        )
        count = 0
        for start in range(0, len(pixels), CHUNK):
            vectors = directions(nside, pixels[start : start + CHUNK])
            count = _keep_seen(start, *self._see(tile, vectors), count, *view)
        return view.part(slice(0, count))

    def evaluate(self, view: View, layers: list[np.ndarray]) -> list[np.ndarray]:
        """Values of splines on a chart at the pixels of a view.

        A pixel's values do not depend on the other pixels asked for, to the last bit.

        Parameters
        ----------
        view : View
            From :meth:`locate`.
        layers : list of array, each (nfields, size, size)
            Cubic B-spline coefficients on grids of the chart. If there are three fields or more,
            the last two are Q and U in the chart's frame (COSMO).

        Returns
        -------
        list of float64 array, each (nfields, n)
            Of each layer; Q and U in each pixel's HEALPix (COSMO) frame.
        """

        def evaluated(layer: np.ndarray) -> np.ndarray:
            found = np.empty((len(layer), len(view.where)))
            of = layer, view.places, view.turns, found
            over(len(view.where), lambda start, stop: _evaluate(start, stop, *of))
            return found

        return [evaluated(layer) for layer in layers]

    def window(self, tile: int, vectors: np.ndarray) -> np.ndarray:
        """Weight of one chart at any points (unit vectors, shape (n, 3)), shape (n,)."""
        return self._see(tile, vectors)[0]

    def window_on(self, tile: int, size: int) -> np.ndarray:
        """Weight of one chart on its own grid.

        Parameters
        ----------
        tile : int
            Number of the chart.
        size : int
            Pixels a side.

        Returns
        -------
        float32 array, shape (size, size)
            Read-only.
        """
        return _pentagon(self.overlap, size, self.kind(tile))

    def kind(self, tile: int) -> int:
        """The first chart whose window has the shape of this one's, and lies alike.

        The neighbours of charts 1 to 5 lie alike, and those of all others like these upside down.
        """
        return 1 if 1 <= tile <= 5 else 0

    def turns(self, tile: int, vectors: np.ndarray) -> np.ndarray:
        r"""How a chart's axes are turned from the sky's at any points.

        Parameters
        ----------
        tile : int
            Number of the chart.
        vectors : array, shape (n, 3)
            Unit vectors.

        Returns
        -------
        array, shape (2, n)
            :math:`\cos 2\psi` and :math:`\sin 2\psi`: the sky's Q is
            :math:`Q\cos 2\psi - U\sin 2\psi` of the chart's, its U is
            :math:`Q\sin 2\psi + U\cos 2\psi`.
        """
        return self._see(tile, vectors)[2].T

    @property
    def geometry(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Centres, axes x and y, and the overlap in radians, as :func:`see` takes them."""
        return self.centres, self.easts, self.norths, math.radians(self.overlap)

    def _see(self, tile: int, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weights = np.empty(len(vectors))
        places, turns = np.empty((2, len(vectors), 2))

        def part(start: int, stop: int) -> None:
            each = slice(start, stop)
            see(vectors[each], tile, *self.geometry, weights[each], places[each], turns[each])

        over(len(vectors), part)
        return weights, places, turns

    def weights(
        self, nside: int, pixels: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Charts that contribute to pixels, and their weights.

        Parameters
        ----------
        nside : int
            Resolution of the pixels.
        pixels : array of int, shape (npix,), optional
            RING pixels; by default the full sky.

        Returns
        -------
        tiles : int64 array, shape (npix, 3)
            Charts of non-zero weight, then -1.
        weights : float64 array, shape (npix, 3)
            Their weights, then 0. The squares of a pixel's weights sum to one.
        """
        pixels = np.arange(hp.nside2npix(nside)) if pixels is None else pixels
        tiles = np.empty((len(pixels), _MOST), np.int64)
        weights = np.empty((len(pixels), _MOST))

        def part(start: int, stop: int) -> None:
            vectors = directions(nside, pixels[start:stop])
            overlap = math.radians(self.overlap)
            _windows(vectors, self.centres, overlap, tiles[start:stop], weights[start:stop])

        over(len(pixels), part)
        return tiles, weights


# Either way up, of the grids that a ground is measured on and a sky is drawn on.
@lru_cache(maxsize=8)
def _pentagon(overlap: float, size: int, tile: int) -> np.ndarray:
    tiling = Tiling(overlap)
    window = tiling.window(tile, tiling.vectors(tile, size).reshape(-1, 3)).astype(np.float32)
    window.flags.writeable = False
    return window.reshape(size, size)


def axis(size: int) -> np.ndarray:
    """Coordinates of pixel centres along an axis of a chart, radians."""
    return (np.arange(size) - (size - 1) / 2) * (CELLS * CELL / size)


def local_scale(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Lengths on the sky over those on a chart, shape (y.size, x.size).

    Parameters
    ----------
    y, x : array
        Coordinates of rows and columns on the chart, radians.
    """
    return 1 / (1 + (y[:, None] ** 2 + x**2) / 4)


def occupied(places: np.ndarray, size: int) -> np.ndarray:
    """Find the squares of a grid over a chart in which there are places.

    Parameters
    ----------
    places : array, shape (n, 2)
        x and y on the chart, radians.
    size : int
        Squares a side.

    Returns
    -------
    array of bool, shape (size, size)
        ``[y, x]``.
    """
    squares = np.zeros((size, size), bool)
    _occupy(places, squares)
    return squares


@numba.njit(cache=True, error_model="numpy")
def _occupy(places, squares):
    size = squares.shape[0]
    scale = size / (CELLS * CELL)
    for p in range(len(places)):
        column = math.floor(places[p, 0] * scale + 0.5 * size)
        row = math.floor(places[p, 1] * scale + 0.5 * size)
        squares[row, column] = True


def directions(nside: int, pixels: np.ndarray) -> np.ndarray:
    """Unit vectors of RING pixels, shape (npix, 3)."""
    base = ducc0.healpix.Healpix_Base(int(nside), "RING")
    return base.pix2vec(np.ascontiguousarray(pixels))
