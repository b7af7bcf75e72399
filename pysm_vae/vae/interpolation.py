"""Semantic interpolation: from one patch to another through patches that could be sky.

A mean of two patches is neither: it has half the variance of small scales. Latents are turned from
one's to the other's on a great circle instead, so that they stay as long as standard normal ones
are (Shoemake 1985; White 2016, arXiv:1609.04468).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pysm_vae.files import atomic_write

if TYPE_CHECKING:
    from pysm_vae.vae.inference import PatchModel

# What is all but parallel is interpolated along the chord.
_SMALL_ANGLE = 1e-6


def slerp(first: np.ndarray, second: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    r"""Spherical interpolation of vectors.

    .. math:: \frac{\sin((1 - t)\theta)\,a + \sin(t\theta)\,b}{\sin\theta},\qquad
              \cos\theta = \hat a \cdot \hat b

    of the directions; the lengths go linearly from one's to the other's.

    Parameters
    ----------
    first, second : ndarray, of one shape
        Taken as one vector each.
    fraction : ndarray, shape (n,)
        0 for the first, 1 for the second.

    Returns
    -------
    ndarray, shape (n, *shape)

    Raises
    ------
    ValueError
        If the shapes differ, a vector is zero or not finite, or they are opposite: between those
        there is no shortest path.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    if first.shape != second.shape:
        raise ValueError(f"vectors of the shapes {first.shape} and {second.shape} have no path")
    lengths = np.linalg.norm(first), np.linalg.norm(second)
    if not (np.isfinite(lengths).all() and min(lengths) > 0):
        raise ValueError("a vector that is zero or not finite has no direction")
    fraction = np.asarray(fraction, float).reshape(-1, *[1] * first.ndim)
    a, b = first / lengths[0], second / lengths[1]
    angle = float(np.arccos(np.clip(np.sum(a * b), -1, 1)))
    if np.pi - angle < _SMALL_ANGLE:
        raise ValueError("opposite vectors have no shortest path between them")
    if angle < _SMALL_ANGLE:
        direction = (1 - fraction) * a + fraction * b
    else:
        direction = (np.sin((1 - fraction) * angle) * a + np.sin(fraction * angle) * b) / np.sin(
            angle
        )
    return ((1 - fraction) * lengths[0] + fraction * lengths[1]) * direction


def interpolate(
    model: PatchModel, first: np.ndarray, second: np.ndarray, frames: int = 25, seed: int = 0
) -> np.ndarray:
    """The path between two patches, which it begins and ends with.

    Each octave's latents, and the coarsest map's, are turned on their own; the mean and the
    logarithm of the scale go straight.

    Parameters
    ----------
    model : PatchModel
        Encodes and decodes.
    first, second : ndarray, shape (size, size)
        Natural logarithm of intensity.
    frames : int
        Patches of the path, two or more.
    seed : int
        Of the encoder's draws.

    Returns
    -------
    ndarray, float32, shape (frames, size, size)

    Raises
    ------
    ValueError
        If there are fewer frames, or the patches do not suit the model.
    """
    if frames < 2:
        raise ValueError(f"frames={frames}: a path has two or more")
    if np.shape(first) != np.shape(second):
        raise ValueError(f"patches of the shapes {np.shape(first)} and {np.shape(second)} differ")
    fraction = np.linspace(0, 1, frames)
    level, *latents = model.encode(np.stack([first, second]), seed)
    path = [(1 - fraction)[:, None] * level[0] + fraction[:, None] * level[1]]
    path += [slerp(ends[0], ends[1], fraction) for ends in latents]
    return np.concatenate([model.decode([p[i : i + 1] for p in path]) for i in range(frames)])


def write_animation(
    patches: np.ndarray, path: str | Path, *, seconds: float = 4.0, back: bool = True
) -> None:
    """Write patches as an animated GIF that goes on for ever.

    Parameters
    ----------
    patches : ndarray, shape (frames, size, size)
        In any unit; one scale of colours holds for all.
    path : path-like
        A ``.gif``.
    seconds : float
        From the first to the last.
    back : bool
        Go back to the first, too.

    Raises
    ------
    ValueError
        If the name is another one.
    """
    from matplotlib import colormaps
    from PIL import Image

    if Path(path).suffix.lower() != ".gif":
        raise ValueError(f"{str(path)!r}: animations are written as .gif")
    low, high = np.quantile(patches, [0.005, 0.995])
    levels = np.clip((patches - low) / max(high - low, 1e-12), 0, 1)
    # North is up: rows count from below.
    colours = (255 * colormaps["magma"](levels)[:, ::-1, :, :3]).astype(np.uint8)
    zoom = max(1, 384 // patches.shape[-1])
    images = [Image.fromarray(c.repeat(zoom, 0).repeat(zoom, 1)) for c in colours]
    if back:
        images += images[-2:0:-1]
    with atomic_write(path) as partial:
        images[0].save(
            partial,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=max(20, round(1000 * seconds / len(patches))),
            loop=0,
        )
