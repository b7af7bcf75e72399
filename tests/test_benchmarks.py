"""The programs of benchmarks/: what they leave out, what they keep, and what they measure."""

from __future__ import annotations

import cProfile
import importlib
import itertools
import json
import pstats
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import healpy as hp
import numpy as np
import pysm3.units as u
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from scipy.ndimage import gaussian_filter
from synthetic import NETWORK, SIZE, field, make_card, make_generator, make_map, make_network
from typer.testing import CliRunner

from pysm_vae import VAEDust
from pysm_vae.cli.learning import DEFAULTS
from pysm_vae.sky.calibration import Spectrum
from pysm_vae.sky.sed import emission
from pysm_vae.sky.templates import load_template, to_log_pol_tens
from pysm_vae.sky.tiling import Tiling
from pysm_vae.stats import report
from pysm_vae.stats.compare import DISTANCES
from pysm_vae.stats.spectra import detrend
from pysm_vae.vae import training
from pysm_vae.vae.generator import load_generator
from pysm_vae.vae.patches import tangent_grid
from pysm_vae.vae.training import TrainingConfig, training_patches

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    common, folds, dcgan, ablation, sky_benchmark = map(
        importlib.import_module, ("common", "folds", "dcgan", "ablation", "sky")
    )
    seams, spectra, decorrelation, polarisation = map(
        importlib.import_module, ("seams", "spectra", "decorrelation", "polarisation")
    )

# Without the scores whose graphs take longest to make.
NETWORK = NETWORK | {"texture_weight": 0.0, "critic_weight": 0.0}
CONFIG = TrainingConfig(network=NETWORK, size=SIZE, patches=32, epochs=2, kl_warmup=1)
GAN = dcgan.GanConfig(size=SIZE, steps=6, batch_size=4, width=4, latents=8, checkpoints=3)


