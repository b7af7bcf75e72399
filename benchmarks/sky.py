"""How fast and how small skies are, beside PySM's own dust on the same machine in the same run.

``python benchmarks/sky.py --nside 512 --nside 1024 --out DIR`` writes sky.json and sky.png. Memory
is read from ``/proc``: Linux only.
"""

from __future__ import annotations

import cProfile
import ctypes
import gc
import json
import logging
import os
import platform
import pstats
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import healpy as hp
import numba
import numpy as np
import pysm3
import pysm3.units as u
import typer
from astropy.io import fits
from common import write_figure, write_json
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy import sparse

import pysm_vae
from pysm_vae import Generator, VAEDust, load_generator
from pysm_vae.files import writable_folder
from pysm_vae.sky.planes import Plane
from pysm_vae.sky.templates import load_template
from pysm_vae.sky.tiling import Tiling
from pysm_vae.threads import threads
from pysm_vae.vae.generator import one_thread_an_operation, plain_graph

log = logging.getLogger(__name__)
app = typer.Typer(pretty_exceptions_enable=False)

OURS, D1, D11 = "VAEDust", "ModifiedBlackBody", "ModifiedBlackBodyRealization"
POINTS = (1, 10, 64)
BAND = (130.0, 170.0)
# The discs that stand for a part of the sky, 1 % of it each: some spread evenly over the sphere,
# and one where three charts meet, of which more has to be drawn than anywhere else.
DISCS, SHARE = 8, 0.01
WORST = (40.0, 50.0)
# Where d11's files end, by the names that PySM's presets give them.
LARGE_SCALES, MODULATION, SMALL_SCALES = 1024, 768, 16384
PLANE_NSIDE = 2048
# Calls of one measurement are repeated until they have taken so long together.
_ENOUGH = 60.0
# A profile sees what its own thread does, and no other.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1"
)
FIRST_MAP = (
    "import pysm3, pysm3.units as u, pysm_vae\n"
    'pysm3.Sky(nside=128, preset_strings=["vae0"]).get_emission(353 * u.GHz)'
)


# What a fresh process does


@contextmanager
def _from_here() -> Iterator[dict[str, float]]:
    """Highest memory of this process in the block, over what it holds now."""
    gc.collect()
    # Otherwise what was freed before would be used again, and not be counted.
    ctypes.CDLL(None).malloc_trim(0)
    # See proc(5): the peak is set back to what is held now.
    Path("/proc/self/clear_refs").write_text("5")
    figures = {"held": _memory("VmRSS")}
    yield figures
    figures["peak"] = _memory("VmHWM") - figures["held"]


def _memory(field: str) -> float:
    """Bytes, as proc(5) has them; ru_maxrss also counts what the parent held at the start."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(f"{field}:"))
    return 1024.0 * int(line.split()[1])


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def discs(nside: int) -> list[pysm3.MapDistribution]:
    """Parts of the sky: a Fibonacci lattice of discs, then the worst."""
    number = np.arange(DISCS)
    longitudes = 180 * (3 - np.sqrt(5)) * number
    latitudes = np.degrees(np.arcsin(1 - (2 * number + 1) / DISCS))
    return [
        pysm3.MapDistribution(
            pixel_indices=hp.query_disc(
                nside, hp.ang2vec(*place, lonlat=True), np.arccos(1 - 2 * SHARE)
            )
        )
        for place in [*zip(longitudes, latitudes, strict=True), WORST]
    ]


def d11(nside: int, seed: int, files: Path, plane_fix: bool) -> Any:
    """PySM's stochastic dust on local files."""
    names = {"galplane_fix": "plane", "galplane_fix_beta_Td": "plane_beta_Td"} if plane_fix else {}
    names |= {
        "largescale_alm": "large",
        "amplitude_modulation_temp_alm": "modulation_temp",
        "amplitude_modulation_pol_alm": "modulation_pol",
        "small_scale_cl": "small_cl",
        "largescale_alm_mbb_index": "beta",
        "small_scale_cl_mbb_index": "beta_cl",
        "largescale_alm_mbb_temperature": "temperature",
        "small_scale_cl_mbb_temperature": "temperature_cl",
    }
    paths = {key: str(files / f"{name}.fits") for key, name in names.items()}
    seeds = [seed, seed + 1, seed + 2]
    return pysm3.ModifiedBlackBodyRealization(
        nside=nside, freq_ref="353 GHz", seeds=seeds, max_nside=8192, **paths
    )


