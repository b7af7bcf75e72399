"""The readable page of a model card: the JSON's facts, for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pysm_vae.files import atomic_write

if TYPE_CHECKING:
    from pysm_vae.stats.report import Evaluation

ORIGINS = {
    "planck_ebv_nside256.fits": (
        "Planck 2013 (R1.20) thermal-dust E(B−V), full sky; from github.com/willclarkson/"
        "rubinCadenceScratchWIC (dd84e52, MIT)"
    ),
    "planck_taurus_lognh.fits": (
        "Planck column density of Taurus, log10 N_H; from github.com/solerjuan/magnetar "
        "(8a90a93, BSD-style)"
    ),
    "planck_chamaeleon.fits": (
        "Planck dust intensity, Chamaeleon; from github.com/constantauclair/CompSepDustCMB "
        "(b4cc6d2, no licence stated)"
    ),
    "COM_CompMap_Dust-GNILC-F545_2048_R2.00.fits": (
        "Planck GNILC dust at 545 GHz (Planck Collaboration 2016, A&A 596, A109); from the Planck "
        "Legacy Archive"
    ),
}
"""Where the maps come from that the shipped weights, or the paper's, were trained on, by file."""

_ABOUT = {
    "octave": (
        "A ladder of conditional variational autoencoders, one step an octave: each step draws the "
        "details of one octave given everything coarser. It is fully convolutional, so that the "
        "patch size is free, and the coarse map may be given."
    ),
    "thorne2021": (
        "The network of Thorne, Knox & Prabhu (2021, MNRAS 504, 2603), one latent vector a patch: "
        "the baseline of every table. It blurs."
    ),
}

_LIMITS = {
    "octave": (
        "Of the shipped weights: a classifier tells samples of some octants of diffuse sky from "
        "the sky more often than it should (see their folds' AUCs). Log energies of the coarsest "
        "octaves go together less than in the sky, and the second coarsest is too intermittent.",
        "Clouds were seen at 3.75′ and 5′ a pixel, diffuse sky at 15′ only: finer structure of the "
        "diffuse sky is a continuation of what it has at larger scales.",
        "Beyond the beam of its maps (about two pixels) the network continues what it learned on "
        "larger scales; no map has tested it there.",
        "The coarsest map of an unconditional patch is a Gaussian field with the measured "
        "variogram: non-Gaussianity on scales above a quarter of a training patch is not learned.",
    ),
    "thorne2021": (
        "One latent vector a patch cannot hold its small scales, and prior and posterior of the "
        "latents differ: samples are smooth blobs, with too much power at intermediate scales and "
        "too little at the largest and the smallest.",
    ),
}

_NAMES = {
    "samples": "prior samples",
    "conditional": "conditional samples",
    "modulated_gaussian": "modulated Gaussian",
}


def write_readable_card(card: dict[str, Any], path: str | Path) -> None:
    """Write the Markdown page of a model card.

    Parameters
    ----------
    card : dict
        As training leaves it; with the figures of `pysm_vae.stats.report.figures_for_card` under
        ``"held_out"``, these are printed too.
    path : path-like
        The page.

    Raises
    ------
    ValueError
        If the card is not one that training has finished.
    """
    try:
        text = _page(card)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"the card has no {error}: it is not one that a finished training left"
        ) from error
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def add_held_out(path: Path, evaluation: Evaluation) -> Path:
    """Write an evaluation's figures on a card, and the card's readable page beside it.

    Parameters
    ----------
    path : pathlib.Path
        The card (``.json``).
    evaluation : Evaluation
        Of the card's weights, on sky that they never saw.

    Returns
    -------
    pathlib.Path
        The page (``.md``).
    """
    from pysm_vae.stats.report import figures_for_card

    return _add(path, "held_out", figures_for_card(evaluation))


def add_folds(path: Path, evaluations: Sequence[Evaluation]) -> Path:
    """Write the figures of folds on the card of weights that were trained on all of the sky.

    Parameters
    ----------
    path : pathlib.Path
        The card (``.json``).
    evaluations : sequence of Evaluation
        Of networks trained alike on all sky but a fold's, on the sky of that fold.

    Returns
    -------
    pathlib.Path
        The page (``.md``).
    """
    from pysm_vae.stats.report import pool

    return _add(path, "folds", pool(evaluations))


def _add(path: Path, key: str, figures: dict[str, Any]) -> Path:
    card = json.loads(path.read_text())
    card[key] = figures
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(card, indent=1) + "\n")
    page = path.with_suffix(".md")
    write_readable_card(card, page)
    return page


