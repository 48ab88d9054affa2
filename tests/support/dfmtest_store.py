"""Small frame stores without video: noise per clip, and what a detector could learn of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfm_engine.clip import Quality
from dfm_engine.media.encode import rgb_to_i420
from dfm_engine.store.frames import Store
from dfm_engine.store.index import StoredClip, StoreIndex
from dfm_engine.store.meta import Layout, StoreMeta, shard_path
from dfm_engine.store.shards import ShardWriter

SPLITS = ("train", "val", "test")


def make_store(
    path: Path,
    *,
    identities: int = 6,
    fakes: int = 1,
    qualities: Sequence[Quality | None] = ("raw", "c23", "c40"),
    frames: int = 4,
    size: int = 32,
    layout: Layout = "rgb24",
    clips_per_shard: int = 5,
    signal: float = 0.0,
    seed: int = 0,
) -> Store:
    """Make a store of `identities` real clips and `fakes` fakes of each, in every quality.

    Identities go round train, val, test. A fake's frames are its real twin's, plus `signal` levels
    in the lower left quarter; the qualities of a clip differ by a little noise.
    """
    actions = ("smile", "nod", "yaw", "blink")
    meta = StoreMeta(size_px=size, layout=layout, frames_per_clip=frames)
    clips: list[StoredClip] = []
    made: list[NDArray[np.uint8]] = []
    for person in range(identities):
        base = np.random.default_rng([seed, person]).normal(128, 40, (frames, size, size, 3))
        for fake in range(fakes + 1):
            for quality in qualities:
                rng = np.random.default_rng([seed, person, fake, hash_of(quality or "")])
                picture = base + rng.normal(0, 4, base.shape)
                if fake:
                    picture[:, size // 2 :, : size // 2] += signal
                clip_id = hashlib.sha256(f"{person}/{fake}".encode()).hexdigest()[:16]
                real_id = hashlib.sha256(f"{person}/0".encode()).hexdigest()[:16]
                key = f"{clip_id}.{quality}" if quality else clip_id
                clips.append(
                    StoredClip(
                        key=key,
                        path=f"data/{'fake' if fake else 'real'}/{key}.mp4",
                        clip_id=clip_id,
                        label="fake" if fake else "real",
                        action=actions[(person + fake) % len(actions)] if fake else None,
                        quality=quality,
                        identity=f"person-{person}",
                        split=SPLITS[person % len(SPLITS)],
                        pair_clip_id=real_id if fake else None,
                        sha256=hashlib.sha256(key.encode()).hexdigest(),
                        first_row=len(clips) * frames,
                        frames=frames,
                        clip_frames=10 * frames,
                    )
                )
                rgb = picture.round().clip(0, 255).astype(np.uint8)
                made.append(rgb if layout == "rgb24" else rgb_to_i420(rgb))
    return write_store(path, meta, clips, made, clips_per_shard=clips_per_shard)


def write_store(
    path: Path,
    meta: StoreMeta,
    clips: Sequence[StoredClip],
    frames: Sequence[NDArray[np.uint8]],
    *,
    clips_per_shard: int = 5,
) -> Store:
    """Write a store of given frames, one array (n, *frame_shape) per clip."""
    shards = []
    for number, start in enumerate(range(0, len(clips), clips_per_shard)):
        group = frames[start : start + clips_per_shard]
        with ShardWriter(
            shard_path(path, number), frame_bytes=meta.frame_bytes, rows=sum(map(len, group))
        ) as shard:
            for clip in group:
                assert clip.shape[1:] == meta.frame_shape
                shard.add(np.ascontiguousarray(clip))
            shards.append(shard.commit())
    numbers = [
        np.arange(clip.frames, dtype=np.int32) * max(1, clip.clip_frames // clip.frames)
        for clip in clips
    ]
    StoreIndex(clips, np.concatenate(numbers)).write(path)
    replace(meta, shards=tuple(shards)).write(path)
    return Store.open(path)


def hash_of(text: str) -> int:
    """A number that does not change from run to run."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
