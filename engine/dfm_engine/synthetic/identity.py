"""Who is drawn: the parameters of one procedural face, from one seed.

An `Identity` is a flat record of plain numbers and colours; `stack` turns several into tensors
for the renderer. Lengths are in head units: the bare head spans y from -1 (crown) to +1 (chin),
x grows to the image right, y down, z towards the viewer. Colours are sRGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Identity", "IdentityBatch", "stack"]

Colour = tuple[float, float, float]

RENDERER_VERSION = 2  # raise it with every change of the pixels: trained demo weights go stale
_STREAM = 1  # sets the draws of an identity apart from other uses of its seed
TILE = 64  # side of the noise tile and of the blurred backdrop, texels

_SKIN = (
    (0.96, 0.83, 0.75), (0.93, 0.77, 0.66), (0.89, 0.70, 0.57), (0.83, 0.62, 0.48),
    (0.74, 0.53, 0.39), (0.64, 0.44, 0.32), (0.54, 0.36, 0.26), (0.44, 0.29, 0.21),
)  # fmt: skip
_HAIR = (
    (0.06, 0.05, 0.05), (0.13, 0.09, 0.07), (0.22, 0.14, 0.09), (0.33, 0.21, 0.12),
    (0.46, 0.30, 0.17), (0.66, 0.50, 0.29), (0.42, 0.23, 0.14), (0.60, 0.58, 0.55),
)  # fmt: skip
_IRIS = (
    (0.20, 0.12, 0.07), (0.32, 0.20, 0.10), (0.26, 0.36, 0.46), (0.25, 0.36, 0.24),
    (0.38, 0.40, 0.42),
)  # fmt: skip
_CLOTH = (
    (0.16, 0.19, 0.27), (0.55, 0.56, 0.58), (0.36, 0.16, 0.17), (0.20, 0.30, 0.26),
    (0.75, 0.72, 0.66), (0.12, 0.12, 0.13), (0.36, 0.42, 0.55), (0.52, 0.43, 0.32),
)  # fmt: skip
_BACKDROP = (
    (0.60, 0.64, 0.68), (0.72, 0.69, 0.63), (0.47, 0.54, 0.55), (0.55, 0.50, 0.47),
    (0.38, 0.43, 0.50), (0.66, 0.70, 0.64), (0.76, 0.76, 0.78),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One face. Lengths in head units, angles in radians, colours sRGB in [0, 1].

    Draw one with `Identity.draw(seed)`; change one with `dataclasses.replace`. `seed` also
    decides its skin and hair texture and the backdrop.
    """

    seed: int
    # skull and frame
    head_width: float = 0.68
    jaw_taper: float = 0.08  # narrowing of the jaw, 0 square .. 0.2 pointed
    depth: float = 0.85
    cheek: float = 0.05
    chin: float = 0.24
    chin_width: float = 0.20
    ear_size: float = 1.0
    neck_width: float = 0.40
    zoom: float = 1.0  # 1: the head is about 70 % of the frame height
    shift: tuple[float, float] = (0.0, 0.0)
    # eyes and brows
    eye_x: float = 0.30
    eye_y: float = 0.02
    eye_width: float = 0.165  # half; about 25 % larger than life, so that a blink is seen
    eye_height: float = 0.082
    eye_tilt: float = 0.08
    iris_radius: float = 0.068
    iris: Colour = _IRIS[0]
    brow_y: float = -0.19
    brow_thick: float = 0.034
    brow_arch: float = 0.05
    brow_tilt: float = 0.0
    # nose and mouth
    nose_y: float = 0.38
    nose_length: float = 0.24  # how far the tip stands out
    nose_width: float = 0.11
    mouth_y: float = 0.655
    mouth_width: float = 0.265  # half; about 25 % larger than life
    lip_upper: float = 0.045
    lip_lower: float = 0.058
    mouth_curve: float = 0.0
    # skin
    skin: Colour = _SKIN[2]
    lip: Colour = (0.70, 0.36, 0.34)
    freckles: float = 0.0
    stubble: float = 0.0
    beard: float = 0.0
    make_up: float = 0.0  # darker lashes and lid
    age: float = 0.3  # depth of the folds
    # hair
    hair: Colour = _HAIR[1]
    has_hair: float = 1.0
    hair_thick: float = 0.09
    hairline: float = -0.60  # its height on the forehead
    bangs: float = 0.0  # 1: down to the brows
    parting: float = 0.0  # -1 left of image .. 1 right
    sideburn: float = 0.05
    long_hair: float = 0.0  # 0 none, 0.5 bob, 1 over the shoulders
    bun: float = 0.0
    waves: float = 0.3
    # glasses
    glasses: float = 0.0
    glasses_round: float = 0.5
    glasses_size: float = 1.0
    glasses_rim: float = 0.018
    glasses_colour: Colour = (0.08, 0.07, 0.07)
    # clothes, backdrop, light, camera
    cloth: Colour = _CLOTH[0]
    collar: float = 0.5
    backdrop: Colour = _BACKDROP[0]
    light: tuple[float, float, float] = (-0.4, -0.5, 0.77)  # towards the light, unit length
    ambient: float = 0.45
    warmth: float = 0.0
    exposure: float = 1.0
    noise: float = 0.010  # camera noise, standard deviation in [0, 1] units

    @classmethod
    def draw(cls, seed: int) -> Identity:
        """Draw a face; equal seeds give equal faces on every machine."""
        rng = np.random.default_rng([_STREAM, seed])

        def normal(mean: float, sigma: float, low: float, high: float) -> float:
            return float(np.clip(rng.normal(mean, sigma), low, high))

        def uniform(low: float, high: float) -> float:
            return float(rng.uniform(low, high))

        def chance(probability: float) -> bool:
            return bool(rng.random() < probability)

        def tone(
            palette: Sequence[Colour], jitter: float, *, blend: bool = True, tint: float = 0.3
        ) -> Colour:
            first = int(rng.integers(len(palette)))
            second = min(first + 1, len(palette) - 1) if blend else first
            mix = rng.random()
            colour = (1 - mix) * np.array(palette[first]) + mix * np.array(palette[second])
            colour = colour * (1 + rng.normal(0, jitter)) + rng.normal(0, tint * jitter, 3)
            return _colour(colour)

        feminine = chance(0.5)  # a bundle of tendencies, each of them only a tendency
        skin = tone(_SKIN, 0.03)
        luma = float(np.dot(skin, (0.3, 0.59, 0.11)))
        dark_hair_only = luma < 0.58
        hair = tone(_HAIR[:3] if dark_hair_only else _HAIR, 0.08, blend=False, tint=0.0)
        bald = not feminine and chance(0.16)
        shaved = not bald and not feminine and chance(0.2)
        style = rng.choice(["short", "bob", "long", "bun"], p=[0.2, 0.3, 0.35, 0.15])
        style = str(style) if feminine else "short"
        bangs = uniform(0.55, 1.0) if chance(0.30 if feminine else 0.12) else 0.0
        lip_mix = uniform(0.45, 0.7) if feminine and chance(0.5) else uniform(0.30, 0.5)
        lip_tint = np.array([0.66, 0.20, 0.22]) * uniform(0.75, 1.1)
        angle, height = uniform(-1.0, 1.0), uniform(-0.75, -0.15)
        light = np.array([np.sin(angle), height, np.cos(angle)])
        beard = 0.0 if feminine or not chance(0.28) else uniform(0.55, 1.0)
        stubble = 0.0 if feminine or beard or not chance(0.5) else uniform(0.15, 0.5)
        return cls(
            seed=seed,
            head_width=normal(0.665, 0.022, 0.62, 0.72),
            jaw_taper=normal(0.12 if feminine else 0.06, 0.03, 0.0, 0.18),
            depth=normal(0.85, 0.02, 0.80, 0.90),
            cheek=normal(0.05, 0.02, 0.01, 0.09),
            chin=normal(0.22 if feminine else 0.25, 0.03, 0.16, 0.31),
            chin_width=normal(0.17 if feminine else 0.21, 0.02, 0.13, 0.26),
            ear_size=normal(1.0, 0.12, 0.75, 1.3),
            neck_width=normal(0.34 if feminine else 0.40, 0.02, 0.30, 0.45),
            zoom=normal(1.0, 0.04, 0.92, 1.08),
            shift=(normal(0, 0.03, -0.06, 0.06), normal(0.0, 0.025, -0.05, 0.05)),
            eye_x=normal(0.298, 0.010, 0.275, 0.322),
            eye_y=normal(0.02, 0.018, -0.02, 0.06),
            eye_width=normal(0.165, 0.008, 0.148, 0.182),
            eye_height=normal(0.084 if feminine else 0.078, 0.008, 0.064, 0.102),
            eye_tilt=normal(0.08, 0.06, -0.06, 0.2),
            iris_radius=normal(0.068, 0.003, 0.062, 0.075),
            iris=tone(_IRIS[:2] if dark_hair_only else _IRIS, 0.08, blend=False),
            brow_y=normal(-0.20 if feminine else -0.185, 0.018, -0.24, -0.15),
            brow_thick=normal(0.027 if feminine else 0.037, 0.006, 0.017, 0.052),
            brow_arch=normal(0.05 if feminine else 0.03, 0.015, 0.0, 0.08),
            brow_tilt=normal(0.0, 0.05, -0.10, 0.10),
            nose_y=normal(0.375, 0.018, 0.33, 0.42),
            nose_length=normal(0.22 if feminine else 0.25, 0.03, 0.16, 0.32),
            nose_width=normal(0.100 if feminine else 0.115, 0.012, 0.078, 0.145),
            mouth_y=normal(0.655, 0.014, 0.62, 0.69),
            mouth_width=normal(0.265, 0.018, 0.225, 0.305),
            lip_upper=normal(0.046 if feminine else 0.037, 0.008, 0.024, 0.066),
            lip_lower=normal(0.060 if feminine else 0.050, 0.008, 0.034, 0.078),
            mouth_curve=normal(0.006, 0.007, -0.008, 0.022),
            skin=skin,
            lip=_colour((1 - lip_mix) * np.array(skin) * 0.82 + lip_mix * lip_tint),
            freckles=uniform(0.3, 0.9) if luma > 0.6 and chance(0.2) else 0.0,
            stubble=stubble,
            beard=beard,
            make_up=uniform(0.3, 1.0) if feminine else 0.0,
            age=uniform(0.05, 0.9),
            hair=hair,
            has_hair=0.0 if bald else 1.0,
            hair_thick=0.0 if bald else 0.022 if shaved else uniform(0.07, 0.14),
            hairline=normal(-0.58 if feminine else -0.60, 0.05, -0.72, -0.48),
            bangs=0.0 if bald or shaved else bangs,
            parting=float(rng.choice([-1.0, 0.0, 1.0])) * uniform(0.4, 1.0),
            sideburn=uniform(-0.05, 0.25),
            long_hair={"bob": uniform(0.4, 0.6), "long": uniform(0.85, 1.0)}.get(style, 0.0),
            bun=uniform(0.8, 1.1) if style == "bun" else 0.0,
            waves=uniform(0.0, 1.0),
            glasses=1.0 if chance(0.22) else 0.0,
            glasses_round=uniform(0.0, 1.0),
            glasses_size=uniform(0.92, 1.1),
            glasses_rim=uniform(0.012, 0.026),
            glasses_colour=_colour(np.array(_CLOTH[int(rng.integers(len(_CLOTH)))]) * 0.45),
            cloth=tone(_CLOTH, 0.1),
            collar=uniform(0.0, 1.0),
            backdrop=tone(_BACKDROP, 0.06),
            light=_unit(light),
            ambient=uniform(0.40, 0.56),
            warmth=normal(0.0, 0.35, -0.8, 0.8),
            exposure=uniform(0.94, 1.06) * (1.0 + 0.42 * max(0.0, 0.72 - luma)),
            noise=uniform(0.005, 0.013),
        )


