"""The parts of a detector's training: losses, rates, labels, tables, recipes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dfmtest_detect import small_recipe
from dfmtest_store import make_store

from dfm_engine.detect.models import create_detector, detector_spec
from dfm_engine.detect.train import prepare_net
from dfm_engine.detect.train_data import TrainData, by_quality, shuffle_labels, thin_out
from dfm_engine.detect.train_recipe import (
    Data,
    Model,
    Optimiser,
    Schedule,
    TrainDetectorRecipe,
    load_train_recipe,
)
from dfm_engine.detect.train_step import Judgement, TrainingStep, learning_rate, loss_of
from dfm_engine.errors import RecipeError
from dfm_engine.recipe import parse_recipe, to_toml
from dfm_engine.store.batches import SampleTable
from dfm_engine.store.frames import Store

CPU = torch.device("cpu")
EVEN = torch.ones(2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three fakes to a real clip."""
    path = tmp_path_factory.mktemp("parts") / "store"
    return make_store(path, identities=30, fakes=3, frames=5, size=4)


def test_one_logit_is_trained_by_the_squared_error_of_its_probability() -> None:
    logits = torch.tensor([[0.0], [2.0], [-1.0]])
    labels = torch.tensor([1, 0, 0])
    p = 1 / (1 + np.exp([0.0, -2.0, 1.0]))
    wanted = np.mean([(p[0] - 1) ** 2, p[1] ** 2, p[2] ** 2])
    assert loss_of(logits, labels, EVEN).item() == pytest.approx(wanted)
    entropy = -np.mean([np.log(p[0]), np.log(1 - p[1]), np.log(1 - p[2])])
    found = loss_of(logits, labels, EVEN, kind="cross-entropy")
    assert found.item() == pytest.approx(entropy)


def test_two_logits_are_trained_by_cross_entropy_each_class_with_its_weight() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.5, 2.0]])
    labels = torch.tensor([0, 0])
    each = [np.log1p(np.exp(-1.0)), np.log1p(np.exp(1.5))]
    assert loss_of(logits, labels, EVEN).item() == pytest.approx(np.mean(each))
    weighted = loss_of(logits, torch.tensor([0, 1]), torch.tensor([0.5, 2.0]))
    assert weighted.item() == pytest.approx((0.5 * each[0] + 2 * np.log1p(np.exp(-1.5))) / 2)


def test_the_rate_falls_to_nothing_with_the_power_of_nine_tenths() -> None:
    schedule = Schedule()
    rates = [learning_rate(schedule, step, 100) for step in (0, 50, 99)]
    assert rates == pytest.approx([2e-4, 2e-4 * 0.5**0.9, 2e-4 * 0.01**0.9])
    assert learning_rate(replace(schedule, decay="none"), 99, 100) == 2e-4


def test_a_step_is_adams_with_the_recipes_betas_and_rate() -> None:
    recipe = small_recipe(
        optimiser=Optimiser(betas=(0.8, 0.99), weight_decay=0.01),
        schedule=Schedule(lr=0.01, epochs=1),
    )
    torch.manual_seed(0)
    head = torch.nn.Linear(5, 2)
    twin = torch.nn.Linear(5, 2)
    twin.load_state_dict(head.state_dict())
    step = TrainingStep(head, recipe, total_steps=4, class_weights=(1.0, 1.0), device=CPU)
    inputs, labels = torch.randn(6, 5), torch.tensor([0, 1, 1, 0, 1, 0])
    moment, square = 0.0, 0.0
    for number in range(3):
        loss, right = step(inputs, labels, step=number)
        logits = twin(inputs)
        wanted = torch.nn.functional.cross_entropy(logits, labels)
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
        assert right.item() == (logits.argmax(1) == labels).sum().item()
        (gradient,) = torch.autograd.grad(wanted, twin.weight)
        gradient = gradient + 0.01 * twin.weight.detach()
        moment = 0.8 * moment + 0.2 * gradient
        square = 0.99 * square + 0.01 * gradient**2
        rate = 0.01 * (1 - number / 4) ** 0.9
        corrected = moment / (1 - 0.8 ** (number + 1))
        spread = (square / (1 - 0.99 ** (number + 1))).sqrt() + 1e-8
        updated = twin.weight.detach() - rate * corrected / spread
        torch.testing.assert_close(head.weight.detach(), updated, atol=1e-6, rtol=1e-5)
        twin.load_state_dict(head.state_dict())


