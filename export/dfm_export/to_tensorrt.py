"""ONNX file in, engine bytes out: one builder for both flavours of TensorRT.

Strongly typed only: the dtypes of the ONNX file are the precision, and no flag changes them. Every
network is inspected between parse and build (`inspect`). TensorRT answers a failure with None; here
that is an error that repeats what the library said.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dfm_engine.durable import write_durably
from dfm_engine.errors import UsageError
from dfm_export.inspect import Expected, NetworkFacts, check_network, check_onnx
from dfm_export.specs import GraphSpec
from dfm_export.trt_api import TensorRt, TensorRtError

__all__ = ["BuildSettings", "BuiltEngine", "Profile", "build_engine", "load_engine"]

Compatibility = Literal["none", "ampere-plus", "same-compute-capability"]
_COMPATIBILITY = {
    "ampere-plus": "AMPERE_PLUS",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How many rows an engine takes: at least, most often, at most."""

    min: int = 1
    opt: int = 8
    max: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise UsageError(
                f"a profile is min,opt,max with 1 <= min <= opt <= max, got {self.text}"
            )

    @classmethod
    def parse(cls, text: str) -> Profile:
        """From `1,8,32`.

        Raises:
            UsageError: not three numbers in order.
        """
        words = text.split(",")
        if len(words) != 3 or not all(word.strip().isdigit() for word in words):
            raise UsageError(f"--profile takes min,opt,max such as 1,8,32, found {text!r}")
        least, usual, most = map(int, words)
        return cls(min=least, opt=usual, max=most)

    @property
    def text(self) -> str:
        """As `parse` reads it."""
        return f"{self.min},{self.opt},{self.max}"

    def shapes(self, spec: GraphSpec) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Per input the shapes at min, opt and max; one source is the least, one per row the most.

        The optimum has one source per row: so a build's batches come, from many jobs.
        """
        return {
            tensor.name: (
                tensor.at(batch=self.min, sources=1),
                tensor.at(batch=self.opt),
                tensor.at(batch=self.max),
            )
            for tensor in spec.inputs
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """What decides an engine besides its ONNX file.

    Attributes:
        profile: rows.
        targets: chips to build for, such as `sm89`; tensorrt-rtx only. Empty: its default, which
            every chip that it knows takes.
        tf32: float32 convolutions may round their inputs to 10 bits. The libraries' own default
            is yes; here it is a decision, and keypoints never have it.
        optimisation: builder level 0 (fast build) to 5 (fast engine); None: the library's.
        workspace_bytes: scratch memory that a kernel may take; None: the library's.
        compatibility: data-centre only: run on other chips than the one at hand, more slowly.
    """

    profile: Profile = field(default_factory=Profile)
    targets: tuple[str, ...] = ()
    tf32: bool = False
    optimisation: int | None = None
    workspace_bytes: int | None = None
    compatibility: Compatibility = "none"

    def __post_init__(self) -> None:
        if self.optimisation is not None and not 0 <= self.optimisation <= 5:
            raise UsageError(f"builder optimisation is 0 to 5, got {self.optimisation}")
        if len(set(self.targets)) < len(self.targets):
            raise UsageError(f"targets must be distinct, got {', '.join(self.targets)}")

    def flags(self) -> dict[str, Any]:
        """Everything but profile and targets, for a key and a sidecar."""
        return {
            "tf32": self.tf32,
            "optimisation": self.optimisation,
            "workspace_bytes": self.workspace_bytes,
            "compatibility": self.compatibility,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """An engine, serialised, and what was seen while it was made.

    Attributes:
        plan: the bytes; a raw plan file that other tools load.
        seconds: parse and build.
        facts: of the parsed network.
        warnings: what the library said.
    """

    plan: bytes
    seconds: float
    facts: NetworkFacts
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All but the bytes, for the sidecar."""
        return {
            "build_seconds": round(self.seconds, 2),
            "network": self.facts.to_json(),
            "warnings": list(self.warnings),
        }


