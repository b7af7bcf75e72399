"""Paths between patches, masks of patches, and the commands of the inverse tasks."""

from __future__ import annotations

from pathlib import Path

import healpy as hp
import numpy as np
import pytest
from astropy.io import fits
from PIL import Image
from synthetic import SIZE, make_card
from typer.testing import CliRunner

from pysm_vae.cli import app
from pysm_vae.patchfiles import read_patch
from pysm_vae.vae import masks
from pysm_vae.vae.generator import load_generator
from pysm_vae.vae.inference import PatchModel, Posterior
from pysm_vae.vae.interpolation import interpolate, slerp, write_animation


@pytest.fixture(scope="module")
def model() -> PatchModel:
    return PatchModel(load_generator("octave"), 32)


@pytest.fixture(scope="module")
def files(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("patches")
    for name, patch in zip(("a", "b"), model.sample(2, seed=3), strict=True):
        np.save(folder / f"{name}.npy", patch)
    return folder


class TestSlerp:
    def test_half_way_between_orthogonal_vectors(self):
        found = slerp(np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([1 / 3]))
        np.testing.assert_allclose(found, [[np.cos(np.pi / 6), np.sin(np.pi / 6)]])

    def test_length_is_kept(self, rng):
        a, b = rng.standard_normal((2, 500))
        path = slerp(a, b, np.linspace(0, 1, 7))
        ends = np.linalg.norm(a), np.linalg.norm(b)
        np.testing.assert_allclose(np.linalg.norm(path, axis=1), np.linspace(*ends, 7))
        np.testing.assert_allclose(path[[0, -1]], [a, b])

    def test_parallel_vectors(self):
        found = slerp(np.array([1.0, 1.0]), np.array([2.0, 2.0]), np.array([0.5]))
        np.testing.assert_allclose(found, [[1.5, 1.5]])

    @pytest.mark.parametrize(
        ("second", "message"),
        [([-1.0, 0.0], "opposite"), ([0.0, 0.0], "zero"), ([np.nan, 1], "zero"), ([1.0], "shapes")],
    )
    def test_refused(self, second, message):
        with pytest.raises(ValueError, match=message):
            slerp(np.array([1.0, 0.0]), np.array(second), np.array([0.5]))


class TestPath:
    def test_ends_and_small_scales(self, model):
        ends = model.sample(2, seed=1)
        path = interpolate(model, *ends, frames=5)
        np.testing.assert_allclose(path[[0, -1]], ends, atol=2e-5)
        details = np.log(np.diff(path, axis=2).std(axis=(1, 2)))
        # A mean of the two would lose ln(2) / 2.
        mean = np.log(np.diff(ends.mean(axis=0), axis=1).std())
        assert details[2] > mean + 0.1
        assert details[1:-1].min() > details[[0, -1]].min() - 0.25

    def test_refused(self, model):
        ends = model.sample(2)
        with pytest.raises(ValueError, match="frames=1"):
            interpolate(model, *ends, frames=1)
        with pytest.raises(ValueError, match="differ"):
            interpolate(model, ends[0], ends[1][:16, :16])

    def test_animation(self, model, tmp_path):
        path = tmp_path / "a.gif"
        write_animation(np.random.default_rng(0).standard_normal((4, 32, 32)), path)
        with Image.open(path) as image:
            assert image.n_frames == 6
            assert image.size == (384, 384)
        with pytest.raises(ValueError, match=r"\.gif"):
            write_animation(np.zeros((2, 4, 4)), tmp_path / "a.mp4")


class TestMasks:
    def test_areas(self):
        assert (~masks.circle(100, 20)).sum() == pytest.approx(np.pi * 400, rel=0.02)
        assert (~masks.rectangle(100, 10, 30)).sum() == 300
        assert (~masks.rectangle(100, 10, 10, (0, 0))).sum() == 25
        assert masks.stripes(100, 2, 10).mean() == 0.8
        assert masks.edge(100, 0.3, 20).mean() == pytest.approx(0.3, abs=0.01)

    def test_parsed(self):
        np.testing.assert_array_equal(masks.parse_mask("circle:5", 32), masks.circle(32, 5))
        found = masks.parse_mask("stripes:2:8:30", 32)
        np.testing.assert_array_equal(found, masks.stripes(32, 2, 8, 30))

    @pytest.mark.parametrize(
        "text",
        [
            "ring:3",
            "circle",
            "circle:x",
            "circle:-1",
            "circle:99",
            "stripes:9:3",
            "edge:2",
            "circle:.1",
        ],
    )
    def test_refused(self, text):
        with pytest.raises(ValueError, match=r"mask|could not|must|stripes"):
            masks.parse_mask(text, 32)


class TestCommands:
    @staticmethod
    def run(*args: object):
        return CliRunner().invoke(app, [str(a) for a in args])

    def refused(self, *args: object) -> str:
        result = self.run(*args)
        assert result.exit_code == 2, result.output
        (line,) = result.stderr.splitlines()
        return line

    def test_patches_are_read(self, tmp_path, rng):
        patch = rng.standard_normal((16, 16))
        fits.PrimaryHDU(np.exp(patch)).writeto(tmp_path / "a.fits")
        np.savez(tmp_path / "a.npz", patch=patch)
        np.testing.assert_allclose(read_patch(tmp_path / "a.fits", linear=True), patch)
        np.testing.assert_array_equal(read_patch(tmp_path / "a.npz"), patch)
        faint = np.exp(patch) - 0.5
        fits.PrimaryHDU(faint).writeto(tmp_path / "b.fits")
        assert np.isnan(read_patch(tmp_path / "b.fits", linear=True)).sum() == (faint <= 0).sum()

    def test_fit(self, files):
        out = files / "fit.npy"
        result = self.run(
            "fit", files / "a.npy", "--noise", 0.2, "--mask", "circle:4", "--out", out
        )
        assert result.exit_code == 0, result.output
        assert f"of {masks.circle(32, 4).sum()} observed" in result.stdout
        assert np.load(out).shape == (32, 32)

    def test_impute(self, files):
        """With as few draws as there may be, of which it says that they are too few."""
        pytest.importorskip("tensorflow_probability")
        out = files / "filled.npz"
        card = make_card(files)
        np.save(files / "tiny.npy", load_generator(card).sample(1, seed=4)[0])
        result = self.run(
            *("impute", files / "tiny.npy", "--mask", "circle:4", "--draws", 32),
            *("--warmup", 40, "--weights", card, "--out", out),
        )
        assert result.exit_code == 0, result.output
        assert "have not converged" in result.stderr
        assert Posterior.load(out).draws(32).shape == (32, SIZE, SIZE)

    def test_interpolate(self, files):
        out = files / "path.gif"
        result = self.run(
            *("interpolate", files / "a.npy", files / "b.npy", "--frames", 3, "--out", out)
        )
        assert result.exit_code == 0, result.output
        with Image.open(out) as image:
            assert image.n_frames == 4

    def test_refused(self, files, tmp_path):
        np.save(tmp_path / "flat.npy", np.zeros((3, 4)))
        (tmp_path / "text.npy").write_text("no")
        (tmp_path / "text.npz").write_bytes(b"PK\x03\x04no")
        out = ("--out", tmp_path / "o.npy")
        assert "no patch at" in self.refused("fit", tmp_path / "none.npy", *out)
        assert "square patch" in self.refused("fit", tmp_path / "flat.npy", *out)
        assert "holds no patch" in self.refused("fit", tmp_path / "text.npy", *out)
        assert "holds no patch" in self.refused("fit", tmp_path / "text.npz", *out)
        assert "positive and finite" in self.refused("fit", files / "a.npy", "--noise", 0, *out)
        assert "hides everything" in self.refused(
            "fit", files / "a.npy", "--mask", "circle:90", *out
        )
        assert "ends in .npz" in self.refused("impute", files / "a.npy", *out)
        assert "no folder" in self.refused(
            "fit", files / "a.npy", "--out", tmp_path / "x" / "o.npy"
        )
        np.save(tmp_path / "logs.npy", -np.ones((32, 32)))
        assert "leave out --linear" in self.refused("fit", tmp_path / "logs.npy", "--linear", *out)
        hp.write_map(tmp_path / "map.fits", np.ones(48))
        assert "has to be cut out" in self.refused("fit", tmp_path / "map.fits", *out)
        assert "circle:RADIUS" in self.refused("fit", files / "a.npy", "--mask", "circle", *out)
        assert not list(tmp_path.glob("*o.npy"))

    @pytest.mark.parametrize(
        ("command", "name"), [("fit", "o.npy"), ("impute", "o.npz"), ("interpolate", "o.gif")]
    )
    def test_what_is_there_is_kept(self, files, tmp_path, command, name):
        (tmp_path / name).write_text("dear")
        ends = [files / "a.npy", files / "b.npy"][: 1 + (command == "interpolate")]
        assert "--overwrite" in self.refused(command, *ends, "--out", tmp_path / name)
        assert (tmp_path / name).read_text() == "dear"
