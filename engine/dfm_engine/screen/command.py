"""`dfm-engine screen CLIP --action A`: does this clip show the action?"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfm_engine.actions import Action, parse_action
from dfm_engine.errors import FaceError, UsageError
from dfm_engine.faces.framing import frame_clip
from dfm_engine.faces.mtcnn import Mtcnn
from dfm_engine.recipe import BuildRecipe
from dfm_engine.screen.gates import ActionVerdict, check_action
from dfm_engine.screen.signals import measure

__all__ = ["ScreenReport", "run_screen"]

FRAME_SIDE = 256  # pixels the clip is framed to; eyes are then about 80 pixels apart


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenReport:
    """What one clip shows.

    Attributes:
        path: the clip.
        frames: how many frames were judged, at 25 frames/s.
        face_share: share of looked-at frames that held a face.
        verdict: of the action asked for.
        others: verdicts of the other nine actions.
    """

    path: Path
    frames: int
    face_share: float
    verdict: ActionVerdict
    others: tuple[ActionVerdict, ...]

    @property
    def exit_code(self) -> int:
        """0 if the action is performed, else 3."""
        return 0 if self.verdict.performed else 3

    def print(self) -> None:
        """Tell a person, on stderr."""
        verdict = self.verdict
        lines = [
            f"{os.fspath(self.path)}: {verdict.action.value} "
            f"{'performed' if verdict.performed else 'not performed: ' + verdict.reason}"
            f" (score {verdict.score:.2f}, 1 is the border"
            f"{'; a weak gate' if verdict.low_confidence else ''})",
            f"  {self.frames} frames, a face in {self.face_share:.0%} of those looked at",
            *(f"  {name} {value:g}" for name, value in verdict.measurements.items()),
        ]
        shown = [other.action.value for other in self.others if other.performed]
        lines.append(f"  other gates that it passes: {', '.join(shown) or 'none'}")
        sys.stderr.write("\n".join(lines) + "\n")

    def to_json(self) -> dict[str, Any]:
        """One object for `--json`."""
        return {
            "path": os.fsdecode(self.path),
            "frames": self.frames,
            "face_share": round(self.face_share, 4),
            "verdict": self.verdict.to_json(),
            "others": {
                other.action.value: {"performed": other.performed, "score": other.score}
                for other in self.others
            },
        }


def run_screen(
    path: str | os.PathLike[str],
    action: str,
    *,
    detector: Mtcnn,
    recipe: BuildRecipe | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> ScreenReport:
    """Frame a clip to its face as a build does, and judge it.

    Args:
        path: a clip.
        action: what should be seen; a name or alias of one of the ten.
        detector: finds faces.
        recipe: limits, framing and thresholds; the defaults if None.
        start_s: where to begin, in seconds from the first frame.
        end_s: where to end, None for the end of the clip.

    Raises:
        UsageError: no such action.
        MediaError: the clip does not decode.
        FaceError: it decodes but holds no face that can be followed.
    """
    asked = parse_action(action)
    if asked is None:
        raise UsageError(
            f"no action {action!r}; known are {', '.join(known.value for known in Action)}"
        )
    recipe = recipe or BuildRecipe()
    framed = frame_clip(
        path,
        detector=detector,
        size=FRAME_SIDE,
        limits=recipe.limits,
        faces=recipe.faces,
        clips=recipe.clips,
        sources=None,
        start_s=start_s,
        end_s=end_s,
    )
    signals = measure(framed.frames, detector, every_n=recipe.screen.every_n)
    if signals is None:
        raise FaceError(path, "no-face", "no face is found again in the framed clip")
    verdicts = {each: check_action(signals, each, recipe.screen.thresholds) for each in Action}
    return ScreenReport(
        path=Path(path),
        frames=len(signals),
        face_share=signals.found_share,
        verdict=verdicts.pop(asked),
        others=tuple(verdicts.values()),
    )
