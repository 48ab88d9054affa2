"""Framers that a framing worker may load; importable by name in a spawned one."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from dfm_engine.clip import Box, DrivingClip, FaceTrack, FramedClip, SourceClip
from dfm_engine.errors import FaceError
from dfm_engine.framing_workers import load_framer
from dfm_engine.prepare import Framer
from dfm_engine.recipe import BuildRecipe


def load_by_name(recipe: BuildRecipe, size: int) -> Framer:
    """Does what the name of the file says, without torch."""

    def frame(clip: SourceClip | DrivingClip) -> FramedClip:
        match clip.path.stem.split("-")[0]:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "once" if not (mark := clip.path.with_suffix(".died")).exists():
                mark.touch()
                os._exit(3)
            case "bug":
                raise ZeroDivisionError("a bug of ours")
            case "slow":
                clip.path.with_suffix(".begun").write_text(str(os.getpid()))
                time.sleep(60)
        if clip.path.stem.endswith("faceless"):
            raise FaceError(clip.path, "no-face", "nobody is there")
        assert "torch" not in sys.modules
        return framed(1 + len(clip.path.stem), size)

    return frame


def load_checked(recipe: BuildRecipe, size: int) -> Framer:
    """The real one, which must compute in one thread, without a GPU."""
    import torch

    assert torch.get_num_threads() == 1
    assert not torch.cuda.is_available()
    return load_framer(recipe, size)


def load_nothing(recipe: BuildRecipe, size: int) -> Framer:
    raise OSError("no weights here")


def load_slowly(recipe: BuildRecipe, size: int) -> Framer:
    """Says who is at it in the file that `DFMTEST_LOADING` names."""
    Path(os.environ["DFMTEST_LOADING"]).write_text(str(os.getpid()))
    time.sleep(0.5)
    return load_by_name(recipe, size)


def framed(count: int, size: int) -> FramedClip:
    seen = np.ones(count, np.bool_)
    track = FaceTrack(
        boxes=np.zeros((count, 4), np.float32),
        landmarks=np.zeros((count, 5, 2), np.float32),
        scores=np.ones(count, np.float32),
        found=seen,
        looked_at=seen,
    )
    frames = np.zeros((count, size, size, 3), np.uint8)
    return FramedClip(frames, track, Box(0, 0, size, size), count // 2, {"score": 0.5})
