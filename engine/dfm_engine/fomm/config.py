"""The architecture of a FOMM, read from the reference's YAML.

In: a path, the parsed mapping, or nothing (vox-256, shipped beside this file). Out: frozen
dataclasses whose fields carry the YAML's names, checked against each other once, so that the
modules need not check again. Sections that do not shape a network (training, logging) are ignored.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dfm_engine.errors import ShapeError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypointConfig:
    """`kp_detector_params`; `pad` is the padding of the 7x7 heads, 0 in every published model."""

    block_expansion: int
    num_blocks: int
    max_features: int
    temperature: float
    scale_factor: float = 1.0
    single_jacobian_map: bool = False
    pad: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseMotionConfig:
    """`generator_params.dense_motion_params`."""

    block_expansion: int
    num_blocks: int
    max_features: int
    scale_factor: float = 1.0
    kp_variance: float = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorConfig:
    """`generator_params`."""

    block_expansion: int
    max_features: int
    num_down_blocks: int
    num_bottleneck_blocks: int
    dense_motion_params: DenseMotionConfig
    estimate_occlusion_map: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscriminatorConfig:
    """`discriminator_params`; only training with the adversarial loss uses it."""

    scales: tuple[float, ...] = (1.0,)
    block_expansion: int = 64
    num_blocks: int = 4
    max_features: int = 512
    sn: bool = False
    use_kp: bool = False
    kp_variance: float = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class FommConfig:
    """Everything that decides the shapes of the three networks.

    Attributes:
        frame_size: (height, width) that the weights were trained for, in pixels.
    """

    num_kp: int
    num_channels: int = 3
    estimate_jacobian: bool = False
    frame_size: tuple[int, int] = (256, 256)
    kp_detector: KeypointConfig
    generator: GeneratorConfig
    discriminator: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)

    def __post_init__(self) -> None:
        for section in (self.kp_detector, self.generator, self.generator.dense_motion_params):
            name = type(section).__name__
            if section.block_expansion > section.max_features:
                raise UsageError(
                    f"FOMM configuration: {name}.block_expansion {section.block_expansion} is "
                    f"above its max_features {section.max_features}; no published model is"
                )
        self.check_size(*self.frame_size)

    def check_size(self, height: int, width: int) -> None:
        """Refuse a frame size that the networks cannot halve as often as they must.

        Raises:
            ShapeError: naming the network and the divisor that height and width must have.
        """
        dense_motion = self.generator.dense_motion_params
        for name, part in (("kp_detector", self.kp_detector), ("dense motion", dense_motion)):
            step = int(1 / part.scale_factor)
            small = (math.ceil(height / step), math.ceil(width / step))
            if any(side % 2**part.num_blocks for side in small):
                raise ShapeError(
                    f"frames of {height}x{width} become {small[0]}x{small[1]} in the {name} "
                    f"network, whose {part.num_blocks} blocks need multiples of "
                    f"{2**part.num_blocks}; use frame sides that are multiples of "
                    f"{step * 2**part.num_blocks}"
                )
            if part is self.kp_detector and min(small) + 2 * self.kp_detector.pad < 8:
                raise ShapeError(
                    f"frames of {height}x{width} leave {small[0]}x{small[1]} for the 7x7 keypoint "
                    "heads; the smallest that gives a coordinate is 8x8"
                )
        halvings = self.generator.num_down_blocks
        if height % 2**halvings or width % 2**halvings:
            raise ShapeError(
                f"frames of {height}x{width} cannot be halved {halvings} times by the generator; "
                f"use multiples of {2**halvings}"
            )

    def smallest_size(self) -> tuple[int, int]:
        """The smallest square (height, width) that `check_size` accepts."""
        dense_motion = self.generator.dense_motion_params
        divisor = 2**self.generator.num_down_blocks
        for part in (self.kp_detector, dense_motion):
            divisor = math.lcm(divisor, int(1 / part.scale_factor) * 2**part.num_blocks)
        side = divisor
        while math.ceil(side * self.kp_detector.scale_factor) + 2 * self.kp_detector.pad < 8:
            side += divisor
        return side, side

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `parse_config` reads back to an equal configuration."""
        common = ("num_kp", "num_channels", "estimate_jacobian")
        discriminator = dataclasses.asdict(self.discriminator)
        discriminator["scales"] = list(self.discriminator.scales)
        return {
            "model_params": {
                "common_params": {name: getattr(self, name) for name in common},
                "kp_detector_params": dataclasses.asdict(self.kp_detector),
                "generator_params": dataclasses.asdict(self.generator),
                "discriminator_params": discriminator,
            },
            "dataset_params": {"frame_shape": [*self.frame_size, self.num_channels]},
        }