@dataclass(frozen=True, slots=True)
class IdentityBatch:
    """Identities as tensors, M of them on one device.

    Attributes:
        values: field name -> (M,) or (M, 3) float32; every numeric field of `Identity`.
        noise_tile: (M, TILE, TILE, 2) float32, periodic; channel 0 coarse, 1 fine, about [-1, 1].
        backdrop_tile: (M, TILE, TILE, 3) float32 sRGB in [0, 1], already out of focus.
    """

    values: dict[str, Tensor]
    noise_tile: Tensor
    backdrop_tile: Tensor

    def __len__(self) -> int:
        return len(self.noise_tile)

    def __repr__(self) -> str:
        return f"IdentityBatch({len(self)} identities on {self.noise_tile.device})"

    def rows(self, index: Tensor | slice) -> IdentityBatch:
        """The identities named by `index`: a slice, or (N,) int64 with repeats allowed."""
        return IdentityBatch(
            {name: value[index] for name, value in self.values.items()},
            self.noise_tile[index],
            self.backdrop_tile[index],
        )


def stack(identities: Sequence[Identity], *, device: str | torch.device = "cpu") -> IdentityBatch:
    """Put identities side by side as float32 tensors on `device`."""
    names = [field.name for field in fields(Identity) if field.name != "seed"]
    values = {
        name: torch.tensor([getattr(one, name) for one in identities], dtype=torch.float32)
        for name in names
    }
    textures = [_textures(one.seed, one.backdrop) for one in identities]
    return IdentityBatch(
        {name: value.to(device) for name, value in values.items()},
        torch.from_numpy(np.stack([noise for noise, _ in textures])).to(device),
        torch.from_numpy(np.stack([backdrop for _, backdrop in textures])).to(device),
    )


