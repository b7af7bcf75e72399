"""Training: patches in, weights and a model card out; resumable, seeded, with early stopping."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np

from pysm_vae.files import atomic_write, writable_folder
from pysm_vae.threads import threads
from pysm_vae.vae.generator import (
    Generator,
    measure_spectra,
    measure_transfer,
    save_weights,
)
from pysm_vae.vae.networks import PatchVAE, build_network
from pysm_vae.vae.patches import (
    PatchSampler,
    PatchSet,
    SkyMap,
    Split,
    concatenate,
    grid_patches,
)

log = logging.getLogger(__name__)

# Packages whose version decides what a training run gives.
PACKAGES = ("pysm_vae", "keras", "tensorflow", "numpy", "scipy", "healpy", "astropy")

# What tells a run from others, in its folder.
_STATE = "run.json"


@dataclass(frozen=True)
class TrainingConfig:
    """What a training run needs to know besides its maps.

    Parameters
    ----------
    architecture : {"octave", "thorne2021"}
        The network.
    network : dict
        Hyperparameters of the network; what is left out takes its default.
    size : int
        Pixels a side of the training patches.
    zoom : float
        Training patches take pixel sizes from each map's own to ``zoom`` times it. Beyond 1 the
        beam is narrower, in pixels, than in the patches that samples are compared with.
    patches : int
        Augmented training patches that are drawn, as many of each environment.
    epochs, batch_size : int
        Passes over these patches at the most, and patches a step.
    learning_rate, beta_1 : float
        Adam's (Kingma & Ba 2015); the rate falls to zero along a half cosine over the epochs.
    kl_warmup : int
        Epochs over which the KL term's weight grows from 0 to 1.
    patience : int
        Epochs without a better ELBO of the validation patches before training stops.
    seed : int
        Seed of patches, initial weights and draws.
    """

    architecture: str = "octave"
    network: dict[str, Any] = field(default_factory=dict)
    size: int = 64
    zoom: float = 1.0
    patches: int = 8000
    epochs: int = 60
    batch_size: int = 16
    learning_rate: float = 1e-3
    beta_1: float = 0.9
    kl_warmup: int = 5
    patience: int = 15
    seed: int = 0


@dataclass(frozen=True)
class TrainingMap:
    """A map, and the pixel size at which patches are cut from it.

    Parameters
    ----------
    sky : SkyMap
        The log-intensity map.
    pixel_size : float
        Arcmin; about half the FWHM of the map's beam keeps what the map resolves.
    path : pathlib.Path
        The file that it came from.
    fwhm : float, optional
        Smoothing that was applied to it, arcmin.
    environment : float
        What it shows, from 0, diffuse sky, to 1, molecular clouds: the network learns to tell them
        apart.
    """

    sky: SkyMap
    pixel_size: float
    path: Path
    fwhm: float | None = None
    environment: float = 0.0


def train(
    maps: Sequence[TrainingMap],
    split: Split,
    out: str | Path,
    config: TrainingConfig,
    *,
    tensorboard: bool = False,
    progress: bool = True,
) -> Path:
    """Train a network and leave ``<architecture>.npz`` and ``<architecture>.json`` in ``out``.

    A run that was killed goes on from its last finished epoch when called again with the same
    arguments; one that has finished is left as it is.

    Parameters
    ----------
    maps : sequence of TrainingMap
        The maps to learn from.
    split : Split
        Which of their regions train, validate and test.
    out : path-like
        Folder of the weights, the card, the history and the checkpoints.
    config : TrainingConfig
        Hyperparameters.
    tensorboard : bool
        Also write TensorBoard logs, to ``out/tensorboard``.
    progress : bool
        Show Keras's progress.

    Returns
    -------
    pathlib.Path
        The card, which :class:`~pysm_vae.vae.generator.Generator` reads.

    Raises
    ------
    ValueError
        If a map or a region of the split gives no patches, a region is in no map or in two parts
        of the split, the epochs end before the KL term has its full weight, or ``out`` holds a run
        with another configuration.
    """
    record = check_run(maps, split, out, config)
    out = writable_folder(out)
    name = config.architecture
    path = out / f"{name}.json"
    state = out / _STATE
    if state.is_file() and path.is_file():
        log.info("%s is the card of a finished run", path)
        return path

    training = training_patches(maps, split.train, config)
    validation = grid_set(maps, split.validation, config.size)
    with atomic_write(state) as partial:
        partial.write_text(json.dumps(record, indent=1))
    log.info("%d training and %d validation patches", len(training), len(validation))
    network = built(config, training)
    _tell_of_one_thread()
    inputs = network_inputs(training, maps)
    best = out / "best.weights.h5"
    past = _past_elbos(out / "history.csv", out / "backup")
    network.fit(
        Batches(inputs, config.batch_size, seed=config.seed, epoch=len(past)),
        validation_data=Batches(network_inputs(validation, maps), config.batch_size),
        epochs=config.epochs,
        callbacks=_callbacks(out, best, config, past, tensorboard),
        # They are in an order of their own.
        shuffle=False,
        verbose="auto" if progress else 0,
    )
    network.load_weights(best)

    digest = save_weights(network, out / f"{name}.npz")
    history = read_history(out / "history.csv")
    compared = history["val_elbo"][config.kl_warmup :]
    card = {
        "name": name,
        "architecture": config.architecture,
        "network": network.get_config(),
        "weights": f"{name}.npz",
        "sha256": digest,
        "size": config.size,
        "pixel_size_arcmin": min(m.pixel_size for m in maps),
        **record,
        "seed": config.seed,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "epoch": config.kl_warmup + 1 + int(np.argmax(compared)),
        "history": history,
        "training_patches": len(training),
        "validation_patches": len(validation),
    }
    generator = Generator(card, out / f"{name}.npz")
    card["spectra"] = measure_spectra(generator)
    # The paper's network is shown as it is, blur and all.
    card["transfer"] = [
        {
            "environment": environment,
            "power": measure_transfer(generator, patches, environment),
        }
        for environment, patches in _by_environment(inputs)
        if generator.conditional
    ]
    # Last, since the card marks a finished run.
    write_card(card, path)
    return path


def _tell_of_one_thread() -> None:
    """Warn where a sky that was drawn before has set the threads of TensorFlow."""
    if keras.backend.backend() != "tensorflow" or threads() == 1:
        return
    import tensorflow as tf

    chosen = os.environ.get("TF_NUM_INTRAOP_THREADS")
    if not chosen and tf.config.threading.get_intra_op_parallelism_threads() == 1:
        log.warning(
            "this process has drawn a sky, for which each operation of TensorFlow has one thread: "
            "training would be faster in a process of its own, or before the first sky"
        )


def check_run(
    maps: Sequence[TrainingMap], split: Split, out: str | Path, config: TrainingConfig
) -> dict[str, Any]:
    """What tells a run from others, once it is known to be fit; nothing is written.

    Raises
    ------
    ValueError
        As :func:`train` would.
    """
    _check(maps, split, config)
    record = {
        "config": asdict(config),
        "split": asdict(split),
        "maps": [describe_map(m) for m in maps],
    }
    # What JSON would read back, so that tuples and lists compare alike.
    record = json.loads(json.dumps(record))
    state = Path(out) / _STATE
    if state.is_file() and json.loads(state.read_text()) != record:
        raise ValueError(
            f"{str(out)!r} holds a run with other maps or settings: "
            "name another folder, or remove this one to start again"
        )
    return record


def network_of(config: TrainingConfig) -> PatchVAE:
    """The network of a run, which has seen nothing yet."""
    fixed = {"size": config.size} if config.architecture == "thorne2021" else {}
    return build_network(config.architecture, **fixed, **config.network, seed=config.seed)


def built(config: TrainingConfig, training: PatchSet) -> PatchVAE:
    """The network of a run, compiled, and adapted to its training patches."""
    keras.utils.set_random_seed(config.seed)
    network = network_of(config)
    if hasattr(network, "adapt"):
        network.adapt(training.patches)
    network.compile(
        optimizer=keras.optimizers.Adam(config.learning_rate, beta_1=config.beta_1, clipnorm=1.0),
        # XLA is several times slower than the plain graph for these convolutions on a CPU.
        jit_compile=False,
    )
    return network


def _check(maps: Sequence[TrainingMap], split: Split, config: TrainingConfig) -> None:
    known = {name for m in maps for name in m.sky.region_names}
    parts = {part: set(names) for part, names in asdict(split).items()}
    unknown = sorted(set().union(*parts.values()) - known)
    if unknown:
        raise ValueError(
            f"no map has the regions {unknown} of the split; there are {sorted(known)}"
        )
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = sorted(parts[one] & parts[other])
        if shared:
            raise ValueError(f"regions {shared} are both in {one} and in {other}: choose one")
    if config.epochs <= config.kl_warmup:
        raise ValueError(
            f"{config.epochs} epochs end before the KL term has its full weight, after "
            f"{config.kl_warmup}: take more epochs or a shorter kl_warmup"
        )


def network_inputs(patches: PatchSet, maps: Sequence[TrainingMap]) -> dict[str, np.ndarray]:
    """What a network takes: ``patches``, (n, size, size), and the ``environment`` of each, (n,)."""
    environment = {m.sky.name: m.environment for m in maps}
    return {
        "patches": patches.patches,
        "environment": np.array([environment[name] for name in patches.source], np.float32),
    }


def _by_environment(inputs: dict[str, np.ndarray]) -> Iterator[tuple[float, np.ndarray]]:
    """Each environment of the training patches, and its patches."""
    for environment in np.unique(inputs["environment"]):
        yield float(environment), inputs["patches"][inputs["environment"] == environment]


def write_card(card: dict[str, Any], path: Path) -> None:
    """Write a model card as JSON."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(card, indent=1) + "\n")