def _page(card: dict[str, Any]) -> str:
    architecture, config, split = card["architecture"], card["config"], card["split"]
    origins = {m["file"]: ORIGINS.get(m["file"]) for m in card["maps"]}
    parts = [
        f"# `{card['name']}`: model card\n",
        f"{_ABOUT[architecture]}\n",
        f"Patches of {card['size']} × {card['size']} pixels of natural-log dust intensity, each "
        "with zero mean and unit variance; finest training pixel "
        f"{card['pixel_size_arcmin']:g}′. Weights: `{card['weights']}`, SHA-256 "
        f"`{card['sha256']}`.\n",
        "## Maps\n",
        _table(
            ("map", "file", "SHA-256", "smoothed by (FWHM)", "pixel", "environment"),
            [
                (
                    m["name"],
                    f"`{m['file']}`",
                    f"`{m['sha256'][:16]}…`",
                    "–" if m["smoothing_arcmin"] is None else f"{m['smoothing_arcmin']:g}′",
                    f"{m['pixel_size_arcmin']:g}′",
                    f"{m['environment']:g}",
                )
                for m in card["maps"]
            ],
        ),
        "Environment 0 is diffuse sky, 1 molecular clouds.\n",
        "Origin and licence of the data, which are not part of this package:\n",
        "\n".join(
            f"- `{file}`: {origin or 'not recorded; ask whoever trained these weights'}"
            for file, origin in origins.items()
        )
        + "\n",
        "The Planck data are the work of the Planck Collaboration (ESA); cite it.\n",
        "## Sky split\n",
        "By region, so that no sky is shared; the test regions were not seen.\n",
        _table(
            ("part", "regions"),
            [(part, ", ".join(names) or "none") for part, names in split.items()],
        ),
        f"{card['training_patches']} augmented training patches (flips, any rotation, zoom up to "
        f"{config['zoom']:g}), {card['validation_patches']} validation patches.\n",
        *_transfer(card["transfer"]),
        "## Training\n",
        _table(
            ("setting", "value"),
            [(k, f"{v}") for k, v in {**config, "network": card["network"]}.items()],
        ),
        _history(card["history"], card["epoch"]),
        *(f"{remark}\n" for remark in card.get("remarks", ())),
        "Versions: " + ", ".join(f"{k} {v}" for k, v in card["versions"].items()) + ".\n",
    ]
    if "held_out" in card:
        parts.append(_held_out(card["held_out"]))
    if "folds" in card:
        parts.append(_folds(card["folds"]))
    limits = (
        "The maps show a few fields of sky (see above); where the sky differs from them, as "
        "diffuse cirrus does from molecular clouds, samples look like the maps.",
        "Intensity only: no polarisation was learned.",
        *_LIMITS[architecture],
    )
    parts += [
        "## Where it should not be trusted\n",
        "\n".join(f"- {limit}" for limit in limits) + "\n",
    ]
    return "\n".join(parts)


def _transfer(transfer: list[dict[str, Any]]) -> list[str]:
    """Table of the filters that samples are calibrated with, at an octave's spacing."""
    if not transfer:
        return []
    numbers = [2**i for i in range(len(transfer[0]["power"]).bit_length())]
    rows = [
        (f"{each['environment']:g}", *(f"{each['power'][k - 1]:.3g}" for k in numbers))
        for each in transfer
    ]
    return [
        "Transfer: the power by which `sample` multiplies the spectrum of unconditional samples to "
        "bring its mean to the training patches', at so many cycles a patch:\n",
        _table(("environment", *(f"{k}" for k in numbers)), rows),
    ]


def _history(history: dict[str, list[float]], epoch: int) -> str:
    """Table of the first epoch, the one whose weights were kept (counted from 1), and the last."""
    columns = [name for name in history if name != "epoch"]
    epochs = {"first": 0, "kept": epoch - 1, "last": len(history["epoch"]) - 1}
    rows = [(name, *(f"{history[name][i]:.4g}" for i in epochs.values())) for name in columns]
    headings = [f"{label} (epoch {i + 1})" for label, i in epochs.items()]
    note = "Nats a pixel.\n"
    return _table(("", *headings), rows) + "\n" + note


