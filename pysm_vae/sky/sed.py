"""Frequency scaling of thermal dust: a modified blackbody, integrated over a bandpass.

The conventions are PySM's (``pysm3.ModifiedBlackBody``): maps in µK_RJ, bandpasses in power units
(Jy/sr) and trapezoids. The loop over frequencies runs inside the loop over pixels, so that no
temporary map is made and every pixel is read and written once.
"""

from __future__ import annotations

import math

import numpy as np
from astropy import constants as const
from astropy import units as u
from numba import njit
from numpy.typing import ArrayLike
from pysm3.utils import check_freq_input, normalize_weights
from scipy.integrate import trapezoid

from pysm_vae.threads import over

# h ν / (k T) = H_OVER_K · ν[GHz] / T[K]
H_OVER_K = const.h.value * 1e9 / const.k_B.value


def emission(
    reference: np.ndarray,
    freqs: u.Quantity,
    weights: ArrayLike | None = None,
    *,
    freq_ref_I: u.Quantity,
    freq_ref_P: u.Quantity,
    beta: ArrayLike,
    temperature: ArrayLike,
) -> np.ndarray:
    r"""Scale I, Q, U from their reference frequencies as a modified blackbody.

    Each Stokes map is multiplied by

    .. math:: (\nu/\nu_{ref})^{\beta-2} \, B_\nu(T) / B_{\nu_{ref}}(T)

    (µK_RJ; the −2 turns flux into Rayleigh–Jeans temperature). Several frequencies are a bandpass:
    the weights are normalised in Jy/sr by ``pysm3.utils.normalize_weights`` and integrated with
    trapezoids, as PySM does. Unlike PySM 3.4, polarisation is also right at exactly ``freq_ref_I``.

    Parameters
    ----------
    reference : ndarray, shape (3, npix)
        I, Q, U in µK_RJ; I at ``freq_ref_I``, Q and U at ``freq_ref_P``.
    freqs : Quantity
        One frequency, or those of a bandpass, strictly increasing or strictly decreasing.
    weights : array-like, shape (nfreq,), optional
        Bandpass weights in power units (Jy/sr); a top-hat if left out. Their normalisation does
        not matter. Not used for one frequency.
    freq_ref_I, freq_ref_P : Quantity
        Reference frequencies of intensity and of polarisation.
    beta : float or ndarray, shape (npix,)
        Spectral index of the dust opacity.
    temperature : float or ndarray, shape (npix,)
        Dust temperature in kelvin. A number is never spread out to a map, and maps in single
        precision are read as they are.

    Returns
    -------
    ndarray, shape (3, npix), float64
        A fresh array, in µK_RJ.

    Raises
    ------
    TypeError
        If a frequency has no unit.
    astropy.units.UnitConversionError
        If its unit is not one of frequency (a ``ValueError``, too).
    ValueError
        If frequencies are missing, not finite, not positive or not monotonic, if the weights do
        not fit them, or if maps do not match in shape or a temperature is not positive.
    """
    nu = _frequencies(freqs)
    ref_I = _one_frequency(freq_ref_I, "freq_ref_I")
    ref_P = _one_frequency(freq_ref_P, "freq_ref_P")
    steps = _trapezoid_coefficients(nu, weights)

    reference = _real(reference, "reference")
    if reference.ndim != 2 or reference.shape[0] != 3:
        raise ValueError(f"reference must have shape (3, npix) (I, Q, U), not {reference.shape}")
    if reference.dtype not in (np.float32, np.float64):
        reference = reference.astype(np.float64)
    reference = np.ascontiguousarray(reference)
    npix = reference.shape[1]
    beta = _parameter(beta, npix, "beta")
    temperature = _parameter(temperature, npix, "temperature")
    if not (temperature > 0).all():
        raise ValueError("temperature must be positive everywhere (kelvin)")

    if beta.size == 1 and temperature.size == 1:
        one = np.ones((3, 1))
        factor = np.empty((3, 1))
        _scale(0, 1, one, nu, steps, ref_I, ref_P, beta, temperature, factor)
        return np.multiply(reference, factor, dtype=np.float64)
    output = np.empty((3, npix))
    scaled = reference, nu, steps, ref_I, ref_P, beta, temperature, output
    over(npix, lambda start, stop: _scale(start, stop, *scaled))
    return output


