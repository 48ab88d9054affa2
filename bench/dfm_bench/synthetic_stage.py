"""How fast procedural faces are drawn: a stage of the bench."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import torch

from dfm_engine.actions import Action
from dfm_engine.synthetic import Identity, States, action_states, render

__all__ = ["RenderRate", "measure_render_rate"]


@dataclass(frozen=True, slots=True)
class RenderRate:
    """Frames a second of one device.

    Attributes:
        size: side of the frames, pixels.
        frames: drawn in each repeat.
        threads: of torch on a CPU.
        wall_fps: median over the repeats, by the clock.
        cpu_fps: the same by processor time, which a busy machine does not slow; 0 on a GPU.
    """

    device: str
    size: int
    frames: int
    threads: int
    wall_fps: float
    cpu_fps: float

    def to_json(self) -> dict[str, str | int | float]:
        """The row as JSON values."""
        return asdict(self)


def measure_render_rate(
    *, size: int = 128, identities: int = 10, device: str = "cpu", repeats: int = 3
) -> RenderRate:
    """Draw `identities` faces at the middle of each action, `repeats` times after a warm-up."""
    people = [Identity.draw(seed) for seed in range(identities)]
    peaks = [action_states(action, 45, 0)[22:23] for action in Action]
    states = States.join(peaks * identities)
    render(people[0], states[:2], size, device=device)
    wall, busy = [], []
    for repeat in range(repeats):
        clock, processor = time.perf_counter(), time.process_time()
        render(people, states, size, device=device, noise_seed=repeat)
        if device != "cpu":
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - clock)
        busy.append(time.process_time() - processor)
    middle = repeats // 2
    return RenderRate(
        device=device,
        size=size,
        frames=len(states),
        threads=torch.get_num_threads(),
        wall_fps=len(states) / sorted(wall)[middle],
        cpu_fps=len(states) / sorted(busy)[middle] if device == "cpu" else 0.0,
    )
