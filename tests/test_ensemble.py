"""Many skies: what is there is checked and kept, what is missing made, by any processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pysm3.units as u
import pytest
from quick import QuickDust
from synthetic import make_card

import pysm_vae.simulate
from pysm_vae.channels import Channel
from pysm_vae.ensemble import Part, own_part, parse_seeds, simulate_many
from pysm_vae.files import writable_folder
from pysm_vae.mapfiles import verify_map
from pysm_vae.mpi import LaunchError
from pysm_vae.sky.templates import load_template
from pysm_vae.vae.generator import load_generator

SETTINGS = {"nside": 8, "channels": [Channel.at(353), Channel.top_hat(140, 160)]}
SLURM = ("ID", "COUNT", "MIN", "MAX", "STEP")


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> type[QuickDust]:
    class Dust(QuickDust):
        drawn: list[int] = []  # noqa: RUF012

    monkeypatch.setattr(pysm_vae.simulate, "VAEDust", Dust)
    return Dust


@pytest.fixture(autouse=True)
def _not_in_slurm(monkeypatch) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class TestFolder:
    def test_made_and_kept(self, tmp_path, quick):
        told = []
        done = simulate_many(
            tmp_path, seeds=[4, 2, 4], progress=lambda *news: told.append(news), **SETTINGS
        )
        assert (done.made, done.kept, quick.drawn) == ((4, 2), (), [4, 2])
        assert sorted(done.files) == sorted(tmp_path.iterdir())
        assert len(done.files) == 4
        assert [news for news in told if news[0] == "skies"] == [
            ("skies", 0, 2), ("skies", 1, 2), ("skies", 2, 2),
        ]  # fmt: skip
        before = contents(tmp_path)
        again = simulate_many(tmp_path, seeds=range(6), **SETTINGS)
        assert (again.made, again.kept) == ((0, 1, 3, 5), (2, 4))
        assert before.items() <= contents(tmp_path).items()
        for path in again.files:
            assert verify_map(path)["SEED"] in range(6)

    def test_after_an_interrupt(self, tmp_path, quick):
        quick.stop = 3
        with pytest.raises(KeyboardInterrupt):
            simulate_many(tmp_path / "a", seeds=range(5), **SETTINGS)
        assert quick.drawn == [0, 1, 2]
        quick.stop = None
        assert simulate_many(tmp_path / "a", seeds=range(5), **SETTINGS).made == (3, 4)
        simulate_many(tmp_path / "b", seeds=range(5), **SETTINGS)
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    @pytest.mark.parametrize("damage", ["cut", "empty", "flip", "swap", "gone", "header"])
    def test_damaged_maps_are_made_anew(self, tmp_path, quick, damage, caplog):
        """Present is not complete: size, header and checksum are compared."""
        done = simulate_many(tmp_path, seeds=range(3), **SETTINGS)
        before = contents(tmp_path)
        path = done.files[3]
        whole = path.read_bytes()
        table = bytearray(whole)
        if damage == "cut":
            path.write_bytes(whole[:-1000])
        elif damage == "empty":
            path.write_bytes(b"")
        elif damage == "flip":
            table[-5000] ^= 16
            path.write_bytes(table)
        elif damage == "swap":
            table[-5760:-2880], table[-8640:-5760] = whole[-8640:-5760], whole[-5760:-2880]
            path.write_bytes(table)
        elif damage == "header":
            path.write_bytes(whole.replace(b"SEED    =                    1", b"SEED".ljust(30)))
        else:
            path.unlink()
        quick.drawn.clear()
        again = simulate_many(tmp_path, seeds=range(3), **SETTINGS)
        assert (again.made, again.kept, quick.drawn) == ((1,), (0, 2), [1])
        assert contents(tmp_path) == before
        assert ("made anew" in caplog.text) == (damage != "gone")

    @pytest.mark.parametrize(
        "change", [{"unit": "MJy/sr"}, {"template": "d10", "preset": "vae0"}, {"region": "0,0,40"}]
    )
    def test_other_settings(self, tmp_path, quick, change):
        """What decides a map is its recipe; a map of another is not overwritten, nor taken."""
        simulate_many(tmp_path, seeds=[0, 1], **SETTINGS)
        before = contents(tmp_path)
        quick.drawn.clear()
        if "unit" in change:
            with pytest.raises(FileExistsError, match=r"other settings.*--overwrite"):
                simulate_many(tmp_path, seeds=[2, 1], **SETTINGS, **change)
            assert quick.drawn == []
            assert contents(tmp_path) == before
            simulate_many(tmp_path, seeds=[1], overwrite=True, **SETTINGS, **change)
            assert quick.drawn == [1]
        else:
            # They have names of their own.
            simulate_many(tmp_path, seeds=[1], **SETTINGS, **change)
            assert before.items() < contents(tmp_path).items()

    def test_template_file_that_has_changed(self, tmp_path, quick):
        """Its name is the same, what is in it not."""
        template = tmp_path / "t.fits"
        template.write_bytes(b"one")
        simulate_many(tmp_path / "o", seeds=[0], template=template, **SETTINGS)
        assert simulate_many(tmp_path / "o", seeds=[0], template=template, **SETTINGS).kept == (0,)
        template.write_bytes(b"two")
        with pytest.raises(FileExistsError, match="other settings"):
            simulate_many(tmp_path / "o", seeds=[0], template=template, **SETTINGS)

    def test_files_of_somebody_else(self, tmp_path, quick):
        mine = tmp_path / "vae0_353GHz_nside8_seed1.fits"
        mine.write_text("notes of mine")
        with pytest.raises(FileExistsError, match="is no map"):
            simulate_many(tmp_path, seeds=[0, 1], **SETTINGS)
        assert (mine.read_text(), quick.drawn) == ("notes of mine", [])

    def test_pictures(self, tmp_path, quick, monkeypatch):
        def draw(order, seed, *rest):
            order.picture(seed).write_bytes(b"\x89PNG\r\n\x1a\n" + b"IEND\xaeB`\x82")

        monkeypatch.setattr(pysm_vae.simulate, "_draw", draw)
        done = simulate_many(tmp_path, seeds=[0, 1], figure=True, **SETTINGS)
        assert [path.suffix for path in done.files] == [".fits", ".fits", ".png"] * 2
        done.files[2].write_bytes(b"\x89PNG\r\n\x1a\n and then no more")
        assert simulate_many(tmp_path, seeds=[0, 1], figure=True, **SETTINGS).made == (0,)

    def test_refused(self, tmp_path):
        out = tmp_path / "o"
        for seeds in ([], [-1], [1.5], [True], ["a"]):
            with pytest.raises(ValueError, match="seed"):
                simulate_many(out, seeds=seeds, **SETTINGS)
        assert not out.exists()

    def test_no_room_for_all(self, tmp_path, monkeypatch):
        usage = SimpleNamespace(free=250_000)
        monkeypatch.setattr(pysm_vae.simulate.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OSError, match="10 maps of nside 8"):
            simulate_many(tmp_path, seeds=range(5), **SETTINGS)
        assert list(tmp_path.iterdir()) == []


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from quick import QuickDust
import pysm_vae.simulate
pysm_vae.simulate.VAEDust = QuickDust
from pysm_vae.cli import app
app(["simulate", "--nside", "256", "--freq", "353", "--seeds", "0:400", "--out", sys.argv[2]])
"""


