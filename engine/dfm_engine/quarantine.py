"""What could not be used, and why: rows that survive restarts, and the count of attempts.

A failure is data: one row per input or job. A job's is written to `quarantine/<id>.json` when it is
found; all go to `quarantine.parquet` at the end. A job that kills its worker is tried again; only
deaths seen by a living coordinator count, so killing the whole run blames nobody. The third puts it
into quarantine. To have it tried again, delete its file.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dfm_engine.columns import Row, column, read_table, write_table
from dfm_engine.durable import write_durably
from dfm_engine.errors import WorkerDied

_log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Worker deaths that put a job into quarantine."""

QUARANTINE_COLUMNS = (
    column("path", "string", r"the file that is to blame; odd bytes as \xNN, \ as \\"),
    column("stage", "string", "where it failed: list, probe, face, animate, encode, ..."),
    column("kind", "string", "a stable word, see docs/inputs.md"),
    column("reason", "string", "a sentence: what was found, what to do"),
    column("attempts", "int32", "workers that died on it; 0 if it failed in an orderly way"),
    column("job_id", "string", "clip id of the job; null for an input file", null=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineRow:
    """One thing that could not be used; nothing in it may differ between two equal runs.

    Attributes:
        path: the file to blame, through `columns.text_of_path`.
        stage: where it failed.
        kind: a stable word.
        reason: a sentence for the person who has to fix it.
        attempts: workers that died on it.
        job_id: clip id of the job, None for an input file.
    """

    path: str
    stage: str
    kind: str
    reason: str
    attempts: int = 0
    job_id: str | None = None


class Quarantine:
    """The rows and attempts of one data set's jobs, in a folder of small files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, row: QuarantineRow) -> None:
        """Give a job up.

        Raises:
            ValueError: the row names no job.
        """
        if row.job_id is None:
            raise ValueError(f"only jobs are kept here, {row} names none")
        self._write(row.job_id, row.attempts, row)

    def record_death(
        self, job_id: str, error: WorkerDied, *, path: str, stage: str = "encode"
    ) -> QuarantineRow | None:
        """Count an attempt; the last one gives the job up and returns its row.

        Args:
            job_id: clip id of the job.
            error: what the worker's pool raised.
            path: the file to blame, through `columns.text_of_path`.
            stage: what the worker was for.
        """
        attempts = self.attempts(job_id) + 1
        row = None
        if attempts >= MAX_ATTEMPTS:
            row = QuarantineRow(
                path=path,
                stage=stage,
                kind="worker-died",
                reason=f"{attempts} workers were lost on it, the last {error.cause}",
                attempts=attempts,
                job_id=job_id,
            )
        self._write(job_id, attempts, row)
        return row

    def attempts(self, job_id: str) -> int:
        """Deaths counted so far."""
        attempts, _ = self._read(self._path(job_id))
        return attempts

    def forgive(self, job_id: str) -> None:
        """The job was done after all."""
        self._path(job_id).unlink(missing_ok=True)

    def rows(self) -> dict[str, QuarantineRow]:
        """What is in quarantine, by job id."""
        found = ((path.stem, self._read(path)[1]) for path in sorted(self._folder.glob("*.json")))
        return {job_id: row for job_id, row in found if row is not None}

    def _write(self, job_id: str, attempts: int, row: QuarantineRow | None) -> None:
        facts = {"attempts": attempts, "row": row and dataclasses.asdict(row)}
        write_durably(self._path(job_id), json.dumps(facts, indent=1).encode())

    def _read(self, path: Path) -> tuple[int, QuarantineRow | None]:
        try:
            facts = json.loads(path.read_bytes())
            row = QuarantineRow(**facts["row"]) if facts["row"] else None
            return int(facts["attempts"]), row
        except FileNotFoundError:
            return 0, None
        except (ValueError, TypeError, KeyError) as error:
            _log.warning("%s is not readable (%s): its job is tried afresh", path, error)
            return 0, None

    def _path(self, job_id: str) -> Path:
        return self._folder / f"{job_id}.json"


def write_quarantine(rows: Iterable[QuarantineRow], path: Path) -> bytes:
    """Write rows, sorted; equal rows give equal bytes, which are returned."""
    table: list[Row] = [dataclasses.asdict(row) for row in rows]
    table.sort(key=lambda row: tuple(str(row[c.name]) for c in QUARANTINE_COLUMNS))
    return write_table(QUARANTINE_COLUMNS, table, path, kind="quarantine")


def read_quarantine(path: Path) -> list[QuarantineRow]:
    """Read what `write_quarantine` wrote.

    Raises:
        InputError: absent, damaged, or of another version.
    """
    return [QuarantineRow(**row) for row in read_table(QUARANTINE_COLUMNS, path)]
