"""Tests of the threads."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from pysm_vae.threads import at_once, cores, in_order, over, threads


def test_as_many_as_the_environment_says(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads() == 3
    for nothing in ("", "0", "many", "2,2"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        assert threads() == len(cores()) >= 1


def test_one_thread_makes_things_one_by_one(monkeypatch):
    for number, together in (("1", 1), ("2", 3), ("8", 9)):
        monkeypatch.setenv("OMP_NUM_THREADS", number)
        assert at_once() == together


@pytest.mark.parametrize("number", ["1", "4"])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 100])
def test_pieces_cover_a_range_once(number, size, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", number)
    done = np.zeros(size, int)

    def work(start, stop):
        assert 0 < stop - start <= 8
        done[start:stop] += 1

    over(size, work, piece=8)
    assert (done == 1).all()


@pytest.mark.parametrize("number", ["1", "4"])
def test_what_goes_wrong_in_a_piece_is_raised(number, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", number)

    def work(start, stop):
        if start == 8:
            raise OSError("piece 8")

    with pytest.raises(OSError, match="piece 8"):
        over(100, work, piece=8)


@pytest.mark.parametrize("together", [1, 3])
def test_things_come_in_the_order_of_their_items(together):
    def work(item):
        time.sleep(0.02 * (item % 3 == 0))
        return item**2

    assert list(in_order(work, range(10), together)) == [item**2 for item in range(10)]
    assert list(in_order(work, [], together)) == []


def test_so_many_are_made_together_and_no_more():
    """Two at a time meet; what is made ahead waits until it is asked for."""
    meeting = threading.Barrier(2)
    begun = []

    def work(item):
        begun.append(item)
        meeting.wait(timeout=60)
        return item

    for item in in_order(work, range(6), 2):
        assert len(begun) <= item + 2


def test_things_share_the_threads(monkeypatch):
    """Those that are made at the same time; the last one has them all."""
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    meeting = threading.Barrier(2)

    def work(item):
        if item < 4:
            meeting.wait(timeout=60)
            share = threads()
            meeting.wait(timeout=60)
            return share
        return threads()

    made = in_order(work, range(5), 2)
    assert [next(made) for _ in range(4)] == [2] * 4
    assert list(made) == [5]
    assert list(in_order(lambda _: threads(), range(2), 1)) == [5] * 2
    assert threads() == 5


def test_what_goes_wrong_with_a_thing_is_raised_in_its_place():
    def work(item):
        if item == 2:
            raise OSError("thing 2")
        return item

    made = in_order(work, range(100), 3)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(OSError, match="thing 2"):
        next(made)