@lru_cache(maxsize=256)
def _textures(seed: int, tone: Colour) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng([_STREAM, seed, 1])
    coarse = _periodic_noise(rng, (2, 4, 8))
    fine = _periodic_noise(rng, (16, 32, 64))
    return np.stack([coarse, fine], axis=-1), _backdrop(rng, np.array(tone))


def _periodic_noise(rng: np.random.Generator, octaves: tuple[int, ...]) -> NDArray[np.float32]:
    """Smooth noise that wraps around, (TILE, TILE), unit standard deviation clipped to 2.5."""
    total = np.zeros((TILE, TILE))
    for rank, cells in enumerate(octaves):
        grid = rng.normal(size=(cells, cells))
        at = np.arange(TILE) * cells / TILE
        low = at.astype(int)
        mix = at - low
        mix = mix * mix * (3 - 2 * mix)
        rows = grid[low] * (1 - mix)[:, None] + grid[(low + 1) % cells] * mix[:, None]
        total += (rows[:, low] * (1 - mix) + rows[:, (low + 1) % cells] * mix) * 0.7**rank
    return np.clip(total / total.std(), -2.5, 2.5).astype(np.float32)


def _backdrop(rng: np.random.Generator, tone: NDArray[np.float64]) -> NDArray[np.float32]:
    """An out-of-focus room: a gradient, a few soft rectangles and discs, all near one tone."""
    y, x = np.meshgrid(np.linspace(-1, 1, TILE), np.linspace(-1, 1, TILE), indexing="ij")
    slope = rng.normal(0, 0.12, 2)
    picture = tone * (1 + slope[0] * x + slope[1] * y)[..., None]
    for _ in range(int(rng.integers(2, 6))):
        colour = tone * rng.uniform(0.65, 1.3) + rng.normal(0, 0.035, 3)
        centre, size = rng.uniform(-1.1, 1.1, 2), rng.uniform(0.12, 0.7, 2)
        soft = rng.uniform(0.04, 0.12)
        if rng.random() < 0.7:
            distance = np.maximum(np.abs(x - centre[0]) - size[0], np.abs(y - centre[1]) - size[1])
        else:
            distance = np.hypot(x - centre[0], y - centre[1]) - size[0] * 0.5
        cover = 1 / (1 + np.exp(np.clip(distance / soft * 3, -30, 30)))
        picture = picture + (colour - picture) * (cover * rng.uniform(0.5, 1.0))[..., None]
    return np.clip(picture, 0.05, 0.95).astype(np.float32)


def _colour(values: NDArray[np.float64]) -> Colour:
    red, green, blue = (float(np.clip(v, 0.02, 0.98)) for v in values)
    return red, green, blue


def _unit(vector: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in vector / np.linalg.norm(vector))
    return x, y, z
