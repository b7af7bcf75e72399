"""The command ``pysm-vae``. Thin: each subcommand reads its options and calls one function.

The rooms are imported inside the subcommands, so that ``--help`` does not wait for them.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np

    from pysm_vae.simulate import Progress
    from pysm_vae.stats.report import CandidateSky
    from pysm_vae.vae.training import TrainingConfig, TrainingMap

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Non-Gaussian Galactic dust for PySM 3, learned from Planck.",
    epilog="Start with: `pysm-vae simulate --nside 128 --freq 353 --out maps`. "
    "Each command has its own --help.",
)

# Bad arguments and inputs; whatever else goes wrong exits with 1.
_BAD_INPUT = (
    ValueError,
    TypeError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)

#: What works for each architecture; options of the command take the place of these.
DEFAULTS: dict[str, dict[str, Any]] = {
    "octave": {
        "size": 64,
        "patches": 8000,
        "epochs": 6,
        "batch_size": 16,
        "learning_rate": 2e-3,
        "beta_1": 0.9,
        "kl_warmup": 3,
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


class Architecture(str, Enum):
    """The networks that can be trained."""

    octave = "octave"
    thorne2021 = "thorne2021"


Debug = Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")]


@contextmanager
def _reported(debug: bool) -> Iterator[None]:
    """Turn exceptions into one readable line and an exit code."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        from pysm_vae.mpi import LaunchError, RankError

        if isinstance(error, RankError):
            # The rank that failed says why, and all leave with the same code.
            raise typer.Exit(2 if issubclass(error.kind, _BAD_INPUT) else 1) from None
        if debug:
            traceback.print_exc()
        known = isinstance(error, (*_BAD_INPUT, OSError, LaunchError))
        text = _one_line(error)
        if not known:
            text = f"{type(error).__name__}: {text} (--debug shows where)"
        typer.echo(f"pysm-vae: error: {text}", err=True)
        raise typer.Exit(2 if isinstance(error, _BAD_INPUT) else 1) from None


@contextmanager
def _without_native_notes(debug: bool) -> Iterator[None]:
    """Keep TensorFlow's start-up notes away from the terminal.

    Its libraries write them straight to file descriptor 2, and no setting silences all of them.
    What Python writes to standard error still gets there; with ``debug`` everything does.
    """
    if debug:
        yield
        return
    shown = sys.stderr
    shown.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as sink, os.fdopen(os.dup(2), "w", buffering=1) as real:
        if shown is sys.__stderr__:
            sys.stderr = real
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            sys.stderr = shown


def _one_line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        name = f": {str(error.filename)!r}" if error.filename else ""
        text = f"{error.strerror}{name}"
        if error.errno == errno.ENOSPC and error.filename:
            text += " (free some space, or name another folder)"
    return " ".join(text.split())


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pysm-vae {version('pysm_vae')}")
        raise typer.Exit


