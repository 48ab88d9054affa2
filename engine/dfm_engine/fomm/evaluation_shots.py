"""What a FOMM is evaluated on: a source, what drives it, and the true result.

Rendered people give a truth for animation by oneself and by somebody else; clips only for the
first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dfm_engine.actions import Action
from dfm_engine.fomm.clip_folder import list_clips, read_clip
from dfm_engine.fomm.procedural_pairs import framed
from dfm_engine.synthetic import Identity, States, action_states, render

# Which part of the face an action's gain is read from; poses move the whole picture.
GAIN_BOXES = {
    Action.BLINK: "eyes",
    Action.OPEN_MOUTH: "mouth",
    Action.SMILE: "mouth",
    Action.SURPRISE: "mouth",
    Action.EMBARRASSMENT: "mouth",
}
# What an action moves most, of `STATE_FIELDS`; head and gaze sway a little in every clip.
_CARRIER = {
    Action.BLINK: "blink",
    Action.OPEN_MOUTH: "jaw",
    Action.YAW: "yaw_deg",
    Action.NOD: "pitch_deg",
    Action.RIGHT_SLOPE: "roll_deg",
    Action.LEFT_SLOPE: "roll_deg",
    Action.LOOK_UP: "pitch_deg",
    Action.SMILE: "smile",
    Action.SURPRISE: "jaw",
    Action.EMBARRASSMENT: "pitch_deg",
}
_CLIP_FRAMES = 45
BUILD_ZOOM = (1.2, 1.4)  # as a build's face crops


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One person, one or more moments, animated: what is compared.

    Attributes:
        label: the action, or the clip's name.
        kind: "self" or "cross".
        source: (1, 3, H, W).
        driving: (T, 3, H, W).
        initial: (1, 3, H, W) the driving person where the motion starts.
        truth: (T, 3, H, W).
        boxes: (T, 4) where the gain is read, or None.
    """

    label: str
    kind: str
    source: Tensor
    driving: Tensor
    initial: Tensor
    truth: Tensor
    boxes: Tensor | None = None


def rendered_shots(
    size: int,
    identities: int,
    first_seed: int,
    *,
    moments: int,
    device: torch.device,
    actions: Sequence[Action] = tuple(Action),
) -> Iterator[Shot]:
    """Every action of every person, driven by itself and by the next person in line."""
    for number in range(identities):
        seed = first_seed + number
        other = first_seed + (number + 1) % max(2, identities)
        states = []
        for action in actions:
            clip = action_states(action, _CLIP_FRAMES, seed)
            states += [clip[[0]], clip[_moments(clip, action, moments)]]
        people = [framed(Identity.draw(s), BUILD_ZOOM) for s in (seed, other)]
        drawn = render(people, States.join(states * 2), size, device=device, noise_seed=seed)
        frames = drawn.frames.permute(0, 3, 1, 2).to(torch.float32) / 255
        own, theirs = frames.chunk(2)
        points = drawn.landmarks.chunk(2)[0]
        each = 1 + moments
        for index, action in enumerate(actions):
            rest, at = index * each, slice(index * each + 1, (index + 1) * each)
            box = GAIN_BOXES.get(action)
            boxes = None
            if box is not None:
                boxes = gain_boxes(points[at], points[rest : rest + 1].expand(moments, -1, -1), box)
            for kind, person in (("self", own), ("cross", theirs)):
                yield Shot(
                    label=action.value,
                    kind=kind,
                    source=own[rest : rest + 1],
                    driving=person[at],
                    initial=person[rest : rest + 1],
                    truth=own[at],
                    boxes=boxes,
                )


def _moments(states: States, action: Action, moments: int) -> list[int]:
    """The frame where the action is farthest from the first frame, and frames on the way there."""
    carrier = states.column(_CARRIER[action])
    peak = int((carrier - carrier[0]).abs().argmax())
    return [max(1, round(peak * (k + 1) / moments)) for k in range(moments)]


def gain_boxes(points: Tensor, rest: Tensor, part: str) -> Tensor:
    """(N, 4) box around the eyes or the mouth, before and after; landmarks (N, 10, 2)."""
    chosen = [0, 1] if part == "eyes" else [2, 3, 4, 5]
    both = torch.cat([points[:, chosen], rest[:, chosen]], dim=1)
    low, high = both.amin(1), both.amax(1)
    # half an eye to each side, and from the lid down over the whole eye
    margin = (0.2, 0.06, 0.2, 0.2) if part == "eyes" else (0.05, 0.06, 0.05, 0.06)
    left, top, right, bottom = margin
    return torch.stack(
        [low[:, 0] - left, low[:, 1] - top, high[:, 0] + right, high[:, 1] + bottom], dim=1
    )


def folder_shots(
    folder: Path, size: int, *, most: int, device: torch.device, frames: int = 64
) -> Iterator[Shot]:
    """Each clip's first frame, driven by up to `frames` of its frames, evenly spread."""
    root = folder / "test" if (folder / "test").is_dir() else folder
    clips = [clip for group in list_clips(root, by_name=False) for clip in group]
    for clip in clips[: most or None]:
        pictures = read_clip(clip, size, most=frames)
        images = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).to(torch.float32) / 255
        yield Shot(
            label=clip.name,
            kind="self",
            source=images[:1],
            driving=images,
            initial=images[:1],
            truth=images,
        )
