"""Measure a detector: `run_evaluate_detector` is what `dfm-engine evaluate detector` runs.

In: a runner and a store. Every frame is scored first (`evaluation_scores`), then measured: frames
and videos, whole and by quality, action, person and group of people. A video is a file: two files
of one name in different folders are two videos, and so are two qualities of one clip. Its score is
the mean fake probability of its frames.

Intervals draw clips, all qualities of a clip together, and people. Where the detector was trained
on people of this evaluation, that is a warning and stands in the result.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dfm_engine.clip import QUALITIES
from dfm_engine.detect.evaluation_parts import Draw, Videos, action_rows, identity_rows, slices
from dfm_engine.detect.evaluation_plots import write_plots
from dfm_engine.detect.evaluation_result import EvaluateDetectorResult
from dfm_engine.detect.evaluation_scores import SCORES, score_store
from dfm_engine.detect.metrics import Positive
from dfm_engine.durable import write_durably
from dfm_engine.errors import InputError, UsageError

if TYPE_CHECKING:
    from dfm_engine.detect.runner import DetectorRunner
    from dfm_engine.store.frames import Store
    from dfm_engine.store.index import StoredClip

__all__ = ["people_trained_on", "read_groups", "run_evaluate_detector"]

REPLICATES = 1000
RUN_FACTS = "detector.json"
SPLITS = ("train", "val", "test", "all")

Split = Literal["train", "val", "test", "all"]


def run_evaluate_detector(
    runner: DetectorRunner,
    store: Store,
    *,
    split: Split = "test",
    quality: str | None = None,
    frames: int = 0,
    positive: Positive = "fake",
    trained_on: Sequence[str] | None = None,
    groups: Mapping[str, str] | None = None,
    out: Path | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EvaluateDetectorResult:
    """Measure a detector on the clips of a store.

    Args:
        runner: the detector.
        store: made by `dfm-engine prepare`.
        split: which part; `all` takes every clip, also of data without a split.
        quality: raw, c23 or c40; None is every quality.
        frames: per clip, evenly spaced among those stored; 0 is all.
        positive: the class that AP, TPR and FPR are about.
        trained_on: people whom the detector was trained on; None where nobody knows.
        groups: group of a person, such as what a data set says of age or sex.
        out: folder for scores.parquet, evaluate.json, evaluate.md and the plots.
        replicates: of the bootstrap.
        seed: of the bootstrap.
        progress: called with (frames scored, frames in all).

    Raises:
        UsageError: no clip to evaluate on, or clips of one class alone.
        CheckFailed: the detector gave something that is no probability.
        EnvironmentUnfit: `out` cannot be written.
    """
    if positive not in ("fake", "real"):
        raise UsageError(f"--positive takes fake or real, found {positive!r}")
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {os.fspath(out)!r} is a file; name a folder")
    clips = _chosen(store, split, quality)
    started = time.monotonic()
    scores = score_store(runner, store, clips, frames=frames, progress=progress)
    seconds = time.monotonic() - started
    if out is not None:
        scores.write(out / SCORES)
    videos = Videos.of(scores)
    notes: list[str] = []
    warnings: list[str] = []
    draw = Draw(replicates=replicates, seed=seed, positive=positive)
    leak = _leak(videos, trained_on, warnings)
    if split == "val":
        notes.append(
            "Training keeps the epoch that is best on its val split: if that is this one, these "
            "numbers flatter; those of --split test do not."
        )
    result = EvaluateDetectorResult(
        model={
            "name": runner.spec.name,
            "weights_sha256": runner.weights_sha256,
            "runner": runner.name,
            "input_px": runner.spec.input_px,
        },
        data={
            "store": store.path.name,
            "split": split,
            "quality": quality or "all",
            "frames_per_clip": frames or "all stored",
            "videos": len(clips),
            "frames": len(scores),
            "identities": len(np.unique(videos.person)),
        },
        positive=positive,
        slices=tuple(slices(videos, draw, groups or {}, notes)),
        actions=tuple(action_rows(videos, draw)),
        people=tuple(identity_rows(videos)),
        leak=leak,
        frames_per_s=len(scores) / max(seconds, 1e-9),
        warnings=tuple(warnings),
        notes=(*_notes(videos, positive, replicates), *notes),
    )
    if out is not None:
        write_durably(out / "evaluate.json", (json.dumps(result.to_json(), indent=1)).encode())
        write_durably(out / "evaluate.md", result.table().encode())
        write_plots(out, result, p_video=videos.p_video, is_fake=videos.is_fake)
    return result


def read_groups(path: Path) -> dict[str, str]:
    """A table `identity, group` (CSV with that header) as group by identity.

    Raises:
        InputError: absent, or without the two columns.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
            groups = {row["identity"]: row["group"] for row in rows}
            if None in groups or None in groups.values():
                raise ValueError("a line has fewer values than the header")
            return groups
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise InputError(
            f"reading the groups {os.fspath(path)!r}: {error!r}; a CSV with the header "
            "'identity,group' is needed"
        ) from error


