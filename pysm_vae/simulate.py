"""Maps of a sky on disk: one FITS file of I, Q, U a channel, and a picture."""

from __future__ import annotations

import errno
import inspect
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import healpy as hp
import numpy as np
import pysm3
import pysm3.units as u
from astropy.io import fits

from pysm_vae.channels import Channel
from pysm_vae.dust import VAEDust
from pysm_vae.files import atomic_write, writable_folder
from pysm_vae.mpi import agreed, gather, share
from pysm_vae.region import region_pixels
from pysm_vae.registration import presets
from pysm_vae.sky.templates import load_template, pysm_presets

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

#: Told (what, done, in all), what being "charts" or "channels".
Progress = Callable[[str, int, int], None]

# What a FITS file and the picture take beside the pixels, generously.
_HEADERS = 64 << 10
_PICTURE = 8 << 20

# Arguments of VAEDust that have no option of their own.
_SETTINGS = set(inspect.signature(VAEDust).parameters) - {
    *("nside", "template", "weights", "seed", "num", "map_dist", "max_nside", "progress")
}

# Packages whose version can change a map, and the header cards that name them.
_VERSIONS = {
    "V_VAE": "pysm_vae",
    "V_PYSM3": "pysm3",
    "V_KERAS": "keras",
    "V_TF": "tensorflow",
    "V_DUCC0": "ducc0",
    "V_HEALPY": "healpy",
    "V_SCIPY": "scipy",
    "V_NUMPY": "numpy",
    "V_ASTRO": "astropy",
}


def simulate(
    out: str | Path,
    *,
    nside: int,
    channels: Sequence[Channel],
    preset: str = "vae0",
    template: str | Path | u.Quantity | None = None,
    weights: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    unit: str | u.UnitBase = "uK_CMB",
    region: str | Path | tuple[float, float, float] | None = None,
    figure: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
    mpi_comm: Comm | None = None,
) -> list[Path]:
    """Draw a sky and write I, Q, U of each channel, and a picture of the highest.

    The files are HEALPix maps (RING, Galactic, COSMO polarisation convention) that
    ``healpy.read_map(path, field=(0, 1, 2))`` reads. They are in single precision, which is what
    the sky is drawn in. Their headers name the channel, the seed, the preset, the template, the
    weights' SHA-256 and the versions of the packages, and no date, so that the same sky makes the
    same file, on any number of ranks.

    Parameters
    ----------
    out : path-like
        Folder of the files; made if need be.
    nside : int
        HEALPix resolution.
    channels : sequence of Channel
        Frequencies and bandpasses.
    preset : str
        Name of one of this package's presets, such as ``"vae0"``.
    template, weights
        In place of the preset's; see :class:`~pysm_vae.dust.VAEDust`.
    settings : mapping, optional
        Other arguments of :class:`~pysm_vae.dust.VAEDust`, in place of the preset's.
    seed : int
        Which sky.
    unit : str or Unit
        Unit of the maps: uK_CMB, uK_RJ, K_CMB, MJy/sr, or whatever else PySM converts to.
    region : str, path or (float, float, float), optional
        Draw and write only a disc, or what a mask file wants: see
        :func:`~pysm_vae.region.region_pixels`. The files are partial HEALPix maps (explicit
        indexing), and their pixels those of the full sky, to the last bit.
    figure : bool
        Also draw the picture.
    overwrite : bool
        Replace files that are there already.
    progress : callable, optional
        Told ("charts" or "channels", done, in all) as the work goes on.
    mpi_comm : mpi4py.MPI.Comm, optional
        Ranks that share the pixels, each of which calls this function with the same arguments. The
        first writes the files. A rank that fails stops all others at the end of the same step: it
        raises what went wrong, and they :class:`~pysm_vae.mpi.RankError`.

    Returns
    -------
    list of pathlib.Path
        The files written: the maps in the order of the channels, then the picture.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        If an argument cannot be used.
    FileExistsError
        If a file is there already and ``overwrite`` is not set.
    NotADirectoryError, PermissionError
        If the folder cannot be written to.
    ConnectionError
        If the template has to come from PySM's server and that is not reached.
    OSError
        If the disk is too full. All this is found out before the sky is drawn, as far as it can
        be; a write that fails later leaves no part of a file.
    """
    first = mpi_comm is None or mpi_comm.rank == 0
    with agreed(mpi_comm):
        parameters = _parameters(preset, template, weights, settings or {}, seed)
        if isinstance(nside, bool) or not isinstance(nside, int | np.integer):
            raise TypeError(f"nside must be a whole number, not {nside!r}")
        if not hp.isnsideok(nside, nest=True):
            raise ValueError(f"nside must be a power of two, not {nside}")
        channels = list(channels)
        if not channels:
            raise ValueError("no channel: give at least one frequency, band or bandpass")
        target = _unit(unit)
        factors = [channel.conversion(target) for channel in channels]
        pixels = None if region is None else region_pixels(region, nside)

        folder = Path(out)
        suffix = f"nside{nside}_seed{seed}{'' if region is None else '_region'}"
        # What is not the preset does not bear its name.
        custom = template is not None or weights is not None or settings
        label = f"{preset}-custom" if custom else preset
        paths = [folder / f"{label}_{channel.name}_{suffix}.fits" for channel in channels]
        doubled = sorted({path.name for path in paths if paths.count(path) > 1})
        if doubled:
            raise ValueError(
                f"two channels would both be written to {doubled[0]!r}: give each only once, and "
                "bandpass files different names"
            )
        picture = folder / f"{label}_{suffix}.png"
        expected = [*paths, picture] if figure else paths
        if first:
            _check_targets(expected, overwrite)
            _check_space(writable_folder(folder), nside, pixels, len(channels), figure)
            large_scales = parameters["template"]
            if mpi_comm and isinstance(large_scales, str) and large_scales in pysm_presets():
                # One rank fetches what PySM has to download, the others find it there.
                load_template(large_scales)

    def charts(done: int, total: int) -> None:
        if progress is not None:
            progress("charts", done, total)

    with agreed(mpi_comm):
        mine = pixels
        if mpi_comm is not None:
            mine = share(nside, pixels, mpi_comm.rank, mpi_comm.size)
        if mine is not None:
            parameters["map_dist"] = pysm3.MapDistribution(mine, mpi_comm, nside)
        model = VAEDust(nside, progress=charts, **parameters)
    shown = max(range(len(channels)), key=lambda k: channels[k].centre)
    for k, (channel, factor, path) in enumerate(zip(channels, factors, paths, strict=True)):
        with agreed(mpi_comm):
            maps = model.get_emission(channel.freqs, channel.weights).value
            maps *= factor
            maps = maps.astype(np.float32)
        if mpi_comm is not None:
            maps = gather(mpi_comm, maps, nside, pixels)
        with agreed(mpi_comm):
            if first:
                cards = _cards(model, channel, label, settings or {}, region)
                _write(path, maps, nside, pixels, cards, target)
                if figure and k == shown:
                    title = f"{label}, seed {seed}"
                    _draw(picture, model, channel, maps, pixels, target, title)
        if progress is not None:
            progress("channels", k + 1, len(channels))
    return expected


