"""The figures of a comparison, drawn on Matplotlib axes: for the page and for the sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import erfc

from pysm_vae.stats.comparison import BRIGHTNESS, MINKOWSKI, percentiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pysm_vae.stats.compare import Summary
    from pysm_vae.stats.comparison import Comparison

_COLOURS = {
    "held_out": "black",
    "samples": "C0",
    "conditional": "C2",
    "modulated_gaussian": "C1",
    "thorne2021": "C3",
    "reconstructions": "C4",
}
# Of other candidates, as they come.
_SPARE = ("C5", "C6", "C8", "C9", "C7")
_REAL = "0.6"

# Candidates whose scatter is shaded; more would hide each other.
_SHADED = ("held_out", "samples")


def new_figure(width: float, height: float) -> Figure:
    """A figure without a window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def labels(comparison: Comparison) -> dict[str, str]:
    """Names of the held-out sky and of all candidates, for people."""
    return {"held_out": "held-out sky", **comparison.labels}


def colours(comparison: Comparison) -> dict[str, str]:
    """A colour for each of them."""
    return {name: _colour(name, list(comparison.candidates)) for name in labels(comparison)}


def _colour(name: str, candidates: Sequence[str]) -> str:
    """The colour that a set has in every figure; others than ours take theirs in turn."""
    spare = [other for other in candidates if other not in _COLOURS]
    return _COLOURS.get(name) or _SPARE[spare.index(name) % len(_SPARE)]


def _sets(comparison: Comparison) -> dict[str, Summary]:
    return {"held_out": comparison.held_out, **comparison.candidates}


