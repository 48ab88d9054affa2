"""Files in the format of the published MesoNet weights, and what Keras computes from them.

`write_h5` nests datasets as Keras 2.1 does (`conv2d_1/conv2d_1/kernel:0`, names as byte strings in
the attributes). `KerasMeso` is the forward pass in float64 NumPy, NHWC, from the file alone.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

FLOAT = np.float64
INCEPTION = "mesoinception4"


def layer_shapes(name: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """Keras layer -> weight -> shape, in the order in which the layers were made."""
    convs: list[tuple[int, int, int]] = []  # kernel, in, out
    if name == INCEPTION:
        for before, (a, b, c, d) in ((3, (1, 4, 4, 2)), (11, (2, 4, 4, 2))):
            convs += [(1, before, a)]
            for width in (b, c, d):
                convs += [(1, before, width), (3, width, width)]
        convs += [(5, 12, 16), (5, 16, 16)]
        norms = (11, 12, 16, 16)
    else:
        convs = [(3, 3, 8), (5, 8, 8), (5, 8, 16), (5, 16, 16)]
        norms = (8, 8, 16, 16)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for index, (kernel, before, after) in enumerate(convs, 1):
        shapes[f"conv2d_{index}"] = {"kernel": (kernel, kernel, before, after), "bias": (after,)}
    for index, width in enumerate(norms, 1):
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        shapes[f"batch_normalization_{index}"] = dict.fromkeys(names, (width,))
    shapes["dense_1"] = {"kernel": (1024, 16), "bias": (16,)}
    shapes["dense_2"] = {"kernel": (16, 1), "bias": (1,)}
    return shapes


def make_layers(name: str, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Seeded weights at which no unit is dead and every bias counts."""
    rng = np.random.default_rng(seed)
    layers: dict[str, dict[str, np.ndarray]] = {}
    for layer, weights in layer_shapes(name).items():
        layers[layer] = {}
        for weight, shape in weights.items():
            fan_in = int(np.prod(shape[:-1])) or 1
            values = rng.normal(0, np.sqrt(2 / fan_in) if len(shape) > 1 else 0.3, shape)
            if weight in ("gamma", "moving_variance"):
                values = rng.uniform(0.5, 1.5, shape)
            layers[layer][weight] = values.astype(np.float32)
    return layers


def write_h5(path: Path, layers: dict[str, dict[str, np.ndarray]], *, whole: bool = False) -> Path:
    """Write the weights as `save_weights` does, or with `whole` as `save` does."""
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole else file
        # Groups of layers without weights stand between the others in a real file.
        names = ["input_1", *layers, "max_pooling2d_1", "leaky_re_lu_1", "dropout_1"]
        root.attrs["layer_names"] = [name.encode() for name in names]
        root.attrs["backend"] = b"tensorflow"
        root.attrs["keras_version"] = b"2.1.5"
        for name in names:
            group = root.create_group(name)
            weights = layers.get(name, {})
            group.attrs["weight_names"] = [f"{name}/{weight}:0".encode() for weight in weights]
            for weight, values in weights.items():
                group.create_dataset(f"{name}/{weight}:0", data=values)
    return path


class KerasMeso:
    """What Keras computes: the probability of *real*, as the published weights define it."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.weights: dict[str, np.ndarray] = {}
        with h5py.File(path, "r") as file:
            for layer, weights in layer_shapes(name).items():
                for weight in weights:
                    values = np.asarray(file[f"{layer}/{layer}/{weight}:0"])
                    self.weights[f"{layer}/{weight}"] = values.astype(FLOAT)

    def real(self, images: np.ndarray) -> np.ndarray:
        """(B,) of images (B, 256, 256, 3) in [0, 1]."""
        x = images.astype(FLOAT)
        if self.name == INCEPTION:
            x = self._pool(self._norm(self._inception(x, 1), 1), 2)
            x = self._pool(self._norm(self._inception(x, 8), 2), 2)
            x = self._pool(self._norm(self._conv(x, 15), 3), 2)
            x = self._pool(self._norm(self._conv(x, 16), 4), 4)
        else:
            for index, pool in enumerate((2, 2, 2, 4), 1):
                x = self._pool(self._norm(self._conv(x, index), index), pool)
        x = x.reshape(len(x), -1) @ self.weights["dense_1/kernel"] + self.weights["dense_1/bias"]
        x = np.where(x > 0, x, 0.1 * x)
        z = x @ self.weights["dense_2/kernel"] + self.weights["dense_2/bias"]
        return 1 / (1 + np.exp(-z[:, 0]))

    def _inception(self, x: np.ndarray, first: int) -> np.ndarray:
        branches = [self._conv(x, first)]
        for dilation in (1, 2, 3):
            index = first + 2 * dilation - 1
            branches.append(self._conv(self._conv(x, index), index + 1, dilation))
        return np.concatenate(branches, axis=3)

    def _conv(self, x: np.ndarray, index: int, dilation: int = 1) -> np.ndarray:
        kernel, bias = (self.weights[f"conv2d_{index}/{weight}"] for weight in ("kernel", "bias"))
        reach = dilation * (kernel.shape[0] // 2)
        padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
        height, width = x.shape[1:3]
        y = np.zeros((*x.shape[:3], kernel.shape[3]), FLOAT)
        for row in range(kernel.shape[0]):
            for column in range(kernel.shape[1]):
                top, left = row * dilation, column * dilation
                y += padded[:, top : top + height, left : left + width] @ kernel[row, column]
        return np.maximum(y + bias, 0)

    def _norm(self, x: np.ndarray, index: int) -> np.ndarray:
        gamma, beta, mean, variance = (
            self.weights[f"batch_normalization_{index}/{weight}"]
            for weight in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta

    @staticmethod
    def _pool(x: np.ndarray, size: int) -> np.ndarray:
        count, height, width, channels = x.shape
        blocks = x.reshape(count, height // size, size, width // size, size, channels)
        return blocks.max((2, 4))
