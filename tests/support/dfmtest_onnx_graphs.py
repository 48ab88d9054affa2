"""Small ONNX files made node by node, right ones and ones with a single thing wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from dfm_export.specs import GraphSpec, TensorSpec

SIDE = 8
CHANNELS = 4
WARP = GraphSpec(
    "warp",
    (
        TensorSpec("image", "float32", ("batch", 3, SIDE, SIDE)),
        TensorSpec("grid", "float32", ("batch", SIDE, SIDE, 2)),
    ),
    (TensorSpec("mask", "float32", ("batch", CHANNELS, SIDE, SIDE)),),
)
"""A convolution, sampled by a grid, through a softmax: FOMM's dangers in three nodes."""


class Warp(nn.Module):
    """What the file computes, in torch."""

    def __init__(self, *, align_corners: bool = True, seed: int = 0) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.weight = nn.Parameter(torch.from_numpy(_weight(seed)), requires_grad=False)

    def forward(self, image: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        features = nn.functional.conv2d(image, self.weight, padding=1)
        moved = nn.functional.grid_sample(features, grid, align_corners=self.align_corners)
        return torch.softmax(moved, dim=1)


def write_warp(
    path: Path,
    *,
    half_conv: bool = False,
    half_grid: bool = False,
    mode: str = "bilinear",
    align_corners: bool = True,
    opset: int = 18,
    batch: str | int = "batch",
    input_name: str = "image",
    seed: int = 0,
) -> Path:
    """Write the graph of `WARP`.

    Args:
        path: of the file.
        half_conv: the convolution in float16, as a mixed plan has it.
        half_grid: the sampling in float16 too: a lost island.
        mode: of GridSample; opset 20 calls bilinear `linear`.
        align_corners: of GridSample.
        opset: of the file.
        batch: a name for a dynamic dimension, or a fixed number.
        input_name: of the image.
        seed: of the weights.
    """
    kind = np.float16 if half_conv else np.float32
    code = TensorProto.FLOAT16 if half_conv else TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", [input_name], ["image_c"], to=code),
        helper.make_node("Conv", ["image_c", "weight"], ["features_c"], pads=[1, 1, 1, 1]),
    ]
    if half_grid:
        nodes.append(helper.make_node("Cast", ["grid"], ["grid_s"], to=TensorProto.FLOAT16))
        features, grid = "features_c", "grid_s"
    else:
        nodes.append(helper.make_node("Cast", ["features_c"], ["features"], to=TensorProto.FLOAT))
        features, grid = "features", "grid"
    nodes += [
        helper.make_node(
            "GridSample",
            [features, grid],
            ["moved_s"],
            mode=mode,
            padding_mode="zeros",
            align_corners=int(align_corners),
        ),
        helper.make_node("Cast", ["moved_s"], ["moved"], to=TensorProto.FLOAT),
        helper.make_node("Softmax", ["moved"], ["mask"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "warp",
        [
            helper.make_tensor_value_info(input_name, TensorProto.FLOAT, [batch, 3, SIDE, SIDE]),
            helper.make_tensor_value_info("grid", TensorProto.FLOAT, [batch, SIDE, SIDE, 2]),
        ],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, [batch, CHANNELS, SIDE, SIDE])],
        [numpy_helper.from_array(_weight(seed).astype(kind), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, str(path))
    return path


def warp_feeds(rows: int, *, seed: int = 1) -> dict[str, torch.Tensor]:
    """Inputs for `WARP`; the grid leaves the picture here and there."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.rand(rows, 3, SIDE, SIDE, generator=generator),
        "grid": 2.4 * torch.rand(rows, SIDE, SIDE, 2, generator=generator) - 1.2,
    }


def _weight(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((CHANNELS, 3, 3, 3)).astype(np.float32)
