"""Headers that promise more than there is, and raw streams without what a decoder needs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from dfmtest_drawn_clips import draw, encode
from dfmtest_media_makers import TABLE, Makers, box, patch

FILES = Makers()


FILES.damaged(
    "header-size-lies.mp4",
    lambda d: patch(d, box(d, *TABLE, b"stsd") + 8 + 8 + 24, ">HH", 65535, 65535),
)
FILES.damaged(
    "bomb-sample-count.mp4", lambda d: patch(d, box(d, *TABLE, b"stsz") + 8, ">I", 0x7FFFFFFF)
)


def units(data: bytes) -> list[bytes]:
    """NAL units of an Annex B stream, each with its start code."""
    marks = [i for i in range(len(data) - 3) if data[i : i + 3] == b"\x00\x00\x01"] + [len(data)]
    return [data[a:b] for a, b in itertools.pairwise(marks)]


def raw_h264(
    path: Path, *, keep: Callable[[int, int], bool], frames: int = 40, gop: int = 12
) -> None:
    """A raw stream of the units that `keep(type, how many of this type came before)` names."""
    encode(path, draw(frames), format="h264", options={"g": str(gop)})
    seen: dict[int, int] = {}
    kept = []
    for unit in units(path.read_bytes()):
        kind = unit[3] & 31
        if keep(kind, seen.get(kind, 0)):
            kept.append(b"\x00" + unit.rstrip(b"\x00"))
        seen[kind] = seen.get(kind, 0) + 1
    path.write_bytes(b"".join(kept))


class _Bits:
    def __init__(self) -> None:
        self.text = ""

    def put(self, value: int, width: int) -> None:
        self.text += format(value, f"0{width}b")

    def unsigned(self, value: int) -> None:
        digits = format(value + 1, "b")
        self.text += "0" * (len(digits) - 1) + digits

    def bytes(self) -> bytes:
        text = self.text + "1"
        text += "0" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8)


@FILES.made("bomb-sps-65536.h264")
def _sequence_bomb(path: Path) -> None:
    bits = _Bits()
    bits.put(66, 8), bits.put(0, 8), bits.put(40, 8)
    for value in (0, 0, 2, 1):  # id, frame number bits, picture order type 2, reference frames
        bits.unsigned(value)
    bits.put(0, 1)
    bits.unsigned(4095), bits.unsigned(4095)  # 65536 pixels each
    bits.put(1, 1), bits.put(1, 1), bits.put(0, 1), bits.put(0, 1)
    raw_h264(path, keep=lambda kind, _: kind != 7)
    sps = b"\x00\x00\x00\x01\x67" + bits.bytes()
    path.write_bytes(sps + path.read_bytes())


@FILES.made("size-change-midway.h264")
def _size_change(path: Path) -> None:
    raw_h264(path, keep=lambda *_: True, frames=12)
    first = path.read_bytes()
    encode(path, draw(12, 96, 80), format="h264")
    path.write_bytes(first + path.read_bytes())


FILES["no-keyframe-start.h264"] = lambda p: raw_h264(p, keep=lambda kind, n: kind != 5 or n > 0)
FILES["no-keyframe-at-all.h264"] = lambda p: raw_h264(
    p, keep=lambda kind, _: kind != 5, frames=12, gop=250
)
FILES["no-parameter-sets.h264"] = lambda p: raw_h264(p, keep=lambda kind, _: kind not in (7, 8))
