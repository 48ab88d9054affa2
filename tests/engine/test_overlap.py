"""Stages in threads: in order, never further ahead than allowed, ended with who reads them."""

from __future__ import annotations

import contextlib
import gc
import random
import signal
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from dfm_engine.interrupts import Interrupted, stop_on_signals
from dfm_engine.overlap import Ahead, MapAhead


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


# --- MapAhead ------------------------------------------------------------------------------------


def threads_named(name: str) -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.split("-")[0] == name}


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_results_come_in_the_order_of_the_items_however_long_each_takes(workers: int):
    chance = random.Random(workers)
    naps = [chance.choice([0.0, 0.0, 0.002, 0.005]) for _ in range(200)]

    def square(number: int) -> int:
        time.sleep(naps[number])
        return number * number

    with MapAhead(square, range(200), workers=workers, depth=9, name="square") as squares:
        assert list(squares) == [number * number for number in range(200)]
    assert not threads_named("square")


def test_as_many_calls_as_there_are_workers_run_at_once_and_no_more():
    lock, inside, most = threading.Lock(), 0, 0
    met = threading.Barrier(3, timeout=30)

    def meet(number: int) -> int:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        met.wait()  # passes only while three are inside
        with lock:
            inside -= 1
        return number

    with MapAhead(meet, range(12), workers=3, depth=6, name="meet") as numbers:
        assert list(numbers) == list(range(12))
    assert most == 3


def test_no_more_items_are_drawn_than_results_may_wait():
    drawn: list[int] = []
    reached = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            reached.release()
            yield number

    with MapAhead(lambda n: n, items(), workers=2, depth=4, name="map") as numbers:
        for _ in range(4):
            assert reached.acquire(timeout=30)
        assert not reached.acquire(timeout=0.2)  # a fifth waits for room
        assert numbers.waiting == 4
        assert next(numbers) == 0
        assert reached.acquire(timeout=30)
        assert not reached.acquire(timeout=0.1)
    assert drawn == [0, 1, 2, 3, 4]


def test_a_slow_first_item_holds_the_others_back_within_the_bound():
    first_may_end = threading.Event()
    begun: list[int] = []

    def slow_first(number: int) -> int:
        begun.append(number)
        if number == 0:
            assert first_may_end.wait(30)
        return number

    with MapAhead(slow_first, range(50), workers=2, depth=5, name="map") as numbers:
        deadline = time.monotonic() + 30
        while numbers.waiting < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert sorted(begun) == [0, 1, 2, 3, 4]  # one at work, four done that wait for it
        first_may_end.set()
        assert list(numbers) == list(range(50))


