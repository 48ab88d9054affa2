"""Pairs of frames for FOMM training: what every source of pairs offers, and clips on disk.

A batch is a pure function of (seed, step): nothing remembers what was drawn before, so a resumed
run sees what an uninterrupted one would have. Clips lie as the published code wants them: below
the folder (or its `train/`), one folder of pictures or one video file per clip; the part of a
name before the first `#` is the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dfm_engine.errors import InputError, UsageError
from dfm_engine.fomm import augment
from dfm_engine.fomm.equivariance import draw_warp
from dfm_engine.fomm.train_recipe import TrainFommRecipe
from dfm_engine.fomm.train_step import Batch
from dfm_kernels.crop import crop

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
VIDEOS = frozenset({".mp4", ".gif", ".mov", ".avi", ".mkv", ".webm"})


class Pairs(Protocol):
    """Where batches come from."""

    steps_per_epoch: int

    def batch(
        self, step: int, *, rows: int, frame_px: int, supervision: float, plain: bool = False
    ) -> Batch:
        """The batch of a step, on the training device.

        Args:
            step: counted from 0 over the whole training.
            rows: pairs.
            frame_px: side of the frames.
            supervision: share of the landmark terms that applies.
            plain: without colour jitter, as the model is used later.
        """
        ...

    def sample(self, *, rows: int, frame_px: int) -> Batch:
        """Fixed pairs that training does not see, for sheets and validation; no augmentation."""
        ...

    def describe(self) -> dict[str, object]:
        """Facts for the record of a run."""
        ...


def as_images(frames: Tensor, frame_px: int) -> Tensor:
    """uint8 (N, 3, S, S) to float32 in [0, 1], shrunk by area where `frame_px` is below S."""
    images = frames.to(torch.float32) / 255
    if images.shape[-1] != frame_px:
        images = F.adaptive_avg_pool2d(images, frame_px)
    return images


def draw_augmentation(
    recipe: TrainFommRecipe, rows: int, rng: np.random.Generator, *, plain: bool
) -> augment.Draw:
    """The recipe's augmentation; `plain` keeps the flips and leaves the colours."""
    wanted = recipe.augment
    strength = 0.0 if plain else 1.0
    return augment.draw(
        rows,
        rng=rng,
        time_flip=wanted.time_flip,
        horizontal_flip=wanted.horizontal_flip,
        brightness=strength * wanted.brightness,
        contrast=strength * wanted.contrast,
        saturation=strength * wanted.saturation,
        hue=strength * wanted.hue,
    )


def warp_fields(
    recipe: TrainFommRecipe, rows: int, rng: np.random.Generator, device: torch.device
) -> dict[str, Tensor]:
    """The batch's fields for the equivariance terms; none where the recipe leaves them out."""
    weights = recipe.losses
    if not (weights.equivariance_value or weights.equivariance_jacobian):
        return {}
    warp = draw_warp(
        rows,
        rng=rng,
        sigma_affine=weights.sigma_affine,
        sigma_tps=weights.sigma_tps,
        points_tps=weights.points_tps,
    ).to(device)
    return {
        "theta": warp.theta,
        "control_points": warp.control_points,
        "control_params": warp.control_params,
    }


