"""What the face tests share: the detector, reference detections and decoded frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import av
import numpy as np
import pytest

from dfm_engine.faces.mtcnn import Mtcnn


@pytest.fixture(scope="session")
def detector() -> Mtcnn:
    return Mtcnn.load()


@pytest.fixture(scope="session")
def decode() -> Callable[[Path, Iterable[int]], dict[int, np.ndarray]]:
    """Chosen frames of a clip by number, as PyAV's plain rgb24: what the reference was given."""

    def read(path: Path, indices: Iterable[int]) -> dict[int, np.ndarray]:
        wanted = set(indices)
        frames: dict[int, np.ndarray] = {}
        with av.open(str(path)) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    frames[index] = frame.to_ndarray(format="rgb24")
                if len(frames) == len(wanted):
                    break
        return frames

    return read
