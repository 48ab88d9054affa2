"""The command line: parse, wire, call. No logic, and the one place that may import anything.

People read stderr; programs read stdout, and only with `--json`: one object, the last line.
Every import that costs time happens inside a command, so `--help` is instant.

Exit codes: 0 ok; 1 unexpected; 2 usage or configuration; 3 finished short; 4 environment unfit;
5 check or goal missed; 130 Ctrl-C; 143 TERM.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer

from dfm_engine.errors import DfmError, UsageError
from dfm_engine.interrupts import Interrupted, draining_signals, stop_on_signals

if TYPE_CHECKING:
    from dfm_engine.fomm.transfer import TransferMode

app = typer.Typer(
    name="dfm-engine",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Build, train on and benchmark DeepFake MNIST+, a data set for detecting "
    "facial-animation deepfakes.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
dataset_app = typer.Typer(no_args_is_help=True, help="Look at a built data set.")
train_app = typer.Typer(no_args_is_help=True, help="Train a network.")
evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a trained network.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure speed.")
app.add_typer(dataset_app, name="dataset")
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(bench_app, name="bench")

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, the last line.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Weights = Annotated[
    str,
    typer.Option(
        help="A FOMM checkpoint (.pth.tar, .safetensors); 'demo': the shipped one; "
        "'random': seeded noise, for trying things out."
    ),
]
FommYaml = Annotated[
    Path | None, typer.Option(help="The model's YAML in the published form; default vox-256.")
]


@app.command()
def doctor(
    require: Annotated[
        str | None, typer.Option(help="'gpu': exit 4 where no usable GPU is found.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What this machine can do: drivers, libraries, and how they fit each other."""
    from dfm_engine.doctor import run_doctor

    if require not in (None, "gpu"):
        raise UsageError(f"--require takes 'gpu', found {require!r}")
    report = run_doctor(require_gpu=require == "gpu")
    report.print()
    _finish(report.to_json(), as_json, report.exit_code)


@app.command()
def probe(
    paths: Annotated[list[str], typer.Argument(help="Files or folders; `--` ends options.")],
    faces: Annotated[bool, typer.Option(help="Also look for a usable face.")] = True,
    as_json: Json = False,
) -> None:
    """Say of each media file what it is and whether it can be used; exit 3 if one cannot."""
    from dfm_engine.media.probe_command import run_probe
    from dfm_engine.recipe import BuildRecipe

    recipe = BuildRecipe()
    check = None
    if faces:
        from dfm_engine.faces.check import check_faces
        from dfm_engine.faces.mtcnn import Mtcnn

        check = functools.partial(check_faces, detector=Mtcnn.load("cpu"), recipe=recipe)
    report = run_probe(paths, faces=check, limits=recipe.limits)
    report.print()
    _finish(report.to_json(), as_json, report.exit_code)


