"""Which frame of which clip every row of a store is.

`clips.parquet` has one row per clip, `index.parquet` one per frame: the clip's place in the other
table and the frame's number in its file. Rows of a clip lie together, in order of time.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dfm_engine.clip import Box, Quality
from dfm_engine.columns import column, read_table, write_table
from dfm_engine.durable import write_durably
from dfm_engine.errors import InputError

__all__ = ["CLIPS", "INDEX", "StoreIndex", "StoredClip"]

CLIPS, INDEX = "clips.parquet", "index.parquet"
_BOX = ("box_x0", "box_y0", "box_x1", "box_y1")

COLUMNS = (
    column("key", "string", "names the clip within the store"),
    column("path", "string", r"file, or folder of pictures, below --data; odd bytes as \xNN"),
    column("clip_id", "string", "the same in every quality of one clip"),
    column("label", "string", "real or fake"),
    column("action", "string", "facial action of a fake", null=True),
    column("quality", "string", "raw, c23 or c40 of a built data set", null=True),
    column("identity", "string", "who is seen"),
    column("split", "string", "train, val or test", null=True),
    column("pair_clip_id", "string", "of a fake: its real twin", null=True),
    column("box_x0", "float64", "left edge of what was stored", unit="px", null=True),
    column("box_y0", "float64", "its upper edge", unit="px", null=True),
    column("box_x1", "float64", "its right edge", unit="px", null=True),
    column("box_y1", "float64", "its lower edge", unit="px", null=True),
    column("sha256", "string", "of the file, hex; of a folder: of its read pictures' hashes"),
    column("first_row", "int64", "of the clip in the store"),
    column("frames", "int32", "stored frames"),
    column("clip_frames", "int32", "frames the clip has in its file"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredClip:
    """One clip of a store.

    Attributes:
        key: names it within the store.
        path: its file, or folder of pictures, below the data's folder (`columns.text_of_path`).
        clip_id: equal in every quality of one clip.
        label: `real` or `fake`.
        action: of a fake, where it is known.
        quality: of a built data set's file, else None.
        identity: who is seen.
        split: `train`, `val` or `test`, None where the data have none.
        pair_clip_id: of a fake, its real twin.
        box: what was cut out of the upright picture, None where the picture is stored as it is.
        sha256: of the file; of a folder of pictures, of the hashes of those read.
        first_row: of its frames in the store.
        frames: how many are stored.
        clip_frames: how many its file has.
    """

    key: str
    path: str
    clip_id: str
    label: Literal["real", "fake"]
    action: str | None = None
    quality: Quality | None = None
    identity: str
    split: str | None = None
    pair_clip_id: str | None = None
    box: Box | None = None
    sha256: str
    first_row: int
    frames: int
    clip_frames: int

    @property
    def rows(self) -> range:
        """Its row numbers."""
        return range(self.first_row, self.first_row + self.frames)

    @property
    def is_fake(self) -> bool:
        """What a detector is asked."""
        return self.label == "fake"


class StoreIndex:
    """Every row of a store: which clip, and which of its frames.

    Args:
        clips: in order of their rows, which follow each other without a gap.
        frame: (rows,) int32, the frame's number in its clip's file.
    """

    def __init__(self, clips: Sequence[StoredClip], frame: NDArray[np.int32]) -> None:
        """Check that the two agree.

        Raises:
            InputError: the clips' rows do not follow each other, or are not those of `frame`.
        """
        self.clips = tuple(clips)
        self.frame = np.ascontiguousarray(frame, np.int32)
        counts = np.array([clip.frames for clip in self.clips], np.int64)
        starts = np.array([clip.first_row for clip in self.clips], np.int64)
        expected = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        if not np.array_equal(starts, expected[:-1]) or expected[-1] != len(self.frame):
            raise InputError(
                f"the index of the store is inconsistent: {len(self.clips)} clips of "
                f"{expected[-1]} frames, {len(self.frame)} rows; prepare it again"
            )
        self.clip: NDArray[np.int32] = np.repeat(np.arange(len(self.clips), dtype=np.int32), counts)

    def __len__(self) -> int:
        return len(self.frame)

    def __repr__(self) -> str:
        return f"StoreIndex(clips={len(self.clips)}, rows={len(self)})"

    def rows(
        self,
        *,
        split: str | None = None,
        quality: str | None = None,
        label: str | None = None,
    ) -> NDArray[np.int64]:
        """Row numbers, ascending, of the clips that have the values given; None is any."""
        wanted = np.array(
            [
                (split is None or clip.split == split)
                and (quality is None or clip.quality == quality)
                and (label is None or clip.label == label)
                for clip in self.clips
            ],
            bool,
        )
        return np.flatnonzero(wanted[self.clip]) if len(self.clips) else np.empty(0, np.int64)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Per row 1 for fake, 0 for real."""
        return np.array([clip.is_fake for clip in self.clips], np.int64)[self.clip]

    def write(self, store: Path) -> None:
        """Write both tables; equal indexes give equal bytes."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        write_table(COLUMNS, map(_row, self.clips), store / CLIPS, kind="stored clips")
        table = pa.table({"clip": self.clip, "frame": self.frame})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", version="2.6")
        write_durably(store / INDEX, buffer.getbuffer())

    @classmethod
    def read(cls, store: Path) -> StoreIndex:
        """Read what `write` wrote.

        Raises:
            InputError: absent, damaged, or the tables do not belong together.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        clips = [_clip(row) for row in read_table(COLUMNS, store / CLIPS)]
        path = store / INDEX
        try:
            table = pq.read_table(pa.BufferReader(path.read_bytes()))
            clip, frame = (table[name].to_numpy() for name in ("clip", "frame"))
        except (OSError, KeyError, pa.ArrowException) as error:
            raise InputError(f"reading {os.fspath(path)!r}: {error}") from error
        index = cls(clips, frame)
        if not np.array_equal(index.clip, clip):
            raise InputError(
                f"{os.fspath(path)!r} does not belong to {CLIPS}; prepare the store again"
            )
        return index

    def of_clips(self, clips: Iterable[int]) -> NDArray[np.int64]:
        """Row numbers of clips by their place in `clips`, in the order given."""
        rows = [np.asarray(self.clips[place].rows, np.int64) for place in clips]
        return np.concatenate(rows) if rows else np.empty(0, np.int64)


def _row(clip: StoredClip) -> dict[str, Any]:
    row = asdict(clip)
    row |= dict(zip(_BOX, row.pop("box") or (None,) * 4, strict=True))
    return row


def _clip(row: dict[str, Any]) -> StoredClip:
    corners = [row.pop(name) for name in _BOX]
    return StoredClip(**row, box=None if None in corners else Box(*corners))
