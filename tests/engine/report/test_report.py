"""The report: its numbers, its escaping, what it leaves out, and that it asks for nothing."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pytest
from dfmtest_report import ROWS, Page, gradient, written
from hypothesis import given
from hypothesis import strategies as st

from dfm_engine.actions import Action
from dfm_engine.errors import ShapeError
from dfm_engine.quarantine import QuarantineRow
from dfm_engine.report import (
    Confusion,
    Example,
    ReportData,
    StageTiming,
    write_report,
)
from dfm_engine.report.data import action_stats, count_clips, count_files
from dfm_engine.report.markup import element, escape
from dfm_engine.report.page import size_text

# -- numbers ---------------------------------------------------------------------------------


def test_statistics_count_clips_not_files_and_keep_verdict_and_outcome_apart() -> None:
    data = ReportData(recipe="x", rows=ROWS, wanted={Action.SMILE: 5, Action.YAW: 3})
    smile, yaw, nod = sorted(
        action_stats(data), key=lambda s: [Action.SMILE, Action.YAW, Action.NOD].index(s.action)
    )
    assert (smile.wanted, smile.tried, smile.judged, smile.passed) == (5, 4, 4, 2)
    assert (smile.kept, smile.extra, smile.pass_rate) == (2, 1, 0.5)
    assert smile.reasons == {
        "smile not performed: width is …, needs at least 1.08": 2,
        "frozen": 1,
    }
    assert (yaw.tried, yaw.pass_rate, yaw.wanted) == (0, None, 3)
    assert (nod.tried, nod.judged, nod.pass_rate, nod.kept) == (1, 0, None, 1)
    assert [stat.action for stat in action_stats(data)] == [Action.YAW, Action.NOD, Action.SMILE]


def test_counts_leave_refused_clips_out() -> None:
    assert count_clips(ROWS) == {
        ("fake", "smile", "train"): 1,
        ("fake", "smile", "test"): 1,
        ("fake", "smile", "val"): 1,
        ("fake", "nod", None): 1,
        ("real", None, "train"): 1,
    }
    assert count_files(ROWS)["fake", "c23"] == (4, 400)
    assert count_files(ROWS)["real", "raw"] == (1, 1000)


def test_page_shows_the_counts(tmp_path: Path) -> None:
    page = written(tmp_path, wanted={Action.SMILE: 5, Action.YAW: 3, Action.NOD: 2})
    assert "5 animations over 3 actions, 3 of them in the data set; none of yaw" in page.text
    assert "3 fakes of 10 wanted" in page.text
    # action, wanted, made, passed, kept, extra, train, val, test, no split
    assert "smile 5 4 2 2 1 1 1 1 0" in page.text
    assert "yaw 3 0 0 0 0 0 0 0 0" in page.text
    assert "fake raw 4 4 kB 1 kB" in page.text
    assert "smile smile not performed: width is …, needs at least 1.08 2" in page.text


def test_bars_are_as_long_as_the_rates(tmp_path: Path) -> None:
    page = written(tmp_path, wanted={Action.YAW: 3})
    rects = list(page.all("rect"))
    tracks = [float(r["width"] or 0) for r in rects if r["class"] == "track"]
    lengths = [float(r["width"] or 0) for r in rects if r["class"] == "bar"]
    assert [length / track for length, track in zip(lengths, tracks, strict=True)] == [0, 0, 0.5]
    marks = [float(r["x"] or 0) + 1.5 for r in rects if r["class"] == "mark"]
    left = next(float(r["x"] or 0) for r in rects if r["class"] == "track")
    assert [round((m - left) / tracks[0], 3) for m in marks] == [0.23, 0.61]  # yaw, smile
    assert "50 % · 2 of 4" in page.text
    assert "no animation" in page.text


def test_the_bottleneck_is_the_stage_whose_workers_were_busiest(tmp_path: Path) -> None:
    stages = [
        StageTiming(name="animate", busy_s=40.0, frames=1000, clips=20),
        StageTiming(name="encode", busy_s=60.0, workers=2, frames=1000, clips=20),
    ]
    page = written(tmp_path, stages=stages, wall_s=50.0)
    assert "80 % busy, bottleneck" in page.text
    assert "60 % busy encode" not in page.text
    assert "animate bounds the run" in page.text
    assert "animate 1 20 1,000 40.0 s 25.0" in page.text


def test_confusion_is_shown_with_its_numbers_and_checks_its_shape(tmp_path: Path) -> None:
    actions = (Action.BLINK, Action.OPEN_MOUTH)
    confusion = Confusion(
        actions=actions, passed=np.array([[3, 0], [1, 4]]), tried=np.array([4, 4])
    )
    page = written(tmp_path, confusion=confusion)
    assert "blink (4) 3 0 open mouth (4) 1 4" in page.text
    cells = [a for a in page.all("td") if "cell" in (a.get("class") or "")]
    assert [cell["style"] for cell in cells] == [
        "--share:0.75",
        "--share:0.00",
        "--share:0.25",
        "--share:1.00",
    ]
    with pytest.raises(ShapeError, match="2 actions need"):
        Confusion(actions=actions, passed=np.zeros((2, 3), int), tried=np.zeros(2, int))


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (812_345, "812 kB"), (3.42e9, "3.42 GB")],
)
def test_sizes_read_well(size: float, text: str) -> None:
    assert size_text(size) == text


# -- safety ----------------------------------------------------------------------------------


def test_page_asks_for_nothing_and_runs_nothing(tmp_path: Path) -> None:
    example = Example(action=Action.NOD, name="n", source=gradient(1)[0], driving=gradient(3))
    page = written(tmp_path, examples=[example], facts={"command": "x --out y"})
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "poster", "data", "action"):
            value = attributes.get(name) or "data:"
            assert value.startswith(("data:", "#"))
    style = (tmp_path / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy is not None
    assert "default-src 'none'" in policy
    targets = {a["id"] for _, a in page.tags if "id" in a}
    assert {(a["href"] or "#")[1:] for a in page.all("a")} <= targets


def test_odd_names_are_text_and_never_markup(tmp_path: Path) -> None:
    name = "<script>alert('x')</script>\n\u202e&amp;\udcff\".mp4"
    quarantine = [QuarantineRow(path=name, stage="list", kind="<b>", reason="a & b")]
    example = Example(action=Action.NOD, name='"><i>', verdict="<u>", driving=gradient(2))
    page = written(
        tmp_path, quarantine=quarantine, examples=[example], facts={"<k>": "<v>"}, banner="<hr>"
    )
    assert not {"script", "b", "i", "u", "k", "v", "hr"} & {
        tag for tag, _ in page.tags if tag != "b"
    }
    assert "<script>alert('x')</script>\\n\\u202e&amp;\\udcff\".mp4" in page.text
    assert "list <b> a & b" in page.text
    assert "<hr>" in page.text
    assert "<k> <v>" in page.text


def test_escape_and_elements() -> None:
    assert escape("a<b>&\"'\t") == "a&lt;b&gt;&amp;&quot;&#x27;\\t"
    assert element("p", "x<", element("br"), 3, None, class_="a", aria_label='"') == (
        '<p class="a" aria-label="&quot;">x&lt;<br>3</p>'
    )
    assert element("video", controls=True, muted=False, src=None) == "<video controls></video>"


@given(st.text(st.characters(), max_size=60) | st.text("a\n<\u202e\udcff&", max_size=9))
def test_escape_spells_out_each_character_that_does_not_print(text: str) -> None:
    text_utf8 = text.encode("utf-8", "backslashreplace").decode()
    spelt = [c if c.isprintable() else c.encode("unicode_escape").decode() for c in text_utf8]
    assert escape(text) == "".join(html.escape(each) for each in spelt)
    assert str(escape(text)).isprintable()


def test_banner_and_responsible_use_stand_above_everything(tmp_path: Path) -> None:
    text = written(tmp_path, banner="The weights are random").text
    assert text.index("The weights are random") < text.index("Pass rate per action")
    assert text.index("was made by a machine") < text.index("Pass rate per action")
    assert "banner" not in {a.get("class") for _, a in written(tmp_path).tags}


def test_a_long_quarantine_is_cut_and_says_so(tmp_path: Path) -> None:
    rows = [
        QuarantineRow(path=f"{n}.mp4", stage="probe", kind="truncated", reason="x" * 5000)
        for n in range(1000)
    ]
    page = written(tmp_path, quarantine=rows)
    assert "1,000 files and jobs that could not be used; 600 more in quarantine" in page.text
    assert (tmp_path / "report.html").stat().st_size < 500_000
    assert "Empty: every input could be used." in written(tmp_path).text


# -- budget ----------------------------------------------------------------------------------


def many_examples(folder: Path, size: int, frames: np.ndarray) -> list[Example]:
    examples: list[Example] = []
    for action in list(Action)[:4]:
        for index in range(3):
            path = folder / f"{action}{index}.mp4"
            path.write_bytes(bytes(size))
            examples.append(
                Example(action=action, name=path.stem, driving=frames, videos=((path.stem, path),))
            )
    return examples


@pytest.mark.parametrize("max_bytes", [60_000, 400_000, 4_000_000])
def test_the_report_stays_within_its_budget(tmp_path: Path, max_bytes: int) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (6, 128, 128, 3), dtype=np.uint8)
    data = ReportData(recipe="x", rows=ROWS, examples=many_examples(tmp_path, 50_000, noise))
    path = write_report(tmp_path, data, max_bytes=max_bytes)
    assert path.stat().st_size <= max_bytes
    page = Page(path.read_text())
    left = 12 - len(list(page.all("video")))
    assert bool(left) == ("are left out" in page.text)
    if left:
        assert re.search(rf"\b{left} clips are left out", page.text)
    assert (left == 0) == (max_bytes == 4_000_000)


def test_every_action_gets_its_first_clip_before_any_gets_a_second(tmp_path: Path) -> None:
    examples = many_examples(tmp_path, 30_000, gradient(2))
    path = write_report(
        tmp_path, ReportData(recipe="x", rows=[], examples=examples), max_bytes=500_000
    )
    shown = [a["aria-label"] or "" for a in Page(path.read_text()).all("video")]
    counts = [sum(label.startswith(action) for label in shown) for action in list(Action)[:4]]
    assert sum(counts) >= 4
    assert max(counts) - min(counts) <= 1


def test_one_large_clip_does_not_take_the_place_of_the_others(tmp_path: Path) -> None:
    examples = many_examples(tmp_path, 10_000, gradient(2))
    (tmp_path / "blink0.mp4").write_bytes(bytes(300_000))
    path = write_report(
        tmp_path, ReportData(recipe="x", rows=[], examples=examples), max_bytes=1_000_000
    )
    assert len(list(Page(path.read_text()).all("video"))) == 11


def test_a_clip_that_examples_share_is_played_once_and_not_said_to_be_left_out(
    tmp_path: Path,
) -> None:
    clip = tmp_path / "real.mp4"
    clip.write_bytes(bytes(40_000))
    examples = [
        Example(action=action, name="n", driving=gradient(2), videos=(("real", clip),))
        for action in Action
    ]
    data = ReportData(recipe="x", rows=[], examples=examples)
    path = write_report(tmp_path, data, max_bytes=700_000)
    page = Page(path.read_text())
    assert len(list(page.all("video"))) == 1
    assert "left out" not in page.text


def test_an_empty_data_set_has_a_report(tmp_path: Path) -> None:
    page = written(tmp_path, rows=[], wanted={Action.NOD: None})
    assert "0 animations over 1 actions" in page.text
    assert "nod all 0 0 0 0" in page.text
