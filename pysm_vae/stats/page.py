"""The evaluation as one HTML page: figures, tables, and how to read them.

The page holds all it needs (figures as PNG inside it, a little CSS, no script), so that it can be
mailed, archived, and read without a network.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from pysm_vae.files import atomic_write
from pysm_vae.stats import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pysm_vae.stats.comparison import Comparison, Evaluation

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 3rem; border-bottom: 2px solid #ddd; padding-bottom: .2rem; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption, .note { color: #444; max-width: 60rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .7rem; text-align: right; border-bottom: 1px solid #eee; }
th { vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
tr.section td { font-style: italic; padding-top: .9rem; border-bottom: 1px solid #bbb; }
td.ours, th.ours { background: #f1f6fc; }
code { font-size: 90%; }
</style>
</head>
<body>
$body
</body>
</html>
""")

_READING = """<p>Regions of real sky differ from each other by factors, so that no figure means much
by itself. Each set of patches below is therefore held against the same <b>held-out sky</b> (patches
of Planck dust that the network never saw), next to</p>
<ul>
<li><b>other real sky</b>, the ceiling: other regions, as far from the held-out one as regions
are;</li>
<li>the <b>modulated Gaussian</b>, the floor: the held-out patches' own spectrum and large scales,
small scales Gaussian but brighter where the patch is;</li>
<li><b>thorne2021</b>, the network of Thorne, Knox &amp; Prabhu (2021, MNRAS 504, 2603), if its
patches have this size.</li>
</ul>
<p><b>Prior samples</b> know nothing of the held-out sky. <b>Conditional samples</b> are given its
large scales (block means), <b>reconstructions</b> all of it. Patches are natural-log intensity,
each with zero mean and unit variance.</p>
<p>A <b>yardstick</b> is a set's distance from the held-out patches over that of the median other
real region: <b>1 means as much like this sky as another region of real sky is</b>, less is nearer,
more is further. Sets that take their large scales, or their spectrum, from the held-out patches
(conditional samples, the modulated Gaussian) are nearer in these by construction.</p>
"""

_FIGURES: dict[str, tuple[str, str]] = {
    "patches": (
        "Patches",
        "Standardised log-intensity, the same colour scale for all. Columns of conditional "
        "samples, reconstructions and the modulated Gaussian belong to the held-out patch at "
        "their top. Look for filaments and sharp edges, and for grain or blur that the sky does "
        "not have.",
    ),
    "spectra": (
        "Power spectra",
        "Left: median flat-sky spectrum under a cosine taper over that of the held-out patches "
        "(shaded: 16–84 % of the patches). 1 is the held-out sky; the dashed lines show how far "
        "real regions stray. A fall at high ℓ is blur, a rise is noise. Right: the "
        "patch-to-patch scatter of ln C_ℓ over that of the held-out patches. Below 1 patches are "
        "too much alike.",
    ),
    "histogram": (
        "Pixel values",
        "Mean distribution of the standardised log-intensity (shaded: 16–84 % of the patches). A "
        "log-normal field would be a parabola here. Look at the tails.",
    ),
    "moments": (
        "Skewness and kurtosis, scale by scale",
        "Of each patch after a band-pass: median and 16–84 % of the patches; grey: other real "
        "regions. 0 is Gaussian. Kurtosis at small scales is what data have and Gaussian-based "
        "skies lack: a good set lies with the held-out and grey points, at all scales.",
    ),
    "minkowski": (
        "Minkowski functionals",
        "Area (V₀), boundary length (V₁) and Euler characteristic (V₂) of what lies above a "
        "threshold in the high-passed patch, which is standardised. Shaded: ±1σ of the patches. "
        "V₀ is shown less that of a Gaussian field. "
        "They measure shapes: filaments have more boundary for their area than blobs. The table "
        "gives the overlap of the ±1σ bands, and that overlap over a real region's.",
    ),
    "scattering": (
        "Scattering coefficients",
        "Wavelet moments of second order, each as an offset from the held-out mean in units of "
        "its patch-to-patch scatter. Amplitude and anisotropy of each octave; how clustered the "
        "structures of one octave are on the scale of another; and whether they are straight "
        "rather than round. Look for dots outside the range of the grey bars.",
    ),
    "two_sample": (
        "Two-sample test",
        "A small convolutional network is trained to tell one half of a set from real sky (one "
        "half of the held-out region, and the other real regions), and scored on the other halves "
        "of both, whose sky it never saw; then the other way round. AUC ½: it cannot tell them "
        "apart; 1: it always can. Each real region takes its turn as the set (grey; dashed: their "
        "median, dotted: 0.05 above it), and other sets show the network as few patches as they "
        "do. Below ½ what it learned of one half does not hold in the other: chance, with so few "
        "independent patches. Error bars take patches as independent; overlapping ones are not.",
    ),
    "reconstructions": (
        "Reconstructions",
        "Held-out patches, encoded and decoded (posterior mean), and the difference at five times "
        "the contrast. Below: the spectrum of the reconstruction over that of its patch (median "
        "and 16–84 % of the patches). 1: nothing is lost.",
    ),
    "conditioning": (
        "Small scales that belong to their large scales",
        "Left: correlation, by multipole, of samples with the held-out patch whose coarse map "
        "they were given, and of two samples with each other. It should be above 0.95 (line) well "
        "below the split and fall to 0 above it, where the samples must vary. Middle and right: "
        "rms and kurtosis of the small scales where the coarse map is faint or bright (median and "
        "16–84 % of the patches). The samples should follow the sky.",
    ),
}


