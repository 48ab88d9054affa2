"""Where a training runs, and what has to be said of that machine beside its numbers."""

from __future__ import annotations

import contextlib
import platform
from importlib import metadata
from pathlib import Path

import torch

from dfm_engine.errors import EnvironmentUnfit


def pick_device(name: str) -> torch.device:
    """The device to train on; "auto" is a GPU where there is one.

    Raises:
        EnvironmentUnfit: CUDA was asked for and torch sees none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise EnvironmentUnfit(
            f"training on {name}: torch {torch.__version__} sees no CUDA device; use --device cpu "
            "or run dfm-engine doctor"
        )
    return torch.device(name)


def machine(device: torch.device) -> dict[str, str]:
    """What the numbers were made on."""
    facts = {
        "device": device.type,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
    }
    with contextlib.suppress(metadata.PackageNotFoundError):  # run from a bare checkout
        facts["dfm_engine"] = metadata.version("dfm-engine")
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                facts["cpu"] = line.partition(":")[2].strip()
                break
    return facts
