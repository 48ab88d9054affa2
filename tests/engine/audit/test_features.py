"""The numbers of a file, against the plain loop over pictures and rings that says what they are."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from dfmtest_audit import make_set
from numpy.typing import NDArray

from dfm_engine.audit import features, reading
from dfm_engine.audit.features import BORDER_EVERY, DECODED, RING, FileFeatures, read_features
from dfm_engine.audit.reading import read_all
from dfm_engine.errors import MediaError

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("set")
    rows = make_set(out, people=2, qualities=("raw", "c23", "c40"))
    return [out / row["path"] for row in rows]


def planes_reference(frame: VideoFrame) -> tuple[Floats, Floats, Floats]:
    height, width = frame.height // 2 * 2, frame.width // 2 * 2
    packed = frame.to_ndarray(format="yuv420p", width=width, height=height).astype(np.float64)
    blue, red = packed[height:].reshape(2, height // 2, width // 2)
    return packed[:height], blue, red


def ring_reference(plane: Floats, depth: int) -> Floats:
    depth = min(depth, (min(plane.shape) - 1) // 2)
    inner = plane[depth : plane.shape[0] - depth, depth : plane.shape[1] - depth]
    return np.concatenate([inner[0], inner[1:, -1], inner[-1, -2::-1], inner[-2:0:-1, 0]])


def border_reference(frames: Sequence[VideoFrame]) -> Floats:
    rings: list[list[Floats]] = []
    chroma: list[list[float]] = []
    for frame in frames:
        luma, *others = planes_reference(frame)
        rings.append([ring_reference(luma, depth) for depth in range(RING + 1)])
        chroma.append([float(ring_reference(c, depth).mean()) for c in others for depth in (0, 1)])
    means = np.array([[ring.mean() for ring in each] for each in rings])
    spreads = np.array([[ring.std() for ring in each] for each in rings])
    steps = np.abs(np.diff(means, axis=1))
    rough = np.array([[np.abs(np.diff(ring)).mean() for ring in each] for each in rings])
    change = np.abs(np.diff(means, axis=0)).mean(0) if len(means) > 1 else 0 * means[0]
    parts = (means, spreads, steps, rough)
    return np.concatenate(
        [*(part[:, :RING].mean(0) for part in parts), change[:RING], np.array(chroma).mean(0)]
    )


def first_frame_reference(frame: VideoFrame) -> Floats:
    found: list[float] = []
    for plane, side in zip(planes_reference(frame), (8, 4, 4), strict=True):
        down, across = (np.linspace(0, n, side + 1).astype(int) for n in plane.shape)
        for top, bottom in itertools.pairwise(down):
            for left, right in itertools.pairwise(across):
                found.append(plane[top:bottom, left:right].mean())
    return np.array(found)


def quantiser_reference(frame: VideoFrame) -> tuple[float, float]:
    side_data: Any = frame.side_data
    for data in side_data:
        if data.type == Type.VIDEO_ENC_PARAMS:
            raw = bytes(data)
            count, offset, size, _, qp = struct.unpack_from("@IxxxxQQii", raw)
            at = range(offset, offset + count * size, size)
            deltas = [struct.unpack_from("@i", raw, place + 16)[0] for place in at]
            return float(qp + np.mean(deltas)), float(np.std(deltas))
    return 0.0, 0.0


def decoded(path: Path) -> list[VideoFrame]:
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.options = {"export_side_data": "venc_params"}
        return list(container.decode(video=0))[:DECODED]


# Sums of at most 65,280 pixels of 255 are exact; a mean, a root and the mean over four pictures
# round a handful of times, at a magnitude of 255.
EXACT = {"rtol": 1e-13, "atol": 1e-12}


def test_features_of_all_rings_at_once_are_those_of_each_alone(files: list[Path]) -> None:
    spreads: set[float] = set()
    for path in files:
        found, frames = read_features(path), decoded(path)
        quantisers = np.array([quantiser_reference(frame) for frame in frames])
        expected = quantisers[:, 0].mean(), quantisers[:, 0].std(), quantisers[:, 1].mean()
        np.testing.assert_allclose(found.codec[-3:], expected, **EXACT)
        np.testing.assert_allclose(found.border, border_reference(frames[::BORDER_EVERY]), **EXACT)
        np.testing.assert_allclose(found.first_frame, first_frame_reference(frames[0]), **EXACT)
        spreads.add(found.codec[-1])
    assert max(spreads) > 0.1  # some files do vary the quantiser within a picture


@pytest.mark.parametrize("kind", ["yuv420p", "yuv422p", "rgb24"])
@pytest.mark.parametrize("size", [(2, 2), (4, 6), (34, 18), (33, 47), (64, 64), (130, 98)])
def test_rings_of_any_size_and_format_are_those_of_the_loop(
    size: tuple[int, int], kind: str
) -> None:
    rng = np.random.default_rng(sum(size))
    pictures = rng.integers(0, 256, (3, *size, 3), dtype=np.uint8)
    frames = [
        VideoFrame.from_ndarray(picture, "rgb24").reformat(format=kind) for picture in pictures
    ]
    for count in (1, 3):
        np.testing.assert_allclose(
            features._border([features._planes(frame) for frame in frames[:count]]),
            border_reference(frames[:count]),
            **EXACT,
        )
    if min(size) >= 16:  # of less, squares are empty
        np.testing.assert_allclose(
            features._first_frame(features._planes(frames[0])),
            first_frame_reference(frames[0]),
            **EXACT,
        )


def test_a_file_that_changes_its_size_is_refused(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = iter([(64, 64), (32, 32), (64, 64), (64, 64)])
    monkeypatch.setattr(features, "_planes", lambda frame: (np.zeros(next(shapes), np.uint8),) * 3)
    with pytest.raises(MediaError, match="changes its size"):
        read_features(files[0])


def same(a: FileFeatures | str, b: FileFeatures | str) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    numbers = ("codec", "container", "first_frame", "border")
    return a.facts == b.facts and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in numbers
    )


@pytest.fixture
def with_a_bad_one(files: list[Path], tmp_path: Path) -> list[Path]:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(files[0].read_bytes()[:300])
    return [*files[:4], bad, *files[4:]]


def test_processes_read_what_threads_read_in_the_same_order(
    with_a_bad_one: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_threads = list(read_all(with_a_bad_one, cores=2))
    assert [place for place, each in enumerate(by_threads) if isinstance(each, str)] == [4]
    assert "does not decode" in str(by_threads[4])
    started: list[int] = []

    class Counted(reading.ProcessPoolExecutor):
        def __init__(self, workers: int, **options: Any) -> None:
            started.append(workers)
            super().__init__(workers, **options)

    monkeypatch.setattr(reading, "ProcessPoolExecutor", Counted)
    monkeypatch.setattr(reading, "ENOUGH_THREADS", 1)
    assert len(list(read_all(with_a_bad_one, cores=2))) == 13  # too few files for a process
    assert started == []
    monkeypatch.setattr(reading, "FILES_PER_PROCESS", 4)
    by_processes = list(read_all(with_a_bad_one, cores=2))
    assert started == [2]
    assert all(map(same, by_processes, by_threads))
    assert len(by_processes) == len(by_threads) == 13


@pytest.mark.parametrize("deadly", [None, 8], ids=["none-can-be-had", "a-file-ends-its-process"])
def test_files_are_read_on_where_the_processes_die(
    with_a_bad_one: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    deadly: int | None,
) -> None:
    expected = list(read_all(with_a_bad_one, cores=2))

    class Dies:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, work: Any, *given: Any) -> Future[Any]:
            if deadly is None or given == (with_a_bad_one[deadly],):
                raise reading.BrokenExecutor("killed")
            done: Future[Any] = Future()
            done.set_result(work(*given))
            return done

        def map(self, work: Any, paths: Any, **_: Any) -> Any:
            paths = iter(paths)
            for _ in range(6):
                yield work(next(paths))
            raise reading.BrokenExecutor("killed")

        def shutdown(self, **_: Any) -> None: ...

    monkeypatch.setattr(reading, "ProcessPoolExecutor", Dies)
    monkeypatch.setattr(reading, "ENOUGH_THREADS", 1)
    monkeypatch.setattr(reading, "FILES_PER_PROCESS", 4)
    found = list(read_all(with_a_bad_one, cores=2))
    assert len(found) == 13
    assert "it reads file by file" in caplog.text
    if deadly is not None:
        assert found[deadly] == "the process that read it ended"
        found[deadly] = expected[deadly]
    assert all(map(same, found, expected))
