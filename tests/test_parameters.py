"""Small scales of the spectral index and the temperature."""

from __future__ import annotations

import healpy as hp
import numpy as np
import pysm3
import pysm3.units as u
import pytest
from scipy.integrate import trapezoid

from pysm_vae import VAEDust
from pysm_vae.sky.calibration import PIVOT
from pysm_vae.sky.parameters import BOUNDS, ParameterScales, bounded, neutral_shift
from pysm_vae.sky.seams import gains_of
from pysm_vae.sky.templates import SPLIT, handover
from pysm_vae.vae.generator import load_generator

NSIDE = 128
SLOPE = -0.8
SCATTER = {"beta_scatter": 0.03, "temperature_scatter": 0.6}


@pytest.fixture(scope="module")
def scales():
    return ParameterScales(load_generator(), seed=3, nside=NSIDE, slope=SLOPE)


@pytest.fixture(scope="module")
def drawn(scales):
    return scales.draw()


@pytest.fixture(scope="module")
def dust():
    return VAEDust(NSIDE, seed=3, **SCATTER)


@pytest.fixture(scope="module")
def plain():
    return VAEDust(NSIDE, seed=3)


def law(ell: np.ndarray) -> np.ndarray:
    """D_ell of unit variance over all scales, by an independent sum."""
    every = np.geomspace(20, 1e9, 200_001)
    shape = (1 - handover(every) ** 2) * (every / PIVOT) ** SLOPE
    variance = trapezoid(shape, np.log(every))
    return (1 - handover(ell) ** 2) * (ell / PIVOT) ** SLOPE / variance


def test_spectra_are_as_asked(drawn):
    ell = np.arange(2, int(1.9 * NSIDE) + 1)
    bins = [(SPLIT[1], 140), (140, 190), (190, 240)]
    for field in drawn:
        cl = hp.anafast(field.astype(float), lmax=ell[-1], iter=1)[2:]
        d_ell = cl * ell * (ell + 1) / (2 * np.pi)
        for low, high in bins:
            used = (ell >= low) & (ell < high)
            assert d_ell[used].mean() == pytest.approx(law(ell[used]).mean(), rel=0.12)
        # Large scales are left alone: 0.3 % of the rest's D_ell, from bright spots and seams.
        assert d_ell[ell < 40].mean() < 0.02 * d_ell[ell > 100].mean()


def test_fluctuations_are_independent_and_not_gaussian(drawn, plain):
    """Of each other, of the dust, and of another seed's."""
    intensity = np.log(plain.I_ref.value)
    small = intensity - np.log(plain.template.maps(NSIDE)[0])
    assert np.abs(np.corrcoef([*drawn, small])[np.triu_indices(3, 1)]).max() < 0.03
    other = ParameterScales(load_generator(), seed=4, nside=NSIDE, slope=SLOPE).draw()
    assert np.abs([np.corrcoef(a, b)[0, 1] for a, b in zip(drawn, other, strict=True)]).max() < 0.03
    kurtosis = np.mean(drawn**4, axis=1) / np.mean(drawn**2, axis=1) ** 2 - 3
    assert (kurtosis > 0.8).all()


def test_part_of_the_sky_has_the_same_bits(scales, drawn):
    pixels = hp.query_disc(NSIDE, hp.ang2vec(40, 50, lonlat=True), np.radians(6))
    np.testing.assert_array_equal(scales.draw(pixels), drawn[:, pixels])


def test_a_sky_is_the_sum_of_its_charts(scales, drawn):
    """With their weights and their gains, which seams need."""
    total, most = np.zeros(drawn.shape), 0.0
    for tile, pixels in scales.tiling.charts(NSIDE):
        view = scales.tiling.locate(tile, NSIDE, pixels)
        layers = scales.layers(tile, view.places)
        total[:, pixels[view.where]] += scales.laid(layers, view)
        gains = gains_of(*layers.energy, view.weights, view.places)
        most = max(most, np.abs(gains - 1).max())
    np.testing.assert_allclose(total, drawn, atol=1e-5)
    assert most > 0.2


