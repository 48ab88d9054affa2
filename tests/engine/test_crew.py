"""Rows shared out among threads: every row once, its bits its own, urgent ones first."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from dfmtest_fomm import make_fomm, pictures, small_config

from dfm_engine.backends import TorchRunner
from dfm_engine.crew import Crew
from dfm_engine.fomm import Keypoints


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_every_row_is_computed_once_on_one_core_and_results_keep_their_order(
    threads: int, rows: int
) -> None:
    torch.set_num_threads(3)
    seen: list[int] = []

    def work(row: int) -> tuple[int, int]:
        seen.append(row)
        return row, torch.get_num_threads()

    crew = Crew(threads)
    assert crew.map(work, rows) == [(row, 1) for row in range(rows)]
    assert sorted(seen) == list(range(rows))
    assert torch.get_num_threads() == 3
    crew.close()


def test_as_many_rows_are_at_work_as_there_are_threads() -> None:
    together = threading.Barrier(3)  # breaks, and fails the rows, unless three meet
    crew = Crew(3)
    assert sorted(crew.map(lambda row: together.wait(timeout=20), 3)) == [0, 1, 2]
    assert len({*crew.map(lambda row: threading.get_ident(), 30)}) <= 3


def test_a_failing_row_fails_the_call_after_the_others_are_over() -> None:
    crew, done = Crew(2), []

    def work(row: int) -> None:
        if row in (1, 3):
            raise ValueError(f"row {row}")
        done.append(row)

    with pytest.raises(ValueError, match="row 1"):
        crew.map(work, 5)
    assert sorted(done) == [0, 2, 4]
    assert crew.map(lambda row: row, 2) == [0, 1]  # and it goes on


def test_urgent_rows_are_computed_before_those_that_wait() -> None:
    crew, order = Crew(2), []
    begun, free = threading.Semaphore(0), threading.Event()

    def slow(row: int) -> None:
        begun.release()
        free.wait(20)
        order.append("slow")

    def caller() -> None:
        crew.map(slow, 6)

    def urgent_caller() -> None:
        crew.map(lambda row: order.append("urgent"), 2, is_urgent=True)

    first, second = threading.Thread(target=caller), threading.Thread(target=urgent_caller)
    first.start()
    assert begun.acquire(timeout=20)
    assert begun.acquire(timeout=20)  # both threads are at a slow row, four wait
    second.start()
    deadline = time.monotonic() + 20
    while len(crew._tasks) < 6:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    free.set()
    first.join()
    second.join()
    assert order.count("slow") == 6
    assert order.index("urgent") < 4  # of the waiting ones at most two began before
    assert "slow" in order[order.index("urgent") :]


def test_a_rows_bits_do_not_depend_on_the_number_of_cores() -> None:
    images = pictures(5, (64, 64), seed=3).float()
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)  # what the caller has does not count either
        runner = TorchRunner(make_fomm(small_config(num_kp=6), seed=2), threads=threads)
        kp = runner.keypoints(images)
        features = runner.source(images[:1])
        moved = Keypoints(kp.value * 0.9, kp.jacobian)
        found.append((kp.value, features.encoded, runner.animate(features, kp[:1], moved)))
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))
    assert (found[0][2][0] - found[0][2][1]).abs().max() > 1e-3  # rows differ


def test_keypoints_on_a_cpu_are_summed_in_the_short_chains_of_the_plain_layout() -> None:
    """The layout that is faster for the generator rounds otherwise, and the frame shows it."""
    fomm = make_fomm(small_config(num_kp=6), seed=2)
    images = pictures(2, (64, 64), seed=5).float()
    with torch.inference_mode():
        wanted = [fomm.keypoints(image[None]) for image in images]
    runner = TorchRunner(fomm, threads=1)
    found = runner.keypoints(images)
    for row, kp in enumerate(wanted):
        assert torch.equal(found.value[row], kp.value[0])
    convolution = runner.fomm.generator.first.conv.weight
    assert convolution.is_contiguous(memory_format=torch.channels_last)


def test_a_crew_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 thread, got 0"):
        Crew(0)
