"""Whether the charts' seams can be seen: small scales where charts meet, beside those inside them.

``python benchmarks/seams.py --nside 512 --seeds 2 --out DIR`` writes seams.json and seams.png.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import healpy as hp
import numpy as np
import typer
from common import write_figure, write_json
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from pysm_vae.files import writable_folder
from pysm_vae.sky.smallscales import SmallScales
from pysm_vae.sky.templates import Template, load_template
from pysm_vae.sky.tiling import Tiling
from pysm_vae.vae.generator import load_generator

app = typer.Typer(pretty_exceptions_enable=False)

# Multipoles above which the patterns are judged.
HIGH_PASS = (100, 200, 400)
# Edges in the nearest chart's share of the power of two overlapping charts.
SHARES = (0.0, 0.6, 0.75, 0.9, 0.99, 1.0)
# Bins that are compared with the last one, the inside: the seam proper, its sides, and both.
PARTS = {"seam": slice(0, 2), "sides": slice(2, 4), "overlap": slice(0, 4)}
MEASURES = ("variance", "kurtosis", "gradient variance", "gradient kurtosis")


def patterns(small: SmallScales) -> np.ndarray:
    """Harmonics of the T, E and B patterns, without the brightness that modulates them.

    Returns
    -------
    ndarray, complex, shape (3, nalm)
        To l = 1.75 nside: lengths on a chart are up to 7 % off its mean scale, and patterns end at
        1.9 nside on that scale.
    """
    nside, lmax = small.nside, 7 * small.nside // 4
    maps = np.zeros((3, hp.nside2npix(nside)))
    for tile, pixels in small.tiling.charts(nside):
        view = small.tiling.locate(tile, nside, pixels)
        maps[:, pixels[view.where]] += small.laid(small.layers(tile, view.places), view)
    return np.array(hp.map2alm(maps, lmax=lmax, iter=1))


def turned(template: Template, seed: int) -> Template:
    """A template turned about the poles, by an angle of the seed's; of an odd seed, mirrored, too.

    T varies with the template, which is nowhere like elsewhere. So the charts lie on it in another
    way each time; latitudes stay, since the calibration looks at high ones.
    """
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi)
    degree, order = hp.Alm.getlm(template.lmax)
    alm = template.alm * np.exp(-1j * order * angle)
    if seed % 2:
        # North becomes south: B changes its sign.
        alm *= (-1.0) ** (degree + order) * np.array([[1], [1], [-1]])
    return replace(template, alm=alm)


def shares(nside: int) -> np.ndarray:
    """The nearest chart's share of each pixel, from about 1/3 to 1, shape (npix,)."""
    _, weights = Tiling().weights(nside)
    return (weights**2).max(axis=1)


def zones(alm: np.ndarray, nside: int, low: float, zone: np.ndarray) -> np.ndarray:
    """Moments of one pattern above a multipole in each zone.

    Parameters
    ----------
    alm : ndarray, shape (nalm,)
        The pattern.
    nside : int
        Of the map that is judged.
    low : float
        High pass, a step of a fifth of it.
    zone : ndarray of int, shape (npix,)
        Of each pixel.

    Returns
    -------
    ndarray, shape (4, zones)
        Mean second and fourth powers of values, and of the gradient, whose two components count
        alike.
    """
    lmax = hp.Alm.getlmax(alm.size)
    ell = np.arange(lmax + 1)
    alm = hp.almxfl(alm, np.clip((ell - 0.9 * low) / (0.2 * low), 0, 1))
    value, south, east = hp.alm2map_der1(alm, nside, lmax)
    return np.array(
        [
            sum(np.bincount(zone, part**power) for part in parts) / (len(parts) * np.bincount(zone))
            for parts in ((value,), (south, east))
            for power in (2, 4)
        ]
    )


