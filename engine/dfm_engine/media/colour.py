"""Decoded pictures to upright RGB; matrix and range are stated, never guessed by a library.

The canonical clips are untagged BT.601, real phone clips mostly BT.709: a converter that treats
them differently by accident hands a detector a label. So the matrix and range come from the
stream's tags by the table below, and are passed to swscale explicitly. Chroma is sited in the
middle of its pixels, as DALI's NVDEC path and our own encoder have it. With the flags below the
result is the float formula R = 1.164 (Y - 16) + ... with bilinear chroma, rounded: mean 0.25 and at
most 0.51 levels off. With the siting that H.264 implies it is up to 20 levels off at edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from dfm_engine.clip import Box

__all__ = ["Colour", "Orientation", "RgbConverter", "colour_of", "display_size", "orientation_of"]

FLAGS = (
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
# ISO/IEC 23091-2 matrix coefficients -> (name, swscale's). 2 is "unspecified".
_MATRICES: dict[int, tuple[str, Colorspace | None]] = {
    0: ("rgb", None),
    1: ("bt709", Colorspace.ITU709),
    2: ("untagged", Colorspace.ITU601),
    4: ("fcc", Colorspace.FCC),
    5: ("bt601", Colorspace.ITU601),
    6: ("bt601", Colorspace.ITU601),
    7: ("smpte240m", Colorspace.SMPTE240M),
    9: ("bt2020", Colorspace.BT2020),
    10: ("bt2020", Colorspace.BT2020),
}
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
_MAX_ASPECT = 4.0  # a pixel further from square than this is taken for a broken header


@dataclass(frozen=True, slots=True)
class Colour:
    """How the samples of a picture become RGB.

    Attributes:
        matrix: `bt601`, `bt709`, `bt2020`, `fcc`, `smpte240m`, `rgb` (none is applied),
            `untagged` (BT.601 is applied).
        is_full_range: samples span 0-255 and not 16-235.
        hdr: `PQ`, `HLG` or ""; shown without tone mapping.
        is_supported: False for matrices that no row above names (YCgCo, ICtCp).
    """

    matrix: str
    is_full_range: bool
    hdr: str = ""
    is_supported: bool = True


def colour_of(frame: VideoFrame) -> Colour:
    """The colour description that `RgbConverter` applies to a picture."""
    kind = frame.format.name
    hdr = _HDR_TRANSFERS.get(int(frame.color_trc), "")
    if frame.format.is_rgb or frame.format.has_palette:
        return Colour("rgb", True, hdr)
    is_full = kind.startswith("yuvj") or int(frame.color_range) == ColorRange.JPEG
    code = int(frame.colorspace)
    # Code 0 (RGB) on luma-chroma samples contradicts itself; it counts as untagged.
    name = _MATRICES.get(code or 2, (f"code {code}", None))[0]
    return Colour(name, is_full, hdr, is_supported=(code or 2) in _MATRICES)


@dataclass(frozen=True, slots=True)
class Orientation:
    """What turns stored pixels upright: first transpose, then mirror columns, then mirror rows."""

    transpose: bool = False
    mirror_columns: bool = False
    mirror_rows: bool = False

    @property
    def degrees(self) -> int:
        """Turn counter-clockwise that the display asks for, mirroring left aside."""
        if self.transpose:
            return 270 if self.mirror_columns else 90
        return 180 if self.mirror_rows else 0

    @property
    def is_mirrored(self) -> bool:
        """Whether left and right change sides."""
        return self.transpose ^ self.mirror_columns ^ self.mirror_rows

    def apply(self, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn a picture (H, W, 3), or pictures (..., H, W, 3), upright; contiguous."""
        if self.transpose:
            pictures = pictures.swapaxes(-3, -2)
        if self.mirror_columns:
            pictures = pictures[..., :, ::-1, :]
        if self.mirror_rows:
            pictures = pictures[..., ::-1, :, :]
        return np.ascontiguousarray(pictures)

    def stored_box(self, box: Box, height: int, width: int) -> Box:
        """Where a box of the upright picture lies in the stored one.

        Args:
            box: in pixel edges of the upright picture.
            height: of the upright picture.
            width: likewise.
        """
        x0, y0, x1, y1 = box
        if self.mirror_rows:
            y0, y1 = height - y1, height - y0
        if self.mirror_columns:
            x0, x1 = width - x1, width - x0
        return Box(y0, x0, y1, x1) if self.transpose else Box(x0, y0, x1, y1)


