"""One square box for a whole clip, framed as the generator's training data were.

In: the face on every frame. Out: the union of its boxes, widened to a square and by a margin, as
FOMM's crop tool does (Siarohin et al. 2019, `crop-video`): with w and h the union's sides and a the
margin, an axis grows on either side by max(a, ((1 + 2a) other - own) / (2 own)) of itself, which is
the square of side (1 + 2a) max(w, h) around the union's centre. Unlike there it is neither rounded
nor cut off at the picture: the crop clamps at the border, and the square stays one.
"""

from __future__ import annotations

import numpy as np

from dfm_engine.clip import Box, FaceTrack

__all__ = ["clip_box"]

GRID = 1024  # corners lie on multiples of 1/1024 px, so that both sides are the same float


def clip_box(track: FaceTrack, *, enlarge: float) -> Box:
    """The square box of a clip.

    One box for all frames: a box that follows the face would turn its motion into the camera's.

    Args:
        track: the face; only frames on which it was found count.
        enlarge: margin on each side, as a share of the union's longer side.
    """
    boxes = track.boxes[track.found].astype(np.float64)
    start, end = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    side = np.ceil((1 + 2 * enlarge) * (end - start).max() * GRID) / GRID
    corner = np.round(((start + end) / 2 - side / 2) * GRID) / GRID
    x0, y0 = corner.tolist()
    return Box(x0, y0, x0 + float(side), y0 + float(side))
