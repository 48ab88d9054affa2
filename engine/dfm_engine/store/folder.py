"""The folder of a store while it is filled: its options, its lock, and what is done of it.

A shard is done when `shards/<number>.json` exists, which is written after its frames are on the
disk; it says which clips are in the shard and which were refused. A run that was killed anywhere
goes on with the first shard that is not done, and leaves the same bytes.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from dfm_engine.durable import remove_durably, remove_leftovers, write_durably
from dfm_engine.errors import UsageError
from dfm_engine.out_folder import refuse_other
from dfm_engine.prepare import PASSING_KINDS
from dfm_engine.store.meta import META, SETTINGS, Shard, shard_path

__all__ = ["RefusedClip", "ShardRecord", "StoreFolder"]

FORMAT = 1
_LOCK = ".lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedClip:
    """A clip that gave no frames when its turn came.

    Attributes:
        key, kind, reason, attempts: which one, and why.
        sha256: of its content then (`sampling.content_sha256`), None where that cannot be read;
            with another content it is tried again, where the listing does not hold the content.
    """

    key: str
    kind: str
    reason: str
    attempts: int = 0
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """What is in a shard.

    Attributes:
        rows, sha256: of its file.
        clips: key and hash of what was read, of every stored clip, in order.
        refused: the others of its clips.
    """

    rows: int
    sha256: str
    clips: tuple[tuple[str, str], ...]
    refused: tuple[RefusedClip, ...] = ()

    @property
    def shard(self) -> Shard:
        """As `meta.json` says it."""
        return Shard(rows=self.rows, sha256=self.sha256)


class StoreFolder:
    """The output of `prepare`, locked while it is open."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        """Use `open`."""
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any]) -> StoreFolder:
        """Make the folder, or take up what is in it.

        Args:
            path: absent, empty, or the folder of an earlier run.
            settings: JSON values that must be equal in every run that fills this folder.

        Raises:
            UsageError: the folder holds something else, or a store made with other settings, or
                another run is at work in it; or it cannot be made.
        """
        where = f"--out {os.fspath(path)!r}"
        refuse_other(path, "frame store")
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / _LOCK).open("a+", encoding="ascii")
        except OSError as error:
            raise UsageError(
                f"{where} cannot be written: {error.strerror or error}; name a new folder"
            ) from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UsageError(f"{where}: another run is at work there; wait for it") from error
            folder = cls(path, lock)
            folder._agree(where, json.loads(json.dumps(settings)))
            remove_leftovers(path)
        except BaseException:
            lock.close()
            raise
        return folder

    @property
    def is_whole(self) -> bool:
        """Nothing is left to do."""
        return (self.path / META).is_file()

    def reopen(self) -> None:
        """Declare a store unfinished, before one of its shards is made again.

        Until the tables and `meta.json` are written anew nobody can open it: old tables would name
        rows that the new shards do not have.

        Raises:
            EnvironmentUnfit: the folder cannot be written.
        """
        remove_durably(self.path / META)

    def record(self, number: int, keys: Sequence[str], frame_bytes: int) -> ShardRecord | None:
        """What an earlier run said of a shard; None if it has to be made.

        Args:
            number: of the shard.
            keys: of the clips that belong into it.
            frame_bytes: of one frame.
        """
        try:
            facts = json.loads(self._record_path(number).read_bytes())
            facts["clips"] = tuple((key, sha256) for key, sha256 in facts["clips"])
            facts["refused"] = tuple(RefusedClip(**refused) for refused in facts["refused"])
            record = ShardRecord(**facts)
            size_bytes = shard_path(self.path, number).stat().st_size
        except (OSError, ValueError, TypeError, KeyError):
            return None
        known = {key for key, _ in record.clips} | {refused.key for refused in record.refused}
        is_passing = any(refused.kind in PASSING_KINDS for refused in record.refused)
        if known != set(keys) or size_bytes != record.rows * frame_bytes or is_passing:
            return None
        return record

    def commit(self, number: int, record: ShardRecord) -> None:
        """Declare a shard done; its file must be in place."""
        text = json.dumps(asdict(record), sort_keys=True, indent=1)
        write_durably(self._record_path(number), text.encode())

    def close(self) -> None:
        """Let others in."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _agree(self, where: str, settings: dict[str, Any]) -> None:
        path = self.path / SETTINGS
        try:
            begun = json.loads(path.read_bytes())
        except FileNotFoundError:
            found = {entry.name for entry in self.path.iterdir()} - {_LOCK}
            if any(".tmp-" not in name for name in found):
                raise UsageError(
                    f"{where} holds files and is no frame store ({min(found)!r} ...); name an "
                    "empty or a new folder"
                ) from None
            facts = {"format": FORMAT, "settings": settings}
            write_durably(path, json.dumps(facts, indent=1, sort_keys=True).encode())
            return
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{os.fspath(path)!r} cannot be read ({error}); use another --out"
            ) from error
        if not isinstance(begun, dict) or begun.get("format") != FORMAT:
            raise UsageError(
                f"{os.fspath(path)!r} is not of format {FORMAT}: another version of dfm-engine "
                "made this folder; use another --out"
            )
        before = begun["settings"]
        changes = "; ".join(
            f"{name} was {before.get(name)!r}, is now {settings.get(name)!r}"
            for name in sorted({*before, *settings})
            if before.get(name) != settings.get(name)
        )
        if changes:
            raise UsageError(
                f"{where} was begun with other settings: {changes}. Use another --out, or the "
                "settings of its prepare.json, or delete that folder to start over"
            )

    def _record_path(self, number: int) -> Path:
        return shard_path(self.path, number).with_suffix(".json")
