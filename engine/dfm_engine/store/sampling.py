"""Chosen frames of one clip, cut and converted to a store's layout; for worker processes.

A clip that is whole and already of the store's size keeps its pixels: an `i420` store then takes
the decoder's own planes, which no conversion has touched. Everything else goes through RGB by its
own colour tags (`media.colour`), is cut by the project's crop rule, and for `i420` goes back by the
conversion that encodes clips (`media.encode.rgb_to_i420`). Never imports torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from dfm_engine.errors import MediaError
from dfm_engine.media.chosen import read_chosen
from dfm_engine.media.colour import Orientation, RgbConverter, colour_of, display_size
from dfm_engine.media.containers import IMAGE_SUFFIXES
from dfm_engine.media.cropping import BoxCropper, middle_square
from dfm_engine.media.encode import rgb_to_i420
from dfm_engine.media.reader import ClipReader
from dfm_engine.media.still import read_still
from dfm_engine.readers.files import natural_key, sha256_file
from dfm_engine.recipe import Limits
from dfm_engine.store.meta import Layout

__all__ = ["ClipSample", "content_sha256", "list_pictures", "sample_clip"]

_OWN_PLANES = frozenset({"untagged", "bt601"})  # matrices that an i420 store may hold as they are


@dataclass(slots=True)
class ClipSample:
    """A clip's frames, to be drawn once, and then the hash of what they were read from."""

    frames: Iterator[NDArray[np.uint8]]
    _is_file: bool
    _hash: list[str] = field(default_factory=list)

    def sha256(self) -> str:
        """Of the file; of a folder, of the hashes of its pictures that were read, hex."""
        if self._is_file:
            return self._hash[0]
        return hashlib.sha256("\n".join(self._hash).encode()).hexdigest()


def sample_clip(
    path: Path,
    *,
    kind: Literal["video", "pictures"],
    clip_frames: int,
    wanted: Sequence[int],
    box: Sequence[float] | None,
    sha256: str | None,
    size_px: int,
    layout: Layout,
    limits: Limits,
) -> ClipSample:
    """Open a clip for its chosen frames; see `sampler.ClipToSample` for the arguments.

    Drawing from the result raises `MediaError` where the clip cannot be used.
    """
    made = ClipSample(iter(()), kind == "video")
    cutter = _Cutter(size_px, layout, box)
    if kind == "pictures":
        made.frames = _pictures(path, clip_frames, wanted, cutter, limits, made._hash)
    else:
        made.frames = _video(path, clip_frames, wanted, sha256, cutter, limits, made._hash)
    return made


def list_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder that is a clip, in the order of their names.

    Raises:
        MediaError: it cannot be read.
    """
    try:
        paths = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
    except OSError as error:
        raise MediaError(folder, "unreadable", f"cannot be listed: {error.strerror}") from error
    visible = [path for path in paths if not path.name.startswith(".")]
    return sorted(visible, key=lambda path: natural_key(path.name))


def content_sha256(path: Path, kind: Literal["video", "pictures"]) -> str:
    """Of a file; of a folder, of the hashes of all its pictures in their order, hex.

    Raises:
        MediaError: it cannot be read.
    """
    if kind == "video":
        return sha256_file(path)
    hashes = "\n".join(sha256_file(picture) for picture in list_pictures(path))
    return hashlib.sha256(hashes.encode()).hexdigest()


def _video(
    path: Path,
    clip_frames: int,
    wanted: Sequence[int],
    sha256: str | None,
    cutter: _Cutter,
    limits: Limits,
    hashes: list[str],
) -> Iterator[NDArray[np.uint8]]:
    found = sha256_file(path)
    if sha256 is not None and found != sha256:
        raise MediaError(
            path,
            "corrupt",
            f"has SHA-256 {found[:16]}... instead of {sha256[:16]}...: it was changed after it was "
            "listed; copy it again",
        )
    for frame, clip in read_chosen(path, wanted, count=clip_frames, limits=limits):
        yield cutter.cut_frame(frame, clip)
    hashes.append(found)


def _pictures(
    folder: Path,
    clip_frames: int,
    wanted: Sequence[int],
    cutter: _Cutter,
    limits: Limits,
    hashes: list[str],
) -> Iterator[NDArray[np.uint8]]:
    paths = list_pictures(folder)
    if len(paths) != clip_frames:
        raise MediaError(
            folder,
            "corrupt",
            f"holds {len(paths)} pictures instead of {clip_frames}: do not change it during a run",
        )
    size: tuple[int, ...] | None = None
    for number in wanted:
        digest = sha256_file(paths[number])
        picture = read_still(paths[number], limits=limits)
        if size is not None and picture.shape != size:
            raise MediaError(
                paths[number],
                "size-change",
                f"is {picture.shape[1]}x{picture.shape[0]}, those before it in its folder are "
                f"{size[1]}x{size[0]}; a folder of pictures is one clip",
            )
        size = picture.shape
        yield cutter.cut(picture)
        hashes.append(digest)


class _Cutter:
    """From a picture to a stored frame; owns the scaler and the weights of one clip."""

    def __init__(self, size_px: int, layout: Layout, box: Sequence[float] | None) -> None:
        self._size, self._layout, self._box = size_px, layout, box
        self._rgb = RgbConverter()
        self._cropper: BoxCropper | None = None
        self._takes_planes: bool | None = None

    def cut_frame(self, frame: VideoFrame, clip: ClipReader) -> NDArray[np.uint8]:
        if self._takes_planes is None:
            self._takes_planes = self._look(frame, clip)
        if self._takes_planes and frame.format.name == "yuv420p":
            return cast("NDArray[np.uint8]", frame.to_ndarray())
        return self.cut(self._rgb.convert(frame, aspect=clip.aspect))

    def _look(self, frame: VideoFrame, clip: ClipReader) -> bool:
        """Whether the decoder's own planes are what is stored."""
        colour, size = colour_of(frame), (self._size, self._size)
        if not colour.is_supported:
            raise MediaError(
                clip.path,
                "unsupported-codec",
                f"has colour matrix {colour.matrix}, which is not read; re-encode it as BT.709",
            )
        return (
            self._layout == "i420"
            and self._box is None
            and colour.matrix in _OWN_PLANES
            and not colour.is_full_range
            and clip.orientation == Orientation()
            and (frame.width, frame.height) == size
            and display_size(frame.width, frame.height, clip.aspect) == size
        )

    def cut(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width, _ = picture.shape
        if self._box is not None or (height, width) != (self._size, self._size):
            if self._cropper is None:
                box = self._box if self._box is not None else middle_square(height, width)
                self._cropper = BoxCropper(height, width, box, self._size)
            picture = self._cropper(picture)
        return picture if self._layout == "rgb24" else rgb_to_i420(picture[None])[0]
