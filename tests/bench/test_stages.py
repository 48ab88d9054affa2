"""A build taken apart: the arithmetic on given numbers, then a real one of two short clips."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dfm_bench import stages as module
from dfm_bench.ceilings import _reader_rows, stage_ceilings, stage_core_seconds
from dfm_bench.generators import EXACT, Way
from dfm_bench.measure import Row, StageRow, Timing
from dfm_bench.rendering import run_bench_render
from dfm_bench.report import BenchReport
from dfm_bench.stages import (
    Workload,
    bottleneck,
    cores_row,
    end_to_end,
    stage_rows,
    timed_build,
    workload_for,
)
from dfm_bench.throughput import run_bench_throughput
from dfm_bench.ways import animate_flops
from dfm_engine.actions import Action
from dfm_engine.allocator import keep_freed_memory
from dfm_engine.backends import TorchRunner
from dfm_engine.build import BuildOptions
from dfm_engine.clip import Box, DrivingClip
from dfm_engine.errors import CheckFailed
from dfm_engine.faces.framing import frame_clip
from dfm_engine.faces.mtcnn import Mtcnn
from dfm_engine.faces.pictures import ClipRange, PyavReader
from dfm_engine.fomm import initialise
from dfm_engine.machinery import Machinery
from dfm_engine.recipe import BuildRecipe, Faces, Screen

TINY = {
    "model_params": {
        "common_params": {"num_kp": 4, "num_channels": 3, "estimate_jacobian": True},
        "kp_detector_params": {
            **{"temperature": 0.1, "block_expansion": 8, "max_features": 32},
            **{"scale_factor": 0.25, "num_blocks": 2},
        },
        "generator_params": {
            **{"block_expansion": 8, "max_features": 32, "num_down_blocks": 1},
            **{"num_bottleneck_blocks": 1, "estimate_occlusion_map": True},
            "dense_motion_params": {
                **{"block_expansion": 8, "max_features": 32},
                **{"num_blocks": 2, "scale_factor": 0.25},
            },
        },
    },
    "dataset_params": {"frame_shape": [64, 64, 3]},
}
WORKLOAD = Workload(actions=(Action.NOD,), driving_frames=16, size=96, repeats=1)


@pytest.fixture(scope="module")
def machinery() -> Machinery:
    detector, recipe = Mtcnn.load("cpu"), WORKLOAD.recipe
    frame = functools.partial(
        frame_clip,
        detector=detector,
        size=64,
        limits=recipe.limits,
        faces=recipe.faces,
        clips=recipe.clips,
    )
    return Machinery(
        runner=TorchRunner(initialise(TINY, seed=0)),
        detector=detector,
        framer=lambda clip: frame(
            clip.path, sources=None if isinstance(clip, DrivingClip) else recipe.sources
        ),
        batch_size=4,
        threads=1,
        workers=1,
    )


@pytest.fixture(scope="module")
def measured(machinery, tmp_path_factory) -> tuple[Path, BenchReport]:
    out = tmp_path_factory.mktemp("bench")
    fomm = initialise(TINY, seed=0)
    runner = TorchRunner(copy.deepcopy(fomm))
    flops = animate_flops(runner)
    way = Way(name="torch fp32", runner=runner, gate=EXACT, flops=flops, batches=(1, 2))
    report = run_bench_throughput(
        WORKLOAD, machinery, fomm, [way], out=out, command="the command", progress=False
    )
    return out, report


def rate(name: str, frames_per_s: float, variant: str = "") -> Row:
    return Row.of(
        name, Timing((1.0,)), variant=variant, amount=frames_per_s, unit="frames/s", shape=()
    )


def test_a_stage_has_the_time_of_its_parts_as_ceiling():
    rows = [
        *(rate("decode", 100), rate("crop", 50), rate("look", 200)),
        *(rate("keypoints", 30), rate("generator", 4)),
        *(rate("detect", 20, "search"), rate("detect", 40, "framed")),
        *(rate("x264", 200, "raw"), rate("x264", 50, "c23"), rate("x264", 100, "c40")),
    ]
    recipe = BuildRecipe(faces=Faces(every_n=5), screen=Screen(every_n=2))
    assert stage_ceilings(rows, recipe) == pytest.approx(
        {
            "frame": 1 / (0.005 + 0.01 + 0.02 + 0.05 / 5),
            "decode": 1 / (0.01 + 0.02),
            "driving decode": 1 / (0.01 + 0.02),
            "driving keypoints": 30,
            "driving screen": 80,
            "animate": 4,
            "screen": 80,
            "encode": 1 / (0.005 + 0.02 + 0.01),
        }
    )


def test_what_another_reader_reads_is_measured_as_a_whole():
    rows = [
        *(rate("decode", 100), rate("crop", 50), rate("look", 200), rate("read", 1000)),
        *(rate("keypoints", 30), rate("generator", 4)),
        *(rate("detect", 20, "search"), rate("detect", 40, "framed")),
        *(rate("x264", 200, "raw"), rate("x264", 50, "c23"), rate("x264", 100, "c40")),
    ]
    found = stage_ceilings(rows, BuildRecipe(faces=Faces(every_n=5)))
    assert found["decode"] == found["driving decode"] == pytest.approx(1000)
    assert found["frame"] == pytest.approx(1 / (0.005 + 0.001 + 0.05 / 5))


def test_both_passes_of_another_reader_are_timed_over_the_frames_that_it_gives(measured):
    (clips,) = measured[0].glob("clips-*")
    path = next((clips / "real").rglob("*.mkv"))
    given: list[str] = []

    class Other:
        name = "other"

        def look(self, clip, **how):
            given.append("look")
            return PyavReader().look(clip, **how)

        def crop(self, clip, box, **how):
            given.append("read")
            assert PyavReader().crop(clip, box, **how).shape == (16, 64, 64, 3)

    material = SimpleNamespace(
        ranges=(ClipRange(path=path),),
        boxes=(Box(8.0, 8.0, 72.0, 72.0),),
        pictures=(np.zeros((31, 96, 96, 3), np.uint8),),
        fake=np.zeros((16, 64, 64, 3), np.uint8),
    )

    def timed(call, inputs):
        call(inputs[0])
        return Timing((0.5,))

    for reader, names in ((Other(), ["look", "read"]), (PyavReader(), ["look"])):
        bench = SimpleNamespace(reader=reader)
        rows = list(_reader_rows(material, bench, WORKLOAD.recipe, timed, "c"))  # pyright: ignore
        assert [(row.name, row.rate) for row in rows] == [(name, 32.0) for name in names]
    assert given == ["look", "read"]


TIMINGS = {
    "frame": {"clips": 4, "frames": 100, "workers": 1, "busy_s": 2.0},
    "animate": {"clips": 2, "frames": 60, "workers": 1, "busy_s": 5.0},
    "encode": {"clips": 4, "frames": 120, "workers": 3, "busy_s": 18.0},
}


def test_a_stage_is_what_the_build_counted_against_its_ceiling():
    rows = stage_rows(TIMINGS, 10.0, {"animate": 24.0})
    assert [row.name for row in rows] == ["frame", "animate", "encode"]
    assert rows[1].share_of_ceiling == 0.5
    assert rows[2].share_of_wall == pytest.approx(0.6)
    assert rows[0].ceiling is None


def test_the_bottleneck_is_the_stage_whose_workers_rest_least():
    rows = stage_rows(TIMINGS, 10.0, {})
    assert bottleneck(rows) == "encode"  # 18 s on three workers are 60 % of 10 s
    assert bottleneck(rows[:2]) == "animate"
    idle = stage_rows({"commit": {"clips": 1, "frames": 0, "workers": 1, "busy_s": 1.0}}, 10.0, {})
    assert bottleneck(idle) == "commit"


def test_the_whole_build_is_held_against_its_slowest_stage_alone(machinery):
    rows = stage_rows(TIMINGS, 10.0, {"frame": 100.0, "animate": 30.0, "encode": 10.0})
    whole = end_to_end(rows, [], machinery, 10.0)
    assert whole.rate == 6.0
    assert whole.ceiling == pytest.approx(60 / 4)  # encode: 120 frames / 10 / 3 workers = 4 s
    assert whole.ceiling_of == "encode alone"
    assert whole.share == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("generator", "pool", "ceiling", "of"),
    [(1000.0, 50.0, 25.0, "encode pool alone"), (20.0, 50.0, 20.0, "generator alone")],
)
def test_on_a_gpu_a_build_is_held_against_the_slower_of_generator_and_encode_pool(
    machinery, generator: float, pool: float, ceiling: float, of: str
):
    class OnGpu:
        device, frame_size = torch.device("cuda"), (64, 64)

    rows = stage_rows(TIMINGS, 10.0, {"frame": 1.0})  # which no longer counts
    parts = [
        rate("generator", generator),
        rate("encode pool", pool, "I420, 15 workers"),
        rate("encode pool", 0.9 * pool, "RGB, 15 workers"),  # a ceiling is the higher one
    ]
    gpu = dataclasses.replace(machinery, runner=OnGpu())
    whole = end_to_end(rows, parts, gpu, 10.0)
    assert whole.ceiling == pytest.approx(ceiling)  # two frames are encoded for each that is made
    assert whole.ceiling_of == of
    assert whole.share == pytest.approx(6.0 / ceiling)


def test_a_gpu_has_more_to_do_and_of_what_real_clips_are():
    full, quick = (workload_for("cuda", quick=q) for q in (False, True))
    assert len(full.clips.sources) == 102
    assert (full.recipe.plan.per_action, full.driving_frames) == (10, 80)
    assert (quick.recipe.plan.per_action * len(quick.actions), quick.driving_frames) == (30, 40)
    assert full.clips.codec == quick.clips.codec == "h264"
    small = workload_for("cpu", quick=True)
    assert (len(small.actions), small.driving_frames, small.clips.codec) == (3, 16, "ffv1")
    names = {workload_for(d, quick=q).name for d in ("cpu", "cuda") for q in (False, True)}
    assert len(names) == 4  # clips of one are not taken for another's


def test_a_build_is_held_against_the_work_of_its_stages_on_all_cores(machinery):
    def part(name: str, core_s: float, variant: str = "") -> Row:
        timing = Timing((1.0,), (core_s,))
        return Row.of(name, timing, variant=variant, amount=1, unit="frames/s", shape=())

    parts = [
        *(part("decode", 0.01), part("crop", 0.02), part("look", 0.01), part("keypoints", 0.03)),
        *(part("generator", 0.5), part("detect", 0.2, "search"), part("detect", 0.4, "framed")),
        *(part("x264", 0.02, "raw"), part("x264", 0.03, "c23"), part("x264", 0.05, "c40")),
    ]
    recipe = BuildRecipe(faces=Faces(every_n=5), screen=Screen(every_n=2))
    assert stage_core_seconds(parts, recipe)["frame"] == pytest.approx(2 * 0.01 + 0.02 + 0.2 / 5)
    rows = stage_rows(TIMINGS, 10.0, {})
    machinery = dataclasses.replace(machinery, threads=4)
    row = cores_row(rows, parts, recipe, machinery, 10.0)
    work_s = 100 * 0.08 + 60 * 0.5 + 120 * 0.1  # frame, animate, encode
    assert row.ceiling == pytest.approx(60 * 4 / work_s)
    assert row.share == pytest.approx(work_s / 4 / 10)


def test_a_build_is_counted_to_the_frame(measured):
    _, report = measured
    stages = {stage.name: stage for stage in report.stages}
    assert stages["animate"].clips == 1
    assert stages["animate"].frames == 16
    assert stages["encode"].clips == 2  # the fake and its real twin
    assert stages["encode"].frames == 32
    assert stages["frame"].clips == 4
    assert stages["frame"].frames == 64  # all are cut to the recipe's 16
    assert report.rows[0].rate == pytest.approx(16 / stages["animate"].wall_s)
    assert all(0 <= stage.share_of_wall <= 1 for stage in report.stages)
    assert [figure.title for figure in report.figures] == [
        "Generator: rate by batch size",
        "Build: when each stage worked",
    ]
    assert "animate: " in report.figures[1].svg
    assert report.bottleneck in stages
    reached = f"{report.rows[0].share:.0%} of {report.rows[0].ceiling_of}"
    assert reached in report.remark


def test_every_part_is_measured_and_every_stage_of_frames_has_a_ceiling(measured):
    _, report = measured
    assert [(row.name, row.variant) for row in report.rows] == [
        *(("build", "end to end"), ("build", "end to end, 1 cores")),
        *(
            ("generator", "reference loop"),
            ("generator", "torch fp32"),
            ("generator", "torch fp32"),
        ),
        *([("generator", "reference loop, freed memory kept")] if keep_freed_memory() else []),
        *(("decode", ""), ("crop", ""), ("look", "")),
        *(("detect", "search"), ("detect", "framed")),
        *(("matrix product", ""), ("keypoints", ""), ("generator", "")),
        *(("x264", "raw"), ("x264", "c23"), ("x264", "c40")),
        *(("encode pool", "I420, 1 worker"), ("encode pool", "RGB, 1 worker")),
        *(("stage alone", stage) for stage in ("probe", "frame", "driving screen")),
        *(("stage alone", stage) for stage in ("source features", "source screen")),
        *(("stage alone", stage) for stage in ("screen", "encode")),
    ]
    assert all(row.rate > 0 and row.command == "the command" for row in report.rows)
    shapes = {(row.name, row.variant): row.shape for row in report.rows}
    assert [row.shape[0] for row in report.rows[2:5]] == [1, 1, 2]
    assert shapes["decode", ""] == (31, 96, 96, 3)
    assert shapes["generator", ""] == (4, 3, 64, 64)
    assert shapes["x264", "c23"] == (16, 64, 64, 3)
    without = {stage.name for stage in report.stages if stage.ceiling is None}
    assert without == {"probe", "source features", "source screen", "commit", "report"}
    # What a build has to find room for: every stage that makes frames.
    alone = stage_core_seconds(report.rows, WORKLOAD.recipe)
    assert {stage.name for stage in report.stages} - set(alone) == {"commit", "report"}


def test_a_stage_measured_whole_goes_before_its_parts():
    def alone(name: str, core_s: float, variant: str = "") -> Row:
        timing = Timing((1.0,), (core_s,))
        return Row.of(name, timing, variant=variant, amount=10, unit="frames/s", shape=())

    parts = [alone(name, 1.0) for name in ("decode", "crop", "look", "keypoints", "generator")]
    parts += [alone("detect", 1.0, variant) for variant in ("search", "framed")]
    parts += [alone("x264", 1.0, quality) for quality in ("raw", "c23", "c40")]
    recipe = BuildRecipe(screen=Screen(every_n=2))
    found = stage_core_seconds([*parts, alone("stage alone", 7.0, "screen")], recipe)
    assert found["screen"] == pytest.approx(0.7)
    assert found["driving screen"] == pytest.approx(0.05)  # of its parts: half the frames detected


def test_the_report_says_how_full_the_queues_were(measured):
    _, report = measured
    assert set(report.queues) == {"encode", "opened", "animated", "screened"}
    for fill in report.queues.values():
        assert 0 <= fill["mean"] <= fill["peak"] <= fill["room"]
    assert report.to_json()["queues"] == report.queues
    assert "| queue | room | waiting, mean | peak |" in report.markdown()


def test_the_generator_is_held_against_its_arithmetic(measured):
    _, report = measured
    rows = {(row.name, row.variant): row for row in report.rows}
    part = rows["generator", ""]
    flop_per_frame = rows["matrix product", ""].rate * 1e9 / part.ceiling
    head = 2 * 64 * 64 * 7 * 7 * 8 * 3  # its last layer, 7x7 from 8 features to 3 colours
    assert head < flop_per_frame < 30 * head


def test_the_report_is_written_and_holds_no_folder(measured):
    out, report = measured
    (written,) = out.glob("*.json")
    assert written.name == f"{report.name}.json"
    text = written.read_text()
    assert json.loads(text) == report.to_json()
    assert str(out) not in text


def test_the_set_is_removed_and_the_clips_are_kept(measured):
    out, _ = measured
    assert len(list(out.rglob("*.mkv"))) == 4
    assert not list(out.rglob("*.mp4"))


@pytest.fixture
def options(measured, tmp_path) -> BuildOptions:
    (clips,) = measured[0].glob("clips-*")
    return BuildOptions(
        recipe=WORKLOAD.recipe,
        real=clips / "real",
        driving=clips / "driving",
        out=tmp_path / "set",
    )


def test_a_build_that_is_not_right_has_no_numbers(options, machinery, monkeypatch):
    def damage_and_verify(out: Path, verify=module.verify_dataset):
        next(out.rglob("*.c23.mp4")).unlink()
        return verify(out)

    monkeypatch.setattr(module, "verify_dataset", damage_and_verify)
    with pytest.raises(CheckFailed, match=r"1 failures in 6 files:\n  .*\.c23\.mp4"):
        timed_build(options, machinery, progress=False)


def test_a_build_that_fell_short_has_no_numbers(options, machinery):
    recipe = options.recipe
    more = dataclasses.replace(recipe, plan=dataclasses.replace(recipe.plan, per_action=9))
    with pytest.raises(CheckFailed, match=r"no numbers: .*missing: nod 6"):
        timed_build(dataclasses.replace(options, recipe=more), machinery, progress=False)


def test_a_workload_has_a_source_for_every_fake():
    workload = Workload(actions=(Action.NOD, Action.SMILE), per_action=3)
    assert len(workload.clips.sources) == 8
    assert workload.recipe.plan.fakes_per_source == 1
    assert not set(workload.clips.sources) & set(workload.clips.drivers)


def test_rendering_counts_every_face_of_every_size(tmp_path):
    report = run_bench_render(out=tmp_path, people=1, sizes=(32, 48), repeats=1, command="c")
    assert [row.shape for row in report.rows] == [(10, 32, 32, 3), (10, 48, 48, 3)]
    assert all(row.rate == pytest.approx(10 / row.median_s) for row in report.rows)
    assert json.loads((tmp_path / f"{report.name}.json").read_text()) == report.to_json()


def test_a_stage_row_of_nothing_has_no_rate():
    row = StageRow(name="x", clips=0, frames=0, workers=1, busy_s=0.0, wall_s=1.0)
    assert row.frames_per_busy_s is None