def write_d11_files(files: str, plane_fix: bool) -> None:
    """Files of the layout of d11's, with the embedded template's large scales in them.

    Not compressed, as the originals are, so that the peer loses no time with that. The Galactic
    plane's maps are the template's, with a mask that takes them at low latitudes.
    """
    folder = Path(files)
    alm = np.zeros((3, hp.Alm.getsize(LARGE_SCALES)), complex)
    template = load_template("embedded")
    ell, m = hp.Alm.getlm(template.lmax)
    alm[:, hp.Alm.getidx(LARGE_SCALES, ell, m)] = template.alm

    def constant(value: float, lmax: int) -> np.ndarray:
        alm = np.zeros(hp.Alm.getsize(lmax), complex)
        alm[0] = value * np.sqrt(4 * np.pi)
        return alm

    for name, values, unit in (
        ("large", alm, "uK_RJ"),
        ("modulation_temp", constant(1.0, MODULATION), ""),
        ("modulation_pol", constant(1.0, MODULATION), ""),
        ("beta", constant(1.5, LARGE_SCALES), ""),
        ("temperature", constant(20.0, LARGE_SCALES), "K"),
    ):
        path = folder / f"{name}.fits"
        hp.write_alm(path, values, out_dtype=np.float32)
        for hdu in range(1, 1 + len(np.atleast_2d(values))):
            fits.setval(path, "TUNIT1", value=unit, ext=hdu)

    ell = np.arange(SMALL_SCALES + 1.0)
    power = np.where(ell > 80, np.maximum(ell, 1) ** -2.6, 0)
    for name, values, unit in (
        ("small_cl", [power, 0.1 * power, 0.05 * power, 0.1 * power], "uK_RJ2"),
        ("beta_cl", 0.1 * power, ""),
        ("temperature_cl", 10 * power, "K2"),
    ):
        hp.write_cl(folder / f"{name}.fits", values)
        fits.setval(folder / f"{name}.fits", "TUNIT1", value=unit, ext=1)

    if plane_fix:
        maps = template.maps(PLANE_NSIDE)
        latitude = hp.pix2ang(PLANE_NSIDE, np.arange(maps.shape[1]), lonlat=True)[1]
        mask = np.clip(np.abs(latitude) / 5 - 1, 0, 1)
        options: dict[str, Any] = {"dtype": np.float32, "coord": "G"}
        units = ["uK_RJ", "uK_RJ", "uK_RJ", ""]
        hp.write_map(folder / "plane.fits", [*maps, mask], column_units=units, **options)
        both = [np.full(mask.size, value, np.float32) for value in (1.5, 20.0)]
        hp.write_map(folder / "plane_beta_Td.fits", both, column_units=["", "K"], **options)


def draw(who: str, nside: int, files: str, plane_fix: bool, part: bool = False) -> dict[str, Any]:
    """Time and memory of a second construction in this process, with another seed.

    Of parts of the sky, the median time and that of the worst. ``peak`` is the highest memory over
    what the process held before it, ``process`` the highest of both constructions over what it held
    after imports.
    """
    if who == OURS:
        # Imports TensorFlow, too.
        one_thread_an_operation()

    def construct(seed: int, map_dist: pysm3.MapDistribution | None) -> None:
        if who == D11:
            d11(nside, seed, Path(files), plane_fix)
        else:
            VAEDust(nside, seed=seed, map_dist=map_dist)

    places = discs(nside) if part else [None]
    with _from_here() as first:
        construct(1, places[-1])
    with _from_here() as second:
        times = [_timed(partial(construct, 7, place)) for place in places]
    highest = max(each["held"] + each["peak"] for each in (first, second))
    return {
        "seconds": median(times),
        "worst": times[-1],
        "peak": second["peak"],
        "process": highest - first["held"],
        "imports": first["held"],
    }