def test_killed_and_resumed(tmp_path, quick):
    """SIGKILL in the middle, again in the middle of a write; the same call then makes the rest."""
    tests, out = str(Path(__file__).parent), tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", KILLED, tests, str(out)])
    try:
        end = time.monotonic() + 120
        # Until some are there, and then until one is being written.
        while time.monotonic() < end:
            names = os.listdir(out) if out.is_dir() else []
            parts = [name for name in names if name.startswith(".part-")]
            if len(names) > 2 and parts:
                break
        assert parts, "nothing was written in two minutes"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    settings = {"nside": 256, "channels": [Channel.at(353)]}
    there = [path for path in out.iterdir() if not path.name.startswith(".part-")]
    for path in there:
        verify_map(path)
    seeds = range(len(there) + 2)
    done = simulate_many(out, seeds=seeds, **settings)
    assert len(done.kept) == len(there)
    assert len(done.made) == 2
    # What the killed process left is gone, and the folder is what one run would have made.
    simulate_many(tmp_path / "whole", seeds=seeds, **settings)
    assert contents(out) == contents(tmp_path / "whole")


class TestParts:
    @pytest.mark.parametrize("count", [1, 2, 7, 30])
    def test_every_sky_once(self, tmp_path, quick, count):
        for number in range(count):
            simulate_many(tmp_path, seeds=range(10, 30), part=Part(number, count), **SETTINGS)
        assert sorted(quick.drawn) == list(range(10, 30))

    @pytest.mark.parametrize(
        ("task", "part"),
        [
            (("3", "8", "0", "7", "1"), Part(3, 8)),
            (("5", "3", "1", "5", "2"), Part(2, 3)),
            (("7", "1", "7", "7", None), Part(0, 1)),
            ((None,) * 5, Part(0, 1)),
        ],
    )
    def test_slurm_array(self, monkeypatch, task, part):
        for name, value in zip(SLURM, task, strict=True):
            if value is not None:
                monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
        assert own_part() == part
        assert own_part("2/5") == Part(1, 5)

    def test_ranks_within_a_task(self, monkeypatch):
        for name, value in zip(SLURM, ("1", "2", "0", "1", "1"), strict=True):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
        parts = [own_part(None, SimpleNamespace(rank=rank, size=3)) for rank in range(3)]
        assert parts == [Part(1, 6), Part(3, 6), Part(5, 6)]
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
        monkeypatch.setenv("SLURM_PROCID", "1")
        assert own_part() == Part(3, 4)

    def test_a_batch_script_is_no_step(self, monkeypatch):
        """There SLURM_NTASKS and SLURM_PROCID are set, but only one process runs."""
        monkeypatch.setenv("SLURM_NTASKS", "4")
        monkeypatch.setenv("SLURM_PROCID", "0")
        assert own_part() == Part(0, 1)

    @pytest.mark.parametrize(
        "task", [("3", "3", "1", "7", "1"), ("3", "x", "1", "7", "1"), ("3", None, None, None, "1")]
    )
    def test_uneven_arrays(self, monkeypatch, task):
        for name, value in zip(SLURM, task, strict=True):
            if value is not None:
                monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
        with pytest.raises(LaunchError, match="--part K/N"):
            own_part()

    def test_texts(self):
        assert parse_seeds("0:3") == [0, 1, 2]
        assert parse_seeds("7, 3,20:22") == [7, 3, 20, 21]
        for text in ("", "x", "3:1", "1:1", "-1", "1.5", "0:99999999999", "1,,2", "1:2:3"):
            with pytest.raises(ValueError, match="seeds"):
                parse_seeds(text)
        for text in ("", "0/3", "4/3", "1/0", "1", "1/2/3", "-1/3"):
            with pytest.raises(ValueError, match="K/N"):
                Part.parse(text)


