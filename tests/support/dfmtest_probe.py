"""Things that a probe worker may be told to call; importable by name in a spawned process."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

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
