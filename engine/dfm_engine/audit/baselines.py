"""Train the shortcuts of a data set, and say which of them work.

In: the manifest's rows and the folder. Out: an `AuditReport`. Five baselines, each on the files of
one quality, since a detector may be trained on one alone:

    file size     the number of bytes and nothing else
    codec         packet sizes by picture type, quantisers
    container     facts of the mp4 and the headers of its bitstream
    first frame   the first picture as 8 x 8 squares: who, where, how lit, not how well drawn
    border        the eight outermost rings of pixels

A logistic regression learns each from some people and is tested on others; the interval of its
balanced accuracy comes from drawing people, and holds for all rows of the report together: its
error is shared out over them (Bonferroni). It is flagged where the interval lies above 0.5.

A flag is a question, not a verdict: `result.MEANINGS` says what each may mean, `telling` where to
look. Different encoder settings or a painted edge are leaks of the chain and must be mended. But
what a generator draws is smoother and stiller than what a camera sees, so file size, codec and
border may tell fakes by the forgery itself, which is worth knowing and cannot be mended in the
chain. The demo set is such a case (10 people, raw): its real clips have the renderer's sensor
noise, new in every picture, 0.9 to 2.1 levels from one to the next in a corner where nothing moves;
its fakes repeat that of their source picture, smoothed, 0.01 to 0.25. So they are smaller, and
their outer rings a third less rough. c40 leaves no noise; there fakes are larger, and in all
qualities their outer rings change more over time, for the generator moves the background with the
face. Container and first picture tell nothing: chain, colours and crop are the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm_engine.audit.features import FileFeatures
from dfm_engine.audit.logistic import cross_validated
from dfm_engine.audit.reading import read_all
from dfm_engine.audit.result import AuditReport, AuditRow
from dfm_engine.audit.telling import BORDER, CODEC, CONTAINER, FIRST_FRAME, most_telling
from dfm_engine.clip import QUALITIES
from dfm_engine.columns import Row
from dfm_engine.detect.metrics import bootstrap, measure
from dfm_engine.errors import DfmError

__all__ = ["BASELINES", "MAX_CLIPS", "MIN_PEOPLE", "audit_or_note", "audit_rows"]

BASELINES = ("file size", "codec", "container", "first frame", "border")
MAX_CLIPS = 400
"""Clips that are looked at; of a larger set as many people as possible."""
MIN_PEOPLE = 6
"""Below that an interval that draws people says nothing."""
LEVEL = 0.95
REPLICATES = 4000  # the outermost of them bound the interval of a few dozen people

Floats = NDArray[np.float64]

_log = logging.getLogger(__name__)


def audit_rows(
    rows: Sequence[Row],
    root: Path,
    *,
    max_clips: int = MAX_CLIPS,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> AuditReport:
    """Audit the clips of a data set.

    Args:
        rows: of the manifest; refused and extra clips are left out.
        root: folder that the rows' paths are relative to.
        max_clips: look at no more than about so many; fakes come with their real twins.
        seed: of the folds and the resampling; which clips are looked at depends on the rows alone.
        progress: called with (files read, files in all).

    Returns:
        The report; without rows, and with the reason as a note, where there is too little to test.
    """
    started = time.monotonic()
    usable = [row for row in rows if _is_in_set(row)]
    in_set = {row["clip_id"] for row in usable}
    chosen = _sample(usable, max_clips)
    files = [row for row in usable if row["clip_id"] in chosen]
    people = {row["identity"] for row in files}
    found = AuditReport(
        clips=len(chosen), clips_in_set=len(in_set), people=len(people), level=LEVEL
    )
    problem = _too_little(files, people)
    if problem:
        return dataclasses.replace(found, notes=(problem,), clips=0, people=0)
    read, refused = _read(files, root, progress)
    made: list[AuditRow] = []
    count = sum(any(row["quality"] == q for row, _ in read) for q in QUALITIES) * len(BASELINES)
    for baseline in BASELINES:
        for quality in QUALITIES:
            of_quality = [(row, each) for row, each in read if row["quality"] == quality]
            if not _too_little([row for row, _ in of_quality], _people(of_quality)):
                made.append(_test(baseline, quality, of_quality, tests=count, seed=seed))
    return dataclasses.replace(
        found,
        rows=tuple(made),
        unreadable=len(refused),
        notes=tuple(_notes(found, refused, files=len(files), of=len(usable))),
        seconds=round(time.monotonic() - started, 3),
    )


def audit_or_note(rows: Sequence[Row], root: Path) -> AuditReport:
    """`audit_rows` for a build, which an audit must never end: a failure becomes a note."""
    try:
        return audit_rows(rows, root)
    except (DfmError, OSError, ValueError, ArithmeticError, LookupError) as error:
        _log.warning("audit: %s", error, exc_info=True)
        return AuditReport(notes=(f"The audit failed: {type(error).__name__}: {error}",))


def features_of(baseline: str, files: Sequence[tuple[Row, FileFeatures]]) -> Floats:
    """The numbers (N, F) that a baseline may look at."""
    match baseline:
        case "file size":
            return np.log(np.array([[float(max(1, row["size_bytes"]))] for row, _ in files]))
        case "codec":
            return np.stack([each.codec for _, each in files])
        case "container":
            numbers = np.stack([each.container for _, each in files])
            words = _words(files)
            said = [[float(word in each.facts) for word in words] for _, each in files]
            return np.column_stack([numbers, np.array(said).reshape(len(files), len(words))])
        case "first frame":
            return np.stack([each.first_frame for _, each in files])
        case "border":
            return np.stack([each.border for _, each in files])
        case _:
            raise ValueError(f"no baseline {baseline!r}; known are {', '.join(BASELINES)}")


def names_of(baseline: str, files: Sequence[tuple[Row, FileFeatures]]) -> Sequence[str]:
    """Of the numbers of `features_of`, in words."""
    return {
        "file size": ("log of the bytes",),
        "codec": CODEC,
        "container": (*CONTAINER, *_words(files)),
        "first frame": FIRST_FRAME,
        "border": BORDER,
    }[baseline]


def _words(files: Sequence[tuple[Row, FileFeatures]]) -> list[str]:
    """Every fact that a file states."""
    return sorted({fact for _, each in files for fact in each.facts})


def _test(
    baseline: str,
    quality: str,
    files: Sequence[tuple[Row, FileFeatures]],
    *,
    tests: int,
    seed: int,
) -> AuditRow:
    features = features_of(baseline, files)
    varying = int((np.ptp(features, axis=0) > 1e-9).sum())
    is_fake = np.array([row["label"] == "fake" for row, _ in files])
    people = [row["identity"] for row, _ in files]
    p = cross_validated(features, is_fake, people, seed=seed)
    metrics = measure(p, is_fake)
    count = len(set(people))
    drawn = bootstrap(
        p, is_fake, people, replicates=REPLICATES, level=1 - (1 - LEVEL) / tests, seed=seed
    )
    balanced, auc = drawn.get("balanced_accuracy"), drawn.get("auc")
    return AuditRow(
        baseline=baseline,
        quality=quality,
        fakes=metrics.fakes,
        reals=metrics.reals,
        people=count,
        features=varying,
        balanced_accuracy=metrics.balanced_accuracy,
        interval=(balanced.low, balanced.high) if balanced else (0.0, 1.0),
        auc=metrics.auc,
        auc_interval=(auc.low, auc.high) if auc else (0.0, 1.0),
        telling=most_telling(features, names_of(baseline, files), is_fake),
    )


def _is_in_set(row: Mapping[str, Any]) -> bool:
    return row["outcome"] == "passed" and row["path"] is not None and not row["is_extra"]


def _sample(rows: Sequence[Row], most: int) -> set[str]:
    """Clip ids: one fake with its twin of every person in turn, then a second, and so on."""
    clips = {row["clip_id"]: row for row in rows}
    twins = {row["pair_clip_id"] for row in clips.values() if row["label"] == "fake"}
    units = [row for row in clips.values() if row["label"] == "fake" or row["clip_id"] not in twins]
    by_person: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(units, key=lambda row: _hash(row["clip_id"])):
        by_person[row["identity"]].append(row)
    turns = sorted(
        (
            (turn, _hash(person), row)
            for person, own in by_person.items()
            for turn, row in enumerate(own)
        ),
        key=lambda item: item[:2],
    )
    chosen: set[str] = set()
    for _, _, row in turns:
        if len(chosen) >= most:
            break
        chosen |= {row["clip_id"], row["pair_clip_id"]} & clips.keys()
    return chosen


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _too_little(rows: Sequence[Row], people: Iterable[str]) -> str | None:
    count = len(set(people))
    labels = [row["label"] for row in rows]
    if count < MIN_PEOPLE or len(set(labels)) < 2:
        return (
            f"Not audited: {labels.count('fake')} fake and {labels.count('real')} real files of "
            f"{count} people; both classes and {MIN_PEOPLE} people are needed."
        )
    return None


def _people(files: Sequence[tuple[Row, FileFeatures]]) -> set[str]:
    return {row["identity"] for row, _ in files}


def _read(
    rows: Sequence[Row], root: Path, progress: Callable[[int, int], None]
) -> tuple[list[tuple[Row, FileFeatures]], list[str]]:
    """Features of every readable file in the order of the rows, and why others are not."""
    good: list[tuple[Row, FileFeatures]] = []
    refused: list[str] = []
    found = read_all([root / row["path"] for row in rows])
    for done, (row, each) in enumerate(zip(rows, found, strict=True), start=1):
        if isinstance(each, str):
            refused.append(f"{row['path']}: {each}")
        else:
            good.append((row, each))
        progress(done, len(rows))
    return good, refused


def _notes(found: AuditReport, refused: Sequence[str], *, files: int, of: int) -> list[str]:
    looked = (
        f"{found.clips} clips"
        if found.clips == found.clips_in_set
        else f"{found.clips} of {found.clips_in_set} clips ({files} of {of} files), drawn by their "
        "ids and the same each time,"
    )
    notes = [
        f"Looked at {looked} of {found.people} people. Trained on some people, tested on others; "
        f"a real clip and its fakes are on one side. Intervals are drawn by person and hold for "
        f"all rows together at {found.level:.0%}."
    ]
    if found.people < 30:
        notes.append(
            f"{found.people} people give wide intervals: only a gross leak shows in so small a set."
        )
    if refused:
        notes.append(f"{len(refused)} files could not be read, the first: {refused[0]}")
    return notes