def _parameters(
    preset: str,
    template: str | Path | u.Quantity | None,
    weights: str | Path | None,
    settings: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """What VAEDust is made with: the preset's values, unless others are given."""
    known = presets()
    if preset not in known:
        raise ValueError(f"no preset {preset!r} in this package: there is {', '.join(known)}")
    parameters = {**known[preset], "seed": seed}
    del parameters["class"]
    if wrong := set(settings) - _SETTINGS:
        raise ValueError(
            f"no setting {', '.join(sorted(wrong))}: there are {', '.join(sorted(_SETTINGS))}"
        )
    parameters |= settings
    for name, value in (("template", template), ("weights", weights)):
        if value is not None:
            parameters[name] = value
    return parameters


def _unit(unit: str | u.UnitBase) -> u.UnitBase:
    try:
        target = u.Unit(unit)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"unit {unit!r} is not known: give uK_CMB, uK_RJ, K_CMB, MJy/sr or the like"
        ) from error
    # Astropy lets a plain kelvin pass for a brightness temperature of either kind.
    if target.physical_type == "temperature":
        raise ValueError(f"unit {str(unit)!r}: say which kelvin, {unit}_CMB or {unit}_RJ")
    return target


def _check_targets(paths: list[Path], overwrite: bool) -> None:
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"{str(path)!r} is a folder: move it, or name another --out")
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise FileExistsError(
            f"{str(there[0])!r}{more} already exist: name another folder, or replace them with "
            "overwrite=True (--overwrite)"
        )


def _check_space(
    folder: Path, nside: int, pixels: np.ndarray | None, channels: int, figure: bool
) -> None:
    if pixels is None:
        size = hp.nside2npix(nside) * 3 * np.dtype(np.float32).itemsize
    else:
        size = len(pixels) * _partial_type(nside).itemsize
    needed = channels * (size + _HEADERS) + (_PICTURE if figure else 0)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"{channels} maps of nside {nside} need {needed / 1e6:.0f} MB in {str(folder)!r}, "
            f"which has {free / 1e6:.0f} MB left: free some space, or name another folder",
        )


def _partial_type(nside: int) -> np.dtype:
    """A row of a partial map's table, with the names that healpy gives the columns."""
    number = ">i4" if hp.nside2npix(nside) <= np.iinfo(np.int32).max else ">i8"
    names = ("TEMPERATURE", "Q_POLARISATION", "U_POLARISATION")
    return np.dtype([("PIXEL", number), *((name, ">f4") for name in names)])


def _write(
    path: Path,
    maps: np.ndarray,
    nside: int,
    pixels: np.ndarray | None,
    cards: list[tuple],
    unit: u.UnitBase,
) -> None:
    with atomic_write(path) as partial:
        if pixels is not None:
            _write_partial(partial, maps, nside, pixels, cards, unit)
            return
        hp.write_map(
            partial,
            maps,
            dtype=np.float32,
            coord="G",
            column_units=_fits_unit(unit),
            extra_header=cards,
            # It is the temporary file, which exists.
            overwrite=True,
        )


