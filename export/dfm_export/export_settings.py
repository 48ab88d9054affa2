"""What an export is asked for on the command line, and what it answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfm_engine.errors import UsageError
from dfm_export.artifact import FILE_NAME, Artifact
from dfm_export.engines import EnginesResult
from dfm_export.precision import Kind, Plan, plan_of
from dfm_export.to_tensorrt import Profile

__all__ = ["ExportResult", "ExportSettings"]

TARGETS = ("onnx", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """What the command line says beyond the network.

    Attributes:
        to: onnx, tensorrt or tensorrt-rtx.
        precision: a plan; None: fp32.
        profile: rows of an engine, `min,opt,max`.
        targets: chips to build engines for, such as `sm89`.
        out: the folder.
    """

    to: str = "onnx"
    precision: str | None = None
    profile: str = Profile().text
    targets: tuple[str, ...] = ()
    out: Path

    def __post_init__(self) -> None:
        if self.to not in TARGETS:
            raise UsageError(f"--to takes {', '.join(TARGETS)}, found {self.to!r}")
        if self.targets and self.to != "tensorrt-rtx":
            raise UsageError(
                f"--target {','.join(self.targets)}: --to {self.to} does not build for chips that "
                "are elsewhere; --to tensorrt-rtx does"
            )
        Profile.parse(self.profile)

    def plan(self, kind: Kind) -> Plan:
        """The plan of precision."""
        return plan_of(kind, self.precision or "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What was exported.

    Attributes:
        artifact: the folder.
        engines: built of it; None where none were asked for.
        seconds: it all took.
    """

    artifact: Artifact
    engines: EnginesResult | None
    seconds: float
    exit_code: int = field(default=0, init=False)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "schema_version": 1,
            "out": os.fspath(self.artifact.path),
            "seconds": round(self.seconds, 2),
            **self.artifact.to_json(),
            "engines": None if self.engines is None else self.engines.to_json(),
        }

    def print(self) -> None:
        """For people, on stderr."""
        artifact = self.artifact
        for graph in artifact.graphs.values():
            census = ", ".join(f"{count} {dtype}" for dtype, count in graph.census.items())
            sys.stderr.write(f"{graph.path}: {graph.size_bytes / 1e6:.1f} MB, tensors: {census}\n")
        for where in ("torch", "onnxruntime"):
            errors = artifact.gates.get(where)
            if isinstance(errors, Mapping):
                sys.stderr.write(f"{artifact.precision} in {where}: {_words(errors)}\n")
            elif errors:
                sys.stderr.write(f"{artifact.precision} in {where}: {errors}\n")
        if self.engines is not None:
            self.engines.print()
        sys.stderr.write(f"{artifact.path / FILE_NAME}, {self.seconds:.0f} s\n")


def _words(errors: Mapping[str, float]) -> str:
    named = {
        "keypoints_px": "keypoints {:.2g} px",
        "animate_db": "worst frame {:.1f} dB",
        "flips": "{:.2%} of decisions flip",
        "max_dp": "probabilities within {:.2g}",
    }
    found = [text.format(errors[name]) for name, text in named.items() if name in errors]
    largest = max(value for name, value in errors.items() if name.startswith("max_abs."))
    return ", ".join([*found, f"outputs within {largest:.2g}"])
