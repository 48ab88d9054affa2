"""The report: its numbers, its escaping, what it leaves out, and that it asks for nothing."""

from __future__ import annotations

import base64
import functools
import html
import io
import re
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dfmtest_dataset import make_dataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dfm_engine.actions import Action
from dfm_engine.clip import Box
from dfm_engine.errors import MediaError, ShapeError
from dfm_engine.manifest import COLUMNS, read_manifest
from dfm_engine.quarantine import QuarantineRow
from dfm_engine.report import (
    Confusion,
    Example,
    ReportData,
    StageTiming,
    examples,
    examples_from_manifest,
    write_report,
)
from dfm_engine.report.data import action_stats, count_clips, count_files
from dfm_engine.report.markup import element, escape
from dfm_engine.report.page import size_text
from dfm_engine.report.pictures import LARGEST_PX, crop_box, load_strip, shrink, strip_uri


def row(clip: str, **values) -> dict:
    base = {column.name: None for column in COLUMNS}
    base |= {"clip_id": clip, "label": "fake", "outcome": "passed", "action": "smile"}
    base |= {"is_extra": False, "split": "train", "screen_passed": True}
    return base | values


def files(clip: str, **values) -> list[dict]:
    sizes = {"raw": 1000, "c23": 100, "c40": 10}
    return [row(clip, quality=q, size_bytes=size, **values) for q, size in sizes.items()]


def low(value: float) -> str:
    return f"smile not performed: width is {value}, needs at least 1.08"


ROWS = [
    *files("a", split="train"),
    *files("b", split="test", is_extra=True),
    *files("c", screen_passed=False, screen_reasons=low(1.01), split="val"),  # recorded only
    row(
        "d",
        outcome="refused",
        screen_passed=False,
        screen_reasons=f"{low(0.9)}; frozen",
        split=None,
    ),
    *files("e", action="nod", screen_passed=None, split=None),
    *files("ra", label="real", action=None, screen_passed=None),
]