def shares(
    maps: Sequence[TrainingMap], regions: Sequence[str], config: TrainingConfig
) -> list[tuple[TrainingMap, list[str], int]]:
    """Maps with training regions, these regions, and how many patches are cut from them.

    The same number of each environment, and of each map of it.

    Raises
    ------
    ValueError
        If no map has any of the regions.
    """
    used = [(m, [r for r in m.sky.region_names if r in regions]) for m in maps]
    used = [(m, names) for m, names in used if names]
    if not used:
        raise ValueError(f"no map has any of the training regions {tuple(regions)}")
    like = Counter(m.environment for m, _ in used)
    return [
        (m, names, math.ceil(config.patches / len(like) / like[m.environment])) for m, names in used
    ]


def training_patches(
    maps: Sequence[TrainingMap], regions: Sequence[str], config: TrainingConfig
) -> PatchSet:
    """Augmented patches of the training regions, as `shares` has them."""
    rng = np.random.default_rng([config.seed, 1])
    return concatenate(
        [
            PatchSampler(m.sky, config.size, m.pixel_size, regions=names, zoom=config.zoom).draw(
                n, rng
            )
            for m, names, n in shares(maps, regions, config)
        ]
    )


def grid_set(maps: Sequence[TrainingMap], regions: Sequence[str], size: int) -> PatchSet:
    """Patches of the given regions on a fixed grid, as they are: for validation and test."""
    sets = [
        grid_patches(m.sky, size, m.pixel_size, regions=regions)
        for m in maps
        if set(m.sky.region_names) & set(regions)
    ]
    if not sets:
        raise ValueError(f"no map has any of the regions {tuple(regions)}")
    return concatenate(sets)


