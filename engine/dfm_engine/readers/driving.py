"""List driving clips: by folders named after actions, or by a table.

Equal content under the same action and range is listed once; under two actions it is a warning.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dfm_engine.actions import Action, parse_action
from dfm_engine.clip import DrivingClip
from dfm_engine.errors import MediaError, UsageError
from dfm_engine.readers.files import (
    clean_text,
    find_media,
    natural_key,
    os_error,
    sha256_files,
    shown,
)
from dfm_engine.readers.listing import Listing
from dfm_engine.readers.table import TableRow, read_table

DRIVING_COLUMNS = ("file", "action", "take", "actor", "mirrored", "start_s", "end_s", "consent")
DRIVING_TABLE = "driving.csv"  # read in place of the folders where a driving folder holds it


def list_driving(
    root: str | os.PathLike[str], *, hash_cache: Path | None = None
) -> Listing[DrivingClip]:
    """List driving clips with the action that each shows.

    A folder is read by its subfolders, whose names are actions (`parse_action`: the authors' names
    and their misspelling too); by the table `driving.csv` where it holds one. A table has the
    columns of `DRIVING_COLUMNS`, of which `file` and `action` must be there.

    Args:
        root: a folder, or a table ending in .csv.
        hash_cache: see `sha256_files`.

    Raises:
        UsageError: no usable clip, or a table with a wrong column, action, path or value.
    """
    top = Path(os.path.abspath(root))
    table = top if top.suffix.lower() == ".csv" and not top.is_dir() else top / DRIVING_TABLE
    if table == top or table.is_file():
        return _driving_by_table(table, hash_cache)
    return _driving_by_folder(top, hash_cache)


def _driving_by_folder(top: Path, hash_cache: Path | None) -> Listing[DrivingClip]:
    found = find_media(top)
    warnings: list[str] = []
    unknown: Counter[str] = Counter()
    candidates: list[DrivingClip] = []
    for file in found.files:
        folders = file.relative.split("/")[:-1]
        actions = {action for folder in folders if (action := parse_action(folder))}
        if len(actions) != 1 or file.is_still:
            unknown["/".join(folders) or "."] += not file.is_still
            continue
        candidates.append(
            DrivingClip(path=file.path, sha256="", action=actions.pop(), take=_stem(file.path))
        )
    stills = sum(file.is_still for file in found.files)
    for folder, count in unknown.items():
        if count:
            warnings.append(
                f"{count} clips in {folder!r} left out: its path does not name one action; "
                f"known are {', '.join(Action)}"
            )
    if stills:
        warnings.append(f"{stills} pictures left out: a driving clip moves")
    if found.ignored:
        warnings.append(f"{found.ignored} files that are no media were ignored")
    if not candidates:
        raise UsageError(
            f"no driving clip in {str(top)!r}: put clips into folders named by action "
            f"({', '.join(Action)}) or beside a table {DRIVING_TABLE}"
            + "".join(f"; {warning}" for warning in warnings)
        )
    return _finish_driving(
        candidates,
        reader="folder",
        warnings=warnings,
        refused=list(found.refused),
        ignored=found.ignored,
        stills=stills,
        hash_cache=hash_cache,
    )


def _driving_by_table(table: Path, hash_cache: Path | None) -> Listing[DrivingClip]:
    candidates = [
        _driving_row(row)
        for row in read_table(table, required=DRIVING_COLUMNS[:2], optional=DRIVING_COLUMNS[2:])
    ]
    return _finish_driving(
        candidates,
        reader="csv",
        warnings=[],
        refused=[],
        ignored=0,
        stills=0,
        hash_cache=hash_cache,
    )


def _driving_row(row: TableRow) -> DrivingClip:
    path = row.path("file", root=row.table.parent)
    try:
        regular = path.stat() and path.is_file()
    except OSError as error:
        raise row.error("file", str(os_error(path, error))) from error
    if not regular:
        raise row.error("file", f"{row.cells['file']!r} is no regular file")
    action = parse_action(row.cells["action"])
    if action is None:
        raise row.error(
            "action", f"{row.cells['action']!r} is no action; known are {', '.join(Action)}"
        )
    start_s, end_s = row.seconds("start_s") or 0.0, row.seconds("end_s")
    if end_s is not None and end_s <= start_s:
        raise row.error("end_s", f"must lie after start_s {start_s}, found {end_s}")
    return DrivingClip(
        path=path,
        sha256="",
        action=action,
        take=row.text("take") or _stem(path),
        actor=row.text("actor"),
        mirrored=row.boolean("mirrored"),
        start_s=start_s,
        end_s=end_s,
        consent=row.text("consent"),
    )


def _finish_driving(
    candidates: Iterable[DrivingClip],
    *,
    reader: str,
    warnings: list[str],
    refused: list[MediaError],
    ignored: int,
    stills: int,
    hash_cache: Path | None,
) -> Listing[DrivingClip]:
    """Hash, order, and leave out what says the same twice."""
    ordered = sorted(
        candidates,
        key=lambda c: (natural_key(c.path.as_posix()), c.start_s, c.end_s or 0.0, c.action, c.take),
    )
    paths = list(dict.fromkeys(clip.path for clip in ordered))
    hashes = dict(sha256_files(paths, cache=hash_cache))
    refused += [digest for digest in hashes.values() if isinstance(digest, MediaError)]
    first: dict[tuple[object, ...], DrivingClip] = {}
    actions_of: dict[str, set[Action]] = {}
    duplicates: list[tuple[Path, Path]] = []
    for clip in ordered:
        digest = hashes[clip.path]
        if isinstance(digest, MediaError):
            continue
        listed = replace(clip, sha256=digest)
        key = (digest, clip.action, clip.start_s, clip.end_s, clip.mirrored)
        kept = first.setdefault(key, listed)
        if kept is not listed:
            duplicates.append((listed.path, kept.path))
        elif clip.end_s is None:
            actions_of.setdefault(digest, set()).add(clip.action)
    if duplicates:
        examples = shown((f"{a} = {b}" for a, b in duplicates), limit=2)
        warnings.append(f"{len(duplicates)} driving clips repeat another, left out: {examples}")
    for digest, actions in actions_of.items():
        if len(actions) > 1:
            names = shown(str(c.path) for c in first.values() if c.sha256 == digest)
            warnings.append(f"one content stands under {', '.join(sorted(actions))}: {names}")
    if not first:
        raise UsageError(f"no driving clip could be read: {'; '.join(map(str, refused))}")
    return Listing(
        clips=tuple(first.values()),
        reader=reader,
        warnings=tuple(warnings),
        refused=tuple(refused),
        ignored=ignored,
        stills=stills,
        duplicates=tuple(duplicates),
    )


def _stem(path: Path) -> str:
    return clean_text(path.stem)
