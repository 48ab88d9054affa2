"""Charts as inline SVG; colours come from the page's style, so they follow light and dark."""

from __future__ import annotations

from collections.abc import Sequence

from dfm_engine.report.data import PAPER_PASS_RATE, ActionStats, Confusion
from dfm_engine.report.markup import Child, Markup, element, percent

_LABEL_PX, _PLOT_PX, _NOTE_PX, _ROW_PX, _BAR_PX = 120, 440, 190, 28, 16


def pass_rates(stats: Sequence[ActionStats]) -> Markup:
    """Share of animations that passed the screen, per action: the paper's figure 2."""
    rows: list[Markup] = []
    for index, stat in enumerate(stats):
        top = 8 + index * _ROW_PX
        middle = top + _BAR_PX / 2
        rate = stat.pass_rate
        note = (
            "no animation" if rate is None else f"{percent(rate)} · {stat.passed} of {stat.judged}"
        )
        end = _LABEL_PX + (rate or 0.0) * _PLOT_PX
        rows += [
            _text(_LABEL_PX - 8, middle, stat.action.replace("_", " "), anchor="end"),
            _rect(_LABEL_PX, top, _PLOT_PX, _BAR_PX, "track"),
            _rect(_LABEL_PX, top, max(end - _LABEL_PX, 0), _BAR_PX, "bar"),
            _text(_LABEL_PX + _PLOT_PX + 10, middle, note, css="muted"),
        ]
        if stat.action in PAPER_PASS_RATE:
            place = _LABEL_PX + PAPER_PASS_RATE[stat.action] * _PLOT_PX
            rows.append(_rect(place - 1.5, top - 4, 3, _BAR_PX + 8, "mark"))
    bottom = 8 + len(stats) * _ROW_PX
    for share in (0, 25, 50, 75, 100):
        place = _LABEL_PX + share / 100 * _PLOT_PX
        rows.append(_text(place, bottom + 8, f"{share} %", anchor="middle", css="muted small"))
    said = "; ".join(
        f"{stat.action}: " + ("none" if stat.pass_rate is None else percent(stat.pass_rate))
        for stat in stats
    )
    return _svg(rows, bottom + 20, f"Share of animations that passed the screen. {said}")


def bars(values: Sequence[tuple[str, float, str, bool]], *, what: str) -> Markup:
    """Horizontal bars of (label, share 0..1, note, is marked)."""
    rows: list[Markup] = []
    for index, (label, share, note, is_marked) in enumerate(values):
        top = 8 + index * _ROW_PX
        middle = top + _BAR_PX / 2
        width = min(max(share, 0.0), 1.0) * _PLOT_PX
        rows += [
            _text(_LABEL_PX - 8, middle, label, anchor="end"),
            _rect(_LABEL_PX, top, _PLOT_PX, _BAR_PX, "track"),
            _rect(_LABEL_PX, top, width, _BAR_PX, "bar strong" if is_marked else "bar"),
            _text(_LABEL_PX + _PLOT_PX + 10, middle, note, css="muted"),
        ]
    said = "; ".join(f"{label}: {note}" for label, _, note, _ in values)
    return _svg(rows, 8 + len(values) * _ROW_PX, f"{what}. {said}")


def confusion_table(confusion: Confusion) -> Markup:
    """Which gates let which actions pass; the diagonal should be full and the rest empty."""
    names = [action.replace("_", " ") for action in confusion.actions]
    head = element("tr", element("th", "performed", scope="col"), *(_head(name) for name in names))
    lines: list[Markup] = []
    for row, name in enumerate(names):
        cells: list[Markup] = []
        for column in range(len(names)):
            count, of = int(confusion.passed[row, column]), int(confusion.tried[row])
            share = count / of if of else 0.0
            cells.append(
                element(
                    "td",
                    element("span", str(count), class_="value"),
                    class_="cell own" if row == column else "cell",
                    style=f"--share:{share:.2f}",
                    title=f"{count} of {of} {name} clips pass the {names[column]} gate",
                )
            )
        lines.append(
            element(
                "tr", element("th", f"{name} ({int(confusion.tried[row])})", scope="row"), *cells
            )
        )
    caption = "Clips of each action (rows, with their number) that pass each gate (columns)"
    body = element(
        "table",
        element("caption", caption),
        element("thead", head),
        element("tbody", *lines),
        class_="confusion",
    )
    return element("div", body, class_="scroll", tabindex=0, role="region", aria_label=caption)


def _head(name: str) -> Markup:
    return element("th", element("span", name), scope="col", class_="slanted")


def _svg(children: Sequence[Markup], height: float, title: str) -> Markup:
    width = _LABEL_PX + _PLOT_PX + _NOTE_PX
    return element(
        "svg",
        element("title", title),
        *children,
        viewBox=f"0 0 {width} {height:g}",
        role="img",
        class_="chart",
    )


def _rect(x: float, y: float, width: float, height: float, css: str) -> Markup:
    return element(
        "rect", x=f"{x:g}", y=f"{y:g}", width=f"{width:g}", height=f"{height:g}", rx=3, class_=css
    )


def _text(x: float, y: float, text: Child, *, anchor: str = "start", css: str = "") -> Markup:
    return element(
        "text",
        text,
        x=f"{x:g}",
        y=f"{y:g}",
        text_anchor=anchor,
        dominant_baseline="central",
        class_=css or None,
    )
