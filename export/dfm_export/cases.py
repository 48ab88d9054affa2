"""The fixed set that exported networks are measured on, and what float32 torch makes of it.

Faces are procedural and seeded, so everybody measures on the same ones. The truth is the loaded
model itself, before any rewrite, in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dfm_engine.actions import Action
from dfm_engine.detect.detector import ForgeryDetector
from dfm_engine.fomm.model import Fomm
from dfm_engine.pixels import images_from_frames
from dfm_engine.synthetic import Identity, action_states, neutral_states, render
from dfm_engine.synthetic.state import States

__all__ = ["DetectorCases", "FommCases", "Tensors", "draw_faces"]

Tensors = Mapping[str, Tensor]
_FIRST_FACE = 9000
_ACTIONS = (Action.SMILE, Action.YAW, Action.SURPRISE, Action.OPEN_MOUTH)
_AT = 0.5  # of an action's frames: near its peak


def draw_faces(count: int, size: int, *, people: int, neutral: int = 0, first: int = 0) -> Tensor:
    """uint8 (count, size, size, 3): seeded people, the first frames neutral, the others acting.

    Args:
        count: frames; a multiple of `people`, who come one after the other.
        size: side in pixels.
        people: how many.
        neutral: how many frames from the first on show no action.
        first: another number gives other people and other performances.
    """
    states = []
    for index in range(count):
        if index < neutral:
            states.append(neutral_states(1))
        else:
            acted = action_states(_ACTIONS[index % len(_ACTIONS)], seed=first + index)
            states.append(acted[[int(_AT * len(acted))]])
    faces = [Identity.draw(_FIRST_FACE + first + index) for index in range(people)]
    return render(faces, States.join(states), size).frames


class FommCases:
    """Sources, driving rows, and the truth of every graph for any choice among them.

    One driver performs; every source has its own rows, carried over relative to the driver's
    neutral face.

    Args:
        fomm: as loaded, on the CPU.
        sources: S.
        rows_each: R, driving rows per source.
        first: another number gives other people and performances.
    """

    def __init__(self, fomm: Fomm, *, sources: int = 2, rows_each: int = 2, first: int = 0) -> None:
        self.sources, self.rows_each = sources, rows_each
        self.side = max(fomm.frame_size)
        drawn = draw_faces(sources, self.side, people=sources, neutral=sources, first=first)
        images = self._images(fomm, drawn)
        rows = sources * rows_each
        drawn = draw_faces(1 + rows, self.side, people=1, neutral=1, first=first)
        acted = self._images(fomm, drawn)
        with torch.inference_mode():
            features = fomm.encode_source(images)
            kp_source, kp_acted = fomm.keypoints(images), fomm.keypoints(acted)
            kp_driving = fomm.transfer(
                kp_source[[row // rows_each for row in range(rows)]],
                kp_acted[1:],
                kp_acted[0],
                mode="rel",
            )
            animations = [
                fomm.animate(
                    features[source],
                    kp_source[source],
                    kp_driving[source * rows_each : (source + 1) * rows_each],
                )
                for source in range(sources)
            ]
        self._all: dict[str, Tensor | None] = {
            "images": torch.cat([images, acted]),
            "value": torch.cat([kp_source.value, kp_acted.value]),
            "jacobian": None
            if kp_source.jacobian is None or kp_acted.jacobian is None
            else torch.cat([kp_source.jacobian, kp_acted.jacobian]),
            "encoded": features.encoded,
            "small": features.small,
            "source_value": kp_source.value,
            "source_jacobian": kp_source.jacobian,
            "driving_value": kp_driving.value,
            "driving_jacobian": kp_driving.jacobian,
            **{
                name: torch.cat([getattr(animation, name) for animation in animations])
                for name in ("deformation", "prediction")
            },
            "occlusion_map": None
            if animations[0].occlusion_map is None
            else torch.cat([a.occlusion_map for a in animations if a.occlusion_map is not None]),
        }

    def tensors(self, *, sources: int | None = None, rows_each: int | None = None) -> Tensors:
        """Inputs and outputs of all graphs, by name, of the first sources and rows of each.

        `images`, `value` and `jacobian` are of the sources and of every driving frame; `encoded`
        and `small` are of the sources.
        """
        sources = self.sources if sources is None else sources
        rows_each = self.rows_each if rows_each is None else rows_each
        rows = [s * self.rows_each + r for s in range(sources) for r in range(rows_each)]
        of_sources = {"encoded", "small", "source_value", "source_jacobian"}
        of_images = {"images", "value", "jacobian"}
        chosen = {}
        for name, tensor in self._all.items():
            if tensor is None:
                continue
            if name in of_sources:
                tensor = tensor[:sources]
            elif name not in of_images:
                tensor = tensor[rows]
            chosen[name] = tensor
        return chosen

    def _images(self, fomm: Fomm, frames: Tensor) -> Tensor:
        height, width = fomm.frame_size
        top, left = (self.side - height) // 2, (self.side - width) // 2
        images = images_from_frames(frames[:, top : top + height, left : left + width])
        return images[:, : fomm.config.num_channels]


class DetectorCases:
    """Frames of a detector's size, and its logits and maps.

    Args:
        detector: as loaded, on the CPU.
        count: frames, an even number.
    """

    def __init__(self, detector: ForgeryDetector, *, count: int = 64) -> None:
        spec = detector.spec
        self.frames = draw_faces(count, spec.input_px, people=count // 2)
        mean, std = (torch.tensor(three)[:, None, None] for three in (spec.mean, spec.std))
        logits, cams = [], []
        for part in self.frames.split(8):
            images = (images_from_frames(part) - mean) / std
            with torch.inference_mode():
                if spec.cam == "gradient":
                    logits.append(detector(images))
                else:
                    found = detector.logits_and_cam(images)
                    logits.append(found[0])
                    cams.append(found[1])
        self.logits = torch.cat(logits)
        self.cam = torch.cat(cams) if cams else None

    def tensors(self, count: int | None = None) -> Tensors:
        """Input and outputs, of the first frames."""
        found = {"frames": self.frames[:count], "logits": self.logits[:count]}
        return found if self.cam is None else {**found, "cam": self.cam[:count]}
