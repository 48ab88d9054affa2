"""`bench` without a verb: every benchmark into one folder, unattended.

Each runs in a process of its own, with a limit of its own: one that fails, or takes the GPU down,
costs its own report and no other. `report.html` links to what there is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dfm_bench.facts import read_facts
from dfm_engine.durable import write_durably
from dfm_engine.errors import UsageError
from dfm_engine.report.markup import Markup, element, table
from dfm_engine.report.page import POLICY

__all__ = ["VERBS", "Everything", "Outcome", "run_everything"]

VERBS = ("kernels", "export", "data", "throughput")
"""Short ones first: a machine that is taken away has most reports by then."""

Said = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one benchmark ended.

    Attributes:
        verb: of the command line.
        exit_code: None if it ran past its limit and was stopped.
        seconds: it took.
        pages: names of the HTML files that it wrote.
        last: the last line that it said.
    """

    verb: str
    exit_code: int | None
    seconds: float
    pages: tuple[str, ...]
    last: str

    @property
    def words(self) -> str:
        """For people."""
        if self.exit_code is None:
            return f"stopped after {self.seconds:.0f} s"
        said = "done" if self.exit_code == 0 else f"exit {self.exit_code}: {self.last}"
        return f"{said}, {self.seconds:.0f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    """How all of them ended; in `out`."""

    out: Path
    outcomes: tuple[Outcome, ...]

    @property
    def exit_code(self) -> int:
        """That of the first one that did not end well; 1 for one that was stopped."""
        bad = [o.exit_code for o in self.outcomes if o.exit_code != 0]
        return 0 if not bad else bad[0] or 1

    def print(self) -> None:
        """Tell a person, on stderr."""
        for outcome in self.outcomes:
            sys.stderr.write(f"bench {outcome.verb}: {outcome.words}\n")
        sys.stderr.write(f"{self.out / 'report.html'}\n")

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "schema_version": 1,
            "out": os.fspath(self.out),
            "outcomes": [{**asdict(o), "pages": list(o.pages)} for o in self.outcomes],
        }


def run_everything(
    *,
    out: Path,
    device: str,
    quick: bool,
    limit_s: float,
    verbs: Sequence[str] = VERBS,
    say: Said = lambda text: None,
) -> Everything:
    """Run the benchmarks one after the other.

    Args:
        out: folder of all reports.
        device: auto, cpu or cuda.
        quick: each in its short form.
        limit_s: for all of them; each has what is left, and is stopped after it.
        verbs: which.
        say: told what is under way.

    Raises:
        UsageError: no time, or no verb.
    """
    if limit_s <= 0 or not verbs:
        raise UsageError(f"bench: nothing to do in {limit_s:g} s with verbs {list(verbs)}")
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + limit_s
    outcomes: list[Outcome] = []
    for verb in verbs:
        left_s = deadline - time.monotonic()
        if left_s <= 1:
            outcomes.append(Outcome(verb=verb, exit_code=None, seconds=0.0, pages=(), last=""))
        else:
            say(f"bench {verb}, at most {left_s:.0f} s")
            outcomes.append(_run(verb, out, device, quick=quick, limit_s=left_s))
        say(f"bench {verb}: {outcomes[-1].words}")
        result = Everything(out=out, outcomes=tuple(outcomes))
        write_durably(out / "report.html", _page(result).encode())
        write_durably(out / "report.json", json.dumps(result.to_json(), indent=1).encode())
    return Everything(out=out, outcomes=tuple(outcomes))


def _run(verb: str, out: Path, device: str, *, quick: bool, limit_s: float) -> Outcome:
    before = _pages(out)
    command = [sys.executable, "-m", "dfm_engine.cli", "bench", verb]
    command += ["--out", os.fspath(out), "--device", device, *["--quick"] * quick]
    start = time.monotonic()
    code: int | None = None
    log = out / f"{verb}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its workers too
                process.wait()
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return Outcome(
        verb=verb,
        exit_code=code,
        seconds=round(time.monotonic() - start, 1),
        pages=tuple(sorted(name for name, at in _pages(out).items() if before.get(name) != at)),
        last=lines[-1] if lines else "",
    )


def _pages(out: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in out.glob("*.html") if p.name != "report.html"}


def _page(result: Everything) -> str:
    facts = read_facts()
    rows = [
        [
            outcome.verb,
            element(
                "span",
                *(element("a", page, href=page) for page in outcome.pages),
            ),
            outcome.words,
        ]
        for outcome in result.outcomes
    ]
    shown = table(
        ["benchmark", "report", "how it ended"],
        rows,
        caption="Each page stands for itself; the numbers are in the JSON files beside them",
        numeric_from=None,
    )
    style = resources.files("dfm_engine.report").joinpath("style.css").read_text(encoding="utf-8")
    title = "dfm-engine bench"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(style)),
    )
    body = element(
        "main",
        element("h1", title),
        element("p", facts.sentence(), class_="muted"),
        element("div", shown, class_="card"),
    )
    return "<!doctype html>\n" + element("html", head, element("body", body), lang="en") + "\n"
