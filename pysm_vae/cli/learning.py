"""Subcommands that fetch maps, train networks and judge what they make."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pysm_vae.cli.app import (
    Debug,
    app,
    complete_dataset,
    complete_weights,
    on_terminal,
    progress_bars,
    reported,
    without_native_notes,
)

if TYPE_CHECKING:
    import numpy as np

    from pysm_vae.stats.report import CandidateSky
    from pysm_vae.vae.training import TrainingConfig, TrainingMap

log = logging.getLogger(__name__)

#: What works for each architecture; options of the command take the place of these.
DEFAULTS: dict[str, dict[str, Any]] = {
    "octave": {
        "size": 64,
        "patches": 8000,
        "epochs": 24,
        "batch_size": 32,
        "learning_rate": 2e-3,
        "beta_1": 0.9,
        "kl_warmup": 6,
        "patience": 30,
    },
    "thorne2021": {
        "size": 128,
        "patches": 4000,
        "epochs": 40,
        "batch_size": 16,
        "learning_rate": 5e-4,
        "beta_1": 0.5,
        "kl_warmup": 5,
        "patience": 8,
    },
}

# Half the beam of Planck's dust maps; finer pixels would hold nothing but the beam.
_PIXEL_SIZE = 2.5
# Of a map's own pixels; those of finer patches would be interpolated from the same few.
_FINEST = 0.5


class Architecture(str, Enum):
    """The networks that can be trained."""

    octave = "octave"
    thorne2021 = "thorne2021"


MinLatitude = Annotated[
    float | None,
    typer.Option(
        min=0, max=89, help="Leave out smaller Galactic latitudes of HEALPix maps, degrees."
    ),
]


@app.command()
def train(
    maps: Annotated[
        list[str],
        typer.Option(
            "--map",
            metavar="FILE[@PIXEL[+FWHM]][:cloud]",
            help="Map to learn from: HEALPix, or an image with a celestial WCS. PIXEL: arcmin a "
            "pixel of its patches (about half the beam; default: 2.5, or the map's own pixels if "
            "they are coarser). FWHM: smooth it first, arcmin. :cloud if it shows molecular "
            "clouds, not diffuse sky: the network learns to tell them apart. Repeat for more maps, "
            "or for one map at several scales.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the weights and their card.")],
    architecture: Annotated[Architecture, typer.Option(help="The network.")] = Architecture.octave,
    size: Annotated[
        int | None,
        typer.Option(
            min=16, help="Pixels a side of a patch, in 16s [64, at least 48; thorne2021: 128]."
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the patches [24; thorne2021: 40].")
    ] = None,
    patches: Annotated[
        int | None, typer.Option(min=1, help="Training patches [8000; thorne2021: 4000].")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Patches a step [32; thorne2021: 16].")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Adam's, at the start [0.002; thorne2021: 0.0005].")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of patches, weights and draws.")] = 0,
    validation: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGION",
            help="Sky to validate on, such as taurus:1; the default is chosen for you. A HEALPix "
            "map has regions :0 to :7 (octants), an image :0 and :1 (halves).",
        ),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(metavar="REGION", help="Sky to keep for tests; 'none' keeps none."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGION",
            help="Sky to leave out, for instance because another map covers it.",
        ),
    ] = None,
    min_latitude: MinLatitude = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard logs to OUT/tensorboard.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only check everything, and estimate time, memory and disk space from a few "
            "steps.",
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Train a network on your own maps.

    Sky is split by region into training, validation and test; no two parts share any. A run that
    was killed goes on where it was when the same command is given again.

    `pysm-vae train --map gnilc.fits@2.5 --map gnilc.fits@5+10 --min-latitude 15 --out mine`

    With `--dry-run` it tells first what that will take.

    Then make maps with `pysm-vae simulate --weights mine/octave.json` and the other options, or
    `VAEDust(weights="mine/octave.json")` in Python.
    """
    with reported(debug):
        with without_native_notes(debug):
            import tensorflow

            from pysm_vae.vae.training import train as run_training

            # It notes that there is no accelerator when it is first asked for one.
            tensorflow.config.list_physical_devices("GPU")
        from pysm_vae.vae.patches import split_regions

        config = training_config(
            architecture.value,
            size=size,
            epochs=epochs,
            patches=patches,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
        )
        skies = training_maps([parse_map(text) for text in maps], min_latitude=min_latitude)
        split = split_regions(
            [each.sky for each in skies],
            validation=validation,
            test=() if test == ["none"] else test,
            exclude=exclude or (),
        )
        for part in ("train", "validation", "test"):
            typer.echo(f"{part}: {', '.join(getattr(split, part)) or 'none'}")
        if dry_run:
            from pysm_vae.estimate import estimate_training

            with without_native_notes(debug):
                found = estimate_training(skies, split, out, config)
            typer.echo(found.text())
            return
        card = run_training(
            skies, split, out, config, tensorboard=tensorboard, progress=on_terminal()
        )
        typer.echo(f"card: {card}")
        typer.echo(f'in Python: pysm_vae.VAEDust(nside=128, weights="{card}")')
        typer.echo(
            f"in the shell: pysm-vae simulate --nside 128 --freq 353 --weights {card} --out maps"
        )


