"""MTCNN: find the faces of a picture, each with a box, a score and five landmarks.

Three small networks in a cascade (Zhang et al. 2016, "Joint Face Detection and Alignment using
Multitask Cascaded Convolutional Networks"): a proposal network slides over a pyramid of the
picture, the refine network judges its boxes at 24 x 24, the output network at 48 x 48, which
also places the landmarks. In: uint8 (B, H, W, 3) RGB frames of one size. Out: per frame a list
of `Face`, largest box first.

Frames of a call share every network run: the proposal network sees all frames at once per
pyramid level, the other two all candidates of all frames and levels at once. Every resize of the
cascade is an area average over whole pixels; they are all taken from one summed-area table per
frame in exact integer arithmetic.

One EPYC core takes 16 ms for a 256 x 256 frame, 105 ms for 720p and 342 ms for 1080p with the
published search from 20 pixels on; 10, 56 and 172 ms from 38 pixels on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dfm_engine.clip import Box, Pixels
from dfm_engine.errors import ShapeError
from dfm_engine.exact_kernels import exact_kernels
from dfm_engine.faces.mtcnn_weights import load_weights
from dfm_engine.faces.nms import batched_nms

__all__ = ["Face", "Mtcnn", "OutputNet", "ProposalNet", "RefineNet"]

CELL = 12  # side of what the proposal network judges, in pixels of a pyramid level
STRIDE = 2  # between two such windows
SHRINK = 0.709  # from one pyramid level to the next: half the area
KEEP_PROPOSAL, KEEP_REFINED, KEEP_OUTPUT = 0.6, 0.7, 0.7  # face probability, per stage
CANDIDATE_ROWS = 512  # crops per run of the second and third network; bounds memory
# Pixels per run of the first network. On a CPU its widest map should stay below glibc's largest
# pooled block (32 MiB, 40 bytes per pixel): above it every map is mapped and faulted in anew,
# which made four 720p frames at once 1.8 times slower per frame than one at a time.
LEVEL_PIXELS_CPU, LEVEL_PIXELS_GPU = 600_000, 16_000_000
# Corners are truncated to whole pixels, and float32 rounding decides a tie differently on every
# machine; a nudge below the rounding step settles both ties known in the reference detections as
# they fell there (94.0 down; 674.0 up, where 1e-5 is less than float32 resolves).
TIE_PX = 1e-5


@dataclass(frozen=True, slots=True)
class Face:
    """One detected face.

    Attributes:
        box: float pixels of the frame, no margin; may reach outside the picture.
        landmarks: (5, 2) float32 (x, y): eye at image left, eye at image right, nose, mouth
            corner at image left, mouth corner at image right.
        score: face probability of the last network.
    """

    box: Box
    landmarks: NDArray[np.float32]
    score: float


class ProposalNet(nn.Module):
    """Slides a 12 x 12 window with stride 2 over a picture of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.box, self.face = nn.Conv2d(32, 4, 1), nn.Conv2d(32, 2, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1] to box offsets (B, 4, h, w) and faces (B, h, w)."""
        x = self.pool1(self.prelu1(self.conv1(images)))
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))  # (B, 32, h, w)
        return self.box(x), self.face(x).softmax(1)[:, 1]


class RefineNet(nn.Module):
    """Judges 24 x 24 crops."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.box, self.face = nn.Linear(128, 4), nn.Linear(128, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Crops (N, 3, 24, 24) in [-1, 1] to box offsets (N, 4) and face probability (N,)."""
        x = self.pool1(self.prelu1(self.conv1(images)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.prelu4(self.dense(_flatten(self.prelu3(self.conv3(x)))))  # (N, 128)
        return self.box(x), self.face(x).softmax(1)[:, 1]


class OutputNet(nn.Module):
    """Judges 48 x 48 crops and places five landmarks in them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.box, self.landmarks = nn.Linear(256, 4), nn.Linear(256, 10)
        self.face = nn.Linear(256, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Crops (N, 3, 48, 48) to box offsets (N, 4), landmarks (N, 10), face probability (N,).

        The landmarks are five x, then five y, as shares of the crop's side.
        """
        x = self.pool1(self.prelu1(self.conv1(images)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.pool3(self.prelu3(self.conv3(x)))
        x = self.prelu5(self.dense(_flatten(self.prelu4(self.conv4(x)))))  # (N, 256)
        return self.box(x), self.landmarks(x), self.face(x).softmax(1)[:, 1]


def _flatten(maps: Tensor) -> Tensor:
    """(N, C, H, W) to (N, W * H * C): the order the published dense layers were trained in."""
    return maps.permute(0, 3, 2, 1).flatten(1)


class Mtcnn:
    """The cascade with its weights on one device."""

    def __init__(
        self, proposal: ProposalNet, refine: RefineNet, output: OutputNet, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.proposal = proposal.eval().requires_grad_(False).to(self.device)
        self.refine = refine.eval().requires_grad_(False).to(self.device)
        self.output = output.eval().requires_grad_(False).to(self.device)
        is_cpu = self.device.type == "cpu"
        self._level_pixels = LEVEL_PIXELS_CPU if is_cpu else LEVEL_PIXELS_GPU

    @classmethod
    def load(cls, device: str = "cpu", *, cache: Path | None = None) -> Mtcnn:
        """The published detector; see `mtcnn_weights` for where its weights come from.

        Raises:
            EnvironmentUnfit: the `mtcnn` package is not installed.
            WeightsError: its files are not the published ones.
        """
        weights = load_weights(cache=cache)
        nets = ProposalNet(), RefineNet(), OutputNet()
        for net, name in zip(nets, ("pnet", "rnet", "onet"), strict=True):
            net.load_state_dict(weights[name])
        return cls(*nets, device=device)

    @torch.inference_mode()
    @exact_kernels()
    def detect(self, frames: Pixels | Tensor, *, min_face_px: float = 20.0) -> list[list[Face]]:
        """Find the faces of frames of one size.

        Args:
            frames: uint8 (B, H, W, 3) RGB, upright.
            min_face_px: about the smallest face looked for; it sets the finest pyramid level. 20
                is the published setting; the work of the first network falls with its square.

        Returns:
            Per frame its faces, largest box first; none where a picture is smaller than a face.

        Raises:
            ShapeError: frames of another shape or dtype.
        """
        if not isinstance(frames, Tensor):
            frames = torch.from_numpy(np.require(frames, requirements=["C", "W"]))
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != torch.uint8:
            raise ShapeError(
                f"detect needs uint8 (B, H, W, 3), got {frames.dtype} {tuple(frames.shape)}"
            )
        frames = frames.to(self.device)
        count, height, width, _ = frames.shape
        scales = _pyramid(min(height, width), min_face_px)
        if not scales or not count:
            return [[] for _ in range(count)]
        table = _summed_area(frames)
        squares, owner = self._propose(table, height, width, scales)
        squares, owner = self._refine(table, squares, owner)
        boxes, landmarks, scores, owner = self._finish(table, squares, owner)
        return _to_faces(boxes, landmarks, scores, owner, count)

    @torch.inference_mode()
    @exact_kernels()
    def landmarks_in(
        self, frames: Pixels | Tensor, squares: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Read the five points in given squares, with the last network alone.

        A detection's landmarks jitter with its box. Reading them in several squares around one
        steady box and averaging halves that jitter, at a small part of a detection's cost.

        Args:
            frames: uint8 (B, H, W, 3) RGB.
            squares: (B, S, 4) x0 y0 x1 y1, S squares on each frame.

        Returns:
            (B, S, 5, 2) float32; NaN where a square lies outside the picture.
        """
        frames = torch.as_tensor(frames).to(self.device)
        count, each, _ = squares.shape
        corners = torch.as_tensor(squares.reshape(-1, 4), dtype=torch.float32, device=self.device)
        owner = torch.arange(count, device=self.device).repeat_interleave(each)
        crops, kept = _crops(_summed_area(frames), corners, owner, 48)
        _, points, _ = _in_rows(self.output, crops, (4,), (10,), ())
        points = points.view(-1, 2, 5).transpose(1, 2)  # (N', 5, 2)
        side = corners[kept, 2:] - corners[kept, :2] + 1
        found = torch.full((count * each, 5, 2), torch.nan, device=self.device)
        found[kept] = corners[kept, None, :2] + points * side[:, None] - 1
        return found.view(count, each, 5, 2).cpu().numpy()

    def _propose(
        self, table: Tensor, height: int, width: int, scales: list[float]
    ) -> tuple[Tensor, Tensor]:
        """Stage 1: squares (N, 4) to look at more closely, and the frame (N,) of each."""
        found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for scale in scales:
            size = int(height * scale + 1), int(width * scale + 1)
            at_once = max(1, self._level_pixels // (size[0] * size[1]))
            runs = [
                self.proposal(_normalise(_shrink(part, height, width, *size)))
                for part in table.split(at_once)
            ]
            offsets, scores = (torch.cat(parts) for parts in zip(*runs, strict=True))
            owner, row, column = torch.nonzero(scores >= KEEP_PROPOSAL, as_tuple=True)
            score = scores[owner, row, column]
            offset = offsets[owner, :, row, column]
            corner = STRIDE * torch.stack([column, row], 1).to(torch.float32)
            boxes = torch.cat(
                [torch.floor((corner + 1) / scale), torch.floor((corner + CELL) / scale)], 1
            )
            keep = batched_nms(boxes, score, owner, 0.5)
            found.append((boxes[keep], score[keep], offset[keep], owner[keep]))
        boxes, score, offset, owner = (torch.cat(parts) for parts in zip(*found, strict=True))
        keep = batched_nms(boxes, score, owner, 0.7)
        boxes, offset, owner = boxes[keep], offset[keep], owner[keep]
        # This stage alone takes a box's side without the + 1 of the other two.
        side = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        return _square(boxes + offset * side), owner

    def _refine(self, table: Tensor, squares: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        """Stage 2: the squares that hold a face, corrected."""
        crops, kept = _crops(table, squares, owner, 24)
        squares, owner = squares[kept], owner[kept]
        offset, score = _in_rows(self.refine, crops, (4,), ())
        passed = score > KEEP_REFINED
        squares, owner = squares[passed], owner[passed]
        offset, score = offset[passed], score[passed]
        keep = batched_nms(squares, score, owner, 0.7)
        return _square(_regress(squares[keep], offset[keep])), owner[keep]

    def _finish(
        self, table: Tensor, squares: Tensor, owner: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Stage 3: boxes (N, 4), landmarks (N, 5, 2), scores (N,) and frames (N,)."""
        crops, kept = _crops(table, squares, owner, 48)
        squares, owner = squares[kept], owner[kept]
        offset, points, score = _in_rows(self.output, crops, (4,), (10,), ())
        passed = score > KEEP_OUTPUT
        squares, owner, score = squares[passed], owner[passed], score[passed]
        points = points[passed].view(-1, 2, 5).transpose(1, 2)  # (N, 5, 2)
        side = squares[:, 2:] - squares[:, :2] + 1
        landmarks = squares[:, None, :2] + points * side[:, None] - 1
        boxes = _regress(squares, offset[passed])
        keep = _smaller_area_nms(boxes, score, owner, 0.7)
        return boxes[keep], landmarks[keep], score[keep], owner[keep]


def _pyramid(short_side: int, min_face_px: float) -> list[float]:
    """Scales at which a face of at least `min_face_px` fills the 12-pixel window."""
    scale = CELL / min_face_px
    side = short_side * scale
    scales: list[float] = []
    while side >= CELL:
        scales.append(scale)
        scale *= SHRINK
        side *= SHRINK
    return scales


def _summed_area(frames: Tensor) -> Tensor:
    """(B, H + 1, W + 1, 3) int32; entry (y, x) is the sum of all pixels above and left of it.

    It may wrap around in pictures beyond 8.4 megapixels; the differences taken of it stay right
    as long as one averaged region sums below 2^31.
    """
    count, height, width, _ = frames.shape
    table = torch.zeros(count, height + 1, width + 1, 3, dtype=torch.int32, device=frames.device)
    inner = table[:, 1:, 1:]
    torch.cumsum(frames, 1, dtype=torch.int32, out=inner)
    torch.cumsum(inner, 2, dtype=torch.int32, out=inner)
    return table


def _edges(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and one past the last sample averaged into each output; neighbours may share one."""
    index = np.arange(size)
    return index * length // size, -((index + 1) * -length // size)


def _shrink(table: Tensor, height: int, width: int, rows: int, columns: int) -> Tensor:
    """Area averages of the whole pictures: (B, rows, columns, 3) float32."""
    device = table.device
    top, bottom = (torch.from_numpy(e).to(device) for e in _edges(height, rows))
    left, right = (torch.from_numpy(e).to(device) for e in _edges(width, columns))
    strips = table.index_select(1, bottom) - table.index_select(1, top)
    sums = strips.index_select(2, right) - strips.index_select(2, left)
    area = (bottom - top)[:, None] * (right - left)
    return sums / area[:, :, None].to(torch.float32)


def _crops(table: Tensor, squares: Tensor, owner: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Area averages (N', side, side, 3) of squares, and which (N',) of the N were not empty.

    A square starts at the pixel before its truncated corner and is cut off at the picture.
    """
    corners = (squares - TIE_PX).trunc().to(torch.int64)
    limit = torch.tensor([table.shape[2] - 1, table.shape[1] - 1], device=table.device)
    first = corners[:, :2].clamp_min(1) - 1  # (N, 2) x, y
    last = torch.minimum(corners[:, 2:], limit)
    kept = (last > first).all(1).nonzero()[:, 0]
    first, length, owner = first[kept], (last - first)[kept], owner[kept]
    index = torch.arange(side, device=table.device)
    starts = first[:, :, None] + index * length[:, :, None] // side  # (N', 2, side)
    ends = first[:, :, None] - (-(index + 1) * length[:, :, None]).div(side, rounding_mode="floor")
    who = owner[:, None, None]
    left, right = starts[:, 0, None, :], ends[:, 0, None, :]
    top, bottom = starts[:, 1, :, None], ends[:, 1, :, None]
    sums = table[who, bottom, right] - table[who, top, right]
    sums += table[who, top, left] - table[who, bottom, left]
    area = (bottom - top) * (right - left)
    return sums / area[..., None].to(torch.float32), kept


def _normalise(pixels: Tensor) -> Tensor:
    """(B, H, W, 3) in 0..255 to the networks' (B, 3, H, W) in [-1, 1]; channels last in memory."""
    return ((pixels - 127.5) / 128.0).permute(0, 3, 1, 2)


def _in_rows(net: nn.Module, crops: Tensor, *tails: tuple[int, ...]) -> Iterable[Tensor]:
    """Run a network over crops, a bounded number at a time."""
    if not len(crops):
        return [crops.new_empty(0, *tail) for tail in tails]
    parts = [net(_normalise(part)) for part in crops.split(CANDIDATE_ROWS)]
    return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]


def _square(boxes: Tensor) -> Tensor:
    """The square around each box's centre with its longer side."""
    side = boxes[:, 2:] - boxes[:, :2]
    longer = side.amax(1, keepdim=True)
    start = boxes[:, :2] + side * 0.5 - longer * 0.5
    return torch.cat([start, start + longer], 1)


def _regress(boxes: Tensor, offset: Tensor) -> Tensor:
    """Move each edge by its offset times the side, where a side counts both end pixels."""
    side = (boxes[:, 2:] - boxes[:, :2] + 1).repeat(1, 2)
    return boxes + offset * side


def _smaller_area_nms(boxes: Tensor, scores: Tensor, owner: Tensor, limit: float) -> Tensor:
    """Of boxes that cover more than `limit` of the smaller one's area, keep the best scored."""
    order = scores.argsort(descending=True, stable=True).tolist()
    table = boxes.double().cpu().numpy()
    frame = owner.tolist()
    area = (table[:, 2] - table[:, 0] + 1) * (table[:, 3] - table[:, 1] + 1)
    kept: list[int] = []
    for index in order:
        rivals = [k for k in kept if frame[k] == frame[index]]
        start = np.maximum(table[rivals, :2], table[index, :2])
        end = np.minimum(table[rivals, 2:], table[index, 2:])
        overlap = np.maximum(end - start + 1, 0.0).prod(1)
        if not (overlap > limit * np.minimum(area[rivals], area[index])).any():
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def _to_faces(
    boxes: Tensor, landmarks: Tensor, scores: Tensor, owner: Tensor, count: int
) -> list[list[Face]]:
    faces: list[list[Face]] = [[] for _ in range(count)]
    points = landmarks.to(torch.float32).cpu().numpy()
    rows = zip(boxes.tolist(), points, scores.tolist(), owner.tolist(), strict=True)
    for box, five, score, frame in rows:
        faces[frame].append(Face(Box(*box), five, score))
    for found in faces:
        found.sort(key=lambda face: -face.box.width * face.box.height)
    return faces
