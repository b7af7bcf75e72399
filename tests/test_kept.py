"""What is measured once and kept for other processes."""

from __future__ import annotations

import numpy as np
import pytest

from pysm_vae import kept as room
from pysm_vae.kept import kept, kept_folder
from pysm_vae.sky.calibration import Spectrum
from pysm_vae.sky.ground import Ground
from pysm_vae.sky.templates import SPLIT, embedded_template
from pysm_vae.vae.generator import load_generator


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "kept_folder", lambda: tmp_path)


class Measured:
    """Counts how often it is measured."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.times += 1
        return {"a": np.array([np.pi, self.times])}


def test_measured_once(tmp_path):
    measure = Measured()
    found = [kept("thing", [b"x", b"y"], measure)["a"] for _ in range(3)]
    assert measure.times == 1
    np.testing.assert_array_equal(found, [found[0]] * 3)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("thing-")


def test_other_things_are_measured(monkeypatch):
    measure = Measured()
    for name, of in (
        ("one", [b"xy"]),
        ("one", [b"x", b"y"]),
        ("one", [b"xy", b""]),
        ("two", [b"xy"]),
    ):
        kept(name, of, measure)
    assert measure.times == 4
    monkeypatch.setattr(room, "_code", lambda: b"edited")
    kept("one", [b"xy"], measure)
    assert measure.times == 5


def test_damaged_files_are_replaced(tmp_path):
    measure = Measured()
    for content in (b"", b"no", b"PK\x03\x04no"):
        kept("thing", [], measure)
        (path,) = tmp_path.iterdir()
        path.write_bytes(content)
        kept("thing", [], measure)
        path.unlink()
    assert measure.times == 6


def test_measures_where_nothing_can_be_kept(tmp_path, monkeypatch):
    def refuse():
        raise PermissionError("read-only")

    monkeypatch.setattr(room, "kept_folder", refuse)
    measure = Measured()
    assert kept("thing", [], measure)["a"][1] == 1
    assert kept("thing", [], measure)["a"][1] == 2
    monkeypatch.setattr(room, "kept_folder", lambda: tmp_path / "none")
    assert kept("thing", [], measure)["a"][1] == 3


def test_folder_is_the_users():
    assert "pysm_vae" in kept_folder().parts[-1] or "pysm_vae" in kept_folder().parts[-2]
    assert kept_folder().is_dir()


def test_grounds_are_the_same_to_the_last_bit(tmp_path, monkeypatch):
    """One that measures, and one that reads; and any other spectrum is measured."""
    case = load_generator(), embedded_template()
    first = Ground(*case, Spectrum(), SPLIT)
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(Ground, "_measure", None)
    again = Ground(*case, Spectrum(), SPLIT)
    np.testing.assert_array_equal(again.levels, first.levels)
    ell = np.geomspace(50, 1000, 5)
    np.testing.assert_array_equal(again.excess(ell), first.excess(ell))
    assert path.stat().st_size < 20_000
    with pytest.raises(TypeError, match="not callable"):
        Ground(*case, Spectrum(te_ratio=0.2), SPLIT)