def _write_partial(
    path: Path,
    maps: np.ndarray,
    nside: int,
    pixels: np.ndarray,
    cards: list[tuple],
    unit: u.UnitBase,
) -> None:
    """As ``healpy.write_map(..., partial=True)``, which wants all pixels of the sky in memory."""
    rows = np.empty(len(pixels), _partial_type(nside))
    for name, values in zip(rows.dtype.names, (pixels, *maps), strict=True):
        rows[name] = values
    table = fits.BinTableHDU(rows)
    for k in (2, 3, 4):
        table.header.set(f"TUNIT{k}", _fits_unit(unit), after=f"TFORM{k}")
    for card in (
        ("PIXTYPE", "HEALPIX", "HEALPIX pixelisation"),
        ("ORDERING", "RING", "Pixel ordering scheme, either RING or NESTED"),
        ("COORDSYS", "G", "Ecliptic, Galactic or Celestial (equatorial)"),
        ("NSIDE", nside, "Resolution parameter of HEALPIX"),
        ("INDXSCHM", "EXPLICIT", "Indexing: IMPLICIT or EXPLICIT"),
        ("OBS_NPIX", len(pixels), "Number of pixels in the table"),
        ("OBJECT", "PARTIAL", "Sky coverage, either FULLSKY or PARTIAL"),
        *cards,
    ):
        table.header[card[0]] = card[1:]
    table.writeto(path, overwrite=True)


def _draw(
    path: Path,
    model: VAEDust,
    channel: Channel,
    maps: np.ndarray,
    pixels: np.ndarray | None,
    unit: u.UnitBase,
    title: str,
) -> None:
    from pysm_vae.figures import region_figure, sky_figure

    if pixels is None:
        figure = sky_figure(model, channel, maps, unit, title=title)
    else:
        figure = region_figure(model.nside, pixels, channel, maps, unit, title=title)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=150)


def _fits_unit(unit: u.UnitBase) -> str:
    """The unit as the FITS standard writes it; it knows no K_CMB, which is left as it is."""
    try:
        return unit.to_string("fits")
    except ValueError:
        return str(unit)


def _cards(
    model: VAEDust,
    channel: Channel,
    preset: str,
    settings: Mapping[str, Any],
    region: str | Path | tuple[float, float, float] | None,
) -> list[tuple]:
    """Header cards that say what a file is and how to make it again."""
    nu = channel.freqs.to_value(u.GHz)
    cards: list[tuple] = [
        ("EXTNAME", "DUST", "I, Q, U of Galactic dust"),
        ("POLAR", True, "I, Q, U"),
        ("POLCCONV", "COSMO", "polarisation convention (HEALPix)"),
        ("FREQ", channel.centre, "[GHz] frequency, or mean under the bandpass"),
        ("BANDPASS", channel.kind, "weights in power units (Jy/sr)"),
    ]
    if len(nu) > 1:
        cards += [
            ("FREQLOW", float(nu[0]), "[GHz] lowest frequency of the bandpass"),
            ("FREQHIGH", float(nu[-1]), "[GHz] highest frequency of the bandpass"),
            ("FREQNUM", len(nu), "frequencies integrated over"),
        ]
    if channel.source:
        cards.append(("BANDFILE", _ascii(channel.source)))
    if region is not None:
        cards.append(("REGION", _ascii(_region_name(region)), "the part of the sky"))
    if settings:
        cards.append(("SETTINGS", _ascii(json.dumps(settings, default=str, sort_keys=True))))
    cards += [
        ("PRESET", preset, "pysm_vae preset; -custom: with other parts"),
        ("SEED", model.seed, "seed of the small scales"),
        ("TEMPLATE", _ascii(model.template.name)),
        ("WEIGHTS", _ascii(model.generator.name)),
        # It fills the card: a comment would not fit.
        ("WSHA256", model.generator.sha256),
        ("FREQREF", model.freq_ref_I.to_value(u.GHz), "[GHz] reference of the modified blackbody"),
        ("LMAX", math.floor(model.lmax), "small scales reach this multipole"),
    ]
    for key, value, comment in (
        ("DUSTBETA", model.mbb_index, "spectral index"),
        ("DUSTTEMP", model.mbb_temperature, "[K] dust temperature"),
    ):
        cards.append((key, float(value.value) if value.isscalar else "map", comment))
    cards.append(("CREATOR", f"pysm_vae {version('pysm_vae')}"))
    cards += [
        (key, version(package), f"version of {package}") for key, package in _VERSIONS.items()
    ]
    return cards


def _region_name(region: str | Path | tuple[float, float, float]) -> str:
    """A disc's numbers, or the name of a mask's file."""
    if isinstance(region, tuple):
        return ",".join(f"{number:g}" for number in region)
    return Path(region).name


def _ascii(text: str) -> str:
    """Text for a FITS header, which holds ASCII alone."""
    return text.encode("ascii", "replace").decode()
