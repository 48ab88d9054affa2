"""FOMM's checkpoint files: read without executing code, checked by entry, written atomically.

Two forms hold the same entries. The published one (`vox-cpk.pth.tar`; no tar despite its name) is
a `torch.save` of one mapping: `generator`, `kp_detector`, and for training `discriminator`,
`optimizer_*` and `epoch`. The other is safetensors with keys `generator.<entry>` and so on, and
the architecture in its metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dfm_engine.errors import UsageError, WeightsError
from dfm_engine.fomm.blocks import AntiAlias, antialias_kernel
from dfm_engine.weight_files import (
    first_line,
    hash_and_head,
    is_safetensors,
    load_pickled,
    some,
)

METADATA_KEY = "dfm_engine"  # one key, so that equal weights are equal bytes
_NETWORKS = ("generator", "kp_detector", "discriminator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint file's content, on the CPU, nothing of it checked against an architecture.

    Attributes:
        path: the file.
        sha256: of its bytes, hex.
        networks: network name -> entry -> tensor, without the `module.` prefixes of forks.
        others: everything else, such as `epoch` and `optimizer_generator`.
        config: the architecture that a safetensors file carries, in the YAML's structure.
    """

    path: Path
    sha256: str
    networks: dict[str, dict[str, Tensor]]
    others: dict[str, Any]
    config: dict[str, Any] | None = None

    def __repr__(self) -> str:
        counts = {name: len(entries) for name, entries in self.networks.items()}
        return f"Checkpoint({str(self.path)!r}, {counts}, others={sorted(self.others)})"


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint in either form; which one is seen from its first bytes.

    Raises:
        WeightsError: absent, not a checkpoint, damaged, or holding more than tensors and numbers.
    """
    path = Path(path)
    sha256, head = hash_and_head(
        path, what="FOMM weights", hint="give the checkpoint file, such as vox-cpk.pth.tar"
    )
    if is_safetensors(path, head):
        return _read_safetensors(path, sha256)
    content = load_pickled(path, head, what="FOMM weights")
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"FOMM weights {path}: holds a {type(content).__name__}, not the mapping with "
            "'generator' and 'kp_detector' that a checkpoint is"
        )
    networks = {
        name: _entries(content[name], f"FOMM weights {path}: {name}")
        for name in _NETWORKS
        if name in content
    }
    others = {str(name): value for name, value in content.items() if name not in networks}
    return Checkpoint(path=path, sha256=sha256, networks=networks, others=others)


def fill_network(module: nn.Module, entries: Mapping[str, Tensor], *, what: str) -> None:
    """Put a checkpoint's entries into a network as float32, all of them or none.

    Two kinds of entry may be absent: `num_batches_tracked` (older than torch 0.4.1), and the
    constant kernel of an anti-alias.

    Args:
        module: may be on the meta device; its tensors are replaced.
        entries: as `Checkpoint.networks` has them.
        what: for messages, such as "FOMM weights x.pth.tar: generator".

    Raises:
        WeightsError: entries absent, unknown, of another shape, or not finite.
    """
    wanted = module.state_dict()
    state = {
        name: value.to(torch.float32) if value.is_floating_point() else value
        for name, value in entries.items()
    }
    for name, value in _constants(module).items():
        state.setdefault(name, value)
    missing = sorted(wanted.keys() - state.keys())
    unexpected = sorted(state.keys() - wanted.keys())
    misshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    if missing or unexpected or misshaped:
        parts = [
            f"{len(names)} {kind} ({some(names)})"
            for kind, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("mis-shaped", misshaped),
            )
            if names
        ]
        raise WeightsError(
            f"{what}: does not fit the configured architecture: {'; '.join(parts)}. Give the "
            f"YAML that these weights were trained with as the configuration{_hint(state, wanted)}"
        )
    wrong = [
        name
        for name, value in wanted.items()
        if state[name].dtype != value.dtype or not torch.isfinite(state[name]).all()
    ]
    if wrong:
        raise WeightsError(
            f"{what}: {len(wrong)} entries hold NaN, infinity or another kind of number "
            f"({some(wrong)}); the file is damaged or its training diverged"
        )
    module.load_state_dict(
        {name: value.contiguous().clone() for name, value in state.items()}, assign=True
    )


def write_checkpoint(
    path: str | os.PathLike[str],
    networks: Mapping[str, nn.Module],
    *,
    config: Mapping[str, Any],
    others: Mapping[str, Any] | None = None,
    half: bool = False,
) -> Path:
    """Write a checkpoint: safetensors where the name ends so, else the published form.

    Equal weights give equal bytes. The file appears whole or not at all.

    Args:
        path: where to; its folder must exist.
        networks: name -> network, `generator` and `kp_detector` at least.
        config: the architecture in the YAML's structure, kept by safetensors only.
        others: further top-level entries of the published form (`epoch`, `optimizer_*`).
        half: store convolution weights as float16; norms and constants stay float32, whose
            running variances may not fit.

    Raises:
        UsageError: `others` for a safetensors file, which holds tensors alone.
    """
    path = Path(path)
    state = {
        name: {key: _stored(key, value, half) for key, value in module.state_dict().items()}
        for name, module in networks.items()
    }
    is_safetensors = path.suffix == ".safetensors"
    if is_safetensors and others:
        raise UsageError(f"{path}: safetensors cannot hold {sorted(others)}; use .pth.tar")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            if is_safetensors:
                flat = {
                    f"{name}.{key}": v for name, part in state.items() for key, v in part.items()
                }
                note = json.dumps({"fomm": config}, sort_keys=True)
                file.write(safetensors.torch.save(flat, metadata={METADATA_KEY: note}))
            else:
                torch.save({**state, **(others or {})}, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def tensor_digest(networks: Mapping[str, nn.Module]) -> str:
    """SHA-256 over names, shapes and values: stands for weights that came from no file."""
    digest = hashlib.sha256()
    for name, module in sorted(networks.items()):
        for key, value in sorted(module.state_dict().items()):
            digest.update(f"{name}.{key}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_safetensors(path: Path, sha256: str) -> Checkpoint:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(metadata.get(METADATA_KEY, "{}")).get("fomm")
    except (safetensors.SafetensorError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"FOMM weights {path}: not a safetensors file ({first_line(error)}); fetch it again"
        ) from error
    networks: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Any] = {}
    for key, tensor in flat.items():
        network, _, entry = key.removeprefix("module.").partition(".")
        if network in _NETWORKS:
            networks.setdefault(network, {})[entry] = tensor
        else:
            others[key] = tensor
    networks = {
        name: _entries(part, f"FOMM weights {path}: {name}") for name, part in networks.items()
    }
    return Checkpoint(path=path, sha256=sha256, networks=networks, others=others, config=config)


def _entries(part: Any, what: str) -> dict[str, Tensor]:
    if not isinstance(part, Mapping) or not all(isinstance(v, Tensor) for v in part.values()):
        raise WeightsError(f"{what}: is not a table of tensors; this is no FOMM checkpoint")
    entries = {}
    for name, tensor in part.items():
        while name.startswith("module."):  # written from inside a DataParallel
            name = name.removeprefix("module.")
        entries[name] = tensor
    return entries


def _constants(module: nn.Module) -> dict[str, Tensor]:
    constants: dict[str, Tensor] = {}
    for name, part in module.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            constants[f"{name}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
        elif isinstance(part, AntiAlias):
            kernel = antialias_kernel(part.scale).float()
            constants[f"{name}.weight"] = kernel.expand(part.weight.shape).clone()
    return constants


def _stored(key: str, value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu().contiguous()
    is_convolution = value.ndim == 4 and not key.endswith("down.weight")
    if half and is_convolution and float(value.abs().max()) < torch.finfo(torch.float16).max:
        return value.half()
    return value.clone()


def _hint(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What the shapes say about the architecture that the weights do have."""
    for key, name, offset in (("kp.weight", "num_kp", 0), ("mask.weight", "num_kp", -1)):
        for entry, tensor in state.items():
            is_head = entry.rsplit("dense_motion_network.", 1)[-1] == key
            if is_head and entry in wanted and len(tensor) != len(wanted[entry]):
                return f" (they have {name} {len(tensor) + offset})"
    return ""
