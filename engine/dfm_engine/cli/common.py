"""What every command shares: the applications, the options that recur, how a command ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

app = typer.Typer(
    name="dfm-engine",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Build, train on and benchmark DeepFake MNIST+, a data set for detecting "
    "facial-animation deepfakes.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
dataset_app = typer.Typer(no_args_is_help=True, help="Look at a built data set.")
train_app = typer.Typer(no_args_is_help=True, help="Train a network.")
evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a trained network.")
bench_app = typer.Typer(help="Measure speed; without a verb every benchmark, into one folder.")
export_app = typer.Typer(no_args_is_help=True, help="Write networks as ONNX and engines.")

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, the last line.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Decode = Annotated[
    str,
    typer.Option(help="auto, pyav or dali: clips that NVDEC can decode go there, through DALI."),
]
Weights = Annotated[
    str,
    typer.Option(
        help="A FOMM checkpoint (.pth.tar, .safetensors); 'demo': the shipped one; "
        "'random': seeded noise, for trying things out."
    ),
]
FommYaml = Annotated[
    Path | None, typer.Option(help="The model's YAML in the published form; default vox-256.")
]


def say(text: str) -> None:
    """For people."""
    if text:
        sys.stderr.write(text.rstrip("\n") + "\n")
        sys.stderr.flush()


def finish(result: dict[str, Any], as_json: bool, code: int) -> NoReturn:
    """For programs, and the end."""
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
    raise typer.Exit(code)


def fail(message: str, code: int) -> NoReturn:
    """One line for people, and the end."""
    sys.stderr.write(f"dfm-engine: {message}\n")
    raise SystemExit(code)
