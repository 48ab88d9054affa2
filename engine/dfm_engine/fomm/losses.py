"""The terms of the training loss, each a plain function of tensors.

In: images (B, 3, H, W) in [0, 1], keypoint values (B, K, 2) and jacobians (B, K, 2, 2), feature
lists. Out: scalars, unweighted unless an argument is a weight. The published terms come first
(perceptual pyramid, LSGAN, feature matching, equivariance); then what a renderer's ground truth
makes possible.

Source: FOMM (Siarohin et al. 2019), sections 3.3 and the training code; SSIM of Wang et al. 2004.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dfm_engine.fomm.blocks import antialias_kernel
from dfm_engine.fomm.geometry import inverse_2x2, product_2x2
from dfm_engine.fomm.vgg import VggFeatures


def image_pyramid(images: Tensor, scales: Sequence[float]) -> dict[float, Tensor]:
    """Images (B, C, H, W) at each scale, by the model's own anti-alias filter (`blocks.AntiAlias`).

    The Gaussian is separable, so each scale is two small matrix products; a 29x29 depthwise
    convolution (scale 1/8) costs fifteen times the arithmetic and has a slow backward pass.
    """
    pyramid: dict[float, Tensor] = {}
    for scale in scales:
        if scale == 1:
            pyramid[scale] = images
            continue
        rows = antialias_matrix(images.shape[-2], scale, like=images)
        columns = antialias_matrix(images.shape[-1], scale, like=images)
        with torch.autocast(images.device.type, enabled=False):
            pyramid[scale] = rows @ images @ columns.T
    return pyramid


def antialias_matrix(length: int, scale: float, *, like: Tensor) -> Tensor:
    """(ceil(length * scale), length): blur and keep every n-th sample, zeros outside."""
    key = (length, scale, like.device, like.dtype)
    if key not in _MATRICES:
        profile = antialias_kernel(scale).sum(0)
        step, reach = int(1 / scale), len(profile) // 2
        matrix = torch.zeros(-(-length // step), length)
        for row in range(len(matrix)):
            first = row * step - reach
            low, high = max(first, 0), min(first + len(profile), length)
            matrix[row, low:high] = profile[low - first : high - first]
        _MATRICES[key] = matrix.to(like)
    return _MATRICES[key]


# Constants by size and device: a recorded GPU step cannot copy them from the host each time.
_MATRICES: dict[tuple[int, float, torch.device, torch.dtype], Tensor] = {}


def perceptual_distance(
    prediction: Tensor, target: Tensor, *, vgg: VggFeatures, weights: Sequence[float]
) -> Tensor:
    """Weighted L1 between VGG19 features of one scale; no gradient reaches the target."""
    with torch.no_grad():
        wanted = vgg(target)
    found = vgg(prediction)
    return torch.stack(
        [weight * F.l1_loss(a, b) for weight, a, b in zip(weights, found, wanted, strict=True)]
    ).sum()


def structure_distance(
    prediction: Tensor,
    target: Tensor,
    *,
    region: Tensor | None = None,
    gradient_weight: float = 1.0,
    ssim_weight: float = 0.1,
) -> Tensor:
    """The substitute for VGG features at one scale: L1, L1 of gradients, and 1 - SSIM.

    L1 alone is content with blur. Gradients ask for edges in the right place; SSIM for contrast.

    Args:
        prediction: (B, 3, H, W).
        target: the same shape.
        region: (B, 1, H, W) weights of pixels, mean about 1; None weighs all alike.
        gradient_weight: of the gradient term, relative to the L1 term.
        ssim_weight: of the SSIM term, relative to the L1 term.
    """
    difference = prediction - target
    weight = difference.new_ones(()) if region is None else region
    loss = (difference.abs() * weight).mean()
    if gradient_weight:
        across = difference[..., :, 1:] - difference[..., :, :-1]
        down = difference[..., 1:, :] - difference[..., :-1, :]
        wx = weight if region is None else region[..., :, 1:]
        wy = weight if region is None else region[..., 1:, :]
        loss = loss + gradient_weight * ((across.abs() * wx).mean() + (down.abs() * wy).mean())
    if ssim_weight:
        dissimilar = 1 - box_ssim(prediction, target)
        loss = loss + ssim_weight * (dissimilar * weight).mean()
    return loss


def box_ssim(first: Tensor, second: Tensor, *, window: int = 7) -> Tensor:
    """SSIM per pixel and channel with a box window (zero-padding excluded from the means)."""

    def blur(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, window, 1, window // 2, count_include_pad=False)

    # about 0.5, the cancellation in E[x^2] - E[x]^2 loses the least
    first, second = first - 0.5, second - 0.5
    mean_a, mean_b = blur(first), blur(second)
    var_a = blur(first * first) - mean_a * mean_a
    var_b = blur(second * second) - mean_b * mean_b
    covariance = blur(first * second) - mean_a * mean_b
    mean_a, mean_b = mean_a + 0.5, mean_b + 0.5
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a * mean_a + mean_b * mean_b + c1) * (var_a + var_b + c2)
    )


def generator_gan(fake_map: Tensor) -> Tensor:
    """LSGAN, generator's side: mean (1 - D(fake))^2."""
    return (1 - fake_map).square().mean()


