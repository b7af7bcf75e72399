"""The door between the two wings: weights in, seeded patches out."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import gamma

from pysm_vae.files import atomic_write, data_path, file_stamp
from pysm_vae.stats.spectra import mirror_filter, mirror_wavenumbers
from pysm_vae.threads import over

if TYPE_CHECKING:
    from pysm_vae.vae.networks import PatchVAE

# On the sky, a patch of a thorne2021 network has so many octaves more pixels than cells: 64 pixels
# are 7.3 degrees, close to the 8 degrees of its training.
THORNE_DEPTH = 4

# The network that the sky wing uses when none is named.
DEFAULT_WEIGHTS = "octave"
SHIPPED_WEIGHTS = ("octave", "thorne2021")

# Spectra are measured on planes of so many cells a side, the pixels of the coarsest map, refined so
# many times.
SPECTRA_CELLS = 32
SPECTRA_DEPTHS = (3, 4, 5, 6)
# Width of their bins in the logarithm of the wavenumber.
_BIN = 0.1
# Taper under which they are measured, as a fraction of the side at each edge.
_TAPER = 0.35
# A plane's coarsest map loses what is larger than a patch: between these cycles a cell.
_PLANE_CUT = (0.055, 0.11)

# Cells around a large patch that are drawn and cut away.
_EDGE_CELLS = 4

# Steps that settle the transfer to a per cent.
_TRANSFER_STEPS = 4

# Cells of windows that are refined at a time. With fewer the graph's overheads would count.
_CELLS_TOGETHER = 50_000
# Patches decoded at a time: enough to fill two cores, few enough for any memory.
BATCH = 32


class Generator:
    """A trained network that turns standard normal latents into patches of dust.

    Made by :func:`load_generator`. TensorFlow is imported when the first patch is decoded.

    Parameters
    ----------
    card : dict
        The model card.
    weights : Path
        The weights' file; its hash is checked against the card.

    Attributes
    ----------
    name : str
        Name of the weights.
    size : int
        Pixels a side of a training patch.
    pixel_size : float
        Arcmin a pixel of the finest training patches. Standardised log-dust is close to scale-free,
        so a patch may be laid down at another pixel size.
    environment : float
        What the finest training patches show, from 0, diffuse sky, to 1, molecular clouds:
        :meth:`sample` gives more of it.
    diffuse : float
        The most diffuse environment of the training maps, for the sky at large.
    sha256 : str
        Hash of the weights.
    """

    def __init__(self, card: dict[str, Any], weights: Path) -> None:
        self.card = card
        self.name: str = card["name"]
        self.size: int = card["size"]
        self.pixel_size: float = card["pixel_size_arcmin"]
        self.sha256: str = card["sha256"]
        _check_card(card)
        maps = sorted(card["maps"], key=lambda each: each["pixel_size_arcmin"])
        self.environment: float = maps[0]["environment"]
        self.diffuse: float = min(each["environment"] for each in maps)
        self._arrays = _read_weights(weights, self.sha256)
        self._network: PatchVAE | None = None
        self._functions: dict[tuple[Any, ...], Any] = {}
        # Charts are drawn at the same time.
        self._lock = threading.RLock()

    @classmethod
    def from_card(cls, path: str | Path) -> Generator:
        """Read a card and the weights beside it.

        Raises
        ------
        FileNotFoundError
            If the card or its weights are missing.
        ValueError
            If the card is not one of ours, or the weights are damaged or not those of the card.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no model card at {str(path)!r}")
        try:
            card = json.loads(path.read_text())
            weights = path.parent / card["weights"]
            return cls(card, weights)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{str(path)!r} is not a model card ({type(error).__name__}: {error}): "
                "name the .json that training left beside its weights"
            ) from error

    @property
    def network(self) -> PatchVAE:
        """The Keras network with the weights loaded."""
        with self._lock:
            if self._network is None:
                from pysm_vae.vae.networks import build_network

                network = build_network(self.card["architecture"], **self.card["network"])
                _assign(network, self._arrays, self.name)
                self._network = network
            return self._network

    @property
    def conditional(self) -> bool:
        """Whether patches can be drawn for a given coarse map."""
        return self.card["architecture"] == "octave"

    @property
    def spectra(self) -> list[dict[str, Any]]:
        """Mean power of what is drawn on planes: see :func:`measure_spectra`."""
        return self.card["spectra"]

    def latent_shapes(self, size: int | None = None) -> list[tuple[int, ...]]:
        """Shapes of the latents of one patch of ``size`` pixels a side, coarse to fine."""
        return self.network.latent_shapes(self.size if size is None else size)

    def decode(
        self,
        latents: Sequence[np.ndarray],
        coarse: np.ndarray | None = None,
        *,
        environment: float | None = None,
    ) -> np.ndarray:
        """Decode latents in batches.

        Parameters
        ----------
        latents : sequence of ndarray, each ``(n, *shape)``
            As :meth:`latent_shapes` says, with a leading axis of patches. With ``coarse``, only
            the latents of the octaves finer than it.
        coarse : ndarray, shape (n, m, m), optional
            Standardised block means to draw the finer octaves for.
        environment : float, optional
            From 0, diffuse sky, to 1, molecular clouds; by default :attr:`diffuse`. No effect on
            ``thorne2021``.

        Returns
        -------
        ndarray, float32, shape (n, size, size)
            Patches in the network's own units: nearly zero mean and unit variance.
        """
        n = len(latents[0])
        if coarse is not None:
            self._check_conditional()
        environment = _checked(self.diffuse if environment is None else environment)
        inputs = [np.full(n, environment, np.float32)]
        inputs += [np.asarray(latent, np.float32) for latent in latents]
        if coarse is not None:
            inputs.append(np.asarray(coarse, np.float32))
        batches = []
        for start in range(0, n, BATCH):
            chunk = [array[start : start + BATCH] for array in inputs]
            filled = len(chunk[0])
            # A short last batch is padded, so that a size is traced (and compiled) only once.
            chunk = [np.pad(a, [(0, BATCH - filled)] + [(0, 0)] * (a.ndim - 1)) for a in chunk]
            function = self._decoding(coarse is not None, [array.shape for array in chunk])
            batches.append(np.asarray(function(*chunk))[:filled])
        return np.concatenate(batches)

    def coarse_plane(self, white: np.ndarray) -> np.ndarray:
        """Coarsest maps of planes of any size, from white noise.

        The network's coarsest map is an intrinsic random field, whose variogram determines its
        spectrum. What is larger than a patch is left out: training has not seen it.

        Parameters
        ----------
        white : ndarray, shape (n, m, m)
            Standard normal numbers.

        Returns
        -------
        ndarray, float32, shape (n, m, m)
            Periodic.
        """
        power = self.coarse_power(white.shape[-1])
        waves = np.fft.rfft2(white) * np.sqrt(power[:, : white.shape[-1] // 2 + 1])
        return np.fft.irfft2(waves, s=white.shape[-2:]).astype(np.float32)

    def coarse_power(self, size: int) -> np.ndarray:
        """Power of :meth:`coarse_plane` at the modes of a plane (white noise: 1), (size, size)."""
        self._check_conditional()
        return _coarse_power(*np.asarray(self.network.variogram, float).tolist(), size)

    def refine(
        self, coarse: np.ndarray, latents: np.ndarray, level: int, margin: int = 0
    ) -> np.ndarray:
        """Draw one octave of windows of a plane, of diffuse sky.

        Parameters
        ----------
        coarse : ndarray, shape (n, rows, columns)
            The maps to refine.
        latents : ndarray, shape (n, rows, columns, latents)
            Standard normal numbers.
        level : int
            How many octaves were drawn before this one.
        margin : int
            Cells of each edge that are not refined; with :attr:`reach` of them, what is drawn does
            not depend on where the window ends.

        Returns
        -------
        ndarray, float32, shape (n, 2 (rows - 2 margin), 2 (columns - 2 margin))
        """
        self._check_conditional()
        # From there on the same step draws every octave.
        repeated = max(self.network.octaves - 2, 0)
        function = self._refining(min(level, repeated), margin)
        batches = self.batches(len(coarse), coarse.shape[1:])
        return np.concatenate([function(coarse[some], latents[some]) for some in batches])

    @staticmethod
    def batches(n: int, shape: Sequence[int]) -> list[slice]:
        """Which of ``n`` windows of a shape are refined at a time."""
        # Large windows one by one: their features are many times larger than they are.
        together = max(1, _CELLS_TOGETHER // math.prod(shape))
        return [slice(start, start + together) for start in range(0, n, together)]

    @property
    def reach(self) -> int:
        """Cells beyond one that decide, through the coarser map or the latents, what it shows."""
        return self.network.REACH

    def sample(
        self,
        n: int,
        size: int | None = None,
        seed: int = 0,
        coarse: np.ndarray | None = None,
        *,
        environment: float | None = None,
        calibrated: bool = True,
    ) -> np.ndarray:
        """Draw patches from the prior.

        Parameters
        ----------
        n : int
            How many.
        size : int, optional
            Pixels a side; the default is the training size. Free for ``octave`` networks
            (a multiple of 16), fixed for ``thorne2021``. Larger patches are cut from a periodic
            plane, without what is larger than a training patch.
        seed : int
            Patch ``i`` depends on ``(seed, i)`` alone.
        coarse : ndarray, shape (n, m, m), optional
            Standardised block means to draw the finer octaves for; ``size`` is a power of two
            times ``m``.
        environment : float, optional
            From 0, diffuse sky, to 1, molecular clouds; by default :attr:`environment`.
        calibrated : bool
            Bring the mean spectrum to the training patches', with a filter measured when the
            weights were trained. It changes amplitudes and no structure; the card has it
            (``transfer``). No effect with ``coarse``, nor on ``thorne2021``.

        Returns
        -------
        ndarray, float32, shape (n, size, size)
            Standardised log-intensity (each patch has zero mean and unit variance), at
            :attr:`pixel_size` arcmin a pixel or, as dust is close to scale-free, any other. With
            ``coarse``, in the units of the coarse map instead.
        """
        if n < 1:
            raise ValueError(f"n={n}: draw at least one patch")
        size = self.size if size is None else size
        shapes = self.latent_shapes(size)
        if coarse is not None:
            self._check_conditional()
            coarse = np.asarray(coarse)
            if coarse.ndim != 3 or len(coarse) != n or coarse.shape[1] != coarse.shape[2]:
                raise ValueError(
                    f"coarse has the shape {coarse.shape}: for n={n} patches it must be "
                    f"({n}, m, m), one square map for each"
                )
            grid = coarse.shape[-1]
            shapes = [shape for shape in shapes[1:] if shape[0] >= grid]
            if not shapes or shapes[0][0] != grid:
                raise ValueError(
                    f"a coarse map of {grid} pixels does not refine to {size}: "
                    "size must be a power of two times it"
                )
        environment = self.checked_environment(environment)
        keys = [(seed, i) for i in range(n)]
        if coarse is not None:
            return self.decode(draw_latents(shapes, keys), coarse, environment=environment)
        if self.conditional and size > self.size:
            patches = self._cut_from_planes(size, keys, environment)
        else:
            latents = draw_latents(shapes, keys)
            if self.conditional:
                latents[0] = self.network.typical_top(latents[0])
            patches = self.decode(latents, environment=environment)
        transfer = self.transfer(size, environment) if calibrated else None
        if transfer is not None:
            patches = mirror_filter(patches, transfer).astype(np.float32)
        patches = patches - patches.mean(axis=(1, 2), keepdims=True)
        return patches / patches.std(axis=(1, 2), keepdims=True)

    def _cut_from_planes(
        self, size: int, keys: Sequence[tuple[int, ...]], environment: float
    ) -> np.ndarray:
        """Patches larger than those of the training, ``(n, size, size)``.

        The network's own coarsest map would have larger scales than training has seen, and what is
        next to an edge on the coarsest grids would show.
        """
        from pysm_vae.vae.networks import MAX_GRID

        step = 2**self.network.octaves
        margin = min(_EDGE_CELLS, (MAX_GRID - size // step) // 2) * step
        shapes = self.latent_shapes(size + 2 * margin)
        white, *latents = draw_latents(shapes, keys)
        grid = math.isqrt(white.shape[1])
        start = self.coarse_plane(white.reshape(-1, grid, grid))
        patches = self.decode(latents, start, environment=environment)
        return patches[:, margin : margin + size, margin : margin + size]

    def checked_environment(self, environment: float | None) -> float:
        """The environment of :meth:`sample`: the one given, or :attr:`environment`.

        Raises
        ------
        ValueError
            If it does not lie between 0 and 1.
        """
        return _checked(self.environment if environment is None else environment)

    def transfer(self, size: int, environment: float) -> np.ndarray | None:
        """What :meth:`sample` multiplies the modes of patches by, if the card has such a filter.

        Returns
        -------
        ndarray, shape (size, size)
            The card's transfer, interpolated in the environment, on the modes of
            :func:`pysm_vae.stats.spectra.mirror_wavenumbers`.
        """
        if not self.card["transfer"]:
            return None
        transfer = sorted(self.card["transfer"], key=lambda each: each["environment"])
        table = np.array([np.log(each["power"]) for each in transfer])
        known = [each["environment"] for each in transfer]
        power = np.exp([np.interp(environment, known, column) for column in table.T])
        # In cycles a training patch, so that patches of any size get the same filter.
        return _gain(size, power, self.size / size)

    def _check_conditional(self) -> None:
        if not self.conditional:
            raise ValueError(
                f"weights {self.name!r} cannot be conditioned on a coarse map: leave it out, or "
                "use an 'octave' network"
            )

    def _decoding(self, conditional: bool, shapes: list[tuple[int, ...]]) -> Any:
        network = self.network

        def decode(environment: Any, *inputs: Any) -> Any:
            latents = list(inputs)
            coarse = {"coarse": latents.pop()} if conditional else {}
            return network.decode(latents, environment=environment, **coarse)

        return self._graph(("decode", conditional), decode, shapes)

    def _refining(self, level: int, margin: int) -> Any:
        network = self.network

        def refine(coarse: Any, latents: Any) -> Any:
            return network.refine(coarse, latents, self.diffuse, level, margin)

        # One graph for windows of any size: there are many sizes, and each would be traced.
        anywhere = None, None, None
        shapes = [anywhere, (*anywhere, network.latents)]
        return self._graph(("refine", level, margin), refine, shapes)

    def _graph(
        self,
        key: tuple[Any, ...],
        function: Callable[..., Any],
        shapes: Sequence[tuple[int | None, ...]],
    ) -> Any:
        """A function that the key names, compiled for inputs of these shapes."""
        key = (*key, *shapes)
        # By one thread, while others wait: TensorFlow would warn of them, too.
        with self._lock:
            if key not in self._functions:
                import tensorflow as tf

                specs = [tf.TensorSpec(shape) for shape in shapes]
                self._functions[key] = plain_graph(function, specs).get_concrete_function()
            return self._functions[key]


# The same for all charts and skies.
@lru_cache(maxsize=8)
def _coarse_power(scale: float, exponent: float, size: int) -> np.ndarray:
    # Of a field with the variogram g r^h the spectral density is A |omega|^(-2 - h) with
    # 2 pi g / A = int (1 - J0(x)) x^(-1 - h) dx (DLMF 10.22.43, continued in h).
    integral = -(2 ** (-1 - exponent)) * gamma(-exponent / 2) / gamma(1 + exponent / 2)
    k = np.fft.fftfreq(size)
    number = np.hypot(*np.meshgrid(k, k))
    fold = np.arange(-4, 5)
    axis = np.add.outer(k, fold)
    omega = 2 * np.pi * np.hypot(axis[:, None, :, None], axis[None, :, None, :])
    omega[0, 0, 4, 4] = np.inf
    density = (omega ** (-2 - exponent)).sum(axis=(2, 3))
    # Of what is folded in from further out, the mean: beyond a circle of the same area.
    beyond = 2 * np.pi * len(fold) / np.sqrt(np.pi)
    density += beyond**-exponent / (2 * np.pi * exponent)
    low, high = _PLANE_CUT
    rise = np.clip((number - low) / (high - low), 0, 1)
    power = 2 * np.pi * scale / integral * density * np.sin(0.5 * np.pi * rise) ** 2
    power.flags.writeable = False
    return power


def one_thread_an_operation() -> None:
    """Have TensorFlow work on each of its operations with one thread, for drawing skies.

    Windows of skies are drawn side by side (:mod:`pysm_vae.threads`), and an operation on one of
    them is too short to be shared out: threads would wait for each other (``benchmarks/sky.py``
    with ``TF_NUM_INTRAOP_THREADS=2`` tells how long). The setting is one of the whole process. So
    it is left alone where TensorFlow was imported before, by whoever wants it for something else,
    or where that variable has it.
    """
    if "tensorflow" in sys.modules or os.environ.get("TF_NUM_INTRAOP_THREADS"):
        return
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)


def plain_graph(function: Callable[..., Any], input_signature: Any = None) -> Any:
    """Compile a function of TensorFlow's operations.

    Not with XLA, which is several times slower for these convolutions on a CPU; and without
    AutoGraph, which takes longer than the rest, for branches and loops that there are none of.

    Parameters
    ----------
    function : callable
        Of tensors.
    input_signature : list, optional
        Specifications of its arguments, for shapes that differ from call to call.
    """
    import tensorflow as tf

    return tf.function(
        function, input_signature=input_signature, jit_compile=False, autograph=False
    )


def _checked(environment: float) -> float:
    if not 0 <= environment <= 1:
        raise ValueError(
            f"environment={environment!r} must lie between 0 (diffuse sky) and 1 (clouds)"
        )
    return environment


def draw_latents(
    shapes: Sequence[tuple[int, ...]], keys: Sequence[tuple[int, ...]]
) -> list[np.ndarray]:
    """Draw standard normal latents, those of each patch from its own key.

    Parameters
    ----------
    shapes : sequence of tuple
        Shapes of the latents of one patch.
    keys : sequence of tuple of int
        One key a patch, such as (seed, number). The same key always gives the same
        latents, whatever else is drawn (SFC64, the fastest of numpy's generators at this).

    Returns
    -------
    list of ndarray, float32, each (len(keys), *shape)
    """
    latents = [np.empty((len(keys), *shape), np.float32) for shape in shapes]

    def fill(i: int, _: int) -> None:
        rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(keys[i])))
        for latent in latents:
            rng.standard_normal(dtype=np.float32, out=latent[i])

    over(len(keys), fill, piece=1)
    return latents


def load_generator(weights: str | Path = "default") -> Generator:
    """Load a trained generator.

    Parameters
    ----------
    weights : str or path-like
        ``"default"``, the name of shipped weights (``"octave"`` or ``"thorne2021"``), or the path
        of the model card (``.json``) of your own training.

    Raises
    ------
    FileNotFoundError
        If there are no such weights.
    ValueError
        If the weights are damaged or do not belong to their card.
    """
    name = DEFAULT_WEIGHTS if weights == "default" else str(weights)
    if name in SHIPPED_WEIGHTS:
        return _shipped(name)
    path = Path(name)
    if path.is_dir():
        cards = [path / f"{shipped}.json" for shipped in SHIPPED_WEIGHTS]
        path = next((card for card in cards if card.is_file()), path / "*.json")
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights {name!r}: choose 'default', one of {', '.join(SHIPPED_WEIGHTS)}, "
            "or the path of a model card (.json) that 'pysm-vae train' wrote"
        )
    beside = path.with_suffix(".npz")
    return _loaded(file_stamp(path), file_stamp(beside) if beside.is_file() else None)


# Shared, so that their functions are traced once, and skies share what is worked out for one;
# nothing changes a generator.


@lru_cache
def _shipped(name: str) -> Generator:
    return Generator.from_card(data_path(f"{name}.json"))


@lru_cache(maxsize=4)
def _loaded(card: tuple[str, int, int], weights: tuple[str, int, int] | None) -> Generator:
    del weights  # with others, it is another generator
    return Generator.from_card(card[0])


def save_weights(network: PatchVAE, path: Path) -> str:
    """Write the weights that generation needs as plain single-precision arrays.

    The dense encoder of ``thorne2021`` is left out: it is 14 times the rest, and generation does
    not need it.

    Returns
    -------
    str
        SHA-256 of the file.
    """
    arrays = {}
    for variable in _shipped_variables(network):
        arrays[variable.path] = np.asarray(variable.numpy(), np.float32)
    with atomic_write(path) as partial:
        # Fixed time stamps, so that the same weights give the same file.
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array, allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue())
        return hashlib.sha256(partial.read_bytes()).hexdigest()


