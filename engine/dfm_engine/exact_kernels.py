"""Convolutions on a GPU in full float32, by an algorithm that the shape alone decides.

cuDNN's own choice is TF32, and the fastest algorithm of a trial. Its flags belong to the process:
with several threads each that computes says so here, and what one computes does not depend on
whether another is at work.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

__all__ = ["exact_kernels"]


class _ExactKernels:
    """cuDNN's flags are the whole process's: set while any thread is inside, then put back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._stack = contextlib.ExitStack()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Within it, in this and every other thread; also a decorator."""
        with self._lock:
            if self._inside == 0:
                self._stack.enter_context(
                    torch.backends.cudnn.flags(
                        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
                    )
                )
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._stack.close()


exact_kernels = _ExactKernels()
