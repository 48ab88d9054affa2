"""A benchmark's report as one HTML file that asks for nothing else and runs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING

from dfm_bench.markdown import QUEUE_HEADER, number, queue_lines
from dfm_bench.measure import Row, StageRow
from dfm_bench.outlook import Outlook
from dfm_engine.report import charts
from dfm_engine.report.markup import Child, Markup, element, join, table
from dfm_engine.report.page import POLICY

if TYPE_CHECKING:
    from dfm_bench.report import BenchReport

__all__ = ["render"]

STYLE = """
.line { fill: none; stroke-width: 2.2; } .thin { stroke-width: 1; }
.line.bar { stroke: var(--accent); } .line.strong { stroke: var(--strong); }
.line.mark { stroke: var(--mark); } .line.muted { stroke: var(--muted); }
.line.grid { stroke: var(--line); }
"""


def render(report: BenchReport) -> str:
    """The whole page.

    Args:
        report: what was measured.
    """
    title = f"dfm-engine bench {report.verb}"
    sections: list[Markup] = [
        _section(figure.title, _card(figure.svg, figure.caption)) for figure in report.figures
    ]
    if report.stages:
        sections.append(_section("Stages of the run", _stages(report)))
    sections.append(_section("Rates", _rows(report.rows)))
    if report.outlook:
        sections.append(_section("The paper's whole data set", _outlook(report.outlook)))
    facts = report.facts
    pairs: dict[str, Child] = {
        "measured": facts.date,
        "command": report.command,
        "processor": f"{facts.cores:g} cores of {facts.cpu}, {facts.memory_gib:g} GiB",
        "GPU": ", ".join(facts.gpus) or "none",
        "driver": facts.driver,
        "versions": ", ".join(f"{name} {version}" for name, version in facts.versions.items()),
        "commit": facts.commit,
        "load at the start": f"{facts.load:.2f}",
    }
    listed = [
        part
        for name, value in pairs.items()
        if value
        for part in (element("dt", name), element("dd", value))
    ]
    sections.append(_section("Where", element("div", element("dl", *listed), class_="card")))
    remarks = [element("p", line) for line in report.remark.split("\n") if line]
    style = resources.files("dfm_engine.report").joinpath("style.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(style + STYLE)),
    )
    body = element(
        "main",
        element(
            "header",
            element("h1", title),
            element("p", facts.sentence(), class_="muted"),
            *remarks,
        ),
        *sections,
    )
    return "<!doctype html>\n" + element("html", head, element("body", body), lang="en") + "\n"


def _section(title: str, content: Markup) -> Markup:
    return element("section", element("h2", title), content)


def _card(svg: Markup, caption: str) -> Markup:
    return element("figure", svg, element("figcaption", caption), class_="card")


def _rows(rows: Sequence[Row]) -> Markup:
    lines = [
        [
            row.name,
            row.way,
            f"{'x'.join(map(str, row.shape))} {row.dtype}",
            f"{number(row.rate)} {row.unit}",
            f"{number(row.p5_s * 1000)} – {number(row.p95_s * 1000)} ms",
            f"{number(row.ceiling)}, {row.ceiling_of}" if row.ceiling else "–",
            f"{row.share:.0%}" if row.share is not None else "–",
        ]
        for row in rows
    ]
    header = ["what", "", "input", "rate", "p5 – p95 of a call", "ceiling", "reached"]
    caption = "The rate is that of the median call; ceilings were measured in the same run"
    return element("div", table(header, lines, caption=caption, numeric_from=3), class_="card")


def _stages(report: BenchReport) -> Markup:
    bars = [
        (
            stage.name,
            stage.share_of_wall,
            _share(stage, is_bottleneck=stage.name == report.bottleneck),
            stage.name == report.bottleneck,
        )
        for stage in report.stages
    ]
    lines = [
        [
            stage.name,
            stage.workers,
            stage.clips or "–",
            stage.frames or "–",
            f"{stage.busy_s:.2f} s",
            number(stage.frames_per_busy_s),
            number(stage.ceiling),
            f"{stage.share_of_ceiling:.0%}" if stage.share_of_ceiling is not None else "–",
        ]
        for stage in report.stages
    ]
    header = ["stage", "workers", "clips", "frames", "busy", "frames/busy s", "ceiling", "reached"]
    caption = "Share of the run in which each stage's workers were busy"
    return join(
        [
            _card(charts.bars(bars, what=caption), caption),
            element("div", table(header, lines, caption="Work per stage"), class_="card"),
            *([_queues(report.queues)] if report.queues else []),
        ]
    )


def _queues(queues: Mapping[str, Mapping[str, float]]) -> Markup:
    caption = "A full queue holds up the stage before it, an empty one the stage behind it"
    shown = table(QUEUE_HEADER, queue_lines(queues), caption=caption)
    return element("div", shown, class_="card")


def _outlook(found: Outlook) -> Markup:
    lines = [[stage.name, f"{stage.frames:,}", number(stage.minutes)] for stage in found.stages]
    caption = "Minutes of each stage on the workers that it had here"
    shown = table(["stage", "frames", "minutes"], lines, caption=caption)
    return element("div", shown, element("p", found.sentence()), class_="card")


def _share(stage: StageRow, *, is_bottleneck: bool) -> str:
    return f"{stage.share_of_wall:.0%} busy" + (", bottleneck" if is_bottleneck else "")
