"""Masks of patches, as data have them: holes, stripes, the edge of a survey.

All are boolean arrays ``(size, size)``, True where there are data.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

# What `parse_mask` understands.
SHAPES = {
    "circle": "circle:RADIUS",
    "rectangle": "rectangle:HEIGHT:WIDTH",
    "stripes": "stripes:WIDTH:PERIOD[:ANGLE]",
    "edge": "edge:FRACTION[:ANGLE]",
}


def circle(size: int, radius: float, centre: tuple[float, float] | None = None) -> np.ndarray:
    """A round hole.

    Parameters
    ----------
    size : int
        Pixels a side.
    radius : float
        Of the hole, pixels.
    centre : tuple of float, optional
        Row and column, from 0; by default the middle.
    """
    _check(size, radius=radius)
    row, column = ((size - 1) / 2,) * 2 if centre is None else centre
    y, x = np.mgrid[:size, :size]
    return np.hypot(y - row, x - column) > radius


def rectangle(
    size: int, height: float, width: float, centre: tuple[float, float] | None = None
) -> np.ndarray:
    """A hole ``height`` rows by ``width`` columns, in pixels; in the middle by default."""
    _check(size, height=height, width=width)
    row, column = ((size - 1) / 2,) * 2 if centre is None else centre
    y, x = np.mgrid[:size, :size]
    return (np.abs(y - row) >= height / 2) | (np.abs(x - column) >= width / 2)


def stripes(size: int, width: float, period: float, angle: float = 0.0) -> np.ndarray:
    """Hidden stripes, as of a scan, ``width`` pixels of every ``period``.

    ``angle`` is theirs to the rows, in degrees.
    """
    _check(size, width=width, period=period)
    if width >= period:
        raise ValueError(f"stripes of {width:g} pixels every {period:g} hide everything")
    y, x = np.mgrid[:size, :size]
    across = y * math.cos(math.radians(angle)) - x * math.sin(math.radians(angle))
    return np.mod(across, period) >= width


def edge(size: int, fraction: float = 0.5, angle: float = 0.0) -> np.ndarray:
    """The straight edge of a survey, which has seen a fraction of the patch.

    ``angle`` is that of the edge to the rows, in degrees.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction!r} of the patch must lie between 0 and 1")
    _check(size)
    y, x = np.mgrid[:size, :size]
    across = y * math.cos(math.radians(angle)) - x * math.sin(math.radians(angle))
    # A little apart, so that rows that are as far across fall on one side by their columns.
    return across + 1e-6 * x <= np.quantile(across + 1e-6 * x, fraction)


def parse_mask(text: str, size: int) -> np.ndarray:
    """A mask from a line such as ``circle:20`` or ``stripes:4:16:30``.

    The shape is the name of a function here, the numbers its arguments.

    Raises
    ------
    ValueError
        If it is of another form, or hides everything or nothing.
    """
    name, *texts = text.split(":")
    functions: dict[str, Callable[..., np.ndarray]] = {
        "circle": circle,
        "rectangle": rectangle,
        "stripes": stripes,
        "edge": edge,
    }
    if name not in functions:
        raise ValueError(f"mask {text!r}: choose one of {', '.join(SHAPES.values())}, or a file")
    try:
        mask = functions[name](size, *(float(each) for each in texts))
    except TypeError as error:
        raise ValueError(f"mask {text!r} is not {SHAPES[name]}") from error
    if mask.all() or not mask.any():
        what = "nothing" if mask.all() else "everything"
        raise ValueError(f"mask {text!r} hides {what} of a patch of {size} pixels")
    return mask


def _check(size: int, **lengths: float) -> None:
    if size < 1:
        raise ValueError(f"size={size}: a patch has pixels")
    for name, length in lengths.items():
        if not (math.isfinite(length) and length > 0):
            raise ValueError(f"{name}={length!r} must be a positive number of pixels")
