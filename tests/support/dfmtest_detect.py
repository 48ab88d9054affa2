"""Detectors to test with, made once."""

from __future__ import annotations

from functools import cache

import torch

from dfm_engine.detect.models import ForgeryDetector, create_detector


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
