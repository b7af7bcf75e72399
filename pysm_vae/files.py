"""Where the shipped data lie, and how a file is written so that it is never seen half done."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

log = logging.getLogger(__name__)

_PREFIX = ".part-"
# Seconds after which a temporary file that nobody has written to is nobody's, on any machine.
_FORGOTTEN = 7 * 86400.0


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

    A reader sees the old file or the new one, never half of one, whoever else writes the same; a
    failed block leaves nothing. A process that is killed may leave the temporary file, which
    :func:`writable_folder` removes.

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
    prefix = f"{_PREFIX}{_machine()}-{os.getpid()}-"
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=f"-{path.name}", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        # Full disks and quotas may show only now; and a file must not get its name before its
        # content is there.
        with partial.open("r+b") as written:
            os.fsync(written.fileno())
        # mkstemp makes files private; give them the rights that open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        os.replace(partial, path)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()


@lru_cache
def _machine() -> str:
    """Where a process's number means this process: a host since its start, and its container."""
    known = [socket.gethostname()]
    with suppress(OSError):
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        known.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("|".join(known).encode()).hexdigest()[:8]


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files whose writers are dead: of this machine, or long forgotten."""
    for entry in os.scandir(folder):
        if not entry.name.startswith(_PREFIX):
            continue
        machine, _, rest = entry.name.removeprefix(_PREFIX).partition("-")
        number = rest.partition("-")[0]
        with suppress(OSError):
            here = machine == _machine() and number.isdecimal() and not _alive(int(number))
            if here or time.time() - entry.stat().st_mtime > _FORGOTTEN:
                os.unlink(entry.path)
                log.info("removed %s, which a killed process left", entry.path)


def _alive(number: int) -> bool:
    if os.name == "nt":
        # There, os.kill would end it.
        return True
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        # Another user's.
        return True
    return True


def writable_folder(path: str | os.PathLike) -> Path:
    """Make sure that ``path`` is a folder we can write to, before long work starts.

    What killed processes have left in it half written is removed.

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
        _remove_leftovers(path)
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


def file_stamp(path: str | os.PathLike) -> tuple[str, int, int]:
    """Path, time of change (ns) and size: what a file that was read is known again by.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    path = Path(path).absolute()
    status = path.stat()
    return str(path), status.st_mtime_ns, status.st_size