def emit(who: str, nside: int, kind: str, files: str, repeats: int) -> dict[str, Any]:
    """Times of emission at one frequency and in bands, and the memory that each call adds.

    Our process leaves its maps in ``files``, so that PySM's can be given the same reference and
    compare what comes out.
    """
    rng = np.random.default_rng(1)
    beta: Any = 1.53
    temperature: Any = 19.6
    if kind == "maps":
        npix = hp.nside2npix(nside)
        beta = u.Quantity(rng.normal(1.53, 0.05, npix))
        temperature = rng.normal(19.6, 1.0, npix) * u.K
    reference = Path(files) / "reference.npy"
    if who == OURS:
        model: Any = VAEDust(nside, beta=beta, temperature=temperature)
        np.save(reference, [model.I_ref.value, model.Q_ref.value, model.U_ref.value])
    else:
        maps = np.load(reference) << u.uK_RJ
        model = pysm3.ModifiedBlackBody(
            *(maps[:1] << u.uK_RJ),
            map_Q=maps[1],
            map_U=maps[2],
            nside=nside,
            freq_ref_I=353 * u.GHz,
            freq_ref_P=353 * u.GHz,
            map_mbb_index=beta,
            map_mbb_temperature=temperature,
            unit_mbb_temperature="K",
        )
    # Compiles, and fills caches of units.
    for freqs in (100 * u.GHz, [100, 110] * u.GHz):
        model.get_emission(freqs)
    return {str(points): emit_band(model, points, who == OURS, files, repeats) for points in POINTS}


def emit_band(model: Any, points: int, ours: bool, files: str, repeats: int) -> dict[str, float]:
    """One band; ours is kept, and PySM's compared with it."""
    freqs = (np.linspace(*BAND, points) if points > 1 else np.mean(BAND)) * u.GHz
    seconds: list[float] = []
    with _from_here() as memory:
        while len(seconds) < repeats and sum(seconds) < _ENOUGH:
            seconds.append(_timed(lambda: model.get_emission(freqs)))
    found = {"seconds": median(seconds), "peak": memory["peak"]}
    kept, made = Path(files) / f"{points}.npy", model.get_emission(freqs).value
    if ours:
        np.save(kept, made)
    else:
        pairs = zip(np.load(kept, mmap_mode="r"), made, strict=True)
        found["difference"] = max(float(np.abs(a / b - 1).max()) for a, b in pairs)
    return found


def profile(nside: int) -> dict[str, Any]:
    """Where a warm construction spends its time, and what each part cannot do without."""
    refined: Counter[tuple[tuple[int, ...], int, int]] = Counter()
    transformed: Counter[tuple[int, ...]] = Counter()
    refine, waves, fields = Generator.refine, Plane.waves, Plane.fields

    def refine_counted(self: Generator, coarse: Any, latents: Any, level: int, margin: int) -> Any:
        refined[coarse.shape, level, margin] += 1
        return refine(self, coarse, latents, level, margin)

    def waves_counted(self: Plane, values: np.ndarray) -> np.ndarray:
        transformed[values.shape] += 1
        return waves(self, values)

    def fields_counted(self: Plane, values: np.ndarray) -> np.ndarray:
        transformed[len(values), self.size, self.size] += 1
        return fields(self, values)

    VAEDust(nside, seed=1)
    Generator.refine = refine_counted  # type: ignore[method-assign]
    Plane.waves = waves_counted  # type: ignore[method-assign]
    Plane.fields = fields_counted  # type: ignore[method-assign]
    profiler = cProfile.Profile()
    seconds = _timed(lambda: profiler.runcall(VAEDust, nside, seed=7))
    by_stage, by_function = stages(pstats.Stats(profiler))
    return {
        "seconds": seconds,
        "stages": by_stage,
        "functions": by_function,
        "needs": needs(nside, refined, transformed),
    }


