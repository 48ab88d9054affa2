"""Weight files of any network: what is wrong with one, and reading one without executing code."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfm_engine.errors import WeightsError

# What damaged pickles and zips raise in torch.load.
_DAMAGED = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    AssertionError,
)


def hash_and_head(path: Path, *, what: str, hint: str) -> tuple[str, bytes]:
    """SHA-256 in hex and the first 512 bytes of a file.

    Args:
        path: the file.
        what: for messages, such as "FOMM weights".
        hint: what to give instead of a file that cannot be read.

    Raises:
        WeightsError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            return sha256, file.read(512)
    except OSError as error:
        raise WeightsError(f"reading {what} {os.fspath(path)}: {error.strerror}; {hint}") from error


def is_safetensors(path: Path, head: bytes) -> bool:
    """Whether the first bytes, or the name, say so."""
    return head[8:9] == b"{" or path.suffix == ".safetensors"


def load_pickled(path: Path, head: bytes, *, what: str, on_code: str = "") -> Any:
    """A `torch.save`d file's tensors, numbers and containers, on the CPU.

    Args:
        path: the file.
        head: its first bytes.
        what: for messages.
        on_code: what to do about a file that holds more than that.

    Raises:
        WeightsError: damaged, or it would execute code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        advice = f"; {on_code}" if on_code else ""
        raise WeightsError(
            f"{what} {path}: {what_instead(head) or first_line(error) + advice}"
        ) from error
    except _DAMAGED as error:
        raise WeightsError(
            f"{what} {path}: {what_instead(head) or f'damaged ({first_line(error)})'}; "
            "fetch the file again"
        ) from error


def what_instead(head: bytes) -> str | None:
    """What a file is that was saved in place of weights, seen from its first bytes."""
    text = head.lstrip()[:64].lower()
    if text.startswith((b"<!doctype", b"<html")):
        return "is a web page, saved in place of the download; fetch the file itself"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file; run git lfs pull"
    if not head:
        return "is empty; fetch the file again"
    return None


def tensor_digest(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values: stands for weights that came from no file."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """Of its message, 200 characters at most."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def some(names: list[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    rest = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
