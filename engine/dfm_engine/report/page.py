"""The page, section by section: data in, HTML out. Nothing is read from files but the style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources

from dfm_engine.actions import Action
from dfm_engine.clip import QUALITIES
from dfm_engine.progress import duration
from dfm_engine.report import charts
from dfm_engine.report.audit_section import shortcuts
from dfm_engine.report.data import (
    SPLIT_NAMES,
    ActionStats,
    ReportData,
    action_stats,
    count_clips,
    count_files,
)
from dfm_engine.report.markup import Child, Markup, element, join, percent, table

POLICY = (
    "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
RESPONSIBLE_USE = (
    "Every clip marked fake was made by a machine and shows something that the person in it never "
    "did. The set exists to train and test detectors. Do not publish its clips, do not use them to "
    "deceive anybody or any liveness check, and keep to the licences and consents of the sources."
)
MAX_QUARANTINE_ROWS = 400
MAX_TEXT = 300


def render(data: ReportData, sheets: Mapping[Action, Sequence[Markup]], *, note: str = "") -> str:
    """The whole page.

    Args:
        data: what it is about.
        sheets: the examples of each action, rendered.
        note: what was left out to keep the page small.
    """
    stats = action_stats(data)
    sections = [
        ("rates", "Pass rate per action", _pass_rates(stats)),
        ("examples", "Examples", _examples(sheets, note)),
        ("counts", "Counts", _counts(data, stats)),
        ("screen", "What the screen refused", _refusals(data, stats)),
        ("audit", "Shortcuts", shortcuts(data.audit) if data.audit else None),
        ("time", "Time", _time(data)),
        ("quarantine", "Quarantine", _quarantine(data)),
        ("facts", "How it was made", _facts(data)),
    ]
    links = [element("a", title, href=f"#{name}") for name, title, body in sections if body]
    title = f"DeepFake MNIST+ build: {data.recipe}"
    body = element(
        "main",
        element(
            "header",
            element("h1", title),
            element("p", _summary(data, stats), class_="muted"),
            element("p", data.banner, class_="banner", role="alert") if data.banner else None,
            element("p", RESPONSIBLE_USE, class_="use"),
            _tiles(data, stats),
            element("nav", *links, aria_label="Sections"),
        ),
        *(
            element("section", element("h2", heading), content, id=name)
            for name, heading, content in sections
            if content
        ),
    )
    style = resources.files(__package__ or "").joinpath("style.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Markup(style)),
    )
    return "<!doctype html>\n" + element("html", head, element("body", body), lang="en") + "\n"


def size_text(size_bytes: float) -> str:
    """`812 kB`, `3.4 MB`, `12 GB`."""
    for unit in ("bytes", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}" if size_bytes < 100 else f"{size_bytes:.0f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} GB" if size_bytes < 1000 else f"{size_bytes:.0f} GB"


def clipped(text: str) -> str:
    """A text of bounded length."""
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _name(action: str) -> str:
    return action.replace("_", " ")


def _summary(data: ReportData, stats: Sequence[ActionStats]) -> str:
    tried = sum(stat.tried for stat in stats)
    kept = sum(stat.kept for stat in stats)
    missing = [_name(stat.action) for stat in stats if not stat.tried]
    text = f"{tried} animations over {len(stats)} actions, {kept} of them in the data set"
    if missing:
        text += f"; none of {', '.join(missing)}"
    return text + f". The run took {duration(data.wall_s)}."


def _tiles(data: ReportData, stats: Sequence[ActionStats]) -> Markup:
    counts = count_clips(data.rows)
    kept = sum(stat.kept for stat in stats)
    quotas = [stat.wanted for stat in stats]
    wanted = sum(quota or 0 for quota in quotas)
    reals = sum(count for (label, _, _), count in counts.items() if label == "real")
    judged = sum(stat.judged for stat in stats)
    passed = sum(stat.passed for stat in stats)
    size_bytes = sum(size for _, size in count_files(data.rows).values())
    tiles = [
        (f"{kept:,}", f"fakes of {wanted:,} wanted" if wanted and None not in quotas else "fakes"),
        (f"{reals:,}", "real twins"),
        (percent(passed / judged) if judged else "–", "passed the screen"),
        (size_text(size_bytes), "on disk, three qualities"),
        (f"{len(data.quarantine):,}", "in quarantine"),
        (duration(data.wall_s), "wall time"),
    ]
    return element(
        "div",
        *(
            element("div", element("b", big), element("span", small), class_="tile")
            for big, small in tiles
        ),
        class_="tiles",
    )


def _pass_rates(stats: Sequence[ActionStats]) -> Markup | None:
    if not stats:
        return None
    caption = (
        "Animations that the screen let pass, of those made. The upright marks are the two rates "
        "that the paper prints: smile 61 %, yaw 23 %, by two liveness services; this screen is "
        "another one, so equality is not to be expected."
    )
    return element(
        "figure", charts.pass_rates(stats), element("figcaption", caption), class_="card"
    )


def _examples(sheets: Mapping[Action, Sequence[Markup]], note: str) -> Markup | None:
    parts: list[Child] = [element("p", note, class_="muted")] if note else []
    for action in Action:
        parts += sheets.get(action, ())
    return join(parts) if parts else None


def _counts(data: ReportData, stats: Sequence[ActionStats]) -> Markup:
    counts = count_clips(data.rows)
    splits = [*SPLIT_NAMES, None]
    if not any(split is None for _, _, split in counts):
        splits.remove(None)

    def of(label: str, action: str | None) -> list[Child]:
        return [f"{counts[label, action, split]:,}" for split in splits]

    rows: list[list[Child]] = []
    for stat in stats:
        wanted = "all" if stat.wanted is None else f"{stat.wanted:,}"
        numbers = (stat.tried, stat.passed, stat.kept, stat.extra)
        rows.append(
            [
                _name(stat.action),
                wanted,
                *(f"{number:,}" for number in numbers),
                *of("fake", stat.action),
            ]
        )
    reals = sum(count for (label, _, _), count in counts.items() if label == "real")
    rows.append(["real twins", "", "", "", f"{reals:,}", "", *of("real", None)])
    header = ["action", "wanted", "made", "passed", "kept", "extra"]
    header += [split or "no split" for split in splits]
    files = count_files(data.rows)
    file_rows: list[list[Child]] = []
    for label in ("fake", "real"):
        for quality in QUALITIES:
            number, size = files.get((label, quality), (0, 0))
            mean = size_text(size / number) if number else "–"
            file_rows.append([f"{label} {quality}", f"{number:,}", size_text(size), mean])
    return join(
        [
            element("div", table(header, rows, caption="Clips per action and part"), class_="card"),
            element(
                "div",
                table(["files", "number", "size", "mean"], file_rows, caption="Files per quality"),
                class_="card",
            ),
        ]
    )


def _refusals(data: ReportData, stats: Sequence[ActionStats]) -> Markup | None:
    rows = [
        [_name(stat.action), clipped(reason), f"{count:,}"]
        for stat in stats
        for reason, count in sorted(stat.reasons.items(), key=lambda item: (-item[1], item[0]))[:8]
    ]
    parts: list[Markup] = []
    if rows:
        caption = "Reasons, the most frequent of each action"
        parts.append(
            element(
                "div",
                table(["action", "reason", "animations"], rows, caption=caption, numeric_from=2),
                class_="card",
            )
        )
    if data.confusion is not None:
        parts.append(element("div", charts.confusion_table(data.confusion), class_="card"))
    return join(parts) if parts else None


def _time(data: ReportData) -> Markup | None:
    if not data.stages:
        return None
    shares = [stage.busy_share(data.wall_s) for stage in data.stages]
    busiest = max(range(len(shares)), key=shares.__getitem__)
    values: list[tuple[str, float, str, bool]] = []
    for index, (stage, share) in enumerate(zip(data.stages, shares, strict=True)):
        mark = ", bottleneck" if index == busiest else ""
        values.append((stage.name, share, f"{percent(share)} busy{mark}", bool(mark)))
    rows = [
        [
            stage.name,
            f"{stage.workers}",
            f"{stage.clips:,}",
            f"{stage.frames:,}",
            f"{stage.busy_s:,.1f} s",
            f"{stage.frames / stage.busy_s:,.1f}" if stage.busy_s and stage.frames else "–",
        ]
        for stage in data.stages
    ]
    header = ["stage", "workers", "clips", "frames", "busy", "frames per busy s"]
    caption = "Share of the run in which each stage's workers were busy"
    return join(
        [
            element(
                "figure",
                charts.bars(values, what=caption),
                element("figcaption", f"{caption}; {data.stages[busiest].name} bounds the run."),
                class_="card",
            ),
            element("div", table(header, rows, caption="Work per stage"), class_="card"),
        ]
    )


def _quarantine(data: ReportData) -> Markup:
    if not data.quarantine:
        return element("p", "Empty: every input could be used.")
    rows = [
        [
            element("span", clipped(row.path), class_="path"),
            row.stage,
            row.kind,
            clipped(row.reason),
            row.job_id or "",
        ]
        for row in data.quarantine[:MAX_QUARANTINE_ROWS]
    ]
    left = len(data.quarantine) - len(rows)
    caption = f"{len(data.quarantine):,} files and jobs that could not be used"
    if left:
        caption += f"; {left:,} more in quarantine.parquet"
    header = ["path", "stage", "kind", "reason", "job"]
    return element("div", table(header, rows, caption=caption, numeric_from=None), class_="card")


def _facts(data: ReportData) -> Markup | None:
    if not data.facts:
        return None
    pairs = [
        item
        for key, value in data.facts.items()
        for item in (element("dt", clipped(key)), element("dd", clipped(value)))
    ]
    return element("div", element("dl", *pairs), class_="card")
