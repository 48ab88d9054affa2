"""How odd media files are made: makers by name, and the boxes of an mp4 that some change."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from dfmtest_drawn_clips import encode

Maker = Callable[[Path], None]

TRACK = (b"moov", b"trak")
TABLE = (*TRACK, b"mdia", b"minf", b"stbl")


class Makers(dict[str, Maker]):
    """Makers of files by their names; a file may be made of those that come before it."""

    def made(self, *names: str) -> Callable[[Maker], Maker]:
        """Register a function that makes all of these."""

        def register(maker: Maker) -> Maker:
            self.update(dict.fromkeys(names, maker))
            return maker

        return register

    def simple(self, name: str, **how: object) -> None:
        """A clip as `encode` makes it."""
        self[name] = lambda path: encode(path, **how)  # type: ignore[arg-type]

    def damaged(
        self, name: str, change: Callable[[bytes], bytes], *, origin: str = "ok-moov-front.mp4"
    ) -> None:
        """Another file with its bytes changed."""

        def make(path: Path) -> None:
            path.write_bytes(change((path.parent / origin).read_bytes()))

        self[name] = make

    def content(self, name: str, data: bytes) -> None:
        """These bytes."""

        def make(path: Path) -> None:
            path.write_bytes(data)

        self[name] = make


def box(data: bytes, *kinds: bytes) -> int:
    """Offset of a box's payload, found by following the types from the top."""
    start, end = 0, len(data)
    for kind in kinds:
        while start < end:
            length, found = struct.unpack_from(">I4s", data, start)
            if found == kind:
                start, end = start + 8, start + length
                break
            start += length
        else:
            raise KeyError(kind)
    return start


def patch(data: bytes, offset: int, layout: str, *values: int) -> bytes:
    """The data with some numbers changed."""
    changed = bytearray(data)
    struct.pack_into(layout, changed, offset, *values)
    return bytes(changed)
