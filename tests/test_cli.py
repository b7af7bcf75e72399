"""The command as its user meets it: options, messages, exit codes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import healpy as hp
import numpy as np
import pysm3.units as u
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image
from quick import QuickDust
from synthetic import make_card
from typer.testing import CliRunner

import pysm_vae.estimate
import pysm_vae.simulate
import pysm_vae.vae.download
from pysm_vae.channels import Channel
from pysm_vae.cli import app
from pysm_vae.cli.learning import MapArgument, parse_map, training_config, training_maps
from pysm_vae.cli.sky import parse_band, parse_settings
from pysm_vae.figures import file_figure
from pysm_vae.mapfiles import read_healpix, write_map
from pysm_vae.threads import threads
from pysm_vae.vae.inference import Posterior

BASE = ("simulate", "--nside", "16", "--freq", "353")


def run(*args: object):
    return CliRunner().invoke(app, [str(a) for a in args])


def refused(*args: object, code: int = 2) -> str:
    """The one line that a failing command says."""
    result = run(*args)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("pysm-vae: error: ")
    return line


@pytest.fixture
def no_draw(monkeypatch) -> None:
    """Bad input must be found before the sky is drawn."""

    def drawn(*args, **kwargs):
        raise AssertionError("the sky was drawn")

    monkeypatch.setattr(pysm_vae.simulate, "VAEDust", drawn)


def write_image(path: Path, *, lon: float = 40.0, n: int = 96) -> Path:
    """A field of smooth random log-intensity, 96 pixels of 5 arcmin."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["GLON-TAN", "GLAT-TAN"]
    wcs.wcs.crval = [lon, 30.0]
    wcs.wcs.crpix = [(n + 1) / 2] * 2
    wcs.wcs.cdelt = [-5 / 60, 5 / 60]
    rng = np.random.default_rng(3)
    k = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :])
    k[0, 0] = np.inf
    waves = np.fft.rfft2(rng.standard_normal((n, n))) * k**-1.5
    field = np.fft.irfft2(waves, s=(n, n))
    hdu = fits.PrimaryHDU(np.exp(field / field.std()).astype(np.float32), wcs.to_header())
    hdu.header["BUNIT"] = "MJy/sr"
    hdu.writeto(path)
    return path


