"""What a folder of ours is, so that no command writes into what another one made.

Told by the files that each of them writes first or last; a folder of anybody else's is none.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Literal

from dfm_engine.errors import UsageError

__all__ = ["Kind", "kind_of_folder", "refuse_other"]

Kind = Literal["data set", "frame store", "detector run", "fomm run", "export"]

_NAMES: dict[Kind, str] = {
    "data set": "a data set of `dfm-engine build-dataset`",
    "frame store": "a frame store of `dfm-engine prepare`",
    "detector run": "a run of `dfm-engine train detector`",
    "fomm run": "a run of `dfm-engine train fomm`",
    "export": "an export of `dfm-engine export`",
}
_FILES: tuple[tuple[str, Kind], ...] = (
    ("prepare.json", "frame store"),
    ("index.parquet", "frame store"),
    ("manifest.parquet", "data set"),
    ("export.json", "export"),
)
_RECIPES: dict[str, Kind] = {
    "build": "data set",
    "train_detector": "detector run",
    "train_fomm": "fomm run",
}
_MEANT: dict[tuple[Kind, Kind], str] = {  # (found, wanted): what was meant, most likely
    ("data set", "detector run"): "to train on it, make a frame store of it (`dfm-engine prepare "
    "--data {out} --frames 16 --out STORE`) and give that as --store; ",
    ("frame store", "detector run"): "to train on it, give it as --store; ",
    ("frame store", "fomm run"): "to train on it, give it as --data; ",
    ("data set", "frame store"): "to make a store of it, give it as --data; ",
}


def kind_of_folder(folder: Path) -> Kind | None:
    """What made a folder, finished or not; None where that was nothing of ours."""
    try:
        recipe = tomllib.loads((folder / "recipe.toml").read_text("utf-8"))
    except (OSError, ValueError):
        recipe = {}
    if kind := _RECIPES.get(str(recipe.get("kind"))):  # a run may hold an export besides
        return kind
    return next((kind for name, kind in _FILES if os.path.isfile(folder / name)), None)


def refuse_other(out: Path, wanted: Kind) -> None:
    """Keep a command off the folder of another one; call it before anything is written.

    Args:
        out: as given.
        wanted: what the command makes.

    Raises:
        UsageError: the folder is something else of ours.
    """
    found = kind_of_folder(out)
    if found is None or found == wanted:
        return
    meant = _MEANT.get((found, wanted), "").format(out=os.fspath(out))
    raise UsageError(
        f"--out {os.fspath(out)!r} is {_NAMES[found]}, and {_NAMES[wanted]} has a folder of its "
        f"own: {meant}name a new folder for --out"
    )
