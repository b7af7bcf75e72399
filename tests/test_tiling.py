"""Charts on the sphere: projection, windows, splines, polarisation frames, reproducibility."""

from __future__ import annotations

import ducc0
import healpy as hp
import numpy as np
import pytest
import scipy.fft
from astropy.wcs import WCS
from scipy.spatial.transform import Rotation

from pysm_vae.sky import largescales
from pysm_vae.sky.tiling import CELL, CELLS, CHUNK, OVERLAP, Tiling, axis


@pytest.fixture(scope="module")
def tiling() -> Tiling:
    return Tiling()


def awkward_pixels(nside: int) -> np.ndarray:
    """Both poles, and a strip on either side of longitude zero."""
    npix = hp.nside2npix(nside)
    theta = np.linspace(0.01, np.pi - 0.01, 150)
    seam = [hp.ang2pix(nside, theta, phi) for phi in (1e-4, 2 * np.pi - 1e-4)]
    return np.concatenate([np.arange(40), npix - 1 - np.arange(40), *seam])


def vectors_of(nside: int, pixels: np.ndarray) -> np.ndarray:
    return np.stack(hp.pix2vec(nside, pixels), axis=1)


def corners(tiling: Tiling) -> np.ndarray:
    """Where three charts meet: the 20 faces of the icosahedron."""
    near = tiling.centres @ tiling.centres.T > 0.4
    found = [
        tiling.centres[[a, b, c]].sum(axis=0)
        for a in range(12)
        for b in range(a)
        for c in range(b)
        if near[a, b] and near[b, c] and near[a, c]
    ]
    assert len(found) == 20
    return np.array(found) / np.linalg.norm(found, axis=1, keepdims=True)


def raw_windows(tiling: Tiling, vectors: np.ndarray) -> np.ndarray:
    """Weights of all charts, as the module's docstring defines them, (n, 12)."""
    distance = np.degrees(np.arccos(np.clip(vectors @ tiling.centres.T, -1, 1)))
    x = np.clip((distance[:, :, None] - distance[:, None, :]) / tiling.overlap, 0, 1)
    raw = (1 - x**3 * (10 - 15 * x + 6 * x**2)).prod(axis=2)
    return raw / np.sqrt((raw**2).sum(axis=1, keepdims=True))


def spline(fields: np.ndarray) -> np.ndarray:
    return np.stack([largescales.spline(field) for field in fields])


