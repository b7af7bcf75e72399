"""Maps of the real sky to training patches.

A :class:`SkyMap` holds the natural logarithm of an intensity map, HEALPix or flat image, and gives
it at any Galactic position. Square tangent-plane patches are cut from it, on a fixed grid
(:func:`grid_patches`, for validation and test) or at random with augmentation
(:class:`PatchSampler`, for training), and each is standardised with what was removed kept beside it
(:class:`PatchSet`).

Training, validation and test are separated by *regions* of sky, never by crops: a patch belongs
to a region only if every map pixel that it is interpolated from lies in that region, so patches of
two regions share no map pixel. Positions whose interpolation stencil straddles a border belong to
no region. What the beam and any extra smoothing (``fwhm``) spread across a border is not
undone.
"""

from __future__ import annotations

import logging
import math
import os
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import ducc0
import healpy as hp
import numpy as np
from astropy import units as u
from astropy.coordinates import BarycentricMeanEcliptic, Galactic, SkyCoord
from astropy.io import fits
from astropy.wcs import WCS, WCSSUB_LATITUDE, WCSSUB_LONGITUDE, FITSFixedWarning
from astropy.wcs.utils import proj_plane_pixel_scales, wcs_to_celestial_frame
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pysm_vae.files import atomic_write
from pysm_vae.mapfiles import UnfitMap, check_sum, strict_fits

logger = logging.getLogger(__name__)

LOGS = ("linear", "log10", "ln")

# Gaussian: FWHM = sqrt(8 ln 2) sigma.
_SIGMA_PER_FWHM = 1 / np.sqrt(8 * np.log(2))

# HEALPix files mark missing pixels with -1.6375e30; float32 rounding and smoothed copies of it stay
# far below anything physical.
_UNSEEN_LIMIT = -1e30

# Names under which the COORDSYS keyword is met in the wild (Planck: 'GALACTIC'; healpy: 'G').
_COORDSYS = {
    "G": "G",
    "GAL": "G",
    "GALACTIC": "G",
    "C": "C",
    "Q": "C",
    "CEL": "C",
    "CELESTIAL": "C",
    "EQUATORIAL": "C",
    "ICRS": "C",
    "FK5": "C",
    "J2000": "C",
    "E": "E",
    "ECL": "E",
    "ECLIPTIC": "E",
}

# Multipole, in units of 1/sigma, to which a Gaussian kernel is followed in harmonics: the rest,
# exp(-5.3^2 / 2), is a millionth. Cut at the map's own band limit instead, the kernel rings, and
# the Galactic plane throws stripes over the faint sky.
_KERNEL_REACH = 5.3

# Grid on which areas and overlaps of regions are counted: 13.7' pixels.
_CENSUS_NSIDE = 256

# Share of the sky that validation and test each get by default (the paper's 70/15/15).
_SHARE = 0.15


@dataclass(frozen=True)
class Footprint:
    """Where a map has sky.

    Attributes
    ----------
    lon, lat : float
        Galactic centre of a cap that holds every pixel of the map, degrees.
    radius : float
        Radius of that cap, degrees.
    area : float
        Area of the valid pixels, square degrees.
    """

    lon: float
    lat: float
    radius: float
    area: float


