"""A recipe small enough for seconds of training on one core."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from dfmtest_store import write_store
from PIL import Image

from dfm_engine.fomm.procedural_pairs import RenderedPeople
from dfm_engine.fomm.train_recipe import TrainFommRecipe, load_train_recipe
from dfm_engine.store.frames import Store
from dfm_engine.store.index import StoredClip
from dfm_engine.store.meta import StoreMeta


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums of one thread have one order; tests of other files may set other counts."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _small_and_quiet(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """People are rendered once per session, sheets are short, curves drawn where looked at."""
    monkeypatch.setattr("dfm_engine.fomm.procedural_pairs.RenderedPeople", _rendered_once)
    monkeypatch.setattr("dfm_engine.fomm.train.SAMPLE_ROWS", 4)
    if "draws_curves" not in request.fixturenames:
        monkeypatch.setattr("dfm_engine.fomm.train_log.Curves.draw", lambda self: None)


@pytest.fixture
def draws_curves() -> None:
    """Asks for curves.png, which costs a second."""


_rendered_once = lru_cache(RenderedPeople)


@pytest.fixture
def smoke() -> TrainFommRecipe:
    """The shipped smoke recipe at 32 px, procedural, without intermediate sheets."""
    recipe = load_train_recipe("smoke")
    return replace(
        recipe,
        model=replace(recipe.model, frame_size=(32, 32)),
        output=replace(recipe.output, sheet_every_epochs=1000),
    )


@pytest.fixture
def filmed(smoke: TrainFommRecipe) -> TrainFommRecipe:
    """The smoke recipe on clips of a folder, with the published losses' weights."""
    from dfm_engine.fomm.train_recipe import Augment, Data, Losses, Optimiser

    return replace(
        smoke,
        name="filmed",
        data=Data(source="folder", repeats=8, workers=1),
        augment=Augment(),
        losses=Losses(),
        optimiser=Optimiser(identity_start=True),
        schedule=replace(smoke.schedule, batch_size=2, steps_per_epoch=0),
    )


def moving_squares() -> dict[str, np.ndarray]:
    """Two identities, three clips of five pictures each: a square that moves over noise."""
    rng = np.random.default_rng(0)
    clips: dict[str, np.ndarray] = {}
    for name in ("id1#a#0", "id1#b#0", "id2#c#0"):
        behind = rng.integers(60, 120, (32, 32, 3), dtype=np.uint8)
        colour = rng.integers(150, 255, 3, dtype=np.uint8)
        clips[name] = np.repeat(behind[None], 5, axis=0)
        for index, picture in enumerate(clips[name]):
            picture[10:20, 4 * index : 4 * index + 10] = colour
    return clips


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """`moving_squares` as folders of pictures."""
    folder = tmp_path / "clips"
    for name, pictures in moving_squares().items():
        clip = folder / "train" / name
        clip.mkdir(parents=True)
        for index, picture in enumerate(pictures):
            Image.fromarray(picture).save(clip / f"{index:07d}.png")
    return folder


@pytest.fixture
def stored(tmp_path: Path) -> Store:
    """`moving_squares` as a store."""
    squares = moving_squares()
    clips = [
        StoredClip(
            key=f"train/{name}",
            path=f"train/{name}",
            clip_id=name,
            label="real",
            identity=name.split("#")[0],
            split="train",
            sha256="0" * 64,
            first_row=5 * number,
            frames=5,
            clip_frames=5,
        )
        for number, name in enumerate(squares)
    ]
    meta = StoreMeta(size_px=32, layout="rgb24", frames_per_clip=0)
    return write_store(tmp_path / "stored", meta, clips, list(squares.values()))
