"""Networks as `bench export` measures them: what each graph is called with, and how wrong it is."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from dfm_engine.backends import Runner, TorchRunner
from dfm_engine.detect.detector import ForgeryDetector
from dfm_engine.detect.runner import DetectorRunner, TorchDetectorRunner
from dfm_engine.fomm.model import Fomm
from dfm_engine.fomm.values import Keypoints, SourceFeatures
from dfm_export.artifact import Artifact
from dfm_export.cases import DetectorCases, FommCases, Tensors
from dfm_export.fomm_runner import FommGraphsRunner
from dfm_export.graphs import fomm_graphs
from dfm_export.models import Opening, open_detector_runner, open_fomm_runner
from dfm_export.parity import Call, measure_detector, measure_fomm
from dfm_export.precision import Kind, plan_of
from dfm_export.provide import ExportCache
from dfm_export.runners import CompiledTorchGraph

__all__ = ["DetectorNetwork", "FommNetwork", "Network", "Said"]

Said = Callable[[str], None]


class Network(Protocol):
    """A network that is measured.

    Attributes:
        name: of its rows: `fomm` or a detector's.
        kind: of the plans that it takes.
        graphs: that it is exported as.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def graphs(self) -> tuple[str, ...]: ...

    def torch_calls(self) -> Mapping[str, Call]:
        """What `--backend torch` runs."""
        ...

    def compiled_calls(self, stack: contextlib.ExitStack) -> Mapping[str, Call]:
        """The exported modules through torch.compile and CUDA graphs; may be none."""
        ...

    def export(self, exports: ExportCache, precision: str, say: Said) -> Artifact:
        """From the cache, or made."""
        ...

    def open(
        self, artifact: Artifact, opening: Opening, stack: contextlib.ExitStack
    ) -> Mapping[str, Call]:
        """The calls of an export by one backend."""
        ...

    def errors(self, calls: Mapping[str, Call]) -> dict[str, float]:
        """On the fixed set, as `parity` measures them."""
        ...

    def feeds(self, graph: str, batch: int, turn: int) -> Tensors:
        """Inputs of a call on the device; each turn has other rows."""
        ...


class FommNetwork:
    """A FOMM by its three graphs; it stays as it is."""

    name = "fomm"
    kind: Kind = "fomm"
    graphs = ("keypoints", "source", "animate")

    def __init__(self, fomm: Fomm, device: str) -> None:
        self.fomm = fomm
        self.cases = FommCases(fomm, sources=1)
        self.device = torch.device(device)

    def torch_calls(self) -> Mapping[str, Call]:
        """What `--backend torch` runs."""
        return _fomm_calls(TorchRunner(copy.deepcopy(self.fomm), self.device))

    def compiled_calls(self, stack: contextlib.ExitStack) -> Mapping[str, Call]:
        """The exported modules through torch.compile and CUDA graphs."""
        graphs = fomm_graphs(self.fomm, plan_of("fomm", "fp32"))
        runner = FommGraphsRunner(
            {n: CompiledTorchGraph(g, g.spec, device=self.device) for n, g in graphs.items()},
            weights_sha256=self.fomm.weights_sha256,
        )
        stack.callback(runner.close)
        return _fomm_calls(runner)

    def export(self, exports: ExportCache, precision: str, say: Said) -> Artifact:
        """From the cache, or made."""
        return exports.fomm(self.fomm, plan_of("fomm", precision), say=say)

    def open(
        self, artifact: Artifact, opening: Opening, stack: contextlib.ExitStack
    ) -> Mapping[str, Call]:
        """The calls of an export by one backend."""
        runner = open_fomm_runner(artifact, opening)
        stack.callback(runner.close)
        return _fomm_calls(runner)

    def errors(self, calls: Mapping[str, Call]) -> dict[str, float]:
        """On the fixed set."""
        return measure_fomm(calls, self.cases)

    def feeds(self, graph: str, batch: int, turn: int) -> Tensors:
        """Inputs of a call on the device; each turn has other rows."""
        found = self.cases.tensors()
        if graph != "animate":
            return {"images": self._rows(found["images"], batch, turn)}
        names = ("encoded", "small", "source_value", "source_jacobian")
        feeds = {n: found[n].to(self.device) for n in names if n in found}
        for name in ("driving_value", "driving_jacobian"):
            if name in found:
                feeds[name] = self._rows(found[name], batch, turn)
        return feeds

    def _rows(self, tensor: Tensor, batch: int, turn: int) -> Tensor:
        rows = [(turn + row) % len(tensor) for row in range(batch)]
        return tensor[rows].contiguous().to(self.device)


class DetectorNetwork:
    """A detector by its one graph; it stays as it is."""

    kind: Kind = "detector"
    graphs = ("detector",)

    def __init__(self, detector: ForgeryDetector, device: str, *, frames: int) -> None:
        self.name = detector.spec.name
        self.detector = detector
        self.cases = DetectorCases(detector, count=frames)
        self.device = torch.device(device)

    def torch_calls(self) -> Mapping[str, Call]:
        """What `--backend torch` runs."""
        return _detector_calls(TorchDetectorRunner(copy.deepcopy(self.detector), self.device))

    def compiled_calls(self, stack: contextlib.ExitStack) -> Mapping[str, Call]:
        """None: training and evaluation have torch.compile of their own."""
        return {}

    def export(self, exports: ExportCache, precision: str, say: Said) -> Artifact:
        """From the cache, or made."""
        return exports.detector(self.detector, plan_of("detector", precision), say=say)

    def open(
        self, artifact: Artifact, opening: Opening, stack: contextlib.ExitStack
    ) -> Mapping[str, Call]:
        """The calls of an export by one backend."""
        runner = open_detector_runner(artifact, opening)
        stack.callback(runner.close)
        return _detector_calls(runner)

    def errors(self, calls: Mapping[str, Call]) -> dict[str, float]:
        """On the fixed set."""
        return measure_detector(calls["detector"], self.cases)

    def feeds(self, graph: str, batch: int, turn: int) -> Tensors:
        """Inputs of a call on the device; each turn has other rows."""
        frames = self.cases.frames
        rows = [(turn + row) % len(frames) for row in range(batch)]
        return {"frames": frames[rows].contiguous().to(self.device)}


def _fomm_calls(runner: Runner) -> dict[str, Call]:
    def keypoints(feeds: Tensors) -> dict[str, Tensor]:
        found = runner.keypoints(_on(runner, feeds["images"]))
        return _named(value=found.value, jacobian=found.jacobian)

    def source(feeds: Tensors) -> dict[str, Tensor]:
        found = runner.source(_on(runner, feeds["images"]))
        return _named(encoded=found.encoded, small=found.small)

    def animate(feeds: Tensors) -> dict[str, Tensor]:
        given = {name: _on(runner, tensor) for name, tensor in feeds.items()}
        found = runner.animate(
            SourceFeatures(given["encoded"], given["small"]),
            Keypoints(given["source_value"], given.get("source_jacobian")),
            Keypoints(given["driving_value"], given.get("driving_jacobian")),
        )
        return {"prediction": found}

    return {"keypoints": keypoints, "source": source, "animate": animate}


def _detector_calls(runner: DetectorRunner) -> dict[str, Call]:
    def detector(feeds: Tensors) -> dict[str, Tensor]:
        found = runner.run(feeds["frames"])
        return {"logits": found.logits, "cam": found.cam}

    return {"detector": detector}


def _on(runner: Runner, tensor: Tensor) -> Tensor:
    return tensor.to(runner.device)


def _named(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}
