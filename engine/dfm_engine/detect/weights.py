"""Fill a detector from a file: ours, torchvision's, timm's, Cadene's, FaceForensics++', Keras'.

Nothing in a file is executed. A head for another number of classes than two is left out, and the
detector keeps its seeded one; everything else must fit to the last entry.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from dfm_engine.detect.detector import DetectorSpec, ForgeryDetector
from dfm_engine.detect.keras_weights import HDF5_MAGIC, read_meso_h5
from dfm_engine.detect.meso import Meso
from dfm_engine.errors import UsageError, WeightsError
from dfm_engine.weight_files import first_line, hash_and_head, is_safetensors, load_pickled, some

METADATA_KEY = "dfm_engine"
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.(pth|pt|safetensors|h5)$")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "model.", "backbone.", "net.", "encoder.")
_ON_CODE = (
    "it holds a whole pickled module, which runs code when it is read, so we do not. Where you "
    "trust its origin, load it once in that project's own environment and save its tensors: "
    "torch.save(model.state_dict(), 'tensors.pth')"
)


def fill_from_file(detector: ForgeryDetector, path: Path) -> None:
    """Put a file's weights into a detector, all or none, and note the file's SHA-256.

    Raises:
        WeightsError: absent, damaged, executing code, of another architecture, or with another
            hash than its name says.
    """
    what = f"{detector.spec.name} weights"
    sha256, head = hash_and_head(
        path, what=what, hint="give a .pth, .safetensors or .h5 file, 'cache' or 'none'"
    )
    _check_hash(path, sha256, what)
    if head.startswith(HDF5_MAGIC):
        if not isinstance(detector, Meso):
            raise WeightsError(
                f"{what} {path}: is a Keras HDF5 file; those are read for mesoinception4 and "
                "meso4 only"
            )
        state = read_meso_h5(path, detector)
    elif is_safetensors(path, head):
        state, spec = _read_safetensors(path, what)
        if spec is not None and spec.name != detector.spec.name:
            raise WeightsError(f"{what} {path}: is a {spec.name}; name that model instead")
    else:
        content = load_pickled(path, head, what=what, on_code=_ON_CODE)
        state = _unwrap(content, f"{what} {path}")
    _fill(detector, detector.translate(state), f"{what} {path}")
    detector.weights_sha256 = sha256


def read_spec(path: Path) -> DetectorSpec | None:
    """The spec inside a safetensors file of ours; None in any other file.

    Raises:
        WeightsError: absent, or damaged.
    """
    _, head = hash_and_head(path, what="detector weights", hint="give a RUN folder or its file")
    if not is_safetensors(path, head):
        return None
    return _read_safetensors(path, "detector weights")[1]


def metadata_of(spec: DetectorSpec) -> dict[str, str]:
    """What our safetensors files carry; one key, so that equal weights are equal bytes."""
    return {METADATA_KEY: json.dumps({"detector": dataclasses.asdict(spec)}, sort_keys=True)}


def _check_hash(path: Path, sha256: str, what: str) -> None:
    match = _HASH_IN_NAME.search(path.name)
    if match and not sha256.startswith(match[1]):
        raise WeightsError(
            f"{what} {path}: its name says SHA-256 {match[1]}…, its content has {sha256[:16]}…; "
            "fetch it again, or, if the change is yours, give it a name without a hash"
        )


def _read_safetensors(path: Path, what: str) -> tuple[dict[str, Tensor], DetectorSpec | None]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        spec = _spec(note["detector"]) if "detector" in note else None
    except (
        safetensors.SafetensorError,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
    ) as error:
        raise WeightsError(
            f"{what} {path}: not a safetensors file ({first_line(error)}); fetch it again"
        ) from error
    return state, spec


def _spec(table: dict[str, Any]) -> DetectorSpec:
    mean, std = tuple(table.pop("mean")), tuple(table.pop("std"))
    return DetectorSpec(mean=mean, std=std, **table)


def _unwrap(content: Any, what: str) -> dict[str, Tensor]:
    """The table of tensors inside a checkpoint, without the prefixes that all its keys share."""
    while isinstance(content, Mapping) and not _is_table(content):
        inner = next((content[k] for k in _WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not (isinstance(content, Mapping) and content and _is_table(content)):
        raise WeightsError(
            f"{what}: holds a {type(content).__name__} without a table of tensors; a state dict "
            f"is needed, alone or under {', '.join(map(repr, _WRAPPERS))}"
        )
    state = {str(key): value for key, value in content.items()}
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _is_table(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(value, Tensor) for value in content.values())


def _fill(detector: nn.Module, state: dict[str, Tensor], what: str) -> None:
    wanted = detector.state_dict()
    state = {k: v.to(wanted[k].dtype) if k in wanted else v for k, v in state.items()}
    for key, value in wanted.items():
        if key.endswith("num_batches_tracked"):  # older files have none
            state.setdefault(key, torch.zeros_like(value))
    missing = sorted(wanted.keys() - state.keys())
    unexpected = sorted(state.keys() - wanted.keys())
    misshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    if missing or unexpected or misshaped:
        kinds = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
        parts = [f"{len(names)} {kind} ({some(names)})" for kind, names in kinds if names]
        raise WeightsError(f"{what}: belongs to another architecture: {'; '.join(parts)}")
    broken = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise WeightsError(
            f"{what}: {len(broken)} entries hold NaN or infinity ({some(broken)}); the file is "
            "damaged or its training diverged"
        )
    detector.load_state_dict(state)


def require_spec(spec: DetectorSpec | None, path: Path) -> DetectorSpec:
    """The spec, or an error that says how to load a file without one."""
    if spec is None:
        raise UsageError(
            f"{path} does not say which detector it is: give a RUN folder of `train detector`, its "
            "detector.safetensors, or name the model with create_detector(name, weights=path)"
        )
    return spec
