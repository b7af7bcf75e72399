r"""What the small scales' spectra are asked to be, and the amplitudes that make them so."""

from __future__ import annotations

from dataclasses import dataclass

import healpy as hp
import numpy as np

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


@dataclass(frozen=True)
class Spectrum:
    """What the small scales' spectra are asked to be.

    Parameters
    ----------
    slopes : (float, float, float)
        Of D_ℓ for TT, EE and BB. Defaults: Planck 2018 XI and PySM's d11.
    ee_to_bb : float
        Ratio of E to B power at the pivot (Planck 2018 XI: about 2).
    te_ratio : float
        Correlation of T and E, C^TE / sqrt(C^TT C^EE) (Planck 2018 XI: about 0.36).
    amplitude : float
        Factor on the amplitude of all small scales; 1 continues the template.
    """

    slopes: tuple[float, float, float] = (-0.80, -0.42, -0.54)
    ee_to_bb: float = 2.0
    te_ratio: float = 0.36
    amplitude: float = 1.0

    def __post_init__(self) -> None:
        if len(self.slopes) != 3 or not all(-3.0 < slope < 3.0 for slope in self.slopes):
            raise ValueError(f"slopes are those of D_ell^TT, EE, BB, each within ±3: {self.slopes}")
        if not 0 < self.ee_to_bb < np.inf:
            raise ValueError(f"ee_to_bb must be positive, not {self.ee_to_bb}")
        if not -1 <= self.te_ratio <= 1:
            raise ValueError(f"te_ratio is a correlation, within ±1, not {self.te_ratio}")
        if not 0 <= self.amplitude < np.inf:
            raise ValueError(f"amplitude cannot be negative or infinite: {self.amplitude}")


