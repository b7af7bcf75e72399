"""The networks, in ``keras.ops`` alone, so that any Keras 3 backend can train them.

Two architectures share one interface (:class:`PatchVAE`):

``thorne2021``
    The network of Thorne, Knox & Prabhu (2021, MNRAS 504, 2603): one latent vector a patch. It is
    the baseline of every table.
``octave``
    A ladder of conditional VAEs, one step an octave. The patch is split by an orthogonal Haar
    pyramid into a coarse map and the details of each octave; each step draws the details of one
    octave, given everything coarser, from latents that live on that octave's grid. The two finest
    steps, where nearly all pixels are, share one small set of convolutions (log-dust is close to
    scale-free) and tell the octaves apart by an embedding; so do those before them, with a larger
    one. It is fully convolutional, so the patch size at generation is free, and the coarse map may
    be given, so that small scales can be drawn for large scales that are already there.

Both take patches with their *environment*, 0 for diffuse sky and 1 for molecular clouds, whose
small scales are twice as intermittent; ``thorne2021`` ignores it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops

ARCHITECTURES = ("thorne2021", "octave")

# Pixels a side of the largest coarsest map that is drawn: its covariance has their fourth power of
# elements.
MAX_GRID = 32


def build_network(architecture: str, **config: Any) -> PatchVAE:
    """Build a network by name.

    Parameters
    ----------
    architecture : {"thorne2021", "octave"}
        Which network.
    **config
        The hyperparameters of :class:`Thorne2021` or :class:`Octave`.

    Raises
    ------
    ValueError
        If the name is not one of ``ARCHITECTURES``.
    """
    classes = {"thorne2021": Thorne2021, "octave": Octave}
    if architecture not in classes:
        raise ValueError(
            f"unknown architecture {architecture!r}: choose one of {', '.join(ARCHITECTURES)}"
        )
    return classes[architecture](**config)


class PatchVAE(keras.Model, ABC):
    """What training and generation ask of a network.

    ``call`` returns the terms of the evidence lower bound (ELBO), each ``(n,)`` in nats a patch;
    ``compute_loss`` adds them up with *the same* normalisation, so that ``kl_weight = 1`` is the
    ELBO itself. (The public code of the paper summed the KL term over the batch and averaged the
    likelihood, an effective weight of eight.)
    """

    def __init__(self, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.kl_weight = self.add_weight(
            shape=(), initializer="ones", trainable=False, name="kl_weight"
        )
        self.trackers = {
            name: keras.metrics.Mean(name=name)
            for name in ("elbo", "likelihood", "kl", "score", "rivalry")
        }

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As Keras does it, and with the variables of the optimizer.

        If the first step made them, it would be traced twice, which takes as long as many steps.
        """
        super().compile(*args, **kwargs)
        if self.built:
            self.optimizer.build(self.trainable_variables)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The means that training reports, all in nats a pixel: the loss and its terms."""
        # Keras's own, which include the loss, and the bound, which the best checkpoint follows.
        return list(dict.fromkeys([*super().metrics, *self.trackers.values()]))

    @abstractmethod
    def latent_shapes(self, size: int) -> list[tuple[int, ...]]:
        """Shapes of the standard normal latents that make one patch of ``size`` pixels a side."""

    @abstractmethod
    def encode(self, patches: Any, environment: Any = None) -> list[tuple[Any, Any]]:
        """Posterior of the latents: a list of (mean, log standard deviation)."""

    @abstractmethod
    def decode(self, latents: list[Any], training: bool = False, environment: Any = None) -> Any:
        """Patches ``(n, size, size)`` of the given latents, in environments ``(n,)`` (or 0)."""

    def _draw(self, mean: Any, log_scale: Any) -> Any:
        noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        return mean + ops.exp(log_scale) * noise

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Minus the ELBO, plus what a network asks of prior samples, in nats a pixel.

        The rivalry of decoder and critic is left out where nothing is trained: its level says who
        is ahead, not how good the samples are.
        """
        del y, sample_weight
        pixels = math.prod(x["patches"].shape[1:3])
        each = {name: value / pixels for name, value in y_pred.items()}
        # Patch by patch, so that a short last batch counts as little as it does in the loss.
        for name, value in (each | {"elbo": each["likelihood"] - each["kl"]}).items():
            self.trackers[name].update_state(value)
        terms = {name: ops.mean(value) for name, value in each.items()}
        loss = self.kl_weight * terms["kl"] - terms["likelihood"] + terms["score"]
        return loss + terms["rivalry"] if training else loss


def _kl(mean: Any, log_scale: Any) -> Any:
    """Kullback-Leibler divergence from N(0, 1), summed over all but the batch axis."""
    axes = tuple(range(1, len(mean.shape)))
    divergence = 0.5 * (ops.square(mean) + ops.exp(2.0 * log_scale) - 1.0) - log_scale
    return ops.sum(divergence, axis=axes)


def _log_normal(residual: Any, log_scale: Any) -> Any:
    """Logarithm of a normal density, summed over all but the batch axis."""
    axes = tuple(range(1, len(residual.shape)))
    density = -0.5 * ops.square(residual / ops.exp(log_scale)) - log_scale
    return ops.sum(density - 0.5 * math.log(2.0 * math.pi), axis=axes)


