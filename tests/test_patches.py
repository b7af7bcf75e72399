"""Maps to training patches."""

from __future__ import annotations

from pathlib import Path

import healpy as hp
import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from pysm_vae.vae.patches import (
    PatchSampler,
    PatchSet,
    SkyMap,
    concatenate,
    cut_patch,
    grid_patches,
    read_map,
    split_regions,
    standardise,
    tangent_grid,
)

NSIDE = 32


def vector(lon, lat) -> np.ndarray:
    """Unit vectors, components first; degrees."""
    lon, lat = np.radians(lon), np.radians(lat)
    return np.array([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat) + 0 * lon])


def separation(one, other) -> np.ndarray:
    """Angle between (lon, lat) arrays and one (lon, lat), degrees."""
    cosine = np.tensordot(vector(*other), vector(*one), axes=1)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def truth(lon, lat) -> np.ndarray:
    """Natural-log intensity that no rotation or reflection leaves alone; degrees, Galactic."""
    x, y, z = vector(lon, lat)
    return 0.3 + 0.8 * x - 0.5 * y + 0.4 * z + 0.3 * x * y


def healpix_truth(nside: int = NSIDE, nest: bool = False, coord: str = "G") -> np.ndarray:
    """The known function on a HEALPix map in some frame (healpy's own rotation matrices)."""
    vectors = np.array(hp.pix2vec(nside, np.arange(hp.nside2npix(nside)), nest=nest))
    if coord != "G":
        vectors = hp.Rotator(coord=[coord, "G"])(vectors)
    return truth(*hp.vec2ang(vectors.T, lonlat=True))


def write_healpix(path: Path, values: np.ndarray, **options) -> Path:
    options = {"coord": "G", "dtype": np.float64, "column_units": "MJy/sr"} | options
    hp.write_map(path, values, overwrite=True, **options)
    return path


def image_wcs(kind: str = "GLON/GLAT", n: int = 60, pixel: float = 6.0) -> WCS:
    """WCS of an image n x (n - 10) of the sky around (l, b) = (172, -15), pixel in arcmin."""
    centre = SkyCoord(172 * u.deg, -15 * u.deg, frame="galactic")
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [
        f"{axis:-<5}{projection}"
        for axis, projection in zip(kind.split("/"), ("TAN", "TAN"), strict=True)
    ]
    wcs.wcs.crval = {
        "GLON/GLAT": [172, -15],
        "GLAT/GLON": [-15, 172],
        "RA/DEC": [centre.icrs.ra.deg, centre.icrs.dec.deg],
        "ELON/ELAT": hp.Rotator(coord=["G", "E"])(172, -15, lonlat=True),
    }[kind]
    wcs.wcs.crpix = [n / 2 + 0.5, n / 2 - 4.5]
    wcs.wcs.cdelt = [-pixel / 60, pixel / 60]
    turn = np.radians(20)
    wcs.wcs.pc = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    wcs.wcs.set()
    return wcs


