"""The box structure of an MP4 or QuickTime file, checked before FFmpeg reads it.

FFmpeg mends what it can and says little: a cut file decodes to fewer frames, a damaged index to a
file without streams. The boxes tell which it was, and the sizes that the index declares, at the
cost of reading the index once. ISO/IEC 14496-12.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

__all__ = ["BoxReport", "inspect_boxes"]

_TOP_LEVEL = frozenset(
    b"ftyp styp moov moof mdat mfra free skip wide pnot sidx ssix udta uuid meta emsg prft pdin "
    b"junk PICT".split()
)
_MAX_INDEX_BYTES = 64 * 2**20
_MAX_BOXES = 100_000
_REQUIRED = {
    b"moov": (b"mvhd", b"trak"),
    b"trak": (b"tkhd", b"mdia"),
    b"mdia": (b"mdhd", b"hdlr", b"minf"),
    b"minf": (b"stbl",),
    b"stbl": (b"stsd", b"stts", b"stsc"),
}


@dataclass(slots=True)
class BoxReport:
    """What the boxes say.

    Attributes:
        truncated: how the file is cut short, or "".
        damaged: what is wrong in the index, or "".
        trailing_bytes: stray bytes after the last box.
        picture_sizes: (width, height) that the video tracks' sample descriptions declare.
        has_edits: some track has an edit list.
        is_fragmented: samples are listed in `moof` boxes.
    """

    truncated: str = ""
    damaged: str = ""
    trailing_bytes: int = 0
    picture_sizes: list[tuple[int, int]] = field(default_factory=list)
    has_edits: bool = False
    is_fragmented: bool = False


class _Damage(Exception):
    """The index contradicts itself."""


def inspect_boxes(file: BinaryIO, size_bytes: int) -> BoxReport:
    """Walk the boxes of an ISO base media file; the file position is left at 0."""
    report = BoxReport()
    index: bytes | None = None
    end_of_boxes = 0
    for kind, start, end in _top_level(file, size_bytes):
        end_of_boxes = min(end, size_bytes)
        report.is_fragmented |= kind == b"moof"
        if end > size_bytes:
            name = kind.decode("ascii")
            report.truncated = (
                f"box {name} ends at byte {end}, the file at {size_bytes}; copy or record it again"
            )
            break
        if kind == b"moov" and index is None:
            if end - start > _MAX_INDEX_BYTES:
                report.damaged = f"an index of {end - start} bytes"
                break
            file.seek(start)
            index = file.read(end - start)
    file.seek(0)
    report.trailing_bytes = size_bytes - end_of_boxes
    if index is None:
        if not report.truncated and not report.damaged:
            report.truncated = "has no index (moov box): the recording or download was broken off"
        return report
    try:
        _check_index(index, size_bytes, report)
    except _Damage as damage:
        report.damaged = str(damage)
    return report


def _top_level(file: BinaryIO, size_bytes: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, payload start, end) until the end, a stray byte or a box reaching too far."""
    offset = 0
    for _ in range(_MAX_BOXES):
        if offset + 8 > size_bytes:
            return
        file.seek(offset)
        head = file.read(16)
        length, kind = struct.unpack_from(">I4s", head)
        start = offset + 8
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack_from(">Q", head, 8)
            start += 8
        elif length == 0:  # to the end of the file
            length = size_bytes - offset
        if kind not in _TOP_LEVEL or length < start - offset:
            return
        yield kind, start, offset + length
        offset += length


def _children(data: bytes, start: int, end: int, parent: bytes) -> Iterator[tuple[bytes, int, int]]:
    while end - start >= 8:
        length, kind = struct.unpack_from(">I4s", data, start)
        if length == 0 and parent in (b"udta", b"meta"):  # QuickTime ends lists by four zeros
            return
        if length < 8 or start + length > end:
            raise _Damage(f"box {_name(kind)} of {length} bytes does not fit in {_name(parent)}")
        yield kind, start + 8, start + length
        start += length


def _check_index(index: bytes, size_bytes: int, report: BoxReport) -> None:
    boxes = _boxes(index, 0, len(index), b"moov")
    for kind, start, end in boxes:
        if kind == b"trak":
            _check_track(index, start, end, size_bytes, report)


