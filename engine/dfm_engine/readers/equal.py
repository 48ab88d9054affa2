"""Equal content is one clip and one identity, so a copy can never sit in training and in test."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from dfm_engine.readers.files import shown

__all__ = ["Merged", "merge_equal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What a list of clips comes to.

    Attributes:
        kept: places of the clips that stay, the first of each content, in order.
        copies: (place, place of the one that stays) of the others.
        identities: of every clip: identities that share content are the one listed first.
        renamed: identities that are another one now, in order of listing.
    """

    kept: tuple[int, ...]
    copies: tuple[tuple[int, int], ...]
    identities: tuple[str, ...]
    renamed: dict[str, str]

    def warnings(self, names: Sequence[str]) -> list[str]:
        """For a person; `names` of the clips."""
        found: list[str] = []
        if self.copies:
            examples = shown((f"{names[a]} = {names[b]}" for a, b in self.copies), limit=2)
            found.append(
                f"{len(self.copies)} clips have the content of another and are left out: {examples}"
            )
        if self.renamed:
            examples = shown((f"{name} -> {kept}" for name, kept in self.renamed.items()), limit=5)
            found.append(
                f"{len(self.renamed)} identities share content with another and are taken as it: "
                f"{examples}"
            )
        return found


def merge_equal(identities: Sequence[str], contents: Sequence[Hashable]) -> Merged:
    """Find copies, and the people whom they show to be one.

    Args:
        identities: who is seen in each clip.
        contents: equal for clips of equal content.
    """
    first: dict[Hashable, int] = {}
    order: dict[str, int] = {}
    leader: dict[str, str] = {}
    copies: list[tuple[int, int]] = []

    def find(identity: str) -> str:
        while leader[identity] != identity:
            identity = leader[identity]
        return identity

    for place, (identity, content) in enumerate(zip(identities, contents, strict=True)):
        order.setdefault(identity, len(order))
        leader.setdefault(identity, identity)
        kept = first.setdefault(content, place)
        if kept != place:
            copies.append((place, kept))
            ends = sorted({find(identities[kept]), find(identity)}, key=order.__getitem__)
            leader[ends[-1]] = ends[0]
    return Merged(
        kept=tuple(first.values()),
        copies=tuple(copies),
        identities=tuple(map(find, identities)),
        renamed={name: find(name) for name in leader if find(name) != name},
    )
