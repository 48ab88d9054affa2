"""Commands that look at a machine or a file: doctor, probe, screen."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from dfm_engine.cli.common import Json, app, finish
from dfm_engine.errors import UsageError


@app.command()
def doctor(
    require: Annotated[
        str | None, typer.Option(help="'gpu': exit 4 where no usable GPU is found.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What this machine can do: drivers, libraries, and how they fit each other."""
    from dfm_engine.doctor import run_doctor

    if require not in (None, "gpu"):
        raise UsageError(f"--require takes 'gpu', found {require!r}")
    report = run_doctor(require_gpu=require == "gpu")
    report.print()
    finish(report.to_json(), as_json, report.exit_code)


@app.command()
def probe(
    paths: Annotated[list[str], typer.Argument(help="Files or folders; `--` ends options.")],
    faces: Annotated[bool, typer.Option(help="Also look for a usable face.")] = True,
    as_json: Json = False,
) -> None:
    """Say of each media file what it is and whether it can be used; exit 3 if one cannot."""
    from dfm_engine.media.probe_command import run_probe
    from dfm_engine.recipe import BuildRecipe

    recipe = BuildRecipe()
    check = None
    if faces:
        from dfm_engine.faces.check import check_faces
        from dfm_engine.faces.mtcnn import Mtcnn

        check = functools.partial(check_faces, detector=Mtcnn.load("cpu"), recipe=recipe)
    report = run_probe(paths, faces=check, limits=recipe.limits)
    report.print()
    finish(report.to_json(), as_json, report.exit_code)


@app.command()
def screen(
    clip: Annotated[Path, typer.Argument(help="A video file.")],
    action: Annotated[str, typer.Option(help="What it should show, such as nod.")],
    as_json: Json = False,
) -> None:
    """Say whether a clip performs an action, and by which measurements; exit 3 if it does not."""
    from dfm_engine.faces.mtcnn import Mtcnn
    from dfm_engine.recipe import BuildRecipe
    from dfm_engine.screen.command import run_screen

    recipe = BuildRecipe()
    result = run_screen(clip, action, detector=Mtcnn.load("cpu"), recipe=recipe)
    result.print()
    finish(result.to_json(), as_json, result.exit_code)
