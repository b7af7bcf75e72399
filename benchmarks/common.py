"""What the benchmarks share: their options, folds of sky, and evaluations that are kept."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import healpy as hp
import numpy as np
import typer
from rich.console import Console

from pysm_vae import stats
from pysm_vae.cli.learning import parse_map, training_maps
from pysm_vae.files import atomic_write
from pysm_vae.vae.generator import Generator, load_generator
from pysm_vae.vae.patches import PatchSampler, Split, grid_patches, split_regions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pysm_vae.stats.report import Evaluation
    from pysm_vae.vae.training import TrainingConfig, TrainingMap

log = logging.getLogger(__name__)

# Pixels of 13.7', the grid on which `split_regions` looks for shared sky, too.
_CENSUS_NSIDE = 256

Maps = Annotated[
    list[str],
    typer.Option(
        "--map", metavar="FILE[@PIXEL[+FWHM]][:cloud]", help="As in 'pysm-vae train'; repeatable."
    ),
]
Folds = Annotated[
    list[str],
    typer.Option(
        "--fold",
        metavar="NAME=REGION,REGION",
        help="A fold, and the regions of sky that its training must not see; repeatable.",
    ),
]
Out = Annotated[Path, typer.Option(help="Folder of what comes out; finished parts are kept.")]
Samples = Annotated[int, typer.Option(min=2, help="Patches to draw for an evaluation.")]
TwoSample = Annotated[
    bool, typer.Option(help="Also train networks to tell samples from sky: it takes minutes.")
]

Spacing = Annotated[
    float, typer.Option(help="Of the real patches' centres, as in 'pysm-vae evaluate'.")
]


@dataclass(frozen=True)
class Judging:
    """How samples are compared with held-out sky: options of `evaluate` of their names.

    Attributes
    ----------
    n : int
        Prior samples.
    two_sample : bool
        Whether networks are trained to tell samples from sky.
    spacing : float
        Of the real patches' centres, in sides of a patch.
    """

    n: int = 256
    two_sample: bool = True
    spacing: float = 0.5


@dataclass(frozen=True)
class Fold:
    """Regions of sky that one training must not see.

    Attributes
    ----------
    name : str
        Name of the fold, and of its folder.
    held_out : tuple of str
        Names of regions.
    """

    name: str
    held_out: tuple[str, ...]


def parse_folds(texts: Sequence[str]) -> list[Fold]:
    """Read ``NAME=REGION,REGION,…``.

    Raises
    ------
    ValueError
        If one is not of that form, its name cannot name a folder, or two have the same name.
    """
    folds = []
    for text in texts:
        name, equals, regions = text.partition("=")
        held_out = tuple(dict.fromkeys(part.strip() for part in regions.split(",")))
        if not equals or not re.fullmatch(r"\w[\w.-]*", name) or not all(held_out):
            raise ValueError(
                f"fold {text!r} is not NAME=REGION,REGION with a plain name, such as "
                "A=taurus:0,sky:4"
            )
        folds.append(Fold(name, held_out))
    names = [fold.name for fold in folds]
    if len(set(names)) < len(names):
        raise ValueError(f"folds {names} share a name: give each its own")
    return folds


def choose(names: Sequence[str], only: str | None) -> list[str]:
    """All names, or the one that was asked for.

    Raises
    ------
    ValueError
        If it is not one of them.
    """
    if only is None:
        return list(names)
    if only not in names:
        raise ValueError(f"--only {only!r} is none of {', '.join(names)}")
    return [only]


def read_maps(texts: Sequence[str], min_latitude: float | None) -> list[TrainingMap]:
    """Read the maps of ``--map`` as the command ``pysm-vae train`` does."""
    return training_maps([parse_map(text) for text in texts], min_latitude=min_latitude)


def fold_split(
    maps: Sequence[TrainingMap], fold: Fold, config: TrainingConfig
) -> tuple[Split, list[str]]:
    """Share out the sky of a fold.

    Everything trains but the held-out regions, what `split_regions` takes for validation, regions
    of other maps that share sky with the held-out ones, and regions too small for a patch.

    Parameters
    ----------
    maps : sequence of TrainingMap
        The maps.
    fold : Fold
        The held-out regions.
    config : TrainingConfig
        Its patch size and zoom decide what fits.

    Returns
    -------
    split : Split
        The held-out regions are its test part.
    notes : list of str
        What was left out, and why.

    Raises
    ------
    ValueError
        As `split_regions` says.
    """
    held_out = set(fold.held_out)
    notes = []
    shared = _sharing_sky(maps, held_out)
    if shared:
        notes.append(
            f"{', '.join(shared)} left out of training: they share sky with held-out regions"
        )
    small = []
    for m in maps:
        for name in m.sky.region_names:
            if name in held_out or name in shared:
                continue
            sampler = PatchSampler(
                m.sky, config.size, m.pixel_size, regions=[name], zoom=config.zoom
            )
            try:
                sampler.draw(1, np.random.Generator(np.random.Philox(config.seed)))
            except ValueError as error:
                small.append(name)
                notes.append(f"{name} left out of training: {error}")
    split = split_regions(
        [m.sky for m in maps], test=fold.held_out, exclude=[*shared, *small], validation=None
    )
    return split, notes


def _sharing_sky(maps: Sequence[TrainingMap], held_out: set[str]) -> list[str]:
    """Regions that are not held out and have pixels of the census in common with some that are."""
    found = []
    taken = np.zeros(hp.nside2npix(_CENSUS_NSIDE), bool)
    for m in maps:
        cap = m.sky.footprint
        here = np.arange(taken.size)
        if cap.radius < 180:
            centre = hp.ang2vec(cap.lon, cap.lat, lonlat=True)
            here = hp.query_disc(_CENSUS_NSIDE, centre, np.radians(cap.radius), inclusive=True)
        values, labels = m.sky.sample_region(*hp.pix2ang(_CENSUS_NSIDE, here, lonlat=True))
        labels = np.where(np.isfinite(values), labels, -1)
        for label, name in enumerate(m.sky.region_names):
            pixels = here[labels == label]
            if name in held_out:
                taken[pixels] = True
            else:
                found.append((name, pixels))
    return [name for name, pixels in found if taken[pixels].any()]


def judged_regions(
    maps: Sequence[TrainingMap], fold: Fold, size: int, judging: Judging
) -> tuple[list[str], list[str]]:
    """Held-out regions that hold two patches or more, and notes on the others.

    `evaluate` would see it, too, but only after the training.

    Raises
    ------
    ValueError
        If there is none.
    """
    regions, notes = [], []
    for m in maps:
        for name in m.sky.region_names:
            if name not in fold.held_out:
                continue
            try:
                spacing = judging.spacing * size * m.pixel_size / 60
                found = grid_patches(m.sky, size, m.pixel_size, spacing=spacing, regions=[name])
                count = len(found)
            except ValueError:
                count = 0
            if count < 2:
                notes.append(f"{name} not compared: it holds {count} patches of {size} pixels")
            else:
                regions.append(name)
    if not regions:
        raise ValueError(
            f"fold {fold.name} has no region that holds two patches of {size} pixels: hold out "
            "others, or take smaller patches"
        )
    return regions, notes


def thorne2021_of(folder: Path | None, fold: Fold) -> Generator | None:
    """The reference network: trained on the fold's own sky if a folder is given, or as shipped.

    Parameters
    ----------
    folder : path, optional
        What ``folds.py --architecture thorne2021`` wrote. The shipped weights were trained on
        another split of the sky, which may hold the fold's test regions: they come out too well.
    fold : Fold
        The fold.

    Raises
    ------
    FileNotFoundError
        If the folder has no such fold.
    """
    if folder is not None:
        return load_generator(folder / fold.name / "thorne2021.json")
    try:
        return load_generator("thorne2021")
    except FileNotFoundError:
        log.warning("thorne2021 left out: no such weights are shipped")
        return None


def kept_evaluation(
    folder: Path,
    name: str,
    generator: Generator,
    maps: Sequence[TrainingMap],
    regions: Sequence[str],
    judging: Judging,
    *,
    seed: int,
    thorne2021: Generator | None = None,
    candidates: Mapping[str, np.ndarray] | None = None,
) -> Evaluation:
    """`evaluate`, or what it gave the last time if nothing that matters has changed since.

    Parameters
    ----------
    folder : path
        Where the evaluation and its report are kept, with a key that holds the weights, the
        samples, the maps, the options and the code of the statistics. The evaluation is a pickle:
        open only what you wrote yourself.
    name : str
        Of the evaluation in its report.
    judging : Judging
        How to compare.
    generator, maps, regions, seed, thorne2021, candidates
        See `pysm_vae.stats.report.evaluate`.
    """
    from pysm_vae.stats.report import evaluate, write_report
    from pysm_vae.vae.training import describe_map

    key = {
        "weights": generator.sha256,
        "thorne2021": thorne2021 and thorne2021.sha256,
        "candidates": {k: digest(v.tobytes()) for k, v in (candidates or {}).items()},
        "maps": [describe_map(m) | {"min_latitude": m.sky.min_latitude} for m in maps],
        "options": {"regions": list(regions), "seed": seed, **vars(judging)},
        "code": digest(*(p.read_bytes() for p in sorted(Path(*stats.__path__).glob("*.py")))),
    }

    def make() -> Evaluation:
        made = evaluate(
            generator,
            maps,
            regions,
            seed=seed,
            thorne2021=thorne2021,
            candidates=candidates,
            progress=_show_progress,
            **vars(judging),
        )
        write_report({name: made}, folder)
        return made

    return _kept(folder / "evaluation.pickle", key, make)


def _show_progress(what: str, done: int, total: int) -> None:
    typer.echo(f"  {what.replace('_', '-')} tests: {done} of {total}")


def _kept(path: Path, key: dict[str, Any], make: Callable[[], Evaluation]) -> Evaluation:
    # The key stands in a file of its own, so that a pickle of other classes is never opened.
    label = path.with_suffix(".key.json")
    wanted = json.dumps(key, indent=1)
    if label.is_file() and path.is_file() and label.read_text() == wanted:
        log.info("%s is kept", path)
        return pickle.loads(path.read_bytes())
    label.unlink(missing_ok=True)
    made = make()
    with atomic_write(path) as partial:
        partial.write_bytes(pickle.dumps(made))
    # Last, since it marks a finished evaluation.
    with atomic_write(label) as partial:
        partial.write_text(wanted)
    return made


def digest(*contents: bytes) -> str:
    """SHA-256 of some bytes."""
    return hashlib.sha256(b"".join(contents)).hexdigest()


def write_figure(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a picture, whole or not at all."""
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=dpi)


def write_json(values: Any, path: Path) -> None:
    """Write plain numbers, lists and dicts; JSON has no infinity and no NaN."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")


def finished_or_same(path: Path, record: dict[str, Any]) -> None:
    """Note a run's settings, or see that they are those of the run that is there.

    Raises
    ------
    ValueError
        If they are others.
    """
    record = json.loads(json.dumps(record))
    if path.is_file() and json.loads(path.read_text()) != record:
        raise ValueError(
            f"{str(path.parent)!r} holds a run with other maps or settings: name another folder, "
            "or remove this one to start again"
        )
    write_json(record, path)


def console() -> Console:
    """Where tables go: as wide as the terminal, or wide enough for them."""
    found = Console()
    return found if found.is_terminal else Console(width=140)


def on_terminal() -> bool:
    """Whether somebody watches."""
    return Console(stderr=True).is_terminal
