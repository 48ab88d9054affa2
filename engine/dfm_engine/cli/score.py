"""The command that scores videos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from dfm_engine.cli.backends import Backend, Exported, open_detector
from dfm_engine.cli.common import Device, Json, app, finish, say

if TYPE_CHECKING:
    from dfm_engine.detect.video_frames import Crop


@app.command()
def score(
    paths: Annotated[list[str], typer.Argument(help="Videos, or folders; `--` ends options.")],
    model: Annotated[
        Path, typer.Option(help="RUN folder of `train detector`, or its detector.safetensors.")
    ],
    frames: Annotated[
        int, typer.Option(help="Frames of each video, evenly spaced; 0: every frame.", min=0)
    ] = 32,
    crop: Annotated[
        str,
        typer.Option(
            help="face: cut the face out; whole: take pictures as they are; auto: whole for "
            "squares of up to 512 pixels, as cropped clips are."
        ),
    ] = "auto",
    cam: Annotated[
        Path | None, typer.Option(help="Folder for a sheet per video: where the verdict is from.")
    ] = None,
    backend: Backend = "torch",
    exported: Exported = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Say of each video how likely it is fake; exit 3 if one cannot be used."""
    from dfm_engine.detect.load import load_detector
    from dfm_engine.detect.score import run_score
    from dfm_engine.faces.mtcnn import Mtcnn
    from dfm_engine.machinery import pick_device

    where = pick_device(device)
    report = run_score(
        paths,
        runner=open_detector(
            load_detector(model), backend=backend, device=where, exported=exported
        ),
        faces=lambda: Mtcnn.load(where),
        frames=frames,
        crop=cast("Crop", crop),  # checked there
        cam=cam,
        say=say,
    )
    say(report.summary())
    finish(report.to_json(), as_json, report.exit_code)
