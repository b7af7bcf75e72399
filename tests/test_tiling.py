"""Tiles on the sphere: partition, chart, interpolation, polarisation frames, reproducibility."""

from __future__ import annotations

import ducc0
import healpy as hp
import numba
import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
from astropy.wcs import WCS
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from pysm_vae.sky.tiling import (
    CHUNK,
    MARGIN,
    MAX_OVERLAP,
    Tiling,
    bspline_prefilter_response,
    spline_coefficients,
)


@pytest.fixture(scope="module")
def tiling() -> Tiling:
    return Tiling(4, 48)


def awkward_pixels(nside: int) -> np.ndarray:
    """Both poles, and a strip on either side of longitude zero."""
    npix = hp.nside2npix(nside)
    theta = np.linspace(0.01, np.pi - 0.01, 150)
    seam = [hp.ang2pix(nside, theta, phi) for phi in (1e-4, 2 * np.pi - 1e-4)]
    return np.concatenate([np.arange(40), npix - 1 - np.arange(40), *seam])


def smooth_coefficients(tiling: Tiling, sample) -> np.ndarray:
    """Spline coefficients of fields sampled on every tile.

    ``sample(tile, vectors)`` gives (nfields, ny, nx). The chart is widened for the prefilter, so
    that the ends of a patch that is not periodic lie far from where it is used.
    """
    wide = Tiling(tiling.tile_nside, tiling.size + 32, tiling.pixel_size, overlap=tiling.overlap)
    fields = [
        spline_coefficients(sample(tile, wide.vectors(tile)))[:, 16:-16, 16:-16]
        for tile in range(tiling.ntiles)
    ]
    return np.stack(fields, axis=1)


def window_sum(tiling: Tiling, nside: int, pixels: np.ndarray | None = None) -> np.ndarray:
    return tiling.weights(nside, pixels)[1].sum(axis=1)


def random_alm(rng: np.random.Generator, lmin: int, lmax: int) -> np.ndarray:
    ell, m = hp.Alm.getlm(lmax)
    alm = rng.standard_normal(ell.size) + 1j * rng.standard_normal(ell.size) * (m > 0)
    return np.where(ell >= lmin, alm, 0) / lmax


def evaluate(alm: np.ndarray, vectors: np.ndarray, spin: int) -> np.ndarray:
    """Harmonic sum at any directions: (1 or 2, ...) of a scalar, or of HEALPix's Q and U."""
    theta, phi = hp.vec2ang(vectors.reshape(-1, 3))
    values = ducc0.sht.synthesis_general(
        alm=alm,
        spin=spin,
        lmax=hp.Alm.getlmax(alm.shape[1]),
        loc=np.stack([theta, phi], axis=1),
        epsilon=1e-10,
    )
    return values.reshape(-1, *vectors.shape[:-1])


def to_tile_frame(tiling: Tiling, tile: int, vectors: np.ndarray, qu: np.ndarray) -> np.ndarray:
    """Q, U on the axes of the tile, by tensors in space and explicit rotations of its centre."""
    n = vectors.reshape(-1, 3)
    centre = tiling.centres[tile]
    axis = np.cross(centre, n)
    length = np.linalg.norm(axis, axis=1)
    angle = np.arctan2(length, n @ centre)
    turn = Rotation.from_rotvec(axis * (angle / np.maximum(length, 1e-300))[:, None])
    np.testing.assert_allclose(turn.apply(centre), n, atol=1e-12)
    theta, phi = hp.vec2ang(n)
    e_theta = np.stack(
        [np.cos(theta) * np.cos(phi), np.cos(theta) * np.sin(phi), -np.sin(theta)], axis=1
    )
    e_phi = np.stack([-np.sin(phi), np.cos(phi), 0 * phi], axis=1)
    q, u = qu.reshape(2, -1)
    south, east = turn.apply(-tiling.norths[tile]), turn.apply(tiling.easts[tile])

    def tensor(a, b):
        at, ap = (a * e_theta).sum(1), (a * e_phi).sum(1)
        bt, bp = (b * e_theta).sum(1), (b * e_phi).sum(1)
        return q * (at * bt - ap * bp) + u * (at * bp + ap * bt)

    return np.stack([tensor(south, south), tensor(south, east)]).reshape(qu.shape)


