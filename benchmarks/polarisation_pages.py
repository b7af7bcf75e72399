"""How polarisation.py shows what it has measured: tables, sentences and pictures."""

from __future__ import annotations

from typing import Any

import healpy as hp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from pysm_vae.figures import FIELD, FIELD_SIDE
from pysm_vae.vae.patches import tangent_grid

#: R as that paper has it, mean and scatter over fields.
PAPER = {
    "power law": (1.83, 0.0),
    "Planck NPIPE": (1.85, 0.93),
    "d1": (2.03, 0.72),
    "d9": (2.35, 0.77),
    "d12": (2.26, 0.91),
}


def tables(report: dict[str, Any]) -> list[Table]:
    """What the report says, to read."""
    shown = []
    table = Table(title=f"P/I, {report['weights']}, nside {report['nside']}")
    for column in ("map", "where", "median", "95 %", "99.9 %", "largest"):
        table.add_column(column)
    for name, each in report["P/I"].items():
        for where, entry in each.items():
            table.add_row(name, where, *(f"{value:.3f}" for value in entry["percentiles"]))
    shown.append(table)

    table = Table(title=f"Non-Gaussianity of {report['seeds']} skies beside controls, |b| > 35°")
    for column in ("field", "set", "kurtosis", "sigmas", "V0, V1, V2 apart", "sigmas", "overlap"):
        table.add_column(column)
    for field, sets in report["non-Gaussianity"].items():
        for name, entry in sets.items():
            pairs = zip(entry["kurtosis"], entry["scatter of skies"], strict=True)
            cells = [", ".join(f"{k:.2f} ± {s:.2f}" for k, s in pairs), "", "", "", ""]
            if name != "sky":
                curves = [entry[f"V{k}"] for k in range(3)]
                cells[1:] = [
                    ", ".join(f"{s:.1f}" for s in entry["sigmas"]),
                    ", ".join(
                        f"{c['distance']:.2f} ({c['distance of two controls']:.2f})" for c in curves
                    ),
                    ", ".join("" if c["sigmas"] is None else f"{c['sigmas']:.1f}" for c in curves),
                    ", ".join(f"{c['overlap']:.2f}" for c in curves),
                ]
            table.add_row(field, name, *cells)
    shown.append(table)

    table = Table(title="BB of fields of 400 square degrees: low over high multipoles, R")
    for column in ("", "R", "scatter of fields", "small scales over a power law's"):
        table.add_column(column)
    fields = report["small fields"]
    table.add_row("all", *(f"{value:.2f}" for value in fields["R"]), "")
    excess = fields["small scales over a power law's, by quarter"]
    for k, entry in enumerate(fields["R by quarter of brightness"]):
        name = ("faintest quarter", "second", "third", "brightest quarter")[k]
        table.add_row(name, *(f"{value:.2f}" for value in entry), f"{excess[k]:.2f}")
    for name in ("R of a power law", "R of cut Q, U", "R of cut Q, U of a power law"):
        table.add_row(name, *(f"{value:.2f}" for value in fields[name]), "")
    for name, entry in PAPER.items():
        table.add_row(f"arXiv:2502.20452: {name}", *(f"{value:.2f}" for value in entry), "")
    shown.append(table)

    if "Taurus" in report:
        taurus = report["Taurus"]
        table = Table(title="Taurus, Q and U at 10'")
        table.add_column("")
        for low, high in taurus["bands"]:
            table.add_column(f"EE/BB, {low} to {high}")
        for low, high in taurus["bands"]:
            table.add_column(f"kurtosis, {low} to {high}")
        rows = [("Planck", taurus["Planck"])]
        rows += [(f"vae0, seed {n}", entry) for n, entry in enumerate(taurus["ours"])]
        for name, entry in rows:
            table.add_row(name, *(f"{v:.2f}" for v in (*entry["EE/BB"], *entry["kurtosis"])))
        shown.append(table)
    return shown