@app.command()
def evaluate(
    maps: Annotated[
        list[str],
        typer.Option(
            "--map",
            metavar="FILE[@PIXEL[+FWHM]][:cloud]",
            help="A map of real dust, as in 'pysm-vae train'; repeatable.",
        ),
    ],
    region: Annotated[
        list[str],
        typer.Option(metavar="REGION", help="Sky that the weights have never seen; repeatable."),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of evaluation.html, evaluation.json and evaluation.png.")
    ],
    weights: Annotated[
        str,
        typer.Option(
            help="'default', 'octave', 'thorne2021', or the path of a model card.",
            autocompletion=complete_weights,
        ),
    ] = "default",
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE[@PIXEL[+FWHM]]",
            help="A simulated sky to judge beside them: a HEALPix map or an image of dust "
            "intensity, cut into patches of the held-out map's pixels or of PIXEL arcmin; or "
            "patches of log-intensity, (n, size, size), as .npy, .npz or FITS cube. Repeatable.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Patches to draw.")] = 256,
    size: Annotated[
        int | None, typer.Option(min=16, help="Pixels a side of a patch [the training's].")
    ] = None,
    spacing: Annotated[
        float,
        typer.Option(
            help="Of the real patches' centres, in sides of a patch. Patches closer than 1 "
            "overlap: more of them, but not independent."
        ),
    ] = 0.5,
    two_sample: Annotated[
        bool,
        typer.Option(
            "--two-sample/--no-two-sample",
            help="Train classifiers to tell each set from the real sky: takes minutes.",
        ),
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of samples, controls, classifiers.")] = 0,
    min_latitude: MinLatitude = None,
    card: Annotated[
        bool,
        typer.Option(
            "--card", help="Also write the figures on the card that --weights names, and its page."
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Compare a network's patches with real sky that it has never seen.

    Beside them stand what makes a figure mean something: other regions of real sky, a Gaussian of
    the same spectrum and modulation, and the network of the paper. Any other simulated sky can
    stand there, too. Open evaluation.html for the figures and how to read them.

    `pysm-vae evaluate --map chamaeleon.fits@2.5 --region chamaeleon:1 --out report`

    `pysm-vae evaluate --map ... --region ... --candidate d10=pysm_d10.fits@2.5 --out report`
    """
    with reported(debug):
        with without_native_notes(debug):
            from pysm_vae.stats.report import evaluate_to_folder
        from rich.console import Console

        from pysm_vae.vae.cards import add_held_out

        if card and not Path(weights).is_file():
            raise ValueError(f"--card needs the path of a model card as --weights, not {weights!r}")
        peers = read_candidates(candidate or (), min_latitude=min_latitude)
        skies = training_maps([parse_map(text) for text in maps], min_latitude=min_latitude)
        with progress_bars({"two_sample": "two-sample tests"}) as progress:
            result = evaluate_to_folder(
                weights,
                skies,
                region,
                out,
                candidates=peers,
                n=samples,
                size=size,
                spacing=spacing,
                two_sample=two_sample,
                seed=seed,
                progress=progress,
            )
        Console(width=None if on_terminal() else 140).print(result.table())
        for note in result.notes:
            typer.echo(note)
        typer.echo(f"report: {out / 'evaluation.html'}")
        if card:
            typer.echo(f"page: {add_held_out(Path(weights), result)}")


@app.command()
def download(
    name: Annotated[
        str,
        typer.Argument(
            help="What to fetch; gnilc-545 is what the paper used.",
            autocompletion=complete_dataset,
        ),
    ],
    folder: Annotated[Path, typer.Option(help="Where to put it.")] = Path("."),
    debug: Debug = False,
) -> None:
    """Fetch a public map to train on; a broken download goes on where it stopped.

    `pysm-vae download gnilc-545`
    """
    with reported(debug):
        from pysm_vae.vae.download import download as fetch

        typer.echo(fetch(name, folder, progress=on_terminal()))


@dataclass(frozen=True)
class MapArgument:
    """What ``--map FILE[@PIXEL[+FWHM]][:cloud]`` says.

    A path, two sizes in arcmin or None, and the environment: 1 for a cloud, 0 for diffuse sky.
    """

    path: Path
    pixel_size: float | None = None
    fwhm: float | None = None
    environment: float = 0.0


def parse_map(text: str) -> MapArgument:
    """Read ``FILE[@PIXEL[+FWHM]][:cloud]``.

    Raises
    ------
    ValueError
        If what follows the last @ is not one or two positive sizes and is not part of the name of
        a file that is there.
    """
    environment = 0.0
    if text.endswith(":cloud") and not Path(text).is_file():
        text, environment = text.removesuffix(":cloud"), 1.0
    file, at, sizes = text.rpartition("@")
    if not at or Path(text).is_file():
        return MapArgument(Path(text), environment=environment)
    try:
        numbers = [float(part) for part in sizes.split("+")]
    except ValueError:
        numbers = []
    if not file or len(numbers) not in (1, 2) or not all(0 < n < float("inf") for n in numbers):
        raise ValueError(
            f"map {text!r} is not FILE[@PIXEL[+FWHM]][:cloud] with sizes in arcmin, such as "
            "gnilc.fits@2.5 or taurus.fits@5+10:cloud"
        )
    pixel_size, fwhm = (*numbers, None)[:2]
    return MapArgument(Path(file), pixel_size, fwhm, environment)


def training_maps(
    arguments: Sequence[MapArgument], *, min_latitude: float | None = None
) -> list[TrainingMap]:
    """Read maps to train on; of pixels far finer than a map's own, the log has a warning.

    Parameters
    ----------
    arguments : sequence of MapArgument
        The files, and the sizes asked for.
    min_latitude : float, optional
        Leave out smaller Galactic latitudes of HEALPix maps, degrees. Images are fields that
        somebody has chosen, and kept whole.

    Returns
    -------
    list of TrainingMap
        Named by their files; those of one file name by their pixel sizes, too.
    """
    from pysm_vae.vae.patches import map_name, read_map
    from pysm_vae.vae.training import TrainingMap

    count = Counter(map_name(each.path) for each in arguments)
    taken: set[str] = set()
    maps = []
    for each in arguments:
        name = map_name(each.path)
        if count[name] > 1:
            size = "own" if each.pixel_size is None else f"{each.pixel_size:g}arcmin"
            name = f"{name}_{size}"
        if name in taken:
            raise ValueError(
                f"two maps would both be called {name!r}: give each file at a pixel size only once"
            )
        taken.add(name)
        sky = read_map(each.path, fwhm=each.fwhm, name=name)
        if sky.kind == "healpix":
            sky.min_latitude = min_latitude
        if each.pixel_size is not None and each.pixel_size < _FINEST * sky.resolution:
            log.warning(
                "%s has pixels of %.3g arcmin: patches of %g arcmin a pixel hold little but "
                "interpolation; @%.2g or more is about right",
                each.path,
                sky.resolution,
                each.pixel_size,
                sky.resolution,
            )
        maps.append(
            TrainingMap(
                sky,
                each.pixel_size or max(_PIXEL_SIZE, sky.resolution),
                each.path,
                each.fwhm,
                each.environment,
            )
        )
    return maps


def read_candidates(
    arguments: Sequence[str], *, min_latitude: float | None = None
) -> dict[str, np.ndarray | CandidateSky]:
    """Read what ``--candidate [NAME=]FILE[@PIXEL[+FWHM]]`` names.

    Parameters
    ----------
    arguments : sequence of str
        The options' values; a name is by default that of the file.
    min_latitude : float, optional
        Leave out smaller Galactic latitudes of HEALPix maps, degrees.

    Returns
    -------
    dict of str to array or CandidateSky
        As `pysm_vae.stats.report.evaluate` takes them.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing or unfit, or two have the same name.
    """
    from pysm_vae.stats.report import read_candidate
    from pysm_vae.vae.patches import map_name

    found: dict[str, np.ndarray | CandidateSky] = {}
    for text in arguments:
        name, equals, rest = text.partition("=")
        if not equals or Path(text).is_file():
            name, rest = "", text
        file = parse_map(rest)
        array = file.path.suffix in (".npy", ".npz")
        name = name or (file.path.stem if array else map_name(file.path))
        if name in found:
            raise ValueError(f"two candidates are called {name!r}: give them NAME=FILE")
        found[name] = read_candidate(
            file.path, pixel_size=file.pixel_size, fwhm=file.fwhm, min_latitude=min_latitude
        )
    return found


def training_config(architecture: str, **options: Any) -> TrainingConfig:
    """Configuration of a training run: the architecture's defaults and what is not None."""
    from pysm_vae.vae.training import TrainingConfig

    chosen = DEFAULTS[architecture] | {k: v for k, v in options.items() if v is not None}
    if not 0 < chosen["learning_rate"] < 1:
        raise ValueError(f"learning rate {chosen['learning_rate']:g} must lie between 0 and 1")
    if chosen["size"] % 16:
        raise ValueError(f"patch size {chosen['size']} must be a multiple of 16")
    # The best weights are sought after the warm-up, so a short run needs a shorter one.
    chosen["kl_warmup"] = min(chosen["kl_warmup"], chosen["epochs"] - 1)
    return TrainingConfig(architecture=architecture, **chosen)
