"""FOMM in float64 NumPy, one image at a time: a second opinion that shares no code with the engine.

It takes the reference's configuration mapping and a checkpoint's entries as arrays. `Rules` holds
the decisions that are easily got wrong; a test flips one to see the engine disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
Weights = dict[str, Array]


@dataclass(frozen=True)
class Rules:
    align_corners: bool = True
    border: str = "zeros"  # or "edge": what sampling outside the picture reads
    head_padding: int | None = None  # None: the configuration's
    grid_over_pixel_edges: bool = False  # -1 and 1 at pixel edges instead of centres
    skip_first: bool = False  # concat [skip, up] instead of [up, skip]
    occlude_after_bottleneck: bool = False
    swap_axes: bool = False  # (y, x) instead of (x, y)
    antialias: bool = True  # False: plain subsampling
    background_last: bool = False
    interpolate_align_corners: bool = False


class NumpyFomm:
    def __init__(
        self,
        config: dict[str, Any],
        kp_detector: Weights,
        generator: Weights,
        rules: Rules | None = None,
    ) -> None:
        model = config["model_params"]
        self.common = {"estimate_jacobian": False, **model["common_params"]}
        self.kp_params = {
            "scale_factor": 1,
            "single_jacobian_map": False,
            "pad": 0,
            **model["kp_detector_params"],
        }
        self.gen_params = {"estimate_occlusion_map": False, **model["generator_params"]}
        self.dm_params = {
            "scale_factor": 1,
            "kp_variance": 0.01,
            **self.gen_params["dense_motion_params"],
        }
        self.kpw = {k: np.asarray(v, np.float64) for k, v in kp_detector.items()}
        self.genw = {k: np.asarray(v, np.float64) for k, v in generator.items()}
        self.rules = rules or Rules()

    def keypoints(self, image: Array) -> tuple[Array, Array | None]:
        """(3, H, W) -> (K, 2), (K, 2, 2)."""
        params, w = self.kp_params, self.kpw
        x = self.shrink(np.asarray(image, np.float64), params["scale_factor"])
        x = self.hourglass(x, w, "predictor.", params["num_blocks"])
        pad = params["pad"] if self.rules.head_padding is None else self.rules.head_padding
        logits = conv(x, w["kp.weight"], w["kp.bias"], pad) / params["temperature"]
        points, height, width = logits.shape
        heat = softmax(logits.reshape(points, -1), axis=1).reshape(logits.shape)
        grid = self.grid(height, width)
        value = np.zeros((points, 2))
        for k in range(points):
            for axis in range(2):
                value[k, axis] = (heat[k] * grid[..., axis]).sum()
        if not self.common["estimate_jacobian"]:
            return value, None
        maps = conv(x, w["jacobian.weight"], w["jacobian.bias"], pad)
        jacobian = np.zeros((points, 2, 2))
        for k in range(points):
            first = 0 if params["single_jacobian_map"] else 4 * k
            for m in range(4):
                jacobian[k, m // 2, m % 2] = (heat[k] * maps[first + m]).sum()
        return value, jacobian

    def animate(
        self,
        source: Array,
        kp_source: tuple[Array, Array | None],
        kp_driving: tuple[Array, Array | None],
    ) -> dict[str, Array]:
        """One frame; keys as the engine's Animation."""
        rules, w = self.rules, self.genw
        source = np.asarray(source, np.float64)
        small = self.shrink(source, self.dm_params["scale_factor"])
        height, width = small.shape[1:]
        grid = self.grid(height, width)
        motions, heats = [grid], [np.zeros((height, width))]
        for k in range(len(kp_driving[0])):
            at_source, at_driving = kp_source[0][k], kp_driving[0][k]
            offset = grid - at_driving
            if kp_source[1] is not None and kp_driving[1] is not None:
                affine = kp_source[1][k] @ np.linalg.inv(kp_driving[1][k])
                offset = offset @ affine.T
            motions.append(offset + at_source)
            heats.append(self.bump(grid, at_driving) - self.bump(grid, at_source))
        if rules.background_last:
            motions, heats = motions[1:] + motions[:1], heats[1:] + heats[:1]
        moved = [self.sample(small, motion) for motion in motions]
        stacked = np.concatenate([np.concatenate([h[None], m]) for h, m in zip(heats, moved)])  # noqa: B905

        name = "dense_motion_network."
        x = self.hourglass(stacked, w, name + "hourglass.", self.dm_params["num_blocks"])
        mask = softmax(conv(x, w[name + "mask.weight"], w[name + "mask.bias"], 3), axis=0)
        deformation = np.sum(mask[..., None] * np.stack(motions), axis=0)
        result = {
            "mask": mask,
            "deformation": deformation,
            "sparse_deformed": np.stack(moved),
            "deformed": self.sample(source, self.resize_grid(deformation, source.shape[1:])),
        }
        occlusion = np.ones((1, height, width))
        if self.gen_params["estimate_occlusion_map"]:
            occlusion = sigmoid(
                conv(x, w[name + "occlusion.weight"], w[name + "occlusion.bias"], 3)
            )
            result["occlusion_map"] = occlusion

        x = block(source, w, "first.", padding=3)
        for i in range(self.gen_params["num_down_blocks"]):
            x = halve(block(x, w, f"down_blocks.{i}."))
        x = self.sample(x, self.resize_grid(deformation, x.shape[1:]))
        occlusion = self.resize(occlusion, x.shape[1:])
        if not rules.occlude_after_bottleneck:
            x = x * occlusion
        for i in range(self.gen_params["num_bottleneck_blocks"]):
            x = residual(x, w, f"bottleneck.r{i}.")
        if rules.occlude_after_bottleneck:
            x = x * occlusion
        for i in range(self.gen_params["num_down_blocks"]):
            x = block(double(x), w, f"up_blocks.{i}.")
        result["prediction"] = sigmoid(conv(x, w["final.weight"], w["final.bias"], 3))
        return result

    def hourglass(self, x: Array, w: Weights, name: str, blocks: int) -> Array:
        levels = [x]
        for i in range(blocks):
            levels.append(halve(block(levels[-1], w, f"{name}encoder.down_blocks.{i}.")))
        x = levels.pop()
        for i in range(blocks):
            up = block(double(x), w, f"{name}decoder.up_blocks.{i}.")
            skip = levels.pop()
            x = np.concatenate([skip, up] if self.rules.skip_first else [up, skip])
        return x

    def shrink(self, image: Array, scale: float) -> Array:
        if scale == 1:
            return image
        step = int(1 / scale)
        if self.rules.antialias:
            sigma = (1 / scale - 1) / 2
            radius = round(4 * sigma)
            line = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
            line /= line.sum()
            image = np.stack([separable(channel, line) for channel in image])
        return image[:, ::step, ::step]

    def grid(self, height: int, width: int) -> Array:
        def axis(n: int) -> Array:
            if self.rules.grid_over_pixel_edges:
                return (2 * np.arange(n) + 1) / n - 1
            return np.linspace(-1, 1, n)

        grid = np.empty((height, width, 2))
        first, second = (1, 0) if self.rules.swap_axes else (0, 1)
        grid[..., first] = axis(width)[None, :]
        grid[..., second] = axis(height)[:, None]
        return grid

    def bump(self, grid: Array, centre: Array) -> Array:
        distance = ((grid - centre) ** 2).sum(axis=-1)
        return np.exp(-0.5 * distance / self.dm_params["kp_variance"])

    def sample(self, maps: Array, grid: Array) -> Array:
        channels, height, width = maps.shape
        positions = []
        for axis, size in ((0, width), (1, height)):
            z = grid[..., axis]
            full = (
                (z + 1) / 2 * (size - 1) if self.rules.align_corners else ((z + 1) * size - 1) / 2
            )
            positions.append(full)
        x, y = positions
        left, top = np.floor(x).astype(int), np.floor(y).astype(int)
        result = np.zeros((channels, *grid.shape[:2]))
        for dy in (0, 1):
            for dx in (0, 1):
                col, row = left + dx, top + dy
                share = (1 - np.abs(x - col)) * (1 - np.abs(y - row))
                if self.rules.border == "zeros":
                    inside = (col >= 0) & (col < width) & (row >= 0) & (row < height)
                    share = share * inside
                result += share * maps[:, row.clip(0, height - 1), col.clip(0, width - 1)]
        return result

    def resize(self, maps: Array, size: tuple[int, ...]) -> Array:
        """Bilinear with half-pixel centres and repeated borders, one axis after the other."""
        if maps.shape[1:] == tuple(size):
            return maps
        for axis, wanted in ((1, size[0]), (2, size[1])):
            have = maps.shape[axis]
            if self.rules.interpolate_align_corners:
                at = np.linspace(0, have - 1, wanted)
            else:
                at = ((np.arange(wanted) + 0.5) * have / wanted - 0.5).clip(0, have - 1)
            low = np.minimum(np.floor(at).astype(int), have - 1)
            high = np.minimum(low + 1, have - 1)
            shape = [1, 1, 1]
            shape[axis] = wanted
            share = (at - low).reshape(shape)
            maps = maps.take(low, axis) * (1 - share) + maps.take(high, axis) * share
        return maps

    def resize_grid(self, grid: Array, size: tuple[int, ...]) -> Array:
        return self.resize(grid.transpose(2, 0, 1), size).transpose(1, 2, 0)


