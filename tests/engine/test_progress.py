"""Meters never count a second twice; tickers write lines that can be read."""

from __future__ import annotations

import io
import re
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dfm_engine.progress
from dfm_engine.progress import Meters, Ticker, duration


class Clock:
    """Time that moves only when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(dfm_engine.progress.time, "monotonic", clock.monotonic)
    return clock


def test_nested_blocks_share_the_time_between_them(clock: Clock):
    meters = Meters(started_s=clock.now_s)
    with meters.busy("animate", clips=1, frames=9):
        clock.now_s += 1
        with meters.busy("decode", clips=1, frames=16):
            clock.now_s += 10
            with meters.busy("detect"):
                clock.now_s += 100
            clock.now_s += 20
        clock.now_s += 2
    clock.now_s += 7
    busy = {name: meter.busy_s for name, meter in meters.stages.items()}
    assert busy == {"animate": 3, "decode": 30, "detect": 100}
    assert meters.wall_s == 140
    assert meters.bottleneck() == "detect"
    assert meters.rate("decode") == pytest.approx(16 / 30)
    assert meters.rate("never") == 0


def test_a_stage_inside_itself_counts_once(clock: Clock):
    meters = Meters()
    with meters.busy("screen"):
        clock.now_s += 1
        with meters.busy("screen"):
            clock.now_s += 2
        clock.now_s += 4
    assert meters.stages["screen"].busy_s == 7


def test_a_block_that_fails_counts_its_time_and_not_its_items(clock: Clock):
    meters = Meters()

    def fail() -> None:
        with meters.busy("outer", clips=5):
            clock.now_s += 1
            with meters.busy("inner", clips=5):
                clock.now_s += 2
                raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert [(m.busy_s, m.clips) for m in meters.stages.values()] == [(1, 0), (2, 0)]
    with meters.busy("after"):  # and leaves nothing open behind
        clock.now_s += 4
    assert meters.stages["outer"].busy_s == 1


def test_waiting_is_nobodys_work(clock: Clock):
    meters = Meters(started_s=clock.now_s)
    with meters.busy("animate"):
        clock.now_s += 1
        with meters.waiting():
            clock.now_s += 10
            with meters.busy("decode"):
                clock.now_s += 100
        clock.now_s += 2
    assert {name: meter.busy_s for name, meter in meters.stages.items()} == {
        "animate": 3,
        "decode": 100,
    }
    assert meters.spans == [("animate", 0, 1), ("decode", 11, 111), ("animate", 111, 113)]


def test_threads_do_not_stop_each_others_clocks():
    meters, inside = Meters(), threading.Barrier(2, timeout=30)

    def work(name: str) -> None:
        for _ in range(200):
            with meters.busy(name, clips=1, frames=2):
                pass
        with meters.busy(name):
            inside.wait()
            time.sleep(0.1)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(m.clips, m.frames) for m in meters.stages.values()] == [(200, 400), (200, 400)]
    assert all(meter.busy_s >= 0.1 for meter in meters.stages.values())


BLOCKS = st.recursive(
    st.just([]), lambda inner: st.lists(st.tuples(st.sampled_from("abc"), inner), max_size=3)
)


@settings(max_examples=40)
@given(BLOCKS)
def test_busy_times_sum_to_the_time_inside_any_block(blocks):
    clock, meters = Clock(), Meters()
    inside = 0

    def play(blocks, depth):
        nonlocal inside
        for name, inner in blocks:
            with meters.busy(name):
                clock.now_s += 1
                inside += 1
                play(inner, depth + 1)
            clock.now_s += 1
            inside += depth > 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dfm_engine.progress.time, "monotonic", clock.monotonic)
        play(blocks, 0)
    assert sum(meter.busy_s for meter in meters.stages.values()) == inside


def test_the_bottleneck_is_the_largest_share_of_a_stages_workers():
    meters = Meters()
    assert meters.bottleneck() is None
    meters.stage("animate").busy_s = 10
    meters.stage("encode", workers=4).busy_s = 30
    assert meters.bottleneck() == "animate"
    assert meters.to_json()["encode"]["workers"] == 4


def test_a_reader_in_another_thread_never_trips_over_a_new_stage():
    meters, errors, done = Meters(), [], threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                meters.bottleneck()
            except RuntimeError as error:
                errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(3000):
        meters.stage(str(number)).busy_s = number
    done.set()
    reader.join()
    assert errors == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_ticker_writes_a_line_each_interval_and_a_last_one():
    stream, counted = io.StringIO(), iter(range(10**6))
    with Ticker(lambda: f"line {next(counted)}", interval_s=0.01, stream=stream):
        wait_until(lambda: "line 2" in stream.getvalue())
    lines = stream.getvalue().splitlines()
    assert lines == [f"line {number}" for number in range(len(lines))]
    assert len(lines) >= 4  # the last is written at the end


def test_on_a_terminal_the_line_is_overwritten_until_the_end():
    stream = Terminal()
    with Ticker(lambda: "at work", interval_s=0.01, stream=stream):
        wait_until(lambda: stream.getvalue().count("at work") > 2)
    assert re.fullmatch(r"(\r\x1b\[2Kat work)+\n", stream.getvalue())


def test_a_silent_ticker_writes_nothing():
    stream = io.StringIO()
    with Ticker(lambda: "never", enabled=False, interval_s=0.001, stream=stream):
        time.sleep(0.01)
    with Ticker(lambda: "", interval_s=0.001, stream=stream):
        time.sleep(0.01)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations_read_like_a_clock(seconds, text):
    assert duration(seconds) == text


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_queues_are_seen_as_full_as_they_were(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dfm_engine.progress, "WATCH_S", 0.001)
    meters, looked = Meters(), threading.Semaphore(0)
    waiting = iter([0, 4, 2])
    seen: list[int] = []

    def read() -> tuple[int, int]:
        seen.append(next(waiting, 2))
        looked.release()
        return seen[-1], 5

    meters.queues["opened"] = read
    with meters.watched():
        for _ in range(4):
            assert looked.acquire(timeout=30)
    fill = meters.fills["opened"]
    assert (fill.room, fill.peak, fill.looks) == (5, 4, len(seen))
    assert fill.mean == pytest.approx(sum(seen) / len(seen))
    assert meters.queues_to_json()["opened"] == {"room": 5, "mean": round(fill.mean, 2), "peak": 4}
    looks = fill.looks
    time.sleep(0.02)
    assert fill.looks == looks  # nobody looks after the block
    assert Meters().queues_to_json() == {}
