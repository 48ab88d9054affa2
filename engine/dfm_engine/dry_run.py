"""`build-dataset --dry-run`: what a build would make, from the lists alone; nothing is written.

Clips are listed and hashed but not decoded, so unusable files still count here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from dfm_engine.actions import Action
from dfm_engine.options import BuildOptions, list_inputs
from dfm_engine.plan import Quotas
from dfm_engine.progress import duration

BYTES_PER_FRAME = {"raw": 20_000, "c23": 520, "c40": 90}
"""Of a 256 x 256 face clip: 3.9 Mb/s, 0.10 Mb/s and 0.018 Mb/s at 25 frames/s."""

ENCODE_S_PER_FRAME = 0.0055
"""Processor time for the three qualities of one 256 x 256 frame on one core of a server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What the lists promise.

    Attributes:
        sources, driving: listed clips; driving per action.
        fakes: at most, per action.
        frames: of fakes and real twins, at the recipe's full length.
        disk_bytes, encode_core_s: estimates from the constants above.
        warnings: of the readers.
    """

    sources: int
    identities: int
    driving: dict[str, int]
    fakes: dict[str, int]
    frames: int
    disk_bytes: int
    encode_core_s: float
    warnings: tuple[str, ...]

    def print(self) -> None:
        """Tell a person, on stderr."""
        lines = [f"note: {warning}" for warning in self.warnings]
        lines += [
            f"{self.sources} source clips of {self.identities} identities; driving clips: "
            + ", ".join(f"{action} {count}" for action, count in self.driving.items()),
            "fakes at most: " + ", ".join(f"{action} {n}" for action, n in self.fakes.items()),
            f"at most {self.frames} frames, {self.disk_bytes / 2**30:.1f} GiB, and "
            f"{duration(self.encode_core_s)} of encoding on one core; nothing was written",
        ]
        sys.stderr.write("\n".join(lines) + "\n")

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "dry_run": True,
            "sources": self.sources,
            "identities": self.identities,
            "driving": self.driving,
            "fakes_at_most": self.fakes,
            "frames_at_most": self.frames,
            "disk_bytes_at_most": self.disk_bytes,
            "encode_core_s_at_most": round(self.encode_core_s, 1),
            "warnings": list(self.warnings),
        }


def survey(options: BuildOptions) -> Outlook:
    """List the inputs of a build and say what it could make.

    Raises:
        UsageError: a folder is absent, empty or unusable.
    """
    recipe, inputs = options.recipe, list_inputs(options)
    driving = {
        action: sum(clip.action == action for clip in inputs.driving.clips) for action in Action
    }
    listed = [action for action, count in driving.items() if count]
    quotas = Quotas.of(
        listed,
        per_action=recipe.plan.per_action,
        per_source=recipe.plan.fakes_per_source,
        limit=options.limit,
    )
    sources = len(inputs.sources.clips)
    fakes: dict[str, int] = {}
    for action in listed:
        quota, pairs = quotas.per_action[action], sources * driving[action]
        fakes[action.value] = pairs if quota is None else min(quota, pairs)
    total = sum(fakes.values())
    if recipe.plan.fakes_per_source:
        total = min(total, sources * recipe.plan.fakes_per_source)
    frames = (total + min(total, sources)) * recipe.clips.max_frames
    return Outlook(
        sources=sources,
        identities=len({clip.identity for clip in inputs.sources.clips}),
        driving={action.value: count for action, count in driving.items() if count},
        fakes=fakes,
        frames=frames,
        disk_bytes=frames * sum(BYTES_PER_FRAME.values()),
        encode_core_s=frames * ENCODE_S_PER_FRAME,
        warnings=inputs.warnings,
    )
