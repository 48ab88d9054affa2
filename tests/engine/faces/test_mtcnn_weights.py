"""Weight files are checked before they are decoded, and decode to arrays or an error."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import pickle
import stat
import sys
from pathlib import Path

import lz4.frame
import numpy as np
import pytest
import torch

from dfm_engine.errors import EnvironmentUnfit, WeightsError
from dfm_engine.faces import mtcnn_weights
from dfm_engine.faces.mtcnn_weights import load_weights, read_arrays


class NumpyArrayWrapper:
    """A header as joblib writes it; the array's bytes follow it in the stream."""

    def __init__(self, array: np.ndarray, padding: int | None = 16) -> None:
        self.subclass = np.ndarray
        self.shape, self.dtype = array.shape, array.dtype
        self.order, self.allow_mmap = "C", True
        self.numpy_array_alignment_bytes = padding


class ArrayPickler(pickle._Pickler):
    """Writes arrays as joblib does."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=4)
        self.stream = stream

    def save(self, item: object, save_persistent_id: bool = True) -> None:
        if not isinstance(item, np.ndarray):
            return super().save(item)
        super().save(NumpyArrayWrapper(item))
        self.framer.commit_frame(force=True)
        self.stream.write(b"\x03\xff\xff\xff" + item.tobytes())


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch):
    """Turns an object into file bytes and their hash."""

    def pack(item: object) -> tuple[bytes, str]:
        monkeypatch.setattr(NumpyArrayWrapper, "__module__", "joblib.numpy_pickle")
        module = type(sys)("joblib.numpy_pickle")
        module.NumpyArrayWrapper = NumpyArrayWrapper
        monkeypatch.setitem(sys.modules, "joblib", type(sys)("joblib"))
        monkeypatch.setitem(sys.modules, "joblib.numpy_pickle", module)
        stream = io.BytesIO()
        ArrayPickler(stream).dump(item)
        content = lz4.frame.compress(stream.getvalue())
        return content, hashlib.sha256(content).hexdigest()

    return pack


def test_arrays_come_back(packed) -> None:
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.float32([[[1.5]]]), np.float32([])]
    got = read_arrays(*packed(arrays), "x.lz4")
    assert [a.shape for a in got] == [(2, 3), (1, 1, 1), (0,)]
    for one, other in zip(got, arrays, strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_hash_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded an unchecked file")

    monkeypatch.setattr(lz4.frame, "decompress", never)
    with pytest.raises(WeightsError, match="SHA-256"):
        read_arrays(b"\x04\x22\x4d\x18", "0" * 64, "pnet.lz4")


class Runs:
    def __reduce__(self):
        return os.mkdir, ("created-by-a-pickle",)


@pytest.mark.parametrize(
    "item", [Runs(), [Runs()], {"a": Runs()}, np.random.default_rng(0), Path("/")]
)
def test_any_other_global_is_refused(
    item: object, packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="only arrays are rebuilt"):
        read_arrays(*packed(item), "x.lz4")
    assert not list(tmp_path.iterdir())


def test_other_contents_are_refused(packed) -> None:
    with pytest.raises(WeightsError, match="dtype 'f8'"):
        read_arrays(*packed([np.zeros(3)]), "x.lz4")
    with pytest.raises(WeightsError, match="dtype 'O8'"):
        read_arrays(*packed([np.array([object], dtype=object)]), "x.lz4")
    with pytest.raises(WeightsError, match="something else"):
        read_arrays(*packed({"a": 1}), "x.lz4")
    content = lz4.frame.compress(b"\x80\x04\x8c\x01aQ.")
    with pytest.raises(WeightsError, match="external object"):
        read_arrays(content, hashlib.sha256(content).hexdigest(), "x.lz4")


def test_cut_off_contents_are_refused(packed) -> None:
    raw = lz4.frame.decompress(packed([np.ones((4, 4), np.float32)])[0])
    for length in range(0, len(raw) - 1, 7):
        content = lz4.frame.compress(raw[:length])
        with pytest.raises(WeightsError, match=r"unpickle|has only"):
            read_arrays(content, hashlib.sha256(content).hexdigest(), "x.lz4")


def test_weights_are_kept_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_weights(cache=tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.suffix == ".safetensors"
    monkeypatch.setattr(mtcnn_weights, "_from_package", lambda: pytest.fail("read twice"))
    again = load_weights(cache=tmp_path)
    for net, tensors in first.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, again[net][key]), (net, key)


@pytest.mark.parametrize("damage", ["bit", "cut", "rubbish"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: str) -> None:
    load_weights(cache=tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "bit":
        content[-100] ^= 1
    file.write_bytes(
        {"bit": bytes(content), "cut": bytes(content[:5000]), "rubbish": b"no tensors"}[damage]
    )
    assert load_weights(cache=tmp_path)["pnet"]["conv1.weight"].shape == (10, 3, 3, 3)
    content[-100] ^= damage == "bit"
    assert file.read_bytes() == bytes(content)


def test_an_unwritable_cache_is_done_without(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    assert len(load_weights(cache=in_the_way / "below")["onet"]) == 21
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert len(load_weights(cache=closed)["onet"]) == 21


def test_the_cache_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_weights()
    assert [p.parent.name for p in tmp_path.rglob("*.safetensors")] == ["dfm-engine"]


def test_the_package_is_not_imported(tmp_path: Path) -> None:
    load_weights(cache=tmp_path)
    assert "mtcnn" not in sys.modules


def test_an_absent_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentUnfit, match="pip install --no-deps 'mtcnn"):
        load_weights(cache=tmp_path)
