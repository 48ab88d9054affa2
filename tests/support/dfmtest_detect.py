"""Detectors to test with, made once; trainings of a moment."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dfm_engine.detect.models import ForgeryDetector, create_detector
from dfm_engine.detect.train import run_train_detector
from dfm_engine.detect.train_recipe import Data, Model, Output, Schedule, TrainDetectorRecipe
from dfm_engine.store.frames import Store

KEPT = ("detector.safetensors", "detector.json", "history.jsonl", "model_card.md")


@cache
def made(name: str) -> ForgeryDetector:
    """A seeded detector whose norms and biases are not the identity; not to be changed."""
    detector = create_detector(name, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for key, value in detector.state_dict().items():
            if key.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif value.ndim == 1:
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return detector


def small_recipe(**changes: Any) -> TrainDetectorRecipe:
    """Three epochs of two steps for a store of 32 px; `changes` are whole tables."""
    tables: dict[str, Any] = {
        "model": Model(frozen=(), input_px=32),
        "data": Data(quality="mixed", frames="all"),
        "schedule": Schedule(epochs=3, batch_size=8, lr=2e-3),
        "output": Output(checkpoint_every_steps=1, log_every_steps=2),
    }
    return TrainDetectorRecipe(name="small", **{**tables, **changes})


def train(store: Store, out: Path, recipe: TrainDetectorRecipe, model: str = "small-cnn", **more):
    return run_train_detector(
        model=model, store=store.path, out=out, recipe=recipe, device="cpu", **more
    )


def kept(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in KEPT}


def history(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
