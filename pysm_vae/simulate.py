"""Maps of a sky on disk: one FITS file of I, Q, U a channel, and a picture."""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import healpy as hp
import numpy as np
import pysm3
import pysm3.units as u

from pysm_vae.channels import Channel
from pysm_vae.dust import VAEDust
from pysm_vae.files import atomic_write, writable_folder
from pysm_vae.mapfiles import map_bytes, write_map
from pysm_vae.mpi import agreed, gather, share
from pysm_vae.region import region_pixels
from pysm_vae.registration import presets
from pysm_vae.sky.templates import load_template, pysm_presets
from pysm_vae.vae.generator import load_generator
from pysm_vae.vae.patches import tangent_grid

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

#: Told (what, done, in all), what being "charts" or "channels".
Progress = Callable[[str, int, int], None]

# What the picture takes, generously.
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
    with agreed(mpi_comm):
        order = Order.of(
            out,
            nside=nside,
            channels=channels,
            preset=preset,
            template=template,
            weights=weights,
            settings=settings,
            unit=unit,
            region=region,
            figure=figure,
        )
        check_seed(seed)
        if mpi_comm is None or mpi_comm.rank == 0:
            _check_targets(order.files(seed), overwrite)
            check_space(order, 1)
            if mpi_comm and order.parameters["template"] in pysm_presets():
                # One rank fetches what PySM has to download, the others find it there.
                load_template(order.parameters["template"])
    return make(order, seed, progress=progress, mpi_comm=mpi_comm)


@dataclass(frozen=True, eq=False)
class Order:
    """What maps are asked for, checked; made by :meth:`of`.

    Attributes
    ----------
    folder : pathlib.Path
        Folder of the files.
    nside : int
        HEALPix resolution.
    channels : tuple of Channel
        Frequencies and bandpasses.
    factors : tuple of float
        Of each channel, from µK_RJ to the unit.
    unit : Unit
        Unit of the maps.
    parameters : dict
        What :class:`~pysm_vae.dust.VAEDust` is made with, but for the seed.
    settings : dict
        Those of the parameters that have no option of their own.
    label : str
        What the files are called by: the preset, or that it was changed.
    region : str, path, (float, float, float) or None
        The part of the sky.
    pixels : ndarray of int64, shape (npix,), or None
        Its pixels; None for all of the sky.
    figure : bool
        Whether a picture is wanted, too.
    """

    folder: Path
    nside: int
    channels: tuple[Channel, ...]
    factors: tuple[float, ...]
    unit: u.UnitBase
    parameters: dict[str, Any]
    settings: dict[str, Any]
    label: str
    region: str | Path | tuple[float, float, float] | None
    pixels: np.ndarray | None
    figure: bool

    @classmethod
    def of(
        cls,
        out: str | Path,
        *,
        nside: int,
        channels: Sequence[Channel],
        preset: str,
        template: str | Path | u.Quantity | None,
        weights: str | Path | None,
        settings: Mapping[str, Any] | None = None,
        unit: str | u.UnitBase,
        region: str | Path | tuple[float, float, float] | None,
        figure: bool,
    ) -> Order:
        """Check the arguments of :func:`simulate`; the same errors are raised."""
        parameters = _parameters(preset, template, weights, settings or {})
        if isinstance(nside, bool) or not isinstance(nside, int | np.integer):
            raise TypeError(f"nside must be a whole number, not {nside!r}")
        if not hp.isnsideok(nside, nest=True):
            raise ValueError(f"nside must be a power of two, not {nside}")
        channels = tuple(channels) if isinstance(channels, Sequence) else (channels,)
        if not channels:
            raise ValueError("no channel: give at least one frequency, band or bandpass")
        if not all(isinstance(channel, Channel) for channel in channels):
            raise TypeError(f"channels must be a list such as [Channel.at(353)], not {channels!r}")
        if not isinstance(out, str | Path) or "\0" in str(out):
            raise TypeError(f"out must be the path of a folder, not {out!r}")
        target = _unit(unit)
        custom = template is not None or weights is not None or settings
        order = cls(
            folder=Path(out),
            nside=int(nside),
            channels=channels,
            factors=tuple(channel.conversion(target) for channel in channels),
            unit=target,
            parameters=parameters,
            settings=dict(settings or {}),
            # What is not the preset does not bear its name.
            label=f"{preset}-custom" if custom else preset,
            region=region,
            pixels=None if region is None else region_pixels(region, nside),
            figure=figure,
        )
        names = [path.name for path in order.maps(0)]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(
                f"two channels would both be written to {doubled[0]!r}: give each only once, and "
                "bandpass files different names"
            )
        return order

    @property
    def npix(self) -> int:
        """Pixels of a map."""
        return hp.nside2npix(self.nside) if self.pixels is None else len(self.pixels)

    def maps(self, seed: int) -> list[Path]:
        """Files of a sky's maps, in the order of the channels."""
        end = f"{self._end(seed)}.fits"
        return [self.folder / f"{self.label}_{each.name}_{end}" for each in self.channels]

    def picture(self, seed: int) -> Path:
        """File of a sky's picture."""
        return self.folder / f"{self.label}_{self._end(seed)}.png"

    def files(self, seed: int) -> list[Path]:
        """All files of a sky."""
        return [*self.maps(seed), self.picture(seed)] if self.figure else self.maps(seed)

    def _end(self, seed: int) -> str:
        return f"nside{self.nside}_seed{seed}{'' if self.region is None else '_region'}"

    @cached_property
    def recipes(self) -> tuple[str, ...]:
        """For each channel the SHA-256 of all that decides a map, but the seed.

        Two maps with the same recipe and seed are the same, up to what other versions of other
        packages change in the last digits.
        """
        common = {
            "version": version("pysm_vae"),
            "nside": self.nside,
            "unit": str(self.unit),
            "parameters": {key: _identity(value) for key, value in self.parameters.items()},
            "weights": load_generator(self.parameters.get("weights", "default")).sha256,
            "pixels": None if self.pixels is None else _digest(self.pixels.tobytes()),
        }
        found = []
        for channel in self.channels:
            weights = None if channel.weights is None else channel.weights.tolist()
            band = {"freqs": channel.freqs.to_value(u.GHz).tolist(), "weights": weights}
            text = json.dumps({**common, **band}, sort_keys=True, default=str)
            found.append(_digest(text.encode()))
        return tuple(found)