def image_positions(wcs: WCS, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Galactic positions of the pixels, by astropy's (or healpy's) frames."""
    y, x = np.indices(shape)
    if wcs.wcs.lngtyp.strip() == "ELON":
        lon, lat = wcs.wcs_pix2world(x.ravel(), y.ravel(), 0)
        lon, lat = hp.Rotator(coord=["E", "G"])(lon, lat, lonlat=True)
        return lon.reshape(shape), lat.reshape(shape)
    sky = wcs.pixel_to_world(x, y).galactic
    return sky.l.deg, sky.b.deg


def write_image(path: Path, values: np.ndarray, wcs: WCS, unit: str = "MJy/sr") -> Path:
    header = wcs.to_header()
    if unit:
        header["BUNIT"] = unit
    fits.PrimaryHDU(values, header).writeto(path, overwrite=True)
    return path


def make_image(path: Path, *, kind: str = "GLON/GLAT", n: int = 60, pixel: float = 6.0) -> SkyMap:
    wcs = image_wcs(kind, n, pixel)
    values = np.exp(truth(*image_positions(wcs, (n - 10, n))))
    return read_map(write_image(path, values, wcs))


@pytest.fixture
def positions(rng) -> tuple[np.ndarray, np.ndarray]:
    """Positions all over the sky, uniform."""
    return rng.uniform(0, 360, (20, 15)), np.degrees(np.arcsin(rng.uniform(-1, 1, (20, 15))))


@pytest.fixture
def full_sky(tmp_path) -> SkyMap:
    return read_map(write_healpix(tmp_path / "full.fits", np.exp(healpix_truth())))


@pytest.fixture
def field(tmp_path) -> SkyMap:
    """An image of 10 x 8.3 degrees."""
    return make_image(tmp_path / "field.fits", n=60, pixel=10.0)


class TestHealpix:
    @pytest.mark.parametrize("nest", [False, True])
    @pytest.mark.parametrize("coord", ["G", "C", "E"])
    def test_every_ordering_and_frame(self, tmp_path, positions, nest, coord):
        values = np.exp(healpix_truth(nest=nest, coord=coord))
        sky = read_map(write_healpix(tmp_path / "m.fits", values, nest=nest, coord=coord))
        found = sky.sample(*positions)
        assert found.shape == positions[0].shape
        # Bilinear interpolation errs by ~ (1.8 deg)^2 / 8 x curvature ~ 1e-4, near the poles more.
        np.testing.assert_allclose(found, truth(*positions), atol=5e-3)
        assert np.median(np.abs(found - truth(*positions))) < 3e-4
        # It is exact in the middle of a pixel, so this sees a frame that is off by arcseconds.
        lon, lat = hp.pix2ang(NSIDE, np.arange(5, 12000, 601), nest=nest, lonlat=True)
        if coord != "G":
            lon, lat = hp.Rotator(coord=[coord, "G"])(lon, lat, lonlat=True)
        np.testing.assert_allclose(sky.sample(lon, lat), truth(lon, lat), atol=1e-5)
        assert sky.kind == "healpix"
        assert sky.resolution == pytest.approx(60 * np.sqrt(41252.96 / (12 * NSIDE**2)), rel=1e-5)
        assert sky.footprint.area == pytest.approx(41252.96, rel=1e-6)

    @pytest.mark.parametrize("nest", [False, True])
    def test_partial_sky_with_explicit_indices(self, tmp_path, positions, nest):
        values = np.exp(healpix_truth(nest=nest, coord="C"))
        disc = hp.query_disc(NSIDE, hp.ang2vec(30, 40, lonlat=True), np.radians(25), nest=nest)
        holed = np.full(values.size, hp.UNSEEN)
        holed[disc] = values[disc]
        path = write_healpix(tmp_path / "m.fits", holed, nest=nest, coord="C", partial=True)
        sky = read_map(path)
        found = sky.sample(*positions)
        lon, lat = hp.Rotator(coord=["C", "G"])(30, 40, lonlat=True)
        distance = separation(positions, (lon, lat))
        assert np.isnan(found[distance > 26]).all()
        inner = distance < 20
        assert inner.any()
        np.testing.assert_allclose(found[inner], truth(*positions)[inner], atol=5e-3)
        assert separation((sky.footprint.lon, sky.footprint.lat), (lon, lat)) < 1
        assert 25 < sky.footprint.radius < 30

    def test_layout_of_the_gnilc_map(self, tmp_path, positions):
        """As COM_CompMap_Dust-GNILC-F545_2048_R2.00.fits: one value a row, big-endian float32."""
        values = np.exp(healpix_truth(nest=True)).astype(">f4")
        table = fits.BinTableHDU.from_columns(
            [fits.Column("I", format="E", unit="MJy/sr", array=values)], name="COMP-MAP-DUST"
        )
        table.header.update(
            PIXTYPE="HEALPIX",
            COORDSYS="GALACTIC",
            ORDERING="NESTED",
            NSIDE=NSIDE,
            FIRSTPIX=0,
            LASTPIX=values.size - 1,
            INDXSCHM="IMPLICIT",
            BAD_DATA=-1.63750e30,
        )
        path = tmp_path / "COM_CompMap_Dust-GNILC-F545_2048_R2.00.fits"
        table.writeto(path)
        sky = read_map(path)
        assert sky.name == "COM_CompMap_Dust-GNILC-F545_2048_R2.00"
        np.testing.assert_allclose(sky.sample(*positions), truth(*positions), atol=5e-3)

    def test_column_choice(self, tmp_path, positions):
        values = np.exp(healpix_truth())
        path = write_healpix(
            tmp_path / "m.fits", [2 * values, values], column_names=["OTHER", "I_STOKES"]
        )
        expected = truth(*positions)
        np.testing.assert_allclose(read_map(path).sample(*positions), expected, atol=5e-3)
        for column in ("OTHER", 0):
            found = read_map(path, column=column).sample(*positions)
            np.testing.assert_allclose(found, expected + np.log(2), atol=5e-3)
        for column in ("NONE", 2):
            with pytest.raises(ValueError, match=r"no column.*OTHER.*I_STOKES"):
                read_map(path, column=column)

    @pytest.mark.parametrize("bad", [hp.UNSEEN, np.nan, np.inf, -np.inf, 0.0, -1.0])
    def test_invalid_pixel_spoils_its_neighbours_only(self, tmp_path, bad):
        values = np.exp(healpix_truth())
        hole = hp.ang2pix(NSIDE, 100, 35, lonlat=True)
        values[hole] = bad
        sky = read_map(write_healpix(tmp_path / "m.fits", values))
        lon, lat = hp.pix2ang(NSIDE, hole, lonlat=True)
        assert np.isnan(sky.sample(lon + 0.3, lat + 0.3))
        assert np.isfinite(sky.sample(lon, lat + 6))

    def test_mask_and_latitude_cut(self, tmp_path, positions):
        values = np.exp(healpix_truth())
        keep = hp.pix2ang(NSIDE, np.arange(values.size), lonlat=True)[0] < 180
        path = write_healpix(tmp_path / "m.fits", values)
        # The mask's file is in the other ordering.
        mask = write_healpix(
            tmp_path / "mask.fits",
            hp.reorder(keep.astype(float), r2n=True),
            nest=True,
            column_units="",
        )
        lon, lat = positions
        for given in (keep, mask):
            found = read_map(path, mask=given, min_latitude=15).sample(lon, lat)
            assert np.isnan(found[(lon > 184) & (lon < 356)]).all()
            assert np.isnan(found[np.abs(lat) < 15]).all()
            inner = (lon > 6) & (lon < 174) & (np.abs(lat) > 16) & (np.abs(lat) < 60)
            assert inner.sum() > 20
            assert np.isfinite(found[inner]).all()
        with pytest.raises(ValueError, match="own pixels"):
            read_map(path, mask=keep[:-1])
        with pytest.raises(ValueError, match="no valid pixel"):
            read_map(path, mask=np.zeros(values.size))
        equatorial = write_healpix(tmp_path / "mask.fits", keep.astype(float), coord="C")
        with pytest.raises(ValueError, match="COORDSYS C"):
            read_map(path, mask=equatorial)

    @pytest.mark.parametrize("log", ["linear", "log10", "ln"])
    @pytest.mark.parametrize("nest", [False, True])
    def test_smoothing_acts_on_intensity(self, tmp_path, nest, log):
        """A Gaussian beam leaves the monopole and takes exp(-sigma^2) of the dipole."""
        z = hp.pix2vec(NSIDE, np.arange(hp.nside2npix(NSIDE)), nest=nest)[2]
        stored = {"linear": lambda x: x, "log10": np.log10, "ln": np.log}[log](2 + z)
        sky = read_map(write_healpix(tmp_path / "m.fits", stored, nest=nest), fwhm=50 * 60, log=log)
        sigma = np.radians(50) / 2.354820045
        lat = np.array([-80.0, -30.0, 10.0, 65.0])
        expected = np.log(2 + np.sin(np.radians(lat)) * np.exp(-(sigma**2)))
        np.testing.assert_allclose(sky.sample(77.0, lat), expected, atol=1e-3)

    def test_smoothing_is_a_sum_over_pixels(self, tmp_path):
        """Whatever the map holds: a bright plane throws no stripes, a hole is left out."""
        vectors = np.array(hp.pix2vec(NSIDE, np.arange(hp.nside2npix(NSIDE))))
        values = np.exp(healpix_truth())
        values[np.abs(vectors[2]) < 0.05] *= 1e5
        hole = vectors[0] > 0.99
        fwhm = 2.2 * hp.nside2resol(NSIDE)
        stored = np.where(hole, hp.UNSEEN, values)
        sky = read_map(
            write_healpix(tmp_path / "m.fits", stored), fwhm=60 * np.degrees(fwhm), log="linear"
        )
        assert np.isnan(sky.values[hole]).all()
        for pixel in hp.vec2pix(NSIDE, [0.3, -0.9, 0.95], [0.2, 0.1, 0.1], [0.9, 0.4, 0.25]):
            angle = np.arccos(np.clip(vectors[:, pixel] @ vectors, -1, 1))
            kernel = np.where(hole, 0, np.exp(-4 * np.log(2) * (angle / fwhm) ** 2))
            expected = np.log(kernel @ values / kernel.sum())
            # The kernel is followed to a millionth of its height, the plane is 1e5 brighter.
            assert sky.values[pixel] == pytest.approx(expected, abs=1e-2)

    def test_octants(self, full_sky):
        lon = np.array([10, 100, 190, 280, 10, 100, 190, 280, 90.0])
        lat = np.array([30, 30, 30, 30, -30, -30, -30, -30, 30.0])
        assert full_sky.region(lon, lat).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, -1]
        assert full_sky.region_names == tuple(f"full:{k}" for k in range(8))


class TestImage:
    @pytest.mark.parametrize("kind", ["GLON/GLAT", "RA/DEC", "ELON/ELAT", "GLAT/GLON"])
    def test_every_frame(self, tmp_path, rng, kind):
        sky = make_image(tmp_path / "m.fits", kind=kind)
        lon, lat = 172 + rng.uniform(-1.8, 1.8, (7, 9)), -15 + rng.uniform(-1.8, 1.8, (7, 9))
        np.testing.assert_allclose(sky.sample(lon, lat), truth(lon, lat), atol=5e-5)
        assert sky.kind == "image"
        assert sky.resolution == pytest.approx(6.0)
        assert np.isnan(sky.sample([352.0, 172.0, 82.0], [15.0, 40.0, 0.0])).all()
        assert (sky.region([352.0, 172.0], [15.0, 40.0]) == -1).all()
        assert sky.footprint.area == pytest.approx(60 * 50 * 0.01, rel=1e-6)
        assert np.hypot(sky.footprint.lat + 15, sky.footprint.lon - 172) < 0.2

    def test_extra_axis_of_length_one(self, tmp_path):
        wcs = image_wcs()
        values = np.exp(truth(*image_positions(wcs, (50, 60))))
        cube = WCS(naxis=3)
        cube.wcs.ctype = ["GLON-TAN", "GLAT-TAN", "FREQ"]
        cube.wcs.crval = [172, -15, 353e9]
        cube.wcs.crpix = [30.5, 25.5, 1]
        cube.wcs.cdelt = [-0.1, 0.1, 1e9]
        cube.wcs.pc[:2, :2] = wcs.wcs.pc
        path = write_image(tmp_path / "m.fits", values[None], cube)
        assert read_map(path).sample(172.5, -14.5) == pytest.approx(truth(172.5, -14.5), abs=1e-6)
        path = write_image(tmp_path / "m.fits", np.stack([values, values]), cube)
        with pytest.raises(ValueError, match="one plane"):
            read_map(path)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -2.0, -1.6375e30])
    def test_invalid_pixel_spoils_its_four_by_four_only(self, tmp_path, bad):
        wcs = image_wcs()
        lon, lat = image_positions(wcs, (50, 60))
        values = np.exp(truth(lon, lat))
        values[20, 30] = bad
        sky = read_map(write_image(tmp_path / "m.fits", values, wcs))
        y, x = np.array([20.5, 18.5, 21.5, 20.5, 17.5, 22.5]), np.full(6, 30.5)
        at = wcs.pixel_to_world(x, y).galactic
        found = sky.sample(at.l.deg, at.b.deg)
        assert np.isnan(found).tolist() == [True, True, True, True, False, False]
        # The spline is filled from the nearest pixel, so the hole barely shows outside.
        np.testing.assert_allclose(found[4:], truth(at.l.deg, at.b.deg)[4:], atol=5e-4)

    def test_mask_and_latitude_cut(self, tmp_path):
        wcs = image_wcs()
        values = np.exp(truth(*image_positions(wcs, (50, 60))))
        path = write_image(tmp_path / "m.fits", values, wcs)
        keep = np.ones(values.shape, bool)
        keep[:, 40:] = False
        file = write_image(tmp_path / "mask.fits", keep.astype(float), wcs, unit="")
        at = wcs.pixel_to_world([20.0, 39.5, 50.0], [25.0, 25.0, 25.0]).galactic
        for mask in (keep, file):
            found = read_map(path, mask=mask).sample(at.l.deg, at.b.deg)
            assert np.isfinite(found).tolist() == [True, False, False]
        cut = read_map(path, min_latitude=15).sample([172.0, 172.0], [-14.9, -15.1])
        assert np.isfinite(cut).tolist() == [False, True]
        other = write_healpix(tmp_path / "h.fits", np.ones(12))
        with pytest.raises(ValueError, match="one is HEALPix"):
            read_map(path, mask=other)

    def test_smoothing_of_a_wave_and_around_a_hole(self, tmp_path):
        """A Gaussian takes exp(-k^2 sigma^2 / 2) of a wave; a constant stays, hole or not."""
        wcs = image_wcs(n=110, pixel=6.0)
        y = np.indices((100, 110))[0]
        k = 2 * np.pi / 12  # a pixel
        wave = 2 + np.sin(k * y)
        sky = read_map(write_image(tmp_path / "m.fits", wave, wcs), fwhm=24.0)
        sigma = 24.0 / 6.0 / 2.354820045
        at = wcs.pixel_to_world(np.full(5, 55.0), np.arange(48.0, 53.0)).galactic
        expected = np.log(2 + np.sin(k * np.arange(48, 53)) * np.exp(-((k * sigma) ** 2) / 2))
        np.testing.assert_allclose(sky.sample(at.l.deg, at.b.deg), expected, atol=1e-3)

        flat = np.full((100, 110), 5.0)
        flat[40:60, 50:60] = np.nan
        sky = read_map(write_image(tmp_path / "m.fits", flat, wcs), fwhm=24.0)
        at = wcs.pixel_to_world([45.0, 2.0, 55.0], [50.0, 50.0, 50.0]).galactic
        found = sky.sample(at.l.deg, at.b.deg)
        np.testing.assert_allclose(found[:2], np.log(5), atol=1e-9)
        assert np.isnan(found[2])

    def test_compressed_image_behind_an_empty_hdu(self, tmp_path):
        wcs = image_wcs()
        values = np.exp(truth(*image_positions(wcs, (50, 60))))
        image = fits.CompImageHDU(values, wcs.to_header(), compression_type="GZIP_1")
        fits.HDUList([fits.PrimaryHDU(), image]).writeto(tmp_path / "m.fits.fz")
        sky = read_map(tmp_path / "m.fits.fz")
        assert sky.name == "m"
        assert sky.sample(172.5, -14.5) == pytest.approx(truth(172.5, -14.5), abs=1e-6)

    def test_distortion_is_refused(self, tmp_path):
        wcs = image_wcs()
        path = write_image(tmp_path / "m.fits", np.ones((50, 60)), wcs)
        with fits.open(path, mode="update") as hdus:
            hdus[0].header.update(
                CTYPE1="GLON-TAN-SIP", CTYPE2="GLAT-TAN-SIP", A_ORDER=2, A_2_0=1e-5, B_ORDER=2
            )
        with pytest.raises(ValueError, match="distortion"):
            read_map(path)

    def test_halves(self, tmp_path):
        sky = make_image(tmp_path / "m.fits")
        at = image_wcs().pixel_to_world([5.0, 27.9, 28.1, 30.9, 31.1, 50.0], [20.0] * 6).galactic
        assert sky.region(at.l.deg, at.b.deg).tolist() == [0, 0, -1, -1, 1, 1]
        assert sky.region_names == ("m:0", "m:1")


class TestLogDetection:
    def image(self, tmp_path, values, unit="", name="map.fits") -> Path:
        return write_image(tmp_path / name, values, image_wcs(), unit)

    @pytest.fixture
    def logs(self) -> np.ndarray:
        return truth(*image_positions(image_wcs(), (50, 60)))

    @pytest.mark.parametrize(
        ("unit", "expected"),
        [
            ("log(MJy/sr)", "log10"),
            ("log10(cm-2)", "log10"),
            ("ln(K)", "ln"),
            ("K", "linear"),
            ("", "linear"),
        ],
    )
    def test_from_the_unit(self, tmp_path, logs, unit, expected):
        stored = {"linear": np.exp(logs), "log10": logs / np.log(10), "ln": logs}[expected]
        sky = read_map(self.image(tmp_path, stored, unit))
        assert sky.sample(172, -15) == pytest.approx(truth(172, -15), abs=1e-6)

    def test_from_column_name(self, tmp_path):
        path = write_healpix(
            tmp_path / "m.fits",
            healpix_truth() / np.log(10),
            column_names=["LOGI"],
            column_units="",
        )
        assert read_map(path).sample(40, 40) == pytest.approx(truth(40, 40), abs=1e-3)

    def test_no_word_that_only_holds_log(self, tmp_path, logs):
        path = self.image(tmp_path, np.exp(logs))
        with fits.open(path, mode="update") as hdus:
            hdus[0].header["EXTNAME"] = "CATALOG"
        assert read_map(path).sample(172, -15) == pytest.approx(truth(172, -15), abs=1e-6)

    def test_column_density_needs_a_word(self, tmp_path, logs):
        stored = 21 + logs / np.log(10)
        path = self.image(tmp_path, stored)
        with pytest.raises(ValueError, match='log="log10"'):
            read_map(path)
        expected = truth(172, -15) + 21 * np.log(10)
        assert read_map(path, log="log10").sample(172, -15) == pytest.approx(expected, abs=1e-6)
        named = self.image(tmp_path, stored, name="cloud_lognh.fits")
        assert read_map(named).sample(172, -15) == pytest.approx(expected, abs=1e-6)

    def test_negative_values_are_refused_unless_told(self, tmp_path, logs):
        path = self.image(tmp_path, logs - 1)
        with pytest.raises(ValueError, match=r"log10.*ln.*linear"):
            read_map(path)
        assert read_map(path, log="ln").sample(172, -15) == pytest.approx(
            truth(172, -15) - 1, abs=1e-6
        )
        half = self.image(tmp_path, logs - np.median(logs), "K")
        with pytest.raises(ValueError, match="no intensity"):
            read_map(half)

    def test_a_few_negative_pixels_of_a_known_unit_are_left_out(self, tmp_path, logs, caplog):
        stored = np.exp(logs)
        stored[3, 4] = -1
        read_map(self.image(tmp_path, stored, "MJy/sr"))
        assert "left out" in caplog.text

    def test_no_positive_pixel(self, tmp_path, logs):
        with pytest.raises(ValueError, match="no positive pixel"):
            read_map(self.image(tmp_path, -np.exp(logs)), log="linear")


class TestBadFiles:
    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="Check the path"):
            read_map(tmp_path / "no.fits")

    def test_not_fits(self, tmp_path):
        (tmp_path / "m.fits").write_text("no map")
        with pytest.raises(ValueError, match="cannot be read as FITS"):
            read_map(tmp_path / "m.fits")

    def test_no_map_inside(self, tmp_path):
        fits.PrimaryHDU().writeto(tmp_path / "m.fits")
        with pytest.raises(ValueError, match="no HEALPix table and no image"):
            read_map(tmp_path / "m.fits")

    def test_no_wcs_and_wrong_hdu(self, tmp_path):
        fits.PrimaryHDU(np.ones((9, 9))).writeto(tmp_path / "m.fits")
        with pytest.raises(ValueError, match="no celestial WCS"):
            read_map(tmp_path / "m.fits")
        with pytest.raises(ValueError, match="no HDU 3"):
            read_map(tmp_path / "m.fits", hdu=3)

    def test_too_small(self, tmp_path):
        with pytest.raises(ValueError, match="at least 4 x 4"):
            read_map(write_image(tmp_path / "m.fits", np.ones((3, 9)), image_wcs()))

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("ORDERING", "OTHER", "RING or NESTED"),
            ("COORDSYS", "X", "Galactic"),
            ("INDXSCHM", "EXPLICIT", "no map column"),
        ],
    )
    def test_wrong_keywords(self, tmp_path, key, value, message):
        path = write_healpix(tmp_path / "m.fits", np.ones(12))
        fits.setval(path, key, value=value, ext=1)
        with pytest.raises(ValueError, match=message):
            read_map(path)

    def test_wrong_number_of_pixels(self, tmp_path):
        table = fits.BinTableHDU.from_columns([fits.Column("I", format="E", array=np.ones(11))])
        table.header.update(ORDERING="RING", COORDSYS="G")
        table.writeto(tmp_path / "m.fits")
        with pytest.raises(ValueError, match="11 pixels"):
            read_map(tmp_path / "m.fits")

    @pytest.mark.parametrize(
        "option", [{"log": "log2"}, {"fwhm": 0.0}, {"fwhm": np.nan}, {"min_latitude": 90.0}]
    )
    def test_wrong_options(self, tmp_path, option):
        with pytest.raises(ValueError, match=next(iter(option))):
            read_map(tmp_path / "m.fits", **option)


class TestGeometry:
    @pytest.mark.parametrize(("lon", "lat"), [(0.0, 0.0), (172.5, -14.5), (300.0, 89.0)])
    @pytest.mark.parametrize("angle", [0.0, 33.0, -120.0])
    def test_tangent_grid_is_a_tan_wcs(self, lon, lat, angle):
        size, pixel = 9, 20.0
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["GLON-TAN", "GLAT-TAN"]
        wcs.wcs.crval = [lon, lat]
        wcs.wcs.crpix = [5.0, 5.0]
        wcs.wcs.cdelt = [-pixel / 60, pixel / 60]
        turn = np.radians(angle)
        wcs.wcs.pc = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        y, x = np.indices((size, size))
        expected = vector(*wcs.wcs_pix2world(x.ravel(), y.ravel(), 0))
        found = tangent_grid(lon, lat, size, pixel, angle)
        assert found[0].shape == found[1].shape == (size, size)
        np.testing.assert_allclose(vector(*found).reshape(3, -1), expected, atol=1e-12)
        mirrored = tangent_grid(lon, lat, size, pixel, angle, mirror=True)
        np.testing.assert_allclose(mirrored[1], found[1][:, ::-1], atol=1e-10)

    @pytest.mark.parametrize(("size", "pixel"), [(1, 2.0), (4.5, 2.0), (8, 0.0), (8, np.nan)])
    def test_refuses_no_patch(self, size, pixel):
        with pytest.raises(ValueError, match="size"):
            tangent_grid(0, 0, size, pixel)

    def test_cut_patch(self, field):
        patch = cut_patch(field, 172, -15, 12, 8.0, angle=25, mirror=True)
        grid = tangent_grid(172, -15, 12, 8.0, 25, True)
        np.testing.assert_allclose(patch, truth(*grid), atol=1e-6)
        assert cut_patch(field, 172, -15, 80, 8.0) is None


class TestStandardise:
    def test_known_numbers_and_round_trip(self, rng):
        ramp = np.tile(np.arange(4.0), (4, 1))
        patches = np.stack([3 + 2 * ramp, 50 + rng.normal(0, 0.1, (4, 4))])
        standardised, mean, scale = standardise(patches)
        assert mean[0] == pytest.approx(6.0)
        assert scale[0] == pytest.approx(np.sqrt(5.0))  # 2 x sqrt((4^2 - 1) / 12)
        assert standardised.dtype == np.float32
        np.testing.assert_allclose(standardised.mean(axis=(1, 2)), 0, atol=1e-6)
        np.testing.assert_allclose(standardised.std(axis=(1, 2)), 1, atol=1e-6)
        back = standardised * scale[:, None, None] + mean[:, None, None]
        np.testing.assert_allclose(back, patches, rtol=1e-6)

    def test_refuses_constant_or_broken_patches(self, rng):
        patches = rng.normal(size=(3, 4, 4))
        patches[1] = 0.1 + 50
        with pytest.raises(ValueError, match="patch 1 is constant"):
            standardise(patches)
        with pytest.raises(ValueError, match="shape"):
            standardise(patches[0])


class TestRegions:
    def test_halves_of_an_image_share_no_pixel(self, tmp_path, rng):
        """With one half of the pixels gone, all of the other half's region is still there."""
        wcs = image_wcs(n=60, pixel=10.0)
        values = np.exp(truth(*image_positions(wcs, (50, 60))))
        y, x = rng.uniform(0, 49, 3000), rng.uniform(0, 59, 3000)
        at = wcs.pixel_to_world(x, y).galactic
        lon, lat = at.l.deg, at.b.deg
        whole = read_map(write_image(tmp_path / "m.fits", values, wcs))
        valid, labels = np.isfinite(whole.sample(lon, lat)), whole.region(lon, lat)
        for label in (0, 1):
            left = values.copy()
            left[:, slice(None, 30) if label else slice(30, None)] = np.nan
            found = np.isfinite(
                read_map(write_image(tmp_path / "h.fits", left, wcs)).sample(lon, lat)
            )
            own = valid & (labels == label)
            assert own.sum() > 1000
            assert found[own].all()
            assert not found[labels != label].any()

    @pytest.mark.parametrize("coord", ["G", "C"])
    def test_octants_share_no_pixel(self, tmp_path, positions, coord):
        values = np.exp(healpix_truth(coord=coord))
        whole = read_map(write_healpix(tmp_path / "m.fits", values, coord=coord))
        labels = whole.region(*positions)
        lon, lat = hp.pix2ang(NSIDE, np.arange(values.size), lonlat=True)
        if coord != "G":
            lon, lat = hp.Rotator(coord=[coord, "G"])(lon, lat, lonlat=True)
        octant = (lon % 360) // 90 + 4 * (lat < 0)
        for label in (0, 3, 6):
            left = np.where(octant == label, values, hp.UNSEEN)
            part = read_map(write_healpix(tmp_path / "h.fits", left, coord=coord))
            found = np.isfinite(part.sample(*positions))
            assert (labels == label).any()
            assert (found == (labels == label)).all()

    def test_patches_lie_in_one_region_each(self, field, rng):
        drawn = PatchSampler(field, 16, 10.0, regions=["field:1"]).draw(20, rng)
        fixed = grid_patches(field, 16, 10.0, spacing=0.5)
        assert set(drawn.region) == {"field:1"}
        assert set(fixed.region) == {"field:0", "field:1"}
        wcs = image_wcs(n=60, pixel=10.0)
        for patches in (drawn, fixed):
            for k in range(len(patches)):
                grid = tangent_grid(
                    patches.lon[k], patches.lat[k], 16, 10.0, patches.angle[k], patches.mirror[k]
                )
                x, _ = wcs.wcs_world2pix(grid[0].ravel(), grid[1].ravel(), 0)
                if patches.region[k] == "field:0":
                    assert np.floor(x).max() + 2 < 30
                else:
                    assert np.floor(x).min() - 1 >= 30


