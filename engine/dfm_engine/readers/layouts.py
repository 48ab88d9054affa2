"""Known trees of real clips, and who is seen in a file of them by its path alone.

- `voxceleb1`: `<part>/<mp4 or vid>/idNNNNN/<youtube id>/NNNNN.mp4`, read from any level above
  `idNNNNN`, which is the identity.
- `voxceleb1-fomm`: `<train or test>/<person>#<youtube id>#...mp4`, as FOMM's preprocessing writes.
- Any other folder: the parent folder names the person; in a flat folder the stem does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from dfm_engine.errors import UsageError

IdentityRule = Callable[[str], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A tree whose paths name the identity.

    Attributes:
        name: the reader's name.
        shape: the tree, for messages.
        pattern: searched in a relative path; group 1 is the identity.
    """

    name: str
    shape: str
    pattern: re.Pattern[str]

    def identity(self, relative: str) -> str | None:
        """Who is seen in a file, or None where the path is not of this layout."""
        match = self.pattern.search(relative)
        return match.group(1) if match else None


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            name="voxceleb1",
            shape="[<part>/][mp4/]idNNNNN/<youtube id>/NNNNN.mp4",
            pattern=re.compile(r"(?:^|/)(id\d{5})/[A-Za-z0-9_-]{11}/\d{5}\.\w+$", re.ASCII),
        ),
        Layout(
            name="voxceleb1-fomm",
            shape="[<train|test>/]<person>#<youtube id>#....mp4",
            pattern=re.compile(r"(?:^|/)([^/#]+)#[^/#]+#[^/]+\.mp4$"),
        ),
    )
}


def detect_layout(relatives: Sequence[str]) -> Layout | None:
    """The layout that more than half of the files follow, or None."""
    for layout in LAYOUTS.values():
        followers = sum(layout.identity(relative) is not None for relative in relatives)
        if 2 * followers > len(relatives):
            return layout
    return None


def parent_folder(relative: str) -> str:
    """The name of the folder that holds the file; the file's stem where there is none."""
    path = PurePosixPath(relative)
    return path.parent.name or path.stem


def by_regex(expression: str) -> IdentityRule:
    """A rule from a regular expression that is searched in the relative path.

    The group named `identity` is who is seen, without one the first group.

    Raises:
        UsageError: the expression does not compile or has no group.
    """
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise UsageError(f"identity regex {expression!r} does not compile: {error}") from error
    if not pattern.groups:
        raise UsageError(
            f"identity regex {expression!r} has no group; put the part that names the person "
            "in (?P<identity>...)"
        )
    group = "identity" if "identity" in pattern.groupindex else 1

    def rule(relative: str) -> str | None:
        match = pattern.search(relative)
        return match.group(group) if match else None

    return rule
