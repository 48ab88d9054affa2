"""The timing loop on a clock that we set, rows by their arithmetic, tables word by word."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dfm_bench.facts import Facts, read_facts
from dfm_bench.measure import HostClock, Row, StageRow, Timing, clock_for, measure
from dfm_bench.report import BenchReport
from dfm_bench.roofline import count_flops, measure_matrix_product


class FakeClock:
    """Stands still but for what calls add to it, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.rounds = 0

    def begin_round(self) -> None:
        self.rounds += 1
        self.now += 1000.0  # between rounds: must not count

    def mark(self) -> float:
        return self.now

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def cpu_seconds(self, start: float, end: float) -> float:
        return 2 * (end - start)  # as if two cores had worked


def test_variants_are_interleaved_and_the_warm_up_is_not_counted():
    clock = FakeClock()
    order: list[str] = []

    def variant(name: str, seconds: list[float]):
        def call(_: int) -> None:
            order.append(name)
            clock.now += seconds.pop(0)

        return call

    timings = measure(
        {"a": variant("a", [99, 1, 2, 3]), "b": variant("b", [99, 10, 20, 30])},
        [0],
        repeats=3,
        warm_up=1,
        clock=clock,
    )
    assert "".join(order) == "abababab"
    assert clock.rounds == 4
    assert timings == {
        "a": Timing((1, 2, 3), (2, 4, 6)),
        "b": Timing((10, 20, 30), (20, 40, 60)),
    }


def test_core_seconds_are_of_one_unit_of_work():
    timing = Timing((0.5, 1.0, 2.0), (1.0, 1.5, 4.0))
    row = Row.of("animate", timing, amount=10, unit="frames/s", shape=(10,))
    assert (row.rate, row.cpu_s) == (10.0, 1.5)
    assert row.core_s == pytest.approx(0.15)
    assert Row.of("animate", Timing((1.0,)), amount=1, unit="", shape=()).core_s is None


def test_the_host_clock_counts_work_and_waiting_apart():
    timing = measure({"wait": lambda _: time.sleep(0.05)}, [0], repeats=1)["wait"]
    assert timing.median_s >= 0.05
    assert timing.cpu_s is not None
    assert timing.cpu_s < 0.04


@pytest.mark.parametrize(("variants", "inputs"), [(1, 2), (2, 4), (3, 6), (2, 7)])
def test_every_variant_sees_every_input_and_no_call_that_of_the_call_before(variants, inputs):
    calls: list[tuple[int, int]] = []
    measure(
        {str(v): lambda given, v=v: calls.append((v, given)) for v in range(variants)},
        range(inputs),
        repeats=inputs,
        warm_up=0,
    )
    assert Counter(calls) == {(v, i): 1 for v in range(variants) for i in range(inputs)}
    assert all(before != after for (_, before), (_, after) in pairwise(calls))


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="got 0, 1 and 3"):
        measure({}, [0], repeats=3)
    with pytest.raises(ValueError, match="got 1, 0 and 3"):
        measure({"a": print}, [], repeats=3)
    with pytest.raises(ValueError, match="at least one sample"):
        Timing(())


def test_median_and_percentiles_forgive_one_interrupted_call():
    timing = Timing((*(float(n) for n in range(1, 21)), 5000.0))
    assert timing.median_s == 11.0
    assert timing.p5_s == 2.0
    assert timing.p95_s == 20.0


def test_a_row_states_its_rate_at_the_median_and_its_share_of_the_ceiling():
    row = Row.of(
        "x", Timing((1.0, 2.0, 9.0)), amount=50, unit="frames/s", shape=(50, 4), ceiling=100.0
    )
    assert row.rate == 25.0
    assert row.share == 0.25
    assert row.repeats == 3
    assert row.to_json()["share"] == 0.25
    assert Row.of("x", Timing((1.0,)), amount=1, unit="", shape=()).share is None


def test_a_stage_states_its_rate_and_its_shares():
    stage = StageRow(
        name="encode", clips=2, frames=60, workers=3, busy_s=6.0, wall_s=10.0, ceiling=40.0
    )
    assert stage.frames_per_busy_s == 10.0
    assert stage.share_of_wall == pytest.approx(0.2)
    assert stage.share_of_ceiling == 0.25
    uncounted = StageRow(name="commit", clips=2, frames=0, workers=1, busy_s=1.0, wall_s=10.0)
    assert uncounted.frames_per_busy_s is None
    assert uncounted.share_of_ceiling is None


