"""Files that are either whole or absent, also after a SIGKILL or a full disk.

`write_durably` writes under a temporary name in the same folder, flushes it to the disk and renames
it: a reader of the final name sees the old file or the new one, never a part. What a killed process
leaves behind is a `*.tmp-<pid>` file, which `remove_leftovers` clears when the next run starts.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from dfm_engine.errors import EnvironmentUnfit

LEFTOVER = re.compile(r"\.tmp-\d+$")


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Make `path` hold `data`, atomically and on the disk; folders on the way are made.

    Raises:
        EnvironmentUnfit: the folder cannot be written, or the disk is full. `path` is then as it
            was before and the temporary file is gone.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)  # the rename itself has to reach the disk
    except OSError as error:
        raise EnvironmentUnfit(
            f"writing {os.fspath(path)!r} ({len(data)} bytes): {error.strerror or error}; "
            "free space or permit writing there, then run the same command again: it resumes"
        ) from error


def remove_durably(path: Path) -> None:
    """Make `path` absent, on the disk; nothing happens where it is absent already.

    Raises:
        EnvironmentUnfit: the folder cannot be written.
    """
    try:
        path.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise EnvironmentUnfit(
            f"removing {os.fspath(path)!r}: {error.strerror or error}; permit writing there, then "
            "run the same command again: it resumes"
        ) from error


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete every `*.tmp-<pid>` below `folder`; only the holder of its lock may call this."""
    leftovers = [
        Path(root, name)
        for root, _, names in os.walk(folder)
        for name in names
        if LEFTOVER.search(name)
    ]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return leftovers


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
