"""Fetch the public maps that networks are trained on.

Downloads resume: what has arrived is kept in ``<file>.part``, with what the server said of the file
in ``<file>.part.json``, and the file gets its own name only once it is complete.
"""

from __future__ import annotations

import errno
import http.client
import json
import logging
import os
import re
import shutil
import urllib.error
import urllib.request
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from pysm_vae.files import atomic_write, writable_folder

logger = logging.getLogger(__name__)

_CHUNK = 1 << 18  # bytes
_TIMEOUT = 60  # seconds without a byte


class DownloadError(OSError):
    """A download that did not finish; the message says why and what to do."""


@dataclass(frozen=True)
class Dataset:
    """A public map.

    Attributes
    ----------
    file : str
        Name it is stored under.
    url : str
        Where it is.
    description : str
        What it is.
    """

    file: str
    url: str
    description: str


DATASETS: dict[str, Dataset] = {
    "gnilc-545": Dataset(
        file="COM_CompMap_Dust-GNILC-F545_2048_R2.00.fits",
        url=(
            "https://pla.esac.esa.int/pla/aio/product-action"
            "?MAP.MAP_ID=COM_CompMap_Dust-GNILC-F545_2048_R2.00.fits"
        ),
        description="Planck GNILC thermal dust at 545 GHz, nside 2048, 5 arcmin, MJy/sr "
        "(Planck Legacy Archive)",
    ),
}


@dataclass(frozen=True)
class _Remote:
    """What the server says of a file: enough to know it again."""

    url: str
    size: int | None
    etag: str | None
    modified: str | None

    def validator(self) -> str | None:
        """Value for If-Range: a strong ETag, else the date (RFC 9110, sect. 13.1.5)."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.modified


def download(
    name: str,
    folder: str | os.PathLike,
    *,
    url: str | None = None,
    progress: bool = True,
) -> Path:
    """Fetch a map, or what is still missing of it.

    Parameters
    ----------
    name : str
        A key of ``DATASETS``, such as ``"gnilc-545"``.
    folder : path-like
        Where to put it; made if need be. A file that is there already is not fetched again.
    url : str, optional
        Another place to fetch it from (a mirror).
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    pathlib.Path
        The complete file.

    Raises
    ------
    ValueError
        If the name or the kind of URL is not known.
    NotADirectoryError, PermissionError
        If the folder cannot be written to.
    DownloadError
        If the network, the server or the disk fails. What has arrived is kept, and the same call
        resumes.
    """
    if name not in DATASETS:
        raise ValueError(f"no dataset {name!r}: there is {', '.join(sorted(DATASETS))}.")
    dataset = DATASETS[name]
    url = url or dataset.url
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url {url!r}: give an http:// or https:// address.")
    target = writable_folder(folder) / dataset.file
    if target.is_file():
        return target
    part = target.with_name(target.name + ".part")
    note = part.with_name(part.name + ".json")
    try:
        known = _load_note(note, url)
        have = part.stat().st_size if known and part.is_file() else 0
        if have == 0 or not _transfer(url, part, note, have, known, progress):
            _transfer(url, part, note, 0, None, progress)
        _check_whole(part, note, url)
    except OSError as error:
        if isinstance(error, DownloadError):
            raise
        raise _explain(error, url, part) from error
    except http.client.HTTPException as error:
        raise _interrupted(url, part, repr(error)) from error
    os.replace(part, target)
    note.unlink()
    return target


def _transfer(
    url: str, part: Path, note: Path, have: int, known: _Remote | None, progress: bool
) -> bool:
    """Append to ``part`` from byte ``have`` on; False if it must be started afresh instead."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "pysm_vae"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known.validator():
            headers["If-Range"] = known.validator()
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT
        )
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
                # Nothing is left to send: all there, unless the file has changed.
                total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
                return total is not None and int(total[1]) == have == known.size
            raise
    with response:
        if response.headers.get_content_type() == "text/html":
            raise DownloadError(
                f"{url} answered with a web page instead of the map. Open the address in a "
                "browser to see what it says, or give another one with url=..."
            )
        start = 0
        remote = _describe(response, url)
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            start, size = _content_range(response)
            remote = _Remote(url, size, remote.etag, remote.modified)
            if not have or start != have or remote != known:
                return False
        _check_space(part, remote.size, start)
        # A server that ignores Range sends all from the start, and then so do we.
        with part.open("ab" if start else "wb") as stream:
            if not start:
                # After emptying the old one, so that the note never speaks of another file's bytes.
                with atomic_write(note) as partial:
                    partial.write_text(json.dumps(asdict(remote)))
            bar = Progress(
                TextColumn(part.stem),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                disable=not progress,
            )
            with bar:
                task = bar.add_task("", total=remote.size, completed=start)
                while chunk := response.read(_CHUNK):
                    stream.write(chunk)
                    bar.advance(task, len(chunk))
    return True


