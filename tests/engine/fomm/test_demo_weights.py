"""The shipped demo weights: the file they say they are, and a model that animates strangers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dfm_engine import weights
from dfm_engine.actions import Action
from dfm_engine.errors import WeightsError
from dfm_engine.fomm import metrics
from dfm_engine.fomm.evaluate import animate_shot
from dfm_engine.fomm.evaluation_shots import rendered_shots
from dfm_engine.fomm.model import load
from dfm_engine.synthetic import RENDERER_VERSION

ACTIONS = (Action.LEFT_SLOPE, Action.OPEN_MOUTH)


def test_strangers_tilt_their_heads_and_open_their_mouths() -> None:
    fomm = load(weights.demo_weights(), align_corners=True).eval()
    over_copy: list[float] = []
    gains: list[float] = []
    shots = rendered_shots(256, 3, 70_000, moments=1, device=torch.device("cpu"), actions=ACTIONS)
    for shot in shots:
        if shot.kind == "self":
            continue
        rest, predicted = animate_shot(fomm, shot, mode="rel_adapt")
        if shot.boxes is None:
            found, copied = (metrics.psnr_db(x, shot.truth) for x in (predicted, shot.source))
            over_copy.append(float(found - copied))
        else:
            change, wanted = predicted - rest, shot.truth - shot.source
            gains.append(float(metrics.gain(change, wanted, shot.boxes)))
    assert len(over_copy) == len(gains) == 3
    assert sum(over_copy) / 3 >= 3, over_copy
    assert sum(gains) / 3 >= 0.4, gains


def test_weights_that_are_not_the_shipped_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfm_engine.weights.resources.files", lambda _: tmp_path)
    with pytest.raises(WeightsError, match="absent"):
        weights.demo_weights()
    (tmp_path / weights.DEMO).write_bytes(b"something else")
    with pytest.raises(WeightsError, match=weights.DEMO_SHA256):
        weights.demo_weights()


def test_the_card_beside_the_weights_is_theirs() -> None:
    card = weights.demo_weights().with_suffix(".md").read_text("utf-8")
    assert weights.DEMO_SHA256 in card
    # weights trained on an older renderer go stale: train again, or say so in the card
    assert f"renderer version {RENDERER_VERSION}" in card
