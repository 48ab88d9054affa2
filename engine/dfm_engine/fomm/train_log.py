"""How a training run is watched: numbers to TensorBoard, a file, a picture; sheets of samples."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from dfm_engine.fomm.model import Fomm
from dfm_engine.fomm.train_step import Batch, TrainingStep

log = logging.getLogger(__name__)


class Curves:
    """Numbers over steps: `metrics.jsonl` is the record, the others are drawn from it."""

    def __init__(self, out: Path, *, from_step: int) -> None:
        """Open the curves; points behind `from_step` belong to a run that was cut, and go."""
        self._path = out / "metrics.jsonl"
        self._picture = out / "curves.png"
        self.rows: list[dict[str, float]] = []
        if self._path.is_file():
            rows = [json.loads(line) for line in self._path.read_text("utf-8").splitlines()]
            self.rows = [row for row in rows if row["step"] <= from_step]
            self._path.write_text("".join(json.dumps(row) + "\n" for row in self.rows), "utf-8")
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=from_step or None)

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Append one point of every curve."""
        row = {"step": step, **numbers}
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def draw(self) -> None:
        """Write curves.png: loss terms above, quality on unseen pairs below."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(2, 1, figsize=(9, 8), sharex=True)
        for name in sorted({key for row in self.rows for key in row if key.startswith("loss/")}):
            points = [(row["step"], row[name]) for row in self.rows if name in row]
            axes[0].plot(*zip(*points, strict=True), label=name.removeprefix("loss/"), lw=1)
        axes[0].set_yscale("log")
        axes[0].set_ylabel("weighted loss terms")
        for name in sorted({key for row in self.rows for key in row if key.startswith("psnr_db/")}):
            points = [(row["step"], row[name]) for row in self.rows if name in row]
            label = name.removeprefix("psnr_db/")
            axes[1].plot(*zip(*points, strict=True), marker=".", label=label, lw=1)
        axes[1].set_ylabel("PSNR on unseen pairs, dB")
        axes[1].set_xlabel("step")
        for axis in axes:
            axis.grid(alpha=0.3)
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=7, ncols=3)
        figure.tight_layout()
        temporary = self._picture.with_name(".curves.png")
        figure.savefig(temporary, dpi=100, format="png")
        pyplot.close(figure)
        os.replace(temporary, self._picture)

    def close(self) -> None:
        """Flush TensorBoard's file."""
        self._board.close()


@torch.no_grad()
def look(
    step: TrainingStep, batch: Batch, *, fomm: Fomm | None = None
) -> tuple[dict[str, float], NDArray[np.uint8]]:
    """Animate fixed pairs in evaluation mode.

    Args:
        step: what is trained.
        batch: pairs that training does not see.
        fomm: another model than the one in training.

    Returns:
        PSNR in dB (`copy` repeats the source; `prediction`; `warped`, the moved source before the
        generator's last layers) and the sheet, uint8 (H, W, 3): a row per pair with source,
        driving, prediction, target, moved source, occlusion.
    """
    model = step.fomm if fomm is None else fomm
    was_training = model.training
    model.eval()
    animation = step.forward(batch, fomm=model).animation
    model.train(was_training)
    prediction = animation.prediction.float()
    deformed = batch.source if animation.deformed is None else animation.deformed.float()
    own = len(batch.source) - batch.cross_rows
    numbers = {
        "psnr_db/copy": psnr_db(batch.source, batch.target),
        "psnr_db/warped": psnr_db(deformed, batch.target),
        "psnr_db/prediction": psnr_db(prediction, batch.target),
        "psnr_db/prediction_self": psnr_db(prediction[:own], batch.target[:own]),
    }
    if batch.cross_rows:
        numbers["psnr_db/prediction_cross"] = psnr_db(prediction[own:], batch.target[own:])
    columns = [batch.source, batch.driving, prediction, batch.target, deformed]
    if animation.occlusion_map is not None:
        size = tuple(batch.source.shape[-2:])
        occlusion = torch.nn.functional.interpolate(animation.occlusion_map.float(), size)
        columns.append(occlusion.expand(-1, 3, -1, -1))
    return numbers, _sheet(columns)


def psnr_db(found: Tensor, wanted: Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio; 8-bit-exact pictures count as 60."""
    error = (found - wanted).square().flatten(1).mean(1).clamp_min(1e-6)
    return float((-10 * torch.log10(error)).mean())


def write_sheet(sheet: NDArray[np.uint8], path: Path) -> None:
    """Save a sheet as PNG."""
    temporary = path.with_name(f".{path.name}")
    Image.fromarray(sheet).save(temporary, format="png")
    os.replace(temporary, path)


def _sheet(columns: list[Tensor], most: int = 12) -> NDArray[np.uint8]:
    rows = len(columns[0])
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, most)).round().astype(int))
    tiles = torch.stack([column[chosen].cpu() for column in columns])  # (columns, rows, 3, H, W)
    picture = tiles.permute(1, 3, 0, 4, 2).flatten(2, 3).flatten(0, 1)
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