def sample(
    tiling: Tiling, tile: int, nside: int, pixels: np.ndarray, layers: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Which pixels a chart has weight on, the weights, and the values of splines there."""
    view = tiling.locate(tile, nside, pixels)
    return view.where, view.weights, tiling.evaluate(view, layers)


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


def chart_axes(
    tiling: Tiling, tile: int, n: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """South and east of the chart carried to points, and south and east there, each (n, 3)."""
    centre = tiling.centres[tile]
    turning = np.cross(centre, n)
    length = np.linalg.norm(turning, axis=1)
    angle = np.arctan2(length, n @ centre)
    turn = Rotation.from_rotvec(turning * (angle / np.maximum(length, 1e-300))[:, None])
    np.testing.assert_allclose(turn.apply(centre), n, atol=1e-12)
    theta, phi = hp.vec2ang(n)
    e_theta = np.stack(
        [np.cos(theta) * np.cos(phi), np.cos(theta) * np.sin(phi), -np.sin(theta)], axis=1
    )
    e_phi = np.stack([-np.sin(phi), np.cos(phi), 0 * phi], axis=1)
    return turn.apply(-tiling.norths[tile]), turn.apply(tiling.easts[tile]), e_theta, e_phi


def to_chart_frame(tiling: Tiling, tile: int, vectors: np.ndarray, qu: np.ndarray) -> np.ndarray:
    """Q, U on the axes of the chart, by tensors in space and explicit rotations of its centre."""
    south, east, e_theta, e_phi = chart_axes(tiling, tile, vectors.reshape(-1, 3))
    q, u = qu.reshape(2, -1)

    def tensor(a, b):
        at, ap = (a * e_theta).sum(1), (a * e_phi).sum(1)
        bt, bp = (b * e_theta).sum(1), (b * e_phi).sum(1)
        return q * (at * bt - ap * bp) + u * (at * bp + ap * bt)

    return np.stack([tensor(south, south), tensor(south, east)]).reshape(qu.shape)


# Geometry


def test_centres_are_an_icosahedron(tiling):
    assert tiling.ntiles == 12
    cosines = np.sort(tiling.centres @ tiling.centres.T, axis=1)
    expected = [-1, *5 * [-1 / np.sqrt(5)], *5 * [1 / np.sqrt(5)], 1]
    np.testing.assert_allclose(cosines, np.tile(expected, (12, 1)), atol=1e-14)
    np.testing.assert_allclose(tiling.centres[[0, 11]], [[0, 0, 1], [0, 0, -1]], atol=1e-15)
    _, phi = hp.vec2ang(tiling.centres[1:11])
    np.testing.assert_allclose(np.degrees(phi), [*range(0, 360, 72), *range(36, 396, 72)])
    for frame in zip(tiling.easts, tiling.norths, tiling.centres, strict=True):
        np.testing.assert_allclose(np.array(frame) @ np.array(frame).T, np.eye(3), atol=1e-14)
        np.testing.assert_allclose(np.linalg.det(frame), 1)
    np.testing.assert_array_less(0, tiling.norths[1:11, 2])
    np.testing.assert_allclose(tiling.easts[:, 2], 0, atol=1e-15)


def test_chart_is_stereographic(tiling):
    """Against astropy's WCS, at charts of each hemisphere, a pole and across longitude zero."""
    size = 90
    row, column = np.indices((size, size))
    for tile in (0, 1, 5, 6, 8, 11):
        lon, lat = hp.vec2ang(tiling.centres[tile], lonlat=True)
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["GLON-STG", "GLAT-STG"]
        # At the poles the axes are those of longitude zero.
        wcs.wcs.crval = [0.0 if tile in (0, 11) else lon[0], lat[0]]
        wcs.wcs.crpix = [(size + 1) / 2] * 2
        wcs.wcs.cdelt = [np.degrees(CELLS * CELL / size)] * 2
        wcs.wcs.lonpole = 180.0
        world = wcs.wcs_pix2world(column.ravel(), row.ravel(), 0)
        found = tiling.vectors(tile, size).reshape(-1, 3)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-14)
        np.testing.assert_allclose(found, hp.ang2vec(*world, lonlat=True), atol=1e-12)


def test_charts_are_conformal(tiling):
    """Steps along x and y are of one length, cos²(d/2), and at right angles, by differences."""
    size = 1 << 16
    step = CELLS * CELL / size
    rows = np.linspace(100, size - 100, 40).astype(int)
    for tile in (0, 4, 9):
        x, y = axis(size)[rows][None, :], axis(size)[rows][:, None]

        def point(x, y, tile=tile):
            quarter = ((x**2 + y**2) / 4)[..., None]
            tangent = x[..., None] * tiling.easts[tile] + y[..., None] * tiling.norths[tile]
            return ((1 - quarter) * tiling.centres[tile] + tangent) / (1 + quarter)

        x, y = np.broadcast_arrays(x, y)
        along_x = (point(x + step, y) - point(x - step, y)) / (2 * step)
        along_y = (point(x, y + step) - point(x, y - step)) / (2 * step)
        scale = (1 + point(x, y) @ tiling.centres[tile]) / 2
        np.testing.assert_allclose(np.linalg.norm(along_x, axis=-1), scale, rtol=1e-7)
        np.testing.assert_allclose(np.linalg.norm(along_y, axis=-1), scale, rtol=1e-7)
        np.testing.assert_allclose((along_x * along_y).sum(axis=-1), 0, atol=1e-7)
        # These points are the grid's.
        coarse = tiling.vectors(tile, 64)
        np.testing.assert_allclose(coarse, point(*np.meshgrid(axis(64), axis(64))), atol=1e-14)


def test_places_are_the_inverse(tiling):
    nside = 64
    pixels = np.arange(hp.nside2npix(nside))
    for tile in (0, 3, 7, 11):
        weight = tiling.window(tile, vectors_of(nside, pixels))
        view = tiling.locate(tile, nside, pixels)
        np.testing.assert_array_equal(view.where, np.flatnonzero(weight))
        np.testing.assert_allclose(view.weights, weight[view.where], atol=1e-12)
        x, y = view.places.T
        quarter = ((x**2 + y**2) / 4)[:, None]
        tangent = x[:, None] * tiling.easts[tile] + y[:, None] * tiling.norths[tile]
        found = ((1 - quarter) * tiling.centres[tile] + tangent) / (1 + quarter)
        np.testing.assert_allclose(found, vectors_of(nside, view.where), atol=1e-14)
        turns = tiling.turns(tile, vectors_of(nside, view.where))
        np.testing.assert_allclose(view.turns.T, turns, atol=1e-12)
        part = view.part(slice(5, 9))
        assert [len(array) for array in part] == [4] * 4
        np.testing.assert_array_equal(part.places, view.places[5:9])
    assert [len(array) for array in tiling.locate(0, nside, pixels[-5:])] == [0] * 4


