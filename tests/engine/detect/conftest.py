"""Detectors that are costly to make are made once."""

from __future__ import annotations

import pytest
import torch
from dfmtest_detect import made

from dfm_engine.detect.models import ForgeryDetector


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums of one thread have one order; tests of other files may set other counts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def xception() -> ForgeryDetector:
    """Seeded; not to be changed."""
    return made("xception")
