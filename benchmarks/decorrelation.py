"""How frequencies decorrelate where β and T have small scales, and that the mean SED stays.

``python benchmarks/decorrelation.py --nside 256 --seeds 3 --out DIR`` writes decorrelation.json and
decorrelation.png.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any

import healpy as hp
import numpy as np
import pysm3.units as u
import typer
from common import write_figure, write_json
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from pysm_vae import VAEDust
from pysm_vae.files import writable_folder
from pysm_vae.registration import presets
from pysm_vae.sky.calibration import latitude_mask
from pysm_vae.sky.sed import H_OVER_K

app = typer.Typer(pretty_exceptions_enable=False)

FREQUENCIES = (95.0, 150.0, 217.0, 353.0)
#: Bands of multipoles; the first is that of Planck 2018 XI's bound of 0.991 for 217 x 353.
BANDS = ((50, 160), (160, 320), (320, 480))
#: The spectra that are compared, as healpy numbers them.
SPECTRA = {"EE": 1, "BB": 2}


def alm(maps: np.ndarray, mask: np.ndarray, lmax: int) -> np.ndarray:
    """Harmonics of E and B of Q and U under a mask, shape (2, nalm)."""
    return np.array(hp.map2alm([np.zeros_like(mask), *(maps * mask)], lmax=lmax, iter=1)[1:])


def banded(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Cross-spectra of E and of B in the bands, shape (2, bands)."""
    cl = np.array([hp.alm2cl(a, b) for a, b in zip(one, other, strict=True)])
    ell = np.arange(cl.shape[1])
    weight = (2 * ell + 1) * ell * (ell + 1.0)
    return np.array(
        [np.average(cl[:, low:high], weights=weight[low:high], axis=1) for low, high in BANDS]
    ).T


def ratios(power: np.ndarray) -> np.ndarray:
    """Correlations of all pairs, from power of shape (frequencies, frequencies, 2, bands)."""
    own = np.sqrt(np.einsum("iisb->isb", power))
    return power / own[:, None] / own[None]


def response(freq: float, dust: VAEDust, plain: VAEDust) -> tuple[float, float]:
    """Derivatives of the logarithm of the SED by β and by T (per kelvin) at a frequency."""
    x = np.log(freq / dust.freq_ref_I.to_value(u.GHz))
    temperature = plain.mbb_temperature.to_value(u.K)

    def energy(nu: float) -> float:
        a = H_OVER_K * nu / temperature
        return a / -np.expm1(-a)

    warm = (energy(freq) - energy(dust.freq_ref_I.to_value(u.GHz))) / temperature
    return float(x), float(warm)


def measure(preset: str, nside: int, seeds: int, console: Console) -> dict[str, Any]:
    """Correlations and mean SEDs; what decorrelation.json holds."""
    parameters = {k: v for k, v in presets()[preset].items() if k not in ("class", "seed")}
    flat = {k: v for k, v in parameters.items() if not k.endswith("_scatter")}
    lmax = BANDS[-1][1]
    mask = latitude_mask(nside)
    found, predicted, means = [], [], []
    for seed in range(seeds):
        console.print(f"seed {seed}")
        dust = VAEDust(nside, seed=seed, **parameters)
        plain = VAEDust(nside, seed=seed, **flat)
        polarised = np.array([plain.Q_ref.value, plain.U_ref.value], float)
        maps, mean = [], []
        for freq in FREQUENCIES:
            varied = dust.get_emission(freq * u.GHz).value
            still = plain.get_emission(freq * u.GHz).value
            mean.append(varied[0].sum() / still[0].sum() - 1)
            maps.append(alm(varied[1:], mask, lmax))
        means.append(mean)
        found.append(ratios(np.array([[banded(a, b) for b in maps] for a in maps])))
        # To first order, every frequency is one sum of three maps.
        shift = dust.mbb_index.value - plain.mbb_index.value
        warmth = dust.mbb_temperature.value - plain.mbb_temperature.value
        parts = [alm(f * polarised, mask, lmax) for f in (1.0, shift, warmth)]
        expected = []
        for freq in FREQUENCIES:
            by_beta, by_temperature = response(freq, dust, plain)
            expected.append(parts[0] + by_beta * parts[1] + by_temperature * parts[2])
        predicted.append(ratios(np.array([[banded(a, b) for b in expected] for a in expected])))
    return {
        "preset": preset,
        "nside": nside,
        "seeds": seeds,
        "beta_scatter": parameters.get("beta_scatter", 0.0),
        "temperature_scatter": parameters.get("temperature_scatter", 0.0),
        "frequencies": FREQUENCIES,
        "bands": BANDS,
        "mean SED over that without fluctuations, less 1": np.mean(means, axis=0).tolist(),
        "correlation": _by_pair(np.mean(found, axis=0)),
        "scatter": _by_pair(np.std(found, axis=0)),
        "predicted": _by_pair(np.mean(predicted, axis=0)),
    }


