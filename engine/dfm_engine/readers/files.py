"""Find the media files of a folder, order them as a person would, hash them.

In: a folder that may hold anything, symlink loops, fifos and names that are not UTF-8 included.
Out: media files in natural order, and what was left out, with the reason. Nothing is decoded.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dfm_engine.errors import MediaError, UsageError
from dfm_engine.media.containers import IMAGE_SUFFIXES, MEDIA_SUFFIXES

_KINDS = {
    errno.ENOENT: "not-found",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.ELOOP: "not-a-regular-file",
}
_CHUNK_BYTES = 1 << 20
_HASH_THREADS = 4  # hashing releases the interpreter lock; more only seeks more on a disk


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """One media file of a folder.

    Attributes:
        path: absolute; symlinks are kept as they are written.
        relative: from the folder that was searched, with forward slashes.
        is_still: a picture, by its suffix.
    """

    path: Path
    relative: str
    is_still: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a folder holds.

    Attributes:
        files: in natural order of their relative path.
        ignored: how many files have no media suffix, or are hidden.
        refused: what has a media suffix and is no readable regular file; unreadable folders.
    """

    files: tuple[FoundFile, ...]
    ignored: int
    refused: tuple[MediaError, ...]


def natural_key(relative: str) -> tuple[tuple[tuple[tuple[str, int], ...], ...], str]:
    """Sort key by which `clip2` comes before `clip10`, folder by folder, case aside.

    The string itself breaks ties (`1` and `01`), so the order is total.
    """
    return tuple(_natural_part(part) for part in relative.split("/")), relative


def find_media(root: str | os.PathLike[str]) -> Found:
    """Search a folder for media files; see `Found`.

    Symlinked folders are followed, each real folder is visited once, so loops end.

    Raises:
        UsageError: `root` is no folder, or cannot be read.
    """
    top = Path(os.path.abspath(root))
    if not top.is_dir():
        state = "is a file" if top.exists() else "does not exist"
        raise UsageError(f"listing clips: {str(top)!r} {state}; give a folder of clips")
    files: list[FoundFile] = []
    refused: list[MediaError] = []
    ignored = 0
    for path in _walk(top, refused):
        suffix = path.suffix.lower()
        if path.name.startswith(".") or suffix not in MEDIA_SUFFIXES:
            ignored += 1
        elif error := _why_not_regular(path):
            refused.append(error)
        else:
            relative = path.relative_to(top).as_posix()
            is_still = suffix in IMAGE_SUFFIXES
            files.append(FoundFile(path=path, relative=relative, is_still=is_still))
    if any(error.path == top for error in refused):
        raise UsageError(f"listing clips: {refused[0]}")
    files.sort(key=lambda file: natural_key(file.relative))
    refused.sort(key=lambda error: natural_key(str(error.path)))
    return Found(files=tuple(files), ignored=ignored, refused=tuple(refused))


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, hex, read in pieces of 1 MiB.

    Raises:
        MediaError: the file cannot be read, of kind `not-found`, `permission` or `io-error`.
    """
    try:
        with open(path, "rb", buffering=0) as stream:
            digest = hashlib.sha256()
            while piece := stream.read(_CHUNK_BYTES):
                digest.update(piece)
    except OSError as error:
        raise os_error(path, error) from error
    return digest.hexdigest()


def sha256_files(
    paths: Sequence[Path], *, cache: Path | None = None
) -> Iterator[tuple[Path, str | MediaError]]:
    """SHA-256 of many files, in their order; a file that cannot be read yields its error.

    Args:
        paths: files to read.
        cache: a JSON file of earlier results, read and rewritten. An entry counts while inode,
            size, modification time and change time are all the same. A damaged cache is ignored.
    """
    known = _read_cache(cache)
    kept: dict[str, list[object]] = {}

    def hash_one(path: Path) -> str | MediaError:
        try:
            status = os.stat(path)
            stamp = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            entry = known.get(str(path), [])
            digest = str(entry[-1]) if entry[:-1] == stamp else sha256_file(path)
        except OSError as error:
            return os_error(path, error)
        except MediaError as error:
            return error
        kept[str(path)] = [*stamp, digest]
        return digest

    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        yield from zip(paths, pool.map(hash_one, paths), strict=True)
    if cache is not None:
        _write_cache(cache, {**known, **kept})


def os_error(path: str | os.PathLike[str], error: OSError) -> MediaError:
    """The system's error about one file, with the kind that docs/inputs.md gives it."""
    kind = _KINDS.get(error.errno or 0, "io-error")
    return MediaError(
        path, kind, f"cannot be read: {error.strerror}; make it readable or remove it"
    )


def clean_text(text: str) -> str:
    """Text that any file format holds: Unicode NFC, no lone surrogates, no blanks around it.

    Bytes of a file name that are not UTF-8 are spelt out as escapes.
    """
    spelt = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return unicodedata.normalize("NFC", spelt).strip()


def _natural_part(part: str) -> tuple[tuple[str, int], ...]:
    pieces = re.split(r"([0-9]+)", part)
    texts, numbers = pieces[::2], [*map(int, pieces[1::2]), -1]
    return tuple((text.casefold(), number) for text, number in zip(texts, numbers, strict=True))


def _walk(top: Path, refused: list[MediaError]) -> Iterator[Path]:
    """Every entry that is no folder, each real folder once, real ones before symlinks to them.

    A folder named like a clip counts as an entry: it would be frames, which nothing here reads.
    """
    visited: set[tuple[int, int]] = set()
    pending = [top]
    while pending:
        folder = pending.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            entries = sorted(
                os.scandir(folder), key=lambda e: (e.is_symlink(), natural_key(e.name))
            )
        except OSError as error:
            refused.append(os_error(folder, error))
            continue
        folders: list[Path] = []
        for entry in entries:
            is_named_like_clip = Path(entry.name).suffix.lower() in MEDIA_SUFFIXES
            if not _is_folder(entry) or is_named_like_clip:
                yield Path(entry.path)
            elif not entry.name.startswith("."):
                folders.append(Path(entry.path))
        pending += reversed(folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):  # a symlink to itself
        return entry.is_dir()
    return False


def _why_not_regular(path: Path) -> MediaError | None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return os_error(path, error)
    if stat.S_ISREG(mode):
        return None
    what = "a folder named like a clip" if stat.S_ISDIR(mode) else "a fifo, socket or device"
    return MediaError(path, "not-a-regular-file", f"is {what}; remove or rename it")


def _read_cache(cache: Path | None) -> dict[str, list[object]]:
    if cache is None:
        return {}
    try:
        table = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(table, dict):
        return {}
    return {path: entry for path, entry in table.items() if _is_cache_entry(entry)}


def _is_cache_entry(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 5
        and isinstance(entry[-1], str)
        and re.fullmatch("[0-9a-f]{64}", entry[-1]) is not None
    )


def _write_cache(cache: Path, table: dict[str, list[object]]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    draft = cache.with_name(f"{cache.name}.tmp-{os.getpid()}")
    draft.write_text(json.dumps(table, sort_keys=True), encoding="utf-8")
    os.replace(draft, cache)


def shown(paths: Iterable[str], limit: int = 3) -> str:
    """A few names for a message, quoted, with odd characters spelt out."""
    names = list(paths)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more
