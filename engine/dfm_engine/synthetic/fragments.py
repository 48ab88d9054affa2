"""The surface samples of a batch of pictures as one flat list, and the values they carry."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dfm_engine.synthetic.head import HALF_VIEW, Drawn
from dfm_engine.synthetic.identity import TILE, IdentityBatch

__all__ = ["Fragments"]


class _Lookup(dict[str, Tensor]):
    def __init__(self, at: Fragments) -> None:
        super().__init__()
        self._at = at

    def __missing__(self, name: str) -> Tensor:
        self[name] = value = self._at.who(name)
        return value


@dataclass(frozen=True, slots=True)
class Fragments:
    """P surface samples.

    Attributes:
        drawn: the frames they belong to.
        people: textures of the same frames, one identity per frame.
        frame: (P,) int64, which frame; of length 1 where there is only one (broadcasts).
        part: (P,) int64, a value of `mesh.Part`.
        rest: (P, 3) place on the head at rest, for all that is painted on the skin.
        expressed: (P, 3) place after the expression, for the mouth.
        normal: (P, 3) unit normals in the world.
        size: side of the picture, pixels.
    """

    drawn: Drawn
    people: IdentityBatch
    frame: Tensor
    part: Tensor
    rest: Tensor
    expressed: Tensor
    normal: Tensor
    size: int

    def __repr__(self) -> str:
        return f"Fragments({len(self.part)} of {len(self.people)} frames)"

    def who(self, name: str) -> Tensor:
        """An identity value at each sample, (P,) or (P, 3)."""
        return self._at_samples(self.drawn.who[name])

    def does(self, name: str) -> Tensor:
        """A state value at each sample, (P,)."""
        return self._at_samples(self.drawn.does[name])

    def looked_up_who(self) -> dict[str, Tensor]:
        """All scalar identity values at each sample, fetched when read."""
        return _Lookup(self)

    def per_frame(self, value: Tensor) -> Tensor:
        """Spread a (B, C) value to the samples, (P, C)."""
        return value if len(value) == 1 else value.index_select(0, self.frame)

    def _at_samples(self, value: Tensor) -> Tensor:
        value = value[:, 0] if value.shape[1] == 1 else value
        return value if len(value) == 1 else value.index_select(0, self.frame)

    @property
    def pixel(self) -> Tensor:
        """Side of a pixel in head units, (P,)."""
        return (2 * HALF_VIEW / self.size) / self.who("zoom")

    def take(self, index: Tensor) -> Fragments:
        """The samples named by `index`, (Q,) int64."""
        return Fragments(
            self.drawn,
            self.people,
            self.frame if len(self.frame) == 1 else self.frame.index_select(0, index),
            self.part.index_select(0, index),
            self.rest.index_select(0, index),
            self.expressed.index_select(0, index),
            self.normal.index_select(0, index),
            self.size,
        )

    def noise(self, u: Tensor, v: Tensor) -> Tensor:
        """The identity's periodic noise at (u, v) in tiles, (P, 2): coarse, fine; bilinear."""
        u, v = u * TILE, v * TILE
        column, row = u.floor(), v.floor()
        mix_u, mix_v = (u - column)[:, None], (v - row)[:, None]
        left, upper = column.long() & (TILE - 1), row.long() & (TILE - 1)
        right, lower = (left + 1) & (TILE - 1), (upper + 1) & (TILE - 1)
        table = self.people.noise_tile.view(-1, 2)
        upper, lower = (self.frame * TILE + line for line in (upper, lower))

        def texel(line: Tensor, across: Tensor) -> Tensor:
            return table.index_select(0, line * TILE + across)

        above = torch.lerp(texel(upper, left), texel(upper, right), mix_u)
        return torch.lerp(above, torch.lerp(texel(lower, left), texel(lower, right), mix_u), mix_v)
