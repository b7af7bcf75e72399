"""The modified blackbody against PySM and against the formula written with astropy."""

from __future__ import annotations

import astropy.constants as const
import numpy as np
import pysm3
import pytest
from pysm3 import units as u

from pysm_vae.sky.sed import emission

NSIDE = 8
NPIX = 12 * NSIDE**2


@pytest.fixture
def reference(rng) -> np.ndarray:
    intensity = rng.lognormal(4.0, 1.0, NPIX)
    return np.stack([intensity, *(0.05 * intensity * rng.normal(size=(2, NPIX)))])


def spectral(kind: str, rng: np.random.Generator):
    beta = rng.normal(1.55, 0.1, NPIX) if "beta" in kind else 1.54
    temperature = rng.normal(19.6, 1.5, NPIX) if "temperature" in kind else 20.0
    return beta, temperature


def pysm(reference, freqs, weights, ref_I, ref_P, beta, temperature) -> np.ndarray:
    model = pysm3.ModifiedBlackBody(
        map_I=reference[0] * u.uK_RJ,
        map_Q=reference[1] * u.uK_RJ,
        map_U=reference[2] * u.uK_RJ,
        freq_ref_I=ref_I,
        freq_ref_P=ref_P,
        map_mbb_index=beta,
        map_mbb_temperature=temperature,
        unit_mbb_temperature="K",
        nside=NSIDE,
    )
    return model.get_emission(freqs, weights).value


TOPHAT = np.linspace(130, 170, 10) * u.GHz
KINDS = ["numbers", "beta map", "temperature map", "beta and temperature maps"]


