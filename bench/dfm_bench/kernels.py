"""`bench kernels`: each kernel against its torch reference, and against memory itself.

    gate (float64) ─► kernel, torch, torch.compile interleaved ─► bytes/s against a plain copy's

On a GPU. On a CPU only the references run, so only they are timed; what a named GPU could do at
best follows from the counted bytes and flops, and is labelled as an estimate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dfm_bench.facts import read_facts
from dfm_bench.kernel_cases import KernelCase, check_case, kernel_cases
from dfm_bench.measure import Row, clock_for, measure
from dfm_bench.report import BenchReport
from dfm_bench.roofline import measure_copy
from dfm_engine.errors import EnvironmentUnfit, UsageError

__all__ = ["GPUS", "Gpu", "kernel_rows", "roofline_estimate", "run_bench_kernels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What a data sheet says.

    Attributes:
        name: of the product.
        architecture: compute capability without its dot.
        bytes_per_s: of its memory.
        flops_per_s: in float32, without tensor cores.
    """

    name: str
    architecture: int
    bytes_per_s: float
    flops_per_s: float


GPUS = {
    "a100": Gpu(name="A100 80GB SXM", architecture=80, bytes_per_s=2.039e12, flops_per_s=19.5e12),
    "h100": Gpu(name="H100 SXM", architecture=90, bytes_per_s=3.35e12, flops_per_s=67e12),
    "h200": Gpu(name="H200", architecture=90, bytes_per_s=4.8e12, flops_per_s=67e12),
}
GPU_ROWS, CPU_ROWS = 64, 4


def run_bench_kernels(
    *, out: Path, device: str, quick: bool = False, gpu: str = "h200", command: str = ""
) -> BenchReport:
    """Check, measure, and write the report into a folder.

    Args:
        out: the folder.
        device: `cpu` or `cuda`.
        quick: fewer repeats; on a GPU only float16, on a CPU one row and no compiling.
        gpu: of the estimate on a CPU, a key of `GPUS`.
        command: makes the report again.

    Raises:
        UsageError: an unknown GPU.
        CheckFailed: a kernel disagrees with its reference; nothing is written.
    """
    if gpu not in GPUS:
        raise UsageError(f"--gpu takes {', '.join(GPUS)}, found {gpu!r}")
    facts = read_facts()
    where = torch.device(device)
    on_gpu = where.type == "cuda"
    rows = GPU_ROWS if on_gpu else 1 if quick else CPU_ROWS
    repeats = (20 if quick else 60) if on_gpu else (3 if quick else 9)
    dtypes = [torch.float16, torch.float32] if on_gpu and not quick else [torch.float32]
    if on_gpu and quick:
        dtypes = [torch.float16]
    copy = measure_copy(where, repeats=repeats, command=command)
    measured: list[Row] = [copy]
    for dtype in dtypes:
        for case in kernel_cases(rows, device=where, dtype=dtype):
            check_case(case)
            measured += kernel_rows(
                case, where, copy_gb_s=copy.rate, repeats=repeats, command=command
            )
    remark = _ratios(measured[1:]) if on_gpu else _estimate(GPUS[gpu], compiled=not quick)
    report = BenchReport(
        verb="kernels",
        command=command,
        device=where.type,
        facts=facts,
        rows=tuple(measured),
        remark=remark,
    )
    report.write(out)
    return report


def kernel_rows(
    case: KernelCase,
    device: torch.device,
    *,
    copy_gb_s: float,
    repeats: int,
    command: str = "",
) -> list[Row]:
    """Time a case that passed its gate, every way that the device has.

    The rate counts the bytes that must move at least: what an unfused way moves besides is its
    loss, not its merit.
    """
    ways: dict[str, Callable[..., Any]] = {"torch": case.reference}
    if device.type == "cuda":
        ways = {"kernel": case.ours, **ways}
        if case.compiles:
            ways["torch.compile"] = torch.compile(case.reference, dynamic=False)
    inputs = [case.draw(seed) for seed in range(2 * len(ways))]
    calls = {name: functools.partial(_spread, way) for name, way in ways.items()}
    with torch.no_grad():
        timings = measure(calls, inputs, repeats=repeats, warm_up=3, clock=clock_for(device))
    return [
        Row.of(
            case.name,
            timings[name],
            variant=name,
            amount=case.traffic.bytes / 1e9,
            unit="GB/s",
            shape=case.shape,
            dtype=str(case.dtype).removeprefix("torch."),
            device=device.type,
            ceiling=copy_gb_s,
            ceiling_of="copy",
            command=command,
        )
        for name in ways
    ]


def roofline_estimate(cases: Sequence[KernelCase], gpu: Gpu) -> dict[str, float]:
    """Seconds that a call takes at least: the longer of memory's time and arithmetic's."""
    return {
        case.name: max(case.traffic.bytes / gpu.bytes_per_s, case.traffic.flops / gpu.flops_per_s)
        for case in cases
    }


def _spread(way: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
    return way(*inputs)


def _ratios(rows: Sequence[Row]) -> str:
    """What each kernel is worth, in the words of its goal."""
    by_case: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        by_case.setdefault((row.name, row.dtype), {})[row.variant] = row
    lines = []
    for (name, dtype), ways in by_case.items():
        kernel = ways["kernel"]
        others = ", ".join(
            f"{way.median_s / kernel.median_s:.1f}x {label}"
            for label, way in ways.items()
            if label != "kernel"
        )
        best = ways.get("torch.compile", ways["torch"])
        reached = (kernel.share or 0) >= 0.7 or best.median_s >= 2 * kernel.median_s
        goal = "" if reached else "; short of its goal (70 % of a copy, or twice the compiled one)"
        lines.append(f"{name} {dtype}: {kernel.share:.0%} of a copy, {others}{goal}.")
    return "\n\n".join(lines)


def _estimate(gpu: Gpu, *, compiled: bool) -> str:
    """What the GPU could do at best, and what its compiler says of the kernels."""
    seconds = roofline_estimate(kernel_cases(GPU_ROWS, device="meta", dtype=torch.float16), gpu)
    listed = ", ".join(f"{name} {1e6 * each:.1f}" for name, each in seconds.items())
    lines = [
        f"Estimate, not a measurement: at the {gpu.bytes_per_s / 1e12:g} TB/s and "
        f"{gpu.flops_per_s / 1e12:g} TFLOP/s of {gpu.name}'s data sheet, the counted bytes and "
        f"flops of {GPU_ROWS} vox-256 rows in float16 take at least, in microseconds: {listed}."
    ]
    return "\n\n".join([*lines, *([_registers(gpu)] if compiled else [])])


def _registers(gpu: Gpu) -> str:
    """Compile all kernels for a GPU that is not there."""
    try:
        from dfm_kernels.aot import compiling_for
    except ImportError as error:
        raise EnvironmentUnfit(
            f"compiling the kernels needs triton ({error}); --quick goes without"
        ) from error
    with compiling_for(gpu.architecture) as found, torch.no_grad():
        for case in kernel_cases(2, device="cpu", dtype=torch.float16):
            case.ours(*case.draw(0))
    listed = ", ".join(
        f"{each.name.strip('_').removesuffix('_kernel')} {each.registers}"
        + (f" (spills {each.spilled_bytes} bytes)" if each.spilled_bytes else "")
        for each in found
    )
    return f"Compiled for {found[0].target}; registers of a thread: {listed}."
