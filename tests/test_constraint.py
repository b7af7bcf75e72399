"""Skies that follow a map where it is observed: Gaussian ones by closed forms, and VAEDust's."""

from __future__ import annotations

import logging

import healpy as hp
import numpy as np
import pysm3
import pysm3.units as u
import pytest
import toml
from typer.testing import CliRunner

from pysm_vae import VAEDust
from pysm_vae.cli import app
from pysm_vae.mapfiles import write_map
from pysm_vae.mpi import share
from pysm_vae.sky import constraint as module
from pysm_vae.sky.canvas import Between
from pysm_vae.sky.constraint import Constraint, load_constraint, log_intensity
from pysm_vae.sky.templates import Template, from_log_pol_tens

NSIDE = 64
LMAX = 2 * NSIDE
#: Spectrum of the Gaussian skies' i above a template that is constant.
ELL = np.arange(LMAX + 1)
POWER = 2e-5 * (np.maximum(np.arange(256), 1) / 80.0) ** -2.4
POWER[:2] = 0
DISC = "100,40,20"


@pytest.fixture(scope="module")
def template() -> Template:
    alm = np.zeros((3, hp.Alm.getsize(100)), complex)
    alm[0, 0] = 3.0
    return Template(name="constant", alm=alm)


class GaussianSky:
    """A sky of Gaussian i, at any nside."""

    def __init__(self, template: Template, rng: np.random.Generator, lmax: int = LMAX) -> None:
        white = rng.standard_normal((2, hp.Alm.getsize(lmax)))
        white[1, : lmax + 1] = 0
        white[0, : lmax + 1] *= np.sqrt(2)
        self.alm = hp.almxfl((white[0] + 1j * white[1]) / np.sqrt(2), np.sqrt(POWER[: lmax + 1]))
        self.level = template.alm[0, 0].real / np.sqrt(4 * np.pi)

    def logarithm(self, nside: int, fwhm: float = 0.0) -> np.ndarray:
        return self.level + hp.alm2map(hp.smoothalm(self.alm, fwhm=fwhm, inplace=False), nside)

    def draw(self, nside: int, pixels: np.ndarray | None = None) -> np.ndarray:
        fields = np.zeros((3, hp.nside2npix(nside)), np.float32)
        fields[0] = self.logarithm(nside)
        return fields if pixels is None else fields[:, pixels]


def follow(
    sky: GaussianSky,
    constraint: Constraint,
    nside: int = NSIDE,
    pixels: np.ndarray | None = None,
    seed: int | Between = 0,
) -> np.ndarray:
    fields = sky.draw(nside, pixels)
    constraint.add(fields, nside=nside, pixels=pixels, seed=seed, draw=sky.draw)
    return fields


def brightness(logarithm: np.ndarray) -> u.Quantity:
    return np.exp(logarithm) * u.uK_RJ


@pytest.fixture(scope="module")
def constraint(template) -> Constraint:
    truth = GaussianSky(template, np.random.default_rng(1))
    return load_constraint(brightness(truth.logarithm(NSIDE)), template, mask=DISC)


