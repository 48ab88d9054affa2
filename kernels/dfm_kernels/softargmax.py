"""Soft-argmax: the mean position under each heatmap, and the mean jacobian there.

    h_k(p)      = softmax over positions p of logits_k(p) / temperature
    value_k     = sum_p h_k(p) z(p)                             (z: the grid, corners at -1 and 1)
    jacobian_k  = sum_p h_k(p) map_k(p)                         (row-major 2x2)

The temperature of 0.1 multiplies every error of the logits by ten, and a position is needed to
about 1/256 of a pixel: so float32 at least, whatever the networks run in. In torch the heatmap is
written and read six times; here no position's weight leaves the registers.

Source: FOMM (Siarohin et al. 2019), section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfm_kernels.coordinates import coordinate_grid, grid_position
from dfm_kernels.dispatch import (
    Traffic,
    jit,
    launches_on,
    on_device_of,
    runs_kernel,
    standard_form,
    tl,
)

__all__ = ["soft_argmax", "soft_argmax_reference", "soft_argmax_traffic"]

BLOCK = 512  # positions at a time; one program holds one keypoint. Not yet tuned on a GPU.


def soft_argmax_reference(
    logits: Tensor, jacobian_map: Tensor | None, *, temperature: float
) -> tuple[Tensor, Tensor | None]:
    """As `soft_argmax`, in torch; half precision is computed in float32."""
    height, width = logits.shape[2:]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    heatmap = torch.softmax(logits.flatten(2) / temperature, dim=2)  # (B, K, h*w)
    grid = coordinate_grid(height, width, like=logits).flatten(0, 1)  # (h*w, 2)
    # A sum and no matrix product: BLAS rounds a row by where it stands in the batch.
    value = torch.stack([(heatmap * grid[:, axis]).sum(dim=2) for axis in (0, 1)], dim=-1)
    if jacobian_map is None:
        return value, None
    maps = jacobian_map.to(logits.dtype).flatten(2).unflatten(1, (-1, 4))  # (B, K or 1, 4, h*w)
    jacobian = (heatmap[:, :, None] * maps).sum(dim=3).unflatten(2, (2, 2))  # (B, K, 2, 2)
    return value, jacobian


@jit
def _soft_argmax_kernel(
    logits,
    jacobian_map,
    value,
    jacobian,
    points,
    height,
    width,
    over_temperature,
    logits_b,
    logits_k,
    logits_y,
    logits_x,
    map_b,
    map_k,
    map_m,
    map_y,
    map_x,
    HAS_JACOBIAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pixels = height * width
    program = tl.program_id(0).to(tl.int64)
    row, point = program // points, program % points
    logits += row * logits_b + point * logits_k
    jacobian_map += row * map_b + point * map_k

    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, pixels, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        at = (pixel // width).to(tl.int64) * logits_y + (pixel % width).to(tl.int64) * logits_x
        logit = tl.load(logits + at, mask=pixel < pixels, other=float("-inf")).to(tl.float32)
        highest = tl.maximum(highest, logit)
    highest = tl.max(highest, axis=0)

    # The second reading comes from the cache: a vox-256 heatmap is 13 KB.
    total = tl.zeros((BLOCK,), tl.float32)
    x, y = total, total
    j00, j01, j10, j11 = total, total, total, total
    for start in range(0, pixels, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        inside = pixel < pixels
        down, across = pixel // width, pixel % width
        at = down.to(tl.int64) * logits_y + across.to(tl.int64) * logits_x
        logit = tl.load(logits + at, mask=inside, other=float("-inf")).to(tl.float32)
        weight = tl.exp((logit - highest) * over_temperature)
        total += weight
        x += weight * grid_position(across, width)
        y += weight * grid_position(down, height)
        if HAS_JACOBIAN:
            at = jacobian_map + down.to(tl.int64) * map_y + across.to(tl.int64) * map_x
            j00 += weight * tl.load(at, mask=inside, other=0.0).to(tl.float32)
            j01 += weight * tl.load(at + map_m, mask=inside, other=0.0).to(tl.float32)
            j10 += weight * tl.load(at + 2 * map_m, mask=inside, other=0.0).to(tl.float32)
            j11 += weight * tl.load(at + 3 * map_m, mask=inside, other=0.0).to(tl.float32)

    scale = 1.0 / tl.sum(total, axis=0)  # pyright: ignore[reportOperatorIssue]
    tl.store(value + 2 * program, tl.sum(x, axis=0) * scale)
    tl.store(value + 2 * program + 1, tl.sum(y, axis=0) * scale)
    if HAS_JACOBIAN:
        tl.store(jacobian + 4 * program, tl.sum(j00, axis=0) * scale)
        tl.store(jacobian + 4 * program + 1, tl.sum(j01, axis=0) * scale)
        tl.store(jacobian + 4 * program + 2, tl.sum(j10, axis=0) * scale)
        tl.store(jacobian + 4 * program + 3, tl.sum(j11, axis=0) * scale)


def soft_argmax(
    logits: Tensor, jacobian_map: Tensor | None, *, temperature: float
) -> tuple[Tensor, Tensor | None]:
    """Keypoints of heatmap logits.

    The kernel has no backward; where gradients are wanted, the reference computes.

    Args:
        logits: (B, K, h, w), before temperature and softmax; any float dtype, any layout.
        jacobian_map: (B, 4 K, h, w), or (B, 4, h, w) where one map serves all K; row-major 2x2.
        temperature: divides the logits.

    Returns:
        (B, K, 2) positions and, from a map, (B, K, 2, 2) jacobians: float32, or float64 from that.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    if logits.ndim != 4 or 0 in logits.shape[2:]:
        raise ValueError(f"soft_argmax: logits must be (B, K, h, w), got {tuple(logits.shape)}")
    rows, points, height, width = logits.shape
    fitting = [(rows, 4, height, width), (rows, 4 * points, height, width)]
    if jacobian_map is not None and jacobian_map.shape not in fitting:
        raise ValueError(
            f"soft_argmax: the jacobian map must be {fitting[1]} or {fitting[0]} for logits "
            f"{tuple(logits.shape)}, got {tuple(jacobian_map.shape)}"
        )
    if not runs_kernel(logits, jacobian_map):
        return soft_argmax_reference(logits, jacobian_map, temperature=temperature)
    value, jacobian = torch.ops.dfm.soft_argmax(logits, jacobian_map, temperature)
    return value, None if jacobian_map is None else jacobian


