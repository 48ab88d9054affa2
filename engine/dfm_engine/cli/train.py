"""Commands that train a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfm_engine.cli.common import Device, Json, finish, train_app


@train_app.command("fomm")
def train_fomm(
    recipe: Annotated[str, typer.Option(help="A shipped recipe or a .toml file.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; a run that is there goes on.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Frame store or folder of clips; recipes that render need none."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="End after so many steps in all.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Fit the whole schedule into this time instead.")
    ] = None,
    until: Annotated[
        float, typer.Option(help="With --minutes: the share of the schedule to end at.")
    ] = 1.0,
    start_from: Annotated[
        Path | None, typer.Option(help="Weights to begin a new run from.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train the First Order Motion Model."""
    from dfm_engine.fomm.train import run_train_fomm

    result = run_train_fomm(
        recipe,
        out=out,
        data=data,
        steps=steps,
        minutes=minutes,
        until=until,
        device=device,
        start_from=start_from,
    )
    finish(result.to_json(), as_json, 0)
