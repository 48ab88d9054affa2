"""Fixtures every test may use: shared data, devices, a restored random state."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from dfm_engine.allocator import keep_freed_memory

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; before torch
keep_freed_memory()  # likewise

settings.register_profile("dfm", deadline=None)  # a busy machine is no failure
settings.load_profile("dfm")

REPO = Path(__file__).resolve().parents[1]
_skipped_for_shared: set[str] = set()


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture
def shared(request: pytest.FixtureRequest) -> Path:
    """The reference data beside the checkout; absent on a bare clone."""
    folder = REPO.parent / "shared"
    if not folder.is_dir():
        _skipped_for_shared.add(request.node.nodeid)
        pytest.skip("the reference data ../shared is absent")
    return folder


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda":
        require_cuda()
    return request.param


@pytest.fixture(autouse=True)
def _restore_rng() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])


def require_cuda() -> None:
    """Skip without a CUDA device; with DFM_REQUIRE_GPU=1, fail."""
    import torch

    if torch.cuda.is_available():
        return
    if os.environ.get("DFM_REQUIRE_GPU") == "1":
        pytest.fail("DFM_REQUIRE_GPU=1, but torch sees no CUDA device")
    pytest.skip("no CUDA device")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and "device" not in getattr(item, "fixturenames", ()):
        require_cuda()


def pytest_terminal_summary(terminalreporter) -> None:
    if _skipped_for_shared:
        terminalreporter.write_line(
            f"{len(_skipped_for_shared)} tests skipped: the reference data ../shared is absent"
        )
