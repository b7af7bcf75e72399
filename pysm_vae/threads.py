"""Threads: how many there are, and how work is shared out among them.

Two ways, for the two kinds of work that there are: pieces of arrays in compiled code that holds no
lock (:func:`over`), and whole things, one after the other, each of which is made by many libraries
(:func:`in_order`). Nothing that is made depends on how many threads there are.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

#: Numbers that a thread takes at a time: enough for some hundred microseconds.
PIECE = 1 << 15

_local = threading.local()


def cores() -> set[int]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def threads() -> int:
    """Threads that work may use: ``OMP_NUM_THREADS`` where that is a number, else every core.

    In work that :func:`in_order` has begun, its share of them: among what is being made right now.
    """
    limit = os.environ.get("OMP_NUM_THREADS", "")
    known = int(limit) if limit.isdigit() and int(limit) > 0 else len(cores())
    return max(1, known // len(getattr(_local, "at_work", (None,))))


def at_once() -> int:
    """How many things to make :func:`in_order` if each leaves its thread idle now and then.

    One more than there are threads; but one by one where there is a single thread.
    """
    return threads() + 1 if threads() > 1 else 1


def over(size: int, work: Callable[[int, int], None], piece: int = PIECE) -> None:
    """Work on pieces of a range at the same time.

    Parameters
    ----------
    size : int
        The range's end.
    work : callable
        Of a piece's start and stop. What it does on one piece must not bear on another.
    piece : int
        Length of the pieces.
    """
    starts = range(0, size, piece)

    def one(start: int) -> None:
        work(start, min(start + piece, size))

    together = min(threads(), len(starts))
    if together < 2:
        for start in starts:
            one(start)
        return
    with ThreadPoolExecutor(together) as pool:
        # Whatever went wrong in one is raised here.
        for _ in pool.map(one, starts):
            pass


def in_order(work: Callable[[Item], Made], items: Iterable[Item], together: int) -> Iterator[Made]:
    """Make some things at the same time, and give them one after the other.

    Parameters
    ----------
    work : callable
        Makes one of an item.
    items : iterable
        They are looked at as they are needed, in the thread that asks for the things.
    together : int
        At most so many are made or wait to be asked for.

    Yields
    ------
    object
        In the order of the items.
    """
    if together < 2:
        yield from map(work, items)
        return

    at_work: set[int] = set()

    def shared(item: Item) -> Made:
        _local.at_work = at_work
        at_work.add(threading.get_ident())
        try:
            return work(item)
        finally:
            at_work.discard(threading.get_ident())

    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(together) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(shared, item))
                if len(waiting) == together:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
