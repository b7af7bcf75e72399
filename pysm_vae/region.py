"""Parts of the sky, as pixels of a map: a disc, or what a mask file wants."""

from __future__ import annotations

from pathlib import Path

import healpy as hp
import numpy as np

from pysm_vae.mapfiles import read_healpix


def region_pixels(region: str | Path | tuple[float, float, float], nside: int) -> np.ndarray:
    """Pixels of a region.

    Parameters
    ----------
    region : str, path or (float, float, float)
        A disc as Galactic longitude, latitude and radius in degrees, or as text
        (``"120,-30,5"``): the pixels whose centres it holds. Or a FITS file of a HEALPix mask, in
        any ordering, full or partial, whose pixels are wanted unless they are 0, NaN or UNSEEN.
        Masks are Galactic. All pixels of a coarser mask's are taken, and those that hold any
        wanted pixel of a finer mask.
    nside : int
        Resolution of the map, a power of two.

    Returns
    -------
    ndarray of int64, shape (npix,)
        RING, rising.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds no HEALPix mask, the numbers make no disc, or no pixel is left.
    """
    disc = _disc_numbers(region)
    if disc is not None:
        lon, lat, radius = disc
        if not (np.isfinite(lon) and abs(lat) <= 90 and 0 < radius <= 180):
            raise ValueError(
                f"region {region!r}: give lon,lat,radius in degrees, with a latitude from -90 to "
                "90 and a radius of at most 180"
            )
        pixels = hp.query_disc(nside, hp.ang2vec(lon, lat, lonlat=True), np.radians(radius))
        if not len(pixels):
            raise ValueError(
                f"region {region!r} holds the centre of no pixel of nside {nside}: make it larger, "
                "or the map finer"
            )
        return np.sort(pixels)
    # Three numbers are a disc, so this is a path.
    return _mask_pixels(Path(str(region)), nside)


def _disc_numbers(region: str | Path | tuple[float, float, float]) -> tuple[float, ...] | None:
    if isinstance(region, Path):
        return None
    parts = region.split(",") if isinstance(region, str) else region
    try:
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) == 3:
        return numbers
    if isinstance(region, str):
        return None
    raise ValueError(f"region {region!r} is not (lon, lat, radius) in degrees, nor a mask's path")


def _mask_pixels(path: Path, nside: int) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(
            f"region {str(path)!r}: no such file; give a FITS mask, or lon,lat,radius in degrees"
        )
    mask = read_healpix(path, "region", most=1)
    coordinates = mask.coordinates or "G"
    if coordinates != "G":
        raise ValueError(
            f"region {str(path)!r} is in coordinates {coordinates!r}, and maps are Galactic: turn "
            f"it with healpy.Rotator(coord=[{coordinates!r}, 'G']).rotate_map_pixel(mask)"
        )
    wanted = np.flatnonzero(np.isfinite(mask.maps[0]) & (mask.maps[0] != 0))
    if mask.pixels is not None:
        wanted = mask.pixels[wanted]
    if not mask.nest:
        wanted = hp.ring2nest(mask.nside, wanted)
    # Nested pixels of one that is coarser have consecutive numbers.
    # Nested pixels of one that is coarser have consecutive numbers.
    finer = nside // mask.nside
    if finer > 1:
        wanted = (wanted[:, None] * finer**2 + np.arange(finer**2)).ravel()
    elif finer == 0:
        wanted = np.unique(wanted // (mask.nside // nside) ** 2)
    if not len(wanted):
        raise ValueError(f"region {str(path)!r} wants no pixel: all are 0, NaN or UNSEEN")
    return np.sort(hp.nest2ring(nside, wanted))
