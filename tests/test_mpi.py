"""Ranks: which pixels are whose, how all stop together, and that the sky is the same on any number.

What needs ranks starts them with ``mpiexec``, each a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import healpy as hp
import numpy as np
import pysm3.units as u
import pytest

from pysm_vae.channels import Channel
from pysm_vae.mpi import LaunchError, RankError, agreed, share, world
from pysm_vae.region import region_pixels
from pysm_vae.simulate import simulate

NSIDE = 16
REGION = "110,-38,25"
CLI = "from pysm_vae.cli import app; app()"
# The command, and then as a user of PySM would do it: PySM shares the pixels out.
BOTH = """
import sys, numpy as np, pysm3
from mpi4py import MPI
from pysm_vae import VAEDust
from pysm_vae.cli import app
out, *args = sys.argv[1:]
app(args, standalone_mode=False)
comm = MPI.COMM_WORLD
dust = VAEDust(16, seed=3, map_dist=pysm3.MapDistribution(mpi_comm=comm, nside=16))
maps = dust.get_emission(353 * pysm3.units.GHz).value
np.savez(f"{out}/{comm.rank}.npz", maps=maps, pixels=dust.map_dist.pixel_indices)
"""
# Only one of the ranks cannot read its region.
FAILING = """
import sys
from mpi4py import MPI
from pysm_vae.channels import Channel
from pysm_vae.mpi import RankError
from pysm_vae.simulate import simulate
comm = MPI.COMM_WORLD
try:
    region = "none.fits" if comm.rank == 1 else "110,-38,25"
    simulate(
        sys.argv[1], nside=16, channels=[Channel.at(353)], region=region, mpi_comm=comm
    )
except (FileNotFoundError, RankError) as error:
    with open(f"{sys.argv[1]}/{comm.rank}.txt", "w") as file:
        file.write(f"{type(error).__name__}: {error}")
