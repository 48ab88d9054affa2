"""What the screen of a build says of whole animated clips of rendered people.

Each clip has its own two people: one talks (the source image is the most frontal one, mouth open
or shut), the other performs an action; the animation goes through the stages of a build from the
framed frames on. In: a model, a detector. Out: a count per action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from dfm_engine.actions import Action
from dfm_engine.animate import AnimationJob, animate_jobs, prepare_driving, prepare_source
from dfm_engine.backends import TorchRunner, plan_batch_size
from dfm_engine.clip import Pixels
from dfm_engine.errors import ShapeError
from dfm_engine.fomm.evaluation_shots import BUILD_ZOOM
from dfm_engine.fomm.model import Fomm
from dfm_engine.fomm.procedural_pairs import framed
from dfm_engine.fomm.transfer import TransferMode, transfer
from dfm_engine.recipe import Screen
from dfm_engine.screen import Detector, Verdict, judge, measure
from dfm_engine.synthetic import Identity, action_states, idle_states, render

CLIP_FRAMES = 32
_TALK = slice(12, 52)  # frames of the source's clip to choose from: before them nobody talks


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenedAction:
    """What the screen says of one action's animations.

    Attributes:
        action: its name.
        clips: how many were made.
        driven: driving clips that pass their action's gate.
        performed: animations that pass it.
        accepted: animations that pass every check: face, sharpness, action, agreement of motion.
        reasons: why the others were refused, one sentence per failed check.
    """

    action: str
    clips: int
    driven: int
    performed: int
    accepted: int
    reasons: tuple[str, ...]


def screen_rendered(
    fomm: Fomm,
    detector: Detector,
    *,
    clips: int,
    first_seed: int,
    mode: TransferMode,
    device: torch.device,
    settings: Screen | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ScreenedAction, ...]:
    """Animate and judge `clips` clips of every action, no person twice.

    Args:
        fomm: the model.
        detector: finds faces, with landmarks read again in given squares.
        clips: per action.
        first_seed: of the people; 20 seeds per clip of every action are used.
        mode: how motion is carried over.
        device: where to render and animate.
        settings: limits of the screen; None takes the defaults.
        progress: called with clips done and all clips.
    """
    settings = settings or Screen()
    actions = list(Action)
    verdicts: dict[Action, list[Verdict]] = {action: [] for action in actions}
    runner = TorchRunner(fomm, device)
    for index in range(clips * len(actions)):
        action = actions[index % len(actions)]
        source, driving = _people(action, first_seed + 2 * index, runner.frame_size[0], device)
        made = _animate(source, driving, runner=runner, mode=mode)
        seen = [measure(frames, detector, every_n=settings.every_n) for frames in (driving, made)]
        if seen[0] is None:
            raise ShapeError(f"the detector finds no face in a rendered clip of {action.value}")
        verdicts[action].append(
            judge(
                seen[0],
                seen[1],
                action,
                settings=settings,
                source=measure(source[None], detector),
            )
        )
        if progress is not None:
            progress(index + 1, clips * len(actions))
    return tuple(_count(action, verdicts[action]) for action in actions)


def _people(action: Action, seed: int, size: int, device: torch.device) -> tuple[Pixels, Pixels]:
    """A source image (S, S, 3) of one person, a driving clip (T, S, S, 3) of the next."""
    talk = idle_states(_TALK.stop, seed)[_TALK]
    turned = torch.stack([talk.column(name) for name in ("yaw_deg", "pitch_deg", "roll_deg")])
    states = [talk[[int(turned.abs().sum(0).argmin())]], action_states(action, CLIP_FRAMES, seed)]
    frames = [
        render(_framed(person), moment, size, device=device, noise_seed=person).frames.cpu().numpy()
        for person, moment in zip((seed, seed + 1), states, strict=True)
    ]
    return np.ascontiguousarray(frames[0][0]), np.ascontiguousarray(frames[1])


def _framed(seed: int) -> Identity:
    return framed(Identity.draw(seed), BUILD_ZOOM)


def _animate(source: Pixels, driving: Pixels, *, runner: TorchRunner, mode: TransferMode) -> Pixels:
    batch_size = plan_batch_size(runner.fomm.config, runner.device)
    features, kp_source = prepare_source(source, runner=runner)
    kp_driving = prepare_driving(driving, runner=runner, batch_size=batch_size)
    moved = transfer(kp_source, kp_driving, kp_driving[:1], mode=mode)
    job = AnimationJob(key=None, source=features, kp_source=kp_source, kp_driving=moved)
    return next(iter(animate_jobs([job], runner=runner, batch_size=batch_size))).frames


def _count(action: Action, verdicts: list[Verdict]) -> ScreenedAction:
    return ScreenedAction(
        action=action.value,
        clips=len(verdicts),
        driven=sum(verdict.driving.performed for verdict in verdicts),
        performed=sum(
            bool(verdict.performed and verdict.performed.performed) for verdict in verdicts
        ),
        accepted=sum(verdict.passed for verdict in verdicts),
        reasons=tuple(reason for verdict in verdicts for reason in verdict.reasons),
    )
