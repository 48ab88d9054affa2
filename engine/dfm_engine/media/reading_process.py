"""A process that reads media for its parent: a file that takes FFmpeg down takes it, not the run.

It ignores Ctrl-C (its parent decides) and ends with its parent, or with the thread of it that made
this one. Nothing is committed there, so it may be killed at any time. `probe_workers` looks at many
files with several of them, `decoding_process` has one hand over the pictures of a file.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import connection, get_context
from typing import Any

from dfm_engine.allocator import keep_freed_memory
from dfm_engine.errors import EnvironmentUnfit
from dfm_engine.media.pool import cause_of_end

__all__ = ["CRASH_ATTEMPTS", "ReadingProcess"]

CRASH_ATTEMPTS = 3
"""A file is given up after reading it has killed this many processes."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ReadingProcess:
    """One process, and the pipe to it.

    Args:
        serve: called there as `serve(pipe, *given)`, and may end when the pipe does (EOFError,
            OSError); importable by name, from a module that never imports torch.
        given: what can be pickled.
        begin: called there first; what it returns comes before `given`. Whatever takes long to
            load belongs here: the process is ready after it.

    Attributes:
        pipe: to it; for what it sends see `receive`.
    """

    def __init__(
        self, serve: Callable[..., None], *given: Any, begin: Callable[[], Any] | None = None
    ) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._is_ready = False
        self._process = context.Process(
            target=_main, args=(theirs, os.getpid(), begin, serve, given), daemon=True
        )
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid or 0

    def receive(self) -> Any:
        """What it has sent. The first is None, and says that it is ready.

        Raises:
            EOFError, OSError: it is gone.
        """
        message = self.pipe.recv()
        self._is_ready = True
        return message

    def check_started(self) -> None:
        """Tell a process that is gone and never got ready, which no file is to blame for.

        Raises:
            EnvironmentUnfit: it is such a one.
        """
        self._process.join()
        if not self._is_ready:
            raise EnvironmentUnfit(
                f"a worker process for reading media did not start (exit status "
                f"{self._process.exitcode}); see the lines above, and `dfm-engine doctor`"
            )

    def cause(self) -> str:
        """How it ended; waits for that."""
        self._process.join()
        return cause_of_end(self._process.exitcode or 0)

    def kill(self) -> None:
        """End it at once."""
        self.pipe.close()
        self._process.kill()
        self._process.join()


def _main(
    pipe: connection.Connection,
    parent: int,
    begin: Callable[[], Any] | None,
    serve: Callable[..., None],
    given: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere the end of the pipe tells
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        return
    keep_freed_memory()
    if begin is not None:
        given = begin(), *given
    try:
        pipe.send(None)
        serve(pipe, *given)
    except (EOFError, OSError):
        return  # the parent has closed the pipe