def statistics(moments: np.ndarray) -> np.ndarray:
    """``MEASURES`` of zones.

    Kurtosis is excess kurtosis. Of one small zone of one sky it is too low on average, since the
    few bright places that make a fourth moment raise the second, too; so moments are averaged
    first.

    Parameters
    ----------
    moments : ndarray, shape (4, zones)
        Of skies, averaged.
    """
    rows = []
    for second, fourth in (moments[:2], moments[2:]):
        rows += [second, fourth / second**2 - 3]
    return np.array(rows)


def against_inside(moments: np.ndarray, area: np.ndarray, part: slice) -> np.ndarray:
    """Statistics of some zones together over those of the last one.

    Parameters
    ----------
    moments : ndarray, shape (skies, 4, zones)
        Of each sky.
    area : ndarray, shape (zones,)
        Pixels of each zone.
    part : slice
        Which zones.

    Returns
    -------
    ndarray, shape (2, len(MEASURES))
        The ratios and their errors, from skies left out one by one; not a number for one sky.
    """
    here = np.average(moments[..., part], axis=-1, weights=area[part])
    pair = np.stack([here, moments[..., -1]], axis=-1)
    skies, total = len(pair), pair.sum(axis=0)

    def ratio(mean: np.ndarray) -> np.ndarray:
        zone, inside = statistics(mean).T
        return zone / inside

    if skies == 1:
        return np.array([ratio(total), np.full(len(MEASURES), np.nan)])
    without = np.array([ratio((total - each) / (skies - 1)) for each in pair])
    return np.array([ratio(total / skies), np.sqrt(skies - 1) * without.std(axis=0)])


def spectrum(alm: np.ndarray) -> np.ndarray:
    """D_ℓ of one pattern in bands of 25 multipoles, shape (2, bands): their means, and it."""
    ell = np.arange(hp.Alm.getlmax(alm.size) + 1)
    power = hp.alm2cl(alm) * ell * (ell + 1) / (2 * np.pi)
    band, weights = ell // 25, 2 * ell + 1
    return np.array(
        [
            np.bincount(band, values * weights) / np.bincount(band, weights)
            for values in (ell, power)
        ]
    )


class Sky(NamedTuple):
    """What is measured of one sky, each by pattern.

    Attributes
    ----------
    moments : dict of dict of ndarray
        :func:`zones` above each of ``HIGH_PASS``.
    spectra : dict of ndarray
        :func:`spectrum`.
    """

    moments: dict[str, dict[int, np.ndarray]]
    spectra: dict[str, np.ndarray]


def measure(small: SmallScales, share: np.ndarray) -> Sky:
    """Measure one sky, given the nearest chart's share of each pixel."""
    alms = dict(zip(small.fields, patterns(small), strict=True))
    zone = np.digitize(share, SHARES[1:-1])
    return Sky(
        {
            f: {low: zones(alm, small.nside, low, zone) for low in HIGH_PASS}
            for f, alm in alms.items()
        },
        {f: spectrum(alm) for f, alm in alms.items()},
    )


def summary(skies: list[Sky], share: np.ndarray, lmax: float) -> dict[str, Any]:
    """What seams.json holds of skies whose patterns end at ``lmax``."""
    area = np.bincount(np.digitize(share, SHARES[1:-1]))
    report: dict[str, Any] = {
        "seeds": len(skies),
        "shares": SHARES,
        "lmax": lmax,
        "sky": {name: area[part].sum() / area.sum() for name, part in PARTS.items()},
        "fields": {},
    }
    for name in SmallScales.fields:
        judged = {}
        for low in HIGH_PASS:
            if low > 0.8 * lmax:
                continue
            moments = np.array([sky.moments[name][low] for sky in skies])
            by_share = statistics(moments.mean(axis=0))
            ratios = {part: against_inside(moments, area, bins) for part, bins in PARTS.items()}
            judged[str(low)] = {
                measure: {"by share": by_share[i].tolist()}
                | {
                    part: {"over inside": ratio[i], "error": error[i] if len(skies) > 1 else None}
                    for part, (ratio, error) in ratios.items()
                }
                for i, measure in enumerate(MEASURES)
            }
        ell, power = np.mean([sky.spectra[name] for sky in skies], axis=0)
        used = (ell > 125) & (ell < 0.9 * lmax)
        fit = np.polyfit(np.log(ell[used]), np.log(power[used]), 3)
        departure = power[used] / np.exp(np.polyval(fit, np.log(ell[used]))) - 1
        report["fields"][name] = {
            "high pass": judged,
            "spectrum": {"ell": ell.tolist(), "d_ell": power.tolist()},
            "over a smooth one": {"ell": ell[used].tolist(), "less 1": departure.tolist()},
            "largest departure from a smooth spectrum": np.abs(departure).max(),
        }
    return report