def _by_pair(values: np.ndarray) -> dict[str, dict[str, list[float]]]:
    return {
        name: {
            f"{FREQUENCIES[i]:g} x {FREQUENCIES[j]:g}": values[i, j, k].tolist()
            for i, j in itertools.combinations(range(len(FREQUENCIES)), 2)
        }
        for k, name in enumerate(SPECTRA)
    }


def table(report: dict[str, Any]) -> Table:
    """1 - R of every pair, measured and predicted."""
    shown = Table(title=f"1 - R in 1e-3, {report['preset']}, {report['seeds']} skies, |b| > 30°")
    shown.add_column("pair")
    for name, (low, high) in itertools.product(SPECTRA, BANDS):
        shown.add_column(f"{name} {low}-{high} (predicted)")
    for pair in report["correlation"]["EE"]:
        cells = [
            f"{1e3 * (1 - got):.2f} ({1e3 * (1 - want):.2f})"
            for name in SPECTRA
            for got, want in zip(
                report["correlation"][name][pair], report["predicted"][name][pair], strict=True
            )
        ]
        shown.add_row(pair, *cells)
    return shown


def figure(report: dict[str, Any]) -> Figure:
    """1 - R of the pairs with the highest frequency, against the lower one."""
    drawn = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(drawn)
    lower = FREQUENCIES[:-1]
    for axis, name in zip(drawn.subplots(1, 2), SPECTRA, strict=True):
        for k, (low, high) in enumerate(BANDS):
            got, want, scatter = (
                np.array([report[kind][name][f"{f:g} x {FREQUENCIES[-1]:g}"][k] for f in lower])
                for kind in ("correlation", "predicted", "scatter")
            )
            label = f"$\\ell$ = {low} to {high}"
            axis.errorbar(lower, 1 - got, scatter, fmt="o", color=f"C{k}", label=label)
            axis.plot(lower, 1 - want, color=f"C{k}")
        axis.set(
            yscale="log",
            xlabel="GHz",
            ylabel=f"1 − R with {FREQUENCIES[-1]:g} GHz",
            title=f"{name}; lines: predicted from β and T",
        )
    axis.axhline(1 - 0.991, color="0.5", ls=":", label="Planck 2018 XI, 217 GHz, ℓ = 50 to 160")
    axis.legend()
    return drawn


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder of what comes out.")],
    preset: Annotated[str, typer.Option(help="With fluctuations of beta and temperature.")] = (
        "vae2"
    ),
    nside: Annotated[int, typer.Option(min=256, help="Of the skies.")] = 256,
    seeds: Annotated[int, typer.Option(min=1, help="Skies to average.")] = 3,
) -> None:
    """Measure how the frequencies of a preset decorrelate, beside what its parameters predict."""
    console = Console()
    writable_folder(out)
    report = measure(preset, nside, seeds, console)
    write_json(report, out / "decorrelation.json")
    write_figure(figure(report), out / "decorrelation.png")
    console.print(table(report))
    means = report["mean SED over that without fluctuations, less 1"]
    text = ", ".join(f"{f:g} GHz {m:.1e}" for f, m in zip(FREQUENCIES, means, strict=True))
    console.print(f"Mean SED less 1: {text}")


if __name__ == "__main__":
    app()
