from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from dfmtest_fomm import small_config

from dfm_engine.errors import ShapeError, UsageError
from dfm_engine.fomm import parse_config


def test_default_is_vox_256() -> None:
    config = parse_config()
    assert (config.num_kp, config.num_channels, config.estimate_jacobian) == (10, 3, True)
    assert config.frame_size == (256, 256)
    kp, gen, dm = config.kp_detector, config.generator, config.generator.dense_motion_params
    assert (kp.temperature, kp.block_expansion, kp.max_features) == (0.1, 32, 1024)
    assert (kp.scale_factor, kp.num_blocks, kp.pad, kp.single_jacobian_map) == (0.25, 5, 0, False)
    assert (gen.block_expansion, gen.max_features, gen.num_down_blocks) == (64, 512, 2)
    assert (gen.num_bottleneck_blocks, gen.estimate_occlusion_map) == (6, True)
    assert (dm.block_expansion, dm.max_features, dm.num_blocks) == (64, 1024, 5)
    assert (dm.scale_factor, dm.kp_variance) == (0.25, 0.01)
    assert config.discriminator.sn
    assert config.discriminator.scales == (1.0,)


def test_path_mapping_and_parsed_forms_agree(tmp_path: Path) -> None:
    mapping = small_config(frame=(64, 96), kp={"pad": 3, "single_jacobian_map": True})
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(mapping))
    config = parse_config(path)
    assert config == parse_config(str(path)) == parse_config(mapping) == parse_config(config)
    assert parse_config(config.to_dict()) == config
    assert config.frame_size == (64, 96)


def test_published_yaml_with_training_sections_is_read(shared: Path) -> None:
    config = parse_config(shared / "reference" / "fomm-small" / "small-128.yaml")
    assert config.frame_size == (128, 128)
    assert config.generator.block_expansion == 8


def changed(section: str, name: str, value: Any) -> dict[str, Any]:
    config = small_config()
    part = config if section == "" else config["model_params"][section]
    if value is ...:
        del part[name]
    else:
        part[name] = value
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"a": 1}, "no model_params table"),
        (changed("", "model_params", 3), "no model_params table"),
        (changed("common_params", "num_kp", ...), "has no num_kp"),
        (changed("common_params", "num_kp", 0), "num_kp must be positive, found 0"),
        (changed("common_params", "num_pk", 1), "unknown field 'num_pk'; did you mean 'num_kp'"),
        (changed("common_params", "estimate_jacobian", 1), "must be true or false, found 1"),
        (changed("kp_detector_params", "temperature", ...), "lacks temperature"),
        (changed("kp_detector_params", "num_blocks", 2.5), "num_blocks must be a int, found 2.5"),
        (changed("kp_detector_params", "num_blocks", "5"), "must be a int, found '5'"),
        (changed("kp_detector_params", "scale_factor", 2), r"within \(0, 1\], found 2"),
        (changed("kp_detector_params", "scale_facto", 1), "did you mean 'scale_factor'"),
        (changed("kp_detector_params", "block_expansion", 32), "above its max_features 16"),
        (changed("generator_params", "dense_motion_params", ...), "needs a table dense_motion"),
        (changed("generator_params", "num_down_blocks", -1), "must be positive, found -1"),
        (changed("", "dataset_params", {"frame_shape": [64]}), "frame_shape must be"),
        (changed("", "dataset_params", {"frame_shape": 64}), "frame_shape must be"),
    ],
)
def test_a_wrong_field_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_config(config)


def test_unreadable_files_are_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.yaml: No such file"):
        parse_config(tmp_path / "absent.yaml")
    (tmp_path / "x.yaml").write_text("a: [1")
    with pytest.raises(UsageError, match="not YAML"):
        parse_config(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(UsageError, match="not YAML"):
        parse_config(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ((64, 72), "64x72 become 16x18 in the kp_detector.*multiples of 32"),
        ((32, 32), None),
        ((16, 16), "become 4x4"),
    ],
)
def test_frame_sizes_the_networks_cannot_halve_are_refused(
    frame: tuple[int, int], message: str | None
) -> None:
    if message is None:
        assert parse_config(small_config(frame=frame)).frame_size == frame
        return
    with pytest.raises(ShapeError, match=message):
        parse_config(small_config(frame=frame))


def test_frames_too_small_for_the_heads_or_the_generator_are_refused() -> None:
    few = {"num_blocks": 1}
    with pytest.raises(ShapeError, match="7x7 keypoint heads"):
        parse_config(small_config(frame=(24, 64), kp=few, dm=few))
    with pytest.raises(ShapeError, match="cannot be halved 6 times by the generator"):
        parse_config(small_config(frame=(96, 96), gen={"num_down_blocks": 6}))
