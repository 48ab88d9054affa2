"""Commands that measure speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfm_engine.cli.backends import Backend, Exported, runner_opener
from dfm_engine.cli.common import Device, FommYaml, Json, bench_app, finish, say


@bench_app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of all reports.")] = Path("out/bench"),
    quick: Annotated[bool, typer.Option("--quick", help="Each in its short form.")] = False,
    minutes: Annotated[float, typer.Option(help="For all of them together.", min=0.1)] = 60.0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure speed; without a verb every benchmark, into one folder."""
    if context.invoked_subcommand is not None:
        return
    from dfm_bench.everything import run_everything

    result = run_everything(out=out, device=device, quick=quick, limit_s=60 * minutes, say=say)
    result.print()
    finish(result.to_json(), as_json, result.exit_code)


@bench_app.command("throughput")
def bench_throughput(
    out: Annotated[Path, typer.Option(help="Folder of the report and of the rendered clips.")],
    weights: Annotated[
        str | None,
        typer.Option(
            help="As for build-dataset. Default: seeded noise at the size of vox-256 for the "
            "generator's rows, demo for the build; demo for both with --quick on a CPU."
        ),
    ] = None,
    fomm_config: FommYaml = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer and shorter clips, the demo weights.")
    ] = False,
    device: Device = "auto",
    backend: Backend = "torch",
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of the build's generator, as for build-dataset; default fp16_islands on a GPU, "
            "fp32 on a CPU."
        ),
    ] = None,
    exported: Exported = None,
    as_json: Json = False,
) -> None:
    """Time the generator by every way, and a build stage by stage; exit 5 if one is not right.

    The clips are rendered, so that everybody measures the same.
    """
    from dfm_bench.stages import workload_for
    from dfm_bench.throughput import run_bench_throughput
    from dfm_bench.ways import open_ways
    from dfm_engine.machinery import load_fomm, load_machinery, pick_device, weights_banner

    where = pick_device(device)
    workload = workload_for(where, quick=quick)
    # A folder says itself what it is.
    half = precision is None and where == "cuda" and exported is None
    precision = precision or ("fp16_islands" if half else "fp32")
    building = weights or _bench_weights()
    # A GPU is held against the published size in the short form, too.
    generating = weights or (building if quick and where == "cpu" else "random")
    machinery = load_machinery(
        workload.recipe,
        weights=building,
        config=fomm_config,
        device=where,
        open_runner=runner_opener(backend, exported, precision),
    )
    fomm = load_fomm(generating, fomm_config)
    ways, left = open_ways(
        fomm,
        machinery.runner.device,
        quick=quick,
        backend=backend,
        precision=precision,
        exported=exported,
        say=say,
    )
    result = run_bench_throughput(
        workload,
        machinery,
        fomm,
        ways,
        out=out,
        command=_bench_command(
            "throughput", weights, fomm_config, quick=quick, device=machinery.runner.device.type
        )
        + ("" if backend == "torch" else f" --backend {backend}")
        + (" --exported FOLDER" if exported else f" --precision {precision}"),
        remark="\n\n".join(part for part in (weights_banner(building), *left) if part),
    )
    result.print()
    finish(result.to_json(), as_json, result.exit_code)


