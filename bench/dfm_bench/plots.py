"""Plots of a benchmark as inline SVG; colours come from the page's style, light or dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dfm_engine.report.markup import Child, Markup, element, join

__all__ = ["Point", "Span", "rates_by_batch", "roofline", "timeline"]

WIDTH, HEIGHT = 760, 320
LEFT, RIGHT, TOP, BOTTOM = 70, 210, 14, 44
DASHES = (None, "7 4", "2 3", "9 3 2 3", "1 5", "12 5")
MAX_SPANS = 3000  # rectangles of a timeline; neighbours are joined until they are fewer


@dataclass(frozen=True, slots=True)
class Point:
    """A measured computation on the roofline: what it is, FLOP per byte, GFLOP/s."""

    name: str
    intensity: float
    gflops: float


@dataclass(frozen=True, slots=True)
class Span:
    """A stage was busy from one moment to another, seconds from the start of the run."""

    stage: str
    start_s: float
    end_s: float


def rates_by_batch(series: Mapping[str, Sequence[tuple[int, float]]], *, unit: str) -> Markup:
    """One line per variant: its rate over the rows of a batch, both logarithmic."""
    points = [point for line in series.values() for point in line]
    x = _Axis([batch for batch, _ in points], LEFT, WIDTH - RIGHT)
    y = _Axis([rate for _, rate in points], HEIGHT - BOTTOM, TOP)
    drawn = [*_frame(x, y, "rows in a batch", unit, ticks=sorted({batch for batch, _ in points}))]
    for index, (name, line) in enumerate(series.items()):
        places = [(x.place(batch), y.place(rate)) for batch, rate in sorted(line)]
        css = "strong" if index == 0 else "bar"
        drawn += [_line(places, css, DASHES[index % len(DASHES)])]
        drawn += [_dot(*place, css) for place in places]
        drawn.append(_key(index, name, css, DASHES[index % len(DASHES)]))
    said = "; ".join(
        f"{name}: " + ", ".join(f"{rate:.3g} at {batch}" for batch, rate in sorted(line))
        for name, line in series.items()
    )
    return _svg(drawn, f"Rate by batch size in {unit}. {said}")


def roofline(points: Sequence[Point], *, gflops: float, gbytes: float) -> Markup:
    """Arithmetic against intensity, under the roof of the machine.

    Args:
        points: what was measured.
        gflops: the machine's arithmetic rate, GFLOP/s.
        gbytes: its memory bandwidth, GB/s.
    """
    ridge = gflops / gbytes
    intensities = [point.intensity for point in points]
    x = _Axis([*intensities, ridge / 4, ridge * 4], LEFT, WIDTH - RIGHT)
    y = _Axis([*(point.gflops for point in points), gflops, gflops / 8], HEIGHT - BOTTOM, TOP)
    roof = [(x.low, min(gflops, x.low * gbytes)), (ridge, gflops), (x.high, gflops)]
    drawn = [*_frame(x, y, "FLOP per byte of memory traffic", "GFLOP/s")]
    drawn.append(_line([(x.place(a), y.place(b)) for a, b in roof], "mark", None))
    for index, point in enumerate(points):
        place = x.place(point.intensity), y.place(point.gflops)
        css = "strong" if index % 2 else "bar"
        drawn += [_dot(*place, css), _text(place[0] + 7, place[1] - 6, str(index + 1), css="small")]
        drawn.append(_text(WIDTH - RIGHT + 14, TOP + 10 + 20 * index, f"{index + 1} {point.name}"))
    said = "; ".join(
        f"{point.name}: {point.gflops:.3g} GFLOP/s at {point.intensity:.3g} FLOP per byte"
        for point in points
    )
    roof_said = f"The roof is {gflops:.4g} GFLOP/s, or {gbytes:.4g} GB/s"
    return _svg(drawn, f"Roofline. {roof_said}. {said}")


def timeline(spans: Sequence[Span], *, wall_s: float) -> Markup:
    """One row per stage, a bar where it was busy."""
    stages = list(dict.fromkeys(span.stage for span in spans))
    row_px = 26
    height = TOP + row_px * len(stages) + BOTTOM
    scale = (WIDTH - LEFT - 100) / max(wall_s, 1e-9)
    left = LEFT + 80
    drawn: list[Markup] = []
    shares: list[str] = []
    for index, stage in enumerate(stages):
        top = TOP + index * row_px
        drawn.append(_text(left - 8, top + 9, stage, anchor="end"))
        drawn.append(_rect(left, top, wall_s * scale, 16, "track"))
        mine = _joined([span for span in spans if span.stage == stage], MAX_SPANS // len(stages))
        for span in mine:
            width = max((span.end_s - span.start_s) * scale, 0.4)
            drawn.append(_rect(left + span.start_s * scale, top, width, 16, "bar"))
        busy = sum(span.end_s - span.start_s for span in spans if span.stage == stage)
        shares.append(f"{stage}: {busy:.3g} s")
    for part in range(5):
        moment = wall_s * part / 4
        place = left + moment * scale
        label = f"{moment:.3g} s"
        drawn.append(_text(place, height - BOTTOM + 14, label, anchor="middle", css="muted small"))
    return _svg(drawn, f"Stages over {wall_s:.3g} s. Busy: {'; '.join(shares)}", height)


class _Axis:
    """A logarithmic axis over values above 0."""

    def __init__(self, values: Sequence[float], start_px: float, end_px: float) -> None:
        low, high = min(values), max(values)
        room = 1.15 if high > 1.3 * low else 2.0
        self.low, self.high = low / room, high * room
        self._start, self._end = start_px, end_px

    def place(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        """1, 2 and 5 of every decade, or the decades alone where those are many."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if len(decades) <= 3 else (1,)
        values = [step * 10.0**decade for decade in decades for step in steps]
        return [value for value in values if self.low <= value <= self.high]


