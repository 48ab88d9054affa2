"""Measure a FOMM: `run_evaluate_fomm` is what `dfm-engine evaluate fomm` runs.

On rendered people that training never saw, both ways of animating have a ground truth: a person
driven by itself (self) and by somebody else (cross; the person drawn in the other's state). On a
folder of clips only the first has one: the first frame of a clip, driven by its later frames.
Every number stands beside that of the copy baseline, which shows the source picture unmoved.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from dfm_engine.actions import Action
from dfm_engine.errors import EnvironmentUnfit, UsageError
from dfm_engine.fomm import metrics
from dfm_engine.fomm.config import ConfigSource
from dfm_engine.fomm.evaluation_result import EvaluateResult, Row
from dfm_engine.fomm.evaluation_screen import ScreenedAction, screen_rendered
from dfm_engine.fomm.evaluation_shots import Shot, folder_shots, rendered_shots
from dfm_engine.fomm.metrics import FaceAgreement
from dfm_engine.fomm.model import Fomm, load
from dfm_engine.fomm.train_files import write_text
from dfm_engine.fomm.transfer import TransferMode

if TYPE_CHECKING:
    from dfm_engine.faces.mtcnn import Mtcnn

log = logging.getLogger(__name__)

POSE_ACTIONS = (
    Action.YAW,
    Action.NOD,
    Action.RIGHT_SLOPE,
    Action.LEFT_SLOPE,
    Action.LOOK_UP,
)
GOALS = {
    "self_over_copy_db": 7.0,
    "cross_pose_over_copy_db": 4.0,
    "blink_gain": 0.7,
    "open_mouth_gain": 0.5,
    "found_share": 0.95,
    "screened_actions": 8.0,
}
SCREEN_SHARE = 0.6
"""Of an action's animations; the goal counts the actions where the screen accepts as many."""
SCREEN_FIRST_SEED = 50_000  # below training's 100 000, above those of the shots


def run_evaluate_fomm(
    weights: str | Path | Fomm,
    *,
    config: ConfigSource = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    identities: int = 100,
    first_seed: int = 0,
    moments: int = 2,
    clips: int = 0,
    mode: TransferMode = "rel_adapt",
    align_corners: bool = True,
    device: str = "auto",
    with_faces: bool = True,
    screen_clips: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluateResult:
    """Measure weights on rendered people, or on a folder of clips.

    Args:
        weights: file in either form, or a loaded model.
        config: the architecture, where the file does not carry it.
        data: a folder laid out as for training; None renders people.
        out: folder for evaluate.json, evaluate.md and sheet.png.
        identities: rendered people.
        first_seed: of the first; training uses seeds from 100 000 on.
        moments: frames per action and person, the peak among them.
        clips: at most this many clips of the folder; 0: all.
        mode: how motion is carried over.
        align_corners: how the weights were trained.
        device: "auto", "cpu", "cuda" or "cuda:N".
        with_faces: look with MTCNN too, where it is installed.
        screen_clips: animate so many whole clips of each action, and ask the screen of a build;
            only of rendered people, and where MTCNN is installed.
        progress: called with the animations done and all of them, for rendered people.
    """
    from dfm_engine.train_device import pick_device

    where = pick_device(device)
    fomm = weights
    if not isinstance(fomm, Fomm):
        fomm = load(fomm, config, align_corners=align_corners)
    fomm = fomm.to(where).eval()
    if data is not None and screen_clips:
        raise UsageError("the screen judges clips of rendered people; leave --data or --screen out")
    total = identities * len(Action) * 2 + screen_clips * len(Action)  # where people are rendered
    if data is None:
        shots = rendered_shots(
            fomm.frame_size[0], identities, first_seed, moments=moments, device=where
        )
        facts: dict[str, Any] = {
            "source": "procedural",
            "identities": identities,
            "first_seed": first_seed,
            "moments": moments,
        }
    else:
        shots = folder_shots(Path(data), fomm.frame_size[0], most=clips, device=where)
        facts = {"source": "folder", "folder": Path(data).name}
    notes: list[str] = []
    detector = _detector(where, notes) if with_faces else None
    tally = _Tally(detector)
    sheet = _Sheet(kind="cross" if data is None else "self")
    count, seconds = 0, 0.0
    for done, shot in enumerate(shots, start=1):
        started = time.monotonic()
        has_gain = shot.boxes is not None
        rest, prediction = animate_shot(fomm, shot, mode=mode, with_rest=has_gain)
        if where.type == "cuda":
            torch.cuda.synchronize()
        seconds += time.monotonic() - started
        count += len(rest) + len(prediction)
        tally.add(shot, prediction, rest)
        sheet.add(shot, prediction)
        if progress is not None and data is None:
            progress(done, total)
    if not count:
        raise UsageError("nothing to evaluate: no people and no clips")
    rows = tally.rows()
    faces = tally.faces()
    screen: tuple[ScreenedAction, ...] = ()
    if screen_clips and detector is not None:
        screen = screen_rendered(
            fomm,
            detector,
            clips=screen_clips,
            first_seed=SCREEN_FIRST_SEED,
            mode=mode,
            device=where,
            progress=progress
            and (lambda done, _: progress(total - 10 * screen_clips + done, total)),
        )
    result = EvaluateResult(
        weights_sha256=fomm.weights_sha256,
        data=facts,
        rows=rows,
        faces=faces,
        goals=_goals(rows, faces, screen) if data is None else {},
        frames_per_s=count / max(seconds, 1e-9),
        device=str(where),
        screen=screen,
        notes=tuple(notes),
    )
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "evaluate.json", json.dumps(result.to_json(), indent=2) + "\n")
        write_text(folder / "evaluate.md", result.table())
        sheet.write(folder / "sheet.png")
    return result


