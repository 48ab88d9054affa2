"""Files that were cut or changed, are no video at all, or have an odd name."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from dfmtest_media_makers import TABLE, TRACK, Makers, box, patch

FILES = Makers()


# ---- cut, damaged ----------------------------------------------------------------------------


FILES.damaged(
    "truncated-mid-gop.mp4", lambda d: d[: d.index(b"mdat") + len(d[d.index(b"mdat") :]) // 2]
)
FILES.damaged("truncated-last-byte.mp4", lambda d: d[:-1])
FILES.damaged(
    "truncated-no-moov.mp4", lambda d: d[: d.index(b"moov") - 4], origin="ok-moov-end.mp4"
)
FILES.damaged("truncated-inside-moov.mp4", lambda d: d[:-200], origin="ok-moov-end.mp4")
FILES.damaged("truncated-inside-moov-front.mp4", lambda d: d[: d.index(b"stbl")])
FILES.damaged(
    "truncated-fragmented.mp4", lambda d: d[: int(0.7 * len(d))], origin="ok-fragmented.mp4"
)
FILES.damaged("truncated.webm", lambda d: d[: int(0.7 * len(d))], origin="vp9.webm")
FILES.damaged("truncated.avi", lambda d: d[: int(0.7 * len(d))], origin="mjpeg.avi")
FILES.damaged("truncated.gif", lambda d: d[: int(0.7 * len(d))], origin="animated.gif")
FILES.damaged("truncated.ts", lambda d: d[: int(0.7 * len(d))], origin="joined-timestamp-reset.ts")
FILES.damaged("ftyp-only.mp4", lambda d: d[:32])
FILES.damaged(
    "trailing-garbage.mp4",
    lambda d: d + np.random.default_rng(7).integers(0, 256, 3000, np.uint8).tobytes(),
)


def _flip(seed: int, count: int, *, skip: float = 0.0) -> Callable[[bytes], bytes]:
    """Change `count` bytes of the picture data."""

    def change(data: bytes) -> bytes:
        start = data.index(b"mdat") + 4
        start += int(skip * (len(data) - start))
        changed = np.frombuffer(data, np.uint8).copy()
        random = np.random.default_rng(seed)
        at = random.choice(np.arange(start, len(data)), count, replace=False)
        changed[at] ^= random.integers(1, 256, count, np.uint8)
        return changed.tobytes()

    return change


for _seed, _count in ((1, 10), (2, 30), (3, 100), (4, 300)):
    FILES.damaged(f"corrupt-mdat-seed{_seed}.mp4", _flip(_seed, _count))
FILES.damaged("corrupt-hevc-seed1.mp4", _flip(1, 30, skip=0.8), origin="hevc.mp4")
FILES.damaged(
    "corrupt-moov-seed1.mp4",  # a stray byte in the padding of the encoder's name
    lambda d: patch(d, box(d, *TABLE, b"stsd") + 8 + 8 + 72, ">B", 215),
)
FILES.damaged("corrupt-moov-seed2.mp4", lambda d: patch(d, box(d, *TRACK) - 4, ">I", 0x74725A6B))
FILES.damaged(
    "corrupt-moov-seed3.mp4", lambda d: patch(d, box(d, b"moov", b"mvhd") - 8, ">I", 0x4C00006C)
)
FILES.damaged(
    "corrupt-moov-seed4.mp4", lambda d: patch(d, box(d, *TABLE, b"stco") + 8, ">I", 1 << 30)
)


def _hole(data: bytes) -> bytes:
    start = data.index(b"mdat") + 4
    at = start + (len(data) - start) // 3
    return data[:at] + bytes(400) + data[at + 400 :]


FILES.damaged("hole-of-zeros.mp4", _hole)

# ---- no video at all -------------------------------------------------------------------------


FILES.content("zero-bytes.mp4", b"")
FILES.content("still-zero.jpg", b"")
FILES.content("text-renamed.mp4", b"This is a plain text.\n" * 60)
FILES.content("html-error-page.mp4", b"<!DOCTYPE html><html><body>404 not found</body></html>\n")
FILES.content(
    "random-bytes.mp4", np.random.default_rng(5).integers(0, 256, 20000, np.uint8).tobytes()
)
FILES.content("playlist-renamed.mp4", b"#EXTM3U\n#EXTINF:2,\nok-moov-front.mp4\n#EXT-X-ENDLIST\n")
FILES.content("ffconcat-renamed.mp4", b"ffconcat version 1.0\nfile ok-moov-front.mp4\n")
FILES.content(
    "sdp-renamed.mp4",
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
)


@FILES.made("zip-renamed.mp4")
def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.write(path.parent / "ok-moov-front.mp4", "clip.mp4")


@FILES.made("directory.mp4")
def _directory(path: Path) -> None:
    path.mkdir()
    (path / "inside.txt").write_text("a folder named like a clip\n")


# ---- names -----------------------------------------------------------------------------------


for _name in (
    " leading and  double spaces.mp4",
    "имя-人脸-é-😀.mp4",
    "quote'dollar$HOME;semi&.mp4",
    "-leading-dash.mp4",
    "UPPER.MP4",
    "no-extension",
    "percent-%03d.mp4",
):
    FILES.damaged(_name, lambda data: data, origin="single-frame.mp4")
FILES.damaged("duplicate-of-ok.mp4", lambda data: data)
