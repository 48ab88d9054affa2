"""What goes into and comes out of the networks: rows of keypoints, of source features, of frames.

Each is a batch; `rows[i]` keeps the batch dimension, so that a row stays usable where rows are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from dfm_engine.errors import ShapeError

Self = TypeVar("Self", bound="Rows")


class Rows:
    """Common to the batches below: every field is a tensor whose first dimension is the row."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __len__(self) -> int:
        return len(self._tensors()[0])

    def __getitem__(self: Self, rows: int | slice | Sequence[int] | Tensor) -> Self:
        """The chosen rows; a single index gives a batch of one."""
        if isinstance(rows, int):
            count = len(self)
            if not -count <= rows < count:
                raise IndexError(f"row {rows} of {count}")
            rows = slice(rows % count, rows % count + 1)
        elif not isinstance(rows, slice | Tensor):
            rows = torch.as_tensor(rows, dtype=torch.int64, device=self._tensors()[0].device)
        return self._map(lambda tensor: tensor[rows])

    def expand(self: Self, rows: int) -> Self:
        """One row repeated without a copy; `rows` rows stay as they are.

        Raises:
            ShapeError: neither one row nor `rows` of them.
        """
        if len(self) not in (1, rows):
            raise ShapeError(f"{self!r} has {len(self)} rows and cannot serve {rows}")
        return self._map(lambda tensor: tensor.expand(rows, *tensor.shape[1:]))

    def to(
        self: Self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """A copy on another device or in another precision; itself where nothing changes."""
        return self._map(lambda tensor: tensor.to(device=device, dtype=dtype))

    @classmethod
    def cat(cls: type[Self], batches: Sequence[Self]) -> Self:
        """Batches of equal layout, one below the other."""
        if not batches:
            raise ShapeError(f"nothing to concatenate into {cls.__name__}")
        fields = {}
        for name in (item.name for item in dataclasses.fields(batches[0])):
            parts = [getattr(batch, name) for batch in batches]
            absent = sum(part is None for part in parts)
            if absent not in (0, len(parts)):
                raise ShapeError(f"{absent} of {len(parts)} {cls.__name__} lack their {name}")
            fields[name] = None if absent else torch.cat(parts)
        return cls(**fields)

    def __repr__(self) -> str:
        shapes = (
            f"{item.name}={None if value is None else tuple(value.shape)}"
            for item in dataclasses.fields(self)
            for value in [getattr(self, item.name)]
        )
        return f"{type(self).__name__}({', '.join(shapes)})"

    def _tensors(self) -> list[Tensor]:
        values = (getattr(self, item.name) for item in dataclasses.fields(self))
        return [value for value in values if value is not None]

    def _map(self: Self, change: Callable[[Tensor], Tensor]) -> Self:
        fields: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            fields[item.name] = None if value is None else change(value)
        return type(self)(**fields)


@dataclass(frozen=True, slots=True, repr=False)
class Keypoints(Rows):
    """Where the K points are and how the picture is stretched around each.

    Attributes:
        value: (B, K, 2), (x, y) in [-1, 1]; -1 and 1 are the centres of the outermost pixels.
        jacobian: (B, K, 2, 2), or None for a model made without.
    """

    value: Tensor
    jacobian: Tensor | None = None

    def __post_init__(self) -> None:
        value, jacobian = self.value, self.jacobian
        if value.ndim != 3 or value.shape[2] != 2:
            raise ShapeError(f"keypoints must be (B, K, 2), got {tuple(value.shape)}")
        if jacobian is not None and jacobian.shape != (*value.shape, 2):
            raise ShapeError(
                f"jacobians must be (B, K, 2, 2) matching keypoints {tuple(value.shape)}, "
                f"got {tuple(jacobian.shape)}"
            )


@dataclass(frozen=True, slots=True, repr=False)
class SourceFeatures(Rows):
    """What the generator needs of a source image, computed once per source.

    Attributes:
        encoded: (B, C, h, w), the image after the generator's encoder.
        small: (B, 3, h', w'), the image after the dense motion network's anti-alias.
    """

    encoded: Tensor
    small: Tensor

    def __post_init__(self) -> None:
        if self.encoded.ndim != 4 or self.small.ndim != 4 or len(self.encoded) != len(self.small):
            raise ShapeError(
                "source features must be two (B, C, H, W) of one B, got "
                f"{tuple(self.encoded.shape)} and {tuple(self.small.shape)}"
            )


@dataclass(frozen=True, slots=True, repr=False)
class Animation(Rows):
    """The generator's output.

    Attributes:
        prediction: (B, 3, H, W) in [0, 1].
        occlusion_map: (B, 1, h, w) in [0, 1], 0 hides; None for a model made without.
        deformation: (B, h, w, 2), where in the source each position is looked up.
        mask: (B, K+1, h, w), the share of each sparse motion; index 0 is the background.
        sparse_deformed: (B, K+1, 3, h, w), the small source moved by each sparse motion;
            only from the training path.
        deformed: (B, 3, H, W), the source image moved by the deformation; only from the
            training path.
    """

    prediction: Tensor
    occlusion_map: Tensor | None
    deformation: Tensor
    mask: Tensor
    sparse_deformed: Tensor | None = None
    deformed: Tensor | None = None