# PySM compiles for each kind, so only the two ends here; the next test ties the mixed kinds.
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[-1]])
@pytest.mark.parametrize(
    ("freqs", "weights"),
    [(nu * u.GHz, None) for nu in (95, 150, 217, 353, 545)]
    + [
        (TOPHAT, None),
        (TOPHAT, np.exp(-0.5 * ((TOPHAT.value - 150) / 9) ** 2)),
        (TOPHAT[::-1].copy(), np.arange(1.0, 11.0)),
        ([0.2, 0.25] * u.THz, None),
    ],
)
@pytest.mark.parametrize("ref_I", [353, 545])
def test_same_numbers_as_pysm(reference, rng, freqs, weights, kind, ref_I):
    beta, temperature = spectral(kind, rng)
    refs = ref_I * u.GHz, 353 * u.GHz
    got = emission(
        reference,
        freqs,
        weights,
        freq_ref_I=refs[0],
        freq_ref_P=refs[1],
        beta=beta,
        temperature=temperature,
    )
    expected = pysm(reference, freqs, weights, *refs, beta, temperature)
    # PySM leaves polarisation unscaled at exactly freq_ref_I; that case has its own test.
    maps = slice(0, 1) if ref_I == 545 and np.all(freqs == 545 * u.GHz) else slice(None)
    np.testing.assert_allclose(got[maps], expected[maps], rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_polarisation_at_the_intensity_reference(reference, rng, kind):
    beta, temperature = spectral(kind, rng)
    got = emission(
        reference,
        545 * u.GHz,
        freq_ref_I=545 * u.GHz,
        freq_ref_P=353 * u.GHz,
        beta=beta,
        temperature=temperature,
    )
    x_353, x_545 = (
        (const.h * nu * u.GHz / (const.k_B * temperature * u.K)).to_value("") for nu in (353, 545)
    )
    planck_ratio = (545 / 353) ** 3 * np.expm1(x_353) / np.expm1(x_545)
    factor = (545 / 353) ** (np.asarray(beta) - 2) * planck_ratio
    np.testing.assert_allclose(got[1:], reference[1:] * factor, rtol=1e-12)
    np.testing.assert_array_equal(got[0], reference[0])


@pytest.mark.parametrize("kind", KINDS[1:3])
def test_one_number_and_one_map(reference, rng, kind):
    beta, temperature = spectral(kind, rng)
    spectrum = {"freq_ref_I": 545 * u.GHz, "freq_ref_P": 353 * u.GHz}
    mixed = emission(reference, TOPHAT, **spectrum, beta=beta, temperature=temperature)
    maps = emission(
        reference,
        TOPHAT,
        **spectrum,
        beta=beta * np.ones(NPIX),
        temperature=temperature * np.ones(NPIX),
    )
    np.testing.assert_array_equal(mixed, maps)


def test_result_is_fresh_float64_and_numbers_equal_constant_maps(reference):
    spectrum = {"freq_ref_I": 353 * u.GHz, "freq_ref_P": 353 * u.GHz}
    reference = reference.astype(np.float32)
    kept = reference.copy()
    numbers = emission(reference, TOPHAT, **spectrum, beta=1.54, temperature=20.0)
    maps = emission(
        reference, TOPHAT, **spectrum, beta=np.full(NPIX, 1.54), temperature=np.full(NPIX, 20.0)
    )
    assert numbers.dtype == maps.dtype == np.float64
    assert numbers.shape == (3, NPIX)
    np.testing.assert_allclose(numbers, maps, rtol=1e-14)
    numbers[:] = 0
    np.testing.assert_array_equal(reference, kept)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_single_precision_maps_are_computed_with_in_double(reference, rng, kind):
    """The same bits as if they had been copied to double precision first."""
    single = [np.asarray(value, np.float32) for value in spectral(kind, rng)]
    reference = reference.astype(np.float32)
    spectrum = {"freq_ref_I": 545 * u.GHz, "freq_ref_P": 353 * u.GHz}

    def made(reference, beta, temperature):
        return emission(reference, TOPHAT, **spectrum, beta=beta, temperature=temperature)

    got = made(reference, *single)
    double = made(reference.astype(np.float64), *(value.astype(np.float64) for value in single))
    np.testing.assert_array_equal(got, double)
    # What a FITS file holds has its bytes the other way round.
    np.testing.assert_array_equal(got, made(reference, *(v.astype(">f4") for v in single)))


GOOD = {
    "freqs": 150 * u.GHz,
    "freq_ref_I": 353 * u.GHz,
    "freq_ref_P": 353 * u.GHz,
    "beta": 1.54,
    "temperature": 20.0,
}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"freqs": 150.0}, TypeError, "unit of frequency"),
        ({"freqs": 2 * u.mm}, u.UnitsError, "such as GHz"),
        ({"freqs": [] * u.GHz}, ValueError, "at least one"),
        ({"freqs": [[1, 2]] * u.GHz}, ValueError, "list of at least one"),
        ({"freqs": [90, np.nan] * u.GHz}, ValueError, "finite and positive"),
        ({"freqs": -90 * u.GHz}, ValueError, "finite and positive"),
        ({"freqs": [90, 110, 100] * u.GHz}, ValueError, "monotonic"),
        ({"freqs": [90, 90] * u.GHz}, ValueError, "monotonic"),
        ({"freqs": [90, 95] * u.GHz, "weights": [1, 2, 3]}, ValueError, "one each"),
        ({"freqs": [90, 95] * u.GHz, "weights": [0, 0]}, ValueError, "positive integral"),
        ({"freqs": [90, 95] * u.GHz, "weights": [1, np.nan]}, ValueError, "finite"),
        ({"freq_ref_I": [353, 545] * u.GHz}, ValueError, "freq_ref_I must be one"),
        ({"freq_ref_P": 353}, TypeError, "freq_ref_P"),
        ({"beta": np.ones(5)}, ValueError, "beta must be a number or a map"),
        ({"beta": np.nan}, ValueError, "beta must be finite"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"reference": np.ones(NPIX)}, ValueError, "shape"),
    ],
)
def test_bad_input(reference, change, error, text):
    arguments = {"reference": reference} | GOOD | change
    with pytest.raises(error, match=text):
        emission(
            arguments.pop("reference"),
            arguments.pop("freqs"),
            arguments.pop("weights", None),
            **arguments,
        )
