"""The inverse tasks judged: calibration of posteriors, holes in real sky, times.

Three parts, each with its own figures: ``calibration`` draws patches from the model, hides and
blurs them with noise, and looks where the truth lies among the posterior's draws (simulation-based
calibration: Talts et al. 2018, arXiv:1804.06788); ``holes`` fills holes in patches of a map,
beside Gaussian constrained realisations of the network's spectrum; ``times`` takes the time of one
patch of 128 pixels.
"""

from __future__ import annotations

import logging
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from typing import Annotated, Any

import numpy as np
import typer
from common import Maps, Out, read_maps, write_figure, write_json
from scipy import stats

from pysm_vae.files import writable_folder
from pysm_vae.stats.spectra import bandpass_filter
from pysm_vae.stats.wiener import constrained_realisations, mirror_power
from pysm_vae.vae import masks
from pysm_vae.vae.generator import load_generator
from pysm_vae.vae.inference import (
    ConvergenceWarning,
    Observation,
    PatchModel,
    maximise,
    sample_posterior,
)
from pysm_vae.vae.patches import grid_patches

app = typer.Typer(add_completion=False)
log = logging.getLogger(__name__)

LEVELS = (0.68, 0.95)
# Bins of a rank histogram, and draws among which a rank is taken.
BINS, RANKED = 10, 99
# Pixels of each patch, seen and hidden, in the histogram.
SHOWN = 4
# The longest of the octaves in which filled holes are compared, pixels.
WAVELENGTHS = (16, 8, 4)
# As the paper's.
NOISE = 0.2
# Draws of which chi2 and texture are taken.
SOME = 20


def some_masks(size: int) -> dict[str, np.ndarray]:
    """A mask of each shape, which hide a tenth to a half of a patch."""
    return {
        "circle": masks.circle(size, size / 5),
        "rectangle": masks.rectangle(size, size / 4, size / 2),
        "stripes": masks.stripes(size, size / 12, size / 4, 30.0),
        "edge": masks.edge(size, 0.7, 60.0),
    }