def make(
    order: Order,
    seed: int,
    *,
    progress: Progress | None = None,
    mpi_comm: Comm | None = None,
) -> list[Path]:
    """Draw one sky and write its files, replacing those that are there.

    Parameters
    ----------
    order : Order
        What is asked for.
    seed : int
        Which sky.
    progress, mpi_comm
        As :func:`simulate`.

    Returns
    -------
    list of pathlib.Path
        The files.
    """
    first = mpi_comm is None or mpi_comm.rank == 0
    nside, pixels, parameters = order.nside, order.pixels, {**order.parameters, "seed": seed}

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
    channels, paths = order.channels, order.maps(seed)
    shown = max(range(len(channels)), key=lambda k: channels[k].centre)
    for k, (channel, path) in enumerate(zip(channels, paths, strict=True)):
        with agreed(mpi_comm):
            maps = model.get_emission(channel.freqs, channel.weights).value
            maps *= order.factors[k]
            maps = maps.astype(np.float32)
        if mpi_comm is not None:
            maps = gather(mpi_comm, maps, nside, pixels)
        with agreed(mpi_comm):
            if first:
                cards = _cards(model, order, k)
                write_map(path, maps, nside=nside, pixels=pixels, unit=order.unit, cards=cards)
                if order.figure and k == shown:
                    _draw(order, seed, model, channel, maps)
        if progress is not None:
            progress("channels", k + 1, len(channels))
    return order.files(seed)


def path_between(
    first: int,
    second: int,
    *,
    frames: int = 25,
    nside: int = 256,
    field: tuple[float, float, float] = (110.0, -38.0, 20.0),
    weights: str | Path = "default",
    size: int = 128,
) -> np.ndarray:
    """Draw a field of the skies between two, with both of them.

    Parameters
    ----------
    first, second : int
        Their seeds; see ``towards`` of :class:`~pysm_vae.dust.VAEDust`.
    frames : int
        Skies of the path, two or more.
    nside : int
        HEALPix resolution.
    field : (float, float, float)
        Galactic longitude, latitude and side, degrees.
    weights : str or path
        As :class:`~pysm_vae.dust.VAEDust`.
    size : int
        Pixels a side of a frame.

    Returns
    -------
    ndarray, float32, shape (frames, size, size)
        Natural logarithm of the intensity in µK_RJ on a tangent plane, interpolated between the
        skies' pixels.

    Raises
    ------
    ValueError
        If there are fewer frames, or the field or another argument cannot be used.
    """
    lon, lat, side = field
    if frames < 2:
        raise ValueError(f"frames={frames}: a path has two or more")
    if not (np.isfinite(lon) and abs(lat) <= 90 and 0 < side <= 90):
        raise ValueError(
            f"field {field!r}: give longitude, latitude and side in degrees, with a latitude from "
            "-90 to 90 and a side of at most 90"
        )
    if not hp.isnsideok(nside, nest=True):
        raise ValueError(f"nside must be a power of two, not {nside}")
    directions = tangent_grid(lon, lat, size, 60 * side / size)
    places, shares = hp.get_interp_weights(nside, *map(np.ravel, directions), lonlat=True)
    pixels, places = np.unique(places, return_inverse=True)
    # The shape of the inverse differs between versions of numpy.
    places = places.reshape(shares.shape)
    path = np.empty((frames, size, size), np.float32)
    for frame, fraction in zip(path, np.linspace(0, 1, frames), strict=True):
        sky = VAEDust(
            nside,
            seed=first,
            towards=second,
            fraction=float(fraction),
            weights=weights,
            polarised=False,
            map_dist=pysm3.MapDistribution(pixels),
        )
        frame[:] = (shares * np.log(sky.I_ref.value)[places]).sum(axis=0).reshape(size, size)
    return path


