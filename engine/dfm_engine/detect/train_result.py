"""What a detector's training came to: for people and for programs."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainDetectorResult:
    """What a run came to.

    Attributes:
        out: folder of the run.
        model: its name.
        weights: the file that is handed on.
        weights_sha256: of that file.
        epochs: done over all calls.
        steps: done over all calls.
        best_epoch: whose weights these are, from 1.
        best: its row of the history.
        train_s: seconds of training over all calls, validation included.
        samples_per_s: of the steps of this call alone; 0 where there were none.
    """

    out: Path
    model: str
    weights: Path
    weights_sha256: str
    epochs: int
    steps: int
    best_epoch: int
    best: dict[str, float]
    train_s: float
    samples_per_s: float
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            **asdict(self),
            "out": os.fspath(self.out),
            "weights": os.fspath(self.weights),
            "train_s": round(self.train_s, 2),
            "samples_per_s": round(self.samples_per_s, 1),
        }

    def print(self) -> None:
        """For people, on stderr."""
        accuracies = "".join(
            f"  {name.split('/')[1]} {value:.3f}"
            for name, value in self.best.items()
            if name.count("/") == 2
        )
        sys.stderr.write(
            f"{self.model}: {self.epochs} epochs, {self.steps} steps in {self.train_s:.0f} s\n"
            f"best is epoch {self.best_epoch}: accuracy on val frames "
            f"{self.best['val/accuracy']:.3f}{accuracies}\n"
            f"weights {self.weights}\n"
        )