@torch.inference_mode()
def animate_shot(
    fomm: Fomm, shot: Shot, *, mode: TransferMode, rows: int = 32, with_rest: bool = True
) -> tuple[Tensor, Tensor]:
    """What is predicted before the motion starts (1, 3, H, W), and in it (T, 3, H, W).

    The first has no row where `with_rest` is false.
    """
    kp_source, kp_initial = fomm.keypoints(shot.source), fomm.keypoints(shot.initial)
    features = fomm.encode_source(shot.source)
    parts: list[Tensor] = []
    driving = torch.cat([shot.initial, shot.driving]) if with_rest else shot.driving
    for start in range(0, len(driving), rows):
        kp_driving = fomm.keypoints(driving[start : start + rows])
        moved = fomm.transfer(kp_source, kp_driving, kp_initial, mode=mode)
        parts.append(fomm.animate(features, kp_source, moved).prediction)
    predicted = torch.cat(parts)
    return predicted[: int(with_rest)], predicted[int(with_rest) :]


class _Tally:
    """Collects numbers per label and kind, and landmarks per kind."""

    def __init__(self, detector: metrics.Detector | None) -> None:
        self.detector = detector
        self._numbers: dict[tuple[str, str], dict[str, list[Tensor]]] = {}
        self._landmarks: dict[str, list[tuple[NDArray[np.float32], NDArray[np.float32]]]] = {}

    @torch.inference_mode()
    def add(self, shot: Shot, prediction: Tensor, rest: Tensor) -> None:
        """Measure one shot; `rest` is the prediction before the motion starts."""
        copied = shot.source.expand_as(shot.truth)
        found: dict[str, Tensor] = {
            "l1": metrics.l1(prediction, shot.truth),
            "psnr_db": metrics.psnr_db(prediction, shot.truth),
            "ssim": metrics.ssim(prediction, shot.truth),
            "copy_l1": metrics.l1(copied, shot.truth),
            "copy_psnr_db": metrics.psnr_db(copied, shot.truth),
            "copy_ssim": metrics.ssim(copied, shot.truth),
        }
        if shot.boxes is not None:
            # the peak is the last moment; on the way there the change is small against the noise
            found["gain"] = metrics.gain(
                prediction[-1:] - rest, shot.truth[-1:] - shot.source, shot.boxes[-1:]
            )
        for key in ((shot.label, shot.kind), ("all", shot.kind)):
            into = self._numbers.setdefault(key, {})
            for name, values in found.items():
                if name != "gain" or key[0] != "all":
                    into.setdefault(name, []).append(values.double().cpu())
        if self.detector is not None:
            seen = [
                metrics.face_landmarks(self.detector, _bytes(images))
                for images in (prediction, shot.truth)
            ]
            self._landmarks.setdefault(shot.kind, []).append((seen[0], seen[1]))

    def rows(self) -> tuple[Row, ...]:
        """Actions in the paper's order, "all" last."""
        return tuple(
            Row(
                label=label,
                kind=kind,
                frames=sum(len(values) for values in numbers["l1"]),
                **{name: metrics.mean_of(values) for name, values in numbers.items()},
            )
            for (label, kind), numbers in sorted(
                self._numbers.items(), key=lambda item: item[0][0] == "all"
            )
        )

    def faces(self) -> dict[str, FaceAgreement]:
        """Per kind."""
        return {
            kind: metrics.face_agreement(
                np.concatenate([found for found, _ in pairs]),
                np.concatenate([wanted for _, wanted in pairs]),
            )
            for kind, pairs in self._landmarks.items()
        }