# Windows


@pytest.mark.parametrize("overlap", [0.3, 1.5, OVERLAP])
def test_windows_agree_with_all_charts(rng, overlap):
    """Against every chart of the sphere: nothing of weight is missed."""
    tiling = Tiling(overlap)
    nside = 1024
    around = np.concatenate(
        [hp.query_disc(nside, corner, np.radians(0.7 * overlap)) for corner in corners(tiling)]
    )
    anywhere = rng.integers(0, hp.nside2npix(nside), 20000)
    pixels = np.concatenate([anywhere, awkward_pixels(nside), rng.choice(around, 5000)])
    tiles, weights = tiling.weights(nside, pixels)
    np.testing.assert_allclose((weights**2).sum(axis=1), 1, rtol=1e-13)
    np.testing.assert_array_equal(tiles < 0, weights == 0)
    vectors = vectors_of(nside, pixels)
    expected = raw_windows(tiling, vectors)
    found = np.zeros((len(pixels), 13))
    np.put_along_axis(found, tiles, weights, axis=1)
    np.testing.assert_allclose(found[:, :-1], expected, atol=1e-9)
    # The nearest chart is never without weight, and the farther one never has more.
    nearest = np.argmax(vectors @ tiling.centres.T, axis=1)
    np.testing.assert_array_equal(found[np.arange(len(pixels)), nearest], found.max(axis=1))
    for tile in range(12):
        np.testing.assert_allclose(tiling.window(tile, vectors), found[:, tile], atol=1e-12)
    # The test must have seen pixels where three charts meet.
    assert ((weights > 0).sum(axis=1) == 3).any()


def test_windows_are_smooth(rng):
    """Along great circles weights have neither steps nor kinks, through triple overlaps too."""
    tiling = Tiling()
    step = 0.005  # degrees
    arc = np.radians(np.arange(-12, 12, step))
    met = 0
    for corner in corners(tiling)[::4]:
        start = corner + 0.003 * rng.standard_normal(3)
        start, towards = np.linalg.qr(np.stack([start, rng.standard_normal(3)], axis=1))[0].T
        path = np.outer(np.cos(arc), start) + np.outer(np.sin(arc), towards)
        dense = np.stack([tiling.window(tile, path) for tile in range(12)], axis=1)
        met = max(met, (dense > 0).sum(axis=1).max())
        # The step's slope is at most 15/8 an overlap, and the difference of two distances grows
        # at most by 2 a degree; normalising and triple overlaps at most double it.
        assert np.abs(np.diff(dense, axis=0)).max() < 7.5 / tiling.overlap * step
        # A kink that changes the slope by 1/10 of that would stand out here.
        assert np.abs(np.diff(dense, 2, axis=0)).max() < 0.75 / tiling.overlap * step
    assert met == 3


@pytest.mark.parametrize("overlap", [0.3, 1.5, OVERLAP])
def test_windows_end_within_the_radius_and_the_chart(overlap):
    tiling = Tiling(overlap)
    nside = 1024
    near = np.unique(
        np.concatenate([hp.query_disc(nside, c, np.radians(3)) for c in corners(tiling)])
    )
    vectors = vectors_of(nside, near)
    farthest = 0.0
    for tile in range(12):
        weight = tiling.window(tile, vectors)
        distance = np.arccos(vectors[weight > 0] @ tiling.centres[tile])
        farthest = max(farthest, distance.max())
        places = tiling.locate(tile, nside, near).places
        # A cell is left beside every window.
        assert np.abs(places).max() < (CELLS / 2 - 1) * CELL
    assert farthest < tiling.radius
    # The radius is not wasteful either.
    assert farthest > 0.985 * tiling.radius