def build_engine(
    trt: TensorRt,
    path: Path,
    expected: Expected,
    settings: BuildSettings,
    *,
    timing_cache: Path | None = None,
) -> BuiltEngine:
    """Parse, inspect, build.

    Args:
        trt: the flavour.
        path: of the ONNX file; its weights are inside.
        expected: what the parsed network must be.
        settings: see there.
        timing_cache: data-centre only: kernel timings of earlier builds on this GPU, read and
            written back. Ignored by tensorrt-rtx, which compiles kernels when an engine is loaded.

    Raises:
        UsageError: a chip or setting that this flavour does not have.
        CheckFailed: the parsed network is not the one expected.
        TensorRtError: the library could not parse or build; repeats its messages.
    """
    _check_settings(trt, settings)
    check_onnx(path, expected)
    started = time.perf_counter()
    trt.messages.take()
    builder = trt.api.Builder(trt.logger)
    network = parse_onnx(trt, builder, path)
    facts = check_network(trt.api, network, expected)
    config = _configure(trt, builder, settings, timing_cache)
    _add_profile(trt, builder, config, expected.spec, settings.profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise TensorRtError(
            f"{trt.flavour} {trt.version}: building {os.fspath(path)!r} for "
            f"{', '.join(settings.targets) or 'the default target'} failed: "
            f"{trt.messages.sentence()}"
        )
    if timing_cache is not None and trt.has_timing_cache:
        write_durably(timing_cache, bytes(config.get_timing_cache().serialize()))
    return BuiltEngine(
        plan=bytes(plan),
        seconds=time.perf_counter() - started,
        facts=facts,
        warnings=trt.messages.take(),
    )


def parse_onnx(trt: TensorRt, builder: Any, path: Path) -> Any:
    """A strongly typed network from an ONNX file.

    Raises:
        TensorRtError: the parser refused; names the node.
    """
    flags = 1 << int(trt.api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.api.OnnxParser(network, trt.logger)
    if not parser.parse(path.read_bytes()) or parser.num_errors:
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise TensorRtError(
            f"{trt.flavour} {trt.version}: parsing {os.fspath(path)!r} failed: "
            f"{'; '.join(errors) or trt.messages.sentence()}"
        )
    return network


def load_engine(trt: TensorRt, plan: bytes, *, what: str) -> tuple[Any, Any]:
    """Deserialise a plan; needs a driver.

    Args:
        trt: the flavour that built it, in the same version.
        plan: the bytes.
        what: for messages, such as the path.

    Returns:
        The runtime, which must be kept while the engine is used, and the engine.

    Raises:
        TensorRtError: damaged, of another version or chip, or no driver.
    """
    trt.messages.take()
    runtime = trt.api.Runtime(trt.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise TensorRtError(
            f"{trt.flavour} {trt.version}: loading {what} ({len(plan)} bytes) failed: "
            f"{trt.messages.sentence()}; an engine runs only on the kind of chip, and with the "
            "library version, that it was built for"
        )
    return runtime, engine


def _check_settings(trt: TensorRt, settings: BuildSettings) -> None:
    if settings.targets and not trt.targets:
        raise UsageError(
            f"{trt.flavour} builds for the GPU of this machine; --target is for tensorrt-rtx "
            f"(found {', '.join(settings.targets)})"
        )
    if trt.targets and settings.compatibility != "none":
        raise UsageError(
            f"{trt.flavour} has no hardware compatibility levels; name several --target instead"
        )
    for target in settings.targets:
        trt.check_target(target)


def _configure(
    trt: TensorRt, builder: Any, settings: BuildSettings, timing_cache: Path | None
) -> Any:
    api = trt.api
    config = builder.create_builder_config()
    if settings.tf32:
        config.set_flag(api.BuilderFlag.TF32)
    else:
        config.clear_flag(api.BuilderFlag.TF32)
    if settings.optimisation is not None:
        config.builder_optimization_level = settings.optimisation
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.compatibility != "none":
        level = _COMPATIBILITY[settings.compatibility]
        config.hardware_compatibility_level = getattr(api.HardwareCompatibilityLevel, level)
    if settings.targets:
        config.num_compute_capabilities = len(settings.targets)
        for place, target in enumerate(settings.targets):
            capability = getattr(api.ComputeCapability, target.upper())
            if not config.set_compute_capability(capability, place):
                raise TensorRtError(f"{trt.flavour}: {target}: {trt.messages.sentence()}")
    if timing_cache is not None and trt.has_timing_cache:
        known = timing_cache.read_bytes() if timing_cache.is_file() else b""
        # A cache of another GPU or version is refused here: then an empty one takes its place.
        if not config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return config


def _add_profile(
    trt: TensorRt, builder: Any, config: Any, spec: GraphSpec, profile: Profile
) -> None:
    made = builder.create_optimization_profile()
    shapes: Mapping[str, Sequence[tuple[int, ...]]] = profile.shapes(spec)
    for name, (least, usual, most) in shapes.items():
        made.set_shape(name, least, usual, most)
        taken = [tuple(shape) for shape in made.get_shape(name)]
        if taken != [least, usual, most]:
            raise TensorRtError(
                f"{trt.flavour}: the profile of input {name!r} is {taken}, asked for "
                f"{[least, usual, most]}: {trt.messages.sentence()}"
            )
    if config.add_optimization_profile(made) != 0:
        raise TensorRtError(
            f"{trt.flavour}: refused the profile {profile.text}: {trt.messages.sentence()}"
        )
