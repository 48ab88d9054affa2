"""Stages in threads: in order, never further ahead than allowed, ended with who reads them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from dfm_engine.overlap import Ahead


def test_items_come_in_order_and_all_of_them():
    with Ahead(iter(range(1000)), depth=3, name="count") as numbers:
        assert list(numbers) == list(range(1000))


def test_never_more_than_depth_items_wait_and_one_is_made():
    made: list[int] = []
    reached = threading.Semaphore(0)

    def make() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            reached.release()
            yield number

    with Ahead(make(), depth=2, name="make") as numbers:
        for _ in range(2):
            assert reached.acquire(timeout=30)
        assert not reached.acquire(timeout=0.2)  # a third waits for room
        assert numbers.waiting == 2
        assert next(numbers) == 0
        assert reached.acquire(timeout=30)
        assert not reached.acquire(timeout=0.1)
    assert made == [0, 1, 2]


def test_it_works_while_the_reader_does():
    met = threading.Barrier(2, timeout=30)

    def make() -> Iterator[int]:
        yield 1
        met.wait()  # passes only while the reader is at its own work
        yield 2

    with Ahead(make(), depth=1, name="make") as numbers:
        assert next(numbers) == 1
        met.wait()
        assert next(numbers) == 2


def test_an_error_comes_after_the_items_before_it():
    def fail() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the disk is gone")

    with Ahead(fail(), depth=5, name="fail") as numbers:
        assert next(numbers) == 1
        assert next(numbers) == 2
        with pytest.raises(OSError, match="the disk is gone"):
            next(numbers)
        with pytest.raises(StopIteration):
            next(numbers)


def test_leaving_early_ends_the_generator_in_its_own_thread():
    closed_in: list[str] = []

    def make() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed_in.append(threading.current_thread().name)

    def read() -> None:
        with Ahead(make(), depth=2, name="make") as numbers:
            next(numbers)
            raise ValueError("the reader gave up")

    with pytest.raises(ValueError, match="gave up"):
        read()
    assert closed_in == ["make"]
    assert "make" not in {thread.name for thread in threading.enumerate()}


def test_stages_chain_and_an_inner_error_reaches_the_last():
    def numbers() -> Iterator[int]:
        yield from range(5)
        raise RuntimeError("inner")

    with (
        Ahead(numbers(), depth=1, name="inner") as inner,
        Ahead((2 * n for n in inner), depth=1, name="outer") as outer,
    ):
        got = [next(outer) for _ in range(5)]
        with pytest.raises(RuntimeError, match="inner"):
            next(outer)
    assert got == [0, 2, 4, 6, 8]


def test_a_reader_that_leaves_a_chain_waits_for_nobody():
    with (
        Ahead(iter(range(10**9)), depth=1, name="inner") as inner,
        Ahead((n for n in inner), depth=1, name="outer") as outer,
    ):
        assert next(outer) == 0
    names = {thread.name for thread in threading.enumerate()}
    assert not {"inner", "outer"} & names


def test_a_depth_of_nothing_is_refused():
    with pytest.raises(ValueError, match="depth"):
        Ahead(iter([1]), depth=0, name="x")
