"""Non-maximum suppression by torchvision's compiled operator, without importing torchvision.

The package imports every model that it has, which takes 4 s of each start; its operator library
loads in 5 ms.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dfm_engine.errors import EnvironmentUnfit


def batched_nms(boxes: Tensor, scores: Tensor, owner: Tensor, limit: float) -> Tensor:
    """Of boxes of one owner that overlap, keep the best scored.

    Args:
        boxes: (N, 4) x0 y0 x1 y1.
        scores: (N,).
        owner: (N,) integers; boxes of different owners do not suppress each other.
        limit: intersection over union above which a box is dropped.

    Returns:
        (M,) indices, best score first.
    """
    if not len(boxes):
        return torch.empty(0, dtype=torch.int64, device=boxes.device)
    # Every owner has a part of the plane of its own.
    shift = owner.to(boxes) * (boxes.max() + 1)
    return _operator()(boxes + shift[:, None], scores, limit)


@functools.cache
def _operator() -> Callable[[Tensor, Tensor, float], Tensor]:
    spec = importlib.util.find_spec("torchvision")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    libraries = sorted(folder.glob("_C*.so")) if folder else []
    if not libraries:
        raise EnvironmentUnfit(
            "torchvision's compiled operators are not installed: pip install torchvision, "
            "in the version that fits torch (`dfm-engine doctor` says which)"
        )
    torch.ops.load_library(libraries[0])
    return torch.ops.torchvision.nms