class Page(HTMLParser):
    """What a page holds: tags with attributes, and the text outside the style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self.words.append(data)

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.tags if name == tag)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def written(out: Path, **changes: Any) -> Page:
    values: dict[str, Any] = {"recipe": "test", "rows": ROWS} | changes
    path = write_report(out, ReportData(**values))
    assert path == out / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def gradient(count: int, size: int = 64) -> np.ndarray:
    """Frame k has the grey value 10 * k."""
    frames = np.zeros((count, size, size, 3), np.uint8)
    return frames + (10 * np.arange(count, dtype=np.uint8))[:, None, None, None]


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


# -- pictures --------------------------------------------------------------------------------


def picture_of(uri: str | None) -> np.ndarray:
    assert uri is not None
    kind, _, data = uri.partition(";base64,")
    assert kind == "data:image/jpeg"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_strips_show_the_first_the_last_and_evenly_what_lies_between(tmp_path: Path) -> None:
    example = Example(action=Action.NOD, name="n", driving=gradient(26))
    page = written(tmp_path, examples=[example])
    (image,) = page.all("img")
    strip = picture_of(image["src"])
    assert strip.shape == (64, 6 * 64 + 5 * 2, 3)
    assert (image["width"], image["height"]) == ("394", "64")
    greys = [int(strip[32, 32 + 66 * k].mean()) for k in range(6)]
    assert greys == pytest.approx([0, 50, 100, 150, 200, 250], abs=2)  # frames 0, 5, ..., 25
    assert image["alt"] == "6 frames of the driving clip, nod, evenly spaced"


def test_short_clips_are_shown_whole_and_large_ones_made_small() -> None:
    assert len(load_strip(gradient(4))) == 4
    wide = np.zeros((3, 500, 1000, 3), np.uint8)
    assert [frame.shape for frame in load_strip(wide)] == [(128, 256, 3)] * 3
    uri, width, height = strip_uri(list(wide), height_px=50, jpeg_quality=80)
    assert picture_of(uri).shape == (height, width, 3) == (50, 304, 3)


def picked_reference(frames: Iterable[np.ndarray], count: int) -> list[np.ndarray]:
    """What a strip shows: every frame made small, then some taken."""
    small = [shrink(frame, LARGEST_PX) for frame in frames]
    if len(small) <= count:
        return small
    return [small[place] for place in np.linspace(0, len(small) - 1, count).round().astype(int)]


def clip_of_noise(path: Path, frames: int) -> None:
    from dfm_engine.media.encode import encode_clip, rgb_to_i420

    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(frames).integers(0, 256, (frames, 18, 16, 3), dtype=np.uint8)
    i420 = rgb_to_i420(noise.repeat(8, axis=1).repeat(8, axis=2))  # 144 x 128
    encode_clip(i420, path, quality="c23", fps=25, comment="x" * 40)


@pytest.mark.parametrize("expected", [None, 0, 4, 23, 30])
@pytest.mark.parametrize("count", [1, 6, 22, 23, 10_000])
def test_the_frames_of_a_strip_are_picked_before_they_are_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: int | None, count: int
) -> None:
    from dfm_engine.media import decode

    clip_of_noise(tmp_path / "clip.mp4", 23)
    wanted = picked_reference(decode.read_frames(tmp_path / "clip.mp4"), count)
    converted: list[object] = []
    convert = decode._Convert.__call__
    monkeypatch.setattr(
        decode._Convert, "__call__", lambda self, f: converted.append(f) or convert(self, f)
    )
    found = load_strip(tmp_path / "clip.mp4", expected=expected, count=count)
    assert [frame.tobytes() for frame in found] == [frame.tobytes() for frame in wanted]
    assert found[0].shape == (128, 114, 3)
    if expected == 23:
        assert len(converted) == min(count, 23)  # of 23
    assert len(converted) <= 2 * min(count, 23)


@pytest.mark.parametrize(("end_s", "frames"), [(None, 12), (None, 60), (0.6, 12), (0.6, 60)])
def test_driving_frames_are_those_of_the_range_and_no_more_than_the_animation_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, end_s: float | None, frames: int
) -> None:
    from dfm_engine.media.decode import read_frames

    clip_of_noise(tmp_path / "driving/smile.mp4", 40)
    row = {"driving_path": "smile.mp4", "driving_start_s": 0.2, "driving_end_s": end_s}
    row |= {"fps": 25, "frames": frames, "driving_mirrored": False, "clip_id": "a"}
    stream = read_frames(tmp_path / "driving/smile.mp4", fps=25, start_s=0.2, end_s=end_s)
    wanted = picked_reference(list(stream)[:frames], 6)
    found = examples._driving_frames(row, tmp_path / "driving", 6)
    assert found is not None
    assert found.tobytes() == np.stack(wanted).tobytes()
    assert caplog.text == ""


def test_a_driving_clip_that_breaks_off_is_shown_up_to_there_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    frames = gradient(9)

    def breaks_off(*_: object, **__: object) -> Iterator[Callable[[], np.ndarray]]:
        yield from (functools.partial(frames.__getitem__, k) for k in range(9))
        raise MediaError("smile.mp4", "corrupt", "broke off")

    monkeypatch.setattr(examples, "read_shown", breaks_off)
    row = {"driving_path": "smile.mp4", "driving_start_s": 0.0, "driving_end_s": None}
    row |= {"fps": 25, "frames": 40, "driving_mirrored": False, "clip_id": "a"}
    found = examples._driving_frames(row, tmp_path, 3)
    assert found is not None
    assert found.tobytes() == frames[[0, 4, 8]].tobytes()
    assert caplog.text.count("broke off") == 1


def test_crop_repeats_the_border_outside_the_picture() -> None:
    picture = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    cropped = crop_box(picture, Box(-2.2, 1.0, 3.4, 6.0))
    assert cropped.shape == (5, 5, 3)
    assert (cropped[:, 0] == cropped[:, 2]).all()
    assert (cropped[0, 2] == picture[1, 0]).all()
    assert (cropped[4, 4] == picture[3, 2]).all()


def test_examples_come_from_the_manifest_and_its_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = make_dataset(out)
    rows = read_manifest(out / "manifest.parquet")
    examples = examples_from_manifest(
        out, rows, real_root=tmp_path / "gone", driving_root=tmp_path / "gone"
    )
    by_name = {example.name: example for example in examples}
    fake = by_name[made["fake"].clip_id]
    assert fake.result == out / f"data/fake/smile/{fake.name}.c23.mp4"
    assert fake.real == out / f"data/real/none/{made['real'].clip_id}.c23.mp4"
    assert [caption for caption, _ in fake.videos] == ["fake, c23", "real, c23"]
    assert (fake.source, fake.driving, fake.passed) == (None, None, True)
    refused = by_name[made["refused"].clip_id]
    assert refused.result == out / f"data/fake/smile/{refused.name}.raw.mp4"
    assert made["dropped"].clip_id not in by_name
    assert by_name[made["of a still"].clip_id].real is None
    assert examples[0].action is Action.NOD  # the paper's order of actions
    page = written(out, rows=rows, examples=examples)
    played = {path for example in examples for _, path in example.videos}
    assert len(list(page.all("video"))) == len(played) == 6  # four fakes, two real twins
    strips = [a for a in page.all("img") if "result" in (a["alt"] or "")]
    assert len(strips) == len(examples)
    video = next(page.all("video"))["src"] or ""
    data = base64.b64decode(video.removeprefix("data:video/mp4;base64,"))
    assert data == examples[0].videos[0][1].read_bytes()


def test_source_images_and_driving_frames_come_from_the_inputs(tmp_path: Path) -> None:
    from dfm_engine.media.encode import encode_clip, rgb_to_i420

    frames = np.zeros((10, 64, 64, 3), np.uint8)
    frames[:, :, 32:] = 200  # bright on the right
    frames[5] = 100  # the source frame
    for name in ("real/ann.mp4", "driving/smile.mp4"):
        (tmp_path / name).parent.mkdir()
        encode_clip(rgb_to_i420(frames), tmp_path / name, quality="raw", fps=25, comment="x" * 40)
    (entry,) = [
        values
        for values in files("a", path="data/fake/smile/a.c23.mp4", source_sha256="s")
        if values["quality"] == "c23"
    ]
    entry |= {"source_path": "ann.mp4", "source_frame": 5, "fps": 25, "frames": 4}
    entry |= {"source_is_still": False, "driving_path": "smile.mp4", "driving_mirrored": True}
    entry |= {"box_x0": 8.0, "box_y0": 8.0, "box_x1": 40.0, "box_y1": 40.0}
    (example,) = examples_from_manifest(
        tmp_path, [entry], real_root=tmp_path / "real", driving_root=tmp_path / "driving"
    )
    assert example.source is not None
    assert example.source.shape == (32, 32, 3)
    assert abs(float(example.source.mean()) - 100) < 3
    assert isinstance(example.driving, np.ndarray)
    assert example.driving.shape == (4, 64, 64, 3)
    assert example.driving[0, 32, 8].mean() > 150  # flipped back: bright on the left now
    assert example.driving[0, 32, 56].mean() < 50


def test_a_file_that_is_gone_or_damaged_leaves_a_gap(tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    example = Example(
        action=Action.NOD,
        name="n",
        result=bad,
        real=tmp_path / "gone.mp4",
        videos=(("fake", tmp_path / "gone.mp4"),),
    )
    page = written(tmp_path, examples=[example])
    assert not list(page.all("img"))
    assert not list(page.all("video"))
    assert "no source image" in page.text


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
