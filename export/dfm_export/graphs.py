"""The networks as graphs that export: tensors in, tensors out, no branches, no constants made.

FOMM is three graphs, `keypoints` and `source` once per image, `animate` per frame; `motion` and
`render` are `animate` in two parts. A detector is one graph, from uint8 frames to logits and map.
Inputs and outputs keep their types at every precision, so that a caller need not know which one
it holds: float32, and uint8 for frames.

Sources are rows of their own. With S sources and B driving rows, row i belongs to source
i // (B / S), so one source serves a whole clip and nothing is copied for it: the sampling grids of
a source's rows are put below each other and look its map up in one go.

Low precision is chosen here, in torch, module by module (`precision.Plan`): convolutions have the
plan's type and everything between them stays float32: grids, 2x2 inverses, softmax, sigmoid,
sampling. Rewriting a finished ONNX graph instead loses such an island at its first Add or Concat
of coordinates, and 10 dB with it.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from dfm_engine.detect.detector import ForgeryDetector
from dfm_engine.errors import UsageError
from dfm_engine.fomm.blocks import width as width_at
from dfm_engine.fomm.config import FommConfig
from dfm_engine.fomm.dense_motion import DenseMotionNetwork
from dfm_engine.fomm.fold import fold, merge_convolutions
from dfm_engine.fomm.generator import Generator
from dfm_engine.fomm.geometry import (
    coordinate_grid,
    inverse_2x2,
    product_2x2,
    resize,
    resize_grid,
    sample,
)
from dfm_engine.fomm.keypoints import KeypointDetector, soft_argmax
from dfm_engine.fomm.model import Fomm
from dfm_engine.norms import fold_norms
from dfm_export.precision import Kind, Plan
from dfm_export.specs import BATCH, SOURCES, GraphSpec, TensorSpec

__all__ = [
    "FOMM_GRAPHS",
    "FOMM_GRAPHS_SPLIT",
    "Graph",
    "GraphSpec",
    "TensorSpec",
    "detector_graph",
    "fomm_graphs",
]

FOMM_GRAPHS = ("keypoints", "source", "animate")
FOMM_GRAPHS_SPLIT = ("keypoints", "source", "motion", "render")


class Graph(nn.Module):
    """A module with the spec of its inputs and outputs, in the order of `forward`."""

    def __init__(self, spec: GraphSpec) -> None:
        super().__init__()
        self.spec = spec


def fomm_graphs(
    fomm: Fomm, plan: Plan, *, subpixel: bool = True, split: bool = False
) -> dict[str, Graph]:
    """The graphs of a FOMM, by name, in the order of their use.

    Args:
        fomm: as loaded, in float32; stays as it is.
        plan: of precision.
        subpixel: up blocks as transposed convolutions; see `fomm.fold`.
        split: `motion` and `render` in place of `animate`, for runtimes that want the sampling
            grid at a graph's border.
    """
    _check_kind(plan, "fomm")
    folded = fold(fomm, subpixel=subpixel)
    graphs: dict[str, Graph] = {
        "keypoints": KeypointsGraph(folded.config, folded.kp_detector),
        "source": SourceGraph(folded.config, folded.generator, plan),
    }
    if split:
        graphs["motion"] = MotionGraph(folded.config, folded.generator, plan)
        graphs["render"] = RenderGraph(folded.config, folded.generator, plan)
    else:
        graphs["animate"] = AnimateGraph(folded.config, folded.generator, plan)
    return {name: graph.eval().requires_grad_(False) for name, graph in graphs.items()}


def detector_graph(detector: ForgeryDetector, plan: Plan) -> Graph:
    """The one graph of a detector.

    Args:
        detector: in float32; stays as it is.
        plan: of precision.
    """
    _check_kind(plan, "detector")
    return DetectorGraph(detector, plan).eval().requires_grad_(False)


class Typed(nn.Module):
    """A part of the network in a type of its own: float32 in, float32 out."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the module makes of x."""
        return self.module(x.to(self.dtype)).to(torch.float32)


