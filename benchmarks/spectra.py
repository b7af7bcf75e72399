"""Whether skies have the spectra that they are asked for, on several parts of the sky.

``python benchmarks/spectra.py --nside 512 --seeds 5 --out DIR`` writes spectra.json and
spectra.png.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any

import healpy as hp
import numpy as np
import typer
from common import write_figure, write_json
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from pysm_vae import VAEDust
from pysm_vae.files import writable_folder
from pysm_vae.sky.calibration import PIVOT, Spectrum, latitude_weight

app = typer.Typer(pretty_exceptions_enable=False)

LATITUDES = (20, 30, 50)
SPECTRA = ("TT", "EE", "BB", "TE")
# Multipoles of the fits, and the bands in an octave.
FIT_ELL = (100, 1000)
BANDS = 3
# Below this multipole the sky must be the template.
LARGE_ELL = 40
# Skies of one seed are one sky at any nside: compared up to this multipole.
SAME_ELL = 300


def mask(nside: int, latitude: float) -> np.ndarray:
    """Latitudes above one, with a cosine edge of 10 degrees, shape (npix,)."""
    theta = hp.pix2ang(nside, np.arange(hp.nside2npix(nside)))[0]
    return latitude_weight(0.5 * np.pi - theta, latitude)


def spectra(maps: np.ndarray, weight: np.ndarray, lmax: int) -> np.ndarray:
    """D_ell of TT, EE, BB and TE under a mask, shape (4, lmax + 1).

    E and B are mixed by the mask's edge, which has no power above a few multipoles.
    """
    maps = maps.copy()
    maps[0] -= np.average(maps[0], weights=weight)
    ell = np.arange(lmax + 1)
    cl = hp.anafast(maps * weight, lmax=lmax, iter=1)[:4] / np.mean(weight**2)
    return cl * ell * (ell + 1) / (2 * np.pi)


def bands(lmax: int) -> list[tuple[int, int]]:
    """First and last multipoles of bands from 60 on, equally wide in the logarithm."""
    number = int(BANDS * np.log2(lmax / 60))
    edges = np.geomspace(60, lmax, number + 1).astype(int)
    return list(itertools.pairwise(edges))


def binned(d_ell: np.ndarray, lmax: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of multipoles, (bands,), and of spectra, one a row, weighted by modes."""
    ell = np.arange(lmax + 1)
    weight = 2 * ell + 1
    rows = [
        np.average(np.vstack([ell, d_ell])[:, low:high], weights=weight[low:high], axis=1)
        for low, high in bands(lmax)
    ]
    table = np.array(rows).T
    return table[0], table[1:]


def judge(ell: np.ndarray, power: np.ndarray) -> dict[str, Any]:
    """Slopes, EE/BB and the correlation of T and E of binned spectra, on ``FIT_ELL``."""
    used = (ell > FIT_ELL[0]) & (ell < FIT_ELL[1])
    x = np.log(ell[used] / PIVOT)
    # A negative TE has no logarithm; asked for, it is positive.
    fits = [np.polyfit(x, np.log(np.maximum(row[used], 1e-9 * row[0])), 1) for row in power]
    departure = [
        np.abs(row[used] / np.exp(np.polyval(fit, x)) - 1).max()
        for row, fit in zip(power[:3], fits[:3], strict=True)
    ]
    correlation = power[3] / np.sqrt(power[0] * power[1])
    _, ee, bb = Spectrum().slopes
    at_pivot = np.log(power[1] / power[2])[used] - (ee - bb) * x
    return {
        "slopes": [fit[0] for fit in fits],
        "largest departure from the power law": departure,
        "EE/BB": (power[1] / power[2]).tolist(),
        # Of all bands, carried to the pivot with the slopes asked for.
        "EE/BB at 80": float(np.exp(np.mean(at_pivot))),
        "TE at 80": float(np.exp(fits[3][1] - 0.5 * (fits[0][1] + fits[1][1]))),
        "TE by band": correlation.tolist(),
    }