def _held_out(figures: dict[str, Any]) -> str:
    """Print the held-out figures with their controls."""
    names = list(figures["yardsticks"])
    labels = [_NAMES.get(name, name) for name in names]
    overlaps, kurtosis = figures["minkowski_overlap"], figures["kurtosis"]
    curves = {"median spectrum of prior samples": figures["spectrum_ratio"]["samples"]}
    # Cards of earlier evaluations lack these.
    if "spread_ratio" in figures:
        curves["spread of prior samples"] = figures["spread_ratio"]["samples"]
    if "reconstruction_ratio" in figures:
        curves["reconstructions"] = figures["reconstruction_ratio"]
    ratios = [(label, *(f"{value:g}" for value in curve)) for label, curve in curves.items()]
    waves = [f"{high:g} to {low:g}" for low, high in figures["wavelengths_pixels"]]
    parts = [
        "## Held-out sky\n",
        f"Prior samples and controls beside {figures['patches']} patches of {figures['size']} "
        f"pixels of {', '.join(figures['regions'])}. A yardstick is the distance from these "
        "patches over that of another real region (the median one of "
        f"{', '.join(figures['real_regions'])}): real against real is 1.\n",
        _table(
            ("yardstick", "real regions", *labels),
            [
                (key, "1", *(f"{figures['yardsticks'][name][key]:g}" for name in names))
                for key in figures["yardsticks"][names[0]]
            ],
        ),
        "The kurtosis yardstick compares inverse hyperbolic sines. The medians themselves, of the "
        "excess kurtosis in bands of wavelength:\n",
        _table(
            ("wavelength (pixels)", "held-out sky", *labels),
            [
                (wave, *(f"{kurtosis[name][i]:g}" for name in ("held_out", *names)))
                for i, wave in enumerate(waves)
            ],
        ),
        "Overlap of the ±1σ bands of the Minkowski functionals with the held-out ones:\n",
        _table(
            ("functional", "real regions", "prior samples"),
            [
                (key, f"{overlaps['real'][key]:g}", f"{overlaps['samples'][key]:g}")
                for key in overlaps["real"]
            ],
        ),
        "Spectra over those of the held-out patches (of reconstructions: over their originals'). "
        "The spread is the distance from the 16th to the 84th percentile of ln C_ℓ:\n",
        _table(("cycles per patch", *(f"{k:g}" for k in figures["cycles_per_patch"])), ratios),
    ]
    if "two_sample" in figures:
        aucs = figures["two_sample"]
        parts += [
            "Two-sample test: area under the ROC curve (AUC) of a small network that was trained "
            "to tell each set from the held-out region on one half of it, and scored on the other. "
            "½: it cannot; 1: it always can:\n",
            _table(
                ("", "real regions", *labels),
                [("AUC", *(f"{aucs[name]:g}" for name in ("real", *names)))],
            ),
        ]
    return "\n".join(parts)


def _folds(pooled: dict[str, Any]) -> str:
    """Print the pooled figures of the folds: the samples' in each fold, and medians of controls."""
    folds = pooled["folds"]
    shown = [name for name in pooled["yardsticks"] if name != "reconstructions"]
    controls = [name for name in shown if name != "samples"]

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    def row(label: str, measures: dict[str, dict[str, Any]]) -> tuple[str, ...]:
        ours = measures["samples"]
        medians = (measures[name]["median"] for name in ("samples", *controls) if name in measures)
        return (label, *map(number, (*ours["folds"], *medians)))

    headings = (
        "",
        *(str(i + 1) for i in range(len(folds))),
        "median",
        *(f"{_NAMES.get(name, name)}, median" for name in controls),
    )
    measures = pooled["yardsticks"]["samples"]
    rows = [
        row(f"yardstick: {key}", {name: pooled["yardsticks"][name][key] for name in shown})
        for key in measures
        if key != "two_sample"
    ]
    rows += [
        row(
            f"overlap over real: {key}",
            {name: pooled["minkowski_overlap_over_real"][name][key] for name in shown},
        )
        for key in pooled["minkowski_overlap_over_real"]["samples"]
    ]
    tested = pooled["two_sample"]
    if tested:
        known = {name: tested[name]["auc"] for name in shown if name in tested}
        rows.append(row("AUC", known))
        above = {name: tested[name]["over_real"] for name in known}
        rows.append(row("AUC less that of a real region", above))
    curves = [
        ("median spectrum", pooled["spectrum_ratio"]["samples"]["pooled"]),
        ("16–84 % spread", pooled["spread_ratio"]["samples"]["pooled"]),
    ]
    if pooled["reconstruction_ratio"]:
        curves.append(("reconstructions", pooled["reconstruction_ratio"]["pooled"]))
    if pooled["correlation"]:
        curves.append(("correlation given large scales", pooled["correlation"]["pooled"]))
    listed = [
        f"{i + 1}. {', '.join(fold['regions'])}: {fold['patches']} patches of pixels of "
        f"{fold['pixel_size_arcmin']:g}′"
        for i, fold in enumerate(folds)
    ]
    return "\n".join(
        [
            "## Folds\n",
            "These weights have seen all of the sky. Networks trained alike on all of it but a "
            "fold were compared with sky of that fold:\n",
            "\n".join(listed) + "\n",
            "A yardstick is the distance of samples from the held-out patches over that of the "
            "median real region: 1 means as much like this sky as another region of sky is. The "
            "overlap of the Minkowski functionals' ±1σ bands is over that of the real regions, "
            "too. AUC: area under the ROC curve of a classifier trained to tell a set from real "
            "sky.\n",
            _table(headings, rows),
            "All folds together, each with the same weight; prior samples over held-out patches "
            "(reconstructions: over their originals):\n",
            _table(
                ("cycles per patch", *(f"{k:.3g}" for k in pooled["cycles_per_patch"])),
                [(label, *map(number, curve)) for label, curve in curves],
            ),
        ]
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
