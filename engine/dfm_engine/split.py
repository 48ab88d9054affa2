"""Give every clip its part of the data set: train, val or test.

A fake and the real clip that it was made from are always in one part; otherwise a detector could
know the person, or the very background, of a test clip from training.

- `identity-disjoint`: every identity is drawn by a hash of the seed and its name. A clip that is
  added later moves nobody else, at the price that shares are met on average only.
- `random-video`: the same draw per source clip; identities recur across parts, as in most of the
  field's random splits.
- `paper-ordered`: per action by list order, 700/150/150 of 1,000. The authors describe their split
  as the first, the next and the last clips of each class; identities recur across parts.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dfm_engine.actions import Action
from dfm_engine.errors import UsageError
from dfm_engine.readers.files import natural_key
from dfm_engine.recipe import Splits

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRow:
    """What the split of one clip depends on.

    Attributes:
        identity: of the source: who is seen.
        source: names the real clip; a fake and its real twin share it.
        action: of a fake; None for a real clip.
        place: where a fake stands in its action's list, compared in natural order (`7` before
            `12`, `clip7` before `clip12`). Only `paper-ordered` reads it.
        is_extra: a fake beyond the quota; it moves no boundary of `paper-ordered`.
    """

    identity: str
    source: str
    action: Action | None = None
    place: str = ""
    is_extra: bool = False

    def __post_init__(self) -> None:
        if not (self.identity and self.source):
            raise UsageError(f"splitting clips: identity and source must not be blank in {self}")


def assign_splits(rows: Sequence[SplitRow], *, settings: Splits) -> list[Part]:
    """The part of every row, in the order of the rows.

    The parts depend on the set of rows only, never on their order.

    Raises:
        UsageError: one source stands under two identities.
    """
    identities: dict[str, str] = {}
    for row in rows:
        known = identities.setdefault(row.source, row.identity)
        if known != row.identity:
            raise UsageError(
                f"splitting clips: source {row.source!r} has two identities, {known!r} and "
                f"{row.identity!r}; a clip shows one person"
            )
    match settings.kind:
        case "identity-disjoint":
            return [_draw(row.identity, settings) for row in rows]
        case "random-video":
            return [_draw(row.source, settings) for row in rows]
        case "paper-ordered":
            parts = _by_order(rows, settings)
            return [parts[row.source] for row in rows]


def _draw(key: str, settings: Splits) -> Part:
    """A part by a uniform number in [0, 1) that depends on the seed, the kind and the key alone."""
    text = f"{settings.kind}\0{settings.seed}\0{key}".encode("utf-8", "surrogateescape")
    number = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64
    return PARTS[(number >= settings.train) + (number >= settings.train + settings.val)]


def _by_order(rows: Sequence[SplitRow], settings: Splits) -> dict[str, Part]:
    """The part of every source: that of its first fake, else its own place among the others.

    Where a source serves several fakes, its first one in the paper's order of actions decides, so
    that the source stays whole; with one fake per source the shares per action are exact. The
    extras of an action come after its last counted clip, so they lengthen the test part.
    """
    counted: dict[Action | None, dict[tuple[str, str], None]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: (natural_key(row.place), row.source)):
        if not row.is_extra:
            counted[row.action][row.place, row.source] = None  # once for all its qualities
    parts: dict[str, Part] = {}
    for action in (*Action, None):
        sources = [source for _, source in counted[action]]
        if action is None:  # real clips that no fake was made from
            sources = [source for source in sources if source not in parts]
        train_end = int(len(sources) * settings.train + 0.5)
        val_end = int(len(sources) * (settings.train + settings.val) + 0.5)
        for index, source in enumerate(sources):
            parts.setdefault(source, PARTS[(index >= train_end) + (index >= val_end)])
    for row in rows:
        parts.setdefault(row.source, "test")
    return parts