def test_dropout_is_a_function_of_the_step() -> None:
    recipe = small_recipe()
    detector = create_detector("meso4", input_px=32)
    images = torch.randn(4, 3, 32, 32)
    labels = torch.tensor([0, 1, 1, 0])

    def loss_at(number: int, seed: int) -> float:
        torch.manual_seed(seed)  # whatever the generator was at
        fresh = create_detector("meso4", input_px=32)
        step = TrainingStep(fresh, recipe, total_steps=99, class_weights=(1, 1), device=CPU)
        return step(images, labels, step=number)[0].item()

    assert loss_at(3, 0) == loss_at(3, 1)
    assert loss_at(3, 0) != loss_at(4, 0)
    assert detector.spec.logits == 1


def test_judging_counts_every_decision_in_evaluation_mode() -> None:
    recipe = small_recipe()
    module = torch.nn.Sequential(torch.nn.Dropout(0.99), torch.nn.Identity())
    step = TrainingStep.__new__(TrainingStep)
    step.module, step.recipe, step.device = module, recipe, CPU
    step.weights, step._forward = torch.tensor([3.0, 5.0]), module
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0], [0.0, 0.5]])
    labels = torch.tensor([0, 0, 1, 1, 1])
    found = step.judge([(logits[:2], labels[:2]), (logits[2:], labels[2:])])
    assert (found.real, found.fake, found.real_right, found.fake_right) == (2, 3, 1, 2)
    assert found.accuracy == pytest.approx(3 / 5)
    assert found.balanced_accuracy == pytest.approx((1 / 2 + 2 / 3) / 2)
    wanted = torch.nn.functional.cross_entropy(logits, labels)  # unweighted
    assert found.loss == pytest.approx(wanted.item())
    assert isinstance(found, Judgement)


def test_shuffled_labels_agree_with_the_truth_no_more_than_chance_has_it(store: Store) -> None:
    table = SampleTable.of(store.index, split="train")
    dealt = shuffle_labels(table, seed=(0, 0))
    truth, new = table.labels[table.first_unit], dealt.labels[table.first_unit]
    sizes = np.diff(table.first_unit, append=len(table))
    assert np.array_equal(dealt.labels, np.repeat(new, sizes))  # a clip has one label
    shares = [new[truth == label].mean() for label in (0, 1)]
    assert shares == pytest.approx([truth.mean()] * 2, abs=1 / 10)  # 10 reals: to a clip
    assert not np.array_equal(new, truth)
    assert np.array_equal(shuffle_labels(table, seed=(0, 0)).labels, dealt.labels)
    assert not np.array_equal(shuffle_labels(table, seed=(1, 0)).labels, dealt.labels)
    assert np.array_equal(dealt.rows, table.rows)


def test_shuffling_is_within_each_split_and_reaches_the_batches(store: Store) -> None:
    spec = replace(detector_spec("small-cnn"), input_px=4)
    true = TrainData.of(store, spec, small_recipe())
    recipe = small_recipe(data=Data(quality="mixed", frames="all", labels="shuffled"))
    dealt = TrainData.of(store, spec, recipe)
    assert not np.array_equal(dealt.train.labels, true.train.labels)
    assert not np.array_equal(dealt.val["c23"].labels, true.val["c23"].labels)
    for one, other in ((dealt.train, true.train), (dealt.val["raw"], true.val["raw"])):
        clips = [t.labels[t.first_unit] for t in (one, other)]
        assert abs(int(clips[0].sum()) - int(clips[1].sum())) <= 2
    labels = {q: t.labels for q, t in dealt.val.items()}
    assert np.array_equal(labels["raw"], labels["c40"])