def measure(
    nside: int, seeds: int, weights: str, beside: int | None, console: Console
) -> dict[str, Any]:
    """Mean spectra of skies; what spectra.json holds."""
    lmax = min(int(1.9 * nside), 1536)
    found: dict[str, list[np.ndarray]] = {str(latitude): [] for latitude in LATITUDES}
    large: list[list[float]] = []
    same: list[dict[str, Any]] = []
    for seed in range(seeds):
        console.print(f"seed {seed}")
        dust = VAEDust(nside, seed=seed, weights=weights)
        maps = reference(dust)
        for latitude in LATITUDES:
            found[str(latitude)].append(spectra(maps, mask(nside, latitude), lmax))
        large.append(large_scales(maps, dust.template.maps(nside)))
        if beside is not None:
            same.append(agreement(maps, reference(VAEDust(beside, seed=seed, weights=weights))))
    ell, _ = binned(found[str(LATITUDES[0])][0], lmax)
    asked = Spectrum()
    report: dict[str, Any] = {
        "weights": weights,
        "nside": nside,
        "seeds": seeds,
        "asked": {
            "slopes": [*asked.slopes, asked.te_slope],
            "EE/BB at 80": asked.ee_to_bb,
            "TE at 80": asked.te_ratio,
        },
        "ell": ell.tolist(),
        "power below 40 over the template's": np.mean(large, axis=0).tolist(),
        "latitudes": {},
    }
    if beside is not None:
        report["beside"] = {"nside": beside, "skies": same}
    for latitude, each in found.items():
        power = binned(np.mean(each, axis=0), lmax)[1]
        report["latitudes"][latitude] = {
            "d_ell": dict(zip(SPECTRA, power.tolist(), strict=True)),
            **judge(ell, power),
            "of each sky": [judge(ell, binned(one, lmax)[1]) for one in each],
        }
    return report


def large_scales(maps: np.ndarray, template: np.ndarray) -> list[float]:
    """Power of T, E and B from l = 2 to ``LARGE_ELL`` on the full sky, over the template's."""
    ell = np.arange(LARGE_ELL + 1)
    power = [
        ((2 * ell + 1) * np.array(hp.anafast(each, lmax=LARGE_ELL, iter=3)[:3]))[:, 2:].sum(axis=1)
        for each in (maps, template)
    ]
    return (power[0] / power[1]).tolist()


def reference(dust: VAEDust) -> np.ndarray:
    """I, Q and U of a sky, (3, npix)."""
    return np.array([m.value for m in (dust.I_ref, dust.Q_ref, dust.U_ref)], float)


def agreement(maps: np.ndarray, others: np.ndarray) -> dict[str, dict[str, list[float]]]:
    """How much two maps of I, Q and U are the same sky, in bands up to ``SAME_ELL``.

    Gives the correlation, and the spectrum of the second over that of the first, of ln I on the
    full sky and of I, E and B above the middle one of ``LATITUDES``.
    """
    found: list[np.ndarray] = []
    for each in (maps, others):
        nside = hp.npix2nside(each.shape[1])
        weight = mask(nside, LATITUDES[1])
        linear = each.copy()
        linear[0] -= np.average(each[0], weights=weight)
        logarithm = hp.map2alm(np.log(each[0]), lmax=SAME_ELL, iter=3)
        found.append(np.array([logarithm, *hp.map2alm(weight * linear, lmax=SAME_ELL, iter=3)]))
    figures = {}
    for name, first, second in zip(("ln I", "I", "E", "B"), *found, strict=True):
        power = [hp.alm2cl(first), hp.alm2cl(second), hp.alm2cl(first, second)]
        # Weighted by modes, and each band's multipoles alike.
        ell = np.arange(SAME_ELL + 1)
        _, (own, other, cross) = binned(np.array(power) * ell**2, SAME_ELL)
        figures[name] = {
            "correlation": (cross / np.sqrt(own * other)).tolist(),
            "ratio": (other / own).tolist(),
        }
    return figures


