"""How a detector's training is watched: numbers per epoch to a file, TensorBoard, a picture."""

from __future__ import annotations

import io
import json
from pathlib import Path

from torch.utils.tensorboard.writer import SummaryWriter

from dfm_engine.durable import write_durably

Row = dict[str, float]


class History:
    """`history.jsonl`, one row per epoch, is the record; the curves are drawn from it.

    Points within an epoch go to TensorBoard alone.
    """

    def __init__(self, out: Path, *, epochs: int, step: int) -> None:
        """Open it; what lies behind the state that training goes on from is dropped."""
        self._path, self._picture = out / "history.jsonl", out / "curves.png"
        self.rows: list[Row] = []
        if self._path.is_file():
            rows = [json.loads(line) for line in self._path.read_text("utf-8").splitlines()]
            self.rows = rows[:epochs]
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)

    def point(self, step: int, numbers: Row) -> None:
        """A point of the curves within an epoch."""
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def add(self, row: Row) -> None:
        """An epoch's row; it has `epoch` and `step`."""
        self.rows.append(row)
        text = "".join(json.dumps(one) + "\n" for one in self.rows)
        write_durably(self._path, text.encode())
        self.point(int(row["step"]), {k: v for k, v in row.items() if k not in ("epoch", "step")})

    def draw(self, *, best_epoch: int) -> None:
        """Write curves.png: the losses above, accuracies below."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(2, 1, figsize=(8, 7), sharex=True)
        for axis, word in zip(axes, ("loss", "accuracy"), strict=True):
            for name in sorted({key for row in self.rows for key in row if key.endswith(word)}):
                points = [(row["epoch"], row[name]) for row in self.rows if name in row]
                is_summary = name.count("/") == 1
                axis.plot(
                    *zip(*points, strict=True),
                    marker=".",
                    lw=1.6 if is_summary else 0.8,
                    label=name.replace("_", " "),
                )
            axis.axvline(best_epoch, color="0.6", lw=0.8, ls="--")
            axis.grid(alpha=0.3)
            axis.set_ylabel(word)
            # Accuracies are seldom below chance, losses seldom highest at the end.
            axis.legend(
                fontsize=7, ncols=2, loc="lower right" if word == "accuracy" else "upper right"
            )
        axes[1].axhline(0.5, color="0.6", lw=0.8)
        axes[1].set_ylim(0, 1.02)
        axes[1].set_xlabel("epoch (dashed: the one that is kept)")
        figure.tight_layout()
        picture = io.BytesIO()
        figure.savefig(picture, dpi=100, format="png")
        pyplot.close(figure)
        write_durably(self._picture, picture.getbuffer())

    def close(self) -> None:
        """Flush TensorBoard's file."""
        self._board.close()
