"""Inverse tasks: what a trained generator says of a patch that was seen in part, and through noise.

Data are ``d = A x + n`` with ``x`` a patch of log-intensity, ``A`` a beam and a mask, and ``n``
Gaussian noise (:class:`Observation`). The prior of ``x`` is the generator's (:class:`PatchModel`).
:func:`maximise` finds the most probable latents, :func:`sample_posterior` draws from all of them by
Hamiltonian Monte Carlo.

The prior is the whole model that was trained, which has noise in the decoder: each octave's details
are what the network makes of standard normal latents, plus Gaussian noise of ``residual`` (0.1)
times their scale. :meth:`Generator.sample` leaves that noise out; here its power is filtered away.
It eases sampling: without it half the directions of the latents, of which there are twice as many
as pixels, are free, and the others are pinned on a thin, curved sheet.

Of patches that the model itself has drawn, intervals hold the truth as often as they say
(``benchmarks/inverse.py``: 68 and 95 per cent held 66 and 94 of the hidden pixels), although chains
are slow to agree in holes: look at the diagnostics. Real sky is given more of the decoder's noise
(:meth:`PatchModel.for_data`), without which intervals in its holes are too narrow; they still are a
little (``docs/realism.md``).

Details that the data know better than that noise does are sampled as maps (*centred*), the others
as latents (Papaspiliopoulos, Roberts & Sköld 2007, Statist. Sci. 22, 59): then data pin down maps,
in which they are linear, and latents are held no tighter than by the decoder's noise. That is so
cell by cell: in a hole, maps would be held by the decoder alone, and could hardly move.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import fft, linalg, ndimage, optimize

from pysm_vae.files import atomic_write
from pysm_vae.stats.spectra import mirror_filter, mirror_wavenumbers, standardise
from pysm_vae.stats.wiener import mirror_power
from pysm_vae.vae.generator import Generator, plain_graph

log = logging.getLogger(__name__)

# Called with (what, done, total).
Progress = Callable[[str, int, int], None]

# Gaussian: FWHM = sqrt(8 ln 2) sigma.
_SIGMA_PER_FWHM = 1 / math.sqrt(8 * math.log(2))

# Patches of which the power is compared with and without the decoder's noise.
_COMPARED = 256

# Steps of a quasi-Newton search, and of its memory.
_SEARCH_STEPS = 150
_SEARCH_MEMORY = 30

# Random projections that measure the mass matrix, its diagonal to 9 per cent, and how much of what
# is beside the diagonal is left out; and the same where it need not be so good, for a search.
_PROBES, _SHRINKAGE = 256, 0.1
_FEW_PROBES, _MORE_SHRINKAGE = 32, 0.5
_PROBE_BATCH = 8
# Coarse variables whose curvature is known in full: whole octaves, so many variables at most;
# derivatives that are taken at a time; and places that it is averaged over.
_FULL = 3072
_FULL_BATCH = 32
_FULL_PLACES = 4

# Decoder's noise in sky that training has not seen, but for the finest octave, most of whose power
# it would be.
_UNSEEN_RESIDUAL = 0.3

# Length of a trajectory, in units in which a standard normal has a quarter period of pi / 2, and
# how much it is varied, so that none returns to where it came from (Neal 2011, section 3.2).
_TRAJECTORY = 1.5
_JITTER = 0.4
_MOST_STEPS = 64
# Chains start far from where they will be: in the first half of the warm-up, before the masses are
# measured where they have got to, no trajectory is longer than so many steps.
_SETTLING_STEPS = 10
_SHORTEST_WARMUP = 40
# Rate of acceptance that step sizes are adapted to; near the best in many dimensions (0.65: Beskos
# et al. 2013, Bernoulli 19, 1501).
_ACCEPTANCE = 0.7
# An error of the energy that only a diverging trajectory makes (Stan's limit).
_DIVERGENCE = 1000.0
# Above this, chains do not agree (Gelman & Rubin 1992, Statist. Sci. 7, 457).
_LARGEST_RHAT = 1.1


class ConvergenceWarning(UserWarning):
    """Chains that do not agree, or diverge: their draws are not yet those of the posterior."""


@dataclass(frozen=True)
class Observation:
    """Data ``d = A x + n`` of a patch.

    Parameters
    ----------
    data : ndarray, shape (size, size)
        Natural logarithm of intensity, in any unit. Values that the mask hides do not count and may
        be NaN.
    noise : float or ndarray, shape (size, size) or (size // 2,)
        Standard deviation of the noise, of all pixels or of each; or its power at 1, 2, …
        ``size // 2`` cycles a patch, of which the first and last go on beyond (white noise of
        variance one: 1), for stationary noise.
    mask : ndarray of bool, shape (size, size), optional
        True where there are data; by default where they are finite.
    beam : float or ndarray, shape (size // 2,), optional
        FWHM of a Gaussian beam in pixels, or the beam's response at 1, 2, … cycles a patch. It acts
        on log-intensity, and takes the patch to go on as its mirror image beyond its edges.

    Raises
    ------
    ValueError
        If shapes do not agree, nothing is observed, data that the mask does not hide are not
        finite, or noise or beam are not usable.
    """

    data: np.ndarray
    noise: float | np.ndarray
    mask: np.ndarray | None = None
    beam: float | np.ndarray | None = None

    def __post_init__(self) -> None:
        data = np.array(self.data, dtype=float)
        if data.ndim != 2 or data.shape[0] != data.shape[1]:
            raise ValueError(f"data have the shape {data.shape}: they must be one square patch")
        if self.mask is None:
            mask = np.isfinite(data)
        else:
            mask = np.array(self.mask)
            if mask.shape != data.shape:
                raise ValueError(f"the mask has the shape {mask.shape}, the data {data.shape}")
            if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
                raise ValueError("the mask must be boolean: True where there are data")
            mask = mask.astype(bool)
        if not mask.any():
            raise ValueError("the mask hides every pixel: nothing is observed, draw from the prior")
        bad = int((~np.isfinite(data[mask])).sum())
        if bad:
            raise ValueError(
                f"{bad} pixels that the mask does not hide are not finite: hide them, too"
            )
        if mask.sum() > 1 and np.ptp(data[mask]) == 0:
            raise ValueError("the data are constant: nothing can be fitted to them")
        object.__setattr__(self, "data", np.where(mask, data, 0.0))
        object.__setattr__(self, "mask", mask)
        object.__setattr__(self, "noise", self._checked_noise())
        object.__setattr__(self, "beam", self._checked_beam())

    def _checked_noise(self) -> float | np.ndarray:
        noise = np.array(self.noise, dtype=float)
        if noise.shape not in ((), self.data.shape, (self.size // 2,)):
            raise ValueError(
                f"noise has the shape {noise.shape}: give one number, a map {self.data.shape}, "
                f"or a spectrum ({self.size // 2},)"
            )
        used = noise[self.mask] if noise.ndim == 2 else noise
        if not (np.isfinite(used) & (used > 0)).all():
            raise ValueError(
                "noise must be positive and finite wherever there are data: where it is zero or "
                "unknown, give a small number, such as a hundredth of the signal's"
            )
        if noise.ndim == 2:
            return np.where(self.mask, noise, np.inf)
        return float(noise) if noise.ndim == 0 else noise

    def _checked_beam(self) -> float | np.ndarray | None:
        if self.beam is None:
            return None
        beam = np.array(self.beam, dtype=float)
        if beam.shape not in ((), (self.size // 2,)):
            raise ValueError(
                f"beam has the shape {beam.shape}: give its FWHM in pixels, or its response "
                f"({self.size // 2},)"
            )
        if not (np.isfinite(beam) & (beam >= 0)).all():
            raise ValueError("the beam must be finite and not negative")
        return float(beam) if beam.ndim == 0 else beam

    @property
    def size(self) -> int:
        """Pixels a side."""
        return len(self.data)

    @cached_property
    def response(self) -> np.ndarray | None:
        """The beam's response on the modes of :func:`mirror_wavenumbers`, (size, size)."""
        if self.beam is None:
            return None
        number = mirror_wavenumbers(self.size)
        if isinstance(self.beam, float):
            sigma = self.beam * _SIGMA_PER_FWHM
            return np.exp(-0.5 * (2 * np.pi * number / self.size * sigma) ** 2)
        # The mean is not dimmed.
        known = np.arange(len(self.beam) + 1)
        return np.interp(number, known, [1.0, *self.beam])

    @cached_property
    def noise_power(self) -> np.ndarray | None:
        """Power of stationary noise on the modes of :func:`mirror_wavenumbers`, if it is that."""
        if not isinstance(self.noise, np.ndarray) or self.noise.ndim == 2:
            return None
        number = mirror_wavenumbers(self.size)
        return np.interp(number, np.arange(1, len(self.noise) + 1), self.noise)

    @property
    def precision(self) -> np.ndarray:
        """Inverse variance of the noise in each pixel, (size, size); 0 where nothing is seen.

        Of stationary noise, as if it were white.
        """
        sigma = self.rms if self.noise_power is not None else self.noise
        return np.where(self.mask, 1 / np.broadcast_to(sigma, self.mask.shape) ** 2, 0.0)

    @property
    def rms(self) -> float:
        """Typical standard deviation of the noise of an observed pixel."""
        if self.noise_power is not None:
            return float(np.sqrt(self.noise_power.mean()))
        if isinstance(self.noise, float):
            return self.noise
        return float(np.mean(self.noise[self.mask] ** -2.0) ** -0.5)

    def seen(self, patches: np.ndarray) -> np.ndarray:
        """What an instrument without noise would see of patches ``(…, size, size)``: the beam."""
        return patches if self.response is None else _mirror(patches, self.response)

    def simulate(self, patch: np.ndarray, rng: np.random.Generator) -> Observation:
        """Observe another patch in the same way.

        Parameters
        ----------
        patch : ndarray, shape (size, size)
            What is there.
        rng : numpy.random.Generator
            Of the noise.
        """
        noise = rng.standard_normal(patch.shape)
        if self.noise_power is not None:
            noise = _mirror(noise, np.sqrt(self.noise_power))
        else:
            noise = noise * np.where(self.mask, self.noise, 0.0)
        return Observation(self.seen(patch) + noise, self.noise, self.mask, self.beam)

    def chi2(self, patch: np.ndarray) -> float:
        """Mean square of ``(d - A x) / sigma`` over the observed pixels.

        Of stationary noise, ``sigma`` is the same for all pixels.
        """
        sigma = self.rms if self.noise_power is not None else self.noise
        residual = ((self.data - self.seen(patch)) / sigma)[self.mask]
        return float(np.mean(residual**2))


class PatchModel:
    """The prior of a patch: a generator, with the mean and the scale that it does not know.

    A patch of log-intensity is ``mean + scale * p``, with ``p`` a patch of the generator, whose own
    mean is zero and whose variance is about one. ``mean`` is normal and ``scale`` log-normal, and
    both are sampled with the rest.

    Parameters
    ----------
    generator : Generator
        An ``octave`` network.
    size : int
        Pixels a side.
    environment : float, optional
        From 0, diffuse sky, to 1, molecular clouds; by default, as :meth:`Generator.sample`, that
        of the finest training patches.
    mean, mean_spread : float
        Of the patch's mean: expectation and standard deviation.
    scale, scale_spread : float
        Of the patch's scale: median, and standard deviation of its logarithm.
    calibrated : bool
        Filter patches by the card's transfer, as :meth:`Generator.sample` does, and so that the
        decoder's noise adds no power.
    residual : float or sequence of float, optional
        Standard deviation of the decoder's noise, in units of the details' scale, in all octaves or
        in each, fine to coarse; by default that of the training. Of sky that training has not seen,
        details lie further from what the network makes: more of it makes holes less certain.

    Raises
    ------
    ValueError
        If the network is not an ``octave`` one, or the size or a number does not suit it.
    """

    def __init__(
        self,
        generator: Generator,
        size: int | None = None,
        *,
        environment: float | None = None,
        mean: float = 0.0,
        mean_spread: float = 1.0,
        scale: float = 1.0,
        scale_spread: float = 0.3,
        calibrated: bool = True,
        residual: float | Sequence[float] | None = None,
    ) -> None:
        if not generator.conditional:
            raise ValueError(
                f"weights {generator.name!r} have one latent vector a patch, which the inverse "
                "tasks do not sample: use an 'octave' network"
            )
        network = generator.network
        self.residual = self._checked_residual(network, residual)
        numbers = {"mean_spread": mean_spread, "scale": scale, "scale_spread": scale_spread}
        for name, value in numbers.items():
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value!r} must be a positive number")
        if not np.isfinite(mean):
            raise ValueError(f"mean={mean!r} must be a number")
        self.generator = generator
        self.size = generator.size if size is None else size
        self.shapes = generator.latent_shapes(self.size)
        self.environment = generator.checked_environment(environment)
        self.mean, self.mean_spread = float(mean), float(mean_spread)
        self.scale, self.scale_spread = float(scale), float(scale_spread)
        self.transfer = self._transfer() if calibrated else None
        # What was compiled for earlier observations.
        self.ladders: dict[tuple[Any, ...], _Ladder] = {}
        self.detail_scale = np.asarray(network.detail_scale, float)
        self.root = np.asarray(network.top_matrix(self.grid), float)
        # Its columns are orthogonal; that of the mean is zero.
        norm = (self.root**2).sum(axis=0)
        self.inverse_root = self.root * np.where(norm > 1e-6, 1 / np.maximum(norm, 1e-6), 0.0)

    def _transfer(self) -> np.ndarray:
        """The card's filter, and what takes away the power that the decoder's noise adds."""
        size, number = self.generator.size, mirror_wavenumbers(self.size)
        power = _power_without_noise(self.generator, self.environment, tuple(self.residual))
        gain = np.interp(number * size / self.size, mirror_wavenumbers(size)[0], np.sqrt(power))
        card = self.generator.transfer(self.size, self.environment)
        return gain if card is None else gain * card

    @staticmethod
    def _checked_residual(network: Any, residual: float | Sequence[float] | None) -> np.ndarray:
        given = np.asarray(network.residual if residual is None else residual, float)
        if given.shape not in ((), (network.octaves,)):
            raise ValueError(
                f"residual={residual!r}: give one number, or one of each of the network's "
                f"{network.octaves} octaves, fine to coarse"
            )
        if not (np.isfinite(given) & (given > 0)).all():
            raise ValueError(f"residual={residual!r} must be positive")
        return np.broadcast_to(given, network.octaves)

    @classmethod
    def for_data(
        cls,
        generator: Generator,
        observation: Observation,
        *,
        environment: float | None = None,
        calibrated: bool = True,
        residual: float | Sequence[float] | None = None,
    ) -> PatchModel:
        """A wide prior of mean and scale about what the data show.

        The mean is expected at that of the data, give or take their standard deviation; the scale
        at that standard deviation, less the noise, give or take half an e-fold. The decoder's noise
        is by default that of the training in the finest octave and 0.3 in the others: with less, of
        sky that training has not seen, too much is ruled out (``docs/realism.md``).
        """
        data = observation.data[observation.mask]
        spread = float(data.std()) if data.size > 1 else observation.rms
        # Of data that are all noise, a tenth of it may be signal.
        scale = math.sqrt(max(spread**2 - observation.rms**2, 0.01 * spread**2))
        if residual is None and generator.conditional:
            network = generator.network
            residual = [network.residual, *[_UNSEEN_RESIDUAL] * (network.octaves - 1)]
        return cls(
            generator,
            observation.size,
            environment=environment,
            mean=float(data.mean()),
            mean_spread=spread,
            scale=scale,
            scale_spread=0.5,
            calibrated=calibrated,
            residual=residual,
        )

    @property
    def grid(self) -> int:
        """Pixels a side of the coarsest map."""
        return math.isqrt(self.shapes[0][0])

    @property
    def octaves(self) -> int:
        """Steps of the ladder; octave 0 is the finest."""
        return len(self.shapes) - 1

    def sample(self, n: int, seed: int = 0) -> np.ndarray:
        """Draw patches from the prior, decoder's noise and all, ``(n, size, size)``."""
        if n < 1:
            raise ValueError(f"n={n}: draw at least one patch")
        rng = _philox(seed)
        return np.concatenate([self.decode(self._draw(rng)) for _ in range(n)])

    def _without_noise(self, latents: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The same latents, with none of the decoder's noise."""
        quiet = [each.copy() for each in latents]
        for each in quiet[2:]:
            each[..., -3:] = 0.0
        return quiet

    def _draw(self, rng: np.random.Generator) -> list[np.ndarray]:
        shapes = [(1, *shape) for shape in self.ladder.shapes]
        drawn = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
        mean = self.mean + self.mean_spread * rng.standard_normal((1, 1))
        log_scale = math.log(self.scale) + self.scale_spread * drawn[0]
        return [np.concatenate([mean, log_scale], axis=1), *drawn[1:]]

    @cached_property
    def ladder(self) -> _Ladder:
        """The ladder of the prior."""
        return _Ladder(self)

    def encode(self, patches: np.ndarray, seed: int = 0) -> list[np.ndarray]:
        """Latents that make patches: a draw of the encoder's, and the noise that it leaves.

        Parameters
        ----------
        patches : ndarray, shape (n, size, size)
            Natural logarithm of intensity.
        seed : int
            Of the draw.

        Returns
        -------
        list of ndarray
            Mean and logarithm of the scale, (n, 2); latents of the coarsest map; and of each
            octave, coarse to fine, latents and decoder's noise, (n, m, m, latents + 3). All but
            the first are about standard normal, noise about twice as wide, since the encoder's
            draw is an approximate one. :meth:`decode` gives back the patches.

        Raises
        ------
        ValueError
            If the patches are not finite, of another size, or constant.
        """
        from pysm_vae.vae.networks import haar_analysis

        patches = np.asarray(patches, dtype=float)
        if patches.ndim != 3 or patches.shape[1:] != (self.size, self.size):
            raise ValueError(
                f"patches have the shape {patches.shape}, not (n, {self.size}, {self.size})"
            )
        if not np.isfinite(patches).all():
            raise ValueError("patches have values that are not finite: fit them with a mask")
        standard = standardise(patches)
        mean, scale = patches.mean(axis=(1, 2)), patches.std(axis=(1, 2))
        if self.transfer is not None:
            standard = mirror_filter(standard, 1 / self.transfer)
        network = self.generator.network
        coarse = standard[..., None].astype(np.float32)
        environment = np.full(len(patches), self.environment, np.float32)
        rng, octaves = _philox(seed), []
        posterior = network.encode(coarse[..., 0], environment)[:0:-1]
        for octave, (middle, log_width) in enumerate(posterior):
            coarse, details = haar_analysis(coarse)
            noise = rng.standard_normal(middle.shape, dtype=np.float32)
            latents = np.asarray(middle) + np.exp(np.asarray(log_width)) * noise
            decoded = network.decoded_details(coarse, latents, environment, octave)
            left = np.asarray(details) / self.detail_scale[octave] - np.asarray(decoded)
            octaves.append(np.concatenate([latents, left / self.residual[octave]], axis=-1))
        top = np.asarray(coarse).reshape(len(patches), -1) @ self.inverse_root
        top = top.reshape(-1, self.grid, self.grid)
        return [np.stack([mean, np.log(scale)], axis=1), top, *octaves[::-1]]

    def decode(self, latents: Sequence[np.ndarray]) -> np.ndarray:
        """The patches ``(n, size, size)`` of latents as :meth:`encode` returns them."""
        level, top, *octaves = latents
        n = len(level)
        coarse = np.exp(level[:, 1:]) * (top.reshape(n, -1) @ self.root.T) + level[:, :1]
        parts = [level[:, 1:], coarse, *octaves]
        values = np.concatenate([np.reshape(part, (n, -1)) for part in parts], axis=1)
        return self.ladder.patches(values)


class _Ladder:
    """The variables of one problem, and its density.

    In order: the logarithm of the scale; the coarsest map, in the unit of the data; for each
    octave, coarse to fine, the latents and the decoder's noise, or, in *centred* cells, the
    details themselves, in the unit of the data; of stationary noise, what would have been measured
    in the pixels that are hidden, with which the noise is as simple as if nothing were.
    """

    def __init__(
        self,
        model: PatchModel,
        observation: Observation | None = None,
    ) -> None:
        self.model = model
        self.observation = observation
        shapes: list[tuple[int, ...]] = [(1,), (model.grid, model.grid)]
        shapes += [(*shape[:2], shape[2] + 3) for shape in model.shapes[1:]]
        self.coloured = observation is not None and observation.noise_power is not None
        if self.coloured:
            shapes.append((int((~observation.mask).sum()),))
        self.shapes = shapes
        self.sizes = [math.prod(shape) for shape in shapes]
        self.length = sum(self.sizes)
        # Steps over which the sampler's step size is adapted.
        self.adaptation = 0
        # Data, what their residuals are multiplied by, and which cells of each octave are centred.
        self._held: list[Any] | None = None
        if observation is not None:
            self.observe(observation)
        self._functions: dict[str, Any] = {}

    def observe(self, observation: Observation) -> None:
        """Take other data, of the same kind: nothing that was compiled is compiled again."""
        import tensorflow as tf

        self.observation = observation
        if self.coloured:
            weight = 1 / np.sqrt(observation.noise_power)
        else:
            weight = np.sqrt(observation.precision)
        noise = _detail_noise(self.model, observation)
        residual = self.model.residual[::-1]
        self.centred = [each < limit for each, limit in zip(noise, residual, strict=True)]
        # Octaves of which the data tell.
        self.told = sum(bool((each < 1).any()) for each in noise)
        held = [observation.data, weight, *(each[..., None] for each in self.centred)]
        if self._held is None:
            self._held = [tf.Variable(array, dtype=tf.float32) for array in held]
        for variable, array in zip(self._held, held, strict=True):
            variable.assign(array)

    def split(self, values: Any) -> list[Any]:
        """Variables ``(n, length)`` in their own shapes."""
        import tensorflow as tf

        parts = tf.split(values, self.sizes, axis=1)
        return [tf.reshape(p, (-1, *shape)) for p, shape in zip(parts, self.shapes, strict=True)]

    def climb(self, values: Any, octaves: int | None = None) -> tuple[Any, Any, Any]:
        """Run down the ladder, or the first octaves of it, which leaves the data aside.

        Returns
        -------
        patches : tensor, shape (n, size, size)
            Of the first octaves alone, coarser ones.
        residuals : tensor, shape (n, m)
            The density of the variables is ``exp(-residuals² / 2)``, times
        log_jacobian : tensor, shape (n,)
            the exponential of this: of the maps' unit, which is sampled, too.
        """
        import tensorflow as tf

        from pysm_vae.vae.networks import haar_synthesis

        model, network = self.model, self.model.generator.network
        parts = self.split(values)
        log_scale, top = parts[0], parts[1]
        n = tf.shape(top)[0]

        def flat(tensor: Any) -> Any:
            return tf.reshape(tensor, (n, -1))

        scale = tf.exp(log_scale)[..., None]
        mean = tf.reduce_mean(top, axis=(1, 2), keepdims=True)
        field = (top - mean) / scale
        residuals = [
            (log_scale - math.log(model.scale)) / model.scale_spread,
            (mean[:, 0] - model.mean) / model.mean_spread,
            tf.matmul(flat(field), tf.constant(model.inverse_root, tf.float32)),
        ]
        in_unit_of_data = tf.constant(model.grid**2 - 1, tf.float32)
        field = field[..., None]
        environment = tf.fill((n,), np.float32(model.environment))
        for i in range(model.octaves if octaves is None else octaves):
            octave = model.octaves - 1 - i
            latents, free = tf.split(parts[2 + i], [model.shapes[1 + i][2], 3], axis=3)
            decoded = network.decoded_details(field, latents, environment, octave)
            unit, residual = model.detail_scale[octave], model.residual[octave]
            details, noise = decoded + residual * free, free
            if self._held is not None:
                centred = self._held[2 + i]
                maps = free / (scale[..., None] * unit)
                details += centred * (maps - details)
                noise += centred * ((maps - decoded) / residual - noise)
                in_unit_of_data += 3 * tf.reduce_sum(centred)
            residuals += [flat(latents), flat(noise)]
            field = haar_synthesis(field, unit * details)
        if octaves is not None:
            patches = mean + scale * field[..., 0]
        else:
            patches = mean + scale * self._filtered(field[..., 0], model.transfer)
            if self.observation is not None:
                hidden = parts[-1] if self.coloured else None
                residuals.append(flat(self._misfit(patches, hidden)))
        return patches, tf.concat(residuals, axis=1), -in_unit_of_data * log_scale[:, 0]

    def _misfit(self, patches: Any, hidden: Any) -> Any:
        import tensorflow as tf

        data, weight = self._held[:2]
        difference = data - self._filtered(patches, self.observation.response)
        if not self.coloured:
            return difference * weight
        place = np.flatnonzero(~self.observation.mask)
        if len(place):
            filled = tf.zeros((self.model.size**2, tf.shape(patches)[0]))
            filled = tf.tensor_scatter_nd_update(filled, place[:, None], tf.transpose(hidden))
            difference += tf.reshape(tf.transpose(filled), tf.shape(difference))
        return self._transform(difference) * weight

    @cached_property
    def _cosines(self) -> np.ndarray:
        size = self.model.size
        return fft.dct(np.eye(size), axis=0, norm="ortho").astype(np.float32)

    def _transform(self, patches: Any) -> Any:
        # So small a transform is faster as a product of matrices.
        return self._cosines @ patches @ self._cosines.T

    def _filtered(self, patches: Any, response: np.ndarray | None) -> Any:
        import tensorflow as tf

        if response is None:
            return patches
        waves = self._transform(patches) * tf.constant(response, tf.float32)
        return self._cosines.T @ waves @ self._cosines

    def log_density(self, values: Any) -> Any:
        """Of the posterior, up to a constant, ``(n,)``."""
        import tensorflow as tf

        _, residuals, jacobian = self.climb(values)
        return jacobian - 0.5 * tf.reduce_sum(tf.square(residuals), axis=1)

    def function(self, name: str) -> Any:
        """A compiled function of the ladder, by its name."""
        import tensorflow as tf

        def patches(values: Any) -> Any:
            return self.climb(values)[0]

        def descent(values: Any, white: Any, *matrices: Any) -> tuple[Any, Any]:
            with tf.GradientTape() as tape:
                tape.watch(white)
                there = values + self.coloured_in(white, matrices)
                half = 0.5 * tf.reduce_sum(tf.square(self.climb(there)[1]))
            return half, tape.gradient(half, white)

        def probe(values: Any, signs: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(values)
                residuals = self.climb(values)[1]
            return tape.gradient(residuals, values, output_gradients=signs)

        def columns(values: Any, directions: Any, weight: Any, octaves: int) -> Any:
            with tf.autodiff.ForwardAccumulator(values, directions) as tangent:
                coarse, residuals, _ = self.climb(values, octaves)
                misfit = tf.reshape(weight * coarse, (-1, tf.size(weight)))
                residuals = tf.concat([residuals, misfit], axis=1)
            return tangent.jvp(residuals)

        def begin(white: Any, step_size: Any, centre: Any, *matrices: Any) -> Any:
            return _kernel(self, centre, matrices, step_size).bootstrap_results(white)

        def step(
            white: Any, results: Any, steps: Any, seed: Any, centre: Any, *matrices: Any
        ) -> Any:
            # The kernel's own number of steps counts only where a chain begins.
            accepted = results.inner_results.accepted_results._replace(num_leapfrog_steps=steps)
            inner = results.inner_results._replace(accepted_results=accepted)
            kernel = _kernel(self, centre, matrices, results.new_step_size)
            white, results = kernel.one_step(white, results._replace(inner_results=inner), seed)
            there = centre + self.coloured_in(white, matrices)
            return white, results, there, self.climb(there)[0]

        if name not in self._functions:
            logging.getLogger("tensorflow").addFilter(_not_of_ladders)
            functions = (patches, descent, probe, columns, begin, step)
            chosen = next(each for each in functions if each.__name__ == name)
            # Patches of any number are compiled once.
            any_number = [tf.TensorSpec((None, self.length), tf.float32)]
            signature = any_number if name == "patches" else None
            self._functions[name] = plain_graph(chosen, signature)
        return self._functions[name]

    def patches(self, values: np.ndarray) -> np.ndarray:
        """The patches of variables ``(n, length)``."""
        return self.function("patches")(values.astype(np.float32)).numpy()

    def start(self, rng: np.random.Generator | None = None) -> np.ndarray:
        """Variables ``(length,)`` to start a search from: of the data, smoothed into the holes.

        Latents are zero, or drawn from the prior.
        """
        from pysm_vae.vae.networks import haar_analysis

        model, seen = self.model, self.observation
        filled = fill_holes(seen.data, seen.mask).astype(np.float32)
        coarse, maps = filled[None, ..., None], []
        for octave in range(model.octaves):
            coarse, details = haar_analysis(coarse)
            centred = self.centred[model.octaves - 1 - octave][..., None]
            maps.append(np.where(centred, np.asarray(details)[0], 0.0))
        parts = [np.array([math.log(model.scale)]), np.asarray(coarse)]
        for shape, free in zip(model.shapes[1:], reversed(maps), strict=True):
            latents = np.zeros(shape) if rng is None else rng.standard_normal(shape)
            parts.append(np.concatenate([latents, free], axis=-1))
        if self.coloured:
            parts.append(-filled[~seen.mask])
        return np.concatenate([np.ravel(part) for part in parts])

    def whitener(
        self, values: np.ndarray, rng: np.random.Generator, *, rough: bool = False
    ) -> list[np.ndarray]:
        """Matrices that make the variables about as wide in all directions, block by block.

        A block is that of ``J' J``, with ``J`` the derivatives of the residuals. The coarse
        variables are one block, down to the last octave of which data tell, or to ``_FULL``
        variables: at the edge of a hole, what is seen ties them together. Its derivatives are taken
        one by one, at a few of the places. From one to the next the ridges of the density turn. The
        mean of ``J' J`` is as narrow as any of them in all directions, that of its inverses as
        wide, and what is taken is half-way between the two. Further on each cell of each octave is
        a block, in the mean over the places: the mean square of what random signs of the residuals
        send back (Hutchinson 1990, Commun. Statist. Simula. 19, 433). A ``rough`` one, several
        times faster, takes scale and coarsest map alone together, and has few signs.

        Returns
        -------
        list of ndarray, each (blocks, k, k)
            Variables are a centre plus ``y @ matrix``, of which ``y`` has about unit variance.
        """
        blocks = self.blocks(0 if rough else _FULL)
        probes, shrinkage = (_FEW_PROBES, _MORE_SHRINKAGE) if rough else (_PROBES, _SHRINKAGE)
        probe, found = self.function("probe"), []
        for i in range(probes // _PROBE_BATCH):
            places = values[(np.arange(_PROBE_BATCH) + i * _PROBE_BATCH) % len(values)]
            signs = rng.choice(np.array([-1, 1], np.float32), (_PROBE_BATCH, self._residuals))
            found.append(probe(places.astype(np.float32), signs).numpy())
        edges = np.cumsum([number * width for number, width in blocks])[:-1]
        precisions: list[np.ndarray] = []
        for part, (_, width) in zip(
            np.split(np.concatenate(found), edges, axis=1), blocks, strict=True
        ):
            if not precisions and not rough:
                some = np.linspace(0, len(values) - 1, min(_FULL_PLACES, len(values))).round()
                there = [self._full_precision(values[int(i)], width) for i in some]
                precisions.append(_between_means(there)[None])
                continue
            part = part.reshape(probes, -1, width).astype(float)
            precision = np.einsum("kci,kcj->cij", part, part) / probes
            # What chance has put beside the diagonal is shrunk, so that there is an inverse.
            diagonal = np.einsum("cii->ci", precision).copy()
            precision *= 1 - shrinkage
            precision[:, np.arange(width), np.arange(width)] = np.maximum(diagonal, 1e-12)
            precisions.append(precision)
        return [np.linalg.inv(np.linalg.cholesky(each)).astype(np.float32) for each in precisions]

    def _full_precision(self, values: np.ndarray, width: int) -> np.ndarray:
        """``J' J`` of the first variables, (width, width), as if all details beyond were held."""
        import tensorflow as tf

        columns, octaves = self.function("columns"), self._whole(_FULL)
        size = self.model.grid << octaves
        quadrants = self.observation.precision.reshape(size, -1, size, self.model.size // size)
        weight = tf.constant(np.sqrt(quadrants.sum(axis=(1, 3))), tf.float32)
        there = tf.constant(np.broadcast_to(values, (_FULL_BATCH, self.length)), tf.float32)
        found = []
        for first in range(0, width, _FULL_BATCH):
            directions = np.eye(_FULL_BATCH, self.length, first, dtype=np.float32)
            found.append(columns(there, tf.constant(directions), weight, octaves).numpy())
        derivatives = np.concatenate(found)[:width]
        precision = (derivatives @ derivatives.T).astype(float)
        # Single precision must not make it indefinite.
        precision[np.diag_indices(width)] *= 1 + 1e-4
        return precision

    def blocks(self, most: int) -> list[tuple[int, int]]:
        """Number and width of the blocks of each part of the variables.

        The first are scale, coarsest map and the octaves of which data tell, as many as stay below
        ``most`` variables.
        """
        whole = self._whole(most)
        width = sum(self.sizes[: 2 + whole])
        fine = self.shapes[2 + whole : self._coloured_at]
        parts = [(1, width), *((shape[0] * shape[1], shape[2]) for shape in fine)]
        return parts + [(size, 1) for size in self.sizes[self._coloured_at :]]

    def _whole(self, most: int) -> int:
        """How many octaves are one block with scale and coarsest map."""
        widths = np.cumsum(self.sizes[: 2 + self.told])
        return max(int((widths <= most).sum()) - 2, 0)

    @property
    def _coloured_at(self) -> int:
        return 2 + self.model.octaves

    def coloured_in(self, white: Any, matrices: Sequence[Any]) -> Any:
        """Steps ``(n, length)`` of the variables, from such of unit variance."""
        import tensorflow as tf

        counts = [matrix.shape[0] * matrix.shape[1] for matrix in matrices]
        steps = []
        for part, matrix in zip(tf.split(white, counts, axis=1), matrices, strict=True):
            number, width = matrix.shape[:2]
            step = tf.einsum("nci,cij->ncj", tf.reshape(part, (-1, number, width)), matrix)
            steps.append(tf.reshape(step, (-1, number * width)))
        return tf.concat(steps, axis=1)

    def whitened(self, steps: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
        """Inverse of :meth:`coloured_in`."""
        edges = np.cumsum([matrix.shape[0] * matrix.shape[1] for matrix in matrices])[:-1]
        white = []
        for part, matrix in zip(np.split(steps, edges, axis=1), matrices, strict=True):
            columns = part.reshape(-1, *matrix.shape[:2], 1)
            solved = np.linalg.solve(matrix.swapaxes(1, 2)[None].astype(float), columns)
            white.append(solved.reshape(len(steps), -1))
        return np.concatenate(white, axis=1)

    @cached_property
    def _residuals(self) -> int:
        """How many residuals there are."""
        hidden = self.sizes[-1] if self.coloured else 0
        return 2 + sum(self.sizes[1:]) - hidden + self.model.size**2


def _not_of_ladders(record: logging.LogRecord) -> bool:
    """Leave out that graphs are made again and again: each problem has its own."""
    return "_Ladder.function" not in record.getMessage()


@dataclass(frozen=True)
class Estimate:
    """What :func:`maximise` found.

    Attributes
    ----------
    patch : ndarray, shape (size, size)
        The patch of the most probable latents, in the unit of the data.
    chi2 : float
        Mean square of its residuals over the noise's.
    starts : ndarray, shape (n, size, size)
        The patch that each start led to.
    spread : float
        Standard deviation of those among each other, over that of the noise; 0 of a single start.
    seconds : float
        Of one start, in the mean.
    """

    patch: np.ndarray
    chi2: float
    starts: np.ndarray
    spread: float
    seconds: float
    variables: np.ndarray = field(repr=False)


def maximise(
    model: PatchModel,
    observation: Observation,
    *,
    starts: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Estimate:
    """Find the most probable latents of an observation (maximum a posteriori), by L-BFGS.

    The patch's scale is held at the model's: the more of it, the smaller, and the more probable,
    would be latents that make the same patch. Its mean is free.

    Parameters
    ----------
    model : PatchModel
        The prior.
    observation : Observation
        The data.
    starts : int
        Starts of the search: the first from latents of zero, others from draws of the prior.
    seed : int
        Of those.
    progress : callable, optional
        Called with ("fit", done, total).

    Raises
    ------
    ValueError
        If the sizes differ or there is no start.
    RuntimeError
        If the density is not finite where the search goes.
    """
    ladder = _problem(model, observation)
    if starts < 1:
        raise ValueError(f"starts={starts}: one is needed")
    rng = _philox(seed)
    total, done = starts * _SEARCH_STEPS, 0
    began = time.perf_counter()
    found: list[tuple[float, np.ndarray]] = []
    for number in range(starts):
        centre = ladder.start(rng if number else None)[None].astype(np.float32)
        matrices = ladder.whitener(centre, rng, rough=True)
        # Of the scale, which is held: no step.
        for each in matrices[:1]:
            each[:, :, 0] = 0.0
        descent = ladder.function("descent")

        def slope(white: np.ndarray, at: Any = (centre, matrices)) -> tuple[float, np.ndarray]:
            half, gradient = descent(at[0], white[None].astype(np.float32), *at[1])  # noqa: B023
            return float(half), gradient.numpy()[0].astype(float)

        def tell(_: np.ndarray) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress("fit", done, total)

        result = optimize.minimize(
            slope,
            np.zeros(ladder.length),
            jac=True,
            method="L-BFGS-B",
            callback=tell,
            options={"maxiter": _SEARCH_STEPS, "maxcor": _SEARCH_MEMORY, "ftol": 1e-7},
        )
        if not np.isfinite(result.fun):
            raise RuntimeError(
                "the fit has left the numbers: is the noise far too small for these data?"
            )
        log.info("start %d: %d steps, %.1f", number, result.nit, result.fun)
        there = centre + ladder.coloured_in(result.x[None].astype(np.float32), matrices).numpy()
        found.append((float(result.fun), there))
        done = (number + 1) * _SEARCH_STEPS
    if progress is not None:
        progress("fit", total, total)
    patches = ladder.patches(np.concatenate([there for _, there in found]))
    best = int(np.argmin([value for value, _ in found]))
    spread = patches.std(axis=0)[observation.mask].mean() / observation.rms
    return Estimate(
        patches[best],
        observation.chi2(patches[best]),
        patches,
        float(spread),
        (time.perf_counter() - began) / starts,
        found[best][1][0],
    )


@dataclass(frozen=True)
class Posterior:
    """Draws of a patch, given data.

    Attributes
    ----------
    samples : ndarray, float32, shape (chains, draws, size, size)
        Patches of natural-log intensity, in the unit of the data.
    log_density : ndarray, shape (chains, draws)
        Of the latents, up to a constant.
    ess, rhat : ndarray, shape (size, size)
        Effective number of independent draws of each pixel, and its potential scale reduction
        (split chains; 1 where chains agree: Gelman et al. 2013, Bayesian Data Analysis, 11.4).
    acceptance : float
        Rate of accepted trajectories.
    divergences : int
        Trajectories whose energy was lost.
    seconds : float
        That the sampling took, warm-up and all.
    """

    samples: np.ndarray
    log_density: np.ndarray
    ess: np.ndarray
    rhat: np.ndarray
    acceptance: float
    divergences: int
    seconds: float

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean of the draws, (size, size)."""
        return self.samples.mean(axis=(0, 1), dtype=float)

    @cached_property
    def std(self) -> np.ndarray:
        """Standard deviation of the draws, (size, size)."""
        return self.samples.std(axis=(0, 1), dtype=float)

    @property
    def converged(self) -> bool:
        """Whether the chains agree in 95 pixels of 100, and none diverges often."""
        agree = float(np.quantile(self.rhat, 0.95)) < _LARGEST_RHAT
        return agree and self.divergences <= 0.01 * self.log_density.size

    @property
    def diagnostics(self) -> dict[str, float]:
        """The chains in a few numbers."""
        return {
            "rhat_median": float(np.median(self.rhat)),
            "rhat_95": float(np.quantile(self.rhat, 0.95)),
            "ess_median": float(np.median(self.ess)),
            "ess_smallest": float(self.ess.min()),
            "acceptance": self.acceptance,
            "divergences": float(self.divergences),
            "seconds": self.seconds,
        }

    def draws(self, n: int) -> np.ndarray:
        """``n`` of the draws, evenly from all chains, ``(n, size, size)``.

        Raises
        ------
        ValueError
            If there are not as many.
        """
        everything = self.samples.swapaxes(0, 1).reshape(-1, *self.samples.shape[2:])
        if not 1 <= n <= len(everything):
            raise ValueError(f"n={n}: the posterior has 1 to {len(everything)} draws")
        return everything[np.linspace(0, len(everything) - 1, n).round().astype(int)]

    def interval(self, probability: float) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the central interval of each pixel that holds so much probability."""
        if not 0 < probability < 1:
            raise ValueError(f"probability={probability!r} must lie between 0 and 1")
        tails = 0.5 - 0.5 * probability, 0.5 + 0.5 * probability
        low, high = np.quantile(self.samples, tails, axis=(0, 1))
        return low, high

    def save(self, path: str | Path) -> None:
        """Write the posterior to a ``.npz`` file, whole or not at all."""
        if Path(path).suffix != ".npz":
            raise ValueError(f"{str(path)!r}: a posterior is kept in a .npz file")
        numbers = [self.acceptance, self.divergences, self.seconds]
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        with atomic_write(path) as partial:
            np.savez_compressed(partial, numbers=np.array(numbers), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Posterior:
        """Read what :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is another one, or damaged.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no posterior at {str(path)!r}")
        try:
            # Opened here, since numpy leaves a damaged file open.
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                acceptance, divergences, seconds = file["numbers"].tolist()
                arrays = {name: file[name] for name in _ARRAYS}
        except (ValueError, KeyError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{str(path)!r} is not a posterior that was saved, or is damaged: {error}"
            ) from error
        return cls(**arrays, acceptance=acceptance, divergences=int(divergences), seconds=seconds)


_ARRAYS = ("samples", "log_density", "ess", "rhat")


def sample_posterior(
    model: PatchModel,
    observation: Observation,
    *,
    draws: int = 1000,
    chains: int = 8,
    warmup: int = 80,
    estimate: Estimate | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Posterior:
    """Draw patches given an observation, by Hamiltonian Monte Carlo.

    Chains start around the most probable latents, wider than a Gaussian of the density's curvature
    would be. The mass matrix is measured there and, half-way through the warm-up, where the chains
    have got to; step sizes are adapted by dual averaging (Hoffman & Gelman 2014, JMLR 15, 1593).

    Parameters
    ----------
    model : PatchModel
        The prior.
    observation : Observation
        The data.
    draws : int
        Of all chains together; a multiple of ``chains``.
    chains : int
        Independent chains, two or more; they run side by side.
    warmup : int
        Steps of each chain that are thrown away.
    estimate : Estimate, optional
        Where to start; found by :func:`maximise` if it is not given.
    seed : int
        Of everything random.
    progress : callable, optional
        Called with ("sample", done, total).

    Warns
    -----
    ConvergenceWarning
        If chains do not agree or diverge.

    Raises
    ------
    ModuleNotFoundError
        If tensorflow-probability, the extra ``inference``, is not installed.
    ValueError
        If the sizes differ, or numbers of draws, chains or steps make no sense.
    RuntimeError
        If no trajectory is accepted.
    """
    if chains < 2:
        raise ValueError(f"chains={chains}: two or more are needed to see whether they agree")
    if draws < 4 * chains or draws % chains:
        raise ValueError(f"draws={draws} must be a multiple of the {chains} chains, 4 or more each")
    if warmup < _SHORTEST_WARMUP:
        raise ValueError(f"warmup={warmup}: at least {_SHORTEST_WARMUP} steps are needed")
    tensorflow_probability()
    ladder = _problem(model, observation, warmup)
    began = time.perf_counter()
    if estimate is None:
        estimate = maximise(model, observation, seed=seed)
    rng = _philox(seed)
    centre = estimate.variables[None].astype(np.float32)
    each, half = draws // chains, warmup // 2
    total, places, step_size = 2 * half + each, centre, 0.1
    there = white = None
    kept, density, accepted, divergences = [], [], [], 0
    for first, steps in ((0, half), (half, half + each)):
        matrices = ladder.whitener(places, rng)
        if there is None:
            white = rng.standard_normal((chains, ladder.length)).astype(np.float32)
        else:
            white = ladder.whitened(there.numpy() - centre, matrices).astype(np.float32)
        results = ladder.function("begin")(white, np.float32(step_size), centre, *matrices)
        recent: list[Any] = []
        for number in range(first, first + steps):
            length = _TRAJECTORY * rng.uniform(1 - _JITTER, 1 + _JITTER)
            step_size = float(results.new_step_size)
            count = int(np.clip(round(length / step_size), 1, _MOST_STEPS))
            if number < half:
                count = min(count, _SETTLING_STEPS)
            key = rng.integers(0, 2**31 - 1, 2, dtype=np.int32)
            white, results, there, patches = ladder.function("step")(
                white, results, np.int32(count), key, centre, *matrices
            )
            if number >= half // 2:
                recent = [*recent, there.numpy()][-_PROBES // chains :]
            if number >= 2 * half:
                change = results.inner_results.log_accept_ratio.numpy()
                divergences += int((~(change > -_DIVERGENCE)).sum())
                accepted.append(np.exp(np.minimum(change, 0)))
                kept.append(patches.numpy())
                density.append(results.inner_results.accepted_results.target_log_prob.numpy())
            if progress is not None:
                progress("sample", number + 1, total)
        if recent:
            places = np.concatenate(recent)
    acceptance = float(np.nan_to_num(accepted).mean())
    if acceptance < 0.01:
        raise RuntimeError(
            "the chains are stuck: hardly a trajectory was accepted. Is the noise far too small?"
        )
    samples = np.stack(kept, axis=1)
    ess, rhat = _diagnose(samples)
    posterior = Posterior(
        samples,
        np.stack(density, axis=1),
        ess,
        rhat,
        acceptance,
        divergences,
        time.perf_counter() - began,
    )
    if not posterior.converged:
        warnings.warn(
            f"the chains have not converged (R-hat of 95 pixels of 100 below "
            f"{posterior.diagnostics['rhat_95']:.2f}, {divergences} divergent trajectories): "
            "take more draws, or a longer warm-up",
            ConvergenceWarning,
            stacklevel=2,
        )
    return posterior


def fill_holes(data: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Data with what the mask hides taken from around it, the smoother the further in.

    Parameters
    ----------
    data, mask : ndarray, shape (size, size)
        The mask is True where there are data.
    """
    known = np.where(mask, data, 0.0)
    filled = np.where(mask, data, np.nan)
    width = 1.0
    while np.isnan(filled).any():
        weight = ndimage.gaussian_filter(mask.astype(float), width)
        smooth = ndimage.gaussian_filter(known, width) / np.maximum(weight, 1e-12)
        found = np.isnan(filled) & (weight > 0.05)
        filled[found] = smooth[found]
        width *= 2
        if width > 4 * len(data):
            filled[np.isnan(filled)] = data[mask].mean()
    return filled


def _detail_noise(model: PatchModel, observation: Observation) -> list[np.ndarray]:
    """How well the data know details: noise of each octave's, coarse to fine, (m, m).

    In units of the details' own scale; infinite where they are not seen.
    """
    precision, found = observation.precision, []
    for octave in range(model.octaves):
        # A Haar detail is a sum of four means, of a quadrant each, over four.
        size = model.size >> octave
        quadrants = precision.reshape(size, 1 << octave, size, 1 << octave).sum(axis=(1, 3))
        variance = np.divide(
            1.0, quadrants, where=quadrants > 0, out=np.full_like(quadrants, np.inf)
        )
        half = size // 2
        noise = 0.25 * np.sqrt(variance.reshape(half, 2, half, 2).sum(axis=(1, 3)))
        if observation.response is not None:
            # What the beam has dimmed to less than half is not known, either.
            seen = np.interp(half, 0.5 * np.arange(model.size), observation.response[0])
            noise = noise if seen > 0.5 else np.full_like(noise, np.inf)
        found.append(noise / (model.scale * model.detail_scale[octave]))
    return found[::-1]


def _problem(model: PatchModel, observation: Observation, warmup: int = 0) -> _Ladder:
    if model.size != observation.size:
        raise ValueError(f"the data have {observation.size} pixels a side, the model {model.size}")
    # The mask is one of the numbers that change, but for stationary noise.
    response = b"" if observation.response is None else observation.response.tobytes()
    coloured = b"" if observation.noise_power is None else observation.mask.tobytes()
    key = response, coloured, warmup
    if key in model.ladders:
        model.ladders[key].observe(observation)
    else:
        model.ladders[key] = _Ladder(model, observation)
        model.ladders[key].adaptation = warmup // 2
    return model.ladders[key]


@lru_cache(maxsize=16)
def _power_without_noise(
    generator: Generator, environment: float, residual: tuple[float, ...]
) -> np.ndarray:
    """What the decoder's noise leaves of a patch's power, the noise's own left out; below one.

    Returns
    -------
    ndarray, shape (size,)
        Power of patches of the training size without the noise over that with it, measured on the
        wavenumbers of the first row of `mirror_wavenumbers`.
    """
    model = PatchModel(
        generator,
        environment=environment,
        scale_spread=0.1,
        calibrated=False,
        residual=residual,
    )
    rng = _philox(0)
    latents = [model._draw(rng) for _ in range(_COMPARED)]
    pair = (latents, [model._without_noise(each) for each in latents])
    noisy, quiet = (
        mirror_power(model.decode([np.concatenate(part) for part in zip(*each, strict=True)]))[0]
        for each in pair
    )
    return np.divide(quiet, noisy, where=noisy > 0, out=np.ones_like(noisy))


def _between_means(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Geometric mean of the arithmetic and the harmonic mean of positive definite matrices.

    Of two, ``L (L^-1 B L^-T)^(1/2) L^T`` with ``A = L L^T`` (Bhatia 2007, Positive Definite
    Matrices, section 4.1).
    """
    if len(matrices) == 1:
        return matrices[0]
    root = np.linalg.cholesky(np.mean(matrices, axis=0))
    harmonic = np.linalg.inv(np.mean([np.linalg.inv(each) for each in matrices], axis=0))
    half = linalg.solve_triangular(root, harmonic, lower=True)
    values, vectors = np.linalg.eigh(linalg.solve_triangular(root, half.T, lower=True))
    turned = root @ vectors
    return (turned * np.sqrt(values)) @ turned.T


def _mirror(patches: np.ndarray, response: np.ndarray) -> np.ndarray:
    """`mirror_filter` of any number of patches, or one."""
    flat = np.reshape(patches, (-1, *patches.shape[-2:]))
    return mirror_filter(flat, response).reshape(patches.shape)


def _philox(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def tensorflow_probability() -> Any:
    """The library that samples, or an error that says how to get it."""
    try:
        import tensorflow_probability as tfp
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "sampling needs tensorflow-probability: pip install 'pysm_vae[inference]'"
        ) from error
    import tensorflow as tf

    with warnings.catch_warnings():
        if not tf.config.list_physical_devices("GPU"):
            # It warns of an accelerator's precision, be there one or not, when it is first used.
            warnings.filterwarnings("ignore", "TensorFloat-32", UserWarning)
        _ = tfp.mcmc.HamiltonianMonteCarlo
    return tfp


def _kernel(ladder: _Ladder, centre: Any, matrices: Sequence[Any], step_size: Any) -> Any:
    mcmc = tensorflow_probability().mcmc

    def density(white: Any) -> Any:
        return ladder.log_density(centre + ladder.coloured_in(white, matrices))

    inner = mcmc.HamiltonianMonteCarlo(density, step_size=step_size, num_leapfrog_steps=1)
    return mcmc.DualAveragingStepSizeAdaptation(
        inner, ladder.adaptation, target_accept_prob=_ACCEPTANCE
    )


def _diagnose(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mcmc = tensorflow_probability().mcmc
    ess, rhat = [], []
    # TensorFlow would warn in each row that the transform of a power, which is real, becomes real.
    notes = logging.getLogger("tensorflow")
    level = notes.level
    notes.setLevel(logging.ERROR)
    try:
        # Row by row: the transforms of all pixels would take gigabytes.
        for row in range(samples.shape[2]):
            chains = np.ascontiguousarray(samples[:, :, row].swapaxes(0, 1))
            found = mcmc.effective_sample_size(
                chains, cross_chain_dims=1, filter_beyond_positive_pairs=True
            )
            ess.append(found.numpy())
            rhat.append(mcmc.potential_scale_reduction(chains, split_chains=True).numpy())
    finally:
        notes.setLevel(level)
    return np.array(ess), np.array(rhat)