def conv(x: Array, weight: Array, bias: Array, padding: int) -> Array:
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    kernel = weight.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(1, 2))
    result = np.tensordot(weight, windows, axes=([1, 2, 3], [0, 3, 4]))
    return result + bias[:, None, None]


def norm(x: Array, w: Weights, name: str) -> Array:
    scale = w[name + "weight"] / np.sqrt(w[name + "running_var"] + 1e-5)
    shift = w[name + "bias"] - w[name + "running_mean"] * scale
    return x * scale[:, None, None] + shift[:, None, None]


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def block(x: Array, w: Weights, name: str, padding: int = 1) -> Array:
    x = conv(x, w[name + "conv.weight"], w[name + "conv.bias"], padding)
    return relu(norm(x, w, name + "norm."))


def residual(x: Array, w: Weights, name: str) -> Array:
    y = x
    for i in (1, 2):
        y = relu(norm(y, w, f"{name}norm{i}."))
        y = conv(y, w[f"{name}conv{i}.weight"], w[f"{name}conv{i}.bias"], 1)
    return x + y


def halve(x: Array) -> Array:
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def double(x: Array) -> Array:
    return x.repeat(2, axis=1).repeat(2, axis=2)


def separable(channel: Array, line: Array) -> Array:
    def along(rows: Array) -> Array:
        return np.stack([np.convolve(row, line, mode="full") for row in rows])[:, radius:-radius]

    radius = len(line) // 2
    return along(along(channel).T).T


def softmax(x: Array, axis: int) -> Array:
    x = np.exp(x - x.max(axis=axis, keepdims=True))
    return x / x.sum(axis=axis, keepdims=True)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))
