"""What is done and what is not: clip ids, commit markers, and the folder of a run.

A clip's id is a hash of everything that decides its pixels, its files are named by it, and it is
done when its marker `jobs/<clip_id>.json` exists; the marker is written last, after the files are
on the disk. Markers are the only ledger: doing a job twice writes the same files and the same
marker, so a run that was killed anywhere is resumed by running it again.

    with RunFolder.open(out, contract={...}, recipe_toml=text) as folder:
        done = folder.committed()
        ...
        folder.commit(Marker(...))
        folder.write_tables(rows, quarantine_rows)

`run.json` holds the contract of the folder: what must not change while it is filled (recipe,
weights, batch size, backend, device, thread count). Opening takes a lock and clears what a killed
run left.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from dfm_engine.clip import QUALITIES, Quality
from dfm_engine.columns import Row, check_row
from dfm_engine.durable import remove_leftovers, write_durably
from dfm_engine.errors import DfmError, UsageError
from dfm_engine.manifest import CLIP_COLUMNS, write_manifest
from dfm_engine.out_folder import refuse_other
from dfm_engine.quarantine import Quarantine, QuarantineRow, write_quarantine

_log = logging.getLogger(__name__)

Label = Literal["real", "fake"]
FORMAT = 1
"""Version of the markers and of run.json."""

LOCK, RUN, RECIPE = ".lock", "run.json", "recipe.toml"
MANIFEST, QUARANTINE = "manifest.parquet", "quarantine.parquet"


def clip_id(facts: Mapping[str, Any]) -> str:
    """The name of a clip: 16 hex digits that change with any fact.

    Args:
        facts: JSON values, everything that decides the pixels and the comment: hashes of the
            inputs and the weights, the recipe's parts, action, seed, frame count,
            `encode.MEDIA_CONTRACT`. Order does not matter.
    """
    return hashlib.sha256(_canonical(facts)).hexdigest()[:16]


def media_path(label: Label, action: str | None, clip: str, quality: Quality) -> str:
    """Where a file is, relative to the run's folder."""
    return f"data/{label}/{action or 'none'}/{clip}.{quality}.mp4"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """One encoded file, as its marker remembers it."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """A clip that is done.

    Attributes:
        clip_id: from `clip_id`.
        label: `real` or `fake`.
        outcome: `passed`, or `refused` by the screen.
        files: what was encoded, by quality; a refused clip has its raw file or none.
        columns: values of `manifest.CLIP_COLUMNS`.
        measurements: anything else that was measured, JSON.
    """

    clip_id: str
    label: Label
    outcome: Literal["passed", "refused"] = "passed"
    files: Mapping[Quality, FileFacts]
    columns: Mapping[str, Any]
    measurements: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        what = f"marker of {self.label} clip {self.clip_id}"
        if self.label not in ("real", "fake") or self.outcome not in ("passed", "refused"):
            raise DfmError(f"{what}: label or outcome ({self.outcome!r}) is none that exists")
        expected: tuple[Quality, ...] = QUALITIES if self.outcome == "passed" else ("raw",)
        is_complete = set(self.files) == set(expected)
        if not is_complete and (self.outcome == "passed" or self.files):
            raise DfmError(f"{what} ({self.outcome}) must have {expected}, has {set(self.files)}")
        if self.columns.get("synthetic") is not (self.label == "fake"):
            raise DfmError(f"{what}: synthetic is {self.columns.get('synthetic')!r}")
        check_row(CLIP_COLUMNS, self.columns, what=what)

    def path(self, quality: Quality) -> str:
        """Where a file is, relative to the run's folder."""
        return media_path(self.label, self.columns.get("action"), self.clip_id, quality)

    def to_bytes(self) -> bytes:
        """As stored; ends in a hash over the rest, so that any damage shows."""
        facts = {
            "format": FORMAT,
            "clip_id": self.clip_id,
            "label": self.label,
            "outcome": self.outcome,
            "files": {
                quality: {"size_bytes": file.size_bytes, "sha256": file.sha256}
                for quality, file in self.files.items()
            },
            "columns": {name: value for name, value in self.columns.items() if value is not None},
            "measurements": dict(self.measurements),
        }
        facts["marker_sha256"] = hashlib.sha256(_canonical(facts)).hexdigest()
        return json.dumps(facts, sort_keys=True, indent=1, allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Marker:
        """Read a stored marker.

        Raises:
            DfmError: cut short, changed, or of another format.
        """
        try:
            facts = json.loads(data)
            if facts.pop("marker_sha256") != hashlib.sha256(_canonical(facts)).hexdigest():
                raise DfmError("the marker was changed after it was written")
            if facts.pop("format") != FORMAT:
                raise DfmError(f"the marker is not of format {FORMAT}")
            facts["files"] = {
                quality: FileFacts(**facts["files"][quality])
                for quality in QUALITIES
                if quality in facts["files"]
            }
            return cls(**facts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DfmError(f"the marker does not parse ({error})") from error


class RunFolder:
    """The output of one run, locked while it is open; see the module's docstring."""

    def __init__(self, out: Path, lock: IO[str]) -> None:
        """Use `open`."""
        self.out = out
        self.quarantine = Quarantine(out / "quarantine")
        self._lock = lock

    @classmethod
    def open(cls, out: Path, *, contract: Mapping[str, Any], recipe_toml: str) -> RunFolder:
        """Make the folder, or take up the run that is in it.

        Args:
            out: absent, empty, or the folder of an earlier run.
            contract: JSON values that must be equal in every run that fills this folder.
            recipe_toml: the resolved recipe, written beside the results.

        Raises:
            UsageError: the folder holds something else, or a run with another contract, or one
                that is under way; or it cannot be made.
        """
        refuse_other(out, "data set")
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock = (out / LOCK).open("a+", encoding="ascii")
        except OSError as error:
            raise UsageError(
                f"--out {os.fspath(out)!r} cannot be written: {error.strerror or error}"
            ) from error
        try:
            take_lock(lock, fcntl.LOCK_EX, out)
            folder = cls(out, lock)
            folder._agree(json.loads(_canonical(contract)), recipe_toml)
            folder._sweep()
        except BaseException:
            lock.close()
            raise
        return folder

    @staticmethod
    def recorded(out: Path) -> dict[str, Any] | None:
        """run.json of an earlier run in this folder, or None.

        Raises:
            UsageError: there is one, but it cannot be read.
        """
        try:
            facts = json.loads((out / RUN).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{os.fspath(out / RUN)!r} cannot be read ({error}); use another --out"
            ) from error
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            raise UsageError(
                f"{os.fspath(out / RUN)!r} is not of format {FORMAT}: another version of "
                "dfm-engine made this folder; use another --out"
            )
        return facts

    def media_path(self, label: Label, action: str | None, clip: str, quality: Quality) -> Path:
        """Where a file of this folder is or will be."""
        return self.out / media_path(label, action, clip, quality)

    def commit(self, marker: Marker) -> None:
        """Declare a clip done; its files must be in place. Doing it twice does no harm.

        Raises:
            DfmError: a file is not there in the size that the marker states.
            EnvironmentUnfit: the marker cannot be written.
        """
        missing = self._missing(marker)
        if missing:
            raise DfmError(f"committing {marker.clip_id}: {missing}; was --out changed meanwhile?")
        write_durably(self._marker_path(marker.clip_id), marker.to_bytes())
        self.quarantine.forgive(marker.clip_id)

    def committed(self) -> dict[str, Marker]:
        """Every clip that is done, by id; a marker that is damaged or lost its files is not one."""
        done: dict[str, Marker] = {}
        for path, marker in read_markers(self.out):
            problem = marker if isinstance(marker, str) else self._missing(marker)
            if problem or isinstance(marker, str):
                _log.warning("%s: %s; its clip is made again", path, problem)
                path.unlink(missing_ok=True)
            else:
                done[marker.clip_id] = marker
        return done

    def write_run(self, **sections: Any) -> None:
        """Add sections (counts, timings, versions, ...) to run.json, replacing those of a name."""
        facts = self.recorded(self.out) or {"format": FORMAT}
        facts |= sections
        write_durably(self.out / RUN, json.dumps(facts, indent=1).encode())

    def amend(self, **changes: Any) -> None:
        """Change the contract of the run that is under way, in run.json too."""
        contract = (self.recorded(self.out) or {}).get("contract", {})
        self.write_run(contract={**contract, **json.loads(_canonical(changes))})

    def write_tables(self, rows: Iterable[Row], quarantine: Iterable[QuarantineRow]) -> None:
        """Write both tables, and into run.json their hashes, which `verify_dataset` compares."""
        written = {
            MANIFEST: write_manifest(rows, self.out / MANIFEST),
            QUARANTINE: write_quarantine(quarantine, self.out / QUARANTINE),
        }
        self.write_run(
            tables={name: hashlib.sha256(data).hexdigest() for name, data in written.items()}
        )

    def close(self) -> None:
        """Let others in."""
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _agree(self, contract: dict[str, Any], recipe_toml: str) -> None:
        facts = self.recorded(self.out)
        if facts is None:
            found = {path.name for path in self.out.iterdir()} - {LOCK}
            if any(".tmp-" not in name for name in found):
                raise UsageError(
                    f"--out {os.fspath(self.out)!r} holds files and is no data set of ours "
                    f"({min(found)!r} ...); name an empty or a new folder"
                )
            self.write_run(contract=contract)
        elif (begun := facts.get("contract", {})) != contract:
            changes = "; ".join(_changes(begun, contract))
            raise UsageError(
                f"--out {os.fspath(self.out)!r} was begun with other settings: {changes}. "
                "Use another --out, or delete that folder to start over, or run with the settings "
                f"of its {RECIPE}"
            )
        write_durably(self.out / RECIPE, recipe_toml.encode())

    def _sweep(self) -> None:
        leftovers = remove_leftovers(self.out)
        wanted = {
            marker.path(quality) for marker in self.committed().values() for quality in marker.files
        }
        orphans = [path for path in media_files(self.out) if path not in wanted]
        for path in orphans:
            (self.out / path).unlink(missing_ok=True)
        if leftovers or orphans:
            _log.info(
                "removed %d unfinished and %d uncommitted files of an interrupted run",
                len(leftovers),
                len(orphans),
            )

    def _missing(self, marker: Marker) -> str | None:
        for quality, file in marker.files.items():
            path = marker.path(quality)
            try:
                size = (self.out / path).stat().st_size
            except OSError:
                return f"{path} is not there"
            if size != file.size_bytes:
                return f"{path} has {size} bytes instead of {file.size_bytes}"
        return None

    def _marker_path(self, clip: str) -> Path:
        return self.out / "jobs" / f"{clip}.json"


@contextlib.contextmanager
def reading(out: Path) -> Iterator[None]:
    """Hold off a run while a finished data set is read; any number may read.

    Raises:
        UsageError: a run is under way in the folder.
    """
    try:
        lock = (out / LOCK).open(encoding="ascii")
    except OSError:
        yield  # a copy without the lock file: nobody builds here
        return
    with lock:
        take_lock(lock, fcntl.LOCK_SH, out)
        yield


def read_markers(out: Path) -> Iterator[tuple[Path, Marker | str]]:
    """Every marker file of a run's folder in order of name, with its marker or what is wrong."""
    for path in sorted((out / "jobs").glob("*.json")):
        try:
            marker = Marker.from_bytes(path.read_bytes())
        except (OSError, DfmError) as error:
            yield path, str(error)
            continue
        is_named_so = path.stem == marker.clip_id
        yield path, marker if is_named_so else f"it is the marker of {marker.clip_id}"


def media_files(out: Path) -> list[str]:
    """Every file below `data/`, relative to the run's folder, in order of name."""
    return sorted(
        PurePosixPath(os.path.relpath(os.path.join(root, name), out)).as_posix()
        for root, _, names in os.walk(out / "data")
        for name in names
    )


def take_lock(lock: IO[str], mode: int, out: Path) -> None:
    """Hold a run's folder, `fcntl.LOCK_EX` to work in it or `LOCK_SH` to read.

    Raises:
        UsageError: another process holds it.
    """
    try:
        fcntl.flock(lock, mode | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        raise UsageError(
            f"another run (process {lock.read().strip() or 'unknown'}) is under way in "
            f"{os.fspath(out)!r}; wait for it, or use another --out"
        ) from error
    if mode == fcntl.LOCK_EX:
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} was {old.get(name)!r}, is now {new.get(name)!r}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def _canonical(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
