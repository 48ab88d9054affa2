"""What a file is, and whether it can be used: decoded to its end, never trusted by its header.

A probe never raises for a bad file. `accept` means that every picture decoded without a sign of
damage; `partial` that some did, and that pictures are lost or mended; `reject` that none can be
used, or that a limit or rule forbids it. A build takes `accept` only. No picture is converted to
RGB here. docs/inputs.md lists every kind of error and what to do about it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from av.video.frame import VideoFrame

from dfm_engine.errors import MediaError
from dfm_engine.media.colour import Colour, colour_of, display_size
from dfm_engine.media.containers import check_unchanged, open_media, sniff
from dfm_engine.media.reader import ClipReader
from dfm_engine.media.still import load_still, open_still
from dfm_engine.recipe import Limits

__all__ = ["Probe", "Verdict", "probe"]

Verdict = Literal["accept", "partial", "reject"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What one file is. Fields that were not reached are None.

    Attributes:
        path: as given.
        verdict: `accept`, `partial` or `reject`.
        error: kind of the first damage or of the refusal (docs/inputs.md), None if accepted.
        reason: a sentence for the person who has to fix it, "" if accepted.
        container: FFmpeg's demuxer; for stills `jpeg`, `png`, `bmp`.
        codec, profile, pix_fmt: as FFmpeg names them; for stills `pix_fmt` is Pillow's mode.
        width, height: in pixels, upright and with square pixels: what the decoder hands out.
        sar: width of a stored pixel over its height, as "2:1".
        rotation: degrees counter-clockwise from the stored picture to the upright one.
        colour_matrix, colour_range: as applied (`untagged` is decoded as BT.601); range `limited`
            or `full`.
        interlaced: the first picture is flagged so; it is not deinterlaced.
        vfr: gaps between pictures vary by more than a quarter.
        fps: mean rate, from the first to the last picture.
        duration_s: from the first picture to the end of the last.
        frames: pictures that decoded.
        damaged_frames: those of them that the decoder had to mend.
        header_frames: what the index promises.
        sha256: of the whole file, hex.
        warnings: oddities that lose nothing: a word, a colon, a sentence.
        is_still: one picture in an image file.
    """

    path: Path
    verdict: Verdict = "reject"
    error: str | None = None
    reason: str = ""
    container: str | None = None
    codec: str | None = None
    profile: str | None = None
    pix_fmt: str | None = None
    width: int | None = None
    height: int | None = None
    sar: str | None = None
    rotation: int | None = None
    colour_matrix: str | None = None
    colour_range: str | None = None
    interlaced: bool | None = None
    vfr: bool | None = None
    fps: float | None = None
    duration_s: float | None = None
    frames: int | None = None
    damaged_frames: int | None = None
    header_frames: int | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    warnings: tuple[str, ...] = ()
    is_still: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values; a path that is no UTF-8 keeps its bytes as escapes."""
        values = dataclasses.asdict(self)
        values["path"] = os.fsencode(self.path).decode("utf-8", "backslashreplace")
        values["warnings"] = list(self.warnings)
        return values


def probe(path: str | os.PathLike[str], *, limits: Limits | None = None) -> Probe:
    """Decode a clip or still completely and say what it is.

    Args:
        path: any path; it need not exist.
        limits: what the file may ask for; checked before memory is taken.

    Returns:
        Its description and verdict; a bad file is a verdict, not an exception.
    """
    limits = limits or Limits()
    facts: dict[str, Any] = {"path": Path(os.fsdecode(path))}
    try:
        with open_media(path, limits=limits) as file:
            facts["size_bytes"] = os.fstat(file.fileno()).st_size
            container = sniff(path, file)
            facts["container"] = container.name
            if container.is_still:
                _probe_still(path, file, facts, limits)
            facts["sha256"] = _sha256(file)
            check_unchanged(path, file, facts["size_bytes"])
        if not container.is_still:
            _probe_clip(path, facts, limits)
    except MediaError as error:
        facts |= {"verdict": "reject", "error": error.kind, "reason": error.reason}
    return Probe(**facts)


def _probe_still(path: Any, file: Any, facts: dict[str, Any], limits: Limits) -> None:
    facts |= {"is_still": True, "codec": facts["container"]}
    image = open_still(path, file, facts["container"], limits=limits)
    facts |= {"pix_fmt": image.mode, "width": image.width, "height": image.height}
    height, width, _ = load_still(path, image).shape  # EXIF may have turned it
    facts |= {"verdict": "accept", "frames": 1, "width": width, "height": height}
    facts |= {"colour_matrix": "rgb", "colour_range": "full"}


def _sha256(file: Any) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _probe_clip(path: Any, facts: dict[str, Any], limits: Limits) -> None:
    with ClipReader(path, limits=limits, strict=False) as clip:
        if clip.size_bytes != facts["size_bytes"]:
            raise MediaError(path, "truncated", "changed while it was read; wait for its writer")
        try:
            for number, (frame, _) in enumerate(clip.pictures()):
                if number == 0:
                    _describe_first(clip, frame, facts)
        finally:
            _describe(clip, facts)
        if clip.damages:
            first = clip.damages[0]
            facts |= {"error": first.kind, "reason": first.reason, "verdict": "partial"}
        else:
            facts["verdict"] = "accept"


def _describe_first(clip: ClipReader, frame: VideoFrame, facts: dict[str, Any]) -> None:
    colour = colour_of(frame)
    width, height = display_size(frame.width, frame.height, clip.aspect)
    if clip.orientation.transpose:
        width, height = height, width
    facts |= {
        "pix_fmt": frame.format.name,
        "width": width,
        "height": height,
        "rotation": clip.orientation.degrees,
        "colour_matrix": colour.matrix,
        "colour_range": "full" if colour.is_full_range else "limited",
        "interlaced": bool(frame.interlaced_frame),
    }
    clip.warnings += _oddities(clip, frame, colour)
    if not colour.is_supported:
        raise MediaError(
            clip.path,
            "unsupported-codec",
            f"has colour matrix {colour.matrix}, which is not read; re-encode it as BT.709",
        )


def _oddities(clip: ClipReader, frame: VideoFrame, colour: Colour) -> list[str]:
    found = []
    if display_size(frame.width, frame.height, clip.aspect) != (frame.width, frame.height):
        found.append(f"pixel-aspect: pixels of {clip.aspect} are made square")
    if frame.interlaced_frame:
        found.append("interlaced: fields are shown woven, moving edges comb")
    if colour.hdr:
        found.append(f"hdr: {colour.hdr} is shown without tone mapping, flat and dark")
    if clip.orientation.is_mirrored:
        found.append("mirrored: the display matrix mirrors the picture, which is applied")
    return found


def _describe(clip: ClipReader, facts: dict[str, Any]) -> None:
    line = clip.timeline
    if line.restarts:
        clip.warnings.append(
            f"timestamps: {line.restarts} did not advance and were placed one period later"
        )
    aspect = clip.aspect
    facts |= {
        "codec": clip.codec,
        "profile": clip.profile,
        "sar": f"{aspect.numerator}:{aspect.denominator}" if aspect else None,
        "vfr": line.is_variable if clip.shown > 1 else None,
        "fps": round((clip.shown - 1) / line.last_s, 6) if line.last_s > 0 else None,
        "duration_s": round(line.end_s, 6),
        "frames": clip.shown,
        "damaged_frames": clip.corrupt,
        "header_frames": clip.header_frames,
        "warnings": tuple(clip.warnings),
    }
