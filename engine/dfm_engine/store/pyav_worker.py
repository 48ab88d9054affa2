"""The process behind one slot of `pyav.PyavSampler`: frames of clips into shared memory.

Started as `python -m dfm_engine.store.pyav_worker <parent pid> <descriptor> <settings>`; the
descriptor is shared memory of `slots` parts, used in turn. Orders come in on stdin, answers leave
on stdout, a JSON object per line; each part that the parent has used up is one `{"free": 1}`:

    out  {"ready": true}
    in   {"path", "kind", "clip_frames", "wanted": [...], "box", "sha256", "skip"}
    out  {"part": rows}                         ... while more follow
    out  {"part": rows, "sha256": "..."}        the last
      or {"refused": [kind, reason]}

It ends when stdin ends, and dies with its parent. Ctrl-C is the parent's affair. No torch here.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm_engine.allocator import keep_freed_memory
from dfm_engine.errors import MediaError
from dfm_engine.recipe import Limits
from dfm_engine.store.sampling import sample_clip

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Serve orders until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(int(sys.argv[1]))
    keep_freed_memory()
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="ascii")
    os.dup2(2, 1)  # whatever a library prints must not end up among the answers
    settings = json.loads(sys.argv[3])
    parts = _Parts(int(sys.argv[2]), settings, answers)
    limits = Limits(**settings["limits"])
    parts.say({"ready": True})
    while order := parts.next_order():
        try:
            for rows, sha256 in _sample(order, settings, limits, parts):
                parts.say({"part": rows} if sha256 is None else {"part": rows, "sha256": sha256})
        except MediaError as error:
            parts.say({"refused": [error.kind, error.reason]})


def _sample(
    order: dict[str, Any], settings: dict[str, Any], limits: Limits, parts: _Parts
) -> Iterator[tuple[int, str | None]]:
    """Fill part after part; yields rows, and with the last part the hash of what was read."""
    filled, memory = 0, None
    sample = sample_clip(
        Path(order["path"]),
        kind=order["kind"],
        clip_frames=order["clip_frames"],
        wanted=order["wanted"],
        box=order["box"],
        sha256=order["sha256"],
        size_px=settings["size_px"],
        layout=settings["layout"],
        limits=limits,
    )
    for number, frame in enumerate(sample.frames):
        if number < order["skip"]:  # handed on before another worker died on this clip
            continue
        if memory is not None and filled == len(memory):
            yield filled, None
            memory = None
        if memory is None:
            filled, memory = 0, parts.next_part()
        memory[filled] = frame
        filled += 1
    yield filled, sample.sha256()


class _Parts:
    """The shared memory and the two pipes."""

    def __init__(self, descriptor: int, settings: dict[str, Any], answers: Any) -> None:
        shape = tuple(settings["shape"])  # (slots, rows, *frame_shape)
        self._memory = np.frombuffer(mmap.mmap(descriptor, int(np.prod(shape))), np.uint8).reshape(
            shape
        )
        self._answers = answers
        self._orders: deque[dict[str, Any]] = deque()
        self._taken = self._freed = 0

    def say(self, message: dict[str, Any]) -> None:
        self._answers.write(json.dumps(message) + "\n")

    def next_order(self) -> dict[str, Any] | None:
        while not self._orders:
            if not self._listen():
                return None
        return self._orders.popleft()

    def next_part(self) -> NDArray[np.uint8]:
        """The next part that the parent has no more use for."""
        slots = len(self._memory)
        while self._taken - self._freed == slots:
            if not self._listen():
                sys.exit(0)
        self._taken += 1
        return self._memory[(self._taken - 1) % slots]

    def _listen(self) -> bool:
        line = sys.stdin.readline()
        if not line:
            return False
        message = json.loads(line)
        if "free" in message:
            self._freed += message["free"]
        else:
            self._orders.append(message)
        return True


def _die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent goes; elsewhere than on Linux stdin's end does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)


if __name__ == "__main__":
    main()
