"""What a comparison of candidates with held-out sky holds, and how it is told.

Made by `report.evaluate`; here are the figures, as numbers, JSON and tables.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.table import Table

from pysm_vae.stats.compare import DISTANCES, Summary, distance, yardstick
from pysm_vae.stats.minkowski import band_overlap
from pysm_vae.stats.spectra import fundamental
from pysm_vae.stats.twosample import TwoSample

CANDIDATES = {
    "samples": "prior samples",
    "conditional": "conditional samples",
    "reconstructions": "reconstructions",
    "modulated_gaussian": "modulated Gaussian",
    "thorne2021": "thorne2021",
}
"""What is compared with the held-out patches, and its name in tables and figures."""

MINKOWSKI = ("minkowski_v0", "minkowski_v1", "minkowski_v2")

TWO_SAMPLE = "two_sample"
"""The yardstick of the classifier, next to those of `compare.DISTANCES`."""

BRIGHTNESS = ("faintest third", "middle third", "brightest third")
"""Classes of the coarse map's blocks, by the terciles of all held-out ones."""


@dataclass(frozen=True)
class Row:
    """One line of a table, as text.

    Attributes
    ----------
    label, held_out, real : str
        What it is, the held-out sky's own value (where it has one), the real regions' range.
    candidates : dict of str to str
        One cell a candidate that has it.
    """

    label: str
    held_out: str
    real: str
    candidates: dict[str, str]