def test_what_a_call_raises_comes_at_its_place_and_ends_the_rest():
    later = threading.Event()
    called: list[int] = []

    def fail_at_three(number: int) -> int:
        called.append(number)
        if number == 2:
            assert later.wait(30)  # the error after it is there already
        if number == 3:
            later.set()
            raise OSError("the disk is gone")
        return number

    with MapAhead(fail_at_three, range(1000), workers=2, depth=8, name="map") as numbers:
        assert [next(numbers) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(OSError, match="the disk is gone"):
            next(numbers)
        with pytest.raises(StopIteration):
            next(numbers)
    assert max(called) < 10  # nothing is begun long after an error


def test_of_two_errors_the_earlier_place_is_told():
    both = threading.Barrier(2, timeout=30)

    def fail(number: int) -> int:
        both.wait()
        raise ValueError(f"item {number}")

    for _ in range(20):
        with (
            MapAhead(fail, range(2), workers=2, depth=2, name="map") as numbers,
            pytest.raises(ValueError, match="item 0"),
        ):
            next(numbers)


def test_what_the_items_raise_comes_after_the_results_before_it():
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise RuntimeError("no more clips")

    with MapAhead(lambda n: 10 * n, items(), workers=3, depth=3, name="map") as numbers:
        assert [next(numbers), next(numbers)] == [10, 20]
        with pytest.raises(RuntimeError, match="no more clips"):
            next(numbers)
        assert list(numbers) == []


def test_a_reader_that_leaves_ends_the_items_and_begins_nothing_more():
    drawn_in: set[str] = set()
    closed_in: list[str] = []
    called = 0
    lock = threading.Lock()

    def items() -> Iterator[int]:
        try:
            for number in range(10**9):
                drawn_in.add(threading.current_thread().name)
                yield number
        finally:
            closed_in.append(threading.current_thread().name)

    def work(number: int) -> int:
        nonlocal called
        with lock:
            called += 1
        return number

    def read() -> None:
        with MapAhead(work, items(), workers=3, depth=6, name="leave") as numbers:
            assert next(numbers) == 0
            raise ValueError("the reader gave up")

    with pytest.raises(ValueError, match="gave up"):
        read()
    assert drawn_in == {"leave"}
    assert closed_in == ["leave"]
    assert called <= 7
    assert not threads_named("leave")


def test_leaving_waits_for_the_calls_under_way_alone():
    entered, leave = threading.Semaphore(0), threading.Event()
    ended: list[int] = []

    def hold(number: int) -> None:
        entered.release()
        assert leave.wait(30)
        ended.append(number)

    with MapAhead(hold, range(100), workers=2, depth=8, name="hold"):
        assert entered.acquire(timeout=30)
        assert entered.acquire(timeout=30)
        threading.Timer(0.1, leave.set).start()
    assert sorted(ended) == [0, 1]


@pytest.mark.parametrize("stuck", ["items", "call"])
def test_an_interrupt_of_the_reader_ends_it_while_a_thread_is_at_work(stuck: str):
    may_go_on = threading.Event()

    def wait(number: int) -> int:
        assert may_go_on.wait(30)
        return number

    items = map(wait, range(3)) if stuck == "items" else range(3)
    function = wait if stuck == "call" else int

    def interrupt() -> None:
        time.sleep(0.1)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
        may_go_on.set()

    thread = threading.Thread(target=interrupt)

    def read() -> None:
        with MapAhead(function, items, workers=2, depth=2, name="stuck") as numbers:
            thread.start()
            next(numbers)

    with stop_on_signals(), pytest.raises(Interrupted):
        read()
    thread.join()
    assert not threads_named("stuck")


def test_maps_and_generators_chain_and_an_inner_error_reaches_the_last():
    def numbers() -> Iterator[int]:
        yield from range(20)
        raise RuntimeError("inner")

    with (
        MapAhead(lambda n: n + 1, numbers(), workers=3, depth=4, name="one") as one,
        Ahead((2 * n for n in one), depth=1, name="two") as two,
        MapAhead(lambda n: n - 1, two, workers=2, depth=2, name="three") as three,
    ):
        got = [next(three) for _ in range(20)]
        with pytest.raises(RuntimeError, match="inner"):
            next(three)
    assert got == [2 * (n + 1) - 1 for n in range(20)]
    assert not (threads_named("one") | threads_named("two") | threads_named("three"))


def test_a_reader_that_leaves_a_chain_of_maps_waits_for_nobody():
    with (
        MapAhead(int, iter(range(10**9)), workers=2, depth=3, name="inner") as inner,
        MapAhead(int, inner, workers=2, depth=2, name="outer") as outer,
    ):
        assert next(outer) == 0
    assert not (threads_named("inner") | threads_named("outer"))


def test_a_result_that_was_taken_is_held_by_nobody_else():
    class Clip:
        pass

    with MapAhead(lambda _: Clip(), range(8), workers=2, depth=3, name="map") as clips:
        refs = [weakref.ref(clip) for clip in clips]
        gc.collect()
        assert [ref() for ref in refs] == [None] * 8


def test_each_worker_lives_within_what_it_was_given():
    lock, entered, left = threading.Lock(), [], []

    @contextlib.contextmanager
    def within() -> Iterator[None]:
        with lock:
            entered.append(threading.current_thread().name)
        yield
        left.append(threading.current_thread().name)

    def who(_: int) -> bool:
        return threading.current_thread().name in entered

    with MapAhead(who, range(9), workers=3, depth=3, name="in", within=within) as found:
        assert all(found)
    assert sorted(entered) == sorted(left) == ["in-0", "in-1", "in-2"]


def test_a_worker_that_cannot_begin_says_so():
    @contextlib.contextmanager
    def no_device() -> Iterator[None]:
        raise OSError("no stream")
        yield

    with (
        MapAhead(int, range(9), workers=2, depth=3, name="in", within=no_device) as found,
        pytest.raises(OSError, match="no stream"),
    ):
        list(found)
    assert not threads_named("in")


@pytest.mark.parametrize(("workers", "depth"), [(0, 1), (3, 2)])
def test_workers_and_a_depth_that_do_not_fit_are_refused(workers: int, depth: int):
    with pytest.raises(ValueError, match="workers <= depth"):
        MapAhead(int, [1], workers=workers, depth=depth, name="x")
