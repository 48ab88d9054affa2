"""Pairs of rendered faces: every person in many states, with the renderer's ground truth.

People come in small groups that share one set of states. So for person A in state 1, driven by
person B of the same group from state 1 to state 2, the true result (A in state 2) is at hand.
All frames are rendered once and kept as uint8 on the training device.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfm_engine.actions import Action
from dfm_engine.errors import UsageError
from dfm_engine.fomm import augment
from dfm_engine.fomm.pairs import as_images, draw_augmentation, warp_fields
from dfm_engine.fomm.train_recipe import Data, TrainFommRecipe
from dfm_engine.fomm.train_step import Batch
from dfm_engine.synthetic import (
    LANDMARKS,
    MIRRORED,
    RENDERER_VERSION,
    STATE_FIELDS,
    Identity,
    States,
    action_states,
    idle_states,
    render,
)

IntArray = NDArray[np.int64]

log = logging.getLogger(__name__)

SAMPLE_SEED = 90_000  # people of the sheets; below `first_seed`, above those of `evaluate`
EYES_AND_MOUTH = [
    index
    for index, name in enumerate(LANDMARKS)
    if "lid" in name or "mouth" in name or "lip" in name
]
_CLIP_FRAMES = 45
# What a mixture of two actions may reach, per field; else the sum of two would leave the range.
_LIMITS = {"yaw_deg": 34.0, "pitch_deg": 22.0, "roll_deg": 24.0}
_SIGNED = ("yaw_deg", "pitch_deg", "roll_deg", "shift_x", "shift_y", "gaze_x", "gaze_y", "brow")


class ProceduralPairs:
    """Rendered people on the device; see `pairs.Pairs`."""

    def __init__(self, recipe: TrainFommRecipe, *, device: torch.device) -> None:
        if recipe.model.num_kp != len(LANDMARKS) and (
            recipe.losses.points or recipe.losses.point_jacobians
        ):
            raise UsageError(
                f"the renderer gives {len(LANDMARKS)} landmarks, the model has "
                f"{recipe.model.num_kp} keypoints; set model.num_kp to {len(LANDMARKS)} or "
                "losses.points and losses.point_jacobians to 0"
            )
        self.recipe = recipe
        self.device = device
        self.steps_per_epoch = recipe.schedule.steps_per_epoch
        data = recipe.data
        self._train = RenderedPeople(
            data,
            first_seed=data.first_seed,
            identities=data.identities,
            size=recipe.model.frame_size[0],
            device=device,
        )
        self._test = RenderedPeople(
            data,
            first_seed=SAMPLE_SEED,
            identities=2 * data.sharing,
            size=recipe.model.frame_size[0],
            device=device,
        )

    def batch(
        self, step: int, *, rows: int, frame_px: int, supervision: float, plain: bool = False
    ) -> Batch:
        """See `Pairs.batch`."""
        rng = np.random.default_rng([self.recipe.schedule.seed, 0, step])
        data = self.recipe.data
        drawn = draw_augmentation(self.recipe, rows, rng, plain=plain)
        cross = round(rows * data.cross_share)
        people = self._train
        who = rng.integers(people.identities, size=rows)
        start = rng.integers(data.frames, size=rows)
        start[rng.random(rows) < data.neutral_share] = 0
        end = rng.integers(data.frames, size=rows)
        other = people.partner(who, rng)
        chosen = Chosen(who=who, start=start, end=end, other=other, cross=cross)
        warp = warp_fields(self.recipe, rows, rng, self.device)
        return self._assemble(people, chosen, drawn, warp, frame_px, supervision)

    def sample(self, *, rows: int, frame_px: int) -> Batch:
        """Neutral sources of unseen people; half of the rows are driven by another person."""
        people = self._test
        cross = rows // 2 if people.data.sharing > 1 else 0
        who = np.arange(rows) % people.identities
        group = people.data.sharing
        chosen = Chosen(
            who=who,
            start=np.zeros(rows, np.int64),
            end=1 + np.arange(rows) % (people.data.frames - 1),
            other=who // group * group + (who + 1) % group,
            cross=cross,
        )
        untouched = augment.Draw(
            time_flip=np.zeros(rows, bool),
            mirror=np.zeros(rows, bool),
            factors=np.tile([1.0, 1.0, 1.0, 0.0], (rows, 1)),
            order=np.tile(np.arange(4), (rows, 1)),
        )
        return self._assemble(people, chosen, untouched, {}, frame_px, 1.0)

    def describe(self) -> dict[str, object]:
        """Seeds, counts, renderer."""
        return {
            "source": "procedural",
            "identities": self._train.identities,
            "frames_per_identity": self.recipe.data.frames,
            "first_seed": self.recipe.data.first_seed,
            "renderer_version": RENDERER_VERSION,
            "render_s": round(self._train.render_s, 1),
        }

    def close(self) -> None:
        """Nothing is held but tensors."""

    def _assemble(
        self,
        people: RenderedPeople,
        chosen: Chosen,
        drawn: augment.Draw,
        warp: dict[str, Tensor],
        frame_px: int,
        supervision: float,
    ) -> Batch:
        who, cross = chosen.who, chosen.cross
        rows, own = len(who), len(who) - cross
        driver = np.where(np.arange(rows) >= own, chosen.other, who)
        # source, driving, initial, and the targets of the cross rows (elsewhere the driving frame)
        person = np.concatenate([who, driver, driver[own:], who[own:]])
        state = np.concatenate([chosen.start, chosen.end, chosen.start[own:], chosen.end[own:]])
        every, crossed = np.arange(rows), np.arange(own, rows)
        row = np.concatenate([every, every, crossed, crossed])
        frames, points, jacobians = people.take(person, state, drawn.mirror[row])
        images = as_images(augment.jitter(frames, drawn.rows(row)), frame_px)
        # the renderer's -1 and 1 are the picture's edges, the model's the outer pixels' centres
        points = points * (frame_px / (frame_px - 1))
        shown = 2 * rows + cross
        driving = images[rows : 2 * rows]
        needs_truth = bool(self.recipe.losses.points or self.recipe.losses.point_jacobians)
        target_points = torch.cat([points[rows : rows + own], points[shown:]])
        return Batch(
            source=images[:rows],
            driving=driving,
            target=torch.cat([driving[:own], images[shown:]]) if cross else driving,
            supervision=torch.tensor(supervision, device=self.device),
            initial=images[2 * rows : shown] if cross else None,
            points=points[:shown] if needs_truth else None,
            jacobians=jacobians[:shown] if needs_truth else None,
            region_points=target_points[:, EYES_AND_MOUTH],
            **warp,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Which frames make a batch: person and states per row; the last `cross` rows are crossed."""

    who: IntArray
    start: IntArray
    end: IntArray
    other: IntArray
    cross: int


