"""cuDNN's flags are the process's: set while anybody is inside, put back when nobody is."""

from __future__ import annotations

import threading

import pytest
import torch

from dfm_engine.exact_kernels import exact_kernels


def flags() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark


def test_one_that_leaves_does_not_change_what_another_computes():
    before = flags()
    assert before[0], "the default that the guard is there for"
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with exact_kernels():
            entered.set()
            assert leave.wait(30)

    thread = threading.Thread(target=other)
    with exact_kernels():
        thread.start()
        assert entered.wait(30)
    assert flags() == (False, True, False)  # the other is still inside
    leave.set()
    thread.join()
    assert flags() == before


def test_an_error_puts_the_flags_back_and_a_decorated_function_has_them():
    before = flags()

    @exact_kernels()
    def inside() -> tuple[bool, bool, bool]:
        return flags()

    assert inside() == inside() == (False, True, False)
    with pytest.raises(ValueError, match="x"), exact_kernels():
        raise ValueError("x")
    assert flags() == before
