"""An outline tells, without decoding, which stored pictures a range and a rate show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dfm_engine.errors import MediaError
from dfm_engine.media.decode import read_frames, read_native_frames
from dfm_engine.media.outline import native_indices, read_outline

TIMED = (
    "ok-moov-front.mp4",
    "ok-fragmented.mp4",
    "bframes-pyramid-opengop.mp4",
    "vfr-jitter.mp4",
    "rate-30.mp4",
    "rate-50.mp4",
    "late-start.mp4",
    "single-frame.mp4",
    "audio-first-longer.mp4",
)


@pytest.mark.parametrize("name", TIMED)
def test_packet_times_are_those_of_the_decoded_pictures(made: Path, name: str) -> None:
    outline = read_outline(made / name)
    decoded = [native.pts_s for native in read_native_frames(made / name)]
    assert outline.is_plain
    np.testing.assert_allclose(outline.times_s, decoded, atol=1e-9)


@pytest.mark.parametrize("name", TIMED[:7])
@pytest.mark.parametrize(
    ("fps", "start_s", "end_s"),
    [(25, 0.0, None), (25, 0.2, 0.61), (10, 0.0, 0.5), (None, 0.1, 0.5)],
)
def test_native_indices_are_the_pictures_that_read_frames_shows(
    made: Path, name: str, fps: float | None, start_s: float, end_s: float | None
) -> None:
    path = made / name
    stored = [native.rgb for native in read_native_frames(path)]
    shown = list(read_frames(path, fps=fps, start_s=start_s, end_s=end_s))
    found = native_indices(read_outline(path), fps=fps, start_s=start_s, end_s=end_s)
    assert len(found) == len(shown)
    for index, picture in zip(found, shown, strict=True):
        np.testing.assert_array_equal(stored[index], picture)


def test_a_clip_with_hidden_pictures_is_not_plain(made: Path) -> None:
    outline = read_outline(made / "editlist-trim.mp4")
    assert not outline.is_plain
    assert outline.listed == 40


def test_covers_and_second_streams_are_told(made: Path) -> None:
    assert read_outline(made / "ok-moov-front.mp4").is_only_stream
    assert read_outline(made / "audio-first-longer.mp4").is_only_stream
    for name in ("cover-art-first.mp4", "cover-art-last.mp4", "two-video-streams.mp4"):
        assert not read_outline(made / name).is_only_stream


def test_the_upright_size_of_a_turned_clip_is_turned(made: Path) -> None:
    outline = read_outline(made / "rotate90.mp4")
    assert (outline.height, outline.width) == (64, 84)
    assert outline.upright_size == (84, 64)


def test_a_range_that_holds_nothing_and_a_broken_file_say_so(made: Path) -> None:
    outline = read_outline(made / "ok-moov-front.mp4")
    with pytest.raises(MediaError, match=r"the clip ends at 1.60 s .*empty-range"):
        native_indices(outline, fps=25, start_s=9.0)
    with pytest.raises(MediaError, match="truncated"):
        read_outline(made / "truncated-no-moov.mp4")
