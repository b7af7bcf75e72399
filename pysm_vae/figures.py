"""Pictures of a simulated sky."""

from __future__ import annotations

import re
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
from matplotlib.ticker import MaxNLocator

from pysm_vae.sky.sed import emission
from pysm_vae.sky.templates import from_log_pol_tens
from pysm_vae.vae.patches import tangent_grid

if TYPE_CHECKING:
    from pysm_vae.channels import Channel
    from pysm_vae.dust import VAEDust

#: Galactic longitude and latitude (degrees) of the field that is shown enlarged: cirrus in Pegasus,
#: away from the plane.
FIELD = (110.0, -38.0)
#: Its side, degrees.
FIELD_SIDE = 20.0

_CASES = ("template only", "with small scales")
_FIELD_PIXELS = 400
_SKY_PIXELS = 1200
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
    top, bottom = figure.subfigures(2, 1, height_ratios=(0.85, 1))
    label = unit_label(unit)
    top.suptitle(f"{title}: {heading}" if title else heading, fontsize=17)
    bottom.suptitle(
        f"The field in the white frame, {FIELD_SIDE:g}° wide, at (l, b) = "
        f"({FIELD[0]:g}°, {FIELD[1]:g}°)".replace("-", "−"),
        fontsize=15,
    )
    _draw_skies(top.subplots(1, 3), maps, label)
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
    axes = figure.subplots(1, 3, sharey=True)
    for axis, stokes, (name, colours, norm) in zip(axes, maps, _stokes_styles(maps), strict=True):
        shown = axis.imshow(
            np.ma.masked_array(stokes[places], places < 0),
            extent=(half, -half, -half, half),
            origin="lower",
            cmap=colours,
            norm=norm,
            interpolation="antialiased",
        )
        axis.set_title(name, fontsize=16)
        axis.set_xlabel("degrees east")
        # A region's values need not span a decade.
        bar = _colour_bar([axis], shown, unit_label(unit))
        low, high = shown.get_clim()
        ticks = MaxNLocator(5).tick_values(low, high)
        bar.set_ticks(ticks[(ticks >= low) & (ticks <= high)])
        bar.set_ticks([], minor=True)
        bar.ax.xaxis.set_major_formatter("{x:g}")
    axes[0].set_ylabel("degrees north")
    return figure


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


def unit_label(unit: u.UnitBase) -> str:
    """The unit as an axis shows it: µK with a subscript for ``uK_CMB``."""
    match = re.fullmatch(r"(\w?)K_(CMB|RJ)", str(unit))
    if match is None:
        return str(unit).replace(" / ", "/")
    return rf"{match[1].replace('u', 'µ')}K$_\mathrm{{{match[2]}}}$"


def _draw_skies(axes: np.ndarray, maps: np.ndarray, label: str) -> None:
    nside = hp.npix2nside(maps.shape[1])
    if nside > _SKY_NSIDE:
        maps = np.array(hp.ud_grade(maps, _SKY_NSIDE))
        nside = _SKY_NSIDE
    # healpy's astronomical convention: longitude grows to the left.
    projection = MollweideProj(xsize=_SKY_PIXELS)
    for axis, stokes, (name, colours, norm) in zip(axes, maps, _stokes_styles(maps), strict=True):
        image = projection.projmap(stokes, lambda x, y, z: hp.vec2pix(nside, x, y, z))
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
        axis.set_title(name, fontsize=16)
        bar = _colour_bar([axis], shown, label)
        if isinstance(norm, AsinhNorm):
            # Its own ticks crowd around zero.
            step = 10.0 ** np.floor(np.log10(norm.vmax))
            bar.set_ticks([-step, -step / 10, 0, step / 10, step], minor=False)
            bar.set_ticks([], minor=True)
            bar.ax.xaxis.set_major_formatter("{x:g}")
    x, y = projection.ang2xy(*_field_outline())
    axes[0].plot(x, y, color="white", linewidth=1.3)


def _stokes_styles(maps: np.ndarray) -> tuple[tuple[str, str, Normalize], ...]:
    """Name, colours and scale of I, Q and U."""
    linear = float(np.percentile(np.hypot(maps[1], maps[2]), 50))
    largest = float(np.percentile(np.abs(maps[1:]), 99.8))
    return (
        ("I", "inferno", LogNorm(*np.percentile(maps[0], (0.2, 99.8)))),
        ("Q", "RdBu_r", AsinhNorm(linear, -largest, largest)),
        ("U", "RdBu_r", AsinhNorm(linear, -largest, largest)),
    )


def _field_outline() -> tuple[np.ndarray, np.ndarray]:
    """Colatitude and longitude (radians) along the edge of the field."""
    lon, lat = tangent_grid(*FIELD, 40, 60 * FIELD_SIDE / 40)
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