def sentences(report: dict[str, Any]) -> list[str]:
    """What does not fit into a table."""
    amplitude, fields = report["amplitude"], report["small fields"]
    together = amplitude["together"]
    lines = [
        f"Polarised rms above l = {amplitude['above']:g} goes as "
        f"I^{amplitude['I']['slope']:.2f}, as P^{amplitude['P']['slope']:.2f}; "
        f"both at once: I^{together['I']:.2f} "
        f"(P/I)^{together['P/I']:.2f}.",
        "Small-scale BB of the brighter fields goes as "
        f"I^{fields['power of intensity in the brighter fields']:.2f}; of the faintest quarter it "
        f"is {fields['faintest quarter over the trend of the others']:.2f} times that.",
    ]
    if "pattern of Q, U at l < 20" in report:
        found = report["pattern of Q, U at l < 20"]
        text = ", ".join(f"{value:.2f} ({where})" for where, value in found.items())
        lines.append(f"Pattern of Q and U at l < 20, template and reference: {text}.")
    else:
        lines.append("No --reference: nothing to compare polarisation fractions with.")
    return lines


# Pictures


def picture(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure and its axes, (rows, columns)."""
    drawn = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn, drawn.subplots(rows, columns, squeeze=False)


def show(axis: Any, values: np.ndarray, limit: float, title: str) -> None:
    """Draw one Stokes parameter of a field."""
    axis.imshow(values, origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set(title=title, xticks=[], yticks=[])


def zoom_figure(whole: np.ndarray, large: np.ndarray) -> Figure:
    """Q and U of a field with and without small scales, and their difference."""
    lon, lat = tangent_grid(*FIELD, 300, 60 * FIELD_SIDE / 300)
    drawn, axes = picture(2, 3, (12, 8.2))
    drawn.suptitle(f"{FIELD_SIDE:g}° about (l, b) = ({FIELD[0]:g}°, {FIELD[1]:g}°), µK_RJ, 353 GHz")
    for row, k, name in zip(axes, (1, 2), "QU", strict=True):
        both = [hp.get_interp_val(m[k], lon, lat, lonlat=True) for m in (large, whole)]
        limit = np.percentile(np.abs(both[1]), 99.5)
        show(row[0], both[0], limit, f"{name}, template only (±{limit:.2g})")
        show(row[1], both[1], limit, f"{name}, with small scales")
        show(row[2], both[1] - both[0], 0.5 * limit, f"small scales of {name} (±{0.5 * limit:.2g})")
    return drawn


def sky_figure(report: dict[str, Any]) -> Figure:
    """Polarisation fractions; amplitude against brightness; small fields."""
    drawn, axes = picture(2, 2, (11, 8.5))
    edges = np.array(report["P/I edges"])
    middle = 0.5 * (edges[1:] + edges[:-1])
    for axis, where in zip(axes[0], ("|b| > 20", "full sky"), strict=True):
        for name, each in report["P/I"].items():
            style = "-" if name in ("sky", "template") else "--"
            axis.semilogy(middle, each[where]["density"], style, label=name)
        axis.set(xlabel="P / I", ylabel="density", title=where, ylim=(1e-3, None))
    axes[0, 0].legend(fontsize=8)
    for name in "IP":
        entry = report["amplitude"][name]
        x, y = np.array(entry["brightness"]), np.array(entry["rms"])
        label = f"{name}: slope {entry['slope']:.2f}"
        axes[1, 0].loglog(x / x.mean(), y, marker="o", label=label)
    axes[1, 0].set(
        xlabel="large-scale brightness over its mean",
        ylabel=f"rms of Q, U at l > {report['amplitude']['above']:g}, µK_RJ",
        title="|b| > 20°",
    )
    axes[1, 0].xaxis.set_minor_formatter("")
    axes[1, 0].yaxis.set_minor_formatter("")
    axes[1, 0].legend()
    fields = report["small fields"]
    low, high = np.array(fields["low"]), np.array(fields["high"])
    shown = axes[1, 1].scatter(low, high, c=np.log10(fields["brightness"]), s=10, cmap="viridis")
    line = np.array([low.min(), low.max()])
    axes[1, 1].plot(line, line / fields["law"], "k", label="power law")
    axes[1, 1].set(
        xscale="log",
        yscale="log",
        xlabel="BB, l = 40 to 110, µK_RJ²",
        ylabel="BB, l = 110 to 370",
        title="fields of 400 square degrees, one sky",
    )
    drawn.colorbar(shown, ax=axes[1, 1], label="log10 of mean intensity, µK_RJ")
    axes[1, 1].legend()
    return drawn


def shape_figure(report: dict[str, Any]) -> Figure:
    """Kurtosis of all fields, and Minkowski functionals less the modulated Gaussian's."""
    drawn, axes = picture(4, len(report["non-Gaussianity"]), (15, 11))
    nu, octaves = report["thresholds"], report["bands"]
    for column, (field, sets) in zip(axes.T, report["non-Gaussianity"].items(), strict=True):
        for number, (name, entry) in enumerate(sets.items()):
            colour = f"C{number}"
            column[0].errorbar(
                np.arange(len(octaves)) + 0.1 * number,
                entry["kurtosis"],
                entry["scatter of skies"],
                fmt="o",
                color=colour,
                label=name,
            )
            for k, axis in enumerate(column[1:]):
                mean = np.array(entry[f"V{k}"]["mean"])
                scatter = np.array(entry[f"V{k}"]["scatter of patches"])
                # The curves of all sets are alike but for small departures.
                mean -= np.array(sets["modulated Gaussian"][f"V{k}"]["mean"])
                axis.plot(nu, mean, color=colour)
                axis.fill_between(nu, mean - scatter, mean + scatter, alpha=0.2)
        column[0].axhline(0, color="0.7")
        column[0].set(title=f"{field}: kurtosis")
        column[0].set_xticks(range(len(octaves)), [f"{a:g} to {b:g}" for a, b in octaves])
        for k, axis in enumerate(column[1:]):
            axis.set(title=f"{field}: V{k} less a control's", xlabel="σ")
    axes[0, 0].legend(fontsize=8)
    return drawn


def taurus_figure(report: dict[str, Any], maps: dict[str, np.ndarray]) -> Figure:
    """Q and U of Planck and of a sky at the same place, and their Minkowski functionals."""
    drawn, axes = picture(2, 4, (17, 8))
    for row, (name, each) in zip(axes, maps.items(), strict=True):
        limit = np.percentile(np.abs(each - each.mean(axis=(1, 2), keepdims=True)), 99.5)
        for axis, values, stokes in zip(row, each, "QU", strict=False):
            show(axis, values - values.mean(), limit, f"{name}: {stokes} less its mean")
    taurus = report["Taurus"]
    for k, axis in enumerate(axes[:, 2:].ravel()[:3]):
        for entry in taurus["ours"]:
            axis.plot(report["thresholds"], entry[f"V{k}"], color="C1")
        axis.plot(report["thresholds"], taurus["Planck"][f"V{k}"], color="k")
        axis.set(title=f"V{k} of Q and U (black: Planck)", xlabel="σ")
    last = axes[1, 3]
    x = np.arange(len(taurus["bands"]))
    for entry in taurus["ours"]:
        last.plot(x, entry["kurtosis"], "o-", color="C1")
        last.plot(x, entry["EE/BB"], "s--", color="C1")
    last.plot(x, taurus["Planck"]["kurtosis"], "ko-", label="kurtosis, Planck")
    last.plot(x, taurus["Planck"]["EE/BB"], "ks--", label="EE/BB, Planck")
    last.set_xticks(x, [f"{a} to {b}" for a, b in taurus["bands"]])
    # Of one field, a bright knot may have any kurtosis.
    last.set_yscale("symlog")
    last.legend()
    return drawn
