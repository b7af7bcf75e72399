"""The ablation that chose the design: one part of it changed at a time, all measured alike.

``python benchmarks/ablation.py --help``; benchmarks/README.md tells what the variants are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
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
    choose,
    console,
    fold_split,
    judged_regions,
    kept_evaluation,
    on_terminal,
    parse_folds,
    read_maps,
    write_figure,
    write_json,
)
from rich.table import Table

from pysm_vae.cli.learning import MinLatitude, training_config
from pysm_vae.files import writable_folder
from pysm_vae.vae.generator import Generator, load_generator

if TYPE_CHECKING:
    from pysm_vae.stats.report import Evaluation
    from pysm_vae.vae.training import TrainingMap

app = typer.Typer(pretty_exceptions_enable=False)

# Patches from which a prior is fitted, and those encoded at a time.
_FITTED = 1024
_BATCH = 64


@dataclass(frozen=True)
class Variant:
    """One way to build and train a network.

    Attributes
    ----------
    part : str
        What it changes of the design.
    text : str
        How.
    architecture : str
        The network.
    network : dict
        Its hyperparameters that differ from the defaults.
    context : bool
        Whether the steps of ``octave`` see the coarser map.
    environment : bool
        Whether the network is told what is diffuse sky and what a cloud.
    fitted_prior : bool
        Whether to evaluate it with a fitted prior, too; see `FittedPrior`.
    """

    part: str
    text: str
    architecture: str = "octave"
    network: Mapping[str, Any] = field(default_factory=dict)
    context: bool = True
    environment: bool = True
    fitted_prior: bool = False


VARIANTS: dict[str, Variant] = {
    "octave": Variant("design", "as shipped", fitted_prior=True),
    "elbo": Variant(
        "likelihood, prior",
        "ELBO alone: nothing looks at prior samples",
        network={"score_weight": 0.0, "critic_weight": 0.0},
        fitted_prior=True,
    ),
    "score": Variant(
        "likelihood", "ELBO and energy score, no critic", network={"critic_weight": 0.0}
    ),
    "windows": Variant(
        "likelihood",
        "no critic, and a score without ridges",
        network={"critic_weight": 0.0, "texture_weight": 0.0},
    ),
    "pixels": Variant(
        "likelihood", "a score without numbers of whole patches", network={"summary_weight": 0.0}
    ),
    "critic": Variant(
        "likelihood", "ELBO and critic, no energy score", network={"score_weight": 0.0}
    ),
    "loose": Variant(
        "likelihood", "residual of 0.5 of the details in place of 0.1", network={"residual": 0.5}
    ),
    "latents1": Variant(
        "latents", "1 latent a cell in place of 6, none wide", network={"latents": 1}
    ),
    "latents3": Variant("latents", "3 latents a cell", network={"latents": 3}),
    "octaves2": Variant(
        "latents", "2 octaves learned; coarser ones a Gaussian field", network={"octaves": 2}
    ),
    "blind": Variant("conditioning", "octaves drawn without the coarser map", context=False),
    "mixed": Variant("conditioning", "not told clouds from diffuse sky", environment=False),
    "thorne2021": Variant(
        "baseline", "the paper's: one latent vector a patch", architecture="thorne2021"
    ),
}
"""The variants, each of which is trained."""

FITTED_PRIOR = "fitted_prior"
"""What the name of a variant ends with if its latents come from a fitted prior."""

CONTROLS = {"modulated_gaussian": "modulated Gaussian"}
"""What stands below the variants, and its name."""


@contextmanager
def without_context() -> Iterator[None]:
    """Make octave networks that are adapted meanwhile blind to the coarser map.

    An infinite scale leaves a band of the context out, in training and ever after, as the scales
    are part of the weights. The network has no option for it: who would want one?
    """
    from pysm_vae.vae.networks import Octave

    original = Octave.adapt

    def adapt(network: Octave, patches: np.ndarray) -> None:
        original(network, patches)
        network.context_scale.assign(np.full(network.context_scale.shape, np.inf, np.float32))

    Octave.adapt = adapt
    try:
        yield
    finally:
        Octave.adapt = original


@dataclass(frozen=True)
class Stationary:
    """Gaussian fields of given mean and (cross-)spectra, periodic.

    Attributes
    ----------
    mean : ndarray, shape (c,)
        Of each channel.
    root : ndarray, complex, shape (g, g, c, c)
        Cholesky root of the channels' covariance in each Fourier mode.
    """

    mean: np.ndarray
    root: np.ndarray

    @classmethod
    def like(cls, fields: np.ndarray) -> Stationary:
        """Those of fields ``(m, g, g, c)``, on average over them."""
        _, g, _, c = fields.shape
        mean = fields.mean(axis=(0, 1, 2))
        modes = np.fft.fft2(fields - mean, axes=(1, 2))
        covariance = np.einsum("nxyc,nxyd->xycd", modes, modes.conj()) / (len(fields) * g * g)
        # Latents that are not used have a spectrum of 1, and few have less than a thousandth.
        return cls(mean, np.linalg.cholesky(covariance + 1e-6 * np.eye(c)))

    def colour(self, white: np.ndarray) -> np.ndarray:
        """Fields made of standard normal ones, both of shape (n, g, g, c)."""
        modes = np.einsum("xycd,nxyd->nxyc", self.root, np.fft.fft2(white, axes=(1, 2)))
        return (np.fft.ifft2(modes, axes=(1, 2)).real + self.mean).astype(np.float32)


class FittedPrior(Generator):
    """A generator whose latents have the mean and the spectra of the aggregate posterior.

    N(0, 1) is the prior of training. If encoded patches do not fill it, samples from it are not
    what the decoder has learned; stationary Gaussian fields like the encoded patches' latents are
    nearer to it, to second order. The coarsest map is drawn as always.

    Parameters
    ----------
    card : path
        Of an ``octave`` network.
    patches : ndarray, shape (m, size, size)
        Standardised training patches.
    environment : ndarray, shape (m,)
        What each shows; each environment gets a prior of its own.
    seed : int
        Of the posterior's draws.
    """

    def __init__(self, card: Path, patches: np.ndarray, environment: np.ndarray, seed: int) -> None:
        record = json.loads(card.read_text())
        super().__init__(record, card.parent / record["weights"])
        self.name = f"{self.name} + {FITTED_PRIOR}"
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, 3))))
        self._priors: dict[float, dict[int, Stationary]] = {}
        for kind in np.unique(environment):
            chosen = patches[environment == kind]
            encoded = []
            for start in range(0, len(chosen), _BATCH):
                batch = chosen[start : start + _BATCH]
                posterior = self.network.encode(batch, np.full(len(batch), kind, np.float32))
                encoded.append(
                    [
                        np.asarray(mean)
                        + np.exp(np.asarray(scale)) * rng.standard_normal(mean.shape, np.float32)
                        # The first is the coarsest map, whose latents are known exactly.
                        for mean, scale in posterior[1:]
                    ]
                )
            levels = [np.concatenate(level) for level in zip(*encoded, strict=True)]
            self._priors[float(kind)] = {z.shape[1]: Stationary.like(z) for z in levels}

    def decode(
        self,
        latents: Sequence[np.ndarray],
        coarse: np.ndarray | None = None,
        *,
        environment: float | None = None,
    ) -> np.ndarray:
        """Decode standard normal latents, coloured first; see `Generator.decode`."""
        wanted = self.diffuse if environment is None else environment
        prior = self._priors[min(self._priors, key=lambda kind: abs(kind - wanted))]
        latents = [prior[z.shape[1]].colour(z) if z.ndim == 4 else z for z in latents]
        return super().decode(latents, coarse, environment=environment)


def run_variant(
    maps: Sequence[TrainingMap],
    fold: Fold,
    name: str,
    out: Path,
    judging: Judging,
    options: Mapping[str, Any],
) -> tuple[dict[str, Evaluation], int]:
    """Train one variant on a fold in ``out``, and evaluate it; what is finished is kept.

    Parameters
    ----------
    maps : sequence of TrainingMap
        The maps.
    fold : Fold
        What is held out.
    name : str
        One of `VARIANTS`.
    out : path
        Its folder.
    judging : Judging
        How to compare.
    options : mapping
        Training options that are the same for all variants, as `training_config` takes them.

    Returns
    -------
    evaluations : dict of str to Evaluation
        Of the variant and, if it asks for one, of a fitted prior.
    parameters : int
        Trainable parameters.
    """
    from pysm_vae.vae.training import network_inputs, train, training_patches

    variant = VARIANTS[name]
    if not variant.environment:
        maps = [replace(m, environment=0.0) for m in maps]
    config = training_config(variant.architecture, **options)
    # The paper's network shares no hyperparameter with ours.
    base = config.network if variant.architecture == "octave" else {}
    config = replace(config, network={**base, **variant.network})
    split, left_out = fold_split(maps, fold, config)
    regions, not_compared = judged_regions(maps, fold, config.size, judging)
    for note in (*left_out, *not_compared):
        typer.echo(f"{fold.name}: {note}")
    with nullcontext() if variant.context else without_context():
        card = train(maps, split, out, config, progress=on_terminal())
    generator = load_generator(card)
    judged = {name: (out, generator)}
    if variant.fitted_prior:
        drawn = training_patches(maps, split.train, config)
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((config.seed, 4))))
        inputs = network_inputs(drawn.select(rng.permutation(len(drawn))[:_FITTED]), maps)
        fitted = FittedPrior(card, **inputs, seed=config.seed)
        judged[f"{name} + {FITTED_PRIOR}"] = (writable_folder(out / FITTED_PRIOR), fitted)
    evaluations = {
        each: kept_evaluation(
            folder, f"{fold.name}: {each}", weights, maps, regions, judging, seed=config.seed
        )
        for each, (folder, weights) in judged.items()
    }
    network = generator.network
    return evaluations, sum(math.prod(v.shape) for v in network.trainable_variables)


def figures(
    evaluations: Mapping[str, Mapping[str, Evaluation]],
) -> dict[str, dict[str, float]]:
    """Yardsticks of all variants, as medians over the held-out maps of all folds.

    Parameters
    ----------
    evaluations : mapping of str to mapping of str to Evaluation
        By the names of the folds, then of the variants; the same variants in every fold.

    Returns
    -------
    dict of str to dict
        By variants and controls; each by measure.
    """
    gathered: dict[str, list[dict[str, float]]] = {}
    for variants in evaluations.values():
        for name, evaluation in variants.items():
            for comparison in evaluation.comparisons:
                rows = {name: "samples"}
                if evaluation is next(iter(variants.values())):
                    rows |= {control: control for control in CONTROLS}
                for row, candidate in rows.items():
                    if candidate in comparison.candidates:
                        gathered.setdefault(row, []).append(comparison.yardsticks(candidate))
    order = [*(row for row in gathered if row not in CONTROLS), *CONTROLS]
    # A region may be too small for the two-sample test.
    measures = list(dict.fromkeys(key for row in order for entry in gathered[row] for key in entry))
    return {
        row: {
            measure: float(np.median(values))
            for measure in measures
            if (values := [entry[measure] for entry in gathered[row] if measure in entry])
        }
        for row in order
    }


def table(rows: Mapping[str, Mapping[str, float]], parameters: Mapping[str, int]) -> Table:
    """Table of the yardsticks, to print: 1 is as far from the held-out sky as other sky is."""
    found = Table(
        title="Distance from held-out sky, over the median real region's",
        caption="Medians over the held-out maps of all folds.",
    )
    measures = list(dict.fromkeys(measure for values in rows.values() for measure in values))
    for heading in ("variant", "changes", "parameters", *measures):
        found.add_column(
            heading.replace("_", " "),
            justify="left" if heading in ("variant", "changes") else "right",
        )
    for row, values in rows.items():
        variant = VARIANTS.get(row)
        found.add_row(
            CONTROLS.get(row, row).replace("_", " "),
            f"{variant.part}: {variant.text}" if variant else "",
            str(parameters[row]) if variant else "",
            *(f"{values[measure]:.2f}" if measure in values else "–" for measure in measures),
        )
    return found


def draw(rows: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw the table: a row a variant, a column a measure, dark where far from the sky."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    measures = list(dict.fromkeys(measure for values in rows.values() for measure in values))
    values = np.array([[row.get(name, np.nan) for name in measures] for row in rows.values()])
    figure = Figure(figsize=(3 + 1.1 * len(measures), 1.6 + 0.42 * len(rows)), layout="constrained")
    axis = figure.subplots()
    # An infinite distance takes the darkest colour; 1 is real sky.
    image = axis.imshow(
        np.clip(values, 0.5, 8), norm=LogNorm(0.5, 8), cmap="viridis_r", aspect="auto"
    )
    for (i, j), value in np.ndenumerate(values):
        colour = "white" if value > 2 else "black"
        text = "–" if np.isnan(value) else f"{value:.2f}"
        axis.text(j, i, text, ha="center", va="center", color=colour, fontsize=9)
    axis.set_xticks(range(len(measures)), [m.replace("_", "\n") for m in measures])
    axis.set_yticks(range(len(rows)), [CONTROLS.get(r, r).replace("_", " ") for r in rows])
    axis.set_title("distance from held-out sky, over the median real region's")
    bar = figure.colorbar(image, ax=axis, ticks=[0.5, 1, 2, 4, 8])
    bar.ax.set_yticklabels(["≤ 0.5", "1", "2", "4", "≥ 8"])
    bar.ax.minorticks_off()
    write_figure(figure, path, dpi=110)


@app.command()
def main(
    maps: Maps,
    folds: Folds,
    out: Out,
    epochs: Annotated[int, typer.Option(min=1, help="As in 'pysm-vae train'.")] = 16,
    patches: Annotated[int, typer.Option(min=1, help="As in 'pysm-vae train'.")] = 4000,
    size: Annotated[int, typer.Option(min=16, help="As in 'pysm-vae train'.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of patches, weights and samples.")] = 0,
    min_latitude: MinLatitude = None,
    samples: Samples = 256,
    two_sample: TwoSample = True,
    spacing: Spacing = 0.5,
    variant: Annotated[
        list[str] | None,
        typer.Option(help=f"Of {', '.join(VARIANTS)}; repeatable. Default: all of them."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="VARIANT",
            help="One of the variants, so that several processes share the work; the table is "
            "written by a run without it.",
        ),
    ] = None,
) -> None:
    """Train the variants of the network on the same sky, and compare all with what was left out."""
    names = [name for each in variant or VARIANTS for name in choose(list(VARIANTS), each)]
    chosen = choose(names, only)
    given = parse_folds(folds)
    skies = read_maps(maps, min_latitude)
    out = writable_folder(out)
    judging = Judging(samples, two_sample, spacing)
    options = {"size": size, "epochs": epochs, "patches": patches, "seed": seed}
    evaluations: dict[str, dict[str, Evaluation]] = {fold.name: {} for fold in given}
    parameters = {}
    for fold in given:
        for name in chosen:
            typer.echo(f"{fold.name}: {name}")
            found, parameters[name] = run_variant(
                skies,
                fold,
                name,
                out / fold.name / name,
                judging,
                options,
            )
            evaluations[fold.name] |= found
    rows = figures(evaluations)
    console().print(table(rows, parameters))
    if only is None:
        summary = {
            "options": options | vars(judging),
            "parameters": parameters,
            "yardsticks": {
                row: {key: value if math.isfinite(value) else None for key, value in values.items()}
                for row, values in rows.items()
            },
            "folds": {
                fold: {name: evaluation.to_json() for name, evaluation in variants.items()}
                for fold, variants in evaluations.items()
            },
        }
        write_json(summary, out / "ablation.json")
        draw(rows, out / "ablation.png")
        typer.echo(f"{out / 'ablation.json'}, {out / 'ablation.png'}")


if __name__ == "__main__":
    app()
