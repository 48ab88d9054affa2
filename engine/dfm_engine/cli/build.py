"""Commands that make and check a data set: build-dataset, dataset verify, render."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfm_engine.cli.backends import Backend, Exported, Precision, runner_opener
from dfm_engine.cli.common import (
    Decode,
    Device,
    FommYaml,
    Json,
    Weights,
    app,
    dataset_app,
    finish,
    say,
)
from dfm_engine.interrupts import draining_signals


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
    decode: Decode = "auto",
    backend: Backend = "torch",
    precision: Precision = "fp32",
    exported: Exported = None,
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
        finish(outlook.to_json(), as_json, 0)
    from dfm_engine.build import build_dataset as build
    from dfm_engine.machinery import load_machinery

    with draining_signals() as stop:
        machinery = load_machinery(
            options.recipe,
            weights=weights,
            config=fomm_config,
            device=device,
            decode=decode,
            open_runner=runner_opener(backend, exported, precision),
        )
        summary = build(
            options,
            runner=machinery.runner,
            detector=machinery.detector,
            framer=machinery.framer,
            workers=machinery.workers,
            batch_size=machinery.batch_size,
            threads=machinery.threads,
            reader=machinery.reader,
            lanes=machinery.lanes,
            framing=machinery.framing,
            stop=stop,
            say=say,
        )
    summary.print()
    finish(summary.to_json(), as_json, summary.exit_code)


@dataset_app.command("verify")
def dataset_verify(
    out: Annotated[Path, typer.Argument(help="A built data set.")], as_json: Json = False
) -> None:
    """Read every file, hash, count and pair again; exit 5 if anything is off."""
    from dfm_engine.progress import Counter
    from dfm_engine.verify import verify_dataset

    with Counter("verify", "files") as count:
        report = verify_dataset(out, progress=count)
    say(f"{report.files} files, {report.pairs} pairs, {len(report.failures)} failures")
    if as_json:
        finish(report.to_json(), as_json, 0 if report.is_ok else 5)
    report.check()


@dataset_app.command("audit")
def dataset_audit(
    out: Annotated[Path, typer.Argument(help="A built data set.")],
    max_clips: Annotated[
        int, typer.Option(help="Look at about so many clips, of as many people as possible.", min=1)
    ] = 400,
    as_json: Json = False,
) -> None:
    """Say what a detector could learn without a face: file size, codec, container, border, ..."""
    from dfm_engine.audit.command import run_audit
    from dfm_engine.progress import Counter

    with Counter("audit", "files") as count:
        report = run_audit(out, max_clips=max_clips, progress=count)
    report.print(out)
    finish(report.to_json(), as_json, report.exit_code)


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
    say(f"{made.written} clips rendered into {out}: driving/ and real/")
    finish({"out": str(out), "rendered": made.written}, as_json, 0)
