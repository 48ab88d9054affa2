"""Files of procedural faces: read back, equal bytes, resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from dfm_engine.actions import Action
from dfm_engine.errors import UsageError
from dfm_engine.media.encode import rgb_to_i420
from dfm_engine.synthetic import (
    DemoSetSettings,
    Identity,
    action_states,
    render,
    write_clip,
    write_demo_set,
)

SETTINGS = DemoSetSettings(
    drivers=(1,),
    sources=(7, 8),
    driving_frames=16,
    real_frames=18,
    size=32,
    actions=(Action.NOD, Action.SMILE),
)


def test_a_clip_reads_back_without_loss(tmp_path: Path) -> None:
    frames = render(Identity.draw(1), action_states(Action.SMILE, 16), 48).frames.numpy()
    path = tmp_path / "new" / "clip.mkv"
    write_clip(path, frames, fps=25)
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "ffv1"
        assert stream.average_rate == 25
        planes = np.stack([f.to_ndarray() for f in container.decode(video=0)])
    assert np.array_equal(planes, rgb_to_i420(frames))
    first = path.read_bytes()
    write_clip(path, frames, fps=25)
    assert path.read_bytes() == first


def test_a_demo_set_as_h264_shows_the_same_faces_and_has_equal_bytes(tmp_path: Path) -> None:
    lossless = write_demo_set(tmp_path / "ffv1", SETTINGS)
    settings = replace(SETTINGS, codec="h264")
    done, again = (write_demo_set(tmp_path / name, settings) for name in ("one", "two"))
    assert [path.name for path in done.real] == ["talk-00.mp4"] * 2
    for path, same, exact in zip(done.real, again.real, lossless.real, strict=True):
        assert path.read_bytes() == same.read_bytes()
        pictures = []
        for file in (path, exact):
            with av.open(file) as container:
                codec = container.streams.video[0].codec_context.name
                assert codec == ("h264" if file is path else "ffv1")
                pictures.append(np.stack([f.to_ndarray() for f in container.decode(video=0)]))
        error = np.abs(pictures[0].astype(int) - pictures[1])
        assert pictures[0].shape == pictures[1].shape == (18, 48, 32)
        assert error.mean() < 3


def test_a_demo_set_is_written_once_and_only_what_is_missing_again(tmp_path: Path) -> None:
    done = write_demo_set(tmp_path, SETTINGS)
    assert done.to_json() == {"driving": 2, "real": 2, "written": 4}
    assert {p.parent.name for p in done.driving} == {"nod", "smile"}
    assert [str(p.relative_to(tmp_path)) for p in done.real] == [
        "real/face000007/talk-00.mkv",
        "real/face000008/talk-00.mkv",
    ]
    lost = done.driving[1]
    content = lost.read_bytes()
    lost.unlink()
    assert write_demo_set(tmp_path, SETTINGS).written == 1
    assert lost.read_bytes() == content
    with av.open(done.real[1]) as container:
        assert sum(1 for _ in container.decode(video=0)) == 18


def test_a_folder_made_with_other_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo-set.json").write_text("{}")
    with pytest.raises(UsageError, match="made with other settings"):
        write_demo_set(tmp_path, SETTINGS)
