from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dfmtest_fomm import make_fomm, pictures, small_config
from safetensors.torch import load_file, save_file

from dfm_engine import fomm
from dfm_engine.errors import UsageError, WeightsError
from dfm_engine.fomm.model import Fomm
from dfm_engine.fomm.weights import read_checkpoint

CONFIG = small_config()


@pytest.fixture(scope="module")
def model() -> Fomm:
    return make_fomm(CONFIG, seed=1)


def content(model: Fomm) -> dict[str, Any]:
    return {
        "generator": dict(model.generator.state_dict()),
        "kp_detector": dict(model.kp_detector.state_dict()),
        "optimizer_generator": {"state": {}, "param_groups": [{"lr": 2e-4, "params": [0]}]},
        "epoch": 99,
    }


def write(path: Path, value: Any, *, legacy: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("legacy", [True, False])
def test_published_form_loads_and_says_what_it_ignored(
    model: Fomm, tmp_path: Path, legacy: bool
) -> None:
    path = write(tmp_path / "cpk.pth.tar", content(model), legacy=legacy)
    loaded = fomm.load(path, CONFIG)
    assert same_weights(loaded, model)
    assert loaded.ignored == ("epoch", "optimizer_generator")
    assert loaded.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.align_corners
    assert not loaded.training
    assert loaded.frame_size == (64, 64)


def test_module_prefixes_of_forks_are_stripped(model: Fomm, tmp_path: Path) -> None:
    value = content(model)
    for name, prefix in (("generator", "module."), ("kp_detector", "module.module.")):
        value[name] = {prefix + key: tensor for key, tensor in value[name].items()}
    assert same_weights(fomm.load(write(tmp_path / "fork.pth", value), CONFIG), model)


def test_constants_and_counters_may_be_absent(model: Fomm, tmp_path: Path) -> None:
    value = content(model)
    for name in ("generator", "kp_detector"):
        value[name] = {
            key: tensor
            for key, tensor in value[name].items()
            if not key.endswith(("num_batches_tracked", "down.weight"))
        }
    assert same_weights(fomm.load(write(tmp_path / "old.pth", value), CONFIG), model)


@pytest.mark.parametrize("suffix", [".pth.tar", ".safetensors"])
def test_save_and_load_round_trip(model: Fomm, tmp_path: Path, suffix: str) -> None:
    discriminator = fomm.Discriminator(model.config)
    paths = [tmp_path / f"{name}{suffix}" for name in ("one", "two")]
    for path in paths:
        fomm.save(model, path, discriminator=discriminator)
    loaded = fomm.load(paths[0], CONFIG, align_corners=False)
    assert same_weights(loaded, model)
    assert loaded.ignored == ("discriminator",)
    assert not loaded.align_corners
    assert same_weights(fomm.load_discriminator(paths[0], CONFIG), discriminator)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(os.listdir(tmp_path)) == [path.name for path in paths]


def test_safetensors_carry_their_architecture(model: Fomm, tmp_path: Path) -> None:
    fomm.save(model, tmp_path / "x.safetensors")
    assert fomm.load(tmp_path / "x.safetensors").config == model.config
    assert "generator.first.conv.weight" in load_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_half_precision_files_load_as_float32(model: Fomm, tmp_path: Path, suffix: str) -> None:
    whole, half = tmp_path / f"whole{suffix}", tmp_path / f"half{suffix}"
    fomm.save(model, whole)
    fomm.save(model, half, half=True)
    assert half.stat().st_size < 0.75 * whole.stat().st_size
    loaded = fomm.load(half, CONFIG)
    for name, value in loaded.state_dict().items():
        wanted = model.state_dict()[name]
        assert value.dtype == wanted.dtype
        # float16 keeps 11 bits; norms and the anti-alias kernel are not touched
        exact = value.ndim != 4 or name.endswith("down.weight")
        torch.testing.assert_close(value, wanted, rtol=0 if exact else 2**-11, atol=6e-8)
    image = pictures(1, (64, 64)).float()
    points = [m.keypoints(image).value for m in (loaded, model)]
    torch.testing.assert_close(points[0], points[1], rtol=0, atol=0.02)


def test_others_go_into_the_published_form_only(model: Fomm, tmp_path: Path) -> None:
    fomm.save(model, tmp_path / "x.pth.tar", others={"epoch": 7})
    assert read_checkpoint(tmp_path / "x.pth.tar").others == {"epoch": 7}
    with pytest.raises(UsageError, match=r"cannot hold \['epoch'\]"):
        fomm.save(model, tmp_path / "x.safetensors", others={"epoch": 7})


def test_a_failed_write_leaves_nothing(model: Fomm, tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        fomm.save(model, tmp_path / "x.pth", others={"epoch": lambda: 0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("legacy", [True, False])
def test_code_in_a_checkpoint_is_not_run(model: Fomm, tmp_path: Path, legacy: bool) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(tmp_path / "boom"),)

    path = write(tmp_path / "bomb.pth", {**content(model), "epoch": Bomb()}, legacy=legacy)
    with pytest.raises(WeightsError, match=r"bomb\.pth"):
        fomm.load(path, CONFIG)
    assert not (tmp_path / "boom").exists()


def damage(change: Callable[[dict[str, Any]], object]) -> Callable[[Fomm, Path], Path]:
    def make(model: Fomm, folder: Path) -> Path:
        value = content(model)
        change(value)
        return write(folder / "x.pth.tar", value)

    return make


def raw(data: bytes, name: str = "x.pth.tar") -> Callable[[Fomm, Path], Path]:
    def make(model: Fomm, folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def truncated(legacy: bool) -> Callable[[Fomm, Path], Path]:
    def make(model: Fomm, folder: Path) -> Path:
        path = write(folder / "x.pth.tar", content(model), legacy=legacy)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return path

    return make


def truncated_safetensors(model: Fomm, folder: Path) -> Path:
    path = folder / "x.safetensors"
    fomm.save(model, path)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def other_tensors(model: Fomm, folder: Path) -> Path:
    save_file({"a": torch.zeros(1)}, folder / "x.safetensors")
    return folder / "x.safetensors"


def put(part: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content[part][key] = value

    return change


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model, folder: folder / "absent.pth", "No such file.*give the checkpoint file"),
        (lambda model, folder: folder, "Is a directory"),
        (raw(b""), "is empty"),
        (raw(b"<!DOCTYPE html><title>Drive"), "is a web page"),
        (raw(b"version https://git-lfs.github.com/spec/v1"), "Git LFS pointer"),
        (raw(bytes(range(256)) * 40), r"x\.pth\.tar"),
        (raw(b"\x10\0\0\0\0\0\0\0{not json"), "not a safetensors file"),
        (truncated(True), r"x\.pth\.tar"),
        (truncated(False), "fetch the file again"),
        (truncated_safetensors, "not a safetensors file"),
        (other_tensors, r"kp_detector: absent; found \['a'\]"),
        (lambda m, d: write(d / "x.pth", [1, 2]), "holds a list"),
        (damage(lambda c: c.pop("kp_detector")), "kp_detector: absent; found .*'generator'"),
        (damage(lambda c: c.update(generator=3)), "generator: is not a table of tensors"),
        (
            damage(lambda c: c["generator"].pop("final.bias")),
            r"generator: .*1 missing \(final\.bias\).*Give the YAML",
        ),
        (
            damage(put("generator", "extra.weight", torch.zeros(1))),
            r"1 unexpected \(extra\.weight\)",
        ),
        (
            damage(put("kp_detector", "kp.weight", torch.zeros(9, 7, 7, 7))),
            r"kp\.weight \(9, 7, 7, 7\) instead of \(4, 7, 7, 7\).*they have num_kp 9",
        ),
        (
            damage(put("generator", "final.bias", torch.tensor([0.0, float("nan"), 0.0]))),
            r"NaN, infinity.*final\.bias",
        ),
        (
            damage(put("generator", "final.bias", torch.tensor([0, 1, 2]))),
            r"another kind of number \(final\.bias\)",
        ),
    ],
)
def test_a_wrong_file_is_named_with_what_to_do(
    model: Fomm, tmp_path: Path, make: Callable[[Fomm, Path], Path], message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        fomm.load(make(model, tmp_path), CONFIG)


def test_weights_of_another_architecture_are_refused_for_vox_256(
    model: Fomm, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.pth", content(model))
    with pytest.raises(WeightsError, match=r"mis-shaped.*they have num_kp 4") as caught:
        fomm.load(path)
    assert caught.value.exit_code == 2


def test_an_absent_discriminator_is_said(model: Fomm, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="discriminator: absent"):
        fomm.load_discriminator(write(tmp_path / "x.pth", content(model)), CONFIG)


def test_initialise_is_seeded_and_leaves_the_global_state_alone() -> None:
    state = torch.random.get_rng_state()
    # a changed digest makes every clip of a seeded build another clip
    assert fomm.initialise(CONFIG, 4).weights_sha256.startswith("a5ad58301b90")
    one, two, other = (fomm.initialise(CONFIG, seed) for seed in (4, 4, 5))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same_weights(one, two)
    assert one.weights_sha256 == two.weights_sha256 != other.weights_sha256


@torch.inference_mode()
def test_seeded_weights_are_not_degenerate() -> None:
    for seed in range(4):
        model = fomm.initialise(small_config(num_kp=10), seed)
        images = pictures(2, (64, 64), seed=seed).float()
        points = model.keypoints(images)
        assert points.value.std(dim=1).min() > 0.05  # spread over the picture
        assert (points.value[0] - points.value[1]).abs().max() > 0.05  # and follow it
        features = model.encode_source(images[:1])
        frames = model.animate(features, points[0], points).prediction
        assert frames.std() > 0.05
        assert (frames[0] - frames[1]).abs().max() > 0.05


def test_load_from_shared_published_form(shared: Path) -> None:
    folder = shared / "reference" / "fomm-small"
    model = fomm.load(folder / "small-cpk.pth.tar", folder / "small-128.yaml")
    assert len(model.generator.state_dict()) == 196
    assert len(model.kp_detector.state_dict()) == 75
    assert model.ignored == (
        "discriminator",
        "epoch",
        "optimizer_discriminator",
        "optimizer_generator",
        "optimizer_kp_detector",
    )
