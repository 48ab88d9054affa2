"""What an evaluation of a FOMM found: for programs `to_json()`, for people `table()`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dfm_engine.fomm.evaluation_screen import ScreenedAction
from dfm_engine.fomm.metrics import FaceAgreement


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Means over all frames of one label and kind."""

    label: str
    kind: str
    frames: int
    l1: float
    psnr_db: float
    ssim: float
    copy_psnr_db: float
    copy_l1: float
    copy_ssim: float
    gain: float | None = None

    @property
    def over_copy_db(self) -> float:
        """PSNR above the copy baseline's."""
        return self.psnr_db - self.copy_psnr_db


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateResult:
    """What was measured; `table()` is for people.

    Attributes:
        weights_sha256: of the evaluated file.
        data: what it was evaluated on.
        rows: per label and kind; label "all" is the mean over every frame of a kind.
        faces: "self" and "cross" -> what the face detector sees; empty without a detector.
        goals: name -> (found, wanted), for rendered people.
        frames_per_s: animated frames per second, keypoints included.
        device: where.
        screen: per action what the screen says of whole clips; empty if it was not asked.
        notes: what could not be measured, and why.
    """

    weights_sha256: str
    data: dict[str, Any]
    rows: tuple[Row, ...]
    faces: dict[str, FaceAgreement]
    goals: dict[str, tuple[float, float]]
    frames_per_s: float
    device: str
    screen: tuple[ScreenedAction, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def missed(self) -> tuple[str, ...]:
        """Goals that were not reached."""
        return tuple(name for name, (found, wanted) in self.goals.items() if not found >= wanted)

    def row(self, label: str, kind: str) -> Row:
        """One row.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if (row.label, row.kind) == (label, kind):
                return row
        raise KeyError(f"{label} {kind}")

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "weights_sha256": self.weights_sha256,
            "data": self.data,
            "rows": [
                {**dataclasses.asdict(row), "over_copy_db": row.over_copy_db} for row in self.rows
            ],
            "faces": {kind: dataclasses.asdict(faces) for kind, faces in self.faces.items()},
            "goals": {
                name: {"found": found, "wanted": wanted, "met": found >= wanted}
                for name, (found, wanted) in self.goals.items()
            },
            "frames_per_s": self.frames_per_s,
            "device": self.device,
            "screen": [dataclasses.asdict(action) for action in self.screen],
            "notes": list(self.notes),
        }

    def table(self) -> str:
        """Markdown: one line per label and kind, then faces, the screen, goals."""
        lines = [
            "| | kind | frames | L1 | PSNR dB | copy dB | over copy | SSIM | gain |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in self.rows:
            gain = "" if row.gain is None else f"{row.gain:.2f}"
            lines.append(
                f"| {row.label} | {row.kind} | {row.frames} | {row.l1:.4f} | {row.psnr_db:.2f} | "
                f"{row.copy_psnr_db:.2f} | {row.over_copy_db:+.2f} | {row.ssim:.3f} | {gain} |"
            )
        if self.faces:
            lines += [
                "",
                "| MTCNN | found | AKD-5 px | miss rate | yaw / pitch / roll error | correlation |",
                "| --- | --- | --- | --- | --- | --- |",
            ]
        for kind, faces in self.faces.items():
            lines.append(
                f"| {kind} | {100 * faces.found_share:.1f} % | {faces.akd_px:.2f} | "
                f"{100 * faces.miss_rate:.1f} % | {faces.yaw_error_deg:.1f}° / "
                f"{faces.pitch_error_deg:.1f}° / {faces.roll_error_deg:.1f}° | "
                f"{faces.pose_correlation:.3f} |"
            )
        lines += _screen_lines(self.screen)
        if self.goals:
            lines += ["", "| goal | found | wanted | |", "| --- | --- | --- | --- |"]
        for name, (found, wanted) in self.goals.items():
            met = "met" if found >= wanted else "missed"
            lines.append(f"| {name} | {found:.2f} | {wanted:.2f} | {met} |")
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)]) + "\n"


def _screen_lines(screen: Sequence[ScreenedAction]) -> list[str]:
    if not screen:
        return []
    lines = [
        "",
        "| screen | clips | driving clip shows it | animation shows it | accepted |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in screen:
        lines.append(
            f"| {row.action} | {row.clips} | {row.driven} | {row.performed} | {row.accepted} |"
        )
    return lines
