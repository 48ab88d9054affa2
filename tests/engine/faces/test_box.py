"""One exact square around everything the face does."""

from __future__ import annotations

import numpy as np
import pytest
from dfmtest_faces import make_track

from dfm_engine.faces.box import clip_box


def crop_video(boxes: np.ndarray, increase: float) -> list[float]:
    """FOMM's crop tool, before it rounds and clips: the union, grown towards a square."""
    left, top = boxes[:, :2].min(0)
    right, bottom = boxes[:, 2:].max(0)
    width, height = right - left, bottom - top
    grow_x = max(increase, ((1 + 2 * increase) * height - width) / (2 * width)) * width
    grow_y = max(increase, ((1 + 2 * increase) * width - height) / (2 * height)) * height
    return [left - grow_x, top - grow_y, right + grow_x, bottom + grow_y]


@pytest.mark.parametrize("seed", range(5))
def test_the_box_is_that_of_the_published_crop_tool(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-30, 200, (20, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(80, 200, (20, 2))], 1).astype(np.float32)
    box = clip_box(make_track(boxes), enlarge=0.1)
    np.testing.assert_allclose(box, crop_video(boxes.astype(float), 0.1), atol=2 / 1024)
    assert box.x1 - box.x0 == box.y1 - box.y0  # as floats, not nearly


def test_the_box_holds_every_box_and_the_margin() -> None:
    box = clip_box(make_track([[10, 20, 110, 170], [40, 20, 140, 170]]), enlarge=0.1)
    assert box == (75 - 90, 95 - 90, 75 + 90, 95 + 90)
    assert clip_box(make_track([[10, 20, 110, 170]]), enlarge=0.0) == (-15, 20, 135, 170)


def test_frames_without_the_face_do_not_count() -> None:
    boxes = [[10, 10, 110, 110], [900, 900, 950, 950], [10, 10, 110, 110]]
    box = clip_box(make_track(boxes, found=[True, False, True]), enlarge=0.0)
    assert box == (10, 10, 110, 110)
