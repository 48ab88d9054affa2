"""The face stage of `dfm-engine probe`: does a file that decodes show one usable face?

In: a path. Out: measurements of the face, or the `FaceError` that `frame_clip` would raise (other
than `not-frontal`, which depends on what the clip is for).
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from dfm_engine.faces.framing import ClipRange, Detector, look_at_clip
from dfm_engine.faces.pose import head_pose
from dfm_engine.recipe import BuildRecipe

__all__ = ["check_faces"]


def check_faces(
    path: str | os.PathLike[str], *, is_still: bool, detector: Detector, recipe: BuildRecipe
) -> dict[str, Any]:
    """Look for the face of a whole file, not only of the part that a build would use.

    Args:
        path: a file that decodes.
        is_still: a picture.
        detector: finds faces.
        recipe: its sections limits, faces and clips are read.

    Returns:
        Plain values: `first_frame`, `found_share`, `face_px` (median longer side of its box),
        `most_faces`, `yaw_deg`, `pitch_deg`, `roll_deg` (of the most frontal look), `warnings`
        (sentences).

    Raises:
        MediaError: the file does not decode.
        FaceError: no usable face; see docs/inputs.md for the kinds.
    """
    clips = dataclasses.replace(recipe.clips, max_frames=recipe.limits.frames)
    clip = ClipRange(path=Path(path), is_still=is_still)
    seen = look_at_clip(
        clip, detector=detector, limits=recipe.limits, faces=recipe.faces, clips=clips
    )
    track = seen.track
    boxes = track.boxes[track.found]
    pose = head_pose(track.landmarks[track.found])
    best = int(pose.frontality.argmax())
    warnings: list[str] = []
    if seen.most_faces > 1:
        warnings.append(
            f"up to {seen.most_faces} faces in a picture; the subject is the one that is large and "
            "stays"
        )
    if seen.first_frame:
        warnings.append(f"shows the face from frame {seen.first_frame} on; the rest is cut off")
    return {
        "first_frame": seen.first_frame,
        "found_share": round(track.found_share, 4),
        "face_px": round(float(np.median((boxes[:, 2:] - boxes[:, :2]).max(1))), 1),
        "most_faces": seen.most_faces,
        "yaw_deg": round(float(pose.yaw_deg[best]), 1),
        "pitch_deg": round(float(pose.pitch_deg[best]), 1),
        "roll_deg": round(float(pose.roll_deg[best]), 1),
        "warnings": warnings,
    }
