"""Detector training: it learns, goes on to the bit, keeps the best, refuses what cannot work."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from dfmtest_detect import history, small_recipe, train
from dfmtest_store import make_store, write_store

from dfm_engine.detect.evaluate import people_trained_on
from dfm_engine.detect.load import load_detector
from dfm_engine.detect.models import create_detector
from dfm_engine.detect.train_data import TrainData
from dfm_engine.detect.train_recipe import Data, Model, Schedule, TrainDetectorRecipe, Validation
from dfm_engine.detect.train_step import Judgement, TrainingStep
from dfm_engine.errors import RecipeError, UsageError
from dfm_engine.recipe import parse_recipe, to_toml
from dfm_engine.store.draws import AugmentPolicy
from dfm_engine.store.frames import Store


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest) -> None:
    if "draws_curves" not in request.fixturenames:
        request.getfixturevalue("no_curves")


@pytest.fixture
def draws_curves() -> None:
    """Asks for curves.png."""


def test_a_small_net_learns_what_tells_the_classes_apart(store: Store, tmp_path: Path) -> None:
    recipe = small_recipe(schedule=Schedule(epochs=12, batch_size=8, lr=3e-3))
    result = train(store, tmp_path / "run", recipe)
    assert result.best["val/balanced_accuracy"] > 0.85
    losses = [row["train/loss"] for row in history(tmp_path / "run")]
    assert losses[-1] < 0.6 * losses[0]
    assert result.steps == 12 * 2
    assert result.epochs == 12


def test_the_same_training_on_shuffled_labels_learns_nothing_true(
    store: Store, tmp_path: Path
) -> None:
    recipe = small_recipe(
        schedule=Schedule(epochs=12, batch_size=8, lr=3e-3),
        data=Data(quality="mixed", frames="all", labels="shuffled"),
    )
    train(store, tmp_path / "run", recipe)
    true = TrainData.of(store, load_detector(tmp_path / "run").spec, small_recipe())
    rows = np.sort(true.val["raw"].rows[:, 0])
    frames = torch.from_numpy(store.read(rows)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        logits = load_detector(tmp_path / "run")((frames - 0.5) / 0.5)
    labels = torch.from_numpy(store.index.labels[rows])
    accuracy = (logits.argmax(1) == labels).float().mean()
    assert 0.2 <= accuracy <= 0.8  # with true labels: above 0.85, see the test before
    assert "control, not a detector" in (tmp_path / "run" / "model_card.md").read_text()


def test_the_best_epoch_is_kept_and_ties_go_to_the_lower_loss(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [(5, 0.5), (7, 0.4), (7, 0.3), (7, 0.35), (6, 0.1)]  # right of 8 reals, loss
    weights: list[torch.Tensor] = []

    def judge(self, batches) -> Judgement:
        for _ in batches:
            pass
        weights.append(self.module.classifier.weight.detach().clone())  # once per quality
        right, loss = script[(len(weights) - 1) // 3]
        return Judgement(loss=loss, real=8, fake=8, real_right=right, fake_right=4)

    monkeypatch.setattr(TrainingStep, "judge", judge)
    recipe = small_recipe(schedule=Schedule(epochs=5, batch_size=8))
    result = train(store, tmp_path / "run", recipe)
    assert result.best_epoch == 3
    assert result.best["val/loss"] == pytest.approx(0.3)
    assert result.best["val/accuracy"] == pytest.approx((7 + 4) / 16)
    state = safetensors.torch.load_file(result.weights)
    assert torch.equal(state["classifier.weight"], weights[2 * 3])
    assert not torch.equal(state["classifier.weight"], weights[-1])


def test_validation_is_the_mean_over_qualities_of_true_decisions(
    store: Store, tmp_path: Path
) -> None:
    train(store, tmp_path / "run", small_recipe())
    best = json.loads((tmp_path / "run" / "detector.json").read_text())["best"]
    detector = load_detector(tmp_path / "run")
    shares = []
    for quality in ("raw", "c23", "c40"):
        rows = store.index.rows(split="val", quality=quality)
        frames = torch.from_numpy(store.read(rows)).permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            found = detector((frames - 0.5) / 0.5).argmax(1).numpy()
        shares.append((found == store.index.labels[rows]).mean())
        assert best[f"val/{quality}/accuracy"] == pytest.approx(shares[-1])
    assert best["val/accuracy"] == pytest.approx(np.mean(shares))


def test_a_frozen_net_trains_its_head_alone_on_features_computed_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(
        model=Model(frozen=("small-cnn",), input_px=32),
        schedule=Schedule(epochs=3, batch_size=8, lr=0.05),
    )
    start = create_detector("small-cnn", input_px=32)
    seen = 0
    from dfm_engine.detect.small_cnn import SmallCnn

    real = SmallCnn.features

    def counting(self, images):
        nonlocal seen
        assert not self.training
        assert not self.backbone.training
        seen += len(images)
        return real(self, images)

    monkeypatch.setattr(SmallCnn, "features", counting)
    result = train(store, tmp_path / "run", recipe)
    rows = sum(len(store.index.rows(split=split)) for split in ("train", "val"))
    assert seen == rows
    state = safetensors.torch.load_file(result.weights)
    for key, value in start.state_dict().items():
        assert torch.equal(state[key], value) == (not key.startswith("classifier")), key
    facts = json.loads((tmp_path / "run" / "detector.json").read_text())
    assert facts["is_frozen"] is True
    # the features are those of the frames: the file's own accuracy is found again
    detector = load_detector(tmp_path / "run")
    shown = store.index.rows(split="val", quality="c40")
    frames = torch.from_numpy(store.read(shown)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        found = detector((frames - 0.5) / 0.5).argmax(1).numpy()
    accuracy = (found == store.index.labels[shown]).mean()
    assert facts["best"]["val/c40/accuracy"] == pytest.approx(accuracy)


def test_a_frozen_net_cannot_be_augmented(store: Store, tmp_path: Path) -> None:
    recipe = small_recipe(
        model=Model(frozen=("small-cnn",), input_px=32),
        augment=AugmentPolicy(horizontal_flip=0.5),
    )
    with pytest.raises(RecipeError, match="cannot be augmented"):
        train(store, tmp_path / "run", recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("draws_curves")
def test_a_run_leaves_what_people_and_programs_read(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = small_recipe()
    result = train(store, out, recipe)
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert any((out / "tensorboard").iterdir())
    assert parse_recipe((out / "recipe.toml").read_text(), TrainDetectorRecipe) == recipe
    rows = history(out)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [2, 4, 6]
    facts = json.loads((out / "detector.json").read_text())
    assert facts["best"] == rows[facts["best_epoch"] - 1] == result.best
    assert facts["weights_sha256"] == result.weights_sha256
    assert facts["store"]["splits"]["train"] == {
        "real_clips": 4,
        "fake_clips": 4,
        "identities": 4,
        "frames": 16,
    }
    people = {clip.identity for clip in store.index.clips if clip.split == "train"}
    assert people_trained_on(out) == sorted(people)
    assert len(people) == 4
    card = (out / "model_card.md").read_text()
    assert result.weights_sha256 in card
    assert f"| mean | {result.best['val/accuracy']:.4f} |" in card
    assert "4 real and 4 fake clips of 4 identities" in card
    assert "Augmentation: none." in card
    assert "other splits too" not in card
    run = json.loads((out / "run.json").read_text())
    assert run["machine"]["device"] == "cpu"
    assert result.to_json()["best_epoch"] == result.best_epoch
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(out / "tensorboard")).Reload()
    points = board.Scalars("val/accuracy")
    assert [p.step for p in points] == [2, 4, 6]
    assert points[-1].value == pytest.approx(rows[-1]["val/accuracy"])
    assert [p.step for p in board.Scalars("step/loss")] == [2, 4, 6]


def test_random_windows_are_remembered_by_the_detector(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", identities=6, frames=2, size=40)
    recipe = small_recipe(
        augment=AugmentPolicy(crop=0.8), schedule=Schedule(epochs=1, batch_size=4)
    )
    train(store, tmp_path / "run", recipe)
    spec = load_detector(tmp_path / "run").spec
    assert (spec.input_px, spec.crop) == (32, 0.8)


def test_qualities_of_plain_folders_are_trained_as_they_are(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", identities=6, frames=2, size=32, qualities=(None,))
    result = train(store, tmp_path / "run", small_recipe(schedule=Schedule(epochs=1, batch_size=4)))
    assert {key for key in result.best if key.startswith("val/")} == {
        "val/loss",
        "val/accuracy",
        "val/balanced_accuracy",
    }


def with_clips(store: Store, path: Path, keep: Callable) -> Store:
    """The store with some of its clips alone."""
    clips, frames = [], []
    for clip in filter(keep, store.index.clips):
        clips.append(replace(clip, first_row=sum(map(len, frames))))
        frames.append(store.read(np.asarray(clip.rows, np.int64)))
    return write_store(path, replace(store.meta, shards=()), clips, frames)


@pytest.mark.parametrize(
    ("keep", "recipe", "message"),
    [
        (lambda c: c.split != "val", {}, r"no clip in the split 'val' \(clips: test 24, train 24"),
        (
            lambda c: c.split != "val" or c.label == "real",
            {},
            "no fake clip in the split 'val'.*build with more identities",
        ),
        (
            lambda c: c.quality != "c40",
            {"data": Data(quality="c40")},
            "no frame of split train in quality c40",
        ),
        (lambda c: True, {"model": Model(input_px=64)}, "prepare it again with a larger --size"),
        (
            lambda c: True,
            {"schedule": Schedule(epochs=1, batch_size=64)},
            "fewer than one batch of 64",
        ),
    ],
)
def test_a_store_that_cannot_train_says_what_to_do(
    keep: Callable, recipe: dict, message: str, store: Store, tmp_path: Path
) -> None:
    wrong = with_clips(store, tmp_path / "wrong", keep)
    with pytest.raises(UsageError, match=message):
        train(wrong, tmp_path / "run", small_recipe(**recipe))


def shared_store(store: Store, path: Path, *splits: str) -> Store:
    """The store, with the first training person's name on a person of each of `splits`."""
    clips = store.index.clips
    who = next(clip.identity for clip in clips if clip.split == "train")
    others = {next(c.identity for c in clips if c.split == split) for split in splits}
    renamed = [replace(c, identity=who) if c.identity in others else c for c in clips]
    frames = [store.read(np.asarray(clip.rows, np.int64)) for clip in clips]
    return write_store(path, replace(store.meta, shards=()), renamed, frames)


