"""The published MTCNN weights, read from the installed `mtcnn` package without running any of it.

The package holds three lz4 frames of a pickle (joblib's format) and its own code needs
TensorFlow, so its folder is found without importing it. Each file's SHA-256 is checked first;
the pickle is then read by an unpickler that can rebuild NumPy arrays and nothing else. The
tensors are kept as safetensors in the user's cache folder, and trusted from there only if their
values have the hash written below.

In: nothing. Out: one state dict per network, named as the modules in `mtcnn.py`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import math
import os
import pickle
import struct
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import lz4.frame
import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from dfm_engine.errors import EnvironmentUnfit, WeightsError
from dfm_engine.machine import cache_folder

__all__ = ["NetName", "load_weights", "read_arrays"]

log = logging.getLogger(__name__)

NetName = str  # "pnet" | "rnet" | "onet"

FILE_SHA256 = {
    "pnet": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
    "rnet": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
    "onet": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
}
# Of the converted tensors' names, shapes and values; see `_fingerprint`.
TENSORS_SHA256 = "fc4400719b81a758e8f5c399244d263a7473ade5b29b69c5583483099a3baa7e"

# The order of the arrays in each file: layers with a kernel and a bias, and PReLU slopes.
_LAYOUT = {
    "pnet": "conv1 prelu1 conv2 prelu2 conv3 prelu3 box face",
    "rnet": "conv1 prelu1 conv2 prelu2 conv3 prelu3 dense prelu4 box face",
    "onet": "conv1 prelu1 conv2 prelu2 conv3 prelu3 conv4 prelu4 dense prelu5 box landmarks face",
}


def load_weights(*, cache: Path | None = None) -> dict[NetName, dict[str, Tensor]]:
    """The weights of the three networks, from the cache or from the package.

    Args:
        cache: folder to keep the safetensors file in; by default the user's cache folder. One
            that cannot be written is done without.

    Returns:
        {"pnet" | "rnet" | "onet": state dict of float32 tensors on the CPU}.

    Raises:
        EnvironmentUnfit: the `mtcnn` package is not installed.
        WeightsError: one of its files is not the published one.
    """
    file = (cache or cache_folder()) / f"mtcnn-{TENSORS_SHA256[:16]}.safetensors"
    flat = _from_cache(file)
    if flat is None:
        flat = _from_package()
        if _fingerprint(flat) != TENSORS_SHA256:
            raise WeightsError("MTCNN weights: the converted tensors are not the known ones")
        _keep(flat, file)
    nets: dict[NetName, dict[str, Tensor]] = {name: {} for name in FILE_SHA256}
    for key, tensor in flat.items():
        net, _, rest = key.partition(".")
        nets[net][rest] = tensor
    return nets


def read_arrays(content: bytes, sha256: str, name: str) -> list[NDArray[np.float32]]:
    """The arrays in one weight file.

    Args:
        content: the file, an lz4 frame around a pickled list of arrays.
        sha256: what the file must hash to; checked before anything is decoded.
        name: for messages.

    Raises:
        WeightsError: another hash, or anything but a list of float32 arrays inside.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise WeightsError(
            f"MTCNN weights {name}: SHA-256 is {found}, the published file has {sha256}; "
            "reinstall the package mtcnn"
        )
    return _unpickle(lz4.frame.decompress(content), name)


# What a pickle that is cut off or scrambled makes the unpickler raise.
_DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    struct.error,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
)


def _unpickle(content: bytes, name: str) -> list[NDArray[np.float32]]:
    try:
        arrays = _ArrayUnpickler(io.BytesIO(content)).load()
    except _DAMAGED as error:
        raise WeightsError(f"MTCNN weights {name}: does not unpickle ({error!r})") from error
    if not (isinstance(arrays, list) and all(isinstance(a, np.ndarray) for a in arrays)):
        raise WeightsError(f"MTCNN weights {name}: holds something else than a list of arrays")
    return arrays


class _Dtype:
    """Stands in for numpy.dtype while unpickling: little-endian float32 or nothing."""

    def __init__(self, code: str, *_flags: object) -> None:
        if code != "f4":
            raise WeightsError(f"MTCNN weights: dtype {code!r} where only float32 is expected")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] != "<":
            raise WeightsError(f"MTCNN weights: byte order {state[1]!r}, expected little-endian")