def _describe(response: http.client.HTTPResponse, url: str) -> _Remote:
    length = response.headers.get("Content-Length", "")
    return _Remote(
        url,
        int(length) if length.isdecimal() else None,
        response.headers.get("ETag"),
        response.headers.get("Last-Modified"),
    )


def _content_range(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Start and total size that a 206 answer states; (-1, None) if it states none."""
    match = re.fullmatch(
        r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip()
    )
    if match is None:
        return -1, None
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _load_note(note: Path, url: str) -> _Remote | None:
    with suppress(FileNotFoundError, ValueError, TypeError):
        known = _Remote(**json.loads(note.read_text()))
        if known.url == url:
            return known
    return None


def _check_space(part: Path, size: int | None, start: int) -> None:
    if size is None:
        return
    held = part.stat().st_size if start == 0 and part.is_file() else 0  # about to be emptied
    free = shutil.disk_usage(part.parent).free + held
    if size - start > free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))


def _check_whole(part: Path, note: Path, url: str) -> None:
    """Compare what has arrived with what was announced."""
    size = _Remote(**json.loads(note.read_text())).size
    have = part.stat().st_size
    if size is None:
        # No size was announced; the FITS headers say how long the file must be.
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", AstropyWarning)
                # Opened here, since astropy leaves a file open that it gives up on.
                with part.open("rb") as stream, fits.open(stream) as hdus:
                    hdus.verify("exception")
                    whole = sum(hdu.filebytes() for hdu in hdus) == have
        except (OSError, AstropyWarning):
            whole = False
        if not whole:
            # A partial file of unknown length cannot be told from a damaged one: start again.
            part.unlink()
            note.unlink()
            raise DownloadError(
                f"{url}: the server did not say how long the file is, and what came ({have} bytes) "
                "is not a whole FITS file. It was removed; try again, or another url=..."
            )
    elif have < size:
        raise _interrupted(url, part, f"the connection closed after {have} of {size} bytes")
    elif have > size:
        part.unlink()
        note.unlink()
        raise DownloadError(
            f"{url}: {have} bytes came where {size} were announced. The partial file was removed; "
            "try again."
        )


def _interrupted(url: str, part: Path, why: str) -> DownloadError:
    kept = part.stat().st_size if part.is_file() else 0
    return DownloadError(
        f"{url}: {why}. The partial file {part} ({kept} bytes) is kept: the same command resumes "
        "where it stopped."
    )


def _explain(error: OSError, url: str, part: Path) -> DownloadError:
    if isinstance(error, urllib.error.HTTPError):
        return DownloadError(
            f"{url}: the server answered {error.code} {error.reason}. Check the address, try again "
            "later, or give another one with url=..."
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        kept = part.stat().st_size if part.is_file() else 0
        return DownloadError(
            f"no space left in {part.parent} for {part.stem}. The partial file ({kept} bytes) is "
            "kept: free some space and run the same command to resume."
        )
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return _interrupted(url, part, str(reason))
