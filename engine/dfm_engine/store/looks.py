"""Clips of a plain folder looked at once: whole or not, how long, and where the face is.

The clips of a built data set need none of this. Each file is decoded in full by a worker process
(`media.probe_workers`), because damage shows in nothing less; with `--crop face` the face is then
found and boxed as a build does it (`faces.framing`). What was found is kept in `STORE/looks/`, so a
run that was cut goes on without looking again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dfm_engine.clip import Box
from dfm_engine.durable import write_durably
from dfm_engine.errors import FaceError, MediaError
from dfm_engine.media.probe import Probe
from dfm_engine.media.probe_workers import probe_all
from dfm_engine.prepare import PASSING_KINDS
from dfm_engine.recipe import Clips, Faces, Limits
from dfm_engine.store.listing import ListedClip

__all__ = [
    "Crop",
    "Look",
    "add_faces",
    "crop_of_store",
    "find_face",
    "look_at_clips",
    "resolve_crop",
]

Crop = Literal["auto", "face", "whole"]
CROP_FILE = "crop.json"  # beside the looks, which are named by 16 hex digits and more


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one look at a clip found.

    Attributes:
        frames: pictures that decode; 0 if refused before its face was looked for.
        width, height: of the upright picture; 0 likewise.
        fps: mean rate, 0 where a clip has one picture.
        box: of the face, None before that was asked, or where the picture is taken whole.
        first_frame: the first picture that shows the face.
        stage, kind, reason: where and why it was refused, None for a usable clip.
        attempts: workers that died on it.
    """

    frames: int = 0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    box: Box | None = None
    first_frame: int = 0
    stage: str | None = None
    kind: str | None = None
    reason: str | None = None
    attempts: int = 0

    @property
    def is_usable(self) -> bool:
        """Whether it can be stored."""
        return self.kind is None

    @property
    def is_square(self) -> bool:
        """As a clip is that somebody has cropped already."""
        return self.width == self.height

    def refused(self, error: MediaError) -> Look:
        """The same of a clip that cannot be used; its size still counts in `resolve_crop`."""
        stage = "face" if isinstance(error, FaceError) else "probe"
        return replace(self, stage=stage, kind=error.kind, reason=error.reason)


FaceFinder = Callable[[Path, Look], tuple[Box, int]]
"""Gives the box of a clip's face and the first picture that shows it, or raises `MediaError`."""


def look_at_clips(
    clips: Sequence[ListedClip],
    folder: Path,
    *,
    limits: Limits,
    workers: int,
) -> Iterator[tuple[ListedClip, Look]]:
    """Decode every clip that was not looked at before.

    Args:
        clips: video files.
        folder: `STORE/looks`.
        limits: what a file may ask for.
        workers: processes.

    Yields:
        Each clip with what was found: first the known ones, then the others in order.
    """
    unknown: list[ListedClip] = []
    for clip in clips:
        look = _read(_path(folder, clip))
        if look is None:
            unknown.append(clip)
        else:
            yield clip, look
    paths = [clip.file for clip in unknown]
    for index, probed, attempts in probe_all(paths, limits=limits, workers=workers):
        look = _look(probed, attempts)
        if look.kind not in PASSING_KINDS:
            _write(_path(folder, unknown[index]), look)
        yield unknown[index], look


def add_faces(
    looks: Sequence[tuple[ListedClip, Look]], folder: Path, find: Callable[[], FaceFinder]
) -> Iterator[tuple[ListedClip, Look]]:
    """Find the faces of clips; one that has a box already keeps it.

    Args:
        looks: usable clips.
        folder: `STORE/looks`.
        find: makes the finder; called if there is anything to find.

    Yields:
        Each clip with its look, which now has a box or a reason.
    """
    finder: FaceFinder | None = None
    for clip, look in looks:
        if look.box is not None:
            yield clip, look
            continue
        finder = finder or find()
        try:
            box, first_frame = finder(clip.file, look)
            found = replace(look, box=box, first_frame=first_frame)
        except MediaError as error:
            found = look.refused(error)
        if found.kind not in PASSING_KINDS:
            _write(_path(folder, clip), found)
        yield clip, found


def resolve_crop(crop: Crop, looks: Sequence[Look]) -> Literal["face", "whole"]:
    """What `auto` means: whole where every clip that decodes is square, as cropped ones are.

    One answer for all clips: a set half of which is cropped otherwise would tell its labels apart.
    So a clip without a face counts, whenever that was found out.
    """
    if crop != "auto":
        return crop
    return "whole" if all(look.is_square for look in looks if look.width) else "face"


def crop_of_store(crop: Crop, looks: Sequence[Look], folder: Path) -> Literal["face", "whole"]:
    """What `auto` means in a store: resolved once, and kept for every run that goes on with it.

    A later run may see other clips, one that could not be read before for example, and must not
    cut its shards otherwise than those that are done.

    Args:
        crop: asked for.
        looks: of all clips.
        folder: `STORE/looks`.

    Raises:
        EnvironmentUnfit: the answer cannot be written.
    """
    if crop != "auto":
        return crop
    path = folder / CROP_FILE
    try:
        kept = json.loads(path.read_bytes())["crop"]
    except (OSError, ValueError, TypeError, KeyError):
        kept = None
    if kept == "face" or kept == "whole":
        return kept
    resolved = resolve_crop(crop, looks)
    if any(look.width for look in looks):  # else nothing is cut by this answer
        write_durably(path, json.dumps({"crop": resolved}).encode())
    return resolved


def find_face(device: str, limits: Limits) -> FaceFinder:
    """The box that a build would cut a clip by; loads the detector (and torch)."""
    from dfm_engine.faces.box import clip_box
    from dfm_engine.faces.framing import ClipRange, look_at_clip
    from dfm_engine.faces.mtcnn import Mtcnn
    from dfm_engine.machinery import pick_device

    detector = Mtcnn.load(pick_device(device))
    faces, clips = Faces(), Clips(max_frames=limits.frames)

    def find(path: Path, look: Look) -> tuple[Box, int]:
        seen = look_at_clip(
            ClipRange(path=path), detector=detector, limits=limits, faces=faces, clips=clips
        )
        # The detector saw canonical frames; stored ones run at the file's own rate.
        first = math.ceil(seen.first_frame * (look.fps or clips.fps) / clips.fps)
        return clip_box(seen.track, enlarge=faces.enlarge), min(first, look.frames - 1)

    return find


def _look(probed: Probe | MediaError, attempts: int) -> Look:
    if isinstance(probed, MediaError):
        return Look(attempts=attempts).refused(probed)
    if probed.verdict != "accept":  # a damaged clip teaches nobody anything
        kind = probed.error or "corrupt"
        return Look(stage="probe", kind=kind, reason=probed.reason, attempts=attempts)
    return Look(
        frames=probed.frames or 0,
        width=probed.width or 0,
        height=probed.height or 0,
        fps=probed.fps or 0.0,
        attempts=attempts,
    )


def _path(folder: Path, clip: ListedClip) -> Path:
    return folder / f"{(clip.sha256 or clip.clip_id)[:32]}.json"


def _read(path: Path) -> Look | None:
    try:
        facts: dict[str, Any] = json.loads(path.read_bytes())
        box = facts.pop("box")
        return Look(**facts, box=Box(*box) if box else None)
    except (OSError, ValueError, TypeError, KeyError):
        return None  # absent, or not written by this version: look again


def _write(path: Path, look: Look) -> None:
    text = json.dumps(asdict(look), sort_keys=True)
    write_durably(path, os.fsencode(text))
