"""Pictures of a simulated sky."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import healpy as hp
import numpy as np
import pysm3.units as u
from healpy.projector import MollweideProj
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import AsinhNorm, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from pysm_vae.sky.sed import emission
from pysm_vae.sky.templates import from_log_pol_tens
from pysm_vae.vae.patches import tangent_grid

if TYPE_CHECKING:
    from pysm_vae.channels import Channel
    from pysm_vae.dust import VAEDust
    from pysm_vae.mapfiles import HealpixFile

#: Galactic longitude and latitude (degrees) of the field that is shown enlarged: cirrus in Pegasus,
#: away from the plane.
FIELD = (110.0, -38.0)
#: Its side, degrees.
FIELD_SIDE = 20.0

_TITLES = {"I": "Stokes I", "Q": "Stokes Q", "U": "Stokes U", "P": r"$P = \sqrt{Q^2 + U^2}$"}
# Of patches, what is not on the scale of the others.
_SPREAD = "standard deviation"
_CASES = ("template only", "with small scales")
_FIELD_PIXELS = 400
_SKY_PIXELS = 1200
# Least distance of the numbers under a colour bar, over its length.
_TICKS_APART = 0.11
# Finer maps are averaged to this, of which a pixel is one of the picture's.
_SKY_NSIDE = 256


def sky_figure(
    model: VAEDust, channel: Channel, maps: np.ndarray, unit: u.UnitBase, *, title: str = ""
) -> Figure:
    """Full-sky I, Q, U, and a field of I and P with and without the small scales.

    Parameters
    ----------
    model : VAEDust
        The sky, on all pixels.
    channel : Channel
        The frequency or bandpass that ``maps`` are of.
    maps : ndarray, shape (3, npix)
        I, Q, U in ``unit``.
    unit : Unit
        Unit of the maps.
    title : str
        Put before the channel in the heading.

    Returns
    -------
    matplotlib.figure.Figure
        With an Agg canvas; no global state of matplotlib is touched.
    """
    figure = Figure(figsize=(15, 8.6), layout="constrained")
    FigureCanvasAgg(figure)
    heading = f"Galactic dust at {channel.label}, nside {model.nside}"
    (top,), (bottom,) = figure.subfigures(2, 1, squeeze=False, height_ratios=(0.85, 1))
    label = unit_label(unit)
    top.suptitle(f"{title}: {heading}" if title else heading, fontsize=17)
    bottom.suptitle(
        f"The field in the white frame, {FIELD_SIDE:g}° wide, at (l, b) = "
        f"({FIELD[0]:g}°, {FIELD[1]:g}°)".replace("-", "−"),
        fontsize=15,
    )
    stokes = dict(zip("IQU", maps, strict=True))
    frame = (*FIELD, FIELD_SIDE)
    _draw_skies(top.subplots(1, 3), stokes, _styles(stokes), label, frame)
    _draw_fields(bottom, model, channel, maps, channel.conversion(unit), label)
    return figure


def region_figure(
    nside: int,
    pixels: np.ndarray,
    channel: Channel,
    maps: np.ndarray,
    unit: u.UnitBase,
    *,
    title: str = "",
) -> Figure:
    """I, Q, U of a part of the sky, in an equal-area projection about its middle.

    Parameters
    ----------
    nside : int
        Resolution of the maps.
    pixels : ndarray of int, shape (npix,)
        RING, rising.
    channel : Channel
        The frequency or bandpass that ``maps`` are of.
    maps : ndarray, shape (3, npix)
        I, Q, U in ``unit``.
    unit : Unit
        Unit of the maps.
    title : str
        Put before the channel in the heading.

    Returns
    -------
    matplotlib.figure.Figure
        With an Agg canvas; no global state of matplotlib is touched.
    """
    figure = Figure(figsize=(15, 7), layout="constrained")
    FigureCanvasAgg(figure)
    lon, lat, places, half = _region_image(nside, pixels)
    heading = f"Galactic dust at {channel.label}, nside {nside}"
    about = f"about (l, b) = ({lon:.1f}°, {lat:.1f}°)".replace("-", "−")
    figure.suptitle(f"{title}: {heading}, {about}" if title else f"{heading}, {about}", fontsize=17)
    stokes = dict(zip("IQU", maps, strict=True))
    axes = figure.subplots(1, 3, sharey=True)
    _draw_region(axes, stokes, _styles(stokes), places, half, unit_label(unit))
    axes[0].set_ylabel("degrees north")
    return figure


def _draw_region(
    axes: np.ndarray,
    stokes: dict[str, np.ndarray],
    styles: dict[str, tuple[str, Normalize]],
    places: np.ndarray,
    half: float,
    label: str,
) -> None:
    for axis, (name, (colours, norm)) in zip(axes, styles.items(), strict=True):
        shown = axis.imshow(
            np.ma.masked_invalid(np.ma.masked_array(stokes[name][places], places < 0)),
            extent=(half, -half, -half, half),
            origin="lower",
            cmap=colours,
            norm=norm,
            interpolation="antialiased",
        )
        axis.set_title(_TITLES[name], fontsize=16)
        axis.set_xlabel("degrees east")
        _linear_ticks(_colour_bar([axis], shown, label))


def _linear_ticks(bar: Colorbar) -> None:
    """Ticks for values that need not span a decade."""
    low, high = bar.mappable.get_clim()
    ticks = [float(tick) for tick in MaxNLocator(5).tick_values(low, high)]
    _set_ticks(bar, [tick for tick in ticks if low <= tick <= high])


def _set_ticks(bar: Colorbar, ticks: Sequence[float]) -> None:
    """Those of the ticks, the first ones first, whose numbers do not touch."""
    kept: list[float] = []
    for tick in ticks:
        places = [float(bar.norm(each)) for each in (tick, *kept)]
        if all(abs(place - places[0]) > _TICKS_APART for place in places[1:]):
            kept.append(tick)
    bar.set_ticks(sorted(kept))
    bar.set_ticks([], minor=True)
    numbers = ScalarFormatter(useMathText=True)
    numbers.set_powerlimits((-3, 5))
    bar.ax.xaxis.set_major_formatter(numbers)


def file_figure(
    read: HealpixFile,
    *,
    shown: str = "IQUP",
    zoom: tuple[float, float, float] | None = None,
    title: str = "",
) -> Figure:
    """Maps of a file: all of the sky, or the part that it has, and an enlarged field.

    Parameters
    ----------
    read : HealpixFile
        The file.
    shown : str
        Which of I, Q, U and P, the polarised intensity.
    zoom : (float, float, float), optional
        Longitude, latitude and side of the field, degrees, in the map's coordinates. By default
        that of :func:`sky_figure` for a full sky, and none for a part.
    title : str
        The heading.

    Returns
    -------
    matplotlib.figure.Figure
        With an Agg canvas; no global state of matplotlib is touched.

    Raises
    ------
    ValueError
        If the file has not what is to be shown, or the field is none.
    """
    names = list(dict.fromkeys(shown.upper()))
    if not names or set(names) - set("IQUP"):
        raise ValueError(f"shown={shown!r}: give some of I, Q, U and P, such as 'IP'")
    if len(read.maps) < 3 and names != ["I"]:
        raise ValueError(
            f"the file has {len(read.maps)} maps, so no Q, U and P can be shown: ask for I alone"
        )
    if zoom is None and read.pixels is None:
        zoom = (*FIELD, FIELD_SIDE)
    if zoom is not None and not (
        np.isfinite(zoom).all() and abs(zoom[1]) <= 90 and 0 < zoom[2] <= 90
    ):
        raise ValueError(
            f"zoom {zoom!r}: give longitude, latitude and side in degrees, with a latitude from "
            "-90 to 90 and a side of at most 90"
        )
    pixels, maps = _in_ring_order(read)
    stokes = {name: maps["IQU".index(name)] for name in names if name != "P"}
    if "P" in names:
        stokes["P"] = np.hypot(maps[1], maps[2])
    if not all(np.isfinite(values).any() for values in stokes.values()):
        raise ValueError("the file has no pixel with a finite value: there is nothing to show")
    styles = _styles(stokes)
    label = unit_label(_unit_of(read.units[0]))

    rows = 1 + (zoom is not None)
    height = (3.4 if read.pixels is None else 5.2) + (5.2 if zoom else 0) + 0.6
    figure = Figure(figsize=(1.5 + 4.6 * len(names), height), layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(rows, 1, height_ratios=(0.75, 1) if rows == 2 else None)
    parts = np.ravel(parts)  # type: ignore[arg-type]
    axes = parts[0].subplots(1, len(names), squeeze=False)[0]
    if pixels is None:
        parts[0].suptitle(title, fontsize=15)
        _draw_skies(axes, stokes, styles, label, frame=zoom)
    else:
        lon, lat, places, half = _region_image(read.nside, pixels)
        about = f"about ({lon:.1f}°, {lat:.1f}°)".replace("-", "−")
        parts[0].suptitle(f"{title}\n{about}" if title else about, fontsize=15)
        _draw_region(axes, stokes, styles, places, half, label)
        axes[0].set_ylabel("degrees north")
    if zoom is not None:
        about = f"{zoom[2]:g}° about ({zoom[0]:g}°, {zoom[1]:g}°)".replace("-", "−")
        parts[1].suptitle(about, fontsize=14)
        below = parts[1].subplots(1, len(names), squeeze=False)[0]
        _draw_zoom(below, stokes, read.nside, pixels, zoom, label)
    return figure


def patch_figure(panels: dict[str, np.ndarray], *, title: str = "") -> Figure:
    """Square patches of log-intensity side by side, on one scale, and how uncertain they are.

    Parameters
    ----------
    panels : dict of str to ndarray, each (size, size)
        By their headings; one that is called "standard deviation" has a scale of its own.
    title : str
        Put above.

    Returns
    -------
    matplotlib.figure.Figure
        With an Agg canvas; no global state of matplotlib is touched.

    Raises
    ------
    ValueError
        If no pixel is finite.
    """
    values = np.concatenate([np.ravel(panels[name]) for name in panels if name != _SPREAD])
    values = values[np.isfinite(values)]
    if not values.size:
        raise ValueError("the patch has no pixel with a finite value: there is nothing to show")
    level = Normalize(*np.percentile(values, (0.2, 99.8)))
    figure = Figure(figsize=(0.4 + 3.6 * len(panels), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=14)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, patch) in zip(axes, panels.items(), strict=True):
        colours, norm = ("viridis", None) if name == _SPREAD else ("inferno", level)
        shown = axis.imshow(np.ma.masked_invalid(patch), origin="lower", cmap=colours, norm=norm)
        axis.set_title(name, fontsize=13)
        axis.set(xticks=[], yticks=[])
        _linear_ticks(_colour_bar([axis], shown, "ln I"))
    return figure


def _in_ring_order(read: HealpixFile) -> tuple[np.ndarray | None, np.ndarray]:
    """Pixels (rising; None for all) and maps, RING."""
    if read.pixels is None:
        return None, (hp.reorder(read.maps, n2r=True) if read.nest else read.maps)
    pixels = hp.nest2ring(read.nside, read.pixels) if read.nest else read.pixels
    order = np.argsort(pixels)
    return pixels[order], read.maps[:, order]


def _unit_of(text: str) -> u.UnitBase | str:
    try:
        return u.Unit(text)
    except ValueError:
        return text


def _draw_zoom(
    axes: np.ndarray,
    stokes: dict[str, np.ndarray],
    nside: int,
    pixels: np.ndarray | None,
    zoom: tuple[float, float, float],
    label: str,
) -> None:
    """A field, interpolated between pixels; empty where one of these is not there."""
    lon, lat = tangent_grid(zoom[0], zoom[1], _FIELD_PIXELS, 60 * zoom[2] / _FIELD_PIXELS)
    places, weights = hp.get_interp_weights(nside, lon.ravel(), lat.ravel(), lonlat=True)
    if pixels is not None:
        wanted = places
        places = np.minimum(np.searchsorted(pixels, wanted), len(pixels) - 1)
        weights = np.where(pixels[places] == wanted, weights, np.nan)
    half = zoom[2] / 2
    fields = {
        name: (weights * values[places]).sum(axis=0).reshape(lon.shape)
        for name, values in stokes.items()
    }
    if not all(np.isfinite(field).any() for field in fields.values()):
        raise ValueError(f"zoom {zoom!r}: the map has nothing there")
    for axis, (name, (colours, norm)) in zip(axes, _styles(fields).items(), strict=True):
        shown = axis.imshow(
            np.ma.masked_invalid(fields[name]),
            extent=(half, -half, -half, half),
            origin="lower",
            cmap=colours,
            norm=norm,
            interpolation="antialiased",
        )
        axis.set_title(_TITLES[name], fontsize=14)
        axis.set_xlabel("degrees east")
        _linear_ticks(_colour_bar([axis], shown, label))
    axes[0].set_ylabel("degrees north")


def _region_image(nside: int, pixels: np.ndarray) -> tuple[float, float, np.ndarray, float]:
    """Middle of a region, and where in ``pixels`` each pixel of its image is, or -1.

    Lambert's projection: a direction at the angle r from the middle lies at 2 sin(r/2).
    """
    # A million directions are enough to frame it.
    step = 1 + len(pixels) // 1_000_000
    vectors = np.array(hp.pix2vec(nside, pixels[::step]))
    middle = vectors.mean(axis=1)
    length = np.linalg.norm(middle)
    # What surrounds the whole sky evenly has no middle.
    middle = middle / length if length > 1e-3 else np.array([1.0, 0.0, 0.0])
    lon, lat = (round(angle.item(), 6) + 0.0 for angle in hp.vec2ang(middle, lonlat=True))
    margin = np.sqrt(step) * hp.nside2resol(nside)
    farthest = np.arccos(np.clip((middle @ vectors).min(), -1, 1)) + margin
    reach = 2 * np.sin(min(farthest, np.pi) / 2)
    east = np.array([-np.sin(np.radians(lon)), np.cos(np.radians(lon)), 0.0])
    axis = np.linspace(-reach, reach, _FIELD_PIXELS)
    # Longitude grows to the left.
    x, y = -axis[None, :, None], axis[:, None, None]
    radius2 = x**2 + y**2
    tangent = x * east + y * np.cross(middle, east)
    on_sphere = radius2 <= reach**2
    radius2 = np.minimum(radius2, 4.0)
    directions = (1 - radius2 / 2) * middle + np.sqrt(1 - radius2 / 4) * tangent
    wanted = hp.vec2pix(nside, *np.moveaxis(directions, -1, 0))
    places = np.minimum(np.searchsorted(pixels, wanted), len(pixels) - 1)
    there = (pixels[places] == wanted) & on_sphere[..., 0]
    return lon, lat, np.where(there, places, -1), float(np.degrees(reach))


def unit_label(unit: u.UnitBase | str) -> str:
    """The unit as an axis shows it: µK with a subscript for ``uK_CMB``."""
    match = re.fullmatch(r"(\w?)K_(CMB|RJ)", str(unit))
    if match is None:
        return str(unit).replace(" / ", "/")
    return rf"{match[1].replace('u', 'µ')}K$_\mathrm{{{match[2]}}}$"


def _draw_skies(
    axes: np.ndarray,
    stokes: dict[str, np.ndarray],
    styles: dict[str, tuple[str, Normalize]],
    label: str,
    frame: tuple[float, float, float] | None,
) -> None:
    # healpy's astronomical convention: longitude grows to the left.
    projection = MollweideProj(xsize=_SKY_PIXELS)
    for axis, (name, (colours, norm)) in zip(axes, styles.items(), strict=True):
        values = stokes[name]
        nside = hp.npix2nside(len(values))
        if nside > _SKY_NSIDE:
            # healpy averages the pixels that are there if the others are UNSEEN.
            nside = _SKY_NSIDE
            values = hp.ud_grade(np.where(np.isfinite(values), values, hp.UNSEEN), nside)
            values = np.where(values == hp.UNSEEN, np.nan, values)
        image = projection.projmap(values, lambda x, y, z, nside=nside: hp.vec2pix(nside, x, y, z))
        shown = axis.imshow(
            np.ma.masked_invalid(image),
            extent=projection.get_extent(),
            origin="lower",
            cmap=colours,
            norm=norm,
            interpolation="antialiased",
        )
        outline = Ellipse((0, 0), 4, 2, fill=False, edgecolor="0.3", linewidth=1)
        axis.add_patch(outline)
        shown.set_clip_path(outline)
        axis.set(xlim=(-2.02, 2.02), ylim=(-1.02, 1.02), frame_on=False, xticks=[], yticks=[])
        axis.set_title(_TITLES[name], fontsize=16)
        bar = _colour_bar([axis], shown, label)
        if isinstance(norm, AsinhNorm):
            # Its own ticks crowd around zero.
            step = 10.0 ** np.floor(np.log10(norm.vmax))
            _set_ticks(bar, [0, -step, step, -step / 10, step / 10])
    if frame is not None:
        x, y = projection.ang2xy(*_outline(*frame))
        # What crosses the edge of the picture goes on at its other side; no line joins the two.
        across = np.flatnonzero(np.abs(np.diff(x)) > 1) + 1
        x, y = (np.insert(each, across, np.nan) for each in (x, y))
        axes[0].plot(x, y, color="white", linewidth=1.3)


def _styles(stokes: dict[str, np.ndarray]) -> dict[str, tuple[str, Normalize]]:
    """Colours and scale of I, Q, U or P: logarithms of what is positive, else about zero."""
    known = {name: values[np.isfinite(values)] for name, values in stokes.items()}
    polarised = [np.abs(known[name]) for name in "QU" if name in known and known[name].size]
    styles: dict[str, tuple[str, Normalize]] = {}
    for name, values in known.items():
        low, high = np.percentile(values, (0.2, 99.8))
        if name in "IP" and low > 0 and high > low:
            styles[name] = ("inferno" if name == "I" else "viridis", LogNorm(low, high))
            continue
        sizes = np.concatenate(polarised) if name in "QU" else np.abs(values)
        largest = float(np.percentile(sizes, 99.8)) or 1.0
        # The median polarised intensity, if Q and U are much alike.
        linear = float(np.sqrt(2) * np.percentile(sizes, 50)) or 0.01 * largest
        styles[name] = ("RdBu_r", AsinhNorm(linear, -largest, largest))
    return styles


def _outline(lon: float, lat: float, side: float) -> tuple[np.ndarray, np.ndarray]:
    """Colatitude and longitude (radians) along the edge of a field."""
    lon, lat = tangent_grid(lon, lat, 40, 60 * side / 40)
    edge = [np.concatenate([a[0], a[:, -1], a[-1, ::-1], a[::-1, 0]]) for a in (lon, lat)]
    return np.radians(90 - edge[1]), np.radians(edge[0])


def _draw_fields(
    figure: Figure,
    model: VAEDust,
    channel: Channel,
    maps: np.ndarray,
    factor: float,
    label: str,
) -> None:
    """I and P of the field, first of the template alone and then of the whole."""
    lon, lat = tangent_grid(*FIELD, _FIELD_PIXELS, 60 * FIELD_SIDE / _FIELD_PIXELS)
    stencil, weights = hp.get_interp_weights(model.nside, lon.ravel(), lat.ravel(), lonlat=True)
    # Both on the same pixels and interpolated alike, so that only the small scales differ.
    pixels, places = np.unique(stencil, return_inverse=True)
    places = places.reshape(stencil.shape)
    smooth = factor * _template_emission(model, channel, pixels)
    whole = maps[:, pixels]
    fields = []
    for stokes in (smooth, whole):
        i, q, u_ = (weights * stokes[:, places]).sum(axis=1).reshape(3, *lon.shape)
        fields.append((i, np.hypot(q, u_)))
    axes = figure.subplots(1, 4, sharey=True)
    half = FIELD_SIDE / 2
    for k, (name, colours) in enumerate((("I", "inferno"), ("P", "viridis"))):
        pair = axes[2 * k : 2 * k + 2]
        norm = Normalize(*np.percentile(fields[1][k], (0.5, 99.5)))
        for axis, field, which in zip(pair, fields, _CASES, strict=True):
            shown = axis.imshow(
                field[k],
                extent=(half, -half, -half, half),
                origin="lower",
                cmap=colours,
                norm=norm,
                interpolation="antialiased",
            )
            axis.set_title(f"{name}, {which}", fontsize=14)
            axis.tick_params(labelsize=11)
            axis.set_xlabel("degrees east", fontsize=12)
        text = label if name == "I" else rf"$P = \sqrt{{Q^2 + U^2}}$, {label}"
        _colour_bar(list(pair), shown, text).locator = MaxNLocator(6)
    axes[0].set_ylabel("degrees north", fontsize=12)


def _template_emission(model: VAEDust, channel: Channel, pixels: np.ndarray) -> np.ndarray:
    """I, Q, U (µK_RJ) of the template alone on some pixels of the sky."""
    large_scales = model.template.fields(*hp.pix2ang(model.nside, pixels))
    beta, temperature = (
        value if value.isscalar else value[pixels]
        for value in (model.mbb_index, model.mbb_temperature)
    )
    return emission(
        from_log_pol_tens(large_scales),
        channel.freqs,
        channel.weights,
        freq_ref_I=model.freq_ref_I,
        freq_ref_P=model.freq_ref_P,
        beta=beta.value,
        temperature=temperature.to_value(u.K),
    )


def _colour_bar(axes: list[Axes], shown: ScalarMappable, label: str) -> Colorbar:
    """One horizontal bar under some axes."""
    bar = axes[0].figure.colorbar(
        shown,
        ax=axes,
        orientation="horizontal",
        extend="both",
        shrink=0.8,
        pad=0.03,
        aspect=28 * len(axes),
    )
    bar.set_label(label, fontsize=12)
    bar.ax.tick_params(labelsize=11)
    return bar
