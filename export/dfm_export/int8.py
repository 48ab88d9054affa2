"""`--precision int8`: the generator's decoder in int8, calibrated on faces of its own.

    faces 9100.. ─► inputs of the decoder ─► scales      (several sources, several performances)
    faces 9000.. ─► the gate of every precision          (never seen in calibration)

Only the decoder (bottleneck, up blocks, last layer) is quantised: two thirds of the products.
Keypoints, the motion network, its heads, softmax and sampling stay float32.
"""

from __future__ import annotations

import torch

from dfm_engine.errors import UsageError
from dfm_engine.fomm.model import Fomm
from dfm_export.cases import FommCases
from dfm_export.graphs import AnimateGraph, Graph, Typed
from dfm_export.precision import Plan
from dfm_export.quantised import NARROW, WIDE, quantise_decoder

__all__ = ["quantise_graphs", "wants_subpixel"]

CALIBRATION_SOURCES = 5
CALIBRATION_ROWS = 4  # performances of each
CALIBRATION_FIRST = 100  # the first face of calibration; those of the gate are before
SCOPES = {"narrow": NARROW, "wide": WIDE}


def wants_subpixel(plan: Plan) -> bool:
    """Whether up blocks stay in float, where the sub-pixel form is faster."""
    return plan.quantised != "wide"


def quantise_graphs(graphs: dict[str, Graph], fomm: Fomm, plan: Plan) -> dict[str, float]:
    """Put the decoder of `animate` into int8, in place.

    Args:
        graphs: from `fomm_graphs`, in float32.
        fomm: the model as loaded, for the calibration.
        plan: that says which convolutions.

    Returns:
        Signal-to-quantisation-noise ratio in dB behind each block, on the calibration faces.

    Raises:
        UsageError: the graphs are split.
    """
    animate = graphs.get("animate")
    if plan.quantised is None or not isinstance(animate, AnimateGraph):
        raise UsageError(f"--precision {plan.name} quantises `animate`; leave out --split")
    cases = FommCases(
        fomm, sources=CALIBRATION_SOURCES, rows_each=CALIBRATION_ROWS, first=CALIBRATION_FIRST
    )
    feeds = cases.tensors()
    caught: list[torch.Tensor] = []
    net = animate.render.net
    handle = net.register_forward_pre_hook(lambda _module, args: caught.append(args[0]))
    try:
        with torch.no_grad():
            animate(*(feeds[tensor.name] for tensor in animate.spec.inputs))
    finally:
        handle.remove()
    decoder = net.module
    assert isinstance(decoder, torch.nn.Sequential)
    made, sqnr_db = quantise_decoder(decoder, caught[0], scope=SCOPES[plan.quantised])
    animate.render.net = Typed(made, torch.float32)
    return {name: round(value, 2) for name, value in sqnr_db.items()}