@pytest.mark.parametrize(("tile_nside", "softness"), [(2, MAX_OVERLAP), (8, 0.2), (32, 0.4)])
def test_windows_agree_with_all_tiles(rng, tile_nside, softness):
    """Against every tile of the sphere: nothing of weight is missed by the nine candidates."""
    overlap = softness * np.degrees(hp.nside2resol(tile_nside))
    tiling = Tiling(tile_nside, 64, overlap=overlap)
    nside = 512
    pixels = np.concatenate(
        [rng.integers(0, hp.nside2npix(nside), 8000 // tile_nside * 2), awkward_pixels(nside)]
    )
    tiles, weights = tiling.weights(nside, pixels)
    np.testing.assert_allclose((weights**2).sum(axis=1), 1, rtol=1e-13)

    centres = np.stack(hp.pix2vec(tile_nside, np.arange(tiling.ntiles)), axis=1)
    vectors = np.stack(hp.pix2vec(nside, pixels), axis=1)
    distance = np.degrees(np.arccos(np.clip(vectors @ centres.T, -1, 1)))
    order = np.argsort(distance, axis=1)[:, :12]
    near = np.take_along_axis(distance, order, axis=1)
    assert (near[:, -1] - near[:, 0] > overlap).all()
    x = np.clip((near[:, :, None] - near[:, None, :]) / overlap, 0, 1)
    raw = (1 - x**3 * (10 - 15 * x + 6 * x**2)).prod(axis=2)
    expected = np.zeros_like(distance)
    np.put_along_axis(expected, order, raw / np.sqrt((raw**2).sum(1))[:, None], axis=1)
    found = np.zeros((len(pixels), tiling.ntiles + 1))
    np.put_along_axis(found, tiles, weights, axis=1)
    np.testing.assert_allclose(found[:, :-1], expected, atol=1e-9)
    np.testing.assert_array_equal(tiling.tiles_for(nside, pixels), np.unique(tiles[weights > 0]))
    # The test must have seen pixels where several tiles meet.
    assert ((weights > 0).sum(axis=1) >= 4).any()


@pytest.mark.parametrize("tile_nside", [2, 4, 8, 16, 64])
def test_no_tile_of_weight_beyond_the_nine(tile_nside):
    """The candidates' bound on the overlap, on a dense grid, with all tiles searched."""
    nside = 8 * tile_nside
    # One of the eight congruent parts of the sphere.
    theta, phi = hp.pix2ang(nside, np.arange(hp.nside2npix(nside)))
    part = (theta < np.pi / 2 + 0.01) & (phi < np.pi / 2)
    vectors = hp.ang2vec(theta[part], phi[part])
    centres = np.stack(hp.pix2vec(tile_nside, np.arange(hp.nside2npix(tile_nside))), axis=1)
    chord, near = cKDTree(centres).query(vectors, k=12)
    parents = hp.ang2pix(tile_nside, theta[part], phi[part])
    nine = np.concatenate([parents[None], hp.get_all_neighbours(tile_nside, parents)])
    inside = np.zeros(near.shape, bool)
    for row in nine:
        inside |= near == row[:, None]
    arc = 2 * np.arcsin(chord / 2)
    excess = np.where(inside, np.inf, arc).min(axis=1) - arc[:, 0]
    assert np.isfinite(excess).all()
    assert excess.min() > MAX_OVERLAP * hp.nside2resol(tile_nside)


def test_windows_are_smooth(rng):
    """Along great circles weights have neither steps nor kinks, through triple overlaps too."""
    tiling = Tiling(8, 64)
    step = 0.005  # degrees
    arc = np.radians(np.arange(0, 60, step))
    nside = 1 << 23  # pixels of 0.03", far below the step
    met = 0
    for _ in range(6):
        start, towards = np.linalg.qr(rng.standard_normal((3, 2)))[0].T
        path = np.outer(np.cos(arc), start) + np.outer(np.sin(arc), towards)
        tiles, weights = tiling.weights(nside, hp.vec2pix(nside, *path.T))
        met = max(met, (weights > 0).sum(axis=1).max())
        dense = np.zeros((len(arc), tiling.ntiles + 1))
        np.put_along_axis(dense, tiles, weights, axis=1)
        # The step's slope is at most 15/8 an overlap, and the difference of two distances grows
        # at most by 2 a degree; normalising and triple overlaps at most double it.
        assert np.abs(np.diff(dense, axis=0)).max() < 7.5 / tiling.overlap * step
        # A kink that changes the slope by 1/10 of that would stand out here.
        assert np.abs(np.diff(dense, 2, axis=0)).max() < 0.75 / tiling.overlap * step
    assert met >= 3


@pytest.mark.parametrize(("tile_nside", "softness"), [(2, 0.4), (4, 0.2), (8, 0.2)])
def test_windows_fit_in_the_tile(tile_nside, softness):
    overlap = softness * np.degrees(hp.nside2resol(tile_nside))
    tiling = Tiling(tile_nside, 64, overlap=overlap)
    nside = 128
    tiles, weights = tiling.weights(nside)
    pixel, column = np.nonzero(weights)
    tile = tiles[pixel, column]
    n = np.stack(hp.pix2vec(nside, pixel), axis=1)
    stretch = np.degrees(np.sqrt(2 / (1 + (n * tiling.centres[tile]).sum(1))))
    widest = max(
        np.abs((n * axes[tile]).sum(1) * stretch).max() for axes in (tiling.easts, tiling.norths)
    )
    assert 0.95 * tiling.half_width < widest < tiling.half_width + tiling.pixel_size / 60
    edge = (tiling.size - 1) / 2 - tiling.half_width * 60 / tiling.pixel_size
    np.testing.assert_allclose(edge, MARGIN)


def test_chart_is_zea(tiling):
    """Against astropy's WCS, at tiles of each hemisphere and across longitude zero."""
    for tile in (0, 3, 40, 88, 96, 191):
        lon, lat = hp.pix2ang(tiling.tile_nside, tile, lonlat=True)
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["GLON-ZEA", "GLAT-ZEA"]
        wcs.wcs.crval = [lon, lat]
        wcs.wcs.crpix = [(tiling.size + 1) / 2] * 2
        wcs.wcs.cdelt = [tiling.pixel_size / 60] * 2
        row, column = np.indices((tiling.size, tiling.size))
        world = wcs.wcs_pix2world(column.ravel(), row.ravel(), 0)
        found = tiling.vectors(tile).reshape(-1, 3)
        np.testing.assert_allclose(found, hp.ang2vec(*world, lonlat=True), atol=1e-12)


def test_spline_coefficients_against_scipy(rng):
    patches = rng.standard_normal((2, 20, 27))
    expected = np.stack([scipy.ndimage.spline_filter(p, mode="grid-wrap") for p in patches])
    np.testing.assert_allclose(spline_coefficients(patches), expected, rtol=1e-6, atol=1e-6)
    assert spline_coefficients(patches.astype(np.float32)).dtype == np.float32
    taps = np.zeros(16)
    taps[[-1, 0, 1]] = 1 / 6, 4 / 6, 1 / 6
    np.testing.assert_allclose(
        bspline_prefilter_response(np.fft.fftfreq(16)), np.fft.fft(taps).real, atol=1e-14
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_smooth_scalar_is_reproduced(tiling, dtype):
    def field(vectors):
        x, y, z = np.moveaxis(vectors, -1, 0)
        return np.exp(x + 0.5 * y * z) + np.sin(3 * z + 2 * x)

    coeffs = smooth_coefficients(tiling, lambda tile, v: field(v)[None]).astype(dtype)
    for nside, pixels in ((32, None), (1024, awkward_pixels(1024)), (17, None)):
        index = np.arange(hp.nside2npix(nside)) if pixels is None else pixels
        expected = field(np.stack(hp.pix2vec(nside, index), axis=1))
        found = tiling.project(coeffs, nside, pixels)
        assert found.dtype == np.float64
        found = found[0] / window_sum(tiling, nside, pixels)
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_polarisation_reaches_healpix_frame(tiling, rng):
    """A global field cut into tiles comes back, in healpy's convention; pure E stays pure E."""
    lmax, nside = 8, 32
    e = random_alm(rng, 2, lmax)
    for alm in (np.stack([e, 0 * e]), np.stack([e, random_alm(rng, 2, lmax)])):

        def sample(tile, vectors, alm=alm):
            qu = to_tile_frame(tiling, tile, vectors, evaluate(alm, vectors, 2))
            return np.concatenate([np.zeros_like(qu[:1]), qu])

        coeffs = smooth_coefficients(tiling, sample)
        found = tiling.project(coeffs, nside) / window_sum(tiling, nside)
        expected = hp.alm2map([0 * e, *alm], nside, pol=True)
        scale = expected[1:].std()
        np.testing.assert_allclose(found, expected, atol=2e-4 * scale)
        pixels = awkward_pixels(1024)
        found_there = tiling.project(coeffs, 1024, pixels) / window_sum(tiling, 1024, pixels)
        expected_there = evaluate(alm, np.stack(hp.pix2vec(1024, pixels), axis=1), 2)
        np.testing.assert_allclose(found_there[1:], expected_there, atol=2e-4 * scale)
        if not alm[1].any():
            _, ee, bb = hp.anafast(found, lmax=lmax, iter=5)[:3]
            assert bb.sum() < 1e-6 * ee.sum()


def test_flat_e_and_b_have_healpix_signs(rng):
    """E and B patterns on a tile, turned to Q, U by the formula of the module's docstring."""
    tiling = Tiling(8, 128)
    tile, lmax = 200, 160
    alm = np.stack([random_alm(rng, 100, lmax), random_alm(rng, 100, lmax)])
    vectors = tiling.vectors(tile)
    qu = to_tile_frame(tiling, tile, vectors, evaluate(alm, vectors, 2))
    e, b = (evaluate(a[None], vectors, 0)[0] for a in alm)
    taper = np.hanning(tiling.size)
    ky = scipy.fft.fftfreq(tiling.size)[:, None]
    kx = scipy.fft.fftfreq(tiling.size)[None, :]
    k2 = np.where(kx**2 + ky**2 > 0, kx**2 + ky**2, 1)
    turn = (ky**2 - kx**2 - 2j * kx * ky) / k2
    flat = scipy.fft.ifft2(scipy.fft.fft2((e + 1j * b) * np.outer(taper, taper)) * turn)
    middle = slice(48, 80)
    for found, expected in zip((flat.real, flat.imag), qu, strict=True):
        pair = found[middle, middle].ravel(), expected[middle, middle].ravel()
        assert np.corrcoef(*pair)[0, 1] > 0.98


def test_variance_is_preserved(rng):
    tiling = Tiling(8, 64)
    noise = rng.standard_normal((3, tiling.ntiles, 64, 64), dtype=np.float32)
    k = np.hypot(scipy.fft.fftfreq(64)[:, None], scipy.fft.rfftfreq(64)[None, :])
    full = np.hypot(*np.meshgrid(scipy.fft.fftfreq(64), scipy.fft.fftfreq(64)))
    # Low enough that the spline itself keeps the power (0.990 on an axis at k = 0.2).
    band = (k < 0.2) / np.sqrt((full < 0.2).mean())
    patches = scipy.fft.irfft2(scipy.fft.rfft2(noise) * band, s=(64, 64))
    sky = tiling.project(spline_coefficients(patches), 128)
    shared = (tiling.weights(128)[1] ** 2).max(axis=1) < 0.8
    assert 0.1 < shared.mean() < 0.4
    np.testing.assert_allclose((sky**2).mean(axis=1), 1, atol=0.01)
    np.testing.assert_allclose((sky[:, shared] ** 2).mean(), 1, atol=0.01)


def test_any_subset_has_the_same_bits(tiling, rng):
    coeffs = rng.standard_normal((3, tiling.ntiles, 48, 48)).astype(np.float32)
    nside = 128
    npix = hp.nside2npix(nside)
    assert npix > CHUNK
    full = tiling.project(coeffs, nside)
    shuffled = rng.permutation(npix)
    np.testing.assert_array_equal(tiling.project(coeffs, nside, shuffled), full[:, shuffled])
    np.testing.assert_array_equal(tiling.project(coeffs[:1], nside), full[:1])
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        np.testing.assert_array_equal(tiling.project(coeffs, nside), full)
    finally:
        numba.set_num_threads(threads)

    disc = hp.query_disc(nside, hp.ang2vec(3.0, 0.1), 0.3)
    tiles = tiling.tiles_for(nside, disc)
    assert 0 < tiles.size < tiling.ntiles / 5
    tiles = rng.permutation(tiles)
    np.testing.assert_array_equal(
        tiling.project(coeffs[:, tiles], nside, disc, tiles), full[:, disc]
    )
    with pytest.raises(ValueError, match=r"does not carry: .*tiles_for"):
        tiling.project(coeffs[:, tiles[1:]], nside, disc, tiles[1:])
    assert tiling.project(coeffs, nside, np.empty(0, int)).shape == (3, 0)
    assert tiling.tiles_for(nside, []).size == 0


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"tile_nside": 3}, ValueError, "tile_nside must be a power of two"),
        ({"tile_nside": 1}, ValueError, "tile_nside must be a power of two"),
        ({"tile_nside": 8.0}, TypeError, "tile_nside must be an integer"),
        ({"size": 8}, ValueError, "size must be at least 16"),
        ({"size": True}, TypeError, "size must be an integer"),
        ({"overlap": 0}, ValueError, "overlap must be above 0"),
        ({"overlap": 5.0}, ValueError, "overlap must be above 0 and at most"),
        ({"overlap": np.nan}, ValueError, "overlap must be above 0"),
        ({"pixel_size": 3.0}, ValueError, r"too small: the windows .* need 7\."),
        ({"pixel_size": np.nan}, ValueError, "pixel_size nan"),
        ({"pixel_size": 100.0}, ValueError, "larger than the sphere"),
    ],
)
def test_bad_geometry(arguments, error, match):
    with pytest.raises(error, match=match):
        Tiling(**arguments)


