"""The command line: parse, wire, call. No logic, and the one place that may import anything.

People read stderr; programs read stdout, and only with `--json`: one object, the last line.
Every import that costs time happens inside a command, so `--help` is instant. One module holds one
group of commands; `common.py` what they share.

Exit codes: 0 ok; 1 unexpected; 2 usage or configuration; 3 finished short; 4 environment unfit;
5 check or goal missed; 130 Ctrl-C; 143 TERM.
"""

from __future__ import annotations

import logging
import os
import sys

import typer

from dfm_engine.allocator import keep_freed_memory
from dfm_engine.cli import (
    backends,
    bench,
    build,
    evaluate,
    export,
    look,
    prepare,
    score,
    train,
    train_detector,
)
from dfm_engine.cli.common import (
    app,
    bench_app,
    dataset_app,
    evaluate_app,
    export_app,
    fail,
    train_app,
)
from dfm_engine.errors import DfmError
from dfm_engine.interrupts import Interrupted, stop_on_signals

__all__ = [
    "app",
    "backends",
    "bench",
    "build",
    "evaluate",
    "export",
    "look",
    "main",
    "prepare",
    "score",
    "train",
    "train_detector",
]

app.add_typer(dataset_app, name="dataset")
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(bench_app, name="bench")
app.add_typer(export_app, name="export")


@app.callback()
def _prepare(context: typer.Context) -> None:
    """Before every command."""
    if context.invoked_subcommand != "bench":  # it says itself which numbers it takes so
        keep_freed_memory()


def main() -> None:
    """The console script: run a command; an error becomes one line and an exit code."""
    # Torch's threads would spin while they wait, on cores that the encode workers need: with one
    # other busy process per core a frame took 3.5 times as long (two cores, demo weights).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # NumPy's products are small, and several clips' threads call them at once: one core each.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # A torch operation gives Python's lock away and wants it back: beside a thread that computes in
    # Python each waited 5 ms for it, and a network of hundreds of them took eleven times as long.
    sys.setswitchinterval(0.0005)
    logging.basicConfig(level=os.environ.get("DFM_LOG", "WARNING"), format="%(name)s: %(message)s")
    try:
        with stop_on_signals():
            app()
    except Interrupted as stop:
        fail(str(stop), stop.exit_code)
    except DfmError as error:
        fail(str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        if os.environ.get("DFM_DEBUG"):
            raise
        fail(f"unexpected {type(error).__name__}: {error} (DFM_DEBUG=1 shows where)", 1)
