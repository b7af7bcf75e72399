"""The GAN that the VAE was chosen over: its samples, and what its training cost and how it went.

``python benchmarks/dcgan.py --help``; benchmarks/README.md tells what comes out.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from common import (
    Fold,
    Folds,
    Judging,
    Maps,
    Out,
    Samples,
    Spacing,
    TwoSample,
    console,
    digest,
    finished_or_same,
    fold_split,
    judged_regions,
    kept_evaluation,
    parse_folds,
    read_maps,
    thorne2021_of,
    write_figure,
    write_json,
)
from rich.table import Table

from pysm_vae.cli.learning import MinLatitude, training_config
from pysm_vae.files import atomic_write, writable_folder
from pysm_vae.stats.spectra import ell_bins, flat_spectrum, fundamental, nyquist, standardise
from pysm_vae.vae.generator import BATCH, Generator, load_generator, plain_graph

if TYPE_CHECKING:
    import keras

    from pysm_vae.stats.report import Evaluation
    from pysm_vae.vae.training import TrainingMap

app = typer.Typer(pretty_exceptions_enable=False)

# Sides of the first and last feature maps of the two networks (Radford et al. 2016, figure 1).
_START = 4
# Of what a step logs, in this order.
_LOGGED = ("discriminator_loss", "generator_loss", "accuracy")
# The discriminator has won a step if it tells more of its patches from each other than this.
_WON = 0.95
# Samples at a checkpoint, always of the same latents.
_PROBED = 128


@dataclass(frozen=True)
class GanConfig:
    """What a training run of the DCGAN needs to know besides its patches.

    Parameters
    ----------
    size : int
        Pixels a side, 4 times a power of two.
    steps : int
        Training steps, each one update of the discriminator and one of the generator.
    batch_size : int
        Patches a step.
    latents : int
        Length of the latent vector (Radford et al. 2016: 100).
    width : int
        Filters of the discriminator's first convolution; they double from layer to layer, up to
        four times as many. The generator mirrors it.
    learning_rate, beta_1 : float
        Adam's, of both networks (Radford et al. 2016, section 4).
    checkpoints : int
        Times that samples are measured and the state is kept, the last one at the end.
    seed : int
        Of weights, batches and latents.
    """

    size: int = 64
    steps: int = 2500
    batch_size: int = 16
    latents: int = 100
    width: int = 32
    learning_rate: float = 2e-4
    beta_1: float = 0.5
    checkpoints: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 2 * _START or math.log2(self.size / _START) % 1:
            raise ValueError(
                f"the DCGAN makes patches of {2 * _START}, {4 * _START}, {8 * _START}, … pixels a "
                f"side, not {self.size}"
            )
        if not 1 <= self.checkpoints <= self.steps:
            raise ValueError(f"{self.checkpoints} checkpoints do not fit into {self.steps} steps")

    @property
    def marks(self) -> list[int]:
        """Steps after which samples are measured."""
        return np.linspace(0, self.steps, self.checkpoints + 1).astype(int)[1:].tolist()


class Gan:
    """A DCGAN (Radford, Metz & Chintala 2016, arXiv:1511.06434) and its training step.

    Strided convolutions in place of pooling, batch norm in both networks but for the generator's
    output and the discriminator's input, ReLU in the generator, LeakyReLU (0.2) in the
    discriminator, weights from N(0, 0.02²), and the non-saturating loss of Goodfellow et al. (2014,
    section 3). It differs from the paper where the data do: the output is linear, since
    standardised log-intensity has no bounds for a tanh; latents are normal, kernels have 4 pixels
    (a multiple of the stride, against checkerboards), and the widths are modest.

    Parameters
    ----------
    config : GanConfig
        Hyperparameters.
    """

    def __init__(self, config: GanConfig) -> None:
        import keras

        self.config = config
        stages = round(math.log2(config.size / _START))
        widths = [config.width * 2 ** min(i, 2) for i in range(stages)]
        seeds = iter(np.random.SeedSequence(config.seed).generate_state(4 * stages + 8).tolist())

        def options() -> dict[str, Any]:
            start = keras.initializers.RandomNormal(stddev=0.02, seed=next(seeds))
            return {"kernel_initializer": start}

        def convolution(kind: type[keras.layers.Layer], filters: int) -> keras.layers.Layer:
            return kind(filters, 4, strides=2, padding="same", **options())

        layers = keras.layers
        stack: list[keras.layers.Layer] = [
            keras.Input((config.latents,)),
            layers.Dense(_START**2 * widths[-1], use_bias=False, **options()),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.Reshape((_START, _START, widths[-1])),
        ]
        for filters in widths[-2::-1]:
            stack += [
                convolution(layers.Conv2DTranspose, filters),
                layers.BatchNormalization(momentum=0.9),
                layers.ReLU(),
            ]
        stack.append(convolution(layers.Conv2DTranspose, 1))
        self.generator = keras.Sequential(stack, name="generator")

        stack = [keras.Input((config.size, config.size, 1))]
        for i, filters in enumerate(widths):
            stack.append(convolution(layers.Conv2D, filters))
            if i:
                stack.append(layers.BatchNormalization(momentum=0.9))
            stack.append(layers.LeakyReLU(negative_slope=0.2))
        stack += [layers.Flatten(), layers.Dense(1, **options())]
        self.discriminator = keras.Sequential(stack, name="discriminator")

        self.networks = (self.discriminator, self.generator)
        self.optimizers = tuple(
            keras.optimizers.Adam(config.learning_rate, beta_1=config.beta_1) for _ in self.networks
        )
        for optimizer, network in zip(self.optimizers, self.networks, strict=True):
            optimizer.build(network.trainable_variables)
        self._step = plain_graph(self._updates)
        self._draw = plain_graph(lambda z: self.generator(z, training=False))

    @property
    def parameters(self) -> dict[str, int]:
        """Trainable parameters of each network."""
        return {
            network.name: sum(math.prod(v.shape) for v in network.trainable_variables)
            for network in self.networks
        }

    def variables(self) -> list[Any]:
        """Everything that changes in training."""
        return [v for each in (*self.networks, *self.optimizers) for v in each.variables]

    def _updates(self, real: Any, latents: Any) -> Any:
        import tensorflow as tf

        with tf.GradientTape() as of_discriminator, tf.GradientTape() as of_generator:
            made = self.generator(latents, training=True)
            # Real and generated patches are normalised apart: each batch has its own statistics.
            right = self.discriminator(real, training=True)
            wrong = self.discriminator(made, training=True)
            # -ln D(x) - ln(1 - D(G(z))), and -ln D(G(z)), of logits.
            losses = (
                tf.reduce_mean(tf.nn.softplus(-right)) + tf.reduce_mean(tf.nn.softplus(wrong)),
                tf.reduce_mean(tf.nn.softplus(-wrong)),
            )
        tapes = (of_discriminator, of_generator)
        for loss, tape, network, optimizer in zip(
            losses, tapes, self.networks, self.optimizers, strict=True
        ):
            variables = network.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)
        told = [tf.reduce_mean(tf.cast(x > 0, tf.float32)) for x in (right, -wrong)]
        return tf.stack([*losses, 0.5 * (told[0] + told[1])])

    def step(self, patches: np.ndarray, number: int) -> np.ndarray:
        """Do one step, whose batch and latents depend on the seed and its number alone.

        Parameters
        ----------
        patches : ndarray, float32, shape (n, size, size)
            Standardised training patches.
        number : int
            Of the step.

        Returns
        -------
        ndarray, shape (3,)
            Both losses, and the share of patches that the discriminator got right.
        """
        config = self.config
        rng = _rng(config.seed, 0, number)
        real = patches[rng.integers(len(patches), size=config.batch_size), ..., None]
        latents = rng.standard_normal((config.batch_size, config.latents), np.float32)
        return self._step(real, latents).numpy()

    def sample(self, n: int, key: int) -> np.ndarray:
        """Standardised patches, float32, shape (n, size, size); ``key`` tells sets apart."""
        latents = _rng(self.config.seed, 1, key).standard_normal(
            (n, self.config.latents), np.float32
        )
        drawn = [self._draw(latents[i : i + BATCH]).numpy() for i in range(0, n, BATCH)]
        return standardise(np.concatenate(drawn)[..., 0].astype(np.float64)).astype(np.float32)


def _rng(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def correlations(patches: np.ndarray) -> dict[str, float]:
    """Mean and rms correlation of the pixels of two different patches of a set.

    Patches of random places and orientations have a mean of zero, and an rms that is due to their
    few large-scale modes. Generators that have collapsed to one image have 1 and 1, to a few
    images a large rms.

    Parameters
    ----------
    patches : ndarray, shape (n, size, size)
        At least two, none constant.
    """
    flat = standardise(np.asarray(patches, np.float64)).reshape(len(patches), -1)
    matrix = flat @ flat.T / flat.shape[1]
    pairs = matrix[np.triu_indices(len(flat), 1)]
    return {"mean": float(pairs.mean()), "rms": float(np.sqrt(np.mean(pairs**2)))}


def spectrum_error(patches: np.ndarray, target: np.ndarray) -> float:
    """Root mean square over bins of the difference of the ln of the median spectra of two sets.

    Bins from one cycle a patch to half the Nyquist frequency, as in the report.
    """
    size = patches.shape[-1]
    # Any pixel size would do, as both sets are measured with it.
    bins = ell_bins(size, 1.0, fundamental(size, 1.0), 0.5 * nyquist(1.0), n=8)
    medians = [
        np.log(np.median(flat_spectrum(np.asarray(each, np.float64), 1.0, bins)[1], axis=0))
        for each in (patches, target)
    ]
    return float(np.sqrt(np.mean((medians[0] - medians[1]) ** 2)))


def train_gan(patches: np.ndarray, out: Path, config: GanConfig, samples: int) -> dict[str, Any]:
    """Train one seed in ``out``, from its last checkpoint if it was killed; draw samples.

    Parameters
    ----------
    patches : ndarray, float32, shape (n, size, size)
        Standardised training patches.
    out : path
        Gets ``state.npz``, ``samples.npz`` and, at last, ``gan.json``.
    config : GanConfig
        Hyperparameters.
    samples : int
        Patches to draw in the end.

    Returns
    -------
    dict
        What ``gan.json`` holds: cost, stability, and the checkpoints' figures.

    Raises
    ------
    ValueError
        If ``out`` holds a run with other settings or patches.
    FloatingPointError
        If the loss is no longer finite.
    """
    out = writable_folder(out)
    record = {**vars(config), "sha256": digest(patches.tobytes())}
    finished_or_same(out / "run.json", record)
    card, drawn = out / "gan.json", out / "samples.npz"
    if card.is_file() and drawn.is_file():
        with np.load(drawn) as kept:
            if len(kept["samples"]) == samples:
                return json.loads(card.read_text())
    gan = Gan(config)
    state = out / "state.npz"
    log, checkpoints, seconds = np.empty((0, len(_LOGGED))), [], 0.0
    if state.is_file():
        with np.load(state) as kept:
            for i, variable in enumerate(gan.variables()):
                variable.assign(kept[f"variable{i}"])
            log, seconds = kept["log"], float(kept["seconds"])
            checkpoints = json.loads(str(kept["checkpoints"]))
    target = patches[_rng(config.seed, 2).permutation(len(patches))[: 4 * _PROBED]]
    for mark in config.marks:
        if mark <= len(log):
            continue
        # The graph is traced by the first step of a process: its time is part of the cost.
        start = time.monotonic()
        rows = [gan.step(patches, number) for number in range(len(log), mark)]
        seconds += time.monotonic() - start
        log = np.concatenate([log, rows])
        if not np.isfinite(log).all():
            raise FloatingPointError(
                f"the loss of seed {config.seed} is no longer finite before step {mark}"
            )
        probe = gan.sample(_PROBED, 0)
        checkpoints.append(
            {
                "step": mark,
                "spectrum_error": spectrum_error(probe, target),
                "correlation": correlations(probe),
            }
        )
        arrays = {f"variable{i}": v.numpy() for i, v in enumerate(gan.variables())}
        with atomic_write(state) as partial, partial.open("wb") as stream:
            np.savez(
                stream, log=log, seconds=seconds, checkpoints=json.dumps(checkpoints), **arrays
            )
        typer.echo(
            f"  step {mark} of {config.steps}, {seconds:.0f} s: discriminator right in "
            f"{100 * log[-len(rows) :, 2].mean():.0f} %, spectrum error "
            f"{checkpoints[-1]['spectrum_error']:.2f}"
        )
    with atomic_write(drawn) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, samples=gan.sample(samples, 1))
    late = log[len(log) // 2 :]
    found = {
        "seed": config.seed,
        "steps": config.steps,
        "seconds": seconds,
        "parameters": gan.parameters,
        "loss_spread": {
            name: float(late[:, i].std()) for i, name in enumerate(_LOGGED) if "loss" in name
        },
        "discriminator_won": float(np.mean(log[:, 2] > _WON)),
        "discriminator_won_late": float(np.mean(late[:, 2] > _WON)),
        "checkpoints": checkpoints,
        "log": {name: _thinned(log[:, i]) for i, name in enumerate(_LOGGED)},
        "real_correlation": correlations(target[:_PROBED]),
        # Of two halves of the training patches: what chance alone gives.
        "real_spectrum_error": spectrum_error(target[::2], target[1::2]),
    }
    # Last, since it marks a finished seed.
    write_json(found, card)
    return found


def _thinned(values: np.ndarray, points: int = 100) -> list[float]:
    """Means over up to ``points`` equal stretches, with four figures."""
    return [
        float(f"{part.mean():.4g}") for part in np.array_split(values, min(points, len(values)))
    ]


def vae_cost(generator: Generator) -> dict[str, Any]:
    """Steps and parameters of the network that the GAN is compared with, from its card."""
    card = generator.card
    network = generator.network
    cost = {
        "name": generator.name,
        "parameters": sum(math.prod(v.shape) for v in network.trainable_variables),
    }
    if "history" in card:
        batches = math.ceil(card["training_patches"] / card["config"]["batch_size"])
        cost["steps"] = batches * len(card["history"]["loss"])
    return cost


def check_unseen(generator: Generator, fold: Fold) -> None:
    """See that the weights' card names no held-out region among those of training.

    Raises
    ------
    ValueError
        If it does.
    """
    split = generator.card.get("split", {})
    seen = sorted(set(fold.held_out) & {*split.get("train", ()), *split.get("validation", ())})
    if seen:
        raise ValueError(
            f"weights {generator.name!r} have seen {', '.join(seen)} in training: give --weights "
            "the folder of folds.py with a fold that holds them out"
        )


def summary_table(fold: Fold, seeds: Sequence[Mapping[str, Any]], vae: Mapping[str, Any]) -> Table:
    """Cost and stability of each seed, as a table to print."""
    first = seeds[0]
    table = Table(
        title=f"{fold.name}: training of the DCGAN",
        caption=f"Real patches: spectrum error {first['real_spectrum_error']:.2f}, rms correlation "
        f"{first['real_correlation']['rms']:.2f}. {vae['name']}: {vae['parameters']} parameters, "
        f"{vae.get('steps', 'unknown')} steps.",
    )
    for heading in (
        "seed",
        "seconds",
        "steps",
        "parameters",
        "spread of the losses (D, G)",
        "discriminator has won",
        "spectrum error (best, last)",
        "correlation (mean, rms)",
    ):
        table.add_column(heading, justify="right")
    for each in seeds:
        errors = [entry["spectrum_error"] for entry in each["checkpoints"]]
        correlation = each["checkpoints"][-1]["correlation"]
        table.add_row(
            str(each["seed"]),
            f"{each['seconds']:.0f}",
            str(each["steps"]),
            str(sum(each["parameters"].values())),
            ", ".join(f"{x:.2f}" for x in each["loss_spread"].values()),
            f"{100 * each['discriminator_won']:.0f} % of steps",
            f"{min(errors):.2f}, {errors[-1]:.2f}",
            f"{correlation['mean']:.2f}, {correlation['rms']:.2f}",
        )
    return table


def draw(seeds: Sequence[Mapping[str, Any]], samples: Mapping[str, np.ndarray], path: Path) -> None:
    """Draw how the training of each seed went, and samples of each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 6.5 + 1.9 * len(samples)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[6.5, 1.9 * len(samples)])
    (losses, accuracy), (errors, correlation) = top.subplots(2, 2)
    for i, each in enumerate(seeds):
        colour, label = f"C{i}", f"seed {each['seed']}"
        log = each["log"]
        points = len(log["accuracy"])
        middle = (np.arange(points) + 0.5) * each["steps"] / points
        losses.plot(middle, log["discriminator_loss"], color=colour, label=label)
        losses.plot(middle, log["generator_loss"], color=colour, ls="--")
        accuracy.plot(middle, log["accuracy"], color=colour)
        steps = [entry["step"] for entry in each["checkpoints"]]
        values = [entry["spectrum_error"] for entry in each["checkpoints"]]
        errors.plot(steps, values, "o-", color=colour)
        for kind, style in (("rms", "o-"), ("mean", "o--")):
            values = [entry["correlation"][kind] for entry in each["checkpoints"]]
            correlation.plot(steps, values, style, color=colour)
    losses.set(ylabel="loss: discriminator (solid), generator (dashed)")
    losses.legend()
    accuracy.axhline(_WON, color="grey", ls=":")
    accuracy.set(ylabel="patches told right by the discriminator", ylim=(0.4, 1.02))
    errors.axhline(seeds[0]["real_spectrum_error"], color="grey", ls=":")
    errors.set(ylabel="spectrum error (dotted: two sets of real patches)", yscale="log")
    correlation.axhline(seeds[0]["real_correlation"]["rms"], color="grey", ls=":")
    correlation.set(ylabel="correlation of two samples: rms, mean (dashed)")
    for panel in (losses, accuracy, errors, correlation):
        panel.set_xlabel("step")
    panels = bottom.subplots(len(samples), 8, squeeze=False)
    for row, (name, patches) in zip(panels, samples.items(), strict=True):
        for panel in row:
            panel.set(xticks=[], yticks=[])
        for panel, patch in zip(row, patches, strict=False):
            panel.imshow(patch, vmin=-2.5, vmax=2.5, cmap="inferno", origin="lower")
        row[0].set_ylabel(name.replace("_", " "))
    write_figure(figure, path, dpi=90)


