"""Training runs: they learn, resume to the bit, write what other tools read, refuse nonsense."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dfm_engine.errors import EnvironmentUnfit, RecipeError, WeightsError
from dfm_engine.fomm.average import WeightAverage, shippable
from dfm_engine.fomm.model import initialise, load, load_discriminator
from dfm_engine.fomm.procedural_pairs import ProceduralPairs, RenderedPeople
from dfm_engine.fomm.store_pairs import StorePairs
from dfm_engine.fomm.train import StepClock, pick_device, rate_factor, run_train_fomm
from dfm_engine.fomm.train_files import Position
from dfm_engine.fomm.train_log import look
from dfm_engine.fomm.train_recipe import Schedule, load_train_recipe, phase_config
from dfm_engine.fomm.train_step import TrainingStep, carry_over
from dfm_engine.fomm.transfer import transfer
from dfm_engine.fomm.values import Keypoints
from dfm_engine.fomm.vgg import VggFeatures, load_vgg
from dfm_engine.recipe import parse_recipe, to_toml
from dfm_engine.store.frames import Store

CPU = torch.device("cpu")


def checkpoint_of(out: Path) -> dict:
    stem = json.loads((out / "latest.json").read_text())["stem"]
    return torch.load(out / "checkpoints" / f"{stem}-checkpoint.pth.tar", weights_only=True)


def worst_difference(first: dict, second: dict) -> float:
    assert first.keys() == second.keys()
    return max(
        (first[key].double() - second[key].double()).abs().max().item()
        for key in first
        if first[key].numel()
    )


def test_a_fixed_batch_gets_better(smoke) -> None:
    pairs = ProceduralPairs(smoke, device=CPU)
    step = TrainingStep(smoke, smoke.model, device=CPU)
    batch = pairs.sample(rows=4, frame_px=32)
    losses = [float(step(batch)["total"]) for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]
    assert all(np.isfinite(losses))


def test_a_resumed_run_equals_an_uninterrupted_one(smoke, tmp_path: Path) -> None:
    recipe = replace(smoke, schedule=replace(smoke.schedule, batch_size=2))
    whole = run_train_fomm(recipe, out=tmp_path / "whole", steps=8, device="cpu")
    run_train_fomm(recipe, out=tmp_path / "cut", steps=4, device="cpu")
    cut = run_train_fomm(recipe, out=tmp_path / "cut", steps=8, device="cpu")
    assert cut.step == whole.step == 8
    assert cut.last_loss == whole.last_loss
    first, second = checkpoint_of(tmp_path / "whole"), checkpoint_of(tmp_path / "cut")
    for network in ("generator", "kp_detector", "discriminator"):
        assert worst_difference(first[network], second[network]) == 0
    for name in ("generator", "kp_detector"):
        moments = [state[f"optimizer_{name}"]["state"] for state in (first, second)]
        for index in moments[0]:
            assert torch.equal(moments[0][index]["exp_avg_sq"], moments[1][index]["exp_avg_sq"])
    assert whole.weights.read_bytes() == cut.weights.read_bytes()  # the average too


@pytest.mark.slow
def test_twenty_steps_of_the_shipped_recipe_learn_and_resume_from_ten(tmp_path: Path) -> None:
    whole = run_train_fomm("smoke", out=tmp_path / "whole", steps=20, device="cpu")
    run_train_fomm("smoke", out=tmp_path / "cut", steps=10, device="cpu")
    cut = run_train_fomm("smoke", out=tmp_path / "cut", steps=20, device="cpu")
    assert cut.step == whole.step == 20
    first, second = checkpoint_of(tmp_path / "whole"), checkpoint_of(tmp_path / "cut")
    for network in ("generator", "kp_detector", "discriminator"):
        assert worst_difference(first[network], second[network]) == 0
    assert whole.weights.read_bytes() == cut.weights.read_bytes()
    # a new run's first batch is a function of the seed: the same one, before and after
    again = run_train_fomm(
        "smoke", out=tmp_path / "again", steps=1, device="cpu", start_from=whole.weights
    )
    assert again.first_loss < 0.8 * whole.first_loss


@pytest.mark.usefixtures("draws_curves")
def test_a_run_leaves_what_other_tools_read(smoke, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run_train_fomm(smoke, out=out, steps=5, device="cpu")
    state = checkpoint_of(out)
    assert {"generator", "kp_detector", "discriminator", "epoch"} <= state.keys()
    assert {f"optimizer_{n}" for n in ("generator", "kp_detector", "discriminator")} <= state.keys()
    reference = initialise(smoke.model)
    assert state["generator"].keys() == reference.generator.state_dict().keys()
    shipped = load(result.weights)  # the architecture is inside
    assert shipped.config == smoke.model
    path = next((out / "checkpoints").glob("*-checkpoint.pth.tar"))
    load(path, smoke.model)
    load_discriminator(path, smoke.model)
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "sheets" / "shipped.png").is_file()
    assert any((out / "tensorboard").iterdir())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 5
    assert rows[0]["loss/total"] == result.last_loss
    assert parse_recipe((out / "recipe.toml").read_text(), type(smoke)) == smoke
    run = json.loads((out / "run.json").read_text())
    assert run["pairs"] == 5 * smoke.schedule.batch_size
    assert not list(out.rglob("*tmp*"))
    assert result.to_json()["numbers"]["copy_psnr_db"] > 5


def test_another_recipe_does_not_continue_a_run(smoke, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(to_toml(smoke))
    other = replace(smoke, losses=replace(smoke.losses, points=3.0))
    with pytest.raises(RecipeError, match=r"losses\.points differs"):
        run_train_fomm(other, out=tmp_path, steps=1, device="cpu")


def test_clips_train_with_the_substitute_for_vgg(filmed, stored: Store, tmp_path: Path) -> None:
    result = run_train_fomm(filmed, out=tmp_path / "run", data=stored.path, steps=2, device="cpu")
    step = TrainingStep(filmed, filmed.model, device=CPU)
    batch = StorePairs(filmed, stored, device=CPU).batch(0, rows=2, frame_px=32, supervision=1.0)
    assert step(batch).keys() == {
        "total",
        "structure",
        "equivariance_value",
        "equivariance_jacobian",
    }
    assert np.isfinite(result.last_loss)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["data"] == {
        "source": "store", "identities": 2, "clips": 3, "frames": 15, "size_px": 32,
        "layout": "rgb24", "loader": "host",
    }  # fmt: skip
    assert run["has_vgg"] is False


def test_clips_train_with_vgg_weights(filmed, stored: Store, tmp_path: Path) -> None:
    file = tmp_path / "vgg19.pth"
    torch.manual_seed(0)
    vgg = VggFeatures()
    state = dict(vgg.state_dict())
    torch.save({**state, "classifier.0.bias": torch.zeros(3)}, file)
    recipe = replace(
        filmed, losses=replace(filmed.losses, vgg_weights=str(file), scales=(1.0, 0.5))
    )
    pairs = StorePairs(recipe, stored, device=CPU)
    step = TrainingStep(recipe, recipe.model, device=CPU)
    batch = pairs.batch(0, rows=2, frame_px=32, supervision=1.0)
    with torch.no_grad():
        passed = step.forward(batch)
        found = step.terms(batch, passed)["perceptual"]
        # the published sum: scales x 5 layers, each 10 x mean |difference|
        wanted = 0.0
        images = {1.0: passed.animation.prediction, 0.0: batch.target}
        for scale in recipe.losses.scales:
            from dfm_engine.fomm.losses import image_pyramid

            a, b = (vgg(image_pyramid(x, (scale,))[scale]) for x in images.values())
            wanted += sum(10 * (x - y).abs().mean().item() for x, y in zip(a, b, strict=True))
    assert found.item() == pytest.approx(wanted, rel=1e-4)
    assert [f.shape[1] for f in vgg(batch.target)] == [64, 128, 256, 512, 512]
    terms = step(batch)
    assert "perceptual" in terms
    assert "structure" not in terms
    assert all(p.grad is None for p in step.vgg.parameters())


def test_vgg_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match="torchvision's format"):
        load_vgg(file)
    with pytest.raises(WeightsError, match="no file"):
        load_vgg(tmp_path / "absent.pth")
    file.write_bytes(b"not a pickle")
    with pytest.raises(WeightsError, match="reading VGG19"):
        load_vgg(file)


@pytest.mark.parametrize("use_kp", [False, True])
def test_adversarial_steps_train_both_sides(filmed, stored: Store, use_kp: bool) -> None:
    discriminator = replace(filmed.model.discriminator, use_kp=use_kp, sn=not use_kp)
    recipe = replace(
        filmed,
        model=replace(filmed.model, discriminator=discriminator),
        losses=replace(filmed.losses, generator_gan=1.0, feature_matching=(10.0, 10.0)),
    )
    step = TrainingStep(recipe, recipe.model, device=CPU)
    batch = StorePairs(recipe, stored, device=CPU).batch(0, rows=2, frame_px=32, supervision=1.0)
    before = [p.detach().clone() for p in step.discriminator.parameters()]
    terms = [step(batch) for _ in range(8)]
    assert {"generator_gan", "feature_matching", "discriminator"} <= terms[0].keys()
    assert terms[-1]["discriminator"] < terms[0]["discriminator"]
    after = list(step.discriminator.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_without_gan_the_discriminator_stays_as_it_was_made(smoke) -> None:
    step = TrainingStep(smoke, smoke.model, device=CPU)
    before = {k: v.clone() for k, v in step.discriminator.state_dict().items()}
    step(ProceduralPairs(smoke, device=CPU).sample(rows=2, frame_px=32))
    assert worst_difference(before, step.discriminator.state_dict()) == 0


def test_cross_rows_show_the_first_person_in_the_second_s_state(smoke) -> None:
    recipe = replace(smoke, augment=replace(smoke.augment, horizontal_flip=False))
    pairs = ProceduralPairs(recipe, device=CPU)
    batch = pairs.batch(3, rows=4, frame_px=32, supervision=1.0, plain=True)
    assert batch.cross_rows == 2
    assert torch.equal(batch.driving[:2], batch.target[:2])
    assert not torch.equal(batch.driving[2:], batch.target[2:])
    # the target's background is the source's, not the driver's
    corner = (slice(2, None), slice(None), slice(0, 8), slice(0, 8))
    to_source = (batch.target[corner] - batch.source[corner]).abs().mean()
    to_driver = (batch.target[corner] - batch.driving[corner]).abs().mean()
    assert to_source < 0.5 * to_driver


def test_mirrored_pairs_swap_left_and_right_points(smoke) -> None:
    people = ProceduralPairs(smoke, device=CPU)._train
    person, state = np.array([1, 1]), np.array([2, 2])
    frames, points, jacobians = people.take(person, state, np.array([False, True]))
    assert torch.equal(frames[1], frames[0].flip(-1))
    left, right = points[0, 0], points[1, 1]  # left lid of the picture, right lid of its mirror
    assert torch.allclose(left * torch.tensor([-1.0, 1.0]), right)
    turned = jacobians[0, 0] * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert torch.allclose(turned, jacobians[1, 1])


def test_rendering_stops_at_its_limit_with_whole_groups(smoke) -> None:
    data = replace(smoke.data, identities=6, sharing=2, frames=2, render_limit_s=1e-6)
    people = RenderedPeople(data, first_seed=7, identities=6, size=16, device=CPU)
    assert people.identities == 2
    assert set(people.partner(np.array([0, 1]), np.random.default_rng(0))) == {0, 1}


def test_motion_is_carried_over_as_in_use() -> None:
    torch.manual_seed(1)
    source, driving, initial = (
        Keypoints(torch.randn(6, 10, 2) * 0.4, torch.eye(2) + 0.2 * torch.randn(6, 10, 2, 2))
        for _ in range(3)
    )
    wanted = transfer(source, driving, initial, mode="rel_adapt")
    found = carry_over(source, driving, initial)
    assert (found.value - wanted.value).abs().max() < 1e-2  # hull areas to a thousandth
    assert torch.allclose(found.jacobian, wanted.jacobian, atol=1e-5)


def test_identity_start_passes_colours_through(smoke) -> None:
    step = TrainingStep(smoke, smoke.model, device=CPU)
    pairs = ProceduralPairs(smoke, device=CPU)
    batch = pairs.sample(rows=4, frame_px=32)
    fomm = step.fomm
    with torch.no_grad():
        features = fomm.generator.encode(batch.source)  # batch statistics
        found = torch.sigmoid(fomm.generator.final(features.encoded))
    for channel in range(3):
        pixels = torch.stack([found[:, channel].flatten(), batch.source[:, channel].flatten()])
        assert torch.corrcoef(pixels)[0, 1] > 0.95


def test_a_phase_of_half_the_size_keeps_the_networks_pictures(smoke) -> None:
    config = replace(
        smoke.model,
        frame_size=(32, 32),
        kp_detector=replace(smoke.model.kp_detector, scale_factor=0.25),
        generator=replace(
            smoke.model.generator,
            dense_motion_params=replace(
                smoke.model.generator.dense_motion_params, scale_factor=0.25
            ),
        ),
    )
    half = phase_config(config, 16)
    assert half.kp_detector.scale_factor == 0.5
    assert half.frame_size == (16, 16)
    with pytest.raises(RecipeError, match="use phases of at least 8 px"):
        phase_config(config, 4)


def test_phases_hand_weights_on(smoke, tmp_path: Path) -> None:
    recipe = replace(
        smoke,
        schedule=replace(
            smoke.schedule,
            epochs=1,
            steps_per_epoch=4,
            phase_px=(16, 32),
            phase_until=(0.5, 1.0),
            phase_batch=(4, 2),
        ),
    )
    result = run_train_fomm(recipe, out=tmp_path / "run", device="cpu")
    assert result.step == 4
    assert result.pairs == 2 * 4 + 2 * 2
    assert load(result.weights).frame_size == (32, 32)


def test_minutes_spread_the_schedule_over_the_time(smoke, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("dfm_engine.fomm.train._RESERVE_S", 0.0)
    result = run_train_fomm(smoke, out=tmp_path / "run", minutes=0.04, until=0.5, device="cpu")
    assert result.progress == pytest.approx(0.5)
    assert result.step >= 1
    again = run_train_fomm(smoke, out=tmp_path / "run", minutes=0.04, device="cpu")
    assert again.progress == pytest.approx(1.0)
    assert again.step > result.step


def test_learning_rates_fall_as_published() -> None:
    published = Schedule()
    factors = [rate_factor(published, 0, epoch, 0.0) for epoch in (0, 59, 60, 89, 90, 99)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    cosine = Schedule(decay="cosine", lr_end_share=0.1, warmup_steps=10)
    assert rate_factor(cosine, 4, 0, 0.0) == pytest.approx(0.5)
    assert rate_factor(cosine, 99, 0, 0.5) == pytest.approx(0.55)
    assert rate_factor(cosine, 99, 0, 1.0) == pytest.approx(0.1)
    assert StepClock(10, stop=5).is_over(Position(step=5))


def test_average_follows_the_weights_and_ships_fresh_statistics(smoke) -> None:
    step = TrainingStep(smoke, smoke.model, device=CPU)
    average = WeightAverage(step.fomm, decay=0.9)
    pairs = ProceduralPairs(smoke, device=CPU)
    values = [next(step.fomm.parameters()).detach().clone()]
    expected = values[0].clone()
    for k in range(3):
        step(pairs.batch(k, rows=2, frame_px=32, supervision=1.0))
        average.update(step.fomm)
        decay = min(0.9, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * next(step.fomm.parameters()).detach()
    batches = [pairs.batch(9, rows=4, frame_px=32, supervision=1.0, plain=True)]
    shipped = shippable(step, average, batches)
    assert torch.allclose(next(shipped.parameters()), expected, atol=1e-6)
    norm, image = shipped.generator.first, batches[0].source
    mean = norm.conv(image).mean((0, 2, 3))
    assert torch.allclose(norm.norm.running_mean, mean, atol=1e-4)
    assert norm.norm.momentum == smoke.optimiser.bn_momentum
    assert not torch.allclose(
        step.fomm.generator.first.norm.running_mean, norm.norm.running_mean, atol=1e-4
    )


def test_looking_does_not_disturb_training(smoke) -> None:
    step = TrainingStep(smoke, smoke.model, device=CPU)
    before = {k: v.clone() for k, v in step.fomm.state_dict().items()}
    numbers, sheet = look(step, ProceduralPairs(smoke, device=CPU).sample(rows=4, frame_px=32))
    assert worst_difference(before, step.fomm.state_dict()) == 0
    assert step.fomm.training
    assert sheet.shape == (4 * 32, 6 * 32, 3)
    assert numbers["psnr_db/copy"] > 10


@pytest.mark.parametrize("name", ["paper", "paper-adv", "demo", "smoke"])
def test_shipped_recipes_parse_and_round_trip(name: str) -> None:
    recipe = load_train_recipe(name)
    assert recipe.name == name
    assert parse_recipe(to_toml(recipe), type(recipe)) == recipe


def test_the_paper_s_recipes_hold_the_published_numbers() -> None:
    paper, adv = load_train_recipe("paper"), load_train_recipe("paper-adv")
    assert paper.schedule == Schedule()
    assert paper.model.generator.num_down_blocks == 2
    assert (adv.schedule.epochs, adv.schedule.milestones) == (150, ())
    assert adv.losses.generator_gan == 1
    assert adv.model.discriminator.use_kp
    assert not adv.model.discriminator.sn
    assert adv.model.kp_detector == paper.model.kp_detector
    assert adv.model.generator == paper.model.generator


def test_recipes_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    for text, message in (
        ('kind = "train_fomm"\n[losses]\npoints = 1.0', "renderer's ground truth"),
        ('kind = "train_fomm"\n[data]\nsource = "procedural"', "steps_per_epoch"),
        ('kind = "train_fomm"\n[schedule]\nphase_px = [64]', "of one length"),
        ('kind = "train_fomm"\n[model]\nnum_kp = 10', "model table is incomplete"),
        ('kind = "train_fomm"\n[optimiser]\nemma = 0.9', "did you mean 'ema'"),
    ):
        file = tmp_path / "recipe.toml"
        file.write_text(text)
        with pytest.raises(RecipeError, match=message):
            load_train_recipe(file)


def test_an_absent_gpu_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(EnvironmentUnfit, match="sees no CUDA device"):
        pick_device("cuda")
    assert pick_device("auto") == CPU
