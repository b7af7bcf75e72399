"""Damaged files and hostile arguments: a clear error, or the right answer; never a wrong map.

Every case ends in an error of a documented kind, raised by a line of this package with words that
say what is wrong, or in what the whole file gives.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import healpy as hp
import numpy as np
import pysm3
import pysm3.units as u
import pytest
from astropy.io import fits
from hostile import damages, flipped, outcome, reheaded
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from quick import QuickDust
from synthetic import make_card, make_map
from typer.testing import CliRunner

import pysm_vae.dust
import pysm_vae.simulate
from pysm_vae import VAEDust, load_generator
from pysm_vae.channels import Channel
from pysm_vae.cli import app
from pysm_vae.ensemble import Part, parse_seeds
from pysm_vae.mapfiles import read_healpix, verify_map, write_map
from pysm_vae.region import region_pixels
from pysm_vae.simulate import simulate
from pysm_vae.sky import templates
from pysm_vae.sky.sed import emission
from pysm_vae.sky.templates import from_log_pol_tens, load_template, to_log_pol_tens
from pysm_vae.vae.patches import read_map

NSIDE = 16
NPIX = 12 * NSIDE**2
NAN, INF = float("nan"), float("inf")

settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def files(folder) -> dict[str, Path]:
    """Maps of every layout that is read."""
    rng = np.random.default_rng(3)
    intensity = np.exp(rng.normal(size=NPIX))
    maps = np.array([intensity, *0.01 * rng.normal(size=(2, NPIX))]).astype(np.float32)
    paths = {name: folder / f"{name}.fits" for name in ("full", "part", "healpy")}
    options: dict[str, Any] = {"nside": NSIDE, "unit": u.uK_RJ, "cards": []}
    write_map(paths["full"], maps, pixels=None, **options)
    write_map(paths["part"], maps[:, :900], pixels=np.arange(900) * 3, **options)
    hp.write_map(paths["healpy"], maps, coord="G", column_units="uK_RJ", dtype=np.float32)
    paths["image"] = make_map(folder, "image", 1, pixels=64).path
    return paths


@pytest.fixture
def no_iteration(monkeypatch) -> None:
    """Templates as the maps that they would be made of: what is read is what is tested."""
    monkeypatch.setattr(
        templates.Template, "from_maps", classmethod(lambda cls, maps, **rest: np.array(maps))
    )


READERS = {
    "template": lambda path: load_template(path),
    "region": lambda path: region_pixels(path, NSIDE),
    "training": lambda path: read_map(path, log="linear").values,
    "any": lambda path: read_healpix(path, "map").maps,
}


@pytest.mark.usefixtures("no_iteration")
@pytest.mark.parametrize(
    ("name", "reader"),
    [
        *(("full", reader) for reader in READERS),
        *(("part", reader) for reader in ("region", "training", "any")),
        *(("healpy", reader) for reader in READERS),
        ("image", "training"),
    ],
)
def test_damaged_maps(files, tmp_path, name, reader):
    """38 ways to break each file. What has no checksum cannot know of numbers that have changed."""
    read, bad = READERS[reader], tmp_path / "bad.fits"
    whole = np.array(read(files[name]))
    protected = name in ("full", "part")
    noticed = 0
    for number, (how, content) in enumerate(damages(files[name], np.random.default_rng(7))):
        bad.write_bytes(content)
        os.utime(bad, ns=(number, number))
        found = outcome(lambda: read(bad))
        if isinstance(found, Exception):
            noticed += 1
            assert "bad.fits" in str(found), how
            continue
        hidden = not protected and ("flipped" in how or "exchanged" in how or "shifted" in how)
        hidden |= not protected and how == "data of zeros"
        assert hidden or np.array_equal(found, whole, equal_nan=True), how
    assert noticed >= (30 if protected else 12)


@pytest.mark.usefixtures("no_iteration")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ORDERING": "SPIRAL"}, "ORDERING is 'SPIRAL'"),
        ({"ORDERING": None}, "ORDERING is ''"),
        ({"ORDERING": 3}, "ORDERING"),
        ({"NSIDE": 32}, "3072 pixels, where NSIDE = 32 has 12288"),
        # PySM 2 wrote a text.
        ({"NSIDE": "32"}, "3072 pixels, where NSIDE = 32 has 12288"),
        ({"NSIDE": 8}, "NSIDE = 8"),
        ({"NSIDE": 0}, "NSIDE is 0"),
        ({"NSIDE": -16}, "NSIDE is -16"),
        ({"NSIDE": 17}, "NSIDE is 17"),
        ({"NSIDE": "x"}, "NSIDE is 'x'"),
        ({"NSIDE": 2**40}, "NSIDE is 1099511627776"),
        ({"INDXSCHM": "EXPLICIT"}, "which is no map"),
        ({"OBJECT": "PARTIAL"}, "which is no map"),
        ({"INDXSCHM": "EXPLICIT", "OBJECT": "PARTIAL"}, "are not whole"),
        ({"TUNIT1": "mag"}, "TUNIT1"),
        ({"TUNIT2": "K"}, "TUNIT2"),
        ({"TUNIT3": None}, "TUNIT3"),
        ({"TUNIT1": "fortnights"}, "not 'fortnights'"),
        ({"POLCCONV": "UPSIDE"}, "POLCCONV"),
        ({"CHECKSUM": "0123456789abcdef"}, "checksum"),
    ],
)
def test_wrong_keywords(files, tmp_path, changes, message):
    source = files["full" if "CHECKSUM" in changes else "healpy"]
    bad = tmp_path / "bad.fits"
    if "CHECKSUM" in changes:
        with fits.open(source) as hdus:
            hdus[1].header.update(changes)
            hdus.writeto(bad)
    else:
        reheaded(source, changes, bad)
    with pytest.raises(ValueError, match=message):
        load_template(bad)


@pytest.mark.usefixtures("no_iteration")
def test_orderings_are_kept_apart(files, tmp_path):
    """healpy itself takes "NEST" for RING; and a nested map is not a ring map of other pixels."""
    ring = load_template(files["healpy"])
    nested = hp.reorder(ring, r2n=True)
    for word in ("NESTED", "NEST", "nest"):
        path = tmp_path / f"{word}.fits"
        hp.write_map(path, nested, nest=True, coord="G", column_units="uK_RJ", dtype=np.float64)
        np.testing.assert_array_equal(load_template(reheaded(path, {"ORDERING": word}, path)), ring)


def columns(tmp_path: Path, *arrays: np.ndarray, **cards: Any) -> Path:
    names = ("I", "Q", "U")
    record = np.rec.fromarrays(arrays, names=names[: len(arrays)])
    table = fits.BinTableHDU(record)
    table.header.update({"ORDERING": "RING", "COORDSYS": "G", "NSIDE": NSIDE} | cards)
    for number in range(1, len(arrays) + 1):
        table.header[f"TUNIT{number}"] = "uK_RJ"
    path = tmp_path / "columns.fits"
    table.writeto(path, overwrite=True)
    return path


def test_wrong_columns(tmp_path):
    good = np.ones(NPIX)
    for arrays, message in (
        ((good,), "has 1 maps"),
        ((good, good), "has 2 maps"),
        ((good.astype(str), good, good), "does not hold numbers"),
        ((good + 1j, good, good), "does not hold numbers"),
        ((good > 0, good, good), "does not hold numbers"),
        ((good[:100], good[:100], good[:100]), "100 pixels"),
        ((good[:0], good[:0], good[:0]), "0 pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            load_template(columns(tmp_path, *arrays))
    pixels = np.arange(50)
    explicit = {"INDXSCHM": "EXPLICIT", "OBJECT": "PARTIAL"}
    for numbers, message in (
        (pixels - 1, "does not have"),
        (pixels + NPIX, "does not have"),
        (pixels // 2, "twice"),
        (pixels + 0.5, "not whole"),
    ):
        with pytest.raises(ValueError, match=message):
            region_pixels(columns(tmp_path, numbers, np.ones(50), **explicit), NSIDE)
    assert len(region_pixels(columns(tmp_path, pixels, np.ones(50), **explicit), NSIDE)) == 50


@pytest.mark.parametrize(
    "spoil",
    [NAN, INF, -INF, hp.UNSEEN, float(np.float32(hp.UNSEEN)), -1.0, 0.0, 1e300, -1e300],
    ids=str,
)
@pytest.mark.parametrize("row", [0, 1, 2])
def test_bad_values_of_a_template(tmp_path, spoil, row):
    """One pixel that cannot be. A Q or U of zero can."""
    maps = np.array([np.full(12 * 64**2, 5.0), *np.full((2, 12 * 64**2), 0.1)])
    maps[row, 777] = spoil
    path = tmp_path / "t.fits"
    hp.write_map(path, maps, coord="G", column_units="uK_RJ", dtype=np.float64)
    allowed = (spoil == 0.0 and row) or (spoil == -1.0 and row) or (spoil == 1e300 and not row)
    for spec in (path, maps * u.uK_RJ):
        found = outcome(lambda spec=spec: load_template(spec))
        assert isinstance(found, ValueError) or allowed
        if not isinstance(found, Exception):
            assert np.isfinite(found.alm).all()


class Drawn(Exception):
    """The arguments were taken."""


@pytest.fixture
def no_draw(monkeypatch) -> None:
    def drawn(*args, **kwargs):
        raise Drawn

    monkeypatch.setattr(pysm_vae.dust, "SmallScales", drawn)
    monkeypatch.setattr(pysm_vae.simulate, "VAEDust", drawn)


def part(*numbers: Any) -> pysm3.MapDistribution:
    return pysm3.MapDistribution(pixel_indices=np.array(numbers))


HOSTILE = {
    "nside": [0, -1, 3, 2.0, "16", None, True, NAN, 2**40, [16], 1j],
    "seed": [-1, 1.5, "7", None, NAN, [1], True, 1j],
    "num": [-1, 1.5, "7", [1]],
    "beta": [NAN, INF, -50, "x", None, [1, 2], np.ones(7), 1 * u.K, 1j, True, {}],
    "temperature": [NAN, 0, -3, 1e9, "x", None, "20 parsec", np.zeros(NPIX), 20 * u.Hz, [], 1j],
    "freq_ref": [
        "353", "x", 353, 353 * u.m, 0 * u.GHz, -u.GHz, NAN * u.GHz, INF * u.GHz, [1, 2] * u.GHz,
        None, "353 GHz 3",
    ],
    "template": [
        "nothing", "none.fits", 3, None, "", b"x", [1], {}, "/", "d1 ", "\0", np.ones((3, NPIX)),
        np.ones((3, NPIX)) * u.K, np.ones((3, 10)) * u.uK_RJ, np.ones((2, NPIX)) * u.uK_RJ,
        np.full((3, 49152), NAN) * u.uK_RJ, np.zeros((3, 49152)) * u.uK_RJ,
        np.ones((3, 49152)) * u.uK_RJ, np.ones((3, NPIX)) * u.uK_RJ, 1 * u.uK_RJ,
    ],
    "weights": ["none", "none.json", 3, None, "", b"x", {}, "/", "\0", "."],
    "slopes": [(1, 2), None, "abc", (NAN, 1, 1), (1, 1, 1, 1), 1, (INF, 0, 0), ("a", "b", "c")],
    "ee_to_bb": [NAN, -1, 0, INF, "x", None, [2]],
    "te_ratio": [NAN, 2, -2, INF, "x", None],
    "amplitude": [NAN, -1, INF, "x", None],
    "split": [(100, 50), (0, 9), (NAN, 1), (1,), None, "ab", (50, INF), (50, 1e9), (-5, 10), 5],
    "max_nside": ["x", NAN, -1, 0],
    "map_dist": [part(-1), part(NPIX), part(1.5), part([1]), part("a"), "x", 3, np.arange(4)],
}  # fmt: skip


@pytest.mark.usefixtures("no_draw")
@pytest.mark.parametrize("name", HOSTILE)
def test_arguments_of_the_component(name):
    for value in HOSTILE[name]:
        found = outcome(lambda value=value: VAEDust(**{"nside": NSIDE, name: value}))
        assert isinstance(found, Exception), f"{name}={value!r}"


HOSTILE_RUNS = {
    "nside": [0, -1, 3, 2.0, "16", None, True, NAN, 2**40, [16]],
    "channels": [[], None, 353, [353], "353", [Channel]],
    "seed": [-1, 1.5, "7", None, NAN, True],
    "preset": ["x", None, 3, "d10"],
    "unit": ["x", None, "K", "m", 3, "GHz", NAN, ""],
    "region": [
        "x", "1,2", "nan,0,1", (1, 2), (0, 0, NAN), (0, 0, INF), 5, "", "1,2,3,4", "/", b"x",
        (0, 99, 1), (0, 0, 0), (0, 0, -1),
    ],
    "out": [None, 3, "/dev/null/x", "\0", b"x"],
}  # fmt: skip


@pytest.mark.usefixtures("no_draw")
@pytest.mark.parametrize("name", HOSTILE_RUNS)
def test_arguments_of_a_run(tmp_path, name):
    good = {"out": tmp_path, "nside": NSIDE, "channels": [Channel.at(353)]}
    for value in HOSTILE_RUNS[name]:
        found = outcome(lambda value=value: simulate(**{**good, name: value}))
        assert isinstance(found, Exception), f"{name}={value!r}"
    assert list(tmp_path.iterdir()) == []


def test_arguments_of_channels_and_emission():
    for value in (0, -1, NAN, INF, "x", None, 1 * u.m, [1, 2], 1e9, 1j, [1, 2] * u.GHz, True):
        assert isinstance(outcome(lambda value=value: Channel.at(value)), Exception), value
    for edges in ((2, 1), (NAN, 1), (1, INF), ("a", 1), (1, 1), (None, None)):
        assert isinstance(outcome(lambda edges=edges: Channel.top_hat(*edges)), Exception), edges
    for n in (0, 1, -1, 1.5, "x", None, 10**12):
        assert isinstance(outcome(lambda n=n: Channel.top_hat(1, 2, n=n)), Exception), n
    maps = np.ones((3, 5))
    hostile = {
        "reference": [maps[:2], maps[0], None, "x", maps * 1j, np.full((3, 5), "a")],
        "freqs": [
            353, 353 * u.m, [] * u.GHz, [1, 1] * u.GHz, NAN * u.GHz, -u.GHz, [[1, 2]] * u.GHz,
        ],
        "weights": [[1], [1, NAN], [-1, -1], "ab", [0, 0], [1, "x"], [1j, 1], [[1, 2]]],
        "beta": [NAN, INF, [1, 2], "x", None, 1j],
        "temperature": [0, -1, NAN, INF, "x", None, [1, 2]],
        "freq_ref_I": [353, 0 * u.GHz, [1, 2] * u.GHz, 1 * u.K],
    }  # fmt: skip
    good = {"reference": maps, "freqs": [100, 200] * u.GHz, "freq_ref_I": 353 * u.GHz}
    good |= {"freq_ref_P": 353 * u.GHz, "beta": 1.5, "temperature": 20.0}
    for name, values in hostile.items():
        for value in values:
            found = outcome(lambda name=name, value=value: emission(**{**good, name: value}))
            assert isinstance(found, Exception), f"{name}={value!r}"


class TestWeights:
    """A file of weights is numbers and nothing else, and the right ones."""

    @pytest.fixture
    def card(self, tmp_path) -> Path:
        return make_card(tmp_path)

    @staticmethod
    def loaded(card: Path) -> Any:
        """As a first patch would: the network with its weights in it."""
        return outcome(lambda: load_generator(card).network)

    def test_any_bit(self, card):
        path = card.with_suffix(".npz")
        content = path.read_bytes()
        for bit in np.random.default_rng(1).integers(0, 8 * len(content), 25):
            path.write_bytes(flipped(content, np.array([bit])))
            found = self.loaded(card)
            assert isinstance(found, ValueError), bit
            assert "SHA-256 differs" in str(found)

    @pytest.mark.parametrize("kind", ["pickle", "object array", "object in npz", "text", "nothing"])
    def test_no_code_is_run(self, card, kind, tmp_path):
        """Payloads that would leave a mark, with the hash that their card says."""
        mark = tmp_path / "mark"

        class Payload:
            def __reduce__(self):
                return os.mkdir, (str(mark),)

        buffer = io.BytesIO()
        if kind == "pickle":
            buffer.write(pickle.dumps(Payload()))
        elif kind == "object array":
            np.save(buffer, np.array([Payload()], object), allow_pickle=True)
        elif kind == "object in npz":
            np.savez(buffer, a=np.array([Payload()], object))
        elif kind == "text":
            np.savez(buffer, a=np.array(["os.mkdir"]))
        self.replace(card, buffer.getvalue())
        assert isinstance(self.loaded(card), ValueError)
        assert not mark.exists()
        if kind == "pickle":
            # It would have.
            pickle.loads(buffer.getvalue())
            assert mark.exists()

    @staticmethod
    def replace(card: Path, content: bytes) -> None:
        known = json.loads(card.read_text())
        known["sha256"] = hashlib.sha256(content).hexdigest()
        card.write_text(json.dumps(known))
        card.with_suffix(".npz").write_bytes(content)

    @pytest.mark.parametrize("change", ["nan", "shape", "missing", "text"])
    def test_arrays_that_do_not_fit(self, card, change):
        with np.load(card.with_suffix(".npz")) as archive:
            arrays = {name: archive[name] for name in archive.files}
        name = next(iter(arrays))
        if change == "missing":
            del arrays[name]
        else:
            other = {"nan": np.nan * arrays[name], "shape": np.zeros((2, 2)), "text": np.array("x")}
            arrays[name] = other[change]
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for key, array in arrays.items():
                single = io.BytesIO()
                np.save(single, array)
                archive.writestr(f"{key}.npy", single.getvalue())
        self.replace(card, buffer.getvalue())
        assert isinstance(self.loaded(card), ValueError)

    @pytest.mark.parametrize(
        "text", ["", "[]", "3", "null", "{}", '"x"', '{"weights": 3}', "{" * 99_999, "\xff"]
    )
    def test_cards_that_are_none(self, card, text):
        card.write_bytes(text.encode("latin1"))
        assert isinstance(self.loaded(card), ValueError)

    @pytest.mark.parametrize(
        "key", ["name", "architecture", "size", "pixel_size_arcmin", "sha256", "maps", "weights"]
    )
    def test_entries_of_other_kinds(self, card, key):
        known = json.loads(card.read_text())
        for value in (None, [], {}, -1, 0, NAN, True, [[]], [3], "../../etc/passwd", "\0"):
            if key in ("name", "sha256") and isinstance(value, str):
                continue
            card.write_text(json.dumps(known | {key: value}))
            found = self.loaded(card)
            assert isinstance(found, Exception), f"{key}={value!r}"


class TestProperties:
    """Of the public functions, on whatever hypothesis makes up."""

    @given(
        nside=st.sampled_from([1, 2, 8, 16]),
        partial=st.booleans(),
        data=st.data(),
    )
    def test_what_is_written_is_read(self, folder, nside, partial, data):
        npix = 12 * nside**2
        pixels = None
        if partial:
            chosen = data.draw(st.sets(st.integers(0, npix - 1), min_size=1, max_size=20))
            pixels = np.array(sorted(chosen))
        shape = (3, npix if pixels is None else len(pixels))
        finite = st.floats(-(2.0**95), 2.0**100, width=32, allow_subnormal=False)
        maps = data.draw(hnp.arrays(np.float32, shape, elements=finite, fill=finite))
        path = folder / "property.fits"
        write_map(path, maps, nside=nside, pixels=pixels, unit=u.uK_CMB, cards=[("SEED", 1)])
        verify_map(path)
        read = read_healpix(path, "map")
        assert (read.nside, read.nest, read.units) == (nside, False, ("uK_CMB",) * 3)
        np.testing.assert_array_equal(read.maps, maps)
        if partial:
            np.testing.assert_array_equal(read.pixels, pixels)
        theirs = hp.read_map(path, field=(0, 1, 2))
        np.testing.assert_array_equal(theirs if pixels is None else theirs[:, pixels], maps)

    @given(place=st.integers(0, 10**9))
    def test_no_bit_is_turned_unseen(self, files, folder, place):
        content = files["full"].read_bytes()
        start = 2880  # of the table's header; the one before says nothing
        # Behind the data there is only padding.
        end = 8 * (len(content) - 2880)
        bad = folder / "bit.fits"
        bad.write_bytes(flipped(content, np.array([8 * start + place % (end - 8 * start)])))
        found = outcome(lambda: read_healpix(bad, "map"))
        if not isinstance(found, Exception):
            # It was in the blanks after the header's END.
            whole = read_healpix(files["full"], "map")
            assert found.header == whole.header
            np.testing.assert_array_equal(found.maps, whole.maps)

    @given(length=st.integers(0, 10**9))
    @example(length=2880)
    def test_no_length_but_the_whole(self, files, folder, length):
        content = files["full"].read_bytes()
        bad = folder / "length.fits"
        bad.write_bytes(content[: length % len(content)])
        assert isinstance(outcome(lambda: read_healpix(bad, "map")), ValueError)
        assert isinstance(outcome(lambda: verify_map(bad)), ValueError)

    @given(i=st.floats(1e-20, 1e20), fraction=st.floats(0, 0.999), angle=st.floats(0, 2 * np.pi))
    def test_log_pol_tens_round_trip(self, i, fraction, angle):
        maps = i * np.array([[1.0], [fraction * np.cos(angle)], [fraction * np.sin(angle)]])
        again = from_log_pol_tens(to_log_pol_tens(maps))
        np.testing.assert_allclose(again, maps, rtol=1e-9, atol=1e-9 * i)

    @given(
        nu=st.floats(1, 3000),
        beta=st.floats(-3, 3),
        temperature=st.floats(3, 100),
        scale=st.floats(1e-6, 1e6),
    )
    def test_emission_is_linear_and_starts_at_the_reference(self, nu, beta, temperature, scale):
        maps = np.array([[1.0, 2.0], [0.3, -0.1], [0.0, 0.2]])
        options = {"freq_ref_I": 353 * u.GHz, "freq_ref_P": 353 * u.GHz, "beta": beta}
        options["temperature"] = temperature
        once = emission(maps, nu * u.GHz, **options)
        assert np.isfinite(once).all()
        assert (once[0] > 0).all()
        np.testing.assert_allclose(emission(scale * maps, nu * u.GHz, **options), scale * once)
        np.testing.assert_allclose(emission(maps, 353 * u.GHz, **options), maps)

    @given(text=st.text(st.characters(codec="utf-8"), max_size=12))
    @example("0,0,5")
    @example("0:3")
    @example("2/3")
    def test_texts(self, text):
        found = outcome(lambda: region_pixels(text, NSIDE))
        if not isinstance(found, Exception):
            assert (np.diff(found) > 0).all()
            assert found[0] >= 0
            assert found[-1] < NPIX
        seeds = outcome(lambda: parse_seeds(text))
        assert isinstance(seeds, ValueError) or min(seeds) >= 0
        share = outcome(lambda: Part.parse(text))
        assert isinstance(share, ValueError) or 0 <= share.number < share.count

    @given(
        content=st.one_of(st.binary(max_size=60), st.text("0123456789.e- ,#\n\t").map(str.encode))
    )
    @example(b"140 1\n150 2\n")
    def test_bandpass_files(self, folder, content):
        path = folder / "band.txt"
        path.write_bytes(content)
        found = outcome(lambda: Channel.from_file(path))
        if not isinstance(found, Exception):
            assert (np.diff(found.freqs.value) > 0).all()
            assert np.isfinite(found.conversion(u.uK_CMB))

    @given(
        value=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
        )
    )
    def test_cards(self, folder, value):
        path = folder / "any.json"
        path.write_text(json.dumps(value))
        assert isinstance(outcome(lambda: load_generator(path)), ValueError)


class TestDisk:
    """A disk that fills up, a process that is killed, two that write the same."""

    @pytest.fixture
    def small_disk(self):
        """No file may grow beyond 20 kB: writes fail in the middle, as on a full disk."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)

        def shrink() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

        yield shrink
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def test_full_while_a_map_is_written(self, tmp_path, small_disk):
        maps = np.ones((3, NPIX), np.float32)
        options: dict[str, Any] = {"nside": NSIDE, "pixels": None, "unit": u.uK_RJ, "cards": []}
        path = tmp_path / "map.fits"
        write_map(path, maps, **options)
        before = path.read_bytes()
        small_disk()
        with pytest.raises(OSError, match=r"large|space|writing stopped"):
            write_map(path, 2 * maps, **options)
        # The old map is there, whole; of the new one nothing.
        assert list(tmp_path.iterdir()) == [path]
        assert path.read_bytes() == before

    def test_full_while_weights_are_written(self, tmp_path, small_disk):
        from pysm_vae.vae.generator import save_weights

        network = load_generator().network
        small_disk()
        with pytest.raises(OSError, match=r"large|space"):
            save_weights(network, tmp_path / "w.npz")
        assert list(tmp_path.iterdir()) == []

    def test_full_in_the_command(self, tmp_path, small_disk, monkeypatch):
        """One line, exit code 1, no part of a file; and with room the same command goes on."""
        monkeypatch.setattr(pysm_vae.simulate, "VAEDust", QuickDust)
        args = ["simulate", "--nside", "16", "--freq", "353", "--seeds", "0:2"]
        args += ["--out", str(tmp_path)]
        small_disk()
        failed = CliRunner().invoke(app, args)
        assert failed.exit_code == 1, failed.output
        (line,) = failed.stderr.splitlines()
        assert "seed0.fits" in line
        assert list(tmp_path.iterdir()) == []
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert CliRunner().invoke(app, args).exit_code == 0
        assert len(list(tmp_path.iterdir())) == 2

    def test_two_writers_and_a_kill(self, tmp_path):
        """Two processes write one file again and again, and one is killed in the middle: whenever
        somebody looks, the file is one of theirs, whole.
        """
        code = (
            "import sys, numpy as np, pysm3.units as u\n"
            "from pathlib import Path\n"
            "from pysm_vae.mapfiles import write_map\n"
            "maps = np.full((3, 12 * 128**2), float(sys.argv[2]), np.float32)\n"
            "while True:\n"
            "    write_map(Path(sys.argv[1]), maps, nside=128, pixels=None, unit=u.uK_RJ, cards=[])"
        )
        path = tmp_path / "same.fits"
        both = [
            subprocess.Popen([sys.executable, "-c", code, str(path), str(number)])
            for number in (1, 2)
        ]
        seen: set[float] = set()

        def look(until: Any) -> None:
            end = time.monotonic() + 60
            while not until() and time.monotonic() < end:
                if path.exists():
                    values = np.unique(read_healpix(path, "map").maps)
                    assert len(values) == 1
                    seen.update(values)
            assert until(), "it took more than a minute"

        try:
            look(lambda: seen == {1.0, 2.0})
            mine = f"-{both[0].pid}-"
            while not any(mine in name for name in os.listdir(tmp_path)):
                pass
            both[0].send_signal(signal.SIGKILL)
            both[0].wait()
            seen.clear()
            look(lambda: 2.0 in seen)
        finally:
            for process in both:
                process.kill()
                process.wait()
        verify_map(path)
        pysm_vae.files.writable_folder(tmp_path)
        assert list(tmp_path.iterdir()) == [path]