def stages(profiled: pstats.Stats) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds by stage, and by the package's functions, of which the twenty longest.

    A function's time is its own and that of the libraries that it calls; a library function that
    several call is shared out by how long it took for each.
    """
    entries = profiled.stats  # type: ignore[attr-defined]
    names = list(entries)
    place = {name: i for i, name in enumerate(names)}
    package = Path(pysm_vae.__file__).parent
    own = [
        # Comprehensions and the like belong to their callers, too.
        f"{Path(file).stem}.{function}"
        if package in Path(file).parents and function[0] != "<"
        else ""
        for file, _, function in names
    ]
    labels = sorted({*own} - {""})
    share = np.zeros((len(names), len(labels)))
    rows, columns, weights = [], [], []
    for name, (_, _, _, _, callers) in entries.items():
        i = place[name]
        if own[i]:
            share[i, labels.index(own[i])] = 1
            continue
        total = sum(caller[3] for caller in callers.values())
        for caller, (_, _, _, spent) in callers.items():
            rows.append(i)
            columns.append(place[caller])
            weights.append(spent / total if total else 1 / len(callers))
    called = sparse.csr_array((weights, (rows, columns)), shape=(len(names),) * 2)
    fixed = share.copy()
    # As many steps as a call goes deep into libraries.
    for _ in range(200):
        share = fixed + called @ share
    times = np.array([entry[2] for entry in entries.values()]) @ share
    by_stage: dict[str, float] = {}
    for label, seconds in zip(labels, times, strict=True):
        stage = stage_of(*label.split(".", 1))
        by_stage[stage] = by_stage.get(stage, 0.0) + float(seconds)
    longest = sorted(zip(labels, times.tolist(), strict=True), key=lambda pair: -pair[1])
    return dict(sorted(by_stage.items(), key=lambda pair: -pair[1])), dict(longest[:20])


def stage_of(module: str, function: str) -> str:
    """The part of the work that a function of the package belongs to."""
    # The latter is a part of the former.
    if function in ("draw_latents", "fill"):
        return "latents"
    if "log_pol_tens" in function:
        return "log-pol-tens"
    return {
        "generator": "decode",
        "networks": "decode",
        "planes": "Fourier",
        "tiling": "project",
        "smallscales": "project",
        "canvas": "decode",
        "cover": "decode",
        "ground": "Fourier",
        "largescales": "template",
        "templates": "template",
        "calibration": "calibrate",
    }.get(module, module)


def needs(
    nside: int,
    refined: Counter[tuple[tuple[int, ...], int, int]],
    transformed: Counter[tuple[int, ...]],
) -> dict[str, dict[str, float]]:
    """Bytes and operations of each stage that no program for this sky could do without.

    Inputs and outputs in single precision cross the memory once; ``multiply-adds`` are two
    operations each, real Fourier transforms of N numbers take 2.5 N log2 N operations.

    Parameters
    ----------
    nside : int
        Of the sky.
    refined : Counter
        Windows that the network refined: shape, octaves before, margin.
    transformed : Counter
        Shapes of Fourier transforms.
    """
    npix, generator = hp.nside2npix(nside), load_generator()
    _, weights = Tiling().weights(64)
    covering = float((weights > 0).sum() / len(weights))
    decoded = sum(
        count * 4 * shape[0] * (shape[1] - 2 * margin) * (shape[2] - 2 * margin)
        for (shape, _, margin), count in refined.items()
    )
    operations = sum(count * refine_operations(generator, *key) for key, count in refined.items())
    numbers = sum(count * float(np.prod(shape)) for shape, count in transformed.items())
    transforms = sum(
        count * 2.5 * float(np.prod(shape)) * np.log2(shape[1] * shape[2])
        for shape, count in transformed.items()
    )
    return {
        "decode": {"bytes": 4.0 * decoded, "multiply-adds": operations / 2},
        "Fourier": {"bytes": 2 * 4.0 * numbers, "multiply-adds": transforms / 2},
        # Cubic splines have 16 points; each pixel lies on a chart or more.
        "project": {
            "bytes": 4.0 * numbers + 12.0 * npix,
            "multiply-adds": npix * covering * 3 * 16.0,
        },
        # Rings of up to 4 nside pixels, and Legendre functions of both spins on them.
        "template": {
            "bytes": 12.0 * npix,
            "multiply-adds": 3 * npix * 1.25 * np.log2(4 * nside)
            + 3 * 2 * nside * load_template("embedded").lmax ** 2,
        },
        "log-pol-tens": {"bytes": 24.0 * npix, "exponentials": 2.0 * npix},
        "SED, 10 points": {"bytes": (12 + 16 + 24.0) * npix, "exponentials": 23.0 * npix},
    }


def refine_operations(
    generator: Generator, shape: tuple[int, ...], level: int, margin: int
) -> float:
    """Floating-point operations of one octave of some windows, as TensorFlow counts them."""
    import tensorflow as tf
    from tensorflow.python.profiler.option_builder import ProfileOptionBuilder

    def refine(coarse: Any, latents: Any) -> Any:
        return generator.network.refine(coarse, latents, generator.diffuse, level, margin)

    specs = [tf.TensorSpec(shape), tf.TensorSpec((*shape, generator.network.latents))]
    graph = plain_graph(refine, specs).get_concrete_function().graph
    options = ProfileOptionBuilder(ProfileOptionBuilder.float_operation())
    counted = tf.compat.v1.profiler.profile(graph, options=options.with_empty_output().build())
    return float(counted.total_float_ops)


def rates() -> dict[str, Any]:
    """What the machine can do a second, on one thread: bytes, multiply-adds, exponentials."""

    @numba.njit
    def copy(source: np.ndarray, target: np.ndarray) -> None:
        for i in range(source.size):
            target[i] = source[i]

    @numba.njit
    def exponentials(source: np.ndarray, target: np.ndarray) -> None:
        for i in range(source.size):
            target[i] = np.exp(source[i])

    large = np.linspace(-1, 1, 1 << 25)
    target, matrix = np.ones_like(large), np.ones((2048, 2048), np.float32)
    matrix @ matrix

    def best(call: Callable[[], Any]) -> float:
        call()
        return min(_timed(call) for _ in range(5))

    return {
        "bytes": 2 * large.nbytes / best(lambda: copy(large, target)),
        "multiply-adds": 2048.0**3 / best(lambda: matrix @ matrix),
        "exponentials": large.size / best(lambda: exponentials(large, target)),
    }


TASKS: dict[str, Callable[..., Any]] = {
    each.__name__: each for each in (write_d11_files, draw, emit, profile, rates)
}


def child() -> None:
    """One task in a process of its own, by its name, its options, and where the result goes."""
    task, options, result = sys.argv[1:]
    Path(result).write_text(json.dumps(TASKS[task](**json.loads(options))))


# What the program does


def fresh(task: Callable[..., Any], **options: Any) -> Any:
    """What a task gives in a fresh process, or ``{"failed": reason}``."""
    folder = str(Path(__file__).resolve().parent)
    code = f"import sys; sys.path.insert(0, {folder!r}); import sky; sky.child()"
    with tempfile.TemporaryDirectory() as work:
        result = Path(work) / "result.json"
        done = subprocess.run(
            [sys.executable, "-c", code, task.__name__, json.dumps(options), str(result)],
            env=os.environ | (ONE_THREAD if task in (profile, rates) else {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["without a message"]
            reason = f"exit code {done.returncode}: {lines[-1]}"
            log.warning("%s %s: %s", task.__name__, options, reason)
            return {"failed": reason}
        return json.loads(result.read_text())


def middle(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of what repeated measurements gave, and all times; a failure if one has failed."""
    for each in found:
        if "failed" in each:
            return each
    medians = {key: median(each[key] for each in found) for key in found[0]}
    return {**medians, "times": [each["seconds"] for each in found]}