def people_trained_on(model: Path) -> list[str] | None:
    """Whom a RUN's detector was trained on; None where the model is a bare file.

    Raises:
        InputError: the run's detector.json cannot be read.
    """
    path = (model if model.is_dir() else model.parent) / RUN_FACTS
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_bytes())
        people = facts.get("train_identities")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"reading {os.fspath(path)!r}: {error}; copy the run's folder again, or name its "
            "detector.safetensors alone, elsewhere"
        ) from error
    return None if people is None else [str(name) for name in people]


def _chosen(store: Store, split: str, quality: str | None) -> list[StoredClip]:
    if split not in SPLITS:
        raise UsageError(f"--split takes {', '.join(SPLITS)}, found {split!r}")
    if quality is not None and quality not in QUALITIES:
        raise UsageError(f"--quality takes {', '.join(QUALITIES)}, found {quality!r}")
    clips = [
        clip
        for clip in store.index.clips
        if split in ("all", clip.split) and quality in (None, clip.quality) and clip.frames
    ]
    labels = {clip.label for clip in clips}
    if len(labels) < 2:
        held = sorted(
            {f"{c.split or 'no split'} {c.quality or ''} {c.label}" for c in store.index.clips}
        )
        raise UsageError(
            f"evaluating on {os.fspath(store.path)!r}: split {split}, quality {quality or 'any'} "
            f"has {len(clips)} clips{', all ' + labels.pop() if labels else ''}; both classes are "
            f"needed. The store holds: {', '.join(held)}; choose among them with --split and "
            "--quality"
        )
    return clips


def _leak(videos: Videos, trained_on: Sequence[str] | None, warnings: list[str]) -> dict[str, Any]:
    if trained_on is None:
        warnings.append(
            "nobody knows whom the model was trained on, so these people may be among them"
        )
        return {"is_checked": False}
    people = set(videos.person.tolist())
    shared = sorted(set(trained_on) & people)
    if shared:
        shown = ", ".join(shared[:5]) + (", ..." if len(shared) > 5 else "")
        count = int(np.isin(videos.person, shared).sum())
        warnings.append(
            f"the model was trained on {len(shared)} of the {len(people)} people of this "
            f"evaluation, who are in {count} of its {len(videos.person)} videos ({shown}): it may "
            "know them, so these numbers say little about others"
        )
    return {
        "is_checked": True,
        "trained_on_identities": len(set(trained_on)),
        "shared_identities": shared,
    }


def _notes(videos: Videos, positive: str, replicates: int) -> list[str]:
    reals = int((~videos.is_fake).sum())
    negatives = reals if positive == "fake" else len(videos.is_fake) - reals
    notes = [
        f"A video's score is the mean fake probability of its frames; {positive} is the positive "
        f"class; fake is called above 0.5. Intervals: 95 %, {replicates} draws, by person.",
    ]
    people = len(np.unique(videos.person))
    if people == 1:
        notes.append(
            "All videos show one person, so there are no intervals, and nothing is known of "
            "others; build the data set with more people."
        )
    elif people < 20:
        notes.append(f"{people} people are few to draw from: take the intervals as rough.")
    if negatives < 1000:
        notes.append(
            f"With {negatives} negative videos the smallest rate above 0 is {1 / negatives:.2g}: "
            "TPR@1e-3 allows none of them."
        )
    return notes