class KeypointsGraph(Graph):
    """Images to keypoints; float32 whatever the plan.

    Its convolutions make the error, not its soft-argmax: 0.35 px in float16, 1.6 px in bfloat16,
    and keypoint errors weigh more in the frame than all that the generator rounds.
    """

    def __init__(self, config: FommConfig, detector: KeypointDetector) -> None:
        height, width = config.frame_size
        outputs = [TensorSpec("value", "float32", (BATCH, config.num_kp, 2))]
        if config.estimate_jacobian:
            outputs.append(TensorSpec("jacobian", "float32", (BATCH, config.num_kp, 2, 2)))
        images = TensorSpec("images", "float32", (BATCH, config.num_channels, height, width))
        super().__init__(GraphSpec("keypoints", (images,), tuple(outputs)))
        self.num_kp = config.num_kp
        self.temperature = detector.temperature
        self.down, self.predictor = detector.down, detector.predictor
        heads = [detector.kp, *([] if detector.jacobian is None else [detector.jacobian])]
        self.heads = merge_convolutions(*heads)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) to value (B, K, 2) and jacobian (B, K, 2, 2)."""
        small = images if self.down is None else self.down(images)
        maps = self.heads(self.predictor(small))
        logits, jacobians = maps[:, : self.num_kp], maps[:, self.num_kp :]
        has_jacobians = self.heads.out_channels > self.num_kp
        keypoints = soft_argmax(
            logits, jacobians if has_jacobians else None, temperature=self.temperature
        )
        if keypoints.jacobian is None:
            return (keypoints.value,)
        return keypoints.value, keypoints.jacobian


class SourceGraph(Graph):
    """Source images to what `animate` needs of them."""

    def __init__(self, config: FommConfig, generator: Generator, plan: Plan) -> None:
        height, width = config.frame_size
        images = TensorSpec("images", "float32", (BATCH, config.num_channels, height, width))
        outputs = (
            TensorSpec("encoded", "float32", (BATCH, *_encoded_shape(config))),
            TensorSpec("small", "float32", (BATCH, *_small_shape(config))),
        )
        super().__init__(GraphSpec("source", (images,), outputs))
        self.encoder = Typed(nn.Sequential(generator.first, *generator.down_blocks), plan.body)
        self.down = generator.dense_motion_network.down

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) to encoded (B, C, h, w) and small (B, 3, h', w')."""
        small = images if self.down is None else self.down(images)
        return self.encoder(images), small