class Thorne2021(PatchVAE):
    """The network of the paper, at its size (256) or a smaller multiple of 16.

    Encoder: convolutions of 256, 128 and 64 filters (kernel 4, stride 2, ReLU, batch norm with
    momentum 0.9), a dense layer of 1024, and two dense layers for the mean and the log standard
    deviation of the latents. Decoder: a dense layer to (size/16, size/16, 32), transposed
    convolutions of 128, 64, 32 and 16 filters (kernel 4, stride 2, ReLU), a 1x1 convolution.
    Prior N(0, I); likelihood Gaussian and independent in each pixel, with one variance that is
    learned with the rest, so that the two terms of the ELBO are weighed by the data and not by
    choice.

    Parameters
    ----------
    size : int
        Pixels a side, a multiple of 16.
    latents : int
        Length of the latent vector (the paper: 256).
    seed : int
        Seed of the draws during training.
    """

    def __init__(self, size: int = 256, latents: int = 256, seed: int = 0) -> None:
        if size < 16 or size % 16:
            raise ValueError(f"thorne2021 needs a patch size that is a multiple of 16, got {size}")
        super().__init__(seed=seed, name="thorne2021")
        self.size = size
        self.latents = latents
        start = size // 16
        encoder: list[layers.Layer] = [keras.Input((size, size, 1))]
        # Named, since names that Keras makes up go on counting from one network to the next, and
        # the weights' file is read by name.
        for i, filters in enumerate((256, 128, 64)):
            encoder += [
                layers.Conv2D(
                    filters, 4, strides=2, padding="same", activation="relu", name=f"conv{i}"
                ),
                layers.BatchNormalization(momentum=0.9, name=f"norm{i}"),
            ]
        encoder += [layers.Flatten(), layers.Dense(1024, activation="relu", name="dense")]
        self.encoder = keras.Sequential(encoder, name="encoder")
        self.to_mean = layers.Dense(latents, name="latent_mean")
        # A posterior that starts narrow keeps the first likelihood gradients from drowning.
        self.to_log_scale = layers.Dense(
            latents,
            name="latent_log_scale",
            bias_initializer=keras.initializers.Constant(-1.0),
        )
        decoder: list[layers.Layer] = [
            keras.Input((latents,)),
            layers.Dense(start * start * 32, activation="relu", name="dense"),
            layers.Reshape((start, start, 32)),
        ]
        for i, filters in enumerate((128, 64, 32, 16)):
            decoder += [
                layers.BatchNormalization(momentum=0.9, name=f"norm{i}"),
                layers.Conv2DTranspose(
                    filters, 4, strides=2, padding="same", activation="relu", name=f"deconv{i}"
                ),
            ]
        decoder.append(layers.Conv2D(1, 1, name="conv"))
        self.decoder = keras.Sequential(decoder, name="decoder")
        self.log_noise = self.add_weight(shape=(), initializer="zeros", name="log_noise")
        self.to_mean.build((None, 1024))
        self.to_log_scale.build((None, 1024))
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Hyperparameters, as :func:`build_network` takes them."""
        return {"size": self.size, "latents": self.latents}

    def latent_shapes(self, size: int) -> list[tuple[int, ...]]:
        """See :meth:`PatchVAE.latent_shapes`; the size is fixed by the dense layers."""
        if size != self.size:
            raise ValueError(
                f"these thorne2021 weights make patches of {self.size} pixels a side, not {size}: "
                "leave out size, or use an 'octave' network, whose size is free"
            )
        return [(self.latents,)]

    def encode(
        self, patches: Any, environment: Any = None, training: bool = False
    ) -> list[tuple[Any, Any]]:
        """Posterior of the latents of patches ``(n, size, size)``; no effect of the environment."""
        del environment
        hidden = self.encoder(ops.expand_dims(patches, -1), training=training)
        return [(self.to_mean(hidden), ops.clip(self.to_log_scale(hidden), -8.0, 4.0))]

    def decode(self, latents: list[Any], training: bool = False, environment: Any = None) -> Any:
        """Mean patches of latents ``[(n, latents)]``; the environment has no effect."""
        del environment
        return self.decoder(latents[0], training=training)[..., 0]

    def call(self, inputs: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Terms of the ELBO of ``inputs["patches"]`` with one posterior draw."""
        patches = inputs["patches"]
        ((mean, log_scale),) = self.encode(patches, training=training)
        decoded = self.decode([self._draw(mean, log_scale)], training=training)
        kl = _kl(mean, log_scale)
        return {
            "likelihood": _log_normal(patches - decoded, self.log_noise),
            "kl": kl,
            "score": ops.zeros_like(kl),
            "rivalry": ops.zeros_like(kl),
        }


def haar_analysis(fine: Any) -> tuple[Any, Any]:
    """Split ``(n, 2m, 2m, 1)`` into block means ``(n, m, m, 1)`` and details ``(n, m, m, 3)``."""
    a, b = fine[:, 0::2, 0::2], fine[:, 0::2, 1::2]
    c, d = fine[:, 1::2, 0::2], fine[:, 1::2, 1::2]
    coarse = 0.25 * (a + b + c + d)
    details = 0.25 * ops.concatenate([a - b + c - d, a + b - c - d, a - b - c + d], axis=-1)
    return coarse, details