@app.command()
def build_dataset(
    real: Annotated[Path, typer.Option(help="Folder of real clips.")],
    driving: Annotated[Path, typer.Option(help="Folder of driving clips by action, or a CSV.")],
    out: Annotated[Path, typer.Option(help="The data set; the same command again resumes.")],
    weights: Weights,
    recipe: Annotated[str, typer.Option(help="A shipped recipe or a .toml file.")] = "paper",
    fomm_config: FommYaml = None,
    limit: Annotated[
        int | None, typer.Option(help="Fakes in all, dealt round-robin over actions.")
    ] = None,
    reader: Annotated[
        str, typer.Option(help="auto, voxceleb1, voxceleb1-fomm, adfes or folder.")
    ] = "auto",
    identity_csv: Annotated[
        Path | None, typer.Option(help="CSV `file, identity` for the real clips.")
    ] = None,
    identity_regex: Annotated[
        str | None, typer.Option(help="Regex over the path; its group is the identity.")
    ] = None,
    verdicts: Annotated[
        Path | None, typer.Option(help="CSV `clip_id, gate, verdict, score` from elsewhere.")
    ] = None,
    device: Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be made; write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build a data set: real clips and their fakes, screened, in three qualities."""
    from dfm_engine.build import BuildOptions
    from dfm_engine.machinery import weights_banner
    from dfm_engine.recipe import BuildRecipe, load_recipe
    from dfm_engine.screen import import_verdicts

    options = BuildOptions(
        recipe=load_recipe(recipe, BuildRecipe),
        real=real,
        driving=driving,
        out=out,
        limit=limit,
        reader=reader,
        identity_csv=identity_csv,
        identity_regex=identity_regex,
        verdicts=import_verdicts(verdicts) if verdicts else None,
        banner=weights_banner(weights),
    )
    if dry_run:
        from dfm_engine.dry_run import survey

        outlook = survey(options)
        outlook.print()
        _finish(outlook.to_json(), as_json, 0)
    from dfm_engine.build import build_dataset as build
    from dfm_engine.machinery import load_machinery

    with draining_signals() as stop:
        machinery = load_machinery(
            options.recipe, weights=weights, config=fomm_config, device=device
        )
        summary = build(
            options,
            runner=machinery.runner,
            detector=machinery.detector,
            framer=machinery.framer,
            workers=machinery.workers,
            batch_size=machinery.batch_size,
            threads=machinery.threads,
            stop=stop,
            say=_say,
        )
    summary.print()
    _finish(summary.to_json(), as_json, summary.exit_code)


@app.command()
def screen(
    clip: Annotated[Path, typer.Argument(help="A video file.")],
    action: Annotated[str, typer.Option(help="What it should show, such as nod.")],
    as_json: Json = False,
) -> None:
    """Say whether a clip performs an action, and by which measurements; exit 3 if it does not."""
    from dfm_engine.faces.mtcnn import Mtcnn
    from dfm_engine.recipe import BuildRecipe
    from dfm_engine.screen.command import run_screen

    recipe = BuildRecipe()
    result = run_screen(clip, action, detector=Mtcnn.load("cpu"), recipe=recipe)
    result.print()
    _finish(result.to_json(), as_json, result.exit_code)


@dataset_app.command("verify")
def dataset_verify(
    out: Annotated[Path, typer.Argument(help="A built data set.")], as_json: Json = False
) -> None:
    """Read every file, hash, count and pair again; exit 5 if anything is off."""
    from dfm_engine.progress import Counter
    from dfm_engine.verify import verify_dataset

    with Counter("verify", "files") as count:
        report = verify_dataset(out, progress=count)
    _say(f"{report.files} files, {report.pairs} pairs, {len(report.failures)} failures")
    if as_json:
        _finish(report.to_json(), as_json, 0 if report.is_ok else 5)
    report.check()


@train_app.command("fomm")
def train_fomm(
    recipe: Annotated[str, typer.Option(help="A shipped recipe or a .toml file.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; a run that is there goes on.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of clips; recipes that render need none.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="End after so many steps in all.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Fit the whole schedule into this time instead.")
    ] = None,
    until: Annotated[
        float, typer.Option(help="With --minutes: the share of the schedule to end at.")
    ] = 1.0,
    start_from: Annotated[
        Path | None, typer.Option(help="Weights to begin a new run from.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train the First Order Motion Model."""
    from dfm_engine.fomm.train import run_train_fomm

    result = run_train_fomm(
        recipe,
        out=out,
        data=data,
        steps=steps,
        minutes=minutes,
        until=until,
        device=device,
        start_from=start_from,
    )
    _finish(result.to_json(), as_json, 0)


@evaluate_app.command("fomm")
def evaluate_fomm(
    weights: Weights,
    fomm_config: FommYaml = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of clips; without it people are rendered.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the table and the sheet.")] = None,
    identities: Annotated[int, typer.Option(help="Rendered people.", min=1)] = 100,
    moments: Annotated[
        int, typer.Option(help="Frames per action and person, the peak among them.", min=1)
    ] = 2,
    screen_clips: Annotated[
        int,
        typer.Option(
            "--screen", help="Whole clips per action that the screen of a build judges.", min=0
        ),
    ] = 0,
    clips: Annotated[int, typer.Option(help="Most clips of --data; 0: all.", min=0)] = 0,
    mode: Annotated[str, typer.Option(help="abs, rel, rel_adapt or rel_nojac.")] = "rel_adapt",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a motion model: how close, how well it moves, what a face detector sees."""
    from dfm_engine.fomm.evaluate import run_evaluate_fomm
    from dfm_engine.machinery import load_fomm
    from dfm_engine.progress import Counter

    with Counter("evaluate", "animations") as count:
        result = run_evaluate_fomm(
            load_fomm(weights, fomm_config),
            data=data,
            out=out,
            identities=identities,
            moments=moments,
            clips=clips,
            mode=cast("TransferMode", mode),  # checked there
            device=device,
            screen_clips=screen_clips,
            progress=count,
        )
    _say(result.table())
    _finish(result.to_json(), as_json, 0)


@bench_app.command("build")
def bench_build(
    out: Annotated[Path, typer.Option(help="Folder of the report and of the rendered clips.")],
    weights: Annotated[
        str | None, typer.Option(help="As for build-dataset; default demo, or random without it.")
    ] = None,
    fomm_config: FommYaml = None,
    quick: Annotated[bool, typer.Option("--quick", help="Three short clips.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Time the stages of a build against what their parts reach alone; exit 5 if it is not right.

    The clips are rendered, so that everybody measures the same.
    """
    from dfm_bench.stages import FULL, QUICK, run_bench_build
    from dfm_engine.machinery import load_machinery, weights_banner

    workload = QUICK if quick else FULL
    weights = weights or _bench_weights()
    machinery = load_machinery(workload.recipe, weights=weights, config=fomm_config, device=device)
    result = run_bench_build(
        workload,
        machinery,
        out=out,
        command=_bench_command(
            "build", weights, fomm_config, quick=quick, device=machinery.runner.device.type
        ),
        remark=weights_banner(weights),
    )
    result.print()
    _finish(result.to_json(), as_json, result.exit_code)


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
    _finish(result.to_json(), as_json, result.exit_code)


@app.command()
def render(
    out: Annotated[Path, typer.Option(help="Folder for driving/ and real/ clips.")],
    drivers: Annotated[int, typer.Option(help="People who perform every action.", min=1)] = 1,
    sources: Annotated[int, typer.Option(help="People of the real half.", min=1)] = 12,
    frames: Annotated[int, typer.Option(help="Length of a driving clip.", min=16)] = 40,
    size: Annotated[int, typer.Option(help="Side of a frame in pixels.", min=64)] = 256,
    seed: Annotated[int, typer.Option(help="Of the performances.")] = 0,
    as_json: Json = False,
) -> None:
    """Render procedural faces as clips: nobody real is behind any of them."""
    from dfm_engine.machine import read_cores
    from dfm_engine.synthetic import DemoSetSettings, write_demo_set

    settings = DemoSetSettings(
        drivers=tuple(range(drivers)),
        sources=tuple(range(1000, 1000 + sources)),
        driving_frames=frames,
        real_frames=frames + 15,
        size=size,
        seed=seed,
    )
    made = write_demo_set(out, settings, workers=max(1, int(read_cores())))
    _say(f"{made.written} clips rendered into {out}: driving/ and real/")
    _finish({"out": str(out), "rendered": made.written}, as_json, 0)


def main() -> None:
    """The console script: run a command; an error becomes one line and an exit code."""
    # Torch's threads would spin while they wait, on cores that the encode workers need: with one
    # other busy process per core a frame took 3.5 times as long (two cores, demo weights).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=os.environ.get("DFM_LOG", "WARNING"), format="%(name)s: %(message)s")
    try:
        with stop_on_signals():
            app()
    except Interrupted as stop:
        _fail(str(stop), stop.exit_code)
    except DfmError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        if os.environ.get("DFM_DEBUG"):
            raise
        _fail(f"unexpected {type(error).__name__}: {error} (DFM_DEBUG=1 shows where)", 1)


def _bench_weights() -> str:
    from dfm_engine.errors import WeightsError
    from dfm_engine.weights import demo_weights

    try:
        demo_weights()
    except WeightsError:
        return "random"
    return "demo"


def _bench_command(
    verb: str, weights: str, config: Path | None, *, quick: bool, device: str
) -> str:
    """The command that makes a report again, without the folders of this machine."""
    words = ["dfm-engine bench", verb, "--out DIR", "--device", device]
    words += ["--weights", Path(weights).name]
    words += ["--fomm-config", config.name] if config else []
    return " ".join([*words, "--quick"] if quick else words)


def _say(text: str) -> None:
    """For people."""
    if text:
        sys.stderr.write(text.rstrip("\n") + "\n")
        sys.stderr.flush()


def _finish(result: dict[str, Any], as_json: bool, code: int) -> NoReturn:
    """For programs, and the end."""
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
    raise typer.Exit(code)


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"dfm-engine: {message}\n")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