def _shipped_variables(network: PatchVAE) -> list[Any]:
    """Variables that the weights' file holds: not those of training, nor a dense encoder."""
    skip = ["seed_generator", "kl_weight", "optimizer", "/critic/"]
    if network.name == "thorne2021":
        skip += ["/encoder/", "latent_mean", "latent_log_scale"]
    return [v for v in network.variables if not any(part in f"/{v.path}" for part in skip)]


def _read_weights(path: Path, sha256: str) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"the card's weights are missing: {str(path)!r}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(
            f"weights {str(path)!r} are damaged or not those of their card (the SHA-256 differs): "
            "copy the weights and the card again, together"
        )
    try:
        # Nothing in a file of weights is ever run: it holds numbers, and what else it may hold is
        # refused.
        with (
            zipfile.ZipFile(io.BytesIO(content)),
            np.load(io.BytesIO(content), allow_pickle=False) as archive,
        ):
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"weights {str(path)!r} are not plain arrays ({error}): name the card that training "
            "left beside its own weights"
        ) from error
    for name, array in arrays.items():
        # A context that is switched off has an infinite scale.
        if array.dtype.kind != "f" or np.isnan(array).any():
            raise ValueError(f"weights {str(path)!r}: {name!r} has values that are not numbers")
    return arrays


