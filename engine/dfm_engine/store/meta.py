"""What a frame store is: `meta.json`, written last, so a store that has one is whole.

In: nothing but the folder. Out: a `StoreMeta`, which says how to read the bytes of the shards and
what made them. A folder that was begun and not finished has `prepare.json` and no `meta.json`, and
is refused with the command that finishes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dfm_engine.durable import write_durably
from dfm_engine.errors import DfmError, InputError

__all__ = ["LAYOUTS", "META", "SETTINGS", "VERSION", "Layout", "Shard", "StoreMeta", "shard_path"]

VERSION = 1
META, SETTINGS = "meta.json", "prepare.json"
RESAMPLER = "triangle-antialias-clamp"
"""How boxes were cut out: `dfm_kernels.crop`. Whole clips of the right size are not resampled."""

Layout = Literal["rgb24", "i420"]
LAYOUTS: tuple[Layout, ...] = ("rgb24", "i420")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of frames.

    Attributes:
        rows: frames in it.
        sha256: of the file, hex.
    """

    rows: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreMeta:
    """How the frames of a store lie on the disk, and what made them.

    Attributes:
        version: of the format.
        size_px: side of the square frames.
        layout: `rgb24`, interleaved full-range RGB; or `i420`, FFmpeg's yuv420p without padding.
        matrix: of `i420` frames, limited range; what the clips' own pixels are stored in.
        frames_per_clip: evenly spaced frames asked for; 0 is all. A shorter clip has fewer.
        resampler: how clips that are cropped or scaled were.
        decode: which decoder filled it.
        versions: of the software that decides the bytes.
        shards: in order; row numbers run through them.
    """

    version: int = VERSION
    size_px: int
    layout: Layout
    matrix: Literal["bt601-limited"] = "bt601-limited"
    frames_per_clip: int
    resampler: str = RESAMPLER
    decode: Literal["pyav", "dali"] = "pyav"
    versions: Mapping[str, str] = field(default_factory=dict)
    shards: tuple[Shard, ...] = ()

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise DfmError(f"a store's layout is rgb24 or i420, found {self.layout!r}")
        if self.size_px < 2 or (self.layout == "i420" and self.size_px % 2):
            raise DfmError(
                f"frames of {self.size_px} px cannot be stored as {self.layout}; "
                "a side is at least 2, and even for i420"
            )
        if self.frames_per_clip < 0:
            raise DfmError(f"frames per clip is 0 (all) or more, found {self.frames_per_clip}")

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """(S, S, 3) for rgb24; (S * 3 // 2, S), luma then both chroma planes, for i420."""
        side = self.size_px
        return (side, side, 3) if self.layout == "rgb24" else (side * 3 // 2, side)

    @property
    def frame_bytes(self) -> int:
        """Of one frame."""
        return self.size_px * self.size_px * (6 if self.layout == "rgb24" else 3) // 2

    @property
    def rows(self) -> int:
        """Frames in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def size_bytes(self) -> int:
        """Of all frames."""
        return self.rows * self.frame_bytes

    def write(self, store: Path) -> None:
        """Declare a store whole; everything else must be on the disk."""
        write_durably(store / META, json.dumps(asdict(self), indent=1, sort_keys=True).encode())

    @classmethod
    def read(cls, store: Path) -> StoreMeta:
        """The description of a whole store.

        Raises:
            InputError: no store, a store that was not finished, or one of another version.
        """
        where = repr(os.fspath(store))
        try:
            facts: dict[str, Any] = json.loads((store / META).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            if (store / SETTINGS).is_file():
                raise InputError(
                    f"the store {where} is not finished: its {META} is absent; run the same "
                    "`dfm-engine prepare` again, which goes on where it stopped"
                ) from None
            raise InputError(
                f"{where} is no frame store (no {META}); make one with `dfm-engine prepare "
                f"--data DIR --frames N --out {store}`"
            ) from None
        except (OSError, ValueError) as error:
            raise InputError(f"reading {os.fspath(store / META)!r}: {error}") from error
        try:
            if facts.get("version") != VERSION:
                raise InputError(
                    f"the store {where} is of version {facts.get('version')}, this is dfm-engine's "
                    f"version {VERSION}; prepare it again"
                )
            shards = tuple(Shard(**shard) for shard in facts.pop("shards"))
            return cls(**facts, shards=shards)
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{os.fspath(store / META)!r} does not parse: {error}") from error


def shard_path(store: Path, number: int) -> Path:
    """Where the frames of a shard are."""
    return store / "shards" / f"{number:05d}.u8"
