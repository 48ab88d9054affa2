"""How long the paper's whole data set would take on the measured machine, by arithmetic.

Every stage's own rate in the measured run, times the frames that it would have to do. Stages that
work on a driving clip do so once, however many fakes it drives; all others work on every fake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dfm_bench.markdown import number, table
from dfm_bench.measure import StageRow

__all__ = ["PAPER", "Outlook", "PaperSet", "StageOutlook", "outlook"]

PER_DRIVING_CLIP = ("driving decode", "driving keypoints", "driving screen")


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperSet:
    """The size of DeepFake MNIST+ (Huang et al. 2021, section 3).

    Attributes:
        fakes: animations kept, each with its real twin.
        driving_clips: 45 by one volunteer, 5 of ADFES.
        frames_per_clip: 7 s at 25 frames/s, about what VoxCeleb1's clips have; not printed there.
    """

    fakes: int = 10_000
    driving_clips: int = 50
    frames_per_clip: int = 175


PAPER = PaperSet()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutlook:
    """One stage's share: its name, its frames, and minutes on the workers that it had."""

    name: str
    frames: int
    minutes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Minutes of every stage.

    Attributes:
        stages: in the order of the run.
        minutes: of the whole, at the run's own end-to-end rate.
    """

    stages: tuple[StageOutlook, ...]
    minutes: float

    @property
    def limit(self) -> StageOutlook:
        """The stage that would have to grow."""
        return max(self.stages, key=lambda stage: stage.minutes)

    def markdown(self) -> str:
        """A table and what follows from it."""
        rows = [(s.name, f"{s.frames:,}".replace(",", " "), number(s.minutes)) for s in self.stages]
        return table(("stage", "frames", "minutes"), rows, right=(1, 2)) + "\n\n" + self.sentence()

    def sentence(self) -> str:
        """What follows from the numbers."""
        return (
            f"An estimate for {PAPER.fakes:,} fakes and their twins of {PAPER.frames_per_clip} "
            f"frames: {number(self.minutes)} minutes at the rate of the run measured here; "
            f"`{self.limit.name}` is the stage that would have to grow."
        )

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "minutes": self.minutes,
            "limit": self.limit.name,
            "stages": [asdict(stage) for stage in self.stages],
        }


def outlook(stages: Sequence[StageRow], *, paper: PaperSet = PAPER) -> Outlook:
    """Scale a measured run to the paper's size.

    Args:
        stages: of the run; `animate` among them.
        paper: the size.

    Raises:
        ValueError: no stage animated anything.
    """
    animated = next((s.frames for s in stages if s.name == "animate"), 0)
    if not animated:
        raise ValueError("the run animated no frame: there is nothing to scale")
    fake_frames = paper.fakes * paper.frames_per_clip
    found: list[StageOutlook] = []
    for stage in stages:
        rate = stage.frames_per_busy_s
        if rate is None:
            continue
        if stage.name in PER_DRIVING_CLIP:
            frames = paper.driving_clips * paper.frames_per_clip
        else:
            frames = round(fake_frames * stage.frames / animated)
        found.append(
            StageOutlook(name=stage.name, frames=frames, minutes=frames / rate / stage.workers / 60)
        )
    wall_s = stages[0].wall_s
    return Outlook(stages=tuple(found), minutes=wall_s * fake_frames / animated / 60)
