"""A detector through Torch-TensorRT: a second opinion where the ONNX parser is in doubt.

For evaluation only: `torch.compile` keeps no engine, and compiles anew in every process. It does
not pass through ONNX, so it has other bugs than the engines that are shipped. FOMM is not offered:
its sampling has gone wrong there (pytorch/TensorRT#4074).

Never run: no machine with a GPU that it supports has been at hand. `UNRUN` is said whenever it is
opened, and goes with the first GPU run that agrees with torch.
"""

from __future__ import annotations

import importlib

import torch
from torch import nn

from dfm_engine.errors import EnvironmentUnfit
from dfm_export.runners import MAX_TORCH_BATCH, TorchGraph
from dfm_export.specs import GraphSpec

__all__ = ["UNRUN", "TorchTensorRtGraph"]

UNRUN = (
    "torch-tensorrt: written from its documentation and never run on a GPU; hold its numbers "
    "against --backend torch"
)


class TorchTensorRtGraph(TorchGraph):
    """A module compiled by Torch-TensorRT, anew for every number of rows.

    Args:
        module: see `TorchGraph`; its types are the precision.
        spec: likewise.
        device: CUDA.
        precision: the plan's name.
        max_batch: rows at once.

    Raises:
        EnvironmentUnfit: no GPU, or the package does not load.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: GraphSpec,
        *,
        device: torch.device | str = "cuda",
        precision: str = "fp32",
        max_batch: int = MAX_TORCH_BATCH,
    ) -> None:
        if torch.device(device).type != "cuda" or not torch.cuda.is_available():
            raise EnvironmentUnfit(
                f"--backend torch-tensorrt needs an NVIDIA GPU, asked for {device}; "
                "--backend onnxruntime runs everywhere"
            )
        try:
            importlib.import_module("torch_tensorrt")  # registers the backend of torch.compile
        except (ImportError, OSError, RuntimeError) as error:
            raise EnvironmentUnfit(
                f"Torch-TensorRT does not load ({error}); pip install "
                "'dfm-engine[torch-tensorrt]', in the version made for this torch"
            ) from error
        super().__init__(
            module,
            spec,
            device=device,
            precision=precision,
            max_batch=max_batch,
            backend="torch-tensorrt",
        )
        self._call = torch.compile(
            self.module,
            backend="tensorrt",
            dynamic=False,
            options={"use_explicit_typing": True, "disable_tf32": True},
        )
