"""What an evaluation of a detector found: for programs `to_json()`, for people `table()`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dfm_engine.detect.metrics import Interval, Metrics

__all__ = ["ActionRow", "EvaluateDetectorResult", "IdentityRow", "Level", "Slice"]

SHOWN_IDENTITIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Metrics of frames, or of videos.

    Attributes:
        metrics: of all samples.
        by_clip: intervals from drawing clips, a clip's qualities together.
        by_identity: intervals from drawing people: what other people might have given.
    """

    metrics: Metrics
    by_clip: Mapping[str, Interval] = field(default_factory=dict)
    by_identity: Mapping[str, Interval] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **self.metrics.to_json(),
            "interval_by_clip": {name: i.to_json() for name, i in self.by_clip.items()},
            "interval_by_identity": {name: i.to_json() for name, i in self.by_identity.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Part of the evaluated clips.

    Attributes:
        kind: `all`, `quality` or `group`.
        name: `all`, a quality, or a group of people.
        identities: people in it.
        frames, videos: metrics; a video's score is the mean fake probability of its frames.
    """

    kind: str
    name: str
    identities: int
    frames: Level
    videos: Level

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "kind": self.kind,
            "name": self.name,
            "identities": self.identities,
            "frames": self.frames.to_json(),
            "videos": self.videos.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionRow:
    """The fakes of one action, against all real videos.

    Attributes:
        action: `real` is the real videos themselves, without an AUC.
        videos, frames: of it.
        accuracy: share of its videos called rightly.
        accuracy_frames: share of its frames.
        interval: of `accuracy`, by identity; None where there is too little to draw from.
        auc: of its videos against all real ones.
        auc_interval: by identity.
        mean_p_fake: over its videos.
    """

    action: str
    videos: int
    frames: int
    accuracy: float
    accuracy_frames: float
    interval: Interval | None
    auc: float | None
    auc_interval: Interval | None
    mean_p_fake: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "action": self.action,
            "videos": self.videos,
            "frames": self.frames,
            "accuracy": self.accuracy,
            "accuracy_frames": self.accuracy_frames,
            "interval": self.interval and self.interval.to_json(),
            "auc": self.auc,
            "auc_interval": self.auc_interval and self.auc_interval.to_json(),
            "mean_p_fake": self.mean_p_fake,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityRow:
    """The videos of one person.

    Attributes:
        accuracy: share of them called rightly.
        mean_p_fake, mean_p_real: mean fake probability of the fakes, and of the real ones.
    """

    identity: str
    fakes: int
    reals: int
    accuracy: float
    mean_p_fake: float | None
    mean_p_real: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateDetectorResult:
    """What was measured.

    Attributes:
        model: name, weights, runner, device.
        data: which clips of which store.
        positive: the class that AP, TPR and FPR are about.
        slices: all clips first, then per quality, then per group.
        actions: in the paper's order, `real` last.
        people: sorted by accuracy, the worst first.
        leak: whether the model was trained on people of this evaluation.
        frames_per_s: scored, reading included.
        warnings: what makes these numbers worth less.
        notes: how they were taken.
    """

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    positive: str
    slices: tuple[Slice, ...]
    actions: tuple[ActionRow, ...] = ()
    people: tuple[IdentityRow, ...] = ()
    leak: Mapping[str, Any] = field(default_factory=dict)
    frames_per_s: float = 0.0
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0: an evaluation measures, whatever the numbers."""
        return 0

    def slice(self, name: str = "all") -> Slice:
        """One slice by its name.

        Raises:
            KeyError: there is none.
        """
        for each in self.slices:
            if each.name == name:
                return each
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """For `--json` and evaluate.json."""
        return {
            "model": dict(self.model),
            "data": dict(self.data),
            "positive": self.positive,
            "slices": [each.to_json() for each in self.slices],
            "actions": [row.to_json() for row in self.actions],
            "identities": [row.to_json() for row in self.people],
            "leak": dict(self.leak),
            "frames_per_s": round(self.frames_per_s, 1),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }

    def print(self) -> None:
        """Tell a person, on stderr."""
        sys.stderr.write(self.table())

    def table(self) -> str:
        """Markdown that is also readable as it is."""
        model, data = self.model, self.data
        lines = [
            f"# {model['name']} on {data['store']}, split {data['split']}",
            "",
            *(f"**Warning: {warning}**" for warning in self.warnings),
            *([""] if self.warnings else []),
            *_slice_table(self.slices),
            "",
            *_action_table(self.actions),
            *_people_table(self.people),
            *(f"- {note}" for note in self.notes),
            f"- {model['name']}, weights {model['weights_sha256'][:12]}, by {model['runner']}; "
            f"{self.frames_per_s:,.0f} frames/s.",
        ]
        return "\n".join(lines) + "\n"


def _slice_table(slices: tuple[Slice, ...]) -> Iterator[str]:
    header = (
        "clips",
        "level",
        "fake+real",
        "accuracy",
        "balanced (people drawn)",
        "AUC (people drawn)",
        "EER",
        "AP",
        "TPR@1e-2",
        "TPR@1e-3",
        "ECE",
        "log loss",
    )
    rows: list[tuple[str, ...]] = []
    for each in slices:
        for name, level in (("frame", each.frames), ("video", each.videos)):
            m, drawn = level.metrics, level.by_identity
            rows.append(
                (
                    each.name,
                    name,
                    f"{m.fakes}+{m.reals}",
                    f"{m.accuracy:.4f}",
                    f"{m.balanced_accuracy:.4f}{_range(drawn.get('balanced_accuracy'))}",
                    f"{m.auc:.4f}{_range(drawn.get('auc'))}",
                    f"{m.eer:.4f}",
                    f"{m.average_precision:.4f}",
                    f"{m.tpr_at_fpr_1e2:.4f}",
                    f"{m.tpr_at_fpr_1e3:.4f}",
                    f"{m.ece:.4f}",
                    f"{m.log_loss:.4f}",
                )
            )
    yield from _table(header, rows)


def _action_table(actions: tuple[ActionRow, ...]) -> Iterator[str]:
    if not actions:
        return
    rows = [
        (
            row.action.replace("_", " "),
            str(row.videos),
            f"{row.accuracy:.4f}{_range(row.interval)}",
            f"{row.accuracy_frames:.4f}",
            "–" if row.auc is None else f"{row.auc:.4f}{_range(row.auc_interval)}",
            f"{row.mean_p_fake:.3f}",
        )
        for row in actions
    ]
    header = ("action", "videos", "accuracy", "of frames", "AUC against all real", "mean p fake")
    yield from _table(header, rows)
    yield ""


def _people_table(people: tuple[IdentityRow, ...]) -> Iterator[str]:
    worst = [row for row in people if row.accuracy < 1][:SHOWN_IDENTITIES]
    if not worst:
        return
    rows = [
        (
            row.identity,
            f"{row.fakes}+{row.reals}",
            f"{row.accuracy:.3f}",
            *("–" if p is None else f"{p:.3f}" for p in (row.mean_p_fake, row.mean_p_real)),
        )
        for row in worst
    ]
    yield from _table(("hardest people", "fake+real", "accuracy", "p of fakes", "p of reals"), rows)
    yield ""


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[k]) for row in (header, *rows)) for k in range(len(header))]

    def line(cells: tuple[str, ...]) -> str:
        padded = [
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    yield line(header)
    yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    yield from map(line, rows)


def _range(interval: Interval | None) -> str:
    return f" ({interval.low:.3f}-{interval.high:.3f})" if interval else ""
