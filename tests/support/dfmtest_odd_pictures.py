"""Still pictures: odd modes, turned, damaged, and headers that claim a wall of pixels."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from dfmtest_drawn_clips import draw
from dfmtest_media_makers import Makers
from PIL import Image

FILES = Makers()


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(draw(1)[0]).convert(mode).save(out, "JPEG", quality=90, **options)
    return out.getvalue()


@FILES.made("still-exif-rotated.jpg")
def _exif(path: Path) -> None:
    image = Image.fromarray(np.ascontiguousarray(np.rot90(draw(1, 64, 84)[0], 1)))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, "JPEG", quality=95, exif=exif)


def png_claiming(width: int, height: int) -> bytes:
    """A one-bit PNG whose header claims a size that its few bytes of data do not hold."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


FILES.content("jpeg-renamed.mp4", jpeg())
FILES.content("still-cmyk.jpg", jpeg("CMYK"))
FILES.content("still-gray.jpg", jpeg("L"))
FILES.content("still-truncated.jpg", jpeg()[: len(jpeg()) // 2])
FILES.content("still-bomb.png", png_claiming(30000, 30000))
FILES.content("still-bomb-decodable.png", png_claiming(12000, 12000))


@FILES.made("still-palette.png", "still-alpha.png", "still-16bit.png")
def _png(path: Path) -> None:
    image = Image.fromarray(draw(1)[0])
    if "palette" in path.name:
        image = image.quantize(32)
    elif "alpha" in path.name:
        image.putalpha(128)
    else:
        image = Image.fromarray(draw(1)[0][..., 0].astype(np.uint16) * 257)
    image.save(path)


FILES.damaged(
    "still-corrupt.png", lambda d: d[:-200] + b"\xff" * 40 + d[-160:], origin="still-palette.png"
)
