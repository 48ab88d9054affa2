"""The baseline that everyone knows: the published demo's loop, one frame at a time.

For every driving frame the keypoints are found and the source is encoded again, at batch 1, in
float32, with nothing folded and nothing kept. The two networks are those that production runs, so
the loop is no slower than the published code: it leaves out `deformed`, which that code also
computes for its picture.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from dfm_engine.exact_kernels import exact_kernels
from dfm_engine.fomm.model import Fomm
from dfm_engine.fomm.transfer import TransferMode, transfer
from dfm_engine.fomm.values import Keypoints

__all__ = ["ReferenceLoop"]


class ReferenceLoop:
    """The per-frame loop over one source image.

    Args:
        fomm: copied, so that nothing done to it later changes the baseline.
        source: (1, 3, H, W) in [0, 1].
        initial: (1, 3, H, W), the driving clip's first frame.
        mode: how motion is carried over.
    """

    def __init__(
        self, fomm: Fomm, source: Tensor, initial: Tensor, *, mode: TransferMode = "rel_adapt"
    ) -> None:
        self._fomm = copy.deepcopy(fomm).to(source.device, torch.float32).eval()
        self._fomm.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        self._source = source
        self._mode: TransferMode = mode
        with torch.inference_mode(), exact_kernels():
            self._kp_source = self._fomm.keypoints(source)
            self._kp_initial = self._fomm.keypoints(initial)

    def keypoints(self, driving: Tensor) -> Keypoints:
        """Of one driving frame (1, 3, H, W), carried over to the source."""
        found = self._fomm.keypoints(driving)
        return transfer(self._kp_source, found, self._kp_initial, mode=self._mode)

    def __call__(self, driving: Tensor) -> Tensor:
        """(1, 3, H, W) in [0, 1]: the source moved as this driving frame is."""
        with torch.inference_mode(), exact_kernels():
            kp_driving = self.keypoints(driving)
            features = self._fomm.encode_source(self._source)
            return self._fomm.animate(features, self._kp_source, kp_driving).prediction
