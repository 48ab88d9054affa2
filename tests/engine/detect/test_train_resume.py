"""Training that is cut: whatever ends it, the same command goes on to the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dfmtest_detect import kept, small_recipe, train
from dfmtest_store import make_store

from dfm_engine.detect.train_recipe import Model, Schedule
from dfm_engine.detect.train_step import TrainingStep
from dfm_engine.errors import RecipeError, UsageError
from dfm_engine.interrupts import Interrupted, StopRequest
from dfm_engine.recipe import to_toml
from dfm_engine.store.draws import AugmentPolicy
from dfm_engine.store.frames import Store

pytestmark = pytest.mark.usefixtures("no_curves")


class Killed(Exception):
    """Stands for a SIGKILL."""


def killing(
    monkeypatch: pytest.MonkeyPatch, where: str, at: int, *, before: bool
) -> Callable[[], None]:
    """Make the `at`-th call of a function the last thing that happens; returns the healing."""
    module_name, _, name = where.rpartition(".")
    module = sys.modules.get(module_name, TrainingStep)
    real = getattr(module, name)
    calls = 0

    def dying(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == at and before:
            raise Killed
        result = real(*args, **kwargs)
        if calls == at:
            raise Killed
        return result

    monkeypatch.setattr(module, name, dying)
    return lambda: monkeypatch.setattr(module, name, real)


@pytest.mark.parametrize("model", ["small-cnn", "mesoinception4"])
def test_a_run_killed_anywhere_ends_with_the_same_bytes(
    model: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(augment=AugmentPolicy(horizontal_flip=0.5, brightness=0.2))
    train(store, tmp_path / "whole", recipe, model)
    wanted = kept(tmp_path / "whole")
    rng = random.Random(model)
    for trial in range(2):
        out = tmp_path / f"cut-{trial}"
        while True:
            where = rng.choice(
                [
                    "dfm_engine.detect.run_folder.write_durably",
                    "dfm_engine.detect.history.write_durably",
                    "TrainingStep.__call__",
                    "TrainingStep.judge",
                ]
            )
            heal = killing(monkeypatch, where, rng.randint(1, 4), before=rng.random() < 0.5)
            try:
                train(store, out, recipe, model)
                break
            except Killed:
                continue
            finally:
                heal()
        assert kept(out) == wanted
        assert not list(out.rglob("*.tmp-*"))
        assert len(list((out / "state").iterdir())) == 2


def test_a_finished_run_started_again_trains_no_more(store: Store, tmp_path: Path) -> None:
    first = train(store, tmp_path / "run", small_recipe())
    wanted = kept(tmp_path / "run")
    again = train(store, tmp_path / "run", small_recipe())
    assert kept(tmp_path / "run") == wanted
    assert again.samples_per_s == 0
    assert (again.steps, again.best) == (first.steps, first.best)


def test_a_stop_request_writes_the_state_and_the_run_goes_on(store: Store, tmp_path: Path) -> None:
    recipe = replace(
        small_recipe(), output=replace(small_recipe().output, checkpoint_every_steps=1000)
    )
    train(store, tmp_path / "whole", recipe)
    stop = StopRequest()

    def ask(done: int, total: int) -> None:
        assert total == 6
        if done == 2:
            stop.signum = signal.SIGINT

    with pytest.raises(Interrupted):
        train(store, tmp_path / "cut", recipe, stop=stop, progress=ask)
    state = torch.load(tmp_path / "cut" / "state" / "last.pt", weights_only=True)
    assert state["position"]["step"] == 3  # seen after the next step, amid an epoch
    train(store, tmp_path / "cut", recipe)
    assert kept(tmp_path / "cut") == kept(tmp_path / "whole")


def test_a_frozen_run_killed_anywhere_ends_with_the_same_bytes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfm_engine.detect.feature_cache.CHUNK_ROWS", 16)
    recipe = small_recipe(model=Model(frozen=("small-cnn",), input_px=32))
    train(store, tmp_path / "whole", recipe)
    chunks = sorted((tmp_path / "whole" / "features").iterdir())
    assert len(chunks) == 6  # of 96 rows
    for at in (2, 5):
        heal = killing(
            monkeypatch, "dfm_engine.detect.feature_cache.write_durably", at, before=at == 2
        )
        with pytest.raises(Killed):
            train(store, tmp_path / f"cut-{at}", recipe)
        heal()
        train(store, tmp_path / f"cut-{at}", recipe)
        assert kept(tmp_path / f"cut-{at}") == kept(tmp_path / "whole")
        for chunk in chunks:
            assert (tmp_path / f"cut-{at}" / "features" / chunk.name).read_bytes() == (
                chunk.read_bytes()
            )


def test_another_recipe_model_or_store_does_not_continue_a_run(
    store: Store, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    recipe = small_recipe(schedule=Schedule(epochs=1, batch_size=8))
    train(store, out, recipe)
    with pytest.raises(RecipeError, match=r"schedule\.epochs = 1, this one has 2"):
        train(store, out, recipe, epochs=2)
    with pytest.raises(UsageError, match="model small-cnn, this one has meso4"):
        train(store, out, recipe, "meso4")
    other = make_store(tmp_path / "other", identities=12, frames=2, size=32, seed=1)
    with pytest.raises(UsageError, match="holds a run with store"):
        train(other, out, recipe)
    with pytest.raises(UsageError, match="holds a run with weights none"):
        train(store, out, recipe, weights=str(out / "detector.safetensors"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(UsageError, match="holds other files"):
        train(store, tmp_path / "full", recipe)


FORKS = """
import os, random, signal, sys, time
import matplotlib.pyplot, torch, torch._dynamo  # what every child would import anew
torch.set_num_threads(1)
from dfm_engine.detect.train import run_train_detector

def run(out):
    run_train_detector(model="mesoinception4", store=sys.argv[1], out=out, recipe=sys.argv[2],
                       device="cpu")

def forked(out, patience_s):
    child = os.fork()
    if not child:
        run(out)
        os._exit(0)
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False

began = time.monotonic()
assert forked(sys.argv[3], 300)
whole_s = time.monotonic() - began
rng = random.Random(5)
kills = 0
while not forked(sys.argv[4], rng.uniform(0.05, 0.5) * whole_s if kills < 8 else 300):
    kills += 1
print(kills)
"""


@pytest.mark.slow
def test_runs_killed_by_the_system_end_with_the_same_bytes(store: Store, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(to_toml(small_recipe(schedule=Schedule(epochs=30, batch_size=8))))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = subprocess.run(
        [sys.executable, "-c", FORKS, *map(str, (store.path, recipe, whole, cut))],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert int(done.stdout) >= 2  # each run may be over before it is killed
    assert kept(cut) == kept(whole)