class TestGrid:
    def test_rings_as_in_the_paper(self, full_sky):
        patches = grid_patches(full_sky, 8, 60.0, spacing=4.0)
        north = patches.select(patches.region == "full:0")
        rings = np.unique(np.round(north.lat, 6))
        np.testing.assert_allclose(np.diff(rings), 4.0, atol=1e-5)
        for ring in rings:
            lon = np.sort(north.lon[np.abs(north.lat - ring) < 1e-5])
            steps = np.diff(lon) * np.cos(np.radians(ring))
            np.testing.assert_allclose(steps, 4.0, atol=1e-5)
        assert (patches.angle == 0).all()
        assert not patches.mirror.any()
        assert set(patches.source) == {"full"}
        # Every 4 degrees, the sphere has 41253 / 16 centres; a border 4 degrees wide is lost
        # around each octant.
        assert 0.6 < len(patches) / (41253 / 16) < 0.9

    def test_patches_are_the_map(self, full_sky):
        patches = grid_patches(full_sky, 8, 60.0, spacing=15.0, regions=["full:6", "other:1"])
        assert set(patches.region) == {"full:6"}
        for k in range(len(patches)):
            grid = tangent_grid(patches.lon[k], patches.lat[k], 8, 60.0)
            logs = patches.patches[k] * patches.scale[k] + patches.mean[k]
            np.testing.assert_allclose(logs, truth(*grid), atol=5e-3)

    def test_deterministic_and_default_spacing(self, field):
        first, second = grid_patches(field, 12, 10.0), grid_patches(field, 12, 10.0)
        np.testing.assert_array_equal(first.patches, second.patches)
        rings = np.unique(np.round(first.lat[first.region == "field:0"], 6))
        np.testing.assert_allclose(np.diff(rings), 1.0, atol=1e-5)

    def test_errors(self, field):
        with pytest.raises(ValueError, match="Take a smaller patch"):
            grid_patches(field, 40, 10.0)
        with pytest.raises(ValueError, match="spacing"):
            grid_patches(field, 12, 10.0, spacing=0.0)


