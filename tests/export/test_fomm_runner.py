"""FOMM and detectors over graphs, held against the runners of torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dfmtest_fomm import make_fomm, pictures, small_config

from dfm_engine.animate import AnimationJob, animate_jobs, prepare_driving, prepare_source
from dfm_engine.backends import TorchRunner
from dfm_engine.detect.models import create_detector
from dfm_engine.detect.runner import TorchDetectorRunner
from dfm_engine.errors import ShapeError, UsageError
from dfm_engine.fomm.values import Keypoints, SourceFeatures
from dfm_engine.pixels import frames_from_images
from dfm_export.detector_runner import DetectorGraphRunner
from dfm_export.fomm_runner import FommGraphsRunner
from dfm_export.graphs import detector_graph, fomm_graphs
from dfm_export.models import Opening, open_fomm_runner
from dfm_export.precision import plan_of
from dfm_export.runners import TorchGraph
from dfm_export.specs import GraphSpec

TOLERANCE = 5e-5  # folded norms and transposed convolutions round otherwise
CONFIG = small_config(num_kp=5)


def open_graphs(*, split: bool = False, config: dict = CONFIG, most: int = 64) -> FommGraphsRunner:
    graphs = fomm_graphs(make_fomm(config, seed=3), plan_of("fomm", "fp32"), split=split)
    runners = {
        name: TorchGraph(graph, graph.spec, max_batch=most) for name, graph in graphs.items()
    }
    return FommGraphsRunner(runners, weights_sha256="ab" * 32)


@pytest.fixture(scope="module")
def torch_runner() -> TorchRunner:
    return TorchRunner(make_fomm(CONFIG, seed=3))


def images(count: int, seed: int = 0) -> torch.Tensor:
    return pictures(count, (64, 64), seed=seed).float()


@pytest.mark.parametrize("split", [False, True])
def test_graphs_and_torch_agree_row_by_row(torch_runner: TorchRunner, split: bool) -> None:
    runner = open_graphs(split=split)
    assert runner.frame_size == torch_runner.frame_size
    assert runner.name == "torch-cpu-fp32" + "-split" * split
    sources, driving = images(2), images(6, seed=1)
    features, wanted_features = runner.source(sources), torch_runner.source(sources)
    kp, wanted_kp = runner.keypoints(driving), torch_runner.keypoints(driving)
    for mine, theirs in [(features, wanted_features), (kp, wanted_kp)]:
        for found, wanted in zip(mine._tensors(), theirs._tensors(), strict=True):
            torch.testing.assert_close(found, wanted.contiguous(), rtol=0, atol=TOLERANCE)
    kp_source = torch_runner.keypoints(sources)
    six = [0, 1, 0, 0, 1, 1]
    for rows in ([0], [1], six):
        given = (wanted_features[rows], kp_source[rows], wanted_kp)
        found, wanted = runner.animate(*given), torch_runner.animate(*given)
        assert found.shape == (6, 3, 64, 64)
        torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)


def test_one_source_serves_rows_of_several_keypoints(torch_runner: TorchRunner) -> None:
    runner = open_graphs()
    features, kp = torch_runner.source(images(1)), torch_runner.keypoints(images(3, seed=5))
    for kp_source in (kp[0], kp):  # one of the two may have a row for each
        found = runner.animate(features, kp_source, kp)
        wanted = torch_runner.animate(features, kp_source, kp)
        torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)


def test_one_source_reaches_the_graph_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = open_graphs()
    seen = []
    graph = runner.graphs["animate"]
    run = graph.run
    monkeypatch.setattr(graph, "run", lambda feeds: (seen.append(feeds), run(feeds))[1])
    features, kp = runner.source(images(1)), runner.keypoints(images(4))
    runner.animate(features, kp[0], kp)
    (feeds,) = seen
    assert len(feeds["encoded"]) == 1
    assert feeds["encoded"].data_ptr() == features.encoded.data_ptr()


def test_clips_of_many_jobs_come_out_as_with_torch(torch_runner: TorchRunner) -> None:
    runner = open_graphs()
    made = []
    for one in (runner, torch_runner):
        jobs = []
        for key, length in enumerate((3, 1, 5)):
            frames = frames_from_images(images(length + 1, seed=key)).numpy()
            features, kp_source = prepare_source(frames[0], runner=one)
            kp_driving = prepare_driving(frames[1:], runner=one, batch_size=4)
            jobs.append(
                AnimationJob(key=key, source=features, kp_source=kp_source, kp_driving=kp_driving)
            )
        made.append([made.frames for made in animate_jobs(jobs, runner=one, batch_size=4)])
    for mine, theirs in zip(*made, strict=True):
        assert abs(mine.astype(int) - theirs).max() <= 1


def test_rows_taken_one_by_one_do_not_depend_on_their_neighbours() -> None:
    runner = open_graphs(most=1)
    sources, driving = images(3), images(3, seed=4)
    turned = [2, 0, 1]
    features, kp = runner.source(sources), runner.keypoints(driving)
    frames = runner.animate(features, kp, kp)
    again = runner.animate(features[turned], kp[turned], kp[turned])
    assert torch.equal(frames[turned], again)
    assert torch.equal(runner.animate(features[1], kp[1], kp[1])[0], frames[1])
    assert torch.equal(runner.keypoints(driving[turned]).value, kp.value[turned])


def test_a_model_without_jacobians_or_occlusion_runs(torch_runner: TorchRunner) -> None:
    config = small_config(estimate_jacobian=False, gen={"estimate_occlusion_map": False})
    theirs = TorchRunner(make_fomm(config, seed=3))
    features, kp = theirs.source(images(1)), theirs.keypoints(images(2))
    assert kp.jacobian is None
    for split in (False, True):
        mine = open_graphs(config=config, split=split)
        assert mine.keypoints(images(2)).jacobian is None
        found, wanted = mine.animate(features, kp[0], kp), theirs.animate(features, kp[0], kp)
        torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)


def test_rows_that_do_not_fit_are_refused() -> None:
    runner = open_graphs()
    features, kp = runner.source(images(2)), runner.keypoints(images(3))
    with pytest.raises(ShapeError, match="2 rows and cannot serve 3"):
        runner.animate(features, kp[:2], kp)
    wrong = SourceFeatures(features.encoded.half(), features.small)
    with pytest.raises(ShapeError, match="'encoded' must be float32"):
        runner.animate(wrong[0], kp[0], kp)
    with pytest.raises(ShapeError, match=r"missing .*source_jacobian"):
        runner.animate(features[0], Keypoints(kp.value[:1]), kp)


def test_graphs_that_are_no_fomm_are_refused() -> None:
    graphs = open_graphs().graphs
    with pytest.raises(ShapeError, match="a FOMM has the graphs"):
        FommGraphsRunner({"keypoints": graphs["keypoints"]}, weights_sha256="")


def test_closing_closes_every_graph() -> None:
    runner = open_graphs()
    runner.warmup([2])
    runner.close()
    with pytest.raises(Exception, match="is closed"):
        runner.keypoints(images(1))


@pytest.fixture(scope="module")
def detector_runners() -> tuple[DetectorGraphRunner, TorchDetectorRunner]:
    made = [create_detector("mesoinception4", weights="none", seed=2).eval() for _ in range(2)]
    graph = detector_graph(made[0], plan_of("detector", "fp32"))
    runner = TorchGraph(graph, graph.spec, max_batch=4)
    return (
        DetectorGraphRunner(runner, made[1].spec, weights_sha256="cd" * 32),
        TorchDetectorRunner(made[1], max_batch=4),
    )


@pytest.mark.parametrize("side", [64, 256, 300])
def test_a_detector_says_the_same_of_frames_of_any_size(
    detector_runners: tuple[DetectorGraphRunner, TorchDetectorRunner], side: int
) -> None:
    mine, theirs = detector_runners
    generator = torch.Generator().manual_seed(side)
    frames = torch.randint(0, 256, (3, side, side, 3), generator=generator, dtype=torch.uint8)
    found, wanted = mine.run(frames), theirs.run(frames)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.cam, wanted.cam, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.fake, wanted.fake, rtol=0, atol=1e-5)
    assert (mine.spec, mine.max_batch) == (theirs.spec, theirs.max_batch)


def test_a_detector_refuses_more_frames_than_it_says(
    detector_runners: tuple[DetectorGraphRunner, TorchDetectorRunner],
) -> None:
    for count in (0, 5):
        frames = torch.zeros(count, 8, 8, 3, dtype=torch.uint8)
        with pytest.raises(ShapeError, match=f"1 to 4 frames, got {count}"):
            detector_runners[0].run(frames)


def test_a_graph_without_a_map_is_refused(
    detector_runners: tuple[DetectorGraphRunner, TorchDetectorRunner],
) -> None:
    graph = detector_runners[0].graph
    bare = TorchGraph(
        torch.nn.Identity(), GraphSpec("detector", graph.spec.inputs, graph.spec.outputs[:1])
    )
    with pytest.raises(UsageError, match=r"no class activation map.*--backend torch"):
        DetectorGraphRunner(bare, detector_runners[0].spec, weights_sha256="")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_rows_dealt_out_to_threads_are_those_computed_by_one(exports: Any, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    artifact = exports("small")
    found = []
    for threads in (1, 3):
        runner = open_fomm_runner(artifact, Opening(backend=backend, threads=threads))
        features, kp = runner.source(images(2)), runner.keypoints(images(7, seed=1))
        rows = [0, 1, 1, 0, 1, 0, 0]
        frames = runner.animate(features[rows], kp, kp)
        found.append((features.encoded, kp.value, frames))
        for row in (0, 6):
            alone = runner.animate(features[rows[row]], kp[row], kp[row])
            assert torch.equal(alone[0], frames[row])
        runner.close()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    theirs = TorchRunner(make_fomm(CONFIG, seed=3)).animate(features[rows], kp, kp)
    torch.testing.assert_close(found[1][2], theirs, rtol=0, atol=TOLERANCE)
