"""A thread's number of torch threads is its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from dfm_engine.torch_threads import adopt_threads, one_thread


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def in_thread(work: Callable[[], int]) -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_a_block_shares_nothing_and_puts_the_number_back():
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(ValueError, match="x"), one_thread():
        raise ValueError("x")
    assert torch.get_num_threads() == 2


def test_a_thread_keeps_what_it_adopted_while_another_is_in_a_block():
    def work() -> int:
        adopt_threads(2)
        with_others = in_thread(lambda: torch.set_num_threads(1) or 0)  # a block of somebody else
        assert with_others == 0
        torch.ones(1 << 20).mul_(2).sum()  # a parallel operation
        return torch.get_num_threads()

    with one_thread():
        assert in_thread(torch.get_num_threads) == 1  # what happens without
        assert in_thread(work) == 2