FACTS = Facts(
    date="2026-01-02",
    cpu="Fast CPU",
    cores=2.0,
    memory_gib=8.0,
    gpus=("Fast GPU",),
    driver="580.1",
    system="Linux x86_64",
    versions={"dfm-engine": "0.1.0", "torch": "2.11"},
    commit="abc",
    load=0.1,
)


def report() -> BenchReport:
    row = Row.of(
        "crop",
        Timing((0.010, 0.010)),
        amount=12.345,
        unit="frames/s",
        shape=(8, 4),
        ceiling=2469.0,
        ceiling_of="copy",
    )
    stage = StageRow(name="crop", clips=3, frames=30, workers=2, busy_s=1.5, wall_s=3.0)
    return BenchReport(
        verb="build",
        command="dfm-engine bench",
        device="cpu",
        facts=FACTS,
        rows=(row,),
        stages=(stage,),
        bottleneck="crop",
    )


def test_a_report_is_a_table_with_its_command_and_its_machine():
    assert report().markdown().split("\n\n") == [
        "| stage | clips | frames | busy | of the wall | frames/busy s | ceiling | reached |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| crop (x2) | 3 | 30 | 1.50 s | 25% | 20.0 | – | – |",
        "The bottleneck is `crop`.",
        "| what |  | input | rate | p5 – p95 of a call | ceiling | reached |\n"
        "| --- | --- | --- | ---: | ---: | --- | ---: |\n"
        "| crop |  | 8x4 uint8 | 1 234 frames/s | 10.0 ms – 10.0 ms | 2 469, copy | 50% |",
        "`dfm-engine bench`: 2026-01-02, 2 cores of Fast CPU, Fast GPU (driver 580.1), "
        "dfm-engine 0.1.0, torch 2.11, commit abc.\n",
    ]


def test_a_report_is_written_under_its_date_and_machine(tmp_path: Path):
    path = report().write(tmp_path / "results")
    assert path.name == "2026-01-02-build-cpu-2core.json"
    assert json.loads(path.read_text()) == report().to_json()
    assert path.with_suffix(".md").read_text() == report().markdown()


def test_facts_name_no_machine_user_or_folder(repo: Path):
    facts = read_facts()
    text = json.dumps(facts.to_json())
    assert str(repo) not in text
    assert str(Path.home()) not in text
    assert socket.gethostname() not in text
    assert facts.cores >= 1
    assert {"dfm-engine", "python", "torch", "av", "numpy"} <= set(facts.versions)


def test_the_clock_is_that_of_the_device():
    assert isinstance(clock_for("cpu"), HostClock)


def test_the_arithmetic_of_a_call_is_its_convolutions_and_matrix_products():
    images, kernels = torch.ones(2, 8, 20, 20), torch.ones(16, 8, 3, 3)

    def call() -> None:
        with torch.inference_mode():
            torch.nn.functional.conv2d(images, kernels, padding=1).relu().sum()
            torch.ones(10, 20) @ torch.ones(20, 30)

    convolution = 2 * (2 * 16 * 20 * 20) * (8 * 3 * 3)
    assert count_flops(call) == convolution + 2 * 10 * 20 * 30


def test_the_arithmetic_rate_is_that_of_the_product_measured():
    row = measure_matrix_product(torch.device("cpu"), repeats=1)
    assert row.shape == (1024, 1024)
    assert row.rate == pytest.approx(2 * 1024**3 / row.median_s / 1e9)


@pytest.mark.gpu
def test_events_time_the_device_and_not_the_host():
    cycles = [20_000_000, 20_000_000]  # about 10 ms
    timings = measure(
        {"one": torch.cuda._sleep, "four": lambda n: torch.cuda._sleep(4 * n)},
        cycles,
        repeats=5,
        clock=clock_for("cuda"),
    )
    assert timings["four"].median_s / timings["one"].median_s == pytest.approx(4, rel=0.1)
