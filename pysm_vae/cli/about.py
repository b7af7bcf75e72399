"""Subcommands that tell what there is."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from pysm_vae.cli.app import Debug, app, reported

# Packages that decide what comes out.
_PACKAGES = ("pysm_vae", "pysm3", "healpy", "ducc0", "numpy", "numba", "keras", "tensorflow")


@app.command()
def info(
    file: Annotated[
        Path | None, typer.Argument(help="A map of 'pysm-vae simulate': check it, and say of what.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Show versions, shipped weights, presets, and where things are; or what a map is.

    `pysm-vae info`

    `pysm-vae info maps/vae0_353GHz_nside128_seed7.fits`
    """
    with reported(debug):
        typer.echo(describe_installation() if file is None else describe_map(file))


def describe_installation() -> str:
    """Versions, shipped weights, presets and data sets, as lines of text."""
    from astropy.config.paths import get_cache_dir

    from pysm_vae.files import data_path
    from pysm_vae.kept import kept_folder
    from pysm_vae.registration import presets
    from pysm_vae.threads import cores
    from pysm_vae.vae.download import DATASETS
    from pysm_vae.vae.generator import DEFAULT_WEIGHTS, SHIPPED_WEIGHTS, load_generator

    lines = ["versions: " + ", ".join(f"{p} {version(p)}" for p in _PACKAGES)]
    lines.append(f"Python {platform.python_version()} on {platform.platform()}")
    limit = os.environ.get("OMP_NUM_THREADS", "not set")
    lines.append(f"cores: {len(cores())}; OMP_NUM_THREADS: {limit}")
    lines.append(f"package: {Path(__file__).resolve().parents[1]}")
    lines.append(f"shipped data: {data_path('template.npz').parent}")
    lines.append(f"PYSM_LOCAL_DATA: {os.environ.get('PYSM_LOCAL_DATA', 'not set')}")
    lines.append(f"what PySM downloads: {Path(get_cache_dir()) / 'download'}")
    lines.append(f"calibrations of skies: {kept_folder()}")
    lines.append("weights:")
    for name in SHIPPED_WEIGHTS:
        try:
            card = load_generator(name).card
        except FileNotFoundError:
            lines.append(f"  {name}: not in this installation")
            continue
        default = ", the default" if name == DEFAULT_WEIGHTS else ""
        lines.append(
            f"  {name}{default}: patches of {card['size']} pixels of "
            f"{card['pixel_size_arcmin']:g} arcmin, sha256 {card['sha256'][:12]}"
        )
        if "maps" in card:
            trained = ", ".join(dict.fromkeys(each["name"] for each in card["maps"]))
            epochs = len(card["history"].get("loss", ()))
            lines.append(
                f"    trained on {trained}; {card['training_patches']} patches, {epochs} epochs, "
                f"seed {card['seed']}"
            )
        lines.append(f"    card: {data_path(f'{name}.md')}")
    lines.append("presets:")
    for name, preset in presets().items():
        settings = ", ".join(f"{k} = {v!r}" for k, v in preset.items() if k != "class")
        lines.append(f"  {name}: {settings}")
    lines.append("maps to train on (pysm-vae download NAME):")
    lines += [f"  {name}: {dataset.description}" for name, dataset in DATASETS.items()]
    return "\n".join(lines)


def describe_map(path: Path) -> str:
    """What made a map, and how, as lines of text; the file is checked first.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, or not a map of this package.
    """
    from pysm_vae.mapfiles import verify_map

    if not path.is_file():
        raise FileNotFoundError(f"map {str(path)!r}: there is no such file; check the path")
    header = verify_map(path)
    if "RECIPE" not in header:
        raise ValueError(
            f"{str(path)!r} was not made by pysm-vae simulate: 'pysm-vae plot' shows any map"
        )
    part = f", the part {header['REGION']}" if "REGION" in header else ""
    lines = [
        f"{path}: whole, and as it was written",
        f"  {header['FREQ']:g} GHz ({header['BANDPASS']}), {header['TUNIT2']}, nside "
        f"{header['NSIDE']}{part}",
        f"  seed {header['SEED']}, preset {header['PRESET']}, template {header['TEMPLATE']}, "
        f"weights {header['WEIGHTS']} (sha256 {header['WSHA256'][:12]})",
        f"  beta {header['DUSTBETA']}, temperature {header['DUSTTEMP']} K, small scales to "
        f"l = {header['LMAX']}",
        f"  made by {header['CREATOR']}; recipe {header['RECIPE'][:12]}",
    ]
    return "\n".join(lines)