class _Array:
    """Stands in for joblib's header of an array, whose raw bytes follow it in the stream."""

    shape: tuple[int, ...]
    order: str
    dtype: _Dtype
    numpy_array_alignment_bytes: int | None = None

    def read(self, stream: io.BytesIO) -> NDArray[np.float32]:
        if not isinstance(self.dtype, _Dtype) or self.order not in ("C", "F"):
            raise WeightsError("MTCNN weights: an array header without float32 and an order")
        if self.numpy_array_alignment_bytes is not None:
            stream.read(stream.read(1)[0])  # one byte says how much padding follows
        size = 4 * math.prod(self.shape)
        raw = stream.read(size)
        if len(raw) != size:
            raise WeightsError(f"MTCNN weights: an array of {size} bytes has only {len(raw)}")
        return np.frombuffer(raw, dtype="<f4").reshape(self.shape, order=self.order)


# The C unpickler reads ahead, so that the raw bytes between opcodes would be lost to it; the
# Python one, which type checkers do not know, reads exactly what it parses.
_PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class _ArrayUnpickler(_PythonUnpickler):
    """An unpickler whose every global is one of the stand-ins above."""

    GLOBALS: ClassVar[dict[tuple[str, str], type]] = {
        ("joblib.numpy_pickle", "NumpyArrayWrapper"): _Array,
        ("numpy", "ndarray"): _Array,  # named as the class to rebuild; never called
        ("numpy", "dtype"): _Dtype,
    }
    dispatch: ClassVar[dict[int, Any]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self._stream = stream

    def find_class(self, module: str, name: str) -> type:
        try:
            return self.GLOBALS[module, name]
        except KeyError:
            raise WeightsError(
                f"MTCNN weights: the file asks for {module}.{name}; only arrays are rebuilt"
            ) from None

    def persistent_load(self, pid: object) -> object:
        raise WeightsError(f"MTCNN weights: the file asks for the external object {pid!r}")

    def get_extension(self, code: int) -> None:
        raise WeightsError(f"MTCNN weights: the file asks for the extension {code}")

    def load_build(self) -> None:
        """Read an array's bytes as soon as its header is complete."""
        super().load_build()
        if isinstance(self.stack[-1], _Array):
            self.stack[-1] = self.stack[-1].read(self._stream)

    dispatch[pickle.BUILD[0]] = load_build


def _from_package() -> dict[str, Tensor]:
    spec = importlib.util.find_spec("mtcnn")  # finds the folder; runs nothing of it
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentUnfit(
            "the face detector's weights come with the package mtcnn, which is not installed; "
            "pip install --no-deps 'mtcnn>=1.0,<2'"
        )
    folder = Path(spec.submodule_search_locations[0]) / "assets" / "weights"
    flat: dict[str, Tensor] = {}
    for net, sha256 in FILE_SHA256.items():
        path = folder / f"{net}.lz4"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise WeightsError(f"reading {path}: {error.strerror}; reinstall mtcnn") from error
        arrays = iter(read_arrays(content, sha256, path.name))
        for layer in _LAYOUT[net].split():
            flat[f"{net}.{layer}.weight"] = _to_torch(next(arrays))
            if not layer.startswith("prelu"):
                flat[f"{net}.{layer}.bias"] = _to_torch(next(arrays))
    return flat


def _to_torch(array: NDArray[np.float32]) -> Tensor:
    """Keras' layout to torch's: HWIO to OIHW, (in, out) to (out, in), shared slopes to (C,)."""
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    elif array.ndim == 3:
        array = array.reshape(-1)
    elif array.ndim == 2:
        array = array.T
    return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))


def _fingerprint(flat: dict[str, Tensor]) -> str:
    """SHA-256 over the sorted names, shapes and little-endian values."""
    digest = hashlib.sha256()
    for key in sorted(flat):
        digest.update(f"{key} {tuple(flat[key].shape)} {flat[key].dtype}\n".encode())
        digest.update(flat[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _from_cache(file: Path) -> dict[str, Tensor] | None:
    try:
        flat = safetensors.torch.load(file.read_bytes())
    except OSError:
        return None
    except SafetensorError as error:
        log.warning("ignoring the damaged cache %s: %s", file, error)
        return None
    if _fingerprint(flat) != TENSORS_SHA256:
        log.warning("ignoring the cache %s: its tensors are not the known ones", file)
        return None
    return flat


def _keep(flat: dict[str, Tensor], file: Path) -> None:
    """Write the cache file whole or not at all; a folder that cannot be written is no error."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(safetensors.torch.save(flat))
            os.replace(name, file)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        log.debug("not keeping the weights in %s: %s", file, error)
