"""FITS files of maps: how they are written, so that they can be told whole from damaged ones."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path
from typing import Any

import healpy as hp
import numpy as np
import pysm3.units as u
from astropy.io import fits
from astropy.io.fits.verify import VerifyError
from astropy.utils.exceptions import AstropyWarning

from pysm_vae.files import atomic_write

# The names that healpy gives the columns.
_COLUMNS = ("TEMPERATURE", "Q_POLARISATION", "U_POLARISATION")
# Pixels a row of a full map's table, as healpy has them; fewer if the map is smaller.
_ROW = 1024
# Headers and the padding of the blocks, generously.
_HEADERS = 64 << 10
_BLOCK = 2880


class DamagedMap(ValueError):
    """A file that was meant to be a map, and is cut off or changed."""


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
    try:
        # Opened here, since astropy leaves a file open that it gives up on.
        with warnings.catch_warnings(), path.open("rb") as stream:
            warnings.simplefilter("error", AstropyWarning)
            with fits.open(stream, memmap=False) as hdus:
                table = hdus[1]
                # Only now are all headers read.
                length = sum(hdu.filebytes() for hdu in hdus)
                if path.stat().st_size != length:
                    raise DamagedMap(f"{path} has not the {length} bytes that its header says")
                if checksum and table.verify_checksum() == 0:
                    raise DamagedMap(f"{path} does not have the checksum that its header says")
                return table.header.copy()
    except FileNotFoundError:
        raise
    except DamagedMap:
        raise
    except (OSError, AstropyWarning, VerifyError, LookupError, ValueError, TypeError) as error:
        raise DamagedMap(f"{path} cannot be read as a map ({error})") from error


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