def run_fold(
    maps: Sequence[TrainingMap],
    fold: Fold,
    config: GanConfig,
    out: Path,
    generator: Generator,
    judging: Judging,
    *,
    seeds: int,
    patches: int | None,
    thorne2021: Path | None,
) -> tuple[Evaluation, dict[str, Any]]:
    """Train all seeds on one fold's training sky, and compare them with what is held out.

    The patches are those of the octave network's training on this fold: drawn from the same
    regions with the same seed.

    Returns
    -------
    evaluation : Evaluation
        Of the generator, with the candidates ``dcgan_0``, ``dcgan_1``, …
    figures : dict
        Plain numbers: cost and stability of each seed, and the cost of the generator.

    Raises
    ------
    ValueError
        If the generator has seen the held-out sky, or the sky cannot be shared out.
    """
    from pysm_vae.vae.training import training_patches

    check_unseen(generator, fold)
    training = training_config("octave", size=config.size, patches=patches, seed=config.seed)
    split, left_out = fold_split(maps, fold, training)
    regions, not_compared = judged_regions(maps, fold, config.size, judging)
    for note in (*left_out, *not_compared):
        typer.echo(f"{fold.name}: {note}")
    real = training_patches(maps, split.train, training).patches
    found, drawn = [], {}
    for number in range(seeds):
        own = GanConfig(**{**vars(config), "seed": config.seed + number})
        typer.echo(f"{fold.name}: seed {own.seed}")
        folder = out / f"seed_{own.seed}"
        found.append(train_gan(real, folder, own, judging.n))
        with np.load(folder / "samples.npz") as kept:
            drawn[f"dcgan_{own.seed}"] = kept["samples"]
    evaluation = kept_evaluation(
        out,
        fold.name,
        generator,
        maps,
        regions,
        judging,
        seed=config.seed,
        thorne2021=thorne2021_of(thorne2021, fold),
        candidates=drawn,
    )
    cost = vae_cost(generator)
    console().print(summary_table(fold, found, cost))
    shown = {"real": real, **drawn, generator.name: generator.sample(8, config.size, config.seed)}
    draw(found, shown, out / "dcgan.png")
    return evaluation, {"split": vars(split), "seeds": found, "compared_with": cost}


