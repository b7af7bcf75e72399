"""Several processes (MPI ranks) that make one sky.

Each draws the pixels of its own share, and no two need to talk for that. Here is how they share the
pixels and the cores of a machine, and how all of them stop when one fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import ducc0
import healpy as hp
import numpy as np

from pysm_vae.threads import cores

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

# What launchers tell each process of the number of ranks: MPICH and its kin, Open MPI.
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


class LaunchError(RuntimeError):
    """Started as one of several ranks that cannot speak with each other."""


class RankError(RuntimeError):
    """Another rank has failed, and says why.

    Attributes
    ----------
    kind : type
        The built-in exception that the other rank's is, or derives from.
    """

    def __init__(self, rank: int, kind: type[BaseException], text: str) -> None:
        super().__init__(f"rank {rank} has failed: {text}")
        self.kind = kind


def world() -> Comm | None:
    """All ranks, if this process was started as one of several; otherwise None.

    Raises
    ------
    LaunchError
        If it was, but mpi4py is not there, or sees another number of ranks than were started: it
        then uses another MPI library than the launcher.
    """
    started = next((int(os.environ[name]) for name in _SIZES if name in os.environ), None)
    # PMIx tells a rank, but not how many there are.
    if (started is None and "PMIX_RANK" not in os.environ) or started == 1:
        return None
    count = f"{started} ranks" if started else "several ranks"
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"started as {count}, but mpi4py cannot be used ({error}): install 'pysm_vae[mpi]', "
            "or start one process alone"
        ) from error
    comm = MPI.COMM_WORLD
    if started and comm.size != started:
        raise LaunchError(
            f"started as {count}, but mpi4py sees {comm.size}: start with the mpiexec of the MPI "
            "library that mpi4py uses"
        )
    return comm if comm.size > 1 else None


def share_cores(comm: Comm) -> None:
    """Let the ranks on one machine use as many threads together as there are cores for them.

    Otherwise each would start as many as there are cores. ``OMP_NUM_THREADS`` in the environment
    comes first. It has to be called before TensorFlow is imported. Maps do not depend on the number
    of threads.
    """
    from mpi4py import MPI

    machine = comm.Split_type(MPI.COMM_TYPE_SHARED)
    own = cores()
    # Launchers may or may not have bound ranks to cores of their own.
    rivals = sum(bool(own & others) for others in machine.allgather(own))
    threads = max(1, len(own) // rivals)
    machine.Free()
    if "OMP_NUM_THREADS" not in os.environ:
        ducc0.misc.resize_thread_pool(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(name, os.environ["OMP_NUM_THREADS"])


@contextmanager
def agreed(comm: Comm | None) -> Iterator[None]:
    """A block that all ranks leave together, by an exception if one of them has raised one.

    The first rank that failed raises its own exception, all others :class:`RankError`. All ranks
    must get to the end of the block, so nothing within may wait for another rank.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        if comm is None:
            raise
        error = raised
    if comm is None:
        return
    mine = None
    if error is not None:
        kind = next(base for base in type(error).__mro__ if base.__module__ == "builtins")
        mine = (kind, f"{type(error).__name__}: {error}")
    for rank, failure in enumerate(comm.allgather(mine)):
        if failure is not None:
            if error is not None and rank == comm.rank:
                raise error
            raise RankError(rank, *failure) from error


def share(nside: int, pixels: np.ndarray | None, rank: int, size: int) -> np.ndarray:
    """The pixels that one of the ranks draws.

    Shares are equal and, unlike ranges of RING pixels, compact: with many ranks those would be
    thin strips, and each chart would be decoded by several ranks.

    Parameters
    ----------
    nside : int
        Resolution of the map.
    pixels : ndarray of int, or None
        RING pixels of all ranks together; None for the full sky.
    rank, size : int
        Whose share, of how many.

    Returns
    -------
    ndarray of int64
        RING, rising. Perhaps none, if there are more ranks than pixels.
    """
    count = hp.nside2npix(nside) if pixels is None else len(pixels)
    part = slice(count * rank // size, count * (rank + 1) // size)
    if pixels is None:
        nested = np.arange(part.start, part.stop)
    else:
        nested = np.sort(hp.ring2nest(nside, pixels))[part]
    return np.sort(hp.nest2ring(nside, nested))


def gather(
    comm: Comm, maps: np.ndarray, nside: int, pixels: np.ndarray | None
) -> np.ndarray | None:
    """Bring the shares of all ranks together on the first.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        The ranks.
    maps : ndarray, float32, shape (3, npix of this rank's share)
        In the order of :func:`share`.
    nside, pixels
        As given to :func:`share`.

    Returns
    -------
    ndarray, float32, shape (3, npix), or None
        On rank 0 all pixels, in the order of ``pixels``; on the others None.
    """
    whole = received = None
    with agreed(comm):
        if comm.rank == 0:
            npix = hp.nside2npix(nside) if pixels is None else len(pixels)
            whole = np.empty((3, npix), np.float32)
            # Room for the largest share.
            received = np.empty(3 * -(-npix // comm.size), np.float32)
    if comm.rank:
        comm.Send(np.ascontiguousarray(maps), dest=0)
        return None
    for rank in range(comm.size):
        places = share(nside, pixels, rank, comm.size)
        if pixels is not None:
            places = np.searchsorted(pixels, places)
        if rank:
            maps = received[: 3 * len(places)].reshape(3, -1)
            comm.Recv(maps, source=rank)
        whole[:, places] = maps
    return whole