def same_sky(report: dict[str, Any]) -> Table:
    """The worst of all bands and skies, for each field."""
    other = report["beside"]
    shown = Table(title=f"nside {other['nside']} beside {report['nside']}, up to ℓ = {SAME_ELL}")
    for column in ("", "correlation, at least", "spectrum over spectrum, from", "to"):
        shown.add_column(column)
    for name in other["skies"][0]:
        correlations, ratios = (
            [each[name][key] for each in other["skies"]] for key in ("correlation", "ratio")
        )
        shown.add_row(
            name,
            f"{np.min(correlations):.4f}",
            f"{np.min(ratios):.3f}",
            f"{np.max(ratios):.3f}",
        )
    return shown


def table(report: dict[str, Any]) -> Table:
    """What came out beside what was asked for."""
    shown = Table(title=f"Spectra of {report['seeds']} skies, nside {report['nside']}")
    columns = (
        *("|b| above", "slope TT", "EE", "BB", "TE"),
        *("EE/BB at 80", "TE at 80", "off the power law"),
    )
    for column in columns:
        shown.add_column(column)
    asked = report["asked"]
    cells = [*asked["slopes"], asked["EE/BB at 80"], asked["TE at 80"]]
    shown.add_row("asked", *(f"{value:.2f}" for value in cells), "")
    for latitude, each in report["latitudes"].items():
        cells = [*each["slopes"], each["EE/BB at 80"], each["TE at 80"]]
        departure = ", ".join(f"{d:.2f}" for d in each["largest departure from the power law"])
        shown.add_row(latitude, *(f"{value:.3f}" for value in cells), departure)
    return shown


def figure(report: dict[str, Any]) -> Figure:
    """Spectra over the power laws asked for, EE/BB and the correlation of T and E."""
    drawn = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(1, 3)
    ell, asked = np.array(report["ell"]), report["asked"]
    for latitude, style in zip(report["latitudes"], ("-", "--", ":"), strict=True):
        each = report["latitudes"][latitude]
        for k, name in enumerate(SPECTRA[:3]):
            ratio = np.array(each["d_ell"][name]) * (ell / PIVOT) ** -asked["slopes"][k]
            used = (ell > FIT_ELL[0]) & (ell < FIT_ELL[1])
            ratio = ratio / np.exp(np.mean(np.log(ratio[used])))
            label = name if latitude == str(LATITUDES[0]) else None
            axes[0].semilogx(ell, ratio, style, color=f"C{k}", label=label)
        axes[1].semilogx(ell, each["EE/BB"], style, color="k", label=f"|b| > {latitude}°")
        axes[2].semilogx(ell, each["TE by band"], style, color="k")
    power = asked["slopes"][1] - asked["slopes"][2]
    axes[1].semilogx(ell, asked["EE/BB at 80"] * (ell / PIVOT) ** power, color="C3", label="asked")
    axes[2].semilogx(ell, Spectrum().te_correlation(ell), color="C3")
    axes[0].axhspan(0.9, 1.1, color="0.9", zorder=0)
    titles = ("$D_\\ell$ over the slope asked for", "EE/BB", "TE / $\\sqrt{TT\\,EE}$")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="$\\ell$")
    axes[0].legend()
    axes[1].legend()
    return drawn


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder of what comes out.")],
    nside: Annotated[int, typer.Option(min=128, help="Of the skies.")] = 512,
    seeds: Annotated[int, typer.Option(min=1, help="Skies to average.")] = 5,
    weights: Annotated[str, typer.Option(help="Shipped weights, or a model card.")] = "default",
    beside: Annotated[
        int | None, typer.Option(min=128, help="Another nside, to compare the same skies at.")
    ] = None,
) -> None:
    """Measure the spectra of full skies on three parts of the sky."""
    console = Console()
    writable_folder(out)
    report = measure(nside, seeds, weights, beside, console)
    write_json(report, out / "spectra.json")
    write_figure(figure(report), out / "spectra.png")
    console.print(table(report))
    ratios = ", ".join(f"{r:.4f}" for r in report["power below 40 over the template's"])
    console.print(f"Power below l = {LARGE_ELL} over the template's, T, E, B: {ratios}")
    if beside is not None:
        console.print(same_sky(report))


if __name__ == "__main__":
    app()
