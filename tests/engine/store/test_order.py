"""Draws are the published generator's and belong to samples; orders are fair and partition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm_engine.store.order import Purpose, epoch_order, philox, uniform, whole_numbers

# Random123's known answers for philox4x32, 10 rounds: counter, key, result.
KNOWN = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
)  # fmt: skip


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def test_the_generator_gives_the_published_answers():
    counters = np.array([words(counter) for counter, _, _ in KNOWN], np.uint64)
    for row, (_, key, wanted) in enumerate(KNOWN):
        first, second = words(key)
        assert philox(counters, (first, second))[row].tolist() == words(wanted)


@given(
    count=st.integers(0, 60),
    seed=st.integers(0, 2**70),
    epoch=st.integers(0, 2**32 - 1),
    world=st.integers(1, 7),
)
def test_the_ranks_of_an_epoch_share_its_order_in_turns(count, seed, epoch, world):
    whole = epoch_order(count, seed=seed, epoch=epoch)
    assert sorted(whole) == list(range(count))
    shares = [
        epoch_order(count, seed=seed, epoch=epoch, rank=rank, world=world) for rank in range(world)
    ]
    assert {len(share) for share in shares} == {count // world}
    turns = np.stack(shares, axis=1).reshape(-1) if count >= world else np.empty(0)
    np.testing.assert_array_equal(turns, whole[: len(turns)])


def test_an_order_changes_with_seed_epoch_and_purpose():
    given_ = epoch_order(100, seed=1, epoch=2)
    np.testing.assert_array_equal(given_, epoch_order(100, seed=1, epoch=2))
    others = [
        epoch_order(100, seed=2, epoch=2),
        epoch_order(100, seed=1 + (1 << 32), epoch=2),
        epoch_order(100, seed=1, epoch=3),
        epoch_order(100, seed=1, epoch=2, purpose=Purpose.REALS),
    ]
    for other in others:
        assert (other == given_).sum() < 10


def test_the_order_of_an_epoch_stays_what_it_was():
    # Runs are resumed across versions: these numbers must never change.
    assert epoch_order(8, seed=0, epoch=0).tolist() == [2, 0, 5, 7, 6, 3, 4, 1]
    assert epoch_order(8, seed=7, epoch=300).tolist() == [3, 5, 7, 6, 0, 4, 2, 1]


def test_every_place_is_as_likely_for_every_sample():
    places = np.stack([np.argsort(epoch_order(16, seed=3, epoch=e)) for e in range(2000)])
    mean = places.mean(axis=0)
    # of a uniform place 0..15 the deviation is 4.6, of the mean of 2000 it is 0.10
    assert np.abs(mean - 7.5).max() < 5 * 4.61 / np.sqrt(2000)


def test_a_draw_belongs_to_its_sample_and_not_to_the_batch():
    ask = {"seed": 5, "epoch": 4, "purpose": Purpose.AUGMENT}
    samples = np.array([3, 1 << 40, 17, 0], np.int64)
    drawn = uniform(samples, columns=9, **ask)
    assert drawn.shape == (4, 9)
    for row, sample in enumerate(samples):
        np.testing.assert_array_equal(uniform(np.array([sample]), columns=9, **ask)[0], drawn[row])
    np.testing.assert_array_equal(uniform(samples, columns=3, **ask), drawn[:, :3])
    assert len(np.unique(drawn)) == drawn.size


def test_many_samples_are_drawn_as_one_by_one():
    # more counters than are computed at a time
    samples = np.arange(40_000)
    drawn = uniform(samples, seed=1, epoch=0, purpose=Purpose.FRAME, columns=4)
    later = uniform(samples[39_990:], seed=1, epoch=0, purpose=Purpose.FRAME, columns=4)
    np.testing.assert_array_equal(drawn[39_990:], later)
    assert abs(drawn.mean() - 0.5) < 5 / np.sqrt(12 * drawn.size)
    assert 0 <= drawn.min() < drawn.max() < 1


def test_whole_numbers_fill_each_sample_s_own_range():
    samples = np.arange(3000)
    below = np.where(samples % 2, 3, 1)
    drawn = whole_numbers(samples, below, seed=0, epoch=0, purpose=Purpose.CLIP, columns=2)
    assert not drawn[::2].any()
    counts = np.bincount(drawn[1::2].ravel())
    assert len(counts) == 3
    assert np.abs(counts / 3000 - 1 / 3).max() < 5 * np.sqrt(2 / 9 / 3000)


def test_a_rank_outside_of_the_world_is_refused():
    with pytest.raises(ValueError, match=r"within 0\.\.1, found 2"):
        epoch_order(10, seed=0, epoch=0, rank=2, world=2)
