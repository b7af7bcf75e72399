"""Subcommands that make skies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import toml
import typer

from pysm_vae.cli.app import (
    Debug,
    Overwrite,
    app,
    check_new,
    complete_preset,
    complete_template,
    complete_unit,
    complete_weights,
    progress_bars,
    reported,
    without_native_notes,
)


@app.command()
def simulate(
    nside: Annotated[int, typer.Option(help="HEALPix resolution, a power of two.")],
    out: Annotated[Path, typer.Option(help="Folder to write to; made if need be.")],
    freq: Annotated[
        list[str] | None,
        typer.Option(metavar="GHZ", help="Frequency in GHz. Repeat for more maps."),
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
    seed: Annotated[int | None, typer.Option(min=0, help="Which sky [0].")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="START:STOP",
            help="Many skies, without STOP; or numbers: 3,7,20:30. Those that are there, complete, "
            "are kept.",
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="K/N", help="Of --seeds only the K-th of N parts [a SLURM array task's own]."
        ),
    ] = None,
    unit: Annotated[
        str,
        typer.Option(
            help="uK_CMB, uK_RJ, K_CMB, MJy/sr, or what else PySM converts to.",
            autocompletion=complete_unit,
        ),
    ] = "uK_CMB",
    preset: Annotated[
        str,
        typer.Option(
            help="vae0: offline; vae1: on PySM's d10 (fetched once by PySM); vae2, vae3: the same "
            "with small scales of beta and temperature; vae0i: intensity alone.",
            autocompletion=complete_preset,
        ),
    ] = "vae0",
    template: Annotated[
        str | None,
        typer.Option(
            help="Large scales, in place of the preset's: embedded, a PySM dust preset such as "
            "d10, or a FITS file of I, Q, U.",
            autocompletion=complete_template,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Network, in place of the preset's: octave, thorne2021, or the .json card of "
            "your own training.",
            autocompletion=complete_weights,
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
    figure: Annotated[
        bool | None, typer.Option(help="Also draw a picture [yes; with --seeds: no].")
    ] = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only check everything, and estimate time, memory and disk space."
        ),
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

    A hundred skies, on one machine or shared by the tasks of a SLURM job array or by MPI ranks.
    After a kill the same command makes what is missing:

    `pysm-vae simulate --nside 256 --freq 353 --seeds 0:100 --out maps`

    What would that take?

    `pysm-vae simulate --nside 256 --freq 353 --seeds 0:100 --out maps --dry-run`
    """
    with reported(debug):
        from rich.filesize import decimal

        from pysm_vae.channels import Channel
        from pysm_vae.ensemble import own_part, parse_seeds, simulate_many
        from pysm_vae.mpi import agreed, share_cores, world
        from pysm_vae.simulate import simulate as make_maps

        ranks = world()
        with agreed(ranks):
            channels = [Channel.at(parse_freq(text)) for text in freq or ()]
            channels += [Channel.top_hat(*parse_band(text)) for text in band or ()]
            channels += [Channel.from_file(path) for path in bandpass or ()]
            if not channels:
                raise ValueError("nothing to map: give --freq, --band or --bandpass at least once")
            if seeds is None and part is not None:
                raise ValueError("--part is for --seeds: give these, too")
            if seeds is not None and seed is not None:
                raise ValueError("give --seed or --seeds, not both")
            given = parse_settings(settings or ())
            many = None if seeds is None else parse_seeds(seeds)
            share = None if many is None else own_part(part, ranks)
        if ranks is not None:
            share_cores(ranks)
        options: dict[str, Any] = {
            "nside": nside,
            "channels": channels,
            "preset": preset,
            "template": template,
            "weights": weights,
            "settings": given,
            "unit": unit,
            "region": region,
        }
        first = ranks is None or ranks.rank == 0
        if dry_run:
            from pysm_vae.estimate import estimate

            if ranks is not None:
                raise ValueError("--dry-run is for one process: leave mpiexec out")
            with without_native_notes(debug):
                found = estimate(
                    out,
                    seeds=[seed or 0] if many is None else many[share.number :: share.count],
                    figure=many is None if figure is None else figure,
                    **options,
                )
            typer.echo(found.text())
            return
        labels = {"charts": "drawing the sky", "channels": "writing maps"}
        if many is not None:
            with (
                without_native_notes(debug),
                progress_bars({"skies": "skies", **labels} if first else {}) as progress,
            ):
                done = simulate_many(
                    out,
                    seeds=many,
                    figure=bool(figure),
                    overwrite=overwrite,
                    part=share,
                    progress=progress,
                    **options,
                )
            typer.echo(
                f"{len(done.made)} of {len(done.made) + len(done.kept)} skies made in {out}, "
                f"{len(done.kept)} were there"
            )
            return
        with without_native_notes(debug), progress_bars(labels if first else {}) as progress:
            files = make_maps(
                out,
                seed=seed or 0,
                figure=figure is not False,
                overwrite=overwrite,
                progress=progress,
                mpi_comm=ranks,
                **options,
            )
        for file in files if first else ():
            typer.echo(f"{file} ({decimal(file.stat().st_size)})")


