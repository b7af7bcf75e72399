"""Whether a sky that follows a map follows it, and whether the boundary can be seen.

``python benchmarks/constrained.py --nside 256 --seeds 6 --out DIR`` writes constrained.json and
constrained.png.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import healpy as hp
import numpy as np
import typer
from common import console, write_figure, write_json
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table
from scipy.spatial import cKDTree

from pysm_vae import VAEDust
from pysm_vae.files import writable_folder
from pysm_vae.mapfiles import read_healpix
from pysm_vae.region import region_pixels
from pysm_vae.sky.constraint import EDGE, load_constraint
from pysm_vae.sky.templates import load_template

app = typer.Typer(pretty_exceptions_enable=False)

# Where the sky follows the map, unless another mask is given: Galactic discs.
DISCS = tuple((lon, lat, 15.0) for lat in (50.0, -50.0) for lon in (0.0, 120.0, 240.0))
# Of the maps that the skies of a run follow, where no map is given; far from those of the skies.
FIRST_MAP = 1000
# Noise of a pixel of these, over the intensity.
NOISE = 0.01
# Degrees from the boundary, inside above 0: bands in which small scales are compared.
BANDS = (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
# Multipoles above which they are.
HIGH_PASS = (100, 200)
# Edges of the bands of the correlation, and the degrees over which its mask falls off.
CORRELATED = (20, 60, 100, 150, 200, 250, 300, 350, 400, 450)
FALL = 2.0


def signed_distance(observed: np.ndarray) -> np.ndarray:
    """Degrees from the boundary of a mask, positive inside, shape (npix,)."""
    nside = hp.npix2nside(len(observed))
    vectors = np.transpose(hp.pix2vec(nside, np.arange(len(observed))))
    half = np.degrees(hp.nside2resol(nside)) / 2
    found = np.empty(len(observed))
    for side in (observed, ~observed):
        chord, _ = cKDTree(vectors[~side]).query(vectors[side])
        found[side] = np.degrees(2 * np.arcsin(chord / 2)) - half
    return np.where(observed, found, -found)


def small_scales(log_i: np.ndarray, low: float) -> tuple[np.ndarray, np.ndarray]:
    """Square of what a map has above a multipole, and of its gradient, each (npix,)."""
    nside = hp.npix2nside(len(log_i))
    lmax = int(1.9 * nside)
    alm = hp.map2alm(log_i, lmax=lmax, iter=1)
    alm = hp.almxfl(alm, np.clip((np.arange(lmax + 1) - 0.9 * low) / (0.2 * low), 0, 1))
    value, south, east = hp.alm2map_der1(alm, nside, lmax)
    return value**2, south**2 + east**2


def smooth(x: np.ndarray) -> np.ndarray:
    """Quintic step from 0 to 1."""
    x = np.clip(x, 0, 1)
    return x**3 * (10 + x * (6 * x - 15))


def by_distance(
    held: np.ndarray, free: np.ndarray, followed: np.ndarray | None, distance: np.ndarray
) -> np.ndarray:
    """Variance, and that of the gradient, of ln I in each band of distance.

    Over that of the random sky, and of the map that it follows, each by its share there: as
    independent skies would have it, without the scatter between these.

    Parameters
    ----------
    held, free, followed : ndarray, shape (npix,)
        ln I of the sky that follows the map, of the same one that does not, and of the map; None
        where that is not known on all of the sky.
    distance : ndarray, shape (npix,)
        From the boundary.

    Returns
    -------
    ndarray, shape (high passes, 2, bands)
    """
    band = np.digitize(distance, BANDS)
    share = np.sin(0.5 * np.pi * smooth(distance / EDGE)) ** 2
    ratios = []
    for low in HIGH_PASS:
        found, own = small_scales(held, low), small_scales(free, low)
        other = own if followed is None else small_scales(followed, low)
        ratios.append([
            (np.bincount(band, a) / np.bincount(band, (1 - share) * b + share * c))[1:-1]
            for a, b, c in zip(found, own, other, strict=True)
        ])  # fmt: skip
    return np.array(ratios)


def correlation(first: np.ndarray, second: np.ndarray, distance: np.ndarray) -> list[float]:
    """Correlation of two maps' logarithms inside the boundary, by bands of multipoles."""
    mask = smooth(distance / FALL)
    inside = mask > 0
    maps = np.zeros((2, len(mask)))
    for row, values in zip(maps, (first, second), strict=True):
        row[inside] = mask[inside] * (
            values[inside] - np.average(values[inside], weights=mask[inside])
        )
    lmax = CORRELATED[-1]
    alms = [hp.map2alm(row, lmax=lmax, iter=1) for row in maps]
    modes = 2 * np.arange(lmax + 1) + 1
    a, b, cross = (
        np.add.reduceat(modes * hp.alm2cl(alms[i], alms[j]), CORRELATED[:-1])
        for i, j in ((0, 0), (1, 1), (0, 1))
    )
    return (cross / np.sqrt(a * b)).tolist()


