"""`dfm-engine dataset audit`: the shortcuts of a built data set."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from dfm_engine.audit.baselines import MAX_CLIPS, audit_rows
from dfm_engine.audit.result import AuditReport
from dfm_engine.errors import UsageError
from dfm_engine.jobs import MANIFEST, reading
from dfm_engine.manifest import read_manifest

__all__ = ["run_audit"]


def run_audit(
    out: Path,
    *,
    max_clips: int = MAX_CLIPS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> AuditReport:
    """Audit a finished data set; nothing is written.

    Args:
        out: the folder that build-dataset filled.
        max_clips: look at no more than about so many.
        progress: called with (files read, files in all).

    Raises:
        UsageError: `out` holds no data set, or a run is under way there.
        InputError: its manifest cannot be read.
    """
    if not (out / MANIFEST).is_file():
        raise UsageError(
            f"{os.fspath(out)!r} holds no {MANIFEST}: name a folder that build-dataset has finished"
        )
    with reading(out):
        return audit_rows(
            read_manifest(out / MANIFEST), out, max_clips=max_clips, progress=progress
        )