def over(a: dict[str, Any] | None, b: dict[str, Any] | None, key: str) -> float | None:
    """The ratio of a figure, where both are known; small maps fit in memory that was freed."""
    if not a or not b or key not in a or not b.get(key):
        return None
    return a[key] / b[key]


def measure_draws(
    nside: int, files: Path, plane_fix: bool, peer: bool, repeats: int
) -> dict[str, Any]:
    """Full skies of both, in turn, and our parts of the sky."""
    cases = {OURS: {"who": OURS}, "part": {"who": OURS, "part": True}}
    if peer:
        cases[D11] = {"who": D11}
    options = {"nside": nside, "files": str(files), "plane_fix": plane_fix}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            found[name].append(fresh(draw, **options, **case))
    report: dict[str, Any] = {name: middle(each) for name, each in found.items()}
    ours, theirs = report[OURS], report.get(D11)
    return {
        **report,
        "plane fix": plane_fix and peer,
        "times as fast": over(theirs, ours, "seconds"),
        "share of memory": over(ours, theirs, "peak"),
        "share of process": over(ours, theirs, "process"),
        "part over full": over(report["part"], ours, "seconds"),
        "worst part over full": over(report["part"], ours, "worst"),
    }


def measure_emission(nside: int, files: Path, repeats: int) -> dict[str, Any]:
    """Emission of the same maps from both, with maps of index and temperature and with numbers."""
    report: dict[str, Any] = {}
    for kind in ("maps", "numbers"):
        ours, theirs = (
            fresh(emit, who=who, nside=nside, kind=kind, files=str(files), repeats=repeats)
            for who in (OURS, D1)
        )
        failed = [each for each in (ours, theirs) if "failed" in each]
        if failed:
            report[kind] = failed[0]
            continue
        report[kind] = {
            points: {
                OURS: ours[points],
                D1: theirs[points],
                "times as fast": over(theirs[points], ours[points], "seconds"),
                "share of memory": over(ours[points], theirs[points], "peak"),
                "largest difference": theirs[points]["difference"],
            }
            for points in map(str, POINTS)
        }
    return report


