"""What animation and screen need of driving clips, kept on disk: found once, however often resumed.

One safetensors file per driving clip in `<out>/prepared/`: keypoints, motion signals and face track
of every frame. Its name is the hash of all that decides them: the clip's content and range, and the
run's contract (weights, runner, recipe, decoder, versions), so another model finds no file of this
one. What cannot be read is found again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensor_bytes

from dfm_engine.clip import FaceTrack
from dfm_engine.durable import write_durably
from dfm_engine.fomm.values import Keypoints
from dfm_engine.screen import Signals

__all__ = ["DrivingMotion", "DrivingStore"]

CONTRACT = 1
"""Raise when what is kept changes."""

_CURVES = tuple(f.name for f in dataclasses.fields(Signals) if f.type == "Curve")
_NUMBERS = ("found_share", "still_share", "sharpness")
_TRACK = tuple(f.name for f in dataclasses.fields(FaceTrack))


@dataclasses.dataclass(frozen=True, slots=True)
class DrivingMotion:
    """The motion of a driving clip of T frames.

    Attributes:
        keypoints: T rows.
        signals: its curves.
        track: the face in pixels of the canonical frames.
    """

    keypoints: Keypoints
    signals: Signals
    track: FaceTrack


class DrivingStore:
    """The files of a run.

    Args:
        folder: `<out>/prepared`.
        contract: of the run, as in run.json.
    """

    def __init__(self, folder: Path, contract: Mapping[str, Any]) -> None:
        self._folder = folder
        self._contract = json.dumps([CONTRACT, contract], sort_keys=True)

    def read(self, key: str, *, device: torch.device | str) -> DrivingMotion | None:
        """What was kept of a clip, or None.

        Args:
            key: `shelf.driving_key`.
            device: where its keypoints shall be.
        """
        try:
            tensors = read_tensors(self._path(key).read_bytes())
            numbers = dict(zip(_NUMBERS, tensors["signals.numbers"].tolist(), strict=True))
            curves = {name: tensors[f"signals.{name}"].numpy() for name in _CURVES}
            track = {name: tensors[f"track.{name}"].numpy() for name in _TRACK}
            jacobian = tensors.get("keypoints.jacobian")
            return DrivingMotion(
                Keypoints(tensors["keypoints.value"], jacobian).to(device),
                Signals(
                    **curves,
                    **numbers,
                    neutral_frames=int(tensors["signals.neutral_frames"]),
                ),
                FaceTrack(**track),
            )
        except (OSError, KeyError, ValueError, SafetensorError):
            return None  # absent, or not written by this version: find it again

    def write(self, key: str, motion: DrivingMotion) -> None:
        """Keep a clip's motion.

        Raises:
            EnvironmentUnfit: the folder cannot be written.
        """
        signals, keypoints = motion.signals, motion.keypoints
        tensors = {
            "keypoints.value": keypoints.value,
            "signals.numbers": torch.tensor(
                [getattr(signals, name) for name in _NUMBERS], dtype=torch.float64
            ),
            "signals.neutral_frames": torch.tensor(signals.neutral_frames),
            **{f"signals.{name}": _tensor(getattr(signals, name)) for name in _CURVES},
            **{f"track.{name}": _tensor(getattr(motion.track, name)) for name in _TRACK},
        }
        if keypoints.jacobian is not None:
            tensors["keypoints.jacobian"] = keypoints.jacobian
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_durably(self._path(key), tensor_bytes(plain))

    def _path(self, key: str) -> Path:
        digest = hashlib.sha256(f"{self._contract} {key}".encode()).hexdigest()[:16]
        return self._folder / f"motion-{digest}.safetensors"


def _tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
