"""Pictures: size first, pixels later, EXIF turned upright.

Pillow's plug-ins are asked by name, chosen by the file's first bytes: each reads only the header
until `load`, so a picture of any declared size is refused before memory is taken.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, ImageOps, JpegImagePlugin, PngImagePlugin

from dfm_engine.errors import MediaError
from dfm_engine.media.colour import over_black
from dfm_engine.media.containers import check_unchanged, open_media, sniff
from dfm_engine.media.reader import check_size
from dfm_engine.recipe import Limits

__all__ = ["load_still", "open_still", "read_still"]

_READERS: dict[str, Callable[[BinaryIO], Image.Image]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
}
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError)


def read_still(path: str | os.PathLike[str], *, limits: Limits | None = None) -> NDArray[np.uint8]:
    """Read a JPEG, PNG or BMP as uint8 (H, W, 3) RGB, upright.

    Palette, grey, CMYK and 16-bit samples become 8-bit RGB; alpha is composited over black; ICC
    profiles are ignored; of an animated PNG the first picture counts.

    Raises:
        MediaError: `not-a-video` (no picture), `truncated`, `corrupt`, `too-large`, `too-small`,
            and those of `containers.open_media`.
    """
    limits = limits or Limits()
    with open_media(path, limits=limits) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        container = sniff(path, file)
        if not container.is_still:
            raise MediaError(path, "not-a-video", "is a clip, not a picture; use read_frames")
        image = open_still(path, file, container.name, limits=limits)
        picture = load_still(path, image)
        check_unchanged(path, file, size_bytes)
        return picture


def open_still(
    path: str | os.PathLike[str], file: BinaryIO, name: str, *, limits: Limits
) -> Image.Image:
    """Read a picture's header and check its size; no pixel is decoded."""
    try:
        image = _READERS[name](file)
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    check_size(path, *image.size, limits, "a picture")
    return image


def load_still(path: str | os.PathLike[str], image: Image.Image) -> NDArray[np.uint8]:
    """Decode an opened picture to upright RGB."""
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    if upright.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip it
        grey = (np.asarray(upright).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if upright.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in upright.info:
        return over_black(np.asarray(upright.convert("RGBA")))
    return np.ascontiguousarray(upright.convert("RGB"))


def _damaged(path: str | os.PathLike[str], error: Exception) -> MediaError:
    is_cut = "truncated" in str(error).lower() or isinstance(error, EOFError)
    kind = "truncated" if is_cut else "corrupt"
    return MediaError(path, kind, f"the picture does not decode ({error}); copy it again")
