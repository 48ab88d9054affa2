"""Engines on disk, found by what they were made from.

    ROOT/<key[:2]>/<key>/engine.plan      raw, as other tools load it
    ROOT/<key[:2]>/<key>/manifest.json    every fact of the key, hashes, build seconds, parity
    ROOT/<key[:2]>/<key>/runtime-*.cache  kernels that tensorrt-rtx compiled for one GPU
    ROOT/<key[:2]>/<key>.lock             held while an entry is looked at or made
    ROOT/quarantine/<key>/                an entry that was damaged, and why
    ROOT/timing/*.cache                   kernel timings of data-centre TensorRT on one GPU

A key is a hash over the ONNX bytes, precision plan, profiles, flags, flavour and full version of
the library, CUDA, system and target chip. Computing one needs neither TensorRT nor CUDA. Of two
processes that want one engine, one builds it and the other waits. The manifest is written last: an
entry without one is half-written and is made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dfm_engine.durable import remove_leftovers, write_durably
from dfm_engine.errors import EnvironmentUnfit
from dfm_engine.machine import cache_folder
from dfm_export.trt_api import Flavour, TensorRtError, library_cuda, library_version

__all__ = [
    "CachedEngine",
    "EngineCache",
    "EngineKey",
    "Made",
    "engine_key",
    "locked_entry",
    "writing_cache",
]

_log = logging.getLogger(__name__)

FORMAT = 1
PLAN, MANIFEST, QUARANTINE, TIMING = "engine.plan", "manifest.json", "quarantine", "timing"

T = TypeVar("T")


class Made(Protocol):
    """What a build gives; `to_tensorrt.BuiltEngine` is one."""

    @property
    def plan(self) -> bytes: ...
    def to_json(self) -> dict[str, Any]:
        """Facts for the sidecar."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """Everything that decides an engine.

    Attributes:
        graph: its name, for people.
        onnx_sha256: of the ONNX file, weights included.
        precision: the plan's name.
        profile: per input its least, usual and largest shape.
        flags: builder settings; see `to_tensorrt.BuildSettings.flags`.
        flavour, library_version, cuda: of TensorRT.
        system: operating system and processor.
        target: chips: `sm86,sm89`, `default`, or for data-centre the GPU's name and capability.
    """

    graph: str
    onnx_sha256: str
    precision: str
    profile: Mapping[str, Any]
    flags: Mapping[str, Any]
    flavour: Flavour
    library_version: str
    cuda: str | None
    system: str
    target: str

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def digest(self) -> str:
        """64 hex digits that change with any field."""
        facts = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(facts.encode()).hexdigest()


def engine_key(
    *,
    graph: str,
    onnx_sha256: str,
    precision: str,
    profile: Mapping[str, tuple[tuple[int, ...], ...]],
    flags: Mapping[str, Any],
    flavour: Flavour,
    target: str,
) -> EngineKey:
    """The key of an engine on this machine; imports neither TensorRT nor CUDA.

    Raises:
        EnvironmentUnfit: the flavour is not installed.
    """
    version = library_version(flavour)
    if version is None:
        raise EnvironmentUnfit(f"{flavour} is not installed, so no engine of it can be looked up")
    return EngineKey(
        graph=graph,
        onnx_sha256=onnx_sha256,
        precision=precision,
        profile={name: [list(shape) for shape in shapes] for name, shapes in profile.items()},
        flags=dict(flags),
        flavour=flavour,
        library_version=version,
        cuda=library_cuda(flavour),
        system=f"{platform.system()}-{platform.machine()}",
        target=target,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedEngine:
    """An entry that was found whole, or just made.

    Attributes:
        path: of the plan.
        manifest: the sidecar.
        was_built: now, rather than found.
    """

    path: Path
    manifest: Mapping[str, Any]
    was_built: bool

    def runtime_cache(self, gpu: str) -> Path:
        """Where tensorrt-rtx keeps what it compiled of this engine for a GPU."""
        return self.path.with_name(f"runtime-{slug(gpu)}.cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """What a cache holds.

    Attributes:
        root: the folder.
        entries: the manifests, largest plan first.
        quarantined: damaged entries that were put aside.
        size_bytes: of everything.
    """

    root: Path
    entries: tuple[Mapping[str, Any], ...]
    quarantined: int
    size_bytes: int
    exit_code: int = field(default=0, init=False)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "schema_version": 1,
            "root": os.fspath(self.root),
            "size_bytes": self.size_bytes,
            "quarantined": self.quarantined,
            "entries": list(self.entries),
        }

    def lines(self) -> list[str]:
        """For people."""
        lines = [
            f"{entry['size_bytes'] / 1e6:9.1f} MB  {entry['key']['graph']} "
            f"{entry['key']['precision']}, {entry['key']['flavour']} "
            f"{entry['key']['library_version']}, {entry['key']['target']}"
            for entry in self.entries
        ]
        aside = f", {self.quarantined} in quarantine" if self.quarantined else ""
        total = f"{len(self.entries)} engines{aside}, {self.size_bytes / 1e6:.1f} MB in all"
        return [*lines, f"{total}: {self.root}; deleting the folder is safe"]


class EngineCache:
    """A folder of engines; any number of processes may use it."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_folder() / "engines"

    def entry(self, key: EngineKey) -> Path:
        """The folder of a key."""
        digest = key.digest
        return self.root / digest[:2] / digest

    def timing_cache(self, key: EngineKey) -> Path:
        """Kernel timings that builds of this flavour, version and GPU share."""
        name = f"{key.flavour}-{key.library_version}-{slug(key.target)}.cache"
        return self.root / TIMING / name

    def get(
        self, key: EngineKey, build: Callable[[], Made], *, facts: Mapping[str, Any] | None = None
    ) -> CachedEngine:
        """The engine of a key, built if there is none or if it was damaged.

        Args:
            key: of the engine.
            build: makes it; called at most once, by one process at a time.
            facts: put into the sidecar beside the build's own, such as parity numbers.

        Raises:
            EnvironmentUnfit: the folder cannot be written.
            DfmError: what `build` raises.
        """
        with self._locked(key):
            found = self._read(key)
            if isinstance(found, str):
                self._put_aside(key, found)
                found = None
            return found or self._make(key, build, facts or {})

    def open(
        self,
        key: EngineKey,
        build: Callable[[], Made],
        load: Callable[[CachedEngine], T],
        *,
        facts: Mapping[str, Any] | None = None,
    ) -> T:
        """`get`, and load it; an engine that does not load is put aside and made once more.

        Args:
            key: as for `get`.
            build: likewise.
            facts: likewise.
            load: raises `TensorRtError` for a plan that it cannot use.

        Raises:
            TensorRtError: a plan that was just built does not load either.
        """
        engine = self.get(key, build, facts=facts)
        try:
            return load(engine)
        except TensorRtError as error:
            if engine.was_built:
                raise
            with self._locked(key):
                current = self._read(key)
                if isinstance(current, str) or current is None or current == engine:
                    self._put_aside(key, str(error))
            return load(self.get(key, build, facts=facts))

    def report(self) -> CacheReport:
        """What is in the folder."""
        entries = []
        for path in sorted(self.root.glob(f"??/*/{MANIFEST}")):
            with contextlib.suppress(OSError, ValueError, KeyError):
                manifest = json.loads(path.read_bytes())
                entries.append({"size_bytes": manifest["size_bytes"], "key": manifest["key"]})
        sizes = (
            Path(folder, name).stat().st_size
            for folder, _, names in os.walk(self.root)
            for name in names
        )
        aside = self.root / QUARANTINE
        return CacheReport(
            root=self.root,
            entries=tuple(sorted(entries, key=lambda entry: -entry["size_bytes"])),
            quarantined=len(list(aside.iterdir())) if aside.is_dir() else 0,
            size_bytes=sum(sizes),
        )

    def _read(self, key: EngineKey) -> CachedEngine | str | None:
        """The entry; None where there is none or a half-written one; a reason where damaged."""
        folder = self.entry(key)
        try:
            manifest = json.loads((folder / MANIFEST).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            return f"{MANIFEST} cannot be read: {error}"
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            return f"{MANIFEST} is not of format {FORMAT}"
        if manifest.get("key") != key.to_json():
            return f"{MANIFEST} is of another key"
        try:
            with (folder / PLAN).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            return f"{PLAN} cannot be read: {error}"
        if (size, digest) != (manifest.get("size_bytes"), manifest.get("sha256")):
            return f"{PLAN} has {size} bytes, sha256 {digest}; {MANIFEST} says otherwise"
        return CachedEngine(path=folder / PLAN, manifest=manifest, was_built=False)

    def _make(
        self, key: EngineKey, build: Callable[[], Made], facts: Mapping[str, Any]
    ) -> CachedEngine:
        folder = self.entry(key)
        if folder.is_dir():
            with writing_cache(self.root):
                remove_leftovers(folder)
        _log.info("building %s for %s %s", key.graph, key.flavour, key.target)
        made = build()
        manifest = {
            "format": FORMAT,
            "key": key.to_json(),
            "size_bytes": len(made.plan),
            "sha256": hashlib.sha256(made.plan).hexdigest(),
            **made.to_json(),
            **facts,
        }
        write_durably(folder / PLAN, made.plan)
        text = json.dumps(manifest, indent=1, allow_nan=False)
        write_durably(folder / MANIFEST, text.encode() + b"\n")
        return CachedEngine(path=folder / PLAN, manifest=json.loads(text), was_built=True)

    def _put_aside(self, key: EngineKey, reason: str) -> None:
        """Move an entry to the quarantine; of one key only the last is kept there."""
        folder, aside = self.entry(key), self.root / QUARANTINE / key.digest
        _log.warning("engine %s is put aside (%s) and built again", folder, reason)
        if not folder.is_dir():
            return
        with writing_cache(self.root):
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder, aside)
        write_durably(aside / "reason.txt", reason.encode() + b"\n")

    def _locked(self, key: EngineKey) -> contextlib.AbstractContextManager[None]:
        busy = f"another process builds {key.graph}; waiting for it"
        return locked_entry(self.entry(key), root=self.root, busy=busy)


@contextlib.contextmanager
def locked_entry(folder: Path, *, root: Path, busy: str) -> Iterator[None]:
    """Hold `<folder>.lock`, so that of several processes one makes an entry of a cache.

    Args:
        folder: of the entry; what is above it is made.
        root: of the cache.
        busy: logged where another process holds it.

    Raises:
        EnvironmentUnfit: the lock cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with writing_cache(root):
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(folder.with_name(f"{folder.name}.lock").open("a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.warning(busy)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def writing_cache(root: Path) -> Iterator[None]:
    """Around what changes files of a cache.

    Raises:
        EnvironmentUnfit: it failed.
    """
    try:
        yield
    except OSError as error:
        raise EnvironmentUnfit(
            f"writing the cache {os.fspath(root)!r}: {error.filename or 'a lock'}: "
            f"{error.strerror or error}; free space or permit writing there, or set "
            "XDG_CACHE_HOME to a folder that can be written"
        ) from error


def slug(text: str) -> str:
    """A name as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
