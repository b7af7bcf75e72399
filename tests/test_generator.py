"""The generator: the same key gives the same patch, wherever and with whatever else it is drawn."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.integrate import trapezoid
from scipy.special import j0
from synthetic import SIZE, make_card, make_generator, make_network

from pysm_vae.files import data_path
from pysm_vae.stats.spectra import radial_spectrum, standardise
from pysm_vae.vae import generator as module
from pysm_vae.vae.generator import (
    THORNE_DEPTH,
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
        "assert g.conditional; assert 'keras' not in sys.modules;"
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
    with pytest.raises(ValueError, match="cannot be conditioned"):
        thorne.coarse_plane(np.zeros((1, 8, 8)))
    with pytest.raises(ValueError, match="cannot be conditioned"):
        thorne.refine(np.zeros((1, 8, 8)), np.zeros((1, 8, 8, 2)), 0)
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
    card["network"]["fine_channels"] = 9
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
    assert shipped.spectra is shipped.card["spectra"]
    assert [entry["depth"] for entry in shipped.spectra] == list(module.SPECTRA_DEPTHS)
    assert [entry["depth"] for entry in load_generator("thorne2021").spectra] == [THORNE_DEPTH]


@pytest.mark.parametrize("exponent", [1.1, 1.6])
def test_coarse_planes_have_the_variogram(tmp_path, exponent):
    """Half the mean square differences at small lags, but for what is larger than a patch.

    Of a variogram g r^h the spectrum has a part (1 - J0(w r)) w^(-1 - h) dw at frequency w, whose
    integral gives g; the cut leaves out the part below it.
    """
    generator = make_generator(tmp_path)
    scale, size = 0.4, 256
    generator.network.variogram.assign([scale, exponent])
    # A single number has all waves with the same amplitude.
    single = np.zeros((1, size, size))
    single[0, 0, 0] = 1.0
    plane = generator.coarse_plane(single)[0]
    assert plane.dtype == np.float32
    power = generator.coarse_power(size)
    np.testing.assert_allclose(np.abs(np.fft.fft2(plane)) ** 2, power, atol=1e-4 * power.max())

    low, high = 2 * np.pi * np.array(module._PLANE_CUT)
    x = np.geomspace(1e-6, 1e5, 2_000_001)

    def part(lag, kept):
        rise = np.clip((x - low) / (high - low), 0, 1)
        left = np.sin(0.5 * np.pi * rise) ** 2 if kept else 1.0
        # In the logarithm of the frequency.
        return trapezoid((1 - j0(x * lag)) * x**-exponent * left, np.log(x))

    waves = np.fft.fft2(plane)
    for step in ((0, 1), (2, 0), (1, 1)):
        lag = np.hypot(*step)
        # The difference of a plane and itself, moved, has a white plane's sum of squares.
        difference = plane - np.roll(plane, step, axis=(0, 1))
        expected = scale * lag**exponent * part(lag, True) / part(lag, False)
        assert 0.5 * np.sum(difference**2) == pytest.approx(expected, rel=0.04)
    # Nothing has a longer wave than the cut lets through.
    k = np.fft.fftfreq(size)
    long = np.hypot(*np.meshgrid(k, k)) <= module._PLANE_CUT[0]
    assert np.abs(waves[long]).max() < 1e-4 * np.abs(waves).max()


def test_planes_are_made_of_white_noise(tiny, rng):
    white = rng.standard_normal((2, 64, 64))
    planes = tiny.coarse_plane(white)
    power = tiny.coarse_power(64)
    assert power[0, 0] == 0
    np.testing.assert_allclose(power, power.T)
    expected = np.fft.ifft2(np.fft.fft2(white) * np.sqrt(power)).real
    np.testing.assert_allclose(planes, expected, atol=1e-5)


def test_refine_draws_diffuse_sky(tmp_path, rng):
    """One octave of the network's, at the environment of the sky at large."""
    path = make_card(tmp_path)
    card = json.loads(path.read_text())
    card["maps"] = [
        {"name": "sky", "pixel_size_arcmin": 15.0, "environment": 0.2},
        {"name": "field", "pixel_size_arcmin": 2.5, "environment": 1.0},
    ]
    path.write_text(json.dumps(card))
    generator = Generator.from_card(path)
    network = generator.network
    assert generator.reach == network.REACH
    coarse = rng.standard_normal((2, 40, 36)).astype(np.float32)
    latents = rng.standard_normal((2, 40, 36, network.latents)).astype(np.float32)
    environment = np.full(2, 0.2, np.float32)
    for level in (0, 1, 2, 5):
        found = generator.refine(coarse, latents, level)
        assert found.dtype == np.float32
        np.testing.assert_allclose(
            found, network.refine(coarse, latents, environment, level), atol=1e-5
        )
        np.testing.assert_allclose(block_means(found[:, :72, :72], 2), coarse[:, :36], atol=1e-5)
    # Deeper than it was trained, the network goes on with the same step.
    deep = [generator.refine(coarse, latents, level) for level in (network.octaves, 7)]
    np.testing.assert_array_equal(*deep)
    part = generator.refine(coarse, latents, 1, 4)
    np.testing.assert_allclose(part, generator.refine(coarse, latents, 1)[:, 8:-8, 8:-8], atol=1e-5)