def write_page(evaluations: Mapping[str, Evaluation], pooled: dict[str, Any], path: Path) -> None:
    """Write the page of one or more evaluations.

    Parameters
    ----------
    evaluations : mapping of str to Evaluation
        By the name of the fold.
    pooled : dict
        As `report.pool` makes it of them.
    path : pathlib.Path
        The page.
    """
    names = dict.fromkeys(each.name for each in evaluations.values())
    title = f"{', '.join(names)} beside real dust"
    parts = [f"<h1>{escape(title)}</h1>", _READING]
    folds = [(name, e, c) for name, e in evaluations.items() for c in e.comparisons]
    if len(folds) > 1:
        parts.append(_pooled(pooled, [name for name, _, _ in folds]))
    for number, (name, evaluation, comparison) in enumerate(folds):
        parts.append(_comparison(f"f{number}", name, evaluation, comparison))
    page = _PAGE.substitute(title=escape(title), body="\n".join(parts))
    with atomic_write(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _pooled(pooled: dict[str, Any], names: Sequence[str]) -> str:
    """All folds together: a table, and figures."""
    folds, labels = pooled["folds"], pooled["labels"]
    headings = [
        f"{name}: {', '.join(fold['regions'])}" for name, fold in zip(names, folds, strict=True)
    ]
    rows: list[tuple[str, ...]] = []

    def add(title: str, table: Mapping[str, Any]) -> None:
        rows.append((title,))
        for candidate, measures in table.items():
            label = labels.get(candidate, "other real sky")
            for key, entry in measures.items():
                cells = [_number(v) for v in (entry["median"], *entry["folds"])]
                rows.append((f"{label}: {key}", *cells))

    add("distance over the median real region's", pooled["yardsticks"])
    add(
        "overlap of Minkowski bands over the median real region's",
        pooled["minkowski_overlap_over_real"],
    )
    if pooled["two_sample"]:
        add("two-sample test: AUC, and how far it is above real sky's", pooled["two_sample"])
    unit = "ℓ" if pooled["ell"] else "cycles per patch"
    bins = pooled["ell"] or pooled["cycles_per_patch"]
    for title, table in (
        ("samples' median spectrum over the data's", pooled["spectrum_ratio"].get("samples")),
        ("samples' spread of ln C_ℓ over the data's", pooled["spread_ratio"].get("samples")),
        ("spectrum of reconstructions over their originals'", pooled["reconstruction_ratio"]),
        ("correlation of conditional samples with their patch", pooled["correlation"]),
    ):
        if table is None:
            continue
        rows.append((f"{title} (first column: all patches together)",))
        for i, x in enumerate(bins):
            values = [None if fold is None else fold[i] for fold in table["folds"]]
            label = f"{unit} = {x:.0f}" if pooled["ell"] else f"{x:.1f} {unit}"
            rows.append((label, *(_number(v) for v in (table["pooled"][i], *values))))

    figure = panels.new_figure(13, 4.6)
    panels.draw_folds(figure.subplots(), pooled["yardsticks"], labels)
    curves = panels.new_figure(13, 4.4)
    for axes, quantity in zip(
        curves.subplots(1, 2), ("spectrum_ratio", "spread_ratio"), strict=True
    ):
        panels.draw_pooled(axes, pooled, quantity)
    return "\n".join(
        [
            "<h2>All folds</h2>",
            "<p>Each held-out part of a map is a fold: another region of sky, held out in turn."
            "</p>",
            _figure(
                "Yardsticks",
                "Each dot is a fold, each bar the median over folds. 1: as far from the held-out "
                "sky as another real region. Shaded: up to 1.1.",
                figure,
            ),
            _figure(
                "Spectra of all folds",
                "Left: median spectrum over the data's, right: its 16–84 % spread over the data's. "
                "Thick: the patches of all folds together, each fold with the same weight; thin: "
                "prior samples over single folds. Shaded: ±10 % and ±30 %.",
                curves,
            ),
            _table(("", "median", *headings), rows, ours=1),
        ]
    )


def _comparison(anchor: str, name: str, evaluation: Evaluation, comparison: Comparison) -> str:
    title = f"{name}: {comparison.title()}"
    facts = (
        f"Weights <code>{escape(evaluation.name)}</code> (SHA-256 "
        f"<code>{evaluation.sha256[:16]}…</code>), {evaluation.n} prior samples, seed "
        f"{evaluation.seed}. Centres of real patches are {evaluation.spacing:g} of a side apart"
        + (", so that neighbours overlap and are not independent" if evaluation.spacing < 1 else "")
        + f". Other real regions: {escape(', '.join(comparison.real))}."
    )
    parts = [f'<h2 id="{anchor}">{escape(title)}</h2>', f"<p>{facts}</p>"]
    parts += [f'<p class="note">{escape(note)}</p>' for note in evaluation.notes]
    labels = comparison.labels
    rows: list[tuple[str, ...]] = []
    for section in comparison.sections():
        rows.append((section.title,))
        for row in section.rows:
            cells = (row.candidates.get(candidate, "–") for candidate in labels)
            rows.append((row.label, row.held_out, row.real, *cells))
    parts.append(
        _table(("", "held-out sky", "other real sky (range)", *labels.values()), rows, ours=3)
    )
    for key, draw in _drawings(comparison).items():
        heading, text = _FIGURES[key]
        parts.append(_figure(heading, text, draw()))
    return "\n".join(parts)


def _drawings(comparison: Comparison) -> dict[str, Callable[[], Figure]]:
    """What can be drawn of a comparison; keys as in `_FIGURES`."""
    found: dict[str, Callable[[], Figure]] = {
        "patches": lambda: _patches(comparison),
        "spectra": lambda: _row(
            comparison, (panels.draw_spectra, panels.draw_spread), widths=(1.4, 1)
        ),
        "histogram": lambda: _row(comparison, (panels.draw_histogram,), width=8),
        "moments": lambda: _row(
            comparison,
            [
                lambda axes, c, s=s: panels.draw_moments(axes, c, s)
                for s in ("kurtosis", "skewness")
            ],
            legend="lower right",
        ),
        "minkowski": lambda: _row(
            comparison,
            [lambda axes, c, i=i: panels.draw_minkowski(axes, c, i) for i in range(3)],
            legend="lower left",
        ),
        "scattering": lambda: _row(comparison, (panels.draw_scattering,)),
    }
    if comparison.two_sample:
        found["two_sample"] = lambda: _row(comparison, (panels.draw_roc, panels.draw_auc))
    if "reconstructions" in comparison.candidates:
        found["reconstructions"] = lambda: _reconstructions(comparison)
    if comparison.conditioning is not None:
        found["conditioning"] = lambda: _row(
            comparison,
            [
                panels.draw_correlation,
                *(
                    lambda axes, c, s=s: panels.draw_brightness(axes, c, s)
                    for s in ("rms", "kurtosis")
                ),
            ],
            widths=(1.4, 1, 1),
        )
    return found


def _row(
    comparison: Comparison,
    draws: Sequence[Callable[..., None]],
    *,
    width: float = 13,
    widths: Sequence[float] | None = None,
    legend: str | None = None,
) -> Figure:
    figure = panels.new_figure(width, 4.4)
    axes = figure.subplots(1, len(draws), squeeze=False, width_ratios=widths)[0]
    for each, draw in zip(axes, draws, strict=True):
        draw(each, comparison)
    if legend is not None:
        axes[0].legend(fontsize=7.5, loc=legend)
    return figure


def _patches(comparison: Comparison) -> Figure:
    figure = panels.new_figure(13, 1.6 * (1 + len(comparison.candidates)))
    panels.draw_patches(figure, comparison)
    return figure


def _reconstructions(comparison: Comparison) -> Figure:
    figure = panels.new_figure(13, 9.2)
    (top,), (bottom,) = figure.subfigures(2, 1, squeeze=False, height_ratios=[4.9, 4.3])
    panels.draw_reconstructions(top, comparison)
    panels.draw_reconstruction_ratio(bottom.subplots(), comparison)
    return figure


def _figure(heading: str, text: str, figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=100, format="png")
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return (
        f"<figure><h3>{escape(heading)}</h3><figcaption>{escape(text)}</figcaption>"
        f'<img alt="{escape(heading)}" src="data:image/png;base64,{data}"></figure>'
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, ours: int) -> str:
    """A table; a row of one cell is a section. The column ``ours`` stands out."""

    def line(tag: str, cells: Sequence[str]) -> str:
        marks = (' class="ours"' if i == ours else "" for i in range(len(cells)))
        inner = (f"<{tag}{m}>{escape(c)}</{tag}>" for m, c in zip(marks, cells, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    body = [
        f'<tr class="section"><td colspan="{len(headings)}">{escape(row[0])}</td></tr>'
        if len(row) == 1
        else line("td", row)
        for row in rows
    ]
    return (
        '<div class="wide"><table>\n'
        + "\n".join([line("th", headings), *body])
        + "\n</table></div>"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
