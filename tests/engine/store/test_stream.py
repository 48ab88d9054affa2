"""Streaming real files: the bytes of the store that PyAV filled, and an error for what changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfm_engine.errors import InputError
from dfm_engine.media.encode import encode_clip, provenance_comment, rgb_to_i420
from dfm_engine.store.fill import PrepareOptions, run_prepare
from dfm_engine.store.frames import Store
from dfm_engine.store.loader import open_loader
from dfm_engine.store.meta import shard_path
from dfm_engine.store.pyav import PyavSampler


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A real clip of 20 frames as a video, a fake one of 9 as a folder of pictures."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (20, 1, 8, 8, 3)).repeat(8, 2).repeat(8, 3)[:, 0]
    path = tmp_path / "data" / "real" / "anna" / "a.mp4"
    path.parent.mkdir(parents=True)
    comment = provenance_comment({"synthetic": True})
    planes = rgb_to_i420(frames.astype(np.uint8))
    encode_clip(planes, path, quality="c23", fps=25, comment=comment)
    folder = tmp_path / "data" / "fake" / "bert#1"
    folder.mkdir(parents=True)
    for number in range(9):
        picture = rng.integers(0, 256, (80, 60, 3), dtype=np.uint8)  # not square: its middle
        Image.fromarray(picture).save(folder / f"{number}.png")
    return tmp_path / "data"


@pytest.mark.parametrize("layout", ["i420", pytest.param("rgb24", marks=pytest.mark.slow)])
def test_streamed_frames_are_those_of_the_store(data: Path, tmp_path: Path, layout):
    sampler = PyavSampler(size_px=64, layout=layout, workers=1)
    options = PrepareOptions(
        data=data, out=tmp_path / "store", frames=6, size_px=64, layout=layout, crop="whole"
    )
    run_prepare(options, sampler=sampler, workers=1, progress=False)
    store = Store.open(options.out)
    assert store.rows == 12
    rng = np.random.default_rng(1)
    plan = [rng.integers(0, 12, 5), np.arange(12)]
    wanted = [store.read(rows) for rows in plan]
    for number in range(len(store.meta.shards)):
        shard_path(store.path, number).unlink()
    loader = open_loader(options.out, "stream", data=data)  # its own sampler
    loader.follow(plan)
    for rows, frames in zip(plan, wanted, strict=True):
        np.testing.assert_array_equal(loader.gather(rows).numpy(), frames)
    video = data / "real" / "anna" / "a.mp4"
    video.write_bytes(video.read_bytes() + b"\0")
    with pytest.raises(InputError, match=r"a\.mp4.*SHA-256.*restore the file"):
        loader.gather(np.arange(12))
    loader.close()
