"""What others do with the presets and the component: PySM's tools, litebird_sim, TOAST's ways."""

from __future__ import annotations

import importlib.metadata
import sys

import healpy as hp
import numpy as np
import pysm3
import pysm3.units as u
import pytest
from scipy.integrate import trapezoid

import pysm_vae

NSIDE = 16


@pytest.fixture(scope="module")
def sky() -> pysm3.Sky:
    return pysm3.Sky(nside=NSIDE, preset_strings=["vae0"])


@pytest.fixture(scope="module")
def own(sky) -> np.ndarray:
    """What PySM gives at 150 GHz, µK_RJ."""
    return sky.get_emission(150 * u.GHz).value


class TestPySM:
    def test_toml_beside_other_components(self, tmp_path, sky, own, rng):
        """A configuration file with dust of ours, with its own index, and a user's synchrotron."""
        npix = 12 * NSIDE**2
        synchrotron = np.array([np.full(npix, 20.0), *rng.normal(size=(2, npix))])
        maps = tmp_path / "synchrotron.fits"
        hp.write_map(maps, synchrotron, column_units="uK_RJ", coord="G", dtype=np.float64)
        config = tmp_path / "sky.toml"
        config.write_text(
            f"""
            [dust]
            class = "VAEDust"
            template = "embedded"
            seed = 0
            beta = 1.6
            max_nside = 8192

            [synchrotron]
            class = "PowerLaw"
            map_I = "{maps}"
            has_polarization = true
            unit_I = "uK_RJ"
            unit_Q = "uK_RJ"
            unit_U = "uK_RJ"
            freq_ref_I = "23 GHz"
            freq_ref_P = "23 GHz"
            map_pl_index = -3.0
            max_nside = {NSIDE}
            """
        )
        both = pysm3.Sky(nside=NSIDE, component_config=str(config), output_unit=u.uK_RJ)
        found = both.get_emission(150 * u.GHz).value
        dust = sky.components[0]
        assert [type(each).__name__ for each in both.components] == ["VAEDust", "PowerLaw"]
        # The same sky with another index; and the power law by hand.
        expected = own * (150 / 353) ** (1.6 - dust.mbb_index.value)
        expected = expected + (150 / 23) ** -3.0 * synchrotron
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_same_again(self, sky, own):
        """PySM adds other components into what it is given; that must not reach the next call."""
        first = sky.get_emission(150 * u.GHz)
        first += 1e6 * u.uK_RJ
        np.testing.assert_array_equal(sky.get_emission(150 * u.GHz).value, own)

    @pytest.mark.parametrize("unit", [u.uK_CMB, u.MJy / u.sr])
    def test_bandpass(self, sky, unit):
        """Trapezoids in Jy/sr over the band, by hand, from monochromatic maps."""
        nu = np.array([140.0, 145.0, 155.0, 162.0]) * u.GHz
        weights = np.array([0.2, 1.0, 0.9, 0.1])
        banded = pysm3.Sky(nside=NSIDE, component_objects=sky.components, output_unit=unit)
        found = banded.get_emission(nu, weights).value
        single = [sky.get_emission(f).value for f in nu]
        to_jansky = [(1 * u.uK_RJ).to_value(u.Jy / u.sr, u.cmb_equivalencies(f)) for f in nu]
        in_flux = [w * j * m for w, j, m in zip(weights, to_jansky, single, strict=True)]
        flux = trapezoid(in_flux, nu.value, axis=0)
        if unit == u.uK_CMB:
            cmb = [(1 * u.uK_CMB).to_value(u.Jy / u.sr, u.cmb_equivalencies(f)) for f in nu]
            expected = flux / trapezoid(weights * cmb, nu.value)
        else:
            expected = flux / trapezoid(weights, nu.value) * 1e-6
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_smoothing_and_coordinates(self, own):
        """As healpy does it step by step, to the accuracy of PySM's iterated transform."""
        fwhm, lmax = 15 * u.deg, 2 * NSIDE
        found = pysm3.apply_smoothing_and_coord_transform(
            own * u.uK_RJ, fwhm=fwhm, rot=hp.Rotator(coord=("G", "C")), lmax=lmax
        )
        alm = hp.map2alm(own, lmax=lmax, iter=10)
        alm = hp.smoothalm(alm, fwhm=fwhm.to_value(u.rad))
        alm = hp.Rotator(coord=("G", "C")).rotate_alm(alm)
        expected = hp.alm2map(alm, NSIDE)
        assert found.unit == u.uK_RJ
        scale = expected.std(axis=1, keepdims=True)
        assert np.abs((found.value - expected) / scale).max() < 0.01


class Detectors:
    """As TOAST's PySM operator works: an object on each rank, that sees the pixels of its rank."""

    def __init__(self, nside: int, pixels: np.ndarray) -> None:
        self.sky = pysm3.Sky(
            nside=nside,
            component_objects=[
                pysm_vae.VAEDust(
                    nside, seed=0, map_dist=pysm3.MapDistribution(pixel_indices=pixels)
                )
            ],
            output_unit=u.K_CMB,
            map_dist=pysm3.MapDistribution(pixel_indices=pixels),
        )
        self.pixels = pixels

    def scan(self, hits: np.ndarray, psi: np.ndarray, freqs: u.Quantity) -> np.ndarray:
        """Signal of a polarised detector that passes over these pixels at these angles."""
        i, q, u_ = self.sky.get_emission(freqs).value[:, np.searchsorted(self.pixels, hits)]
        return i + np.cos(2 * psi) * q + np.sin(2 * psi) * u_


