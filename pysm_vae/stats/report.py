"""Prior samples of a generator beside real sky that it never saw, with the controls that count.

Figures without references mean little: regions of real sky differ from each other by factors. So
each candidate (prior samples, samples drawn for the held-out patches' own large scales) stands
beside real sky from other regions, a modulated Gaussian of the held-out patches' spectrum, and the
network of Thorne, Knox & Prabhu (2021), all measured alike against the same held-out patches.

Everything is measured on the pixel grid. Maps of about the same scale (see `SCALE_RANGE`) are
compared pixel by pixel as the network sees them, and spectra and bands are laid out in cycles per
patch, so that the figures of maps with other pixel sizes line up.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from pysm_vae.files import atomic_write, writable_folder
from pysm_vae.stats.compare import DISTANCES, Summary, distance, summarise, yardstick
from pysm_vae.stats.controls import modulated_gaussian
from pysm_vae.stats.minkowski import band_overlap
from pysm_vae.stats.spectra import ell_bins, fundamental, standardise
from pysm_vae.vae.generator import Generator, load_generator
from pysm_vae.vae.patches import PatchSet, grid_patches, tangent_grid

if TYPE_CHECKING:
    from pysm_vae.vae.training import TrainingMap

CANDIDATES = {
    "samples": "prior samples",
    "conditional": "conditional samples",
    "modulated_gaussian": "modulated Gaussian",
    "thorne2021": "thorne2021",
}
"""What is compared with the held-out patches, and its name in tables and figures."""

MINKOWSKI = ("minkowski_v0", "minkowski_v1", "minkowski_v2")

SCALE_RANGE = 1.5
"""Real regions count as references if their pixel size is within this factor of the held-out's.
Dust is only *close* to scale-free, and a wide choice of regions would make the yardstick lax."""

# Wavelength, in pixels, of the lowest band, and the most of it that fits a patch: a band's filter
# needs a quarter of the patch free of edge effects, which leaves 3/8 on each side for its kernel.
_LONGEST_WAVE = 48.0
_WAVE_OF_SIZE = 0.75
# Shortest wavelength of the bands: beyond the beam there is little dust.
_SHORTEST_WAVE = 3.0
_SPECTRUM_BINS = 8
# Relative margin of multipoles that would otherwise fall on a limit that rounding may cross.
_MARGIN = 1e-6


@dataclass(frozen=True)
class Comparison:
    """The held-out patches of one map, and everything that is compared with them.

    Attributes
    ----------
    name : str
        Name of the map.
    regions : tuple of str
        Its held-out regions.
    pixel_size : float
        Arcmin.
    held_out : Summary
        Of the held-out patches.
    real : dict of str to Summary
        Of the patches of other real regions, each on its own map's pixels.
    candidates : dict of str to Summary
        Of what is to be judged; keys as in `CANDIDATES`.
    examples : dict of str to array, shape (m, size, size)
        Up to eight standardised patches of each, for the figure.
    """

    name: str
    regions: tuple[str, ...]
    pixel_size: float
    held_out: Summary
    real: dict[str, Summary]
    candidates: dict[str, Summary]
    examples: dict[str, np.ndarray] = field(repr=False)

    def distances(self, candidate: str) -> dict[str, float]:
        """Distances of a candidate from the held-out patches (see `compare.distance`)."""
        return distance(self.candidates[candidate], self.held_out)

    def yardsticks(self, candidate: str) -> dict[str, float]:
        """Those distances over the median real region's (see `compare.yardstick`)."""
        return yardstick(self.candidates[candidate], self.held_out, list(self.real.values()))

    def real_distances(self) -> dict[str, dict[str, float]]:
        """Distances of each real region from the held-out patches."""
        return {name: distance(summary, self.held_out) for name, summary in self.real.items()}

    def overlaps(self, candidate: str) -> dict[str, float]:
        """Overlap of a candidate's Minkowski bands with the held-out ones, 0 to 1."""
        return _overlaps(self.candidates[candidate], self.held_out)

    def real_overlaps(self) -> dict[str, float]:
        """Overlap of the real regions' Minkowski bands with the held-out ones: their median."""
        found = [_overlaps(summary, self.held_out) for summary in self.real.values()]
        return {name: float(np.median([entry[name] for entry in found])) for name in MINKOWSKI}

    def spectrum_ratio(self, summary: Summary) -> dict[str, np.ndarray]:
        """Percentiles of a set's spectra in each bin over the held-out patches' median."""
        middle = np.median(self.held_out.spectrum, axis=0)
        p16, median, p84 = np.percentile(summary.spectrum, [16, 50, 84], axis=0) / middle
        return {"p16": p16, "median": median, "p84": p84}

    def cycles(self) -> np.ndarray:
        """Mean wavenumber of the spectrum's bins, in cycles per patch."""
        return self.held_out.ell / fundamental(self.held_out.size, self.pixel_size)

    def to_json(self) -> dict[str, Any]:
        """Every figure as plain numbers and lists."""
        sets = {"held_out": self.held_out, **self.candidates}
        return {
            "map": self.name,
            "regions": list(self.regions),
            "pixel_size_arcmin": self.pixel_size,
            "patches": {name: len(summary) for name, summary in sets.items()},
            "cycles_per_patch": self.cycles().tolist(),
            "ell": self.held_out.ell.tolist(),
            "spectrum_ratio": {
                name: {key: value.tolist() for key, value in self.spectrum_ratio(summary).items()}
                for name, summary in sets.items()
            },
            "distances": {name: self.distances(name) for name in self.candidates},
            "yardsticks": {name: self.yardsticks(name) for name in self.candidates},
            "minkowski_overlap": {
                "real": self.real_overlaps(),
                **{name: self.overlaps(name) for name in self.candidates},
            },
            "real_regions": {
                name: {
                    "patches": len(summary),
                    "distances": distance(summary, self.held_out),
                    "minkowski_overlap": _overlaps(summary, self.held_out),
                    "statistics": summary.to_json(),
                }
                for name, summary in self.real.items()
            },
            "statistics": {name: summary.to_json() for name, summary in sets.items()},
        }


