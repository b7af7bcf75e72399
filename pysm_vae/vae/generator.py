"""The door between the two wings: weights in, seeded patches out."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pysm_vae.files import atomic_write, data_path

if TYPE_CHECKING:
    from pysm_vae.vae.networks import PatchVAE

# The network that the sky wing uses when none is named.
DEFAULT_WEIGHTS = "octave"
SHIPPED_WEIGHTS = ("octave", "thorne2021")

# A chart on the sky has so many blocks a side at the scale of the template, refined so many times.
CHART_BLOCKS = 9
CHART_DEPTHS = (3, 4, 5, 6)

# Steps that settle the transfer to a per cent.
_TRANSFER_STEPS = 4

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
        maps = sorted(card["maps"], key=lambda each: each["pixel_size_arcmin"])
        self.environment: float = maps[0]["environment"]
        self.diffuse: float = min(each["environment"] for each in maps)
        self._arrays = _read_weights(weights, self.sha256)
        self._network: PatchVAE | None = None
        self._functions: dict[tuple[bool, bool], Any] = {}

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
    def charts(self) -> list[tuple[int, int | None]]:
        """(size, depth) of the patches that the sky wing can lay on a tile, coarse to fine.

        An ``octave`` network refines a map of 9 x 9 blocks as often as is needed: the first
        octaves of a finer chart are those of a coarser one. ``thorne2021`` has its one size.
        """
        if not self.conditional:
            return [(self.size, None)]
        return [(CHART_BLOCKS << depth, depth) for depth in CHART_DEPTHS]

    def latent_shapes(
        self, size: int | None = None, depth: int | None = None
    ) -> list[tuple[int, ...]]:
        """Shapes of the latents of one patch of ``size`` pixels a side, coarse to fine.

        ``depth`` is the number of octaves drawn (default: those of the training).
        """
        return self.network.latent_shapes(self.size if size is None else size, depth)

    def decode(
        self,
        latents: Sequence[np.ndarray],
        coarse: np.ndarray | None = None,
        *,
        beam: bool = True,
        environment: float | None = None,
    ) -> np.ndarray:
        """Decode latents in batches.

        Parameters
        ----------
        latents : sequence of ndarray, each (n, *shape)
            As :meth:`latent_shapes` says, with a leading axis of patches. With ``coarse``, only
            the latents of the octaves finer than it.
        coarse : ndarray, shape (n, m, m), optional
            Standardised block means to draw the finer octaves for.
        beam : bool
            See :meth:`pysm_vae.vae.networks.Octave.decode`; no effect on ``thorne2021``.
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
        environment = self._environment(environment, self.diffuse)
        inputs = [np.full(n, environment, np.float32)]
        inputs += [np.asarray(latent, np.float32) for latent in latents]
        if coarse is not None:
            inputs.append(np.asarray(coarse, np.float32))
        function = self._function(coarse is not None, beam)
        batches = []
        for start in range(0, n, BATCH):
            chunk = [array[start : start + BATCH] for array in inputs]
            filled = len(chunk[0])
            # A short last batch is padded, so that a size is traced (and compiled) only once.
            chunk = [np.pad(a, [(0, BATCH - filled)] + [(0, 0)] * (a.ndim - 1)) for a in chunk]
            batches.append(np.asarray(function(*chunk))[:filled])
        return np.concatenate(batches)

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
            (a multiple of 16), fixed for ``thorne2021``.
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
        environment = self._environment(environment, self.environment)
        latents = draw_latents(shapes, [(seed, i) for i in range(n)])
        if coarse is None and self.conditional:
            latents[0] = self.network.typical_top(latents[0])
        patches = self.decode(latents, coarse, environment=environment)
        if coarse is not None:
            return patches
        if calibrated and self.card["transfer"]:
            patches = self._calibrate(patches, environment)
        patches = patches - patches.mean(axis=(1, 2), keepdims=True)
        return patches / patches.std(axis=(1, 2), keepdims=True)

    def _environment(self, environment: float | None, default: float) -> float:
        if environment is None:
            return default
        if not 0 <= environment <= 1:
            raise ValueError(
                f"environment={environment!r} must lie between 0 (diffuse sky) and 1 (clouds)"
            )
        return environment

    def _calibrate(self, patches: np.ndarray, environment: float) -> np.ndarray:
        """Filter patches by the card's transfer, interpolated in the environment."""
        transfer = sorted(self.card["transfer"], key=lambda each: each["environment"])
        table = np.array([np.log(each["power"]) for each in transfer])
        known = [each["environment"] for each in transfer]
        power = np.exp([np.interp(environment, known, column) for column in table.T])
        # In cycles a training patch, so that patches of any size get the same filter.
        return _multiply_power(patches, power, self.size / patches.shape[-1])

    def _check_conditional(self) -> None:
        if not self.conditional:
            raise ValueError(
                f"weights {self.name!r} cannot be conditioned on a coarse map: leave it out, or "
                "use an 'octave' network"
            )

    def _function(self, conditional: bool, beam: bool) -> Any:
        key = (conditional, beam)
        if key not in self._functions:
            import tensorflow as tf

            network = self.network
            options = {"beam": beam} if self.conditional else {}

            def decode(environment: Any, *inputs: Any) -> Any:
                latents = list(inputs)
                if conditional:
                    options["coarse"] = latents.pop()
                return network.decode(latents, environment=environment, **options)

            # A plain graph: XLA is several times slower for these convolutions on a CPU.
            self._functions[key] = tf.function(decode, jit_compile=False)
        return self._functions[key]


