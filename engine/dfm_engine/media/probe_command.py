"""`dfm-engine probe`: a verdict for each file named, or found in the folders named.

The face stage comes in as a callable, so that a probe without faces needs no detector.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dfm_engine.errors import FaceError, MediaError
from dfm_engine.media.containers import MEDIA_SUFFIXES
from dfm_engine.media.probe import Probe, probe
from dfm_engine.recipe import Limits

__all__ = ["FaceCheck", "ProbeReport", "list_files", "run_probe"]


class FaceCheck(Protocol):
    """Looks for a usable face in a file that decodes."""

    def __call__(self, path: Path, *, is_still: bool) -> Mapping[str, Any]:
        """Give measurements of the face, of plain values; the key `warnings` holds sentences.

        Raises:
            FaceError: no usable face; its kind becomes the file's error.
        """
        ...


@dataclass(frozen=True, slots=True)
class ProbedFile:
    """A probe, and what the face stage measured."""

    probe: Probe
    face: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The probe's fields, and `face` where faces were looked for."""
        values = self.probe.to_json()
        if self.face:
            values["face"] = dict(self.face)
        return values


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """All files of one call, in the order given; folders in sorted order."""

    files: tuple[ProbedFile, ...]

    @property
    def exit_code(self) -> int:
        """0 if every file is accepted, else 3; 3 also where there was no file at all."""
        accepted = [item.probe.verdict == "accept" for item in self.files]
        return 0 if accepted and all(accepted) else 3

    def to_json(self) -> dict[str, Any]:
        """`{"files": [...], "accepted": n}`."""
        accepted = sum(item.probe.verdict == "accept" for item in self.files)
        return {"files": [item.to_json() for item in self.files], "accepted": accepted}

    def lines(self) -> list[str]:
        """One line per file for people; control characters in names are escaped."""
        return [_line(item.probe) for item in self.files]

    def print(self) -> None:
        """Write the lines to stderr."""
        for line in self.lines():
            sys.stderr.write(line + "\n")


def run_probe(
    paths: Sequence[str | os.PathLike[str]],
    *,
    faces: FaceCheck | None = None,
    limits: Limits | None = None,
) -> ProbeReport:
    """Probe files and the files in folders.

    Args:
        paths: files and folders; see `list_files`.
        faces: the face stage, or None for `--no-faces`.
        limits: what a file may ask for.
    """
    found = [file for path in paths for file in list_files(Path(os.fsdecode(path)))]
    return ProbeReport(tuple(_probe_one(path, faces, limits) for path in found))


def list_files(path: Path) -> Iterator[Path]:
    """Yield a file itself, or everything in a folder that is no folder, sorted by name.

    A folder named like a clip (`x.mp4`) is not walked into, on the command line or below: it is
    yielded, and becomes `not-a-regular-file`. Links to folders are not followed, so that loops end;
    hidden entries are passed over.
    """
    if not _is_folder(path) or path.suffix.lower() in MEDIA_SUFFIXES:
        yield path
        return
    try:
        entries = sorted(os.scandir(path), key=lambda entry: os.fsencode(entry.name))
    except OSError:
        yield path  # the probe names the reason
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and _is_folder(path / entry.name):
            continue
        yield from list_files(path / entry.name)


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _probe_one(path: Path, faces: FaceCheck | None, limits: Limits | None) -> ProbedFile:
    result = probe(path, limits=limits)
    if faces is None or result.verdict != "accept":
        return ProbedFile(result)
    try:
        face = faces(path, is_still=result.is_still)
    except (FaceError, MediaError) as error:
        return ProbedFile(
            dataclasses.replace(result, verdict="reject", error=error.kind, reason=error.reason)
        )
    warnings = (*result.warnings, *face.get("warnings", ()))
    return ProbedFile(dataclasses.replace(result, warnings=warnings), face)


def _line(result: Probe) -> str:
    name = os.fsencode(result.path).decode("utf-8", "backslashreplace")
    name = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    facts = [result.codec or result.container or ""]
    if result.width and result.height:
        facts.append(f"{result.width}x{result.height}")
    if result.frames is not None and not result.is_still:
        facts.append(f"{result.frames} frames")
    if result.fps:
        facts.append(f"{result.fps:.2f} frames/s")
    text = f"{result.verdict:<8}{name}  {' '.join(fact for fact in facts if fact)}"
    if result.error:
        text += f"  [{result.error}] {result.reason}"
    return text + "".join(f"\n        {warning}" for warning in result.warnings)