def measure_first_map(repeats: int) -> dict[str, Any]:
    """Seconds of a process that makes one map: the first of all, and one after an earlier one.

    The very first also reads all libraries from the disk, if nothing else has before.
    """
    times: dict[str, list[float]] = {"all compiled": [], "compiled before": []}
    process = partial(subprocess.run, [sys.executable, "-c", FIRST_MAP], check=True)
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "NUMBA_CACHE_DIR": cache, "XDG_CACHE_HOME": cache}
            for each in times.values():
                each.append(_timed(partial(process, env=environment, capture_output=True)))
    return {name: median(each) for name, each in times.items()} | {"times": times}


def floors(report: dict[str, Any], rate: dict[str, float]) -> None:
    """Add to each stage's needs the seconds that they take at the machine's rates."""
    for need in report["needs"].values():
        need["floor"] = max(amount / rate[kind] for kind, amount in need.items())


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    packages = ("pysm_vae", "pysm3", "healpy", "ducc0", "numba", "tensorflow", "numpy")
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads(),
        "environment": {k: v for k, v in os.environ.items() if k.endswith("_THREADS")},
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def _cell(value: float | None, form: str = "{:.3g}") -> str:
    return "–" if value is None else form.format(value)


def _size(entry: dict[str, Any] | None, what: str = "peak") -> str:
    return "–" if not entry or what not in entry else f"{entry[what] / 1e9:.2f}"