@app.callback()
def main(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Non-Gaussian Galactic dust for PySM 3, learned from Planck."""


@app.command()
def simulate(
    nside: Annotated[int, typer.Option(help="HEALPix resolution, a power of two.")],
    out: Annotated[Path, typer.Option(help="Folder to write to; made if need be.")],
    freq: Annotated[
        list[float] | None, typer.Option(help="Frequency in GHz. Repeat for more maps.")
    ] = None,
    band: Annotated[
        list[str] | None,
        typer.Option(metavar="LOW:HIGH", help="Top-hat bandpass in GHz. Repeat for more."),
    ] = None,
    bandpass: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text file of a bandpass: GHz and weight (power, Jy/sr) in two columns, # for "
            "comments. Repeat for more."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which sky.")] = 0,
    unit: Annotated[
        str, typer.Option(help="uK_CMB, uK_RJ, K_CMB, MJy/sr, or what else PySM converts to.")
    ] = "uK_CMB",
    preset: Annotated[
        str, typer.Option(help="vae0: offline; vae1: on PySM's d10 (fetched once by PySM).")
    ] = "vae0",
    template: Annotated[
        str | None,
        typer.Option(
            help="Large scales, in place of the preset's: embedded, a PySM dust preset such as "
            "d10, or a FITS file of I, Q, U."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Network, in place of the preset's: octave, thorne2021, or the .json card of "
            "your own training."
        ),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            metavar="LON,LAT,RADIUS|FILE",
            help="Only a part of the sky: a disc in Galactic degrees, or a FITS mask that is not "
            "0 there. Writes partial maps.",
        ),
    ] = None,
    figure: Annotated[bool, typer.Option(help="Also draw a picture.")] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there already.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Make maps of I, Q and U, and a picture of them.

    One HEALPix FITS file (RING, Galactic, COSMO convention) a channel, that
    `healpy.read_map(file, field=(0, 1, 2))` reads. The seed, the weights' hash and the versions are
    in its header. The same seed gives the same sky at every nside, frequency and unit.

    Three frequencies; then a top-hat band and one from a table:

    `pysm-vae simulate --nside 128 --freq 95 --freq 150 --freq 353 --seed 7 --out maps`

    `pysm-vae simulate --nside 512 --band 140:160 --bandpass detector.txt --unit K_CMB --out maps`

    Part of the sky; then all of it, shared by four processes (needs `pysm_vae[mpi]`):

    `pysm-vae simulate --nside 2048 --freq 353 --region 110,-38,10 --out maps`

    `mpiexec -n 4 pysm-vae simulate --nside 2048 --freq 353 --out maps`
    """
    with _reported(debug):
        from pysm_vae.channels import Channel
        from pysm_vae.mpi import agreed, share_cores, world
        from pysm_vae.simulate import simulate as make_maps

        ranks = world()
        with agreed(ranks):
            channels = [Channel.at(f) for f in freq or ()]
            channels += [Channel.top_hat(*parse_band(text)) for text in band or ()]
            channels += [Channel.from_file(path) for path in bandpass or ()]
            if not channels:
                raise ValueError("nothing to map: give --freq, --band or --bandpass at least once")
        if ranks is not None:
            share_cores(ranks)
        first = ranks is None or ranks.rank == 0
        labels = {"charts": "drawing the sky", "channels": "writing maps"} if first else {}
        with _without_native_notes(debug), _progress(labels) as progress:
            files = make_maps(
                out,
                nside=nside,
                channels=channels,
                preset=preset,
                template=template,
                weights=weights,
                seed=seed,
                unit=unit,
                region=region,
                figure=figure,
                overwrite=overwrite,
                progress=progress,
                mpi_comm=ranks,
            )
        for file in files if first else ():
            typer.echo(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")


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
        int | None, typer.Option(min=1, help="Passes over the patches [6; thorne2021: 40].")
    ] = None,
    patches: Annotated[
        int | None, typer.Option(min=1, help="Training patches [8000; thorne2021: 4000].")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Patches a step [16].")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Adam's, at the start [0.001; thorne2021: 0.0005].")
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
    min_latitude: Annotated[
        float | None,
        typer.Option(
            min=0, max=89, help="Leave out smaller Galactic latitudes of HEALPix maps, degrees."
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard logs to OUT/tensorboard.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Train a network on your own maps.

    Sky is split by region into training, validation and test; no two parts share any. A run that
    was killed goes on where it was when the same command is given again.

    `pysm-vae train --map gnilc.fits@2.5 --map gnilc.fits@5+10 --min-latitude 15 --out mine`

    Then make maps with `pysm-vae simulate --weights mine/octave.json` and the other options, or
    `VAEDust(weights="mine/octave.json")` in Python.
    """
    with _reported(debug):
        with _without_native_notes(debug):
            from pysm_vae.vae.training import train as run_training
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
        card = run_training(
            skies, split, out, config, tensorboard=tensorboard, progress=_on_terminal()
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
        str, typer.Option(help="'default', 'octave', 'thorne2021', or the path of a model card.")
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
    min_latitude: Annotated[
        float | None,
        typer.Option(
            min=0, max=89, help="Leave out smaller Galactic latitudes of HEALPix maps, degrees."
        ),
    ] = None,
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
    with _reported(debug):
        with _without_native_notes(debug):
            from pysm_vae.stats.report import evaluate_to_folder
        from rich.console import Console

        from pysm_vae.vae.cards import add_held_out

        if card and not Path(weights).is_file():
            raise ValueError(f"--card needs the path of a model card as --weights, not {weights!r}")
        peers = read_candidates(candidate or (), min_latitude=min_latitude)
        skies = training_maps([parse_map(text) for text in maps], min_latitude=min_latitude)
        with _progress({"two_sample": "two-sample tests"}) as progress:
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
        Console(width=None if _on_terminal() else 140).print(result.table())
        for note in result.notes:
            typer.echo(note)
        typer.echo(f"report: {out / 'evaluation.html'}")
        if card:
            typer.echo(f"page: {add_held_out(Path(weights), result)}")


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="What to fetch; gnilc-545 is what the paper used.")],
    folder: Annotated[Path, typer.Option(help="Where to put it.")] = Path("."),
    debug: Debug = False,
) -> None:
    """Fetch a public map to train on; a broken download goes on where it stopped.

    `pysm-vae download gnilc-545`
    """
    with _reported(debug):
        from pysm_vae.vae.download import download as fetch

        typer.echo(fetch(name, folder, progress=_on_terminal()))


@app.command()
def info(debug: Debug = False) -> None:
    """Show versions, shipped weights, presets, and where things are."""
    with _reported(debug):
        typer.echo(describe_installation())


def parse_band(text: str) -> tuple[float, float]:
    """Edges of a top-hat, GHz, from ``LOW:HIGH``."""
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError as error:
        raise ValueError(f"band {text!r} is not LOW:HIGH in GHz, such as 140:160") from error
    return low, high


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
    """Read maps to train on.

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


def describe_installation() -> str:
    """Versions, shipped weights, presets and data sets, as lines of text."""
    from pysm_vae.files import data_path
    from pysm_vae.registration import presets
    from pysm_vae.vae.download import DATASETS
    from pysm_vae.vae.generator import SHIPPED_WEIGHTS, load_generator

    packages = ("pysm_vae", "pysm3", "healpy", "numpy", "keras", "tensorflow")
    lines = ["versions: " + ", ".join(f"{p} {version(p)}" for p in packages)]
    lines.append(f"shipped data: {data_path('template.npz').parent}")
    lines.append(f"PYSM_LOCAL_DATA: {os.environ.get('PYSM_LOCAL_DATA', 'not set')}")
    lines.append("weights:")
    for name in SHIPPED_WEIGHTS:
        try:
            card = load_generator(name).card
        except FileNotFoundError:
            lines.append(f"  {name}: not in this installation")
            continue
        lines.append(
            f"  {name}: patches of {card['size']} pixels of {card['pixel_size_arcmin']:g} arcmin, "
            f"sha256 {card['sha256'][:12]}"
        )
        if "maps" in card:
            trained = ", ".join(dict.fromkeys(each["name"] for each in card["maps"]))
            epochs = len(card["history"].get("loss", ()))
            lines.append(
                f"    trained on {trained}; {card['training_patches']} patches, {epochs} epochs, "
                f"seed {card['seed']}"
            )
    lines.append("presets:")
    for name, preset in presets().items():
        settings = ", ".join(f"{k} = {v!r}" for k, v in preset.items() if k != "class")
        lines.append(f"  {name}: {settings}")
    lines.append("maps to train on (pysm-vae download NAME):")
    lines += [f"  {name}: {dataset.description}" for name, dataset in DATASETS.items()]
    return "\n".join(lines)


def _on_terminal() -> bool:
    from rich.console import Console

    return Console(stderr=True).is_terminal


@contextmanager
def _progress(labels: dict[str, str]) -> Iterator[Progress | None]:
    """Bars on a terminal, one for each thing that is done, and nothing elsewhere."""
    if not (labels and _on_terminal()):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks = {what: bars.add_task(text, total=None) for what, text in labels.items()}

        def show(what: str, done: int, total: int) -> None:
            bars.update(tasks[what], completed=done, total=total)

        yield show