def draw_latents(
    shapes: Sequence[tuple[int, ...]], keys: Sequence[tuple[int, ...]]
) -> list[np.ndarray]:
    """Draw standard normal latents, those of each patch from its own key.

    Parameters
    ----------
    shapes : sequence of tuple
        Shapes of the latents of one patch.
    keys : sequence of tuple of int
        One key a patch, such as (seed, level, tile, field). The same key always gives the same
        latents, whatever else is drawn (Philox, a counter-based generator: Salmon et al. 2011).

    Returns
    -------
    list of ndarray, float32, each (len(keys), *shape)
    """
    latents = [np.empty((len(keys), *shape), np.float32) for shape in shapes]
    for i, key in enumerate(keys):
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
        for latent in latents:
            latent[i] = rng.standard_normal(latent.shape[1:], np.float32)
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
        return Generator.from_card(data_path(f"{name}.json"))
    path = Path(name)
    if path.is_dir():
        cards = [path / f"{shipped}.json" for shipped in SHIPPED_WEIGHTS]
        path = next((card for card in cards if card.is_file()), path / "*.json")
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights {name!r}: choose 'default', one of {', '.join(SHIPPED_WEIGHTS)}, "
            "or the path of a model card (.json) that 'pysm-vae train' wrote"
        )
    return Generator.from_card(path)


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
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _assign(network: PatchVAE, arrays: dict[str, np.ndarray], name: str) -> None:
    for variable in _shipped_variables(network):
        array = arrays.get(variable.path)
        if array is None or array.shape != tuple(variable.shape):
            raise ValueError(
                f"weights {name!r} do not fit their network at {variable.path!r}: "
                "the card's 'network' entry was changed, or they come from another version"
            )
        variable.assign(array)


def measure_spectra(generator: Generator, *, n: int = 512, seed: int = 0) -> list[dict[str, Any]]:
    """Measure mean spectra of prior samples as the sky wing lays them down, to calibrate it by.

    Patches are detrended under a wide taper. The spectrum is steep, so the estimate still takes
    power from larger scales; by how much is measured on Gaussian patches of the same slope, and
    divided out.

    Parameters
    ----------
    generator : Generator
        The network.
    n : int
        Samples at the coarsest size; fewer at finer ones, where each has more modes.
    seed : int
        Of the samples.

    Returns
    -------
    list of dict
        One for each entry of :attr:`Generator.charts`: ``size``, ``depth``, ``samples``, and
        ``power``: the azimuthally averaged power at 1, 2, … ``size // 2`` cycles a patch, such that
        white noise of unit variance gives 1.
    """
    spectra = []
    bias = None
    for size, depth in generator.charts:
        shapes = generator.latent_shapes(size, depth)
        samples = max(n * generator.charts[0][0] // size, BATCH)
        total = np.zeros(size // 2)
        # A batch at a time: the finest charts are large.
        for start in range(0, samples, BATCH):
            keys = [(seed, i) for i in range(start, min(start + BATCH, samples))]
            patches = generator.decode(draw_latents(shapes, keys), beam=False)
            total += _raw_power(patches).sum(axis=0)
        power = total / samples
        if bias is None:
            number = np.arange(1, len(power) + 1)
            resolved = slice(size // 18, size // 6)
            slope = np.polyfit(np.log(number[resolved]), np.log(power[resolved]), 1)[0]
            bias = _leakage(size, slope, n, np.random.default_rng([seed, 2]))
        power[: len(bias)] /= bias
        power = [float(f"{p:.6g}") for p in power]
        spectra.append({"size": size, "depth": depth, "samples": samples, "power": power})
    return spectra


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
        calibrated = _multiply_power(samples, np.exp(ratio))
        ratio += np.interp(band, bands, target - level(calibrated))
    return [float(f"{power:.4g}") for power in np.exp(ratio)]


def _multiply_power(patches: np.ndarray, power: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Multiply spectra by the power given at 1, 2, … ``scale`` cycles a patch."""
    from pysm_vae.stats.spectra import mirror_filter, mirror_wavenumbers

    number = mirror_wavenumbers(patches.shape[-1]) * scale
    gain = np.exp(0.5 * np.interp(number, np.arange(1, len(power) + 1), np.log(power)))
    return mirror_filter(patches, gain).astype(np.float32)


def _raw_power(patches: np.ndarray) -> np.ndarray:
    from pysm_vae.stats.spectra import detrend, radial_spectrum

    return radial_spectrum(detrend(patches), width=0.35)[1]


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
        total += _raw_power(patches).mean(axis=0)
    number = np.arange(1, size // 2 + 1)
    bias = total / -(-n // quarters) / number**slope
    return bias[: size // 8]