"""


def mpiexec(ranks: int, code: str, *args: object) -> subprocess.CompletedProcess:
    # A virtual environment that was not activated is not on the PATH.
    beside = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    program = shutil.which("mpiexec", path=beside)
    if program is None or importlib.util.find_spec("mpi4py") is None:
        pytest.skip("needs mpi4py and an mpiexec: pip install mpi4py mpich")
    threads = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    return subprocess.run(
        [program, "-n", str(ranks), sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, **dict.fromkeys(threads, "1")},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def serial(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("serial")
    channels = [Channel.at(353), Channel.top_hat(140, 160)]
    simulate(folder, nside=NSIDE, channels=channels, seed=3, figure=False)
    return folder


def whole(folder: Path) -> np.ndarray:
    return hp.read_map(folder / "vae0_353GHz_nside16_seed3.fits", field=(0, 1, 2))


class TestRanks:
    def test_full_sky(self, tmp_path, serial):
        shares, out = tmp_path / "shares", tmp_path / "out"
        shares.mkdir()
        done = mpiexec(
            4, BOTH, shares, "simulate", "--nside", NSIDE, "--seed", 3, "--freq", 353,
            "--band", "140:160", "--no-figure", "--out", out,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        # Said, and written, once.
        assert len(done.stdout.splitlines()) == 2
        files = sorted(out.iterdir())
        assert [file.name for file in files] == sorted(file.name for file in serial.iterdir())
        for file in files:
            assert file.read_bytes() == (serial / file.name).read_bytes()
        parts = [np.load(file) for file in sorted(shares.iterdir())]
        pixels = np.concatenate([part["pixels"] for part in parts])
        np.testing.assert_array_equal(pixels, np.arange(12 * NSIDE**2))
        maps = np.concatenate([part["maps"] for part in parts], axis=1)
        maps *= Channel.at(353).conversion(u.uK_CMB)
        np.testing.assert_array_equal(maps.astype(np.float32), whole(serial))

    @pytest.mark.parametrize("ranks", [1, 2])
    def test_region(self, tmp_path, serial, ranks):
        done = mpiexec(
            ranks, CLI, "simulate", "--nside", NSIDE, "--seed", 3, "--freq", 353,
            "--region", REGION, "--out", tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        table, picture = sorted(tmp_path.iterdir())
        assert (table.suffix, picture.suffix) == (".fits", ".png")
        part = hp.read_map(table, field=(0, 1, 2))
        pixels = region_pixels(REGION, NSIDE)
        np.testing.assert_array_equal(part[:, pixels], whole(serial)[:, pixels])
        assert (np.delete(part, pixels, axis=1) == np.float32(hp.UNSEEN)).all()

    def test_seeds(self, tmp_path, serial):
        """Ranks share the skies of an ensemble, and none waits for another."""
        done = mpiexec(
            2, CLI, "simulate", "--nside", NSIDE, "--seeds", "2:4", "--freq", 353,
            "--region", "110,-38,8", "--out", tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [f"1 of 1 skies made in {tmp_path}, 0 were there"] * 2
        paths = sorted(tmp_path.iterdir())
        names = [f"vae0_353GHz_nside{NSIDE}_seed{k}_region.fits" for k in (2, 3)]
        assert [path.name for path in paths] == names
        pixels = region_pixels("110,-38,8", NSIDE)
        part = hp.read_map(paths[1], field=(0, 1, 2))
        np.testing.assert_array_equal(part[:, pixels], whole(serial)[:, pixels])

    def test_what_all_find_wrong_is_said_once(self, tmp_path):
        done = mpiexec(2, CLI, "simulate", "--nside", 100, "--freq", 353, "--out", tmp_path)
        assert done.returncode == 2
        (line,) = [line for line in done.stderr.splitlines() if "error" in line]
        assert "power of two" in line

    def test_one_failure_stops_all(self, tmp_path):
        done = mpiexec(2, FAILING, tmp_path)
        assert done.returncode == 0, done.stderr
        said = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
        assert said[0].startswith("RankError: rank 1 has failed: FileNotFoundError: region 'none")
        assert said[1].startswith("FileNotFoundError: region 'none.fits'")


class TestShare:
    @pytest.mark.parametrize("size", [1, 2, 5, 48])
    @pytest.mark.parametrize("region", [None, REGION])
    def test_each_pixel_is_one_ranks(self, size, region):
        pixels = None if region is None else region_pixels(region, NSIDE)
        shares = [share(NSIDE, pixels, rank, size) for rank in range(size)]
        wanted = np.arange(12 * NSIDE**2) if pixels is None else pixels
        np.testing.assert_array_equal(np.sort(np.concatenate(shares)), wanted)
        assert np.ptp([len(each) for each in shares]) <= 1
        assert all((np.diff(each) > 0).all() for each in shares)

    def test_more_ranks_than_pixels(self):
        assert sorted(len(share(NSIDE, np.array([7, 900]), rank, 5)) for rank in range(5)) == [
            0, 0, 0, 1, 1,
        ]  # fmt: skip

    def test_compact(self):
        """Over ranges of RING pixels, each rank touches far fewer pieces of sky."""

        def pieces(pixels):
            return len(np.unique(hp.vec2pix(8, *hp.pix2vec(64, pixels))))

        npix = 12 * 64**2
        ours = sum(pieces(share(64, None, rank, 48)) for rank in range(48))
        rings = sum(pieces(part) for part in np.array_split(np.arange(npix), 48))
        assert ours == 768
        assert rings > 2 * ours


def others(failures: list, rank: int) -> SimpleNamespace:
    """A communicator whose other ranks have said what they have to say."""

    def allgather(mine):
        return [mine if r == rank else failure for r, failure in enumerate(failures)]

    return SimpleNamespace(rank=rank, size=len(failures), allgather=allgather)


class TestAgreed:
    def test_alone(self):
        with pytest.raises(KeyError), agreed(None):
            raise KeyError
        with agreed(None):
            pass

    def test_all_is_well(self):
        with agreed(others([None, None], 0)):
            pass

    def test_another_rank_fails(self):
        comm = others([None, (OSError, "OSError: disk")], 0)
        said = "rank 1 has failed: OSError: disk"
        with pytest.raises(RankError, match=said) as caught, agreed(comm):
            pass
        assert caught.value.kind is OSError

    def test_the_first_that_failed_says_so(self):
        failed = (ValueError, "ValueError: nside")
        with pytest.raises(np.linalg.LinAlgError, match="mine"), agreed(others([None, failed], 0)):
            raise np.linalg.LinAlgError("mine")
        with pytest.raises(RankError, match="rank 0"), agreed(others([failed, None], 1)):
            raise ValueError("mine")

    def test_kinds_that_other_ranks_may_not_know(self):
        said = []
        comm = others([None, None], 0)
        comm.allgather = lambda mine: said.append(mine) or [mine, None]
        with pytest.raises(np.linalg.LinAlgError), agreed(comm):
            raise np.linalg.LinAlgError("mine")
        assert said == [(ValueError, "LinAlgError: mine")]


class TestWorld:
    @pytest.fixture(autouse=True)
    def _not_under_mpiexec(self, monkeypatch):
        for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMIX_RANK"):
            monkeypatch.delenv(name, raising=False)

    def test_alone(self, monkeypatch):
        assert world() is None
        monkeypatch.setenv("PMI_SIZE", "1")
        assert world() is None

    @pytest.mark.parametrize("name", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
    def test_no_mpi4py(self, monkeypatch, name):
        monkeypatch.setenv(name, "2")
        monkeypatch.setitem(sys.modules, "mpi4py", None)
        with pytest.raises(LaunchError, match=r"2 ranks.*install 'pysm_vae\[mpi\]'"):
            world()

    @pytest.mark.parametrize(("name", "value"), [("PMI_SIZE", "2"), ("PMIX_RANK", "0")])
    def test_all_ranks(self, monkeypatch, name, value):
        comm = SimpleNamespace(size=2)
        monkeypatch.setenv(name, value)
        monkeypatch.setitem(
            sys.modules, "mpi4py", SimpleNamespace(MPI=SimpleNamespace(COMM_WORLD=comm))
        )
        assert world() is comm

    def test_another_library(self, monkeypatch):
        """Each rank would think that it is alone, and write the same files."""
        monkeypatch.setenv("PMI_SIZE", "2")
        comm = SimpleNamespace(size=1)
        monkeypatch.setitem(
            sys.modules, "mpi4py", SimpleNamespace(MPI=SimpleNamespace(COMM_WORLD=comm))
        )
        with pytest.raises(LaunchError, match="2 ranks, but mpi4py sees 1"):
            world()