class RenderedPeople:
    """All frames of some people on one device.

    Attributes:
        identities: how many people there are.
        render_s: seconds that rendering took.
    """

    def __init__(
        self, data: Data, *, first_seed: int, identities: int, size: int, device: torch.device
    ) -> None:
        self.data = data
        groups = max(1, identities // data.sharing)
        self.identities = groups * data.sharing
        count = self.identities * data.frames
        self._frames = torch.empty(count, size, size, 3, dtype=torch.uint8, device=device)
        self._points = torch.empty(count, len(LANDMARKS), 2, device=device)
        self._jacobians = torch.empty(count, len(LANDMARKS), 2, 2, device=device)
        started = time.monotonic()
        for group in range(groups):
            seed = first_seed + group * data.sharing
            states = training_states(data.frames, seed)
            people = [framed(Identity.draw(seed + k), data.zoom) for k in range(data.sharing)]
            drawn = render(
                people,
                States.join([states] * data.sharing),
                size,
                device=device,
                noise_seed=seed,
            )
            at = slice(group * len(drawn.frames), (group + 1) * len(drawn.frames))
            self._frames[at] = drawn.frames
            self._points[at] = drawn.landmarks
            self._jacobians[at] = drawn.jacobians
            spent = time.monotonic() - started
            if 0 < data.render_limit_s < spent and group + 1 < groups:
                self.identities = (group + 1) * data.sharing
                log.warning("render  stopped at %d people after %.0f s", self.identities, spent)
                break
            if group % 50 == 49:
                rate = (at.stop) / (time.monotonic() - started)
                log.info("render  %d/%d frames  %.0f frames/s", at.stop, count, rate)
        self.render_s = time.monotonic() - started

    def partner(self, who: IntArray, rng: np.random.Generator) -> IntArray:
        """Another person of the same group, for each; the same one where there is no other."""
        group = self.data.sharing
        step = rng.integers(1, max(2, group), size=len(who))
        return who // group * group + (who + step) % group

    def take(
        self, person: IntArray, state: IntArray, mirror: NDArray[np.bool_]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 (N, 3, S, S), landmarks (N, 10, 2) and jacobians (N, 10, 2, 2), mirrored as asked.

        A mirrored picture swaps left and right points.
        """
        device = self._frames.device
        index = torch.from_numpy(person * self.data.frames + state).to(device)
        frames = augment.mirror_frames(self._frames[index].permute(0, 3, 1, 2), mirror)
        points, jacobians = self._points[index], self._jacobians[index]
        if mirror.any():
            chosen = torch.from_numpy(mirror).to(device)[:, None, None]
            order = list(MIRRORED)
            sign = points.new_tensor([-1.0, 1.0])
            points = torch.where(chosen, points[:, order] * sign, points)
            turned = jacobians[:, order] * (sign[:, None] * sign)
            jacobians = torch.where(chosen[..., None], turned, jacobians)
        return frames, points, jacobians


def training_states(count: int, seed: int) -> States:
    """`count` rows: a neutral one, then moments of actions, mixtures of two, and of idle talk."""
    rng = np.random.default_rng([seed, 17])
    actions = list(Action)
    rows = [action_states(actions[seed % len(actions)], _CLIP_FRAMES, seed)[[0]].values]
    for k in range(1, count):
        kind = rng.random()
        if kind < 0.15:
            values = idle_states(_CLIP_FRAMES, seed + k)[[int(rng.integers(_CLIP_FRAMES))]].values
        else:
            # every action in turn, so that a person shows most of them
            values = _moment(actions[(seed + k) % len(actions)], seed + k, rng)
            if kind < 0.45:
                values = values + _moment(actions[int(rng.integers(len(actions)))], seed - k, rng)
        rows.append(_bounded(values))
    return States(torch.cat(rows))


def _moment(action: Action, seed: int, rng: np.random.Generator) -> Tensor:
    """One frame of an action, any strength from faint to its peak; (1, fields)."""
    clip = action_states(action, _CLIP_FRAMES, abs(seed)).values
    scale = torch.tensor([15.0 if name.endswith("_deg") else 1.0 for name in STATE_FIELDS])
    strength = ((clip - clip[0]) / scale).abs().sum(1)
    able = torch.nonzero(strength > 0.15 * strength.max()).flatten()
    return clip[able[int(rng.integers(len(able)))]][None]


def _bounded(values: Tensor) -> Tensor:
    bounded = values.clone()
    for column, name in enumerate(STATE_FIELDS):
        high = _LIMITS.get(name, 1.0)
        low = -high if name in _SIGNED or name == "mouth_width" else 0.0
        bounded[:, column].clamp_(low, high)
    return bounded


def framed(identity: Identity, zoom: tuple[float, ...]) -> Identity:
    """The person seen closer, as a face detector's crop shows it; drawn from the person's seed.

    Crops are centred on the face, which is below the centre of the renderer's picture.
    """
    rng = np.random.default_rng([identity.seed, 18])
    by = float(rng.uniform(zoom[0], zoom[1]))
    # measured on the crops that the pipeline makes: at 1.33 the centre is 0.16 head units lower
    down = 0.5 * (by - 1.0) + float(rng.normal(0.0, 0.03)) * (by > 1.0)
    across = float(rng.normal(0.0, 0.04)) * (by > 1.0)
    shift = (identity.shift[0] + across, identity.shift[1] + down)
    return dataclasses.replace(identity, zoom=identity.zoom * by, shift=shift)
