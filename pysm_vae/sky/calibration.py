r"""What the small scales' spectra are asked to be, and the amplitudes that make them so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import healpy as hp
import numpy as np
from scipy.optimize import nnls

from pysm_vae.sky.coupling import Coupling
from pysm_vae.sky.templates import handover

#: Multipole at which amplitudes are quoted (PySM's pivot).
PIVOT = 80.0
#: Latitudes at which amplitudes are measured, and the width of the mask's edge, degrees.
LATITUDE = 30.0
APODISATION = 10.0
#: Multipoles on which the template's amplitude is measured, near the pivot but before the taper has
#: left too little of it, and the resolution of the maps it is measured on.
CALIBRATION_ELL = (45, 85)
CALIBRATION_NSIDE = 64
#: Multipoles between which the levels of the patterns' spectra are interpolated; there is none at
#: the first, and the last one's from there on. They are solved for at the first ``SOLVED``.
NODES = (62.0, 72.0, 82.0, 92.0, 102.0, 115.0, 135.0, 170.0, 230.0, 350.0, 700.0, 1400.0, 2800.0)
SOLVED = 10
#: Weight of the levels' second differences against the misfit of a band.
SMOOTHNESS = 0.1


@dataclass(frozen=True)
class Spectrum:
    """What the small scales' spectra are asked to be.

    Parameters
    ----------
    slopes : (float, float, float)
        Of D_ℓ for TT, EE and BB. Defaults: Planck 2018 XI and PySM's d11.
    ee_to_bb : float
        Ratio of E to B power at the pivot (Planck 2018 XI: about 2). The slopes differ, so the
        ratio rises with ℓ, by 1.36 from 60 to 768; 1.89 keeps the maps within 1.6 and 2.4 there.
    te_ratio : float
        Correlation of T and E, C^TE / sqrt(C^TT C^EE), at the pivot (Planck 2018 XI: about 0.36).
    te_slope : float
        Of D_ℓ for TE (PySM's d11); with the default slopes the correlation rises as ℓ^0.11.
    amplitude : float
        Factor on the amplitude of all small scales; 1 continues the template.
    """

    slopes: tuple[float, float, float] = (-0.80, -0.42, -0.54)
    ee_to_bb: float = 1.89
    te_ratio: float = 0.36
    te_slope: float = -0.50
    amplitude: float = 1.0

    def __post_init__(self) -> None:
        if len(self.slopes) != 3 or not all(-3.0 < slope < 3.0 for slope in self.slopes):
            raise ValueError(f"slopes are those of D_ell^TT, EE, BB, each within ±3: {self.slopes}")
        if not 0 < self.ee_to_bb < np.inf:
            raise ValueError(f"ee_to_bb must be positive, not {self.ee_to_bb}")
        if not -1 <= self.te_ratio <= 1:
            raise ValueError(f"te_ratio is a correlation, within ±1, not {self.te_ratio}")
        if not -3.0 < self.te_slope < 3.0:
            raise ValueError(f"te_slope is that of D_ell^TE, within ±3, not {self.te_slope}")
        if not 0 <= self.amplitude < np.inf:
            raise ValueError(f"amplitude cannot be negative or infinite: {self.amplitude}")

    def te_correlation(self, ell: np.ndarray) -> np.ndarray:
        """Correlation of T and E at multipoles above 0, within ±1; shape as given."""
        tilt = self.te_slope - 0.5 * (self.slopes[0] + self.slopes[1])
        return np.clip(self.te_ratio * (ell / PIVOT) ** tilt, -1.0, 1.0)


def pattern_power(ell: np.ndarray, levels: np.ndarray, slope: float) -> np.ndarray:
    """D_ℓ of patterns.

    Parameters
    ----------
    ell : ndarray
        Multipoles above 0, any shape.
    levels : ndarray, shape (len(NODES),)
        D_ℓ at the nodes, over the power law (ℓ/80)^slope.
    slope : float
        Of the power law.
    """
    x = np.log(ell / PIVOT)
    return np.interp(x, np.log(np.array(NODES) / PIVOT), levels, left=0.0) * np.exp(slope * x)


class Calibrator:
    r"""Finds the patterns' spectra with which the small scales continue the template.

    The template's spectra are measured at \|b\| > 30 degrees on ``CALIBRATION_ELL``, where it is
    divided by what the split has left of it, and the slopes asked for carry them to the pivot. This
    and the split give the spectra that small scales in the map should have. In the map, a small
    fluctuation of i multiplies the intensity and one of q adds to Q/I: with the mask W, the
    crowding g and the roughness s, T patterns of :math:`D_\ell` come out at about
    :math:`D_\ell \langle W^2 g^2 s^2 I^2\rangle / \langle W^2\rangle`, E and B patterns at the same
    with their own modulation in place of s. Besides

    - the intensity spreads the spectra and mixes E with B (:mod:`pysm_vae.sky.coupling`),
    - T patterns carry the template's polarisation with them: they add
      :math:`D_\ell \langle W^2 g^2 s^2 P^2\rangle / 2 \langle W^2\rangle` to EE and to BB.

    So the patterns' spectra are solved for, as non-negative levels at a few multipoles.

    Parameters
    ----------
    maps : ndarray, shape (3, 12 * 64**2)
        I, Q, U of the large scales.
    spectrum : Spectrum
        Slopes, EE/BB and the overall factor.
    split : (float, float)
        The ends of the template's taper.
    roughness : ndarray, shape (12 * 64**2,)
        Scale of the T patterns at each pixel.
    crowding : ndarray, shape (12 * 64**2,)
        Factor on all patterns at each pixel.
    modulation : ndarray, shape (12 * 64**2,)
        Factor on E and B patterns at each pixel.
    """

    def __init__(
        self,
        maps: np.ndarray,
        spectrum: Spectrum,
        split: tuple[float, float],
        roughness: np.ndarray,
        crowding: np.ndarray,
        modulation: np.ndarray,
    ) -> None:
        self.slopes = spectrum.slopes
        mask = latitude_mask(CALIBRATION_NSIDE)
        weight = (mask * crowding) ** 2 / np.mean(mask**2)
        # In units of what E and B patterns of unit D_ell give in the map.
        square = np.mean(weight * (modulation * maps[0]) ** 2)
        self._rough = np.mean(weight * (roughness * maps[0]) ** 2) / square
        polarised = np.mean(weight * roughness**2 * (maps[1] ** 2 + maps[2] ** 2))
        self._carried = polarised / square / 2
        tt, ee, bb = _template_power(maps, mask, spectrum.slopes, split)
        # E and B are added up, and then shared out: a mask moves power from one to the other.
        share = spectrum.ee_to_bb / (1 + spectrum.ee_to_bb)
        factor = spectrum.amplitude**2 / square
        self._wanted = factor * np.array([tt, share * (ee + bb), (1 - share) * (ee + bb)])

        self._coupling = Coupling(mask * crowding * maps[0])
        self._polarised = Coupling(mask * crowding * modulation * maps[0])
        self._used = (self._coupling.ell > 50) & (self._coupling.ell < 500)
        ell = self._coupling.ell[self._used]
        self._small = 1 - handover(ell, *split) ** 2
        self._laws = [(ell / PIVOT) ** slope for slope in self.slopes]
        self._design = self._columns(self.slopes[0], self._coupling.scalar)

    def temperature(self) -> np.ndarray:
        """Levels of the T patterns, shape (len(NODES),)."""
        target = self._wanted[0] / self._rough * self._small * self._laws[0]
        levels = self._solve(self._design, target, self._laws[0])
        return np.pad(levels, (0, len(NODES) - SOLVED), mode="edge")

    def polarisation(
        self, temperature: np.ndarray, excess: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Levels of the E and B patterns, each of shape (len(NODES),).

        Parameters
        ----------
        temperature : ndarray, shape (len(NODES),)
            Levels of the T patterns.
        excess : callable
            Of multipoles: factor by which T's patterns are weakened because they are stronger where
            the intensity is. Where the polarised intensity is they are not, so what they carry of
            it falls by as much.
        """
        ell = self._coupling.ell[self._used]
        taken = self._carried * (self._design @ temperature[:SOLVED]) / excess(ell)
        same, other = {}, {}
        for k in (1, 2):
            slope = self.slopes[k]
            same[k] = self._columns(slope, lambda power: self._polarised.spin(power)[0])
            other[k] = self._columns(slope, lambda power: self._polarised.spin(power)[1])
        levels = {1: np.zeros(SOLVED), 2: np.zeros(SOLVED)}
        # Each gets what the other leaks; the leak is small, so a few rounds settle it.
        for _ in range(4):
            for k in (1, 2):
                target = self._wanted[k] * self._small * self._laws[k]
                target = target - taken - other[3 - k] @ levels[3 - k]
                levels[k] = self._solve(same[k], np.maximum(target, 0.0), self._laws[k])
        # Further on, what T carries falls as the power laws part.
        far = np.array(NODES[SOLVED - 1 :])
        carried = self._carried * pattern_power(far, temperature, self.slopes[0]) / excess(far)
        for k in (1, 2):
            share = carried * (far / PIVOT) ** -self.slopes[k]
            further = levels[k][-1] + share[0] - share[1:]
            levels[k] = np.concatenate([levels[k], np.maximum(further, 0.0)])
        return levels[1], levels[2]

    def _columns(self, slope: float, couple: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """What each level gives in the bands that are used, shape (bands, SOLVED)."""
        ell = np.where(self._coupling.grid_ell > 0, self._coupling.grid_ell, 1.0)
        nodes = np.pad(np.eye(SOLVED), ((0, 0), (0, len(NODES) - SOLVED)), mode="edge")
        columns = [couple(pattern_power(ell, node, slope)) for node in nodes]
        return np.array(columns).T[self._used]

    def _solve(self, design: np.ndarray, target: np.ndarray, law: np.ndarray) -> np.ndarray:
        # Relative to the power law, so that all multipoles count alike. The first level, where the
        # patterns start, stays 0. Sharp features cannot be told apart through the coupling, so the
        # levels' second differences are kept small.
        matrix = design[:, 1:] / law[:, None]
        bend = np.diff(np.eye(matrix.shape[1]), 2, axis=0)
        rows = np.concatenate([matrix, SMOOTHNESS * matrix.sum(axis=1).max() * bend])
        values = np.concatenate([target / law, np.zeros(len(bend))])
        return np.concatenate([[0.0], nnls(rows, values)[0]])


def _template_power(
    maps: np.ndarray,
    mask: np.ndarray,
    slopes: tuple[float, float, float],
    split: tuple[float, float],
) -> np.ndarray:
    """D_80 of TT, EE and BB of the template before the split, at high latitude."""
    fluctuations = maps.copy()
    fluctuations[0] -= np.average(maps[0], weights=mask)
    low, high = CALIBRATION_ELL
    spectra = hp.anafast(fluctuations * mask, lmax=high, iter=1)[:3, low:] / np.mean(mask**2)
    ell = np.arange(low, high + 1)
    left = handover(ell, *split) ** 2
    whole = ell * (ell + 1) / (2 * np.pi) / left
    # Weighted by the number of modes, as far as the template still has them.
    return np.array(
        [
            np.average(whole * cl * (ell / PIVOT) ** -slope, weights=(2 * ell + 1) * left)
            for cl, slope in zip(spectra, slopes, strict=True)
        ]
    )


def latitude_mask(nside: int) -> np.ndarray:
    """:func:`latitude_weight` on a HEALPix map.

    Returns
    -------
    ndarray, shape (12 nside²,)
    """
    return latitude_weight(0.5 * np.pi - hp.pix2ang(nside, np.arange(hp.nside2npix(nside)))[0])


def latitude_weight(latitude: np.ndarray, low: float = LATITUDE) -> np.ndarray:
    """Weight of latitudes (radians): 0 below ``low`` degrees, a cosine edge of 10, then 1."""
    b = np.abs(np.degrees(latitude))
    return np.sin(0.5 * np.pi * np.clip((b - low) / APODISATION, 0, 1)) ** 2
