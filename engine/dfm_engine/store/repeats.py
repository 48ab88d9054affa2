"""One clip per content, also across parts and labels, where a copy would be a leak.

In: the listed clips of a whole folder. Out: the first of each content, with one identity for people
who share content. Files were hashed when they were listed. Of folders of pictures only those are
read that have as many pictures of the same sizes as another: a copy under other names is found, a
million pictures are not read for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dfm_engine.errors import MediaError
from dfm_engine.readers.equal import merge_equal
from dfm_engine.store.sampling import content_sha256, list_pictures

if TYPE_CHECKING:
    from dfm_engine.store.listing import ListedClip

__all__ = ["without_repeats"]


def without_repeats(
    clips: Sequence[ListedClip],
) -> tuple[tuple[ListedClip, ...], tuple[str, ...]]:
    """The clips without copies, and warnings that tell of them."""
    folders = _equal_folders([clip.file for clip in clips if clip.kind == "pictures"])
    contents = [clip.sha256 or folders.get(clip.file) or clip.key for clip in clips]
    merged = merge_equal([clip.identity for clip in clips], contents)
    kept = tuple(replace(clips[k], identity=merged.identities[k]) for k in merged.kept)
    return kept, tuple(merged.warnings([clip.path for clip in clips]))


def _equal_folders(folders: Sequence[Path]) -> dict[Path, str]:
    """A hash of the content of each folder that has another's; looks closer at ever fewer."""
    hashes: dict[Path, str] = {}

    def content(folder: Path) -> str:
        return hashes.setdefault(folder, content_sha256(folder, "pictures"))

    groups = [list(folders)]
    for key in (_first_size, _sizes, content):
        groups = [part for group in groups for part in _split(group, key)]
    return {folder: hashes[folder] for group in groups for folder in group}


def _split(folders: Sequence[Path], key: Callable[[Path], Hashable]) -> list[list[Path]]:
    """Groups of at least two folders of one key; what cannot be read is in none."""
    parts: dict[Hashable, list[Path]] = defaultdict(list)
    for folder in folders:
        try:
            parts[key(folder)].append(folder)
        except (OSError, MediaError):
            continue  # its turn comes, with a reason
    return [part for part in parts.values() if len(part) > 1]


def _first_size(folder: Path) -> Hashable:
    pictures = list_pictures(folder)
    return len(pictures), pictures[0].stat().st_size


def _sizes(folder: Path) -> Hashable:
    return tuple(picture.stat().st_size for picture in list_pictures(folder))
