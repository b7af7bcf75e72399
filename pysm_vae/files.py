"""Where the shipped data lie, and how a file is written so that it is never seen half done."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def data_path(name: str) -> Path:
    """Path of a shipped data file (weights, card, template).

    Parameters
    ----------
    name : str
        File name inside ``data/``.

    Raises
    ------
    FileNotFoundError
        If no such file is shipped.
    """
    package = Path(__file__).resolve().parent
    # The wheel carries data/ inside the package; a checkout has it beside the package.
    folders = (package / "data", package.parent / "data")
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    shipped = sorted(p.name for folder in folders if folder.is_dir() for p in folder.iterdir())
    raise FileNotFoundError(
        f"pysm_vae ships no data file {name!r} (it has: {', '.join(shipped) or 'none'}). "
        "Reinstall the package if one is missing."
    )


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Write to a temporary name beside ``path`` and move it there once the block has succeeded.

    A reader sees the old file or the new one, never half of one; a failed block leaves nothing.

    Parameters
    ----------
    path : path-like
        The file to write. The temporary name keeps its suffixes, by which many writers choose
        a format.

    Yields
    ------
    pathlib.Path
        The temporary path to write to.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=".part-", suffix=f"-{path.name}", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        # mkstemp makes files private; give them the rights that open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        os.replace(partial, path)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()


def writable_folder(path: str | os.PathLike) -> Path:
    """Make sure that ``path`` is a folder we can write to, before long work starts.

    Raises
    ------
    NotADirectoryError
        If it exists and is a file.
    PermissionError
        If it cannot be made or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"output folder {str(path)!r}: a file of that name is in the way. Name another folder."
        ) from error
    except OSError as error:
        raise PermissionError(
            f"output folder {str(path)!r} cannot be written to ({error.strerror}). "
            "Name a folder you may write to, or free some space."
        ) from error
    return path