def test_validation_takes_evenly_spaced_frames_of_every_clip(store: Store) -> None:
    table = SampleTable.of(store.index, split="val", quality="raw")
    thin = thin_out(table, frames=2)
    assert len(thin) == 2 * len(table.first_unit)
    frames = store.index.frame[thin.rows[:, 0]].reshape(-1, 2)
    stored = store.index.frame[: store.index.clips[0].frames]
    assert (frames == stored[[1, 3]]).all()
    assert np.array_equal(thin.first_unit, np.arange(0, len(thin), 2))
    assert np.array_equal(thin_out(table, frames=99).rows, table.rows)
    assert thin_out(table, frames=0) is table


def test_tables_by_quality_hold_the_rows_of_that_quality(store: Store) -> None:
    tables = by_quality(SampleTable.of(store.index, split="val"))
    assert list(tables) == ["raw", "c23", "c40"]
    for quality, table in tables.items():
        rows = store.index.rows(split="val", quality=quality)
        assert np.array_equal(np.sort(table.rows[:, 0]), rows)
        assert np.array_equal(table.labels, store.index.labels[table.rows[:, 0]])


def test_balancing_by_the_loss_gives_both_classes_the_same_weight(store: Store) -> None:
    spec = replace(detector_spec("small-cnn"), input_px=4)
    data = TrainData.of(store, spec, small_recipe())
    real, fake = data.class_weights("loss")  # one real to three fakes
    assert (real, fake) == pytest.approx((2.0, 2 / 3))
    assert data.class_weights("none") == data.class_weights("undersample") == (1.0, 1.0)


def test_batch_norm_forgets_as_fast_as_the_recipe_says() -> None:
    recipe = small_recipe(model=Model(bn_momentum=0.25))
    net = prepare_net(create_detector("meso4"), recipe, CPU)
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m.momentum for m in norms] == [0.25] * 4
    untouched = prepare_net(create_detector("meso4"), small_recipe(), CPU)
    assert next(m.momentum for m in untouched.modules() if hasattr(m, "momentum")) == 0.01


@pytest.mark.parametrize("name", ["paper", "paper-literal", "demo"])
def test_shipped_recipes_parse_and_round_trip(name: str) -> None:
    recipe = load_train_recipe(name)
    assert recipe.name == name
    assert parse_recipe(to_toml(recipe), TrainDetectorRecipe) == recipe


def test_the_paper_s_recipes_hold_its_numbers_and_differ_in_the_betas_alone() -> None:
    paper, literal = load_train_recipe("paper"), load_train_recipe("paper-literal")
    schedule = paper.schedule
    assert (schedule.epochs, schedule.batch_size, schedule.lr) == (50, 64, 2e-4)
    assert (schedule.decay, schedule.power) == ("poly", 0.9)
    assert paper.optimiser.betas == (0.9, 0.999)
    assert literal.optimiser.betas == (0.999, 0.9)
    assert paper.model.frozen == ("xception",)
    same = replace(
        literal, name=paper.name, description=paper.description, optimiser=paper.optimiser
    )
    assert same == paper
    assert paper == replace(TrainDetectorRecipe(), name="paper", description=paper.description)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[schedule]\nepoch = 3", "did you mean 'epochs'"),
        ("[schedule]\nlr = 0.0", r"schedule\.lr must be positive"),
        ("[optimiser]\nbetas = [0.9]", "betas must be two numbers"),
        ('[data]\nquality = "c30"', "must be one of"),
        ("[augment]\ncrop = 0.1", r"augment\.crop must be within"),
        ("[model]\nbn_momentum = 2.0", "bn_momentum must be within"),
        ("[output]\nlog_every_steps = 0", "must be at least 1"),
    ],
)
def test_recipes_with_a_mistake_are_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(f'kind = "train_detector"\n{text}\n')
    with pytest.raises(RecipeError, match=message):
        load_train_recipe(file)
