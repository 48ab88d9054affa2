"""Commands that write networks as ONNX files and TensorRT engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfm_engine.cli.common import FommYaml, Json, export_app, finish, say

if TYPE_CHECKING:
    from dfm_export.run_export import ExportSettings

To = Annotated[str, typer.Option("--to", help="onnx, tensorrt or tensorrt-rtx.")]
ProfileText = Annotated[str, typer.Option("--profile", help="Rows of an engine: min,opt,max.")]
Targets = Annotated[
    str, typer.Option("--target", help="Chips for tensorrt-rtx, such as sm86,sm89; default all.")
]
Out = Annotated[Path, typer.Option(help="The folder; an export that is there is replaced.")]


@export_app.command("fomm")
def export_fomm(
    out: Out,
    weights: Annotated[
        str,
        typer.Option(
            help="A FOMM checkpoint (.pth.tar, .safetensors); 'demo': the shipped one; "
            "'none': seeded noise, for measuring."
        ),
    ],
    fomm_config: FommYaml = None,
    to: To = "onnx",
    precision: Annotated[str, typer.Option(help="fp32, fp16_islands, int8 or int8_wide.")] = "fp32",
    profile: ProfileText = "1,8,32",
    target: Targets = "",
    align_corners: Annotated[
        bool,
        typer.Option(help="How features are sampled; see align_corners in the build recipe."),
    ] = True,
    split: Annotated[
        bool, typer.Option("--split", help="motion and render in place of animate.")
    ] = False,
    upsample: Annotated[
        str, typer.Option(help="subpixel (fewer products) or nearest; int8 plans choose.")
    ] = "subpixel",
    as_json: Json = False,
) -> None:
    """Write the graphs of a motion model; exit 5 where the precision costs too much."""
    from dfm_engine.errors import UsageError
    from dfm_export.run_export import run_export_fomm

    if upsample not in ("subpixel", "nearest"):
        raise UsageError(f"--upsample takes subpixel or nearest, found {upsample!r}")
    result = run_export_fomm(
        _settings(out, to, precision, profile, target),
        weights=weights,
        config=fomm_config,
        align_corners=align_corners,
        subpixel=upsample == "subpixel",
        split=split,
        say=say,
    )
    result.print()
    finish(result.to_json(), as_json, result.exit_code)


@export_app.command("detector")
def export_detector(
    out: Out,
    weights: Annotated[
        str,
        typer.Option(
            help="A RUN folder of train detector, or its file; with --model a file of published "
            "weights, 'cache' where the ecosystem keeps them, or 'none': seeded."
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="A detector or timm model; a RUN folder knows its own.")
    ] = None,
    to: To = "onnx",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "fp32",
    profile: ProfileText = "1,8,32",
    target: Targets = "",
    as_json: Json = False,
) -> None:
    """Write a detector, uint8 frames in, logits and map out; exit 5 as for export fomm."""
    from dfm_export.run_export import run_export_detector

    result = run_export_detector(
        _settings(out, to, precision, profile, target), weights=weights, model=model, say=say
    )
    result.print()
    finish(result.to_json(), as_json, result.exit_code)


def _settings(out: Path, to: str, precision: str, profile: str, target: str) -> ExportSettings:
    from dfm_export.run_export import ExportSettings

    targets = tuple(word.strip().lower() for word in target.split(",") if word.strip())
    return ExportSettings(to=to, precision=precision, profile=profile, targets=targets, out=out)
