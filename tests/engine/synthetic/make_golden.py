"""Write golden.json: small averages of drawn frames, to notice when the renderer changes.

Run it after raising `RENDERER_VERSION`: `python tests/engine/synthetic/make_golden.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dfm_engine.actions import Action
from dfm_engine.synthetic import RENDERER_VERSION, Identity, States, action_states, render

GOLDEN = Path(__file__).with_name("golden.json")
SEEDS = (1, 3, 35)


def thumbnails() -> torch.Tensor:
    """(people * actions, 8, 8, 3) block means of 64-pixel frames, float32."""
    states = States.join([action_states(action, 45, 9)[20:21] for action in Action])
    frames = torch.cat([render(Identity.draw(seed), states, 64).frames for seed in SEEDS])
    return frames.float().view(-1, 8, 8, 8, 8, 3).mean((2, 4))


if __name__ == "__main__":
    rounded = thumbnails().mul(10).round().int().flatten().tolist()
    GOLDEN.write_text(json.dumps({"renderer_version": RENDERER_VERSION, "tenths": rounded}) + "\n")
