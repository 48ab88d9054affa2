"""Listings of files that are nothing but names."""

from __future__ import annotations

import os
from pathlib import Path


def put(root: Path, relative: str, content: str | None = None) -> Path:
    """A file whose content is its own name, unless given."""
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.fsencode(relative if content is None else content))
    return path


def seen(listing, root: Path) -> list[tuple[str, str]]:
    return [(clip.path.relative_to(root).as_posix(), clip.identity) for clip in listing.clips]


def kinds(listing) -> dict[str, str]:
    return {error.path.name: error.kind for error in listing.refused}