class TestHelp:
    def test_light(self):
        """A process on its own imports PySM, but no network: that would take ten seconds."""
        code = (
            "import sys; from pysm_vae.cli import app; app(['--help'], standalone_mode=False);"
            "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for command in ("simulate", "plot", "train", "download", "info"):
            assert command in done.stdout
        # It teaches: commands to copy, exit codes, completion.
        for text in ("pysm-vae simulate --nside 128", "--seeds 0:100", "Exit codes", "completion"):
            assert text in done.stdout

    @pytest.mark.parametrize("command", ["simulate", "plot", "train", "download", "info"])
    def test_each_has_an_example(self, command):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert f"pysm-vae {command}" in result.stdout

    @pytest.mark.parametrize(
        ("words", "found"),
        [
            ("simulate --preset vae", ["vae0", "vae1"]),
            ("simulate --weights ", ["default", "octave", "thorne2021"]),
            ("simulate --unit uK_", ["uK_CMB", "uK_RJ"]),
            ("simulate --template d1", ["d1", "d10", "d11", "d12"]),
            ("download ", ["gnilc-545"]),
        ],
    )
    def test_shell_completion(self, words, found):
        """As bash asks for it."""
        line = f"pysm-vae {words}"
        environment = {
            "_PYSM_VAE_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        }
        result = CliRunner().invoke(app, [], env=environment, prog_name="pysm-vae")
        assert set(found) - {"d12"} <= set(result.stdout.split())
        prefix = words.rpartition(" ")[2]
        assert all(word.startswith(prefix) for word in result.stdout.split())

    def test_version(self):
        assert run("--version").stdout == f"pysm-vae {pysm_vae.__version__}\n"

    def test_info(self):
        result = run("info")
        assert result.exit_code == 0
        for text in ("pysm3 ", "octave", "vae0", "gnilc-545", "shipped data"):
            assert text in result.stdout


class TestSimulate:
    def test_maps(self, tmp_path):
        """One real run, with a name for the weights in place of the preset's."""
        out = tmp_path / "a" / "maps"
        result = run(*BASE, "--band", "140:160", "--seed", "7", "--weights", "octave", "--out", out)
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        names = [
            "vae0-custom_353GHz_nside16_seed7.fits",
            "vae0-custom_band140-160GHz_nside16_seed7.fits",
            "vae0-custom_nside16_seed7.png",
        ]
        lines = result.stdout.splitlines()
        assert [Path(line.split(" (")[0]).name for line in lines] == names
        assert sorted(f.name for f in out.iterdir()) == names
        maps, header = hp.read_map(out / names[0], field=(0, 1, 2), h=True)
        header = dict(header)
        assert (header["SEED"], header["WEIGHTS"], header["TUNIT1"]) == (7, "octave", "uK_CMB")
        assert maps.shape == (3, 12 * 16**2)
        assert np.isfinite(maps).all()
        assert (maps[0] > np.hypot(maps[1], maps[2])).all()

    @pytest.mark.usefixtures("no_draw")
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ((*BASE, "--unit", "parrot"), "unit 'parrot' is not known"),
            ((*BASE, "--unit", "K"), "K_CMB or K_RJ"),
            ((*BASE, "--preset", "d10"), "no preset 'd10'"),
            ((*BASE, "--freq", "353"), "give each only once"),
            ((*BASE, "--freq", "-3"), "finite and positive"),
            ((*BASE, "--freq", "nan"), "finite and positive"),
            ((*BASE, "--freq", "353GHz"), "frequency '353GHz' is not a number of GHz"),
            ((*BASE, "--band", "160:140"), "must rise"),
            ((*BASE, "--band", "140-160"), "LOW:HIGH"),
            ((*BASE, "--bandpass", "none.txt"), "no such file"),
            (("simulate", "--nside", "100", "--freq", "353"), "power of two"),
            (("simulate", "--nside", "16"), "--freq, --band or --bandpass"),
            ((*BASE, "--region", "none.fits"), "no such file"),
            ((*BASE, "--region", "110,-38,0"), "lon,lat,radius in degrees"),
        ],
    )
    def test_bad_options(self, tmp_path, args, message):
        assert message in refused(*args, "--out", tmp_path)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (("--template", "d99"), "template 'd99'"),
            (("--template", "none.fits"), "no such file"),
            (("--weights", "none.json"), "none.json"),
        ],
    )
    def test_bad_inputs_of_the_sky(self, tmp_path, args, message):
        assert message in refused(*BASE, *args, "--out", tmp_path)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("args", [("--seed", "x"), ("--seed", "-1"), ("--parrot",)])
    def test_usage(self, tmp_path, args):
        assert run(*BASE, *args, "--out", tmp_path).exit_code == 2
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.usefixtures("no_draw")
    def test_outputs_in_the_way(self, tmp_path):
        there = tmp_path / "vae0_353GHz_nside16_seed0.fits"
        there.touch()
        assert "--overwrite" in refused(*BASE, "--out", tmp_path)
        assert "file of that name is in the way" in refused(*BASE, "--out", there)

    @pytest.mark.usefixtures("no_draw")
    def test_debug_shows_the_traceback(self, tmp_path):
        result = run(*BASE, "--unit", "parrot", "--debug", "--out", tmp_path)
        assert result.exit_code == 2
        assert "Traceback" in result.stderr

    @pytest.mark.usefixtures("no_draw")
    def test_other_failures(self, tmp_path):
        """What nobody foresaw (here the assertion of no_draw) exits with 1 and says what it was."""
        line = refused(*BASE, "--out", tmp_path, code=1)
        assert "AssertionError: the sky was drawn" in line
        assert "--debug" in line

    @pytest.mark.usefixtures("no_draw")
    def test_started_as_ranks_without_mpi4py(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PMI_SIZE", "2")
        monkeypatch.setitem(sys.modules, "mpi4py", None)
        line = refused(*BASE, "--out", tmp_path, code=1)
        assert "started as 2 ranks" in line
        assert "pysm_vae[mpi]" in line
        assert list(tmp_path.iterdir()) == []

    def test_disk_full(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            pysm_vae.simulate.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})
        )
        assert "free some space" in refused(*BASE, "--out", tmp_path, code=1)
        assert list(tmp_path.iterdir()) == []


