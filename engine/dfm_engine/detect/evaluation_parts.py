"""The parts of an evaluation: scores to rows by quality, group, action and person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfm_engine.actions import Action
from dfm_engine.clip import QUALITIES
from dfm_engine.detect.evaluation_result import ActionRow, IdentityRow, Level, Slice
from dfm_engine.detect.evaluation_scores import FrameScores
from dfm_engine.detect.metrics import Interval, Positive, bootstrap, measure

__all__ = ["Draw", "Videos", "action_rows", "identity_rows", "slices"]

Floats = NDArray[np.float64]
Names = NDArray[np.str_]


@dataclass(frozen=True, slots=True, eq=False)
class Videos:
    """The scores with what is known of their videos, as arrays.

    Attributes:
        scores: of frames.
        p_video: (V,) mean fake probability.
        is_fake: (V,) bool.
        clip_id, person, action, quality: (V,) text; blank where there is none.
    """

    scores: FrameScores
    p_video: Floats
    is_fake: NDArray[np.bool_]
    clip_id: Names
    person: Names
    action: Names
    quality: Names

    @classmethod
    def of(cls, scores: FrameScores) -> Videos:
        """Gather them."""
        clips = scores.clips
        return cls(
            scores,
            np.clip(scores.of_clips(), 0, 1),  # a mean of ones may round above one
            np.array([clip.is_fake for clip in clips]),
            *(
                np.array([getattr(clip, name) or "" for clip in clips])
                for name in ("clip_id", "identity", "action", "quality")
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How intervals are drawn, and the convention of the metrics."""

    replicates: int
    seed: int
    positive: Positive

    def intervals(
        self, p: Floats, is_fake: NDArray[np.bool_], clusters: Names
    ) -> dict[str, Interval]:
        """Of every metric, by drawing clusters."""
        return bootstrap(
            p,
            is_fake,
            clusters,
            replicates=self.replicates,
            seed=self.seed,
            positive=self.positive,
        )

    def level(self, p: Floats, is_fake: NDArray[np.bool_], clip: Names, person: Names) -> Level:
        """Metrics of samples that belong to clips and people."""
        return Level(
            metrics=measure(p, is_fake, positive=self.positive),
            by_clip=self.intervals(p, is_fake, clip),
            by_identity=self.intervals(p, is_fake, person),
        )


def slices(videos: Videos, draw: Draw, groups: Mapping[str, str], notes: list[str]) -> list[Slice]:
    """Everything, then every quality if there are several, then every group of people."""
    wanted = [("all", "all", np.ones(len(videos.p_video), bool))]
    qualities = [q for q in QUALITIES if (videos.quality == q).any()]
    if len(qualities) > 1:
        wanted += [("quality", quality, videos.quality == quality) for quality in qualities]
    group = np.array([groups.get(str(person), "") for person in videos.person])
    wanted += [("group", name, group == name) for name in sorted(set(group.tolist()) - {""})]
    if groups and (group == "").any():
        without = len(np.unique(videos.person[group == ""]))
        notes.append(f"{without} people of this evaluation are in no group.")
    made: list[Slice] = []
    for kind, name, own in wanted:
        if videos.is_fake[own].all() or not videos.is_fake[own].any():
            notes.append(f"{kind} {name}: clips of one class alone, not measured.")
        else:
            made.append(_slice(videos, draw, kind, name, own))
    return made


def action_rows(videos: Videos, draw: Draw) -> list[ActionRow]:
    """Fakes of every action against all real videos, in the paper's order; then the real ones.

    Empty where no fake has an action.
    """
    real = ~videos.is_fake
    known = [action.value for action in Action]
    others = sorted(set(videos.action[videos.is_fake].tolist()) - {*known, ""})
    rows: list[ActionRow] = []
    for action in (*known, *others):
        own = videos.is_fake & (videos.action == action)
        if own.any():
            both = own | real
            p, is_fake = videos.p_video[both], videos.is_fake[both]
            drawn = draw.intervals(p, is_fake, videos.person[both])
            auc = measure(p, is_fake).auc
            interval = drawn.get("accuracy_fake")
            rows.append(_action(videos, action, own, interval, auc, drawn.get("auc")))
    if rows:
        drawn = draw.intervals(videos.p_video, videos.is_fake, videos.person)
        rows.append(_action(videos, "real", real, drawn.get("accuracy_real"), None, None))
    return rows


def identity_rows(videos: Videos) -> list[IdentityRow]:
    """One row per person, the worst first."""
    right = (videos.p_video > 0.5) == videos.is_fake
    rows: list[IdentityRow] = []
    for person in np.unique(videos.person):
        own = videos.person == person
        fake, real = own & videos.is_fake, own & ~videos.is_fake
        rows.append(
            IdentityRow(
                identity=str(person),
                fakes=int(fake.sum()),
                reals=int(real.sum()),
                accuracy=float(right[own].mean()),
                mean_p_fake=float(videos.p_video[fake].mean()) if fake.any() else None,
                mean_p_real=float(videos.p_video[real].mean()) if real.any() else None,
            )
        )
    return sorted(rows, key=lambda row: (row.accuracy, row.identity))


def _slice(videos: Videos, draw: Draw, kind: str, name: str, own: NDArray[np.bool_]) -> Slice:
    inside = own[videos.scores.clip]
    clip = videos.scores.clip[inside]
    return Slice(
        kind=kind,
        name=name,
        identities=len(np.unique(videos.person[own])),
        frames=draw.level(
            videos.scores.p_fake[inside],
            videos.is_fake[clip],
            videos.clip_id[clip],
            videos.person[clip],
        ),
        videos=draw.level(
            videos.p_video[own], videos.is_fake[own], videos.clip_id[own], videos.person[own]
        ),
    )


def _action(
    videos: Videos,
    name: str,
    own: NDArray[np.bool_],
    interval: Interval | None,
    auc: float | None,
    auc_interval: Interval | None,
) -> ActionRow:
    is_fake = name != "real"
    frames = videos.scores.p_fake[own[videos.scores.clip]]
    return ActionRow(
        action=name,
        videos=int(own.sum()),
        frames=len(frames),
        accuracy=float(((videos.p_video[own] > 0.5) == is_fake).mean()),
        accuracy_frames=float(((frames > 0.5) == is_fake).mean()),
        interval=interval,
        auc=auc,
        auc_interval=auc_interval,
        mean_p_fake=float(videos.p_video[own].mean()),
    )
