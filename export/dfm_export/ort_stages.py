"""An ONNX graph on a CPU with its grid sampling done by torch.

ONNX Runtime's GridSample computes each address anew for every channel, one pixel at a time: a fifth
of a frame of the demo weights (one EPYC core, ONNX Runtime 1.31). torch's does a row of pixels at
once. So the graph is cut at each GridSample; the parts in between are ONNX Runtime's, and what runs
is what the file says.

    stage 0 ─► GridSample ─► stage 1 ─► GridSample ─► stage 2
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["StagedGraph"]

OpenSession = Callable[[bytes], Any]


@dataclass(frozen=True, slots=True)
class _Sample:
    """A GridSample: names of its tensors, and how it samples."""

    image: str
    grid: str
    output: str
    align_corners: bool


@dataclass(frozen=True, slots=True)
class _Stage:
    """A part that one session runs, and the samples that are taken after it."""

    session: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    samples: tuple[_Sample, ...]


class StagedGraph:
    """Runs a file in stages.

    Attributes:
        inputs: names, in the order of the file.
        outputs: likewise.
        samples: how many GridSample it has; all bilinear with zeros outside, as `onnx_checks`
            makes sure of exported files.

    Args:
        path: of the ONNX file.
        open_session: opens a part.
    """

    def __init__(self, path: Path, open_session: OpenSession) -> None:
        import onnx

        cut = _Cut(onnx.load(path))
        self.inputs = tuple(value.name for value in cut.graph.input)
        self.outputs = tuple(value.name for value in cut.graph.output)
        self.samples = sum(map(len, cut.samples.values()))
        self._stages = tuple(cut.stage(number, open_session) for number in cut.numbers)

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs, by name."""
        known = dict(feeds)
        for stage in self._stages:
            if stage.session is not None:
                arrays = {name: known[name].numpy() for name in stage.inputs}
                made = stage.session.run(list(stage.outputs), arrays)
                known.update(zip(stage.outputs, map(torch.from_numpy, made), strict=True))
            for sample in stage.samples:
                known[sample.output] = F.grid_sample(
                    known[sample.image],
                    known[sample.grid],
                    mode="bilinear",
                    padding_mode="zeros",
                    align_corners=sample.align_corners,
                )
        return {name: known[name] for name in self.outputs}


class _Cut:
    """A model cut at its samples: a node's stage is the number of them that it waits for."""

    def __init__(self, model: Any) -> None:
        self.model, self.graph = model, model.graph
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.constants: list[Any] = []  # computed from weights alone, such as dequantised ones
        self.nodes: dict[int, list[Any]] = {}
        self.samples: dict[int, list[_Sample]] = {}
        self._kinds = _kinds(model)
        self._fixed = set(self.weights)
        kept = {value.name for value in model.graph.output}  # and what torch samples: computed
        kept |= {n for node in model.graph.node if node.op_type == "GridSample" for n in node.input}
        for node in model.graph.node:
            is_fixed = all(name in self._fixed for name in node.input if name)
            if is_fixed and not kept & set(node.output):
                self.constants.append(node)
                self._fixed.update(node.output)
        stages = dict.fromkeys((*(value.name for value in model.graph.input), *self._fixed), 0)
        for node in model.graph.node:
            if node.output[0] in self._fixed:
                continue
            stage = max((stages[name] for name in node.input if name), default=0)
            if node.op_type == "GridSample":
                aligned = any(item.name == "align_corners" and item.i for item in node.attribute)
                sample = _Sample(node.input[0], node.input[1], node.output[0], aligned)
                self.samples.setdefault(stage, []).append(sample)
                stage += 1
            else:
                self.nodes.setdefault(stage, []).append(node)
            stages.update(dict.fromkeys(node.output, stage))

    @property
    def numbers(self) -> range:
        """Of the stages."""
        return range(max((*self.nodes, *self.samples)) + 1)

    def stage(self, number: int, open_session: OpenSession) -> _Stage:
        """One part as a model of its own; weights, and what is made of them alone, where used."""
        from onnx import helper

        own = self.nodes.get(number, [])
        made = [name for node in own for name in node.output if name]
        used = {name for node in own for name in node.input if name}
        inputs = tuple(sorted(used - set(made) - self._fixed))
        wanted = self._wanted_after(number)
        outputs = tuple(name for name in made if name in wanted)
        samples = tuple(self.samples.get(number, ()))
        if not outputs:
            return _Stage(None, (), (), samples)
        constants: list[Any] = []
        for node in reversed(self.constants):
            if used & set(node.output):
                constants.insert(0, node)
                used.update(node.input)
        part = helper.make_graph(
            [*constants, *own],
            f"{self.graph.name}-{number}",
            [self._kinds[name] for name in inputs],
            [self._kinds[name] for name in outputs],
            [tensor for name, tensor in self.weights.items() if name in used],
        )
        model = helper.make_model(
            part, opset_imports=self.model.opset_import, ir_version=self.model.ir_version
        )
        return _Stage(open_session(model.SerializeToString()), inputs, outputs, samples)

    def _wanted_after(self, number: int) -> set[str]:
        """What samples and later stages take, and what the graph gives."""
        wanted = {value.name for value in self.graph.output}
        for later, nodes in self.nodes.items():
            if later > number:
                wanted |= {name for node in nodes for name in node.input}
        for later, samples in self.samples.items():
            if later >= number:
                wanted |= {name for sample in samples for name in (sample.image, sample.grid)}
        return wanted


def _kinds(model: Any) -> dict[str, Any]:
    """Name -> type and rank of every tensor; sides that a call decides are left open."""
    import onnx
    from onnx import helper

    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found: dict[str, Any] = {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        sides = [s.dim_value if s.HasField("dim_value") else None for s in tensor.shape.dim]
        found[value.name] = helper.make_tensor_value_info(value.name, tensor.elem_type, sides)
    return found
