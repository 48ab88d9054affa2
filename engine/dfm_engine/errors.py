"""Every error this project raises on purpose, and the exit code each one ends a command with.

    DfmError                    1  unexpected
    ├── UsageError              2  the command line or a folder given on it is wrong (ValueError)
    │   └── RecipeError         2  a recipe file is wrong
    ├── InputError              2  a file that the run cannot do without is wrong
    │   └── WeightsError        2  weights absent, damaged, or of another architecture
    ├── MediaError              3  one media file is unusable; has a kind (see docs/inputs.md)
    │   └── FaceError           3  decodes, but holds no face that we can use
    ├── ShortfallError          3  the run ended, short of its quota or over its quarantine limit
    ├── EnvironmentUnfit        4  this machine cannot do what was asked
    ├── WorkerDied              1  a worker process died during a job; costs the job one attempt
    ├── CheckFailed             5  a verification or a goal missed
    └── ShapeError              1  a tensor of the wrong shape or dtype (ValueError)

A message says what was being done, to what, what was found, what to do next.
`MediaError` and `FaceError` cost one clip, never a run: stages turn them into quarantine rows.
"""

from __future__ import annotations

import os
from pathlib import Path


class DfmError(Exception):
    """Base of all; `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(DfmError, ValueError):
    """The command line, or a folder named on it, cannot be used."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe does not parse, has an unknown key, or a value out of range."""


class InputError(DfmError):
    """A file that the whole run depends on is wrong."""

    exit_code = 2


class WeightsError(InputError):
    """Weights are absent, damaged, or belong to another architecture."""


class MediaError(DfmError):
    """One media file is unusable.

    Attributes:
        path: the file.
        kind: a stable word from docs/inputs.md (`truncated`, `too-large`, ...).
        reason: a sentence for the person who has to fix it.
    """

    exit_code = 3

    def __init__(self, path: str | os.PathLike[str], kind: str, reason: str) -> None:
        self.path = Path(path)
        self.kind = kind
        self.reason = reason
        super().__init__(f"{os.fsdecode(path)!r}: {reason} [{kind}]")

    def __reduce__(self) -> tuple[type, tuple[Path, str, str]]:
        return type(self), (self.path, self.kind, self.reason)


class FaceError(MediaError):
    """The file decodes, but holds no face that can be used."""


class ShortfallError(DfmError):
    """The run finished, short of what was asked for."""

    exit_code = 3


class EnvironmentUnfit(DfmError):
    """This machine cannot do what was asked."""

    exit_code = 4


class WorkerDied(DfmError):
    """A worker process died during a job; a living coordinator counts one attempt for that job.

    Attributes:
        doing: what it was at, and for which clip.
        pid: of the process.
        cause: `killed by SIGKILL; ...` or `exited with N`; holds nothing that differs between runs.
    """

    def __init__(self, doing: str, pid: int, cause: str) -> None:
        self.doing = doing
        self.pid = pid
        self.cause = cause
        super().__init__(f"{doing}: the worker process {pid} was lost ({cause})")

    def __reduce__(self) -> tuple[type, tuple[str, int, str]]:
        return type(self), (self.doing, self.pid, self.cause)


class CheckFailed(DfmError):
    """A verification failed or a goal was missed."""

    exit_code = 5


class ShapeError(DfmError, ValueError):
    """A tensor has the wrong shape, dtype or layout."""