def _seconds(entry: dict[str, Any] | None) -> str:
    return "–" if not entry else _cell(entry.get("seconds"))


def tables(report: dict[str, Any]) -> list[Table]:
    """Draws, emission, and the profile of the largest sky."""
    draws = Table(title=f"Draw, warm: {OURS} beside {D11}")
    for column in (
        "nside", "s", "GB", "process GB", "PySM s", "PySM GB", "PySM process GB",
        "times as fast", "share of memory", "of process", "1 % of the sky, s", "over full", "worst",
    ):  # fmt: skip
        draws.add_column(column)
    emission = Table(title=f"Emission: {OURS} beside {D1}")
    for column in (
        "nside", "β, T", "points", "s", "GB", "PySM s", "PySM GB", "times as fast",
        "share of memory", "difference",
    ):  # fmt: skip
        emission.add_column(column)
    for nside, skies in report["skies"].items():
        drawn = skies["draw"]
        draws.add_row(
            nside + ("*" if drawn["plane fix"] else ""),
            _seconds(drawn[OURS]),
            *(_size(drawn[OURS], what) for what in ("peak", "process")),
            _seconds(drawn.get(D11)),
            *(_size(drawn.get(D11), what) for what in ("peak", "process")),
            _cell(drawn["times as fast"]),
            _cell(drawn["share of memory"]),
            _cell(drawn["share of process"]),
            _seconds(drawn["part"]),
            _cell(drawn["part over full"]),
            _cell(drawn["worst part over full"]),
        )
        for kind, bands in skies.get("emission", {}).items():
            if "failed" in bands:
                emission.add_row(nside, kind, bands["failed"])
                continue
            for points, entry in bands.items():
                emission.add_row(
                    *(nside, kind, points),
                    *(_seconds(entry[OURS]), _size(entry[OURS])),
                    *(_seconds(entry[D1]), _size(entry[D1])),
                    _cell(entry["times as fast"]),
                    _cell(entry["share of memory"]),
                    _cell(entry["largest difference"], "{:.1e}"),
                )
    draws.caption = "* with d11's fix of the Galactic plane"
    shown = [draws, emission]
    for nside, skies in report["skies"].items():
        if "stages" not in skies.get("profile", {}):
            continue
        profiled = Table(title=f"Where a draw of nside {nside} on one thread spends its time")
        for column in ("stage", "s", "share", "floor s", "GB moved", "10⁹ operations"):
            profiled.add_column(column)
        found = dict(skies["profile"]["stages"])
        sed = skies.get("emission", {}).get("maps", {}).get("10")
        found["SED, 10 points"] = sed[OURS]["seconds"] if sed else None
        for stage, seconds in found.items():
            need = skies["profile"]["needs"].get(stage, {})
            operations = need.get("multiply-adds", need.get("exponentials"))
            profiled.add_row(
                stage,
                _cell(seconds),
                _cell(seconds and seconds / skies["profile"]["seconds"], "{:.0%}"),
                _cell(need.get("floor")),
                _cell(need.get("bytes") and need["bytes"] / 1e9),
                _cell(operations and operations / 1e9),
            )
        shown.append(profiled)
    return shown


