"""List the real clips and the driving clips of a build, with who is seen and which action.

In: folders or tables of clips. Out: a `Listing` of `SourceClip` or `DrivingClip` in natural order,
with SHA-256, and everything that was left out with its reason. Nothing is decoded here.

Equal content is one clip and one identity, so a copy can never sit in training and in test.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dfm_engine.clip import SourceClip
from dfm_engine.errors import MediaError, UsageError
from dfm_engine.readers.driving import DRIVING_COLUMNS, list_driving
from dfm_engine.readers.equal import merge_equal
from dfm_engine.readers.files import (
    Found,
    FoundFile,
    clean_text,
    find_media,
    sha256_files,
    shown,
)
from dfm_engine.readers.layouts import (
    LAYOUTS,
    IdentityRule,
    by_regex,
    detect_layout,
    parent_folder,
)
from dfm_engine.readers.listing import Listing
from dfm_engine.readers.table import read_table

__all__ = ["DRIVING_COLUMNS", "READERS", "Listing", "list_driving", "list_sources"]

READERS = ("auto", *LAYOUTS, "adfes", "folder")


def list_sources(
    root: str | os.PathLike[str],
    *,
    reader: str = "auto",
    identity_csv: str | os.PathLike[str] | None = None,
    identity_regex: str | None = None,
    allow_stills: bool = False,
    hash_cache: Path | None = None,
) -> Listing[SourceClip]:
    """List the real clips of a folder with the identity that each shows.

    Args:
        root: the folder.
        reader: `voxceleb1`, `voxceleb1-fomm`, `adfes` (only the files of `identity_csv`), `folder`,
            or `auto`: a known layout that more than half of the files follow, else `folder`.
        identity_csv: a table with the columns `file, identity`; others are ignored.
        identity_regex: searched in the path relative to `root`; its group `identity`, or its
            first, is the identity.
        allow_stills: list pictures too.
        hash_cache: see `sha256_files`.

    Raises:
        UsageError: no clips there, an unknown reader, arguments that exclude one another, or a
            table or expression that is wrong.
    """
    if reader not in READERS:
        raise UsageError(f"unknown reader {reader!r}; known are {', '.join(READERS)}")
    if identity_csv is not None and identity_regex is not None:
        raise UsageError("identities come from a table or from a regex: give one of them")
    if reader in LAYOUTS and (identity_csv is not None or identity_regex is not None):
        raise UsageError(f"the reader {reader} takes identities from the paths; use reader folder")
    if reader == "adfes" and identity_csv is None:
        raise UsageError("the reader adfes needs a table with the columns file, identity")

    found = find_media(root)
    files = [file for file in found.files if allow_stills or not file.is_still]
    stills = len(found.files) - len(files)
    warnings: list[str] = []
    if stills:
        warnings.append(
            f"{stills} pictures left out; sources.allow_stills in the recipe admits them"
        )
    if found.ignored:
        warnings.append(f"{found.ignored} files that are no media were ignored")
    if not files and not found.refused:
        raise UsageError(
            f"no clip in {str(root)!r}: {stills} pictures, {found.ignored} other files; "
            "give a folder that holds video files"
        )

    name, identify = _identity_rule(
        Path(root), found, files, reader, identity_csv, identity_regex, warnings
    )
    refused = list(found.refused)
    named: list[tuple[FoundFile, str]] = []
    for file in files:
        identity = clean_text(identify(file.relative) or "")
        if identity:
            named.append((file, identity))
        elif name != "adfes":  # whose table names the clips: other files are not meant
            refused.append(MediaError(file.path, "no-identity", f"no identity by reader {name}"))
    if files and not named:
        raise UsageError(
            f"no identity for any of the {len(files)} clips in {str(root)!r}, the first is "
            f"{files[0].relative!r}; the reader {name} needs another table, regex or layout"
        )
    hashes = dict(sha256_files([file.path for file, _ in named], cache=hash_cache))
    clips: list[SourceClip] = []
    for file, identity in named:
        digest = hashes[file.path]
        if isinstance(digest, MediaError):
            refused.append(digest)
        else:
            clips.append(
                SourceClip(
                    path=file.path,
                    sha256=digest,
                    identity=identity,
                    dataset=name,
                    is_still=file.is_still,
                )
            )
    merged = merge_equal([clip.identity for clip in clips], [clip.sha256 for clip in clips])
    warnings += merged.warnings([str(clip.path) for clip in clips])
    return Listing(
        clips=tuple(replace(clips[k], identity=merged.identities[k]) for k in merged.kept),
        reader=name,
        warnings=tuple(warnings),
        refused=tuple(refused),
        ignored=found.ignored,
        stills=stills,
        duplicates=tuple((clips[a].path, clips[b].path) for a, b in merged.copies),
    )


def _identity_rule(
    root: Path,
    found: Found,
    files: list[FoundFile],
    reader: str,
    identity_csv: str | os.PathLike[str] | None,
    identity_regex: str | None,
    warnings: list[str],
) -> tuple[str, IdentityRule]:
    """The reader's name and its rule; adds warnings about what the rule cannot know."""
    if identity_csv is not None:
        rule = _identities_of_table(Path(identity_csv), root, found, warnings)
        return ("adfes" if reader == "adfes" else "folder"), rule
    if identity_regex is not None:
        return "folder", by_regex(identity_regex)
    relatives = [file.relative for file in files]
    layout = LAYOUTS.get(reader) or (detect_layout(relatives) if reader == "auto" else None)
    if layout is not None:
        followers = sum(layout.identity(relative) is not None for relative in relatives)
        if not followers:
            raise UsageError(
                f"no clip of {str(root)!r} follows the layout {layout.name}, {layout.shape}"
            )
        if followers < len(relatives):
            warnings.append(
                f"{len(relatives) - followers} clips do not follow the layout {layout.name}, "
                f"{layout.shape}, and are left out"
            )
        return layout.name, layout.identity
    depths = Counter(relative.count("/") for relative in relatives)
    if depths[0]:
        warnings.append(
            f"{depths[0]} clips lie in no subfolder: each counts as a person of its own, named by "
            "its stem; if people recur, name them by a table or a regex"
        )
    if deep := sum(count for depth, count in depths.items() if depth > 1):
        warnings.append(
            f"{deep} clips lie more than one folder deep: the innermost folder counts as the "
            "person; if it is not, name people by a table or a regex"
        )
    return "folder", parent_folder


def _identities_of_table(
    table: Path, root: Path, found: Found, warnings: list[str]
) -> Callable[[str], str | None]:
    top = Path(os.path.abspath(root))
    known = {str(top / file.relative): file.relative for file in found.files}
    known |= {os.path.realpath(top) + "/" + file.relative: file.relative for file in found.files}
    identities: dict[str, tuple[str, int]] = {}
    absent: list[str] = []
    for row in read_table(table, required=("file", "identity"), optional=None):
        path, identity = row.path("file", root=top), row.text("identity")
        if not identity:
            raise row.error("identity", "must name the person, found nothing")
        relative = known.get(str(path))
        if relative is None:
            absent.append(row.cells["file"])
            continue
        before = identities.setdefault(relative, (identity, row.line))
        if before[0] != identity:
            raise row.error(
                "identity", f"{identity!r}, but line {before[1]} says {before[0]!r} of this file"
            )
    if absent:
        warnings.append(
            f"{len(absent)} files of {str(table)!r} are not among the media files: {shown(absent)}"
        )
    return lambda relative: identities.get(relative, (None, 0))[0]
