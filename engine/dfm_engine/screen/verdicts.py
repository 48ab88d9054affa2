"""The screen's verdict of one animation: keep or reject, with every reason.

In: the driving clip's signals and the animation's frames. Out: a `Verdict` for the job's marker.
Checks, in order: a face in nearly every frame, no frozen frames, not blurred away, the action
performed, motion that agrees with the driving clip's, verdicts imported from elsewhere.

This is a local gate on what can be seen in the frames. It is no liveness service and says nothing
about what one would answer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from dfm_engine.actions import Action
from dfm_engine.clip import Pixels
from dfm_engine.recipe import Screen
from dfm_engine.screen.agreement import Agreement, agreement
from dfm_engine.screen.external import ExternalVerdict
from dfm_engine.screen.gates import ActionVerdict, check_action
from dfm_engine.screen.look import Detector
from dfm_engine.screen.signals import Signals, measure

__all__ = ["Verdict", "judge", "screen_animation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the screen says of one animation.

    Attributes:
        keep: whether the animation goes on to the encoder; true in a recipe's record mode.
        passed: whether every check held, in either mode.
        action: the action asked for.
        reasons: one sentence per failed check, empty if all held.
        face_share: share of looked-at frames that held a face.
        performed: the action gate on the animation, None without a face.
        driving: the action gate on the driving clip itself.
        agreement: motion against the driving clip, None without a face.
        still_share: share of frames equal to the one before.
        sharpness_ratio: sharpness over the source image's, at equal face size.
        external: verdicts imported for this clip.
    """

    keep: bool
    passed: bool
    action: Action
    reasons: tuple[str, ...]
    face_share: float
    performed: ActionVerdict | None
    driving: ActionVerdict
    agreement: Agreement | None
    still_share: float
    sharpness_ratio: float
    external: tuple[ExternalVerdict, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Plain values for the job's marker."""
        return {
            **asdict(self),
            "action": self.action.value,
            "reasons": list(self.reasons),
            "performed": self.performed and self.performed.to_json(),
            "driving": self.driving.to_json(),
            "external": [verdict.to_json() for verdict in self.external],
        }


def screen_animation(
    driving: Signals,
    frames: Pixels,
    action: Action,
    *,
    detector: Detector,
    settings: Screen,
    source: Signals | None = None,
    external: tuple[ExternalVerdict, ...] = (),
) -> Verdict:
    """Look at an animation's frames and judge them.

    Args:
        driving: signals of the driving clip, measured on its framed frames (`measure`).
        frames: the animation, uint8 (T, S, S, 3).
        action: what it should show.
        detector: finds faces.
        settings: the recipe's screen section.
        source: signals of the source image as a clip of one frame, for its sharpness; without it
            the driving clip's sharpness is the measure.
        external: verdicts imported for this clip; a fail among them rejects it.
    """
    result = measure(frames, detector, every_n=settings.every_n)
    return judge(driving, result, action, settings=settings, source=source, external=external)


def judge(
    driving: Signals,
    result: Signals | None,
    action: Action,
    *,
    settings: Screen,
    source: Signals | None = None,
    external: tuple[ExternalVerdict, ...] = (),
) -> Verdict:
    """The verdict from signals alone; `result` is None where no frame held a face."""
    reasons: list[str] = []
    driven = check_action(driving, action, settings.thresholds)
    performed: ActionVerdict | None = None
    match: Agreement | None = None
    face_share = still_share = sharpness_ratio = 0.0
    if result is None:
        reasons.append("no frame of the animation holds a face")
    else:
        face_share, still_share = result.found_share, result.still_share
        sharpness_ratio = result.sharpness / max((source or driving).sharpness, 1e-6)
        performed = check_action(result, action, settings.thresholds)
        match = agreement(driving, result, action)
        reasons += _frame_reasons(driving, result, sharpness_ratio, settings)
        if not performed.performed:
            reasons.append(f"{action.value} not performed: {performed.reason}")
        reasons += _motion_reasons(match, settings)
    reasons += [f"{verdict.gate} says fail" for verdict in external if not verdict.passed]
    return Verdict(
        keep=not reasons or settings.mode == "record",
        passed=not reasons,
        action=action,
        reasons=tuple(reasons),
        face_share=round(face_share, 4),
        performed=performed,
        driving=driven,
        agreement=match,
        still_share=round(still_share, 4),
        sharpness_ratio=round(sharpness_ratio, 4),
        external=external,
    )


def _frame_reasons(
    driving: Signals, result: Signals, sharpness_ratio: float, settings: Screen
) -> list[str]:
    reasons: list[str] = []
    if result.found_share < settings.min_face_share:
        reasons.append(
            f"a face in {result.found_share:.0%} of the looked-at frames, "
            f"needs {settings.min_face_share:.0%}"
        )
    frozen = result.still_share - driving.still_share
    if frozen > settings.max_frozen_share:
        reasons.append(
            f"{frozen:.0%} more frames equal to the one before than in the driving clip, "
            f"at most {settings.max_frozen_share:.0%}"
        )
    if sharpness_ratio < settings.min_sharpness_ratio:
        reasons.append(
            f"sharpness is {sharpness_ratio:.2f} of the source's, "
            f"needs {settings.min_sharpness_ratio:.2f}"
        )
    return reasons


def _motion_reasons(match: Agreement, settings: Screen) -> list[str]:
    reasons: list[str] = []
    if match.correlation < settings.min_agreement:
        reasons.append(
            f"motion correlates with the driving clip's at {match.correlation:.2f}, "
            f"needs {settings.min_agreement:.2f}"
        )
    if not settings.amplitude_low <= match.amplitude_ratio <= settings.amplitude_high:
        reasons.append(
            f"motion is {match.amplitude_ratio:.2f} of the driving clip's, needs "
            f"{settings.amplitude_low:.2f} to {settings.amplitude_high:.2f}"
        )
    return reasons