class TestEnsemble:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch):
        class Dust(QuickDust):
            drawn: list[int] = []  # noqa: RUF012

        monkeypatch.setattr(pysm_vae.simulate, "VAEDust", Dust)
        monkeypatch.setattr(pysm_vae.estimate, "VAEDust", Dust)
        self.dust = Dust

    def test_seeds(self, tmp_path):
        result = run(*BASE, "--seeds", "3,5:7", "--out", tmp_path)
        assert result.exit_code == 0, result.output
        assert result.stdout == f"3 of 3 skies made in {tmp_path}, 0 were there\n"
        # Neither progress nor notes where nobody watches.
        assert result.stderr == ""
        names = [f"vae0_353GHz_nside16_seed{seed}.fits" for seed in (3, 5, 6)]
        assert sorted(path.name for path in tmp_path.iterdir()) == names
        path = tmp_path / names[0]
        path.write_bytes(path.read_bytes()[:-100])
        again = run("-v", *BASE, "--seeds", "3,5:7", "--out", tmp_path)
        assert again.stdout == f"1 of 3 skies made in {tmp_path}, 2 were there\n"
        warning, *notes = again.stderr.splitlines()
        assert warning.startswith("pysm-vae: warning: map ")
        assert "made anew" in warning
        assert notes == ["pysm-vae: info: sky 5 is complete", "pysm-vae: info: sky 6 is complete"]

    def test_part(self, tmp_path, monkeypatch):
        assert run(*BASE, "--seeds", "0:9", "--part", "2/4", "--out", tmp_path).exit_code == 0
        assert self.dust.drawn == [1, 5]
        for name, value in (("ID", 3), ("COUNT", 4), ("MIN", 0), ("MAX", 3), ("STEP", 1)):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        assert run(*BASE, "--seeds", "0:9", "--out", tmp_path).exit_code == 0
        assert self.dust.drawn == [1, 5, 3, 7]

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (("--seeds", "x"), "START:STOP"),
            (("--seeds", "5:5"), "must rise"),
            (("--seeds", "0:5", "--seed", "3"), "not both"),
            (("--seeds", "0:5", "--part", "6/5"), "K/N"),
            (("--part", "1/5"), "--part is for --seeds"),
        ],
    )
    def test_refused(self, tmp_path, args, message):
        assert message in refused(*BASE, *args, "--out", tmp_path)
        assert self.dust.drawn == []

    def test_exit_codes(self, tmp_path):
        """The four that --help tells of."""
        args = (*BASE, "--seeds", "0:2", "--out", tmp_path)
        assert run(*args[:-1], tmp_path / "all").exit_code == 0
        self.dust.stop, self.dust.error = 1, OSError(5, "Input/output error")
        assert "Input/output error" in refused(*args, code=1)
        self.dust.error = ValueError("something is wrong with the input")
        assert "something is wrong" in refused(*args, code=2)
        self.dust.error = KeyboardInterrupt()
        result = run(*args)
        assert (result.exit_code, result.stderr) == (130, "pysm-vae: interrupted\n")
        assert len(list(tmp_path.glob("*.fits"))) == 1

    def test_dry_run(self, tmp_path):
        """What it says is what the same sky then takes; and nothing is written."""
        self.dust.seconds = (0.02, 4e-6)
        out = tmp_path / "maps"
        settings = {"nside": 256, "channels": [Channel.at(353), Channel.at(100)]}
        found = pysm_vae.estimate.estimate(out, seeds=range(4), **settings)
        assert not out.exists()
        # Twelve charts, as many at a time as there are threads in 20 ms, and the pixels; half a
        # second for the rest.
        npix, charts = 12 * 256**2, 12 / min(threads(), 12)
        # Of the wall clock, on machines that have other work: more than it should take, not less.
        assert 0.8 < found.each / (charts * 0.02 + 4e-6 * npix) < 5
        assert found.disk == pytest.approx(4 * 2 * 12 * npix, rel=0.02)
        assert 60 * npix < found.memory < 20e9
        assert (found.skies, found.kept) == (4, 0)
        result = run("simulate", "--nside", 16, "--freq", 353, "--seeds", "0:3", "--out", out,
                     "--dry-run")  # fmt: skip
        assert result.exit_code == 0, result.output
        assert not out.exists()
        for text in ("skies: 3, of 1 maps each at nside 16", "time: ", "memory: ", "disk: ", "how"):
            assert text in result.stdout
        run(*BASE, "--seeds", "0:2", "--out", out)
        kept = run(*BASE, "--seeds", "0:3", "--out", out, "--dry-run")
        assert "skies: 1, of 1 maps each at nside 16; 2 more are there" in kept.stdout


