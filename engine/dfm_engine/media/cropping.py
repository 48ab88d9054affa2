"""The project's crop rule for processes without torch: `dfm_kernels.crop.Cropper` in NumPy.

The rule is written out there: a float box, a triangle filter, the border repeated. Here are the
same banded products in float32, rounded half up; the two differ only where a value lies within
float32 rounding of a half, by one level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["BoxCropper", "middle_square"]

_BLOCK = 8  # as in dfm_kernels.crop

_Block = tuple[slice, slice, NDArray[np.float32]]


class BoxCropper:
    """Cuts one box out of pictures of one size and makes squares of it.

    Args:
        height, width: of the pictures.
        box: x0 y0 x1 y1 in pixel edges; it may reach outside.
        size: side of the result.
    """

    def __init__(self, height: int, width: int, box: Sequence[float], size: int) -> None:
        """Compute the weights.

        Raises:
            ValueError: an empty or reversed box.
        """
        x0, y0, x1, y1 = (float(value) for value in box)
        self.size = size
        self._shape = (height, width, 3)
        vertical, horizontal = _weights(height, y0, y1, size), _weights(width, x0, x1, size)
        self._rows, self._columns = _span(vertical), _span(horizontal)
        self._vertical = _blocks(vertical[:, self._rows])
        eye = np.eye(3)  # keeps the colours interleaved: see dfm_kernels.crop
        self._horizontal = [
            (
                slice(3 * out.start, 3 * out.stop),
                slice(3 * taps.start, 3 * taps.stop),
                np.ascontiguousarray(np.kron(block, eye).T, np.float32),
            )
            for out, taps, block in _blocks(horizontal[:, self._columns])
        ]

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Crop uint8 (H, W, 3) to (size, size, 3).

        Raises:
            ValueError: a picture of another size.
        """
        if picture.shape != self._shape or picture.dtype != np.uint8:
            raise ValueError(
                f"crop: made for uint8 {self._shape}, got {picture.dtype} {picture.shape}"
            )
        part = picture[self._rows, self._columns].astype(np.float32)
        part = part.reshape(len(part), -1)  # (H', W' * 3)
        tall = np.empty((self.size, part.shape[1]), np.float32)
        for out, taps, block in self._vertical:
            np.matmul(block, part[taps], out=tall[out])
        result = np.empty((self.size, 3 * self.size), np.float32)
        for out, taps, block in self._horizontal:
            result[:, out] = tall[:, taps] @ block
        result += 0.5
        return np.clip(result, 0, 255, out=result).astype(np.uint8).reshape(self.size, -1, 3)


def middle_square(height: int, width: int) -> tuple[float, float, float, float]:
    """The largest square in the middle of a picture, as x0 y0 x1 y1."""
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _weights(length: int, x0: float, x1: float, size: int) -> NDArray[np.float64]:
    """(size, length), rows summing to one: `dfm_kernels.crop.crop_weights`."""
    if not (math.isfinite(x0) and math.isfinite(x1) and x1 > x0):
        raise ValueError(f"crop: the box must have x0 < x1 and be finite, got {x0} .. {x1}")
    scale = (x1 - x0) / size
    radius = max(scale, 1.0)
    centre = x0 + (np.arange(size) + 0.5) * scale
    centre = centre.clip(-radius - 1.0, length + radius + 1.0)
    taps = np.floor(centre - radius - 0.5)[:, None] + np.arange(math.ceil(2 * radius) + 2)
    weight = np.maximum(1.0 - np.abs(taps + 0.5 - centre[:, None]) / radius, 0.0)
    weight /= weight.sum(1, keepdims=True)
    matrix = np.zeros((size, length))
    index = taps.clip(0, length - 1).astype(np.int64)
    np.add.at(matrix, (np.arange(size)[:, None], index), weight)
    return matrix


def _span(matrix: NDArray[np.float64]) -> slice:
    """From the first to the last column that any row reads."""
    used = np.flatnonzero(matrix.any(0))
    return slice(int(used[0]), int(used[-1]) + 1)


def _blocks(matrix: NDArray[np.float64]) -> list[_Block]:
    """Cut a banded matrix into (rows, columns they read, float32 values)."""
    blocks: list[_Block] = []
    for start in range(0, len(matrix), _BLOCK):
        rows = matrix[start : start + _BLOCK]
        taps = _span(rows)
        values = np.ascontiguousarray(rows[:, taps], np.float32)
        blocks.append((slice(start, start + len(rows)), taps, values))
    return blocks