def table(report: dict[str, Any]) -> Table:
    """What the report says of seams, of their sides and of both, over insides."""
    shown = Table(title=f"Over insides, {report['weights']}, nside {report['nside']}")
    for column in ("pattern", "l above", "", *MEASURES):
        shown.add_column(column)
    for name, field in report["fields"].items():
        for low, judged in field["high pass"].items():
            for part in PARTS:
                cells = []
                for entry in judged.values():
                    ratio, error = entry[part].values()
                    cells.append(f"{ratio:.3f}" + ("" if error is None else f" ± {error:.3f}"))
                shown.add_row(name, low, part, *cells)
    return shown


def figure(report: dict[str, Any]) -> Figure:
    """Statistics against the nearest chart's share, and spectra."""
    drawn = Figure(figsize=(13, 5.5), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(2, 3)
    middle = 0.5 * (np.array(SHARES[1:]) + np.maximum(SHARES[:-1], 1 / 3))
    for name, field in report["fields"].items():
        judged = field["high pass"]["200"]
        for axis, measure in zip(axes[:, :2].ravel(), MEASURES, strict=True):
            values = np.array(judged[measure]["by share"])
            axis.plot(middle, values / values[-1], marker="o", label=name)
            axis.set(xlabel="nearest chart's share", ylabel=f"{measure} over the inside's")
        ell, power = map(np.array, field["spectrum"].values())
        used = (ell > 60) & (ell < report["lmax"])
        axes[0, 2].loglog(ell[used], power[used], label=name)
        axes[1, 2].plot(*map(np.array, field["over a smooth one"].values()), label=name)
    for axis in axes[:, :2].ravel():
        axis.axhspan(0.95, 1.05, color="0.9", zorder=0)
    axes[1, 2].axhspan(-0.05, 0.05, color="0.9", zorder=0)
    axes[0, 2].set(xlabel=r"$\ell$", ylabel=r"$D_\ell$ of the patterns")
    axes[1, 2].set(xlabel=r"$\ell$", ylabel="over a smooth spectrum, less 1")
    axes[0, 0].legend()
    return drawn


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder of what comes out.")],
    nside: Annotated[int, typer.Option(min=256, help="Of the skies.")] = 512,
    seeds: Annotated[int, typer.Option(min=1, help="Skies to average.")] = 2,
    weights: Annotated[str, typer.Option(help="Shipped weights, or a model card.")] = "default",
) -> None:
    """Measure the small scales of full skies in the seams of charts and inside them."""
    console = Console()
    writable_folder(out)
    generator, template = load_generator(weights), load_template("embedded")
    share, skies = shares(nside), []
    for seed in range(seeds):
        console.print(f"seed {seed}")
        small = SmallScales(generator, turned(template, seed), seed=seed, nside=nside)
        skies.append(measure(small, share))
    report = {"weights": generator.name, "nside": nside} | summary(skies, share, small.lmax)
    write_json(report, out / "seams.json")
    write_figure(figure(report), out / "seams.png")
    console.print(table(report))
    largest = max(f["largest departure from a smooth spectrum"] for f in report["fields"].values())
    console.print(f"Spectra of the whole sky are within {100 * largest:.1f} % of smooth ones.")


if __name__ == "__main__":
    app()
