"""How close an animation is to what it should show, by pixels and by what a face detector sees.

In: pictures (N, 3, H, W) float in [0, 1], on any device. Out: one number per picture, or a
summary over all.

Source: FOMM (Siarohin et al. 2019), section 4 (L1, average keypoint distance and its miss rate);
SSIM of Wang et al. 2004 with its Gaussian window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dfm_engine.clip import Pixels
from dfm_engine.faces.pose import head_pose

_SSIM_SIGMA, _SSIM_REACH = 1.5, 5  # 11x11 pixels
_EXACT = 1e-10  # mean squared error that counts as equal: 100 dB


def l1(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference per picture, (N,)."""
    return (found - wanted).abs().flatten(1).mean(1)


def psnr_db(found: Tensor, wanted: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per picture in dB, (N,); at most 100."""
    error = (found - wanted).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp_min(_EXACT))


def ssim(found: Tensor, wanted: Tensor) -> Tensor:
    """Structural similarity per picture, mean over colour channels, (N,).

    Gaussian window of sigma 1.5 over 11x11 pixels, population covariance, windows that lie whole
    inside the picture (scikit-image's `gaussian_weights=True, use_sample_covariance=False`).
    """
    found, wanted = found.double(), wanted.double()
    offset = torch.arange(-_SSIM_REACH, _SSIM_REACH + 1, device=found.device, dtype=found.dtype)
    profile = torch.exp(-0.5 * (offset / _SSIM_SIGMA) ** 2)
    profile = profile / profile.sum()
    channels = found.shape[1]
    across = profile.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1)
    down = profile.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1)

    def blur(values: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(values, across, groups=channels), down, groups=channels)

    mean_a, mean_b = blur(found), blur(wanted)
    var_a = blur(found * found) - mean_a**2
    var_b = blur(wanted * wanted) - mean_b**2
    covariance = blur(found * wanted) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    values = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    return values.flatten(1).mean(1)


def gain(found: Tensor, wanted: Tensor, boxes: Tensor) -> Tensor:
    """How much of a wanted change happened, by projection: <found, wanted> / |wanted|^2 in a box.

    0 where nothing moved, 1 where all of it did, below 0 for the opposite. The found change is
    that between two predictions: against the source picture, blur alone would count as one.

    Args:
        found: (N, 3, H, W) prediction in action minus prediction at rest.
        wanted: (N, 3, H, W) truth in action minus truth at rest.
        boxes: (N, 4) x0, y0, x1, y1 in [-1, 1].

    Returns:
        (N,).
    """
    height, width = wanted.shape[-2:]
    y = torch.linspace(-1, 1, height, device=wanted.device)
    x = torch.linspace(-1, 1, width, device=wanted.device)
    in_x = (x >= boxes[:, 0:1]) & (x <= boxes[:, 2:3])
    in_y = (y >= boxes[:, 1:2]) & (y <= boxes[:, 3:4])
    inside = (in_y[:, :, None] & in_x[:, None, :]).unsqueeze(1)
    wanted, found = wanted * inside, found * inside
    energy = wanted.square().flatten(1).sum(1).clamp_min(_EXACT)
    return (found * wanted).flatten(1).sum(1) / energy


class Found(Protocol):
    """A detected face, as `faces.mtcnn.Face`."""

    @property
    def landmarks(self) -> NDArray[np.float32]:
        """(5, 2) pixels."""
        ...

    @property
    def score(self) -> float:
        """Face probability."""
        ...


class Detector(Protocol):
    """Finds faces, as `faces.mtcnn.Mtcnn`."""

    def detect(
        self, frames: Pixels | Tensor, *, min_face_px: float = 20.0
    ) -> Sequence[Sequence[Found]]:
        """Faces of each frame of uint8 (N, H, W, 3), largest first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceAgreement:
    """What a face detector says of predictions, compared with the wanted pictures.

    Attributes:
        frames: pictures compared.
        found_share: share of the predictions with a face.
        akd_px: mean distance of the five landmarks where both have a face (AKD-5).
        miss_rate: share of wanted faces that the prediction does not have.
        yaw_error_deg: mean absolute difference of the head's yaw.
        pitch_error_deg: of its pitch.
        roll_error_deg: of its roll.
        pose_correlation: correlation of all three angles, prediction against wanted.
    """

    frames: int
    found_share: float
    akd_px: float
    miss_rate: float
    yaw_error_deg: float
    pitch_error_deg: float
    roll_error_deg: float
    pose_correlation: float


def face_landmarks(
    detector: Detector, frames: Pixels, *, min_score: float = 0.9
) -> NDArray[np.float32]:
    """(N, 5, 2) landmarks of each frame's largest face, NaN where there is none."""
    out = np.full((len(frames), 5, 2), np.nan, np.float32)
    smallest = max(20.0, frames.shape[1] / 5)  # our crops are filled by the face
    for start in range(0, len(frames), 32):
        faces = detector.detect(frames[start : start + 32], min_face_px=smallest)
        for index, found in enumerate(faces):
            good = [face for face in found if face.score >= min_score]
            if good:
                out[start + index] = good[0].landmarks
    return out


def face_agreement(prediction: NDArray[np.float32], wanted: NDArray[np.float32]) -> FaceAgreement:
    """Compare landmarks (N, 5, 2), NaN where there is no face."""
    has, should = ~np.isnan(prediction[:, 0, 0]), ~np.isnan(wanted[:, 0, 0])
    both = has & should
    nan = float("nan")
    errors, correlation, distance = [nan] * 3, nan, nan
    if both.any():
        distance = float(np.linalg.norm(prediction[both] - wanted[both], axis=-1).mean())
        poses = head_pose(prediction[both]), head_pose(wanted[both])
        names = ("yaw_deg", "pitch_deg", "roll_deg")
        first, second = (np.stack([getattr(pose, n) for n in names]) for pose in poses)
        errors = np.abs(first - second).mean(axis=1).tolist()
        if both.sum() > 2:
            correlation = float(np.corrcoef(first.ravel(), second.ravel())[0, 1])
    return FaceAgreement(
        frames=len(has),
        found_share=float(has.mean()),
        akd_px=distance,
        miss_rate=float((should & ~has).sum() / max(1, should.sum())),
        yaw_error_deg=errors[0],
        pitch_error_deg=errors[1],
        roll_error_deg=errors[2],
        pose_correlation=correlation,
    )


def mean_of(values: Sequence[Tensor]) -> float:
    """The mean over all pictures of a list of per-picture numbers."""
    return float(torch.cat(list(values)).mean())