class TestSharedWork:
    """Skies of one process share what is worked out for a template and for weights."""

    def test_weights(self, tmp_path):
        card = make_card(tmp_path)
        first = load_generator(card)
        assert load_generator(str(card)) is first
        make_card(tmp_path)
        os.utime(card, ns=(1, 1))
        assert load_generator(card) is not first
        (tmp_path / "tiny.npz").write_bytes(b"damaged")
        with pytest.raises(ValueError, match="SHA-256 differs"):
            load_generator(card)

    def test_template(self, tmp_path):
        import healpy as hp

        rng = np.random.default_rng(1)
        npix = 12 * 64**2
        maps = np.array([np.full(npix, 5.0), *0.1 * rng.normal(size=(2, npix))])
        path = tmp_path / "t.fits"
        options = {"coord": "G", "column_units": "uK_RJ", "dtype": np.float32}
        hp.write_map(path, maps, **options)
        first = load_template(path)
        assert load_template(str(path)) is first
        assert load_template(path, freq_ref=217 * u.GHz) is not first
        hp.write_map(
            path, 2 * maps, coord="G", column_units="uK_RJ", dtype=np.float32, overwrite=True
        )
        again = load_template(path)
        expected = np.log(2) * np.sqrt(4 * np.pi)
        assert (again.alm - first.alm)[0, 0].real == pytest.approx(expected, rel=1e-3)


class TestLeftovers:
    def test_only_of_the_dead(self, tmp_path):
        from pysm_vae.files import _machine

        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        names = {
            "dead": f".part-{_machine()}-{dead.pid}-abc-map.fits",
            "alive": f".part-{_machine()}-{os.getpid()}-abc-map.fits",
            "elsewhere": f".part-00000000-{dead.pid}-abc-map.fits",
            "old": f".part-11111111-{os.getpid()}-abc-map.fits",
            "other": "map.part-1.fits",
        }
        for name in names.values():
            (tmp_path / name).touch()
        os.utime(tmp_path / names["old"], (1, 1))
        writable_folder(tmp_path)
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {names["alive"], names["elsewhere"], names["other"]}
