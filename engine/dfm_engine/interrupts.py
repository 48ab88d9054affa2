"""Ctrl-C and TERM: the first asks a run to drain, the second stops it at once.

A drained run has committed everything it had begun; one stopped at once loses at most what was
in flight, which the next run makes again.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(BaseException):
    """The run was stopped by a signal; `exit_code` is 130 for INT and 143 for TERM.

    It may be raised at any line, so like KeyboardInterrupt it is no `Exception`: a library that
    catches those must not swallow it.
    """

    def __init__(self, signum: int) -> None:
        self.signum = signum
        self.exit_code = 128 + signum
        super().__init__(f"stopped by {signal.Signals(signum).name}")


class StopRequest:
    """Whether a signal asked to stop; polled between jobs."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __bool__(self) -> bool:
        return self.signum is not None

    def raise_if_set(self) -> None:
        """Raise `Interrupted` if a signal arrived."""
        if self.signum is not None:
            raise Interrupted(self.signum)


@contextmanager
def draining_signals() -> Iterator[StopRequest]:
    """Within the block INT and TERM set the yielded request; a second one raises `Interrupted`."""
    request = StopRequest()

    def on_signal(signum: int, _frame: FrameType | None) -> None:
        if request:
            raise Interrupted(signum)
        request.signum = signum
        name = signal.Signals(signum).name
        sys.stderr.write(f"\n{name}: finishing what has begun; once more stops at once\n")
        sys.stderr.flush()

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Within the block INT and TERM raise `Interrupted`, so that every command ends alike.

    After one has ended the block both are ignored: the process is about to end with its exit code.
    """

    def on_signal(signum: int, _frame: FrameType | None) -> None:
        raise Interrupted(signum)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before: dict[signal.Signals, Any] = {n: signal.signal(n, on_signal) for n in numbers}
    try:
        yield
    except Interrupted:
        before = dict.fromkeys(numbers, signal.SIG_IGN)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
