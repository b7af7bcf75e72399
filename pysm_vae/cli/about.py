"""Subcommands that tell what there is."""

from __future__ import annotations

import os
from importlib.metadata import version

import typer

from pysm_vae.cli.app import Debug, app, reported


@app.command()
def info(debug: Debug = False) -> None:
    """Show versions, shipped weights, presets, and where things are."""
    with reported(debug):
        typer.echo(describe_installation())


def describe_installation() -> str:
    """Versions, shipped weights, presets and data sets, as lines of text."""
    from pysm_vae.files import data_path
    from pysm_vae.registration import presets
    from pysm_vae.vae.download import DATASETS
    from pysm_vae.vae.generator import SHIPPED_WEIGHTS, load_generator

    packages = ("pysm_vae", "pysm3", "healpy", "numpy", "keras", "tensorflow")
    lines = ["versions: " + ", ".join(f"{p} {version(p)}" for p in packages)]
    lines.append(f"shipped data: {data_path('template.npz').parent}")
    lines.append(f"PYSM_LOCAL_DATA: {os.environ.get('PYSM_LOCAL_DATA', 'not set')}")
    lines.append("weights:")
    for name in SHIPPED_WEIGHTS:
        try:
            card = load_generator(name).card
        except FileNotFoundError:
            lines.append(f"  {name}: not in this installation")
            continue
        lines.append(
            f"  {name}: patches of {card['size']} pixels of {card['pixel_size_arcmin']:g} arcmin, "
            f"sha256 {card['sha256'][:12]}"
        )
        if "maps" in card:
            trained = ", ".join(dict.fromkeys(each["name"] for each in card["maps"]))
            epochs = len(card["history"].get("loss", ()))
            lines.append(
                f"    trained on {trained}; {card['training_patches']} patches, {epochs} epochs, "
                f"seed {card['seed']}"
            )
    lines.append("presets:")
    for name, preset in presets().items():
        settings = ", ".join(f"{k} = {v!r}" for k, v in preset.items() if k != "class")
        lines.append(f"  {name}: {settings}")
    lines.append("maps to train on (pysm-vae download NAME):")
    lines += [f"  {name}: {dataset.description}" for name, dataset in DATASETS.items()]
    return "\n".join(lines)