def covered(truth: np.ndarray, samples: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    """How often central intervals of the draws hold the truth, seen and hidden."""
    found: dict[str, Any] = {}
    for level in LEVELS:
        low, high = np.quantile(samples, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        inside = (truth > low) & (truth < high)
        found[f"{level:g}"] = {"seen": inside[mask].mean(), "hidden": inside[~mask].mean()}
    return found


def log_score(truth: np.ndarray, samples: np.ndarray) -> float:
    """Mean logarithm of the density that a Gaussian of the draws' moments has at the truth.

    Of the hidden pixels, each for itself (Gneiting & Raftery 2007, JASA 102, 359, eq. 26, in nats).
    """
    return float(stats.norm.logpdf(truth, samples.mean(axis=0), samples.std(axis=0)).mean())


def crps(truth: np.ndarray, samples: np.ndarray) -> float:
    """Mean continuous ranked probability score, ``E|x - t| - E|x - x'| / 2``; smaller is better."""
    ordered = np.sort(samples, axis=0)
    n = len(ordered)
    weight = 2 * np.arange(1, n + 1) - n - 1
    spread = np.tensordot(weight, ordered, axes=(0, 0)) / (n * (n - 1))
    return float((np.abs(samples - truth).mean(axis=0) - spread).mean())


@lru_cache(maxsize=1)
def prior(weights: str, size: int) -> PatchModel:
    """The model that calibration draws its patches from; kept with what was compiled for it."""
    return PatchModel(load_generator(weights), size, scale_spread=0.2)


@dataclass(frozen=True)
class Judged:
    """A patch of the model, and where it lies among its posterior's draws."""

    coverage: dict[str, Any]
    ranks: dict[str, list[int]]
    converged: bool
    seconds: float


def judged(
    number: int, weights: str, size: int, patches: int, draws: int, warmup: int, seed: int
) -> Judged:
    """Hide one of the patches of a calibration, and sample its posterior."""
    model = prior(weights, size)
    truth = model.sample(patches, seed=seed)[number]
    rng = np.random.Generator(np.random.Philox([seed, number]))
    kinds = list(some_masks(size).values())
    mask = kinds[number % len(kinds)]
    seen = Observation(truth, NOISE, mask).simulate(truth, rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        posterior = sample_posterior(model, seen, draws=draws, warmup=warmup, seed=seed + number)
    below = (posterior.draws(RANKED) < truth).sum(axis=0).ravel()
    ranks = {
        name: below[rng.choice(np.flatnonzero(chosen), SHOWN, replace=False)].tolist()
        for name, chosen in (("seen", mask), ("hidden", ~mask))
    }
    found = covered(truth, posterior.draws(draws), mask)
    return Judged(found, ranks, posterior.converged, posterior.seconds)


def calibration(
    weights: str,
    size: int,
    patches: int,
    draws: int,
    warmup: int,
    seed: int,
    processes: int = 1,
) -> dict[str, Any]:
    """Coverage and ranks of patches of the model, seen through noise and masks."""
    one = partial(
        judged,
        weights=weights,
        size=size,
        patches=patches,
        draws=draws,
        warmup=warmup,
        seed=seed,
    )
    found: list[Judged] = []
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for each in pool.map(one, range(patches)):
            found.append(each)
            typer.echo(f"  calibration: {len(found)} of {patches}, {each.seconds:.0f} s")
    report: dict[str, Any] = {"patches": patches, "draws": draws, "size": size, "noise": NOISE}
    report["not converged"] = sum(not each.converged for each in found)
    report["seconds"] = float(np.median([each.seconds for each in found]))
    for name in ("seen", "hidden"):
        for level in LEVELS:
            values = np.array([each.coverage[f"{level:g}"][name] for each in found])
            report[f"{name} {level:g}"] = float(values.mean())
            report[f"{name} {level:g} error"] = float(values.std() / np.sqrt(len(values)))
        ranks = np.array([each.ranks[name] for each in found])
        edges = np.linspace(-0.5, RANKED + 0.5, BINS + 1)
        report[f"{name} ranks"] = np.histogram(ranks, edges)[0].tolist()
        # Pixels of one patch are not independent: one of each.
        independent = np.histogram(ranks[:, 0], edges)[0]
        report[f"{name} ranks p-value"] = float(stats.chisquare(independent).pvalue)
    return report


def holes(
    weights: str,
    maps: list[str],
    regions: list[str],
    size: int,
    patches: int,
    draws: int,
    warmup: int,
    residual: float | None,
    seed: int,
) -> dict[str, Any]:
    """Holes in patches of maps, filled by the network and by Gaussian realisations."""
    generator = load_generator(weights)
    rng = np.random.Generator(np.random.Philox(seed))
    kinds = list(some_masks(size).items())
    found: dict[str, dict[str, list[float]]] = {}
    entry: dict[str, Any] = {"size": size, "noise": NOISE, "regions": regions, "residual": residual}
    texture: dict[str, list[np.ndarray]] = {"sky": [], "network": [], "gaussian": []}
    for each in read_maps(maps, None):
        wanted = [name for name in each.sky.region_names if name in regions]
        cut = grid_patches(each.sky, size, each.pixel_size, regions=wanted)
        chosen = rng.permutation(len(cut))[:patches]
        options = {"environment": each.environment, "residual": residual}
        unseen = PatchModel(generator, size, **options)
        power = mirror_power(unseen.sample(64, seed=seed))
        for number, place in enumerate(chosen):
            truth = cut.patches[place].astype(float)
            mask = kinds[number % len(kinds)][1]
            seen = Observation(truth, NOISE, mask).simulate(truth, rng)
            model = PatchModel.for_data(generator, seen, **options)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                posterior = sample_posterior(
                    model, seen, draws=draws, warmup=warmup, seed=seed + number
                )
            draw = {
                "network": posterior.draws(draws),
                "gaussian": constrained_realisations(
                    power, seen, draws, rng, mean=model.mean, mean_spread=model.mean_spread
                ),
            }
            texture["sky"].append(textures(truth[None], ~mask)[0])
            for name, samples in draw.items():
                inside = covered(truth, samples, mask)
                some = samples[:: max(1, draws // SOME)]
                texture[name].append(textures(some, ~mask).mean(axis=0))
                values = {
                    # Of the mean, and of draws, which scatter by the noise's share of it.
                    "chi2 of draws": np.mean([seen.chi2(s) for s in some]),
                    "chi2 of truth": seen.chi2(truth),
                    "hidden 0.68": inside["0.68"]["hidden"],
                    "hidden 0.95": inside["0.95"]["hidden"],
                    "log score": log_score(truth[~mask], samples[:, ~mask]),
                    "crps": crps(truth[~mask], samples[:, ~mask]),
                }
                for key, value in values.items():
                    found.setdefault(name, {}).setdefault(key, []).append(float(value))
            typer.echo(f"  holes: {number + 1} of {len(chosen)}, {posterior.seconds:.0f} s")
    for name, values in found.items():
        entry[name] = {key: float(np.mean(value)) for key, value in values.items()}
    better = np.array(found["network"]["log score"]) - found["gaussian"]["log score"]
    entry["log score over gaussian"] = float(better.mean())
    entry["log score over gaussian error"] = float(better.std() / np.sqrt(len(better)))
    entry["patches"] = len(better)
    entry["wavelengths"] = WAVELENGTHS
    for name, values in texture.items():
        ours, sky = np.array(values), np.array(texture["sky"])
        for number, what in enumerate(("log power", "kurtosis")):
            entry.setdefault(what, {})[name] = summary(ours[:, number])
            if name != "sky":
                over = summary(ours[:, number] - sky[:, number])
                entry.setdefault(f"{what} less sky's", {})[name] = over
    return entry


def textures(patches: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Logarithm of the variance, and excess kurtosis, of octaves in the hidden part of patches.

    Parameters
    ----------
    patches : ndarray, shape (n, size, size)
        Whole draws, so that there is no step at the edge of a hole, or what is there.
    hidden : ndarray of bool, shape (size, size)

    Returns
    -------
    ndarray, shape (n, 2, octaves)
        Of wavelengths from ``WAVELENGTHS`` pixels to half as many.
    """
    found = []
    for wavelength in WAVELENGTHS:
        # As if pixels were an arcminute.
        band = 21600 / wavelength, 2 * 21600 / wavelength if wavelength > 4 else None
        values = bandpass_filter(patches, 1.0, *band)[0][:, hidden]
        found.append([np.log(values.var(axis=1)), stats.kurtosis(values, axis=1)])
    return np.transpose(found, (2, 1, 0))


def summary(values: np.ndarray) -> dict[str, list[float]]:
    """Median and half the central 68 per cent of each column."""
    low, middle, high = np.quantile(values, [0.16, 0.5, 0.84], axis=0)
    return {"median": middle.tolist(), "scatter": (0.5 * (high - low)).tolist()}


def times(weights: str, size: int, draws: int) -> dict[str, float]:
    """Of the most probable patch, and of draws; compilation is part of them."""
    model = prior(weights, size)
    truth = model.sample(1, seed=3)[0]
    mask = masks.circle(size, size / 5)
    seen = Observation(truth, NOISE, mask).simulate(truth, np.random.Generator(np.random.Philox(3)))
    report = {}
    for name in ("maximum, first", "maximum"):
        began = time.perf_counter()
        estimate = maximise(model, seen)
        report[name] = time.perf_counter() - began
    report["spread of three starts over noise"] = maximise(model, seen, starts=3).spread
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        posterior = sample_posterior(model, seen, draws=draws, estimate=estimate)
    return {**report, "draws": float(draws), **posterior.diagnostics}


def figure(report: dict[str, Any]) -> Any:
    """Rank histograms, and spectra of filled patches, of the parts that there are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    part, filled = report.get("calibration"), report.get("holes")
    number = 2 * bool(part) + bool(filled)
    drawn = Figure(figsize=(3.4 * number, 3.5), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = list(np.ravel(drawn.subplots(1, number)))
    for name in ("seen", "hidden") if part else ():
        axis, counts = axes.pop(0), np.array(part[f"{name} ranks"])
        mean = counts.mean()
        axis.bar(np.arange(BINS) * (RANKED + 1) / BINS, counts, 9, align="edge")
        axis.axhspan(mean - 2 * mean**0.5, mean + 2 * mean**0.5, color="0.8", zorder=0)
        axis.set(xlabel=f"rank of the truth among {RANKED} draws", title=f"pixels {name}")
    for axis in axes:
        for k, (name, found) in enumerate(filled["log power"].items()):
            places = np.arange(len(WAVELENGTHS)) + 0.15 * (k - 1)
            axis.errorbar(places, found["median"], found["scatter"], fmt="o", label=name)
        labels = [f"{wavelength} to {wavelength // 2}" for wavelength in WAVELENGTHS]
        axis.set_xticks(range(len(WAVELENGTHS)), labels)
        axis.set(xlabel="wavelength, pixels", title="log variance in filled holes")
        axis.legend()
    return drawn


@app.command()
def main(
    out: Out,
    maps: Maps = (),
    region: Annotated[
        list[str], typer.Option(help="Sky of the maps that the network has not seen; repeatable.")
    ] = (),
    weights: Annotated[str, typer.Option(help="Shipped weights, or a model card.")] = "default",
    size: Annotated[int, typer.Option(help="Pixels a side of patches with holes.")] = 64,
    small: Annotated[int, typer.Option(help="Pixels a side of those of the calibration.")] = 32,
    processes: Annotated[int, typer.Option(min=1, help="That share the calibration.")] = 1,
    patches: Annotated[int, typer.Option(min=0, help="Of the calibration.")] = 104,
    filled: Annotated[int, typer.Option(min=2, help="Patches of each map with a hole.")] = 12,
    draws: Annotated[int, typer.Option(min=100, help="Of each posterior.")] = 600,
    timed: Annotated[int, typer.Option(min=0, help="Pixels a side of what is timed.")] = 128,
    warmup: Annotated[int, typer.Option(min=40, help="Steps of each chain before.")] = 80,
    residual: Annotated[
        float | None, typer.Option(help="Decoder's noise in holes [as PatchModel.for_data].")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
) -> None:
    """Judge posteriors of the inverse tasks; parts of which nothing is asked are left out."""
    writable_folder(out)
    report: dict[str, Any] = {"weights": load_generator(weights).sha256}
    if maps:
        report["holes"] = holes(
            weights, list(maps), list(region), size, filled, draws, warmup, residual, seed
        )
        write_json(report, out / "inverse.json")
    if timed:
        report["times"] = times(weights, timed, 1000)
        write_json(report, out / "inverse.json")
    if patches:
        report["calibration"] = calibration(weights, small, patches, draws, warmup, seed, processes)
    write_json(report, out / "inverse.json")
    if patches or maps:
        write_figure(figure(report), out / "inverse.png")


if __name__ == "__main__":
    app()