def test_threads_share_what_one_has_traced(card, rng, monkeypatch, caplog):
    """Twelve charts at a time ask for the same graph, which none has made yet; windows of other
    sizes have the same one."""
    generator = Generator.from_card(card)
    network = generator.network
    traced, refine = [], type(network).refine

    def counted(self, *args):
        traced.append(len(args[0].shape))
        return refine(self, *args)

    monkeypatch.setattr(type(network), "refine", counted)
    coarse = rng.standard_normal((3, 12, 12), np.float32)
    latents = rng.standard_normal((3, 12, 12, network.latents), np.float32)
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda _: generator.refine(coarse, latents, 1), range(24)))
    generator.refine(coarse[:, :11], latents[:, :11], 1)
    assert traced == [3]
    for each in found[1:]:
        np.testing.assert_array_equal(each, found[0])
    assert not [record for record in caplog.records if "retracing" in record.message]


def test_large_windows_are_refined_one_by_one(card, rng, monkeypatch):
    generator = Generator.from_card(card)
    coarse = rng.standard_normal((3, 12, 12), np.float32)
    latents = rng.standard_normal((3, 12, 12, generator.network.latents), np.float32)
    together = generator.refine(coarse, latents, 0)
    (key,) = generator._functions
    graph, parts = generator._functions[key], []

    def counted(*inputs):
        parts.append(len(inputs[0]))
        return graph(*inputs)

    generator._functions[key] = counted
    for cells, want in ((100, [1, 1, 1]), (2 * 144, [2, 1])):
        monkeypatch.setattr(module, "_CELLS_TOGETHER", cells)
        np.testing.assert_allclose(generator.refine(coarse, latents, 0), together, atol=1e-5)
        assert parts == want
        parts.clear()


ONE_THREAD = "from pysm_vae.vae.generator import one_thread_an_operation as chosen; chosen()"


@pytest.mark.parametrize(
    ("statements", "environment", "want"),
    [
        ("from pysm_vae import VAEDust; VAEDust(8)", {}, 1),
        (f"import tensorflow; {ONE_THREAD}", {}, 0),
        (ONE_THREAD, {"TF_NUM_INTRAOP_THREADS": "3"}, 0),
    ],
)
def test_operations_of_skies_have_one_thread(statements, environment, want):
    """Where nobody else has a say: a process that has imported TensorFlow, or its environment."""
    code = f"""{statements}
import tensorflow as tf
print(tf.config.threading.get_intra_op_parallelism_threads())"""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TF_NUM")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) == want


def test_measured_spectra_match_the_planes(monkeypatch):
    """Against a periodogram of the same planes, computed here."""
    monkeypatch.setattr(module, "SPECTRA_DEPTHS", (2,))
    shipped = load_generator()
    (found,) = measure_spectra(shipped, n=32, seed=1)
    assert (found["depth"], found["samples"]) == (2, 32)
    cells, number = module.SPECTRA_CELLS, shipped.network.latents
    shapes = [(cells, cells), (cells, cells, number), (2 * cells, 2 * cells, number)]
    white, *latents = draw_latents(shapes, [(1, i) for i in range(32)])
    planes = shipped.coarse_plane(white)
    for level in range(2):
        planes = shipped.refine(planes, latents[level], level)
    size = 4 * cells
    taper = np.outer(np.hanning(size), np.hanning(size))
    power = (np.abs(np.fft.fft2(taper * planes)) ** 2).mean(axis=0) / (taper**2).sum()
    cycles = 4 * np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
    known = np.log(found["cycles"]), np.log(found["power"])
    for low, high in ((0.2, 0.3), (0.4, 0.6), (0.8, 1.2), (1.5, 1.9)):
        band = (cycles >= low) & (cycles < high)
        expected = np.exp(np.interp(np.log(cycles[band]), *known)).mean()
        assert power[band].mean() == pytest.approx(expected, rel=0.1), low


def test_deeper_spectra_take_large_scales_from_before(monkeypatch):
    """Few deep planes are drawn, yet their large scales are those of the many before."""
    monkeypatch.setattr(module, "SPECTRA_DEPTHS", (2, 3))
    before, found = measure_spectra(load_generator(), n=32, seed=1)
    assert [entry["samples"] for entry in (before, found)] == [32, 16]
    assert max(found["cycles"]) == pytest.approx(2 * max(before["cycles"]), rel=0.1)
    # White noise of unit variance has a quarter of the power in each of four times the modes.
    cycles = np.array(before["cycles"])
    large = cycles < 0.6
    there = np.interp(np.log(cycles[large]), np.log(found["cycles"]), np.log(found["power"]))
    apart = there - np.log(4) - np.log(before["power"])[large]
    np.testing.assert_allclose(apart, 0, atol=0.1)


def test_spectra_are_binned():
    """A power law stays what it is; chance from one wavenumber to the next averages out."""
    number = np.arange(1, 257)
    law = 5.0 * (number / 32.0) ** -2.7
    entry = module._entry(32, 4, 9, law)
    assert (entry["depth"], entry["samples"]) == (4, 9)
    cycles = np.array(entry["cycles"])
    assert cycles[0] == pytest.approx(1 / 32)
    assert (np.diff(cycles) > 0).all()
    np.testing.assert_allclose(entry["power"], 5 * cycles**-2.7, rtol=1e-4)
    noisy = module._entry(32, 4, 9, law * np.exp(0.3 * (-1.0) ** number))
    smooth = np.log(np.array(noisy["power"]) / entry["power"])
    assert np.abs(smooth[cycles > 2]).max() < 0.05
