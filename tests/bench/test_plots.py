"""The pictures of a benchmark say what was measured, also to who cannot see them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from dfm_bench.facts import read_facts
from dfm_bench.measure import Row, Timing
from dfm_bench.plots import Point, Span, rates_by_batch, roofline, timeline
from dfm_bench.report import BenchReport, Figure


def places(svg: str, name: str) -> list[tuple[float, float]]:
    root = ET.fromstring(svg)
    return [(float(part.attrib["cx"]), float(part.attrib["cy"])) for part in root.iter(name)]


def test_rates_stand_in_the_order_of_their_values():
    svg = rates_by_batch({"ours": [(8, 40.0), (1, 20.0)], "theirs": [(1, 10.0)]}, unit="frames/s")
    ours_1, ours_8, theirs = places(svg, "circle")
    assert ours_1[0] == theirs[0] < ours_8[0]
    assert ours_8[1] < ours_1[1] < theirs[1]  # downwards
    assert ours_1[1] - ours_8[1] == pytest.approx(theirs[1] - ours_1[1], abs=0.2)  # logarithmic
    assert "ours: 20 at 1, 40 at 8; theirs: 10 at 1" in svg


def test_the_roof_bends_where_bandwidth_meets_arithmetic():
    svg = roofline([Point("warp", 1.0, 50.0)], gflops=1000.0, gbytes=100.0)
    (place,) = places(svg, "circle")
    lines = [part.attrib["points"] for part in ET.fromstring(svg).iter("polyline")]
    roof = [tuple(map(float, point.split(","))) for point in lines[-1].split()]
    assert roof[1][1] == roof[2][1] < roof[0][1]
    slope = (roof[0][1] - roof[1][1]) / (roof[1][0] - roof[0][0])
    under = roof[1][1] + slope * (roof[1][0] - place[0])
    assert place[1] > under  # below the roof
    assert "1000 GFLOP/s, or 100 GB/s" in svg


def test_a_long_timeline_is_joined_and_keeps_its_ends():
    spans = [Span("animate", i * 0.01, i * 0.01 + 0.004) for i in range(10_000)]
    svg = timeline([*spans, Span("encode", 50.0, 100.0)], wall_s=100.0)
    assert svg.count("<rect") < 3010
    assert "animate: 40 s; encode: 50 s" in svg
    rects = [r for r in ET.fromstring(svg).iter("rect") if r.attrib["class"] == "bar"]
    assert float(rects[-1].attrib["x"]) == pytest.approx(
        float(rects[0].attrib["x"]) + 0.5 * (760 - 70 - 100), abs=0.2
    )


def test_the_page_is_one_file_without_scripts_and_escapes_what_it_is_told(tmp_path):
    row = Row.of("decode <b>", Timing((0.1,)), amount=1, unit="frames/s", shape=(1,), ceiling=20.0)
    figure = Figure(title="Rates", svg=timeline([Span("a", 0, 1)], wall_s=1), caption="A caption")
    report = BenchReport(
        verb="test",
        command="dfm-engine bench test",
        device="cpu",
        facts=read_facts(),
        rows=(row,),
        remark="One <script>.\nTwo.",
        figures=(figure,),
    )
    path = report.write(tmp_path)
    page = path.with_suffix(".html").read_text()
    assert "decode &lt;b&gt;" in page
    assert "One &lt;script&gt;." in page
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "10.0 frames/s" in page
    assert "50%" in page
    assert "<svg" in page
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".md", ".html"}