@app.command()
def main(
    maps: Maps,
    folds: Folds,
    out: Out,
    weights: Annotated[
        Path,
        typer.Option(
            help="What folds.py wrote, with these folds: its octave networks stand beside."
        ),
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of the DCGAN a fold.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each.")] = 2500,
    width: Annotated[int, typer.Option(min=1, help="Filters of the finest layers.")] = 32,
    patches: Annotated[int | None, typer.Option(min=1, help="As in 'pysm-vae train'.")] = None,
    size: Annotated[int, typer.Option(help="Pixels a side: 16, 32, 64, …")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    min_latitude: MinLatitude = None,
    samples: Samples = 256,
    two_sample: TwoSample = True,
    spacing: Spacing = 0.5,
    thorne2021: Annotated[
        Path | None, typer.Option(help="As in folds.py: folder of the reference network's folds.")
    ] = None,
) -> None:
    """Train DCGANs on the patches that the VAE learns from, and compare both with other sky."""
    from pysm_vae.stats.report import write_report

    config = GanConfig(size=size, steps=steps, width=width, checkpoints=min(10, steps), seed=seed)
    chosen = parse_folds(folds)
    out = writable_folder(out)
    generators = {fold.name: load_generator(weights / fold.name / "octave.json") for fold in chosen}
    skies = read_maps(maps, min_latitude)
    evaluations, figures = {}, {}
    for fold in chosen:
        evaluations[fold.name], figures[fold.name] = run_fold(
            skies,
            fold,
            config,
            writable_folder(out / fold.name),
            generators[fold.name],
            Judging(samples, two_sample, spacing),
            seeds=seeds,
            patches=patches,
            thorne2021=thorne2021,
        )
        console().print(evaluations[fold.name].table())
    write_report(evaluations, out)
    write_json(figures, out / "dcgan.json")
    typer.echo(f"{out / 'dcgan.json'}, {out / 'evaluation.html'}")


if __name__ == "__main__":
    app()