@pytest.mark.parametrize("nside", [1, 16, 64, 128])
def test_charts_hold_all_pixels_of_weight(nside, tiling, rng):
    npix = hp.nside2npix(nside)
    shuffled = rng.permutation(npix)
    tiles, weights = tiling.weights(nside)
    listed = dict(tiling.charts(nside, shuffled))
    assert list(listed) == list(range(12))
    for tile, found in tiling.charts(nside):
        weighty = np.flatnonzero(((tiles == tile) & (weights > 0)).any(axis=1))
        assert np.isin(weighty, found).all()
        assert len(np.unique(found)) == len(found)
        np.testing.assert_array_equal(np.sort(shuffled[listed[tile]]), found)
    assert [len(where) for _, where in tiling.charts(nside, np.empty(0, int))] == [0] * 12


@pytest.mark.parametrize("tile", range(12))
def test_windows_on_the_charts_own_grids(tiling, tile):
    """One pentagon serves all of them, one way up or the other."""
    want = tiling.window(tile, tiling.vectors(tile, 90).reshape(-1, 3)).reshape(90, 90)
    np.testing.assert_allclose(tiling.window_on(tile, 90), want, atol=1e-6)


@pytest.mark.parametrize("overlap", [0, -1, OVERLAP + 0.01, np.nan, np.inf])
def test_bad_overlap(overlap):
    with pytest.raises(ValueError, match=r"overlap must be above 0 and at most 2\.9 degrees"):
        Tiling(overlap)


# Splines


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_smooth_scalars_are_reproduced(tiling, dtype):
    """On grids of two sizes at once, and by each chart alone."""

    def field(vectors):
        x, y, z = np.moveaxis(vectors, -1, 0)
        return np.exp(x + 0.5 * y * z) + np.sin(3 * z + 2 * x)

    for nside, pixels in ((32, np.arange(hp.nside2npix(32))), (1024, awkward_pixels(1024))):
        expected = field(vectors_of(nside, pixels))
        total = np.zeros(len(pixels))
        for tile in range(12):
            layers = [
                spline(np.stack([field(tiling.vectors(tile, size))] * count)).astype(dtype)
                for size, count in ((180, 1), (360, 2))
            ]
            where, weights, values = sample(tiling, tile, nside, pixels, layers)
            assert [len(layer) for layer in values] == [1, 2]
            for layer in values:
                assert layer.dtype == np.float64
                for values_there in layer:
                    np.testing.assert_allclose(values_there, expected[where], atol=1e-5)
            total[where] += weights**2 * values[0][0]
        np.testing.assert_allclose(total, expected, atol=1e-5)


# Polarisation


