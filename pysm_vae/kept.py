"""What one process has measured, kept on disk for those after it."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from astropy.config.paths import get_cache_dir

from pysm_vae.files import atomic_write

log = logging.getLogger(__name__)


def kept_folder() -> Path:
    """Where it is kept: a folder in the user's cache (``XDG_CACHE_HOME``), made if need be.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    return Path(get_cache_dir("pysm_vae"))


def kept(name: str, of: Sequence[bytes], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Arrays as they were measured before, to the last bit, or else measured now.

    Parameters
    ----------
    name : str
        What they are: the beginning of the file's name.
    of : sequence of bytes
        All that they depend on, beside this package's code.
    measure : callable
        Makes them. If they cannot be kept, no matter why, this is all that happens.

    Returns
    -------
    dict of ndarray
    """
    digest = hashlib.sha256(_code())
    for part in of:
        # Of fixed length, so that no two lists of parts run together to the same.
        digest.update(hashlib.sha256(part).digest())
    file = f"{name}-{digest.hexdigest()[:32]}.npz"
    found = _read(file)
    if found is None:
        found = measure()
        with suppress(OSError), atomic_write(kept_folder() / file) as partial:
            np.savez(partial, **found)
    return found


def _read(file: str) -> dict[str, Any] | None:
    try:
        path = kept_folder() / file
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return dict(stored)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        log.info("%s cannot be read and is measured anew: %s", file, error)
        return None


@lru_cache
def _code() -> bytes:
    """Digest of the package's sources."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for source in sorted(folder.rglob("*.py")):
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    return digest.digest()