class TestSampler:
    def test_same_generator_same_patches(self, field):
        sampler = PatchSampler(field, 12, 10.0, zoom=1.4)
        first, second, other = (sampler.draw(10, np.random.default_rng(seed)) for seed in (5, 5, 6))
        np.testing.assert_array_equal(first.patches, second.patches)
        assert not np.isin(first.lon, other.lon).any()

    def test_patches_are_the_map_where_they_say(self, field, rng):
        drawn = PatchSampler(field, 12, 10.0, zoom=1.4).draw(20, rng)
        assert len(drawn) == 20
        assert drawn.mirror.any()
        assert not drawn.mirror.all()
        assert np.ptp(drawn.angle) > 90
        assert ((drawn.pixel_size >= 10) & (drawn.pixel_size <= 14)).all()
        assert np.ptp(drawn.pixel_size) > 1
        for k in range(20):
            grid = tangent_grid(
                drawn.lon[k], drawn.lat[k], 12, drawn.pixel_size[k], drawn.angle[k], drawn.mirror[k]
            )
            logs = drawn.patches[k] * drawn.scale[k] + drawn.mean[k]
            np.testing.assert_allclose(logs, truth(*grid), atol=2e-4)

    def test_distributions(self, full_sky, rng):
        """Uniform on the sphere (so in sin b) and in the log of the pixel size."""
        drawn = PatchSampler(full_sky, 2, 6.0, regions=["full:2"], zoom=2.0).draw(500, rng)
        for uniform in (
            np.sin(np.radians(drawn.lat)),
            drawn.lon / 90 - 2,
            np.log2(drawn.pixel_size / 6),
            drawn.angle / 360,
        ):
            # Mean 1/2 +- 0.29 / sqrt(500) = 0.013; variance 1/12.
            assert uniform.mean() == pytest.approx(0.5, abs=0.05)
            assert uniform.var() == pytest.approx(1 / 12, abs=0.015)

    def test_no_zoom_by_default(self, field, rng):
        assert (PatchSampler(field, 12, 10.0).draw(5, rng).pixel_size == 10).all()

    def test_avoids_holes(self, tmp_path, rng):
        wcs = image_wcs(n=60, pixel=10.0)
        values = np.exp(truth(*image_positions(wcs, (50, 60))))
        values[:, :30] = np.nan
        values[5, 45] = np.nan  # inside patches, off the points that are looked at first
        sky = read_map(write_image(tmp_path / "m.fits", values, wcs))
        drawn = PatchSampler(sky, 14, 10.0).draw(40, rng)
        assert set(drawn.region) == {"m:1"}
        assert np.isfinite(drawn.patches).all()

    def test_errors(self, field, rng):
        with pytest.raises(ValueError, match=r"no complete patch of 6\.67 degrees.*field:0"):
            PatchSampler(field, 40, 10.0, regions=["field:0"]).draw(1, rng)
        with pytest.raises(ValueError, match="it has field:0, field:1"):
            PatchSampler(field, 12, 10.0, regions=["field:2"])
        with pytest.raises(ValueError, match="it has field:0, field:1"):
            PatchSampler(field, 12, 10.0, regions=["other:0"])
        with pytest.raises(ValueError, match="zoom"):
            PatchSampler(field, 12, 10.0, zoom=0.5)
        with pytest.raises(ValueError, match="at least one"):
            PatchSampler(field, 12, 10.0).draw(0, rng)

    def test_no_sky_above_the_latitude_cut(self, tmp_path, rng):
        make_image(tmp_path / "m.fits")
        sky = read_map(tmp_path / "m.fits", min_latitude=60)
        with pytest.raises(ValueError, match="no complete patch"):
            PatchSampler(sky, 8, 6.0).draw(1, rng)


