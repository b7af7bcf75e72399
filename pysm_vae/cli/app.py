"""What every subcommand of ``pysm-vae`` shares: the app, errors in one line, progress bars."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pysm_vae.simulate import Progress

_HELP = """Non-Gaussian Galactic dust for PySM 3, learned from Planck.

**Make maps** of a sky, which is a seed, at some frequencies (GHz), and look at one:

`pysm-vae simulate --nside 128 --freq 95 --freq 150 --seed 7 --out maps`

`pysm-vae plot maps/vae0_150GHz_nside128_seed7.fits`

**Make many**, and after a kill only what is missing; or see first what it takes:

`pysm-vae simulate --nside 256 --freq 150 --seeds 0:100 --out maps --dry-run`

**Learn from your own map** of dust, and make skies with that:

`pysm-vae train --map mine.fits@5 --out runs/mine`

`pysm-vae simulate --nside 128 --freq 150 --weights runs/mine/octave.json --out maps`

In Python: `import pysm3, pysm_vae; pysm3.Sky(nside=128, preset_strings=["vae0"])`.
"""

_EPILOG = """Each command has its own --help, with examples. Exit codes: 0, all is done; 1, it
failed (disk, network, or something unforeseen); 2, an option or a file cannot be used; 130,
interrupted. Errors are one line on standard error; --debug shows where they come from. `pysm-vae
--install-completion` lets the shell complete commands, options, presets and weights."""

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help=_HELP,
    epilog=_EPILOG,
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

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that are there already.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")]


@contextmanager
def reported(debug: bool) -> Iterator[None]:
    """Turn exceptions into one readable line and an exit code."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        # What shells give a program that SIGINT has ended.
        typer.echo("pysm-vae: interrupted", err=True)
        raise typer.Exit(130) from None
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


def check_new(path: Path, overwrite: bool) -> None:
    """Refuse to replace a file that nobody has said may be replaced."""
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{str(path)!r} already exists: name another --out, or replace it with --overwrite"
        )


@contextmanager
def without_native_notes(debug: bool) -> Iterator[None]:
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


class _Notes(logging.Handler):
    """What this package logs, as lines on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(f"pysm-vae: {record.levelname.lower()}: {self.format(record)}", err=True)


@app.callback(help=_HELP)
def main(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say more of what is going on.")
    ] = False,
) -> None:
    """Set up what is logged, for as long as the command runs."""
    logger, notes = logging.getLogger("pysm_vae"), _Notes()
    before = logger.level
    logger.addHandler(notes)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    context.call_on_close(lambda: logger.removeHandler(notes))
    context.call_on_close(lambda: logger.setLevel(before))


def complete_preset() -> list[str]:
    """Names of the presets, for the shell."""
    from pysm_vae.registration import presets

    return list(presets())


def complete_weights() -> list[str]:
    """Names of the shipped weights, for the shell."""
    from pysm_vae.vae.generator import SHIPPED_WEIGHTS

    return ["default", *SHIPPED_WEIGHTS]


def complete_template() -> list[str]:
    """Names of templates, for the shell."""
    from pysm_vae.sky.templates import pysm_presets

    return ["embedded", *pysm_presets()]


def complete_unit() -> list[str]:
    """The usual units of maps, for the shell."""
    return ["uK_CMB", "uK_RJ", "K_CMB", "K_RJ", "MJy/sr"]


def complete_dataset() -> list[str]:
    """Names of maps that can be fetched, for the shell."""
    from pysm_vae.vae.download import DATASETS

    return list(DATASETS)


def on_terminal() -> bool:
    """Whether progress is shown: to people, not into files."""
    from rich.console import Console

    return Console(stderr=True).is_terminal


@contextmanager
def progress_bars(labels: dict[str, str]) -> Iterator[Progress | None]:
    """Bars on a terminal, one for each thing that is done, and nothing elsewhere."""
    if not (labels and on_terminal()):
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
