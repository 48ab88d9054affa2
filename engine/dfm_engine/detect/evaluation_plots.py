"""The pictures of an evaluation: roc.png, reliability.png, scores.png, actions.png."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dfm_engine.detect.evaluation_result import ActionRow, EvaluateDetectorResult
from dfm_engine.detect.metrics import reliability, roc_curve
from dfm_engine.durable import write_durably

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PLOTS", "write_plots"]

PLOTS = ("roc.png", "reliability.png", "scores.png", "actions.png")
FAKE, REAL, PLAIN = "#b4530a", "#2a66c8", "#5d636e"


def write_plots(
    out: Path,
    result: EvaluateDetectorResult,
    *,
    p_video: NDArray[np.float64],
    is_fake: NDArray[np.bool_],
) -> None:
    """Draw the videos' scores.

    Args:
        out: folder of the pictures.
        result: the measurements.
        p_video: (V,) fake probabilities.
        is_fake: (V,) bool.

    Raises:
        EnvironmentUnfit: the folder cannot be written.
    """
    title = f"{result.model['name']}, {len(p_video)} videos, split {result.data['split']}"
    with _figure(out / PLOTS[0], title) as axes:
        _roc(axes, result, p_video, is_fake)
    with _figure(out / PLOTS[1], title) as axes:
        _reliability(axes, p_video, is_fake)
    with _figure(out / PLOTS[2], title) as axes:
        _histogram(axes, p_video, is_fake)
    with _figure(out / PLOTS[3], title) as axes:
        _actions(axes, result.actions)


@contextmanager
def _figure(path: Path, title: str) -> Iterator[Axes]:
    """One picture with one pair of axes, written at the end; no global state of matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=9)
    yield axes
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110, format="png")
    write_durably(path, picture.getbuffer())


def _roc(
    axes: Axes,
    result: EvaluateDetectorResult,
    p_video: NDArray[np.float64],
    is_fake: NDArray[np.bool_],
) -> None:
    fpr, tpr = roc_curve(p_video, is_fake, positive="real" if result.positive == "real" else "fake")
    level = result.slice().videos
    drawn = level.by_identity.get("auc")
    label = f"AUC {level.metrics.auc:.3f}" + (
        f" ({drawn.low:.3f}-{drawn.high:.3f} by person)" if drawn else ""
    )
    axes.plot(fpr, tpr, color=FAKE, lw=1.8, label=label)
    axes.plot([0, 1], [0, 1], color=PLAIN, lw=0.8, ls="--", label="chance")
    axes.plot(
        level.metrics.eer,
        1 - level.metrics.eer,
        "o",
        color=REAL,
        ms=5,
        label=f"EER {level.metrics.eer:.3f}",
    )
    axes.set_xlabel(f"false positive rate ({result.positive} is positive)")
    axes.set_ylabel("true positive rate")
    axes.legend(fontsize=8, loc="lower right")


def _reliability(axes: Axes, p_video: NDArray[np.float64], is_fake: NDArray[np.bool_]) -> None:
    mean, share, count = reliability(p_video, is_fake)
    held = count > 0
    axes.plot([0, 1], [0, 1], color=PLAIN, lw=0.8, ls="--", label="calibrated")
    axes.plot(mean[held], share[held], color=FAKE, lw=1.2, alpha=0.6)
    axes.scatter(
        mean[held],
        share[held],
        s=20 + 280 * count[held] / count.max(),
        color=FAKE,
        label="bins, by size",
    )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("mean fake probability in the bin")
    axes.set_ylabel("share of fakes in the bin")
    axes.legend(fontsize=8, loc="upper left")


def _histogram(axes: Axes, p_video: NDArray[np.float64], is_fake: NDArray[np.bool_]) -> None:
    for label, own, colour in (("fake", is_fake, FAKE), ("real", ~is_fake, REAL)):
        axes.hist(
            p_video[own], bins=40, range=(0, 1), color=colour, alpha=0.55, label=f"{label} videos"
        )
    axes.axvline(0.5, color=PLAIN, lw=0.8, ls="--")
    axes.set_xlabel("fake probability")
    axes.set_ylabel("videos")
    axes.legend(fontsize=8)


def _actions(axes: Axes, actions: tuple[ActionRow, ...]) -> None:
    """The paper's figure 6: accuracy on the fakes of every action, and on real videos."""
    for place, row in enumerate(actions):
        axes.bar(place, row.accuracy, color=REAL if row.action == "real" else FAKE, alpha=0.85)
        if row.interval:
            axes.plot([place, place], [row.interval.low, row.interval.high], color="black", lw=1.2)
        ink = "white" if row.accuracy > 0.08 else "black"
        axes.text(place, 0.02, f"{row.accuracy:.2f}", ha="center", color=ink, fontsize=8)
    axes.axhline(0.5, color=PLAIN, lw=0.8, ls="--")
    names = [f"{row.action.replace('_', ' ')} ({row.videos})" for row in actions]
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("accuracy of videos")