class TestPlotAndInfo:
    @pytest.fixture
    def maps(self, tmp_path, rng) -> dict[str, Path]:
        values = np.exp(rng.normal(size=(3, 12 * 16**2)))
        values[1:] -= 1
        options = {"nside": 16, "unit": u.uK_CMB, "cards": []}
        pixels = hp.query_disc(16, hp.ang2vec(110, -38, lonlat=True), np.radians(20))
        paths = {name: tmp_path / f"{name}.fits" for name in ("full", "part", "nested", "one")}
        write_map(paths["full"], values.astype("f4"), pixels=None, **options)
        write_map(paths["part"], values[:, pixels].astype("f4"), pixels=pixels, **options)
        nested = hp.reorder(values, r2n=True)
        nested[:, :100] = hp.UNSEEN
        hp.write_map(paths["nested"], nested, nest=True, column_units="K_CMB", dtype=np.float32)
        hp.write_map(paths["one"], -values[0], dtype=np.float64)
        return paths

    @pytest.mark.parametrize(
        ("name", "args"),
        [
            ("full", ()),
            ("part", ()),
            ("part", ("--zoom", "110,-38,10", "--show", "ip")),
            ("nested", ("--show", "P")),
            ("one", ()),
        ],
    )
    def test_plot(self, maps, name, args):
        result = run("plot", maps[name], *args)
        assert result.exit_code == 0, result.output
        picture = maps[name].with_suffix(".png")
        assert result.stdout == f"{picture}\n"
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert "already exists" in refused("plot", maps[name], *args)

    def test_frame_of_a_field_at_the_edge_of_the_picture(self, maps):
        """Half of it is at the other side: no line crosses the sky from one to the other."""
        read = read_healpix(maps["full"], "map")
        for lon, breaks in ((110, 0), (180, 2)):
            picture = file_figure(read, shown="I", zoom=(lon, -15, 16))
            (frame,) = picture.subfigs[0].axes[0].lines
            assert np.isnan(frame.get_xdata()).sum() == breaks
            assert np.nanmax(np.abs(np.diff(frame.get_xdata()))) < 0.5

    @pytest.mark.parametrize("scale", [1e-7, 1.0, 1e5])
    def test_numbers_under_the_bars_do_not_touch(self, maps, scale):
        read = read_healpix(maps["full"], "map")
        picture = file_figure(replace(read, maps=scale * read.maps), zoom=(110, -38, 16))
        picture.canvas.draw()
        bars = [
            axis
            for part in picture.subfigs
            for axis in part.axes
            if axis.get_label() == "<colorbar>"
        ]
        assert len(bars) == 8
        for bar in bars:
            boxes = [
                label.get_window_extent() for label in bar.get_xticklabels() if label.get_text()
            ]
            low, high = bar.bbox.x0, bar.bbox.x1
            boxes = sorted((b.x0, b.x1) for b in boxes if low <= 0.5 * (b.x0 + b.x1) <= high)
            assert len(boxes) >= 2
            assert all(first[1] < second[0] for first, second in itertools.pairwise(boxes))

    def test_patches(self, tmp_path, rng):
        patches = rng.normal(size=(9, 32, 32))
        np.save(tmp_path / "patch.npy", patches[0])
        np.save(tmp_path / "path.npy", patches)
        samples = patches[:8].reshape(2, 4, 32, 32).astype("f4")
        Posterior(samples, np.zeros((2, 4)), *np.ones((2, 32, 32)), 0.8, 0, 1.0).save(
            tmp_path / "filled.npz"
        )
        for name, panels in (("patch.npy", 1), ("path.npy", 5), ("filled.npz", 4)):
            assert run("plot", tmp_path / name).exit_code == 0
            with Image.open((tmp_path / name).with_suffix(".png")) as picture:
                assert picture.width == pytest.approx(150 * (0.4 + 3.6 * panels), abs=2)
        assert "are for maps" in refused(
            "plot", tmp_path / "patch.npy", "--show", "I", "--overwrite"
        )
        (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04no")
        assert "holds no patch" in refused("plot", tmp_path / "bad.npz")
        np.save(tmp_path / "none.npy", np.full((8, 8), np.nan))
        assert "nothing to show" in refused("plot", tmp_path / "none.npy")
        np.save(tmp_path / "line.npy", patches[0, 0])
        assert "a patch, or some" in refused("plot", tmp_path / "line.npy")

    def test_orderings_and_parts_look_alike(self, maps):
        """The middle of the same field, from pixels in any order."""
        pictures = [
            file_figure(read_healpix(maps[name], "map"), shown="I", zoom=(110, -38, 10))
            for name in ("full", "part", "nested")
        ]
        shown = [figure.subfigs[1].axes[0].images[0].get_array() for figure in pictures]
        full = read_healpix(maps["full"], "map").maps[0]
        expected = hp.get_interp_val(full, 110, -38, lonlat=True)
        assert shown[0][200, 200] == pytest.approx(expected, rel=0.02)
        np.testing.assert_allclose(shown[1], shown[0])
        np.testing.assert_allclose(shown[2], shown[0], rtol=1e-6)

    @pytest.mark.parametrize(
        ("name", "args", "message"),
        [
            ("one", ("--show", "Q"), "1 maps, so no Q"),
            ("full", ("--show", "X"), "some of I, Q, U and P"),
            ("full", ("--zoom", "1,2"), "LON,LAT,SIDE"),
            ("full", ("--zoom", "1,95,3"), "-90 to 90"),
            ("part", ("--zoom", "110,60,3"), "nothing there"),
            ("full", ("--out", "picture.xyz"), "suffix"),
            ("none", (), "no such file"),
            ("table", (), "does not begin as FITS files do). Give a whole FITS file."),
        ],
    )
    def test_refused(self, maps, name, args, message):
        maps["table"] = maps["full"].with_name("table.fits")
        maps["table"].write_text("frequency, weight\n353, 1\n")
        path = maps.get(name, maps["full"].with_name("none.fits"))
        assert message in refused("plot", path, *args)

    def test_info_of_a_map(self, tmp_path, monkeypatch, maps):
        monkeypatch.setattr(pysm_vae.simulate, "VAEDust", QuickDust)
        run(*BASE, "--seed", 5, "--no-figure", "--out", tmp_path / "o")
        (path,) = (tmp_path / "o").iterdir()
        result = run("info", path)
        assert result.exit_code == 0, result.output
        for text in ("whole", "353 GHz", "uK_CMB", "nside 16", "seed 5", "octave", "vae0"):
            assert text in result.stdout
        path.write_bytes(path.read_bytes()[:-1])
        assert "cannot be read" in refused("info", path)
        assert "not made by pysm-vae" in refused("info", maps["full"])
        assert "no such file" in refused("info", tmp_path / "none.fits")


class TestParse:
    def test_band(self):
        assert parse_band("140:160.5") == (140, 160.5)

    def test_settings(self):
        given = ["beta=1.5", "slopes=[-0.8, -0.4, -0.5]", "freq_ref = 353 GHz", "polarised=false"]
        assert parse_settings(given) == {
            "beta": 1.5,
            "slopes": [-0.8, -0.4, -0.5],
            "freq_ref": "353 GHz",
            "polarised": False,
        }

    @pytest.mark.parametrize("text", ["beta", "=1", "beta=", "be ta=1", "1=1"])
    def test_bad_settings(self, text, tmp_path):
        assert "NAME=VALUE" in refused(*BASE, "--out", tmp_path / "m", "--set", text)
        assert not (tmp_path / "m").exists()

    def test_map(self, tmp_path):
        assert parse_map("a.fits") == MapArgument(Path("a.fits"))
        assert parse_map("x/a.fits@2.5") == MapArgument(Path("x/a.fits"), 2.5)
        assert parse_map("a@b.fits@5+10") == MapArgument(Path("a@b.fits"), 5.0, 10.0)
        assert parse_map("a.fits@5:cloud") == MapArgument(Path("a.fits"), 5.0, None, 1.0)
        assert parse_map("a.fits:cloud") == MapArgument(Path("a.fits"), environment=1.0)
        odd = tmp_path / "map@2"
        odd.touch()
        assert parse_map(str(odd)) == MapArgument(odd)

    @pytest.mark.parametrize("text", ["a@", "a@x", "a@-2", "a@2+", "a@2+3+4", "a@nan", "@2"])
    def test_bad_map(self, text):
        with pytest.raises(ValueError, match="FILE"):
            parse_map(text)

    def test_config(self):
        octave = training_config("octave", size=None, epochs=2, seed=5)
        assert (octave.size, octave.epochs, octave.seed) == (64, 2, 5)
        # Weights are kept from the first epoch after the warm-up on.
        assert octave.kl_warmup == 1
        paper = training_config("thorne2021", learning_rate=1e-3)
        assert (paper.size, paper.epochs, paper.beta_1) == (128, 40, 0.5)
        assert (paper.learning_rate, paper.kl_warmup, paper.patience) == (1e-3, 5, 8)
        with pytest.raises(ValueError, match="multiple of 16"):
            training_config("octave", size=40)
        with pytest.raises(ValueError, match="learning rate"):
            training_config("octave", learning_rate=-1.0)


class TestTrainingMaps:
    def test_names_and_pixels(self, tmp_path):
        one, two = write_image(tmp_path / "one.fits"), write_image(tmp_path / "two.fits", lon=80)
        maps = training_maps([MapArgument(one), MapArgument(two, 6.0), MapArgument(two, 12.0, 24)])
        assert [m.sky.name for m in maps] == ["one", "two_6arcmin", "two_12arcmin"]
        # The image's own pixels are coarser than 2.5 arcmin.
        assert [m.pixel_size for m in maps] == pytest.approx([5, 6, 12], rel=1e-3)
        assert [m.fwhm for m in maps] == [None, None, 24]
        assert maps[2].sky.region_names == ("two_12arcmin:0", "two_12arcmin:1")
        with pytest.raises(ValueError, match=r"'one_6arcmin'.*only once"):
            training_maps([MapArgument(one, 6.0), MapArgument(one, 6.0)])

    def test_pixels_far_finer_than_the_map(self, tmp_path, caplog):
        field = write_image(tmp_path / "field.fits")  # of 5 arcmin
        training_maps([MapArgument(field, 2.6)])
        assert not caplog.records
        training_maps([MapArgument(field, 2.4)])
        assert "pixels of 5 arcmin: patches of 2.4 arcmin" in caplog.text

    def test_latitude_is_for_healpix(self, tmp_path):
        sky = tmp_path / "sky.fits"
        hp.write_map(sky, np.ones(12 * 16**2), coord="G", column_units="MJy/sr", dtype=np.float32)
        maps = training_maps(
            [MapArgument(sky), MapArgument(write_image(tmp_path / "field.fits"))], min_latitude=40
        )
        assert np.isnan(maps[0].sky.sample(0, 30))
        assert np.isfinite(maps[0].sky.sample(0, 50))
        assert np.isfinite(maps[1].sky.sample(40, 30))
        assert maps[0].pixel_size == pytest.approx(hp.nside2resol(16, arcmin=True))


class TestTrain:
    def test_one_epoch(self, tmp_path):
        field = write_image(tmp_path / "field.fits")
        out = tmp_path / "mine"
        command = (
            "train", "--map", f"{field}@5", "--out", out, "--architecture", "thorne2021",
            "--size", 16, "--epochs", 1, "--patches", 32, "--validation", "field:1",
            "--test", "none",
        )  # fmt: skip
        told = run(*command, "--dry-run")
        assert told.exit_code == 0, told.output
        assert "patches: 32 to train on" in told.stdout
        assert not out.exists()
        result = run(*command)
        assert result.exit_code == 0, result.output
        card = out / "thorne2021.json"
        assert f'VAEDust(nside=128, weights="{card}")' in result.stdout
        assert "validation: field:1\ntest: none\n" in result.stdout
        made = json.loads(card.read_text())
        assert made["config"]["epochs"] == 1
        assert made["split"] == {"train": ["field:0"], "validation": ["field:1"], "test": []}
        assert made["maps"][0]["pixel_size_arcmin"] == 5

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (("--map", "none.fits"), "does not exist"),
            (("--map", "none.fits@x"), "FILE[@PIXEL[+FWHM]]"),
            (("--map", "FIELD"), "2 separate regions"),
            (("--map", "FIELD", "--validation", "parrot:1"), "parrot:1"),
            (("--map", "FIELD", "--exclude", "parrot:1"), "parrot:1"),
            (("--map", "FIELD", "--size", 40), "multiple of 16"),
        ],
    )
    def test_refused(self, tmp_path, args, message):
        field = write_image(tmp_path / "field.fits")
        args = [field if a == "FIELD" else a for a in args]
        out = tmp_path / "mine"
        assert message in refused("train", "--out", out, *args)
        assert not out.exists()


