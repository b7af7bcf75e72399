"""FITS files of HEALPix maps, written so that damage shows, and read so that it is seen."""

from __future__ import annotations

import errno
import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import healpy as hp
import numpy as np
import pysm3.units as u
from astropy.io import fits

from pysm_vae.files import atomic_write

# The names that healpy gives the columns.
_COLUMNS = ("TEMPERATURE", "Q_POLARISATION", "U_POLARISATION")
# Pixels a row of a full map's table, as healpy has them; fewer if the map is smaller.
_ROW = 1024
# Headers and the padding of the blocks, generously.
_HEADERS = 64 << 10
# Card of the SHA-256 of a table's bytes.
_HASH = "DATASHA2"


# What astropy only warns of, and then goes on with numbers that the file does not have.
_FATAL = (".*truncated.*", ".*validating header.*", ".*extra padding.*")


class UnfitMap(ValueError):
    """A file that does not hold a map which can be relied on."""


class DamagedMap(UnfitMap):
    """A file that was meant to be a map, and is cut off or changed."""


@contextmanager
def strict_fits(path: Path, name: str) -> Iterator[fits.HDUList]:
    """Open a FITS file; whatever goes wrong in the block becomes an error in words.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    name : str
        What messages call it.

    Yields
    ------
    astropy.io.fits.HDUList

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    UnfitMap
        If the file is cut off or no FITS file, or the block has raised something: astropy and numpy
        raise many kinds for files that are damaged, or something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{name} does not exist: there is no such file. Check the path.")
    try:
        # Opened here, since astropy leaves a file open that it gives up on.
        with warnings.catch_warnings(), path.open("rb") as stream:
            # Small faults of headers are common and do no harm.
            warnings.simplefilter("ignore")
            for text in _FATAL:
                warnings.filterwarnings("error", text)
            with fits.open(stream, memmap=False) as hdus:
                yield hdus
    except UnfitMap:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if "No SIMPLE card" in reason:
            # astropy goes on with advice on its own options.
            reason = "it does not begin as FITS files do"
        raise UnfitMap(
            f"{name} cannot be read as FITS ({reason}). Give a whole FITS file."
        ) from error


@dataclass(frozen=True, eq=False)
class HealpixFile:
    """What :func:`read_healpix` has read.

    Attributes
    ----------
    nside : int
        Resolution.
    nest : bool
        Whether pixels are in NESTED order, or RING.
    pixels : ndarray of int64, shape (npix,), or None
        Pixels of a partial map, in the order of the file; None for a full sky.
    maps : ndarray, float64, shape (n, npix)
        The columns; NaN where a pixel is UNSEEN or marked as bad.
    columns, units : tuple of str
        Their names, and what ``TUNIT`` says.
    header : astropy.io.fits.Header
        Of the table.
    """

    nside: int
    nest: bool
    pixels: np.ndarray | None
    maps: np.ndarray
    columns: tuple[str, ...]
    units: tuple[str, ...]
    header: fits.Header

    @property
    def coordinates(self) -> str:
        """First letter of ``COORDSYS``, ``"G"`` for Galactic; empty if it is not said."""
        return str(self.header.get("COORDSYS", "")).strip().upper()[:1]


def map_bytes(nside: int, pixels: np.ndarray | None) -> int:
    """Bytes that a map takes on disk, and a little more."""
    if pixels is None:
        return hp.nside2npix(nside) * 3 * np.dtype(np.float32).itemsize + _HEADERS
    return len(pixels) * _partial_type(nside).itemsize + _HEADERS


def write_map(
    path: Path,
    maps: np.ndarray,
    *,
    nside: int,
    pixels: np.ndarray | None,
    unit: u.UnitBase,
    cards: list[tuple],
) -> None:
    """Write I, Q, U as ``healpy.write_map`` does, with checksums; whole, or not at all.

    Other than healpy's, these files have the FITS standard's ``CHECKSUM`` and ``DATASUM`` (which
    ``fitscheck`` reads, too), and no more than the wanted pixels of partial maps is in memory.

    Parameters
    ----------
    path : pathlib.Path
        The file; replaced if it is there.
    maps : ndarray, float32, shape (3, npix)
        I, Q, U in ``unit``.
    nside : int
        Resolution.
    pixels : ndarray of int, shape (npix,), or None
        RING, rising; None for the full sky. Partial maps are written with explicit indices.
    unit : Unit
        Unit of the maps.
    cards : list of tuple
        More for the header.

    Raises
    ------
    OSError
        If the disk is full or the file cannot be written; no part of it is left.
    """
    if pixels is None:
        width = _ROW if maps.shape[1] % _ROW == 0 else 1
        shape = (width,) if width > 1 else ()
        rows = np.empty(maps.shape[1] // width, [(name, ">f4", shape) for name in _COLUMNS])
        for name, values in zip(_COLUMNS, maps, strict=True):
            rows[name] = values.reshape(-1, *shape)
        layout = [
            ("FIRSTPIX", 0, "First pixel # (0 based)"),
            ("LASTPIX", maps.shape[1] - 1, "Last pixel # (0 based)"),
            ("INDXSCHM", "IMPLICIT", "Indexing: IMPLICIT or EXPLICIT"),
            ("OBJECT", "FULLSKY", "Sky coverage, either FULLSKY or PARTIAL"),
        ]
    else:
        rows = np.empty(len(pixels), _partial_type(nside))
        for name, values in zip(rows.dtype.names, (pixels, *maps), strict=True):
            rows[name] = values
        layout = [
            ("INDXSCHM", "EXPLICIT", "Indexing: IMPLICIT or EXPLICIT"),
            ("OBS_NPIX", len(pixels), "Number of pixels in the table"),
            ("OBJECT", "PARTIAL", "Sky coverage, either FULLSKY or PARTIAL"),
        ]
    table = fits.BinTableHDU(rows)
    for number, name in enumerate(rows.dtype.names, start=1):
        if name != "PIXEL":
            table.header.set(f"TUNIT{number}", _fits_unit(unit), after=f"TFORM{number}")
    for key, *rest in (
        ("PIXTYPE", "HEALPIX", "HEALPIX pixelisation"),
        ("ORDERING", "RING", "Pixel ordering scheme, either RING or NESTED"),
        ("COORDSYS", "G", "Ecliptic, Galactic or Celestial (equatorial)"),
        ("NSIDE", nside, "Resolution parameter of HEALPIX"),
        *layout,
        *cards,
    ):
        table.header[key] = tuple(rest)
    # The standard's checksum is a sum: it does not see that two blocks have changed places.
    table.header[_HASH] = hashlib.sha256(rows.view(np.uint8).data).hexdigest()
    # A comment of our own in place of the date, so that the same sky makes the same file.
    table.add_checksum(when="of this table, by the FITS standard")
    with atomic_write(path) as partial:
        try:
            table.writeto(partial, overwrite=True)
        except OSError as error:
            if error.errno is None:
                # astropy and numpy know how many bytes were left over, but not why.
                raise OSError(errno.ENOSPC, f"writing stopped ({error})", str(path)) from error
            raise OSError(error.errno, error.strerror, str(path)) from error


def read_header(path: Path) -> fits.Header:
    """Header of a map's table, after a check that the file is as long as its headers say.

    Raises
    ------
    DamagedMap
        If it is not, or they cannot be read.
    """
    return _read(path, checksum=False)


def verify_map(path: Path) -> fits.Header:
    """Read a map's file through, and compare it with its checksum.

    Returns
    -------
    astropy.io.fits.Header
        Of the map's table.

    Raises
    ------
    DamagedMap
        If the file is cut off or was changed.
    """
    return _read(path, checksum=True)


def _read(path: Path, *, checksum: bool) -> fits.Header:
    name = f"map {str(path)!r}"
    try:
        with strict_fits(path, name) as hdus:
            table = hdus[1]
            # Only now are all headers read.
            length = sum(hdu.filebytes() for hdu in hdus)
            if path.stat().st_size != length:
                raise DamagedMap(f"{name} has not the {length} bytes that its header says")
            if checksum:
                check_sum(table, name)
            return table.header.copy()
    except DamagedMap:
        raise
    except UnfitMap as error:
        raise DamagedMap(str(error)) from error


def read_healpix(path: str | Path, what: str, *, most: int = 3) -> HealpixFile:
    """Read a HEALPix map, and refuse what could be read as another map than was written.

    Other than ``healpy.read_map`` it never takes a file that is cut off, that fails its own
    checksum, whose ordering it does not know, or whose numbers are bad for whole ones; and it needs
    no memory for pixels that a partial map does not have.

    Parameters
    ----------
    path : path-like
        FITS file; the map is the table of its first extension.
    what : str
        What the map is for, as messages call it: ``"template"``.
    most : int
        Read so many columns at the most, from the first.

    Returns
    -------
    HealpixFile

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no HEALPix map that can be relied on; the message says why, and what to do.
    """
    path = Path(path)
    name = f"{what} {str(path)!r}"
    with strict_fits(path, name) as hdus:
        table = hdus[1] if len(hdus) > 1 else None
        if not isinstance(table, fits.BinTableHDU):
            raise UnfitMap(
                f"{name} has no table in its first extension, so it cannot be read as a HEALPix "
                "map: give a file as healpy.write_map makes it"
            )
        check_sum(table, name)
        try:
            return _healpix(table, most)
        except _Fault as error:
            raise UnfitMap(
                f"{name} cannot be read as a HEALPix map: {error}. Give a file as "
                "healpy.write_map makes it."
            ) from None


class _Fault(Exception):
    """What is wrong with a table."""


def check_sum(hdu: Any, name: str) -> None:
    """Compare an HDU with its checksum, if it has one.

    Raises
    ------
    DamagedMap
        If it has another one.
    """
    wrong = hdu.verify_checksum() == 0 or hdu.verify_datasum() == 0
    if not wrong and _HASH in hdu.header:
        found = np.ascontiguousarray(hdu.data.view(np.ndarray)).view(np.uint8)
        wrong = hashlib.sha256(found.data).hexdigest() != hdu.header[_HASH]
    if wrong:
        raise DamagedMap(
            f"{name} does not have the checksum that its header says: it is damaged, or was "
            "changed by a program that left the checksum alone. Copy or make it again."
        )


def _healpix(table: fits.BinTableHDU, most: int) -> HealpixFile:
    header = table.header
    ordering = str(header.get("ORDERING", "")).strip().upper()
    if ordering not in ("RING", "NEST", "NESTED"):
        raise _Fault(f"its ORDERING is {ordering!r}, neither RING nor NESTED")
    scheme = str(header.get("INDXSCHM", "")).strip().upper()
    coverage = str(header.get("OBJECT", "")).strip().upper()
    partial = scheme == "EXPLICIT" or (not scheme and coverage == "PARTIAL")
    if (partial and coverage == "FULLSKY") or (scheme == "IMPLICIT" and coverage == "PARTIAL"):
        raise _Fault(f"INDXSCHM is {scheme!r} and OBJECT is {coverage!r}, which is no map")
    names = table.columns.names
    columns = [_numbers(table, name) for name in names[: most + partial]]
    pixels = None
    if partial:
        pixels = columns.pop(0)
        if pixels.dtype.kind not in "iu":
            raise _Fault(f"its pixels' numbers, column {names[0]!r}, are not whole")
        pixels = pixels.astype(np.int64)
        names = names[1:]
    if not columns:
        raise _Fault("it has no column of a map")
    sizes = {len(column) for column in columns} | ({len(pixels)} if partial else set())
    if len(sizes) > 1:
        raise _Fault(f"its columns have {sorted(sizes)} pixels, where all must have as many")
    npix = sizes.pop()
    nside = header.get("NSIDE")
    if isinstance(nside, str) and nside.strip().isdecimal():
        # As PySM 2's templates have it.
        nside = int(nside)
    if nside is None and not partial and hp.isnpixok(npix):
        nside = hp.npix2nside(npix)
    if not isinstance(nside, int) or not hp.isnsideok(nside, nest=True):
        raise _Fault(f"its NSIDE is {nside!r}, which no map of {npix} pixels has")
    if pixels is None and npix != hp.nside2npix(nside):
        raise _Fault(f"it has {npix} pixels, where NSIDE = {nside} has {hp.nside2npix(nside)}")
    if pixels is not None and npix:
        if pixels.min() < 0 or pixels.max() >= hp.nside2npix(nside):
            raise _Fault(f"it numbers pixels that NSIDE = {nside} does not have")
        if len(np.unique(pixels)) < npix:
            raise _Fault("it has some pixels twice")
    maps = np.array(columns, dtype=np.float64)
    blank = header.get("BAD_DATA")
    bad = np.isclose(maps, hp.UNSEEN, rtol=1e-5, atol=0)
    if isinstance(blank, float | int):
        bad |= np.isclose(maps, blank, rtol=1e-5, atol=0)
    maps[bad] = np.nan
    return HealpixFile(
        nside=nside,
        nest=ordering != "RING",
        pixels=pixels,
        maps=maps,
        columns=tuple(names[: len(columns)]),
        units=tuple(str(table.columns[name].unit or "") for name in names[: len(columns)]),
        header=header.copy(),
    )


def _numbers(table: fits.BinTableHDU, name: str) -> np.ndarray:
    """A column's numbers, in one row."""
    values = np.asarray(table.data[name])
    if values.dtype.kind not in "iuf":
        raise _Fault(f"its column {name!r} does not hold numbers")
    return values.ravel()


def is_fits(path: Path) -> bool:
    """Whether a file starts as every FITS file does, or is empty, as one cut off may be."""
    with path.open("rb") as stream:
        start = stream.read(10)
    return b"SIMPLE  = ".startswith(start)


def _partial_type(nside: int) -> np.dtype:
    """A row of a partial map's table."""
    number = ">i4" if hp.nside2npix(nside) <= np.iinfo(np.int32).max else ">i8"
    fields: list[Any] = [("PIXEL", number), *((name, ">f4") for name in _COLUMNS)]
    return np.dtype(fields)


def _fits_unit(unit: u.UnitBase) -> str:
    """The unit as the FITS standard writes it; it knows no K_CMB, which is left as it is."""
    try:
        return unit.to_string("fits")
    except ValueError:
        return str(unit)
