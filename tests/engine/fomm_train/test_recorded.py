"""On a GPU: a replayed step is the step; mixed precision stays near float32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dfm_engine.fomm.procedural_pairs import ProceduralPairs
from dfm_engine.fomm.store_pairs import StorePairs
from dfm_engine.fomm.train_step import TrainingStep


@pytest.mark.gpu
def test_a_recorded_step_does_what_the_step_does(smoke) -> None:
    from dfm_engine.fomm.recorded_step import RecordedStep

    device = torch.device("cuda")
    optimiser = replace(smoke.optimiser, cuda_graph=True, channels_last=True)
    recipe = replace(smoke, optimiser=optimiser)
    pairs = ProceduralPairs(recipe, device=device)
    plain = TrainingStep(recipe, recipe.model, device=device)
    recorded = TrainingStep(recipe, recipe.model, device=device)
    replay = RecordedStep(recorded)
    for k in range(8):
        batch = pairs.batch(k, rows=4, frame_px=32, supervision=1.0)
        for step in (plain, recorded):
            step.set_rates(1 / (1 + k))
        first, second = plain(batch), replay(batch)
        # sums of sampled gradients have no fixed order on a GPU, and Adam's first steps are signs
        assert float(second["total"]) == pytest.approx(float(first["total"]), rel=0.05)
    assert replay._graph is not None


@pytest.mark.gpu
def test_bf16_terms_are_near_float32_terms(smoke) -> None:
    device = torch.device("cuda")
    totals = []
    for autocast in ("off", "bf16"):
        recipe = replace(smoke, optimiser=replace(smoke.optimiser, autocast=autocast))
        batch = ProceduralPairs(recipe, device=device).sample(rows=4, frame_px=32)
        step = TrainingStep(recipe, recipe.model, device=device)
        passed = step.forward(batch)
        assert passed.keypoints.value.dtype == torch.float32
        totals.append(sum(float(v) for v in step.terms(batch, passed).values()))
    assert totals[1] == pytest.approx(totals[0], rel=0.02)


@pytest.mark.gpu
def test_a_step_is_recorded_while_the_next_batch_is_gathered(filmed, stored) -> None:
    from dfm_engine.fomm.recorded_step import RecordedStep

    device = torch.device("cuda")
    for loader in ("device", "host"):
        optimiser = replace(filmed.optimiser, cuda_graph=True)
        data = replace(filmed.data, loader=loader)
        recipe = replace(filmed, optimiser=optimiser, data=data)
        pairs = StorePairs(recipe, stored, device=device)
        replay = RecordedStep(TrainingStep(recipe, recipe.model, device=device))
        for k in range(8):
            terms = replay(pairs.batch(k, rows=2, frame_px=32, supervision=1.0))
        assert replay._graph is not None
        assert torch.isfinite(terms["total"])
        pairs.close()
