"""FOMM written out line by line, with every intermediate result: the reference for fast paths.

Slow on purpose: the source is encoded again for every row, the anti-alias filters at full size
and throws fifteen of sixteen positions away, matrices are inverted by LAPACK, one motion is
sampled at a time. Only the weights are shared with the modules that run in production.

The names are those of the published pipeline's parts: `kp.*` keypoint detector, `dm.*` dense
motion, `gen.*` generator, `out.*` outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dfm_engine.fomm.blocks import AntiAlias
from dfm_engine.fomm.generator import Generator
from dfm_engine.fomm.keypoints import KeypointDetector
from dfm_engine.fomm.values import Keypoints

Trace = dict[str, Tensor]


def trace_keypoints(detector: KeypointDetector, images: Tensor) -> tuple[Keypoints, Trace]:
    """Keypoints of (B, 3, H, W) images, and `kp.*` on the way."""
    trace: Trace = {}
    small = trace["kp.antialias_64"] = _antialias(detector.down, images)
    features = trace["kp.hourglass_out"] = detector.predictor(small)
    logits = trace["kp.heatmap_logits"] = detector.kp(features)
    rows, points, height, width = logits.shape
    heatmap = F.softmax(logits.view(rows, points, -1) / detector.temperature, dim=2)
    heatmap = heatmap.view(rows, points, height, width)
    x, y = _axis(width, images), _axis(height, images)
    value = torch.stack(
        [torch.einsum("bkhw,w->bk", heatmap, x), torch.einsum("bkhw,h->bk", heatmap, y)], dim=-1
    )
    if detector.jacobian is None:
        return Keypoints(value), trace
    maps = trace["kp.jacobian_map"] = detector.jacobian(features)
    maps = maps.view(rows, -1, 4, height, width).expand(-1, points, -1, -1, -1)
    jacobian = torch.einsum("bkhw,bkmhw->bkm", heatmap, maps).view(rows, points, 2, 2)
    return Keypoints(value, jacobian), trace


def trace_animation(
    generator: Generator, source: Tensor, kp_source: Keypoints, kp_driving: Keypoints
) -> Trace:
    """`dm.*`, `gen.*` and `out.*` of B rows.

    Args:
        generator: in the mode that is wanted, evaluation or training.
        source: (B, 3, H, W) images in [0, 1].
        kp_source: B rows.
        kp_driving: B rows, after transfer.
    """
    trace: Trace = {}
    network = generator.dense_motion_network

    small = trace["dm.source_antialias"] = _antialias(network.down, source)
    rows, _, height, width = small.shape
    grid = torch.stack(
        torch.meshgrid(_axis(width, small), _axis(height, small), indexing="xy"), dim=-1
    )
    heats = [torch.zeros_like(small[:, :1])]
    motions = [grid.expand(rows, -1, -1, -1)]
    for k in range(kp_driving.value.shape[1]):
        at_source, at_driving = (
            points.value[:, k].view(rows, 1, 1, 2) for points in (kp_source, kp_driving)
        )
        bumps = [
            torch.exp(-0.5 * ((grid - at) ** 2).sum(-1) / network.kp_variance)
            for at in (at_driving, at_source)
        ]
        heats.append((bumps[0] - bumps[1])[:, None])
        offset = grid - at_driving
        if kp_source.jacobian is not None and kp_driving.jacobian is not None:
            affine = kp_source.jacobian[:, k] @ torch.linalg.inv(kp_driving.jacobian[:, k])
            offset = torch.einsum("bij,bhwj->bhwi", affine, offset)
        motions.append(offset + at_source)
    motion = trace["dm.sparse_motions"] = torch.stack(motions, dim=1)
    heat = trace["dm.heatmap_representation"] = torch.stack(heats, dim=1)
    moved = torch.stack([_sample(small, m, network.align_corners) for m in motions], dim=1)
    trace["out.sparse_deformed"] = moved

    stacked = trace["dm.hourglass_in"] = torch.cat([heat, moved], dim=2).flatten(1, 2)
    features = trace["dm.hourglass_out"] = network.hourglass(stacked)
    logits = trace["dm.mask_logits"] = network.mask(features)
    mask = trace["out.mask"] = torch.softmax(logits, dim=1)
    deformation = torch.einsum("bkhw,bkhwi->bhwi", mask, motion)
    trace["out.deformation"] = deformation

    x = trace["gen.first"] = generator.first(source)
    for i, block in enumerate(generator.down_blocks):
        x = trace[f"gen.down{i}"] = block(x)
    trace["gen.encoded"] = x
    x = trace["gen.warped"] = _warp(x, deformation, generator.align_corners)
    if network.occlusion is not None:
        logits = trace["dm.occlusion_logits"] = network.occlusion(features)
        occlusion = trace["out.occlusion_map"] = torch.sigmoid(logits)
        x = x * _resize(occlusion, x.shape[2:])
    trace["gen.warped_occluded"] = x
    x = trace["gen.bottleneck_out"] = generator.bottleneck(x)
    for i, block in enumerate(generator.up_blocks):
        x = trace[f"gen.up{i}"] = block(x)
    logits = trace["gen.final_logits"] = generator.final(x)
    trace["out.prediction"] = torch.sigmoid(logits)
    trace["out.deformed"] = _warp(source, deformation, generator.align_corners)
    return trace


def _antialias(down: AntiAlias | None, images: Tensor) -> Tensor:
    if down is None:
        return images
    padding = down.weight.shape[-1] // 2
    blurred = F.conv2d(F.pad(images, [padding] * 4), down.weight.to(images), groups=images.shape[1])
    return blurred[:, :, :: down.stride, :: down.stride]


def _axis(size: int, like: Tensor) -> Tensor:
    return 2 * (torch.arange(size, dtype=like.dtype, device=like.device) / (size - 1)) - 1


def _warp(maps: Tensor, deformation: Tensor, align_corners: bool) -> Tensor:
    grid = _resize(deformation.permute(0, 3, 1, 2), maps.shape[2:]).permute(0, 2, 3, 1)
    return _sample(maps, grid, align_corners)


def _resize(maps: Tensor, size: torch.Size) -> Tensor:
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def _sample(maps: Tensor, grid: Tensor, align_corners: bool) -> Tensor:
    return F.grid_sample(
        maps, grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners
    )
