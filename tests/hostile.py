"""Damaged files and hostile values, and what may come of them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

import pysm_vae

PACKAGE = str(Path(pysm_vae.__file__).resolve().parent)
# What a caller may be told, and the command line turns into one line and exit code 2.
CLEAR = (
    ValueError,
    TypeError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ConnectionError,
)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns; or the error, which must be clear: of a kind that we document, raised by
    a line of this package, with a message that says something.
    """
    try:
        return call()
    except CLEAR as raised:
        error = raised
    frame = traceback.extract_tb(error.__traceback__)[-1]
    assert frame.filename.startswith(PACKAGE), f"raised deep inside, in {frame}: {error!r}"
    assert len(str(error)) > 15, repr(error)
    return error


def flipped(content: bytes, places: np.ndarray) -> bytes:
    """Bits turned over; places count bits."""
    changed = np.unpackbits(np.frombuffer(content, np.uint8))
    changed[places] ^= 1
    return np.packbits(changed).tobytes()


def damages(path: Path, rng: np.random.Generator, flips: int = 12) -> Iterator[tuple[str, bytes]]:
    """Ways in which a whole FITS file of one table or image breaks, and what it then holds."""
    content = path.read_bytes()
    with fits.open(path) as hdus:
        last = hdus[-1]
        start = last._header_offset
        data = last._data_offset
    for length in (0, 1, 79, 2879, 2880, start + 80, data - 1, data, data + 1, data + 2880):
        if length < len(content):
            yield f"cut off after {length} bytes", content[:length]
    yield "cut off before its last byte", content[:-1]
    yield "cut in half", content[: len(content) // 2]
    yield "all zeros", bytes(len(content))
    yield "all ones", b"\xff" * len(content)
    yield "a web page", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    yield "compressed, but not", b"\x1f\x8b\x08\x00" + content[4:]
    yield "data of zeros", content[:data] + bytes(len(content) - data)
    yield "header of zeros", content[:start] + bytes(data - start) + content[data:]
    yield "shifted by a byte", content[:data] + b"\0" + content[data:-1]
    yield "two blocks exchanged", _exchanged(content, data)
    for number in range(flips):
        bits = rng.integers(8 * start, 8 * data, 1 + number % 3)
        yield f"bits {bits} of the header flipped", flipped(content, bits)
        bits = rng.integers(8 * data, 8 * len(content), 1 + number % 3)
        yield f"bits {bits} of the data flipped", flipped(content, bits)


def _exchanged(content: bytes, data: int) -> bytes:
    one, two = slice(data, data + 2880), slice(data + 2880, data + 5760)
    return content[: one.start] + content[two] + content[one] + content[two.stop :]


def reheaded(path: Path, changes: dict[str, Any], to: Path) -> Path:
    """A copy with other cards, and checksums that know of them; None removes a card."""
    with fits.open(path) as hdus:
        for key, value in changes.items():
            if value is None:
                hdus[1].header.remove(key, ignore_missing=True)
            else:
                hdus[1].header[key] = value
        checked = "CHECKSUM" in hdus[1].header
        hdus.writeto(to, overwrite=True, checksum=checked, output_verify="ignore")
    return to
