"""A run of the graph survives every clip and finds the one to blame."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dfmtest_dali import FRAMES, HEIGHT, SOFTWARE, WIDTH, vp9
from dfmtest_drawn_clips import draw, encode

from dfm_engine.errors import EnvironmentUnfit, ShapeError
from dfm_engine.media.decode import read_native_frames
from dfm_engine.store.dali_graph import GraphSpec, build_graph
from dfm_engine.store.dali_run import DaliRunner, Failed, Part

pytest.importorskip("nvidia.dali", reason="DALI is not installed")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vp9(tmp_path_factory.mktemp("clips") / "good.webm")


@pytest.fixture(scope="module")
def h264(clip: Path) -> Path:
    """DALI's CPU decoder dies of it."""
    encode(clip.with_name("bad.mp4"), draw(4, WIDTH, HEIGHT))
    return clip.with_name("bad.mp4")


def part(path: Path, wanted: tuple[int, ...] = (0, 7, 3), *, held: int = 1000) -> Part:
    return Part(
        name=path.name,
        payload=np.fromfile(path, np.uint8),
        wanted=np.array(wanted, np.int32),
        box=(0.0, 0.0, float(WIDTH), float(HEIGHT)),
        size=(HEIGHT, WIDTH),
        decoded_bytes=held,
    )


def test_pictures_are_chosen_by_number_in_any_order(clip: Path) -> None:
    stored = [native.rgb for native in read_native_frames(clip)]
    with DaliRunner(SOFTWARE) as runner:
        wanted = [(FRAMES - 1, 0), (5,), (2, 2, 9)]
        for numbers, (_, got) in zip(
            wanted, runner.run(part(clip, w) for w in wanted), strict=True
        ):
            expected = np.stack([stored[number] for number in numbers])
            error = np.abs(got.astype(int) - expected)
            assert error.mean() < 0.5
            assert np.percentile(error, 99) < 3
        assert runner.rebuilt == 0