Section = TypeVar("Section")
ConfigSource = str | os.PathLike[str] | Mapping[str, Any] | FommConfig | None


def parse_config(config: ConfigSource = None) -> FommConfig:
    """Read a configuration in the reference's YAML form.

    Args:
        config: path of a YAML file, its parsed mapping, an already parsed configuration, or None
            for vox-256.

    Raises:
        UsageError: not readable, not YAML, an absent or unknown field, a value out of range.
        ShapeError: a frame size that the architecture cannot process.
    """
    if isinstance(config, FommConfig):
        return config
    origin = "FOMM configuration"
    if config is None:
        shipped = resources.files("dfm_engine.fomm").joinpath("vox-256.yaml")
        config = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    elif not isinstance(config, Mapping):
        origin = f"FOMM configuration {os.fspath(config)}"
        config = _read_yaml(Path(config), origin)
    if not isinstance(config, Mapping) or not isinstance(config.get("model_params"), Mapping):
        raise UsageError(
            f"{origin}: has no model_params table; give the YAML that the weights were trained with"
        )
    model = dict(config["model_params"])
    common = _table(model, "common_params", origin)
    generator = _table(model, "generator_params", origin)
    generator["dense_motion_params"] = _section(
        DenseMotionConfig, _table(generator, "dense_motion_params", origin), origin
    )
    discriminator = dict(model.get("discriminator_params") or {})
    if "scales" in discriminator:
        discriminator["scales"] = tuple(discriminator["scales"])
    known = {"num_kp", "num_channels", "estimate_jacobian"}
    _refuse_unknown(common, known, f"{origin}: common_params")
    if "num_kp" not in common:
        raise UsageError(f"{origin}: common_params has no num_kp")
    values = {name: _check(common[name], _COMMON[name], f"{origin}: {name}") for name in common}
    return FommConfig(
        **values,
        frame_size=_frame_size(config.get("dataset_params") or {}, origin),
        kp_detector=_section(KeypointConfig, _table(model, "kp_detector_params", origin), origin),
        generator=_section(GeneratorConfig, generator, origin),
        discriminator=_section(DiscriminatorConfig, discriminator, origin),
    )


_COMMON = {"num_kp": int, "num_channels": int, "estimate_jacobian": bool}
_MAY_BE_ZERO = {"num_down_blocks", "num_bottleneck_blocks", "pad"}


def _read_yaml(path: Path, origin: str) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{origin}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{origin}: not YAML: {error}") from error


def _table(parent: Mapping[str, Any], name: str, origin: str) -> dict[str, Any]:
    table = parent.get(name)
    if not isinstance(table, Mapping):
        raise UsageError(f"{origin}: needs a table {name}, found {table!r}")
    return dict(table)


def _section(kind: type[Section], table: Mapping[str, Any], origin: str) -> Section:
    hints = typing.get_type_hints(kind)
    where = f"{origin}: {kind.__name__}"
    _refuse_unknown(table, set(hints), where)
    absent = [
        item.name
        for item in dataclasses.fields(typing.cast(Any, kind))
        if item.default is dataclasses.MISSING and item.name not in table
    ]
    if absent:
        raise UsageError(f"{where} lacks {', '.join(absent)}")
    values = {name: _check(value, hints[name], f"{where}.{name}") for name, value in table.items()}
    return kind(**values)


def _refuse_unknown(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
            raise UsageError(f"{where}: unknown field {name!r}; {hint}")


def _check(value: Any, kind: Any, where: str) -> Any:
    """The value as its declared type, within the range that any architecture can have."""
    if dataclasses.is_dataclass(kind):
        return value
    if kind is bool:
        if not isinstance(value, bool):
            raise UsageError(f"{where} must be true or false, found {value!r}")
        return value
    if typing.get_origin(kind) is tuple:
        return tuple(_check(item, float, where) for item in value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (kind is int and not isinstance(value, int)):
        raise UsageError(f"{where} must be a {kind.__name__}, found {value!r}")
    name = where.rsplit(".", 1)[-1]
    if value < 0 or (value == 0 and name not in _MAY_BE_ZERO):
        raise UsageError(f"{where} must be positive, found {value!r}")
    if (name == "scale_factor" or name == "scales") and value > 1:
        raise UsageError(f"{where} must be within (0, 1], found {value!r}")
    return kind(value)


def _frame_size(dataset: Mapping[str, Any], origin: str) -> tuple[int, int]:
    shape = dataset.get("frame_shape", [256, 256, 3])
    is_list = isinstance(shape, list | tuple) and len(shape) in (2, 3)
    if not is_list or not all(isinstance(side, int) and side > 0 for side in shape):
        raise UsageError(
            f"{origin}: dataset_params.frame_shape must be [height, width, channels], "
            f"found {shape!r}"
        )
    return shape[0], shape[1]
