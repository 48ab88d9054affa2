from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from dfmtest_fomm import make_fomm, pictures, small_config

from dfm_engine.animate import (
    IN_FLIGHT,
    AnimationJob,
    animate_jobs,
    prepare_driving,
    prepare_source,
)
from dfm_engine.backends import Runner, TorchRunner, plan_batch_size
from dfm_engine.errors import EnvironmentUnfit, ShapeError
from dfm_engine.fomm import Keypoints, SourceFeatures, parse_config
from dfm_engine.media.encode import rgb_to_i420
from dfm_engine.pixels import frames_from_images, images_from_frames

BATCH = 4


@pytest.fixture
def runner(device: str) -> TorchRunner:
    return TorchRunner(make_fomm(small_config(num_kp=6), seed=2), device)


def frames(count: int, seed: int) -> np.ndarray:
    return frames_from_images(pictures(count, (64, 64), seed=seed)).numpy()


def make_job(runner: Runner, key: int, length: int) -> AnimationJob:
    source, kp_source = prepare_source(frames(1, key)[0], runner=runner)
    kp_driving = prepare_driving(frames(length, 100 + key), runner=runner, batch_size=BATCH)
    return AnimationJob(key=key, source=source, kp_source=kp_source, kp_driving=kp_driving)


def test_frames_equal_the_model_row_by_row(runner: TorchRunner) -> None:
    jobs = [make_job(runner, key, length) for key, length in enumerate((3, 1, 9, 4))]
    results = list(animate_jobs(jobs, runner=runner, batch_size=BATCH))
    assert [made.job for made in results] == jobs
    for job, pixels, _ in results:
        assert pixels.shape == (len(job.kp_driving), 64, 64, 3)
        assert pixels.dtype == np.uint8
        for t in range(len(pixels)):
            single = runner.animate(job.source, job.kp_source, job.kp_driving[t])
            wanted = frames_from_images(single)[0].cpu().numpy()
            # another batch size may round 255 p to the neighbour, never further
            assert np.abs(pixels[t].astype(int) - wanted).max() <= 1
    assert np.abs(results[2][1][0].astype(int) - results[2][1][1]).max() > 3