def orientation_of(frame: VideoFrame) -> Orientation:
    """Read the display matrix of a picture; an oblique one counts as the nearest right angle."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation()
    # Rows (a, b, u), (c, d, v), (x, y, w): a point goes to x' = a x + c y, y' = b x + d y.
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), "<i4").astype(np.int64).tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def display_size(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """Size with square pixels: the squeezed side is stretched, none is shrunk.

    An aspect within 1 % of square, beyond 4:1, or absent leaves the size alone.
    """
    ratio = float(aspect or 1)
    if abs(ratio - 1) <= 0.01 or not 1 / _MAX_ASPECT <= ratio <= _MAX_ASPECT:
        return width, height
    return (round(width * ratio), height) if ratio > 1 else (width, round(height / ratio))


class RgbConverter:
    """Turns pictures of one stream into upright RGB; owns the scaler, which is costly to set up.

    (Converting through a picture's own method builds a new scaler each time: 2.6 times slower.)
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._unsited: VideoFrame | None = None

    def convert(self, frame: VideoFrame, *, aspect: Fraction | None = None) -> NDArray[np.uint8]:
        """Give (H, W, 3) uint8 RGB, full range, square pixels, upright.

        Alpha is composited over black.
        """
        width, height = display_size(frame.width, frame.height, aspect)
        colour = colour_of(frame)
        has_alpha = frame.format.has_palette or any(c.is_alpha for c in frame.format.components)
        out = self._reformatter.reformat(
            self._without_siting(frame),
            width=width,
            height=height,
            format="rgba" if has_alpha else "rgb24",
            src_colorspace=_swscale_matrix(colour),
            src_color_range=ColorRange.JPEG if colour.is_full_range else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            interpolation=FLAGS,
            threads=1,
        )
        picture = cast("NDArray[np.uint8]", out.to_ndarray())
        if has_alpha:
            picture = over_black(picture)
        return orientation_of(frame).apply(picture)

    def _without_siting(self, frame: VideoFrame) -> VideoFrame:
        """Copy the samples into a picture that has no chroma location; swscale then centres it.

        Decoders fill in H.264's implied location (left), which cannot be changed on their pictures.
        The copy costs 1.5 % of the conversion (0.16 of 10.8 ms at 1920x1080, one x86 core).
        """
        kind = frame.format
        if kind.is_rgb or kind.has_palette or kind.chroma_width(frame.width) in (0, frame.width):
            return frame
        size = (frame.width, frame.height, kind.name)
        copy = self._unsited
        if copy is None or (copy.width, copy.height, copy.format.name) != size:
            copy = self._unsited = VideoFrame(*size)
        for plane, target in zip(frame.planes, copy.planes, strict=True):
            length = min(plane.line_size, target.line_size)
            _rows(target)[:, :length] = _rows(plane)[: target.height, :length]
        copy.colorspace, copy.color_range = frame.colorspace, frame.color_range
        return copy


def _rows(plane: VideoPlane) -> NDArray[np.uint8]:
    """A plane's bytes, (rows, line size), shared with it."""
    return np.frombuffer(cast("bytes", plane), np.uint8).reshape(-1, plane.line_size)


def over_black(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Composite (H, W, 4) RGBA over black, rounding half up."""
    alpha = picture[..., 3:].astype(np.uint16)
    return ((picture[..., :3] * alpha + 127) // 255).astype(np.uint8)


def _swscale_matrix(colour: Colour) -> Colorspace | None:
    return next((code for name, code in _MATRICES.values() if name == colour.matrix), None)
