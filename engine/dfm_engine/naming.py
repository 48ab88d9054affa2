"""What a clip is called and what is said of it: ids, container comments, manifest columns."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any

from dfm_engine.clip import Box, SourceClip
from dfm_engine.columns import text_of_path
from dfm_engine.jobs import clip_id
from dfm_engine.media.encode import MEDIA_CONTRACT, provenance_comment
from dfm_engine.plan import Candidate
from dfm_engine.prepare import CONTRACT as FRAMING_CONTRACT
from dfm_engine.prepare import Prepared
from dfm_engine.recipe import BuildRecipe, recipe_hash
from dfm_engine.screen import Verdict
from dfm_engine.shelf import OpenDriving, OpenSource

GENERATOR = "fomm"
VERSION = importlib.metadata.version("dfm-engine")


class Naming:
    """Clip ids, comments and manifest columns: what a clip is called and what is said of it.

    Args:
        recipe: of the run.
        weights_sha256: of the generator.
        frame_size: side of a canonical frame.
        real_root, driving_root: paths in the manifest are given below these.
    """

    def __init__(
        self,
        recipe: BuildRecipe,
        *,
        weights_sha256: str,
        frame_size: int,
        real_root: Path,
        driving_root: Path,
    ) -> None:
        self._recipe = recipe
        self._weights = weights_sha256
        self._size = frame_size
        self._roots = {"real": real_root, "driving": driving_root}
        self._framing = {
            "contracts": [FRAMING_CONTRACT, MEDIA_CONTRACT],
            "frame_size": frame_size,
            "faces": dataclasses.asdict(recipe.faces),
            "clips": dataclasses.asdict(recipe.clips),
        }

    def real_id(self, source_sha256: str, frames: int) -> str:
        """Of a real clip: the first `frames` canonical frames of its file."""
        return clip_id({**self._framing, "real": source_sha256, "frames": frames})

    def fake_id(self, candidate: Candidate) -> str:
        """Of an animation."""
        return clip_id(
            {
                **self._framing,
                "fake": [candidate.source, candidate.driving, candidate.action],
                "sources": dataclasses.asdict(self._recipe.sources),
                "motion": dataclasses.asdict(self._recipe.motion),
                "seed": self._recipe.plan.seed,
                "generator": [GENERATOR, self._weights],
            }
        )

    def real_comment(self, clip: SourceClip) -> str:
        """What the container of a real clip says."""
        return provenance_comment(
            {"synthetic": False, "source": clip.sha256[:16], "made_by": f"dfm-engine {VERSION}"}
        )

    def fake_comment(self, source: OpenSource, driving: OpenDriving) -> str:
        """What the container of a fake says."""
        return provenance_comment(
            {
                "synthetic": True,
                "generator": GENERATOR,
                "weights": self._weights,
                "source": source.clip.sha256[:16],
                "driving": driving.clip.sha256[:16],
                "action": driving.clip.action.value,
                "made_by": f"dfm-engine {VERSION}",
            }
        )

    def real_columns(self, clip: SourceClip, prepared: Prepared, frames: int) -> dict[str, Any]:
        """The manifest's words for a real clip."""
        return {"synthetic": False, "frames": frames, **self._source_columns(clip, prepared)}

    def fake_columns(
        self, source: OpenSource, driving: OpenDriving, frames: int, verdict: Verdict
    ) -> dict[str, Any]:
        """The manifest's words for a fake."""
        clip, prepared = source.clip, source.prepared
        scores = prepared.source_scores
        agreement = verdict.agreement
        return {
            "synthetic": True,
            "frames": frames,
            **self._source_columns(clip, prepared),
            "action": driving.clip.action.value,
            "pair_clip_id": None if clip.is_still else self.real_id(clip.sha256, frames),
            "source_frame": prepared.source_index,
            "source_score": scores.get("score"),
            "source_yaw_deg": scores.get("yaw_deg"),
            "source_pitch_deg": scores.get("pitch_deg"),
            "source_roll_deg": scores.get("roll_deg"),
            "source_sharpness": scores.get("sharpness"),
            "driving_sha256": driving.clip.sha256,
            "driving_path": self._below("driving", driving.clip.path),
            "driving_start_s": driving.clip.start_s,
            "driving_end_s": driving.clip.end_s,
            "driving_mirrored": driving.clip.mirrored,
            "take": driving.clip.take or None,
            "actor": driving.clip.actor or None,
            "consent": driving.clip.consent or None,
            "generator": GENERATOR,
            "weights_sha256": self._weights,
            "motion_mode": self._recipe.motion.mode,
            "align_corners": self._recipe.motion.align_corners,
            "seed": self._recipe.plan.seed,
            "screen_mode": self._recipe.screen.mode,
            "screen_passed": verdict.passed,
            "screen_reasons": "; ".join(verdict.reasons) or None,
            "screen_face_share": verdict.face_share,
            "screen_agreement": agreement and agreement.correlation,
            "screen_amplitude": agreement and agreement.amplitude_ratio,
        }

    def _source_columns(self, clip: SourceClip, prepared: Prepared) -> dict[str, Any]:
        box = prepared.box or Box(0, 0, 0, 0)
        return {
            "identity": clip.identity,
            "fps": self._recipe.clips.fps,
            "width": self._size,
            "height": self._size,
            "source_sha256": clip.sha256,
            "source_path": self._below("real", clip.path),
            "source_dataset": clip.dataset,
            "source_is_still": clip.is_still,
            "box_x0": box.x0,
            "box_y0": box.y0,
            "box_x1": box.x1,
            "box_y1": box.y1,
            "recipe_hash": recipe_hash(self._recipe),
            "media_contract": MEDIA_CONTRACT,
            "dfm_version": VERSION,
        }

    def _below(self, root: str, path: Path) -> str:
        top = self._roots[root]
        return text_of_path(path.relative_to(top) if path.is_relative_to(top) else path.name)
