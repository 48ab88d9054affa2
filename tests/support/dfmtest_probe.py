"""What a process that reads media may be told to call; importable by name in a spawned one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from av.error import InvalidDataError
from numpy.typing import NDArray

from dfm_engine.errors import MediaError
from dfm_engine.recipe import Limits


def look(path: Path, *, limits: Limits) -> tuple[str, int, bool]:
    """Die on a file named `kill*`, on one named `once*` the first time; else (name, pid, torch)."""
    if path.name.startswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if path.name.startswith("once") and not path.exists():
        path.write_bytes(b"")
        os._exit(3)
    return path.name, os.getpid(), "torch" in sys.modules


def hang(path: Path, *, limits: Limits) -> None:
    """Say who is at work, and never end."""
    path.write_text(str(os.getpid()))
    while True:
        signal.pause()


def pieces(path: Path, count: int) -> Iterator[tuple[NDArray[np.uint8], int, bool]]:
    """Yield pictures that are their number, with who made them; then what the name says."""
    for number in range(count):
        yield np.full((400, 300), number, np.uint8), os.getpid(), "torch" in sys.modules
    match path.name:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "refuse":
            raise MediaError(path, "truncated", "ends early")
        case "oserror":
            raise OSError("stale file handle")
        case "memory":
            raise MemoryError
        case "ffmpeg":
            raise InvalidDataError(0, "Invalid data found")
