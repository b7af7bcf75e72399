"""Subcommands of the inverse tasks: fit, impute, interpolate."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pysm_vae.cli.app import (
    Debug,
    Overwrite,
    app,
    check_new,
    progress_bars,
    reported,
    without_native_notes,
)
from pysm_vae.cli.sky import parse_zoom
from pysm_vae.patchfiles import read_array, read_patch
from pysm_vae.vae.masks import SHAPES

if TYPE_CHECKING:
    import numpy as np

    from pysm_vae.vae.inference import Observation, PatchModel

_PATCH = (
    "A square patch: .npy, .npz (the array 'patch'), or a FITS image. A multiple of 16 pixels a "
    "side, 32 or more."
)

Noise = Annotated[
    float, typer.Option(help="Standard deviation of the noise of a pixel, in ln intensity.")
]
Beam = Annotated[
    float | None, typer.Option(min=0, help="FWHM of a Gaussian beam to undo, in pixels.")
]
Linear = Annotated[
    bool, typer.Option("--linear", help="The file holds intensity, not its natural logarithm.")
]
Environment = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="From 0, diffuse sky, to 1, clouds [that of the weights]."),
]
Weights = Annotated[str, typer.Option(help="'default', or the card of your own training.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Mask = Annotated[
    str | None,
    typer.Option(
        help="What is observed: a file (1 where there are data), or a hole: "
        f"{', '.join(SHAPES.values())}, in pixels and degrees. Pixels that are NaN are hidden, "
        "too.",
    ),
]


@app.command()
def fit(
    patch: Annotated[Path, typer.Argument(help=_PATCH)],
    out: Annotated[Path, typer.Option(help="The fitted patch, .npy, in ln intensity.")],
    noise: Noise = 0.2,
    mask: Mask = None,
    beam: Beam = None,
    linear: Linear = False,
    starts: Annotated[int, typer.Option(min=1, help="Starts of the search.")] = 1,
    environment: Environment = None,
    weights: Weights = "default",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Find the most probable patch behind noise, a beam and a mask.

    `pysm-vae fit taurus.npy --noise 0.1 --beam 2 --out clean.npy`
    """
    with reported(debug):
        _check_out(out, overwrite, ".npy")
        model, seen = _posed(patch, noise, mask, beam, linear, environment, weights, debug)
        from pysm_vae.vae.inference import maximise

        with progress_bars({"fit": "fitting"}) as progress:
            found = maximise(model, seen, starts=starts, seed=seed, progress=progress)
        _write_array(out, found.patch)
        typer.echo(
            f"{out}: chi2 per pixel {found.chi2:.3f}, of {seen.mask.sum()} observed, "
            f"{found.seconds:.1f} s"
        )
        if starts > 1:
            typer.echo(f"{starts} starts agree to {found.spread:.3f} of the noise")


