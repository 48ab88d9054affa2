"""Detectors that are costly to make are made once."""

from __future__ import annotations

import pytest
import torch
from dfmtest_detect import made
from dfmtest_store import make_store

from dfm_engine.detect.models import ForgeryDetector
from dfm_engine.store.frames import Store


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


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four people train and four in val, a real clip and a fake of each; the fakes can be told."""
    path = tmp_path_factory.mktemp("detect") / "store"
    return make_store(path, identities=12, frames=2, size=32, signal=90.0)


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out curves.png, which costs a second."""
    monkeypatch.setattr("dfm_engine.detect.history.History.draw", lambda self, best_epoch: None)