def soft_argmax_traffic(
    rows: int, points: int, height: int, width: int, *, element_bytes: int, maps: int = 4
) -> Traffic:
    """Logits and `maps` jacobian channels per keypoint read once; the results are a few numbers.

    Per position: 5 for its weight, 4 for the point, 2 per channel.
    """
    positions = rows * points * height * width
    return Traffic(
        bytes=positions * (1 + maps) * element_bytes + rows * points * (2 + maps) * 4,
        flops=positions * (9 + 2 * maps),
    )


@torch.library.custom_op("dfm::soft_argmax", mutates_args=())
def _soft_argmax(
    logits: Tensor, jacobian_map: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    if launches_on(logits):
        return _launch(logits, jacobian_map, temperature)
    return _plain(logits, jacobian_map, temperature)


@_soft_argmax.register_fake
def _(logits: Tensor, jacobian_map: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    return _unwritten(logits, jacobian_map)


@standard_form(torch.ops.dfm.soft_argmax.default)
def _plain(
    logits: Tensor, jacobian_map: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """The reference, with nothing for absent jacobians: operators return tensors."""
    value, jacobian = soft_argmax_reference(logits, jacobian_map, temperature=temperature)
    return value, value.new_empty(0) if jacobian is None else jacobian


def _unwritten(logits: Tensor, jacobian_map: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, points = logits.shape[:2]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    shape = (0,) if jacobian_map is None else (rows, points, 2, 2)
    return logits.new_empty((rows, points, 2), dtype=dtype), logits.new_empty(shape, dtype=dtype)


def _launch(
    logits: Tensor, jacobian_map: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    rows, points, height, width = logits.shape
    outputs = _unwritten(logits, jacobian_map)
    if logits.numel() == 0:
        return outputs
    maps = logits if jacobian_map is None else jacobian_map
    map_b, map_m, map_y, map_x = maps.stride()
    map_k = 4 * map_m if maps.shape[1] == 4 * points else 0  # one map serves all
    with on_device_of(logits):
        _soft_argmax_kernel[(rows * points,)](
            logits,
            maps,
            *outputs,
            points,
            height,
            width,
            1.0 / temperature,
            *logits.stride(),
            *(map_b, map_k, map_m, map_y, map_x),
            HAS_JACOBIAN=jacobian_map is not None,
            BLOCK=BLOCK,
        )
    return outputs
