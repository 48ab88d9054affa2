"""Carry the motion of the driving clip over to the source.

Source: the published animation script; `rel` and `rel_adapt` are its --relative and --adapt_scale.
"""

from __future__ import annotations

import importlib
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from dfm_engine.errors import DfmError, ShapeError, UsageError
from dfm_engine.fomm.geometry import inverse_2x2, product_2x2
from dfm_engine.fomm.values import Keypoints

TransferMode = Literal["abs", "rel", "rel_adapt", "rel_nojac"]


def transfer(
    kp_source: Keypoints,
    kp_driving: Keypoints,
    kp_driving_initial: Keypoints,
    *,
    mode: TransferMode,
) -> Keypoints:
    """The driving keypoints as the generator should be given them.

    | mode | value | jacobian |
    | --- | --- | --- |
    | abs | driving | driving |
    | rel | (driving - initial) + source | J_driving J_initial^-1 J_source |
    | rel_adapt | a (driving - initial) + source | the same |
    | rel_nojac | (driving - initial) + source | J_driving |

    with a = sqrt(area of the source points' hull / area of the initial points' hull).

    Args:
        kp_source: one row, or as many as `kp_driving`.
        kp_driving: B rows.
        kp_driving_initial: of the frame where the motion starts; one row or B.
        mode: see the table.

    Returns:
        B rows.

    Raises:
        UsageError: an unknown mode.
        ShapeError: rows or keypoint counts do not fit.
        DfmError: rel_adapt, and the points of a row lie on a line, so that there is no area.
    """
    if mode not in get_args(TransferMode):
        raise UsageError(f"transfer mode must be one of {get_args(TransferMode)}, found {mode!r}")
    rows = len(kp_driving)
    source, initial = kp_source.expand(rows), kp_driving_initial.expand(rows)
    if not source.value.shape == initial.value.shape == kp_driving.value.shape:
        raise ShapeError(
            f"keypoint counts differ: source {tuple(kp_source.value.shape)}, driving "
            f"{tuple(kp_driving.value.shape)}, initial {tuple(kp_driving_initial.value.shape)}"
        )
    if mode == "abs":
        return kp_driving
    movement = kp_driving.value - initial.value
    if mode == "rel_adapt":
        movement = movement * _movement_scale(kp_source, kp_driving_initial)
    jacobian = kp_driving.jacobian
    if mode != "rel_nojac" and jacobian is not None:
        if source.jacobian is None or initial.jacobian is None:
            raise ShapeError("the driving keypoints have jacobians, source or initial have none")
        change = product_2x2(jacobian, inverse_2x2(initial.jacobian))
        jacobian = product_2x2(change, source.jacobian)
    return Keypoints(movement + source.value, jacobian)


def preload() -> None:
    """Load what `transfer` needs and few commands do: 0.6 s, while nothing waits for it."""
    importlib.import_module("scipy.spatial")


def hull_area(points: NDArray[np.floating]) -> float:
    """Area of the convex hull of (N, 2) points; 0 where they lie on one line."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        return float(ConvexHull(np.asarray(points, dtype=np.float64)).volume)  # 2-D: the area
    except (QhullError, ValueError):
        return 0.0


def _movement_scale(kp_source: Keypoints, kp_initial: Keypoints) -> torch.Tensor:
    """(1 or B, 1, 1), in the dtype of the keypoints; the areas are taken in float64."""
    roots = []
    for name, keypoints in (("source", kp_source), ("initial driving", kp_initial)):
        points = keypoints.value.detach().double().cpu().numpy()
        areas = np.array([hull_area(row) for row in points])
        if not np.all(areas > 0):
            row = int(np.argmin(areas > 0))
            raise DfmError(
                f"rel_adapt: the {name} keypoints of row {row} span no area "
                f"({np.array2string(points[row], precision=3, separator=',')}); "
                "use mode 'rel' for this pair or leave it out"
            )
        roots.append(np.sqrt(areas))
    scale = torch.from_numpy(roots[0] / roots[1])
    return scale.to(kp_source.value)[:, None, None]
