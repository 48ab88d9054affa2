"""The command that trains a detector."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from dfm_engine.cli.common import Device, Json, finish, train_app

if TYPE_CHECKING:
    from dfm_engine.store.loader import Mode


@train_app.command("detector")
def train_detector(
    model: Annotated[
        str,
        typer.Option(
            help="mesoinception4, meso4, xception, resnet50, resnet101, resnet152, "
            "efficientnet_b4, small-cnn, or any timm model."
        ),
    ],
    store: Annotated[Path, typer.Option(help="Frame store that `dfm-engine prepare` made.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; a run that is there goes on.")],
    weights: Annotated[
        str,
        typer.Option(
            help="To begin with: a file (.pth, .safetensors, .h5); 'cache': the published ones "
            "where other tools keep them on this machine; 'none': seeded."
        ),
    ] = "none",
    recipe: Annotated[str, typer.Option(help="A shipped recipe or a .toml file.")] = "paper",
    epochs: Annotated[
        int | None, typer.Option(help="Instead of the recipe's; the schedule fits itself.", min=1)
    ] = None,
    loader: Annotated[
        str, typer.Option(help="Where frames are read from: auto, device, host or memmap.")
    ] = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train a forgery detector on a frame store; started again it goes on."""
    from dfm_engine.detect.train import run_train_detector
    from dfm_engine.interrupts import draining_signals
    from dfm_engine.progress import Counter

    with draining_signals() as stop, Counter("train", "steps") as count:
        result = run_train_detector(
            model=model,
            store=store,
            out=out,
            weights=weights,
            recipe=recipe,
            epochs=epochs,
            device=device,
            loader=cast("Mode", loader),  # checked there
            stop=stop,
            progress=count,
        )
    result.print()
    finish(result.to_json(), as_json, result.exit_code)
