"""Frames to a shard: one file, hashed as it is written, whole or absent.

Writing goes past the page cache where the file system allows it (`O_DIRECT`). A store is larger
than what is worth caching, and filling cache pages costs processor time: 3 MB took 0.8 to 7 ms that
way (the more the longer a virtual machine's memory lay untouched), 0.1 to 0.4 ms directly, beside
20 ms for decoding them (two cores of an AMD EPYC, ext4, 2026-11). Space is asked for before
anything is written, so a full disk shows at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dfm_engine.errors import EnvironmentUnfit
from dfm_engine.store.meta import Shard

__all__ = ["ShardWriter"]

Mark = tuple[int, Any]  # rows, and the hash so far


_STAGE_BYTES = 4 << 20  # written at once; a multiple of every block size
_DIRECT = getattr(os, "O_DIRECT", 0)


class ShardWriter:
    """One shard under way; `commit` puts it in place, leaving the block without it throws it away.

    Args:
        path: of the finished file.
        frame_bytes: of one frame.
        rows: how many frames are expected; fewer may come.
    """

    def __init__(self, path: Path, *, frame_bytes: int, rows: int) -> None:
        """Begin the file.

        Raises:
            EnvironmentUnfit: it cannot be written, or there is no space for it.
        """
        self.rows = 0
        self._path = path
        self._frame_bytes = frame_bytes
        self._digest = hashlib.sha256()
        self._temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        self._stage = mmap.mmap(-1, _STAGE_BYTES)  # page-aligned, as direct writing wants it
        self._staged = self._written = 0
        self._file = -1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
            if rows:
                self._reserve(rows * frame_bytes)
        except OSError as error:
            self.discard()
            raise self._unfit(error) from error

    def add(self, frames: NDArray[np.uint8]) -> None:
        """Append frames (n, *frame_shape), contiguous.

        Raises:
            EnvironmentUnfit: they cannot be written.
        """
        data = frames.reshape(-1).data.cast("B")
        self._digest.update(data)
        while data:
            piece = data[: _STAGE_BYTES - self._staged]
            self._stage[self._staged : self._staged + len(piece)] = piece
            self._staged += len(piece)
            data = data[len(piece) :]
            if self._staged == _STAGE_BYTES:
                self._flush()
        self.rows += len(frames)

    def mark(self) -> Mark:
        """This place, to go back to if a clip turns out unusable."""
        return self.rows, self._digest.copy()

    def rewind(self, mark: Mark) -> None:
        """Forget the frames added since.

        Raises:
            EnvironmentUnfit: the file cannot be read again.
        """
        self.rows, self._digest = mark
        place = self.rows * self._frame_bytes
        if place < self._written:
            self._written = place // _STAGE_BYTES * _STAGE_BYTES
            try:
                os.preadv(self._file, [self._stage], self._written)
            except OSError as error:
                raise self._unfit(error) from error
        self._staged = place - self._written

    def commit(self) -> Shard:
        """Put the file in place, on the disk.

        Raises:
            EnvironmentUnfit: it cannot be written.
        """
        self._flush()
        try:
            os.ftruncate(self._file, self.rows * self._frame_bytes)
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1
            os.replace(self._temporary, self._path)
            _sync(self._path.parent)
        except OSError as error:
            raise self._unfit(error) from error
        return Shard(rows=self.rows, sha256=self._digest.hexdigest())

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        try:
            return os.open(self._temporary, flags | _DIRECT, 0o644)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return os.open(self._temporary, flags, 0o644)  # a file system without direct access

    def _reserve(self, size_bytes: int) -> None:
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self._file, 0, size_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise

    def _flush(self) -> None:
        """Write what is staged, at a multiple of its size."""
        try:
            if self._staged < _STAGE_BYTES:
                self._leave_direct()  # the end of a file may have any length
            done = 0
            while done < self._staged:
                with memoryview(self._stage) as stage:
                    try:
                        done += os.pwrite(
                            self._file, stage[done : self._staged], self._written + done
                        )
                    except OSError as error:
                        if error.errno != errno.EINVAL or not self._leave_direct():
                            raise
        except OSError as error:
            raise self._unfit(error) from error
        self._written += self._staged
        self._staged = 0

    def _leave_direct(self) -> bool:
        """Write through the page cache from here on; whether that is a change."""
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        fcntl.fcntl(self._file, fcntl.F_SETFL, flags & ~_DIRECT)
        return bool(flags & _DIRECT)

    def discard(self) -> None:
        """Throw away what was not committed."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    def _unfit(self, error: OSError) -> EnvironmentUnfit:
        return EnvironmentUnfit(
            f"writing {os.fspath(self._path)!r}: {error.strerror or error}; free space or permit "
            "writing there, then run the same command again: it goes on where it stopped"
        )


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
