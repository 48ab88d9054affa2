"""What a file is, judged by its first bytes, and the only way this project opens one.

FFmpeg guesses formats generously: a text file named clip.mp4 can make it open other files or wait
on a socket. So a file is opened here, as a regular file and nothing else, its first bytes are
looked at, and FFmpeg is later handed the open file object together with the one demuxer that the
bytes ask for. Nothing that it could read as a protocol, a pattern or a playlist ever reaches it.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from dfm_engine.errors import MediaError
from dfm_engine.recipe import Limits

__all__ = [
    "IMAGE_SUFFIXES",
    "MEDIA_SUFFIXES",
    "Container",
    "check_unchanged",
    "cut_short",
    "open_media",
    "sniff",
]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp"})
VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".qt",
        ".3gp",
        ".3g2",
        ".mkv",
        ".webm",
        ".avi",
        ".ts",
        ".m2ts",
        ".mts",
        ".mpg",
        ".mpeg",
        ".vob",
        ".m2v",
        ".wmv",
        ".asf",
        ".flv",
        ".h264",
        ".264",
        ".avc",
        ".hevc",
        ".h265",
        ".265",
        ".gif",
    ]
)
MEDIA_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES

_HEAD_BYTES = 4096
_IMAGES = ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"BM", "bmp"))
_ISO_BOXES = frozenset(
    (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof", b"sidx")
)
_PICTURE_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif"))
_MAGIC = (  # (offset, bytes, FFmpeg's demuxer)
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
    (0, b"FLV\x01", "flv"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c", "asf"),
    (0, b"\x00\x00\x01\xba", "mpeg"),
    (0, b"\x00\x00\x01\xb3", "mpegvideo"),
)
# Texts that make a player open other files or addresses.
_SCRIPTS = (
    (b"#extm3u", "an HLS playlist"),
    (b"ffconcat", "a concat script"),
    (b"v=0", "an SDP session description"),
    (b"[playlist]", "a playlist"),
    (b"[reference]", "an ASX redirection"),
    (b"<asx", "an ASX redirection"),
    (b"rtsptext", "an RTSP redirection"),
    (b"<smil", "a SMIL presentation"),
    (b"<mpd", "a DASH manifest"),
    (b"<?xml", "an XML document, as DASH and XSPF playlists are"),
)
_FOREIGN = (
    (b"<!doctype html", "an HTML page, as failed downloads leave it"),
    (b"<html", "an HTML page, as failed downloads leave it"),
    (b"pk\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%pdf", "a PDF document"),
    (b"oggs", "an Ogg stream"),
    (b"riff", "a RIFF file, but no AVI"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the real file"),
)
ALLOWED = "MP4/MOV, Matroska/WebM, AVI, MPEG-TS/PS, ASF, FLV, raw H.264/HEVC, GIF; JPEG, PNG, BMP"


@dataclass(frozen=True, slots=True)
class Container:
    """What the first bytes say.

    Attributes:
        name: FFmpeg's demuxer name (`mov`, `matroska`, ...), or `jpeg`, `png`, `bmp` for stills.
        is_still: one picture, read by Pillow and not by FFmpeg.
        warning: an oddity worth telling, or "".
    """

    name: str
    is_still: bool = False
    warning: str = ""


def open_media(path: str | os.PathLike[str], *, limits: Limits) -> BinaryIO:
    """Open a regular, non-empty file of bearable size for reading.

    Raises:
        MediaError: kinds `not-found`, `not-a-regular-file`, `permission`, `unreadable`,
            `empty-file`, `too-large`.
    """
    try:
        # O_NONBLOCK: a fifo swapped in between a check and the open would block for ever.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise _open_error(path, error) from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "a device, fifo or socket"
            raise MediaError(path, "not-a-regular-file", f"is {what}; name a file")
        if status.st_size == 0:
            raise MediaError(path, "empty-file", "has 0 bytes; copy or download it again")
        if status.st_size > limits.file_gib * 2**30:
            raise MediaError(
                path,
                "too-large",
                f"is {status.st_size / 2**30:.1f} GiB, the limit is {limits.file_gib:g} "
                "(limits.file_gib); cut it first",
            )
        return os.fdopen(handle, "rb", buffering=1 << 16)
    except BaseException:
        os.close(handle)
        raise


def _open_error(path: str | os.PathLike[str], error: OSError | ValueError) -> MediaError:
    number = getattr(error, "errno", None)
    if number in (errno.ENOENT, errno.ENOTDIR):
        return MediaError(path, "not-found", "no such file, or a link to nothing; check the path")
    if number in (errno.EACCES, errno.EPERM):
        return MediaError(path, "permission", "may not be read; change its permissions")
    if number in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
        return MediaError(
            path, "not-a-regular-file", "is a link loop, directory or socket; name a file"
        )
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return MediaError(path, "unreadable", f"the system refused to open it: {text}")


def check_unchanged(path: str | os.PathLike[str], file: BinaryIO, size_bytes: int) -> None:
    """Fail if the file shrank, grew or vanished since it was opened.

    Raises:
        MediaError: kind `truncated`.
    """
    try:
        same = os.fstat(file.fileno()).st_size == size_bytes and os.path.exists(path)
    except OSError:
        same = False
    if not same:
        raise MediaError(
            path, "truncated", "changed or vanished while it was read; wait for its writer to end"
        )


def sniff(path: str | os.PathLike[str], file: BinaryIO) -> Container:
    """Name the one format a file may be read as.

    A picture counts only under a picture's suffix, a GIF only under `.gif`; a video counts under
    any name.

    Raises:
        MediaError: `not-a-video`, or `forbidden-format` for scripts that name other files.
    """
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    suffix = Path(os.fsdecode(path)).suffix.lower()
    picture = next((name for magic, name in _IMAGES if head.startswith(magic)), None)
    if picture is not None:
        if suffix not in IMAGE_SUFFIXES:
            raise MediaError(
                path,
                "not-a-video",
                f"holds a {picture.upper()} picture under a name that is no picture's; rename it",
            )
        return Container(picture, is_still=True)
    if head.startswith((b"GIF87a", b"GIF89a")):
        if suffix != ".gif":
            raise MediaError(path, "not-a-video", "holds a GIF under another name; rename it")
        return Container("gif")
    demuxer = _video_format(head, suffix)
    if demuxer is None:
        raise _refusal(path, head)
    if demuxer == "mov" and head[4:8] == b"ftyp" and head[8:12] in _PICTURE_BRANDS:
        raise MediaError(path, "not-a-video", "is a HEIF/AVIF picture; convert it to JPEG or PNG")
    warning = f"name: a video named {suffix}" if suffix in IMAGE_SUFFIXES else ""
    return Container(demuxer, warning=warning)


def _video_format(head: bytes, suffix: str) -> str | None:
    if head[4:8] in _ISO_BOXES:
        return "mov"
    for offset, magic, name in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name
    for first, step in ((0, 188), (4, 192)):  # plain transport stream, Blu-ray's with time codes
        marks = head[first : first + 4 * step : step]
        if len(head) >= first + 2 * step and set(marks) == {0x47}:
            return "mpegts"
    return _annex_b(head, suffix)


def _annex_b(head: bytes, suffix: str) -> Literal["h264", "hevc"] | None:
    start = head.find(b"\x00\x00\x01", 0, 16)
    if start < 0 or head[:start].strip(b"\x00") or len(head) < start + 5:
        return None
    first, second = head[start + 3], head[start + 4]
    is_hevc_start = first in (0x40, 0x42, 0x44, 0x46, 0x4E) and second == 1  # VPS SPS PPS AUD SEI
    if is_hevc_start or (suffix in (".hevc", ".h265", ".265") and not first & 0x80):
        return "hevc"
    return "h264" if not first & 0x80 and first & 0x1F in (1, 5, 6, 7, 8, 9) else None


def _refusal(path: str | os.PathLike[str], head: bytes) -> MediaError:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for mark, what in _SCRIPTS:
        if text.startswith(mark):
            return MediaError(
                path,
                "forbidden-format",
                f"is {what}, which makes a player open other files; name those files themselves",
            )
    for mark, what in _FOREIGN:
        if text.startswith(mark):
            return MediaError(path, "not-a-video", f"is {what}")
    return MediaError(
        path, "not-a-video", f"begins with bytes {head[:8].hex(' ')}; read are {ALLOWED}"
    )


def cut_short(name: str, file: BinaryIO, size_bytes: int) -> str:
    """How a file (not MP4) ends too early by its own account, or ""; the position is left at 0.

    Streams that state no length (live Matroska, raw H.264) cannot tell.
    """
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    file.seek(max(0, size_bytes - 64))
    tail = file.read()
    file.seek(0)
    if name == "gif" and not tail.rstrip(b"\x00").endswith(b";"):
        return "ends without its trailer; copy it again"
    if name == "mpegts" and size_bytes % (188 if head[0] == 0x47 else 192):
        return "ends within a transport packet; copy or record it again"
    end = 0
    if name == "matroska":
        end = _matroska_end(head)
    elif name == "avi":
        end = 8 + int.from_bytes(head[4:8], "little")
    if end <= size_bytes:
        return ""
    return f"is {size_bytes} bytes long, its header states {end}; copy or record it again"


def _matroska_end(head: bytes) -> int:
    """The byte where the Segment ends, or 0 if it does not say (RFC 8794, RFC 9559)."""
    length, at, _ = _ebml_length(head, 4)  # behind the four bytes that name the EBML header
    at += length
    if head[at : at + 4] != b"\x18\x53\x80\x67":
        return 0
    length, start, is_unknown = _ebml_length(head, at + 4)
    return 0 if is_unknown else start + length


def _ebml_length(head: bytes, at: int) -> tuple[int, int, bool]:
    """A variable-length integer at `at`: its value, where it ends, whether it means unknown."""
    first = head[at] if at < len(head) else 0x80
    width = 9 - first.bit_length() if first else 8
    largest = (1 << 7 * width) - 1
    value = int.from_bytes(head[at : at + width]) & largest
    return value, at + width, value == largest