def _frame(
    x: _Axis, y: _Axis, x_name: str, y_name: str, *, ticks: Sequence[float] = ()
) -> list[Markup]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    drawn = [_line([(LEFT, TOP), (LEFT, bottom), (right, bottom)], "muted", None, thin=True)]
    for value in ticks or x.ticks():
        drawn.append(_text(x.place(value), bottom + 14, f"{value:g}", anchor="middle", css="small"))
    for value in y.ticks():
        drawn.append(_text(LEFT - 8, y.place(value), f"{value:g}", anchor="end", css="small"))
        drawn.append(_line([(LEFT, y.place(value)), (right, y.place(value))], "grid", None, True))
    middle = (LEFT + right) / 2
    drawn.append(_text(middle, HEIGHT - 8, x_name, anchor="middle", css="muted small"))
    drawn.append(_text(LEFT + 6, TOP + 4, y_name, css="muted small"))
    return drawn


def _key(index: int, name: str, css: str, dashes: str | None) -> Markup:
    top = TOP + 10 + 20 * index
    start = WIDTH - RIGHT + 14
    line = _line([(start, top), (start + 26, top)], css, dashes)
    return join([line, _text(start + 34, top, name)])


def _joined(spans: list[Span], most: int) -> list[Span]:
    """Fewer spans: the smallest gaps are closed."""
    spans = sorted(spans, key=lambda span: span.start_s)
    gaps = sorted(b.start_s - a.end_s for a, b in pairwise(spans))
    limit = gaps[len(spans) - most - 1] if len(spans) > most else -1.0
    result: list[Span] = []
    for span in spans:
        if result and span.start_s - result[-1].end_s <= limit:
            last = result.pop()
            span = Span(span.stage, last.start_s, max(last.end_s, span.end_s))
        result.append(span)
    return result


def _svg(children: Sequence[Markup], said: str, height: float = HEIGHT) -> Markup:
    return element(
        "svg",
        element("title", said),
        *children,
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="img",
        class_="chart",
    )


def _line(
    places: Sequence[tuple[float, float]], css: str, dashes: str | None, thin: bool = False
) -> Markup:
    return element(
        "polyline",
        points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places),
        class_=f"line {css}" + (" thin" if thin else ""),
        stroke_dasharray=dashes,
    )


def _dot(x: float, y: float, css: str) -> Markup:
    return element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=4, class_=css)


def _rect(x: float, y: float, width: float, height: float, css: str) -> Markup:
    return element(
        "rect", x=f"{x:.1f}", y=f"{y:.1f}", width=f"{width:.1f}", height=f"{height:g}", class_=css
    )


def _text(
    x: float, y: float, text: Child, *, anchor: str | None = None, css: str | None = None
) -> Markup:
    return element(
        "text",
        text,
        x=f"{x:.1f}",
        y=f"{y:.1f}",
        text_anchor=anchor,
        dominant_baseline="middle",
        class_=css,
    )