@dataclass(frozen=True)
class Section:
    """Lines of a table that belong together."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Conditioning:
    """How samples drawn for a held-out patch's coarse map follow it.

    Attributes
    ----------
    split : float
        Nyquist multipole of the coarse map: what lies above is drawn.
    with_held_out : array, shape (n, nb)
        Correlation of each held-out patch with a sample drawn for it, in the spectrum's bins.
    between_samples : array, shape (n, nb)
        The same of two samples drawn for one patch.
    small_from : float
        Multipole above which the following are measured: waves shorter than a coarse block.
    held_out_rms, held_out_kurtosis : arrays, shape (n, 3)
        Of the held-out patches' small scales, in blocks of each class of `BRIGHTNESS`; NaN where a
        patch has (almost) none.
    samples_rms, samples_kurtosis : arrays, shape (m, 3)
        Of the samples', in the same blocks.
    """

    split: float
    with_held_out: np.ndarray
    between_samples: np.ndarray
    small_from: float
    held_out_rms: np.ndarray
    held_out_kurtosis: np.ndarray
    samples_rms: np.ndarray
    samples_kurtosis: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Percentiles over the patches, as plain numbers and lists."""
        scalars = ("split", "small_from")
        out: dict[str, Any] = {name: getattr(self, name) for name in scalars}
        out["classes"] = list(BRIGHTNESS)
        for name in self.__dataclass_fields__:
            if name not in scalars:
                out[name] = {k: v.tolist() for k, v in percentiles(getattr(self, name)).items()}
        return out


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
        Of what is to be judged; keys as in `CANDIDATES`, and the names of other candidates.
    examples : dict of str to array, shape (m, size, size)
        Up to eight standardised patches of each, for the figures. Those of sets that are drawn for
        held-out patches belong to the held-out examples.
    two_sample, real_two_sample : dict of str to TwoSample
        How well a classifier tells candidates, and other real regions, from the held-out patches.
        Empty if it was not asked for or the held-out sky is too small.
    conditioning : Conditioning, optional
        Of the conditional samples, where there are any.
    """

    name: str
    regions: tuple[str, ...]
    pixel_size: float
    held_out: Summary
    real: dict[str, Summary]
    candidates: dict[str, Summary]
    examples: dict[str, np.ndarray] = field(repr=False)
    two_sample: dict[str, TwoSample] = field(default_factory=dict)
    real_two_sample: dict[str, TwoSample] = field(default_factory=dict)
    conditioning: Conditioning | None = None

    @property
    def labels(self) -> dict[str, str]:
        """Names of the candidates, for people."""
        return {name: CANDIDATES.get(name, name) for name in self.candidates}

    def distances(self, candidate: str) -> dict[str, float]:
        """Distances of a candidate from the held-out patches (see `compare.distance`)."""
        return distance(self.candidates[candidate], self.held_out)

    def yardsticks(self, candidate: str) -> dict[str, float]:
        """Those distances over the median real region's (see `compare.yardstick`).

        With a two-sample test also ``two_sample``: the AUC's excess over ½ over the median real
        region's excess, which counts as no less than its standard error (regions that could not be
        told apart would otherwise make any ratio).
        """
        ratios = yardstick(self.candidates[candidate], self.held_out, list(self.real.values()))
        if candidate in self.two_sample and self.real_two_sample:
            ratios[TWO_SAMPLE] = _excess(self.two_sample[candidate]) / self._two_sample_unit()
        return ratios

    def real_yardsticks(self) -> dict[str, dict[str, float]]:
        """The same of each real region: how much these differ among themselves."""
        distances = self.real_distances()
        units = {n: np.median([entry[n] for entry in distances.values()]) for n in DISTANCES}
        found = {
            name: {n: float(entry[n] / units[n]) for n in DISTANCES}
            for name, entry in distances.items()
        }
        for name, result in self.real_two_sample.items():
            found[name][TWO_SAMPLE] = _excess(result) / self._two_sample_unit()
        return found

    def _two_sample_unit(self) -> float:
        results = list(self.real_two_sample.values())
        middle = float(np.median([_excess(result) for result in results]))
        error = float(np.median([result.error for result in results]))
        # With every real AUC at exactly 1, or few patches, the error may vanish.
        return max(middle, error, 1e-3)

    def real_auc(self) -> float | None:
        """AUC of the median real region, if there was a two-sample test."""
        if not self.real_two_sample:
            return None
        return float(np.median([result.auc for result in self.real_two_sample.values()]))

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

    def relative_overlaps(self, candidate: str) -> dict[str, float]:
        """A candidate's overlaps over those of the real regions: 1 is as good as real sky."""
        real = self.real_overlaps()
        return {
            name: value / real[name] if real[name] > 0 else math.inf
            for name, value in self.overlaps(candidate).items()
        }

    def spread_ratio(self, summary: Summary) -> np.ndarray:
        """Patch-to-patch scatter of a set's spectra over the held-out patches', in each bin.

        The scatter is the distance of the 16th from the 84th percentile of ln C_ℓ.
        """
        return _spread(summary.spectrum) / _spread(self.held_out.spectrum)

    def reconstruction_ratio(self) -> dict[str, np.ndarray] | None:
        """Percentiles over the patches of the spectrum's ratio reconstruction / original."""
        if "reconstructions" not in self.candidates:
            return None
        return percentiles(self.candidates["reconstructions"].spectrum / self.held_out.spectrum)

    def spectrum_ratio(self, summary: Summary) -> dict[str, np.ndarray]:
        """Percentiles of a set's spectra in each bin over the held-out patches' median."""
        middle = np.median(self.held_out.spectrum, axis=0)
        p16, median, p84 = np.percentile(summary.spectrum, [16, 50, 84], axis=0) / middle
        return {"p16": p16, "median": median, "p84": p84}

    def cycles(self) -> np.ndarray:
        """Mean wavenumber of the spectrum's bins, in cycles per patch."""
        return self.held_out.ell / fundamental(self.held_out.size, self.pixel_size)

    def title(self) -> str:
        """What was held out."""
        return (
            f"{', '.join(self.regions)}, {len(self.held_out)} patches of {self.held_out.size} px "
            f"of {self.pixel_size:g}'"
        )

    def sections(self) -> list[Section]:
        """The figures as text, for tables."""
        real, everyone = self.real, self.candidates

        def row(
            label: str, others: Mapping[str, float], ours: Mapping[str, float], held: str = ""
        ) -> Row:
            low, high = (f"{f(others.values()):.2f}" for f in (min, max)) if others else ("–", "–")
            reach = low if low == high else f"{low} to {high}"
            return Row(label, held, reach, {name: f"{value:.2f}" for name, value in ours.items()})

        def pick(table: Mapping[str, Any], key: Any) -> dict[str, float]:
            return {
                name: entry[key]
                for name, entry in table.items()
                if not isinstance(entry, dict) or key in entry
            }

        def by_ell(others: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[Row, ...]:
            return tuple(
                row(f"ℓ = {ell:.0f}", pick(others, i), pick(ours, i))
                for i, ell in enumerate(self.held_out.ell)
            )

        others, ours = self.real_yardsticks(), {name: self.yardsticks(name) for name in everyone}
        keys = (*DISTANCES, *((TWO_SAMPLE,) if self.real_two_sample else ()))
        found = [
            Section(
                "distance over the median real region's",
                tuple(row(key, pick(others, key), pick(ours, key)) for key in keys),
            )
        ]
        if self.two_sample:
            results = {name: result.auc for name, result in self.two_sample.items()}
            errors = {name: result.error for name, result in self.two_sample.items()}
            others = {name: result.auc for name, result in self.real_two_sample.items()}
            rows = (row("AUC", others, results), row("its standard error", {}, errors))
            found.append(Section("two-sample test (½: cannot be told apart)", rows))
        others = {name: _overlaps(summary, self.held_out) for name, summary in real.items()}
        ours = {name: self.overlaps(name) for name in everyone}
        rows = tuple(row(key, pick(others, key), pick(ours, key)) for key in MINKOWSKI)
        found.append(Section("overlap of the Minkowski bands", rows))
        middle = self.real_overlaps()
        others = {
            name: {key: entry[key] / middle[key] if middle[key] else math.inf for key in entry}
            for name, entry in others.items()
        }
        ours = {name: self.relative_overlaps(name) for name in everyone}
        rows = tuple(row(key, pick(others, key), pick(ours, key)) for key in MINKOWSKI)
        found.append(Section("that overlap over the median real region's", rows))
        others, ours = (
            {name: self.spectrum_ratio(summary)["median"] for name, summary in table.items()}
            for table in (real, everyone)
        )
        found.append(Section("median spectrum over the held-out median", by_ell(others, ours)))
        others, ours = (
            {name: self.spread_ratio(summary) for name, summary in table.items()}
            for table in (real, everyone)
        )
        found.append(
            Section("16–84 % spread of ln C_ℓ over the held-out patches'", by_ell(others, ours))
        )
        for statistic, label in (("kurtosis", "excess kurtosis"), ("skewness", "skewness")):
            held, others, ours = (
                {name: np.median(getattr(s, statistic), axis=0) for name, s in table.items()}
                for table in ({"": self.held_out}, real, everyone)
            )
            rows = tuple(
                row(
                    f"ℓ = {low:.0f} to {high:.0f}",
                    pick(others, i),
                    pick(ours, i),
                    f"{held[''][i]:.2f}",
                )
                for i, (low, high) in enumerate(self.held_out.bands)
            )
            found.append(Section(f"median {label} of a patch", rows))
        return found

    def to_json(self) -> dict[str, Any]:
        """Every figure as plain numbers and lists."""
        sets = {"held_out": self.held_out, **self.candidates}
        ratio, yardsticks = self.reconstruction_ratio(), self.real_yardsticks()
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
            "minkowski_overlap_over_real": {
                name: self.relative_overlaps(name) for name in self.candidates
            },
            "spread_ratio": {
                name: self.spread_ratio(summary).tolist()
                for name, summary in self.candidates.items()
            },
            "reconstruction_ratio": None
            if ratio is None
            else {key: value.tolist() for key, value in ratio.items()},
            "conditioning": None if self.conditioning is None else self.conditioning.to_json(),
            "two_sample": {name: result.to_json() for name, result in self.two_sample.items()},
            "real_regions": {
                name: {
                    "patches": len(summary),
                    "distances": distance(summary, self.held_out),
                    "yardsticks": yardsticks[name],
                    "minkowski_overlap": _overlaps(summary, self.held_out),
                    "spread_ratio": self.spread_ratio(summary).tolist(),
                    "two_sample": self.real_two_sample[name].to_json()
                    if name in self.real_two_sample
                    else None,
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
    spacing : float
        Of the real patches' centres, in sides of a patch. Below 1 patches overlap.
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
    spacing: float
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Every figure as plain numbers and lists; an infinite distance becomes None."""
        return finite(
            {
                "weights": self.name,
                "sha256": self.sha256,
                "size": self.size,
                "samples": self.n,
                "seed": self.seed,
                "spacing": self.spacing,
                "notes": list(self.notes),
                "comparisons": [comparison.to_json() for comparison in self.comparisons],
            }
        )

    def table(self) -> Table:
        """Table of the figures, to print with rich.

        The yardstick is the distance from the held-out patches over the median real region's: 1
        means as much like this sky as another region of sky is. The column of the real regions
        gives their range.
        """
        candidates = {k: v for c in self.comparisons for k, v in c.labels.items()}
        table = Table(
            title=f"{self.name}: samples beside held-out sky",
            caption="\n".join(self.notes) or None,
        )
        for heading in ("", "held-out sky", "other real sky", *candidates.values()):
            # Wide enough for what the lines are called.
            table.add_column(
                heading, justify="right" if heading else "left", min_width=None if heading else 28
            )
        blank = [""] * (2 + len(candidates))
        for comparison in self.comparisons:
            table.add_row(f"[bold]{comparison.title()}[/bold]", *blank)
            for section in comparison.sections():
                table.add_row(f"[italic]{section.title}[/italic]", *blank)
                for row in section.rows:
                    cells = [row.candidates.get(name, "–") for name in candidates]
                    table.add_row(row.label, row.held_out, row.real, *cells)
            table.add_section()
        return table


def percentiles(values: np.ndarray) -> dict[str, np.ndarray]:
    """16th, 50th and 84th percentile over the first axis; NaN does not count."""
    with warnings.catch_warnings():
        # A column of nothing but NaN has none: NaN is the answer.
        warnings.filterwarnings("ignore", "All-NaN slice")
        p16, median, p84 = np.nanpercentile(values, [16, 50, 84], axis=0)
    return {"p16": p16, "median": median, "p84": p84}


def _spread(spectrum: np.ndarray) -> np.ndarray:
    low, high = np.percentile(np.log(spectrum), [16, 84], axis=0)
    return high - low


def _excess(result: TwoSample) -> float:
    """What a classifier gains over guessing."""
    return max(result.auc - 0.5, 0.0)


def _overlaps(one: Summary, other: Summary) -> dict[str, float]:
    return {name: band_overlap(getattr(one, name), getattr(other, name)) for name in MINKOWSKI}


def finite(value: Any) -> Any:
    """JSON has no infinity: None in its place."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
