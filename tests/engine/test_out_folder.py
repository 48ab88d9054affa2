"""No command writes into what another one made, and each says what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from dfmtest_dataset import make_dataset
from dfmtest_store import make_store

from dfm_engine.detect.run_folder import open_run
from dfm_engine.detect.train_recipe import TrainDetectorRecipe
from dfm_engine.errors import UsageError
from dfm_engine.fomm.train import run_train_fomm
from dfm_engine.fomm.train_recipe import TrainFommRecipe
from dfm_engine.jobs import RunFolder
from dfm_engine.out_folder import kind_of_folder
from dfm_engine.recipe import to_toml
from dfm_engine.store.folder import StoreFolder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind."""
    root = tmp_path_factory.mktemp("folders")
    make_dataset(root / "data set")
    make_store(root / "frame store", identities=3, size=16)
    with StoreFolder.open(root / "begun store", {"frames": 2}):
        pass
    with open_run(root / "detector run", TrainDetectorRecipe(), {}):
        pass
    (root / "fomm run").mkdir()
    (root / "fomm run" / "recipe.toml").write_text(to_toml(TrainFommRecipe()))
    (root / "export").mkdir()
    (root / "export" / "export.json").write_text("{}")
    return root


def write(kind: str, out: Path) -> None:
    """Open a folder as the command does that makes this kind."""
    match kind:
        case "data set":
            RunFolder.open(out, contract={}, recipe_toml="").close()
        case "frame store":
            StoreFolder.open(out, {}).close()
        case "detector run":
            with open_run(out, TrainDetectorRecipe(), {}):
                pass
        case "fomm run":
            run_train_fomm("demo", out=out, device="cpu")


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("wanted", ["data set", "frame store", "detector run", "fomm run"])
def test_a_command_leaves_what_others_made_as_it_is(folders: Path, wanted: str) -> None:
    before = files(folders)
    others = [p for p in folders.iterdir() if p.name.split()[-1] != wanted.split()[-1]]
    others += [p for p in folders.iterdir() if p.name.endswith("run") and p.name != wanted]
    assert len(others) >= 4
    for out in others:
        with pytest.raises(UsageError, match=r"has a folder of its own: .*name a new folder"):
            write(wanted, out)
    assert files(folders) == before


@pytest.mark.parametrize(
    ("out", "wanted", "words"),
    [
        (
            "data set",
            "detector run",
            r"is a data set of `dfm-engine build-dataset`, .* to train on it, make a frame store "
            r"of it \(`dfm-engine prepare --data .*data set --frames 16 --out STORE`\) and give "
            "that as --store",
        ),
        ("frame store", "detector run", "is a frame store .* to train on it, give it as --store"),
        ("begun store", "detector run", "is a frame store .* to train on it, give it as --store"),
        ("frame store", "fomm run", "is a frame store .* to train on it, give it as --data"),
        ("data set", "frame store", "to make a store of it, give it as --data"),
    ],
)
def test_what_was_meant_is_said(folders: Path, out: str, wanted: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        write(wanted, folders / out)


def test_folders_of_others_and_runs_with_an_export_are_what_they_are(tmp_path: Path) -> None:
    assert kind_of_folder(tmp_path / "absent") is None
    (tmp_path / "meta.json").write_text("{}")
    (tmp_path / "recipe.toml").write_text('kind = "pancakes"')
    assert kind_of_folder(tmp_path) is None
    (tmp_path / "recipe.toml").write_bytes(b"\xff[")
    assert kind_of_folder(tmp_path) is None
    (tmp_path / "recipe.toml").write_text('kind = "train_detector"')
    (tmp_path / "export.json").write_text("{}")
    assert kind_of_folder(tmp_path) == "detector run"
