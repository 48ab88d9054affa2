"""Random numbers that belong to a sample, and the order of an epoch made of them.

Nothing here remembers anything. What is drawn for sample 17 in epoch 3 is a function of (seed, 3,
17): neither the batch it lands in, nor the number of ranks, nor the loader changes it, and a run
that is resumed needs only (epoch, step). The generator is Philox4x32-10: a counter goes in, four
words come out. It is written out because NumPy's own streams may change between versions.

In: seeds and sample numbers. Out: NumPy arrays. This module must never import torch.

Source: Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

__all__ = ["Purpose", "epoch_order", "philox", "uniform", "whole_numbers"]

IntArray = NDArray[np.int64]

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_CHUNK = 1 << 15  # counters at a time, so that ten rounds stay in the cache


class Purpose(IntEnum):
    """What a draw is for; each has numbers of its own."""

    ORDER = 0
    CLIP = 1
    FRAME = 2
    QUALITY = 3
    AUGMENT = 4
    REALS = 5
    FAKES = 6


def philox(counters: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Philox4x32-10.

    Args:
        counters: (N, 4), each below 2^32.
        key: two numbers below 2^32.

    Returns:
        (N, 4) uint64, each below 2^32.
    """
    c0, c1, c2, c3 = (counters[:, column].copy() for column in range(4))
    k0, k1 = key
    for _ in range(_ROUNDS):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (second >> _HALF) ^ c1 ^ np.uint64(k0)
        c2 = (first >> _HALF) ^ c3 ^ np.uint64(k1)
        c1, c3 = second & _LOW, first & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1)


def _words(
    samples: IntArray, *, seed: int, epoch: int, purpose: Purpose, columns: int
) -> NDArray[np.uint64]:
    """(N, columns) numbers below 2^32; a sample's first columns do not depend on their count."""
    if not (0 <= epoch < 1 << 32 and columns <= 1 << 18):
        raise ValueError(f"epoch {epoch} must be within 0..2^32-1, columns {columns} below 2^18")
    key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
    blocks = -(-columns // 4)
    names = np.repeat(samples.astype(np.uint64), blocks)
    counters = np.empty((len(names), 4), np.uint64)
    counters[:, 0], counters[:, 1] = names & _LOW, names >> _HALF
    counters[:, 2] = epoch
    counters[:, 3] = np.tile(np.arange(blocks, dtype=np.uint64), len(samples)) + np.uint64(
        purpose << 16
    )
    parts = [
        philox(counters[start : start + _CHUNK], key) for start in range(0, len(names), _CHUNK)
    ]
    words = np.concatenate(parts) if parts else counters
    return words.reshape(len(samples), 4 * blocks)[:, :columns]


def uniform(
    samples: IntArray, *, seed: int, epoch: int, purpose: Purpose, columns: int
) -> NDArray[np.float64]:
    """Numbers from [0, 1), evenly spread, in steps of 2^-32.

    Args:
        samples: (N,) names of the samples, 0 or more.
        seed: of the run; its lowest 64 bits count.
        epoch: 0 or more.
        purpose: what for.
        columns: numbers per sample.

    Returns:
        (N, columns); row n is a function of (seed, epoch, purpose, samples[n]).
    """
    words = _words(samples, seed=seed, epoch=epoch, purpose=purpose, columns=columns)
    return words.astype(np.float64) * 2.0**-32


def whole_numbers(
    samples: IntArray,
    below: IntArray | int,
    *,
    seed: int,
    epoch: int,
    purpose: Purpose,
    columns: int = 1,
) -> IntArray:
    """Whole numbers from [0, below), evenly spread up to below / 2^32.

    Args:
        samples: (N,), as for `uniform`.
        below: one bound, or (N,) of them; at least 1.
        seed: of the run.
        epoch: 0 or more.
        purpose: what for.
        columns: numbers per sample.

    Returns:
        (N, columns).
    """
    words = _words(samples, seed=seed, epoch=epoch, purpose=purpose, columns=columns)
    bound = np.broadcast_to(np.asarray(below, np.uint64), len(samples))
    return (words * bound[:, None] >> _HALF).astype(np.int64)


def epoch_order(
    count: int,
    *,
    seed: int,
    epoch: int,
    rank: int = 0,
    world: int = 1,
    purpose: Purpose = Purpose.ORDER,
) -> IntArray:
    """The samples of an epoch in random order, or one rank's share of them.

    Every rank gets as many as every other: of `count` samples fewer than `world` are left out,
    other ones in each epoch. Position p of the whole order is position p // world of rank
    p % world, so a batch over all ranks is the same for any number of ranks that divides it.

    Args:
        count: samples in all.
        seed: of the run.
        epoch: 0 or more.
        rank: whose share.
        world: number of ranks.
        purpose: another one gives an order that has nothing to do with this.

    Returns:
        (count // world,) int64, each sample at most once over all ranks.

    Raises:
        ValueError: rank not within the world.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank must be within 0..{world - 1}, found {rank}")
    names = np.arange(count, dtype=np.int64)
    words = _words(names, seed=seed, epoch=epoch, purpose=purpose, columns=2)
    order = np.argsort(words[:, 0] << _HALF | words[:, 1], kind="stable").astype(np.int64)
    return order[rank : count // world * world : world]