def test_an_object_on_each_rank(own, rng):
    """Ranks that know only their pixels give the samples that the whole sky does."""
    path = np.unique(
        hp.ang2pix(NSIDE, rng.uniform(30, 75, 400), rng.uniform(0, 25, 400), lonlat=True)
    )
    hits, psi = rng.choice(path, 1000), rng.uniform(0, np.pi, 1000)
    signal = np.empty(1000)
    for part in np.array_split(path, 2):
        here = np.isin(hits, part)
        signal[here] = Detectors(NSIDE, part).scan(hits[here], psi[here], 150 * u.GHz)
    i, q, u_ = own[:, hits]
    expected = i + np.cos(2 * psi) * q + np.sin(2 * psi) * u_
    to_cmb = (1 * u.uK_RJ).to_value(u.K_CMB, u.cmb_equivalencies(150 * u.GHz))
    np.testing.assert_allclose(signal, to_cmb * expected, rtol=1e-12)


@pytest.fixture(scope="module")
def lbs():
    if sys.version_info < (3, 11):
        pytest.skip("litebird_sim 0.18 needs Python 3.11 or later")
    try:
        importlib.metadata.version("litebird_sim")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("litebird_sim is not installed: pip install 'pysm_vae[clients]'")
    # What is installed must import: that it does with what we need is part of the test.
    import litebird_sim

    return litebird_sim


def through_harmonics(lbs, maps: np.ndarray, parameters) -> np.ndarray:
    """The way on which litebird_sim takes all its foregrounds, for a beam that it may apply."""
    given = lbs.HealpixMap(
        values=np.ascontiguousarray(maps), nside=NSIDE, units=parameters.units,
        coordinates=lbs.CoordinateSystem.Galactic, nest=False,
    )  # fmt: skip
    alm = lbs.estimate_alm(given, lmax=parameters.lmax, nthreads=1)
    return lbs.pixelize_alm(alm, nside=NSIDE, lmax=parameters.lmax, nthreads=1).values


class TestLitebirdSim:
    def test_maps(self, lbs, sky, own):
        """Channels of an instrument, foregrounds by the preset's name: PySM's own maps."""
        parameters = lbs.SkyGenerationParams(
            nside=NSIDE, make_cmb=False, make_fg=True, fg_models=["vae0"], fg_oversampling=1,
            units="K_CMB", bandpass_integration=True, nthreads=1,
        )  # fmt: skip
        band = lbs.BandPassInfo(bandcenter_ghz=140.0, bandwidth_ghz=42.0, nsamples_inband=16)
        single = lbs.FreqChannelInfo(bandcenter_ghz=150.0, channel="L4-150")
        single.band = None
        wide = lbs.FreqChannelInfo(bandcenter_ghz=140.0, channel="M1-140", band=band)
        made = lbs.SkyGenerator(parameters, channels=[single, wide]).execute()
        assert {"L4-150", "M1-140"} <= set(made)

        nu, weights = band.freqs_ghz * u.GHz, band.weights
        in_band = sky.get_emission(nu, weights).value
        in_band = in_band * pysm3.bandpass_unit_conversion(nu, weights, u.K_CMB).value
        to_cmb = (1 * u.uK_RJ).to_value(u.K_CMB, u.cmb_equivalencies(150 * u.GHz))
        for name, expected in (("L4-150", own * to_cmb), ("M1-140", in_band)):
            values = made[name].values
            assert values.shape == (3, 12 * NSIDE**2)
            assert np.isfinite(values).all()
            same = through_harmonics(lbs, expected, parameters)
            np.testing.assert_allclose(values, same, rtol=0, atol=1e-9 * np.abs(same).max())

    def test_frequencies(self, lbs, own):
        """Its other way: a list of frequencies, with our dust beside its own CMB."""
        parameters = {"nside": NSIDE, "fg_models": ["vae0"], "fg_oversampling": 1, "nthreads": 1}
        parameters |= {"units": "uK_CMB", "seed_cmb": 1, "make_cmb": True}
        cmb, both = (
            lbs.SkyGenerator(
                lbs.SkyGenerationParams(make_fg=dust, **parameters), frequencies_ghz=[150.0, 353.0]
            )
            .execute()
            .values
            for dust in (False, True)
        )
        assert both.shape == (2, 3, 12 * NSIDE**2)
        assert 30 < cmb[0, 0].std() < 150
        dust = both - cmb
        to_cmb = (1 * u.uK_RJ).to_value(u.uK_CMB, u.cmb_equivalencies(150 * u.GHz))
        same = through_harmonics(
            lbs, own * to_cmb, lbs.SkyGenerationParams(make_fg=True, **parameters)
        )
        np.testing.assert_allclose(dust[0], same, rtol=0, atol=1e-9 * np.abs(same).max())
        assert 10 < dust[1, 0].mean() / dust[0, 0].mean() < 100
