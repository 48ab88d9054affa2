"""Small FOMMs with seeded weights whose norms are not the identity, and their NumPy twins."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from dfmtest_fomm_numpy import NumpyFomm, Rules

from dfm_engine import fomm as fomm_package
from dfm_engine.fomm.blocks import AntiAlias, antialias_kernel
from dfm_engine.fomm.model import Fomm


def small_config(
    *,
    frame: tuple[int, int] = (64, 64),
    num_kp: int = 4,
    estimate_jacobian: bool = True,
    kp: dict[str, Any] | None = None,
    gen: dict[str, Any] | None = None,
    dm: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """An architecture as the reference's YAML has it; the last three change single fields."""
    hourglass = {"block_expansion": 4, "max_features": 16, "num_blocks": 3, "scale_factor": 0.25}
    return {
        "model_params": {
            "common_params": {
                "num_kp": num_kp,
                "num_channels": 3,
                "estimate_jacobian": estimate_jacobian,
            },
            "kp_detector_params": {**hourglass, "temperature": 0.1, **(kp or {})},
            "generator_params": {
                "block_expansion": 4,
                "max_features": 16,
                "num_down_blocks": 2,
                "num_bottleneck_blocks": 2,
                "estimate_occlusion_map": True,
                **(gen or {}),
                "dense_motion_params": {**hourglass, **(dm or {})},
            },
            "discriminator_params": {
                "scales": [1],
                "block_expansion": 4,
                "max_features": 16,
                "num_blocks": 3,
                "sn": True,
            },
        },
        "dataset_params": {"frame_shape": [*frame, 3]},
    }


def make_fomm(config: dict[str, Any], *, seed: int = 0, align_corners: bool = True) -> Fomm:
    """Seeded weights; every norm and bias moved away from where it starts, so that it counts."""
    model = fomm_package.initialise(config, seed, align_corners=align_corners)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.7, 1.3, generator=generator)
                module.bias.uniform_(-0.2, 0.2, generator=generator)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean += 0.4 * torch.rand(module.bias.shape, generator=generator)
                module.running_var *= 0.5 + torch.rand(module.bias.shape, generator=generator)
            elif isinstance(module, torch.nn.Conv2d) and module.bias is not None:
                noise = torch.rand(module.bias.shape, generator=generator)
                module.bias += 0.2 * noise - 0.1
    return model


def to_double(model: Fomm) -> Fomm:
    """The same in float64, with the anti-alias kernels in that precision too."""
    model = model.double()
    for module in model.modules():
        if isinstance(module, AntiAlias):
            module.weight.copy_(antialias_kernel(module.scale).expand(module.weight.shape))
    return model


def numpy_twin(model: Fomm, config: dict[str, Any], rules: Rules | None = None) -> NumpyFomm:
    """The NumPy FOMM with this model's weights."""
    kp, gen = (
        {name: value.numpy() for name, value in part.state_dict().items()}
        for part in (model.kp_detector, model.generator)
    )
    return NumpyFomm(config, kp, gen, rules or Rules(align_corners=model.align_corners))


def pictures(count: int, frame: tuple[int, int], *, seed: int = 0) -> torch.Tensor:
    """(count, 3, H, W) float64 in [0, 1]: smooth blobs with some grain, seeded."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator, dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(coarse, size=frame, mode="bicubic")
    grain = torch.rand(count, 3, *frame, generator=generator, dtype=torch.float64)
    return (0.85 * smooth + 0.15 * grain).clamp(0, 1)


def assert_close(found: Any, wanted: Any, tolerance: float, what: str = "") -> None:
    """Largest absolute difference within tolerance; names the worst index."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape, f"{what}: {found.shape} against {wanted.shape}"
    difference = np.abs(found - wanted)
    worst = np.unravel_index(np.argmax(difference), difference.shape)
    assert difference[worst] <= tolerance, (
        f"{what}: off by {difference[worst]:.3g} at {tuple(map(int, worst))}, "
        f"{found[worst]:.7g} against {wanted[worst]:.7g}; allowed {tolerance:g}"
    )