def discriminator_gan(real_map: Tensor, fake_map: Tensor) -> Tensor:
    """LSGAN, discriminator's side: mean[(1 - D(real))^2 + D(fake)^2]."""
    return ((1 - real_map).square() + fake_map.square()).mean()


def feature_matching(
    real: Sequence[Tensor], fake: Sequence[Tensor], *, weights: Sequence[float]
) -> Tensor:
    """Weighted L1 between the discriminator's features, block by block."""
    return torch.stack(
        [
            weight * F.l1_loss(b, a.detach())
            for weight, a, b in zip(weights, real, fake, strict=True)
        ]
    ).sum()


def equivariance_value(value: Tensor, warped_value: Tensor) -> Tensor:
    """Mean |kp(x) - W(kp(x o W))|; the second argument is already mapped by W."""
    return F.l1_loss(warped_value, value)


def equivariance_jacobian(jacobian: Tensor, warped_jacobian: Tensor) -> Tensor:
    """Mean |I - J(x)^-1 (dW J(x o W))|; the second argument is already multiplied by dW."""
    product = product_2x2(inverse_2x2(jacobian), warped_jacobian)
    return (torch.eye(2, device=product.device, dtype=product.dtype) - product).abs().mean()


def occlusion_target(warped: Tensor, target: Tensor, *, sharpness: float = 10.0) -> Tensor:
    """How much of the target the warped source already shows: exp(-sharpness * blurred error).

    Args:
        warped: (B, 3, H, W) the source sampled at the deformation.
        target: (B, 3, H, W).
        sharpness: an error of 0.1 gives 1/e at the default.

    Returns:
        (B, 1, H, W) in (0, 1]; detached.
    """
    error = (warped.detach() - target.detach()).abs().mean(1, keepdim=True)
    error = F.avg_pool2d(error, 5, 1, 2, count_include_pad=False)
    return torch.exp(-sharpness * error)


def region_weights(
    points: Tensor, height: int, width: int, *, sigma: float = 0.12, strength: float = 12.0
) -> Tensor:
    """(B, 1, H, W): 1, plus a Gaussian hill of `strength` around each point (the highest counts).

    Args:
        points: (B, N, 2) (x, y) in [-1, 1].
        height: of the map.
        width: of the map.
        sigma: of the hills, in units of the [-1, 1] grid.
        strength: height of a hill.
    """
    y = torch.linspace(-1, 1, height, device=points.device, dtype=points.dtype)
    x = torch.linspace(-1, 1, width, device=points.device, dtype=points.dtype)
    gx = torch.exp(-0.5 * ((x - points[..., 0:1]) / sigma).square())  # (B, N, W)
    gy = torch.exp(-0.5 * ((y - points[..., 1:2]) / sigma).square())  # (B, N, H)
    hills = (gy.unsqueeze(-1) * gx.unsqueeze(-2)).amax(1, keepdim=True)  # (B, 1, H, W)
    return 1 + strength * hills


def hull_areas(points: Tensor, *, directions: int = 64) -> Tensor:
    """Area of the convex hull of each row of points (B, N, 2): (B,).

    The farthest point in each of `directions` directions is a corner of the hull; the shoelace
    formula over them is exact unless two corners hide between neighbouring directions.
    """
    angle = torch.arange(directions, device=points.device, dtype=points.dtype)
    angle = angle * (2 * torch.pi / directions)
    rays = torch.stack((torch.cos(angle), torch.sin(angle)))  # (2, D)
    index = (points @ rays).argmax(1)  # (B, D)
    corners = torch.gather(points, 1, index.unsqueeze(-1).expand(-1, -1, 2))
    following = corners.roll(-1, dims=1)
    cross = corners[..., 0] * following[..., 1] - corners[..., 1] * following[..., 0]
    return 0.5 * cross.sum(1).abs()