def figure(report: dict[str, Any]) -> Figure:
    """Times and memory against nside, and where the time goes."""
    drawn = Figure(figsize=(13, 8), layout="constrained")
    FigureCanvasAgg(drawn)
    (time_axis, memory_axis), (band_axis, stage_axis) = drawn.subplots(2, 2)
    skies = report["skies"]

    def line(axis: Any, label: str, style: str, values: dict[str, float | None]) -> None:
        known = {int(nside): value for nside, value in values.items() if value is not None}
        if known:
            axis.loglog(list(known), list(known.values()), style, marker="o", label=label)

    names = {OURS: "VAEDust", "part": "VAEDust, 1 % of the sky", D11: "PySM, d11"}
    for (key, label), style in zip(names.items(), ("C0-", "C0:", "C1-"), strict=True):
        for axis, what, unit in ((time_axis, "seconds", 1.0), (memory_axis, "peak", 1e9)):
            line(
                axis,
                label,
                style,
                {
                    n: s["draw"][key][what] / unit if what in s["draw"].get(key, {}) else None
                    for n, s in skies.items()
                },
            )
    for points, style in zip(map(str, POINTS), (":", "-", "--"), strict=True):
        for who, colour in ((OURS, "C0"), (D1, "C1")):
            values = {
                n: s["emission"]["maps"][points][who]["seconds"]
                for n, s in skies.items()
                if points in s.get("emission", {}).get("maps", {})
            }
            label = f"{'VAEDust' if who == OURS else 'PySM, d1'}, {points}"
            line(band_axis, label, colour + style, values)
    profiled = {n: s["profile"] for n, s in skies.items() if "stages" in s.get("profile", {})}
    order = list(dict.fromkeys(stage for p in profiled.values() for stage in p["stages"]))
    bottom, colours = np.zeros(len(profiled)), colormaps["tab20"]
    for i, stage in enumerate(order):
        heights = np.array([p["stages"].get(stage, 0) / p["seconds"] for p in profiled.values()])
        stage_axis.bar(list(profiled), heights, bottom=bottom, label=stage, color=colours(i))
        bottom += heights
    time_axis.set(xlabel="nside", ylabel="draw [s]")
    memory_axis.set(xlabel="nside", ylabel="memory that a draw adds [GB]")
    band_axis.set(xlabel="nside", ylabel="emission at 1, 10, 64 frequencies [s]")
    stage_axis.set(xlabel="nside", ylabel="share of a draw's time")
    for axis in (time_axis, memory_axis, band_axis):
        axis.set_xticks([int(n) for n in skies], list(skies), minor=False)
        axis.set_xticks([], minor=True)
        axis.legend(fontsize=8)
    if profiled:
        stage_axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder of what comes out.")],
    nside: Annotated[list[int] | None, typer.Option(help="Repeat for more [128 to 2048].")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Processes (or calls) of a median.")] = 3,
    plane_fix: Annotated[
        bool | None,
        typer.Option(help="d11 with its fix of the Galactic plane [from nside 2048 on]."),
    ] = None,
    peer: Annotated[int, typer.Option(help="Finest nside of PySM's models.")] = 2048,
) -> None:
    """Measure draws and emission beside PySM's models, each in a process of its own."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    writable_folder(out)
    report: dict[str, Any] = {"machine": machine(), "repeats": repeats, "rates": fresh(rates)}
    console.print("first map")
    report["first map"] = measure_first_map(repeats)
    report["skies"] = {}
    nside = nside or [128, 256, 512, 1024, 2048]
    fixed = {n: n >= PLANE_NSIDE if plane_fix is None else plane_fix for n in nside}
    with tempfile.TemporaryDirectory(dir=out) as work:
        files = Path(work)
        fresh(write_d11_files, files=work, plane_fix=any(fixed[n] for n in nside if n <= peer))
        for n in nside:
            console.print(f"nside {n}: draws")
            skies: dict[str, Any] = {"draw": measure_draws(n, files, fixed[n], n <= peer, repeats)}
            report["skies"][str(n)] = skies
            console.print(f"nside {n}: profile")
            skies["profile"] = fresh(profile, nside=n)
            if "needs" in skies["profile"]:
                floors(skies["profile"], report["rates"])
            if n <= peer:
                console.print(f"nside {n}: emission")
                skies["emission"] = measure_emission(n, files, repeats)
            write_json(report, out / "sky.json")
    write_figure(figure(report), out / "sky.png")
    for each in tables(report):
        console.print(each)
    first = report["first map"]
    console.print(
        f"First map of nside 128 in a fresh process: {first['all compiled']:.1f} s with all "
        f"compilation, {first['compiled before']:.1f} s after an earlier process"
    )


if __name__ == "__main__":
    app()