@dataclass(frozen=True)
class Evaluation:
    """How a generator's samples compare with held-out sky; made by `evaluate`.

    Attributes
    ----------
    name, sha256 : str
        The weights.
    size : int
        Pixels a side of the patches.
    n : int
        Prior samples.
    seed : int
        Of samples and controls.
    comparisons : tuple of Comparison
        One for each map with held-out regions.
    notes : tuple of str
        What was left out, and why.
    """

    name: str
    sha256: str
    size: int
    n: int
    seed: int
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Every figure as plain numbers and lists; an infinite distance becomes None."""
        return _finite(
            {
                "weights": self.name,
                "sha256": self.sha256,
                "size": self.size,
                "samples": self.n,
                "seed": self.seed,
                "notes": list(self.notes),
                "summary": figures_for_card(self),
                "comparisons": [comparison.to_json() for comparison in self.comparisons],
            }
        )

    def table(self) -> Table:
        """Table of the figures, to print with rich.

        The yardstick is the distance from the held-out patches over the median real region's: 1
        means as much like this sky as another region of sky is. The column of the real regions
        gives their range.
        """
        candidates = [
            name for name in CANDIDATES if any(name in c.candidates for c in self.comparisons)
        ]
        table = Table(
            title=f"{self.name}: samples beside held-out sky",
            caption="\n".join(self.notes) or None,
        )
        for heading in ("", "held-out sky", "other real sky", *map(CANDIDATES.get, candidates)):
            table.add_column(heading, justify="right" if heading else "left")
        for comparison in self.comparisons:
            for row in _rows(comparison, candidates):
                table.add_row(*row)
            table.add_section()
        return table


def evaluate(
    generator: Generator,
    maps: Sequence[TrainingMap],
    regions: Sequence[str],
    *,
    real_regions: Sequence[str] | None = None,
    n: int = 256,
    size: int | None = None,
    seed: int = 0,
    thorne2021: Generator | None = None,
) -> Evaluation:
    """Compare a generator's samples with held-out patches of real sky.

    The held-out patches are `grid_patches` of the regions, at each map's pixel size. Conditional
    samples are drawn for their block means, on the coarsest grid that the network was trained from.
    The modulated Gaussian keeps the held-out patches' own largest scales (below one cycle per
    patch or ℓ = 100), and its amplitude follows them over half a patch.

    Parameters
    ----------
    generator : Generator
        The weights to judge.
    maps : sequence of TrainingMap
        Maps with the held-out regions, and with real regions to compare them with.
    regions : sequence of str
        Held-out regions. Nothing checks that the weights never saw them: their card says.
    real_regions : sequence of str, optional
        Regions of the maps that set the yardstick. By default all that are not held out and whose
        pixels are within `SCALE_RANGE` of the held-out map's. Patches on held-out sky (of another
        map) are left out.
    n : int
        Prior samples, and about as many conditional ones and controls.
    size : int, optional
        Pixels a side; by default that of the generator's training.
    seed : int
        Of samples and controls.
    thorne2021 : Generator, optional
        The reference network; left out, with a note, if its patches have another size.

    Raises
    ------
    ValueError
        If no map has a region, no patch of this size fits into it, or there is no real region to
        compare with.
    """
    if n < 2:
        raise ValueError(f"n={n}: at least two samples are needed, since their scatter is used")
    size = generator.size if size is None else size
    known = [name for m in maps for name in m.sky.region_names]
    unknown = sorted({*regions, *(real_regions or ())} - set(known))
    if unknown or not regions:
        raise ValueError(
            f"regions {unknown or list(regions)} are in none of the maps: choose from "
            f"{', '.join(known)}"
        )
    both = sorted(set(regions) & set(real_regions or ()))
    if both:
        raise ValueError(f"regions {both} are held out and cannot be references as well")
    notes = []
    if thorne2021 is not None and thorne2021.size != size:
        notes.append(
            f"thorne2021 left out: its patches have {thorne2021.size} pixels a side, not {size}"
        )
        thorne2021 = None

    cut = []
    for held in maps:
        own = tuple(name for name in held.sky.region_names if name in regions)
        if own:
            patches = grid_patches(held.sky, size, held.pixel_size, regions=own)
            if len(patches) < 2:
                raise ValueError(
                    f"only one patch of {size} pixels fits into {', '.join(own)}: at least two "
                    "are needed. Take smaller patches."
                )
            real = _real_sets(held, patches, maps, regions, real_regions, size, notes)
            cut.append((held, own, patches, real))
    # Samples do not depend on the map: all maps are compared with the same ones.
    drawn = {"samples": generator.sample(n, size, seed)}
    if thorne2021 is not None:
        drawn["thorne2021"] = thorne2021.sample(n, seed=seed)
    comparisons = []
    for number, (held, own, patches, real) in enumerate(cut):
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, number))))
        candidates = dict(drawn)
        if generator.conditional:
            candidates["conditional"] = _conditional(generator, patches.patches, n, seed)
        candidates["modulated_gaussian"] = _control(patches.patches, held.pixel_size, n, rng)
        options = _options(size, held.pixel_size)
        comparisons.append(
            Comparison(
                name=held.sky.name,
                regions=own,
                pixel_size=held.pixel_size,
                held_out=summarise(patches.patches, held.pixel_size, **options),
                real={
                    name: summarise(other, held.pixel_size, **options)
                    for name, other in real.items()
                },
                candidates={
                    name: summarise(candidates[name], held.pixel_size, **options)
                    for name in CANDIDATES
                    if name in candidates
                },
                examples={
                    name: standardise(_examples(found).astype(np.float64))
                    for name, found in {"held_out": patches.patches, **candidates}.items()
                },
            )
        )
    return Evaluation(
        name=generator.name,
        sha256=generator.sha256,
        size=size,
        n=n,
        seed=seed,
        comparisons=tuple(comparisons),
        notes=tuple(notes),
    )


def evaluate_to_folder(
    weights: str | Path,
    maps: Sequence[TrainingMap],
    regions: Sequence[str],
    out: str | Path,
    *,
    real_regions: Sequence[str] | None = None,
    n: int = 256,
    size: int | None = None,
    seed: int = 0,
    thorne2021: str | Path | None = "thorne2021",
) -> Evaluation:
    """Evaluate weights and leave ``evaluation.json`` and ``evaluation.png`` in a folder.

    Parameters
    ----------
    weights : str or path-like
        As `load_generator` takes them.
    maps, regions, real_regions, n, size, seed
        See `evaluate`.
    out : path-like
        The folder.
    thorne2021 : str, path-like or None
        Weights of the reference network; None, or shipped ones that are not there, leave it out.

    Raises
    ------
    FileNotFoundError
        If the weights are missing.
    ValueError
        As `evaluate` and `load_generator` say.
    OSError
        If the folder cannot be written to.
    """
    out = writable_folder(out)
    generator = load_generator(weights)
    reference, note = None, None
    if thorne2021 is not None:
        try:
            reference = load_generator(thorne2021)
        except FileNotFoundError:
            if thorne2021 != "thorne2021":
                raise
            note = "thorne2021 left out: no such weights are shipped"
    result = evaluate(
        generator,
        maps,
        regions,
        real_regions=real_regions,
        n=n,
        size=size,
        seed=seed,
        thorne2021=reference,
    )
    if note:
        result = Evaluation(**{**vars(result), "notes": (*result.notes, note)})
    with atomic_write(out / "evaluation.json") as partial:
        partial.write_text(json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n")
    draw(result, out / "evaluation.png")
    return result


def figures_for_card(evaluation: Evaluation) -> dict[str, Any]:
    """Give the few figures that a model card holds, as medians over the held-out maps.

    Returns
    -------
    dict
        ``regions`` (held out), ``real_regions`` (that set the yardstick), ``patches``, ``size``,
        the ``yardsticks`` of each candidate, ``minkowski_overlap`` (0 to 1), ``spectrum_ratio``
        (median sample over median held-out patch, at every other bin's ``cycles_per_patch``) and
        ``kurtosis`` (median excess kurtosis, not its arcsinh that the yardstick takes, in bands of
        the given ``wavelengths_pixels``, next to the real sky's).
    """
    comparisons = evaluation.comparisons
    names = [name for name in CANDIDATES if all(name in c.candidates for c in comparisons)]

    def middle(values: Sequence[Any]) -> Any:
        return _round(np.median(np.array(values, np.float64), axis=0))

    def medians(entries: Sequence[dict[str, float]]) -> dict[str, float]:
        return {key: middle([entry[key] for entry in entries]) for key in entries[0]}

    def kurtosis(summaries: Sequence[Summary]) -> list[float]:
        # The finest two bands: the others hold only few waves a patch.
        return middle([np.median(s.kurtosis, axis=0)[-2:] for s in summaries])

    first = comparisons[0].held_out
    waves = 2 * np.pi / (first.bands * np.radians(first.pixel_size / 60))
    return {
        "regions": [name for c in comparisons for name in c.regions],
        "real_regions": sorted({name for c in comparisons for name in c.real}),
        "patches": sum(len(c.held_out) for c in comparisons),
        "size": evaluation.size,
        "yardsticks": {name: medians([c.yardsticks(name) for c in comparisons]) for name in names},
        "minkowski_overlap": {
            "real": medians([c.real_overlaps() for c in comparisons]),
            "samples": medians([c.overlaps("samples") for c in comparisons]),
        },
        "cycles_per_patch": _round(comparisons[0].cycles()[1::2]),
        "spectrum_ratio": {
            "samples": middle(
                [c.spectrum_ratio(c.candidates["samples"])["median"][1::2] for c in comparisons]
            )
        },
        "wavelengths_pixels": _round(waves[-2:]),
        "kurtosis": {
            "held_out": kurtosis([c.held_out for c in comparisons]),
            **{name: kurtosis([c.candidates[name] for c in comparisons]) for name in names},
        },
    }


def draw(evaluation: Evaluation, path: Path) -> None:
    """Draw the comparison with the first held-out map on one sheet: PNG, or what the suffix says.

    Rows of example patches; spectra over the held-out median; kurtosis per band; Minkowski curves.
    """
    from matplotlib.figure import Figure

    comparison = evaluation.comparisons[0]
    shown = {"held_out": "held-out sky"} | {
        name: label for name, label in CANDIDATES.items() if name in comparison.candidates
    }
    colours = dict(zip(shown, ("black", "C0", "C2", "C1", "C3"), strict=False))
    sets = {"held_out": comparison.held_out, **comparison.candidates}
    figure = Figure(figsize=(15, 3.1 * 2 + 1.7 * len(shown)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.7 * len(shown), 6.6])
    side = evaluation.size * comparison.pixel_size / 60
    top.suptitle(
        f"{evaluation.name}: log-intensity of standardised patches, {side:.3g}° a side, "
        f"held out: {', '.join(comparison.regions)}"
    )
    panels = top.subplots(len(shown), 8, squeeze=False)
    for row, name in zip(panels, shown, strict=True):
        for panel in row:
            panel.set_axis_off()
        patches = comparison.examples[name]
        for panel, patch in zip(row, patches, strict=False):
            panel.imshow(patch, vmin=-2.5, vmax=2.5, cmap="inferno", origin="lower")
            panel.set_axis_on()
            panel.set_xticks([])
            panel.set_yticks([])
        row[0].set_ylabel(shown[name].replace(" ", "\n"))

    (spectrum, kurtosis, skewness), curves = bottom.subplots(2, 3)
    ell = comparison.held_out.ell
    for name, label in shown.items():
        ratio = comparison.spectrum_ratio(sets[name])
        spectrum.plot(ell, ratio["median"], color=colours[name], label=label)
        if name in ("held_out", "samples"):
            spectrum.fill_between(ell, ratio["p16"], ratio["p84"], color=colours[name], alpha=0.15)
    for summary in comparison.real.values():
        median = comparison.spectrum_ratio(summary)["median"]
        spectrum.plot(ell, median, color="grey", lw=0.8, ls="--")
    spectrum.plot([], [], color="grey", lw=0.8, ls="--", label="other real regions")
    spectrum.set(
        xscale="log",
        yscale="log",
        ylim=(0.2, 5),
        xlabel="multipole",
        ylabel="spectrum over held-out median",
    )
    ticks = {
        axis: [x for x in values if low <= x <= high]
        for axis, values, (low, high) in (
            ("x", (50, 100, 200, 500, 1000, 2000, 5000), spectrum.get_xlim()),
            ("y", (0.2, 0.5, 1, 2, 5), spectrum.get_ylim()),
        )
    }
    spectrum.set_xticks(ticks["x"], [f"{x:g}" for x in ticks["x"]])
    spectrum.set_yticks(ticks["y"], [f"{y:g}" for y in ticks["y"]])
    spectrum.minorticks_off()
    spectrum.legend(fontsize=8, loc="lower left")

    bands = [f"{low:.0f}–{high:.0f}" for low, high in comparison.held_out.bands]
    place = np.arange(len(bands))
    everything = sets | {f"real {name}": summary for name, summary in comparison.real.items()}
    for statistic, panel in (("kurtosis", kurtosis), ("skewness", skewness)):
        for i, (name, summary) in enumerate(everything.items()):
            p16, median, p84 = np.percentile(getattr(summary, statistic), [16, 50, 84], axis=0)
            panel.errorbar(
                place + 0.08 * (i - 0.5 * len(everything)),
                median,
                [median - p16, p84 - median],
                fmt="o",
                ms=4,
                color=colours.get(name, "grey"),
            )
        panel.axhline(0, color="grey", lw=0.5)
        panel.set_xticks(place, bands)
        panel.set(xlabel="multipoles of the band", ylabel=f"{statistic} of a patch")
    kurtosis.set_ylabel("excess kurtosis of a patch")
    kurtosis.set_yscale("symlog", linthresh=1)
    for number, panel in enumerate(curves):
        for name, label in shown.items():
            values = getattr(sets[name], MINKOWSKI[number])
            mean, scatter = values.mean(axis=0), values.std(axis=0, ddof=1)
            thresholds = sets[name].thresholds
            panel.plot(thresholds, mean, color=colours[name], label=label)
            if name in ("held_out", "samples"):
                panel.fill_between(
                    thresholds, mean - scatter, mean + scatter, color=colours[name], alpha=0.15
                )
        panel.set(xlabel="threshold / σ", ylabel=f"$V_{number}$")
        panel.set_title(f"above ℓ = {comparison.held_out.lmin_high_pass:.0f}", fontsize=9)
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=90)


def _overlaps(one: Summary, other: Summary) -> dict[str, float]:
    return {name: band_overlap(getattr(one, name), getattr(other, name)) for name in MINKOWSKI}


def _options(size: int, pixel_size: float) -> dict[str, Any]:
    """Bins, bands and high-pass that fit a patch, the same in pixels whatever the pixel size."""
    base = fundamental(size, pixel_size)
    per_pixel = base * size  # multipole of a wave one pixel long
    longest = min(_LONGEST_WAVE, _WAVE_OF_SIZE * size)
    octaves = math.floor(math.log2(longest / _SHORTEST_WAVE) + _MARGIN)
    edges = per_pixel * (1 + _MARGIN) / (_SHORTEST_WAVE * 2.0 ** np.arange(octaves, -1, -1))
    # Minkowski functionals need 8 pixels that edges do not reach.
    lowest = per_pixel * (1 + _MARGIN) / min(_WAVE_OF_SIZE * size, size - 8)
    return {
        "bands": list(itertools.pairwise(edges)),
        # ℓ = 200 is the field's choice; small patches cannot have it.
        "lmin_high_pass": max(200.0, lowest),
        # To half the Nyquist frequency: beyond, the beams of the maps decide, not the dust.
        "bins": ell_bins(size, pixel_size, base, 0.25 * per_pixel, n=_SPECTRUM_BINS),
    }


def _examples(patches: np.ndarray) -> np.ndarray:
    """Eight patches, spread over the set."""
    return patches[np.linspace(0, len(patches) - 1, min(8, len(patches))).astype(int)]


def _conditional(generator: Generator, patches: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Samples for the held-out patches' block means, standardised."""
    size = patches.shape[-1]
    grid = generator.latent_shapes(size)[1][0]
    block = size // grid
    means = patches.reshape(-1, grid, block, grid, block).mean(axis=(2, 4))
    # Each patch gets as many samples as the others.
    repeats = -(-n // len(means))
    coarse = np.repeat(means, repeats, axis=0)
    # Other latents than those of the prior samples.
    drawn = generator.sample(len(coarse), size, seed + 1, coarse=coarse)
    return standardise(drawn.astype(np.float64))


def _control(
    patches: np.ndarray, pixel_size: float, n: int, rng: np.random.Generator
) -> np.ndarray:
    size = patches.shape[-1]
    repeats = -(-n // len(patches))
    return modulated_gaussian(
        np.repeat(patches, repeats, axis=0),
        pixel_size,
        rng,
        modulation_fwhm=0.5 * size * pixel_size,
        split=max(100.0, fundamental(size, pixel_size)),
    )


def _real_sets(
    held: TrainingMap,
    held_patches: PatchSet,
    maps: Sequence[TrainingMap],
    regions: Sequence[str],
    real_regions: Sequence[str] | None,
    size: int,
    notes: list[str],
) -> dict[str, np.ndarray]:
    """Patches of each real region that may be compared with the held-out ones."""
    found = {}
    held_labels = [held.sky.region_names.index(name) for name in set(held_patches.region)]
    for m in maps:
        ratio = m.pixel_size / held.pixel_size
        similar = 1 / SCALE_RANGE <= ratio <= SCALE_RANGE
        for name in m.sky.region_names:
            if name in regions or (
                name not in real_regions if real_regions is not None else not similar
            ):
                continue
            try:
                patches = grid_patches(m.sky, size, m.pixel_size, regions=[name])
            except ValueError as error:
                notes.append(f"{name} left out as a reference: {error}")
                continue
            if m.sky is not held.sky:
                patches = patches.select(~_on_held_out(patches, held, held_labels, size))
            if len(patches) >= 2:
                found[name] = patches.patches
            else:
                notes.append(
                    f"{name} left out as a reference: fewer than two patches off the held-out sky"
                )
    if not found:
        raise ValueError(
            f"no real region is left to compare {held.sky.name!r} with: give another map with "
            f"pixels of {held.pixel_size / SCALE_RANGE:.2g}' to "
            f"{held.pixel_size * SCALE_RANGE:.2g}', hold out fewer regions, or take smaller patches"
        )
    return found


def _on_held_out(
    patches: PatchSet, held: TrainingMap, labels: Sequence[int], size: int
) -> np.ndarray:
    """Whether each patch has a point in the held-out regions; a lattice of 9 x 9 is looked at."""
    lattice = 9
    step = size / (lattice - 1)
    return np.array(
        [
            np.isin(
                held.sky.region(*tangent_grid(lon, lat, lattice, step * pixel_size, angle)), labels
            ).any()
            for lon, lat, pixel_size, angle in zip(
                patches.lon, patches.lat, patches.pixel_size, patches.angle, strict=True
            )
        ],
        bool,
    )


def _rows(comparison: Comparison, candidates: Sequence[str]) -> list[list[str]]:
    """Rows of the table for one held-out map."""
    held, real = comparison.held_out, list(comparison.real.values())
    blank = [""] * (2 + len(candidates))

    def line(label: str, held_out: str, others: Sequence[float], values: dict[str, float]):
        low, high = min(others), max(others)
        reach = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
        cells = [f"{values[c]:.2f}" if c in values else "–" for c in candidates]
        return [label, held_out, reach, *cells]

    rows = [
        [
            f"[bold]{', '.join(comparison.regions)}[/bold], {len(held)} patches of {held.size} px "
            f"of {comparison.pixel_size:g}'",
            *blank,
        ],
        ["[italic]distance over the median real region's[/italic]", *blank],
    ]
    distances = list(comparison.real_distances().values())
    ours = {c: comparison.yardsticks(c) for c in comparison.candidates}
    for name in DISTANCES:
        unit = float(np.median([entry[name] for entry in distances]))
        others = [entry[name] / unit for entry in distances]
        rows.append(line(name, "", others, {c: v[name] for c, v in ours.items()}))
    rows.append(["[italic]overlap of the Minkowski bands[/italic]", *blank])
    others = [_overlaps(summary, held) for summary in real]
    ours = {c: comparison.overlaps(c) for c in comparison.candidates}
    for name in MINKOWSKI:
        rows.append(
            line(name, "", [entry[name] for entry in others], {c: v[name] for c, v in ours.items()})
        )
    rows.append(["[italic]median spectrum over the held-out median[/italic]", *blank])
    ours = {
        c: comparison.spectrum_ratio(summary)["median"]
        for c, summary in comparison.candidates.items()
    }
    others = [comparison.spectrum_ratio(summary)["median"] for summary in real]
    for i, ell in enumerate(held.ell):
        values = {c: v[i] for c, v in ours.items()}
        rows.append(line(f"ℓ = {ell:.0f}", "", [entry[i] for entry in others], values))
    for statistic in ("kurtosis", "skewness"):
        label = "excess kurtosis" if statistic == "kurtosis" else statistic
        rows.append([f"[italic]median {label} of a patch[/italic]", *blank])
        for i, (low, high) in enumerate(held.bands):

            def middle(summary: Summary, name: str = statistic, band: int = i) -> float:
                return float(np.median(getattr(summary, name)[:, band]))

            rows.append(
                line(
                    f"ℓ = {low:.0f} to {high:.0f}",
                    f"{middle(held):.2f}",
                    [middle(summary) for summary in real],
                    {c: middle(summary) for c, summary in comparison.candidates.items()},
                )
            )
    return rows


def _round(values: Any) -> Any:
    """Numbers, or arrays of them, with three figures: what a card needs."""
    if np.ndim(values):
        return [_round(value) for value in values]
    return float(f"{values:.3g}")


def _finite(value: Any) -> Any:
    """JSON has no infinity: None in its place."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
