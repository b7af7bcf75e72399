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
        "Samples are grainier than the sky and have fewer long filaments: in scattering "
        "coefficients they are hardly nearer to the sky than the modulated Gaussian (see the "
        "yardsticks). They were learned from clouds and high latitudes together, and are too "
        "intermittent for the latter.",
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

    card = json.loads(path.read_text())
    card["held_out"] = figures_for_card(evaluation)
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
            ("map", "file", "SHA-256", "smoothed by (FWHM)", "pixel"),
            [
                (
                    m["name"],
                    f"`{m['file']}`",
                    f"`{m['sha256'][:16]}…`",
                    "–" if m["smoothing_arcmin"] is None else f"{m['smoothing_arcmin']:g}′",
                    f"{m['pixel_size_arcmin']:g}′",
                )
                for m in card["maps"]
            ],
        ),
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
    ratios = figures["spectrum_ratio"]["samples"]
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
        "Median spectrum of prior samples over that of the held-out patches:\n",
        _table(
            ("cycles per patch", *(f"{k:g}" for k in figures["cycles_per_patch"])),
            [("ratio", *(f"{ratio:g}" for ratio in ratios))],
        ),
    ]
    return "\n".join(parts)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