class SkyMap(ABC):
    """Natural-log intensity on the sky, in whatever pixels the map came.

    Made by :func:`read_map`.

    Attributes
    ----------
    name : str
        Name of the map, by which its patches and regions are known.
    kind : {"healpix", "image"}
        The pixels it is stored on.
    resolution : float
        Size of a native pixel, arcmin.
    footprint : Footprint
        Where it has sky.
    region_names : tuple of str
        Names of the regions, ``"<name>:<label>"``, in the order of their labels.
    min_latitude : float or None
        Samples at smaller Galactic latitude (degrees, either sign) are invalid.
    """

    kind: str
    name: str
    resolution: float
    footprint: Footprint
    region_names: tuple[str, ...]
    min_latitude: float | None

    @abstractmethod
    def _evaluate(
        self, lon: NDArray, lat: NDArray, *, values: bool, labels: bool
    ) -> tuple[NDArray | None, NDArray | None]:
        """Give values and region labels at flat arrays of Galactic positions (degrees)."""

    @abstractmethod
    def region_centre(self, label: int) -> tuple[float, float]:
        """Galactic (lon, lat) in degrees of the middle of a region."""

    def sample(self, lon: ArrayLike, lat: ArrayLike) -> NDArray[np.float64]:
        """Natural log of the intensity at Galactic positions.

        Parameters
        ----------
        lon, lat : array_like
            Galactic coordinates in degrees, any shape (broadcast together).

        Returns
        -------
        ndarray, float64
            Same shape; NaN outside the map, below ``min_latitude``, and wherever a pixel of the
            interpolation stencil is invalid.
        """
        lon, lat = np.broadcast_arrays(np.asarray(lon, float), np.asarray(lat, float))
        values, _ = self._evaluate(lon.ravel(), lat.ravel(), values=True, labels=False)
        return self._cut(values, lat.ravel()).reshape(lon.shape)

    def region(self, lon: ArrayLike, lat: ArrayLike) -> NDArray[np.int64]:
        """Label of the region at Galactic positions.

        Parameters
        ----------
        lon, lat : array_like
            Galactic coordinates in degrees, any shape (broadcast together).

        Returns
        -------
        ndarray, int64
            Same shape; an index into ``region_names``, or -1 outside the map and where the
            interpolation stencil takes pixels from two regions.
        """
        lon, lat = np.broadcast_arrays(np.asarray(lon, float), np.asarray(lat, float))
        _, labels = self._evaluate(lon.ravel(), lat.ravel(), values=False, labels=True)
        return labels.reshape(lon.shape)

    def sample_region(
        self, lon: NDArray[np.float64], lat: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Give :meth:`sample` and :meth:`region` together, at the price of one look-up."""
        values, labels = self._evaluate(lon.ravel(), lat.ravel(), values=True, labels=True)
        return self._cut(values, lat.ravel()).reshape(lon.shape), labels.reshape(lon.shape)

    def _cut(self, values: NDArray, lat: NDArray) -> NDArray:
        if self.min_latitude is not None:
            values[np.abs(lat) < self.min_latitude] = np.nan
        return values


class HealpixSky(SkyMap):
    """A HEALPix map of natural-log intensity.

    Interpolated with the bilinear scheme of HEALPix (four pixels). Positions, not the map, are
    rotated into its frame, so nothing is smoothed by a rotation. Its regions are the octants of
    the Galactic sky: labels 0 to 3 for longitudes 0-90, ..., 270-360 degrees in the north, 4 to 7
    in the south.

    Parameters
    ----------
    values : ndarray, shape (12 nside**2,)
        Natural-log intensity, NaN where invalid.
    nest : bool
        Whether the pixels are in NESTED order.
    coord : {"G", "C", "E"}
        Frame of the map: Galactic, ICRS, or ecliptic (J2000).
    name : str
        Name of the map.
    min_latitude : float, optional
        Leave out ``|b|`` below this, degrees.
    """

    kind = "healpix"

    def __init__(
        self,
        values: NDArray,
        *,
        nest: bool,
        coord: str,
        name: str,
        min_latitude: float | None = None,
    ) -> None:
        self.values = values
        self.nest = nest
        self.coord = coord
        self.name = name
        self.nside = hp.npix2nside(values.size)
        self.resolution = float(hp.nside2resol(self.nside, arcmin=True))
        self.min_latitude = min_latitude
        self.region_names = tuple(f"{name}:{label}" for label in range(8))
        frames = {"G": Galactic(), "C": "icrs", "E": BarycentricMeanEcliptic()}
        self._to_native = _rotation_from_galactic(frames[coord])
        self.footprint = self._find_footprint()

    def _find_footprint(self) -> Footprint:
        valid = np.flatnonzero(np.isfinite(self.values))
        area = float(valid.size * hp.nside2pixarea(self.nside, degrees=True))
        if 2 * valid.size > self.values.size:
            return Footprint(0.0, 0.0, 180.0, area)
        vectors = np.stack(hp.pix2vec(self.nside, valid, nest=self.nest))
        centre = vectors.mean(axis=1)
        norm = np.linalg.norm(centre)
        if norm < 1e-3:  # spread all round the sky: no cap smaller than the sphere
            return Footprint(0.0, 0.0, 180.0, area)
        centre /= norm
        reach = np.degrees(np.arccos(np.clip((centre @ vectors).min(), -1, 1)))
        lon, lat = _vector_to_lonlat(self._to_native.T @ centre)
        return Footprint(
            float(lon), float(lat), float(min(reach + 2 * self.resolution / 60, 180.0)), area
        )

    def region_centre(self, label: int) -> tuple[float, float]:
        """Galactic (lon, lat) in degrees of the middle of an octant."""
        return 45.0 + 90.0 * (label % 4), 45.0 if label < 4 else -45.0

    def _evaluate(
        self, lon: NDArray, lat: NDArray, *, values: bool, labels: bool
    ) -> tuple[NDArray | None, NDArray | None]:
        x, y, z = self._to_native @ _lonlat_to_vector(lon, lat)
        pixels, weights = hp.get_interp_weights(
            self.nside, np.arccos(np.clip(z, -1, 1)), np.arctan2(y, x), nest=self.nest
        )
        found = None
        if values:
            # NaN times any weight is NaN, so that one invalid neighbour spoils the sample.
            found = np.einsum("ij,ij->j", weights, self.values[pixels].astype(np.float64))
        octant = None
        if labels:
            vectors = np.stack(hp.pix2vec(self.nside, pixels.ravel(), nest=self.nest))
            gx, gy, gz = self._to_native.T @ vectors
            # Pixel centres lie on the borders themselves: rounding must not toss them about.
            tiny = 1e-10
            quadrant = np.select(
                [(gx > tiny) & (gy >= -tiny), (gx <= tiny) & (gy > tiny), gx < -tiny],
                [0, 1, 2],
                default=3,
            )
            stencil = (quadrant + 4 * (gz < -tiny)).reshape(pixels.shape)
            octant = np.where((stencil == stencil[0]).all(axis=0), stencil[0], -1)
        return found, octant


class ImageSky(SkyMap):
    """A flat image of natural-log intensity with a celestial WCS.

    Interpolated with a cubic spline; a sample is valid only if the 4 x 4 pixels around it are.
    Its regions are the two halves of the image: label 0 for small x, 1 for large x. The stencils
    of the two halves have no pixel in common; what the spline's prefilter carries across the
    border falls by 0.27 a pixel.

    Parameters
    ----------
    values : ndarray, shape (ny, nx)
        Natural-log intensity, NaN where invalid.
    wcs : astropy.wcs.WCS
        Celestial WCS with two axes, longitude first.
    name : str
        Name of the map.
    min_latitude : float, optional
        Leave out ``|b|`` below this, degrees.

    Raises
    ------
    ValueError
        If the image is smaller than the 4 x 4 pixels that one sample needs.
    """

    kind = "image"

    def __init__(
        self, values: NDArray, wcs: WCS, *, name: str, min_latitude: float | None = None
    ) -> None:
        if min(values.shape) < 4:
            raise ValueError(
                f"{name}: the image has {values.shape[1]} x {values.shape[0]} pixels; a cubic "
                "spline needs at least 4 x 4."
            )
        self.values = values
        self.wcs = wcs
        self.name = name
        self.min_latitude = min_latitude
        self.region_names = (f"{name}:0", f"{name}:1")
        scales = proj_plane_pixel_scales(wcs)
        self.resolution = float(60 * np.sqrt(scales[0] * scales[1]))
        frame = _wcs_frame(wcs, name)
        self._to_native = None if isinstance(frame, Galactic) else _rotation_from_galactic(frame)
        valid = np.isfinite(values)
        # The spline needs a number everywhere: the nearest valid pixel makes the least ringing.
        nearest = ndimage.distance_transform_edt(
            ~valid, return_distances=False, return_indices=True
        )
        self._spline = ndimage.spline_filter(values[tuple(nearest)].astype(np.float64), order=3)
        # True at (floor y, floor x) where the pixels from -1 to +2 are in the image and valid.
        self._stencil_ok = ndimage.minimum_filter(
            valid.astype(np.uint8), size=4, origin=-1, mode="constant", cval=0
        ).astype(bool)
        self.footprint = self._find_footprint(valid)

    def _find_footprint(self, valid: NDArray) -> Footprint:
        ny, nx = self.values.shape
        edge_x, edge_y = np.arange(nx), np.arange(ny)
        x = np.concatenate([edge_x, edge_x, np.zeros(ny), np.full(ny, nx - 1)])
        y = np.concatenate([np.zeros(nx), np.full(nx, ny - 1), edge_y, edge_y])
        centre = _lonlat_to_vector(*self._pixel_to_galactic((nx - 1) / 2, (ny - 1) / 2)).ravel()
        lon, lat = self._pixel_to_galactic(x, y)
        known = np.isfinite(lon)
        # An all-sky projection has corners off the sky: no cap smaller than the sphere holds it.
        radius = 180.0
        if known.all() and np.isfinite(centre).all():
            cosine = (centre @ _lonlat_to_vector(lon, lat)).min()
            radius = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        else:
            centre = np.array([1.0, 0.0, 0.0])
        lon0, lat0 = _vector_to_lonlat(centre)
        area = float(valid.sum() * (self.resolution / 60) ** 2)
        return Footprint(float(lon0), float(lat0), radius, area)

    def _pixel_to_galactic(self, x: ArrayLike, y: ArrayLike) -> tuple[NDArray, NDArray]:
        world = self.wcs.wcs_pix2world(np.ravel(x), np.ravel(y), 0)
        if self._to_native is None:
            return world[0], world[1]
        return _vector_to_lonlat(self._to_native.T @ _lonlat_to_vector(*world))

    def region_centre(self, label: int) -> tuple[float, float]:
        """Galactic (lon, lat) in degrees of the middle of a half-field."""
        ny, nx = self.values.shape
        x = nx / 4 - 0.5 if label == 0 else 3 * nx / 4 - 0.5
        lon, lat = self._pixel_to_galactic(x, (ny - 1) / 2)
        return float(lon[0]), float(lat[0])

    def _evaluate(
        self, lon: NDArray, lat: NDArray, *, values: bool, labels: bool
    ) -> tuple[NDArray | None, NDArray | None]:
        if self._to_native is not None:
            lon, lat = _vector_to_lonlat(self._to_native @ _lonlat_to_vector(lon, lat))
        x, y = self.wcs.wcs_world2pix(lon, lat, 0)
        ny, nx = self.values.shape
        # NaN (off the projection) compares false.
        inside = (x >= 1) & (x < nx - 2) & (y >= 1) & (y < ny - 2)
        column = np.zeros(lon.shape, np.int64)
        row = np.zeros(lon.shape, np.int64)
        column[inside] = np.floor(x[inside])
        row[inside] = np.floor(y[inside])
        found = None
        if values:
            found = np.full(lon.shape, np.nan)
            ok = inside & self._stencil_ok[row, column]
            found[ok] = ndimage.map_coordinates(
                self._spline, (y[ok], x[ok]), order=3, prefilter=False
            )
        half = None
        if labels:
            middle = nx // 2  # first column of the second half
            half = np.full(lon.shape, -1, np.int64)
            half[inside & (column + 2 < middle)] = 0
            half[inside & (column - 1 >= middle)] = 1
        return found, half


def read_map(
    path: str | os.PathLike,
    *,
    column: str | int | None = None,
    hdu: int | str | None = None,
    log: str | None = None,
    fwhm: float | None = None,
    min_latitude: float | None = None,
    mask: str | os.PathLike | NDArray | None = None,
    name: str | None = None,
) -> SkyMap:
    """Read a map of dust intensity as natural log, HEALPix FITS table or FITS image.

    HEALPix files may have either ordering, any nside, Galactic, equatorial or ecliptic
    coordinates, and full or partial sky (explicit indices). The Planck file
    ``COM_CompMap_Dust-GNILC-F545_2048_R2.00.fits`` loads as it is. Images need a celestial WCS.

    Parameters
    ----------
    path : path-like
        FITS file.
    column : str or int, optional
        Column of a HEALPix table (by name, or by number among the map columns). Default: the first
        one called I, I_STOKES, INTENSITY or TEMPERATURE, else the first.
    hdu : int or str, optional
        HDU to read. Default: the first that holds a map.
    log : {"linear", "log10", "ln"}, optional
        What the stored numbers are. Default: found from the unit, column or HDU name; a map whose
        labels and values do not settle it is refused.
    fwhm : float, optional
        Smooth the *intensity* (before the logarithm) with a Gaussian of this FWHM, arcmin.
    min_latitude : float, optional
        Leave out Galactic latitudes ``|b|`` below this, degrees.
    mask : path-like or array, optional
        Pixels to keep: true, or above 0.5 (Planck's convention: 1 is good sky). An array has the
        shape and pixel order of the map; a file has its grid (a HEALPix file may have the other
        ordering).
    name : str, optional
        Name of the map; default, the file name without its suffixes.

    Returns
    -------
    SkyMap
        NaN, infinite, UNSEEN and masked pixels, and non-positive pixels of a linear map, are
        invalid.

    Raises
    ------
    FileNotFoundError
        If the file or the mask does not exist.
    ValueError
        If the file is not a map that can be read, or an argument does not fit it; the message
        says what to change.
    """
    path = Path(path)
    if log is not None and log not in LOGS:
        raise ValueError(f"log={log!r} is not known: use one of {', '.join(map(repr, LOGS))}.")
    if fwhm is not None and not (np.isfinite(fwhm) and fwhm > 0):
        raise ValueError(f"fwhm={fwhm!r}: give a positive width in arcmin, or None.")
    if min_latitude is not None and not 0 <= min_latitude < 90:
        raise ValueError(f"min_latitude={min_latitude!r}: give degrees from 0 to below 90.")
    if name is None:
        name = map_name(path)
    raw = _read_fits(path, column=column, hdu=hdu)
    values = raw.values
    bad = ~np.isfinite(values) | (values <= _UNSEEN_LIMIT)
    if raw.blank is not None:
        bad |= np.abs(values - raw.blank) <= 1e-5 * abs(raw.blank)
    if mask is not None:
        bad |= ~_read_mask(mask, raw, path)
    if bad.all():
        raise ValueError(f"{path}: no valid pixel is left. Check the mask, the column and the HDU.")
    log = log or _detect_log(values[~bad], raw, path)
    if log == "linear":
        bad |= values <= 0
        if bad.all():
            raise ValueError(f"{path}: no positive pixel, so no logarithm. Check log= and column=.")
    if fwhm is not None:
        values, bad = _smooth(values, bad, log, fwhm, raw, path)
    elif log == "linear":
        values = np.log(np.where(bad, 1, values))
    elif log == "log10":
        values = values * values.dtype.type(np.log(10))
    values = np.where(bad, values.dtype.type(np.nan), values)
    if raw.wcs is None:
        return HealpixSky(
            values, nest=raw.nest, coord=raw.coord, name=name, min_latitude=min_latitude
        )
    return ImageSky(values, raw.wcs, name=name, min_latitude=min_latitude)


def map_name(path: str | os.PathLike) -> str:
    """Name of a map that is given none: its file's, without the suffixes."""
    return re.sub(r"(\.(fits?|fz|gz))+$", "", Path(path).name, flags=re.IGNORECASE)


@dataclass
class _Raw:
    """Numbers of one map as stored, and what the header says about them."""

    values: NDArray
    labels: tuple[str, ...]
    unit: str
    blank: float | None
    nest: bool = False
    coord: str = "G"
    wcs: WCS | None = None


def _read_fits(path: Path, *, column: str | int | None, hdu: int | str | None) -> _Raw:
    with strict_fits(path, f"map {str(path)!r}") as hdus:
        if hdu is not None:
            try:
                candidates = [hdus[hdu]]
            except (KeyError, IndexError):
                raise UnfitMap(
                    f"{path}: no HDU {hdu!r}; it has {[h.name for h in hdus]}."
                ) from None
        else:
            candidates = list(hdus)
        for candidate in candidates:
            table = isinstance(candidate, fits.BinTableHDU) and not isinstance(
                candidate, fits.CompImageHDU
            )
            if table or candidate.header.get("NAXIS", 0) >= 2:
                check_sum(candidate, str(path))
                return (_read_healpix if table else _read_image)(candidate, path, column)
    raise UnfitMap(
        f"{path}: no HEALPix table and no image found in it; name the HDU with hdu=..., or give "
        "another file."
    )


def _read_healpix(table: fits.BinTableHDU, path: Path, column: str | int | None) -> _Raw:
    header = table.header
    ordering = str(header.get("ORDERING", "")).strip().upper()
    if not ordering.startswith(("RING", "NEST")):
        raise UnfitMap(
            f"{path}: ORDERING={ordering!r} in HDU {table.name!r}; a HEALPix map says RING or "
            "NESTED. Set the keyword, or name another HDU with hdu=..."
        )
    system = str(header.get("COORDSYS", "")).strip().upper()
    if system not in _COORDSYS:
        raise UnfitMap(
            f"{path}: COORDSYS={system!r} is not known; set it to G (Galactic), C (equatorial) or "
            "E (ecliptic)."
        )
    explicit = str(header.get("INDXSCHM", "")).strip().upper() == "EXPLICIT"
    names = list(table.columns.names)
    maps = names[1:] if explicit else names
    if not maps:
        raise UnfitMap(f"{path}: the table has no map column (it has {names}).")
    if column is None:
        usual = [n for n in maps if n.upper() in ("I", "I_STOKES", "INTENSITY", "TEMPERATURE")]
        column = (usual or maps)[0]
    elif isinstance(column, int):
        if not 0 <= column < len(maps):
            raise UnfitMap(f"{path}: no column {column}; it has 0 to {len(maps) - 1}: {maps}.")
        column = maps[column]
    elif column not in maps:
        raise UnfitMap(f"{path}: no column {column!r}; it has {maps}.")
    # A plain native-endian copy: healpy and numba want it, and the file is then let go.
    values = _native_float(table.data[column]).ravel()
    if explicit:
        try:
            nside = int(header["NSIDE"])
        except (KeyError, ValueError):
            raise UnfitMap(
                f"{path}: a partial map needs the NSIDE keyword; add it to the header."
            ) from None
        pixels = np.asarray(table.data[names[0]]).ravel().astype(np.int64)
        npix = 12 * nside**2
        if pixels.size != values.size or pixels.min() < 0 or pixels.max() >= npix:
            raise UnfitMap(
                f"{path}: pixel column {names[0]!r} does not fit NSIDE={nside}. Check the file."
            )
        full = np.full(npix, np.nan, values.dtype)
        full[pixels] = values
        values = full
    if not hp.isnpixok(values.size):
        raise UnfitMap(
            f"{path}: column {column!r} has {values.size} pixels, which is no 12 nside² and the "
            "header does not say INDXSCHM=EXPLICIT. Give a complete map, or name another column."
        )
    unit = str(table.columns[column].unit or "")
    blank = header.get("BAD_DATA")
    return _Raw(
        values,
        labels=(unit, column, table.name),
        unit=unit,
        blank=float(blank) if isinstance(blank, (int, float)) else None,
        nest=ordering.startswith("NEST"),
        coord=_COORDSYS[system],
    )


def _read_image(
    image: fits.PrimaryHDU | fits.ImageHDU, path: Path, column: str | int | None
) -> _Raw:
    del column  # images have none
    with warnings.catch_warnings():
        # astropy mends old-style dates and units by itself and says so: nothing to act on.
        warnings.simplefilter("ignore", FITSFixedWarning)
        wcs = WCS(image.header)
    if not wcs.has_celestial:
        raise UnfitMap(
            f"{path}: HDU {image.name!r} has no celestial WCS (CTYPE {list(wcs.wcs.ctype)}). Add "
            "one, or name another HDU with hdu=..."
        )
    if wcs.has_distortion:
        raise UnfitMap(
            f"{path}: its WCS has distortion terms (SIP or tables), which are not handled. "
            "Reproject the image to a plain projection first."
        )
    values = _native_float(image.data)
    lng, lat = wcs.wcs.lng, wcs.wcs.lat
    # numpy's axes run the other way round; all others must be of length one.
    others = [k for k in range(values.ndim) if values.ndim - 1 - k not in (lng, lat)]
    if any(values.shape[k] != 1 for k in others):
        raise UnfitMap(
            f"{path}: the image has shape {values.shape}; one plane is needed. Write the plane "
            "that you want to its own file."
        )
    values = values.squeeze(axis=tuple(others))
    if lng > lat:
        values = values.T
    unit = str(image.header.get("BUNIT", "")).strip()
    return _Raw(
        np.ascontiguousarray(values),
        labels=(unit, image.name if image.name != "PRIMARY" else ""),
        unit=unit,
        blank=None,
        wcs=wcs.sub([WCSSUB_LONGITUDE, WCSSUB_LATITUDE]),
    )


def _native_float(values: NDArray) -> NDArray:
    values = np.asarray(values)
    return values.astype(np.float64 if values.dtype.itemsize > 4 else np.float32)


def _read_mask(mask: str | os.PathLike | NDArray, raw: _Raw, path: Path) -> NDArray[np.bool_]:
    if isinstance(mask, (str, os.PathLike)):
        other = _read_fits(Path(mask), column=None, hdu=None)
        keep = other.values > 0.5
        if (other.wcs is None) != (raw.wcs is None):
            raise ValueError(f"mask {mask} and map {path}: one is HEALPix, the other an image.")
        if raw.wcs is None and keep.size == raw.values.size:
            if other.coord != raw.coord:
                raise ValueError(
                    f"mask {mask} is in COORDSYS {other.coord}, map {path} in {raw.coord}. Give "
                    "the mask in the map's coordinates."
                )
            if other.nest != raw.nest:
                keep = hp.reorder(keep, n2r=other.nest, r2n=raw.nest)
    else:
        keep = np.asarray(mask) > 0.5
    if keep.shape != raw.values.shape:
        raise ValueError(
            f"mask has shape {keep.shape}, map {path} has {raw.values.shape}. Give a mask on the "
            "map's own pixels."
        )
    return keep.astype(bool)


def _detect_log(values: NDArray, raw: _Raw, path: Path) -> str:
    """Say what the stored numbers are, or refuse.

    By the FITS standard (4.0, sect. 4.3, table 8) ``log`` in a unit is the common and ``ln`` the
    natural logarithm.
    """
    remedy = 'Say what they are with log="log10", log="ln" or log="linear".'
    for label in raw.labels:
        if re.search(r"(?<![a-z])ln(?![a-z])", label, re.IGNORECASE):
            return "ln"
        if re.search(r"(?<![a-z])log(?!ic|is|o)", label, re.IGNORECASE):
            return "log10"
    low, high = float(values.min()), float(values.max())
    # log10 of a column density in cm^-2: a linear map of such a narrow, high range is no dust map.
    if not raw.unit and low > 17 and high < 25:
        if re.search(r"(?<![a-z])log(?!ic|is|o)", path.name, re.IGNORECASE):
            logger.info("%s: taken as log10 from its name and its values", path)
            return "log10"
        raise ValueError(
            f"{path}: values from {low:.4g} to {high:.4g} without a unit look like log10 of a "
            f"column density, but nothing says so. {remedy}"
        )
    if low <= 0:
        share = float(np.mean(values < 0))
        # A stated linear unit allows for a few pixels where noise wins; they are left out.
        if raw.unit and share < 0.05:
            logger.warning("%s: %.3g of its pixels are not positive: left out", path, share)
            return "linear"
        raise ValueError(
            f"{path}: values go down to {low:.4g} (unit {raw.unit!r}), so they are no intensity "
            f'or already logarithms. {remedy} With log="linear" pixels that are not positive '
            "are left out."
        )
    return "linear"


def _smooth(
    values: NDArray, bad: NDArray, log: str, fwhm: float, raw: _Raw, path: Path
) -> tuple[NDArray, NDArray]:
    """Smooth the intensity and give its natural log, and the invalid pixels."""
    logs = np.log(np.where(bad, 1, values)) if log == "linear" else values.astype(np.float64)
    if log == "log10":
        logs = logs * np.log(10)
    # Smoothing is linear, so a common factor may be taken out: keeps exp() in range for any unit.
    offset = float(np.median(logs[~bad]))
    intensity = np.where(bad, 0.0, np.exp(np.where(bad, 0.0, logs) - offset))
    known = (~bad).astype(np.float64)
    if raw.wcs is None:
        weight = _kernel_sum(known, fwhm, nest=raw.nest)
        smooth = _kernel_sum(intensity, fwhm, nest=raw.nest)
    else:
        scales = 60 * proj_plane_pixel_scales(raw.wcs)
        sigma = (fwhm * _SIGMA_PER_FWHM / scales)[::-1]  # rows are latitude
        weight = ndimage.gaussian_filter(known, sigma, mode="constant")
        smooth = ndimage.gaussian_filter(intensity, sigma, mode="constant")
    smooth = np.divide(smooth, weight, out=np.zeros_like(smooth), where=~bad)
    worse = ~bad & (smooth <= 0)
    if worse.any():
        # Rounding of the harmonic transform beside very bright pixels.
        logger.warning("%s: %d pixels not positive after smoothing: left out", path, worse.sum())
    bad = bad | worse
    return np.log(np.where(bad, 1.0, smooth)) + offset, bad


def _kernel_sum(values: NDArray, fwhm: float, *, nest: bool) -> NDArray:
    """Sum over the pixels of a HEALPix map, weighed with a Gaussian kernel around each pixel.

    The transform of the sum over pixels is followed as far as the kernel reaches, beyond what the
    pixels resolve: the sum is exact and the kernel positive, whatever the map holds.
    """
    nside = hp.npix2nside(values.size)
    sigma = np.radians(fwhm / 60) * _SIGMA_PER_FWHM
    lmax = math.ceil(_KERNEL_REACH / sigma)
    geometry = {
        **ducc0.healpix.Healpix_Base(nside, "RING").sht_info(),
        "spin": 0,
        "lmax": lmax,
        "nthreads": 0,
    }
    ring = np.asarray(hp.reorder(values, n2r=True) if nest else values, np.float64)
    alm = ducc0.sht.adjoint_synthesis(map=ring[None, :], **geometry)
    ell = np.arange(lmax + 1)
    hp.almxfl(alm[0], np.exp(-0.5 * ell * (ell + 1) * sigma**2), inplace=True)
    smooth = ducc0.sht.synthesis(alm=alm, **geometry)[0]
    return hp.reorder(smooth, r2n=True) if nest else smooth


def _wcs_frame(wcs: WCS, name: str) -> object:
    # astropy knows no frame for ELON/ELAT.
    if wcs.wcs.lngtyp.strip() == "ELON":
        return BarycentricMeanEcliptic()
    try:
        frame = wcs_to_celestial_frame(wcs)
    except ValueError as error:
        raise ValueError(
            f"{name}: the frame of WCS {list(wcs.wcs.ctype)} is not known. Use GLON/GLAT, RA/DEC "
            "or ELON/ELAT."
        ) from error
    return frame


def _rotation_from_galactic(frame: object) -> NDArray[np.float64]:
    """Rotation matrix, shape (3, 3), from Galactic vectors to vectors of an astropy frame."""
    axes = SkyCoord(l=[0, 90, 0] * u.deg, b=[0, 0, 90] * u.deg, frame="galactic")
    return np.array(axes.transform_to(frame).cartesian.xyz.value)


def _lonlat_to_vector(lon: ArrayLike, lat: ArrayLike) -> NDArray[np.float64]:
    lon, lat = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


def _vector_to_lonlat(vector: NDArray) -> tuple[NDArray, NDArray]:
    x, y, z = vector
    return np.degrees(np.arctan2(y, x)) % 360, np.degrees(np.arctan2(z, np.hypot(x, y)))


def _tangent_points(
    lon: ArrayLike,
    lat: ArrayLike,
    column: NDArray,
    row: NDArray,
    angle: ArrayLike,
    mirror: ArrayLike,
) -> tuple[NDArray, NDArray]:
    """Positions of points of tangent planes; all arguments broadcast (offsets in radians)."""
    lon, lat, angle = np.radians(lon), np.radians(lat), np.radians(angle)
    column = np.where(mirror, -column, column)
    # Longitude grows to the left, as on every map of the sky.
    east = -(np.cos(angle) * column - np.sin(angle) * row)
    north = np.sin(angle) * column + np.cos(angle) * row
    # Point of the tangent plane = centre + east e_lon + north e_lat; its direction is the position.
    ahead = np.cos(lat) - north * np.sin(lat)
    z = np.sin(lat) + north * np.cos(lat)
    return (
        np.degrees(lon + np.arctan2(east, ahead)) % 360,
        np.degrees(np.arctan2(z, np.hypot(ahead, east))),
    )


def _offsets(size: int) -> NDArray[np.floating]:
    return np.arange(size) - (size - 1) / 2


def _check_geometry(size: int, pixel_size: float) -> None:
    if int(size) != size or size < 2:
        raise ValueError(f"size={size!r}: a patch has a whole number of at least 2 pixels a side.")
    if not (np.isfinite(pixel_size) and pixel_size > 0):
        raise ValueError(f"pixel_size={pixel_size!r}: give a positive size in arcmin.")


def tangent_grid(
    lon: float,
    lat: float,
    size: int,
    pixel_size: float,
    angle: float = 0.0,
    mirror: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions of the pixels of a gnomonic (tangent-plane) patch.

    Rows run north and columns run to smaller longitude, as in a FITS image with a TAN projection,
    ``CDELT = (-pixel_size, pixel_size)`` and the reference pixel in the middle.

    Parameters
    ----------
    lon, lat : float
        Galactic centre, degrees.
    size : int
        Pixels a side.
    pixel_size : float
        Side of a pixel at the centre, arcmin.
    angle : float
        Rotation of the grid about its centre, degrees, from the columns towards the rows (the PC
        matrix is ``[[cos, -sin], [sin, cos]]``).
    mirror : bool
        Reverse the columns, before the rotation.

    Returns
    -------
    lon, lat : ndarray, shape (size, size)
        Galactic coordinates, degrees.

    Raises
    ------
    ValueError
        If ``size`` or ``pixel_size`` makes no patch.
    """
    _check_geometry(size, pixel_size)
    steps = _offsets(size) * np.radians(pixel_size / 60)
    return _tangent_points(lon, lat, steps[None, :], steps[:, None], angle, mirror)


def cut_patch(
    sky: SkyMap,
    lon: float,
    lat: float,
    size: int,
    pixel_size: float,
    angle: float = 0.0,
    mirror: bool = False,
) -> NDArray[np.float64] | None:
    """Cut one patch of natural-log intensity.

    Parameters
    ----------
    sky : SkyMap
        The map.
    lon, lat, size, pixel_size, angle, mirror
        As for :func:`tangent_grid`.

    Returns
    -------
    ndarray, shape (size, size), or None
        None if any pixel is invalid.
    """
    patch = sky.sample(*tangent_grid(lon, lat, size, pixel_size, angle, mirror))
    return patch if np.isfinite(patch).all() else None


def standardise(
    patches: ArrayLike,
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """Bring each patch to zero mean and unit variance, and keep what was removed.

    Parameters
    ----------
    patches : array_like, shape (n, size, size)
        Natural-log intensity.

    Returns
    -------
    standardised : ndarray, float32, shape (n, size, size)
        ``(patch - mean) / scale``.
    mean, scale : ndarray, shape (n,)
        Mean and (population) standard deviation of each patch.

    Raises
    ------
    ValueError
        If the shape is wrong, or a patch is constant or not finite.
    """
    patches = np.asarray(patches, np.float64)
    if patches.ndim != 3:
        raise ValueError(f"patches have shape {patches.shape}; (n, size, size) is needed.")
    mean = patches.mean(axis=(1, 2))
    scale = patches.std(axis=(1, 2))
    # Rounding leaves a constant patch with a scale of the order of its last digit.
    flat = ~(scale > 1e-12 * np.maximum(np.abs(mean), 1))
    if flat.any():
        raise ValueError(
            f"patch {int(np.flatnonzero(flat)[0])} is constant or not finite and cannot be "
            "standardised. Mask that part of the map."
        )
    standardised = (patches - mean[:, None, None]) / scale[:, None, None]
    return standardised.astype(np.float32), mean, scale


@dataclass(frozen=True)
class PatchSet:
    """Standardised patches and where they come from.

    Attributes
    ----------
    patches : ndarray, float32, shape (n, size, size)
        Natural-log intensity with zero mean and unit variance.
    mean, scale : ndarray, shape (n,)
        What standardising removed: log-intensity is ``patches * scale + mean``.
    lon, lat : ndarray, shape (n,)
        Galactic centres, degrees.
    angle : ndarray, shape (n,)
        Rotations, degrees.
    pixel_size : ndarray, shape (n,)
        Pixel sizes, arcmin.
    source : ndarray of str, shape (n,)
        Name of the map.
    region : ndarray of str, shape (n,)
        Name of the region, such as ``"taurus:0"``.
    mirror : ndarray of bool, shape (n,)
        Whether the columns were reversed (default: none).
    """

    patches: NDArray[np.float32]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    lon: NDArray[np.float64]
    lat: NDArray[np.float64]
    angle: NDArray[np.float64]
    pixel_size: NDArray[np.float64]
    source: NDArray[np.str_]
    region: NDArray[np.str_]
    mirror: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if self.patches.ndim != 3 or self.patches.shape[1] != self.patches.shape[2]:
            raise ValueError(f"patches have shape {self.patches.shape}; (n, size, size) is needed.")
        if self.mirror is None:
            object.__setattr__(self, "mirror", np.zeros(len(self.patches), bool))
        for field in fields(self):
            shape = getattr(self, field.name).shape
            if field.name != "patches" and shape != (len(self.patches),):
                raise ValueError(
                    f"{field.name} has shape {shape}; one value for each of the "
                    f"{len(self.patches)} patches is needed."
                )

    def __len__(self) -> int:
        return len(self.patches)

    def select(self, mask: ArrayLike) -> PatchSet:
        """Patches picked by a boolean mask or by indices, as a new set."""
        mask = np.asarray(mask)
        return PatchSet(**{f.name: getattr(self, f.name)[mask] for f in fields(self)})

    def save(self, path: str | os.PathLike) -> None:
        """Write the set to a compressed ``.npz`` file."""
        with atomic_write(path) as partial, partial.open("wb") as stream:
            np.savez_compressed(stream, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: str | os.PathLike) -> PatchSet:
        """Read a set that :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is not a (whole) set of patches.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"patches {str(path)!r} do not exist. Check the path.")
        try:
            # Opened here, since numpy leaves a file open that it cannot make sense of.
            with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                return cls(**{f.name: stored[f.name] for f in fields(cls)})
        except (BadZipFile, EOFError, KeyError, OSError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} holds no whole set of patches ({error}). Make it again."
            ) from error


def concatenate(sets: Iterable[PatchSet]) -> PatchSet:
    """Join sets of patches of one size.

    Raises
    ------
    ValueError
        If there is none, or their sizes differ.
    """
    sets = list(sets)
    if not sets:
        raise ValueError("no set of patches to join: give at least one.")
    sizes = sorted({s.patches.shape[1] for s in sets})
    if len(sizes) > 1:
        raise ValueError(f"patches of {sizes} pixels a side cannot be joined: cut them alike.")
    return PatchSet(
        **{f.name: np.concatenate([getattr(s, f.name) for s in sets]) for f in fields(PatchSet)}
    )


def _border(size: int) -> tuple[NDArray, NDArray]:
    """Offsets (columns, rows; pixels) of some points of a patch's edge: corners and between."""
    line = np.linspace(-(size - 1) / 2, (size - 1) / 2, min(size, 9))
    low, high = np.full(line.size, line[0]), np.full(line.size, line[-1])
    return np.concatenate([line, line, low, high]), np.concatenate([low, high, line, line])


@dataclass
class _Cuts:
    """Whole patches of one region each, as they are found."""

    patches: list[NDArray]
    rows: list[tuple[float, float, float, float, bool, int]]


def _cut_whole(
    sky: SkyMap,
    size: int,
    lon: NDArray,
    lat: NDArray,
    angle: NDArray,
    mirror: NDArray,
    pixel_size: NDArray,
    allowed: NDArray,
    found: _Cuts,
    enough: int | None,
) -> None:
    """Add to ``found`` the candidates that are valid and in one allowed region, in order."""
    pixel = np.radians(pixel_size / 60)
    columns, rows = _border(size)
    edge_lon, edge_lat = _tangent_points(
        lon[:, None],
        lat[:, None],
        columns * pixel[:, None],
        rows * pixel[:, None],
        angle[:, None],
        mirror[:, None],
    )
    # Most candidates fall here, on some thirty points instead of size².
    values, labels = sky.sample_region(edge_lon, edge_lat)
    hopeful = (
        np.isfinite(values).all(axis=1)
        & (labels == labels[:, :1]).all(axis=1)
        & np.isin(labels[:, 0], allowed)
    )
    for k in np.flatnonzero(hopeful):
        if enough is not None and len(found.patches) == enough:
            return
        grid = tangent_grid(lon[k], lat[k], size, pixel_size[k], angle[k], mirror[k])
        patch, regions = sky.sample_region(*grid)
        label = int(labels[k, 0])
        if (regions == label).all() and np.isfinite(patch).all():
            found.patches.append(patch)
            found.rows.append((lon[k], lat[k], angle[k], pixel_size[k], mirror[k], label))


def _gather(sky: SkyMap, found: _Cuts) -> PatchSet:
    patches, mean, scale = standardise(np.stack(found.patches))
    lon, lat, angle, pixel_size, mirror, label = zip(*found.rows, strict=True)
    return PatchSet(
        patches=patches,
        mean=mean,
        scale=scale,
        lon=np.array(lon, float),
        lat=np.array(lat, float),
        angle=np.array(angle, float),
        pixel_size=np.array(pixel_size, float),
        source=np.full(len(patches), sky.name),
        region=np.array([sky.region_names[k] for k in label]),
        mirror=np.array(mirror, bool),
    )


def _allowed_labels(sky: SkyMap, regions: Sequence[str] | None) -> NDArray[np.int64]:
    """Labels of the named regions of this map; names of other maps are passed over."""
    if regions is None:
        return np.arange(len(sky.region_names))
    own = [r for r in dict.fromkeys(regions) if r.rpartition(":")[0] == sky.name]
    unknown = sorted(set(own) - set(sky.region_names))
    if unknown or not own:
        raise ValueError(
            f"regions {unknown or list(regions)} are not in map {sky.name!r}; it has "
            f"{', '.join(sky.region_names)}."
        )
    return np.array([sky.region_names.index(r) for r in own])


def grid_patches(
    sky: SkyMap,
    size: int,
    pixel_size: float,
    *,
    spacing: float | None = None,
    regions: Sequence[str] | None = None,
) -> PatchSet:
    """Patches on a fixed grid, upright and not augmented, for validation and test.

    Centres lie on rings of Galactic latitude ``spacing`` apart and ``spacing / cos b`` apart in
    longitude, as in Thorne, Knox & Prabhu 2021 (MNRAS 504, 2603). Each region has its own rings,
    which start from its middle.

    Parameters
    ----------
    sky : SkyMap
        The map.
    size : int
        Pixels a side.
    pixel_size : float
        Arcmin.
    spacing : float, optional
        Degrees; default, half a patch.
    regions : sequence of str, optional
        Regions to take (names of other maps are passed over); default, all.

    Returns
    -------
    PatchSet
        Only complete patches that lie in one region.

    Raises
    ------
    ValueError
        If an argument is wrong, or no patch fits.
    """
    _check_geometry(size, pixel_size)
    if spacing is None:
        spacing = size * pixel_size / 60 / 2
    if not (np.isfinite(spacing) and spacing > 0):
        raise ValueError(f"spacing={spacing!r}: give a positive distance in degrees.")
    found = _Cuts([], [])
    for label in _allowed_labels(sky, regions):
        lon0, lat0 = sky.region_centre(label)
        steps = np.arange(-int(180 / spacing), int(180 / spacing) + 1)
        rings = lat0 + spacing * steps
        for ring in rings[np.abs(rings) < 90]:
            step = spacing / np.cos(np.radians(ring))
            half = int(180 / step)
            offsets = step * np.arange(-half, half + 1)
            lon = (lon0 + offsets[offsets < 180]) % 360  # +180 is -180 again
            lat = np.full(lon.size, ring)
            here = sky.region(lon, lat) == label
            n = int(here.sum())
            if n:
                _cut_whole(
                    sky,
                    size,
                    lon[here],
                    lat[here],
                    np.zeros(n),
                    np.zeros(n, bool),
                    np.full(n, float(pixel_size)),
                    np.array([label]),
                    found,
                    None,
                )
    if not found.patches:
        raise ValueError(_nothing_fits(sky, size, pixel_size, regions))
    return _gather(sky, found)


def _nothing_fits(sky: SkyMap, size: int, pixel_size: float, regions: Sequence[str] | None) -> str:
    side = size * pixel_size / 60
    where = "" if regions is None else f" (regions {', '.join(regions)})"
    return (
        f"no complete patch of {side:.3g} degrees ({size} pixels of {pixel_size:.3g} arcmin) found "
        f"inside one region of map {sky.name!r}{where}. Take a smaller patch, or loosen the mask."
    )


class PatchSampler:
    """Random augmented patches for training.

    Centres are uniform on the sky of the allowed regions, rotations uniform in any angle, half of
    the patches mirrored, and pixel sizes log-uniform between ``pixel_size`` and
    ``zoom * pixel_size``. Patches that are not whole or leave their region are rejected, so
    that near borders smaller ones are more common.

    Parameters
    ----------
    sky : SkyMap
        The map.
    size : int
        Pixels a side.
    pixel_size : float
        Smallest pixel, arcmin.
    regions : sequence of str, optional
        Regions to draw from, such as ``split.train`` (names of other maps are passed over);
        default, all.
    zoom : float
        Largest over smallest pixel size, at least 1.

    Raises
    ------
    ValueError
        If an argument is wrong or a region is not known.
    """

    # Centres in the allowed regions tried in vain before giving up.
    _TRIES = 20_000

    def __init__(
        self,
        sky: SkyMap,
        size: int,
        pixel_size: float,
        *,
        regions: Sequence[str] | None = None,
        zoom: float = 1.0,
    ) -> None:
        _check_geometry(size, pixel_size)
        if not (np.isfinite(zoom) and zoom >= 1):
            raise ValueError(f"zoom={zoom!r}: give a factor of at least 1.")
        self.sky = sky
        self.size = int(size)
        self.pixel_size = float(pixel_size)
        self.zoom = float(zoom)
        self.regions = regions
        self._allowed = _allowed_labels(sky, regions)

    def draw(self, n: int, rng: np.random.Generator) -> PatchSet:
        """Draw random patches.

        Parameters
        ----------
        n : int
            How many.
        rng : numpy.random.Generator
            Source of all randomness: the same state gives the same patches.

        Returns
        -------
        PatchSet
            Of length ``n``.

        Raises
        ------
        ValueError
            If no whole patch is found after many tries (patch larger than the regions).
        """
        if n < 1:
            raise ValueError(f"n={n!r}: draw at least one patch.")
        found = _Cuts([], [])
        in_vain = 0
        while len(found.patches) < n:
            before = len(found.patches)
            lon, lat = self._centres(min(max(4 * (n - before), 64), 1024), rng)
            m = lon.size
            angle = rng.uniform(0, 360, m)
            mirror = rng.random(m) < 0.5
            pixel_size = self.pixel_size * self.zoom ** rng.random(m)
            _cut_whole(
                self.sky,
                self.size,
                lon,
                lat,
                angle,
                mirror,
                pixel_size,
                self._allowed,
                found,
                n,
            )
            in_vain = 0 if len(found.patches) > before else in_vain + m
            if in_vain >= self._TRIES:
                raise ValueError(_nothing_fits(self.sky, self.size, self.pixel_size, self.regions))
        return _gather(self.sky, found)

    def _centres(self, m: int, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
        """Up to ``m`` positions, at least one, uniform on the sky of the allowed regions."""
        cap = self.sky.footprint
        for _ in range(1000):
            # Uniform in a cap: uniform in the cosine of the distance from its centre.
            distance = np.arccos(rng.uniform(np.cos(np.radians(cap.radius)), 1, m))
            bearing = rng.uniform(0, 2 * np.pi, m)
            lon0, lat0 = np.radians(cap.lon), np.radians(cap.lat)
            z = np.sin(lat0) * np.cos(distance) + np.cos(lat0) * np.sin(distance) * np.cos(bearing)
            east = np.sin(distance) * np.sin(bearing)
            ahead = np.cos(lat0) * np.cos(distance) - np.sin(lat0) * np.sin(distance) * np.cos(
                bearing
            )
            lon = np.degrees(lon0 + np.arctan2(east, ahead)) % 360
            lat = np.degrees(np.arctan2(z, np.hypot(ahead, east)))
            here = np.isin(self.sky.region(lon, lat), self._allowed)
            if here.any():
                return lon[here], lat[here]
        raise ValueError(_nothing_fits(self.sky, self.size, self.pixel_size, self.regions))


@dataclass(frozen=True)
class Split:
    """Regions of sky for training, validation and test.

    Attributes
    ----------
    train, validation, test : tuple of str
        Names of regions.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def split_regions(
    skies: Sequence[SkyMap],
    *,
    validation: Sequence[str] | None = None,
    test: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> Split:
    """Share out the regions of some maps between training, validation and test.

    Regions of two maps that cover the same sky must go to the same part.

    Parameters
    ----------
    skies : sequence of SkyMap
        The maps.
    validation, test : sequence of str, optional
        Names of regions. Default: chosen without chance, so that each has about 15 % of the area
        and every map keeps some of its regions for training where it can.
    exclude : sequence of str
        Names of regions that are to be in no part: where maps cover the same sky, leaving it out
        of one of them keeps the regions around it apart.

    Returns
    -------
    Split
        Regions without valid sky are in no part.

    Raises
    ------
    ValueError
        If names are unknown or in both parts, sky would be shared between parts, or nothing is
        left to train on.
    """
    if not skies:
        raise ValueError("no map to split: give at least one.")
    names = [name for sky in skies for name in sky.region_names]
    if len(set(names)) < len(names):
        raise ValueError(
            f"maps {[sky.name for sky in skies]} share a name: tell them apart with "
            "read_map(..., name=...)."
        )
    for part, chosen in (("validation", validation), ("test", test), ("exclude", exclude)):
        unknown = sorted(set(chosen or ()) - set(names))
        if unknown:
            raise ValueError(
                f"{part} regions {unknown} are not known; there are {', '.join(names)}."
            )
    both = sorted(set(validation or ()) & set(test or ()))
    if both:
        raise ValueError(f"regions {both} are in validation and in test: take them out of one.")
    both = sorted(set(exclude) & {*(validation or ()), *(test or ())})
    if both:
        raise ValueError(f"regions {both} are excluded and in a part: take them out of one list.")

    groups, areas = _overlapping_groups(skies, exclude)
    chosen = {"validation": validation, "test": test}
    named = {name: part for part, given in chosen.items() for name in given or ()}
    empty = sorted(name for name in named if areas[name] == 0)
    if empty:
        raise ValueError(f"regions {empty} have no valid sky: name others or loosen the mask.")
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    free = []
    for group in groups:
        where = {named.get(name, "train") for name in group}
        if len(where) > 1:
            raise ValueError(
                f"regions {', '.join(group)} cover the same sky and would be in different parts "
                f"({', '.join(sorted(where))}). Put them all into one."
            )
        if where == {"train"}:
            free.append(group)
        else:
            parts[where.pop()] += group

    open_parts = [part for part, given in chosen.items() if given is None]
    if len(free) < len(open_parts) + 1:
        raise ValueError(
            f"{len(free)} separate regions of sky are left for training and "
            f"{' and '.join(open_parts) or 'nothing else'}; one is needed for each. Add a map, "
            "name fewer regions for validation and test, or keep no test sky (test=(), or "
            "--test none on the command line)."
        )
    for k, part in enumerate(open_parts):
        waiting = len(open_parts) - k  # parts that still need a group, training among them
        parts[part] = _take_share(free, areas, waiting)
    parts["train"] = [name for group in free for name in group]
    return Split(*(tuple(n for n in names if n in parts[p]) for p in parts))


def _take_share(free: list[list[str]], areas: dict[str, float], spare: int) -> list[str]:
    """Move groups out of ``free`` that make up about 15 % of all; leave at least ``spare``."""
    total = sum(areas.values())
    taken: list[str] = []
    share = 0.0
    while len(free) > spare:
        owners = [group[0].rpartition(":")[0] for group in free]

        def merit(k: int, owners: list[str] = owners, share: float = share) -> tuple:
            miss = abs(share + sum(areas[n] for n in free[k]) / total - _SHARE)
            left = owners.count(owners[k])
            # First leave every map something to train on; then the area; then spread over maps.
            return (left == 1, round(miss, 2), -left, -k)

        best = min(range(len(free)), key=merit)
        more = sum(areas[n] for n in free[best]) / total
        if taken and abs(share + more - _SHARE) >= abs(share - _SHARE):
            break
        taken += free.pop(best)
        share += more
    return taken


def _overlapping_groups(
    skies: Sequence[SkyMap], exclude: Sequence[str]
) -> tuple[list[list[str]], dict[str, float]]:
    """Regions with valid sky, grouped if they overlap, and the area of all (square degrees).

    Excluded regions have none.
    """
    names = [name for sky in skies for name in sky.region_names]
    pixels, owners, first = [], [], 0
    for sky in skies:
        cap = sky.footprint
        centre = hp.ang2vec(cap.lon, cap.lat, lonlat=True)
        if cap.radius < 180:
            here = hp.query_disc(_CENSUS_NSIDE, centre, np.radians(cap.radius), inclusive=True)
        else:
            here = np.arange(hp.nside2npix(_CENSUS_NSIDE))
        values, labels = sky.sample_region(*hp.pix2ang(_CENSUS_NSIDE, here, lonlat=True))
        out = [k for k, name in enumerate(sky.region_names) if name in exclude]
        valid = np.isfinite(values) & (labels >= 0) & ~np.isin(labels, out)
        pixels.append(here[valid])
        owners.append(labels[valid] + first)
        first += len(sky.region_names)
    pixel, owner = np.concatenate(pixels), np.concatenate(owners)
    area = np.bincount(owner, minlength=len(names)) * hp.nside2pixarea(_CENSUS_NSIDE, degrees=True)
    # Regions that meet in a pixel are linked; chains of links make a group.
    order = np.argsort(pixel, kind="stable")
    pixel, owner = pixel[order], owner[order]
    meet = pixel[1:] == pixel[:-1]
    # SciPy before 1.12 wants the indices of graphs in 32 bits.
    ends = owner[:-1][meet].astype(np.int32), owner[1:][meet].astype(np.int32)
    links = coo_array((np.ones(len(ends[0])), ends), shape=(len(names),) * 2)
    count, group_of = connected_components(links, directed=False)
    groups = [
        [name for k, name in enumerate(names) if group_of[k] == g and area[k] > 0]
        for g in range(count)
    ]
    return [group for group in groups if group], dict(zip(names, area.tolist(), strict=True))
