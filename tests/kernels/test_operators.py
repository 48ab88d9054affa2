"""The operators as torch sees them: registered, traced, compiled, exported to standard ONNX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfm_kernels.coordinates import Points
from dfm_kernels.crop import crop_taps
from dfm_kernels.deformation import mix_motions
from dfm_kernels.dispatch import STANDARD_FORMS, launching_anywhere
from dfm_kernels.epilogues import affine_relu, bias_relu_cat, residual
from dfm_kernels.from_yuv import yuv_to_rgb
from dfm_kernels.softargmax import soft_argmax
from dfm_kernels.sparse_motion import sparse_motion
from dfm_kernels.to_yuv import rgb_to_yuv
from dfm_kernels.warp import warp

OPS = torch.ops.dfm
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


def draw(*shape: int, seed: int = 0, last: bool = False) -> Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last) if last else values


def grid(*shape: int) -> Tensor:
    return draw(*shape, 2, seed=7) * 2.2 - 1.1


def frames() -> Tensor:
    return (draw(2, 12, 10) * 255).to(torch.uint8)


def taps() -> list[Tensor]:
    start, end = torch.tensor([0.5, -2.0]), torch.tensor([6.0, 11.0])
    return [*crop_taps(8, start, end, 5), *crop_taps(10, start, end, 6)]


def jacobians(rows: int, points: int, seed: int) -> Tensor:
    return torch.eye(2) + 0.3 * draw(rows, points, 2, 2, seed=seed)


POINTS = (draw(2, 3, 2), jacobians(2, 3, 1), draw(2, 3, 2, seed=2), jacobians(2, 3, 3))
NUMBERS = draw(4, seed=4)
CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "warp": (OPS.warp.default, (draw(2, 4, 5, 6), grid(2, 7, 8), draw(2, 1, 7, 8), True)),
    "warp, last": (OPS.warp.default, (draw(2, 4, 5, 6, last=True), grid(2, 7, 8), None, False)),
    "warp_backward": (
        OPS.warp_backward.default,
        (
            *(draw(2, 4, 7, 8), draw(2, 4, 5, 6, last=True), grid(2, 7, 8), draw(2, 1, 7, 8)),
            *(True, True, True),
        ),
    ),
    "sparse_motion": (OPS.sparse_motion.default, (draw(2, 3, 6, 8), *POINTS, 0.01, True)),
    "sparse_motion, last": (
        OPS.sparse_motion.default,
        (draw(2, 3, 6, 8, last=True), POINTS[0], None, POINTS[2], None, 0.01, False),
    ),
    "mix_motions": (
        OPS.mix_motions.default,
        (draw(2, 4, 6, 8, last=True), draw(2, 1, 6, 8), *POINTS),
    ),
    "mix_motions, half": (OPS.mix_motions.default, (draw(2, 4, 6, 8).half(), None, *POINTS)),
    "soft_argmax": (OPS.soft_argmax.default, (draw(2, 3, 6, 8), draw(2, 12, 6, 8), 0.1)),
    "soft_argmax, half": (OPS.soft_argmax.default, (draw(2, 3, 6, 8).half(), None, 0.1)),
    "rgb_to_yuv": (OPS.rgb_to_yuv.default, (draw(2, 3, 6, 8, last=True), "nv12")),
    "rgb_to_yuv, bytes": (
        OPS.rgb_to_yuv.default,
        ((draw(2, 6, 8, 3) * 255).to(torch.uint8), "i420"),
    ),
    "affine_relu": (OPS.affine_relu.default, (draw(2, 4, 5, 6, last=True), None, NUMBERS)),
    "affine_relu, first": (OPS.affine_relu.default, (draw(2, 4, 5, 6), NUMBERS, NUMBERS)),
    "bias_relu_pool": (OPS.bias_relu_pool.default, (draw(2, 4, 5, 6, last=True), NUMBERS)),
    "bias_relu_cat": (
        OPS.bias_relu_cat.default,
        (draw(2, 4, 5, 6, last=True), NUMBERS, draw(2, 3, 5, 6, last=True), 8),
    ),
    "residual": (
        OPS.residual.default,
        (draw(2, 4, 5, 6, last=True), draw(2, 4, 5, 6, last=True), NUMBERS, NUMBERS, NUMBERS),
    ),
    "yuv_to_rgb": (
        OPS.yuv_to_rgb.default,
        (frames(), taps(), MEAN, STD, torch.float16, True, "i420"),
    ),
    "yuv_to_rgb, bytes": (
        OPS.yuv_to_rgb.default,
        (frames(), [], MEAN, STD, torch.uint8, False, "nv12"),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_operator_keeps_its_promises_to_torch(name: str) -> None:
    """Schema, and what the fake says of shapes, dtypes and strides."""
    operator, arguments = CALLS[name]
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_gradients_of_the_operator_are_those_of_its_reference_in_float64() -> None:
    features, positions, shown = draw(2, 3, 4, 5).double(), grid(2, 4, 6).double(), draw(2, 1, 4, 6)
    inputs = [t.double().requires_grad_() for t in (features, positions, shown)]
    for align_corners in (True, False):
        assert torch.autograd.gradcheck(
            lambda *given, aligned=align_corners: OPS.warp(*given, aligned), inputs
        )
        found = torch.autograd.grad(OPS.warp(*inputs, align_corners).square().sum(), inputs)
        reference = warp(*inputs, align_corners=align_corners)
        wanted = torch.autograd.grad(reference.square().sum(), inputs)
        for a, b in zip(found, wanted, strict=True):
            assert (a - b).abs().max() <= 1e-12  # some 100 roundings of values up to 10


class Whole(nn.Module):
    """All that a frame needs, by the public functions."""

    def forward(
        self, heads: Tensor, small: Tensor, features: Tensor, kp: Tensor, jacobian: Tensor
    ) -> tuple[Tensor, ...]:
        value, around = soft_argmax(heads[:, :3], heads[:, 3:15], temperature=0.1)
        source, driving = Points(kp, jacobian), Points(value, around)
        moved = sparse_motion(small, source, driving, variance=0.01, align_corners=False)
        mixed = mix_motions(moved[:, :4], moved[:, 4:5], source, driving)
        out = warp(features, mixed.deformation, mixed.occlusion_map, align_corners=True)
        return value, moved, mixed.mask, out


def frame_inputs(rows: int) -> tuple[Tensor, ...]:
    heads = draw(rows, 15, 6, 8) + torch.tensor([0.0] * 3 + [1.0, 0, 0, 1] * 3)[:, None, None]
    return (
        heads,
        draw(rows, 3, 8, 10),
        draw(rows, 5, 8, 10, seed=1),
        draw(rows, 3, 2, seed=2),
        jacobians(rows, 3, 4),
    )


def names_in(program: torch.export.ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def test_a_trace_on_a_cpu_holds_standard_operators_only_and_any_batch() -> None:
    dynamic = tuple({0: torch.export.Dim("batch", min=1, max=16)} for _ in range(5))
    program = torch.export.export(Whole().eval(), frame_inputs(2), dynamic_shapes=dynamic)
    # Python's own arithmetic on the batch, and torch's operators.
    foreign = {
        n for n in names_in(program) if not n.startswith(("aten.", "<built-in", "<function"))
    }
    assert not foreign
    inputs = frame_inputs(3)
    for found, wanted in zip(program.module()(*inputs), Whole()(*inputs), strict=True):
        assert torch.equal(found, wanted)


def traced_as_on_a_gpu(**options: Any) -> torch.export.ExportedProgram:
    """Nothing runs in a trace, so that a CPU will do."""
    with launching_anywhere():
        return torch.export.export(Whole().eval(), frame_inputs(2), **options)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True], ids=["export", "dynamo"])
def test_a_trace_on_a_gpu_holds_operators_that_turn_into_standard_ones(strict: bool) -> None:
    program = traced_as_on_a_gpu(strict=strict)
    assert {name for name in names_in(program) if name.startswith("dfm.")} == {
        *("dfm.soft_argmax.default", "dfm.sparse_motion.default"),
        *("dfm.mix_motions.default", "dfm.warp.default"),
    }
    standard = program.run_decompositions(STANDARD_FORMS)
    assert not any(name.startswith("dfm.") for name in names_in(standard))
    inputs = frame_inputs(2)
    for found, wanted in zip(standard.module()(*inputs), Whole()(*inputs), strict=True):
        assert (found - wanted).abs().max() <= 1e-6  # a few roundings


def onnx_outputs(path: Path, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions
    assert sum(node.op_type == "GridSample" for node in model.graph.node) == 2
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {
        given.name: value.numpy() for given, value in zip(session.get_inputs(), inputs, strict=True)
    }
    return session.run(None, feeds)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["on a CPU", "on a GPU"])
def test_onnx_holds_standard_operators_only(how: str, tmp_path: Path) -> None:
    path = tmp_path / "frame.onnx"
    batch = torch.export.Dim("batch", min=1, max=16)
    dynamic = tuple({0: batch} for _ in range(5))
    if how == "on a CPU":
        exported: Any = Whole().eval()
        extra: dict[str, Any] = {"dynamic_shapes": dynamic}
    else:
        program = traced_as_on_a_gpu(dynamic_shapes=dynamic)
        exported, extra = program.run_decompositions(STANDARD_FORMS), {}
    torch.onnx.export(
        exported,
        frame_inputs(2),
        path,
        dynamo=True,
        opset_version=18,
        external_data=False,
        verbose=False,
        **extra,
    )
    inputs = frame_inputs(3)
    wanted = Whole()(*inputs)
    for found, value in zip(onnx_outputs(path, inputs), wanted, strict=True):
        # Positions of up to 10 pixels behind a handful of float32 roundings.
        np.testing.assert_allclose(found, value.numpy(), rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_an_operator_compiles_as_one_node_of_one_graph(name: str) -> None:
    operator, arguments = CALLS[name]
    tensors = [a for a in arguments if isinstance(a, Tensor)]

    def call(*given: Tensor) -> Any:
        rest = iter(given)
        return operator(*(next(rest) if isinstance(a, Tensor) else a for a in arguments))

    torch._dynamo.reset()  # else they all count as one function, compiled too often
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    wanted = call(*tensors)
    for a, b in zip(_leaves(compiled(*tensors)), _leaves(wanted), strict=True):
        assert torch.equal(a, b)


def _leaves(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: warp(draw(2, 3, 4, 4), grid(1, 4, 4), None, align_corners=True),
            r"\(B, h, w, 2\)",
        ),
        (
            lambda: warp(draw(1, 3, 4, 4), grid(1, 4, 4), draw(1, 1, 4, 5), align_corners=True),
            r"\(1, 1, 4, 4\)",
        ),
        (lambda: warp(draw(3, 4, 4), grid(1, 4, 4), None, align_corners=True), r"\(B, C, H, W\)"),
        (
            lambda: sparse_motion(
                draw(2, 3, 4, 4),
                Points(POINTS[0], None),
                Points(POINTS[2], POINTS[3]),
                variance=0.01,
                align_corners=True,
            ),
            "jacobians must be",
        ),
        (
            lambda: mix_motions(draw(2, 3, 4, 4), None, Points(*POINTS[:2]), Points(*POINTS[2:])),
            r"\(B, K\+1, H, W\)",
        ),
        (lambda: soft_argmax(draw(2, 3, 4, 4), draw(2, 5, 4, 4), temperature=0.1), "jacobian map"),
        (lambda: affine_relu(draw(2, 3, 4, 4), None, NUMBERS), "3 channels need as many numbers"),
        (
            lambda: bias_relu_cat(draw(2, 4, 4, 4), NUMBERS, draw(2, 4, 4, 5)),
            "the skip must be torch.float32 of the size",
        ),
        (
            lambda: residual(draw(2, 4, 4, 4), draw(2, 3, 4, 4), NUMBERS, NUMBERS, NUMBERS),
            "the update must be",
        ),
        (lambda: rgb_to_yuv(draw(1, 3, 5, 4)), "even sides"),
        (lambda: rgb_to_yuv(draw(1, 4, 4, 4)), r"\(B, 3, H, W\)"),
        (lambda: yuv_to_rgb(frames().float()), "uint8"),
        (lambda: yuv_to_rgb(frames(), boxes=torch.zeros(4)), "boxes need a size"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