@pytest.mark.parametrize("bad_places", [(4,), (0,), (9,), (3, 4, 8), tuple(range(10))])
def test_only_the_culprits_are_lost_and_the_others_are_as_without_them(
    clip: Path, h264: Path, bad_places: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    parts = [part(h264 if k in bad_places else clip, (k, k + 1)) for k in range(10)]
    with caplog.at_level(logging.WARNING), DaliRunner(SOFTWARE) as runner:
        found = list(runner.run(parts))
        alone = dict(runner.run([part(clip, (k, k + 1)) for k in range(10)]))
        again = list(alone.values())
    assert [p for p, _ in found] == parts
    for place, (_, result) in enumerate(found):
        if place in bad_places:
            assert isinstance(result, Failed)
            assert "Failed to create video decoder" in result.reason
        else:
            np.testing.assert_array_equal(result, again[place])
    blamed = [r.args[0] for r in caplog.records if "does not take it" in r.message]  # type: ignore[index]
    assert blamed == ["bad.mp4"] * len(bad_places)


def test_a_picture_beyond_the_end_fails_that_clip_and_is_never_padded(clip: Path) -> None:
    with DaliRunner(SOFTWARE) as runner:
        results = [r for _, r in runner.run([part(clip), part(clip, (0, FRAMES)), part(clip)])]
    assert isinstance(results[1], Failed)
    assert f"frame index {FRAMES}" in results[1].reason
    np.testing.assert_array_equal(results[0], results[2])


def test_a_failing_source_of_pictures_is_survived_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph that PyAV feeds: a batch that its feeding breaks is done again one by one."""
    pictures = draw(4, WIDTH, HEIGHT)
    parts = [
        Part(
            name=f"clip {k}",
            payload=pictures[k : k + 1],
            wanted=None,
            box=(0.0, 0.0, float(WIDTH), float(HEIGHT)),
            size=(HEIGHT, WIDTH),
            decoded_bytes=1000,
        )
        for k in range(4)
    ]

    class Fragile:
        def __init__(self, pipeline: Any) -> None:
            self.pipeline = pipeline

        def feed_input(self, name: str, data: list[np.ndarray]) -> None:
            if name == "frames" and any(np.array_equal(d, pictures[2:3]) for d in data):
                raise RuntimeError("cannot be fed")
            self.pipeline.feed_input(name, data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.pipeline, name)

    spec = GraphSpec(source="frames", batch_size=3, threads=1)
    with DaliRunner(spec, build=lambda s: Fragile(build_graph(s))) as runner:
        results = [result for _, result in runner.run(parts)]
    assert results[2] == Failed(parts[2], "cannot be fed")
    for k in (0, 1, 3):
        np.testing.assert_array_equal(results[k], pictures[k : k + 1])


def test_a_machine_on_which_nothing_decodes_is_unfit_and_no_clip_is_blamed(clip: Path) -> None:
    class Dead:
        def feed_input(self, name: str, data: object) -> None:
            raise RuntimeError("CUDA is gone\nC++ context: somewhere")

    with pytest.raises(EnvironmentUnfit, match=r"known to be good \(CUDA is gone\)"):
        DaliRunner(SOFTWARE, build=lambda spec: Dead())

    pipelines: Iterator[Any] = iter([build_graph(SOFTWARE), Dead()])
    runner = DaliRunner(SOFTWARE, build=lambda spec: next(pipelines))
    with pytest.raises(EnvironmentUnfit, match="known to be good"):
        list(runner.run([part(clip, (FRAMES + 5,))]))


def test_batches_are_bounded_by_count_and_by_decoded_size(clip: Path) -> None:
    with DaliRunner(SOFTWARE, batch_bytes=5000) as runner:
        sizes = [1000, 1000, 1000, 1000, 4500, 9000, 1000]
        batches = runner._batches(part(clip, held=size) for size in sizes)
        assert [[p.decoded_bytes for p in batch] for batch in batches] == [
            [1000, 1000, 1000],  # three clips: the graph's batch
            [1000],
            [4500],
            [9000],  # too large for any batch: alone
            [1000],
        ]


def test_a_runner_that_was_left_half_way_starts_afresh(clip: Path) -> None:
    with DaliRunner(SOFTWARE) as runner:
        first = runner.run(part(clip, (k,)) for k in range(12))
        next(first)
        first.close()
        ((_, got),) = runner.run([part(clip, (11,))])
        ((_, alone),) = runner.run([part(clip, (11,))])
        ((_, other),) = runner.run([part(clip, (4,))])
    np.testing.assert_array_equal(got, alone)
    assert not np.array_equal(got, other)


def test_no_more_clips_are_drawn_than_are_under_way(clip: Path) -> None:
    drawn = 0

    def parts() -> Iterator[Part]:
        nonlocal drawn
        for k in range(50):
            drawn += 1
            yield part(clip, (k % FRAMES,))

    with DaliRunner(SOFTWARE) as runner:
        running = runner.run(parts())
        next(running)
        assert drawn <= SOFTWARE.depth * SOFTWARE.batch_size + 1
        running.close()


@pytest.mark.parametrize(
    "change",
    [
        {"box": (0.0, 0.0, float("nan"), 9.0)},
        {"box": (5.0, 0.0, 5.0, 9.0)},
        {"box": (9.0, 0.0, 5.0, 9.0)},
        {"size": (0, 4)},
        {"payload": np.empty(0, np.uint8)},
        {"payload": np.zeros((2, 2, 3), np.uint8)},
        {"wanted": None},
        {"wanted": np.array([-1], np.int32)},
        {"wanted": np.empty(0, np.int32)},
    ],
)
def test_parts_that_would_take_the_process_down_are_refused(change: dict[str, Any]) -> None:
    sound: dict[str, Any] = {
        "name": "clip",
        "payload": np.zeros(9, np.uint8),
        "wanted": np.zeros(1, np.int32),
        "box": (0.0, 0.0, 4.0, 4.0),
        "size": (4, 4),
        "decoded_bytes": 48,
    }
    Part(**sound)
    with pytest.raises(ShapeError, match="clip"):
        Part(**{**sound, **change})
