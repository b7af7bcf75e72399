"""What making maps, or a training, will take: time, memory and disk space, from a short trial."""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import healpy as hp
import numpy as np
import pysm3

from pysm_vae.dust import VAEDust
from pysm_vae.ensemble import is_there
from pysm_vae.mapfiles import write_map
from pysm_vae.simulate import Order, check_seed, sky_bytes
from pysm_vae.sky.tiling import Tiling
from pysm_vae.threads import at_once

if TYPE_CHECKING:
    from pysm_vae.vae.patches import Split
    from pysm_vae.vae.training import TrainingConfig, TrainingMap

#: Shares of the sky that are drawn: from two, what a chart costs is told from what a pixel does.
SHARES = (0.002, 0.03)
#: Or so many pixels, if the shares are more.
MOST_PIXELS = (40_000, 600_000)
#: Bytes a pixel while a map is written, beside what the process holds: I, Q, U of the sky in
#: single precision, of the channel in double and in single, and the table.
PIXEL_BYTES = 3 * (4 + 8 + 4 + 4)
#: Seconds that a picture takes: 4.4 at nside 128 and 5.1 at 1024, on one core of 2026.
PICTURE_SECONDS = 5.0
#: Seconds for the spectra of what was trained: 70 on one core of 2026, of the default network.
MEASURING_SECONDS = 70.0
#: Steps of training that are timed, after one that compiles.
TRIAL_STEPS = 4
#: Arrays of all training patches that there are at the most: as they are cut, one by one and
#: together; as those of all maps; and as a tensor.
PATCH_COPIES = 4


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What any work needs.

    Attributes
    ----------
    memory : float or None
        Bytes at the most; None where the system does not tell what this process holds.
    disk, free : float
        Bytes of the files that would be made, and that the disk has left.
    how : str
        How all this was found.
    """

    memory: float | None
    disk: float
    free: float
    how: str

    def lines(self) -> tuple[str, str, str]:
        """All of it, in lines of text."""
        held = "not known on this system" if self.memory is None else _size(self.memory)
        full = "" if self.disk <= self.free else ": NOT ENOUGH"
        return (
            f"memory: {held}",
            f"disk: {_size(self.disk)} of the {_size(self.free)} that are free{full}",
            f"how: {self.how}",
        )


@dataclass(frozen=True, kw_only=True)
class Estimate(Needs):
    """What is expected of a run; see :class:`Needs`, too.

    Attributes
    ----------
    skies, kept : int
        Skies that would be made, and that are there already.
    maps : int
        Maps of each.
    nside : int
        Their resolution.
    start, each : float
        Seconds until the first sky is begun, and for each sky.
    """

    skies: int
    kept: int
    maps: int
    nside: int
    start: float
    each: float

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.start + self.skies * self.each if self.skies else 0.0

    def text(self) -> str:
        """All of it, in a few lines."""
        kept = f"; {self.kept} more are there and would be kept" if self.kept else ""
        return "\n".join(
            (
                f"skies: {self.skies}, of {self.maps} maps each at nside {self.nside}{kept}",
                f"time: {_time(self.seconds)} ({_time(self.start)} to start, "
                f"{_time(self.each)} a sky)",
                *self.lines(),
            )
        )


@dataclass(frozen=True, kw_only=True)
class TrainingEstimate(Needs):
    """What is expected of a training; see :class:`Needs`, too.

    Attributes
    ----------
    training, validation : int
        Patches.
    size : int
        Their pixels a side.
    epochs : int
        At the most; training stops early when nothing improves.
    start, epoch, end : float
        Seconds before the first epoch, for each, and for measuring what has been trained.
    """

    training: int
    validation: int
    size: int
    epochs: int
    start: float
    epoch: float
    end: float

    @property
    def seconds(self) -> float:
        """Of all epochs."""
        return self.start + self.epochs * self.epoch + self.end

    def text(self) -> str:
        """All of it, in a few lines."""
        return "\n".join(
            (
                f"patches: {self.training} to train on and {self.validation} to validate, of "
                f"{self.size} pixels a side",
                f"time: {_time(self.seconds)} from the beginning ({_time(self.start)} to start, "
                f"{_time(self.epoch)} an epoch, at most {self.epochs} of them, and "
                f"{_time(self.end)} to measure what was trained)",
                *self.lines(),
            )
        )


def estimate(
    out: str | Path,
    *,
    seeds: Sequence[int],
    figure: bool = False,
    preset: str = "vae0",
    template: Any = None,
    weights: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    unit: Any = "uK_CMB",
    region: Any = None,
    **options: Any,
) -> Estimate:
    """Check the arguments of a run, and find out what it will take; nothing is written to ``out``.

    Parts of the sky are drawn at the resolution asked for, in as many charts as are drawn side by
    side, twice: a few pixels of each and more; and a map of the latter is written to the folder for
    temporary files. Drawing takes so long a chart, and so long a pixel.

    Parameters
    ----------
    out : path-like
        Folder of the files.
    seeds : sequence of int
        The skies.
    figure, preset, template, weights, settings, unit, region, nside, channels
        See :func:`pysm_vae.simulate.simulate`.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, FileExistsError, ConnectionError
        As the run itself would.
    """
    for seed in seeds:
        check_seed(seed)
    order = Order.of(
        out, preset=preset, template=template, weights=weights, settings=settings, unit=unit,
        region=region, figure=figure, **options,
    )  # fmt: skip
    kept = sum(is_there(order, seed, whole=False, overwrite=True) for seed in seeds)
    tiling = Tiling()
    touched = tiling.ntiles if order.pixels is None else _touched(order, tiling, order.pixels)

    start = time.perf_counter()
    together = min(at_once(), touched)
    discs = [_discs(order, tiling, together, number) for number in (0, 1)]
    # What all skies share is worked out here.
    _draw(order, discs[0][0])
    ready = time.perf_counter() - start
    # Once more for each, as the first of a size may compile.
    drawn = [min(_draw(order, pixels)[0] for _ in range(2)) for pixels, _ in discs]
    (few, charts), (many, _) = ((len(pixels), touched) for pixels, touched in discs)
    a_pixel = max(0.0, drawn[1] - drawn[0]) / max(1, many - few)
    a_chart = max(0.0, drawn[0] - few * a_pixel) / charts
    _, model = _draw(order, discs[1][0])
    constrained = _constrained(order, model)
    channels, written = _channels(order, model, discs[1][0])

    each = a_chart * touched + order.npix * (a_pixel + (channels + written) / many)
    each += constrained + (PICTURE_SECONDS if order.figure else 0.0)
    held = _held()
    how = (
        f"drew {few} and {many} pixels of nside {order.nside} here and now, in {drawn[0]:.2g} s "
        f"and {drawn[1]:.2g} s ({charts} charts; the sky has {tiling.ntiles}), scaled them in "
        f"frequency in {channels:.2g} s and wrote them to {tempfile.gettempdir()} in "
        f"{written:.2g} s"
        f"{f'; following a map takes {constrained:.2g} s' if constrained else ''}"
        f"{f'; a picture takes {PICTURE_SECONDS:g} s' if order.figure else ''}. Memory is what "
        f"this process held at the most, and {PIXEL_BYTES} bytes a pixel"
    )
    return Estimate(
        skies=len(seeds) - kept,
        kept=kept,
        maps=len(order.channels),
        nside=order.nside,
        start=ready,
        each=each,
        memory=None if held is None else held + PIXEL_BYTES * order.npix,
        disk=(len(seeds) - kept) * sky_bytes(order),
        free=_free(order.folder),
        how=how,
    )


def estimate_training(
    maps: Sequence[TrainingMap], split: Split, out: str | Path, config: TrainingConfig
) -> TrainingEstimate:
    """Check the arguments of a training, and find out what it will take.

    Some patches are cut, the network is built and takes a few steps; nothing is written to ``out``.

    Parameters
    ----------
    maps, split, out, config
        See :func:`pysm_vae.vae.training.train`.

    Returns
    -------
    TrainingEstimate

    Raises
    ------
    ValueError
        As the training itself would.
    """
    from pysm_vae.vae import training

    training.check_run(maps, split, out, config)
    start = time.perf_counter()
    validation = training.grid_set(maps, split.validation, config.size)
    ready = time.perf_counter() - start
    batch = config.batch_size
    start = time.perf_counter()
    few = training.training_patches(
        maps, split.train, replace(config, patches=min(config.patches, TRIAL_STEPS * batch))
    )
    total = sum(n for *_, n in training.shares(maps, split.train, config))
    cut = (time.perf_counter() - start) / len(few)
    start = time.perf_counter()
    network = training.built(config, few)
    inputs = training.network_inputs(few, maps)
    batches = training.Batches(inputs, batch)
    # The first step compiles.
    network.train_on_batch(*batches[0])
    ready += time.perf_counter() - start + total * cut
    start = time.perf_counter()
    for number in range(len(batches)):
        network.train_on_batch(*batches[number])
    step = (time.perf_counter() - start) / len(batches)
    # A step of validation takes no longer than one of training.
    epoch = (math.ceil(total / batch) + math.ceil(len(validation) / batch)) * step
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.weights.h5"
        network.save_weights(path)
        # The best, a backup, and a third while one takes the place of the other; the weights that
        # are shipped are smaller, without what the optimiser holds.
        disk = 3.0 * path.stat().st_size
    held = _held()
    image = 4.0 * config.size**2
    how = (
        f"cut {len(few)} patches and took {math.ceil(len(few) / batch)} steps of {batch} here and "
        f"now, {1000 * cut:.2g} ms a patch and {step:.2g} s a step. Memory is what this process "
        f"held at the most, and {PATCH_COPIES} arrays of all patches"
    )
    return TrainingEstimate(
        training=total,
        validation=len(validation),
        size=config.size,
        epochs=config.epochs,
        start=ready,
        epoch=epoch,
        end=MEASURING_SECONDS,
        memory=None if held is None else held + PATCH_COPIES * image * total,
        disk=disk,
        free=_free(Path(out)),
        how=how,
    )


def _discs(order: Order, tiling: Tiling, together: int, number: int) -> tuple[np.ndarray, int]:
    """Pixels around the middles of some charts, and how many charts they touch."""
    share = min(SHARES[number], MOST_PIXELS[number] / hp.nside2npix(order.nside)) / together
    radius = max(np.arccos(1 - 2 * share), (1 + number) * hp.nside2resol(order.nside))
    middles = tiling.centres[:together]
    pixels = np.concatenate([hp.query_disc(order.nside, middle, radius) for middle in middles])
    return np.sort(pixels), _touched(order, tiling, pixels)


def _touched(order: Order, tiling: Tiling, pixels: np.ndarray) -> int:
    return sum(len(where) > 0 for _, where in tiling.charts(order.nside, pixels))


def _draw(order: Order, pixels: np.ndarray) -> tuple[float, VAEDust]:
    start = time.perf_counter()
    dist = pysm3.MapDistribution(pixel_indices=pixels)
    model = VAEDust(order.nside, seed=0, map_dist=dist, **order.parameters)
    return time.perf_counter() - start, model


def _constrained(order: Order, model: VAEDust) -> float:
    """Seconds that it takes to have a sky follow a map, above those for the sky."""
    if model.constraint is None:
        return 0.0
    footprint = model.constraint.footprint
    # One of its pixels is as dear as all: the discs above may have none.
    pixels = footprint.pixels(order.nside)
    vectors = np.array(hp.pix2vec(order.nside, pixels))
    place = pixels[[np.argmax(footprint.distance(vectors, 1.0))]]
    bare = {k: v for k, v in order.parameters.items() if not k.startswith("constrain")}
    followed, plain = (_draw(each, place)[0] for each in (order, replace(order, parameters=bare)))
    return max(0.0, followed - plain)


def _channels(order: Order, model: VAEDust, pixels: np.ndarray) -> tuple[float, float]:
    """Seconds for the emission of all channels, and to write as many maps."""
    emitted = 0.0
    for channel in order.channels:
        model.get_emission(channel.freqs, channel.weights)
        start = time.perf_counter()
        maps = model.get_emission(channel.freqs, channel.weights).value.astype(np.float32)
        emitted += time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.fits"
        start = time.perf_counter()
        write_map(path, maps, nside=order.nside, pixels=pixels, unit=order.unit, cards=[])
        written = (time.perf_counter() - start) * len(order.channels)
    return emitted, written


def _held() -> float | None:
    """The most memory that this process has held, bytes."""
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # getrusage(2): kilobytes, but bytes on macOS.
    return float(most if sys.platform == "darwin" else 1024 * most)


def _free(folder: Path) -> float:
    """Bytes left where a folder is, or will be."""
    folder = folder.absolute()
    return float(shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free)


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.3g} {unit}" if number < 1000 else f"{number:.0f} {unit}"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"
