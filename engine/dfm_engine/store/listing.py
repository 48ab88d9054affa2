"""What there is to store: a built data set, folders of clips, or folders of pictures.

- A built data set (`manifest.parquet`) says everything: label, action, quality, identity, split,
  twin, hash and length. Its clips are canonical, so they are taken whole and probed by their hash.
- Any other folder is searched: `train/`, `val/` and `test/` directly below it are parts, `real/`
  and `fake/` below those (or directly) are labels; without them every clip is real. What is left
  is read by a reader of `sources` for clips, or as folders of pictures, each of which is a clip
  (the tree that FOMM's training wants; the identity is the name before its first `#`).

Equal content is one clip and one identity, in all of it (`repeats`). Nothing is decoded here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from dfm_engine.clip import QUALITIES, Quality
from dfm_engine.columns import text_of_path
from dfm_engine.errors import MediaError, UsageError
from dfm_engine.jobs import MANIFEST
from dfm_engine.manifest import read_manifest
from dfm_engine.media.containers import MEDIA_SUFFIXES
from dfm_engine.quarantine import QuarantineRow
from dfm_engine.readers.files import clean_text, find_media, natural_key
from dfm_engine.sources import READERS as CLIP_READERS
from dfm_engine.sources import list_sources
from dfm_engine.store.repeats import without_repeats
from dfm_engine.store.sampling import list_pictures

__all__ = ["READERS", "DataListing", "ListedClip", "list_data"]

READERS = (*CLIP_READERS, "built", "pictures")
PARTS = ("train", "val", "test")

Label = Literal["real", "fake"]
LABELS: tuple[Label, ...] = ("real", "fake")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedClip:
    """A clip that may be stored; see `index.StoredClip` for what is not said here.

    Attributes:
        file: absolute path.
        kind: a video file, or a folder of pictures.
        sha256: of a file, hex; None for a folder.
        clip_frames: pictures in it; None where it has to be decoded to know.
    """

    key: str
    file: Path
    path: str
    kind: Literal["video", "pictures"] = "video"
    clip_id: str
    label: Label = "real"
    action: str | None = None
    quality: Quality | None = None
    identity: str
    split: str | None = None
    pair_clip_id: str | None = None
    sha256: str | None = None
    clip_frames: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataListing:
    """What a folder holds.

    Attributes:
        root: the folder.
        reader: what read it: `built`, `pictures`, or one of `sources.READERS`; several by commas.
        clips: in the order of the store.
        refused: files that cannot be clips.
        warnings: sentences for a person.
    """

    root: Path
    reader: str
    clips: tuple[ListedClip, ...]
    refused: tuple[QuarantineRow, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    @property
    def is_built(self) -> bool:
        """A data set of ours, whose manifest vouches for its clips."""
        return self.reader == "built"

    def digest(self) -> str:
        """A hash of all that is listed, absolute paths aside."""
        digest = hashlib.sha256()
        for clip in self.clips:
            facts = asdict(clip)
            del facts["file"]
            digest.update(json.dumps(facts, sort_keys=True).encode())
        return digest.hexdigest()


def list_data(
    root: Path,
    *,
    reader: str = "auto",
    qualities: Sequence[Quality] = QUALITIES,
    identity_csv: Path | None = None,
    identity_regex: str | None = None,
) -> DataListing:
    """List the clips of a folder.

    Args:
        root: see the module's docstring.
        reader: `built`, `pictures`, a reader of clips, or `auto`: `built` where there is a
            manifest; `pictures` where more folders of pictures than clips are found.
        qualities: of a built data set, which files.
        identity_csv: for the readers of clips, see `sources.list_sources`.
        identity_regex: likewise.

    Raises:
        UsageError: no such folder, nothing in it, or a reader that does not fit.
    """
    if reader not in READERS:
        raise UsageError(f"unknown reader {reader!r}; known are {', '.join(READERS)}")
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise UsageError(
            f"--data {os.fspath(root)!r} {state}; give a built data set or a folder of clips"
        )
    root = root.absolute()
    if reader == "built" or (reader == "auto" and (root / MANIFEST).is_file()):
        return _list_built(root, qualities)
    listings = [
        _labelled(
            _list_leaf(folder, reader, identity_csv=identity_csv, identity_regex=identity_regex),
            root,
            split,
            label,
        )
        for folder, split, label in _leaves(root)
    ]
    clips, repeated = without_repeats([clip for listing in listings for clip in listing.clips])
    return DataListing(
        root=root,
        reader=",".join(dict.fromkeys(listing.reader for listing in listings)),
        clips=clips,
        refused=tuple(row for listing in listings for row in listing.refused),
        warnings=(*dict.fromkeys(w for listing in listings for w in listing.warnings), *repeated),
    )


def _list_built(root: Path, qualities: Sequence[Quality]) -> DataListing:
    rows = [row for row in read_manifest(root / MANIFEST) if row["outcome"] == "passed"]
    extras = {row["clip_id"] for row in rows if row["is_extra"]}
    clips = [
        ListedClip(
            key=f"{row['clip_id']}.{row['quality']}",
            file=root / row["path"],
            path=row["path"],
            clip_id=row["clip_id"],
            label=row["label"],
            action=row["action"],
            quality=row["quality"],
            identity=row["identity"],
            split=row["split"],
            pair_clip_id=row["pair_clip_id"],
            sha256=row["sha256"],
            clip_frames=row["frames"],
        )
        for row in rows
        if row["quality"] in qualities and row["clip_id"] not in extras
    ]
    if not clips:
        raise UsageError(
            f"the data set {os.fspath(root)!r} holds no clip of quality {', '.join(qualities)}"
        )
    warnings = (f"{len(extras)} clips beyond their action's quota are left out",) if extras else ()
    return DataListing(root=root, reader="built", clips=tuple(clips), warnings=warnings)


def _leaves(root: Path) -> Iterator[tuple[Path, str | None, Label | None]]:
    """The folders that hold clips, with the part and the label that their names say."""
    parts: list[tuple[Path, str | None]] = [
        (root / part, part) for part in PARTS if (root / part).is_dir()
    ]
    for folder, split in parts or [(root, None)]:
        if all((folder / label).is_dir() for label in LABELS):
            for label in LABELS:
                yield folder / label, split, label
        else:
            yield folder, split, None


def _list_leaf(
    root: Path, reader: str, *, identity_csv: Path | None, identity_regex: str | None
) -> DataListing:
    folders = _picture_folders(root)
    if reader == "auto" and folders:
        found = find_media(root)
        clips = sum(not file.is_still for file in found.files)
        reader = "pictures" if len(folders) > clips else "auto"
    if reader == "pictures":
        if not folders:
            raise UsageError(f"{os.fspath(root)!r} holds no folder of pictures")
        return DataListing(root=root, reader=reader, clips=tuple(map(_picture_clip, folders)))
    listing = list_sources(
        root, reader=reader, identity_csv=identity_csv, identity_regex=identity_regex
    )
    return DataListing(
        root=root,
        reader=listing.reader,
        clips=tuple(
            ListedClip(
                key=text_of_path(clip.path),
                file=clip.path,
                path=text_of_path(clip.path),
                clip_id=clip.sha256[:16],
                identity=clip.identity,
                sha256=clip.sha256,
            )
            for clip in listing.clips
        ),
        refused=tuple(
            QuarantineRow(
                path=text_of_path(error.path),
                stage="list",
                kind=error.kind,
                reason=error.reason,
            )
            for error in listing.refused
        ),
        warnings=listing.warnings,
    )


def _picture_folders(root: Path) -> list[tuple[Path, int]]:
    """Folders directly below that hold pictures, in natural order, and how many."""
    found: list[tuple[Path, int]] = []
    for folder in sorted(root.iterdir(), key=lambda path: natural_key(path.name)):
        is_named_like_clip = folder.suffix.lower() in MEDIA_SUFFIXES
        if folder.name.startswith(".") or is_named_like_clip or not folder.is_dir():
            continue
        try:
            count = len(list_pictures(folder))
        except MediaError:
            continue
        if count:
            found.append((folder, count))
    return found


def _picture_clip(found: tuple[Path, int]) -> ListedClip:
    folder, count = found
    return ListedClip(
        key=text_of_path(folder),
        file=folder,
        path=text_of_path(folder),
        kind="pictures",
        clip_id="",
        identity=clean_text(folder.name.split("#")[0]) or clean_text(folder.name),
        clip_frames=count,
    )


def _labelled(
    listing: DataListing, root: Path, split: str | None, label: Label | None
) -> DataListing:
    """The listing of one leaf, in the words of the whole: paths below `root`."""
    clips: list[ListedClip] = []
    for clip in listing.clips:
        below = text_of_path(clip.file.relative_to(root))
        clips.append(
            replace(
                clip,
                key=below,
                path=below,
                clip_id=clip.clip_id or hashlib.sha256(below.encode()).hexdigest()[:16],
                label=label or "real",
                split=split,
            )
        )
    prefix = text_of_path(root) + "/"
    refused = tuple(replace(row, path=row.path.removeprefix(prefix)) for row in listing.refused)
    return replace(listing, clips=tuple(clips), refused=refused)
