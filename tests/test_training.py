"""Training: what it draws from, how it goes on after a kill, and what it leaves behind."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from synthetic import NETWORK, SIZE, make_map

from pysm_vae.estimate import estimate_training
from pysm_vae.vae import training
from pysm_vae.vae.generator import load_generator
from pysm_vae.vae.patches import Split, tangent_grid
from pysm_vae.vae.training import (
    Batches,
    TrainingConfig,
    grid_set,
    network_inputs,
    train,
    training_patches,
)

CONFIG = TrainingConfig(
    network=NETWORK,
    size=SIZE,
    patches=48,
    epochs=4,
    batch_size=16,
    learning_rate=3e-3,
    kl_warmup=1,
    patience=9,
    seed=5,
)
# For what is not about the network: its graph is a third of the other's.
ELBO_ALONE = replace(CONFIG, network={**NETWORK, "score_weight": 0.0, "critic_weight": 0.0})
SPLIT = Split(train=("one:0", "two:0"), validation=("one:1",), test=("two:1",))


@pytest.fixture(scope="module", autouse=True)
def _one_chart():
    """Spectra are measured on the smallest chart alone: the others take longer than training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pysm_vae.vae.generator.SPECTRA_DEPTHS", (3,))
        yield


@pytest.fixture(scope="module")
def maps(tmp_path_factory) -> list[training.TrainingMap]:
    folder = tmp_path_factory.mktemp("maps")
    return [make_map(folder, "one", 1), make_map(folder, "two", 2, lon=250)]


@pytest.fixture(scope="module")
def finished(maps, tmp_path_factory) -> SimpleNamespace:
    """A run to its end, and the patches that it looked at."""
    seen = {}

    def spy(name):
        original = getattr(training, name)

        def call(given, regions, *args):
            seen[name] = original(given, regions, *args)
            return seen[name]

        return call

    out = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("training_patches", "grid_set"):
            patch.setattr(training, name, spy(name))
        card = train(maps, SPLIT, out, CONFIG, progress=False)
    return SimpleNamespace(out=out, path=card, card=json.loads(card.read_text()), seen=seen)


class KilledError(Exception):
    pass


