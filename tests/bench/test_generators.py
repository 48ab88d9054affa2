"""No way of generating has a number unless it agrees with the per-frame loop."""

from __future__ import annotations

import copy

import pytest
import torch

from dfm_bench.generators import EXACT, REDUCED, Gate, Subject, Way, check_ways, generator_rows
from dfm_bench.measure import StageRow
from dfm_bench.outlook import PaperSet, outlook
from dfm_bench.reference_loop import ReferenceLoop
from dfm_bench.roofline import count_flops
from dfm_bench.ways import animate_flops
from dfm_engine.backends import TorchRunner
from dfm_engine.errors import CheckFailed
from dfm_engine.fomm import initialise
from dfm_engine.fomm.model import Fomm

CONFIG = {
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


@pytest.fixture(scope="module")
def fomm() -> Fomm:
    return initialise(CONFIG, seed=3)


@pytest.fixture(scope="module")
def subject(fomm: Fomm) -> Subject:
    return Subject(fomm, device=torch.device("cpu"))


def way(fomm: Fomm, **changes: object) -> Way:
    runner = TorchRunner(copy.deepcopy(fomm))
    given = {"name": "torch", "runner": runner, "gate": EXACT, "flops": 1e6, "batches": (2,)}
    return Way(**{**given, **changes})


def test_the_runner_of_a_build_agrees_with_the_loop(fomm, subject):
    said = check_ways(subject, [way(fomm)])
    assert said["torch"].endswith("dB in the worst frame")


def test_another_sampling_convention_is_found(subject):
    wrong = initialise(CONFIG, seed=3, align_corners=False)
    with pytest.raises(CheckFailed, match=r"no numbers for torch: .* the gate exact wants 0\.0002"):
        check_ways(subject, [way(wrong)])


def test_a_gate_refuses_what_is_no_number():
    wanted = torch.full((2, 3, 4, 4), 0.5)
    found = wanted.clone()
    found[1, 0, 0, 0] = torch.nan
    for gate in (EXACT, REDUCED):
        with pytest.raises(CheckFailed):
            gate.check("x", found, wanted)


def test_the_worst_frame_counts_and_not_the_mean():
    wanted = torch.zeros(2, 3, 10, 10)
    found = wanted.clone()
    found[0] += 10 ** (-40 / 20)  # 40 dB in one of two frames
    with pytest.raises(CheckFailed, match=r"40\.0 dB in the worst frame"):
        REDUCED.check("x", found, wanted)
    Gate(name="looser", min_psnr_db=39.9).check("x", found, wanted)


def test_the_loop_does_all_of_its_work_for_every_frame(fomm, subject):
    image = subject.driving[:1]
    loop = count_flops(lambda: subject.loop(image))
    runner = TorchRunner(copy.deepcopy(fomm))
    parts = count_flops(lambda: (runner.keypoints(image), runner.source(image)))
    assert loop == parts + animate_flops(runner)


def test_the_loop_keeps_its_own_model(fomm, subject):
    changed = copy.deepcopy(fomm)
    loop = ReferenceLoop(changed, subject.source, subject.driving[:1])
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    assert torch.equal(loop(subject.driving[3:4]), subject.wanted[:1])


def test_rows_count_frames_and_not_calls(fomm, subject):
    rows = generator_rows(subject, [way(fomm)], gflops={"float32": 1.0}, repeats=1)
    assert [(row.variant, row.shape[0]) for row in rows] == [("reference loop", 1), ("torch", 2)]
    assert rows[1].rate == pytest.approx(2 / rows[1].median_s)
    assert rows[1].ceiling == pytest.approx(1000)  # 1 GFLOP/s over 1 MFLOP a frame


def stage(name: str, frames: int, busy_s: float, workers: int = 1) -> StageRow:
    return StageRow(name=name, clips=1, frames=frames, workers=workers, busy_s=busy_s, wall_s=100.0)


def test_the_paper_is_scaled_by_what_each_stage_works_on():
    stages = [
        stage("driving keypoints", 50, 5.0),
        stage("animate", 100, 80.0),
        stage("encode", 200, 40.0, workers=2),
        stage("commit", 0, 1.0),
    ]
    found = outlook(stages, paper=PaperSet(fakes=6, driving_clips=3, frames_per_clip=100))
    by_name = {part.name: part for part in found.stages}
    assert by_name["driving keypoints"].frames == 300  # once per driving clip
    assert by_name["driving keypoints"].minutes == pytest.approx(300 / 10 / 60)
    assert by_name["animate"].minutes == pytest.approx(600 * 0.8 / 60)
    assert by_name["encode"].minutes == pytest.approx(1200 / 5 / 2 / 60)
    assert "commit" not in by_name
    assert found.limit.name == "animate"
    assert found.minutes == pytest.approx(100 * 6 / 60)


def test_nothing_animated_is_nothing_to_scale():
    with pytest.raises(ValueError, match="animated no frame"):
        outlook([stage("decode", 10, 1.0)])
