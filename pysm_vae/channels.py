"""Channels of an instrument: a frequency, a top-hat band, or a bandpass from a file."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pysm3.units as u
from pysm3.utils import bandpass_unit_conversion
from scipy.integrate import trapezoid

# Points of a top-hat: trapezoids over a band as wide as its centre are then good to 1e-5.
_TOP_HAT_POINTS = 101
_MOST_POINTS = 100_000
# GHz. A modified blackbody of some 20 K has nothing here (10 micron); a number given in Hz has.
_HIGHEST = 3e4


@dataclass(frozen=True, eq=False)
class Channel:
    """One frequency or one bandpass, made by :meth:`at`, :meth:`top_hat` or :meth:`from_file`.

    Attributes
    ----------
    name : str
        Its part of a file name, such as ``"353GHz"``.
    freqs : Quantity, shape (n,)
        Its frequency, or those of the bandpass, rising.
    weights : ndarray, shape (n,), or None
        The bandpass in power units (Jy/sr), as PySM takes it; None for one frequency and a top-hat.
    kind : {"single frequency", "top-hat", "table"}
        What it is.
    source : str
        Name of the file of a table.
    """

    name: str
    freqs: u.Quantity
    weights: np.ndarray | None = None
    kind: str = field(default="single frequency", kw_only=True)
    source: str = field(default="", kw_only=True)

    @classmethod
    def at(cls, freq: float | u.Quantity) -> Channel:
        """One frequency, in GHz if it has no unit."""
        value = _ghz("frequency", freq)
        return cls(f"{value:.10g}GHz", [value] * u.GHz)

    @classmethod
    def top_hat(
        cls, low: float | u.Quantity, high: float | u.Quantity, n: int = _TOP_HAT_POINTS
    ) -> Channel:
        """Equal power (Jy/sr) between two frequencies, in GHz if they have no unit.

        Parameters
        ----------
        low, high : float or Quantity
            The edges.
        n : int
            Frequencies that the trapezoids of the integral go through.
        """
        bottom, top = _ghz("lower edge", low), _ghz("upper edge", high)
        if bottom >= top:
            raise ValueError(f"band {bottom:g}:{top:g} must rise: give LOW:HIGH in GHz")
        if not isinstance(n, int) or not 2 <= n <= _MOST_POINTS:
            raise ValueError(f"a band needs from 2 to {_MOST_POINTS} frequencies, not n={n!r}")
        return cls(
            f"band{bottom:.10g}-{top:.10g}GHz", np.linspace(bottom, top, n) * u.GHz, kind="top-hat"
        )

    @classmethod
    def from_file(cls, path: str | Path) -> Channel:
        """A bandpass from a text file of two columns: GHz, rising, and weight in power (Jy/sr).

        What follows a ``#`` is a comment; blank lines are passed over. The weights need no
        normalisation.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is not such a table; the message names the line.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"bandpass {str(path)!r}: there is no such file")
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"bandpass {str(path)!r} is not a text file") from error
        rows: list[tuple[float, float]] = []
        for number, line in enumerate(lines, start=1):
            text = line.partition("#")[0].strip()
            if text:
                rows.append(_bandpass_row(text, rows, f"bandpass {str(path)!r}, line {number}"))
        if len(rows) < 2:
            raise ValueError(
                f"bandpass {str(path)!r} has {len(rows)} rows of numbers; at least two are needed "
                "(GHz and weight in each)"
            )
        freqs, weights = np.array(rows).T
        if np.count_nonzero(weights) < 2:
            raise ValueError(
                f"bandpass {str(path)!r}: fewer than two weights are positive, which is no band"
            )
        name = re.sub(r"[^A-Za-z0-9._+-]", "_", path.stem)
        return cls(name, freqs * u.GHz, weights, kind="table", source=path.name)

    @property
    def centre(self) -> float:
        """Mean frequency under the bandpass, GHz."""
        nu = self.freqs.to_value(u.GHz)
        if len(nu) == 1:
            return float(nu[0])
        weights = np.ones_like(nu) if self.weights is None else self.weights
        return float(trapezoid(nu * weights, nu) / trapezoid(weights, nu))

    @property
    def label(self) -> str:
        """What to call it in words, such as ``"140-160 GHz"``."""
        nu = self.freqs.to_value(u.GHz)
        if self.kind == "table":
            return f"{self.source}, {self.centre:.4g} GHz"
        return f"{nu[0]:.10g} GHz" if len(nu) == 1 else f"{nu[0]:.10g}-{nu[-1]:.10g} GHz"

    def conversion(self, unit: u.UnitBase) -> float:
        """Factor from µK_RJ to ``unit`` over this bandpass, as ``pysm3.Sky`` applies it."""
        try:
            factor = bandpass_unit_conversion(self.freqs, self.weights, unit)
        except u.UnitConversionError as error:
            raise ValueError(
                f"unit {str(unit)!r} is no brightness that PySM converts to: "
                "give uK_CMB, uK_RJ, K_CMB, MJy/sr or the like"
            ) from error
        # An array of one for a single frequency, a number for a band.
        value = np.asarray(factor.value).item()
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"channel {self.name}: its weights give no finite band average")
        return value


def _ghz(what: str, value: float | u.Quantity) -> float:
    # Not left to the conversion: PySM may have let wavelengths pass for frequencies.
    if isinstance(value, u.Quantity) and value.unit.physical_type != "frequency":
        raise ValueError(f"{what} must be in a unit of frequency such as GHz, not {value}")
    try:
        if isinstance(value, bool):
            raise TypeError("a truth value")
        ghz = value.to_value(u.GHz) if isinstance(value, u.Quantity) else float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be a number of GHz, not {value!r}") from error
    if not (math.isfinite(ghz) and ghz > 0):
        raise ValueError(f"{what} must be finite and positive, not {ghz:g} GHz")
    if ghz > _HIGHEST:
        raise ValueError(f"{what} of {ghz:g} GHz is far beyond dust's spectrum: give it in GHz")
    return float(ghz)


def _bandpass_row(text: str, rows: list[tuple[float, float]], where: str) -> tuple[float, float]:
    words = text.replace(",", " ").split()
    try:
        freq, weight = (float(word) for word in words)
    except ValueError as error:
        raise ValueError(f"{where}: two numbers are needed (GHz, weight), not {text!r}") from error
    if not (math.isfinite(freq) and math.isfinite(weight)):
        raise ValueError(f"{where}: {text!r} has a number that is not finite")
    if freq <= 0 or weight < 0:
        raise ValueError(f"{where}: {text!r} has a negative number, or a frequency of zero")
    if freq > _HIGHEST:
        raise ValueError(f"{where}: {freq:g} GHz is far beyond dust's spectrum: give it in GHz")
    if rows and freq <= rows[-1][0]:
        raise ValueError(f"{where}: frequencies must rise; {freq:g} GHz follows {rows[-1][0]:g}")
    return freq, weight