def _boxes(index: bytes, start: int, end: int, parent: bytes) -> list[tuple[bytes, int, int]]:
    boxes = list(_children(index, start, end, parent))
    kinds = {kind for kind, _, _ in boxes}
    if b"cmov" in kinds:  # a compressed QuickTime index: left to FFmpeg
        return []
    for needed in _REQUIRED[parent]:
        if needed not in kinds:
            raise _Damage(f"box {_name(parent)} lacks its {_name(needed)}")
    return boxes


def _check_track(index: bytes, start: int, end: int, size_bytes: int, report: BoxReport) -> None:
    track = {kind: (a, b) for kind, a, b in _boxes(index, start, end, b"trak")}
    report.has_edits |= b"edts" in track
    media = {kind: (a, b) for kind, a, b in _boxes(index, *track[b"mdia"], b"mdia")}
    handler_start, handler_end = media[b"hdlr"]
    handler = index[handler_start + 8 : min(handler_start + 12, handler_end)]
    information = {kind: (a, b) for kind, a, b in _boxes(index, *media[b"minf"], b"minf")}
    table = {kind: (a, b) for kind, a, b in _boxes(index, *information[b"stbl"], b"stbl")}
    for kind, entry_bytes in ((b"stts", 8), (b"stsc", 12), (b"stco", 4), (b"co64", 8)):
        if kind in table:
            _entries(index, *table[kind], kind, entry_bytes)
    if b"stsz" in table:
        _check_sample_sizes(index, *table[b"stsz"], size_bytes)
    elif b"stz2" not in table:
        raise _Damage("box stbl lacks its stsz")
    for kind, width in ((b"stco", ">u4"), (b"co64", ">u8")):
        if kind in table:
            offsets = _entries(index, *table[kind], kind, int(width[2:])).view(width)
            if offsets.size and int(offsets.max()) >= size_bytes and not report.truncated:
                raise _Damage(f"a chunk begins at byte {int(offsets.max())}, behind the file's end")
    if handler == b"vide":
        _check_sample_entry(index, *table[b"stsd"], report)


def _entries(index: bytes, start: int, end: int, kind: bytes, entry_bytes: int) -> np.ndarray:
    """The bytes of a table (version and flags, count, entries), after checking that they fit."""
    count = struct.unpack_from(">I", index, start + 4)[0] if end - start >= 8 else -1
    if count < 0 or start + 8 + count * entry_bytes > end:
        raise _Damage(f"box {_name(kind)} claims {count} entries in {end - start} bytes")
    return np.frombuffer(index, np.uint8, count * entry_bytes, start + 8)


def _check_sample_sizes(index: bytes, start: int, end: int, size_bytes: int) -> None:
    if end - start < 12:
        raise _Damage(f"box stsz has {end - start} bytes")
    size, count = struct.unpack_from(">II", index, start + 4)
    if size:
        total = size * count
    elif start + 12 + 4 * count > end:
        raise _Damage(f"box stsz claims {count} samples in {end - start} bytes")
    else:
        total = int(np.frombuffer(index, ">u4", count, start + 12).sum(dtype=np.uint64))
    # Half the file may be missing (a cut is judged elsewhere), so only the absurd is damage here.
    if total > 16 * size_bytes + 2**20:
        raise _Damage(f"box stsz claims {total} bytes of samples in a file of {size_bytes}")


def _check_sample_entry(index: bytes, start: int, end: int, report: BoxReport) -> None:
    """Read the declared size of a video sample entry, and look at its fixed padding."""
    for _, entry, entry_end in _children(index, start + 8, end, b"stsd"):
        if entry_end - entry < 78:
            raise _Damage(f"a video sample description has {entry_end - entry} bytes")
        report.picture_sizes.append(struct.unpack_from(">HH", index, entry + 24))
        name = index[entry + 42 : entry + 74]  # Pascal string in 32 bytes, padded with zeros
        padding = name[1 + min(name[0], 31) :]
        # Some writers put a C string there; only a stray byte amid the zeros is damage.
        if padding[:1] == b"\x00" and padding.strip(b"\x00"):
            raise _Damage("stray bytes in the padding of a sample description")


def _name(kind: bytes) -> str:
    return kind.decode("ascii", "replace")