class DenseMotion(nn.Module):
    """Keypoints and small sources to deformation and occlusion map; see `fomm.dense_motion`."""

    grid: Tensor

    def __init__(self, config: FommConfig, network: DenseMotionNetwork, plan: Plan) -> None:
        super().__init__()
        self.maps = config.num_kp + 1
        self.variance = network.kp_variance
        self.align_corners = network.align_corners
        self.has_occlusion = network.occlusion is not None
        heads = [network.mask, *([] if network.occlusion is None else [network.occlusion])]
        self.net = Typed(nn.Sequential(network.hourglass, merge_convolutions(*heads)), plan.body)
        _, height, width = _small_shape(config)
        grid = coordinate_grid(height, width, like=network.mask.weight)
        self.register_buffer("grid", grid)  # (h, w, 2)

    def forward(
        self,
        small: Tensor,
        source_value: Tensor,
        source_jacobian: Tensor | None,
        driving_value: Tensor,
        driving_jacobian: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """S sources and B rows to deformation (B, h, w, 2) and occlusion map (B, 1, h, w)."""
        rows, height = driving_value.shape[0], self.grid.shape[0]
        source = _per_row(source_value, rows)[..., None, None, :]  # (B, K, 1, 1, 2)
        offset = self.grid - driving_value[..., None, None, :]  # (B, K, h, w, 2)
        moved_by = offset
        if source_jacobian is not None and driving_jacobian is not None:
            affine = product_2x2(_per_row(source_jacobian, rows), inverse_2x2(driving_jacobian))
            affine = affine[..., None, None, :, :]  # (B, K, 1, 1, 2, 2)
            moved_by = affine[..., 0] * offset[..., :1] + affine[..., 1] * offset[..., 1:]
        motions = moved_by + source
        background = self.grid + torch.zeros_like(motions[:, :1])
        motions = torch.cat([background, motions], dim=1)  # (B, K+1, h, w, 2)

        heat = self._bumps(offset) - self._bumps(self.grid - source)  # (B, K, h, w)
        heat = torch.cat([torch.zeros_like(heat[:, :1]), heat], dim=1)[:, :, None]
        moved = _sample_rows(small, motions.flatten(1, 2), align_corners=self.align_corners)
        moved = moved.unflatten(2, (self.maps, height)).transpose(1, 2)  # (B, K+1, 3, h, w)
        heads = self.net(torch.cat([heat, moved], dim=2).flatten(1, 2))  # (B, K+1 or K+2, h, w)
        mask = torch.softmax(heads[:, : self.maps], dim=1)
        deformation = (motions * mask[..., None]).sum(dim=1)
        occlusion_map = torch.sigmoid(heads[:, self.maps :]) if self.has_occlusion else None
        return deformation, occlusion_map

    def _bumps(self, offset: Tensor) -> Tensor:
        return torch.exp(offset.square().sum(dim=-1) * (-0.5 / self.variance))


class Render(nn.Module):
    """Features, deformation and occlusion map to frames; see `fomm.generator`."""

    def __init__(self, generator: Generator, plan: Plan) -> None:
        super().__init__()
        self.align_corners = generator.align_corners
        self.net = Typed(
            nn.Sequential(generator.bottleneck, *generator.up_blocks, generator.final), plan.body
        )

    def forward(self, encoded: Tensor, deformation: Tensor, occlusion_map: Tensor | None) -> Tensor:
        """S sources and B rows to (B, 3, H, W)."""
        height, width = encoded.shape[2:]
        grid = resize_grid(deformation, height, width)
        x = _sample_rows(encoded, grid, align_corners=self.align_corners)  # (B, C, h, w)
        if occlusion_map is not None:
            x = x * resize(occlusion_map, height, width)
        return torch.sigmoid(self.net(x))


class AnimateGraph(Graph):
    """Features and keypoints to frames."""

    def __init__(self, config: FommConfig, generator: Generator, plan: Plan) -> None:
        encoded = TensorSpec("encoded", "float32", (SOURCES, *_encoded_shape(config)))
        super().__init__(
            GraphSpec("animate", (encoded, *_motion_inputs(config)), (_prediction(config),))
        )
        self.motion = DenseMotion(config, generator.dense_motion_network, plan)
        self.render = Render(generator, plan)

    def forward(self, encoded: Tensor, small: Tensor, *keypoints: Tensor) -> Tensor:
        """Inputs as the spec has them; (B, 3, H, W)."""
        return self.render(encoded, *self.motion(small, *_unpack(keypoints)))


class MotionGraph(Graph):
    """The first half of `animate`, float32 but for its convolutions."""

    def __init__(self, config: FommConfig, generator: Generator, plan: Plan) -> None:
        super().__init__(GraphSpec("motion", _motion_inputs(config), _motion_outputs(config)))
        self.motion = DenseMotion(config, generator.dense_motion_network, plan)

    def forward(self, small: Tensor, *keypoints: Tensor) -> tuple[Tensor, ...]:
        """Inputs as the spec has them; deformation (B, h, w, 2), occlusion map (B, 1, h, w)."""
        deformation, occlusion_map = self.motion(small, *_unpack(keypoints))
        return (deformation,) if occlusion_map is None else (deformation, occlusion_map)


class RenderGraph(Graph):
    """The second half of `animate`."""

    def __init__(self, config: FommConfig, generator: Generator, plan: Plan) -> None:
        encoded = TensorSpec("encoded", "float32", (SOURCES, *_encoded_shape(config)))
        super().__init__(
            GraphSpec("render", (encoded, *_motion_outputs(config)), (_prediction(config),))
        )
        self.render = Render(generator, plan)

    def forward(self, encoded: Tensor, deformation: Tensor, *occlusion_map: Tensor) -> Tensor:
        """Inputs as the spec has them; (B, 3, H, W)."""
        return self.render(encoded, deformation, occlusion_map[0] if occlusion_map else None)


class DetectorGraph(Graph):
    """uint8 frames of the detector's size to logits and, where it can be exported, the map.

    A map that needs gradients (`DetectorSpec.cam` is `gradient`) cannot be: such a graph gives
    logits alone.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, detector: ForgeryDetector, plan: Plan) -> None:
        spec, side = detector.spec, detector.spec.input_px
        example = torch.linspace(-2, 2, 3 * side * side).reshape(1, 3, side, side)
        detector = cast(ForgeryDetector, fold_norms(detector, example))
        outputs = [TensorSpec("logits", "float32", (BATCH, spec.logits))]
        with_cam = spec.cam != "gradient"
        if with_cam:
            with torch.no_grad():
                _, cam = detector.logits_and_cam(example)
            outputs.append(TensorSpec("cam", "float32", (BATCH, *cam.shape[1:])))
        frames = TensorSpec("frames", "uint8", (BATCH, side, side, 3))
        super().__init__(GraphSpec("detector", (frames,), tuple(outputs)))
        self.with_cam = with_cam
        self.dtype = plan.body
        self.detector = detector.to(plan.body)
        self.detector.head.float()
        mean = torch.tensor(spec.mean, dtype=torch.float64)
        std = torch.tensor(spec.std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """uint8 (B, S, S, 3) to logits (B, 1 or 2) and cam (B, 1 or 2, h, w)."""
        images = frames.to(torch.float32) * self.scale + self.shift
        features = self.detector.features(images.permute(0, 3, 1, 2).to(self.dtype))
        if not self.with_cam:
            # What stands before the head may hold norms of its own, in the backbone's type.
            embedding = self.detector.embed(features).to(torch.float32)
            return (self.detector.head(embedding),)
        features = features.to(torch.float32)
        logits = self.detector.head(self.detector.embed(features))
        return logits, self.detector.cam(features)


def _check_kind(plan: Plan, kind: Kind) -> None:
    """Refuse a plan that is for other networks."""
    if plan.kind != kind:
        raise UsageError(f"plan {plan.name} is for a {plan.kind}, not for a {kind}")


def _per_row(of_sources: Tensor, rows: int) -> Tensor:
    """(S, ...) to (B, ...): small tensors alone, for it may copy."""
    sources = of_sources.shape[0]  # len() would be a constant
    each = of_sources[:, None].expand(sources, rows // sources, *of_sources.shape[1:])
    return each.reshape(rows, *of_sources.shape[1:])


def _sample_rows(images: Tensor, grid: Tensor, *, align_corners: bool) -> Tensor:
    """Sample (S, C, h, w) by (B, y, x, 2) to (B, C, y, x), B / S rows from each image.

    Rows of one image are put below each other into one grid, so that the image is not copied.
    """
    sources, channels = images.shape[:2]
    rows, height, width = grid.shape[:3]
    grid = grid.reshape(sources, -1, width, 2)
    found = sample(images, grid, align_corners=align_corners)  # (S, C, B/S y, x)
    found = found.reshape(sources, channels, -1, height, width).transpose(1, 2)
    return found.reshape(rows, channels, height, width)


def _unpack(keypoints: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Source and driving keypoints, with jacobians or without."""
    if len(keypoints) == 2:
        return keypoints[0], None, keypoints[1], None
    source_value, source_jacobian, driving_value, driving_jacobian = keypoints
    return source_value, source_jacobian, driving_value, driving_jacobian


def _motion_inputs(config: FommConfig) -> tuple[TensorSpec, ...]:
    inputs = [TensorSpec("small", "float32", (SOURCES, *_small_shape(config)))]
    for name, rows in (("source", SOURCES), ("driving", BATCH)):
        inputs.append(TensorSpec(f"{name}_value", "float32", (rows, config.num_kp, 2)))
        if config.estimate_jacobian:
            inputs.append(TensorSpec(f"{name}_jacobian", "float32", (rows, config.num_kp, 2, 2)))
    return tuple(inputs)


def _motion_outputs(config: FommConfig) -> tuple[TensorSpec, ...]:
    _, height, width = _small_shape(config)
    deformation = TensorSpec("deformation", "float32", (BATCH, height, width, 2))
    occlusion_map = TensorSpec("occlusion_map", "float32", (BATCH, 1, height, width))
    has_occlusion = config.generator.estimate_occlusion_map
    return (deformation, occlusion_map) if has_occlusion else (deformation,)


def _prediction(config: FommConfig) -> TensorSpec:
    return TensorSpec("prediction", "float32", (BATCH, config.num_channels, *config.frame_size))


def _encoded_shape(config: FommConfig) -> tuple[int, int, int]:
    part = config.generator
    height, width = (side // 2**part.num_down_blocks for side in config.frame_size)
    sizes = {"block_expansion": part.block_expansion, "max_features": part.max_features}
    return width_at(part.num_down_blocks, **sizes), height, width


def _small_shape(config: FommConfig) -> tuple[int, int, int]:
    step = int(1 / config.generator.dense_motion_params.scale_factor)
    height, width = config.frame_size
    return config.num_channels, -(-height // step), -(-width // step)