class FolderPairs:
    """Two frames of one clip: the earlier is the source, the later drives."""

    def __init__(self, recipe: TrainFommRecipe, folder: Path, *, device: torch.device) -> None:
        """List the clips.

        Raises:
            UsageError: no such folder, no clip in it, or fewer than one batch per epoch.
        """
        self.recipe = recipe
        self.device = device
        self.folder = folder
        self._clips = list_clips(folder, by_name=recipe.data.id_sampling)
        self._test = folder / "test"
        self._executor = ThreadPoolExecutor(recipe.data.workers)
        self._ahead: dict[tuple[int, int, int], list[Future[NDArray[np.uint8]]]] = {}
        draws = len(self._clips) * recipe.data.repeats
        self.steps_per_epoch = recipe.schedule.steps_per_epoch or (
            draws // recipe.schedule.batch_size
        )
        if self.steps_per_epoch < 1:
            raise UsageError(
                f"{folder}: {len(self._clips)} identities x {recipe.data.repeats} repeats are "
                f"fewer than one batch of {recipe.schedule.batch_size}; lower "
                "schedule.batch_size or raise data.repeats"
            )

    def batch(
        self, step: int, *, rows: int, frame_px: int, supervision: float, plain: bool = False
    ) -> Batch:
        """See `Pairs.batch`; the next step's frames are read meanwhile."""
        reads = self._ahead.pop((step, rows, frame_px), None)
        reads = reads or self._start_reading(step, rows, frame_px)
        self._ahead = {(step + 1, rows, frame_px): self._start_reading(step + 1, rows, frame_px)}
        frames = np.stack([read.result() for read in reads])
        stacked = torch.from_numpy(frames).to(self.device)  # (B, 2, H, W, 3)
        rng = np.random.default_rng([self.recipe.schedule.seed, 2, step])
        drawn = draw_augmentation(self.recipe, rows, rng, plain=plain)
        flip = torch.from_numpy(drawn.time_flip).to(self.device)
        stacked = torch.where(flip[:, None, None, None, None], stacked.flip(1), stacked)
        images = []
        for index in (0, 1):
            picture = stacked[:, index].permute(0, 3, 1, 2)
            picture = augment.jitter(augment.mirror_frames(picture, drawn.mirror), drawn)
            images.append(picture.to(torch.float32) / 255)
        return Batch(
            source=images[0],
            driving=images[1],
            target=images[1],
            supervision=torch.tensor(supervision, device=self.device),
            **warp_fields(self.recipe, rows, rng, self.device),
        )

    def sample(self, *, rows: int, frame_px: int) -> Batch:
        """Pairs of `test/` where there is one, else of the training clips."""
        clips = self._clips
        if self._test.is_dir():
            clips = list_clips(self._test, by_name=False)
        frames = [
            self._read_pair(clips[row % len(clips)], (3, row), frame_px) for row in range(rows)
        ]
        stacked = torch.from_numpy(np.stack(frames)).to(self.device).permute(0, 1, 4, 2, 3)
        images = stacked.to(torch.float32) / 255
        return Batch(
            source=images[:, 0],
            driving=images[:, 1],
            target=images[:, 1],
            supervision=torch.tensor(1.0, device=self.device),
        )

    def describe(self) -> dict[str, object]:
        """Folder and counts."""
        clips = sum(len(group) for group in self._clips)
        return {"source": "folder", "identities": len(self._clips), "clips": clips}

    def _start_reading(
        self, step: int, rows: int, frame_px: int
    ) -> list[Future[NDArray[np.uint8]]]:
        epoch, at = divmod(step, self.steps_per_epoch)
        seed = self.recipe.schedule.seed
        order = np.random.default_rng([seed, 0, epoch]).permutation(
            len(self._clips) * self.recipe.data.repeats
        )
        places = [(at * rows + row) % len(order) for row in range(rows)]
        return [
            self._executor.submit(
                self._read_pair,
                self._clips[order[place] % len(self._clips)],
                (seed, 1, epoch, place),
                frame_px,
            )
            for place in places
        ]

    def _read_pair(
        self, clips: list[Path], seed: tuple[int, ...], frame_px: int
    ) -> NDArray[np.uint8]:
        """uint8 (2, S, S, 3): two frames drawn with replacement, in order of time."""
        rng = np.random.default_rng(seed)
        clip = clips[int(rng.integers(len(clips)))]
        count, read = _open_clip(clip)
        pair = read(np.sort(rng.integers(count, size=2)))
        return np.stack([_resize(picture, frame_px) for picture in pair])


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