def epochs_run(monkeypatch, kill_after: int | None = None) -> list[int]:
    """Record the epochs that the next run starts; end it after one of them, ahead of its backup."""
    started: list[int] = []
    files: list[keras.callbacks.CSVLogger] = []
    original = training._callbacks

    class Record(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            started.append(epoch)

        def on_epoch_end(self, epoch, logs=None):
            if epoch == kill_after:
                # The system closes the files of a killed process.
                files[0].csv_file.close()
                raise KilledError

    def callbacks(*args):
        *others, backup = original(*args)
        (record,) = (c for c in others if isinstance(c, keras.callbacks.CSVLogger))
        files.append(record)
        return [*others, Record(), backup]

    monkeypatch.setattr(training, "_callbacks", callbacks)
    return started


def test_loss_falls(finished):
    history = finished.card["history"]
    assert history["epoch"] == [0, 1, 2, 3]
    assert history["loss"][-1] < 0.95 * history["loss"][0]
    assert history["val_loss"][-1] < history["val_loss"][0]


def test_only_training_regions_are_trained_on(finished, maps):
    drawn, validation = finished.seen["training_patches"], finished.seen["grid_set"]
    assert len(drawn) == 48
    assert set(drawn.region) == set(SPLIT.train)
    assert set(validation.region) == set(SPLIT.validation)
    skies = {m.sky.name: m.sky for m in maps}
    for i in range(len(drawn)):
        sky = skies[drawn.source[i]]
        where = tangent_grid(drawn.lon[i], drawn.lat[i], SIZE, drawn.pixel_size[i], drawn.angle[i])
        assert set(sky.region(*where).ravel()) == {0}, i


def test_maps_share_the_patches(maps):
    drawn = training_patches(maps, SPLIT.train, CONFIG)
    assert list(np.unique(drawn.source, return_counts=True)[1]) == [24, 24]
    again = training_patches(maps, SPLIT.train, CONFIG)
    np.testing.assert_array_equal(drawn.patches, again.patches)
    other = training_patches(maps, SPLIT.train, replace(CONFIG, seed=6))
    assert not np.array_equal(drawn.patches, other.patches)


def test_card_says_what_was_done(finished, maps):
    card = finished.card
    assert card["config"] == asdict(CONFIG)
    assert card["split"] == json.loads(json.dumps(asdict(SPLIT)))
    assert [m["name"] for m in card["maps"]] == ["one", "two"]
    assert [m["file"] for m in card["maps"]] == ["one.fits", "two.fits"]
    assert {len(m["sha256"]) for m in card["maps"]} == {64}
    assert str(maps[0].path.parent) not in finished.path.read_text()
    assert (card["seed"], card["training_patches"]) == (5, 48)
    assert card["validation_patches"] == len(grid_set(maps, SPLIT.validation, SIZE)) > 5
    assert set(training.PACKAGES) < set(card["versions"])
    assert card["size"] == SIZE
    assert card["pixel_size_arcmin"] == 10
    (spectrum,) = card["spectra"]
    assert spectrum["depth"] == 3
    # To the Nyquist frequency of eight pixels a cell.
    assert 3.6 < max(spectrum["cycles"]) <= 4
    assert len(spectrum["power"]) == len(spectrum["cycles"])
    assert min(spectrum["power"]) > 0


def test_card_loads(finished):
    for name in (finished.path, finished.out):
        generator = load_generator(name)
        assert generator.sha256 == finished.card["sha256"]
        assert generator.sample(2).shape == (2, SIZE, SIZE)


def test_batches_have_every_patch_once_an_epoch_in_new_orders():
    inputs = {"patches": np.arange(10.0)[:, None, None], "environment": np.arange(10.0)}

    def epoch(batches: Batches) -> np.ndarray:
        assert len(batches) == 3
        found = [batches[number][0] for number in range(len(batches))]
        assert [len(batch["environment"]) for batch in found] == [4, 4, 2]
        for batch in found:
            np.testing.assert_array_equal(batch["patches"][:, 0, 0], batch["environment"])
        return np.concatenate([batch["environment"] for batch in found])

    shuffled = Batches(inputs, 4, seed=3)
    first = epoch(shuffled)
    shuffled.on_epoch_end()
    second = epoch(shuffled)
    for order in (first, second):
        assert sorted(order) == list(range(10))
        assert list(order) != list(range(10))
    assert list(first) != list(second)
    assert list(epoch(Batches(inputs, 4, seed=3))) == list(first)
    assert list(epoch(Batches(inputs, 4, seed=3, epoch=1))) == list(second)
    assert list(epoch(Batches(inputs, 4))) == list(range(10))


def test_best_epoch_is_shipped(finished, maps):
    """The weights give the validation ELBO of the best epoch after the warm-up."""
    history = finished.card["history"]
    network = load_generator(finished.path).network
    network.compile(optimizer="adam", jit_compile=False)
    validation = network_inputs(grid_set(maps, SPLIT.validation, SIZE), maps)
    # In the batches of the training, over which means are taken. The bound is that of random draws,
    # and the history has one of them.
    options = {"batch_size": CONFIG.batch_size, "verbose": 0, "return_dict": True}
    found = [network.evaluate(validation, **options)["elbo"] for _ in range(16)]
    best = history["val_elbo"][finished.card["epoch"] - 1]
    assert best == max(history["val_elbo"][1:])
    assert abs(np.mean(found) - best) < 3 * np.std(found)
    assert np.std(found) < 0.02 * abs(best)


def test_same_seed_same_training(finished, maps, tmp_path):
    """To rounding: in one of some fifty runs TensorFlow's threads add up in another order."""
    path = train(maps, SPLIT, tmp_path, CONFIG, progress=False)
    again = json.loads(path.read_text())["history"]
    for name, values in finished.card["history"].items():
        np.testing.assert_allclose(again[name], values, rtol=1e-3, err_msg=name)
    samples = [load_generator(each).sample(8, seed=1) for each in (finished.path, path)]
    np.testing.assert_allclose(*samples, atol=0.02)
    assert np.std(samples) > 0.5


def test_history_has_the_bound(finished):
    """Early stopping and the best checkpoint follow val_elbo."""
    # Of the last epoch, where the warm-up of the KL term is over.
    last = {name: values[-1] for name, values in finished.card["history"].items()}
    for prefix in ("", "val_"):
        elbo = last[f"{prefix}likelihood"] - last[f"{prefix}kl"]
        np.testing.assert_allclose(last[f"{prefix}elbo"], elbo, rtol=1e-4)
        expected = last[f"{prefix}score"] - elbo
        # The rivalry with the critic trains the network, and does not judge it.
        expected += 0 if prefix else last["rivalry"]
        np.testing.assert_allclose(last[f"{prefix}loss"], expected, rtol=1e-4)


def test_finished_run_is_left_as_it_is(finished, maps, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in finished.out.glob("octave.*")}
    started = epochs_run(monkeypatch)
    assert train(maps, SPLIT, finished.out, CONFIG, progress=False) == finished.path
    assert started == []
    assert {path: path.stat().st_mtime_ns for path in finished.out.glob("octave.*")} == before


def test_other_run_in_the_folder(finished, maps):
    for other in (replace(CONFIG, seed=6), replace(CONFIG, network={})):
        for do in (train, estimate_training):
            with pytest.raises(ValueError, match="another folder"):
                do(maps, SPLIT, finished.out, other)


def test_dry_run(finished, maps, tmp_path):
    """It says what the run has made, and leaves nothing."""
    found = estimate_training(maps, SPLIT, tmp_path / "run", replace(CONFIG, patches=1001))
    assert not (tmp_path / "run").exists()
    # Each map gives as many.
    assert found.training == 1002
    assert found.validation == finished.card["validation_patches"]
    made = sum(file.stat().st_size for file in finished.out.rglob("*") if file.is_file())
    assert 0.5 * made < found.disk < 2 * made
    assert found.seconds == found.start + CONFIG.epochs * found.epoch + found.end
    # 63 steps, and some of validation, of the 4 ms at the least that a step takes.
    assert found.epoch > 63 * 0.004
    assert found.memory > 4 * 4 * SIZE**2 * 1002
    text = found.text()
    for part in ("1002 to train on", "at most 4 of them", "memory: ", "disk: ", "how: cut 64"):
        assert part in text


def test_resumes_after_a_kill(maps, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        started = epochs_run(patch, kill_after=1)
        with pytest.raises(KilledError):
            train(maps, SPLIT, tmp_path, ELBO_ALONE, progress=False)
        assert started == [0, 1]
    assert not (tmp_path / "octave.json").exists()
    # Killed after the second epoch's line and before its backup.
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert len(lines) == 3
    started = epochs_run(monkeypatch)
    card = json.loads(train(maps, SPLIT, tmp_path, ELBO_ALONE, progress=False).read_text())
    assert started == [1, 2, 3]
    assert card["history"]["epoch"] == [0, 1, 2, 3]
    rows = (tmp_path / "history.csv").read_text().splitlines()
    assert rows[:2] == lines[:2]
    assert [row.split(",")[0] for row in rows] == ["epoch", "0", "1", "2", "3"]


def test_killed_in_the_first_epoch_starts_anew(maps, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        epochs_run(patch, kill_after=0)
        with pytest.raises(KilledError):
            train(maps, SPLIT, tmp_path, ELBO_ALONE, progress=False)
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 2
    assert training._past_elbos(tmp_path / "history.csv", tmp_path / "backup") == []
    assert not (tmp_path / "history.csv").exists()


def test_resumed_run_remembers_its_best_and_its_patience(tmp_path):
    """ELBOs -5, -1, -2, -3 behind it: the next must beat -1, and patience 3 ends with it."""
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / "training_metadata.json").write_text('{"epoch": 4, "batch": 0}')
    rows = "".join(f"{i},{elbo}\n" for i, elbo in enumerate([-5, -1, -2, -3, -0.5]))
    (tmp_path / "history.csv").write_text(f"epoch,val_elbo\n{rows}")
    config = replace(CONFIG, kl_warmup=1, patience=3)
    past = training._past_elbos(tmp_path / "history.csv", tmp_path / "backup")
    assert past == [-5, -1, -2, -3]
    callbacks = training._callbacks(tmp_path, tmp_path / "best.weights.h5", config, past, False)
    (checkpoint,) = (c.callback for c in callbacks if isinstance(c, training._AfterWarmup))
    assert checkpoint.best == -1
    (stopping,) = (c for c in callbacks if isinstance(c, keras.callbacks.EarlyStopping))
    stopping.set_model(SimpleNamespace(stop_training=False))
    stopping.on_train_begin()
    assert (stopping.best, stopping.wait, stopping.model.stop_training) == (-1, 2, False)
    stopping.on_epoch_end(4, {"val_elbo": -1.5})
    assert stopping.model.stop_training


def test_early_stopping_ends_a_run(maps, tmp_path):
    """With a rate of zero nothing improves but by chance of the draws."""
    still = {"learning_rate": 1e-12, "patience": 2, "kl_warmup": 0, "patches": 16}
    config = replace(ELBO_ALONE, epochs=40, **still)
    card = json.loads(train(maps, SPLIT, tmp_path, config, progress=False).read_text())
    elbos = card["history"]["val_elbo"]
    assert len(elbos) < 40
    assert len(elbos) - 1 - int(np.argmax(elbos)) == 2


def test_kl_warmup():
    weights = []
    callback = training._KLWarmup(3)
    callback.set_model(SimpleNamespace(kl_weight=SimpleNamespace(assign=weights.append)))
    for epoch in range(6):
        callback.on_epoch_begin(epoch)
    assert weights == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_learning_rate_falls_along_half_a_cosine(finished):
    rates = 0.5 * 3e-3 * (1 + np.cos(np.pi * np.arange(4) / 4))
    np.testing.assert_allclose(finished.card["history"]["learning_rate"], rates, rtol=1e-5)


def test_thorne2021_trains_twice_in_a_process(maps, tmp_path):
    """Its layers have the same names in every network of a process, by which weights are read."""
    config = replace(
        CONFIG, architecture="thorne2021", network={"latents": 4}, epochs=1, kl_warmup=0, patches=16
    )
    for number in (1, 2):
        out = tmp_path / str(number)
        path = train(maps, SPLIT, out, config, progress=False)
        assert load_generator(out).sample(2).shape == (2, SIZE, SIZE)
    card = json.loads(path.read_text())
    (spectrum,) = card["spectra"]
    # Sixteen pixels a cell: half a cycle a pixel.
    assert spectrum["depth"] == 4
    assert 7 < max(spectrum["cycles"]) <= 8
    assert min(spectrum["power"]) > 0


@pytest.mark.parametrize(
    ("split", "config", "message"),
    [
        (replace(SPLIT, test=("three:1",)), CONFIG, "no map has the regions .'three:1'."),
        (replace(SPLIT, test=("two:0",)), CONFIG, "both in train and in test"),
        (replace(SPLIT, validation=("one:0",)), CONFIG, "both in train and in validation"),
        (SPLIT, replace(CONFIG, kl_warmup=4), "shorter kl_warmup"),
        (SPLIT, replace(CONFIG, size=100), "no complete patch"),
        (SPLIT, replace(CONFIG, architecture="gan"), "unknown architecture"),
    ],
)
def test_bad_input_leaves_nothing_that_is_in_the_way(maps, tmp_path, split, config, message):
    with pytest.raises(ValueError, match=message):
        train(maps, split, tmp_path, config, progress=False)
    assert not list(Path(tmp_path).glob("*.json")) or config.architecture == "gan"


def test_no_region_at_all(maps):
    with pytest.raises(ValueError, match="training regions"):
        training_patches(maps, ("three:0",), CONFIG)
    with pytest.raises(ValueError, match="no map has any"):
        grid_set(maps, ("three:0",), SIZE)


def test_environments_share_the_patches(tmp_path):
    """As many patches of each environment, and each patch has that of its map."""
    made = [make_map(tmp_path, f"m{i}", i, lon=40.0 * i, lat=30.0) for i in range(3)]
    mixed = [made[0], replace(made[1], environment=1.0), replace(made[2], environment=1.0)]
    regions = [m.sky.region_names[0] for m in mixed]
    drawn = training_patches(mixed, regions, replace(CONFIG, patches=40))
    assert [int((drawn.source == m.sky.name).sum()) for m in mixed] == [20, 10, 10]
    given = network_inputs(drawn, mixed)
    np.testing.assert_array_equal(given["environment"], drawn.source != "m0")
    np.testing.assert_array_equal(given["patches"], drawn.patches)


@pytest.mark.parametrize("number", [1, 0, 4])
def test_training_after_a_sky_says_that_it_is_slow(number, monkeypatch, caplog):
    """A sky leaves TensorFlow's operations with one thread each."""
    import tensorflow as tf

    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    threading = tf.config.threading
    monkeypatch.setattr(threading, "get_intra_op_parallelism_threads", lambda: number)
    training._tell_of_one_thread()
    assert ("before the first sky" in caplog.text) == (number == 1)
    # Not where it was asked for.
    caplog.clear()
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    training._tell_of_one_thread()
    assert not caplog.text
