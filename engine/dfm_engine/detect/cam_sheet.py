"""A sheet of class activation maps: where in the picture a verdict comes from.

Per video one PNG: frames as the net sees them, below each the map of either class over it, the
predicted class first. Red speaks for the class, blue against it; one scale for the whole sheet, so
that frames can be compared. The sheet says how its maps were made, because only some nets have maps
that add up to the verdict.

Source: Zhou et al. 2016, "Learning deep features for discriminative localization".
"""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dfm_engine.detect.detector import DetectorSpec
from dfm_engine.detect.fit import FrameFitter
from dfm_engine.detect.video_frames import VideoFrames, shown_name
from dfm_engine.durable import write_durably
from dfm_engine.store.sampler import evenly_spaced

__all__ = ["HOW", "class_maps", "write_cam_sheet"]

Floats = NDArray[np.float64]

HOW = {
    "exact": "exact class activation maps: mean over a map + bias = logit",
    "contribution": "contributions (gradient x activation of a piecewise linear head): "
    "mean over a map + active biases = logit",
    "gradient": "gradient x activation, a first-order approximation: this net has no linear head, "
    "so its maps do not add up to the logit",
}
MAX_FRAMES = 8
CELL_INCHES, LEFT, RIGHT, TOP = 1.5, 0.6, 0.9, 1.05  # inches of a cell and around all
STRONGEST = 0.75  # opacity of a strong value
STRONG = 98.0  # percentile of all sizes: a few cells of a map are often ten times the others


def class_maps(cam: NDArray[np.float32], spec: DetectorSpec) -> dict[str, NDArray[np.float32]]:
    """Maps (T, h, w) by class, of a detector's maps (T, C, h, w).

    One logit speaks for fake; what speaks against it speaks for real.
    """
    if spec.logits == 1:
        return {"real": -cam[:, 0], "fake": cam[:, 0]}
    return {"real": cam[:, 0], "fake": cam[:, 1]}


def write_cam_sheet(
    path: Path,
    video: VideoFrames,
    cam: NDArray[np.float32],
    p_frames: Floats,
    *,
    p_fake: float,
    spec: DetectorSpec,
    runner: str,
    most: int = MAX_FRAMES,
) -> None:
    """Draw one video.

    Args:
        path: of the PNG.
        video: what the detector looked at, T frames.
        cam: (T, C, h, w), see `ForgeryDetector.logits_and_cam`.
        p_frames: (T,) fake probability of each.
        p_fake: of the video.
        spec: of the detector.
        runner: who looked, for the sheet.
        most: frames shown, evenly spaced.

    Raises:
        EnvironmentUnfit: the file cannot be written.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    shown = evenly_spaced(len(video.frames), most)
    pictures = FrameFitter(spec)(torch.from_numpy(video.frames[shown])).numpy()
    maps = class_maps(cam[shown], spec)
    sizes = np.abs(np.stack(list(maps.values())))
    bound = float(np.percentile(sizes, STRONG)) or float(sizes.max()) or 1.0
    predicted = "fake" if p_fake > 0.5 else "real"
    other = "real" if predicted == "fake" else "fake"
    rows: list[Floats] = [pictures / 255.0]
    for name in (predicted, other):
        values = (_enlarged(maps[name], pictures.shape[1]) / bound).clip(-1, 1)
        colours = colormaps["RdBu_r"](values / 2 + 0.5)[..., :3]
        opacity = STRONGEST * np.abs(values)[..., None]
        rows.append((1 - opacity) * rows[0] + opacity * colours)
    # One picture and not one pair of axes per cell: a tenth of matplotlib's time.
    mosaic = _mosaic(rows)
    cell = pictures.shape[1] + _gap(pictures.shape[1])
    columns = len(shown)
    width, height = CELL_INCHES * columns + LEFT + RIGHT, CELL_INCHES * 3 + TOP + 0.1
    figure = Figure(figsize=(max(width, 7.5), height))
    FigureCanvasAgg(figure)
    width = max(width, 7.5)
    place = (LEFT / width, 0.1 / height, CELL_INCHES * columns / width, 3 * CELL_INCHES / height)
    axes = figure.add_axes(place)
    axes.imshow(mosaic, interpolation="antialiased", aspect="auto")
    axes.set_axis_off()
    for column in range(columns):
        number = int(video.numbers[shown[column]])
        text = f"frame {number}\np fake {p_frames[shown[column]]:.3f}"
        middle = column * cell + pictures.shape[1] / 2
        axes.text(middle, -6, text, ha="center", va="bottom", fontsize=8)
    labels = ("as the net sees it", f"map of {predicted}\n(predicted)", f"map of {other}")
    for row, label in enumerate(labels):
        middle = row * cell + pictures.shape[1] / 2
        axes.text(-8, middle, label, ha="right", va="center", rotation=90, fontsize=8)
    beside = (place[0] + place[2] + 0.12 / width, place[1], 0.14 / width, place[3] * 0.64)
    bar = figure.colorbar(
        ScalarMappable(Normalize(-bound, bound), "RdBu_r"),
        cax=figure.add_axes(beside),
        extend="both" if sizes.max() > bound else "neither",
    )
    bar.set_label("for the class (red), against (blue)", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    name = shown_name(Path(video.path.name))
    title = figure.text(
        0.5,
        1 - 0.06 / height,
        f"{name}: {predicted}, p fake {p_fake:.4f} over {len(p_frames)} frames\n"
        + "\n".join(textwrap.wrap(f"{spec.name} ({runner}); {HOW[spec.cam]}", int(13 * width))),
        ha="center",
        va="top",
        fontsize=9,
    )
    title.set_parse_math(False)  # a file may be called a$b$.mp4
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110, format="png")
    write_durably(path, picture.getbuffer())


def _gap(side: int) -> int:
    return max(2, side // 24)


def _mosaic(rows: list[Floats]) -> Floats:
    """Rows of pictures (T, S, S, 3) side by side and below each other, on white."""
    count, side = rows[0].shape[:2]
    cell = side + _gap(side)
    sheet = np.ones((len(rows) * cell - cell + side, count * cell - cell + side, 3))
    for top, pictures in enumerate(rows):
        for left, picture in enumerate(pictures):
            y, x = top * cell, left * cell
            sheet[y : y + side, x : x + side] = picture
    return sheet


def _enlarged(maps: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """(T, h, w) to (T, side, side), bilinear; every cell of a map covers its part of the frame."""
    large = F.interpolate(
        torch.from_numpy(np.ascontiguousarray(maps))[:, None],
        size=(side, side),
        mode="bilinear",
        align_corners=False,
    )
    return large[:, 0].numpy()
