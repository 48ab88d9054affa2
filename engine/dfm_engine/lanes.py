"""How many clips each stage of a build works at side by side, and what such a thread computes in.

    lanes = plan_lanes(cores, "cuda")
    MapAhead(frame, clips, workers=lanes.frame, ..., within=partial(lane, device))

A lane is a Python thread at one clip. It shares no torch operation with other threads, so a clip's
bits do not depend on the number of lanes; and on a GPU it has a CUDA stream of its own, so that it
never waits for the generator's batches, only for what it launched itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

from dfm_engine.torch_threads import adopt_threads

__all__ = ["Lanes", "SharedLane", "lane", "plan_framing", "plan_lanes", "settle"]

T = TypeVar("T")

MAX_FRAMING, MIN_FRAMING_CORES = 32, 4

BEFORE_THE_GENERATOR = -1  # priority of a stream: lower goes first


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes:
    """Clips at work side by side, per stage.

    Attributes:
        frame: framed by their face, before anything is made.
        open: decoded and cropped for the generator, and read ahead of it.
        screen: animations looked at.
    """

    frame: int = 1
    open: int = 1
    screen: int = 1

    def __post_init__(self) -> None:
        if min(self.frame, self.open, self.screen) < 1:
            raise ValueError(f"every stage needs a lane, got {self}")


def plan_lanes(cores: int, device: torch.device | str) -> Lanes:
    """How many for a machine.

    On a CPU clips are framed while nothing else is at work, one on each core; after that the
    generator's rows have the cores, and a stage beside it needs one lane in eight to keep up. With
    a GPU the cores are there to keep it and the encoders busy: about half of them frame, a third
    open. More would only queue for Python's lock.

    Args:
        cores: to use.
        device: of the networks.
    """
    if torch.device(device).type == "cpu":
        beside = max(1, cores // 8)
        return Lanes(frame=max(1, cores), open=beside, screen=beside)
    return Lanes(
        frame=min(8, max(1, cores // 2)),
        open=min(6, max(1, 3 * cores // 8)),
        screen=min(3, max(1, cores // 5)),
    )


def plan_framing(cores: int, device: torch.device | str) -> int:
    """How many processes frame clips (`framing_workers`); 0: lanes do, with the networks' device.

    Beside a GPU nothing else has the cores meanwhile: one process on each but this one's own. A
    core frames 200 frames/s, eight lanes on an H100 625; so with few cores the GPU is faster. A
    process needs 0.5 GB, hence the most.

    Args:
        cores: to use.
        device: of the networks.
    """
    is_better = torch.device(device).type != "cpu" and cores >= MIN_FRAMING_CORES
    return min(MAX_FRAMING, cores - 1) if is_better else 0


@contextlib.contextmanager
def lane(device: torch.device | str) -> Iterator[None]:
    """What the calling thread, which is a lane's own, computes in.

    What it hands to other threads on a GPU it must `settle` first, and whoever takes it must keep
    it until it is used: its memory returns to this lane.
    """
    adopt_threads(1)
    device = torch.device(device)
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device, priority=BEFORE_THE_GENERATOR)
    stream.wait_stream(torch.cuda.default_stream(device))  # the networks were loaded there
    with torch.cuda.stream(stream):
        yield
        stream.synchronize()


def settle(device: torch.device | str) -> None:
    """Wait until all that this thread launched is done; on a CPU it is."""
    if torch.device(device).type == "cuda":
        torch.cuda.current_stream(torch.device(device)).synchronize()


class SharedLane:
    """One lane that several threads have compute for them: one call after the other.

    For what keeps memory per thread, as a runner's recorded graphs do. Close it at the end.

    Args:
        device: to compute on.
        name: of the thread, which starts with the first call.
    """

    def __init__(self, device: torch.device | str, *, name: str) -> None:
        self._device = device
        self._within = contextlib.ExitStack()
        self._is_begun = False
        self._thread = ThreadPoolExecutor(1, name)

    def __call__(self, work: Callable[[], T]) -> T:
        """What `work` gives, or raises; it is settled."""

        def run() -> T:
            if not self._is_begun:  # in the thread, and with its error at the call
                self._within.enter_context(lane(self._device))
                self._is_begun = True
            result = work()
            settle(self._device)
            return result

        return self._thread.submit(run).result()

    def close(self) -> None:
        """End the thread."""
        self._thread.submit(self._within.close).result()
        self._thread.shutdown()