class TestEvaluate:
    def test_report(self, tmp_path):
        """A tiny network and a peer, beside a field that neither has seen."""
        one, two = write_image(tmp_path / "one.fits"), write_image(tmp_path / "two.fits", lon=80)
        np.save(tmp_path / "peer.npy", np.random.default_rng(0).standard_normal((8, 16, 16)))
        card, out = make_card(tmp_path), tmp_path / "report"
        result = run(
            "evaluate", "--weights", card, "--map", f"{one}@10", "--map", f"{two}@10",
            "--region", "one:1", "--out", out, "--samples", 8, "--no-two-sample",
            "--spacing", 0.3, "--candidate", tmp_path / "peer.npy",
            "--candidate", f"sky={two}@12",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert f"report: {out / 'evaluation.html'}" in result.stdout
        assert "other real sky" in result.stdout
        figures = json.loads((out / "evaluation.json").read_text())
        (made,) = figures["evaluations"].values()
        (comparison,) = made["comparisons"]
        assert made["spacing"] == 0.3
        assert comparison["patches"]["peer"] == 8
        assert comparison["patches"]["sky"] >= 2
        assert comparison["two_sample"] == {}
        assert figures["pooled"]["two_sample"] is None

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (("--candidate", "none.npy"), "'none.npy' does not exist"),
            (("--candidate", "a=none.fits@2"), "'none.fits' does not exist"),
            (("--candidate", "a=none.fits@x"), "FILE[@PIXEL[+FWHM]]"),
            (("--candidate", "PEER", "--candidate", "PEER"), "two candidates are called 'peer'"),
            (("--candidate", "samples=PEER"), "'samples' has a name that is taken"),
            (("--candidate", "PEER", "--size", 32), "(n, 32, 32)"),
            (("--candidate", "PEER@2.5"), "take no pixel size"),
            (("--spacing", 0), "spacing=0"),
            (("--card",), "--card needs"),
        ],
    )
    def test_refused(self, tmp_path, args, message):
        field, peer = write_image(tmp_path / "field.fits"), tmp_path / "peer.npy"
        np.save(peer, np.random.default_rng(0).standard_normal((8, 16, 16)))
        args = [str(a).replace("PEER", str(peer)) for a in args]
        # A card's path is what --card wants.
        weights = () if "--card" in args else ("--weights", make_card(tmp_path))
        line = refused(
            "evaluate", *weights, "--map", f"{field}@10", "--region", "field:1",
            "--out", tmp_path / "o", *args,
        )  # fmt: skip
        assert message in line


class TestDownload:
    def test_unknown(self, tmp_path):
        assert "there is gnilc-545" in refused("download", "parrot", "--folder", tmp_path)

    def test_folder_is_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        line = refused("download", "gnilc-545", "--folder", tmp_path / "file")
        assert "in the way" in line

    def test_no_server(self, tmp_path, monkeypatch):
        dataset = pysm_vae.vae.download.Dataset("a.fits", "http://127.0.0.1:9/a.fits", "nothing")
        monkeypatch.setitem(pysm_vae.vae.download.DATASETS, "gnilc-545", dataset)
        line = refused("download", "gnilc-545", "--folder", tmp_path, code=1)
        assert "127.0.0.1:9" in line
        assert "resumes" in line

    def test_there_already(self, tmp_path):
        name = pysm_vae.vae.download.DATASETS["gnilc-545"].file
        (tmp_path / name).write_bytes(b"all of it")
        result = run("download", "gnilc-545", "--folder", tmp_path)
        assert result.exit_code == 0
        assert result.stdout.strip() == str(tmp_path / name)
