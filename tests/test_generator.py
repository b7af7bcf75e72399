"""The generator: the same key gives the same patch, wherever and with whatever else it is drawn."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from synthetic import SIZE, make_card, make_network

from pysm_vae.files import data_path
from pysm_vae.stats.spectra import radial_spectrum, standardise
from pysm_vae.vae import generator as module
from pysm_vae.vae.generator import (
    Generator,
    draw_latents,
    load_generator,
    measure_spectra,
    measure_transfer,
)
from pysm_vae.vae.networks import build_network

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, *arguments: str) -> str:
    """Output of a fresh interpreter."""
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def card(tmp_path_factory) -> Path:
    return make_card(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def tiny(card) -> Generator:
    return Generator.from_card(card)


@pytest.fixture(scope="module")
def thorne(tmp_path_factory) -> Generator:
    network = build_network("thorne2021", size=SIZE, latents=4)
    return Generator.from_card(make_card(tmp_path_factory.mktemp("thorne"), network))


def block_means(fields: np.ndarray, block: int) -> np.ndarray:
    n, size, _ = fields.shape
    grid = size // block
    return fields.reshape(n, grid, block, grid, block).mean(axis=(2, 4))


def test_samples_are_standardised(tiny):
    for size in (None, 8, 24):
        patches = tiny.sample(3, size)
        assert patches.dtype == np.float32
        assert patches.shape == (3, size or SIZE, size or SIZE)
        np.testing.assert_allclose(patches.mean(axis=(1, 2)), 0, atol=1e-5)
        np.testing.assert_allclose(patches.std(axis=(1, 2)), 1, atol=1e-5)


def test_a_patch_depends_on_its_key_alone(tiny):
    five, three = tiny.sample(5, seed=9), tiny.sample(3, seed=9)
    np.testing.assert_array_equal(five[:3], three)
    latents = draw_latents(tiny.latent_shapes(), [(9, 2)])
    latents[0] = tiny.network.typical_top(latents[0])
    patch = tiny.decode(latents)[0]
    np.testing.assert_allclose(five[2], (patch - patch.mean()) / patch.std(), atol=1e-5)
    # Uncorrelated with another seed's, and with its neighbour's, to the scatter of 5 x 16 values.
    for other in (tiny.sample(5, seed=10), five[::-1]):
        coarse = block_means(five, 4).ravel(), block_means(other, 4).ravel()
        assert abs(np.corrcoef(*coarse)[0, 1]) < 0.6


def test_latents_are_normal_and_keyed():
    shapes = [(5,), (40, 40, 2)]
    first, second = draw_latents(shapes, [(1, 2), (3, 4), (1, 2)])
    assert first.shape == (3, 5)
    assert second.shape == (3, 40, 40, 2)
    np.testing.assert_array_equal(second[0], second[2])
    assert abs(np.corrcoef(second[0].ravel(), second[1].ravel())[0, 1]) < 0.06
    assert abs(second[:2].mean()) < 0.05
    assert abs(second[:2].std() - 1) < 0.05
    # Finer latents do not change the coarser ones.
    np.testing.assert_array_equal(draw_latents(shapes[:1], [(1, 2)])[0][0], first[0])


def test_two_processes_draw_the_same(card, tiny):
    code = (
        "import sys, hashlib; from pysm_vae.vae.generator import Generator;"
        "g = Generator.from_card(sys.argv[1]); assert 'tensorflow' not in sys.modules;"
        "assert g.charts and g.conditional; assert 'keras' not in sys.modules;"
        "print(hashlib.sha256(g.sample(3, seed=4).tobytes()).hexdigest());"
        "assert 'tensorflow' in sys.modules"
    )
    here = hashlib.sha256(tiny.sample(3, seed=4).tobytes()).hexdigest()
    assert python(code, str(card)) == here


def test_batches_do_not_matter(tiny, monkeypatch):
    latents = draw_latents(tiny.latent_shapes(), [(0, i) for i in range(7)])
    together = tiny.decode(latents)
    singles = [tiny.network.decode([z[i : i + 1] for z in latents]) for i in range(7)]
    np.testing.assert_allclose(together, np.concatenate(singles), atol=1e-5)
    monkeypatch.setattr(module, "BATCH", 3)
    np.testing.assert_allclose(tiny.decode(latents), together, atol=1e-5)


def test_conditional_samples_keep_the_coarse_map(tiny, rng):
    coarse = rng.standard_normal((4, 4, 4)).astype(np.float32)
    for size in (8, 16):
        patches = tiny.sample(4, size, seed=1, coarse=coarse)
        assert patches.shape == (4, size, size)
        np.testing.assert_allclose(block_means(patches, size // 4), coarse, atol=1e-5)
    other = tiny.sample(4, 16, seed=2, coarse=coarse)
    assert np.std(patches - other) > 0.01


def test_environment_is_that_of_the_finest_map(tmp_path):
    path = make_card(tmp_path)
    card = json.loads(path.read_text())
    card["maps"] = [
        {"name": "sky", "pixel_size_arcmin": 15.0, "environment": 0.0},
        {"name": "field", "pixel_size_arcmin": 2.5, "environment": 1.0},
    ]
    path.write_text(json.dumps(card))
    generator = Generator.from_card(path)
    assert (generator.environment, generator.diffuse) == (1.0, 0.0)
    sampled = generator.sample(2)
    np.testing.assert_array_equal(sampled, generator.sample(2, environment=1.0))
    assert np.std(sampled - generator.sample(2, environment=0.0)) > 0.01
    latents = draw_latents(generator.latent_shapes(), [(0, 0)])
    plain = generator.decode(latents)
    np.testing.assert_array_equal(plain, generator.decode(latents, environment=0.0))
    with pytest.raises(ValueError, match="environment=2"):
        generator.sample(2, environment=2)


def test_transfer_brings_samples_to_the_patches_spectrum(tmp_path, rng):
    """Measured, put on the card and applied, it leaves the spectrum of what it was measured on."""
    path = make_card(tmp_path)
    generator = Generator.from_card(path)
    target = generator.sample(400, seed=5)
    target = ndimage.gaussian_filter(target, (0, 0.8, 0.8), mode="reflect")
    power = measure_transfer(generator, target, 0.0, n=400)
    assert power[-1] < 0.3 * power[0]
    card = json.loads(path.read_text())
    card["transfer"] = [{"environment": 0.0, "power": power}]
    path.write_text(json.dumps(card))
    calibrated = Generator.from_card(path)
    again = measure_transfer(calibrated, target, 0.0, n=400)
    np.testing.assert_allclose(again, power, rtol=1e-6)

    def level(patches: np.ndarray) -> np.ndarray:
        return np.log(radial_spectrum(standardise(patches))[1]).mean(axis=0)[:6]

    apart = level(calibrated.sample(400, seed=9)) - level(target)
    before = level(generator.sample(400, seed=9)) - level(target)
    np.testing.assert_allclose(apart, 0, atol=0.1)
    assert np.abs(before).max() > 0.5


def test_what_cannot_be_drawn(tiny, thorne, rng):
    with pytest.raises(ValueError, match="does not refine to 16"):
        tiny.sample(2, 16, coarse=np.zeros((2, 5, 5)))
    for shape in ((3, 4, 4), (4, 4), (2, 4, 8)):
        with pytest.raises(ValueError, match="one square map for each"):
            tiny.sample(2, 16, coarse=np.zeros(shape))
    with pytest.raises(ValueError, match="multiple of 4"):
        tiny.sample(2, 18)
    with pytest.raises(ValueError, match="at least one patch"):
        tiny.sample(0)
    with pytest.raises(ValueError, match="cannot be conditioned"):
        thorne.sample(2, coarse=np.zeros((2, 4, 4)))
    with pytest.raises(ValueError, match="patches of 16 pixels a side, not 32"):
        thorne.sample(2, 32)
    assert not thorne.conditional
    assert thorne.charts == [(SIZE, None)]
    assert thorne.sample(2).shape == (2, SIZE, SIZE)


def test_thorne_weights_have_no_encoder(thorne):
    names = set(thorne._arrays)
    assert "decoder/dense/kernel" in names
    assert not any("encoder" in name or "latent" in name for name in names)


def test_saving_is_reproducible_and_exact(tmp_path):
    network = make_network(3)
    first, second = (module.save_weights(network, tmp_path / f"{i}.npz") for i in "ab")
    assert first == second
    loaded = Generator.from_card(make_card(tmp_path, network)).network
    # The critic belongs to the training.
    kept = [v for v in loaded.variables if "seed" not in v.path and "critic" not in v.path]
    expected = {v.path: v.numpy() for v in network.variables}
    assert len(kept) > 20
    for variable in kept:
        np.testing.assert_array_equal(variable.numpy(), expected[variable.path], variable.path)


def test_weights_that_are_not_whole(tmp_path):
    path = make_card(tmp_path)
    weights = tmp_path / "tiny.npz"
    content = weights.read_bytes()
    for damaged in (content[:-200], content[:500] + b"x" + content[501:]):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"tiny.npz' are damaged .* copy"):
            Generator.from_card(path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"tiny\.npz"):
        Generator.from_card(path)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"name": "x"}', '{"weights": "a.npz"}'])
def test_cards_that_are_none(tmp_path, text):
    path = tmp_path / "card.json"
    path.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=r"not a model card|missing"):
        Generator.from_card(path)


def test_card_of_another_network(tmp_path):
    path = make_card(tmp_path)
    card = json.loads(path.read_text())
    card["network"]["channels"] = 9
    path.write_text(json.dumps(card))
    with pytest.raises(ValueError, match="do not fit their network at"):
        Generator.from_card(path).sample(1)
    card["architecture"] = "gan"
    path.write_text(json.dumps(card))
    with pytest.raises(ValueError, match="unknown architecture"):
        Generator.from_card(path).sample(1)


def test_weights_that_do_not_exist(tmp_path):
    for name in ("nonsense", str(tmp_path), tmp_path / "card.json"):
        with pytest.raises(FileNotFoundError, match=r"no weights .* choose 'default'"):
            load_generator(name)
    with pytest.raises(FileNotFoundError, match="no model card"):
        Generator.from_card(tmp_path / "card.json")


def test_shipped_weights():
    shipped = load_generator()
    assert shipped.name == "octave"
    assert data_path("octave.npz").stat().st_size < 10e6
    patches = shipped.sample(2, 128)
    assert patches.shape == (2, 128, 128)
    assert np.isfinite(patches).all()
    # Dust is red: most of its variance is on large scales, and some of it is not.
    share = block_means(patches, 16).var() / patches.var()
    assert 0.4 < share < 0.98
    spectra = shipped.card["spectra"]
    assert [(entry["size"], entry["depth"]) for entry in spectra] == shipped.charts


def test_measured_spectra_match_the_samples(monkeypatch):
    """Against a periodogram of the same samples, computed here."""
    monkeypatch.setattr(module, "CHART_DEPTHS", (3,))
    shipped = load_generator()
    (found,) = measure_spectra(shipped, n=64, seed=1)
    assert (found["size"], found["depth"], found["samples"]) == (72, 3, 64)
    latents = draw_latents(shipped.latent_shapes(72, 3), [(1, i) for i in range(64)])
    patches = shipped.decode(latents, beam=False).astype(np.float64)
    taper = np.outer(np.hanning(72), np.hanning(72))
    patches -= patches.mean(axis=(1, 2), keepdims=True)
    power = np.abs(np.fft.fft2(taper * patches)) ** 2 / (taper**2).sum()
    k = 72 * np.hypot(np.fft.fftfreq(72)[:, None], np.fft.fftfreq(72)[None, :])
    for low, high in ((10, 14), (20, 30)):
        expected = power[:, (k > low - 0.5) & (k < high + 0.5)].mean()
        numbers = np.arange(low, high + 1)
        mean = np.average(np.array(found["power"])[low - 1 : high], weights=numbers)
        assert mean == pytest.approx(expected, rel=0.15)