def describe_map(training_map: TrainingMap) -> dict[str, Any]:
    """Describe a map for the card: its name, the file's hash, resolution and pixel size."""
    return {
        "name": training_map.sky.name,
        "file": training_map.path.name,
        "sha256": hashlib.sha256(training_map.path.read_bytes()).hexdigest(),
        "smoothing_arcmin": training_map.fwhm,
        "pixel_size_arcmin": training_map.pixel_size,
        "environment": training_map.environment,
    }


def read_history(path: Path) -> dict[str, list[float]]:
    """Columns of Keras's CSV log."""
    table = np.genfromtxt(path, delimiter=",", names=True, ndmin=1)
    return {
        name: [float(f"{value:.6g}") for value in table[name]] for name in table.dtype.names or ()
    }


class Batches(keras.utils.PyDataset):
    """Batches of what a network takes, in a new order each epoch.

    Keras makes a ``tf.data`` pipeline of arrays, which tunes itself, and the end of an epoch then
    waits for the tuner to wake: up to a minute. For a dataset with workers it turns the tuner off.

    Parameters
    ----------
    inputs : dict of ndarray
        Of as many patches each, as :func:`network_inputs` gives them.
    size : int
        Patches a batch; the last one may have fewer.
    seed : int, optional
        With the number of the epoch, it decides the order. None: as they come.
    epoch : int
        The first one's number: a run that goes on has the orders of one that was not stopped.
    """

    def __init__(
        self,
        inputs: dict[str, np.ndarray],
        size: int,
        seed: int | None = None,
        epoch: int = 0,
    ) -> None:
        super().__init__(workers=2)
        self._inputs = inputs
        self._size = size
        self._seed = seed
        self._epoch = epoch
        self._order = np.arange(len(next(iter(inputs.values()))))
        self._shuffle()

    def __len__(self) -> int:
        return -(-len(self._order) // self._size)

    def __getitem__(self, number: int) -> tuple[dict[str, np.ndarray]]:
        chosen = self._order[number * self._size : (number + 1) * self._size]
        return ({name: values[chosen] for name, values in self._inputs.items()},)

    def on_epoch_end(self) -> None:
        """Go on to the next epoch's order."""
        self._epoch += 1
        self._shuffle()

    def _shuffle(self) -> None:
        if self._seed is not None:
            key = np.random.SeedSequence((self._seed, 5, self._epoch))
            rng = np.random.Generator(np.random.Philox(key))
            self._order = rng.permutation(len(self._order))


class _KLWarmup(keras.callbacks.Callback):
    """Grow the KL term's weight from 0 to 1, so that the latents are used before they are taxed."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        del logs
        weight = min(1.0, (epoch + 1) / (self.epochs + 1))
        self.model.kl_weight.assign(weight)


def _callbacks(
    out: Path, best: Path, config: TrainingConfig, past: list[float], tensorboard: bool
) -> list[keras.callbacks.Callback]:
    compared = past[config.kl_warmup :]

    def rate(epoch: int) -> float:
        return 0.5 * config.learning_rate * (1.0 + math.cos(math.pi * epoch / config.epochs))

    callbacks = [
        _KLWarmup(config.kl_warmup),
        keras.callbacks.LearningRateScheduler(rate),
        keras.callbacks.CSVLogger(str(out / "history.csv"), append=True),
        # The best is sought by the bound alone: the score of a few prior draws scatters more from
        # epoch to epoch than it improves. And after the warm-up, before which the KL term is cheap.
        _AfterWarmup(
            config.kl_warmup,
            keras.callbacks.ModelCheckpoint(
                str(best),
                monitor="val_elbo",
                mode="max",
                save_best_only=True,
                save_weights_only=True,
                initial_value_threshold=max(compared, default=None),
            ),
        ),
        _EarlyStopping(
            past,
            monitor="val_elbo",
            mode="max",
            patience=config.patience,
            start_from_epoch=config.kl_warmup,
        ),
        keras.callbacks.BackupAndRestore(str(out / "backup"), delete_checkpoint=False),
    ]
    if tensorboard:
        callbacks.append(keras.callbacks.TensorBoard(str(out / "tensorboard")))
    return callbacks


def _past_elbos(history: Path, backup: Path) -> list[float]:
    """Validation ELBOs of the epochs that the backup holds; later ones leave the history."""
    metadata = backup / "training_metadata.json"
    epochs = json.loads(metadata.read_text())["epoch"] if metadata.is_file() else 0
    if not history.is_file():
        return []
    if not epochs:
        history.unlink()
        return []
    # The run may have been killed between an epoch's line and its backup.
    lines = history.read_text().splitlines(keepends=True)[: 1 + epochs]
    with atomic_write(history) as partial:
        partial.write_text("".join(lines))
    return read_history(history)["val_elbo"]


class _EarlyStopping(keras.callbacks.EarlyStopping):
    """Early stopping whose patience has already seen the epochs before the run was resumed."""

    def __init__(self, past: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.past = past

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        for epoch, elbo in enumerate(self.past):
            self.on_epoch_end(epoch, {self.monitor: elbo})


class _AfterWarmup(keras.callbacks.Callback):
    """Pass the ends of epochs on to another callback once the KL weight is 1."""

    def __init__(self, epochs: int, callback: keras.callbacks.Callback) -> None:
        super().__init__()
        self.epochs = epochs
        self.callback = callback

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self.callback.set_model(model)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if epoch >= self.epochs:
            self.callback.on_epoch_end(epoch, logs)
