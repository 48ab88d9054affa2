"""Clips in a folder, for the evaluation: few frames of each, read at once.

Clips lie as the published code wants them: below the folder (or its `train/`), one folder of
pictures or one video file per clip; the part of a name before the first `#` is the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dfm_engine.errors import InputError, UsageError
from dfm_kernels.crop import crop

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
VIDEOS = frozenset({".mp4", ".gif", ".mov", ".avi", ".mkv", ".webm"})


def read_clip(clip: Path, frame_px: int, *, most: int) -> NDArray[np.uint8]:
    """uint8 (T, S, S, 3): up to `most` frames of a clip, evenly spread, the first among them."""
    count, read = _open_clip(clip)
    chosen = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))
    return np.stack([_resize(picture, frame_px) for picture in read(chosen)])


Reader = Callable[[NDArray[np.int64]], list[NDArray[np.uint8]]]


def _open_clip(clip: Path) -> tuple[int, Reader]:
    """Frame count, and a function that gives chosen frames."""
    if clip.is_dir():
        names = _pictures(clip)
        return len(names), lambda chosen: [_read_picture(names[index]) for index in chosen]
    from dfm_engine.media.decode import read_frames

    frames = list(read_frames(clip, fps=None))
    return len(frames), lambda chosen: [frames[index] for index in chosen]


@lru_cache(maxsize=100_000)
def _pictures(clip: Path) -> tuple[Path, ...]:
    return tuple(sorted(p for p in clip.iterdir() if p.suffix.lower() in PICTURES))


def list_clips(folder: Path, *, by_name: bool) -> list[list[Path]]:
    """The clips below a folder or its `train/`, grouped by identity, in order of name."""
    root = folder / "train" if (folder / "train").is_dir() else folder
    if not root.is_dir():
        raise UsageError(f"FOMM training data: {root} is no folder; give --data a folder of clips")
    groups: dict[str, list[Path]] = {}
    for path in sorted(root.iterdir()):
        is_clip = bool(_pictures(path)) if path.is_dir() else path.suffix.lower() in VIDEOS
        if is_clip:
            identity = path.name.split("#")[0] if by_name else path.name
            groups.setdefault(identity, []).append(path)
    if not groups:
        raise UsageError(
            f"FOMM training data: {root} holds no folder of pictures and no video file "
            f"({', '.join(sorted(VIDEOS))})"
        )
    return list(groups.values())


def _read_picture(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise InputError(
            f"reading the training frame {path}: {error}; replace or remove it"
        ) from error


def _resize(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    if (height, width) == (side, side):
        return picture
    box = (0.0, 0.0, float(width), float(height))
    return crop(torch.from_numpy(picture.copy())[None], box, side)[0].numpy()
