"""From stored bytes to what a network is trained on, for a whole batch at once.

    uint8 rows ─► RGB ─► resize ─► flip, crop, zoom, turn ─► colours ─► normalise ─► channels_last

`draw` says what happens to each sample: a function of (seed, epoch, sample) alone. `FusedAugment`
does it, in float32 on a CPU, and as one compiled function that ends in bfloat16 on a GPU. Resizing
follows the crop rule of `dfm_kernels.crop` with one box for all, so training and evaluation see
the same resampler; what is drawn then moves the picture at a scale near 1, bilinear, the border
repeated. Where nothing falls between pixels they are picked and not interpolated.

`augment_reference.py` computes the same in float64, one sample and one channel after another.

Source: Recommendation ITU-R BT.601-7, section 2.5, for the colour conversion; chroma lies in the
middle of its 2x2 pixels, as everywhere in this project.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dfm_engine.errors import ShapeError
from dfm_engine.store.draws import LUMA, AugmentPolicy, Draws, FloatArray, draw, window_of
from dfm_kernels.crop import crop_weights
from dfm_kernels.from_yuv import yuv_to_rgb

if TYPE_CHECKING:
    from dfm_engine.store.meta import StoreMeta

__all__ = ["AugmentPolicy", "Draws", "FusedAugment", "draw", "i420_to_rgb_matrix"]

BAND = 32
"""Output samples per block when resizing on a CPU: 256 to 224 in 0.93 ms a frame, dense 2.8, 16 in
a block 1.2 (one core of an AMD EPYC, 2026-11)."""


def i420_to_rgb_matrix() -> tuple[FloatArray, FloatArray]:
    """BT.601, limited range to full: rgb = M (y, u, v) + t, in levels of 0 to 255."""
    red, green, blue = LUMA
    luma, chroma = 255 / 219, 255 / 112
    from_v, from_u = chroma * (1 - red), chroma * (1 - blue)
    matrix = np.array(
        [
            [luma, 0.0, from_v],
            [luma, -from_u * blue / green, -from_v * red / green],
            [luma, from_u, 0.0],
        ]
    )
    return matrix, -matrix @ np.array([16.0, 128.0, 128.0])


class FusedAugment:
    """Stored frames to normalised images, a batch in one call.

    Where nothing is drawn, an i420 store on a GPU takes one kernel, `dfm_kernels.from_yuv`; all
    else is torch, compiled on a GPU.
    """

    def __init__(
        self,
        meta: StoreMeta,
        *,
        size_px: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        crop: float = 1.0,
        compiled: bool | None = None,
    ) -> None:
        """Prepare weights and constants.

        Args:
            meta: of the store: its layout and side.
            size_px: side of the images.
            mean: of R, G and B in [0, 1]; images are (rgb - mean) / std.
            std: likewise.
            device: where the frames are and the images shall be.
            dtype: of the images; None: bfloat16 on a GPU, float32 elsewhere.
            crop: `AugmentPolicy.crop`.
            compiled: through torch.compile; None: on a GPU.
        """
        self.device = torch.device(device)
        on_gpu = self.device.type == "cuda"
        self.dtype = dtype or (torch.bfloat16 if on_gpu else torch.float32)
        self.layout, self.stored_px, self.size_px = meta.layout, meta.size_px, size_px
        self.frame_shape = tuple(meta.frame_shape)
        self.side_px = round(size_px / crop)  # the whole picture, of which the window is a part
        self.mean, self.std = tuple(mean), tuple(std)
        spread, middle = np.asarray(std, np.float64), np.asarray(mean, np.float64)
        self._gain = self._tensor(1 / (255 * spread))  # (3,)
        self._bias = self._tensor(-middle / spread)
        self._has_kernel = on_gpu and meta.layout == "i420"
        self._row_gain = self._gain.repeat(size_px)  # of a row of interleaved pixels
        self._row_bias = self._bias.repeat(size_px)
        matrix, added = i420_to_rgb_matrix()
        self._from_yuv, self._yuv_added = self._tensor(matrix), self._tensor(added)[:, None]
        weights = crop_weights(self.stored_px, 0.0, float(self.stored_px), self.side_px)
        self._weights = self._tensor(weights.numpy())  # (side, stored)
        self._bands = list(_bands(self._weights))
        self._centres = self._tensor((2 * np.arange(size_px) + 1) / size_px - 1)
        self._ramp = torch.arange(size_px, device=self.device)
        run: Callable[..., Tensor] = self._images
        self._is_eager = not (on_gpu if compiled is None else compiled)
        if not self._is_eager:
            run = torch.compile(run, dynamic=False)
        self._run = run

    def __call__(self, raw: Tensor, draws: Draws | None = None) -> Tensor:
        """Make images of stored frames.

        Args:
            raw: uint8 (B, S, S, 3), or (B, 3 S / 2, S) of an i420 store, on the device.
            draws: of the B samples; None as in evaluation: the middle window, nothing drawn.

        Returns:
            (B, 3, size, size), channels_last, on the device.

        Raises:
            ShapeError: frames of another shape, dtype or number.
        """
        if raw.dtype != torch.uint8 or tuple(raw.shape[1:]) != self.frame_shape:
            raise ShapeError(
                f"stored frames must be uint8 (B, {', '.join(map(str, self.frame_shape))}), got "
                f"{raw.dtype} {tuple(raw.shape)}"
            )
        if draws is not None and len(draws) != len(raw):
            raise ShapeError(f"{len(raw)} frames and draws for {len(draws)} do not belong together")
        if draws is None and self._has_kernel:
            return self._by_kernel(raw)
        return self._run(raw, *self._plan(draws))

    def _by_kernel(self, raw: Tensor) -> Tensor:
        """As in evaluation, from i420, in one pass."""
        first, share = (self.side_px - self.size_px) // 2, self.stored_px / self.side_px
        corners = share * torch.tensor([first, first + self.size_px], dtype=torch.float64)
        is_whole = self.size_px == self.side_px == self.stored_px
        return yuv_to_rgb(
            raw,
            boxes=None if is_whole else corners[[0, 0, 1, 1]],
            size=None if is_whole else self.size_px,
            mean=self.mean,
            std=self.std,
            dtype=self.dtype,
            channels_last=True,
        )

    def _plan(self, draws: Draws | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What `_images` wants to know, on the device after one copy.

        (B, 3) whether mirrored, first column and row of the window; (B, 2, 3) the affine map of
        normalised coordinates that replaces it; (B, 3, 4) colours of levels.
        """
        if draws is None:
            return None, None, None
        window = window_of(draws, side_px=self.side_px, size_px=self.size_px)  # (B, 2)
        theta = None if draws.angle_rad is None else self._affine(draws, window)
        if theta is None:
            picked = np.concatenate([draws.flip[:, None], window], axis=1)
            if not picked.any() and self.side_px == self.size_px:
                picked = np.empty((len(draws), 0))
        else:
            picked = np.empty((len(draws), 0))
        parts = [picked]
        parts += [] if theta is None else [theta.reshape(-1, 6)]
        if draws.colours is not None:
            levels = draws.colours * [1.0, 1.0, 1.0, 255.0]  # of values in 0 to 255
            parts.append(levels.reshape(-1, 12))
        packed = torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))
        if self.device.type == "cuda":
            packed = packed.pin_memory().to(self.device, non_blocking=True)
        columns = iter(packed.split([part.shape[1] for part in parts], dim=1))
        cut = next(columns)
        return (
            cut.to(torch.int64) if cut.shape[1] else None,
            next(columns).view(-1, 2, 3) if theta is not None else None,
            next(columns).view(-1, 3, 4) if draws.colours is not None else None,
        )

    def _affine(self, draws: Draws, window: NDArray[np.int64]) -> FloatArray:
        """(B, 2, 3): from the image's coordinates in [-1, 1] to the picture's."""
        assert draws.angle_rad is not None
        cosine, sine = np.cos(draws.angle_rad), np.sin(draws.angle_rad)
        ratio = self.size_px / self.side_px / draws.zoom
        mirror = np.where(draws.flip, -1.0, 1.0)
        centre = (2 * window + self.size_px) / self.side_px - 1
        rows = [
            [ratio * cosine * mirror, -ratio * sine, centre[:, 0]],
            [ratio * sine * mirror, ratio * cosine, centre[:, 1]],
        ]
        return np.array(rows).transpose(2, 0, 1)

    def _images(
        self, raw: Tensor, picked: Tensor | None, theta: Tensor | None, colours: Tensor | None
    ) -> Tensor:
        """All of it; branches depend on the policy alone, never on what was drawn."""
        is_packed = self.layout == "rgb24" and self.side_px == self.stored_px
        if is_packed and theta is None:
            if self._is_eager and picked is not None:
                pixels = self._windows(raw, picked)
            else:
                pixels = self._cut(raw, picked, rows=1)  # (B, s, s, 3) uint8
            if colours is None:  # the order in memory is that of channels_last already
                rows = pixels.flatten(2).to(torch.float32)  # (B, s, 3 s)
                rows = rows.mul_(self._row_gain).add_(self._row_bias)
                return rows.to(self.dtype).view(pixels.shape).permute(0, 3, 1, 2)
            images = self._rgb(pixels)
        else:
            images = self._resized(self._rgb(raw))
            if theta is None:
                images = self._cut(images, picked, rows=2)
            else:
                images = self._moved(images, theta)
        if colours is not None:
            values = images.flatten(2)  # (B, 3, P)
            values = torch.baddbmm(colours[:, :, 3:], colours[:, :, :3], values)
            images = values.clamp_(0, 255).view(images.shape)
        images = images.mul_(self._gain[:, None, None]).add_(self._bias[:, None, None])
        return images.to(self.dtype, memory_format=torch.channels_last)

    def _rgb(self, raw: Tensor) -> Tensor:
        """Stored bytes, or (B, h, w, 3), to float32 (B, 3, H, W) in 0 to 255."""
        if self.layout == "rgb24":
            height, width = raw.shape[1:3]
            planes = torch.empty(len(raw), 3, height, width, device=raw.device)
            return planes.copy_(raw.permute(0, 3, 1, 2))
        side, count = self.stored_px, len(raw)
        flat = raw.flatten(1)
        half = flat[:, side * side :].view(count, 2, side // 2, side // 2).to(torch.float32)
        luma = flat[:, : side * side].view(count, 1, side, side).to(torch.float32)
        chroma = F.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False)
        yuv = torch.cat([luma, chroma], dim=1).flatten(2)  # (B, 3, P)
        rgb = torch.matmul(self._from_yuv, yuv).add_(self._yuv_added).clamp_(0, 255)
        return rgb.view(count, 3, side, side)

    def _resized(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, 3, side, side) by the crop rule."""
        if self.side_px == self.stored_px:
            return images
        if not self._is_eager:
            return torch.matmul(torch.matmul(self._weights, images), self._weights.T)
        side = self.side_px
        tall = images.new_empty(*images.shape[:2], side, self.stored_px)
        for out, taps, block in self._bands:
            tall[:, :, out] = torch.matmul(block, images[:, :, taps])
        resized = images.new_empty(*images.shape[:2], side, side)
        for out, taps, block in self._bands:
            resized[..., out] = torch.matmul(tall[..., taps], block.T)
        return resized

    def _cut(self, pixels: Tensor, picked: Tensor | None, *, rows: int) -> Tensor:
        """Windows of pictures whose rows and columns are axes `rows` and `rows` + 1, mirrored."""
        if picked is None:
            first = (self.side_px - self.size_px) // 2
            if self.side_px == self.size_px:
                return pixels
            return pixels.narrow(rows, first, self.size_px).narrow(rows + 1, first, self.size_px)
        mirror, left, top = picked[:, :1], picked[:, 1:2], picked[:, 2:]
        across = torch.where(mirror != 0, self.size_px - 1 - self._ramp, self._ramp) + left
        down = self._ramp + top  # (B, s)
        sample = torch.arange(len(pixels), device=pixels.device)
        if rows == 1:
            return pixels[sample[:, None, None], down[:, :, None], across[:, None, :]]
        channel = torch.arange(3, device=pixels.device)[:, None, None]
        return pixels[
            sample[:, None, None, None], channel, down[:, None, :, None], across[:, None, None, :]
        ]

    def _windows(self, raw: Tensor, picked: Tensor) -> Tensor:
        """`_cut` of interleaved pixels, in whole rows: on a CPU at a third of its cost."""
        mirror, left, top = picked.unbind(dim=1)
        pixels = raw
        if self.side_px != self.size_px:
            count, side, size = len(raw), self.side_px, self.size_px
            room, line = side - size + 1, 3 * side
            places = raw.contiguous().as_strided(
                (count, room, room, size, 3 * size), (side * line, line, 3, line, 1)
            )
            sample = torch.arange(count, device=raw.device)
            pixels = places[sample, top, left].view(count, size, size, 3)
        mirrored = mirror.nonzero()[:, 0]
        if len(mirrored):
            # joined and chosen from: whole frames are copied, at a third of index_copy's cost
            order = torch.arange(len(pixels))
            order[mirrored] = len(pixels) + torch.arange(len(mirrored))
            others = pixels.index_select(0, mirrored).flip(2)
            pixels = torch.cat([pixels, others]).index_select(0, order)
        return pixels

    def _moved(self, images: Tensor, theta: Tensor) -> Tensor:
        """Windows of pictures by an affine map; a third of `affine_grid`'s cost on a CPU."""
        along, down = self._centres[None, None, :], self._centres[None, :, None]
        (a, b, c), (d, e, f) = (theta[:, row, :, None, None].unbind(1) for row in (0, 1))
        grid = torch.empty(len(theta), self.size_px, self.size_px, 2, device=images.device)
        grid[..., 0] = a * along + (b * down + c)
        grid[..., 1] = d * along + (e * down + f)
        return F.grid_sample(
            images, grid, mode="bilinear", padding_mode="border", align_corners=False
        )

    def _tensor(self, values: FloatArray) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.float32)).to(self.device)


def _bands(weights: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of output samples and the input that they touch: a third of the dense product."""
    for start in range(0, len(weights), BAND):
        rows = weights[start : start + BAND]
        used = rows.ne(0).any(0).nonzero()[:, 0]
        taps = slice(int(used[0]), int(used[-1]) + 1)
        yield slice(start, start + len(rows)), taps, rows[:, taps].contiguous()
