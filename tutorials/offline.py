"""Stand-ins for the rest of the sky that need no download: CMB and something like synchrotron.

For real work take PySM's own components, such as ``preset_strings=["c1", "s5"]``.
"""

from __future__ import annotations

from pathlib import Path

import healpy as hp
import numpy as np
import pysm3
import pysm3.units as u
from scipy.interpolate import CubicSpline

from pysm_vae.sky.calibration import latitude_mask
from pysm_vae.sky.templates import embedded_template


def cmb_spectra(lmax: int) -> np.ndarray:
    """C_ℓ of the CMB in µK_CMB²: TT, EE, BB (lensing), TE, and BB of tensors with r = 1.

    CAMB's for Planck's ΛCDM; ``cmb_spectra.txt`` has the parameters. Shape (5, lmax + 1).
    """
    ell, *table = np.loadtxt(Path(__file__).with_name("cmb_spectra.txt"), unpack=True)
    if lmax > ell[-1]:
        raise ValueError(f"the table of CMB spectra ends at l = {ell[-1]:.0f}, before {lmax}")
    every = np.arange(lmax + 1)
    scale = np.append([0, 0], 2 * np.pi / (every[2:] * (every[2:] + 1.0)))
    return np.array([scale * CubicSpline(ell, row)(every) for row in table])


def cmb(nside: int, seed: int, r: float = 0.0) -> pysm3.CMBMap:
    """Give a Gaussian CMB sky of Planck's ΛCDM, lensing's B included, as a PySM component."""
    lmax = min(3 * nside - 1, 1024)
    tt, ee, bb, te, tensors = cmb_spectra(lmax)
    alm = _gaussian([tt, ee, bb + r * tensors], te, seed)
    return pysm3.CMBMap(nside, map_IQU=np.array(hp.alm2map(alm, nside)) * u.uK_CMB)


def synchrotron_like(nside: int, seed: int = 0) -> pysm3.PowerLaw:
    """Give a power law in frequency with about the brightness of synchrotron; no real data in it.

    Gaussian E and B with D_ℓ ∝ ℓ^-0.8 and 2 µK_RJ² in EE at ℓ = 80 and 30 GHz, four times as much as
    in BB, as strong at each place as the square root of the dust column says; index -3.1.
    """
    lmax = min(3 * nside - 1, 1024)
    ell = np.arange(2, lmax + 1)
    law = np.append([0, 0], 2 * np.pi / (ell * (ell + 1)) * (ell / 80) ** -0.8)
    column = hp.smoothing(embedded_template().maps(64)[0], fwhm=np.radians(8))
    mask = latitude_mask(64)
    column = hp.ud_grade(np.sqrt(np.maximum(column / np.average(column, weights=mask), 0.1)), nside)
    waves = _gaussian([2 * law, 2 * law, 0.5 * law], np.zeros_like(law), seed)
    maps = column * np.array(hp.alm2map(waves, nside))
    maps[0] += 50 * column
    return pysm3.PowerLaw(
        map_I=maps * u.uK_RJ,
        freq_ref_I="30 GHz",
        freq_ref_P="30 GHz",
        map_pl_index=-3.1,
        nside=nside,
    )


def _gaussian(power: list[np.ndarray], te: np.ndarray, seed: int) -> list[np.ndarray]:
    """Harmonic coefficients of T, E and B with the given TT, EE, BB and TE."""
    rng = np.random.Generator(np.random.Philox(seed))
    lmax = len(te) - 1
    real, imaginary = rng.standard_normal((2, 3, hp.Alm.getsize(lmax)))
    white = (real + 1j * imaginary) / np.sqrt(2)
    white[:, : lmax + 1] = real[:, : lmax + 1]
    tt, ee, bb = power
    carried = np.divide(te, np.sqrt(tt), out=np.zeros_like(te), where=tt > 0)
    return [
        hp.almxfl(white[0], np.sqrt(tt)),
        hp.almxfl(white[0], carried) + hp.almxfl(white[1], np.sqrt(ee - carried**2)),
        hp.almxfl(white[2], np.sqrt(bb)),
    ]