@app.command()
def impute(
    patch: Annotated[Path, typer.Argument(help=_PATCH)],
    out: Annotated[Path, typer.Option(help="The posterior, .npz: samples, ess, rhat.")],
    mask: Mask = None,
    noise: Noise = 0.2,
    beam: Beam = None,
    linear: Linear = False,
    draws: Annotated[int, typer.Option(min=32, help="Patches to draw; a multiple of 8.")] = 1000,
    warmup: Annotated[int, typer.Option(min=40, help="Steps of each chain before that.")] = 80,
    residual: Annotated[
        float | None,
        typer.Option(
            help="Decoder's noise; more of it makes holes less certain [0.3, and 0.1 in the finest "
            "octave; of the training 0.1].",
        ),
    ] = None,
    environment: Environment = None,
    weights: Weights = "default",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Fill holes with patches that could be there: draws of the posterior.

    `pysm-vae impute taurus.npy --mask circle:20 --noise 0.1 --out filled.npz`, then
    `Posterior.load("filled.npz").draws(5)` in Python.
    """
    with reported(debug):
        _check_out(out, overwrite, ".npz")
        model, seen = _posed(
            patch, noise, mask, beam, linear, environment, weights, debug, residual
        )
        with without_native_notes(debug):
            from pysm_vae.vae.inference import (
                ConvergenceWarning,
                sample_posterior,
                tensorflow_probability,
            )

            # Imported here, since it writes notes, too.
            tensorflow_probability()
        with progress_bars({"sample": "sampling"}) as progress, warnings.catch_warnings():
            # Said below, in one line.
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = sample_posterior(
                model, seen, draws=draws, warmup=warmup, seed=seed, progress=progress
            )
        found.save(out)
        if not found.converged:
            typer.echo(
                "pysm-vae: warning: the chains have not converged (R-hat of some pixels is above "
                f"1.1): try --draws {4 * draws} --warmup {2 * warmup}",
                err=True,
            )
        says = found.diagnostics
        typer.echo(
            f"{out}: {draws} draws in {found.seconds:.0f} s, R-hat {says['rhat_median']:.3f} "
            f"(95 pixels of 100: {says['rhat_95']:.3f}), ESS {says['ess_median']:.0f}"
        )


@app.command()
def interpolate(
    first: Annotated[
        Path, typer.Argument(metavar="FILE|SEED", help=f"{_PATCH} Or a sky, by its seed.")
    ],
    second: Annotated[
        Path,
        typer.Argument(metavar="FILE|SEED", help="Another one of the same size, or another sky."),
    ],
    out: Annotated[Path, typer.Option(help="The animation, .gif, or its frames, .npy.")],
    frames: Annotated[int, typer.Option(min=2, help="Patches of the path.")] = 25,
    linear: Linear = False,
    environment: Environment = None,
    weights: Weights = "default",
    seed: Seed = 0,
    nside: Annotated[int, typer.Option(help="HEALPix resolution of skies.")] = 256,
    zoom: Annotated[
        str, typer.Option(metavar="LON,LAT,SIDE", help="Field of skies, degrees.")
    ] = "110,-38,20",
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Go from one patch to another through patches that could be sky; or from sky to sky.

    `pysm-vae interpolate taurus.npy chamaeleon.npy --out path.gif`

    `pysm-vae interpolate 3 8 --out skies.gif`
    """
    with reported(debug):
        _check_out(out, overwrite, ".gif", ".npy")
        if all(str(end).isdecimal() and not end.exists() for end in (first, second)):
            with without_native_notes(debug):
                from pysm_vae.simulate import path_between

                path = path_between(
                    int(str(first)),
                    int(str(second)),
                    frames=frames,
                    nside=nside,
                    field=parse_zoom(zoom),
                    weights=weights,
                )
            _write_path(out, path)
            return
        ends = [read_patch(path, linear) for path in (first, second)]
        if ends[0].shape != ends[1].shape:
            raise ValueError(f"patches of {len(ends[0])} and {len(ends[1])} pixels have no path")
        with without_native_notes(debug):
            from pysm_vae.vae.generator import load_generator
            from pysm_vae.vae.inference import PatchModel
            from pysm_vae.vae.interpolation import interpolate as run

            model = PatchModel(load_generator(weights), len(ends[0]), environment=environment)
            path = run(model, ends[0], ends[1], frames=frames, seed=seed)
        _write_path(out, path)


def _posed(
    path: Path,
    noise: float,
    mask: str | None,
    beam: float | None,
    linear: bool,
    environment: float | None,
    weights: str,
    debug: bool,
    residual: float | None = None,
) -> tuple[PatchModel, Observation]:
    """The problem, once everything about it is known to be fit."""
    import numpy as np

    from pysm_vae.vae.inference import Observation, PatchModel
    from pysm_vae.vae.masks import parse_mask

    data = read_patch(path, linear)
    known = np.isfinite(data)
    if mask is not None:
        if mask.partition(":")[0] in SHAPES:
            observed = parse_mask(mask, len(data))
        else:
            observed = read_array(Path(mask)) > 0
            if observed.shape != data.shape:
                raise ValueError(f"mask {mask!r} has the shape {observed.shape}, not {data.shape}")
        known &= observed
    seen = Observation(data, noise, known, beam)
    with without_native_notes(debug):
        from pysm_vae.vae.generator import load_generator

        model = PatchModel.for_data(
            load_generator(weights), seen, environment=environment, residual=residual
        )
    return model, seen


def _check_out(out: Path, overwrite: bool, *suffixes: str) -> None:
    if out.suffix.lower() not in suffixes:
        raise ValueError(f"--out {str(out)!r}: name a file that ends in {' or '.join(suffixes)}")
    if not out.resolve().parent.is_dir():
        raise FileNotFoundError(f"--out {str(out)!r}: there is no folder to write it to")
    check_new(out, overwrite)


def _write_path(out: Path, path: np.ndarray) -> None:
    from pysm_vae.vae.interpolation import write_animation

    if out.suffix.lower() == ".gif":
        write_animation(path, out)
    else:
        _write_array(out, path)
    typer.echo(f"{out}: {len(path)} frames")


def _write_array(path: Path, array: Any) -> None:
    import numpy as np

    from pysm_vae.files import atomic_write

    with atomic_write(path) as partial:
        np.save(partial, array)
