"""`bench render`: how fast procedural faces are drawn."""

from __future__ import annotations

from pathlib import Path

from dfm_bench.facts import read_facts
from dfm_bench.measure import Row, clock_for, measure
from dfm_bench.report import BenchReport
from dfm_engine.actions import Action
from dfm_engine.synthetic import Identity, States, action_states, render

__all__ = ["run_bench_render"]

SIZES = (128, 256)


def run_bench_render(
    *,
    out: Path,
    people: int = 10,
    sizes: tuple[int, ...] = SIZES,
    repeats: int = 7,
    device: str = "cpu",
    command: str = "",
) -> BenchReport:
    """Draw people at the middle of each action, in one call per size.

    Args:
        out: folder of the report.
        people: drawn in a call, each in every action.
        sizes: sides of the frames, pixels.
        repeats: calls that count.
        device: where to draw.
        command: makes the report again.
    """
    facts = read_facts()
    faces = [Identity.draw(seed) for seed in range(people)]
    middles = [action_states(action, 45, 0)[22:23] for action in Action]
    states = States.join(middles * people)
    timings = measure(
        {
            str(size): lambda seed, size=size: render(
                faces, states, size, device=device, noise_seed=seed
            )
            for size in sizes
        },
        range(2 * len(sizes)),
        repeats=repeats,
        clock=clock_for(device),
    )
    rows = tuple(
        Row.of(
            "render",
            timings[str(size)],
            variant=f"{people} people in {len(middles)} actions",
            amount=len(states),
            unit="frames/s",
            shape=(len(states), size, size, 3),
            device=device,
            command=command,
        )
        for size in sizes
    )
    report = BenchReport(verb="render", command=command, device=device, facts=facts, rows=rows)
    report.write(out)
    return report
