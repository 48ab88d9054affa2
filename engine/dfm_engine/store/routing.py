"""Who decodes a clip: NVDEC through DALI, or PyAV on the CPU; and why.

NVDEC is a fixed circuit: what it was not built for it refuses, or, worse, decodes to something
else. So a clip goes there only if a table of rules finds nothing against it; each rule is one line
of `RULES` with the sentence that a user reads. The facts come from a `Probe` (the whole file was
decoded) or from a `ClipOutline` (its index and first picture were read).

What is decided here and not later in the graph:

- Limited-range BT.709, BT.2020, FCC and SMPTE 240M streams do go to NVDEC, although DALI converts
  them as BT.601: both conversions are linear and share offsets, so one 3x3 matrix turns the one
  into the other (`rgb_correction`), and what that loses is only what BT.601 clipped. (DALI's own
  offsets are not BT.601's; that constant is taken off first: `dali_trial`.)
- Full range goes to the CPU: DALI takes it from the bitstream alone, FFmpeg from the container
  too, and where the two disagree no matrix mends what was clipped.
- Turned clips do go to NVDEC: the box is turned into stored pixels, the small crop is turned
  upright. Mirroring and non-square pixels, which are rare, do not.

Source: NVIDIA Video Codec SDK, NVDEC application note (profiles, sizes); DALI's `color_space.cu`
and `frames_decoder_gpu.cc` (matrices, frame index, session cache).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from dfm_engine.media.colour import Orientation
from dfm_engine.media.outline import ClipOutline
from dfm_engine.media.probe import Probe

__all__ = ["HOPPER", "RULES", "Route", "SizeLimits", "Stream", "rgb_correction", "route"]

CHUNK_BYTES = 1 << 30
"""Decoded pictures of one clip that NVDEC holds at once: 172 of 1920x1080."""

MOST_CHUNKS = 4
"""Every chunk decodes from the keyframe before it, often the clip's first: n chunks cost n times
n / 2 of them, while a CPU reads the clip once."""

ALIGNMENT_PX = 16
"""DALI looks a decoder session up by coded size and keeps it by shown size; they agree here."""


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """Pictures that one decoder takes, in pixels."""

    min_width: int
    min_height: int
    max_width: int
    max_height: int


HOPPER: Mapping[str, SizeLimits] = {
    "h264": SizeLimits(48, 16, 4096, 4096),
    "hevc": SizeLimits(144, 144, 8192, 8192),
}
"""What H100 and H200 document; `NvidiaFacts.nvdec_sizes` is what the device itself says."""

PROFILES: Mapping[str, frozenset[str]] = {
    "h264": frozenset({"Baseline", "Constrained Baseline", "Main", "High"}),
    "hevc": frozenset({"Main"}),
}
MATRICES = frozenset({"untagged", "bt601", "bt709", "bt2020", "fcc", "smpte240m"})
CONTAINERS = frozenset({"mov", "matroska"})

# Kr and Kb of each matrix: ITU-R BT.601-7, BT.709-6, BT.2020-2; 47 CFR 73.682; SMPTE ST 240.
_LUMA = {
    "untagged": (0.299, 0.114),
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "fcc": (0.30, 0.11),
    "smpte240m": (0.212, 0.087),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What routing looks at.

    Attributes:
        container, codec, profile, pix_fmt: as FFmpeg names them; None where unknown.
        width, height: of the stored pictures, before turning.
        rotation: degrees counter-clockwise to upright.
        is_mirrored, is_interlaced, has_square_pixels: claims about the first picture.
        matrix: as `media.colour.Colour` names it.
        is_full_range: samples span 0-255.
        frames: pictures that are shown.
        listed: pictures that the file's index lists, or None where it has none.
        is_whole: every picture decoded, or nothing says otherwise; and it is no still.
        is_only_stream: no other stream of the file is known to hold pictures.
    """

    container: str | None
    codec: str | None
    profile: str | None
    pix_fmt: str | None
    width: int
    height: int
    rotation: int = 0
    is_mirrored: bool = False
    is_interlaced: bool = False
    has_square_pixels: bool = True
    matrix: str = "untagged"
    is_full_range: bool = False
    frames: int = 0
    listed: int | None = None
    is_whole: bool = True
    is_only_stream: bool = True

    @classmethod
    def of_probe(cls, probe: Probe) -> Self:
        """The facts of a file that was decoded in full."""
        turned = probe.rotation in (90, 270)
        width, height = probe.width or 0, probe.height or 0
        words = {warning.split(":")[0] for warning in probe.warnings}
        return cls(
            container=probe.container,
            codec=probe.codec,
            profile=probe.profile,
            pix_fmt=probe.pix_fmt,
            width=height if turned else width,
            height=width if turned else height,
            rotation=probe.rotation or 0,
            is_mirrored="mirrored" in words,
            is_interlaced=bool(probe.interlaced),
            has_square_pixels="pixel-aspect" not in words,
            matrix=probe.colour_matrix or "untagged",
            is_full_range=probe.colour_range == "full",
            frames=probe.frames or 0,
            listed=probe.header_frames,
            is_whole=probe.verdict == "accept" and not probe.is_still,
            is_only_stream="video-streams" not in words,
        )

    @classmethod
    def of_outline(cls, outline: ClipOutline) -> Self:
        """The facts of a file whose index and first picture were read."""
        return cls(
            container=outline.container,
            codec=outline.codec,
            profile=outline.profile,
            pix_fmt=outline.pix_fmt,
            width=outline.width,
            height=outline.height,
            rotation=outline.orientation.degrees,
            is_mirrored=outline.orientation.is_mirrored,
            is_interlaced=outline.is_interlaced,
            has_square_pixels=outline.has_square_pixels,
            matrix=outline.colour.matrix,
            is_full_range=outline.colour.is_full_range,
            frames=len(outline.times_s),
            listed=outline.listed,
            is_whole=outline.is_plain,
            is_only_stream=outline.is_only_stream,
        )

    @property
    def orientation(self) -> Orientation:
        """What turns stored pixels upright, mirroring left aside."""
        return {
            90: Orientation(transpose=True, mirror_rows=True),
            180: Orientation(mirror_columns=True, mirror_rows=True),
            270: Orientation(transpose=True, mirror_columns=True),
        }.get(self.rotation, Orientation())

    @property
    def is_aligned(self) -> bool:
        """Coded and shown size are the same."""
        return self.width % ALIGNMENT_PX == 0 == self.height % ALIGNMENT_PX

    def chunks(self, wanted: int) -> int:
        """Parts in which so many pictures are decoded."""
        return -(-wanted // self.chunk_frames)

    @property
    def chunk_frames(self) -> int:
        """Pictures of one part, at least one."""
        return max(1, CHUNK_BYTES // max(1, self.width * self.height * 3))


@dataclass(frozen=True, slots=True)
class Route:
    """Where a clip goes.

    Attributes:
        to: `nvdec` or `cpu`.
        reason: a sentence; for `nvdec`, what is done about an oddity, or "".
        needs_check: the first picture is to be compared with PyAV's.
    """

    to: Literal["nvdec", "cpu"]
    reason: str = ""
    needs_check: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """Something against NVDEC: its name, whether it holds, and the sentence about it."""

    name: str
    holds: Callable[[Stream, SizeLimits | None, int], bool]
    says: Callable[[Stream, SizeLimits | None, int], str]


RULES: tuple[Rule, ...] = (
    Rule(
        "not-whole",
        lambda s, limits, wanted: not s.is_whole,
        lambda s, limits, wanted: "is a still, is damaged, or its index leaves pictures out",
    ),
    Rule(
        "codec",
        lambda s, limits, wanted: limits is None or s.codec not in PROFILES,
        lambda s, limits, wanted: f"{s.codec} is not decoded on the GPU here",
    ),
    Rule(
        "container",
        lambda s, limits, wanted: s.container not in CONTAINERS,
        lambda s, limits, wanted: f"container {s.container} has no index of its pictures",
    ),
    Rule(
        "several-streams",
        lambda s, limits, wanted: not s.is_only_stream,
        lambda s, limits, wanted: "holds several streams of pictures; DALI takes none by name",
    ),
    Rule(
        "pixel-format",
        lambda s, limits, wanted: s.pix_fmt not in ("yuv420p", "yuvj420p"),
        lambda s, limits, wanted: f"samples are {s.pix_fmt}; NVDEC decodes 8-bit 4:2:0",
    ),
    Rule(
        "profile",
        lambda s, limits, wanted: s.profile not in PROFILES[s.codec or ""],
        lambda s, limits, wanted: f"profile {s.profile} of {s.codec} is not in NVDEC",
    ),
    Rule(
        "full-range",
        lambda s, limits, wanted: s.is_full_range,
        lambda s, limits, wanted: "is full range, which DALI and FFmpeg look up in two places",
    ),
    Rule(
        "matrix",
        lambda s, limits, wanted: s.matrix not in MATRICES,
        lambda s, limits, wanted: f"colour matrix {s.matrix} has no correction",
    ),
    Rule(
        "odd-size",
        lambda s, limits, wanted: bool(s.width % 2 or s.height % 2),
        lambda s, limits, wanted: f"{s.width}x{s.height} has an odd side",
    ),
    Rule(
        "too-small",
        lambda s, limits, wanted: (
            limits is not None and (s.width < limits.min_width or s.height < limits.min_height)
        ),
        lambda s, limits, wanted: f"{s.width}x{s.height} is below NVDEC's least size",
    ),
    Rule(
        "too-large",
        lambda s, limits, wanted: (
            limits is not None and (s.width > limits.max_width or s.height > limits.max_height)
        ),
        lambda s, limits, wanted: f"{s.width}x{s.height} is above NVDEC's largest size",
    ),
    Rule(
        "interlaced",
        lambda s, limits, wanted: s.is_interlaced,
        lambda s, limits, wanted: "is interlaced, and the GPU's decoder may weave it otherwise",
    ),
    Rule(
        "pixel-aspect",
        lambda s, limits, wanted: not s.has_square_pixels,
        lambda s, limits, wanted: "has pixels that are not square",
    ),
    Rule(
        "mirrored",
        lambda s, limits, wanted: s.is_mirrored,
        lambda s, limits, wanted: "its display matrix mirrors it",
    ),
    Rule(
        "hidden-pictures",
        lambda s, limits, wanted: s.listed is not None and s.listed != s.frames,
        lambda s, limits, wanted: f"its index lists {s.listed} pictures, {s.frames} are shown",
    ),
    Rule(
        "too-long",
        lambda s, limits, wanted: s.chunks(wanted) > MOST_CHUNKS,
        lambda s, limits, wanted: (
            f"{wanted} pictures of {s.width}x{s.height} take {s.chunks(wanted)} passes"
        ),
    ),
)
"""In this order; the first that holds decides. Variable frame rate is no rule: pictures are asked
for by their place in the file, and who wants them by time has looked the places up."""


def route(
    stream: Stream,
    *,
    wanted: int | None = None,
    limits: Mapping[str, SizeLimits] | None = None,
) -> Route:
    """Where a clip is decoded.

    Args:
        stream: its facts.
        wanted: how many of its pictures; None for all.
        limits: sizes by codec that this device decodes; `HOPPER` where left out. A codec that is
            not in it is not decoded there.
    """
    size = (HOPPER if limits is None else limits).get(stream.codec or "")
    count = stream.frames if wanted is None else wanted
    for rule in RULES:
        if rule.holds(stream, size, count):
            return Route("cpu", f"{rule.name}: {rule.says(stream, size, count)}")
    notes: list[str] = []
    if stream.matrix not in ("untagged", "bt601"):
        notes.append(f"{stream.matrix} is corrected after DALI's BT.601")
    if stream.rotation:
        notes.append(f"turned by {stream.rotation} degrees after cropping")
    if not stream.is_aligned:
        notes.append("its coded size is larger than shown: a decoder session of its own")
    if stream.chunks(count) > 1:
        notes.append(f"in {stream.chunks(count)} parts")
    needs_check = not stream.is_aligned or stream.codec != "h264"
    return Route("nvdec", "; ".join(notes), needs_check)


def rgb_correction(matrix: str) -> NDArray[np.float32]:
    """What turns RGB that was converted by BT.601 into RGB by the stream's own matrix.

    Both are R'G'B' = A (Y' - 16, Cb - 128, Cr - 128) with the same scales of luma and chroma, so
    the correction is A_own A_601^-1: 3x3, no offset, rows that sum to 1 (greys stay).

    Args:
        matrix: one of `MATRICES`.

    Returns:
        (3, 3) float32, for column vectors (R, G, B); the identity for BT.601 and untagged.
    """
    own, assumed = _rgb_from_ycc(*_LUMA[matrix]), _rgb_from_ycc(*_LUMA["bt601"])
    if _LUMA[matrix] == _LUMA["bt601"]:
        return np.eye(3, dtype=np.float32)
    return (own @ np.linalg.inv(assumed)).astype(np.float32)


def _rgb_from_ycc(red: float, blue: float) -> NDArray[np.float64]:
    green = 1 - red - blue
    ycc = np.array(
        [
            [red, green, blue],
            [-red / (1 - blue) / 2, -green / (1 - blue) / 2, 0.5],
            [0.5, -green / (1 - red) / 2, -blue / (1 - red) / 2],
        ]
    )
    return np.linalg.inv(ycc)


T = TypeVar("T")


def by_size(items: Iterable[T], stream_of: Callable[[T], Stream]) -> list[T]:
    """Sort clips so that those of one codec and size follow each other, else in their order.

    A decoder session is kept per size, and mixed sizes evict one another.
    """

    def key(item: T) -> tuple[str, int, int]:
        stream = stream_of(item)
        return stream.codec or "", stream.height, stream.width

    return sorted(items, key=key)