@pytest.mark.parametrize("threads", [1, 3])
def test_a_rows_pixels_do_not_depend_on_its_neighbours(runner: TorchRunner, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        jobs = {key: make_job(runner, key, 2 + key) for key in range(3)}
        seen: dict[int, set[bytes]] = {key: set() for key in jobs}
        for order in ([0, 1, 2], [2, 1, 0], [1]):
            chosen = [jobs[key] for key in order]
            for job, pixels, _ in animate_jobs(chosen, runner=runner, batch_size=BATCH):
                seen[int(str(job.key))].add(pixels.tobytes())
        assert {key: len(versions) for key, versions in seen.items()} == dict.fromkeys(jobs, 1)
    finally:
        torch.set_num_threads(before)


def test_frames_are_the_same_however_many_cores_have_rows() -> None:
    found = []
    for threads in (1, 3):
        runner = TorchRunner(make_fomm(small_config(num_kp=6), seed=2), threads=threads)
        assert runner.calls_at_once == (1 if threads == 1 else 2)
        jobs = [make_job(runner, key, length) for key, length in enumerate((3, 1, 9, 4))]
        made = animate_jobs(jobs, runner=runner, batch_size=BATCH)
        found.append([(job.key, pixels.tobytes()) for job, pixels, _ in made])
    assert found[0] == found[1]


def test_on_a_cpu_features_are_shared_and_maps_lie_channels_last() -> None:
    runner = TorchRunner(make_fomm(small_config(num_kp=6), seed=2), threads=1)
    plain, shared, lain = runner.animate, list[bool](), list[bool]()

    def animate(features: SourceFeatures, *others: Any) -> torch.Tensor:
        shared.append(features.encoded.stride(0) == 0)
        return plain(features, *others)

    def look(_: Any, given: tuple[torch.Tensor]) -> None:
        lain.append(given[0].is_contiguous(memory_format=torch.channels_last))

    runner.animate = animate  # pyright: ignore[reportAttributeAccessIssue]
    runner.fomm.generator.bottleneck.register_forward_pre_hook(look)
    jobs = [make_job(runner, key, BATCH + 1) for key in range(2)]
    assert len(list(animate_jobs(jobs, runner=runner, batch_size=BATCH))) == 2
    assert shared == [True, False, False]  # all of one source; of two; padded
    assert lain == [True] * 3 * BATCH


def test_two_batches_are_under_way_at_once_and_none_after_an_error() -> None:
    runner = TorchRunner(make_fomm(small_config(num_kp=6), seed=2), threads=2)
    jobs = [make_job(runner, key, BATCH) for key in range(3)]
    plain, together, lock = runner.animate, threading.Barrier(2, timeout=60), threading.Lock()
    calls: list[int] = []

    def animate(*batch: Any) -> torch.Tensor:
        with lock:
            calls.append(len(calls))
            number = calls[-1]
        if number == 2:
            raise ValueError("the third batch")
        together.wait()  # for the other: breaks unless both are computed at once
        return plain(*batch)

    runner.animate = animate  # pyright: ignore[reportAttributeAccessIssue]
    made = animate_jobs(jobs, runner=runner, batch_size=BATCH)
    assert [next(made).job, next(made).job] == jobs[:2]
    with pytest.raises(ValueError, match="the third batch"):
        next(made)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batch")]


def test_predictions_and_keypoints_are_bit_equal_at_every_place_in_the_batch(
    runner: TorchRunner,
) -> None:
    job = make_job(runner, 0, 1)
    images = images_from_frames(frames(1, 7), device=runner.device)
    others = make_job(runner, 1, BATCH)
    noise = images_from_frames(frames(BATCH, 8), device=runner.device)
    predictions, points = [], []
    for place in range(BATCH):
        rows = [i != place for i in range(BATCH)]
        batch = torch.stack([noise[i] if other else images[0] for i, other in enumerate(rows)])
        points.append(runner.keypoints(batch)[place])
        features = SourceFeatures.cat([(others if o else job).source for o in rows])
        kp_source = Keypoints.cat([(others if o else job).kp_source for o in rows])
        driving = Keypoints.cat(
            [others.kp_driving[i] if o else job.kp_driving for i, o in enumerate(rows)]
        )
        predictions.append(runner.animate(features, kp_source, driving)[place])
    assert all(torch.equal(p, predictions[0]) for p in predictions)
    for kp in points:
        assert torch.equal(kp.value, points[0].value)
        assert kp.jacobian is not None
        assert points[0].jacobian is not None
        assert torch.equal(kp.jacobian, points[0].jacobian)


class Counting:
    """A runner that writes down its batches; a prediction is its row's first keypoint."""

    name = "counting"
    device = torch.device("cpu")
    frame_size = (2, 3)
    weights_sha256 = ""
    calls_at_once = 1

    def __init__(self) -> None:
        self.batches: list[list[float]] = []

    def keypoints(self, images: torch.Tensor) -> Keypoints:
        self.batches.append(images[:, 0, 0, 0].mul(255).round().tolist())
        return Keypoints(images[:, 0, :1, :2])

    def source(self, images: torch.Tensor) -> SourceFeatures:
        return SourceFeatures(images, images)

    def animate(
        self, features: SourceFeatures, kp_source: Keypoints, kp_driving: Keypoints
    ) -> torch.Tensor:
        shade = features.encoded[:, 0, 0, 0] + kp_source.value[:, 0, 0] + kp_driving.value[:, 0, 0]
        self.batches.append(shade.round().tolist())
        return (shade / 255)[:, None, None, None].expand(-1, 3, 2, 3)


def counting_job(key: int, length: int) -> AnimationJob:
    point = torch.arange(length, dtype=torch.float32)[:, None, None].expand(-1, 1, 2)
    plane = torch.full((1, 3, 2, 3), 10.0 * key)
    return AnimationJob(
        key=key,
        source=SourceFeatures(plane, plane),
        kp_source=Keypoints(torch.full((1, 1, 2), 100.0)),
        kp_driving=Keypoints(point),
    )


def test_batches_are_full_cross_clips_and_the_last_is_padded() -> None:
    runner = Counting()
    jobs = [counting_job(key, length) for key, length in enumerate((2, 1, 6))]
    results = list(animate_jobs(jobs, runner=runner, batch_size=4))
    assert runner.batches == [[100, 101, 110, 120], [121, 122, 123, 124], [125] * 4]
    for key, (job, pixels, _) in enumerate(results):
        assert job.key == key
        shades = [100 + 10 * key + t for t in range(len(job.kp_driving))]
        assert pixels[:, 0, 0, 0].tolist() == shades
        assert (pixels == pixels[:, :1, :1, :1]).all()


def test_jobs_are_asked_for_one_batch_ahead_at_most() -> None:
    asked = []

    def jobs() -> Iterator[AnimationJob]:
        for key in range(20):
            asked.append(key)
            yield counting_job(key, 3)

    stream = animate_jobs(jobs(), runner=Counting(), batch_size=4)
    for given in range(20):
        job = next(stream).job
        assert job.key == given
        assert len(asked) - given <= 2  # the one given and the one that shares its batch
    assert list(stream) == []


class Cramped(Counting):
    """Has memory for so many rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def animate(
        self, features: SourceFeatures, kp_source: Keypoints, kp_driving: Keypoints
    ) -> torch.Tensor:
        if len(kp_driving) > self.rows:
            raise torch.OutOfMemoryError("tried to allocate")
        return super().animate(features, kp_source, kp_driving)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_short_memory_halves_batches_that_threads_compute(threads: int) -> None:
    class CrampedTorch(TorchRunner):
        def animate(self, features: Any, kp_source: Any, kp_driving: Any) -> torch.Tensor:
            if len(kp_driving) > 2:
                raise torch.OutOfMemoryError("tried to allocate")
            return super().animate(features, kp_source, kp_driving)

    fomm = make_fomm(small_config(num_kp=6), seed=2)
    plain, cramped = TorchRunner(fomm, threads=threads), CrampedTorch(fomm, threads=threads)
    jobs = [make_job(plain, key, length) for key, length in enumerate((5, 9, 2))]
    halved: list[int] = []
    found = animate_jobs(jobs, runner=cramped, batch_size=8, on_halved=halved.append)
    wanted = animate_jobs(jobs, runner=plain, batch_size=8)
    pairs = list(zip(found, wanted, strict=True))
    assert [one.job for one, _ in pairs] == jobs
    assert all(np.array_equal(one.frames, other.frames) for one, other in pairs)
    assert halved == [4, 2]


@pytest.mark.parametrize("in_flight", [0, 1, 2])
def test_batches_on_their_way_are_neither_lost_nor_mixed_up(
    monkeypatch: pytest.MonkeyPatch, in_flight: int
) -> None:
    monkeypatch.setitem(IN_FLIGHT, "cpu", in_flight)
    jobs = [counting_job(key, length) for key, length in enumerate((5, 9, 2, 1, 8))]
    for runner, told in ((Counting(), []), (Cramped(3), [4, 2])):
        halved: list[int] = []
        results = list(animate_jobs(jobs, runner=runner, batch_size=8, on_halved=halved.append))
        assert halved == told
        assert [made.job.key for made in results] == [0, 1, 2, 3, 4]
        for key, (_, pixels, _) in enumerate(results):
            assert pixels[:, 0, 0, 0].tolist() == [100 + 10 * key + t for t in range(len(pixels))]


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost() -> None:
    told: list[int] = []
    jobs = [counting_job(key, length) for key, length in enumerate((5, 9, 2))]
    runner = Cramped(3)
    results = list(animate_jobs(jobs, runner=runner, batch_size=8, on_halved=told.append))
    assert told == [4, 2]
    assert {len(batch) for batch in runner.batches} == {2}
    for key, (job, pixels, _) in enumerate(results):
        assert job.key == key
        assert pixels[:, 0, 0, 0].tolist() == [100 + 10 * key + t for t in range(len(pixels))]


def test_too_little_memory_for_one_row_ends_the_run_with_advice() -> None:
    with pytest.raises(EnvironmentUnfit, match=r"one row on cpu: out of memory .*--device cpu"):
        list(animate_jobs([counting_job(0, 3)], runner=Cramped(0), batch_size=4))


def test_no_jobs_give_nothing_and_empty_ones_are_refused() -> None:
    assert list(animate_jobs([], runner=Counting(), batch_size=4)) == []
    with pytest.raises(ShapeError, match="job 0 needs one source row and at least one driving"):
        counting_job(0, 0)
    with pytest.raises(ShapeError, match="at least 1, got 0"):
        list(animate_jobs([], runner=Counting(), batch_size=0))
    with pytest.raises(ShapeError, match="at least one frame"):
        prepare_driving(np.zeros((0, 2, 3, 3), np.uint8), runner=Counting(), batch_size=4)


def test_driving_keypoints_come_in_padded_batches_of_one_size() -> None:
    runner = Counting()
    clip = np.zeros((5, 2, 3, 3), np.uint8) + np.arange(5, dtype=np.uint8)[:, None, None, None]
    points = prepare_driving(clip, runner=runner, batch_size=3)
    assert runner.batches == [[0, 1, 2], [3, 4, 4]]
    assert len(points) == 5
    assert points.value[:, 0, 0].mul(255).round().tolist() == [0, 1, 2, 3, 4]


def test_torch_runner_says_what_it_is(device: str) -> None:
    model = make_fomm(small_config())
    model.weights_sha256 = "abc"
    runner: Runner = TorchRunner(model, device)
    assert runner.name == f"torch-{device}-float32"
    assert runner.frame_size == (64, 64)
    assert runner.weights_sha256 == "abc"
    assert not runner.keypoints(torch.zeros(1, 3, 64, 64, device=device)).value.requires_grad


@pytest.mark.gpu
def test_cuda_equals_the_cpu_within_float32_noise() -> None:
    # measured 1.1e-5 on an H100; TF32 keeps 10 bits and is off by 3.5e-3 in the keypoints
    results = []
    for device in ("cpu", "cuda"):
        runner = TorchRunner(make_fomm(small_config(num_kp=6), seed=2), device)
        job = make_job(runner, 0, 2)
        results.append((job.kp_driving.value.cpu(), job_prediction(runner, job)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=5e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=5e-4)


@pytest.mark.gpu
def test_on_a_gpu_the_encoders_buffer_comes_with_the_frames() -> None:
    runner = TorchRunner(make_fomm(small_config(num_kp=6), seed=2), "cuda")
    jobs = [make_job(runner, key, length) for key, length in enumerate((3, 1, 9, 4))]
    for made in animate_jobs(jobs, runner=runner, batch_size=BATCH):
        single = [
            runner.animate(made.job.source, made.job.kp_source, made.job.kp_driving[t])
            for t in range(len(made.frames))
        ]
        wanted = frames_from_images(torch.cat(single)).cpu().numpy()
        assert np.abs(made.frames.astype(int) - wanted).max() <= 1  # another batch size rounds so
        assert made.i420 is not None
        assert np.array_equal(made.i420, rgb_to_i420(made.frames))


def test_on_a_cpu_the_encoder_makes_its_buffer_itself() -> None:
    (made,) = animate_jobs([counting_job(0, 3)], runner=Counting(), batch_size=4)
    assert made.i420 is None


def job_prediction(runner: TorchRunner, job: AnimationJob) -> torch.Tensor:
    return runner.animate(job.source, job.kp_source, job.kp_driving).cpu()


def test_batch_size_is_planned_from_the_device() -> None:
    config = parse_config()
    assert plan_batch_size(config, "cpu") == 8
    sizes = [plan_batch_size(config, "cuda", free_bytes=gib << 30) for gib in (0, 1, 4, 80)]
    assert sizes == [1, 4, 16, 64]
    tiny = parse_config(small_config())
    assert plan_batch_size(tiny, "cuda", free_bytes=1 << 30) == 64


def test_pixels_convert_there_and_back_exactly(device: str) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    values.flags.writeable = False
    images = images_from_frames(values, device=device)
    assert images.dtype == torch.float32
    assert images.device.type == device
    assert images[0, 1, 3, 7].item() == np.float32(55) * np.float32(1 / 255)
    assert np.array_equal(frames_from_images(images).cpu().numpy(), values)


def test_predictions_round_to_nearest_and_never_wrap() -> None:
    shades = torch.tensor([0.4, 0.6, 254.4, 254.6, -9, 300, float("nan"), float("inf")]) / 255
    pixels = frames_from_images(shades.view(1, 1, 1, -1).expand(1, 3, 1, -1))
    assert pixels[0, 0, :, 2].tolist() == [0, 1, 254, 255, 0, 255, 0, 255]


def test_channels_and_axes_keep_their_order() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    images = images_from_frames(clip)
    assert round(images[1, 2, 0, 3].item() * 255) == clip[1, 0, 3, 2]
    for wrong in (clip.astype(np.float32), clip[0], clip[..., :2]):
        with pytest.raises(ShapeError, match=r"uint8 \(B, H, W, 3\)"):
            images_from_frames(wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ShapeError, match=r"float \(B, 3, H, W\)"):
        frames_from_images(torch.zeros(1, 4, 4, 3))