class _Sheet:
    """Driver, prediction, truth for the first few people, a column per action."""

    def __init__(self, *, kind: str, people: int = 4, columns: int = 10) -> None:
        self.kind, self.people, self.columns = kind, people, columns
        self._tiles: list[tuple[str, NDArray[np.uint8]]] = []

    def add(self, shot: Shot, prediction: Tensor) -> None:
        """Keep the last moment of a shot that is to be shown."""
        if shot.kind == self.kind and len(self._tiles) < self.people * self.columns:
            tile = torch.cat([shot.driving[-1], prediction[-1], shot.truth[-1]], dim=1)
            self._tiles.append((shot.label, _bytes(tile[None])[0]))

    def write(self, path: Path) -> None:
        """Save as PNG; labels above, per person driver / prediction / truth below each other."""
        tiles = self._tiles
        columns = min(self.columns, len(tiles))
        rows = -(-len(tiles) // columns)
        height, width = tiles[0][1].shape[:2]
        picture = Image.new("RGB", (columns * width, 14 + rows * height), "white")
        draw = ImageDraw.Draw(picture)
        for index, (label, tile) in enumerate(tiles):
            row, column = divmod(index, columns)
            picture.paste(Image.fromarray(tile), (column * width, 14 + row * height))
            if row == 0:
                draw.text((column * width + 3, 1), label, fill="black")
        picture.save(path)


def _goals(
    rows: tuple[Row, ...],
    faces: dict[str, FaceAgreement],
    screen: tuple[ScreenedAction, ...],
) -> dict[str, tuple[float, float]]:
    by = {(row.label, row.kind): row for row in rows}
    found = {
        "self_over_copy_db": by["all", "self"].over_copy_db,
        "cross_pose_over_copy_db": min(by[a.value, "cross"].over_copy_db for a in POSE_ACTIONS),
        "blink_gain": by[Action.BLINK.value, "cross"].gain or 0.0,
        "open_mouth_gain": by[Action.OPEN_MOUTH.value, "cross"].gain or 0.0,
    }
    if faces:
        found["found_share"] = min(seen.found_share for seen in faces.values())
    if screen:
        found["screened_actions"] = float(
            sum(row.accepted >= SCREEN_SHARE * row.clips for row in screen)
        )
    return {name: (value, GOALS[name]) for name, value in found.items()}


def _detector(device: torch.device, notes: list[str]) -> Mtcnn | None:
    try:
        from dfm_engine.faces.mtcnn import Mtcnn

        return Mtcnn.load(str(device))
    except (EnvironmentUnfit, ModuleNotFoundError) as error:  # a package of it is not installed
        notes.append(f"Without face detection: {error}")
        log.warning("evaluate  %s", notes[-1])
        return None


def _bytes(images: Tensor) -> NDArray[np.uint8]:
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy())
