"""Freed memory kept for the next frame, instead of given back to the system and asked for again.

A frame needs the same buffers as the one before it. Left to itself glibc returns large ones to the
kernel, which hands them out anew page by page, zeroed: 17,000 page faults a frame in the generator,
10,000 for two clips of 28 frames in x264. Kept, they cost nothing (two cores of an AMD EPYC,
2026-11-23: 1.1 times the frames in both, twice the steps of training MesoInception-4). A process
then stays as large as it ever was, and a build's memory is planned by that anyway.
"""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = ["keep_freed_memory"]

# glibc, malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8

_SETTINGS = (
    *("MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_"),
    *("MALLOC_TOP_PAD_", "MALLOC_TRIM_THRESHOLD_"),
)


def keep_freed_memory() -> bool:
    """Tell this process's allocator; for processes that work at frame after frame.

    Call it before there are threads: those that are keep heaps of their own, which shrink. Nothing
    happens where the environment already says how memory is to be kept.

    Returns:
        Whether it was told: False elsewhere than on glibc.
    """
    is_set = any(name in os.environ for name in _SETTINGS)
    is_set |= "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
    if platform.libc_ver()[0] != "glibc" or is_set:
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(
        mallopt(_M_MMAP_MAX, 0)  # no buffer is mapped, and unmapped, by itself
        and mallopt(_M_TRIM_THRESHOLD, -1)  # the heap never shrinks
        and mallopt(_M_ARENA_MAX, 1)  # those of threads would: they consist of mapped pieces
    )
