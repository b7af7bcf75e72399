"""Subcommands that make skies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import toml
import typer

from pysm_vae.cli.app import Debug, app, progress_bars, reported, without_native_notes


@app.command()
def simulate(
    nside: Annotated[int, typer.Option(help="HEALPix resolution, a power of two.")],
    out: Annotated[Path, typer.Option(help="Folder to write to; made if need be.")],
    freq: Annotated[
        list[float] | None, typer.Option(help="Frequency in GHz. Repeat for more maps.")
    ] = None,
    band: Annotated[
        list[str] | None,
        typer.Option(metavar="LOW:HIGH", help="Top-hat bandpass in GHz. Repeat for more."),
    ] = None,
    bandpass: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text file of a bandpass: GHz and weight (power, Jy/sr) in two columns, # for "
            "comments. Repeat for more."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which sky.")] = 0,
    unit: Annotated[
        str, typer.Option(help="uK_CMB, uK_RJ, K_CMB, MJy/sr, or what else PySM converts to.")
    ] = "uK_CMB",
    preset: Annotated[
        str,
        typer.Option(
            help="vae0: offline; vae1: on PySM's d10 (fetched once by PySM); vae2, vae3: the same "
            "with small scales of beta and temperature; vae0i: intensity alone."
        ),
    ] = "vae0",
    template: Annotated[
        str | None,
        typer.Option(
            help="Large scales, in place of the preset's: embedded, a PySM dust preset such as "
            "d10, or a FITS file of I, Q, U."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Network, in place of the preset's: octave, thorne2021, or the .json card of "
            "your own training."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other argument of VAEDust, as TOML writes it: --set beta=1.55 "
            "--set 'slopes=[-0.8, -0.42, -0.54]'. Repeat for more.",
        ),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            metavar="LON,LAT,RADIUS|FILE",
            help="Only a part of the sky: a disc in Galactic degrees, or a FITS mask that is not "
            "0 there. Writes partial maps.",
        ),
    ] = None,
    figure: Annotated[bool, typer.Option(help="Also draw a picture.")] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there already.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Make maps of I, Q and U, and a picture of them.

    One HEALPix FITS file (RING, Galactic, COSMO convention) a channel, that
    `healpy.read_map(file, field=(0, 1, 2))` reads. The seed, the weights' hash and the versions are
    in its header. The same seed gives the same sky at every nside, frequency and unit.

    Three frequencies; then a top-hat band and one from a table:

    `pysm-vae simulate --nside 128 --freq 95 --freq 150 --freq 353 --seed 7 --out maps`

    `pysm-vae simulate --nside 512 --band 140:160 --bandpass detector.txt --unit K_CMB --out maps`

    Part of the sky; then all of it, shared by four processes (needs `pysm_vae[mpi]`):

    `pysm-vae simulate --nside 2048 --freq 353 --region 110,-38,10 --out maps`

    `mpiexec -n 4 pysm-vae simulate --nside 2048 --freq 353 --out maps`
    """
    with reported(debug):
        from pysm_vae.channels import Channel
        from pysm_vae.mpi import agreed, share_cores, world
        from pysm_vae.simulate import simulate as make_maps

        ranks = world()
        with agreed(ranks):
            channels = [Channel.at(f) for f in freq or ()]
            channels += [Channel.top_hat(*parse_band(text)) for text in band or ()]
            channels += [Channel.from_file(path) for path in bandpass or ()]
            if not channels:
                raise ValueError("nothing to map: give --freq, --band or --bandpass at least once")
        if ranks is not None:
            share_cores(ranks)
        first = ranks is None or ranks.rank == 0
        labels = {"charts": "drawing the sky", "channels": "writing maps"} if first else {}
        with without_native_notes(debug), progress_bars(labels) as progress:
            files = make_maps(
                out,
                nside=nside,
                channels=channels,
                preset=preset,
                template=template,
                weights=weights,
                settings=parse_settings(settings or ()),
                seed=seed,
                unit=unit,
                region=region,
                figure=figure,
                overwrite=overwrite,
                progress=progress,
                mpi_comm=ranks,
            )
        for file in files if first else ():
            typer.echo(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Names and values from ``NAME=VALUE``; what is no TOML value is taken as a string."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.strip().isidentifier() and value.strip()):
            raise ValueError(f"--set {text!r} is not NAME=VALUE, such as beta=1.55")
        try:
            found[name.strip()] = toml.loads(f"value = {value}")["value"]
        except toml.TomlDecodeError:
            found[name.strip()] = value.strip()
    return found


def parse_band(text: str) -> tuple[float, float]:
    """Edges of a top-hat, GHz, from ``LOW:HIGH``."""
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError as error:
        raise ValueError(f"band {text!r} is not LOW:HIGH in GHz, such as 140:160") from error
    return low, high
