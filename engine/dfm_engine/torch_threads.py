"""How many threads torch shares an operation among, of each Python thread by itself.

`torch.set_num_threads` is two things: a number of the calling thread, and one of the process that
every other thread adopts at its first parallel operation. So a thread that works beside others
says what it has before it begins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

__all__ = ["adopt_threads", "one_thread", "torch_threads"]


def one_thread() -> AbstractContextManager[None]:
    """Within the block this Python thread shares nothing.

    For operations too small to share: a crop is dozens of products (424 -> 675 frames/s on two
    cores of an AMD EPYC with another job running, 256 x 256, 2026-11-22). It also makes pixels
    independent of the number of threads.
    """
    return torch_threads(1)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Within the block this Python thread shares an operation among so many."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def adopt_threads(count: int) -> None:
    """Let the calling thread share among `count` from now on, whatever others set meanwhile."""
    torch.get_num_threads()  # adopts the process's number now, so that it is not adopted later
    torch.set_num_threads(count)