def test_turns_against_rotations(tiling, rng):
    """The angle between the carried axes and the sky's, by rotations in space."""
    vectors = rng.standard_normal((500, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for tile in range(12):
        there = vectors[vectors @ tiling.centres[tile] > -0.9]
        south, _, e_theta, e_phi = chart_axes(tiling, tile, there)
        # Of a tensor that is Q = 1 on the chart, the sky's Q and U.
        along, across = (south * e_theta).sum(axis=1), (south * e_phi).sum(axis=1)
        expected = along**2 - across**2, 2 * along * across
        np.testing.assert_allclose(tiling.turns(tile, there), expected, atol=1e-12)


def test_polarisation_reaches_healpix_frame(tiling, rng):
    """A global field cut into charts comes back, in healpy's convention; pure E stays pure E."""
    lmax, nside = 8, 32
    e = random_alm(rng, 2, lmax)
    pixels = np.arange(hp.nside2npix(nside))
    there = awkward_pixels(1024)
    for alm in (np.stack([e, 0 * e]), np.stack([e, random_alm(rng, 2, lmax)])):
        expected = hp.alm2map([0 * e, *alm], nside, pol=True)
        expected_there = evaluate(alm, vectors_of(1024, there), 2)
        scale = expected[1:].std()
        found, found_there = np.zeros((3, len(pixels))), np.zeros((3, len(there)))
        for tile in range(12):
            vectors = tiling.vectors(tile, 180)
            qu = to_chart_frame(tiling, tile, vectors, evaluate(alm, vectors, 2))
            layer = spline(np.concatenate([np.zeros_like(qu[:1]), qu]))
            for total, where_nside, those, want in (
                (found, nside, pixels, expected),
                (
                    found_there,
                    1024,
                    there,
                    np.concatenate([0 * expected_there[:1], expected_there]),
                ),
            ):
                where, weights, (values,) = sample(tiling, tile, where_nside, those, [layer])
                np.testing.assert_allclose(values, want[:, where], atol=1e-4 * scale)
                total[:, where] += weights**2 * values
        np.testing.assert_allclose(found, expected, atol=1e-4 * scale)
        np.testing.assert_allclose(found_there[1:], expected_there, atol=1e-4 * scale)
        if not alm[1].any():
            _, ee, bb = hp.anafast(found, lmax=lmax, iter=5)[:3]
            assert bb.sum() < 1e-6 * ee.sum()


def test_flat_e_and_b_are_healpixs(tiling, rng):
    """A pure E plane, laid on the sphere, has hardly any B and the right sign, on any chart.

    A pattern of l = 60 to 300 is turned to Q and U by the formula of the module's docstring, and
    faded out within the chart's own pentagon. The fade itself turns some E into B, at l = 100 by
    about the square of the ratio of its wavenumber to l: 2e-3.
    """
    nside, lmax, size = 128, 300, 360
    frequency = 2 * np.pi / (CELLS * CELL / size)
    ky = scipy.fft.fftfreq(size)[:, None] * frequency
    kx = scipy.fft.rfftfreq(size)[None, :] * frequency
    k = np.hypot(kx, ky)
    power = np.where((k > 60) & (k < 300), 1 / np.maximum(k, 1), 0)
    e = scipy.fft.rfft2(rng.standard_normal((size, size))) * power
    turn = (ky**2 - kx**2 - 2j * kx * ky) / np.maximum(k, 1) ** 2
    # Q + iU = (E + iB) turn, of real fields: the parts of turn act on the transforms apart.
    flat = {
        "E": scipy.fft.irfft2(np.stack([0 * e, e * turn.real, e * turn.imag])),
        "B": scipy.fft.irfft2(np.stack([0 * e, -e * turn.imag, e * turn.real])),
    }
    pattern = scipy.fft.irfft2(e)
    middle = slice(size // 2 - 60, size // 2 + 60)
    pixels = np.arange(hp.nside2npix(nside))

    def fade(tile, vectors):
        distance = np.degrees(np.arccos(np.clip(vectors @ tiling.centres[tile], -1, 1)))
        return np.cos(0.5 * np.pi * np.clip(distance / 30, 0, 1)) ** 2

    found = []
    for tile, kind in ((0, "E"), (3, "E"), (8, "E"), (8, "B")):
        maps = np.zeros((3, len(pixels)))
        where, _, (values,) = sample(tiling, tile, nside, pixels, [spline(flat[kind])])
        maps[:, where] = values
        alm = hp.map2alm(maps * fade(tile, vectors_of(nside, pixels)), lmax=lmax, iter=1)[1:]
        same, other = alm if kind == "E" else alm[::-1]
        ell = np.arange(lmax + 1)
        band = (ell >= 100) & (ell < 250)
        assert hp.alm2cl(other)[band].sum() < 0.01 * hp.alm2cl(same)[band].sum()
        vectors = tiling.vectors(tile, size)[middle, middle]
        found.append(evaluate(same[None], vectors, 0)[0])
        expected = pattern[middle, middle] * fade(tile, vectors)
        assert np.corrcoef(found[-1].ravel(), expected.ravel())[0, 1] > 0.99
        assert np.std(found[-1] - found[0]) < 0.02 * np.std(found[0])


# Bits


def test_any_subset_has_the_same_bits(tiling, rng, monkeypatch):
    layers = [rng.standard_normal((n, size, size), np.float32) for n, size in ((1, 90), (3, 180))]
    nside, tile = 256, 4
    pixels = np.arange(hp.nside2npix(nside))
    assert len(pixels) > CHUNK
    where, weights, values = sample(tiling, tile, nside, pixels, layers)
    full = np.full((5, len(pixels)), np.nan)
    full[:, where] = np.concatenate([weights[None], *values])

    def check(those):
        where, weights, values = sample(tiling, tile, nside, those, layers)
        np.testing.assert_array_equal(where, np.flatnonzero(~np.isnan(full[0, those])))
        found = np.concatenate([weights[None], *values])
        np.testing.assert_array_equal(found, full[:, those[where]])

    check(rng.permutation(pixels))
    check(pixels[::-7])
    check(hp.query_disc(nside, tiling.centres[tile], 0.01))
    check(np.empty(0, np.int64))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    check(pixels)
    one, two = (sample(tiling, tile, nside, pixels[:5000], [layer])[2][0] for layer in layers)
    there = full[1:, :5000][:, ~np.isnan(full[0, :5000])]
    np.testing.assert_array_equal(np.concatenate([one, two]), there)
