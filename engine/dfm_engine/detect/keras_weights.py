"""The published MesoNet weights: Keras 2 HDF5 files, read with h5py alone.

Datasets lie at `layer/layer/kernel:0` (a layer's group, then its weights' own names), below
`model_weights` where a whole model was saved. Layers are numbered in the order they were made:
of an inception module branch 1, then branches 2 to 4 with the 1x1 first.

What has to be turned round: convolution kernels are HWIO; the first dense layer's rows run over
(H, W, C) of the last map and ours over (C, H, W); and the output is the probability of *real*,
so that the last layer changes its sign (1 - sigmoid(z) = sigmoid(-z)).
"""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dfm_engine.detect.meso import Meso
from dfm_engine.errors import WeightsError
from dfm_engine.weight_files import first_line

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
MOST_VALUES = 1_000_000
"""In a dataset; the largest real one has 16,384. A file may declare any size."""

_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}

Layer = dict[str, NDArray[np.float32]]


def read_meso_h5(path: Path, detector: Meso) -> dict[str, Tensor]:
    """The state dict of a Meso from its published file.

    Args:
        path: such as `MesoInception_DF.h5`.
        detector: which of the two it is to fit.

    Raises:
        WeightsError: not HDF5, or of another architecture.
    """
    what = f"{detector.spec.name} weights {path}"
    layers = _layers(path, what)
    state: dict[str, Tensor] = {}
    for kind, modules in _modules(detector).items():
        found = [layers[name] for name in sorted(layers, key=_number) if _kind(name) == kind]
        if len(found) != len(modules):
            raise WeightsError(
                f"{what}: holds {len(found)} {kind} layers, {detector.spec.name} has "
                f"{len(modules)}; MesoInception files have 16 conv2d, Meso4 files 4"
            )
        for (name, module), layer in zip(modules, found, strict=True):
            state |= _entries(name, module, layer, detector, what)
    return state


def _layers(path: Path, what: str) -> dict[str, Layer]:
    layers: dict[str, Layer] = {}

    def visit(name: str, node: object) -> None:
        parts = name.split("/")
        if isinstance(node, h5py.Dataset) and len(parts) >= 2:
            entry = parts[-1].removesuffix(":0")
            if (node.size or 0) > MOST_VALUES or node.external:
                raise ValueError(f"{name} holds {node.size} values: no layer of a MesoNet")
            layers.setdefault(parts[-2], {})[entry] = np.asarray(node[()], dtype=np.float32)

    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            assert isinstance(root, h5py.Group)
            root.visititems(visit)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise WeightsError(
            f"{what}: not a readable HDF5 file ({first_line(error)}); fetch it again"
        ) from error
    return layers


def _modules(detector: Meso) -> dict[str, list[tuple[str, nn.Module]]]:
    """Our layers by Keras' name for their kind, in Keras' order."""
    kinds = {"conv2d": nn.Conv2d, "batch_normalization": nn.BatchNorm2d, "dense": nn.Linear}
    return {
        kind: [(n, m) for n, m in detector.named_modules() if isinstance(m, of)]
        for kind, of in kinds.items()
    }


def _entries(
    name: str, module: nn.Module, layer: Layer, detector: Meso, what: str
) -> dict[str, Tensor]:
    try:
        if isinstance(module, nn.BatchNorm2d):
            values = {ours: layer[theirs] for ours, theirs in _NORM.items()}
        else:
            values = {"weight": layer["kernel"], "bias": layer["bias"]}
    except KeyError as error:
        raise WeightsError(
            f"{what}: layer {name} has {sorted(layer)}, without {error}; the common PyTorch port "
            "drops biases and cannot be read"
        ) from error
    if isinstance(module, nn.Conv2d):
        values["weight"] = values["weight"].transpose(3, 2, 0, 1)  # HWIO -> OIHW
    elif isinstance(module, nn.Linear):
        rows, columns = values["weight"].shape
        if name.endswith("dense1") and rows == detector.width * detector.side**2:
            cube = values["weight"].reshape(detector.side, detector.side, detector.width, columns)
            values["weight"] = cube.transpose(2, 0, 1, 3).reshape(rows, columns)
        values["weight"] = values["weight"].T
        if name.endswith("dense2"):
            values = {key: -value for key, value in values.items()}  # 1 = real -> 1 = fake
    state = {
        f"{name}.{key}": torch.from_numpy(np.ascontiguousarray(value))
        for key, value in values.items()
    }
    if isinstance(module, nn.BatchNorm2d):
        state[f"{name}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    return state


def _kind(layer: str) -> str:
    return re.sub(r"_\d+$", "", layer)


def _number(layer: str) -> int:
    match = re.search(r"_(\d+)$", layer)
    return int(match[1]) if match else 0