@bench_app.command("kernels")
def bench_kernels(
    out: Annotated[Path, typer.Option(help="Folder of the report.")],
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repeats and types.")] = False,
    gpu: Annotated[
        str, typer.Option(help="On a CPU: whose roofline to estimate (a100, h100, h200).")
    ] = "h200",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Time each GPU kernel against its torch reference and a plain copy; exit 5 if one is wrong."""
    from dfm_bench.kernels import run_bench_kernels
    from dfm_engine.machinery import pick_device

    where = pick_device(device)
    words = ["dfm-engine bench kernels --out DIR --device", where]
    words += [] if where == "cuda" else ["--gpu", gpu]
    command = " ".join([*words, "--quick"] if quick else words)
    result = run_bench_kernels(out=out, device=where, quick=quick, gpu=gpu, command=command)
    result.print()
    finish(result.to_json(), as_json, result.exit_code)


@bench_app.command("export")
def bench_export(
    out: Annotated[Path, typer.Option(help="Folder of the report.")],
    weights: Annotated[
        str | None,
        typer.Option(
            help="As for build-dataset; default seeded noise at the size of vox-256, demo with "
            "--quick."
        ),
    ] = None,
    fomm_config: FommYaml = None,
    detectors: Annotated[
        str | None,
        typer.Option(help="Names with commas between; default all five, one with --quick."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The demo weights, one detector, few repeats.")
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Time exported graphs by every backend beside torch; exit 5 if one is not right."""
    from dfm_bench.exported import DetectorNetwork, FommNetwork
    from dfm_bench.exports import FULL, QUICK, run_bench_export
    from dfm_engine.detect.models import DETECTORS, create_detector
    from dfm_engine.machinery import load_fomm, pick_device, weights_banner

    where, scope = pick_device(device), QUICK if quick else FULL
    weights = weights or (_bench_weights() if quick else "random")
    names = detectors.split(",") if detectors else ["mesoinception4"] if quick else DETECTORS
    made = [create_detector(name, weights="none", seed=0) for name in names]
    result = run_bench_export(
        out=out,
        networks=[
            FommNetwork(load_fomm(weights, fomm_config), where),
            *(DetectorNetwork(detector, where, frames=scope.frames) for detector in made),
        ],
        scope=scope,
        device=where,
        command=_bench_command("export", weights, fomm_config, quick=quick, device=where)
        + (f" --detectors {detectors}" if detectors else ""),
        remark=weights_banner(weights),
        say=say,
    )
    result.print()
    finish(result.to_json(), as_json, result.exit_code)


@bench_app.command("render")
def bench_render(
    out: Annotated[Path, typer.Option(help="Folder of the report.")],
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Time the drawing of procedural faces."""
    from dfm_bench.rendering import run_bench_render
    from dfm_engine.machinery import pick_device

    where = pick_device(device)
    result = run_bench_render(
        out=out, device=where, command=f"dfm-engine bench render --out DIR --device {where}"
    )
    result.print()
    finish(result.to_json(), as_json, result.exit_code)


@bench_app.command("data")
def bench_data(
    out: Annotated[Path, typer.Option(help="Folder of the report and of the rendered clips.")],
    quick: Annotated[bool, typer.Option("--quick", help="Few short clips.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Time the way from clips to a training; exit 5 if two loaders give different batches."""
    from dfm_bench.data import FULL, QUICK, run_bench_data
    from dfm_engine.machinery import pick_device

    where = pick_device(device)
    command = f"dfm-engine bench data --out DIR --device {where}{' --quick' * quick}"
    result = run_bench_data(QUICK if quick else FULL, out=out, device=where, command=command)
    result.print()
    finish(result.to_json(), as_json, result.exit_code)


@bench_app.command("compare")
def bench_compare(
    before: Annotated[Path, typer.Argument(help="A report, the .json.")],
    after: Annotated[Path, typer.Argument(help="A later one of the same verb.")],
    max_regression: Annotated[
        float, typer.Option(help="Share of a rate that may be lost.", min=0.0, max=1.0)
    ] = 0.1,
    as_json: Json = False,
) -> None:
    """Hold one report against another; exit 5 if a row became slower, or is gone."""
    from dfm_bench.compare import run_compare

    result = run_compare(before, after, max_regression=max_regression)
    result.print()
    finish(result.to_json(), as_json, result.exit_code)


def _bench_weights() -> str:
    from dfm_engine.errors import WeightsError
    from dfm_engine.weights import demo_weights

    try:
        demo_weights()
    except WeightsError:
        return "random"
    return "demo"


def _bench_command(
    verb: str, weights: str | None, config: Path | None, *, quick: bool, device: str
) -> str:
    """The command that makes a report again, without the folders of this machine."""
    words = ["dfm-engine bench", verb, "--out DIR", "--device", device]
    words += ["--weights", Path(weights).name] if weights else []
    words += ["--fomm-config", config.name] if config else []
    return " ".join([*words, "--quick"] if quick else words)
