"""How fast frames are generated, by every way there is, beside the per-frame loop.

    subject (drawn faces) ─► gate: each way agrees with the loop ─► time them, interleaved

The source's features and the driving clip's keypoints are at hand for all but the loop, as in a
build: what is timed is a batch of driving rows to a batch of images. A way that disagrees with the
loop has no number.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfm_bench.measure import Row, clock_for, measure
from dfm_bench.reference_loop import ReferenceLoop
from dfm_bench.roofline import count_flops
from dfm_engine.actions import Action
from dfm_engine.backends import Runner
from dfm_engine.errors import CheckFailed
from dfm_engine.fomm.model import Fomm
from dfm_engine.fomm.transfer import transfer
from dfm_engine.fomm.values import Keypoints
from dfm_engine.pixels import images_from_frames
from dfm_engine.synthetic import Identity, action_states, render

__all__ = [
    "EXACT",
    "EXACT_ON_GPU",
    "REDUCED",
    "Gate",
    "Subject",
    "Way",
    "check_ways",
    "generator_rows",
]

DRIVING_FRAMES = 24
GATE_FRAMES = (3, 11, 17, 23)  # of the driving clip; none is its first


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """How far a way may be from the loop.

    Attributes:
        name: for people.
        max_abs: largest difference of any value, images in [0, 1].
        min_psnr_db: smallest signal-to-noise ratio of any frame.
    """

    name: str
    max_abs: float = math.inf
    min_psnr_db: float = 0.0

    def check(self, name: str, found: Tensor, wanted: Tensor) -> str:
        """What was found, in words.

        Raises:
            CheckFailed: it is too far.
        """
        difference = (found.double() - wanted.double()).abs()
        worst = float(difference.max())
        noise = float(difference.square().mean(dim=(1, 2, 3)).max())
        psnr_db = math.inf if noise == 0 else -10 * math.log10(noise)
        said = f"{worst:.1e} from the loop at most, {psnr_db:.1f} dB in the worst frame"
        # Written so that a value that is not a number fails.
        if not (worst <= self.max_abs and psnr_db >= self.min_psnr_db):
            raise CheckFailed(
                f"no numbers for {name}: {said}; the gate {self.name} wants "
                f"{self.max_abs:g} and {self.min_psnr_db:g} dB"
            )
        return said


EXACT = Gate(name="exact", max_abs=2e-4)
"""The same arithmetic in another order: about a thousand roundings of 2^-24 on values near 1."""

EXACT_ON_GPU = Gate(name="exact, on a GPU", max_abs=1e-3, min_psnr_db=80.0)
"""Likewise, where cuDNN takes one algorithm for a row and another, with other roundings, for a
batch: seeded noise at the size of vox-256 was 3.2e-4 and 98 dB off on an H100, trained weights
3.6e-5 and 121 dB."""

REDUCED = Gate(name="reduced precision", min_psnr_db=45.0)
"""Half precision or int8, as architecture decision 3 bounds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way of generating.

    Attributes:
        name: of its rows, such as `onnxruntime fp32`.
        runner: does it.
        gate: what it has to hold.
        flops: of one frame of `animate` as executed, two for a multiply-add.
        batches: rows per call to measure.
        dtype: that most of the arithmetic is done in.
    """

    name: str
    runner: Runner
    gate: Gate
    flops: float
    batches: tuple[int, ...]
    dtype: str = "float32"


class Subject:
    """A source image and a driving clip, drawn; and what the loop makes of them.

    Args:
        fomm: the model.
        device: where everything is.
        seed: of the people.
    """

    def __init__(self, fomm: Fomm, *, device: torch.device, seed: int = 7) -> None:
        states = action_states(Action.YAW, DRIVING_FRAMES, seed)
        size = fomm.frame_size[0]
        source, driver = Identity.draw(50_000 + seed), Identity.draw(51_000 + seed)
        self.source = images_from_frames(render([source], states[:1], size).frames, device=device)
        self.driving = images_from_frames(render([driver], states, size).frames, device=device)
        self.loop = ReferenceLoop(fomm, self.source, self.driving[:1])
        self.wanted = torch.cat([self.loop(self.driving[i : i + 1]) for i in GATE_FRAMES])

    def prepared(self, runner: Runner) -> tuple[Any, Keypoints, Keypoints]:
        """Features and keypoints of the source, keypoints of every driving frame, carried over."""
        kp_source = runner.keypoints(self.source)
        kp_driving = Keypoints.cat(
            [runner.keypoints(image[None]) for image in self.driving.unbind(0)]
        )
        carried = transfer(kp_source, kp_driving, kp_driving[0], mode="rel_adapt")
        return runner.source(self.source), kp_source, carried


def check_ways(subject: Subject, ways: Sequence[Way]) -> dict[str, str]:
    """What each way's difference from the loop is, through its whole chain of networks.

    Raises:
        CheckFailed: a way is further from the loop than its gate allows.
    """
    said: dict[str, str] = {}
    rows = list(GATE_FRAMES)
    for way in ways:
        features, kp_source, kp_driving = subject.prepared(way.runner)
        found = way.runner.animate(features, kp_source, kp_driving[rows])
        said[way.name] = way.gate.check(way.name, found, subject.wanted)
    return said


def generator_rows(
    subject: Subject,
    ways: Sequence[Way],
    *,
    gflops: Mapping[str, float],
    repeats: int,
    command: str = "",
) -> list[Row]:
    """The loop and every way at every batch size, interleaved round by round.

    Args:
        subject: what to animate.
        ways: already checked.
        gflops: arithmetic rate of the device by dtype name, GFLOP/s; others have no ceiling.
        repeats: rounds that count.
        command: for the rows.
    """
    device = subject.source.device
    calls: dict[str, Callable[[int], object]] = {}
    made: dict[str, tuple[str, int, float, str]] = {}
    loop_flops = count_flops(functools.partial(subject.loop, subject.driving[:1]))
    calls["loop"] = lambda turn: subject.loop(_frame(subject.driving, turn))
    made["loop"] = ("reference loop", 1, loop_flops, "float32")
    for way in ways:
        features, kp_source, kp_driving = subject.prepared(way.runner)
        for batch in way.batches:
            key = f"{way.name} {batch}"

            # Picked before the clock runs: an index of the host's would hold up a GPU's queue.
            picked = [
                kp_driving[[(turn * batch + row) % DRIVING_FRAMES for row in range(batch)]]
                for turn in range(DRIVING_FRAMES)
            ]

            def call(
                turn: int,
                runner: Runner = way.runner,
                given: tuple[Any, Keypoints] = (features, kp_source),
                driving: Sequence[Keypoints] = tuple(picked),
            ) -> object:
                return runner.animate(*given, driving[turn])

            calls[key] = call
            made[key] = (way.name, batch, way.flops, way.dtype)
    timings = measure(
        calls, range(DRIVING_FRAMES), repeats=repeats, clock=clock_for(device), warm_up=1
    )
    height, width = subject.source.shape[2:]
    return [
        Row.of(
            "generator",
            timings[key],
            variant=name,
            amount=batch,
            unit="frames/s",
            shape=(batch, 3, height, width),
            dtype=dtype,
            device=device.type,
            ceiling=gflops[dtype] * 1e9 / flops if dtype in gflops else None,
            ceiling_of=f"{dtype} products, {flops / 2e9:.1f} GMAC a frame",
            command=command,
        )
        for key, (name, batch, flops, dtype) in made.items()
    ]


def _frame(driving: Tensor, turn: int) -> Tensor:
    return driving[turn % len(driving)][None]