def _ell_axis(axes: Axes, ell: np.ndarray) -> None:
    axes.set(xscale="log", xlim=(0.85 * ell[0], 1.15 * ell[-1]), xlabel="multipole ℓ")
    low, high = axes.get_xlim()
    ticks = [t for t in (20, 50, 100, 200, 500, 1000, 2000, 5000) if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.tick_params(axis="x", which="minor", labelbottom=False)


def _ratio_axis(axes: Axes, values: Sequence[float]) -> None:
    axes.set_yscale("log")
    axes.set_yticks(values, [f"{v:g}" for v in values])
    axes.set_ylim(values[0], values[-1])
    axes.tick_params(axis="y", which="minor", left=False, labelleft=False)
    axes.axhline(1, color="black", lw=0.5)


def draw_patches(figure: Any, comparison: Comparison) -> None:
    """A row of standardised patches for each set, on a figure or a part of one."""
    shown = labels(comparison)
    panels = figure.subplots(len(shown), 8, squeeze=False, gridspec_kw={"hspace": 0, "wspace": 0})
    for row, (name, label) in zip(panels, shown.items(), strict=True):
        for panel in row:
            panel.set_axis_off()
        for panel, patch in zip(row, comparison.examples[name], strict=False):
            panel.imshow(patch, vmin=-2.5, vmax=2.5, cmap="inferno", origin="lower")
            panel.set_axis_on()
            panel.set_xticks([])
            panel.set_yticks([])
        row[0].set_ylabel(label.replace(" ", "\n"), fontsize=9)


def draw_spectra(axes: Axes, comparison: Comparison) -> None:
    """Median spectra over the held-out patches'."""
    shade = colours(comparison)
    ell = comparison.held_out.ell
    for name, label in labels(comparison).items():
        ratio = comparison.spectrum_ratio(_sets(comparison)[name])
        axes.plot(ell, ratio["median"], color=shade[name], label=label)
        if name in _SHADED:
            axes.fill_between(ell, ratio["p16"], ratio["p84"], color=shade[name], alpha=0.15, lw=0)
    for summary in comparison.real.values():
        median = comparison.spectrum_ratio(summary)["median"]
        axes.plot(ell, median, color=_REAL, lw=0.8, ls="--", zorder=1)
    axes.plot([], [], color=_REAL, lw=0.8, ls="--", label="other real regions")
    _ell_axis(axes, ell)
    _ratio_axis(axes, (0.1, 0.2, 0.5, 1, 2, 5))
    axes.set_ylabel("spectrum / held-out median")
    axes.legend(fontsize=7.5, loc="lower left", ncols=2)


def draw_spread(axes: Axes, comparison: Comparison) -> None:
    """Patch-to-patch scatter of the spectra over the held-out patches'."""
    shade = colours(comparison)
    ell = comparison.held_out.ell
    for name, summary in comparison.candidates.items():
        axes.plot(ell, comparison.spread_ratio(summary), color=shade[name])
    for summary in comparison.real.values():
        axes.plot(ell, comparison.spread_ratio(summary), color=_REAL, lw=0.8, ls="--", zorder=1)
    _ell_axis(axes, ell)
    _ratio_axis(axes, (0.2, 0.5, 1, 2, 5))
    axes.set_ylabel("spread of ln $C_\\ell$ / held-out")


def draw_histogram(axes: Axes, comparison: Comparison) -> None:
    """Mean distribution of pixel values."""
    shade = colours(comparison)
    edges = comparison.held_out.histogram_edges
    middle = 0.5 * (edges[1:] + edges[:-1])
    for summary in comparison.real.values():
        axes.plot(middle, summary.histogram.mean(axis=0), color=_REAL, lw=0.8, ls="--")
    axes.plot([], [], color=_REAL, lw=0.8, ls="--", label="other real regions")
    for name, label in labels(comparison).items():
        mean = _sets(comparison)[name].histogram.mean(axis=0)
        axes.plot(middle, mean, color=shade[name], label=label)
        if name in _SHADED:
            ends = percentiles(_sets(comparison)[name].histogram)
            axes.fill_between(middle, ends["p16"], ends["p84"], color=shade[name], alpha=0.15, lw=0)
    axes.set(xlim=(-4.2, 4.2), ylim=(2e-4, 1), yscale="log")
    axes.set(xlabel="standardised log-intensity", ylabel="probability density")
    axes.legend(fontsize=8, loc="lower center")


def draw_moments(axes: Axes, comparison: Comparison, statistic: str) -> None:
    """Kurtosis or skewness of each set's patches in bands of multipole."""
    shade = colours(comparison)
    bands = [f"{low:.0f}–{high:.0f}" for low, high in comparison.held_out.bands]
    place = np.arange(len(bands))
    real = {f"real {name}": summary for name, summary in comparison.real.items()}
    sets = _sets(comparison) | real
    step = 0.8 / len(sets)
    for i, (name, summary) in enumerate(sets.items()):
        ends = percentiles(getattr(summary, statistic))
        axes.errorbar(
            place + step * (i - 0.5 * (len(sets) - 1)),
            ends["median"],
            [ends["median"] - ends["p16"], ends["p84"] - ends["median"]],
            fmt="o",
            ms=3 if name in real else 4,
            lw=1,
            color=shade.get(name, _REAL),
            label=labels(comparison).get(name),
        )
    axes.plot([], [], "o-", ms=3, lw=1, color=_REAL, label="other real regions")
    for edge in place[1:]:
        axes.axvline(edge - 0.5, color="0.85", lw=0.8)
    axes.axhline(0, color="grey", lw=0.5)
    axes.set_xticks(place, bands)
    axes.set(xlabel="multipoles of the band", ylabel=f"{statistic} of a patch")
    if statistic == "kurtosis":
        axes.set_ylabel("excess kurtosis of a patch")
        axes.set_yscale("symlog", linthresh=1)
        low, high = axes.get_ylim()
        ticks = [t for t in (-3, -1, 0, 1, 3, 10, 30, 100) if low <= t <= high]
        axes.set_yticks(ticks, [f"{t:g}" for t in ticks])


def draw_minkowski(axes: Axes, comparison: Comparison, number: int) -> None:
    """Mean curves of a Minkowski functional, with ±1σ over the patches.

    V₀ falls from 1 to 0 for any field: what is shown of it is the difference from a Gaussian's.
    """
    shade = colours(comparison)
    thresholds = comparison.held_out.thresholds
    base = 0.5 * erfc(thresholds / np.sqrt(2)) if number == 0 else np.zeros_like(thresholds)
    for summary in comparison.real.values():
        mean = getattr(summary, MINKOWSKI[number]).mean(axis=0) - base
        axes.plot(thresholds, mean, color=_REAL, lw=0.8, ls="--", zorder=1)
    for name, label in labels(comparison).items():
        summary = _sets(comparison)[name]
        values = getattr(summary, MINKOWSKI[number])
        mean, scatter = values.mean(axis=0) - base, values.std(axis=0, ddof=1)
        axes.plot(thresholds, mean, color=shade[name], label=label)
        if name in _SHADED:
            low, high = mean - scatter, mean + scatter
            axes.fill_between(thresholds, low, high, color=shade[name], alpha=0.15, lw=0)
    axes.set(
        xlabel="threshold / σ", ylabel=f"$V_{number}$" + (" – Gaussian" if number == 0 else "")
    )
    axes.set_title(f"above ℓ = {comparison.held_out.lmin_high_pass:.0f}", fontsize=9)


def draw_scattering(axes: Axes, comparison: Comparison) -> None:
    """Scattering coefficients as offsets from the held-out mean, in its scatter."""
    shade = colours(comparison)
    held = comparison.held_out.scattering
    mean, scatter = held.mean(axis=0), held.std(axis=0, ddof=1)
    scatter = np.where(scatter > 0, scatter, np.inf)
    place = np.arange(held.shape[1])
    for summary in comparison.real.values():
        offset = (summary.scattering.mean(axis=0) - mean) / scatter
        axes.plot(place, offset, "_", color=_REAL, ms=11, mew=1.2, zorder=1)
    axes.plot([], [], "_", color=_REAL, ms=11, mew=1.2, label="other real regions")
    for name, summary in comparison.candidates.items():
        offset = (summary.scattering.mean(axis=0) - mean) / scatter
        axes.plot(place, offset, "o", ms=4.5, color=shade[name], label=comparison.labels[name])
    octaves = _octaves(held.shape[1])
    pairs = octaves * (octaves - 1) // 2
    starts = np.cumsum([0, octaves, octaves, pairs, pairs])
    axes.set_yscale("symlog", linthresh=2)
    ticks = (-10, -5, -2, -1, 0, 1, 2, 5, 10)
    low, high = axes.get_ylim()
    low, high = min(low, -2.5), max(high, 2.5)
    # Room for the names above and the legend below.
    axes.set_ylim(low * 2.2, high * 2.2)
    axes.set_yticks([t for t in ticks if low <= t <= high])
    axes.set_yticklabels([f"{t:g}" for t in ticks if low <= t <= high])
    names = ("amplitude", "anisotropy", "clustering", "straightness")
    for name, start, end in zip(names, starts, starts[1:], strict=False):
        axes.axvline(end - 0.5, color="0.85", lw=0.8)
        middle = 0.5 * (start + end - 1)
        axes.text(middle, 0.98, name, transform=axes.get_xaxis_transform(), ha="center", va="top")
    orders = [f"{j}" for j in range(octaves)]
    twos = [f"{j},{k}" for j in range(octaves) for k in range(j + 1, octaves)]
    axes.set_xticks(place, [*orders, *orders, *twos, *twos], fontsize=7)
    axes.axhspan(-1, 1, color="0.95", zorder=0)
    axes.set(xlabel="octaves (0: finest)", ylabel="offset from held-out sky / its scatter")
    axes.legend(fontsize=8, loc="lower center", ncols=len(comparison.candidates) + 1)


def _octaves(coefficients: int) -> int:
    """Octaves of so many scattering coefficients: 2 J + J (J − 1)."""
    return round(0.5 * (np.sqrt(1 + 4 * coefficients) - 1))


def draw_roc(axes: Axes, comparison: Comparison) -> None:
    """ROC curves of the classifiers."""
    shade = colours(comparison)
    for result in comparison.real_two_sample.values():
        axes.plot(
            result.false_positives, result.true_positives, color=_REAL, lw=0.8, ls="--", zorder=1
        )
    axes.plot([], [], color=_REAL, lw=0.8, ls="--", label="other real regions")
    for name, result in comparison.two_sample.items():
        axes.plot(
            result.false_positives,
            result.true_positives,
            color=shade[name],
            label=comparison.labels[name],
        )
    axes.plot([0, 1], [0, 1], color="black", lw=0.5)
    axes.set(xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
    axes.set(xlabel="held-out patches called fake", ylabel="the set's patches called fake")
    axes.legend(fontsize=8, loc="lower right")


def draw_auc(axes: Axes, comparison: Comparison) -> None:
    """AUC of each set with its standard error."""
    shade = colours(comparison)
    real, ours = comparison.real_two_sample, comparison.two_sample
    entries = [(comparison.labels[n], r, shade[n]) for n, r in ours.items()]
    entries += [(f"real: {name}", result, _REAL) for name, result in real.items()]
    for place, (_, result, colour) in enumerate(entries):
        axes.errorbar(result.auc, place, xerr=result.error, fmt="o", color=colour)
    axes.set_yticks(range(len(entries)), [label for label, _, _ in entries], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0.5, color="black", lw=0.5)
    middle = comparison.real_auc()
    if middle is not None:
        axes.axvline(middle, color=_REAL, ls="--")
        axes.axvline(middle + 0.05, color=_REAL, ls=":")
    lowest = min(result.auc - result.error for _, result, _ in entries)
    axes.set(xlabel="AUC", xlim=(min(0.4, lowest) - 0.03, 1.03))


def draw_reconstructions(figure: Any, comparison: Comparison) -> None:
    """Held-out patches, their reconstructions, and what these lack."""
    count = len(comparison.examples["held_out"])
    original = comparison.examples["held_out"]
    decoded = comparison.examples["reconstructions"]
    rows = {"original": original, "reconstruction": decoded, "difference": original - decoded}
    panels = figure.subplots(3, count, squeeze=False, gridspec_kw={"hspace": 0, "wspace": 0})
    for line, (label, patches) in zip(panels, rows.items(), strict=True):
        # The difference is small: five times the contrast, and red and blue about zero.
        limit, palette = (0.5, "RdBu_r") if label == "difference" else (2.5, "inferno")
        for panel, patch in zip(line, patches, strict=True):
            panel.imshow(patch, vmin=-limit, vmax=limit, cmap=palette, origin="lower")
            panel.set_xticks([])
            panel.set_yticks([])
        line[0].set_ylabel(label, fontsize=9)


def draw_reconstruction_ratio(axes: Axes, comparison: Comparison) -> None:
    """Spectrum of reconstructions over that of their originals."""
    ell, ratio = comparison.held_out.ell, comparison.reconstruction_ratio()
    shade = colours(comparison)["reconstructions"]
    axes.plot(ell, ratio["median"], "o-", ms=4, color=shade, label="median of the patches")
    axes.fill_between(ell, ratio["p16"], ratio["p84"], color=shade, alpha=0.2, lw=0)
    # The paper's own network, on its own test set: their figure, in the same measure.
    axes.plot(
        (67, 202, 337, 472, 607, 742, 877, 1147),
        (0.97, 1.01, 0.87, 0.57, 0.30, 0.12, 0.066, 0.025),
        color=_COLOURS["thorne2021"],
        ls=":",
        label="Thorne et al. 2021, read off their figure",
    )
    axes.axhline(1, color="black", lw=0.5)
    _ell_axis(axes, ell)
    axes.set(ylim=(0, 1.25), ylabel="reconstruction / original")
    axes.legend(fontsize=8, loc="lower left")


def draw_correlation(axes: Axes, comparison: Comparison) -> None:
    """Correlation of conditional samples with their patch and with each other."""
    ell, found = comparison.held_out.ell, comparison.conditioning
    shade = colours(comparison)["conditional"]
    for values, label, colour in (
        (found.with_held_out, "sample with held-out patch", shade),
        (found.between_samples, "two samples of a patch", "C9"),
    ):
        ends = percentiles(values)
        axes.plot(ell, ends["median"], "o-", ms=4, color=colour, label=label)
        axes.fill_between(ell, ends["p16"], ends["p84"], color=colour, alpha=0.2, lw=0)
    axes.axvline(found.split, color="black", ls=":", label="the coarse map ends")
    axes.axhline(0.95, color="black", lw=0.5)
    axes.axhline(0, color="grey", lw=0.5)
    _ell_axis(axes, ell)
    axes.set(ylim=(-0.3, 1.05), ylabel="correlation")
    axes.legend(fontsize=8, loc="lower left")


def draw_brightness(axes: Axes, comparison: Comparison, statistic: str) -> None:
    """Amplitude (``"rms"``) or kurtosis of small scales where a patch is faint or bright."""
    found = comparison.conditioning
    shade = colours(comparison)
    place = np.arange(len(BRIGHTNESS))
    for shift, name, values in (
        (-0.08, "held_out", getattr(found, f"held_out_{statistic}")),
        (0.08, "conditional", getattr(found, f"samples_{statistic}")),
    ):
        ends = percentiles(values)
        axes.errorbar(
            place + shift,
            ends["median"],
            [ends["median"] - ends["p16"], ends["p84"] - ends["median"]],
            fmt="o-",
            color=shade[name],
            label=labels(comparison)[name],
        )
    axes.set_xticks(place, [name.replace(" ", "\n") for name in BRIGHTNESS])
    quantity = "rms" if statistic == "rms" else "excess kurtosis"
    axes.set_ylabel(f"{quantity} above ℓ = {found.small_from:.0f}")
    if statistic == "rms":
        axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


def draw_folds(axes: Axes, table: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Yardsticks of several folds: each fold a dot, the median a bar."""
    measures = list(dict.fromkeys(key for name in names for key in table[name]))
    step = 0.8 / len(names)
    for i, name in enumerate(names):
        colour = _colour(name, list(names))
        for place, key in enumerate(measures):
            entry = table[name].get(key)
            if entry is None or entry["median"] is None:
                continue
            x = place + step * (i - 0.5 * (len(names) - 1))
            values = [v for v in entry["folds"] if v is not None]
            axes.plot([x] * len(values), values, "o", ms=3, color=colour, alpha=0.6)
            axes.plot(x, entry["median"], "_", ms=10, mew=2.5, color=colour)
        axes.plot([], [], "_", ms=10, mew=2.5, color=colour, label=names[name])
    _ratio_axis(axes, (0.1, 0.2, 0.5, 1, 2, 5, 10))
    axes.axhspan(0.1, 1.1, color="0.95", zorder=0)
    for edge in range(1, len(measures)):
        axes.axvline(edge - 0.5, color="0.85", lw=0.8)
    axes.set_xticks(range(len(measures)), [key.replace("_", "\n") for key in measures])
    axes.set_xlim(-0.5, len(measures) - 0.5)
    axes.set_ylabel("distance / real regions'")
    axes.legend(fontsize=8, ncols=3, loc="upper left")


def draw_pooled(axes: Axes, pooled: Mapping[str, Any], quantity: str) -> None:
    """A pooled ratio per bin (``"spectrum_ratio"`` or ``"spread_ratio"``), and every fold's."""
    found, names = pooled[quantity], pooled["labels"]
    x = np.array(pooled["ell"] or pooled["cycles_per_patch"])
    for name, entry in found.items():
        colour = _colour(name, list(names))
        if name == "samples":
            for fold in entry["folds"]:
                axes.plot(x, fold, color=colour, lw=0.7, alpha=0.5)
        axes.plot(x, entry["pooled"], color=colour, lw=2, label=names[name])
    if pooled["ell"]:
        _ell_axis(axes, x)
    else:
        axes.set(xscale="log", xlabel="cycles per patch")
    _ratio_axis(axes, (0.2, 0.5, 1, 2, 5))
    width = 0.1 if quantity == "spectrum_ratio" else 0.3
    axes.axhspan(1 - width, 1 + width, color="0.92", zorder=0)
    axes.set_ylabel("spectrum / data" if quantity == "spectrum_ratio" else "spread / data")
    axes.legend(fontsize=8, loc="lower left")


def draw_sheet(comparison: Comparison, name: str) -> Figure:
    """One sheet: patches; spectra, kurtosis and skewness; Minkowski curves."""
    rows = 1.7 * (1 + len(comparison.candidates))
    figure = new_figure(15, 6.6 + rows)
    (top,), (bottom,) = figure.subfigures(2, 1, squeeze=False, height_ratios=[rows, 6.6])
    side = comparison.held_out.size * comparison.pixel_size / 60
    top.suptitle(
        f"{name}: log-intensity of standardised patches, {side:.3g}° a side, "
        f"held out: {', '.join(comparison.regions)}"
    )
    draw_patches(top, comparison)
    (spectrum, kurtosis, skewness), curves = bottom.subplots(2, 3)
    draw_spectra(spectrum, comparison)
    draw_moments(kurtosis, comparison, "kurtosis")
    draw_moments(skewness, comparison, "skewness")
    for number, axes in enumerate(curves):
        draw_minkowski(axes, comparison, number)
    return figure
