"""Maps on disk: their headers, their numbers, and what must stop them from being made."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from pathlib import Path

import healpy as hp
import numpy as np
import pysm3
import pysm3.units as u
import pytest
from astropy.io import fits

import pysm_vae.simulate
from pysm_vae import VAEDust
from pysm_vae.channels import Channel
from pysm_vae.figures import region_figure, sky_figure, unit_label
from pysm_vae.simulate import Order, check_space, simulate

NSIDE = 16
SEED = 7


@pytest.fixture(scope="module")
def model() -> VAEDust:
    """A second draw, as PySM makes it from the preset."""
    config = {"dust": {**pysm3.sky.PRESET_MODELS["vae0"], "seed": SEED}}
    return pysm3.Sky(nside=NSIDE, component_config=config).components[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[list[Path], list[tuple]]:
    """The real thing, once: preset to picture."""
    folder = tmp_path_factory.mktemp("made")
    bandpass = table(folder / "det.txt", "140 0.5\n150 1\n165 0.2\n")
    told = []
    files = simulate(
        folder / "maps",
        nside=NSIDE,
        channels=[Channel.at(353), Channel.top_hat(140, 160), Channel.from_file(bandpass)],
        seed=SEED,
        progress=lambda *news: told.append(news),
    )
    return files, told


@pytest.fixture
def one_draw(model, monkeypatch) -> None:
    """Let simulate() have the sky that is there, so that only its own work is tested."""

    def drawn(nside, *, seed, template, progress, **rest):
        assert (nside, seed, template, rest) == (NSIDE, SEED, "embedded", {})
        progress(768, 768)
        return model

    monkeypatch.setattr(pysm_vae.simulate, "VAEDust", drawn)


def table(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def read(path: Path) -> tuple[np.ndarray, dict]:
    maps, header = hp.read_map(path, field=(0, 1, 2), h=True)
    return maps, dict(header)


def test_settings(tmp_path):
    """Other arguments of the model are in the maps, the name and the header."""
    options = {"nside": NSIDE, "channels": [Channel.at(150)], "seed": SEED, "figure": False}
    (path,) = simulate(tmp_path, settings={"beta": 1.6, "polarised": False}, **options)
    assert path.name == f"vae0-custom_150GHz_nside{NSIDE}_seed{SEED}.fits"
    maps, header = read(path)
    assert not maps[1:].any()
    assert header["DUSTBETA"] == 1.6
    assert header["SETTINGS"] == '{"beta": 1.6, "polarised": false}'
    with pytest.raises(ValueError, match="no setting bta: there are amplitude, beta,"):
        simulate(tmp_path, settings={"bta": 1.6}, **options)
    with pytest.raises(ValueError, match="no setting seed"):
        simulate(tmp_path, settings={"seed": 1}, **options)


class TestChannel:
    def test_names(self, tmp_path):
        assert Channel.at(353).name == "353GHz"
        assert Channel.at(94.5 * u.GHz).name == "94.5GHz"
        assert Channel.at(0.353 * u.THz).name == "353GHz"
        assert Channel.top_hat(140, 160).name == "band140-160GHz"
        path = table(tmp_path / "det 1/a.txt".replace("/", "_"), "90 1\n100 1\n")
        assert Channel.from_file(path).name == "det_1_a"

    def test_table(self, tmp_path):
        path = table(tmp_path / "b.txt", "# GHz weight\n\n140 0\n150, 2 # peak\n170 1\n")
        channel = Channel.from_file(path)
        assert channel.freqs.to_value(u.GHz).tolist() == [140, 150, 170]
        assert channel.weights.tolist() == [0, 2, 1]
        # Trapezoids by hand: (0 + 300)/2 10 + (300 + 170)/2 20 over (0 + 2)/2 10 + (2 + 1)/2 20.
        assert channel.centre == pytest.approx((1500 + 4700) / 40)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "0 rows"),
            ("# only\n\n", "0 rows"),
            ("150 1\n", "1 rows"),
            ("140 1\nnan 1\n", "line 2.*not finite"),
            ("140 1\n150 inf\n", "line 2.*not finite"),
            ("# a\n140 1\n\n150 -1\n", "line 4.*negative"),
            ("-140 1\n150 1\n", "line 1.*negative"),
            ("150 1\n140 1\n", "line 2.*must rise"),
            ("150 1\n150 1\n", "line 2.*must rise"),
            ("140 1 2\n150 1 2\n", "line 1.*two numbers"),
            ("140\n150\n", "line 1.*two numbers"),
            ("GHz weight\n150 1\n", "line 1.*two numbers"),
            ("140 0\n150 1\n160 0\n", "fewer than two"),
        ],
    )
    def test_bad_tables(self, tmp_path, text, message):
        with pytest.raises(ValueError, match=rf"bad\.txt.*{message}"):
            Channel.from_file(table(tmp_path / "bad.txt", text))

    def test_no_table(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"):
            Channel.from_file(tmp_path / "none.txt")
        with pytest.raises(FileNotFoundError, match="no such file"):
            Channel.from_file(tmp_path)
        binary = tmp_path / "b.fits"
        binary.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ValueError, match="not a text file"):
            Channel.from_file(binary)

    @pytest.mark.parametrize("freq", [0, -1, np.nan, np.inf, "x", 1 * u.m])
    def test_bad_frequency(self, freq):
        with pytest.raises(ValueError, match="frequency must be"):
            Channel.at(freq)

    def test_bad_band(self):
        with pytest.raises(ValueError, match="must rise"):
            Channel.top_hat(160, 140)
        with pytest.raises(ValueError, match="from 2 to 100000"):
            Channel.top_hat(140, 160, n=1)


class TestFiles:
    def test_names(self, made):
        files, _ = made
        assert [f.name for f in files] == [
            "vae0_353GHz_nside16_seed7.fits",
            "vae0_band140-160GHz_nside16_seed7.fits",
            "vae0_det_nside16_seed7.fits",
            "vae0_nside16_seed7.png",
        ]
        assert sorted(files[0].parent.iterdir()) == sorted(files)

    def test_progress(self, made):
        _, told = made
        assert ("charts", 12, 12) in told
        assert [news for news in told if news[0] == "channels"] == [
            ("channels", k, 3) for k in (1, 2, 3)
        ]

    def test_numbers_are_those_of_a_sky(self, made, model, tmp_path):
        files, _ = made
        sky = pysm3.Sky(nside=NSIDE, component_objects=[model], output_unit=u.uK_CMB)
        band = np.linspace(140, 160, 101) * u.GHz
        nu, weights = np.array([140.0, 150, 165]) * u.GHz, np.array([0.5, 1, 0.2])
        for path, args in zip(files, ((353 * u.GHz,), (band,), (nu, weights)), strict=False):
            expected = sky.get_emission(*args).value
            maps, _ = read(path)
            np.testing.assert_array_equal(maps, expected.astype(np.float32))

    def test_single_frequency_against_planck_function(self, made, model):
        """uK_CMB by the derivative of the Planck function, in closed form."""
        maps, _ = read(made[0][0])
        x = 6.62607015e-34 * 353e9 / (1.380649e-23 * 2.7255)
        to_cmb = np.expm1(x) ** 2 / (x**2 * np.exp(x))
        np.testing.assert_allclose(maps, to_cmb * model._reference, rtol=2e-4)

    def test_header(self, made, model):
        files, _ = made
        _, header = read(files[0])
        expected = {
            "ORDERING": "RING",
            "COORDSYS": "G",
            "POLCCONV": "COSMO",
            "NSIDE": NSIDE,
            "FREQ": 353.0,
            "SEED": SEED,
            "PRESET": "vae0",
            "TEMPLATE": "embedded",
            "WEIGHTS": model.generator.name,
            "WSHA256": model.generator.sha256,
            "V_PYSM3": pysm3.__version__,
            "V_NUMPY": np.__version__,
            "DUSTBETA": 1.53,
            **{f"TUNIT{k}": "uK_CMB" for k in (1, 2, 3)},
            **{f"TFORM{k}": "1024E" for k in (1, 2, 3)},
        }
        assert {key: header[key] for key in expected} == expected
        assert len(header["WSHA256"]) == 64
        _, band = read(files[1])
        assert (band["FREQLOW"], band["FREQHIGH"], band["BANDPASS"]) == (140, 160, "top-hat")
        assert band["FREQ"] == pytest.approx(150)
        _, det = read(files[2])
        assert (det["BANDFILE"], det["BANDPASS"], det["FREQNUM"]) == ("det.txt", "table", 3)
        with fits.open(files[0]) as hdus:
            hdus.verify("exception")

    def test_is_a_template(self, made):
        """What we write, we read; and the same sky is in it."""
        from pysm_vae.sky.templates import load_template

        files, _ = made
        # Too coarse for the split, which is said only after unit and coordinates were understood.
        with pytest.raises(ValueError, match="nside 16, too coarse"):
            load_template(files[0])

    def test_region(self, made, tmp_path):
        """Partial maps as healpy writes them, and pixels those of the full sky."""
        pixels = hp.query_disc(NSIDE, hp.ang2vec(110, -38, lonlat=True), np.radians(20))
        told = []
        path, picture = simulate(
            tmp_path, nside=NSIDE, channels=[Channel.at(353)], seed=SEED, region=(110, -38, 20),
            progress=lambda *news: told.append(news),
        )  # fmt: skip
        assert (path.name, picture.name) == (
            "vae0_353GHz_nside16_seed7_region.fits",
            "vae0_nside16_seed7_region.png",
        )
        full, _ = read(made[0][0])
        part, header = read(path)
        np.testing.assert_array_equal(part[:, pixels], full[:, pixels])
        rest = np.delete(part, pixels, axis=1)
        assert (rest == np.float32(hp.UNSEEN)).all()
        # Only the charts that these pixels need.
        part_total, full_total = (
            max(total for what, _, total in news if what == "charts") for news in (told, made[1])
        )
        assert part_total <= 4
        assert full_total == 12
        theirs = tmp_path / "healpy.fits"
        hp.write_map(theirs, part, dtype=np.float32, coord="G", column_units="uK_CMB", partial=True)
        with fits.open(theirs) as expected, fits.open(path) as made_hdus:
            made_hdus.verify("exception")
            for name in expected[1].columns.names:
                np.testing.assert_array_equal(made_hdus[1].data[name], expected[1].data[name])
            for card in ("ORDERING", "COORDSYS", "NSIDE", "INDXSCHM", "OBJECT", "PIXTYPE"):
                assert made_hdus[1].header[card] == expected[1].header[card]
            assert made_hdus[1].columns.names == expected[1].columns.names
            assert made_hdus[1].columns.units == ["", "uK_CMB", "uK_CMB", "uK_CMB"]
        assert header["REGION"] == "110,-38,20"
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    @pytest.mark.usefixtures("one_draw")
    def test_same_bytes(self, made, tmp_path):
        files, _ = made
        again = simulate(tmp_path, nside=NSIDE, channels=[Channel.at(353)], seed=SEED, figure=False)
        assert [f.name for f in again] == [files[0].name]
        assert again[0].read_bytes() == files[0].read_bytes()

    @pytest.mark.usefixtures("one_draw")
    def test_other_unit(self, model, tmp_path):
        (path,) = simulate(
            tmp_path, nside=NSIDE, channels=[Channel.at(353)], seed=SEED, unit="MJy/sr",
            figure=False,
        )  # fmt: skip
        maps, header = read(path)
        assert u.Unit(header["TUNIT1"]) == u.MJy / u.sr
        # Rayleigh-Jeans: 2 k nu^2 / c^2, in MJy/sr for 1 uK.
        factor = 2 * 1.380649e-23 * (353e9 / 299792458) ** 2 * 1e-6 * 1e20
        np.testing.assert_allclose(maps, factor * model._reference, rtol=1e-6)

    def test_picture(self, made):
        content = made[0][-1].read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert len(content) > 50_000

    def test_figure_shows_what_it_says(self, model):
        channel = Channel.at(353)
        maps = model.get_emission(353 * u.GHz).value
        figure = sky_figure(model, channel, maps, u.uK_RJ, title="t")
        axes = {a.get_title(): a for f in figure.subfigs for a in f.axes if a.get_title()}
        assert list(axes) == [
            "Stokes I", "Stokes Q", "Stokes U", "I, template only", "I, with small scales",
            "P, template only", "P, with small scales",
        ]  # fmt: skip
        # Longitude grows to the left: l = 90, b = 0 is half-way from the centre to the left edge.
        image = axes["Stokes Q"].images[0].get_array()
        row, column = image.shape[0] // 2, image.shape[1] // 4
        near = hp.get_all_neighbours(NSIDE, hp.ang2pix(NSIDE, 90, 0, lonlat=True))
        near = [*near, hp.ang2pix(NSIDE, 90, 0, lonlat=True)]
        assert np.isclose(maps[1, near], image[row, column]).any()
        # The middle of the field, of the template alone, from its own maps.
        shown = axes["I, template only"].images[0].get_array()
        expected = hp.get_interp_val(model.template.maps(NSIDE)[0], 110, -38, lonlat=True)
        assert shown[200, 200] == pytest.approx(expected, rel=0.02)

    def test_region_figure_shows_what_it_says(self, model):
        """East is to the left, north up; outside the region there is nothing."""
        lon, lat = hp.pix2ang(NSIDE, np.arange(12 * NSIDE**2), lonlat=True)
        pixels = np.flatnonzero((np.abs(lat) < 31) & (np.abs(lon - 202.5) < 40))
        maps = np.array([np.exp(lon / 100), lat, lon - 202.5])[:, pixels]
        figure = region_figure(NSIDE, pixels, Channel.at(353), maps, u.uK_RJ, title="t")
        shown = {a.get_title(): a.images[0].get_array() for a in figure.axes if a.images}
        q, u_ = shown["Stokes Q"], shown["Stokes U"]
        size = len(q)
        assert abs(q[size // 2, size // 2]) < 4
        assert abs(u_[size // 2, size // 2]) < 4
        assert q[3 * size // 4 - 20, size // 2] > 10
        assert u_[size // 2, size // 4] > 10
        assert q.mask[0].all()
        assert "(l, b) = (202.5°, 0.0°)" in figure.get_suptitle()

    def test_unit_label(self):
        assert unit_label(u.uK_CMB) == r"µK$_\mathrm{CMB}$"
        assert unit_label(u.K_RJ) == r"K$_\mathrm{RJ}$"
        assert unit_label(u.MJy / u.sr) == "MJy/sr"


@pytest.mark.usefixtures("one_draw")
class TestRefused:
    def refused(self, out, kind, message, **options):
        settings = {"nside": NSIDE, "channels": [Channel.at(353)], "seed": SEED, **options}
        with pytest.raises(kind, match=message):
            simulate(out, **settings)

    def test_arguments(self, tmp_path):
        out = tmp_path / "maps"
        self.refused(out, ValueError, "power of two", nside=100)
        self.refused(out, TypeError, "whole number", nside=16.0)
        self.refused(out, ValueError, "no preset 'vae9'.*vae0", preset="vae9")
        self.refused(out, ValueError, "no channel", channels=[])
        self.refused(out, ValueError, "'parrot' is not known", unit="parrot")
        self.refused(out, ValueError, "no brightness", unit="GHz")
        self.refused(out, ValueError, "K_CMB or K_RJ", unit="K")
        twice = [Channel.at(353), Channel.at(353 * u.GHz)]
        self.refused(out, ValueError, "two channels.*353GHz", channels=twice)
        assert not out.exists()

    def test_region(self, tmp_path):
        out = tmp_path / "maps"
        self.refused(out, FileNotFoundError, "no such file", region="none.fits")
        self.refused(out, ValueError, "in degrees", region="10,100,5")
        assert not out.exists()

    def test_files_there(self, tmp_path):
        there = tmp_path / "vae0_353GHz_nside16_seed7.fits"
        there.write_text("mine")
        self.refused(tmp_path, FileExistsError, "already exist.*--overwrite", figure=False)
        assert there.read_text() == "mine"
        simulate(
            tmp_path, nside=NSIDE, channels=[Channel.at(353)], seed=SEED, figure=False,
            overwrite=True,
        )  # fmt: skip
        assert read(there)[1]["SEED"] == SEED
        there.unlink()
        there.mkdir()
        self.refused(tmp_path, IsADirectoryError, "is a folder", overwrite=True)

    def test_folder_is_a_file(self, tmp_path):
        out = tmp_path / "maps"
        out.write_text("in the way")
        self.refused(out, NotADirectoryError, "in the way")
        assert out.read_text() == "in the way"

    def test_no_room(self, tmp_path, monkeypatch):
        usage = namedtuple("usage", "total used free")
        needed = 12 * NSIDE**2 * 3 * 4
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, needed))
        self.refused(tmp_path, OSError, "free some space", figure=False)
        assert list(tmp_path.iterdir()) == []

    def test_room_for_a_region(self, tmp_path, monkeypatch):
        """Of many pixels few are written, but with their numbers."""
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 100_000))
        settings = {"preset": "vae0", "template": None, "weights": None, "unit": "uK_RJ"}
        settings |= {"nside": 8192, "channels": [Channel.at(353)], "figure": False}
        few = Order.of(tmp_path, region=(0, 0, 0.1), **settings)
        assert 500 < few.npix < 1000
        check_space(few, 1)
        with pytest.raises(OSError, match="free some space"):
            check_space(few, 2)
        with pytest.raises(OSError, match="free some space"):
            check_space(Order.of(tmp_path, region=(0, 0, 0.2), **settings), 1)

    def test_disk_fills_up_midway(self, tmp_path, monkeypatch):
        real = fits.BinTableHDU.writeto

        def write(table, path, **kwargs):
            real(table, path, **kwargs)
            if "band" in Path(path).name:
                Path(path).write_bytes(Path(path).read_bytes()[:5000])
                raise OSError(errno.ENOSPC, "No space left on device", str(path))

        monkeypatch.setattr(fits.BinTableHDU, "writeto", write)
        channels = [Channel.at(353), Channel.top_hat(140, 160)]
        self.refused(tmp_path, OSError, "No space left", channels=channels, figure=False)
        # The first map is whole; of the second nothing is left.
        assert [f.name for f in tmp_path.iterdir()] == ["vae0_353GHz_nside16_seed7.fits"]
        assert np.isfinite(read(next(tmp_path.iterdir()))[0]).all()