class TestPatchSet:
    def test_save_and_load(self, field, tmp_path, rng):
        drawn = PatchSampler(field, 12, 10.0, zoom=1.2).draw(6, rng)
        drawn.save(tmp_path / "set.npz")
        loaded = PatchSet.load(tmp_path / "set.npz")
        for key in vars(drawn):
            np.testing.assert_array_equal(getattr(loaded, key), getattr(drawn, key))
        assert [p.name for p in tmp_path.iterdir() if "set" in p.name] == ["set.npz"]

    def test_load_refuses_what_is_not_one(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="Check the path"):
            PatchSet.load(tmp_path / "no.npz")
        (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 cut")
        np.savez(tmp_path / "b.npz", patches=np.zeros((2, 4, 4)))
        np.save(tmp_path / "c.npy", np.zeros(3))
        (tmp_path / "d.npz").write_bytes(b"")
        for name in ("a.npz", "b.npz", "c.npy", "d.npz"):
            with pytest.raises(ValueError, match="no whole set"):
                PatchSet.load(tmp_path / name)

    def test_select_and_concatenate(self, field, rng):
        drawn = PatchSampler(field, 12, 10.0).draw(6, rng)
        picked = drawn.select(drawn.mirror)
        assert len(picked) == drawn.mirror.sum()
        joined = concatenate([picked, drawn.select(~drawn.mirror)])
        assert sorted(joined.lon) == sorted(drawn.lon)
        other = PatchSampler(field, 10, 10.0).draw(2, rng)
        with pytest.raises(ValueError, match=r"\[10, 12\]"):
            concatenate([drawn, other])
        with pytest.raises(ValueError, match="at least one"):
            concatenate([])

    def test_refuses_shapes_that_do_not_fit(self, field, rng):
        values = vars(PatchSampler(field, 12, 10.0).draw(3, rng))
        with pytest.raises(ValueError, match="scale has shape"):
            PatchSet(**(values | {"scale": np.ones(2)}))
        with pytest.raises(ValueError, match="size, size"):
            PatchSet(**(values | {"patches": np.ones((3, 4, 5))}))


class TestSplit:
    def test_default_is_about_70_15_15(self, full_sky):
        split = split_regions([full_sky])
        assert (len(split.train), len(split.validation), len(split.test)) == (6, 1, 1)
        parts = [*split.train, *split.validation, *split.test]
        assert sorted(parts) == list(full_sky.region_names)
        assert split == split_regions([full_sky])

    def test_every_map_keeps_some_for_training(self, tmp_path):
        first = make_image(tmp_path / "a.fits")
        wcs = image_wcs(pixel=9.0)
        wcs.wcs.crval = [40.0, 50.0]
        values = np.exp(truth(*image_positions(wcs, (50, 60))))
        second = read_map(write_image(tmp_path / "b.fits", values, wcs))
        split = split_regions([first, second])
        for part, names in (("train", {"a", "b"}), ("validation", None), ("test", None)):
            found = getattr(split, part)
            assert names is None or {n[0] for n in found} == names
        assert {n[0] for n in split.validation + split.test} == {"a", "b"}

    def test_named(self, full_sky):
        split = split_regions([full_sky], validation=["full:1"], test=["full:7", "full:2"])
        assert split.validation == ("full:1",)
        assert split.test == ("full:2", "full:7")
        assert split.train == ("full:0", "full:3", "full:4", "full:5", "full:6")
        assert split_regions([full_sky], validation=(), test=()).train == full_sky.region_names
        half = split_regions([full_sky], validation=["full:7"])
        assert len(half.test) == 1
        assert "full:7" not in half.test

    def test_maps_of_the_same_sky_stay_together(self, full_sky, field):
        """The field (l = 172 +- 5, b = -15) lies in octant 5."""
        with pytest.raises(ValueError, match="cover the same sky"):
            split_regions([full_sky, field], validation=["field:0"], test=["full:0"])
        together = ["full:5", "field:0", "field:1"]
        split = split_regions([full_sky, field], validation=together, test=["full:0"])
        assert set(split.validation) == set(together)
        default = split_regions([full_sky, field])
        where = {p: [n in getattr(default, p) for n in together] for p in vars(default)}
        assert all(all(flags) or not any(flags) for flags in where.values())
        assert sum(all(flags) for flags in where.values()) == 1

    def test_excluding_the_common_sky_sets_the_rest_free(self, full_sky, field):
        split = split_regions(
            [full_sky, field], validation=["field:0"], test=["full:0"], exclude=["full:5"]
        )
        assert split.validation == ("field:0",)
        assert split.test == ("full:0",)
        left = {f"full:{k}" for k in (1, 2, 3, 4, 6, 7)} | {"field:1"}
        assert set(split.train) == left
        default = split_regions([full_sky, field], exclude=["full:5"])
        assert sorted(default.train + default.validation + default.test) == sorted(
            left | {"field:0", "full:0"}
        )

    def test_errors(self, tmp_path, full_sky, field):
        with pytest.raises(ValueError, match=r"unknown:3.*not known"):
            split_regions([full_sky], validation=["unknown:3"])
        with pytest.raises(ValueError, match=r"exclude regions.*unknown:3.*not known"):
            split_regions([full_sky], exclude=["unknown:3"])
        with pytest.raises(ValueError, match="excluded and in a part"):
            split_regions([full_sky], validation=["full:1"], exclude=["full:1"])
        with pytest.raises(ValueError, match="in validation and in test"):
            split_regions([full_sky], validation=["full:1"], test=["full:1"])
        with pytest.raises(ValueError, match="2 separate regions"):
            split_regions([field])
        with pytest.raises(ValueError, match="share a name"):
            split_regions([field, field])
        with pytest.raises(ValueError, match="at least one"):
            split_regions([])
        with pytest.raises(ValueError, match="0 separate regions"):
            split_regions([field], validation=["field:0"], test=["field:1"])
        cut = read_map(tmp_path / "field.fits", min_latitude=60)
        with pytest.raises(ValueError, match="no valid sky"):
            split_regions([cut], validation=["field:0"], test=[])


class TestRealMaps:
    def test_fields_agree_with_the_full_sky(self, shared_data, rng):
        """Three Planck products on three grids: log N_H, intensity, and E(B-V) in ICRS pixels."""
        full = read_map(shared_data / "planck_ebv_nside256.fits")
        for file, lon, lat in (
            ("planck_taurus_lognh.fits", 172.5, -14.5),
            ("planck_chamaeleon.fits", 300.0, -20.0),
        ):
            sky = read_map(shared_data / file)
            at = lon + rng.uniform(-7, 7, 2000), lat + rng.uniform(-7, 7, 2000)
            one, other = sky.sample(*at), full.sample(*at)
            assert np.corrcoef(one, other)[0, 1] > 0.9
            # A quarter turn of the field loses it.
            turned = sky.sample(lon + (at[1] - lat), lat - (at[0] - lon))
            assert np.corrcoef(turned, other)[0, 1] < 0.5

    def test_draws_from_taurus(self, shared_data, rng):
        sky = read_map(shared_data / "planck_taurus_lognh.fits")
        drawn = PatchSampler(sky, 128, 2.0, regions=[sky.region_names[0]], zoom=1.3).draw(20, rng)
        assert drawn.patches.shape == (20, 128, 128)
        # ln of the column density in cm^-2.
        assert ((drawn.mean > 47) & (drawn.mean < 52)).all()

    def test_polarisation_is_refused(self, shared_data):
        with pytest.raises(ValueError, match="no intensity"):
            read_map(shared_data / "planck_taurus_q353.fits")
