"""Lanes: how many a machine has, and what a thread computes in."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from dfm_engine.lanes import Lanes, SharedLane, lane, plan_lanes, settle
from dfm_engine.overlap import MapAhead


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cores", "device", "expected"),
    [
        (1, "cpu", Lanes(frame=1)),
        (2, "cpu", Lanes(frame=2)),  # the generator has the cores, a stage beside it one lane
        (16, "cpu", Lanes(frame=16, open=2, screen=2)),
        (1, "cuda", Lanes()),
        (2, "cuda", Lanes()),
        (16, "cuda", Lanes(frame=8, open=6, screen=3)),
        (200, "cuda", Lanes(frame=8, open=6, screen=3)),
    ],
)
def test_lanes_follow_from_the_cores_and_the_device(cores: int, device: str, expected: Lanes):
    assert plan_lanes(cores, device) == expected


def test_a_stage_without_a_lane_is_refused():
    with pytest.raises(ValueError, match="every stage needs a lane"):
        Lanes(open=0)


def test_a_lane_shares_no_operation_and_leaves_the_other_threads_theirs():
    def count(_: int) -> int:
        torch.ones(1 << 20).mul_(2).sum()  # a parallel operation
        return torch.get_num_threads()

    with MapAhead(count, range(6), workers=3, depth=3, name="x", within=lambda: lane("cpu")) as m:
        assert list(m) == [1] * 6
    assert torch.get_num_threads() == 2


def test_a_shared_lane_computes_in_one_thread_for_all_and_hands_errors_back():
    shared = SharedLane("cpu", name="model")
    at_work, lock = 0, threading.Lock()

    def work() -> tuple[str, int]:
        nonlocal at_work
        with lock:
            at_work += 1
            assert at_work == 1
        try:
            return threading.current_thread().name, torch.get_num_threads()
        finally:
            with lock:
                at_work -= 1

    def fail() -> None:
        raise ValueError("no such image")

    with MapAhead(lambda _: shared(work), range(40), workers=4, depth=4, name="ask") as found:
        assert set(found) == {("model_0", 1)}
    with pytest.raises(ValueError, match="no such image"):
        shared(fail)
    assert shared(lambda: 7) == 7
    shared.close()
    assert "model_0" not in {thread.name for thread in threading.enumerate()}


def test_a_shared_lane_that_nobody_used_closes():
    SharedLane("cpu", name="unused").close()


@pytest.mark.gpu
def test_lanes_on_a_gpu_have_streams_of_their_own_and_compute_the_same():
    weights = torch.randn(256, 256, device="cuda")
    given = [torch.randn(256, 256, device="cuda") for _ in range(12)]
    expected = [(g @ weights).cpu() for g in given]
    streams: set[int] = set()

    def multiply(index: int) -> torch.Tensor:
        streams.add(torch.cuda.current_stream().cuda_stream)
        product = given[index] @ weights
        settle("cuda")
        return product

    with MapAhead(
        multiply, range(12), workers=3, depth=3, name="x", within=lambda: lane("cuda")
    ) as products:
        for product, wanted in zip(products, expected, strict=True):
            assert torch.equal(product.cpu(), wanted)
    assert torch.cuda.default_stream().cuda_stream not in streams
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