def check_seed(seed: int) -> None:
    """Refuse what is no seed of a sky."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, not {seed!r}")


def check_space(order: Order, skies: int) -> None:
    """Make the folder if need be, and see whether so many skies fit into it.

    Raises
    ------
    NotADirectoryError, PermissionError
        If the folder cannot be written to.
    OSError
        If the disk is too full.
    """
    folder = writable_folder(order.folder)
    needed = skies * sky_bytes(order)
    free = shutil.disk_usage(folder).free
    if needed > free:
        number = skies * len(order.channels)
        raise OSError(
            errno.ENOSPC,
            f"{number} maps of nside {order.nside} need {needed / 1e6:.0f} MB in {str(folder)!r}, "
            f"which has {free / 1e6:.0f} MB left: free some space, or name another folder",
        )


def sky_bytes(order: Order) -> int:
    """Bytes that one sky takes on disk, and a little more."""
    size = len(order.channels) * map_bytes(order.nside, order.pixels)
    return size + (_PICTURE if order.figure else 0)


def _parameters(
    preset: str,
    template: str | Path | u.Quantity | None,
    weights: str | Path | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What VAEDust is made with: the preset's values, unless others are given."""
    known = presets()
    if preset not in known:
        raise ValueError(f"no preset {preset!r} in this package: there is {', '.join(known)}")
    parameters = dict(known[preset])
    del parameters["class"], parameters["seed"]
    if wrong := set(settings) - _SETTINGS:
        raise ValueError(
            f"no setting {', '.join(sorted(wrong))}: there are {', '.join(sorted(_SETTINGS))}"
        )
    parameters |= settings
    for name, value in (("template", template), ("weights", weights)):
        if value is not None:
            parameters[name] = value
    return parameters


def _identity(value: Any) -> Any:
    """What a parameter is known again by: of files and arrays, the content."""
    if isinstance(value, u.Quantity):
        return [str(value.unit), _digest(np.ascontiguousarray(value.value).tobytes())]
    if isinstance(value, np.ndarray):
        return _digest(np.ascontiguousarray(value).tobytes())
    if isinstance(value, str | Path) and Path(value).is_file():
        return _digest(Path(value).read_bytes())
    return value


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


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


def _draw(order: Order, seed: int, model: VAEDust, channel: Channel, maps: np.ndarray) -> None:
    from pysm_vae.figures import region_figure, sky_figure

    title = f"{order.label}, seed {seed}"
    if order.pixels is None:
        figure = sky_figure(model, channel, maps, order.unit, title=title)
    else:
        figure = region_figure(order.nside, order.pixels, channel, maps, order.unit, title=title)
    with atomic_write(order.picture(seed)) as partial:
        figure.savefig(partial, format="png", dpi=150)


def _cards(model: VAEDust, order: Order, number: int) -> list[tuple]:
    """Header cards that say what a file is and how to make it again."""
    channel = order.channels[number]
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
    if order.region is not None:
        cards.append(("REGION", _ascii(_region_name(order.region)), "the part of the sky"))
    if order.settings:
        text = json.dumps(order.settings, default=str, sort_keys=True)
        # As long as it likes: a comment would be cut off.
        cards.append(("SETTINGS", _ascii(text)))
    cards += [
        ("PRESET", order.label, "pysm_vae preset; -custom: with other parts"),
        ("SEED", model.seed, "seed of the small scales"),
        ("TEMPLATE", _ascii(model.template.name)),
        ("WEIGHTS", _ascii(model.generator.name)),
        # It fills the card: a comment would not fit.
        ("WSHA256", model.generator.sha256),
        # All of the above but the seed, and what no card has room for.
        ("RECIPE", order.recipes[number]),
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
