"""The process behind one slot of `pool.EncodePool`: frames from shared memory to encoded files.

Started as `python -m dfm_engine.media.encode_worker <parent pid> <fd>...`; each descriptor is a
piece of shared memory. Jobs come in on stdin and answers leave on stdout, a JSON object per line:

    out  {"ready": true}
    in   {"buffer": 0, "shape": [T, H, W, 3], "fps": 25, "comment": "...", "outputs": {"raw": PATH}}
         where a shape of three sides is that of I420, [T, H * 3 // 2, W]
    out  {"started": true}
    out  {"files": {"raw": {"path", "size_bytes", "sha256", "frames"}}, "busy_s": 1.5}
      or {"error": "EnvironmentUnfit", "message": "..."}

It ends when stdin ends, and dies with its parent. Ctrl-C is the parent's affair.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import mmap
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from dfm_engine.allocator import keep_freed_memory
from dfm_engine.errors import DfmError
from dfm_engine.media.encode import encode_clip, rgb_to_i420

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Serve jobs until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(int(sys.argv[1]))
    keep_freed_memory()
    buffers = [int(argument) for argument in sys.argv[2:]]
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="ascii")
    os.dup2(2, 1)  # whatever a library prints must not end up among the answers
    _answer(answers, {"ready": True})
    for line in sys.stdin:
        _answer(answers, {"started": True})
        job = json.loads(line)
        try:
            _answer(answers, _encode(job, buffers[job["buffer"]]))
        except DfmError as error:
            _answer(answers, {"error": type(error).__name__, "message": str(error)})
        except Exception:  # the boundary of a process: the parent has to learn of anything
            _answer(answers, {"error": "DfmError", "message": traceback.format_exc()})


def _encode(job: dict[str, Any], buffer: int) -> dict[str, Any]:
    started = time.perf_counter()
    shape = tuple(job["shape"])
    memory = mmap.mmap(buffer, int(np.prod(shape)), access=mmap.ACCESS_READ)
    frames = np.frombuffer(memory, np.uint8).reshape(shape)
    i420 = frames if frames.ndim == 3 else rgb_to_i420(frames)
    files = {
        quality: dataclasses.asdict(
            encode_clip(i420, Path(path), quality=quality, fps=job["fps"], comment=job["comment"])
        )
        for quality, path in job["outputs"].items()
    }
    return {"files": files, "busy_s": time.perf_counter() - started}


def _answer(stream: Any, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message, default=os.fspath) + "\n")


def _die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent goes; elsewhere than on Linux stdin's end does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)


if __name__ == "__main__":
    main()
