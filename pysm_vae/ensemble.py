"""Many skies into one folder: shared between processes, resumed after a kill, checked."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pysm3.units as u

from pysm_vae.channels import Channel
from pysm_vae.files import writable_folder
from pysm_vae.mapfiles import DamagedMap, is_fits, read_header, verify_map
from pysm_vae.mpi import LaunchError
from pysm_vae.simulate import Order, Progress, check_seed, check_space, make

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

log = logging.getLogger(__name__)

# More than anybody needs; a slip of the keyboard would otherwise fill the memory.
_MOST = 10_000_000
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Part:
    """One of several equal parts of an ensemble: skies ``number``, ``number + count``, …

    Attributes
    ----------
    number : int
        Which, from 0.
    count : int
        Of how many.
    """

    number: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise ValueError(
                f"part {self.number + 1}/{self.count}: give K/N, with K from 1 to N, such as 3/8"
            )

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read ``K/N``, K from 1 to N."""
        words = text.split("/")
        if len(words) != 2 or not all(w.isascii() and w.isdecimal() for w in words):
            raise ValueError(f"part {text!r}: give K/N, with K from 1 to N, such as 3/8")
        number, count = map(int, words)
        return cls(number - 1, count)

    def within(self, number: int, count: int) -> Part:
        """One of several parts of this one."""
        return Part(self.number + self.count * number, self.count * count)


@dataclass(frozen=True)
class Ensemble:
    """What :func:`simulate_many` has done.

    Attributes
    ----------
    made, kept : tuple of int
        Seeds of the skies that were drawn, and of those that were there already.
    files : tuple of pathlib.Path
        Files of all of these, sky by sky.
    """

    made: tuple[int, ...]
    kept: tuple[int, ...]
    files: tuple[Path, ...]


def simulate_many(
    out: str | Path,
    *,
    seeds: Sequence[int],
    nside: int,
    channels: Sequence[Channel],
    preset: str = "vae0",
    template: str | Path | u.Quantity | None = None,
    weights: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    unit: str | u.UnitBase = "uK_CMB",
    region: str | Path | tuple[float, float, float] | None = None,
    figure: bool = False,
    overwrite: bool = False,
    part: Part | None = None,
    progress: Progress | None = None,
) -> Ensemble:
    """Make many skies, or those of them that are not there yet.

    A sky is passed over if all its files are there, are of the same recipe (all that decides a map:
    the card ``RECIPE``) and seed, as long as their headers say, and have their checksums. Damaged
    maps are made anew. So the same call, after a kill, makes what is missing.

    Each file appears whole, under its name, or not at all. Any number of processes may work on the
    same folder, on one machine or many; what two of them make at the same time is the same, to the
    last bit, and the later one replaces the earlier.

    Parameters
    ----------
    out : path-like
        Folder of all files; made if need be.
    seeds : sequence of int
        The skies.
    nside, channels, preset, template, weights, settings, unit, region
        See :func:`pysm_vae.simulate.simulate`.
    figure : bool
        Also draw a picture of each sky.
    overwrite : bool
        Replace maps of other recipes that are in the way. Complete ones of this recipe are kept.
    part : Part, optional
        Make only this part of the skies.
    progress : callable, optional
        Told ("skies", "charts" or "channels", done, in all) as the work goes on.

    Returns
    -------
    Ensemble

    Raises
    ------
    FileExistsError
        If a file that would be made is there and holds something else, and ``overwrite`` is not
        set.
    ValueError, TypeError, OSError
        As :func:`pysm_vae.simulate.simulate`. Skies that were finished stay.
    """
    seeds = list(dict.fromkeys(seeds))
    for seed in seeds:
        check_seed(seed)
    if not seeds:
        raise ValueError("no seed: give at least one")
    order = Order.of(
        out,
        nside=nside,
        channels=channels,
        preset=preset,
        template=template,
        weights=weights,
        settings=settings,
        unit=unit,
        region=region,
        figure=figure,
    )
    own = seeds[part.number :: part.count] if part else seeds
    writable_folder(order.folder)
    # Headers are read at once, so that nothing is drawn if something is in the way; whole files
    # only when it is their turn, as another process may make them meanwhile.
    found = {seed: is_there(order, seed, whole=False, overwrite=overwrite) for seed in own}
    missing = [seed for seed in own if not found[seed]]
    check_space(order, len(missing))
    made, kept = [], []
    for number, seed in enumerate(own):
        if progress is not None:
            progress("skies", number, len(own))
        if is_there(order, seed, whole=True, overwrite=overwrite):
            log.info("sky %d is complete", seed)
            kept.append(seed)
            continue
        make(order, seed, progress=progress)
        made.append(seed)
    if progress is not None:
        progress("skies", len(own), len(own))
    files = tuple(path for seed in own for path in order.files(seed))
    return Ensemble(tuple(made), tuple(kept), files)