def _check_card(card: dict[str, Any]) -> None:
    """Refuse a card whose entries are not what they should be; those that lack raise KeyError."""
    size, pixel = card["size"], card["pixel_size_arcmin"]
    whole = isinstance(size, int)
    for key, right in (
        ("name", isinstance(card["name"], str)),
        ("architecture", isinstance(card["architecture"], str)),
        ("size", whole and 16 <= size <= 4096 and size % 16 == 0),
        ("pixel_size_arcmin", type(pixel) in (float, int) and 0 < pixel < math.inf),
        ("sha256", isinstance(card["sha256"], str)),
        ("maps", isinstance(card["maps"], list) and len(card["maps"]) > 0),
    ):
        if not right:
            raise TypeError(f"{key!r} is {card[key]!r}")


def _assign(network: PatchVAE, arrays: dict[str, np.ndarray], name: str) -> None:
    for variable in _shipped_variables(network):
        array = arrays.get(variable.path)
        if array is None or array.shape != tuple(variable.shape):
            raise ValueError(
                f"weights {name!r} do not fit their network at {variable.path!r}: "
                "the card's 'network' entry was changed, or they come from another version"
            )
        variable.assign(array)


def measure_spectra(generator: Generator, *, n: int = 128, seed: int = 0) -> list[dict[str, Any]]:
    """Measure mean spectra of what the sky wing draws, to calibrate it by.

    Parameters
    ----------
    generator : Generator
        The network. An ``octave`` network draws planes, refined as often as is needed;
        ``thorne2021`` has patches of its one size.
    n : int
        Planes of the coarsest size; fewer of finer ones, which have more modes each.
    seed : int
        Of the samples.

    Returns
    -------
    list of dict
        For each depth: ``depth`` (there are ``2**depth`` pixels a cell), ``samples``, and the
        azimuthally averaged ``power`` at wavenumbers ``cycles``, in cycles a cell, such that white
        noise of unit variance gives 1.
    """
    from pysm_vae.stats.spectra import radial_spectrum

    if not generator.conditional:
        return [_patch_spectrum(generator, n, seed)]
    spectra, known = [], None
    for depth in SPECTRA_DEPTHS:
        samples = max(n >> (depth - SPECTRA_DEPTHS[0]), 8)
        size = SPECTRA_CELLS << depth
        power, coarser = np.zeros(size // 2), np.zeros(size // 4)
        # One at a time: the finest are large.
        for number in range(samples):
            plane = _plane(generator, depth, (seed, number))
            power += radial_spectrum(plane, width=_TAPER)[1][0] / samples
            means = plane.reshape(1, size // 2, 2, size // 2, 2).mean(axis=(2, 4))
            coarser += radial_spectrum(means, width=_TAPER)[1][0] / samples
        if known is not None:
            # More planes were measured one octave before, and a sky must be the same at any depth:
            # large scales come from there, and from here what the octave has changed in them.
            large = size // 8
            power[:large] *= known[:large] / coarser[:large]
        known = power
        spectra.append(_entry(SPECTRA_CELLS, depth, samples, power))
    return spectra


def _patch_spectrum(generator: Generator, n: int, seed: int) -> dict[str, Any]:
    """Of patches of one size, which take power from scales larger than they are.

    By how much is measured on Gaussian patches of the same slope, and divided out.
    """
    latents = draw_latents(generator.latent_shapes(), [(seed, i) for i in range(n)])
    power = _raw_power(generator.decode(latents))
    size = generator.size
    number = np.arange(1, len(power) + 1)
    resolved = slice(size // 18, size // 6)
    slope = np.polyfit(np.log(number[resolved]), np.log(power[resolved]), 1)[0]
    bias = _leakage(size, slope, n, np.random.default_rng([seed, 2]))
    power[: len(bias)] /= bias
    return _entry(size >> THORNE_DEPTH, THORNE_DEPTH, n, power)


def _entry(cells: int, depth: int, samples: int, power: np.ndarray) -> dict[str, Any]:
    """An entry of a card, from the power at 1, 2, … cycles in so many cells.

    Averaged in bins, so that chance from one wavenumber to the next does not make filters ring.
    """
    number = np.arange(1, len(power) + 1)
    bins = np.floor(np.log(number) / _BIN)
    index = np.unique(bins, return_inverse=True)[1]
    # There are as many modes as the wavenumber is high.
    modes = np.bincount(index, number)
    cycles = np.exp(np.bincount(index, number * np.log(number)) / modes) / cells
    mean = np.exp(np.bincount(index, number * np.log(power)) / modes)
    return {
        "depth": depth,
        "samples": samples,
        "cycles": [float(f"{c:.6g}") for c in cycles],
        "power": [float(f"{p:.6g}") for p in mean],
    }


def _plane(generator: Generator, depth: int, key: tuple[int, ...]) -> np.ndarray:
    """A plane of diffuse sky, ``(1, size, size)``."""
    shapes: list[tuple[int, ...]] = [(SPECTRA_CELLS, SPECTRA_CELLS)]
    for level in range(depth):
        grid = SPECTRA_CELLS << level
        shapes.append((grid, grid, generator.network.latents))
    white, *latents = draw_latents(shapes, [key])
    plane = generator.coarse_plane(white)
    for level, latent in enumerate(latents):
        plane = generator.refine(plane, latent, level)
    return plane


def measure_transfer(
    generator: Generator, patches: np.ndarray, environment: float, *, n: int = 512, seed: int = 0
) -> list[float]:
    """Measure what brings the samples' mean spectrum to that of training patches.

    Parameters
    ----------
    generator : Generator
        The network; its own transfer, if its card has one, is not used.
    patches : ndarray, shape (m, size, size)
        Standardised training patches of one environment.
    environment : float
        The environment.
    n : int
        Samples.
    seed : int
        Of the samples.

    Returns
    -------
    list of float
        Power of the patches over that of the samples at 1, 2, … ``size // 2`` cycles a patch, from
        the means of ln C in bands a third of an octave wide.
    """
    from pysm_vae.stats.spectra import radial_spectrum, standardise

    samples = generator.sample(n, seed=seed, environment=environment, calibrated=False)
    number = np.arange(1, samples.shape[-1] // 2 + 1)
    band = 3 * np.log2(number)
    bands, index = np.unique(np.rint(band), return_inverse=True)

    def level(patches: np.ndarray) -> np.ndarray:
        power = radial_spectrum(standardise(patches))[1]
        summed = np.stack([np.bincount(index, weights=row) for row in power])
        return np.log(summed / np.bincount(index)).mean(axis=0)

    target = level(patches)
    ratio = np.zeros(len(number))
    # The taper of the estimate, and standardising, mix wavenumbers a little: hence again.
    for _ in range(_TRANSFER_STEPS):
        calibrated = mirror_filter(samples, _gain(samples.shape[-1], np.exp(ratio)))
        ratio += np.interp(band, bands, target - level(calibrated))
    return [float(f"{power:.4g}") for power in np.exp(ratio)]


def _gain(size: int, power: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Amplitudes of a filter whose power is given at 1, 2, … ``scale`` cycles a patch."""
    number = mirror_wavenumbers(size) * scale
    return np.exp(0.5 * np.interp(number, np.arange(1, len(power) + 1), np.log(power)))


def _raw_power(patches: np.ndarray) -> np.ndarray:
    from pysm_vae.stats.spectra import detrend, radial_spectrum

    return radial_spectrum(detrend(patches), width=_TAPER)[1].mean(axis=0)


def _leakage(size: int, slope: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Measured over true power of Gaussian patches of a power-law spectrum, from 1 cycle a patch.

    The patches are cut from periodic fields four times their size. Only wavenumbers up to a quarter
    of the patch's Nyquist frequency are given; the leakage falls as the inverse square.
    """
    box = 4 * size
    k = np.hypot(np.fft.fftfreq(box)[:, None], np.fft.rfftfreq(box)[None, :]) * size
    k[0, 0] = 1.0
    amplitude = k ** (0.5 * slope)
    amplitude[0, 0] = 0.0  # patches lose their mean
    total = np.zeros(size // 2)
    quarters = 16
    for _ in range(-(-n // quarters)):
        field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((box, box))) * amplitude)
        patches = field.reshape(4, size, 4, size).swapaxes(1, 2).reshape(quarters, size, size)
        total += _raw_power(patches)
    number = np.arange(1, size // 2 + 1)
    bias = total / -(-n // quarters) / number**slope
    return bias[: size // 8]