def test_fluctuations_saturate():
    knee, end = BOUNDS
    x = np.linspace(-30, 30, 1001)
    found = bounded(x)
    np.testing.assert_array_equal(found[np.abs(x) < knee], x[np.abs(x) < knee])
    np.testing.assert_allclose(found, -found[::-1])
    assert end - 1e-3 < found.max() <= end
    assert (np.diff(found) >= 0).all()


def test_neutral_shift_has_the_closed_form_without_temperature():
    """For beta alone the mean of the SED is that of a log-normal variable."""
    shift = neutral_shift(0.05, 0.0, temperature=19.6, freq_ref=353 * u.GHz)
    assert shift == pytest.approx(-0.5 * 0.05**2 * np.log(0.425), rel=1e-6)


def test_maps_of_beta_and_temperature(dust, plain, drawn):
    assert (dust.I_ref == plain.I_ref).all()
    assert (dust.Q_ref == plain.Q_ref).all()
    assert dust.mbb_index.value.dtype == dust.mbb_temperature.value.dtype == np.float32
    shift = neutral_shift(0.03, 0.6, temperature=19.6, freq_ref=353 * u.GHz)
    expected = plain.mbb_index.value + shift + 0.03 * bounded(drawn[0])
    np.testing.assert_allclose(dust.mbb_index.value, expected, rtol=1e-6)
    expected = plain.mbb_temperature.value + 0.6 * bounded(drawn[1])
    np.testing.assert_allclose(dust.mbb_temperature.value, expected, rtol=1e-6)
    assert dust.mbb_temperature.unit == u.K


def test_the_mean_sed_stays_and_frequencies_decorrelate(dust, plain):
    for freq in (95, 150, 217, 545):
        varied, still = (d.get_emission(freq * u.GHz).value for d in (dust, plain))
        assert varied[0].sum() / still[0].sum() == pytest.approx(1, abs=1e-3)
    q = [dust.get_emission(freq * u.GHz).value[1] for freq in (95, 353)]
    small = [m - hp.smoothing(m, lmax=100, fwhm=np.radians(2)) for m in q]
    assert 0.9 < np.corrcoef(small)[0, 1] < 0.9999


def test_parameter_seed_is_one_of_its_own():
    other = VAEDust(64, seed=8, parameter_seed=3, **SCATTER)
    same = VAEDust(64, seed=3, **SCATTER)
    assert same.mbb_index.std() > 0.01
    assert (other.mbb_index == same.mbb_index).all()
    assert not (other.I_ref == same.I_ref).all()


def test_intensity_alone():
    dust, whole = (VAEDust(16, seed=1, polarised=kind) for kind in (False, True))
    assert (dust.I_ref == whole.I_ref).all()
    assert not dust.get_emission(100 * u.GHz)[1:].value.any()


def test_progress_is_one_count():
    told = []
    VAEDust(16, seed=1, progress=lambda *state: told.append(state), **SCATTER)
    assert told == [(number, 24) for number in range(1, 25)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"beta_scatter": -0.1}, "beta_scatter must lie between 0 and"),
        ({"beta_scatter": np.nan}, "beta_scatter must lie between"),
        ({"beta_scatter": "wide"}, "beta_scatter must be one number"),
        ({"beta_scatter": [0.1, 0.2]}, "beta_scatter must be one number"),
        ({"temperature_scatter": 5}, "temperature_scatter must lie between 0 and 3.92"),
        ({"temperature_scatter": "1 GHz"}, "temperature_scatter must be one number in K"),
        ({"beta_scatter": 0.1, "parameter_slope": 0.5}, "slope of D_ell of beta"),
        ({"beta_scatter": 0.1, "parameter_seed": -1}, "parameter_seed must be a whole number"),
    ],
)
def test_bad_input(arguments, words):
    with pytest.raises(ValueError, match=words):
        VAEDust(8, **arguments)
    with pytest.raises(TypeError, match="polarised must be true or false"):
        VAEDust(8, polarised="no")


def test_presets():
    sky = pysm3.Sky(nside=16, preset_strings=["vae2"])
    (component,) = sky.components
    assert component.mbb_index.shape == (3072,)
    assert np.isfinite(sky.get_emission(150 * u.GHz).value).all()
    (component,) = pysm3.Sky(nside=16, preset_strings=["vae0i"]).components
    assert not component.Q_ref.value.any()
