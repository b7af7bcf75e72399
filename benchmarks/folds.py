"""Region folds: train on all sky but some, and compare the samples with what was left out.

``python benchmarks/folds.py --help``; benchmarks/README.md has the command of the shipped weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    thorne2021_of,
)

from pysm_vae.cli.learning import Architecture, MinLatitude, training_config
from pysm_vae.files import writable_folder
from pysm_vae.vae.cards import add_folds
from pysm_vae.vae.generator import load_generator

if TYPE_CHECKING:
    from pysm_vae.stats.report import Evaluation
    from pysm_vae.vae.training import TrainingConfig, TrainingMap

app = typer.Typer(pretty_exceptions_enable=False)


def run_folds(
    maps: Sequence[TrainingMap],
    folds: Sequence[Fold],
    config: TrainingConfig,
    out: Path,
    judging: Judging,
    *,
    thorne2021: Path | None = None,
) -> dict[str, Evaluation]:
    """Train and evaluate each fold in ``out/<fold>``; what is finished there is kept.

    Parameters
    ----------
    maps : sequence of TrainingMap
        The maps, of training and of tests.
    folds : sequence of Fold
        What is held out.
    config : TrainingConfig
        Hyperparameters, the same for all folds.
    out : path
        Each fold gets a folder in it: of the training, and of a report of its own.
    judging : Judging
        How to compare.
    thorne2021 : path, optional
        Folder of folds of the reference network; see `thorne2021_of`.

    Returns
    -------
    dict of str to Evaluation
        By the names of the folds.

    Raises
    ------
    ValueError
        If the sky cannot be shared out, or a folder holds a run with other settings.
    """
    from pysm_vae.vae.training import train

    # Whatever may be wrong with a fold shows before the first training.
    plans = [
        (fold, *fold_split(maps, fold, config), *judged_regions(maps, fold, config.size, judging))
        for fold in folds
    ]
    found = {}
    for fold, split, left_out, regions, not_compared in plans:
        for note in (*left_out, *not_compared):
            typer.echo(f"{fold.name}: {note}")
        for part in ("train", "validation", "test"):
            typer.echo(f"{fold.name}: {part}: {', '.join(getattr(split, part))}")
        folder = out / fold.name
        card = train(maps, split, folder, config, progress=on_terminal())
        typer.echo(f"{fold.name}: {card}")
        reference = None
        if config.architecture != "thorne2021":
            reference = thorne2021_of(thorne2021, fold)
        found[fold.name] = kept_evaluation(
            folder,
            fold.name,
            load_generator(card),
            maps,
            regions,
            judging,
            seed=config.seed,
            thorne2021=reference,
        )
        console().print(found[fold.name].table())
    return found


def check_trained_alike(card: Path, config: TrainingConfig) -> None:
    """Make sure that folds say something about the weights whose card their figures go on.

    Parameters
    ----------
    card : path
        Of these weights.
    config : TrainingConfig
        Of the folds. Networks are compared by all of their hyperparameters, as defaults change.

    Raises
    ------
    FileNotFoundError
        If there is no such card.
    ValueError
        If those weights were trained with other settings than the folds.
    """
    from pysm_vae.vae.training import network_of

    record = load_generator(card).card
    settings = record["config"] | {"network": record["network"]}
    folds = asdict(config) | {"network": network_of(config).get_config()}
    other = sorted(key for key in folds if settings.get(key) != folds[key])
    if other:
        raise ValueError(
            f"{str(card)!r} was trained with other settings than these folds ({', '.join(other)}): "
            "give the folds the same, or the card of weights that were trained alike"
        )


@app.command()
def main(
    maps: Maps,
    folds: Folds,
    out: Out,
    architecture: Annotated[Architecture, typer.Option(help="The network.")] = Architecture.octave,
    epochs: Annotated[int | None, typer.Option(min=1, help="As in 'pysm-vae train'.")] = None,
    patches: Annotated[int | None, typer.Option(min=1, help="As in 'pysm-vae train'.")] = None,
    size: Annotated[int | None, typer.Option(min=16, help="As in 'pysm-vae train'.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of patches, weights and samples.")] = 0,
    min_latitude: MinLatitude = None,
    samples: Samples = 256,
    two_sample: TwoSample = True,
    spacing: Spacing = 0.5,
    thorne2021: Annotated[
        Path | None,
        typer.Option(
            help="What this program wrote with --architecture thorne2021, to stand beside; by "
            "default the shipped weights, which may have seen the sky of the test."
        ),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(
            help="Card of weights trained alike on all of the sky: the figures of all folds are "
            "written on it, and its page."
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="One of the folds, so that several processes share the work; the report of all "
            "is written by a run without it.",
        ),
    ] = None,
) -> None:
    """Train on all sky but a fold's, compare with that, and pool the folds."""
    from pysm_vae.stats.report import write_report

    given = {fold.name: fold for fold in parse_folds(folds)}
    chosen = [given[name] for name in choose(list(given), only)]
    out = writable_folder(out)
    config = training_config(
        architecture.value, size=size, epochs=epochs, patches=patches, seed=seed
    )
    if card is not None:
        check_trained_alike(card, config)
    evaluations = run_folds(
        read_maps(maps, min_latitude),
        chosen,
        config,
        out,
        Judging(samples, two_sample, spacing),
        thorne2021=thorne2021,
    )
    if only is None:
        write_report(evaluations, out)
        typer.echo(f"all folds: {out / 'evaluation.html'}")
        if card is not None:
            typer.echo(f"page: {add_folds(card, list(evaluations.values()))}")


if __name__ == "__main__":
    app()