def _frequencies(freqs: u.Quantity, name: str = "freqs") -> np.ndarray:
    """Check frequencies and give them in GHz, always as an array."""
    if not isinstance(freqs, u.Quantity):
        raise TypeError(f"{name} must have a unit of frequency, for example {freqs} * u.GHz")
    # Not is_equivalent(): PySM may have let wavelengths pass for frequencies.
    if freqs.unit.physical_type != "frequency":
        raise u.UnitConversionError(
            f"{name} must be in a unit of frequency such as GHz, not {freqs.unit}"
        )
    nu = np.asarray(check_freq_input(freqs), dtype=np.float64)
    if nu.ndim != 1 or nu.size == 0:
        raise ValueError(f"{name} must be one frequency or a list of at least one, not {freqs}")
    if not (np.isfinite(nu).all() and (nu > 0).all()):
        raise ValueError(f"{name} must be finite and positive, not {freqs}")
    step = np.diff(nu)
    if not ((step > 0).all() or (step < 0).all()):
        raise ValueError(
            f"{name} of a bandpass must be strictly monotonic: sort them, drop doubles"
        )
    return nu


def _one_frequency(freq: u.Quantity, name: str) -> float:
    nu = _frequencies(freq, name)
    if nu.size != 1:
        raise ValueError(f"{name} must be one frequency, not {nu.size}")
    return float(nu[0])


def _trapezoid_coefficients(nu: np.ndarray, weights: ArrayLike | None) -> np.ndarray:
    """Coefficients c such that Σ c·m(ν) is what PySM's ``trapz_step_inplace`` adds up."""
    if weights is not None and nu.size > 1:
        weights = _real(weights, "weights").astype(np.float64)
        if weights.shape != nu.shape:
            raise ValueError(f"weights has shape {weights.shape}, freqs {nu.shape}: give one each")
        # The trapezoid's sign follows the direction in which the frequencies run.
        area = trapezoid(weights, nu)
        if not np.isfinite(area) or area * (nu[-1] - nu[0]) <= 0:
            raise ValueError("weights must be finite with a positive integral over the band")
    normalised = normalize_weights(nu, weights)
    if nu.size == 1:
        return normalised
    width = np.empty_like(nu)
    width[0], width[-1] = nu[1] - nu[0], nu[-1] - nu[-2]
    width[1:-1] = nu[2:] - nu[:-2]
    return 0.5 * normalised * width


def _real(value: ArrayLike, name: str) -> np.ndarray:
    """Give an array of real numbers, or refuse."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} is no array of numbers ({error})") from error
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be of real numbers, not {value!r}")
    return array


def _parameter(value: ArrayLike, npix: int, name: str) -> np.ndarray:
    """Check a spectral parameter and give it as an array of one number or of npix."""
    array = _real(value, name)
    # Numbers are always double, so that the kernel is compiled for fewer combinations.
    kept = np.float32 if array.size > 1 and array.dtype == np.float32 else np.float64
    array = np.ascontiguousarray(array, dtype=kept)
    if array.ndim > 1 or array.size not in (1, npix):
        raise ValueError(
            f"{name} must be a number or a map of {npix} pixels, not shape {np.shape(value)}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite everywhere")
    return array.reshape(-1)


@njit(cache=True, nogil=True, fastmath=False)
def _scale(start, stop, reference, nu, steps, ref_I, ref_P, beta, temperature, output):
    # B_ν(T)/B_ref(T) = (ν/ref)³ · expm1(x_ref)/expm1(x), so the whole factor is
    # (ν/ref)^(β+1) · expm1(x_ref)/expm1(x). Polarisation differs by a factor free of ν.
    log_ratio = np.log(nu / ref_I)
    log_ref = math.log(ref_I / ref_P)
    beta_step = 1 if beta.size > 1 else 0
    temperature_step = 1 if temperature.size > 1 else 0
    for p in range(start, stop):
        index = beta[p * beta_step] + 1.0
        x_per_ghz = H_OVER_K / temperature[p * temperature_step]
        at_ref_I = math.expm1(x_per_ghz * ref_I)
        total = 0.0
        for k in range(nu.size):
            total += (
                steps[k]
                * math.exp(index * log_ratio[k])
                * (at_ref_I / math.expm1(x_per_ghz * nu[k]))
            )
        polarised = total * math.exp(index * log_ref) * (math.expm1(x_per_ghz * ref_P) / at_ref_I)
        output[0, p] = reference[0, p] * total
        output[1, p] = reference[1, p] * polarised
        output[2, p] = reference[2, p] * polarised
