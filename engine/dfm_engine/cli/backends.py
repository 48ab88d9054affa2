"""What runs the networks: the options that several commands share, and the cache of engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfm_engine.cli.common import Json, app, finish, say

if TYPE_CHECKING:
    from dfm_engine.backends import Runner
    from dfm_engine.detect.detector import ForgeryDetector
    from dfm_engine.detect.runner import DetectorRunner
    from dfm_engine.fomm.model import Fomm
    from dfm_engine.machinery import OpenRunner

Backend = Annotated[
    str,
    typer.Option(
        help="torch, onnxruntime, openvino, tensorrt, tensorrt-rtx, or auto: the best one that "
        "is here. All but torch export the network once, into the user's cache."
    ),
]
Exported = Annotated[
    Path | None,
    typer.Option(help="A folder of `dfm-engine export`, in place of an export on the way."),
]


Precision = Annotated[
    str,
    typer.Option(
        help="Of the generator: fp32 (the reference); fp16_islands, for GPUs; int8 or int8_wide, "
        "by onnxruntime or openvino. All but fp32 pass a gate first: 45 dB in the worst frame."
    ),
]


def runner_opener(backend: str, exported: Path | None, precision: str = "fp32") -> OpenRunner:
    """For `load_machinery`: what opens the animation model's runner."""

    def open_runner(model: Fomm, device: str, batch_size: int) -> Runner | None:
        if (backend, precision, exported) == ("torch", "fp32", None):
            return None
        from dfm_export.provide import provide_fomm

        return provide_fomm(
            model,
            backend=backend,
            device=device,
            batch_size=batch_size,
            precision=precision,
            exported=exported,
            say=say,
        )

    return open_runner


def open_detector(
    detector: ForgeryDetector, *, backend: str, device: str, exported: Path | None
) -> DetectorRunner:
    """A detector's runner."""
    if backend == "torch" and exported is None:
        from dfm_engine.detect.runner import TorchDetectorRunner

        return TorchDetectorRunner(detector, device)
    from dfm_export.provide import provide_detector

    return provide_detector(detector, backend=backend, device=device, exported=exported, say=say)


@app.command("cache")
def show_cache(as_json: Json = False) -> None:
    """List the TensorRT engines that were kept, with their sizes."""
    from dfm_export.cache import EngineCache

    report = EngineCache().report()
    for line in report.lines():
        say(line)
    finish(report.to_json(), as_json, report.exit_code)
