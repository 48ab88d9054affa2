"""The detectors by name: `create_detector` makes one, with weights or seeded.

| name | net |
| --- | --- |
| mesoinception4, meso4 | as published (Afchar et al. 2018), 256 px, one logit |
| xception | timm's legacy_xception, 256 px |
| resnet50, resnet101, resnet152 | 224 px; torchvision's IMAGENET1K_V1 weights |
| efficientnet_b4 | 256 px, a stronger baseline |
| small-cnn | 256 px, our own, for tests and the demo |
| any other | the timm model of that name |
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from dfm_engine.detect.detector import DetectorSpec, ForgeryDetector, fake_probability
from dfm_engine.detect.meso import meso4, meso_spec, mesoinception4
from dfm_engine.detect.small_cnn import SmallCnn, small_cnn_spec
from dfm_engine.detect.weights import fill_from_file
from dfm_engine.detect.weights_cache import (
    Published,
    find_cached,
    of_mesonet,
    of_timm,
    of_torchvision,
)
from dfm_engine.errors import UsageError
from dfm_engine.weight_files import tensor_digest

__all__ = [
    "DETECTORS",
    "DetectorSpec",
    "ForgeryDetector",
    "build_detector",
    "create_detector",
    "detector_spec",
    "fake_probability",
]

_HALF = (0.5, 0.5, 0.5)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    spec: DetectorSpec
    build: Callable[[DetectorSpec], ForgeryDetector]
    published: Callable[[], tuple[Published, ...]]


def _build_timm(spec: DetectorSpec, *, architecture: str, is_known: bool) -> ForgeryDetector:
    from dfm_engine.detect.timm_net import TimmNet  # timm takes seconds to import

    return TimmNet(spec, architecture, is_known=is_known)


def _known_timm(
    name: str,
    architecture: str,
    input_px: int,
    norm: tuple[tuple[float, ...], tuple[float, ...]],
    published: Callable[[], tuple[Published, ...]],
) -> _Known:
    return _Known(
        spec=DetectorSpec(name=name, input_px=input_px, mean=norm[0], std=norm[1]),
        build=partial(_build_timm, architecture=architecture, is_known=True),
        published=published,
    )


def _resnet(depth: int, sha256: str) -> _Known:
    name = f"resnet{depth}"
    published = partial(of_torchvision, f"{name}-{sha256}.pth", f"{name}.tv_in1k")
    return _known_timm(name, name, 224, _IMAGENET, published)


_KNOWN = {
    known.spec.name: known
    for known in (
        _Known(
            spec=meso_spec("mesoinception4"),
            build=mesoinception4,
            published=partial(of_mesonet, "MesoInception"),
        ),
        _Known(spec=meso_spec("meso4"), build=meso4, published=partial(of_mesonet, "Meso4")),
        _known_timm(
            "xception",
            "legacy_xception",
            256,
            (_HALF, _HALF),
            # FaceForensics++' copy first: what its users have; both are Cadene's port from Keras.
            lambda: (
                Published(file="xception-b5690688.pth", project="Cadene/pretrained-models.pytorch"),
                *of_timm("legacy_xception.tf_in1k"),
            ),
        ),
        _resnet(50, "0676ba61"),
        _resnet(101, "63fe2227"),
        _resnet(152, "394f9c45"),
        _known_timm(
            "efficientnet_b4",
            "efficientnet_b4",
            256,
            _IMAGENET,
            partial(of_timm, "efficientnet_b4.ra2_in1k"),
        ),
        _Known(spec=small_cnn_spec(), build=SmallCnn, published=tuple),
    )
}

DETECTORS: tuple[str, ...] = tuple(_KNOWN)


def create_detector(
    name: str,
    *,
    weights: str | os.PathLike[str] = "none",
    seed: int = 0,
    input_px: int | None = None,
) -> ForgeryDetector:
    """A detector in evaluation mode on the CPU.

    Args:
        name: one of `DETECTORS`, or a timm model, with or without its tag.
        weights: a file (.pth, .safetensors, .h5); "cache": the published ones, where the
            ecosystem keeps them on this machine; "none": seeded.
        seed: of everything that no file fills.
        input_px: another input side than the usual one.

    Raises:
        UsageError: no such model, or not of this input size.
        WeightsError: weights absent, damaged, unsafe, or of another architecture.
    """
    detector = build_detector(detector_spec(name, input_px=input_px), seed=seed)
    if str(weights) == "none":
        detector.weights_sha256 = tensor_digest(detector)
    elif str(weights) == "cache":
        known = _KNOWN.get(name)
        candidates = known.published() if known is not None else of_timm(name)
        fill_from_file(detector, find_cached(name, candidates))
    else:
        fill_from_file(detector, Path(weights))
    return detector


def detector_spec(name: str, *, input_px: int | None = None) -> DetectorSpec:
    """The spec that `create_detector` gives this name; of an unlisted timm model, less its cam.

    Raises:
        UsageError: no such model, or not of this input size.
    """
    known = _KNOWN.get(name)
    if known is None:
        from dfm_engine.detect.timm_net import timm_spec

        return timm_spec(name, input_px)
    if input_px is None or input_px == known.spec.input_px:
        return known.spec
    if input_px % 32 or input_px < 32:
        raise UsageError(f"{name}: an input side is a multiple of 32, found {input_px}")
    return replace(known.spec, input_px=input_px)


def build_detector(spec: DetectorSpec, *, seed: int = 0) -> ForgeryDetector:
    """The net of a spec, seeded, in evaluation mode; `weights_sha256` is left blank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        known = _KNOWN.get(spec.name)
        if known is not None:
            detector = known.build(spec)
        else:
            detector = _build_timm(spec, architecture=spec.name, is_known=False)
    return detector.eval()
