"""Commands that measure a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from dfm_engine.cli.backends import Backend, Exported, open_detector
from dfm_engine.cli.common import Device, FommYaml, Json, Weights, evaluate_app, finish, say

if TYPE_CHECKING:
    from dfm_engine.detect.evaluate import Split
    from dfm_engine.detect.metrics import Positive
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


@evaluate_app.command("detector")
def evaluate_detector(
    model: Annotated[
        Path, typer.Option(help="RUN folder of `train detector`, or its detector.safetensors.")
    ],
    store: Annotated[Path, typer.Option(help="Frame store that `dfm-engine prepare` made.")],
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    quality: Annotated[
        str | None, typer.Option(help="raw, c23 or c40; all of them where left out.")
    ] = None,
    positive: Annotated[
        str, typer.Option(help="The class that AP, TPR and FPR are about: fake or real.")
    ] = "fake",
    frames: Annotated[
        int, typer.Option(help="Frames per clip, evenly spaced; 0: all that are stored.", min=0)
    ] = 0,
    groups: Annotated[
        Path | None, typer.Option(help="CSV `identity,group`: measure groups of people too.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the scores, the numbers and the plots.")
    ] = None,
    device: Device = "auto",
    backend: Backend = "torch",
    exported: Exported = None,
    as_json: Json = False,
) -> None:
    """Measure a detector: frames and videos, by quality, action and person, with intervals."""
    from dfm_engine.detect.evaluate import (
        people_trained_on,
        read_groups,
        run_evaluate_detector,
    )
    from dfm_engine.detect.load import load_detector
    from dfm_engine.machinery import pick_device
    from dfm_engine.progress import Counter
    from dfm_engine.store.frames import Store

    where = pick_device(device)
    runner = open_detector(load_detector(model), backend=backend, device=where, exported=exported)
    frame_store = Store.open(store)
    with Counter("evaluate", "frames") as count:
        result = run_evaluate_detector(
            runner,
            frame_store,
            split=cast("Split", split),  # checked there
            quality=quality,
            frames=frames,
            positive=cast("Positive", positive),  # checked there
            trained_on=people_trained_on(model),
            groups=read_groups(groups) if groups else None,
            out=out,
            progress=count,
        )
    result.print()
    finish(result.to_json(), as_json, result.exit_code)