# What each detail adds to the quadrants of a cell, row by row.
_HAAR = np.array([[1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], np.float32)


def haar_synthesis(coarse: Any, details: Any) -> Any:
    """Inverse of :func:`haar_analysis`."""
    _, rows, columns, _ = ops.shape(coarse)
    quadrants = ops.reshape(coarse + ops.matmul(details, _HAAR), (-1, rows, columns, 2, 2))
    fine = ops.transpose(quadrants, (0, 1, 3, 2, 4))
    return ops.reshape(fine, (-1, 2 * rows, 2 * columns, 1))


def _box(maps: Any, width: int) -> Any:
    """Mean of maps ``(n, rows, columns)`` over a moving square window of odd width.

    The window shrinks at the edges.
    """

    def mean(maps: Any) -> Any:
        # One axis after the other, each time with the other one's cells side by side as channels:
        # on a CPU several times faster than the window itself.
        for _ in range(2):
            pooled = ops.average_pool(
                ops.expand_dims(maps, 2), (width, 1), strides=1, padding="same"
            )
            maps = ops.transpose(ops.squeeze(pooled, 2), (0, 2, 1))
        return maps

    @ops.custom_gradient
    def mean_with_gradient(maps: Any) -> tuple[Any, Any]:
        # Cells are in each other's windows, or not: sums are their own transpose. TensorFlow's
        # gradient of a mean takes five times as long on a CPU.
        def back(*upstreams: Any, upstream: Any = None) -> Any:
            upstream = upstreams[0] if upstream is None else upstream
            cells = _cells_in_window(ops.shape(maps)[1:], width)
            return mean(upstream / cells) * cells

        return mean(maps), back

    return mean_with_gradient(maps)


def _box_each(field: Any, width: int) -> Any:
    """`_box` of every channel of fields ``(n, rows, columns, c)``."""
    *_, rows, columns, channels = field.shape
    maps = ops.reshape(ops.transpose(field, (3, 0, 1, 2)), (-1, rows, columns))
    return _stacked(ops.split(_box(maps, width), channels, axis=0))


def _stacked(maps: Sequence[Any]) -> Any:
    """Fields ``(n, rows, columns, c)`` of which the maps ``(n, rows, columns)`` are channels."""
    return ops.transpose(ops.stack(maps), (1, 2, 3, 0))


def _cells_in_window(shape: Sequence[Any], width: int) -> Any:
    """How many cells of a map are in the window about each, (rows, columns)."""
    half = float(width // 2)
    along = []
    for cells in shape:
        before = ops.cast(ops.arange(cells), "float32")
        along.append(1.0 + ops.minimum(before, half) + ops.minimum(ops.flip(before), half))
    return along[0][:, None] * along[1]


def _gradient(field: Any, axis: int) -> Any:
    """Half the central difference along an axis; the one-sided one at the edges."""

    def part(start: int | None, stop: int | None) -> Any:
        return field[:, start:stop] if axis == 1 else field[:, :, start:stop]

    first = part(1, 2) - part(0, 1)
    last = part(-1, None) - part(-2, -1)
    inner = 0.5 * (part(2, None) - part(None, -2))
    return ops.concatenate([first, inner, last], axis=axis)


def _crop(field: Any, cells: int) -> Any:
    """Fields ``(n, rows, columns, …)`` without their outermost cells on each side."""
    return field[:, cells:-cells, cells:-cells] if cells else field


class _Step(layers.Layer):
    """Convolutions shared by octaves; each octave has its biases, and gains of the outputs.

    The environment shifts both, and has a share of the outputs to itself: how intermittent an
    octave is differs between environments and octaves more than what its structures look like.
    """

    # Gains learn so many times as fast as other weights: what they say shows in the statistics of
    # whole patches only, whose gradients are lost among those of single pixels.
    PACE = 3.0

    def __init__(
        self, octaves: int, channels: int, outputs: int, kernels: tuple[int, ...], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.octaves = octaves
        self.channels = channels
        # Cells beyond a cell that its outputs depend on.
        self.reach = sum(kernel // 2 for kernel in kernels)
        self.convolutions = [
            layers.Conv2D(channels, kernel, padding="same", name=f"conv{i}")
            for i, kernel in enumerate(kernels)
        ]
        self.outputs = outputs
        self.head = layers.Conv2D(
            2 * outputs,
            1,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.05),
            name="head",
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the weights."""
        shape = (None, None, None, input_shape[-1])
        for convolution in self.convolutions:
            convolution.build(shape)
            shape = (None, None, None, self.channels)
        self.head.build(shape)
        shape = (len(self.convolutions), self.octaves, self.channels)
        self.octave_bias = self.add_weight(shape=shape, initializer="zeros", name="octave_bias")
        self.environment_shift = self.add_weight(
            shape=shape, initializer="zeros", name="environment_shift"
        )
        shape = (2, self.octaves, self.outputs)
        self.gain = self.add_weight(shape=shape, initializer="zeros", name="gain")
        self.built = True

    def call(self, features: Any, environment: Any, octave: int, shrink: bool = False) -> Any:
        """Map features ``(n, m, m, c)`` of one octave to its outputs.

        These are of all cells, or without those that have others within the reach beyond the edges:
        then no convolution runs on more cells than the next one needs.

        The environment is one for each, ``(n,)``, or one for all, ``()``: then its shares of biases
        and outputs are added up before they meet the cells, which is faster.
        """
        environment = ops.convert_to_tensor(environment, dtype="float32")
        for_all = len(environment.shape) == 0
        if not for_all:
            environment = ops.reshape(environment, (-1, 1, 1, 1))
        for i, convolution in enumerate(self.convolutions):
            bias = self.octave_bias[i, octave] + environment * self.environment_shift[i, octave]
            padding = "valid" if shrink else "same"
            filtered = ops.conv(features, convolution.kernel, padding=padding)
            # As good as a Gaussian error unit, and three times as fast on a CPU.
            hidden = ops.silu(filtered + (convolution.bias + bias))
            lost = convolution.kernel_size[0] // 2 if shrink else 0
            features = hidden if i == 0 else _crop(features, lost) + hidden
        gain = ops.exp(self.PACE * (self.gain[0, octave] + environment * self.gain[1, octave]))
        if for_all:
            kernel, bias = (
                gain * _with_share(weights, environment)
                for weights in (self.head.kernel, self.head.bias)
            )
            return ops.conv(features, kernel) + bias
        return gain * _with_share(self.head(features), environment)


def _with_share(outputs: Any, environment: Any) -> Any:
    """What all environments have in common, and this one's share of its own."""
    common, own = ops.split(outputs, 2, axis=-1)
    return common + environment * own


class _Critic(layers.Layer):
    """Strided convolutions to a verdict for each place, and one for the patch.

    The latter is of the means of the last convolution: what a patch has in common, as the direction
    of its filaments, is not seen at a place. Each octave has its own biases.
    """

    WIDTHS = (24, 48, 64)
    PATCH_WIDTH = 32
    KERNEL = 4
    # Pixels a side of the smallest field that it judges: its last convolution sees four places.
    SMALLEST = 8

    def __init__(self, octaves: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.octaves = octaves

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the weights."""
        self.kernels, self.biases = [], []
        before = input_shape[-1]
        for i, width in enumerate(self.WIDTHS):
            shape = (self.KERNEL, self.KERNEL, before, width)
            self.kernels.append(
                self.add_weight(shape=shape, initializer="he_normal", name=f"kernel{i}")
            )
            self.biases.append(
                self.add_weight(
                    shape=(self.octaves, width), initializer="zeros", name=f"octave_bias{i}"
                )
            )
            before = width
        self.head = self.add_weight(shape=(before,), initializer="zeros", name="head")
        shape = (before, self.PATCH_WIDTH)
        self.patch_kernel = self.add_weight(
            shape=shape, initializer="he_normal", name="patch_kernel"
        )
        self.patch_bias = self.add_weight(
            shape=(self.octaves, self.PATCH_WIDTH), initializer="zeros", name="patch_bias"
        )
        self.patch_head = self.add_weight(
            shape=(self.PATCH_WIDTH,), initializer="zeros", name="patch_head"
        )
        self.built = True

    def call(self, inputs: Any, octave: int, frozen: bool = False) -> Any:
        """Verdicts ``(n, m/8, m/8)``; frozen, they teach the decoder and not the critic."""

        def weights(variable: Any) -> Any:
            return ops.stop_gradient(variable) if frozen else ops.convert_to_tensor(variable)

        def leaky(hidden: Any) -> Any:
            # TensorFlow's own is fused in some runs and not in others (its graph optimiser fails on
            # it), which rounds differently: the same seed, other weights.
            return ops.maximum(hidden, 0.2 * hidden)

        hidden = inputs
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            hidden = ops.conv(hidden, weights(kernel), strides=2, padding="same")
            hidden = leaky(hidden + weights(bias)[octave])
        pooled = ops.matmul(ops.mean(hidden, axis=(1, 2)), weights(self.patch_kernel))
        pooled = leaky(pooled + weights(self.patch_bias)[octave])
        of_patch = ops.sum(pooled * weights(self.patch_head), axis=-1)[:, None, None]
        return ops.sum(hidden * weights(self.head), axis=-1) + of_patch


class Octave(PatchVAE):
    """A ladder of conditional VAEs, one step an octave; see the module's docstring.

    Step ``k`` takes the block-mean map ``a`` of twice the pixel size, as three bands (``a`` less
    its 3x3 mean, that less the 9x9 mean, and the rest) and its direction in windows of two widths
    (the structure tensor of its gradient: Bigün & Granlund 1987), and latents ``z ~ N(0, I)`` on
    the same grid, and returns the three Haar details as ``scale_k v exp(g)``: ``v`` and ``g`` are
    outputs of the network; ``g`` lets the amplitude vary from place to place, which is what heavy
    tails are made of. There are more latents than details, so a sample needs no white noise on top.
    Some of the latents are given as averages over wide windows, too. What the small scales of a
    place have in common, as their direction, reaches further than the convolutions see.

    The objective is the ELBO, with a Gaussian likelihood of standard deviation ``residual`` times
    the details' own in every octave alike (so that each octave counts), plus two terms on *prior*
    samples given a coarser map: of one octave given the true one, and of the whole ladder given the
    coarsest. They close the gap between prior and aggregate posterior, which the ELBO alone leaves
    open.

    - An energy score (Gneiting & Raftery 2007, JASA 102, 359, eq. 21), which is proper: least when
      the samples have the distribution of the data. It is taken of the details, of the finest band
      that they give the map and of what is sharp in it, over windows of several widths and over
      local energies; weighed with ``texture_weight``, of the responses of ridge filters in six
      directions (at each point, over windows, over the patch), which see what filaments are made
      of, and of how uneven those directions are; and, weighed with ``summary_weight``, of a few
      numbers that sum up the patch, each by itself: its energy, kurtosis and skewness, how much the
      energy varies, and with the brightness. Among the pixels' scores an error of one such number
      would not be seen.
    - With ``critic_weight``, a critic that learns to tell samples from data (a relativistic
      adversarial loss: Jolicoeur-Martineau 2018, arXiv:1807.00734), for what no fixed statistic
      sees. It is trained along, and not kept.

    Parameters
    ----------
    octaves : int
        Number of steps; a patch must be a multiple of ``2**octaves`` pixels a side.
    channels, fine_channels, encoder_channels : int
        Width of the convolutions: of the decoder, of its two finest octaves, of the encoder.
    latents : int
        Latent channels of each octave.
    residual : float
        Standard deviation of the likelihood, in units of the details' own.
    score_weight : float
        Weight of the energy score; 0 leaves it out.
    texture_weight : float
        Weight of the part over ridge filters, relative to the rest of the score.
    summary_weight : float
        Weight of the part over numbers that sum up a patch, relative to the rest of the score.
    critic_weight : float
        Weight of the adversarial term; 0 leaves it and the critic out.
    coarse_share : int
        In training, the two finest octaves see one patch of the batch in so many. Coarser ones cost
        little, and have few cells a patch to learn from.
    seed : int
        Seed of the draws during training.
    """

    WINDOWS = (1, 3, 7)
    # Cells over which some latents are averaged, and the coarser map's direction.
    WIDE_WINDOWS = (9, 17)
    DIRECTION_WINDOWS = (5, 13)
    # Cells over which the energy of its finest band is averaged.
    ENERGY_WINDOWS = (7, 15)
    # On planes, which are not standardised as patches are, the coarser map's bands saturate at so
    # many times their scale: beyond what training has seen, peaks would grow from octave to octave.
    LARGEST = 5.0
    # Octaves that share the small step.
    FINE = 2
    # Cells of the coarser map's grid beyond a cell that the details drawn in it can depend on: half
    # the widest window, and the convolutions' own.
    REACH = 13

    def __init__(
        self,
        octaves: int = 4,
        channels: int = 40,
        fine_channels: int = 16,
        encoder_channels: int = 48,
        latents: int = 6,
        residual: float = 0.1,
        score_weight: float = 2.0,
        texture_weight: float = 1.0,
        summary_weight: float = 1.5,
        critic_weight: float = 0.5,
        coarse_share: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed, name="octave")
        self.octaves = octaves
        self.channels = channels
        self.fine_channels = fine_channels
        self.encoder_channels = encoder_channels
        self.latents = latents
        self.residual = residual
        self.score_weight = score_weight
        self.texture_weight = texture_weight
        self.summary_weight = summary_weight
        self.critic_weight = critic_weight
        self.coarse_share = coarse_share
        # Two latents for each window, if there are as many.
        self.wide = min(2, latents // len(self.WIDE_WINDOWS))
        context = 3 + 2 * len(self.DIRECTION_WINDOWS) + len(self.ENERGY_WINDOWS)
        inputs = context + latents + self.wide * len(self.WIDE_WINDOWS)
        # The cost of a patch is that of its finest octaves. Maps that are refined further and
        # further run the second of them again and again.
        self.fine = _Step(min(self.FINE, octaves), fine_channels, 6, (3, 3, 3, 3), name="fine")
        self.fine.build((None, None, None, inputs))
        if octaves > self.FINE:
            self.decoder = _Step(octaves - self.FINE, channels, 6, (5, 3, 3, 3), name="decoder")
            self.decoder.build((None, None, None, inputs))
        self.encoder = _Step(octaves, encoder_channels, 2 * latents, (3, 3), name="encoder")
        self.encoder.build((None, None, None, context + 3))
        # Measured on the training patches by adapt(), then fixed.
        self.detail_scale = self.add_weight(
            shape=(octaves,), initializer="ones", trainable=False, name="detail_scale"
        )
        self.context_scale = self.add_weight(
            shape=(octaves, 3), initializer="ones", trainable=False, name="context_scale"
        )
        self.variogram = self.add_weight(
            shape=(2,), initializer="ones", trainable=False, name="variogram"
        )
        self.top_scatter = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="top_scatter"
        )
        if critic_weight:
            self.critic = _Critic(octaves, name="critic")
            self.critic.build((None, None, None, 4))
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Hyperparameters, as :func:`build_network` takes them."""
        names = (
            "octaves",
            "channels",
            "fine_channels",
            "encoder_channels",
            "latents",
            "residual",
            "score_weight",
            "texture_weight",
            "summary_weight",
            "critic_weight",
            "coarse_share",
        )
        return {name: getattr(self, name) for name in names}

    def adapt(self, patches: np.ndarray) -> None:
        """Measure the octaves' scales, the coarsest map's variogram and its variance's scatter.

        Parameters
        ----------
        patches : ndarray, shape (n, size, size)
            Standardised training patches.

        Raises
        ------
        ValueError
            If they are smaller than three pixels of the coarsest map.
        """
        smallest = 3 * 2**self.octaves
        if patches.shape[-1] < smallest:
            raise ValueError(
                f"patches of {patches.shape[-1]} pixels are too small to train {self.octaves} "
                f"octaves on: the variogram of their coarsest map needs {smallest} pixels or more"
            )
        coarse = ops.convert_to_tensor(patches[..., None], dtype="float32")
        detail_scale = np.ones(self.octaves, np.float32)
        context_scale = np.ones((self.octaves, 3), np.float32)
        for octave in range(self.octaves):
            coarse, details = haar_analysis(coarse)
            detail_scale[octave] = np.std(ops.convert_to_numpy(details))
            bands = [ops.convert_to_numpy(band) for band in self._bands(coarse)]
            context_scale[octave] = [np.sqrt(np.mean(band**2)) for band in bands]
        self.detail_scale.assign(detail_scale)
        # A band that a training patch is too small to have says nothing; on a larger patch it would
        # be far from all that training saw. An infinite scale leaves it out.
        self.context_scale.assign(np.where(context_scale > 0.02, context_scale, np.inf))
        # Half the mean square difference at lags 1 and 2 of the coarsest grid, as g r^h.
        top = ops.convert_to_numpy(coarse)[..., 0]
        lags = [
            0.25
            * (
                np.mean((top[:, r:] - top[:, :-r]) ** 2)
                + np.mean((top[:, :, r:] - top[:, :, :-r]) ** 2)
            )
            for r in (1, 2)
        ]
        exponent = float(np.clip(np.log2(lags[1] / lags[0]), 0.05, 1.9))
        self.variogram.assign(np.array([lags[0], exponent], np.float32))
        self.top_scatter.assign(np.std(np.log(np.var(top, axis=(1, 2)) + 1e-6)))

    def _bands(self, coarse: Any) -> list[Any]:
        """Three maps ``(n, m, m)`` whose sum is the coarse one ``(n, m, m, 1)``."""
        whole = ops.squeeze(coarse, -1)
        narrow, wide = _box(whole, 3), _box(whole, 9)
        return [whole - narrow, narrow - wide, wide]

    def _context(
        self, coarse: Any, octave: int, largest: float = math.inf, outside: int = 0
    ) -> Any:
        """What a step is told of the coarser map, without so many cells ``outside``."""
        scale = self.context_scale[octave]
        bands = [band / scale[number] for number, band in enumerate(self._bands(coarse))]
        if largest < math.inf:
            bands = [largest * ops.tanh(band / largest) for band in bands]
        squared = ops.square(bands[0])
        energies = [0.5 * ops.log(_box(squared, width) + 0.01) for width in self.ENERGY_WINDOWS]
        maps = [*bands, *self._directions(coarse, scale[0]), *energies]
        return _stacked([_crop(each, outside) for each in maps])

    def _directions(self, coarse: Any, scale: Any) -> list[Any]:
        """Cosine and sine of twice the gradient's angle, times its coherence, in each window."""
        scaled = ops.squeeze(coarse, -1) / scale
        down, right = _gradient(scaled, 1), _gradient(scaled, 2)
        tensor = ops.concatenate(
            [
                ops.square(right) - ops.square(down),
                2.0 * right * down,
                ops.square(right) + ops.square(down),
            ],
            axis=0,
        )
        found = []
        for window in self.DIRECTION_WINDOWS:
            cosine, sine, energy = ops.split(_box(tensor, window), 3, axis=0)
            # Where the map is flat there is no direction.
            found += [cosine / (energy + 1e-3), sine / (energy + 1e-3)]
        return found

    def _details(self, context: Any, z: Any, environment: Any, octave: int, margin: int = 0) -> Any:
        """Mean details of one octave, in units of the octave's scale, ``margin`` cells inside.

        The context is without the cells ``_outside``.
        """
        step, outside = self._step(octave), self._outside(octave, margin)
        inputs = [context, _crop(z, outside)]
        if self.wide:
            inputs.append(self._wide_latents(z, outside))
        number = octave if octave < self.FINE else octave - self.FINE
        shrink = margin >= step.reach
        outputs = step(
            ops.concatenate(inputs, axis=-1),
            environment=environment,
            octave=number,
            shrink=shrink,
        )
        inside = outputs if shrink else _crop(outputs, margin)
        details, growth = inside[..., :3], inside[..., 3:]
        return details * ops.exp(2.0 * ops.tanh(0.5 * growth))

    def _step(self, octave: int) -> _Step:
        return self.fine if octave < self.FINE else self.decoder

    def _outside(self, octave: int, margin: int) -> int:
        """Cells of a margin that the convolutions do without.

        They cost most: they run on what the cells asked for depend on, and no more.
        """
        return max(margin - self._step(octave).reach, 0)

    def _wide_latents(self, z: Any, outside: int = 0) -> Any:
        """Averages of latents over wide windows, each scaled to unit variance."""
        _, rows, columns, _ = ops.shape(z)
        part = z[..., : self.wide * len(self.WIDE_WINDOWS)]
        found = []
        maps = ops.split(ops.transpose(part, (3, 0, 1, 2)), len(self.WIDE_WINDOWS), axis=0)
        for each, window in zip(maps, self.WIDE_WINDOWS, strict=True):
            averaged = _box(ops.reshape(each, (-1, rows, columns)), window)
            averaged *= ops.sqrt(_cells_in_window((rows, columns), window))
            inside = _crop(averaged, outside)
            found.append(ops.reshape(inside, (self.wide, -1, *ops.shape(inside)[1:])))
        return ops.transpose(ops.concatenate(found, axis=0), (1, 2, 3, 0))

    def latent_shapes(self, size: int) -> list[tuple[int, ...]]:
        """See :meth:`PatchVAE.latent_shapes`: the coarsest map, then each octave in turn."""
        step = 2**self.octaves
        if size < 2 * step or size % step:
            raise ValueError(
                f"{self.octaves} octaves need a patch size that is a multiple of {step}, "
                f"at least {2 * step}; got {size}"
            )
        if size > MAX_GRID * step:
            raise ValueError(
                f"a patch of {size} pixels has too large a coarsest map: {self.octaves} octaves "
                f"make patches of {MAX_GRID * step} pixels at most"
            )
        grids = [size // step * 2**i for i in range(self.octaves)]
        return [(grids[0] ** 2,)] + [(grid, grid, self.latents) for grid in grids]

    def top_matrix(self, grid: int) -> Any:
        """Square root of the coarsest map's covariance on a ``grid`` x ``grid`` lattice.

        The map is a zero-mean intrinsic random field with variogram ``g r^h``: with ``P`` the
        projection that removes the mean, its covariance is ``-P gamma P`` (Chilès & Delfiner 2012,
        Geostatistics, section 4.3).
        """
        y, x = np.divmod(np.arange(grid * grid), grid)
        distance = np.hypot(x[:, None] - x, y[:, None] - y).astype(np.float32)
        # A lag of zero would be 0^h, whose gradient is not finite.
        gamma = self.variogram[0] * ops.where(
            distance > 0, ops.maximum(distance, 1.0) ** self.variogram[1], 0.0
        )
        projection = (np.eye(grid * grid) - 1.0 / grid**2).astype(np.float32)
        values, vectors = ops.eigh(-ops.matmul(projection, ops.matmul(gamma, projection)))
        return vectors * ops.sqrt(ops.maximum(values, 0.0))

    def typical_top(self, top: np.ndarray) -> np.ndarray:
        """Scale the coarsest map's latents ``(n, m)`` so that the maps' variances are typical.

        Patches are standardised, and most of their variance is the coarsest map's: it differs from
        patch to patch by about a fifth, and what it lacks the small scales have. That of a
        Gaussian field of so few pixels differs by factors. Its logarithm is brought to the scatter
        of the training patches' (``top_scatter``), about the mean variance as it was.
        """
        root = np.asarray(self.top_matrix(math.isqrt(top.shape[1])), np.float64)
        power = np.sum(root**2, axis=0)
        variance = np.sum((top @ root.T) ** 2, axis=1, keepdims=True)
        # What the sums of these squares are like has no closed form.
        normals = np.random.Generator(np.random.Philox(0)).standard_normal((4096, len(power)))
        logs = np.log(normals**2 @ power)
        scatter = float(self.top_scatter)
        surplus = (np.log(variance) - logs.mean()) / logs.std()
        typical = np.exp(scatter * surplus - 0.5 * scatter**2)
        return (top * np.sqrt(power.sum() * typical / variance)).astype(np.float32)

    def encode(self, patches: Any, environment: Any = None) -> list[tuple[Any, Any]]:
        """See :meth:`PatchVAE.encode`; the coarsest map is known exactly."""
        coarse, posterior = patches[..., None], []
        environment = _environments(patches, environment)
        for octave in range(self.octaves):
            coarse, details = haar_analysis(coarse)
            context = self._context(coarse, octave)
            scaled = details / self.detail_scale[octave]
            posterior.append(self._posterior(context, scaled, environment, octave))
        grid = coarse.shape[1]
        root = self.top_matrix(grid)
        flat = ops.reshape(coarse, (-1, grid * grid))
        # The columns of the root are orthogonal; the one of the mean is zero and stays unused.
        norm = ops.sum(ops.square(root), axis=0)
        top = ops.matmul(flat, root) * ops.where(norm > 1e-6, 1.0 / ops.maximum(norm, 1e-6), 0.0)
        posterior.append((top, ops.full_like(top, -8.0)))
        return posterior[::-1]

    def _posterior(
        self, context: Any, scaled: Any, environment: Any, octave: int
    ) -> tuple[Any, Any]:
        # Amplified above unit variance, by about the inverse of the likelihood's residual: what is
        # worth encoding is small.
        amplified = scaled / self.detail_scale[octave]
        inputs = ops.concatenate([context, amplified], axis=-1)
        outputs = self.encoder(inputs, environment=environment, octave=octave)
        # Starts at a standard deviation of 0.37, and stays within what float32 can square.
        log_scale = ops.clip(outputs[..., self.latents :] - 1.0, -8.0, 2.0)
        return outputs[..., : self.latents], log_scale

    def decode(
        self,
        latents: list[Any],
        training: bool = False,
        environment: Any = None,
        coarse: Any = None,
    ) -> Any:
        """See :meth:`PatchVAE.decode`.

        Parameters
        ----------
        latents : list of tensor
            As :meth:`latent_shapes`; with ``coarse``, those of the octaves alone.
        training : bool
            Has no effect here.
        environment : tensor, shape (n,), optional
            From 0, diffuse sky (the default), to 1, molecular clouds.
        coarse : tensor, shape (n, m, m), optional
            Standardised block means to start from; each octave's latents given double it.

        Notes
        -----
        The last octave is the one that the beam of the training maps has dimmed; :meth:`refine`
        draws octaves that are each as sharp as the one before.
        """
        del training
        if coarse is None:
            grid = math.isqrt(latents[0].shape[-1])
            root = self.top_matrix(grid)
            coarse = ops.reshape(ops.matmul(latents[0], ops.transpose(root)), (-1, grid, grid))
            latents = latents[1:]
        field = coarse[..., None]
        environment = _environments(coarse, environment)
        for i, latent in enumerate(latents):
            octave = min(len(latents) - 1 - i, self.octaves - 1)
            field = self._refined(field, latent, environment, octave)
        return field[..., 0]

    def refine(
        self, coarse: Any, latents: Any, environment: Any, level: int, margin: int = 0
    ) -> Any:
        """Draw one octave as generation on the sky does, where no beam dims the last one.

        What is drawn in a cell depends on the cells up to :attr:`REACH` from it, and on nothing
        else: neither on where it lies in the map, nor, that far from them, on the map's edges.
        Bands of the map saturate at :attr:`LARGEST` times their scale.

        Parameters
        ----------
        coarse : tensor, shape (n, rows, columns)
            The map to refine, in the network's units.
        latents : tensor, shape (n, rows, columns, latents)
            Standard normal latents, on the map's grid.
        environment : float, or tensor, shape (n,)
            From 0, diffuse sky, to 1, molecular clouds; one for all is faster.
        level : int
            How many octaves were drawn before this one.
        margin : int
            Cells on each side of the map that are not refined. With :attr:`REACH` of them or more
            the result is what any larger map would get there.

        Returns
        -------
        tensor, shape (n, 2 (rows - 2 margin), 2 (columns - 2 margin))
        """
        octave = max(self.octaves - 1 - level, min(1, self.octaves - 1))
        field = self._refined(coarse[..., None], latents, environment, octave, margin, self.LARGEST)
        return field[..., 0]

    def _refined(
        self,
        field: Any,
        latents: Any,
        environment: Any,
        octave: int,
        margin: int = 0,
        largest: float = math.inf,
    ) -> Any:
        context = self._context(field, octave, largest, self._outside(octave, margin))
        details = self._details(context, latents, environment, octave, margin)
        return haar_synthesis(_crop(field, margin), self.detail_scale[octave] * details)

    def decoded_details(self, coarse: Any, latents: Any, environment: Any, octave: int) -> Any:
        """Mean Haar details of one octave of :meth:`decode`, in units of their scale.

        Parameters
        ----------
        coarse : tensor, shape (n, m, m, 1)
            The next coarser map.
        latents : tensor, shape (n, m, m, latents)
            The octave's.
        environment : tensor, shape (n,)
            From 0, diffuse sky, to 1, molecular clouds.
        octave : int
            0 for the finest.

        Returns
        -------
        tensor, shape (n, m, m, 3)
            Of training patches they vary about it with the standard deviation ``residual``.
        """
        return self._details(self._context(coarse, octave), latents, environment, octave)

    def call(self, inputs: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Terms of the ELBO with one posterior draw, and the energy scores of prior draws."""
        patches, environment = inputs["patches"], inputs["environment"]
        pyramid = [patches[..., None]]
        for _ in range(self.octaves):
            pyramid.append(haar_analysis(pyramid[-1])[0])
        terms = [ops.zeros_like(environment)] * 4
        # Every other patch runs down the whole ladder, as generation does: what a step makes of the
        # errors of those before it is scored, too. The others start each octave from the truth.
        running = ops.mod(ops.cumsum(ops.ones_like(environment)), 2.0)
        running = ops.reshape(running, (-1, 1, 1, 1))
        drawn = [pyramid[-1], pyramid[-1]]
        for octave in reversed(range(self.octaves)):
            if training and octave == self.FINE - 1:
                # The first of the batch, which is shuffled. What the coarse octaves have found of
                # all of it goes on as its mean.
                part = -(-ops.shape(environment)[0] // self.coarse_share)
                environment, running = environment[:part], running[:part]
                pyramid = [level[:part] for level in pyramid]
                drawn = [field[:part] for field in drawn]
                terms = [ops.mean(term) + ops.zeros_like(environment) for term in terms]
            likelihood, kl, score, rivalry = terms
            fine, coarse = pyramid[octave], pyramid[octave + 1]
            scale = self.detail_scale[octave]
            details = haar_analysis(fine)[1] / scale
            context = self._context(coarse, octave)
            mean, log_scale = self._posterior(context, details, environment, octave)
            decoded = self._details(context, self._draw(mean, log_scale), environment, octave)
            likelihood += _log_normal(details - decoded, math.log(self.residual))
            kl += _kl(mean, log_scale)
            if self.score_weight or self.critic_weight:
                starts = [coarse + running * (field - coarse) for field in drawn]
                drawn_details = self._two_draws(starts, environment, octave)
                drawn = [
                    haar_synthesis(start, scale * each)
                    for start, each in zip(starts, drawn_details, strict=True)
                ]
                octaves = [
                    _Drawn(start, each, field / scale)
                    for start, each, field in zip(
                        (coarse, *starts), (details, *drawn_details), (fine, *drawn), strict=True
                    )
                ]
                score += self._score(*octaves)
                if self.critic_weight and fine.shape[1] >= _Critic.SMALLEST:
                    fields = [each.field for each in octaves]
                    rivalry += self._rivalry(fields[0], fields[1], environment, octave)
            terms = [likelihood, kl, score, rivalry]
        likelihood, kl, score, rivalry = terms
        # A mean a location and octave, given the size of a term of the ELBO, which is a sum.
        pixels = math.prod(patches.shape[1:3]) / self.octaves
        return {
            "likelihood": likelihood,
            "kl": kl,
            "score": self.score_weight * pixels * score,
            "rivalry": pixels * rivalry,
        }

    def _two_draws(self, starts: list[Any], environment: Any, octave: int) -> list[Any]:
        """One draw of the octave's prior, in units of its scale, for each of two coarser maps."""
        context = self._context(ops.concatenate(starts, axis=0), octave)
        shape = (*ops.shape(context)[:3], self.latents)
        z = keras.random.normal(shape, seed=self.seed_generator)
        both = ops.concatenate([environment, environment], axis=0)
        return ops.split(self._details(context, z, both, octave), 2, axis=0)

    def _score(self, truth: _Drawn, first: _Drawn, second: _Drawn) -> Any:
        """Score ``(n,)`` of two draws of an octave."""
        drawn = (truth, first, second)
        # Details say nothing of how those of one cell fit to the next one's: their map does.
        score = self._energy_score(*(each.details for each in drawn))
        score += 0.5 * self._energy_score(*(_near(each.field) for each in drawn))
        score += 0.5 * self._energy_score(*(_sharp(each.field) for each in drawn))
        if self.summary_weight:
            score += self.summary_weight * _separate_scores(*(_summary(each) for each in drawn))
        if self.texture_weight and truth.field.shape[1] > _RIDGES.shape[0]:
            score += self.texture_weight * _texture_score(*(_texture(each.field) for each in drawn))
        return score

    def _energy_score(self, truth: Any, first: Any, second: Any) -> Any:
        """Energy score ``(n,)`` of fields ``(n, m, m, c)`` over windows and local energies."""
        score = 0.0
        for width in self.WINDOWS:
            # A wider one would see the whole field from everywhere.
            if width > 2 * truth.shape[1] - 1:
                continue
            score += _energy_distance(truth, first, second, width)
            if width > 1:
                energies = [
                    ops.log(_box_each(ops.square(field), width) + 1e-3)
                    for field in (truth, first, second)
                ]
                score += 0.25 * _energy_distance(*energies)
        return score

    def _rivalry(self, real: Any, drawn: Any, environment: Any, octave: int) -> Any:
        """Losses ``(n,)`` of the critic, and of the decoder at the critic's hands."""

        def judge(field: Any, frozen: bool = False) -> Any:
            near, middle, wide = self._bands(field)
            where = ops.ones_like(near) * ops.reshape(environment, (-1, 1, 1))
            # About unit variance each, for details of unit variance and a steep spectrum.
            inputs = _stacked([near, 0.5 * middle, 0.1 * wide, where])
            return self.critic(inputs, octave=octave, frozen=frozen)

        of_real, of_drawn = judge(real), judge(ops.stop_gradient(drawn))
        # Verdicts drift without a pull to zero.
        drift = 1e-3 * (ops.square(of_real) + ops.square(of_drawn))
        critic = ops.softplus(of_drawn - of_real) + drift
        decoder = ops.softplus(ops.stop_gradient(of_real) - judge(drawn, frozen=True))
        return ops.mean(critic + self.critic_weight * decoder, axis=(1, 2))


class _Drawn(NamedTuple):
    """An octave of patches, in units of its scale but for the coarser map.

    Attributes
    ----------
    coarse : tensor, shape (n, m, m, 1)
        The map that it was drawn for.
    details : tensor, shape (n, m, m, 3)
    field : tensor, shape (n, 2m, 2m, 1)
        The map that they make.
    """

    coarse: Any
    details: Any
    field: Any


def _near(field: Any) -> Any:
    """What is finer than three pixels of fields ``(n, m, m, 1)``, of about unit variance."""
    whole = ops.squeeze(field, -1)
    return ops.expand_dims(2.0 * (whole - _box(whole, 3)), -1)


def _sharp(field: Any) -> Any:
    """What single pixels of fields ``(n, m, m, 1)`` add to their neighbours, twice: ``m - 2``."""
    around = field[:, :-2, 1:-1] + field[:, 2:, 1:-1] + field[:, 1:-1, :-2] + field[:, 1:-1, 2:]
    return 2.0 * field[:, 1:-1, 1:-1] - 0.5 * around


def _summary(drawn: _Drawn) -> Any:
    """Numbers ``(n, 7)`` that sum up an octave, each scaled to scatter by about 1 in real patches.

    Of the finest band of the map: log energy, log kurtosis, skewness (compressed), how much the log
    of its local energy varies, the correlation of that with the coarser map, its energy over that
    of the details, which says how well those of one cell fit to the next one's, and the sharpest
    structures' energy over its own.
    """
    near = _near(drawn.field)
    squared = ops.square(near)
    energy = ops.mean(squared, axis=(1, 2, 3)) + 1e-4
    of_details = ops.mean(ops.square(drawn.details), axis=(1, 2, 3)) + 1e-4
    of_sharp = ops.mean(ops.square(_sharp(drawn.field)), axis=(1, 2, 3)) + 1e-4
    kurtosis = ops.mean(ops.square(squared), axis=(1, 2, 3)) / ops.square(energy)
    skewness = ops.mean(squared * near, axis=(1, 2, 3)) / energy**1.5
    local = ops.average_pool(squared, 4, strides=4) / ops.reshape(energy, (-1, 1, 1, 1))
    local = _centred(ops.log(local + 0.03))
    below = _centred(ops.average_pool(drawn.coarse, 2, strides=2))
    variance = ops.mean(ops.square(local), axis=(1, 2, 3)) + 1e-3
    of_below = ops.mean(ops.square(below), axis=(1, 2, 3)) + 1e-4
    covariance = ops.mean(local * below, axis=(1, 2, 3))
    return ops.stack(
        [
            3.0 * ops.log(energy),
            4.0 * ops.log(kurtosis + 0.1),
            2.0 * ops.arcsinh(5.0 * skewness),
            5.0 * ops.log(variance),
            6.0 * covariance / ops.sqrt(variance * of_below),
            6.0 * ops.log(energy / of_details),
            6.0 * ops.log(of_sharp / energy),
        ],
        axis=-1,
    )


def _centred(field: Any) -> Any:
    """Fields ``(n, m, m, 1)`` less the mean of each."""
    return field - ops.mean(field, axis=(1, 2, 3), keepdims=True)


def _separate_scores(truth: Any, first: Any, second: Any) -> Any:
    """Energy score of each number of ``(n, c)`` by itself; the mean of them, ``(n,)``."""
    to_truth = 0.5 * (ops.abs(truth - first) + ops.abs(truth - second))
    return ops.mean(to_truth - 0.5 * ops.abs(first - second), axis=-1)


def _environments(like: Any, environment: Any) -> Any:
    """Environments ``(n,)`` of the patches ``like``: diffuse sky if none are given."""
    return ops.zeros_like(like[:, 0, 0]) if environment is None else environment


def _ridge_filters(
    size: int = 7, directions: int = 6, across: float = 0.8, along: float = 2.2
) -> np.ndarray:
    """Second derivatives of an elongated Gaussian, ``(size, size, 1, directions)``, of norm 1.

    The widths are standard deviations in pixels: a ridge about two pixels wide and five long.
    """
    y, x = np.mgrid[:size, :size] - 0.5 * (size - 1)
    angle = np.pi / directions * np.arange(directions)
    forward = x[..., None] * np.cos(angle) + y[..., None] * np.sin(angle)
    sideways = (y[..., None] * np.cos(angle) - x[..., None] * np.sin(angle)) / across
    bank = (1 - sideways**2) * np.exp(-0.5 * sideways**2 - 0.5 * (forward / along) ** 2)
    bank -= bank.mean(axis=(0, 1))
    bank /= np.sqrt((bank**2).sum(axis=(0, 1)))
    return bank[:, :, None, :].astype(np.float32)


_RIDGES = _ridge_filters()


def _texture(field: Any) -> tuple[Any, ...]:
    """What ridge filters say of fields ``(n, m, m, 1)``: at points, over windows, over the patch.

    The responses, ``(n, m', m', 6)``; the logarithm of their energy in windows of eight pixels;
    four statistics of each direction over the patch: the log of the mean modulus, its scatter from
    window to window, and (compressed) the kurtosis and skewness of the response; and how far the
    log energies of directions lie from their mean, in windows of 16 pixels and over the patch.
    """
    ridges = ops.conv(field, ops.convert_to_tensor(_RIDGES), padding="valid")
    squared = ops.square(ridges)
    width = min(8, ridges.shape[1])
    energy = ops.average_pool(squared, width, strides=max(1, width // 2), padding="valid")
    modulus = ops.mean(ops.abs(ridges), axis=(1, 2)) + 1e-2
    variance = ops.mean(squared, axis=(1, 2)) + 1e-3
    patch = [
        ops.log(modulus),
        0.5 * ops.log(ops.mean(ops.square(squared), axis=(1, 2)) / ops.square(variance) + 0.1),
        0.5 * ops.arcsinh(ops.mean(squared * ridges, axis=(1, 2)) / variance**1.5),
    ]
    if energy.shape[1] > 2:
        patch.append(2.0 * ops.std(ops.sqrt(energy + 1e-4), axis=(1, 2)) / modulus)
    wide = min(16, ridges.shape[1])
    wider = ops.average_pool(squared, wide, strides=max(1, wide // 2), padding="valid")
    # Among the other statistics these would be lost: of patches of the sky they scatter by a tenth
    # and by two fifths, and the factors make that about 1.
    uneven = [8.0 * _unevenness(patch[0]), 2.5 * _unevenness(ops.log(wider + 1e-2))]
    return ridges, ops.log(energy + 1e-2), ops.concatenate(patch, axis=-1), *uneven


def _unevenness(values: Any) -> Any:
    """Values of the directions less their mean."""
    return values - ops.mean(values, axis=-1, keepdims=True)


def _texture_score(truth: Any, first: Any, second: Any) -> Any:
    """Energy score ``(n,)`` over the parts of :func:`_texture`, each given about equal say."""
    parts = []
    for weight, *fields in zip((0.3, 0.3, 0.5, 0.8, 0.4), truth, first, second, strict=True):
        if len(fields[0].shape) == 2:
            fields = [field[:, None, None] for field in fields]
        parts.append(weight * _energy_distance(*fields))
    return sum(parts)


def _energy_distance(truth: Any, first: Any, second: Any, width: int = 1) -> Any:
    """``E|x - s| - E|s - s'|/2`` of the values in moving windows, ``(n,)``."""

    def norm(difference: Any) -> Any:
        squared = ops.sum(ops.square(difference), axis=-1)
        windowed = _box(squared, width) if width > 1 else squared
        return ops.mean(ops.sqrt(windowed + 1e-6), axis=(1, 2))

    return 0.5 * (norm(truth - first) + norm(truth - second)) - 0.5 * norm(first - second)
