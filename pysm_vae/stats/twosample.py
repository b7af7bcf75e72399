"""A small network that is trained to tell two sets of patches apart, and how well it does.

The statistics of `compare` see what somebody thought of measuring. A classifier looks for whatever
gives a set away; scored on patches that it never saw, its area under the ROC curve (AUC) is the
chance that it ranks a random patch of the second set above a random one of the first: ½ if it
cannot tell them apart, 1 if it always can (Lopez-Paz & Oquab 2017, arXiv:1610.06545).

Regions of real sky can be told apart, too. `halves` and `both_ways` make the fair comparison: two
sets are each cut into two parts that share no sky, the network is trained on one part of both and
scored on the other, then the other way round.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from pysm_vae.stats.spectra import check_patches, standardise

if TYPE_CHECKING:
    from pysm_vae.vae.patches import PatchSet

_log = logging.getLogger(__name__)

STEPS = 250
"""Training steps by default: the loss of 64-pixel patches of one Planck field has then settled."""

_BATCH = 32
_FILTERS = (24, 32, 48)
# Structures finer than 3 pixels, and between 3 and 9, next to the patch itself: dust's spectrum is
# so steep that a network would take long to notice what is wrong with small scales.
_WINDOWS = (3, 9)
_FALSE_POSITIVES = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class TwoSample:
    """How well a network told two sets apart on patches that it never saw.

    Attributes
    ----------
    auc : float
        Area under the ROC curve.
    error : float
        Its standard error (Hanley & McNeil 1982, Radiology 143, 29, with their Q₁ = A/(2 − A) and
        Q₂ = 2A²/(1 + A)). It takes patches as independent: overlapping ones are not, and it is then
        too small.
    patches : tuple of int
        Patches of the first and of the second set that were scored.
    false_positives, true_positives : arrays, shape (nr,)
        The ROC curve: of the patches ranked above a threshold, the fraction of the first set
        (called the second by mistake) and of the second.
    """

    auc: float
    error: float
    patches: tuple[int, int]
    false_positives: np.ndarray
    true_positives: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        return {
            "auc": self.auc,
            "error": self.error,
            "patches": list(self.patches),
            "false_positives": self.false_positives.tolist(),
            "true_positives": self.true_positives.tolist(),
        }


def roc(first: np.ndarray, second: np.ndarray) -> TwoSample:
    """ROC curve and AUC of scores that should be higher for the second set.

    Parameters
    ----------
    first : array, shape (n,)
        Scores of patches of the first set.
    second : array, shape (m,)
        Scores of patches of the second set.

    Returns
    -------
    TwoSample
        Its AUC counts ties as one half (Mann-Whitney).

    Raises
    ------
    ValueError
        If a set is empty.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    n, m = len(first), len(second)
    if min(n, m) == 0:
        raise ValueError(f"{n} and {m} scores: each set needs at least one patch to score")
    apart = second[None, :] - first[:, None]
    auc = float(np.mean(apart > 0) + 0.5 * np.mean(apart == 0))
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (m - 1) * (q1 - auc**2) + (n - 1) * (q2 - auc**2)
    thresholds = np.unique(np.concatenate([first, second]))[::-1]
    false = np.array([0, *((first >= t).mean() for t in thresholds)])
    true = np.array([0, *((second >= t).mean() for t in thresholds)])
    return TwoSample(auc, float(np.sqrt(max(variance, 0) / (n * m))), (n, m), false, true)


