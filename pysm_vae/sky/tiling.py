r"""Flat tiles on the sphere: centres, windows, and the compiled way from tile to HEALPix pixels.

A tile is a flat square chart in the zenithal equal-area projection about the centre of a HEALPix
pixel of ``tile_nside``. A sky pixel depends only on the tiles that cover it, so any set of pixels
can be asked for, in any order and on any number of processes, and each gets the same bits.

Chart
    Lambert's azimuthal equal-area projection (FITS ``ZEA``; Calabretta & Greisen 2002, section
    5.1.6): a point at distance :math:`d` from the centre lies at radius :math:`2\sin(d/2)`, in
    its true bearing. The axes at the centre are x along :math:`e_\varphi` (east, growing
    longitude) and y along :math:`-e_\theta` (north). Arrays are ``[row, column] = [y, x]`` and
    the centre of the tile is at pixel ``(size - 1) / 2``. Drawn with the origin at the bottom, a
    tile is the mirror image of the usual picture of the sky, where east is on the left.

Windows
    A softened Voronoi partition. With :math:`d_t` the great-circle distance to the centre of tile
    t and c a quintic step from 1 (argument :math:`\le 0`) to 0 (:math:`\ge 1`),

    .. math:: r_t = \prod_{s:\,d_s < d_t} c\big((d_t - d_s) / \mathrm{overlap}\big), \qquad
              w_t = r_t \Big/ \sqrt{\textstyle\sum_s r_s^2} .

    The nearest tile has r = 1, a tile farther than the nearest by ``overlap`` or more has r = 0,
    and :math:`\sum w^2 = 1`, so independent tiles keep their variance. A step in the excess over
    the *nearest* tile would have a kink wherever the nearest tile changes inside a triple
    overlap; the product has none, and since the step (in amplitude, not in power) has two
    vanishing derivatives at both ends, the weights themselves are twice differentiable.

Polarisation
    Q and U are in HEALPix's COSMO convention: the angle is counted from :math:`e_\theta` (south)
    towards :math:`e_\varphi` (east). A tile's Q and U refer to its chart: at each point of it, to
    the axes of its centre carried there along the great circle (the zenithal frame, since the
    projection keeps the radial direction), and are rotated to the pixel's own axes. On the chart,
    HEALPix's E and B at wavevector (kx, ky) are therefore

    .. math:: Q + iU = (E + iB)\, (k_y^2 - k_x^2 - 2i\, k_x k_y) / k^2 .
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import ducc0
import healpy as hp
import numba
import numpy as np
import scipy.fft

#: Pixels kept free around the widest window: two for the taps of the spline, two for the ringing
#: of a spline whose patch is not periodic (it falls by 0.27 a pixel).
MARGIN = 4
#: Default overlap in units of the spacing of the tiles: 2.4° for the 7.33° of tile_nside 8.
OVERLAP = 2.4 / 7.329037678543799
#: The widest overlap in those units. The nine candidates of a pixel hold every tile of non-zero
#: weight up to 0.65 (tile_nside 2), 0.51 (8), 0.47 (32), found by brute force; it falls slowly.
MAX_OVERLAP = 0.4
#: Pixels worked on at a time: bounds the memory used beside the output.
CHUNK = 1 << 17
#: Pixels a thread takes at a time.
BLOCK = 1 << 10


def bspline_prefilter_response(k: np.ndarray) -> np.ndarray:
    """Fourier response of the sampled cubic B-spline along one axis.

    Dividing the transform of samples by it, once an axis, gives the coefficients of the cubic
    spline through these samples: B3(k) = (2 + cos 2πk) / 3 (Unser 1999, IEEE Signal Processing
    Magazine 16(6), 22).

    Parameters
    ----------
    k : array
        Frequency in cycles per pixel.

    Returns
    -------
    array
        The response, between 1/3 (Nyquist) and 1 (k = 0).
    """
    return (2 + np.cos(2 * np.pi * np.asarray(k))) / 3


def spline_coefficients(patches: np.ndarray) -> np.ndarray:
    """Coefficients of the periodic cubic splines through patches.

    Between the samples a spline is a low-pass: a mode of k cycles per pixel along one axis keeps
    the amplitude sinc(k)**4 / B3(k), which is 0.995, 0.986, 0.963, 0.826 at k = 0.2, 0.25, 0.3,
    0.4. Its images beyond Nyquist hold 0.02 % of the power at k = 0.25, 0.1 % at 0.3, 3 % at 0.4.

    Parameters
    ----------
    patches : array, shape (..., ny, nx)
        Samples. A patch that is not periodic is interpolated exactly at its samples too, but
        rings between them next to its edges (a factor of 0.27 less each pixel inwards).

    Returns
    -------
    array, shape (..., ny, nx)
        The coefficients; float32 for float32 samples, else float64.

    Raises
    ------
    ValueError
        If ``patches`` has fewer than two axes.
    """
    patches = np.asarray(patches)
    if patches.ndim < 2:
        raise ValueError(f"patches needs two axes or more (..., ny, nx), not shape {patches.shape}")
    if patches.dtype != np.float32:
        patches = patches.astype(np.float64)
    ny, nx = patches.shape[-2:]
    response = np.outer(
        bspline_prefilter_response(scipy.fft.fftfreq(ny)),
        bspline_prefilter_response(scipy.fft.rfftfreq(nx)),
    ).astype(patches.dtype)
    return scipy.fft.irfft2(scipy.fft.rfft2(patches) / response, s=(ny, nx))


@numba.njit(cache=True, error_model="numpy")
def _window(vector, candidates, centres, overlap, distance, tiles, weights):
    """Fill ``tiles`` and ``weights`` with those of non-zero weight at one point; count them."""
    nearest = np.inf
    for j in range(candidates.size):
        t = candidates[j]
        distance[j] = np.inf
        if t >= 0:
            dx = vector[0] - centres[t, 0]
            dy = vector[1] - centres[t, 1]
            dz = vector[2] - centres[t, 2]
            distance[j] = math.sqrt(dx * dx + dy * dy + dz * dz)
            nearest = min(nearest, distance[j])
    count = 0
    for j in range(candidates.size):
        # Chords differ by less than arcs do: what this leaves out has no weight.
        if distance[j] - nearest < overlap:
            tiles[count] = candidates[j]
            distance[count] = distance[j]
            count += 1
    if count == 1:
        weights[0] = 1.0
        return 1
    for a in range(count):
        distance[a] = 2.0 * math.asin(0.5 * distance[a])
    power = 0.0
    for a in range(count):
        raw = 1.0
        for b in range(count):
            x = (distance[a] - distance[b]) / overlap
            if x >= 1.0:
                raw = 0.0
            elif x > 0.0:
                raw *= 1.0 - x * x * x * (10.0 + x * (6.0 * x - 15.0))
        weights[a] = raw
        power += raw * raw
    kept = 0
    for a in range(count):
        if weights[a] > 0.0:
            tiles[kept] = tiles[a]
            weights[kept] = weights[a] / math.sqrt(power)
            kept += 1
    return kept


@numba.njit(cache=True, error_model="numpy", parallel=True)
def _windows(vectors, parents, candidates, centres, overlap, tiles, weights):
    """Tiles and weights of a chunk of pixels, padded with -1 and 0."""
    npix = parents.size
    for block in numba.prange((npix + BLOCK - 1) // BLOCK):
        distance = np.empty(9)
        for p in range(block * BLOCK, min((block + 1) * BLOCK, npix)):
            count = _window(
                vectors[p], candidates[parents[p]], centres, overlap, distance, tiles[p], weights[p]
            )
            tiles[p, count:] = -1
            weights[p, count:] = 0.0


@numba.njit(cache=True, error_model="numpy")
def _taps(u, taps):
    """Weights of the four cubic B-splines that are non-zero at fraction ``u`` of a pixel."""
    v = 1.0 - u
    taps[0] = v * v * v / 6.0
    taps[1] = (4.0 + u * u * (3.0 * u - 6.0)) / 6.0
    taps[2] = (4.0 + v * v * (3.0 * v - 6.0)) / 6.0
    taps[3] = u * u * u / 6.0


@numba.njit(cache=True, error_model="numpy", parallel=True)
def _project(
    coeffs,
    constants,
    slots,
    vectors,
    parents,
    candidates,
    centres,
    easts,
    norths,
    overlap,
    scale,
    out,
    needed,
):
    """Windowed sum over tiles of the splines at a chunk of pixels.

    ``slots`` gives the place of a tile in ``coeffs``, -1 if absent; ``needed`` marks the tiles
    that were met. Every pixel is computed from its own data alone, in a fixed order.
    """
    nfields = coeffs.shape[0]
    middle = 0.5 * (coeffs.shape[3] - 1)
    npix = parents.size
    for block in numba.prange((npix + BLOCK - 1) // BLOCK):
        distance = np.empty(9)
        tiles = np.empty(9, np.int64)
        weights = np.empty(9)
        tap_x = np.empty(4)
        tap_y = np.empty(4)
        value = np.empty(nfields)
        for p in range(block * BLOCK, min((block + 1) * BLOCK, npix)):
            n0, n1, n2 = vectors[p, 0], vectors[p, 1], vectors[p, 2]
            sine = math.sqrt(n0 * n0 + n1 * n1)
            # The pixel's east (its third component is 0) and north.
            e0, e1 = -n1 / sine, n0 / sine
            m0, m1, m2 = -n2 * e1, n2 * e0, sine
            count = _window(
                vectors[p], candidates[parents[p]], centres, overlap, distance, tiles, weights
            )
            for f in range(nfields + 1):
                out[f, p] = 0.0
            for a in range(count):
                t = tiles[a]
                needed[t] = 1
                slot = slots[t]
                if slot < 0:
                    continue
                c0, c1, c2 = centres[t, 0], centres[t, 1], centres[t, 2]
                east0, east1 = easts[t, 0], easts[t, 1]
                east = n0 * east0 + n1 * east1
                north = n0 * norths[t, 0] + n1 * norths[t, 1] + n2 * norths[t, 2]
                inverse = 1.0 / (1.0 + n0 * c0 + n1 * c1 + n2 * c2)
                stretch = math.sqrt(2.0 * inverse) * scale
                x = middle + east * stretch
                y = middle + north * stretch
                ix = math.floor(x)
                iy = math.floor(y)
                _taps(x - ix, tap_x)
                _taps(y - iy, tap_y)
                for f in range(nfields):
                    total = 0.0
                    for j in range(4):
                        line = 0.0
                        for i in range(4):
                            line += tap_x[i] * coeffs[f, slot, iy - 1 + j, ix - 1 + i]
                        total += tap_y[j] * line
                    value[f] = total
                out[nfields, p] += weights[a] * weights[a] * constants[slot]
                out[0, p] += weights[a] * value[0]
                if nfields == 3:
                    # The tile's east carried along the great circle from its centre to the
                    # pixel, E - (E.n)(C + n)/(1 + C.n), on the pixel's east and north: the
                    # angle psi by which the tile's axes are turned from the pixel's.
                    carry = east * inverse
                    cosine = east0 * e0 + east1 * e1 - carry * (c0 * e0 + c1 * e1)
                    sinus = east0 * m0 + east1 * m1 - carry * (c0 * m0 + c1 * m1 + c2 * m2)
                    cos2 = cosine * cosine - sinus * sinus
                    sin2 = 2.0 * cosine * sinus
                    out[1, p] += weights[a] * (cos2 * value[1] - sin2 * value[2])
                    out[2, p] += weights[a] * (sin2 * value[1] + cos2 * value[2])


class Tiling:
    """Overlapping flat tiles that cover the sphere, and the projection from them to pixels.

    Tiles are numbered as the HEALPix pixels of ``tile_nside`` in RING order. The module's
    docstring gives the chart, the windows and the polarisation convention.

    Parameters
    ----------
    tile_nside : int
        A power of two, at least 2: there are ``12 tile_nside**2`` tiles (8: 768 tiles that are
        7.33° apart).
    size : int
        Pixels along the side of a tile, at least 16.
    pixel_size : float, optional
        Side of a tile's pixel at its centre, in arcmin. By default the smallest that leaves
        ``MARGIN`` pixels outside the widest window (8, 128: 7.2′).
    overlap : float, optional
        In degrees: how much farther than the nearest tile a tile still contributes, which is
        about the width of the strip shared by two neighbours. By default 2.4° × 8 / tile_nside.

    Attributes
    ----------
    ntiles, tile_nside, size : int
        As above.
    pixel_size : float
        In arcmin.
    overlap : float
        In degrees.
    half_width : float
        Half the side, in degrees on the chart, of the square that holds every window.
    centres, easts, norths : array, shape (ntiles, 3)
        Unit vectors: the centre of each tile and the axes x and y of its chart there.

    Raises
    ------
    TypeError
        If ``tile_nside`` or ``size`` is not an integer.
    ValueError
        If a parameter is out of its range, or ``pixel_size`` too small for the windows.
    """

    def __init__(
        self,
        tile_nside: int = 8,
        size: int = 128,
        pixel_size: float | None = None,
        *,
        overlap: float | None = None,
    ) -> None:
        for name, number in (("tile_nside", tile_nside), ("size", size)):
            if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
                raise TypeError(f"{name} must be an integer, not {number!r}")
        if tile_nside < 2 or tile_nside & (tile_nside - 1):
            raise ValueError(f"tile_nside must be a power of two, 2 or more, not {tile_nside}")
        if size < 16:
            raise ValueError(f"size must be at least 16 pixels, not {size}")
        spacing = math.degrees(hp.nside2resol(tile_nside))
        overlap = OVERLAP * spacing if overlap is None else float(overlap)
        if not 0 < overlap <= MAX_OVERLAP * spacing:
            raise ValueError(
                f"overlap must be above 0 and at most {MAX_OVERLAP} of the tiles' spacing "
                f"({MAX_OVERLAP * spacing:.4g} deg for tile_nside {tile_nside}), not {overlap}"
            )
        self.tile_nside = int(tile_nside)
        self.size = int(size)
        self.overlap = overlap
        self.ntiles = hp.nside2npix(self.tile_nside)
        tiles = np.arange(self.ntiles)
        theta, phi = hp.pix2ang(self.tile_nside, tiles)
        zero = np.zeros_like(phi)
        self.centres = np.stack(hp.pix2vec(self.tile_nside, tiles), axis=1)
        self.easts = np.stack([-np.sin(phi), np.cos(phi), zero], axis=1)
        self.norths = np.stack(
            [-np.cos(theta) * np.cos(phi), -np.cos(theta) * np.sin(phi), np.sin(theta)], axis=1
        )
        self._candidates = np.concatenate(
            [tiles[:, None], hp.get_all_neighbours(self.tile_nside, tiles).T], axis=1
        ).astype(np.int64)
        self._locate = ducc0.healpix.Healpix_Base(self.tile_nside, "RING")

        half_width = self._support()
        self.half_width = math.degrees(half_width)
        smallest = math.degrees(half_width / ((self.size - 1) / 2 - MARGIN)) * 60
        if pixel_size is None:
            pixel_size = smallest
        elif not math.isfinite(pixel_size) or pixel_size < smallest * (1 - 1e-12):
            raise ValueError(
                f"pixel_size {pixel_size} arcmin is too small: the windows of tile_nside "
                f"{tile_nside} need {smallest:.4f} arcmin or more in tiles of {size} pixels"
            )
        self.pixel_size = float(pixel_size)
        # The chart ends at radius 2, the antipode; its corners must lie within.
        if math.radians(self.pixel_size / 60) * (self.size - 1) / math.sqrt(2) >= 2:
            raise ValueError(
                f"pixel_size {pixel_size} arcmin makes tiles of {size} pixels that are larger "
                "than the sphere: choose a smaller one"
            )

    def _support(self) -> float:
        """Largest chart coordinate at which a window is non-zero, in radians.

        Along a bearing from a tile's centre, a neighbour at distance D and angle γ from that
        bearing takes all weight from the distance d on at which d - d_s = overlap, so
        tan d = (cos o - cos D) / (sin D cos γ - sin o).
        """
        overlap = math.radians(self.overlap)
        bearing = np.radians(np.arange(0, 360, 0.5))
        largest = 0.0
        for candidates, centre, east, north in zip(
            self._candidates, self.centres, self.easts, self.norths, strict=True
        ):
            vectors = self.centres[candidates[1:][candidates[1:] >= 0]]
            x, y, cosine = vectors @ east, vectors @ north, vectors @ centre
            along = np.outer(np.sin(bearing), x) + np.outer(np.cos(bearing), y)
            reach = np.arctan2(math.cos(overlap) - cosine, along - math.sin(overlap)).min(axis=1)
            axis = np.maximum(np.abs(np.sin(bearing)), np.abs(np.cos(bearing)))
            largest = max(largest, float((2 * np.sin(reach / 2) * axis).max()))
        return largest

    def vectors(self, tile: int) -> np.ndarray:
        """Directions of the pixel centres of a tile.

        Parameters
        ----------
        tile : int
            Number of the tile.

        Returns
        -------
        array, shape (size, size, 3)
            Unit vectors, ``[y, x]``.

        Raises
        ------
        ValueError
            If there is no such tile.
        """
        tile = int(self._tile_ids([tile])[0])
        axis = (np.arange(self.size) - (self.size - 1) / 2) * math.radians(self.pixel_size / 60)
        x, y = axis[None, :, None], axis[:, None, None]
        radius2 = x**2 + y**2
        tangent = x * self.easts[tile] + y * self.norths[tile]
        return (1 - radius2 / 2) * self.centres[tile] + np.sqrt(1 - radius2 / 4) * tangent

    def weights(
        self, nside: int, pixels: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tiles that contribute to pixels, and their weights: for diagnostics.

        Parameters
        ----------
        nside : int
            Resolution of the pixels.
        pixels : array of int, shape (npix,), optional
            RING pixels; by default the full sky (144 bytes a pixel).

        Returns
        -------
        tiles : int64 array, shape (npix, 9)
            Tiles of non-zero weight, then -1.
        weights : float64 array, shape (npix, 9)
            Their weights, then 0. The squares of a pixel's weights sum to one.

        Raises
        ------
        TypeError, ValueError
            As :meth:`project`.
        """
        npix, chunks = self._chunks(nside, pixels)
        tiles = np.empty((npix, 9), np.int64)
        weights = np.empty((npix, 9))
        for part, vectors, parents in chunks:
            self._fill_windows(vectors, parents, tiles[part], weights[part])
        return tiles, weights

    def tiles_for(self, nside: int, pixels: np.ndarray | None = None) -> np.ndarray:
        """Tiles that have weight on any of these pixels: those that a partial sky needs.

        Parameters
        ----------
        nside : int
            Resolution of the pixels.
        pixels : array of int, shape (npix,), optional
            RING pixels; by default the full sky.

        Returns
        -------
        int64 array
            Sorted numbers of the tiles; exactly those that :meth:`project` reads.

        Raises
        ------
        TypeError, ValueError
            As :meth:`project`.
        """
        npix, chunks = self._chunks(nside, pixels)
        tiles = np.empty((min(npix, CHUNK), 9), np.int64)
        weights = np.empty(tiles.shape)
        needed = np.zeros(self.ntiles + 1, bool)  # the last place takes the padding's -1
        for _, vectors, parents in chunks:
            self._fill_windows(vectors, parents, tiles, weights)
            needed[tiles[: parents.size]] = True
        return np.flatnonzero(needed[:-1])

    def project(
        self,
        coeffs: np.ndarray,
        nside: int,
        pixels: np.ndarray | None = None,
        tiles: np.ndarray | None = None,
        constants: np.ndarray | None = None,
    ) -> np.ndarray:
        """Windowed sum of the tiles' cubic splines at HEALPix pixels.

        A pixel's value depends neither on the other pixels asked for, nor on the tiles carried
        beside those it needs, nor on the number of threads: it is the same to the last bit.

        Parameters
        ----------
        coeffs : float32 or float64 array, shape (nfields, ntiles, size, size)
            Cubic B-spline coefficients (see :func:`spline_coefficients`). Fields: one scalar, or
            three: a scalar and Q, U in the tile's frame (COSMO).
        nside : int
            Resolution of the output, any that HEALPix has in RING order.
        pixels : array of int, shape (npix,), optional
            RING pixels, in any order; by default the full sky.
        tiles : array of int, shape (ntiles,), optional
            Numbers of the tiles that ``coeffs`` carries, in its order; by default all tiles.
        constants : array, shape (ntiles,), optional
            A number of each tile, to be spread with the *squares* of the windows. As these sum to
            one, a number that all tiles share stays that number.

        Returns
        -------
        float64 array, shape (nfields, npix) or (nfields + 1, npix)
            The fields; Q and U in each pixel's HEALPix (COSMO) frame. With ``constants``, these in
            one more row.

        Raises
        ------
        TypeError
            If ``nside``, ``pixels`` or ``tiles`` are not integers, or ``coeffs`` not floats.
        ValueError
            If a shape does not fit, ``nside``, ``pixels`` or ``tiles`` are out of range, or a
            pixel needs a tile that is not carried.
        """
        ids = np.arange(self.ntiles) if tiles is None else self._tile_ids(tiles)
        slots = np.full(self.ntiles, -1, np.int64)
        slots[ids] = np.arange(ids.size)
        coeffs = np.asarray(coeffs)
        if coeffs.dtype not in (np.float32, np.float64):
            raise TypeError(f"coeffs must be float32 or float64, not {coeffs.dtype}")
        expected = (ids.size, self.size, self.size)
        if coeffs.ndim != 4 or coeffs.shape[0] not in (1, 3) or coeffs.shape[1:] != expected:
            raise ValueError(
                f"coeffs must have shape (1 or 3, {', '.join(map(str, expected))}), fields by "
                f"tiles by pixels, not {coeffs.shape}"
            )
        coeffs = np.ascontiguousarray(coeffs)
        rows = coeffs.shape[0] + (constants is not None)
        constants = np.zeros(ids.size) if constants is None else np.asarray(constants, np.float64)
        if constants.shape != ids.shape:
            raise ValueError(
                f"constants must have shape {ids.shape}, one a tile, not {constants.shape}"
            )
        npix, chunks = self._chunks(nside, pixels)
        out = np.empty((rows, npix))
        buffer = np.empty((coeffs.shape[0] + 1, min(npix, CHUNK)))
        needed = np.zeros(self.ntiles, np.uint8)
        for part, vectors, parents in chunks:
            _project(
                coeffs,
                constants,
                slots,
                vectors,
                parents,
                self._candidates,
                self.centres,
                self.easts,
                self.norths,
                math.radians(self.overlap),
                1 / math.radians(self.pixel_size / 60),
                buffer,
                needed,
            )
            missing = np.flatnonzero((needed != 0) & (slots < 0))
            if missing.size:
                raise ValueError(
                    f"the pixels need tiles that coeffs does not carry: {missing[:5].tolist()}"
                    f"{' and more' if missing.size > 5 else ''}. Carry all of "
                    "tiles_for(nside, pixels)"
                )
            out[:, part] = buffer[:rows, : parents.size]
        return out

    def _fill_windows(
        self, vectors: np.ndarray, parents: np.ndarray, tiles: np.ndarray, weights: np.ndarray
    ) -> None:
        _windows(
            vectors,
            parents,
            self._candidates,
            self.centres,
            math.radians(self.overlap),
            tiles,
            weights,
        )

    def _tile_ids(self, tiles: np.ndarray) -> np.ndarray:
        ids = _integers("tiles", tiles, self.ntiles)
        if np.unique(ids).size != ids.size:
            raise ValueError("tiles must not name a tile twice")
        return ids

    def _chunks(
        self, nside: int, pixels: np.ndarray | None
    ) -> tuple[int, Iterator[tuple[slice, np.ndarray, np.ndarray]]]:
        """Check pixels; count them; give slices of them with their vectors and parent tiles."""
        if isinstance(nside, bool) or not isinstance(nside, (int, np.integer)):
            raise TypeError(f"nside must be an integer, not {nside!r}")
        if not hp.isnsideok(nside):
            raise ValueError(f"nside must be between 1 and 2**29, not {nside}")
        npix = hp.nside2npix(int(nside))
        if pixels is not None:
            pixels = _integers("pixels", pixels, npix)
            npix = pixels.size
        base = ducc0.healpix.Healpix_Base(int(nside), "RING")

        def generate() -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
            threads = numba.get_num_threads()
            for start in range(0, npix, CHUNK):
                stop = min(start + CHUNK, npix)
                part = np.arange(start, stop) if pixels is None else pixels[start:stop]
                vectors = base.pix2vec(part, nthreads=threads)
                yield slice(start, stop), vectors, self._locate.vec2pix(vectors, nthreads=threads)

        return npix, generate()


def _integers(name: str, values: np.ndarray, bound: int) -> np.ndarray:
    """One axis of integers in [0, bound), as contiguous int64."""
    values = np.asarray(values)
    if values.size == 0 and values.ndim == 1:
        return np.empty(0, np.int64)
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"{name} must be integers, not {values.dtype}")
    if values.ndim != 1:
        raise ValueError(f"{name} must have one axis, not shape {values.shape}")
    if values.min() < 0 or values.max() >= bound:
        raise ValueError(
            f"{name} must lie between 0 and {bound - 1}, not {values.min()} to {values.max()}"
        )
    return np.ascontiguousarray(values, dtype=np.int64)
