"""`dataset verify`: read a finished data set again, every byte of it, and say what is not right.

Checked are the tables against the commit markers, every file against its hash, the facts of every
bitstream against what the project promises (`media.bitstream`), both classes against each other,
every fake against its real twin, and the split. Nothing is written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from dfm_engine.clip import QUALITIES, Quality
from dfm_engine.columns import Row
from dfm_engine.durable import LEFTOVER
from dfm_engine.errors import CheckFailed, InputError, MediaError, RecipeError, UsageError
from dfm_engine.jobs import (
    MANIFEST,
    QUARANTINE,
    RECIPE,
    Marker,
    RunFolder,
    media_files,
    read_markers,
    reading,
)
from dfm_engine.manifest import COLUMNS, SET_COLUMNS, read_manifest, rows_from_markers
from dfm_engine.media.bitstream import StreamFacts, stream_facts
from dfm_engine.media.encode import COMMENT_BYTES, PROFILES, x264_options_at
from dfm_engine.recipe import BuildRecipe, load_recipe

SHOWN = 20
"""Failures that the error's message lists; the report holds all."""


@dataclass(frozen=True, slots=True, order=True)
class Failure:
    """One thing that is not as it should be."""

    path: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was read, and what was found.

    Attributes:
        clips: markers read, by `real`, `fake`, and `refused` (fakes that the screen refused).
        files: video files read.
        size_bytes: their sum.
        pairs: fakes with their real twin.
        failures: everything that is not right, sorted.
    """

    clips: dict[str, int]
    files: int
    size_bytes: int
    pairs: int
    failures: tuple[Failure, ...]

    @property
    def is_ok(self) -> bool:
        """Nothing was found."""
        return not self.failures

    def check(self) -> None:
        """Do nothing if all is right.

        Raises:
            CheckFailed: with the failures listed.
        """
        if self.failures:
            shown = "".join(f"\n  {f.path}: {f.problem}" for f in self.failures[:SHOWN])
            more = len(self.failures) - SHOWN
            raise CheckFailed(
                f"{len(self.failures)} failures in {self.files} files:{shown}"
                + (f"\n  ... and {more} more (--json lists all)" if more > 0 else "")
                + "\nbuild-dataset on the same --out makes clips again whose files are missing; "
                "delete a damaged file first"
            )

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**dataclasses.asdict(self), "ok": self.is_ok}


def verify_dataset(
    out: Path,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> VerifyReport:
    """Read a data set and report.

    Args:
        out: the folder that build-dataset filled.
        workers: files read at a time, one thread each; the number of cores where left out.
        progress: called with (files read, files in all) after each.

    Raises:
        UsageError: `out` holds no run, or one that is under way.
    """
    run = RunFolder.recorded(out)
    if run is None:
        raise UsageError(f"{os.fspath(out)!r} holds no data set of ours: there is no run.json")
    with reading(out):
        failures: list[Failure] = []
        markers: dict[str, Marker] = {}
        for path, marker in read_markers(out):
            if isinstance(marker, str):
                failures.append(Failure(f"jobs/{path.name}", marker))
            else:
                markers[marker.clip_id] = marker
        rows = rows_from_markers(markers.values())
        failures += _check_tables(out, run, rows)
        failures += _check_names(out, markers)
        failures += _check_pairs(markers)
        expected = [row for row in rows if row["path"] is not None]
        facts: list[tuple[Row, StreamFacts]] = []
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            read = pool.map(lambda row: _read_file(out, row), expected)
            for done, (row, found) in enumerate(zip(expected, read, strict=True), start=1):
                if isinstance(found, StreamFacts):
                    failures += (Failure(row["path"], p) for p in _check_facts(row, found))
                    facts.append((row, found))
                else:
                    failures.append(Failure(row["path"], found))
                progress(done, len(expected))
        failures += _check_classes(facts)
    labels = Counter(
        marker.label if marker.outcome == "passed" else "refused" for marker in markers.values()
    )
    return VerifyReport(
        clips={name: labels[name] for name in ("real", "fake", "refused")},
        files=len(expected),
        size_bytes=sum(row["size_bytes"] for row in expected),
        pairs=sum(bool(m.columns.get("pair_clip_id")) for m in markers.values()),
        failures=tuple(sorted(set(failures))),
    )


def _check_tables(out: Path, run: Mapping[str, Any], rows: list[Row]) -> Iterator[Failure]:
    for name in (MANIFEST, QUARANTINE):
        recorded = run.get("tables", {}).get(name)
        try:
            found = hashlib.sha256((out / name).read_bytes()).hexdigest()
        except OSError as error:
            yield Failure(name, f"cannot be read: {error.strerror}")
            continue
        if found != recorded:
            yield Failure(name, f"its sha256 is {found}, run.json has {recorded}")
    try:
        listed = {_key(row): row for row in read_manifest(out / MANIFEST)}
    except InputError as error:
        yield Failure(MANIFEST, str(error))
        return
    made = {_key(row): row for row in rows}
    for key in sorted(made.keys() - listed.keys()):
        yield Failure(MANIFEST, f"has no row of clip {key[0]} {key[1]}, which is committed")
    for key in sorted(listed.keys() - made.keys()):
        yield Failure(MANIFEST, f"has a row of clip {key[0]} {key[1]}, which is not committed")
    of_the_set = {c.name for c in SET_COLUMNS}
    for key in sorted(made.keys() & listed.keys()):
        for c in COLUMNS:
            if c.name not in of_the_set and made[key][c.name] != listed[key][c.name]:
                yield Failure(
                    MANIFEST,
                    f"clip {key[0]} {key[1]}: {c.name} is {listed[key][c.name]!r}, "
                    f"its marker has {made[key][c.name]!r}",
                )
    yield from _check_splits(out, list(listed.values()))


def _check_splits(out: Path, rows: list[Row]) -> Iterator[Failure]:
    groups: dict[tuple[str, str], set[str | None]] = defaultdict(set)
    try:
        kind = load_recipe(out / RECIPE, BuildRecipe).splits.kind
    except RecipeError as error:
        yield Failure(RECIPE, str(error))
        kind = None
    for row in rows:
        if row["outcome"] != "passed":
            continue
        if row["split"] not in ("train", "val", "test"):
            yield Failure(MANIFEST, f"clip {row['clip_id']}: split is {row['split']!r}")
        groups["source", row["source_sha256"]].add(row["split"])  # fakes and their twins
        if kind == "identity-disjoint":
            groups["identity", row["identity"]].add(row["split"])
    for (what, name), splits in groups.items():
        if len(splits) > 1:
            yield Failure(MANIFEST, f"{what} {name} is in {sorted(map(str, splits))}")


def _check_names(out: Path, markers: Mapping[str, Marker]) -> Iterator[Failure]:
    wanted = {m.path(quality) for m in markers.values() for quality in m.files}
    for path in media_files(out):
        if path not in wanted:
            is_leftover = LEFTOVER.search(path)
            yield Failure(
                path, "left by a killed run" if is_leftover else "no marker knows this file"
            )
    for path in (out / "jobs").glob("*"):
        if path.suffix != ".json":
            yield Failure(f"jobs/{path.name}", "is no marker")


def _check_pairs(markers: Mapping[str, Marker]) -> Iterator[Failure]:
    for marker in markers.values():
        if marker.label == "real" or marker.outcome != "passed":
            continue
        path, columns = f"jobs/{marker.clip_id}.json", marker.columns
        twin_id = columns.get("pair_clip_id")
        if twin_id is None:
            if not columns["source_is_still"]:
                yield Failure(path, "the fake has no real twin, and its source is no still")
            continue
        twin = markers.get(twin_id)
        if twin is None or twin.label != "real":
            yield Failure(path, f"its real twin {twin_id} is not committed")
            continue
        for name in ("frames", "fps", "width", "height", "source_sha256", "identity"):
            if columns[name] != twin.columns[name]:
                yield Failure(
                    path, f"{name} is {columns[name]}, its real twin's is {twin.columns[name]}"
                )


def _read_file(out: Path, row: Row) -> StreamFacts | str:
    """The facts of a file, or what is wrong with it."""
    path = out / row["path"]
    try:
        data = path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if len(data) != row["size_bytes"]:
        return f"has {len(data)} bytes instead of {row['size_bytes']}"
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        return "its sha256 is not the marker's: the file is damaged"
    try:
        return stream_facts(path)
    except MediaError as error:
        return error.reason


def _check_facts(row: Row, facts: StreamFacts) -> Iterator[str]:
    quality: Quality = row["quality"]
    fps = Fraction(row["fps"])
    expected = {
        "profile": PROFILES[quality],
        "pix_fmt": "yuv420p",
        "width": row["width"],
        "height": row["height"],
        "colour_range": 0,
        "colour_matrix": 2,
        "colour_primaries": 2,
        "colour_transfer": 2,
        "fps": fps,
        "container_fps": fps,
        "frames": row["frames"],
        "container_frames": row["frames"],
        "x264_options": x264_options_at(quality, row["fps"]),
    }
    for name, value in expected.items():
        found = getattr(facts, name)
        if found != value:
            yield f"{name} is {found}, must be {value}"
    length = len(facts.comment.encode())
    if length != COMMENT_BYTES:
        yield f"its comment has {length} bytes, must be {COMMENT_BYTES}"
    try:
        said = json.loads(facts.comment)["synthetic"]
    except (ValueError, KeyError, TypeError):
        said = "nothing"
    if said is not row["synthetic"]:
        yield f"its comment says synthetic: {said}, the marker {row['synthetic']}"


def _check_classes(facts: list[tuple[Row, StreamFacts]]) -> Iterator[Failure]:
    """Whatever a container or bitstream states must not tell the classes apart."""
    names = [f.name for f in dataclasses.fields(StreamFacts)]
    for quality in QUALITIES:
        for name in names:
            if "frames" in name:
                continue  # equal pair by pair
            stated: dict[str, set[Any]] = {"real": set(), "fake": set()}
            for row, found in facts:
                if row["quality"] == quality and row["outcome"] == "passed":
                    value = getattr(found, name)
                    stated[row["label"]].add(len(value) if name == "comment" else value)
            if all(stated.values()) and stated["real"] != stated["fake"]:
                yield Failure(
                    f"data/*/*/*.{quality}.mp4",
                    f"the classes differ in {name}: real {_few(stated['real'])}, "
                    f"fake {_few(stated['fake'])}",
                )


def _few(values: set[Any]) -> str:
    return ", ".join(sorted(map(str, values))[:5])


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["clip_id"], row["quality"] or "no file"