@pytest.fixture(scope="module", autouse=True)
def _small():
    """Tiny networks by default, whose spectra on the sky's charts nobody asks for.

    Reports are tested elsewhere and take as long as training: here their names are noted.
    """

    def note(evaluations, out):
        (Path(out) / "evaluation.json").write_text(json.dumps(list(evaluations)))

    def load(weights):
        # Shipped weights make larger patches, which could not be compared with these.
        if weights == "thorne2021":
            raise FileNotFoundError
        return load_generator(weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "measure_spectra", lambda generator: [])
        patch.setattr(training, "measure_transfer", lambda *args: [1.0] * (SIZE // 2))
        patch.setattr(report, "write_report", note)
        patch.setattr(common, "load_generator", load)
        patch.setitem(DEFAULTS, "octave", DEFAULTS["octave"] | {"network": NETWORK})
        yield


@pytest.fixture(scope="module")
def sky(tmp_path_factory) -> SimpleNamespace:
    """Maps of three places, one of them twice; how a command line names them."""
    folder = tmp_path_factory.mktemp("maps")
    places = {"one": (1, 120), "again": (4, 120), "two": (2, 250), "three": (3, 10)}
    maps = [make_map(folder, name, seed, lon=lon) for name, (seed, lon) in places.items()]
    for m in maps:
        # So that the file says what it holds.
        fits.setval(m.path, "BUNIT", value="ln(MJy/sr)")
    return SimpleNamespace(
        maps=maps, options=[f"--map={m.path}@10:cloud" for m in maps], folder=folder
    )


def untrained(maps, split, out, config, *, progress) -> Path:
    """In place of training: a network that is adapted to the patches and goes no further."""
    card = Path(out) / f"{config.architecture}.json"
    if not card.is_file():
        Path(out).mkdir(parents=True)
        network = training.build_network(config.architecture, **config.network)
        network.adapt(training_patches(maps, split.train, config).patches)
        make_card(card.parent, network, card.stem)
        record = json.loads(card.read_text()) | {"split": asdict(split)}
        card.write_text(json.dumps(record))
    return card


def invoke(app, *args: object) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def pooled(evaluations, out) -> None:
    """Put the figures of a report into a file; pages and drawings are tested elsewhere."""
    figures = {"pooled": report.pool(list(evaluations.values()))}
    figures["evaluations"] = {name: each.to_json() for name, each in evaluations.items()}
    (Path(out) / "evaluation.json").write_text(json.dumps(figures))


SHORT = (f"--size={SIZE}", "--patches=32", "--samples=8", "--no-two-sample")
FOLDS = ("--fold=A=one:0", "--fold=B=two:1,three:0")


@pytest.fixture(scope="module")
def trained(sky, tmp_path_factory) -> SimpleNamespace:
    """Fold B by itself, then all folds, then all again, now with figures in the report.

    With the regions of the calls to `evaluate` in each run, and the times of its files. One fold
    is trained.
    """

    real = training.train

    def train(maps, split, out, config, *, progress):
        run = real if out.name == "A" else untrained
        return run(maps, split, out, config, progress=progress)

    out = tmp_path_factory.mktemp("folds")
    calls, stamps, output = [], [], []
    original = report.evaluate

    def count(generator, maps, regions, **options):
        calls[-1].append(tuple(regions))
        return original(generator, maps, regions, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "evaluate", count)
        patch.setattr(training, "train", train)
        for only in (("--only=B",), (), ()):
            calls.append([])
            if len(calls) == 3:
                patch.setattr(report, "write_report", pooled)
            args = (*sky.options, *FOLDS, *SHORT, "--epochs=1", f"--out={out}", *only)
            output.append(invoke(folds.app, *args))
            stamps.append({p.relative_to(out): p.stat().st_mtime_ns for p in out.rglob("*.json")})
    return SimpleNamespace(out=out, calls=calls, stamps=stamps, output=output)


class TestCommon:
    def test_folds(self):
        assert common.parse_folds(["A=one:0, two:1", "b.2=three:0"]) == [
            common.Fold("A", ("one:0", "two:1")),
            common.Fold("b.2", ("three:0",)),
        ]

    @pytest.mark.parametrize("text", ["A", "A=", "=one:0", "A=one:0,", "../A=one:0", "-A=one:0"])
    def test_bad_folds(self, text):
        with pytest.raises(ValueError, match="NAME=REGION"):
            common.parse_folds([text])

    def test_folds_of_one_name(self):
        with pytest.raises(ValueError, match="share a name"):
            common.parse_folds(["A=one:0", "A=one:1"])

    def test_no_held_out_sky_is_trained_on(self, sky):
        split, notes = common.fold_split(sky.maps, common.Fold("A", ("one:0",)), CONFIG)
        assert split.test == ("one:0",)
        # The same place in another map is in no part.
        assert "again:0" not in (*split.train, *split.validation)
        assert {"one:1", "again:1"} <= {*split.train, *split.validation}
        assert [note for note in notes if note.startswith("again:0 left out")] == notes
        drawn = training_patches(sky.maps, split.train, CONFIG)
        held = sky.maps[0].sky
        for i in range(len(drawn)):
            grid = tangent_grid(
                drawn.lon[i], drawn.lat[i], SIZE, drawn.pixel_size[i], drawn.angle[i]
            )
            assert not (held.region(*grid) == 0).any(), drawn.region[i]

    def test_regions_too_small(self, sky, tmp_path):
        tiny = make_map(tmp_path, "tiny", 5, lon=60, pixels=40)
        maps = [*sky.maps, tiny]
        split, notes = common.fold_split(maps, common.Fold("A", ("one:0",)), CONFIG)
        assert not {"tiny:0", "tiny:1"} & {*split.train, *split.validation}
        assert sum("no complete patch" in note for note in notes) == 2
        fold = common.Fold("A", ("one:0", "tiny:1"))
        regions, notes = common.judged_regions(maps, fold, SIZE, common.Judging())
        assert regions == ["one:0"]
        assert notes == [f"tiny:1 not compared: it holds 0 patches of {SIZE} pixels"]
        with pytest.raises(ValueError, match="no region that holds"):
            common.judged_regions(maps, common.Fold("A", ("tiny:1",)), SIZE, common.Judging())

    def test_unknown_region(self, sky):
        with pytest.raises(ValueError, match="four:0"):
            common.fold_split(sky.maps, common.Fold("A", ("four:0",)), CONFIG)

    def test_reference(self, tmp_path):
        fold = common.Fold("A", ("one:0",))
        assert common.thorne2021_of(None, fold) is None
        (tmp_path / "A").mkdir()
        make_card(tmp_path / "A", name="thorne2021")
        assert common.thorne2021_of(tmp_path, fold).name == "thorne2021"
        with pytest.raises(FileNotFoundError, match=r"thorne2021\.json"):
            common.thorne2021_of(tmp_path, common.Fold("B", ("one:0",)))

    def test_other_settings(self, tmp_path):
        common.finished_or_same(tmp_path / "run.json", {"a": (1, 2)})
        common.finished_or_same(tmp_path / "run.json", {"a": [1, 2]})
        with pytest.raises(ValueError, match="other maps or settings"):
            common.finished_or_same(tmp_path / "run.json", {"a": [1, 3]})


class TestFolds:
    def test_each_fold_has_not_seen_its_sky(self, trained):
        for name, held_out in (("A", ["one:0"]), ("B", ["two:1", "three:0"])):
            split = json.loads((trained.out / name / "octave.json").read_text())["split"]
            assert split["test"] == held_out
            assert not set(held_out) & {*split["train"], *split["validation"]}

    def test_finished_parts_are_kept(self, trained):
        assert trained.calls == [[("two:1", "three:0")], [("one:0",)], []]
        first, second, third = trained.stamps
        assert not any(path.parts[0] == "A" for path in first)
        assert Path("evaluation.json") not in first
        kept = [path for path in first if path.name == "octave.json"]
        assert len(kept) == 1
        assert all(second[path] == first[path] for path in kept)
        kept = [path for path in second if path.name == "octave.json"]
        assert len(kept) == 2
        assert all(third[path] == second[path] for path in kept)

    def test_figures_are_those_of_the_fold(self, trained, sky):
        # Maps of the command line, whose values the unit describes.
        maps = common.read_maps([f"{m.path}@10:cloud" for m in sky.maps], None)
        found = report.evaluate(
            load_generator(trained.out / "A" / "octave.json"), maps, ["one:0"], n=8, seed=0,
            two_sample=False,
        )  # fmt: skip
        kept = json.loads((trained.out / "evaluation.json").read_text())["evaluations"]
        assert list(kept) == ["A", "B"]
        assert kept["A"]["comparisons"] == found.to_json()["comparisons"]
        assert json.loads((trained.out / "A" / "evaluation.json").read_text()) == ["A"]

    def test_says_what_is_left_out(self, trained):
        assert "A: again:0 left out of training" in trained.output[1]

    def test_unknown_fold(self, sky, tmp_path):
        with pytest.raises(ValueError, match="--only 'C' is none of A, B"):
            invoke(folds.app, *sky.options, *FOLDS, "--only=C", f"--out={tmp_path}")


def test_figures_of_folds_go_on_cards_of_weights_trained_alike(trained, tmp_path):
    card = trained.out / "A" / "octave.json"
    config = TrainingConfig(**load_generator(card).card["config"])
    folds.check_trained_alike(card, config)
    other = replace(config, batch_size=7, zoom=1.5)
    with pytest.raises(ValueError, match=r"other settings .*\(batch_size, zoom\)"):
        folds.check_trained_alike(card, other)
    # By what they are, not by what was said of them.
    record = json.loads(card.read_text())
    record["network"]["residual"] *= 2
    older = tmp_path / "octave.json"
    older.write_text(json.dumps(record))
    shutil.copy(card.with_suffix(".npz"), tmp_path)
    with pytest.raises(ValueError, match=r"other settings .*\(network\)"):
        folds.check_trained_alike(older, config)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        folds.check_trained_alike(trained.out / "none.json", config)


class TestGan:
    def test_losses(self, rng):
        """Cross entropies of the discriminator's probabilities, before the step."""
        gan = dcgan.Gan(GAN)
        real = rng.standard_normal((4, SIZE, SIZE, 1)).astype(np.float32)
        latents = rng.standard_normal((4, 8)).astype(np.float32)
        made = gan.generator(latents, training=True)
        right, wrong = (
            1 / (1 + np.exp(-gan.discriminator(x, training=True).numpy().astype(np.float64)))
            for x in (real, made)
        )
        found = gan._updates(real, latents).numpy()
        expected = [
            -np.mean(np.log(right)) - np.mean(np.log(1 - wrong)),
            -np.mean(np.log(wrong)),
            0.5 * np.mean(right > 0.5) + 0.5 * np.mean(wrong < 0.5),
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-4)

    def test_parameters(self):
        """Kernels of 16 pixels, two batch-norm weights a channel, dense layers at the ends."""
        found = dcgan.Gan(GAN).parameters
        # 16 pixels: 8 x 8 with 4 filters, 4 x 4 with 8.
        assert found["discriminator"] == (16 * 4 + 4) + (16 * 4 * 8 + 8) + 2 * 8 + (16 * 8 + 1)
        start = 16 * 8
        assert found["generator"] == 8 * start + 2 * start + (16 * 8 * 4 + 4) + 2 * 4 + 16 * 4 + 1

    def test_learns(self, rng, tmp_path):
        patches = np.stack([field(rng, SIZE) for _ in range(128)])
        patches /= patches.std(axis=(1, 2), keepdims=True)
        config = replace(GAN, steps=200, checkpoints=8, width=8, batch_size=16, learning_rate=1e-3)
        found = dcgan.train_gan(patches.astype(np.float32), tmp_path, config, 16)
        errors = [entry["spectrum_error"] for entry in found["checkpoints"]]
        assert dcgan.spectrum_error(dcgan.Gan(config).sample(128, 0), patches) > 2 * min(errors)
        assert found["checkpoints"][-1]["correlation"]["mean"] < 0.5
        assert 0.5 < np.mean(found["log"]["accuracy"]) <= 1

    def test_goes_on_after_a_kill(self, rng, tmp_path, monkeypatch):
        patches = rng.standard_normal((16, SIZE, SIZE)).astype(np.float32)
        whole = dcgan.train_gan(patches, tmp_path / "whole", GAN, 5)
        original, started = dcgan.Gan.step, []

        def step(gan, patches, number):
            started.append(number)
            if len(started) == 4:
                raise KeyboardInterrupt
            return original(gan, patches, number)

        monkeypatch.setattr(dcgan.Gan, "step", step)
        with pytest.raises(KeyboardInterrupt):
            dcgan.train_gan(patches, tmp_path / "parts", GAN, 5)
        assert not (tmp_path / "parts" / "gan.json").exists()
        parts = dcgan.train_gan(patches, tmp_path / "parts", GAN, 5)
        # Killed in step 3, after the checkpoint of two steps.
        assert started == [0, 1, 2, 3, 2, 3, 4, 5]
        for figures in (whole, parts):
            assert figures.pop("seconds") > 0
        assert whole == parts
        one, other = (
            np.load(tmp_path / name / "samples.npz")["samples"] for name in ("whole", "parts")
        )
        assert one.shape == (5, SIZE, SIZE)
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one.std(axis=(1, 2)), 1, rtol=1e-5)
        # A finished seed is not trained again, and no other run is mixed with it.
        started.clear()
        assert dcgan.train_gan(patches, tmp_path / "parts", GAN, 5)["steps"] == 6
        assert started == []
        with pytest.raises(ValueError, match="other maps or settings"):
            dcgan.train_gan(patches, tmp_path / "parts", replace(GAN, width=8), 5)
        with pytest.raises(ValueError, match="other maps or settings"):
            dcgan.train_gan(2 * patches, tmp_path / "parts", GAN, 5)

    def test_seeds_differ(self):
        one, other = (dcgan.Gan(replace(GAN, seed=seed)).sample(2, 0) for seed in (0, 1))
        assert np.abs(one - other).max() > 0.1

    @pytest.mark.parametrize("size", [4, 20, 48])
    def test_bad_size(self, size):
        with pytest.raises(ValueError, match="the DCGAN makes patches of"):
            replace(GAN, size=size)

    def test_correlations(self, rng):
        same = np.repeat(rng.standard_normal((1, 32, 32)), 5, axis=0)
        assert dcgan.correlations(same) == pytest.approx({"mean": 1, "rms": 1})
        # Of p independent pixels: mean 0, variance 1/p.
        found = dcgan.correlations(rng.standard_normal((40, 32, 32)))
        assert abs(found["mean"]) < 0.01
        assert found["rms"] == pytest.approx(1 / 32, rel=0.1)
        # Two images and their negatives: half of all pairs of different patches are related.
        x = rng.standard_normal((1, 64, 64))
        found = dcgan.correlations(np.concatenate([x, -x]))
        assert found == pytest.approx({"mean": -1, "rms": 1})

    def test_spectrum_error(self, rng):
        patches = rng.standard_normal((20, SIZE, SIZE))
        assert dcgan.spectrum_error(2 * patches, patches) == pytest.approx(np.log(4))

    def test_weights_that_have_seen_the_test(self, trained):
        generator = load_generator(trained.out / "A" / "octave.json")
        dcgan.check_unseen(generator, common.Fold("A", ("one:0",)))
        seen = generator.card["split"]["train"][0]
        with pytest.raises(ValueError, match=f"have seen {seen}"):
            dcgan.check_unseen(generator, common.Fold("A", ("one:0", seen)))

    def test_program(self, sky, trained, tmp_path, monkeypatch):
        judged, original = [], report.evaluate

        def evaluate(*args, candidates, **options):
            judged.append(list(candidates))
            assert {c.shape for c in candidates.values()} == {(8, SIZE, SIZE)}
            return original(*args, candidates=candidates, **options)

        monkeypatch.setattr(report, "evaluate", evaluate)
        args = (
            *sky.options, FOLDS[0], *SHORT, f"--weights={trained.out}", "--steps=4", "--seeds=2",
            "--width=4", f"--out={tmp_path}",
        )  # fmt: skip
        invoke(dcgan.app, *args)
        found = json.loads((tmp_path / "dcgan.json").read_text())["A"]
        assert [each["seed"] for each in found["seeds"]] == [0, 1]
        # 32 patches in a batch of 32, once.
        assert found["compared_with"]["steps"] == 1
        assert found["split"]["test"] == ["one:0"]
        assert judged == [["dcgan_0", "dcgan_1"]]
        assert (tmp_path / "A" / "dcgan.png").stat().st_size > 1000
        assert json.loads((tmp_path / "evaluation.json").read_text()) == ["A"]
        monkeypatch.setattr(dcgan, "Gan", None)
        monkeypatch.setattr(report, "evaluate", None)
        assert "seed 1" in invoke(dcgan.app, *args)


class TestAblation:
    def test_stationary_fields(self, rng):
        """A channel that is the other one, moved and dimmed, and noise of its own."""
        first = rng.standard_normal((400, 8, 8, 1))
        second = 0.8 * np.roll(first, 2, axis=1) + 0.6 * rng.standard_normal(first.shape) + 3
        prior = ablation.Stationary.like(np.concatenate([first, second], -1))
        drawn = prior.colour(rng.standard_normal((400, 8, 8, 2)))
        assert drawn.shape == (400, 8, 8, 2)
        one, other = drawn[..., 0], drawn[..., 1]
        assert other.mean() == pytest.approx(3, abs=0.02)
        assert one.var() == pytest.approx(1, rel=0.03)
        assert other.var() == pytest.approx(1, rel=0.03)
        assert np.mean(np.roll(one, 2, axis=1) * (other - 3)) == pytest.approx(0.8, abs=0.02)
        assert np.mean(one * (other - 3)) == pytest.approx(0, abs=0.02)

    def test_blind_network(self, rng):
        """Its details do not depend on what they are drawn for."""
        coarse = rng.standard_normal((2, 4, 4)).astype(np.float32)
        z = [
            np.repeat(rng.standard_normal((1, *shape)), 2, axis=0).astype(np.float32)
            for shape in make_network().latent_shapes(SIZE)[1:]
        ]

        def details(network):
            drawn = np.asarray(network.decode(z, coarse=coarse))
            return drawn - np.kron(coarse, np.ones((4, 4)))

        with ablation.without_context():
            blind = details(make_network())
        np.testing.assert_allclose(blind[0], blind[1], atol=1e-5)
        assert blind.std() > 0.02
        seeing = details(make_network())
        assert np.abs(seeing[0] - seeing[1]).max() > 0.02

    def test_fitted_prior(self, rng, tmp_path):
        """Its samples are those of the network for latents like the encoded patches' ones."""
        card = make_card(tmp_path)
        patches = np.stack([field(rng, SIZE) for _ in range(80)]).astype(np.float32)
        environment = np.repeat(np.float32([0, 1]), 40)
        fitted = ablation.FittedPrior(card, patches, environment, seed=1)
        plain = load_generator(card)
        shapes = plain.latent_shapes(SIZE)
        white = [rng.standard_normal((3, *shape)).astype(np.float32) for shape in shapes]
        for kind in (0.0, 1.0):
            priors = fitted._priors[kind]
            coloured = [white[0], *(priors[z.shape[1]].colour(z) for z in white[1:])]
            np.testing.assert_allclose(
                fitted.decode(white, environment=kind),
                plain.decode(coloured, environment=kind),
                atol=1e-6,
            )
            # The finest posterior mean, on average over patches and places, is the prior's.
            own = patches[environment == kind]
            mean = np.asarray(plain.network.encode(own, np.full(40, kind, np.float32))[-1][0])
            found = priors[SIZE // 2].mean
            np.testing.assert_allclose(found, mean.mean(axis=(0, 1, 2)), atol=0.1)
        assert np.abs(fitted._priors[0.0][8].mean - fitted._priors[1.0][8].mean).max() > 0

    def test_figures(self):
        """Medians over maps and folds; of the controls, which no variant touches, only once."""

        def evaluation(**yardsticks):
            comparison = SimpleNamespace(
                candidates=dict.fromkeys(yardsticks),
                yardsticks=lambda name: {"spectrum": yardsticks[name]},
            )
            return SimpleNamespace(comparisons=[comparison])

        found = ablation.figures(
            {
                fold: {
                    "octave": evaluation(samples=k, modulated_gaussian=5),
                    "octave + fitted_prior": evaluation(samples=2 * k, modulated_gaussian=8),
                    "thorne2021": evaluation(samples=9, modulated_gaussian=7),
                }
                for fold, k in (("A", 1), ("B", 2), ("C", 6))
            }
        )
        assert list(found.items()) == [
            ("octave", {"spectrum": 2}),
            ("octave + fitted_prior", {"spectrum": 4}),
            ("thorne2021", {"spectrum": 9}),
            ("modulated_gaussian", {"spectrum": 5}),
        ]

    def test_variants_can_be_built(self):
        for variant in ablation.VARIANTS.values():
            size = {"size": SIZE} if variant.architecture == "thorne2021" else {}
            network = training.build_network(variant.architecture, **variant.network, **size)
            assert {**network.get_config(), **variant.network} == network.get_config()

    def test_program(self, sky, tmp_path, monkeypatch):
        monkeypatch.setattr(training, "train", untrained)
        args = (
            *sky.options, FOLDS[0], *SHORT, "--epochs=1", f"--out={tmp_path}", "--variant=elbo",
            "--variant=blind",
        )  # fmt: skip
        output = invoke(ablation.app, *args, "--only=blind")
        assert "A: blind" in output
        assert not (tmp_path / "A" / "elbo").exists()
        assert not (tmp_path / "ablation.json").exists()
        output = invoke(ablation.app, *args)
        found = json.loads((tmp_path / "ablation.json").read_text())
        assert list(found["yardsticks"]) == [
            "elbo",
            "elbo + fitted_prior",
            "blind",
            "modulated_gaussian",
        ]
        for values in found["yardsticks"].values():
            assert set(DISTANCES) <= set(values)
        assert (tmp_path / "ablation.png").stat().st_size > 1000
        card = json.loads((tmp_path / "A" / "elbo" / "octave.json").read_text())
        assert card["network"] == load_generator(tmp_path / "A" / "elbo").network.get_config()
        assert (card["network"]["score_weight"], card["network"]["octaves"]) == (0, 2)
        blind = load_generator(tmp_path / "A" / "blind").network
        assert np.isinf(blind.context_scale.numpy()).all()
        monkeypatch.setattr(report, "evaluate", None)
        assert "ablation.png" in invoke(ablation.app, *args)

    def test_unknown_variant(self, sky, tmp_path):
        with pytest.raises(ValueError, match="'none' is none of octave"):
            invoke(ablation.app, *sky.options, FOLDS[0], "--variant=none", f"--out={tmp_path}")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("d11")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sky_benchmark, "PLANE_NSIDE", 32)
        patch.setattr(sky_benchmark, "SMALL_SCALES", 200)
        sky_benchmark.write_d11_files(str(folder), True)
    return str(folder)


class TestSky:
    """Ratios are made of figures that are made up; times and memory are not judged."""

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize("plane_fix", [False, True])
    def test_d11_has_the_templates_large_scales(self, files, plane_fix):
        dust = sky_benchmark.d11(32, 1, Path(files), plane_fix)
        template = load_template("embedded").maps(32)[0]
        assert dust.I_ref.unit == u.uK_RJ
        assert dust.mbb_temperature.mean().to_value(u.K) == pytest.approx(20, rel=0.05)
        assert dust.mbb_index.mean().value == pytest.approx(1.5, rel=0.05)
        # Below the small scales, and in the plane's maps, nothing else; 0.911 is PySM's correction.
        np.testing.assert_allclose(dust.I_ref.value / 0.911, template, rtol=1e-3)

    @pytest.mark.parametrize("kind", ["maps", "numbers"])
    def test_emission_is_compared(self, tmp_path, monkeypatch, kind, rng):
        class Dust:
            """Maps without a draw; scaled as VAEDust scales its own."""

            def __init__(self, nside, *, beta, temperature):
                self.beta, self.temperature = beta, temperature
                maps = rng.lognormal(size=(3, 12 * nside**2)).astype(np.float32)
                self.I_ref, self.Q_ref, self.U_ref = maps << u.uK_RJ

            def get_emission(self, freqs):
                maps = np.array([self.I_ref.value, self.Q_ref.value, self.U_ref.value])
                made = emission(
                    maps,
                    freqs,
                    freq_ref_I=353 * u.GHz,
                    freq_ref_P=353 * u.GHz,
                    beta=u.Quantity(self.beta).value,
                    temperature=u.Quantity(self.temperature).value,
                )
                return made * wrong << u.uK_RJ

        monkeypatch.setattr(sky_benchmark, "VAEDust", Dust)
        monkeypatch.setattr(sky_benchmark, "POINTS", (1, 3))
        for wrong in (1.0, 1.001):
            options = {"nside": 8, "kind": kind, "files": str(tmp_path), "repeats": 2}
            ours = sky_benchmark.emit(sky_benchmark.OURS, **options)
            theirs = sky_benchmark.emit(sky_benchmark.D1, **options)
            assert set(ours) == set(theirs) == {"1", "3"}
            for points in theirs.values():
                assert points["seconds"] > 0
                assert points["difference"] == pytest.approx(wrong - 1, abs=1e-12)

    def test_memory_of_a_block(self):
        held = np.ones(10**7)
        with sky_benchmark._from_here() as memory:
            np.ones(2 * 10**7).sum()
        assert memory["peak"] == pytest.approx(160e6, rel=0.1)
        assert held.sum() == 10**7

    def test_memory_of_the_second_draw(self, tmp_path, monkeypatch):
        # As the first one, which compiles and reads: what it leaves is not the second's.
        kept = []

        def construct(nside, *, seed, map_dist):
            kept.append(np.ones(10**7 if not kept else 1))
            np.ones(10**7).sum()

        monkeypatch.setattr(sky_benchmark, "VAEDust", construct)
        drawn = sky_benchmark.draw(sky_benchmark.OURS, 16, str(tmp_path), plane_fix=False)
        assert drawn["peak"] == pytest.approx(80e6, rel=0.2)
        assert drawn["process"] == pytest.approx(160e6, rel=0.2)
        assert drawn["seconds"] > 0

    def test_discs(self):
        """A hundredth of the sky each, apart from each other; the worst shows three charts."""
        parts = [part.pixel_indices for part in sky_benchmark.discs(64)]
        for pixels in parts:
            assert len(pixels) / (12 * 64**2) == pytest.approx(0.01, rel=0.02)
        assert len(np.unique(np.concatenate(parts[:-1]))) == sum(map(len, parts[:-1]))
        tiles = [Tiling().weights(64, pixels)[0] for pixels in parts]
        shown = [len(np.unique(each[each >= 0])) for each in tiles]
        assert shown[-1] == max(shown) == 3
        assert min(shown) < 3

    def test_libraries_count_for_who_calls_them(self):
        patches = np.ones((10, 400, 400))
        maps = np.ones((3, 300_000)) * np.array([[4.0], [1.0], [1.0]])

        def work():
            for _ in range(10):
                detrend(patches)
                to_log_pol_tens(maps)

        profiler = cProfile.Profile()
        profiler.runcall(work)
        profiled = pstats.Stats(profiler)
        by_stage, by_function = sky_benchmark.stages(profiled)
        total = profiled.total_tt
        assert set(by_stage) == {"spectra", "log-pol-tens", "template"}
        assert sum(by_stage.values()) == pytest.approx(total, rel=0.1)
        entries = {key[2]: entry for key, entry in profiled.stats.items()}
        assert by_stage["spectra"] == pytest.approx(entries["detrend"][3], rel=0.02)
        both = by_stage["log-pol-tens"] + by_stage["template"]
        assert both == pytest.approx(entries["to_log_pol_tens"][3], rel=0.02)
        assert "spectra.detrend" in by_function

    def test_operations_follow_the_pixels(self, tmp_path):
        generator = make_generator(tmp_path)
        counts = [
            sky_benchmark.refine_operations(generator, (1, size, size), 3, 0) for size in (32, 64)
        ]
        # 3 by 3 kernels from and to at least six channels.
        assert counts[1] > 64**2 * 2 * 9 * 36
        assert counts[1] == pytest.approx(4 * counts[0], rel=0.02)

    def test_fresh_processes(self, tmp_path):
        made = sky_benchmark.fresh(
            sky_benchmark.write_d11_files, files=str(tmp_path), plane_fix=False
        )
        assert made is None
        assert len(list(tmp_path.iterdir())) == 8
        failed = sky_benchmark.fresh(sky_benchmark.draw, parrot=1)
        assert "TypeError" in failed["failed"]

    def test_program(self, tmp_path, monkeypatch):
        calls = []

        def fresh(task, **options):
            calls.append((task.__name__, options))
            ours = options.get("who") == sky_benchmark.OURS
            return {
                "rates": {"bytes": 1e9, "multiply-adds": 1e9, "exponentials": 1e9},
                "draw": {
                    "seconds": (0.1 if "part" in options else 2.0) if ours else 6.0 + len(calls),
                    "peak": 1e9 if ours else 4e9,
                    "process": 3e9 if ours else 5e9,
                    "imports": 1e8,
                },
                "emit": {
                    str(n): {"seconds": n * (1 if ours else 20.0), "peak": 1e8, "difference": 1e-15}
                    for n in sky_benchmark.POINTS
                },
                "profile": {
                    "seconds": 2.0,
                    "stages": {"decode": 1.5, "project": 0.5},
                    "functions": {},
                    "needs": {"decode": {"bytes": 1e8, "multiply-adds": 5e8}},
                }
                if options.get("nside") == 128
                else {"failed": "exit code -9: killed"},
            }.get(task.__name__)

        monkeypatch.setattr(sky_benchmark, "fresh", fresh)
        monkeypatch.setattr(
            sky_benchmark, "measure_first_map", lambda _: {"all compiled": 9, "compiled before": 5}
        )
        output = invoke(
            sky_benchmark.app, "--nside=128", "--nside=2048", "--nside=4096", f"--out={tmp_path}"
        )
        report_ = json.loads((tmp_path / "sky.json").read_text())
        skies = report_["skies"]
        draws = [options for name, options in calls if name == "draw"]
        # Three of each, but of the peer at the two nsides that it can do.
        assert len(draws) == 3 * (3 + 3 + 2)
        assert {o["nside"] for o in draws if o["plane_fix"]} == {2048, 4096}
        drawn = skies["128"]["draw"]
        times = drawn[sky_benchmark.D11]["times"]
        assert drawn["times as fast"] == sorted(times)[1] / 2
        assert drawn["share of memory"] == 0.25
        assert drawn["share of process"] == 0.6
        assert drawn["part over full"] == pytest.approx(0.05)
        assert [skies[n]["draw"]["plane fix"] for n in skies] == [False, True, False]
        assert skies["128"]["emission"]["maps"]["10"]["times as fast"] == 20
        assert skies["128"]["profile"]["needs"]["decode"]["floor"] == 0.5
        assert "emission" not in skies["4096"]
        assert sky_benchmark.D11 not in skies["4096"]["draw"]
        for text in ("2048*", "decode", "1.0e-15", "9.0 s with all compilation"):
            assert text in output
        assert (tmp_path / "sky.png").stat().st_size > 10_000
        assert {file.name for file in tmp_path.iterdir()} == {"sky.json", "sky.png"}


def gaussian(nside: int, slopes: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """Harmonics of Gaussian T, E and B with EE/BB = 2 at 80 and TE/sqrt(TT EE) = 0.4."""
    lmax = 2 * nside
    ell = np.maximum(np.arange(lmax + 1), 1)
    white = rng.standard_normal((3, 2, hp.Alm.getsize(lmax)))
    t, e, b = (white[:, 0] + 1j * white[:, 1]) / np.sqrt(2)
    e = 0.4 * t + np.sqrt(1 - 0.4**2) * e
    return np.array(
        [
            hp.almxfl(alm, np.sqrt(2 * np.pi * level * (ell / 80.0) ** slope / (ell * (ell + 1))))
            for alm, level, slope in zip((t, e, b), (9.0, 2.0, 1.0), slopes, strict=True)
        ]
    )


class TestSpectra:
    @pytest.mark.parametrize("latitude", spectra.LATITUDES)
    def test_of_a_known_sky(self, latitude, rng):
        slopes = (-0.8, -0.4, -0.6)
        maps = np.array(hp.alm2map(gaussian(256, slopes, rng), 256))
        maps[0] += 50.0
        lmax = 480
        found = spectra.spectra(maps, spectra.mask(256, latitude), lmax)
        judged = spectra.judge(*spectra.binned(found, lmax))
        np.testing.assert_allclose(judged["slopes"], [*slopes, -0.6], atol=0.1)
        assert judged["EE/BB at 80"] == pytest.approx(2.0, rel=0.1)
        assert judged["TE at 80"] == pytest.approx(0.4, abs=0.04)

    def test_large_scales(self, rng):
        maps = np.array(hp.alm2map(gaussian(32, (-0.5, -0.5, -0.5), rng), 32))
        scaled = maps * np.array([1.1, 1.0, 1.0])[:, None]
        np.testing.assert_allclose(spectra.large_scales(scaled, maps), [1.21, 1, 1], rtol=1e-6)

    def test_the_same_sky_at_another_nside(self, rng):
        """Brighter by a factor, and with a B that shares a part of its power."""
        alm, other = (gaussian(256, (-0.5, -0.5, -0.5), rng) for _ in range(2))
        maps = np.array(hp.alm2map(alm, 256))
        mixed = [*alm[:2], 0.8 * alm[2] + 0.6 * other[2]]
        others = np.array(hp.alm2map(mixed, 512))
        for each in (maps, others):
            each[0] += 100.0
        others[0] *= 1.1
        found = spectra.agreement(maps, others)
        want = {"ln I": (1, 1), "I": (1, 1.21), "E": (1, 1), "B": (0.8, 1)}
        assert list(found) == list(want)
        for name, (correlation, ratio) in want.items():
            tolerance = 0.03 if name == "B" else 0.002
            np.testing.assert_allclose(found[name]["correlation"], correlation, atol=tolerance)
            np.testing.assert_allclose(found[name]["ratio"], ratio, rtol=5 * tolerance)
        shown = spectra.same_sky({"nside": 256, "beside": {"nside": 512, "skies": [found]}})
        assert shown.row_count == 4

    def test_a_seed_is_one_sky(self):
        """In linear maps: finer scales had added up to 3 % to larger ones, at nside 1024."""
        found = spectra.agreement(*(spectra.reference(VAEDust(n, seed=1)) for n in (256, 1024)))
        for name in ("I", "E", "B"):
            assert np.min(found[name]["correlation"]) > 0.999
            np.testing.assert_allclose(found[name]["ratio"], 1, atol=0.01)

    def test_bands_follow_each_other(self):
        bands = spectra.bands(1000)
        assert bands[0][0] == 60
        assert bands[-1][1] == 1000
        assert all(a[1] == b[0] for a, b in itertools.pairwise(bands))


class TestDecorrelation:
    def test_responses_are_the_seds(self):
        """Against differences of the emission itself."""
        plain = SimpleNamespace(freq_ref_I=353 * u.GHz, mbb_temperature=19.6 * u.K)

        def sed(beta: float, temperature: float) -> float:
            refs = {"freq_ref_I": 353 * u.GHz, "freq_ref_P": 353 * u.GHz}
            one = np.ones((3, 1))
            at = emission(one, 95 * u.GHz, beta=beta, temperature=temperature, **refs)
            return np.log(at[0, 0])

        by_beta, by_temperature = decorrelation.response(95.0, plain, plain)
        assert by_beta == pytest.approx((sed(1.54, 19.6) - sed(1.52, 19.6)) / 0.02, rel=1e-6)
        warmer = (sed(1.53, 19.7) - sed(1.53, 19.5)) / 0.2
        assert by_temperature == pytest.approx(warmer, rel=1e-3)

    def test_correlations_of_known_maps(self, rng):
        """Of B maps that share a part of their power, the same in every band."""
        one, other = gaussian(256, (-0.5, -0.5, -0.5), rng)[1:]
        mixed = [np.stack([one, one]), np.stack([0.8 * one + 0.6 * other] * 2)]
        power = np.array([[decorrelation.banded(a, b) for b in mixed] for a in mixed])
        found = decorrelation.ratios(power)
        np.testing.assert_allclose(found[0, 0], 1)
        # E is twice B in power.
        want = 0.8 * 2**0.5 / np.hypot(0.8 * 2**0.5, 0.6)
        np.testing.assert_allclose(found[0, 1], want, atol=0.02)


@pytest.fixture(scope="module")
def share() -> np.ndarray:
    """Of the nearest chart, at nside 64."""
    return seams.shares(64)


class TestSeams:
    def test_share_is_the_nearest_charts(self, share):
        assert share.max() == pytest.approx(1)
        assert 1 / 3 - 1e-3 < share.min() < 0.36
        assert 0.9 < np.mean(share > 0.99) < 0.97

    def test_a_gaussian_sky_has_none(self, share, rng):
        alm = gaussian(64, (0.5, 0.5, 0.5), rng)[0]
        zone = (share < 0.75).astype(int)
        found = seams.statistics(seams.zones(alm, 64, 60.0, zone))
        variance, _, gradient, _ = found[:, 1] / found[:, 0]
        assert variance == pytest.approx(1, abs=0.15)
        assert gradient == pytest.approx(1, abs=0.15)
        assert np.abs(found[1]).max() < 0.2

    def test_heavy_tails_are_seen_where_they_are(self, share, rng):
        """White noise that is cubed in the seams, of the same variance."""
        zone = (share < 0.75).astype(int)
        white = rng.standard_normal(share.size)
        alm = hp.map2alm(np.where(zone == 1, white**3 / 15**0.5, white), lmax=128, iter=1)
        _, kurtosis, _, _ = seams.statistics(seams.zones(alm, 64, 20.0, zone))
        assert abs(kurtosis[0]) < 0.3
        assert kurtosis[1] > 2

    def test_skies_are_averaged_before_they_are_compared(self, rng):
        """Of small zones, too, whose own kurtosis is too low; and the errors are those of it."""
        sizes = 20, 30, 400
        values = [rng.laplace(size=(4000, size)) for size in sizes]
        second, fourth = (
            np.stack([np.mean(part**power, axis=1) for part in values], axis=1) for power in (2, 4)
        )
        moments = np.stack([second, fourth, second, fourth], axis=1)
        ratio, error = seams.against_inside(moments, np.array(sizes), slice(0, 2))
        assert np.all(np.abs(ratio - 1) < 4 * error)
        assert error.max() < 0.1
        apart = np.mean([seams.statistics(sky)[1] for sky in moments], axis=0)
        assert apart[0] / apart[2] < 0.7
        parts = [
            seams.against_inside(part, np.array(sizes), slice(0, 2))[0]
            for part in np.split(moments, 40)
        ]
        np.testing.assert_allclose(error, np.std(parts, axis=0) / np.sqrt(40), rtol=0.4)


def made_up_sky(seed: int, nside: int = 128) -> polarisation.Sky:
    """Heavy-tailed patterns on a smooth template with a field of one direction."""
    rng = np.random.default_rng(seed)
    lmax, lat = 240, hp.pix2ang(nside, np.arange(hp.nside2npix(nside)), lonlat=True)[1]
    large = np.array([3 - np.abs(lat) / 45, 0.1 - np.abs(lat) / 2000, 0 * lat])
    heavy = np.stack([rng.standard_normal(lat.size) ** 3 for _ in range(3)])
    alm = hp.map2alm(heavy, lmax=lmax, iter=0)
    ell = np.maximum(np.arange(lmax + 1), 1)
    red = np.where(ell > 60, (ell / 80.0) ** -1.25, 0) * [[0.02], [0.002], [0.001]]
    alm = [hp.almxfl(a, power) for a, power in zip(alm, red, strict=True)]
    fields = large + np.array(hp.alm2map(alm, nside, pol=True))
    even = SimpleNamespace(roughness=lambda theta, phi: np.ones_like(theta))
    ground = SimpleNamespace(crowding=lambda i: np.ones_like(i), large=even)
    small = SimpleNamespace(lmax=float(lmax), nside=nside, ground=ground)
    return polarisation.Sky(small, large, fields)


class TestPolarisation:
    def test_fractions(self, rng):
        p = rng.uniform(0, 0.2, hp.nside2npix(32))
        maps = np.array([np.full(p.size, 5.0), 3 * p, -4 * p])
        found = polarisation.fraction(maps)
        np.testing.assert_allclose(
            found["full sky"]["percentiles"], [0.1, 0.19, 0.1998, 0.2], atol=0.004
        )
        width = np.diff(polarisation.FRACTION_EDGES)
        assert np.sum(found["|b| > 20"]["density"] * width) == pytest.approx(1)
        np.testing.assert_allclose(found["full sky"]["density"][:40], 5, rtol=0.2)

    def test_pattern_correlation(self, rng):
        ell = np.where(np.arange(21) > 1, 1.0, 0)
        roots = np.eye(3)[..., None] * ell
        one, other = (polarisation.gaussian_alms(roots, rng) for _ in range(2))
        # T is not looked at.
        alm = [one, np.array([other[0], *(0.6 * one + 0.8 * other)[1:]])]
        first, second = (np.array(hp.alm2map(a, 32, pol=True)) for a in alm)
        found = polarisation.pattern_correlation(first, second)
        assert found["full sky"] == pytest.approx(0.6, abs=0.08)
        assert found["|b| > 30"] == pytest.approx(0.6, abs=0.12)
        assert polarisation.pattern_correlation(first, -first)["|b| > 30"] == pytest.approx(-1)

    def test_small_scales_and_brightness(self):
        sky = made_up_sky(0)
        intensity = sky.template[0]
        p = 0.05 + 0.04 * np.sin(3 * np.linspace(0, 2 * np.pi, intensity.size))
        template = np.array([intensity, intensity * p, 0 * p])
        found = polarisation.follow(intensity**1.4 * p**0.6, template)
        assert found["together"]["I"] == pytest.approx(0.7, abs=0.02)
        assert found["together"]["P/I"] == pytest.approx(0.3, abs=0.02)
        assert found["I"]["slope"] == pytest.approx(0.7, abs=0.02)
        assert np.all(np.diff(found["I"]["brightness"]) > 0)

    @pytest.mark.parametrize(("ell", "kept"), [(50, 0), (230, 1)])
    def test_small_scales_are_above_a_multipole(self, ell, kept, rng):
        power = np.zeros((3, 3, 241))
        power[1, 1, ell] = power[2, 2, ell] = 1
        maps = hp.alm2map(polarisation.gaussian_alms(power, rng), 128, pol=True)
        square = polarisation.small_polarisation(np.array(maps), 240).mean()
        whole = 0.5 * np.mean(maps[1] ** 2 + maps[2] ** 2)
        assert square == pytest.approx(kept * whole, abs=0.01 * whole)

    def test_small_fields(self, rng, monkeypatch):
        """Of a power law their power is right, and E makes B only where Q and U are cut."""
        monkeypatch.setattr(polarisation, "DISC_NSIDE", 2)
        area = polarisation.disc(64, np.array([0.6, 0, 0.8])).sum() * hp.nside2pixarea(64, True)
        assert area == pytest.approx(400, rel=0.03)
        intensity = np.arange(hp.nside2npix(128), dtype=float)
        law = polarisation.power_law(0, 400)
        found = polarisation.disc_powers(law, intensity)
        assert found.shape[0] == 5
        ell = np.arange(110, 370)
        # D_l of the unit amplitudes is 1 / 2 pi at the pivot.
        expected = np.mean((ell / 80.0) ** Spectrum.slopes[2]) / (2 * np.pi)
        assert found[1].mean() == pytest.approx(expected, rel=0.15)
        assert found[3].mean() == pytest.approx(expected, rel=0.25)
        # Rings are numbered from the north.
        assert np.all(np.diff(found[4]) > -2000)
        leaked = polarisation.disc_powers(law * [[1], [0]], intensity)
        assert np.all(leaked[:2] == 0)
        assert 0.001 < leaked[3].mean() / found[3].mean() < 0.3

    def test_excess_of_faint_fields(self, rng):
        brightness = np.geomspace(1, 100, 200)
        low = brightness**2 * np.exp(0.1 * rng.standard_normal((3, 200)))
        laws = np.array([[2 * low[0], low[0]] * 2 + [brightness]] * 3)
        for excess in (1.0, 3.0):
            high = low * 0.5 * np.where(brightness < np.percentile(brightness, 25), excess, 1)
            each = np.stack([low, high, low, high, np.broadcast_to(brightness, low.shape)], axis=1)
            found = polarisation.small_fields(each, laws)
            assert found["R of a power law"] == [pytest.approx(2), pytest.approx(0)]
            quarters = found["small scales over a power law's, by quarter"]
            np.testing.assert_allclose(quarters, [excess, 1, 1, 1], rtol=1e-6)
            trend = found["faintest quarter over the trend of the others"]
            assert trend == pytest.approx(excess, rel=0.05)
            assert found["power of intensity in the brighter fields"] == pytest.approx(2, abs=0.03)

    def test_controls_have_the_spectra_and_no_tails(self):
        """At high latitude, where the modulation hardly varies within a cell."""
        sky = made_up_sky(1)
        mask, lmax = polarisation.latitude_mask(sky.nside), int(sky.small.lmax)
        own = (sky.maps - sky.template) / sky.template[0]

        def kurtosis(values):
            values = values[mask == 1] - values[mask == 1].mean()
            return np.mean(values**4) / np.mean(values**2) ** 2 - 3

        assert min(kurtosis(values) for values in own) > 0.5
        want = hp.anafast(own * mask, lmax=lmax, iter=1)[:3]
        for kind in polarisation.CONTROLS:
            small = polarisation.control(sky, kind, np.random.default_rng(2)) / sky.template[0]
            assert max(abs(kurtosis(values)) for values in small) < 0.15
            found = hp.anafast(small * mask, lmax=lmax, iter=1)[:3]
            ratio = np.sum(found[:, 80:220], axis=1) / np.sum(want[:, 80:220], axis=1)
            np.testing.assert_allclose(ratio, 1, atol=0.06)
            # Another realisation, not the sky itself.
            assert abs(np.corrcoef(small[1], own[1])[0, 1]) < 0.1

    def test_heavy_tails_differ_from_a_control(self, rng):
        def judged(power):
            smooth = gaussian_filter(rng.standard_normal((40, 48, 48)), (0, 1.5, 1.5))
            return polarisation.shape(np.sign(smooth) * abs(smooth) ** power, 12.0, [(200, 400)])

        sets = {
            "sky": [judged(2) for _ in range(3)],
            "tailed": [judged(2) for _ in range(3)],
            "Gaussian": [judged(1) for _ in range(3)],
        }
        found = polarisation.compare(sets)
        assert found["sky"]["kurtosis"][0] > 1
        assert found["Gaussian"]["sigmas"][0] > 3
        assert abs(found["tailed"]["sigmas"][0]) < 3
        for k in range(3):
            same, other = found["tailed"][f"V{k}"], found["Gaussian"][f"V{k}"]
            assert other["sigmas"] > 3 > abs(same["sigmas"])
            assert other["distance"] > 2 * same["distance"]
            assert other["overlap"] < same["overlap"]

    def test_flat_e_is_healpixs(self, rng):
        """A sky of pure E, cut into a field, has little B; and the other way round."""
        nside, pixel = 256, 8.0
        ell = np.arange(501)
        power = np.where((ell > 100) & (ell < 400), 1 / np.maximum(ell, 1), 0)
        lon, lat = tangent_grid(40.0, -10.0, 90, pixel)
        for row in (1, 2):
            roots = np.zeros((3, 3, 501))
            roots[row, row] = power
            maps = hp.alm2map(polarisation.gaussian_alms(roots, rng), nside, pol=True)[1:]
            flat = np.array([hp.get_interp_val(m, lon, lat, lonlat=True) for m in maps])
            e, b, multipole = polarisation.flat_e_b(flat, pixel)
            band = (multipole > 150) & (multipole < 350)
            share = np.sum(np.abs((e, b)[row - 1][band]) ** 2) / np.sum(
                np.abs((e, b)[2 - row][band]) ** 2
            )
            assert share > 10

    def test_fields_are_read(self, tmp_path, rng):
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["GLON-TAN", "GLAT-TAN"]
        wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = [170, -14], [31, 31], [-0.05, 0.05]
        image = rng.standard_normal((61, 62))
        for name in "qu":
            fits.PrimaryHDU(image, wcs.to_header()).writeto(tmp_path / f"{name}.fits")
        maps, lon, lat, pixel = polarisation.read_taurus(tmp_path / "q.fits", tmp_path / "u.fits")
        assert pixel == pytest.approx(6)
        assert maps.shape == (2, *lon.shape) == (2, 30, 30)
        np.testing.assert_allclose(maps[0][3, 4], image[6:8, 9:11].mean())
        want = wcs.pixel_to_world_values(9.5, 6.5)
        np.testing.assert_allclose((lon[3, 4], lat[3, 4]), want)
        fits.PrimaryHDU(image[:, 1:], wcs.to_header()).writeto(tmp_path / "other.fits")
        with pytest.raises(ValueError, match="must be two images of one size"):
            polarisation.read_taurus(tmp_path / "q.fits", tmp_path / "other.fits")

    def test_quarters_of_equally_bright_fields(self, rng):
        """Of eight fields each quarter has two, though no percentile parts six of them."""
        powers = rng.uniform(1, 2, (2, 5, 4))
        powers[:, 4] = [[3, 3, 5, 3], [3, 6, 3, 3]]
        found = polarisation.small_fields(powers, powers)
        ratio = powers[:, 0] / powers[:, 1]
        quarters = found["R by quarter of brightness"]
        assert np.mean([mean for mean, _ in quarters]) == pytest.approx(ratio.mean())
        assert np.isfinite(quarters).all()

    def test_program(self, tmp_path, monkeypatch):
        monkeypatch.setattr(polarisation, "DISC_NSIDE", 2)
        monkeypatch.setattr(polarisation, "PATCH_NSIDE", 2)
        skies = {seed: made_up_sky(seed) for seed in range(2)}
        monkeypatch.setattr(polarisation.Sky, "draw", lambda weights, nside, seed: skies[seed])
        monkeypatch.setattr(
            polarisation, "DISC_BANDS", tuple(np.array(polarisation.DISC_BANDS) * 6 // 10)
        )
        hp.write_map(tmp_path / "d1.fits", load_template("embedded").maps(32), dtype=np.float32)
        output = invoke(
            polarisation.app,
            "--seeds=2",
            f"--out={tmp_path}",
            f"--reference={tmp_path / 'd1.fits'}",
        )
        found = json.loads((tmp_path / "polarisation.json").read_text())
        assert found["nside"] == 128
        assert found["bands"] == [[100, 200]]
        assert found["pattern of Q, U at l < 20"]["full sky"] == pytest.approx(1, abs=0.01)
        for name in polarisation.FIELDS:
            sets = found["non-Gaussianity"][name]
            assert sets["modulated Gaussian"]["sigmas"][0] > 0
            assert sets["modulated Gaussian"]["V0"]["sigmas"] is None
        for text in ("reference, nside 64", "arXiv:2502.20452: d9", "goes as I^"):
            assert text in output
        for name in ("zoom", "polarisation", "shapes"):
            assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert not (tmp_path / "taurus.png").exists()

    def test_taurus_goes_in_pairs(self, tmp_path):
        image = tmp_path / "q.fits"
        image.touch()
        result = CliRunner().invoke(
            polarisation.app, [f"--out={tmp_path}", f"--taurus-q={image}"], env={"COLUMNS": "200"}
        )
        assert result.exit_code == 2
        assert "go together" in result.output
