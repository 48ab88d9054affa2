"""`prepare`: decode a data set once, into a store that training and evaluation read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfm_engine.cli.common import Device, Json, app, finish, say
from dfm_engine.interrupts import draining_signals


@app.command()
def prepare(
    data: Annotated[
        Path, typer.Option(help="A built data set, a folder of clips, or of folders of pictures.")
    ],
    frames: Annotated[int, typer.Option(help="Evenly spaced frames of each clip; 0 is all.")],
    out: Annotated[Path, typer.Option(help="The frame store; the same command again resumes.")],
    layout: Annotated[
        str, typer.Option(help="rgb24, or i420: half the bytes, the decoder's own planes.")
    ] = "rgb24",
    size: Annotated[int, typer.Option(help="Side of the stored frames in pixels.")] = 256,
    decode: Annotated[str, typer.Option(help="auto, pyav or dali (NVDEC).")] = "auto",
    quality: Annotated[
        str, typer.Option(help="Of a built data set: any of raw,c23,c40, with commas.")
    ] = "raw,c23,c40",
    crop: Annotated[
        str,
        typer.Option(
            help="Of a plain folder: face, whole (the middle square), or auto: whole where every "
            "clip is square."
        ),
    ] = "auto",
    reader: Annotated[
        str,
        typer.Option(
            help="auto, built, pictures, voxceleb1, voxceleb1-fomm, adfes or folder; train/, val/, "
            "test/ and real/, fake/ within it are parts and labels."
        ),
    ] = "auto",
    identity_csv: Annotated[
        Path | None, typer.Option(help="CSV `file, identity` for a folder of clips.")
    ] = None,
    identity_regex: Annotated[
        str | None, typer.Option(help="Regex over the path; its group is the identity.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Decode clips once, into uint8 frames that training reads; exit 3 if too many are unusable."""
    from dfm_engine.machine import read_cores
    from dfm_engine.store.fill import PrepareOptions, choose_sampler, run_prepare

    options = PrepareOptions(
        data=data,
        out=out,
        frames=frames,
        size_px=size,
        layout=layout,  # pyright: ignore[reportArgumentType]
        crop=crop,  # pyright: ignore[reportArgumentType]
        qualities=tuple(word.strip() for word in quality.split(",") if word.strip()),  # pyright: ignore[reportArgumentType]
        reader=reader,
        identity_csv=identity_csv,
        identity_regex=identity_regex,
        device=device,
    )
    workers = max(1, int(read_cores()))
    with draining_signals() as stop:
        sampler = choose_sampler(
            decode, size_px=size, layout=options.layout, workers=workers, device=device
        )
        summary = run_prepare(options, sampler=sampler, workers=workers, stop=stop, say=say)
    summary.print()
    finish(summary.to_json(), as_json, summary.exit_code)