def is_there(order: Order, seed: int, *, whole: bool, overwrite: bool) -> bool:
    """Whether all files of a sky are there: by their headers, or read through."""
    complete = True
    for path, recipe in zip(order.maps(seed), order.recipes, strict=True):
        if path.is_dir():
            raise IsADirectoryError(f"{str(path)!r} is a folder: move it, or name another --out")
        try:
            header = verify_map(path) if whole else read_header(path)
            other = (header.get("RECIPE"), header.get("SEED")) != (recipe, seed)
            if other and not whole:
                # Before somebody is told that it is another map: a damaged header is none.
                verify_map(path)
        except FileNotFoundError:
            complete = False
            continue
        except DamagedMap as error:
            if not is_fits(path) and not overwrite:
                raise FileExistsError(
                    f"{str(path)!r} is there and is no map: move it, name another folder, or "
                    "replace it with overwrite=True (--overwrite)"
                ) from None
            if whole:
                log.warning("%s: it is made anew", error)
            complete = False
            continue
        if other and not overwrite:
            raise FileExistsError(
                f"{str(path)!r} holds a map that was made with other settings, or by another "
                "version: name another folder, or replace it with overwrite=True (--overwrite)"
            )
        complete = complete and not other
    return complete and (not order.figure or _is_whole_picture(order.picture(seed)))


def _is_whole_picture(path: Path) -> bool:
    if not path.is_file():
        return False
    content = path.read_bytes()
    return content.startswith(_PNG) and content.endswith(_PNG_END)


def parse_seeds(text: str) -> list[int]:
    """Seeds from ``START:STOP`` (without STOP), numbers, or both: ``0:100``, ``3,7,20:30``.

    Raises
    ------
    ValueError
        If it is no such list, or a range is empty.
    """
    seeds: list[int] = []
    for word in text.split(","):
        ends = [end.strip() for end in word.split(":")]
        if len(ends) > 2 or not all(end.isascii() and end.isdecimal() for end in ends):
            raise ValueError(
                f"seeds {text!r}: give START:STOP (STOP is not made), numbers, or both, such as "
                "0:100 or 3,7,20:30"
            )
        first, last = int(ends[0]), int(ends[-1]) + (len(ends) == 1)
        if first >= last:
            raise ValueError(f"seeds {text!r}: the range {word.strip()!r} must rise")
        if len(seeds) + last - first > _MOST:
            raise ValueError(f"seeds {text!r} are more than {_MOST}: make them in several runs")
        seeds += range(first, last)
    return seeds


def own_part(asked: str | None = None, ranks: Comm | None = None) -> Part:
    """The part of an ensemble that this process makes.

    Parameters
    ----------
    asked : str, optional
        ``K/N``. By default the part is that of this task of a SLURM job array, if it is one.
    ranks : mpi4py.MPI.Comm, optional
        Ranks among which the part is divided again; by default, the tasks of a SLURM job step.

    Raises
    ------
    ValueError
        If ``asked`` is no part.
    LaunchError
        If the tasks of the array are not numbered evenly, so that none knows its place.
    """
    part = Part.parse(asked) if asked else _array_task()
    if ranks is not None:
        return part.within(ranks.rank, ranks.size)
    # Only srun sets the former: in a batch script, which runs once, the latter alone is there.
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1:
        return part.within(int(os.environ.get("SLURM_PROCID", "0")), tasks)
    return part


def _array_task() -> Part:
    """Our place in a SLURM job array, from what SLURM tells each task (see sbatch(1))."""
    names = ("ID", "COUNT", "MIN", "MAX", "STEP")
    texts = [os.environ.get(f"SLURM_ARRAY_TASK_{name}") for name in names]
    if texts[0] is None:
        return Part()
    remedy = "say which part is this task's with --part K/N"
    try:
        number, count, first, last = (int(text) for text in texts[:4])
        step = int(texts[4] or 1)
    except (TypeError, ValueError):
        raise LaunchError(
            f"started in a SLURM array that says too little of itself: {remedy}"
        ) from None
    if count > 1 and (last - first != step * (count - 1) or (number - first) % step):
        raise LaunchError(f"the tasks of this SLURM array are not numbered evenly: {remedy}")
    return Part((number - first) // step, count)
