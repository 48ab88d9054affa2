"""Pictures of a file out of a process of their own: one that kills FFmpeg does not end the run.

    with DecodingProcess() as decoding:
        for picture in decoding.stream(pictures_of, path, limits):
            ...

In: a generator function, importable by name, and a file. Out: what it yields, item by item, each a
copy; the process goes no further ahead than its pipe holds. Where it dies that is a `WorkerDied`,
and the next call starts another.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol, Self

from av.error import FFmpegError

from dfm_engine.errors import MediaError, WorkerDied
from dfm_engine.media.reading_process import ReadingProcess

__all__ = ["Decoding", "DecodingProcess", "decoding_here"]

_log = logging.getLogger(__name__)


class Decoding(Protocol):
    """Calls generator functions about a file: in a process of their own, or here."""

    def stream(
        self, function: Callable[..., Iterator[Any]], path: Path, /, *given: Any
    ) -> Iterator[Any]:
        """Yield what `function(path, *given)` yields, and raise its `MediaError`."""
        ...


class _Here:
    def stream(
        self, function: Callable[..., Iterator[Any]], path: Path, /, *given: Any
    ) -> Iterator[Any]:
        return function(path, *given)


decoding_here: Decoding = _Here()
"""Decodes in this process: for files that a worker has survived, and for tests."""


class DecodingProcess:
    """One process that decodes, started when it is first needed; close it, or use `with`.

    It ends with the thread that needed it first.
    """

    def __init__(self) -> None:
        self._process: ReadingProcess | None = None

    def stream(
        self, function: Callable[..., Iterator[Any]], path: Path, /, *given: Any
    ) -> Iterator[Any]:
        """See `Decoding.stream`; one at a time.

        A stream that is not drawn to its end costs the process.

        Raises:
            MediaError: of the function; `unreadable` for what else reading raises.
            WorkerDied: the process was lost over it.
            EnvironmentUnfit: it does not start.
        """
        process = self._process = self._process or ReadingProcess(_serve)
        is_done = False
        try:
            process.pipe.send((function, path, given))
            while not is_done:
                match process.receive():
                    case ("item", item):
                        yield item
                    case ("error", error):
                        is_done = True
                        raise error
                    case ("end", _):
                        is_done = True
                    case _:
                        pass  # that it is ready
        except (EOFError, OSError):
            process.check_started()
            died = WorkerDied(f"reading {os.fspath(path)!r}", process.pid, process.cause())
            _log.warning("%s", died)
            raise died from None
        finally:
            if not is_done:  # what it still says would be taken for the next answer
                self.close()

    def close(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _serve(pipe: connection.Connection) -> None:
    while True:
        function, path, given = pipe.recv()
        answer: tuple[str, Any] = ("end", None)
        try:
            for item in function(path, *given):
                pipe.send(("item", item))
        except MediaError as error:
            answer = ("error", error)
        except (OSError, MemoryError, FFmpegError) as error:
            answer = ("error", MediaError(path, "unreadable", f"reading it failed: {error!r}"))
        pipe.send(answer)
