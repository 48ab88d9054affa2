"""Weights of every published form: what loads, with which result, and what is refused."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from dfmtest_detect import made
from dfmtest_meso_keras import KerasMeso, make_layers, write_h5

from dfm_engine.detect.load import load_detector
from dfm_engine.detect.models import create_detector, fake_probability
from dfm_engine.detect.weights import metadata_of
from dfm_engine.errors import UsageError, WeightsError


@pytest.mark.parametrize("name", ["mesoinception4", "meso4"])
def test_published_meso_files_load_and_give_what_keras_gives(name: str, tmp_path: Path) -> None:
    path = write_h5(tmp_path / "weights.h5", make_layers(name))
    detector = create_detector(name, weights=path)
    pixels = np.random.default_rng(5).random((2, 256, 256, 3)).astype(np.float32)
    real = KerasMeso(path, name).real(pixels)
    with torch.no_grad():
        logits = detector(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    found = fake_probability(logits.double())
    # float32 through four stages and 1,024 products; a wrong layer, order or sign is off by 0.1
    assert found.numpy() == pytest.approx(1 - real, abs=2e-5)
    assert real.min() > 0.005
    assert real.max() < 0.995
    assert detector.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_whole_keras_model_loads_like_its_weights(tmp_path: Path) -> None:
    layers = make_layers("meso4", seed=1)
    alone = create_detector("meso4", weights=write_h5(tmp_path / "w", layers))  # no suffix
    whole = create_detector("meso4", weights=write_h5(tmp_path / "m.h5", layers, whole=True))
    for first, second in zip(alone.parameters(), whole.parameters(), strict=True):
        assert torch.equal(first, second)


def test_meso_files_of_the_other_net_or_of_the_port_are_refused(tmp_path: Path) -> None:
    other = write_h5(tmp_path / "meso4.h5", make_layers("meso4"))
    with pytest.raises(WeightsError, match="holds 4 conv2d layers, mesoinception4 has 16"):
        create_detector("mesoinception4", weights=other)
    layers = make_layers("mesoinception4")
    del layers["conv2d_3"]["bias"]
    with pytest.raises(WeightsError, match="drops biases"):
        create_detector("mesoinception4", weights=write_h5(tmp_path / "port.h5", layers))
    with pytest.raises(WeightsError, match="read for mesoinception4 and meso4 only"):
        create_detector("small-cnn", weights=other)
    broken = tmp_path / "broken.h5"
    broken.write_bytes(other.read_bytes()[:2000])
    with pytest.raises(WeightsError, match="not a readable HDF5 file"):
        create_detector("meso4", weights=broken)


def cadene_state(detector, *, classes: int = 1000) -> dict[str, torch.Tensor]:
    """A detector's weights as Cadene's port has them: 2-D pointwise, `last_linear`, no counters."""
    state = {}
    for key, value in detector.net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        if "pointwise" in key:
            value = value[:, :, 0, 0]
        state[key.replace("fc.", "last_linear.")] = value
    if classes != 2:
        state["last_linear.weight"] = torch.randn(classes, 2048)
        state["last_linear.bias"] = torch.randn(classes)
    return state


def differing(first, second) -> set[str]:
    other = second.state_dict()
    return {
        key
        for key, value in first.state_dict().items()
        if not torch.equal(value, other[key]) and "num_batches" not in key
    }


def test_cadenes_xception_fills_all_but_the_head(xception, tmp_path: Path, caplog) -> None:
    path = tmp_path / "xception.pth"
    torch.save(cadene_state(xception), path)
    with caplog.at_level(logging.INFO):
        loaded = create_detector("xception", weights=path, seed=9)
    assert differing(loaded, xception) == {"net.fc.weight", "net.fc.bias"}
    assert "head has 1000 classes" in caplog.text
    assert torch.equal(loaded.head.weight, create_detector("xception", seed=9).head.weight)


def test_faceforensics_checkpoints_fill_the_head_too(xception, tmp_path: Path) -> None:
    state = cadene_state(xception, classes=2)
    renamed = {
        "model." + key.replace("last_linear.", "last_linear.1."): value
        for key, value in state.items()
    }
    path = tmp_path / "ffpp_c23.pth"
    torch.save({"state_dict": renamed, "epoch": 3}, path)
    assert differing(create_detector("xception", weights=path, seed=9), xception) == set()


def test_a_whole_pickled_module_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "module.pth"
    torch.save(made("small-cnn"), path)
    with pytest.raises(WeightsError, match=r"runs code.*torch\.save\(model\.state_dict"):
        create_detector("small-cnn", weights=path)


def test_a_resnet_in_torchvisions_keys_loads(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    theirs = resnet18(num_classes=2).eval()
    path = tmp_path / "resnet18.pth"
    torch.save(theirs.state_dict(), path)
    ours = create_detector("resnet18", weights=path)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_resnet50_has_torchvisions_keys_and_shapes() -> None:
    from torchvision.models import resnet50

    theirs = {k: v.shape for k, v in resnet50(num_classes=2).state_dict().items()}
    ours = {k.removeprefix("net."): v.shape for k, v in made("resnet50").state_dict().items()}
    assert ours == theirs
    assert len(ours) == 320


def test_our_own_file_says_what_it_is(tmp_path: Path) -> None:
    detector = made("small-cnn")
    path = tmp_path / "detector.safetensors"
    state = {key: value.contiguous() for key, value in detector.state_dict().items()}
    path.write_bytes(safetensors.torch.save(state, metadata=metadata_of(detector.spec)))
    for where in (path, tmp_path):
        loaded = load_detector(where)
        assert loaded.spec == detector.spec
        assert differing(loaded, detector) == set()
        assert loaded.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert not loaded.training
    with pytest.raises(WeightsError, match="is a small-cnn; name that model"):
        create_detector("meso4", weights=path)


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no detector\.safetensors"):
        load_detector(tmp_path)
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes(safetensors.torch.save({"x": torch.zeros(1)}))
    with pytest.raises(UsageError, match="does not say which detector"):
        load_detector(bare)
    with pytest.raises(WeightsError, match=r"1 unexpected \(x\)"):
        create_detector("small-cnn", weights=bare)
    with pytest.raises(WeightsError, match=r"No such file.*'cache' or 'none'"):
        create_detector("small-cnn", weights=tmp_path / "absent.pth")
    page = tmp_path / "page.pth"
    page.write_bytes(b"<!DOCTYPE html><title>404</title>")
    with pytest.raises(WeightsError, match="is a web page"):
        create_detector("small-cnn", weights=page)
    state = made("small-cnn").state_dict()
    torch.save({**state, "classifier.bias": torch.full((2,), torch.nan)}, tmp_path / "nan.pth")
    with pytest.raises(WeightsError, match=r"1 entries hold NaN.*classifier\.bias"):
        create_detector("small-cnn", weights=tmp_path / "nan.pth")
    torch.save({**state, "classifier.bias": torch.zeros(3)}, tmp_path / "three.pth")
    with pytest.raises(WeightsError, match=r"classifier\.bias \(3,\) instead of \(2,\)"):
        create_detector("small-cnn", weights=tmp_path / "three.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds a list without a table of tensors"):
        create_detector("small-cnn", weights=tmp_path / "list.pth")


def test_a_hash_in_the_name_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(made("small-cnn").state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    good = path.rename(tmp_path / f"net-{digest[:8]}.pth")
    assert create_detector("small-cnn", weights=good).weights_sha256 == digest
    bad = good.rename(tmp_path / "net-0676ba61.pth")
    with pytest.raises(WeightsError, match=r"name says SHA-256 0676ba61.*fetch it again"):
        create_detector("small-cnn", weights=bad)


@pytest.fixture
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file", "project"),
    [
        ("resnet50", "torch/hub/checkpoints/resnet50-0676ba61.pth", "torchvision, IMAGENET1K_V1"),
        ("resnet101", "torch/hub/checkpoints/resnet101-63fe2227.pth", "IMAGENET1K_V1"),
        ("resnet152", "torch/hub/checkpoints/resnet152-394f9c45.pth", "IMAGENET1K_V1"),
        ("resnet50", r"model.safetensors of timm/resnet50.tv_in1k", "tv_in1k"),
        ("xception", "torch/hub/checkpoints/xception-b5690688.pth", "Cadene"),
        ("efficientnet_b4", "model.safetensors of timm/efficientnet_b4.ra2_in1k", "timm"),
        ("mesoinception4", "keras/models/MesoInception_DF.h5", "DariusAf/MesoNet"),
        ("meso4", "keras/models/Meso4_F2F.h5", "DariusAf/MesoNet"),
        ("test_resnet", "model.safetensors of timm/test_resnet.r160_in1k", "timm"),
    ],
)
def test_absent_weights_are_named_with_project_and_place(
    name: str, file: str, project: str, empty_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfm_engine.detect.models.build_detector", lambda spec, seed: None)
    with pytest.raises(WeightsError, match="nothing is downloaded") as caught:
        create_detector(name, weights="cache")
    assert file in str(caught.value)
    assert project in str(caught.value)


def test_cached_files_are_found(empty_caches: Path) -> None:
    keras = empty_caches / "keras" / "models"
    keras.mkdir(parents=True)
    path = write_h5(keras / "Meso4_F2F.h5", make_layers("meso4"))
    detector = create_detector("meso4", weights="cache")
    assert detector.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    hub = empty_caches / "hub" / "models--timm--test_resnet.r160_in1k"
    (hub / "snapshots" / "abc").mkdir(parents=True)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("abc")
    theirs = create_detector("test_resnet", seed=8)
    state = dict(theirs.net.state_dict())
    state |= {"fc.weight": torch.randn(1000, theirs.head.in_features), "fc.bias": torch.zeros(1000)}
    safetensors.torch.save_file(state, hub / "snapshots" / "abc" / "model.safetensors")
    found = create_detector("test_resnet", weights="cache", seed=1)
    assert differing(found, theirs) == {"net.fc.weight", "net.fc.bias"}
    with pytest.raises(WeightsError, match="nobody publishes"):
        create_detector("small-cnn", weights="cache")