@pytest.mark.parametrize(
    ("splits", "told"),
    [
        (("val",), r"trains on 4 people, 1 of them in val too \(person-0\): "),
        (("test",), r"trains on 4 people, 1 of them in test too \(person-0\): "),
        (("val", "test"), r"1 of them in val too \(person-0\) and 1 of them in test too"),
    ],
)
def test_people_of_train_in_another_split_are_refused_by_name(
    splits: tuple[str, ...], told: str, store: Store, tmp_path: Path
) -> None:
    leaky = shared_store(store, tmp_path / "leaky", *splits)
    with pytest.raises(UsageError, match=told):
        train(leaky, tmp_path / "run", small_recipe())
    assert not (tmp_path / "run").exists()


def test_a_split_by_clip_is_trained_where_the_recipe_allows_it_and_the_card_says_so(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leaky = shared_store(store, tmp_path / "leaky", "val")
    data = Data(quality="mixed", frames="all", shared_identities="allow")
    recipe = small_recipe(schedule=Schedule(epochs=1, batch_size=8), data=data)
    train(leaky, tmp_path / "run", recipe)
    assert "1 of them in val too (person-0)" in caplog.text
    facts = json.loads((tmp_path / "run" / "detector.json").read_text())
    assert facts["store"]["shared_identities"] == {"val": 1}
    card = (tmp_path / "run" / "model_card.md").read_text()
    assert "People of train are in other splits too**: 1 in val." in card


def test_training_begins_with_the_weights_given(store: Store, tmp_path: Path) -> None:
    recipe = small_recipe(schedule=Schedule(epochs=8, batch_size=8, lr=3e-3))
    first = train(store, tmp_path / "first", recipe)
    second = train(
        store,
        tmp_path / "second",
        small_recipe(schedule=Schedule(epochs=1, batch_size=8, lr=1e-6)),
        weights=str(first.weights),
    )
    assert second.best["val/loss"] == pytest.approx(first.best["val/loss"], rel=0.25)
    facts = json.loads((tmp_path / "second" / "detector.json").read_text())
    assert facts["start_weights_sha256"] == first.weights_sha256


def test_epochs_are_validated_as_often_as_the_recipe_says(store: Store, tmp_path: Path) -> None:
    recipe = small_recipe(
        schedule=Schedule(epochs=5, batch_size=8), validation=Validation(every_epochs=2)
    )
    train(store, tmp_path / "run", recipe)
    rows = history(tmp_path / "run")
    assert [row["epoch"] for row in rows if "val/loss" in row] == [2, 4, 5]


def test_the_command_trains_and_answers_programs(store: Store, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from dfm_engine.cli import app

    recipe = tmp_path / "recipe.toml"
    recipe.write_text(to_toml(small_recipe()))
    out = tmp_path / "run"
    words = ["train", "detector", "--model", "small-cnn", "--store", store.path, "--out", out]
    words += ["--recipe", recipe, "--epochs", "1", "--device", "cpu", "--json"]
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["epochs"], result["steps"], result["best_epoch"]) == (1, 2, 1)
    assert result["weights_sha256"] == load_detector(out).weights_sha256
    assert "best is epoch 1: accuracy on val frames" in done.stderr


def test_a_missing_recipe_is_answered_with_the_shipped_ones(store: Store, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="shipped are demo, paper, paper-literal"):
        train(store, tmp_path / "run", "papers")  # type: ignore[arg-type]
