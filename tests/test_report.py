"""The report: a good generator must come out well in it, and a bad one badly."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from scipy import ndimage
from synthetic import SIZE, field, make_card, make_generator, make_map

from pysm_vae.stats import report
from pysm_vae.stats.compare import DISTANCES
from pysm_vae.stats.report import evaluate, evaluate_to_folder, figures_for_card
from pysm_vae.vae.cards import write_readable_card
from pysm_vae.vae.patches import PatchSampler, Split, grid_patches
from pysm_vae.vae.training import TrainingConfig, train

HELD = ("one:1",)


class Fake:
    """A generator that hands out given patches."""

    name, sha256, size, conditional = "fake", "0" * 64, SIZE, False

    def __init__(self, patches: np.ndarray, size: int = SIZE) -> None:
        self.patches, self.size = patches, size

    def sample(self, n: int, size: int | None = None, seed: int = 0) -> np.ndarray:
        return self.patches[:n]


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    return [
        make_map(folder, "one", 1),
        make_map(folder, "two", 2, lon=250),
        make_map(folder, "three", 3, lon=10),
    ]


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    return make_generator(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def evaluation(generator, maps):
    return evaluate(generator, maps, ("one:1", "two:0"), n=24)


def fresh_sky(tmp_path, n: int = 64) -> np.ndarray:
    """Patches of another sky with the same statistics."""
    other = make_map(tmp_path, "four", 44, pixels=320)
    return PatchSampler(other.sky, SIZE, 10.0).draw(n, np.random.default_rng(0)).patches


def test_bad_generators_come_out_badly(maps, tmp_path, rng):
    good = fresh_sky(tmp_path)

    def judge(patches: np.ndarray):
        (comparison,) = evaluate(Fake(patches), maps, HELD, n=64).comparisons
        return comparison, comparison.yardsticks("samples")

    comparison, right = judge(good)
    # Another sky of the same kind is as far from the held-out one as real regions are.
    assert max(right.values()) < 3
    assert np.median(list(right.values())) < 1.4
    ratio = comparison.spectrum_ratio(comparison.candidates["samples"])["median"]
    assert 0.4 < ratio.min() < ratio.max() < 2.5

    comparison, blurred = judge(ndimage.gaussian_filter(good, (0, 1.5, 1.5)))
    assert blurred["spectrum"] > 3 * right["spectrum"]
    assert blurred["spectrum"] > 1.5
    # What is left of the finest bin is mostly what the taper of so small a patch leaks into it.
    blur = comparison.spectrum_ratio(comparison.candidates["samples"])["median"] / ratio
    assert blur[-1] < 0.5
    assert blur[-1] < 0.6 * blur[0]

    _, noise = judge(rng.standard_normal(good.shape))
    assert noise["spectrum"] > 3 * right["spectrum"]
    assert noise["minkowski_v1"] > 3


def test_yardsticks_are_ratios_of_distances(evaluation):
    for comparison in evaluation.comparisons:
        real = comparison.real_distances()
        for candidate in comparison.candidates:
            ours, ratios = comparison.distances(candidate), comparison.yardsticks(candidate)
            assert tuple(ratios) == DISTANCES
            for name, ratio in ratios.items():
                unit = np.median([entry[name] for entry in real.values()])
                assert ratio == pytest.approx(ours[name] / unit)


def test_held_out_and_references(evaluation, maps):
    one, two = evaluation.comparisons
    assert (one.name, one.regions) == ("one", ("one:1",))
    assert (two.name, two.regions) == ("two", ("two:0",))
    for comparison in evaluation.comparisons:
        assert set(comparison.real) == {"one:0", "two:1", "three:0", "three:1"}
        assert set(comparison.candidates) == {"samples", "conditional", "modulated_gaussian"}
        assert len(comparison.candidates["samples"]) == 24
    expected = grid_patches(maps[0].sky, SIZE, 10.0, regions=HELD)
    assert len(one.held_out) == len(expected)
    np.testing.assert_allclose(one.spectrum_ratio(one.held_out)["median"], 1)
    # The lowest bin has one cycle a patch; the highest ends at half the Nyquist frequency.
    assert one.cycles()[0] >= 1
    assert one.cycles()[-1] <= SIZE / 4
    # Octaves of wavelength that end at 3 pixels.
    waves = 2 * np.pi / (one.held_out.bands * np.radians(10 / 60))
    np.testing.assert_allclose(waves, [[12, 6], [6, 3]], rtol=1e-5)


def test_controls_know_their_patches(generator, maps):
    held = grid_patches(maps[0].sky, SIZE, 10.0, regions=HELD).patches
    drawn = report._conditional(generator, held, 2 * len(held), seed=0)
    assert len(drawn) == 2 * len(held)

    def coarse(patches):
        means = patches.reshape(-1, 4, 4, 4, 4).mean(axis=(2, 4)).reshape(-1, 16)
        means = means - means.mean(axis=1, keepdims=True)
        return means / means.std(axis=1, keepdims=True)

    # The block means are those of each patch, but for a scale; the rest differs from draw to draw.
    np.testing.assert_allclose(coarse(drawn), np.repeat(coarse(held), 2, axis=0), atol=1e-4)
    assert np.std(drawn[0] - drawn[1]) > 0.01
    control = report._control(held, 10.0, len(held), np.random.default_rng(0))
    power = [np.abs(np.fft.rfft2(np.diff(p, axis=1))).mean() for p in (control, held)]
    assert power[0] == pytest.approx(power[1], rel=0.15)


def test_patches_on_held_out_sky_are_no_reference(generator, maps, tmp_path):
    """A second map of the held-out sky is not another region of it."""
    twin = make_map(tmp_path, "twin", 9)
    (comparison,) = evaluate(generator, [*maps[:2], twin], HELD, n=4).comparisons
    assert set(comparison.real) == {"one:0", "two:0", "two:1", "twin:0"}
    result = evaluate(generator, [*maps[:2], twin], HELD, n=4)
    assert any("twin:1 left out" in note for note in result.notes)
    named = evaluate(generator, [*maps[:2], twin], HELD, real_regions=["two:1"], n=4)
    assert set(named.comparisons[0].real) == {"two:1"}
    # Another scale is no reference either, unless it is asked for.
    coarse = replace(maps[1], pixel_size=20.0)
    (comparison,) = evaluate(generator, [maps[0], coarse], HELD, n=4).comparisons
    assert set(comparison.real) == {"one:0"}


def test_thorne2021_is_shown_where_it_fits(generator, maps, rng):
    patches = np.stack([field(rng, SIZE) for _ in range(8)])
    fitting = evaluate(generator, maps, HELD, n=8, thorne2021=Fake(patches))
    assert "thorne2021" in fitting.comparisons[0].candidates
    other = evaluate(generator, maps, HELD, n=8, thorne2021=Fake(patches, size=32))
    assert "thorne2021" not in other.comparisons[0].candidates
    assert other.notes == ("thorne2021 left out: its patches have 32 pixels a side, not 16",)


def test_same_seed_same_figures(generator, maps, evaluation):
    again = evaluate(generator, maps, ("one:1", "two:0"), n=24)
    assert again.to_json() == evaluation.to_json()
    other = evaluate(generator, maps, ("one:1", "two:0"), n=24, seed=1)
    assert other.to_json()["comparisons"] != evaluation.to_json()["comparisons"]


def test_figures_for_card(evaluation):
    figures = figures_for_card(evaluation)
    assert json.loads(json.dumps(figures)) == figures
    expected = np.median([c.yardsticks("samples")["spectrum"] for c in evaluation.comparisons])
    assert figures["yardsticks"]["samples"]["spectrum"] == pytest.approx(expected, rel=5e-3)
    assert figures["wavelengths_pixels"] == [[12, 6], [6, 3]]
    # The kurtosis itself, not the arcsinh that its distance takes.
    medians = [np.median(c.held_out.kurtosis, axis=0) for c in evaluation.comparisons]
    np.testing.assert_allclose(
        figures["kurtosis"]["held_out"], np.median(medians, axis=0), rtol=5e-3
    )

    def numbers(value) -> int:
        if isinstance(value, dict | list):
            return sum(map(numbers, value.values() if isinstance(value, dict) else value))
        return isinstance(value, float)

    assert 20 < numbers(figures) <= 50


def test_table(evaluation):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(evaluation.table())
    text = console.export_text()
    for word in (*DISTANCES, "one:1", "two:0", "modulated Gaussian", "excess kurtosis"):
        assert word in text
    first = evaluation.comparisons[0]
    assert f"{first.yardsticks('conditional')['scattering']:.2f}" in text
    assert f"{np.median(first.held_out.kurtosis[:, 1]):.2f}" in text


def test_folder(maps, tmp_path, monkeypatch):
    card = make_card(tmp_path)
    out = tmp_path / "out"
    monkeypatch.setattr(report, "load_generator", absent_thorne(report.load_generator))
    result = evaluate_to_folder(card, maps, HELD, out, n=8)
    assert sorted(path.name for path in out.iterdir()) == ["evaluation.json", "evaluation.png"]
    assert (out / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    read = json.loads((out / "evaluation.json").read_text())
    assert read == result.to_json()
    assert read["notes"] == ["thorne2021 left out: no such weights are shipped"]
    (comparison,) = read["comparisons"]
    assert comparison["yardsticks"]["samples"] == result.comparisons[0].yardsticks("samples")
    assert comparison["patches"]["conditional"] >= 8
    assert set(comparison["spectrum_ratio"]["samples"]) == {"p16", "median", "p84"}
    assert len(comparison["statistics"]["samples"]["kurtosis"]["median"]) == 2
    with pytest.raises(FileNotFoundError, match="no weights 'nowhere'"):
        evaluate_to_folder(card, maps, HELD, out, n=8, thorne2021="nowhere")


def absent_thorne(original):
    def load(weights):
        if weights == "thorne2021":
            raise FileNotFoundError(weights)
        return original(weights)

    return load


@pytest.mark.parametrize(
    ("regions", "options", "message"),
    [
        (("none:1",), {}, r"\['none:1'\] are in none of the maps"),
        ((), {}, "in none of the maps"),
        (HELD, {"real_regions": ["no"]}, "in none of the maps"),
        (HELD, {"real_regions": HELD}, "cannot be references as well"),
        (HELD, {"n": 1}, "at least two samples"),
        (HELD, {"size": 400}, "no complete patch"),
        (("one:0", "one:1"), {"maps": 1}, "no real region is left"),
    ],
)
def test_bad_input(generator, maps, regions, options, message):
    given = maps[: options.pop("maps", 3)]
    with pytest.raises(ValueError, match=message):
        evaluate(generator, given, regions, **{"n": 4} | options)


def test_readable_card(maps, evaluation, tmp_path, monkeypatch):
    monkeypatch.setattr("pysm_vae.vae.generator.CHART_DEPTHS", (3,))
    config = TrainingConfig(
        network={"octaves": 2, "channels": 8, "encoder_channels": 8, "latents": 2},
        size=SIZE,
        patches=16,
        epochs=3,
        kl_warmup=1,
    )
    split = Split(("one:0",), ("two:0",), ("one:1",))
    card = json.loads(train(maps[:2], split, tmp_path, config, progress=False).read_text())
    card["maps"][0]["file"] = "planck_chamaeleon.fits"
    page = tmp_path / "octave.md"
    write_readable_card(card, page)
    assert "Held-out sky" not in page.read_text()
    card["held_out"] = figures_for_card(evaluation)
    write_readable_card(card, page)
    text = page.read_text()
    for word in (
        card["sha256"],
        card["maps"][1]["sha256"][:16],
        "constantauclair/CompSepDustCMB",
        "`two.fits`: not recorded",
        "one:1",
        f"keras {card['versions']['keras']}",
        "learning_rate",
        "Where it should not be trusted",
    ):
        assert word in text, word
    assert str(tmp_path) not in text
    losses = card["history"]["val_loss"]
    best = 1 + int(np.argmin(losses[1:]))
    assert f"kept (epoch {card['epoch']})" in text
    row = " | ".join(f"{losses[i]:.4g}" for i in (0, best, 2))
    assert f"| val_loss | {row} |" in text
    expected = card["held_out"]["yardsticks"]["modulated_gaussian"]["minkowski_v1"]
    line = next(line for line in text.splitlines() if line.startswith("| minkowski_v1 |"))
    assert f"{expected:g}" in line
    del card["history"]
    with pytest.raises(ValueError, match="no 'history'"):
        write_readable_card(card, page)
    assert page.read_text() == text


@pytest.mark.parametrize("size", [64])
def test_real_sky(shared_data, size):
    """The shipped network on the half of Chamaeleon that tested it: closer than the control."""
    from pysm_vae.vae.generator import load_generator
    from pysm_vae.vae.patches import read_map
    from pysm_vae.vae.training import TrainingMap

    maps = []
    for name, pixel, fwhm in (("planck_taurus_lognh", 3.2, 4.0), ("planck_chamaeleon", 2.5, None)):
        path = shared_data / f"{name}.fits"
        log = "log10" if "lognh" in name else None
        maps.append(TrainingMap(read_map(path, fwhm=fwhm, log=log), pixel, path, fwhm))
    result = evaluate(load_generator(), maps, ["planck_chamaeleon:1"], n=96, size=size)
    (comparison,) = result.comparisons
    ours, control = (comparison.yardsticks(c) for c in ("samples", "modulated_gaussian"))
    for name in ("kurtosis", "minkowski_v0", "skewness"):
        assert ours[name] < 1.3
        assert control[name] > 1.5
        assert ours[name] < 0.6 * control[name]
    # The control has the spectrum: there it must win.
    assert control["spectrum"] < 0.5
