"""Exports that several modules look at, each made once a session and only if asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dfm_export.artifact import Artifact

Exports = Callable[..., Artifact]


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """`exports(name, precision, split=False)`: the folder of a network with seeded weights.

    Names: `vox-256` (the published size), `small` (64 px), `demo` (the shipped weights), or a
    detector's. A FOMM takes 10 to 60 s of one core, a detector 5 to 40 s: for slow tests.
    """
    made: dict[tuple[str, str, bool], Artifact] = {}

    def export(name: str, precision: str = "fp32", *, split: bool = False) -> Artifact:
        key = (name, precision, split)
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{name}-{precision}")
            made[key] = _export(name, precision, folder, split=split)
        return made[key]

    return export


def _export(name: str, precision: str, folder: Path, *, split: bool) -> Artifact:
    from dfmtest_fomm import make_fomm, small_config

    from dfm_engine.detect.models import create_detector
    from dfm_engine.machinery import load_fomm
    from dfm_export.precision import plan_of
    from dfm_export.run_export import export_detector, export_fomm

    with torch.random.fork_rng(devices=[]):
        if name not in ("vox-256", "small", "demo"):
            detector = create_detector(name, weights="none", seed=0)
            return export_detector(detector, folder, plan=plan_of("detector", precision))
        fomm = (
            make_fomm(small_config(num_kp=5), seed=3)
            if name == "small"
            else load_fomm("random" if name == "vox-256" else "demo", None)
        )
        return export_fomm(fomm, folder, plan=plan_of("fomm", precision), split=split)
