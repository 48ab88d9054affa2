"""The README's tables of numbers, from the committed reports they stand in.

    python -m dfm_bench.summary README.md

rewrites what stands between `<!-- results: bench/results/X.json -->` and `<!-- end of results -->`.
A test holds the README against it, so no number in it was typed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dfm_bench.markdown import number, table

__all__ = ["main", "summary", "updated"]

REGION = re.compile(r"(<!-- results: (?P<path>\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)

Fields = Mapping[str, Any]


def updated(text: str, root: Path) -> str:
    """A document with its tables made anew.

    Args:
        text: of the document.
        root: what the paths in it start from.
    """

    def fill(found: re.Match[str]) -> str:
        report = json.loads((root / found["path"]).read_text(encoding="utf-8"))
        return f"{found[1]}{summary(report, found['path'])}\n{found[3]}"

    return REGION.sub(fill, text)


def summary(report: Fields, path: str) -> str:
    """What a report says in short: where, when, by which command, and a table.

    Args:
        report: its JSON.
        path: of that; the page beside it is linked to.
    """
    facts, page = report["facts"], Path(path).with_suffix(".html")
    on = ", ".join([*facts["gpus"], f"{facts['cores']:g} cores of {facts['cpu']}"])
    made = f"{on}, {facts['date']}; `{report['command']}` ([all of it]({page}))."
    lines = {"throughput": _throughput, "kernels": _kernels}[report["verb"]](report["rows"])
    return f"{made}\n\n{lines}"


def _throughput(rows: Sequence[Fields]) -> str:
    loop = next(row for row in rows if row["variant"] == "reference loop")
    lines = [
        _line(f"build, {row['variant']}, {row['shape'][0]:,} frames of three qualities", row)
        for row in rows
        if row["name"] == "build"
    ]
    best: dict[str, Fields] = {}
    for row in rows:
        if row["name"] == "generator" and row["variant"]:
            known = best.get(row["variant"])
            if known is None or row["rate"] > known["rate"]:
                best[row["variant"]] = row
    for name, row in best.items():
        ratio = "1x" if row is loop else f"{row['rate'] / loop['rate']:.1f}x"
        lines.append(_line(f"generator: {name}, batch {row['shape'][0]}", row, ratio))
    for name in ("decode", "crop", "x264", "encode pool"):
        lines += [
            _line(f"{name} {row['variant']}".strip(), row) for row in rows if row["name"] == name
        ]
    header = ("what", "rate", "against the loop", "ceiling", "reached")
    return table(header, lines, right=(1, 2, 4)).rstrip()


def _line(what: str, row: Fields, ratio: str = "") -> tuple[str, ...]:
    ceiling = f"{number(row['ceiling'])}, {row['ceiling_of']}" if row["ceiling"] else ""
    reached = f"{row['share']:.0%}" if row["share"] else ""
    return what, f"{number(row['rate'])} {row['unit']}", ratio, ceiling, reached


def _kernels(rows: Sequence[Fields]) -> str:
    cases: dict[tuple[str, str], dict[str, Fields]] = {}
    for row in rows:
        if row["variant"]:
            cases.setdefault((row["name"], row["dtype"]), {})[row["variant"]] = row
    lines = [
        (
            name,
            f"{number(ways['kernel']['rate'])} GB/s",
            f"{ways['kernel']['share']:.0%}",
            *(
                f"{ways[other]['median_s'] / ways['kernel']['median_s']:.1f}x"
                if other in ways
                else ""
                for other in ("torch", "torch.compile")
            ),
        )
        for (name, _), ways in cases.items()
        if "kernel" in ways
    ]
    header = ("kernel", "rate", "of a copy", "torch", "torch.compile")
    return table(header, lines, right=(1, 2, 3, 4)).rstrip()


def main() -> None:
    """Rewrite the documents named on the command line, from the current folder on."""
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(updated(path.read_text(encoding="utf-8"), Path.cwd()), encoding="utf-8")


if __name__ == "__main__":
    main()
