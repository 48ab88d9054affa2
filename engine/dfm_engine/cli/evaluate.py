"""Commands that measure a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from dfm_engine.cli.common import Device, FommYaml, Json, Weights, evaluate_app, finish, say

if TYPE_CHECKING:
    from dfm_engine.fomm.transfer import TransferMode


@evaluate_app.command("fomm")
def evaluate_fomm(
    weights: Weights,
    fomm_config: FommYaml = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of clips; without it people are rendered.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the table and the sheet.")] = None,
    identities: Annotated[int, typer.Option(help="Rendered people.", min=1)] = 100,
    moments: Annotated[
        int, typer.Option(help="Frames per action and person, the peak among them.", min=1)
    ] = 2,
    screen_clips: Annotated[
        int,
        typer.Option(
            "--screen", help="Whole clips per action that the screen of a build judges.", min=0
        ),
    ] = 0,
    clips: Annotated[int, typer.Option(help="Most clips of --data; 0: all.", min=0)] = 0,
    mode: Annotated[str, typer.Option(help="abs, rel, rel_adapt or rel_nojac.")] = "rel_adapt",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a motion model: how close, how well it moves, what a face detector sees."""
    from dfm_engine.fomm.evaluate import run_evaluate_fomm
    from dfm_engine.machinery import load_fomm
    from dfm_engine.progress import Counter

    with Counter("evaluate", "animations") as count:
        result = run_evaluate_fomm(
            load_fomm(weights, fomm_config),
            data=data,
            out=out,
            identities=identities,
            moments=moments,
            clips=clips,
            mode=cast("TransferMode", mode),  # checked there
            device=device,
            screen_clips=screen_clips,
            progress=count,
        )
    say(result.table())
    finish(result.to_json(), as_json, 0)