def two_sample_auc(
    real_train: np.ndarray,
    other_train: np.ndarray,
    real_test: np.ndarray,
    other_test: np.ndarray,
    *,
    seed: int = 0,
    steps: int = STEPS,
) -> TwoSample:
    """Train a small network to tell two sets of patches apart and score it on two others.

    Three strided convolutions (24, 32 and 48 filters, 23 000 parameters for patches of any size),
    the mean of their outputs over the patch, one dense layer. Patches are standardised and shown
    next to their structures finer than 3 pixels and between 3 and 9; each step sees as many of
    either set, whatever their sizes, flipped and turned by quarters at random.

    Parameters
    ----------
    real_train, other_train : arrays, shape (n, size, size)
        The two sets to learn from.
    real_test, other_test : arrays, shape (m, size, size)
        Patches to score, which should share no sky (or draw) with those above.
    seed : int
        Of the network's start and of the order of the patches. No global state is used.
    steps : int
        Of 32 patches.

    Returns
    -------
    TwoSample

    Raises
    ------
    ValueError
        If the sets are unfit, differ in size, or ``steps`` < 1.
    """
    sets = [check_patches(p) for p in (real_train, other_train, real_test, other_test)]
    sizes = {p.shape[-1] for p in sets}
    if len(sizes) > 1:
        raise ValueError(f"patches of {sorted(sizes)} pixels a side: all sets need the same size")
    if steps < 1:
        raise ValueError(f"steps={steps}: train for at least one step")
    import keras
    import tensorflow as tf

    bands = [_bands(p) for p in sets]
    scale = np.sqrt(np.mean([np.mean(b**2, axis=(0, 1, 2)) for b in bands[:2]], axis=0))
    real, other, real_test, other_test = (b / scale for b in bands)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, 0x2541))))

    network = _classifier(rng)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    optimizer = keras.optimizers.Adam(rate)
    optimizer.build(network.trainable_variables)
    labels = np.repeat(np.array([0, 1], np.float32), _BATCH // 2)[:, None]

    @tf.function(autograph=False)
    def step(patches: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = network(patches, training=True)
            loss = keras.ops.mean(keras.ops.binary_crossentropy(labels, logits, from_logits=True))
        variables = network.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    loss = None
    for _ in range(steps):
        batch = np.concatenate([_draw(real, rng), _draw(other, rng)])
        loss = step(tf.constant(batch))
    result = roc(_score(network, real_test), _score(network, other_test))
    _log.debug("two samples: last loss %.3f, AUC %.3f", float(loss), result.auc)
    return result


def _classifier(rng: np.random.Generator) -> Any:
    import keras
    from keras import layers

    def start() -> Any:
        return keras.initializers.HeNormal(seed=int(rng.integers(2**31)))

    stack: list[Any] = [keras.Input((None, None, 1 + len(_WINDOWS)))]
    for filters, kernel in zip(_FILTERS, (5, 3, 3), strict=True):
        stack.append(
            layers.Conv2D(
                filters,
                kernel,
                strides=2,
                padding="same",
                activation="gelu",
                kernel_initializer=start(),
            )
        )
    stack += [layers.GlobalAveragePooling2D(), layers.Dense(1, kernel_initializer=start())]
    return keras.Sequential(stack)


def _bands(patches: np.ndarray) -> np.ndarray:
    """Standardised patches and their finer structures, (n, size, size, 1 + windows)."""
    patches = standardise(patches).astype(np.float32)
    smooth = [ndimage.uniform_filter(patches, (0, w, w), mode="reflect") for w in _WINDOWS]
    finer = [a - b for a, b in zip([patches, *smooth], smooth, strict=False)]
    return np.stack([patches, *finer], axis=-1)


def _draw(patches: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half a batch, flipped and turned at random."""
    chosen = patches[rng.integers(len(patches), size=_BATCH // 2)]
    for patch, turns, flip in zip(
        chosen, rng.integers(4, size=len(chosen)), rng.integers(2, size=len(chosen)), strict=True
    ):
        turned = np.rot90(patch, turns)
        patch[:] = (turned[::-1] if flip else turned).copy()
    return chosen


def _score(network: Any, patches: np.ndarray) -> np.ndarray:
    """Mean logit of each patch over its eight orientations."""
    total = np.zeros(len(patches))
    for turned in (patches, patches.swapaxes(1, 2)):
        for vertical in (1, -1):
            for horizontal in (1, -1):
                shown = turned[:, ::vertical, ::horizontal]
                for start in range(0, len(patches), 256):
                    part = np.ascontiguousarray(shown[start : start + 256])
                    logits = np.asarray(network(part, training=False))
                    total[start : start + 256] += logits[:, 0]
    return total / 8


def halves(patches: PatchSet, side: float) -> tuple[np.ndarray, np.ndarray]:
    """Cut a set of patches in two parts of sky that do not touch.

    The centres are sorted along their longest axis and cut in the middle; patches that reach across
    are left out, on either side alike.

    Parameters
    ----------
    patches : PatchSet
        Upright patches, as from `grid_patches`.
    side : float
        Degrees.

    Returns
    -------
    first, second : arrays of int
        Indices into the set; either may be empty.
    """
    lon, lat = np.radians(patches.lon), np.radians(patches.lat)
    centre = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)
    axis = np.linalg.svd(centre - centre.mean(axis=0), full_matrices=False)[2][0]
    # A singular vector has no sign of its own.
    axis = axis * np.sign(axis[np.argmax(np.abs(axis))])
    place = centre @ axis
    place = place - np.median(place)
    first, second = np.flatnonzero(place < 0), np.flatnonzero(place >= 0)
    # Offsets of the second part's centres from each of the first's, in its tangent plane. Meridians
    # converge, hence the margin.
    east = np.stack([-np.sin(lon), np.cos(lon), np.zeros_like(lon)], axis=-1)[first]
    north = np.cross(centre[first], east)
    forward = centre[first] @ centre[second].T
    touch = forward > 0
    for direction in (east, north):
        offset = direction @ centre[second].T
        touch &= np.abs(offset) < 0.99 * np.tan(np.radians(side)) * forward
    # Of each pair that touches, the one nearer to the cut goes, and all others as near.
    nearer = np.minimum(-place[first][:, None], place[second][None, :])[touch]
    gap = nearer.max(initial=-1.0)
    return first[-place[first] > gap], second[place[second] > gap]


def both_ways(
    one: tuple[np.ndarray, np.ndarray],
    other: tuple[np.ndarray, np.ndarray],
    *,
    like_one: np.ndarray | None = None,
    seed: int = 0,
    steps: int = STEPS,
) -> TwoSample:
    """Train on the first parts of two sets and score on the second, and the other way round.

    Parameters
    ----------
    one, other : pairs of arrays, each (n, size, size)
        Two parts of either set that share no sky.
    like_one : array, shape (m, size, size), optional
        More patches to train as the first set, such as other sky: with them the network learns what
        is special about the second set rather than about the few patches of the first. They are
        never scored, and have the same weight as the first set's own.
    seed, steps
        As `two_sample_auc` takes them.

    Returns
    -------
    TwoSample
        The mean AUC, the mean ROC curve on a common grid, and all patches.
    """
    ways = []
    for i in (0, 1):
        learned = one[i]
        if like_one is not None and len(like_one):
            times = max(round(len(like_one) / len(learned)), 1)
            learned = np.concatenate([*[learned] * times, like_one])
        ways.append(
            two_sample_auc(learned, other[i], one[1 - i], other[1 - i], seed=seed + i, steps=steps)
        )
    curves = [_on_grid(way) for way in ways]
    errors = [way.error for way in ways]
    return TwoSample(
        auc=float(np.mean([way.auc for way in ways])),
        error=float(0.5 * np.hypot(errors[0], errors[1])),
        patches=(sum(way.patches[0] for way in ways), sum(way.patches[1] for way in ways)),
        false_positives=_FALSE_POSITIVES.copy(),
        true_positives=np.mean(curves, axis=0),
    )


def _on_grid(curve: TwoSample) -> np.ndarray:
    """True positives on the common grid; at a jump, the upper end."""
    x, y = curve.false_positives, curve.true_positives
    low = np.searchsorted(x, _FALSE_POSITIVES, side="right") - 1
    high = np.minimum(low + 1, len(x) - 1)
    width = np.where(x[high] > x[low], x[high] - x[low], 1.0)
    return y[low] + (y[high] - y[low]) * (_FALSE_POSITIVES - x[low]) / width