@dataclass(frozen=True)
class Calibration:
    """Spectra of the patterns, of which the small scales of a template are made.

    Parameters
    ----------
    spectrum : Spectrum
        What the outcome is to be.
    tt : float
        D_80 of the T patterns.
    polarised : float
        D_80^EE + D_80^BB of the outcome, over the mean square intensity.
    carried : float
        D_80 of EE, and of BB, that T's patterns bring about by carrying the template's
        polarisation, in the same unit.
    mixing : (float, float)
        Fraction of E patterns that the intensity turns to B at the pivot, and its slope.
    """

    spectrum: Spectrum
    tt: float
    polarised: float
    carried: float
    mixing: tuple[float, float]

    def powers(self, ell: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """D_ℓ of the T, E and B patterns.

        The mixing takes (E, B) to ((1 - f) E + f B, (1 - f) B + f E); it is undone, as far as
        positive powers can.

        Parameters
        ----------
        ell : ndarray
            Multipoles, any shape.
        """
        x = ell / PIVOT
        tt, ee, bb = (x**slope for slope in self.spectrum.slopes)
        share = self.spectrum.ee_to_bb / (1 + self.spectrum.ee_to_bb)
        ee = np.maximum(share * self.polarised * ee - self.carried * tt, 0.0)
        bb = np.maximum((1 - share) * self.polarised * bb - self.carried * tt, 0.0)
        mixed = np.minimum(self.mixing[0] * x ** self.mixing[1], 0.4)
        whole = 1 - 2 * mixed
        e = np.maximum(((1 - mixed) * ee - mixed * bb) / whole, 0.0)
        b = np.maximum(((1 - mixed) * bb - mixed * ee) / whole, 0.0)
        factor = self.spectrum.amplitude**2
        return factor * self.tt * tt, factor * e, factor * b


def calibrate(
    maps: np.ndarray,
    spectrum: Spectrum,
    split: tuple[float, float],
    roughness: np.ndarray,
    crowding: np.ndarray,
) -> Calibration:
    r"""Find the patterns' spectra with which the small scales continue the template.

    The template's spectra are measured at \|b\| > 30 degrees on ``CALIBRATION_ELL``, the taper is
    divided out, and the slopes asked for carry them to the pivot. A small fluctuation of i
    multiplies the intensity and one of q adds to Q/I, so with the mask W, the crowding g and the
    roughness s

    .. math::
        D^{TT} &= A_T^2 \, \langle W^2 g^2 s^2 I^2\rangle / \langle W^2\rangle, \\
        D^{EE} + D^{BB} &= (A_E^2 + A_B^2)\, \langle W^2 g^2 I^2\rangle / \langle W^2\rangle
            + A_T^2\, \langle W^2 g^2 s^2 P^2\rangle / \langle W^2\rangle .

    The last term is the template's polarisation carried by the intensity's small scales, half of it
    E and half B. Where the intensity varies, E patterns times intensity are partly B: the fraction
    is measured on one Gaussian realisation. EE/BB is that of the outcome. (E and B of the template
    are added up before they are shared out because a mask moves power from one to the other.)

    Parameters
    ----------
    maps : ndarray, shape (3, 12 * 64**2)
        I, Q, U of the large scales.
    spectrum : Spectrum
        Slopes, EE/BB and the overall factor.
    split : (float, float)
        The template's taper.
    roughness : ndarray, shape (12 * 64**2,)
        Scale of the T patterns at each pixel.
    crowding : ndarray, shape (12 * 64**2,)
        Factor on all patterns at each pixel.
    """
    mask = latitude_mask(CALIBRATION_NSIDE)
    norm = np.mean(mask**2)
    fluctuations = maps.copy()
    fluctuations[0] -= np.average(maps[0], weights=mask)
    low, high = CALIBRATION_ELL
    spectra = hp.anafast(fluctuations * mask, lmax=high, iter=1)[:3, low:] / norm
    ell = np.arange(low, high + 1)
    whole = ell * (ell + 1) / (2 * np.pi) / handover(ell, *split) ** 2
    # Number of modes, as far as the template still has them.
    weights = (2 * ell + 1) * handover(ell, *split) ** 2
    tt, ee, bb = (
        np.average(whole * cl * (ell / PIVOT) ** -slope, weights=weights)
        for cl, slope in zip(spectra, spectrum.slopes, strict=True)
    )
    weight = (mask * crowding) ** 2 / norm
    tt /= np.mean(weight * (roughness * maps[0]) ** 2)
    square = np.mean(weight * maps[0] ** 2)
    carried = tt * np.mean(weight * roughness**2 * (maps[1] ** 2 + maps[2] ** 2))
    return Calibration(
        spectrum=spectrum,
        tt=float(tt),
        polarised=float((ee + bb) / square),
        carried=float(carried / 2 / square),
        mixing=_mixing(mask * crowding * maps[0], spectrum.slopes[1], split),
    )


def _mixing(
    modulation: np.ndarray, slope: float, split: tuple[float, float]
) -> tuple[float, float]:
    """Fraction of modulated E patterns that is B, as a power law (its value at the pivot, slope).

    Measured on one Gaussian realisation above the split, up to where these pixels resolve it.
    """
    lmax = 5 * CALIBRATION_NSIDE // 2
    ell = np.arange(lmax + 1)
    cl = np.maximum(ell, 1) ** (slope - 2.0) * (1 - handover(ell, *split) ** 2)
    rng = np.random.default_rng(2018)
    white = rng.standard_normal((2, hp.Alm.getsize(lmax)))
    alm = hp.almxfl((white[0] + 1j * white[1]) / np.sqrt(2), np.sqrt(cl))
    q, u = hp.alm2map_spin([alm, np.zeros_like(alm)], CALIBRATION_NSIDE, 2, lmax)
    modulated = np.stack([np.zeros_like(q), q, u]) * modulation
    _, ee, bb = hp.anafast(modulated, lmax=lmax, iter=1)[:3]
    band = slice(int(split[1]), lmax)
    fraction = bb[band] / (ee[band] + bb[band])
    gradient, value = np.polyfit(np.log(ell[band] / PIVOT), np.log(fraction), 1)
    return float(np.exp(value)), float(gradient)


def latitude_mask(nside: int, latitude: float = LATITUDE) -> np.ndarray:
    r"""Mask of \|b\| > ``latitude`` with a cosine edge of 10 degrees above it.

    Returns
    -------
    ndarray, shape (12 nside²,)
        From 0 to 1.
    """
    b = np.abs(90 - np.degrees(hp.pix2ang(nside, np.arange(hp.nside2npix(nside)))[0]))
    return np.sin(0.5 * np.pi * np.clip((b - latitude) / APODISATION, 0, 1)) ** 2