class TestGaussianSkies:
    @pytest.mark.parametrize("fwhm", [0.0, 120.0])
    def test_they_are_draws_of_the_posterior(self, template, fwhm):
        """Closed forms: of the whole sky's power, S; of its error, twice S N / (B² S + N)."""
        rng = np.random.default_rng(2)
        beam = hp.gauss_beam(np.radians(fwhm / 60), lmax=LMAX)
        noise = 0.05
        n = noise**2 * hp.nside2pixarea(NSIDE)
        power, error = [], []
        for seed in range(6):
            truth, sky = GaussianSky(template, rng), GaussianSky(template, rng)
            seen = truth.logarithm(NSIDE, np.radians(fwhm / 60))
            seen = seen + noise * rng.standard_normal(seen.size)
            held = load_constraint(brightness(seen), template, noise=noise, fwhm=fwhm)
            found = hp.map2alm(follow(sky, held, seed=seed)[0].astype(float), lmax=LMAX, iter=3)
            found[0] = 0
            power.append(hp.alm2cl(found))
            error.append(hp.alm2cl(found - truth.alm))
        want = POWER[: LMAX + 1]
        asked = 2 * want * n / (beam**2 * want + n)
        for low, high in ((10, 20), (20, 40), (40, 60), (60, 85)):
            band, modes = slice(low, high), 2 * ELL[low:high] + 1
            for found, expected in ((power, want), (error, asked)):
                ratio = np.mean(found, axis=0)[band] / expected[band]
                ratio = np.average(ratio, weights=modes)
                assert ratio == pytest.approx(1, abs=4 * np.sqrt(2 / (6 * modes.sum())) + 0.05)

    def test_no_seam_in_the_variance(self, template):
        """In bands on either side of the boundary, and inside, over independent skies'."""
        rng = np.random.default_rng(3)
        nside, vectors = 128, np.array(hp.pix2vec(128, np.arange(12 * 128**2)))
        distance = np.full(vectors.shape[1], -90.0)
        for lon in range(0, 360, 60):
            centre = hp.ang2vec(lon, 30 * (-1) ** (lon // 60), lonlat=True)
            here = 18 - np.degrees(np.arccos(np.clip(centre @ vectors, -1, 1)))
            distance = np.maximum(distance, here)
        mask = (distance > 0).astype(float)
        bands = [(distance > low) & (distance < low + 1) for low in (-2, -1, 0, 1, 2, 3)]
        above = np.arange(191) > 100
        ratios = []
        for seed in range(4):
            truth, sky = (GaussianSky(template, rng, 190) for _ in range(2))
            held = load_constraint(brightness(truth.logarithm(nside)), template, mask=mask)
            found = follow(sky, held, nside=nside, seed=seed)[0]
            free = sky.draw(nside)[0]
            np.testing.assert_array_equal(found[mask == 0], free[mask == 0])
            # Above the template's own scales.
            values = [
                hp.alm2map(hp.almxfl(hp.map2alm(m, lmax=190, iter=1), above), nside)
                for m in (found, truth.logarithm(nside), free)
            ]
            here, *others = ([np.mean(v[band] ** 2) for band in bands] for v in values)
            ratios.append(np.array(here) / np.mean(others, axis=0))
        np.testing.assert_allclose(np.mean(ratios, axis=0), 1, atol=0.1)

    def test_inside_it_is_the_map(self, template, rng):
        truth = GaussianSky(template, np.random.default_rng(1), 90).logarithm(NSIDE)
        sky = GaussianSky(template, rng, 90)
        held = load_constraint(brightness(truth), template, mask=DISC, noise=0.003)
        found = follow(sky, held)[0]
        inner = hp.query_disc(NSIDE, hp.ang2vec(100, 40, lonlat=True), np.radians(9))
        assert np.corrcoef(found[inner], truth[inner])[0, 1] > 0.995
        error, apart = (np.std((m - truth)[inner]) for m in (found, sky.logarithm(NSIDE)))
        assert error < 0.05 * apart

    def test_a_pixel_does_not_depend_on_others(self, template, constraint, rng):
        sky = GaussianSky(template, rng)
        whole = follow(sky, constraint)
        for pixels in (
            rng.permutation(hp.nside2npix(NSIDE))[:3001],
            np.array([hp.ang2pix(NSIDE, 100, 40, lonlat=True)]),
            np.arange(7),
        ):
            np.testing.assert_array_equal(follow(sky, constraint, pixels=pixels), whole[:, pixels])

    def test_the_same_at_another_nside(self, template, rng):
        """What both resolve: of a finer sky, and of a coarser one."""
        truth = GaussianSky(template, np.random.default_rng(1), 60)
        held = load_constraint(brightness(truth.logarithm(NSIDE)), template, mask=DISC)
        sky = GaussianSky(template, rng, 60)
        alms = [
            hp.map2alm(follow(sky, held, nside=nside)[0].astype(float), lmax=45, iter=3)
            for nside in (32, 64, 128)
        ]
        # So coarse that it has none but the template's scales.
        coarse = follow(sky, held, nside=16)[0]
        assert np.isfinite(coarse).all()
        for alm in alms[1:]:
            cross = hp.alm2cl(alms[0], alm) / np.sqrt(hp.alm2cl(alms[0]) * hp.alm2cl(alm))
            assert cross[2:].min() > 0.99

    def test_the_seed_draws_the_noise(self, template, constraint, rng):
        sky = GaussianSky(template, rng)
        first, other = (follow(sky, constraint, seed=seed) for seed in (0, 1))
        assert not np.array_equal(first, other)
        between = follow(sky, constraint, seed=Between(0, 1, 0.5))
        assert not np.array_equal(between, first)

    def test_a_coarse_noisy_map_is_followed_coarsely(self, template):
        truth = GaussianSky(template, np.random.default_rng(1)).logarithm(128)
        held = load_constraint(brightness(truth), template, fwhm=300.0, noise=0.2)
        level, of_map, of_sky = held.factors(128)
        assert level < 128
        assert len(of_map) == len(of_sky) == 2 * level + 1
        fine = load_constraint(brightness(truth), template)
        assert fine.factors(128)[0] == 128
        assert fine.factors(1024)[0] == 128
        assert fine.factors(32)[0] == 32


class TestMaps:
    """The same map in all the ways that one may have it."""

    @pytest.fixture
    def log_map(self, template) -> np.ndarray:
        return GaussianSky(template, np.random.default_rng(1)).logarithm(NSIDE)

    def followed(self, template, rng, *arguments, **options) -> np.ndarray:
        held = load_constraint(*arguments, template, **options)
        return follow(GaussianSky(template, np.random.default_rng(5)), held)[0]

    @pytest.fixture
    def wanted(self, template, rng, log_map) -> np.ndarray:
        return self.followed(template, rng, brightness(log_map), mask=DISC)

    @pytest.mark.parametrize("nest", [False, True])
    def test_ordering(self, tmp_path, template, rng, log_map, wanted, nest):
        values = np.exp(log_map)
        hp.write_map(
            tmp_path / "map.fits",
            hp.reorder(values, r2n=True) if nest else values,
            nest=nest,
            coord="G",
            column_units="uK_RJ",
            dtype=np.float64,
        )
        found = self.followed(template, rng, tmp_path / "map.fits", mask=DISC)
        np.testing.assert_array_equal(found, wanted)

    def test_partial_file(self, tmp_path, template, rng, log_map, wanted):
        """Without a mask, what the file has is observed."""
        pixels = np.sort(hp.query_disc(NSIDE, hp.ang2vec(100, 40, lonlat=True), np.radians(20)))
        maps = np.zeros((3, len(pixels)), np.float32)
        maps[0] = np.exp(log_map[pixels])
        path = tmp_path / "part.fits"
        write_map(path, maps, nside=NSIDE, pixels=pixels, unit=u.uK_RJ, cards=[])
        np.testing.assert_allclose(self.followed(template, rng, path), wanted, atol=1e-5)

    def test_not_a_number_is_not_observed(self, template, rng, log_map, wanted):
        outside = np.ones(log_map.size, bool)
        outside[hp.query_disc(NSIDE, hp.ang2vec(100, 40, lonlat=True), np.radians(20))] = False
        for blank in (np.nan, hp.UNSEEN):
            values = np.where(outside, blank, np.exp(log_map)) * u.uK_RJ
            np.testing.assert_array_equal(self.followed(template, rng, values), wanted)

    @pytest.mark.parametrize("coord", ["C", "E"])
    def test_coordinates(self, tmp_path, template, rng, wanted, coord):
        sky = GaussianSky(template, np.random.default_rng(1))
        alm = hp.Rotator(coord=["G", coord]).rotate_alm(sky.alm)
        path, mask = tmp_path / "map.fits", tmp_path / "mask.fits"
        values = np.exp(sky.level + hp.alm2map(alm, NSIDE))
        hp.write_map(path, values, coord=coord, column_units="uK_RJ", dtype=np.float64)
        found = self.followed(template, rng, path, mask=DISC)
        inner = hp.query_disc(NSIDE, hp.ang2vec(100, 40, lonlat=True), np.radians(17))
        same = np.corrcoef(found[inner], wanted[inner])[0, 1]
        assert same > 0.98
        # A mask in the map's own coordinates.
        turned = hp.Rotator(coord=["G", coord])(hp.ang2vec(100, 40, lonlat=True))
        disc = np.zeros(12 * 128**2)
        disc[hp.query_disc(128, turned, np.radians(20))] = 1
        hp.write_map(mask, disc, coord=coord, dtype=np.float64)
        np.testing.assert_allclose(
            self.followed(template, rng, path, mask=mask)[inner], found[inner], atol=0.2
        )

    def test_units(self, template, rng, log_map, wanted):
        for quantity in (
            brightness(log_map).to(u.MJy / u.sr, equivalencies=u.cmb_equivalencies(353 * u.GHz)),
            brightness(log_map).to(u.K_CMB, equivalencies=u.cmb_equivalencies(353 * u.GHz)),
        ):
            found = self.followed(template, rng, quantity, mask=DISC)
            np.testing.assert_allclose(found, wanted, atol=1e-5)
            named = self.followed(template, rng, quantity.value, mask=DISC, unit=str(quantity.unit))
            np.testing.assert_allclose(named, wanted, atol=1e-5)

    def test_relative(self, template, rng, log_map, wanted, caplog):
        """A map of another level: that is the template's; as a brightness it is warned of."""
        other = 40 * np.exp(log_map)
        found = self.followed(template, rng, other, mask=DISC, unit="relative")
        # The map's own mean over the disc is not quite the template's.
        inner = hp.query_disc(NSIDE, hp.ang2vec(100, 40, lonlat=True), np.radians(9))
        apart = (found - wanted)[inner]
        assert abs(apart.mean()) < 0.3
        assert apart.std() < 0.02
        with caplog.at_level(logging.WARNING):
            self.followed(template, rng, other * u.uK_RJ, mask=DISC)
        assert "times the template" in caplog.text

    def test_noise_in_the_maps_unit(self, template, rng, log_map):
        held = load_constraint(brightness(log_map), template, noise="0.02 uK_RJ", mask=DISC)
        want = 0.02 / np.exp(held.observed.logarithm)
        np.testing.assert_allclose(held.observed.noise, want)


def reference(dust: VAEDust) -> np.ndarray:
    return np.array([dust.I_ref.value, dust.Q_ref.value, dust.U_ref.value])


REGION = "90,50,16"


@pytest.fixture(scope="module")
def truth() -> VAEDust:
    return VAEDust(NSIDE, seed=9)


@pytest.fixture(scope="module")
def free() -> VAEDust:
    return VAEDust(NSIDE, seed=2)


@pytest.fixture(scope="module")
def path(truth, tmp_path_factory):
    path = tmp_path_factory.mktemp("maps") / "map.fits"
    hp.write_map(path, truth.I_ref.value, coord="G", column_units="uK_RJ")
    return path


@pytest.fixture(scope="module")
def held(path) -> VAEDust:
    return VAEDust(NSIDE, seed=2, constrain=str(path), constrain_mask=REGION)


@pytest.fixture(scope="module")
def inside() -> np.ndarray:
    return hp.query_disc(NSIDE, hp.ang2vec(90, 50, lonlat=True), np.radians(16))


class TestVAEDust:
    def test_outside_and_fractions(self, free, held, inside):
        outside = np.setdiff1d(np.arange(12 * NSIDE**2), inside)
        np.testing.assert_array_equal(reference(held)[:, outside], reference(free)[:, outside])
        changed = reference(held)[:, inside] != reference(free)[:, inside]
        assert changed[0].mean() > 0.9
        for row in (1, 2):
            fractions = [(reference(sky)[row] / reference(sky)[0])[inside] for sky in (free, held)]
            np.testing.assert_allclose(*fractions, atol=1e-6)

    def test_it_follows(self, truth, free, held):
        mask = np.zeros(12 * NSIDE**2)
        centre = hp.ang2vec(90, 50, lonlat=True)
        mask[hp.query_disc(NSIDE, centre, np.radians(14))] = 1
        mask = np.clip(hp.smoothing(mask, fwhm=np.radians(2)), 0, 1)
        fields = [np.log(sky.I_ref.value.astype(float)) for sky in (truth, held, free)]
        alms = [
            hp.map2alm(mask * (f - np.average(f, weights=mask)), lmax=120, iter=1) for f in fields
        ]
        found = []
        for alm in alms[1:]:
            cross, own, other = hp.alm2cl(alm, alms[0]), hp.alm2cl(alm), hp.alm2cl(alms[0])
            found.append([
                cross[band].sum() / np.sqrt(own[band].sum() * other[band].sum())
                for band in (slice(20, 60), slice(60, 90), slice(95, 120))
            ])  # fmt: skip
        assert min(found[0][:2]) > 0.98
        assert found[0][2] > 0.8 > 0.6 > found[1][2]

    def test_parts_and_ranks(self, path, held):
        for rank in range(3):
            pixels = share(NSIDE, None, rank, 3)[:: 1 + rank]
            part = VAEDust(
                NSIDE,
                seed=2,
                constrain=path,
                constrain_mask=REGION,
                map_dist=pysm3.MapDistribution(pixel_indices=pixels),
            )
            np.testing.assert_array_equal(reference(part), reference(held)[:, pixels])

    def test_toml_and_command(self, tmp_path, path, held):
        config = tmp_path / "sky.toml"
        dust = {
            "class": "VAEDust",
            "seed": 2,
            "constrain": str(path),
            "constrain_mask": REGION,
        }
        config.write_text(toml.dumps({"dust": dust}))
        sky = pysm3.Sky(nside=NSIDE, component_config=str(config))
        emission = held.get_emission(353 * u.GHz)
        np.testing.assert_array_equal(sky.get_emission(353 * u.GHz).value, emission.value)
        done = CliRunner().invoke(
            app,
            [
                "simulate", "--nside", str(NSIDE), "--freq", "353", "--unit", "uK_RJ", "--seed",
                "2", "--no-figure", "--set", f"constrain={path}", "--set",
                f"constrain_mask={REGION}", "--set", "constrain_noise=0.01", "--out",
                str(tmp_path / "maps"),
            ],
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        written = hp.read_map(next((tmp_path / "maps").iterdir()), field=(0, 1, 2))
        np.testing.assert_array_equal(written, emission.value.astype(np.float32))


GOOD = np.ones(12 * 32**2)


def with_one(value: float) -> np.ndarray:
    bad = GOOD.copy()
    bad[5] = value
    return bad


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"constrain": "missing.fits"}, FileNotFoundError, "missing.fits"),
        ({"constrain": 3}, TypeError, "constrain must be"),
        ({"constrain": GOOD}, ValueError, "constrain_unit"),
        ({"constrain": GOOD * u.s}, ValueError, "must be K_CMB"),
        ({"constrain": GOOD, "constrain_unit": "many"}, ValueError, "constrain_unit 'many'"),
        ({"constrain": GOOD, "constrain_unit": 3}, TypeError, "constrain_unit"),
        ({"constrain": np.ones(50) * u.uK_RJ}, ValueError, "shape"),
        ({"constrain": np.ones((3, 12 * 32**2)) * u.uK_RJ}, ValueError, "shape"),
        ({"constrain": np.full(12 * 32**2, np.nan) * u.uK_RJ}, ValueError, "no observed pixel"),
        ({"constrain": with_one(0.0) * u.uK_RJ}, ValueError, "not positive in 1"),
        ({"constrain": with_one(-2.0) * u.uK_RJ}, ValueError, "not positive in 1"),
        (
            {"constrain": with_one(np.nan) * u.uK_RJ, "constrain_mask": GOOD},
            ValueError,
            "1 NaN, infinite or UNSEEN",
        ),
        (
            {"constrain": with_one(hp.UNSEEN) * u.uK_RJ, "constrain_mask": "0,90,10"},
            ValueError,
            "1 NaN, infinite or UNSEEN",
        ),
        ({"constrain": np.ones(12 * 8**2) * u.uK_RJ}, ValueError, "too coarse"),
        ({"constrain": GOOD * u.uK_RJ}, ValueError, "lost in its noise"),
        ({"constrain_mask": GOOD}, ValueError, "give constrain, too"),
        ({"constrain_unit": "uK_RJ"}, ValueError, "give constrain, too"),
    ],
)
def test_bad_maps_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        VAEDust(32, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"constrain_mask": np.zeros(12 * 32**2)}, ValueError, "no observed pixel"),
        ({"constrain_mask": np.ones(50)}, ValueError, "constrain_mask has the shape"),
        ({"constrain_mask": "nowhere.fits"}, FileNotFoundError, "constrain_mask.*nowhere.fits"),
        ({"constrain_mask": "10,100,5"}, ValueError, "constrain_mask.*in degrees"),
        ({"constrain_mask": 7}, TypeError, "constrain_mask"),
        ({"constrain_mask": "10,40,0.1"}, ValueError, "constrain_mask.*no pixel"),
        ({"constrain_mask": "10,40,4"}, ValueError, "nowhere observed|too few"),
        ({"constrain_mask": "10,40,6"}, ValueError, "too few for its nside"),
        ({"constrain_noise": 0}, ValueError, "constrain_noise must be above 0"),
        ({"constrain_noise": -0.1}, ValueError, "constrain_noise"),
        ({"constrain_noise": np.nan}, ValueError, "constrain_noise"),
        ({"constrain_noise": 1.0}, ValueError, "constrain_noise"),
        ({"constrain_noise": "3 GHz"}, ValueError, "constrain_noise"),
        ({"constrain_noise": "many"}, ValueError, "constrain_noise"),
        ({"constrain_noise": "1e9 uK_RJ"}, ValueError, "constrain_noise is as large"),
        ({"constrain_fwhm": -5.0}, ValueError, "constrain_fwhm"),
        ({"constrain_fwhm": "wide"}, ValueError, "constrain_fwhm"),
        ({"constrain_fwhm": "3 GHz"}, ValueError, "constrain_fwhm"),
        (
            {"constrain_unit": "relative", "constrain_noise": "3 uK_RJ"},
            ValueError,
            "constrain_noise of a 'relative' map",
        ),
    ],
)
def test_bad_options_are_named(arguments, error, message, template):
    good = brightness(GaussianSky(template, np.random.default_rng(1)).logarithm(32))
    with pytest.raises(error, match=message):
        VAEDust(32, **({"constrain": good} | arguments))


def test_a_narrow_region_is_said(template, caplog):
    values = brightness(GaussianSky(template, np.random.default_rng(1)).logarithm(128))
    strip = np.zeros(12 * 128**2)
    strip[hp.query_strip(128, np.radians(59), np.radians(62))] = 1
    with caplog.at_level(logging.WARNING):
        load_constraint(values, template, mask=strip)
    assert "followed only in part" in caplog.text


def test_log_intensity_is_that_of_the_stokes_parameters(rng):
    fields = np.stack([rng.normal(size=50), *0.2 * rng.normal(size=(2, 50))])
    np.testing.assert_allclose(log_intensity(fields), np.log(from_log_pol_tens(fields)[0]))


def test_files_are_read_once(tmp_path, template, monkeypatch):
    values = GaussianSky(template, np.random.default_rng(1)).logarithm(NSIDE)
    path = tmp_path / "map.fits"
    hp.write_map(path, np.exp(values), coord="G", column_units="uK_RJ")
    first = load_constraint(path, template, mask=DISC)
    monkeypatch.setattr(module, "read_healpix", None)
    assert load_constraint(str(path), template, mask=DISC) is first