@app.command()
def plot(
    file: Annotated[
        Path,
        typer.Argument(
            help="HEALPix FITS file of I, or of I, Q and U; or .npy, .npz: a patch or a posterior."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The picture [FILE with .png].")] = None,
    show: Annotated[
        str | None, typer.Option(metavar="IQUP", help="Some of I, Q, U and P [all that are there].")
    ] = None,
    zoom: Annotated[
        str | None,
        typer.Option(
            metavar="LON,LAT,SIDE",
            help="Field to enlarge, degrees [110,-38,20 of a full sky; none of a part].",
        ),
    ] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Draw a map: all of the sky, or the part that the file has, and a field enlarged.

    Any HEALPix map will do, in any ordering; a file that is damaged is not drawn. Of what `fit` and
    `impute` have written: the patch, or draws, their mean and their standard deviation.

    `pysm-vae plot maps/vae0_353GHz_nside128_seed7.fits`

    `pysm-vae plot map.fits --show IP --zoom 172.5,-14.5,16 --out taurus.png`
    """
    with reported(debug):
        from pysm_vae.figures import file_figure, patch_figure
        from pysm_vae.files import atomic_write, writable_folder
        from pysm_vae.mapfiles import read_healpix
        from pysm_vae.patchfiles import read_panels

        target = file.with_suffix(".png") if out is None else out
        if target.suffix.lower() not in (".png", ".pdf", ".svg"):
            raise ValueError(f"picture {str(target)!r}: give it the suffix .png, .pdf or .svg")
        check_new(target, overwrite)
        field = None if zoom is None else parse_zoom(zoom)
        if file.suffix in (".npy", ".npz"):
            if show is not None or field is not None:
                raise ValueError(f"{str(file)!r} is a patch: --show and --zoom are for maps")
            figure = patch_figure(read_panels(file), title=file.name)
        else:
            read = read_healpix(file, "map")
            shown = show or ("IQUP" if len(read.maps) == 3 else "I")
            figure = file_figure(
                read, shown=shown, zoom=field, title=f"{file.name}, nside {read.nside}"
            )
        writable_folder(target.parent)
        with atomic_write(target) as partial:
            figure.savefig(partial, format=target.suffix[1:].lower(), dpi=150)
        typer.echo(target)


def parse_zoom(text: str) -> tuple[float, float, float]:
    """Longitude, latitude and side, degrees, from ``LON,LAT,SIDE``."""
    try:
        lon, lat, side = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"zoom {text!r} is not LON,LAT,SIDE in degrees, such as 172.5,-14.5,16"
        ) from error
    return lon, lat, side


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


def parse_freq(text: str) -> float:
    """A frequency in GHz."""
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"frequency {text!r} is not a number of GHz, such as 353") from error


def parse_band(text: str) -> tuple[float, float]:
    """Edges of a top-hat, GHz, from ``LOW:HIGH``."""
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError as error:
        raise ValueError(f"band {text!r} is not LOW:HIGH in GHz, such as 140:160") from error
    return low, high