def whole_map(path: str, nside: int) -> np.ndarray | None:
    """Logarithm of a map as a Galactic one of some nside, if all of it is known."""
    read = read_healpix(path, "map", most=1)
    if read.pixels is not None or not (read.maps[0] > 0).all():
        return None
    values = hp.reorder(read.maps[0], n2r=True) if read.nest else read.maps[0]
    lmax = int(1.9 * min(nside, read.nside))
    alm = hp.map2alm(np.log(values), lmax=lmax, iter=1)
    return hp.alm2map(hp.Rotator(coord=[read.coordinates or "G", "G"]).rotate_alm(alm), nside)


def measure(
    nside: int, seeds: int, given: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Measure skies that follow maps; what constrained.json holds, and maps to be drawn."""
    log_map = None
    if given:
        options = {k.removeprefix("constrain_"): v for k, v in given.items() if k != "constrain"}
        constraint = load_constraint(given["constrain"], load_template("embedded"), **options)
        vectors = np.array(hp.pix2vec(nside, np.arange(hp.nside2npix(nside))))
        distance = signed_distance(constraint.footprint.distance(vectors, 1.0) > 0)
        log_map = whole_map(given["constrain"], nside)
    else:
        observed = np.zeros(hp.nside2npix(nside), bool)
        for disc in DISCS:
            observed[region_pixels(disc, nside)] = True
        distance = signed_distance(observed)
    ratio, same, correlated, control = [], [], [], []
    for seed in range(seeds):
        settings = given
        if not given:
            truth = VAEDust(nside, seed=FIRST_MAP + seed).I_ref
            log_map = np.log(truth.value.astype(float))
            white = np.random.Generator(np.random.Philox(seed)).standard_normal(log_map.size)
            settings = {
                "constrain": truth * (1 + NOISE * white),
                "constrain_mask": observed.astype(float),
                "constrain_noise": NOISE,
            }
        free, held = VAEDust(nside, seed=seed), VAEDust(nside, seed=seed, **settings)
        free_i, held_i = (np.log(sky.I_ref.value.astype(float)) for sky in (free, held))
        outside = distance < 0
        same.append(
            all(
                np.array_equal(getattr(free, name)[outside], getattr(held, name)[outside])
                for name in ("I_ref", "Q_ref", "U_ref")
            )
        )
        ratio.append(by_distance(held_i, free_i, log_map, distance))
        if log_map is not None:
            correlated.append(correlation(held_i, log_map, distance))
            control.append(correlation(free_i, log_map, distance))
    ratio = np.array(ratio)
    report = {
        "nside": nside,
        "seeds": seeds,
        "map": "skies of other seeds" if not given else Path(str(given["constrain"])).name,
        "outside unchanged": all(same),
        "bands": BANDS,
        "small scales over those of independent skies": {
            str(low): {
                what: {
                    "median": np.median(ratio[:, i, j], axis=0).tolist(),
                    "mean": ratio[:, i, j].mean(axis=0).tolist(),
                    "scatter of seeds": ratio[:, i, j].std(axis=0).tolist(),
                }
                for j, what in enumerate(("variance", "gradient variance"))
            }
            for i, low in enumerate(HIGH_PASS)
        },
        "ell": CORRELATED,
    }
    if correlated:
        report["correlation"] = np.median(correlated, axis=0).tolist()
        report["correlation of random skies"] = np.median(control, axis=0).tolist()
    pictures = {"random sky": free_i, "sky that follows the map": held_i}
    if log_map is not None:
        pictures = {"map": np.where(distance > 0, log_map, np.nan)} | pictures
    pictures["distance"] = distance
    return report, pictures


def table(report: dict[str, Any]) -> Table:
    """What the report says by distance from the boundary."""
    shown = Table(
        title=f"Small scales of ln I over independent skies', {report['seeds']} seeds, nside "
        f"{report['nside']}; outside unchanged: {report['outside unchanged']}"
    )
    bands = report["bands"]
    for column in ("l above", "measure", *(f"{a:g} to {b:g}°" for a, b in zip(bands, bands[1:]))):  # noqa: B905, RUF007
        shown.add_column(column)
    for low, measures in report["small scales over those of independent skies"].items():
        for name, values in measures.items():
            pairs = zip(values["median"], values["scatter of seeds"], strict=True)
            error = report["seeds"] ** -0.5
            shown.add_row(low, name, *(f"{a:.2f} ± {error * b:.2f}" for a, b in pairs))
    return shown


def correlations(report: dict[str, Any]) -> Table:
    """What the report says of the correlation with the map."""
    shown = Table(title="Correlation with the map, inside")
    for column in ("multipoles", "sky that follows it", "random sky"):
        shown.add_column(column)
    ell = report["ell"]
    for k, (a, b) in enumerate(
        zip(report["correlation"], report["correlation of random skies"], strict=True)
    ):
        shown.add_row(f"{ell[k]} to {ell[k + 1]}", f"{a:.3f}", f"{b:.3f}")
    return shown


def figure(report: dict[str, Any], pictures: dict[str, np.ndarray]) -> Figure:
    """A field on the boundary, the correlation, and small scales against the distance from it."""
    drawn = Figure(figsize=(13, 8), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(2, 3)
    distance = pictures.pop("distance")
    if "map" in pictures:
        # It may be in another unit.
        apart = np.nanmedian(pictures["sky that follows the map"] - pictures["map"])
        pictures["map"] = pictures["map"] + apart
    nside = report["nside"]
    # On the boundary, at high latitude.
    theta, phi = hp.pix2ang(nside, np.arange(len(distance)))
    latitude = 90 - np.degrees(theta)
    centre = np.argmin(np.abs(distance) + 0.02 * np.abs(np.abs(latitude) - 50))
    side = 24.0
    pixels = 300
    offset = np.radians(np.linspace(-side / 2, side / 2, pixels))
    lon = np.degrees(phi[centre]) - np.degrees(offset)[None, :] / np.cos(
        np.radians(latitude[centre])
    )
    lat = latitude[centre] + np.degrees(offset)[:, None]
    lon, lat = np.broadcast_arrays(lon, lat)
    where = hp.ang2pix(nside, lon.ravel(), lat.ravel(), lonlat=True).reshape(lon.shape)
    scale = np.nanquantile(pictures["random sky"][where], [0.01, 0.99])
    for axis, (name, values) in zip(axes[0], pictures.items(), strict=False):
        extent = (side / 2, -side / 2, -side / 2, side / 2)
        axis.imshow(values[where], origin="lower", extent=extent, cmap="magma",
                    vmin=scale[0], vmax=scale[1])  # fmt: skip
        axis.contour(distance[where], [0], origin="lower", extent=extent, colors="c",
                     linewidths=0.7)  # fmt: skip
        axis.set(title=f"ln I: {name}", xlabel="degrees", ylabel="degrees")
    middle = 0.5 * (np.array(BANDS[1:]) + np.array(BANDS[:-1]))
    measured = report["small scales over those of independent skies"]
    for axis, what in zip(axes[1], ("variance", "gradient variance"), strict=False):
        for low, measures in measured.items():
            values = measures[what]
            error = np.array(values["scatter of seeds"]) * report["seeds"] ** -0.5
            axis.errorbar(middle, values["median"], error, marker="o", label=f"l > {low}")
        axis.axhspan(0.9, 1.1, color="0.9", zorder=0)
        axis.axvline(0, color="c")
        axis.set(xlabel="degrees inside the boundary", ylabel=f"{what} over independent skies'")
        axis.legend()
    if "correlation" in report:
        edges = np.array(report["ell"])
        ell = np.sqrt(edges[1:] * edges[:-1])
        axes[1, 2].plot(ell, report["correlation"], marker="o", label="follows the map")
        axes[1, 2].plot(ell, report["correlation of random skies"], marker="o", label="random")
        axes[1, 2].axhline(0.95, color="0.7")
        axes[1, 2].set(xlabel=r"$\ell$", ylabel="correlation with the map", ylim=(-0.2, 1.05))
        axes[1, 2].legend()
    return drawn


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder of what comes out.")],
    nside: Annotated[int, typer.Option(min=128, help="Of the skies.")] = 256,
    seeds: Annotated[int, typer.Option(min=1, help="Skies of each kind.")] = 6,
    map_: Annotated[
        str | None, typer.Option("--map", help="A real map [skies of other seeds].")
    ] = None,
    mask: Annotated[str | None, typer.Option(help="As constrain_mask, for --map.")] = None,
    noise: Annotated[str, typer.Option(help="As constrain_noise, for --map.")] = "0.01",
    fwhm: Annotated[float, typer.Option(help="As constrain_fwhm, for --map.")] = 0.0,
    unit: Annotated[str | None, typer.Option(help="As constrain_unit, for --map.")] = None,
) -> None:
    """Measure how skies follow a map, and what their boundaries do to small scales."""
    writable_folder(out)
    given: dict[str, Any] = {}
    if map_ is not None:
        given = {"constrain": map_, "constrain_mask": mask, "constrain_noise": noise,
                 "constrain_fwhm": fwhm, "constrain_unit": unit}  # fmt: skip
    report, pictures = measure(nside, seeds, given)
    write_json(report, out / "constrained.json")
    write_figure(figure(report, pictures), out / "constrained.png")
    screen = console()
    screen.print(table(report))
    if "correlation" in report:
        screen.print(correlations(report))


if __name__ == "__main__":
    app()
