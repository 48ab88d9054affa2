"""The demonstration weights that ship with the package; their model card is beside them."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

from dfm_engine.errors import WeightsError

DEMO = "fomm-demo.safetensors"
DEMO_SHA256 = "52ea7de399628ea30523d3798c5dabe6c234a3c5cd8701b0f59a0680dc1c2fbf"
"""Of the file, checked before it is read."""


def demo_weights() -> Path:
    """Path of the shipped FOMM; it carries its own configuration.

    Raises:
        WeightsError: absent, or not the file that this version ships.
    """
    path = Path(str(resources.files(__name__).joinpath(DEMO)))
    if not path.is_file():
        raise WeightsError(f"the shipped weights {path} are absent; install the package again")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != DEMO_SHA256:
        raise WeightsError(
            f"the shipped weights {path} have SHA-256 {digest}, this version ships {DEMO_SHA256}; "
            "install the package again"
        )
    return path
