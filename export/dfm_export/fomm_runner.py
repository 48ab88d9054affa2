"""A FOMM whose graphs run anywhere: `dfm_engine.backends.Runner` over graph runners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dfm_engine.errors import ShapeError
from dfm_engine.fomm.values import Keypoints, SourceFeatures
from dfm_export.runners import GraphRunner

__all__ = ["FommGraphsRunner"]

WHOLE, SPLIT = ("keypoints", "source", "animate"), ("keypoints", "source", "motion", "render")


class FommGraphsRunner:
    """Implements `Runner` with the graphs of an exported FOMM.

    A row's result depends on the batch's size alone: calls are cut into parts of one size, and on
    a CPU every part is one row (`models.open_fomm_runner`).

    Args:
        graphs: by name: `keypoints`, `source`, and `animate` or `motion` and `render`; of one
            device. Closed by `close`.
        weights_sha256: identifies the weights.
        files_sha256: identifies the exported files, which decide a row's last bits; the name shows
            eight digits of it, so that a build is not resumed with others.
    """

    calls_at_once = 1

    def __init__(
        self, graphs: Mapping[str, GraphRunner], *, weights_sha256: str, files_sha256: str = ""
    ) -> None:
        if set(graphs) not in (set(WHOLE), set(SPLIT)):
            raise ShapeError(f"a FOMM has the graphs {WHOLE} or {SPLIT}, got {sorted(graphs)}")
        devices = {str(graph.device) for graph in graphs.values()}
        if len(devices) > 1:
            raise ShapeError(f"the graphs of a FOMM must share a device, they are on {devices}")
        self.graphs = dict(graphs)
        self.weights_sha256 = weights_sha256
        self.device: torch.device = graphs["keypoints"].device
        _, _, height, width = graphs["keypoints"].spec.inputs[0].shape
        self.frame_size = (int(height), int(width))
        self._is_split = set(graphs) == set(SPLIT)
        frame = graphs["render" if self._is_split else "animate"]
        parts = (frame.name, "split" if self._is_split else "", files_sha256[:8])
        self.name = "-".join(part for part in parts if part)

    def keypoints(self, images: Tensor) -> Keypoints:
        """See `Runner`."""
        found = self.graphs["keypoints"].run({"images": images.contiguous()})
        return Keypoints(found["value"], found.get("jacobian"))

    def source(self, images: Tensor) -> SourceFeatures:
        """See `Runner`."""
        found = self.graphs["source"].run({"images": images.contiguous()})
        return SourceFeatures(found["encoded"], found["small"])

    def animate(
        self, features: SourceFeatures, kp_source: Keypoints, kp_driving: Keypoints
    ) -> Tensor:
        """See `Runner`. One source serves all rows without a copy of its features.

        Raises:
            ShapeError: neither one row of sources nor as many as of the driving.
        """
        rows = len(kp_driving)
        if len(features) != len(kp_source):  # one of them serves all rows of the other
            features, kp_source = features.expand(rows), kp_source.expand(rows)
        if len(features) not in (1, rows):
            raise ShapeError(f"{features!r} has {len(features)} rows and cannot serve {rows}")
        feeds = {
            "encoded": features.encoded,
            "small": features.small,
            "source_value": kp_source.value,
            "driving_value": kp_driving.value,
        }
        if kp_source.jacobian is not None and kp_driving.jacobian is not None:
            feeds["source_jacobian"] = kp_source.jacobian
            feeds["driving_jacobian"] = kp_driving.jacobian
        feeds = {name: tensor.contiguous() for name, tensor in feeds.items()}
        if not self._is_split:
            return self.graphs["animate"].run(feeds)["prediction"]
        encoded = feeds.pop("encoded")
        motion = self.graphs["motion"].run(feeds)
        return self.graphs["render"].run({"encoded": encoded, **motion})["prediction"]

    def warmup(self, batches: Sequence[int]) -> None:
        """Run every graph once with so many rows each; `source` with one."""
        for name, graph in self.graphs.items():
            graph.warmup([1] if name == "source" else batches)

    def close(self) -> None:
        """Close every graph."""
        for graph in self.graphs.values():
            graph.close()
