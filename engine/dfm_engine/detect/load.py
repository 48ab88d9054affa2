"""`load_detector`: a trained detector from its RUN folder or its weights file."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from dfm_engine.detect.detector import ForgeryDetector
from dfm_engine.detect.models import build_detector
from dfm_engine.detect.weights import fill_from_file, read_spec, require_spec
from dfm_engine.errors import UsageError

WEIGHTS_FILE = "detector.safetensors"


def load_detector(
    path: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> ForgeryDetector:
    """A detector that `train detector` made, in evaluation mode.

    Args:
        path: a RUN folder, or its detector.safetensors wherever that lies now.
        device: where it shall be.

    Raises:
        UsageError: a folder without a finished run, or a file that does not name its model.
        WeightsError: a file that cannot be read or does not fit.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / WEIGHTS_FILE).is_file():
            raise UsageError(
                f"{path} holds no {WEIGHTS_FILE}: it is no RUN of `dfm-engine train detector`, or "
                "the run never got to its end; run the same command again: it resumes"
            )
        path = path / WEIGHTS_FILE
    detector = build_detector(require_spec(read_spec(path), path))
    fill_from_file(detector, path)
    return detector.to(device)