def test_bad_requests(tiling):
    coeffs = np.zeros((1, tiling.ntiles, 48, 48), np.float32)
    for bad in (coeffs[0], coeffs[:, 1:], coeffs[..., 1:], np.zeros((2, *coeffs.shape[1:]))):
        with pytest.raises(ValueError, match="coeffs must have shape"):
            tiling.project(bad, 8)
    with pytest.raises(TypeError, match="coeffs must be float32 or float64"):
        tiling.project(coeffs.astype(int), 8)
    with pytest.raises(ValueError, match="nside must be between"):
        tiling.project(coeffs, 0)
    with pytest.raises(TypeError, match="nside must be an integer"):
        tiling.project(coeffs, 8.0)
    for pixels in ([-1], [768]):
        with pytest.raises(ValueError, match="pixels must lie between 0 and 767"):
            tiling.project(coeffs, 8, pixels)
    with pytest.raises(TypeError, match="pixels must be integers"):
        tiling.tiles_for(8, [0.5])
    with pytest.raises(ValueError, match="pixels must have one axis"):
        tiling.weights(8, [[1, 2]])
    with pytest.raises(ValueError, match="tiles must lie between"):
        tiling.project(coeffs[:, :1], 8, [0], [192])
    with pytest.raises(ValueError, match="tiles must not name a tile twice"):
        tiling.project(coeffs[:, :2], 8, [0], [1, 1])
    with pytest.raises(ValueError, match="tiles must lie between"):
        tiling.vectors(-1)
    with pytest.raises(ValueError, match="patches needs two axes"):
        spline_coefficients(np.zeros(4))
