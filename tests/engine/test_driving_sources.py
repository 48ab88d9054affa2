"""Readers of driving clips: which action, which range, and what is left out and why."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from dfmtest_sources import put

from dfm_engine.actions import Action
from dfm_engine.errors import UsageError
from dfm_engine.sources import list_driving


def test_driving_folders_are_read_by_the_authors_names_and_aliases(tmp_path: Path) -> None:
    authors = [
        "blink",
        "yaw",
        "mouth",
        "nod",
        "up",
        "right_slope",
        "left_slope",
        "smile",
        "surpise",
        "embarrass",
    ]
    for folder in authors:
        put(tmp_path, f"{folder}/take1.mp4")
    put(tmp_path, "ann/Look Up/take2.mp4")
    put(tmp_path, "dance/x.mp4")
    put(tmp_path, "smile/photo.jpg")
    listing = list_driving(tmp_path)
    assert {clip.path.parent.name: clip.action for clip in listing.clips} == {
        "blink": Action.BLINK,
        "yaw": Action.YAW,
        "mouth": Action.OPEN_MOUTH,
        "nod": Action.NOD,
        "up": Action.LOOK_UP,
        "Look Up": Action.LOOK_UP,
        "right_slope": Action.RIGHT_SLOPE,
        "left_slope": Action.LEFT_SLOPE,
        "smile": Action.SMILE,
        "surpise": Action.SURPRISE,
        "embarrass": Action.EMBARRASSMENT,
    }
    assert listing.clips[0].take == "take2"
    assert listing.clips[0].end_s is None
    assert any("1 clips in 'dance' left out" in warning for warning in listing.warnings)
    assert listing.stills == 1


def test_a_driving_path_that_names_two_actions_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, "smile/left/a.mp4")
    put(tmp_path, "smile/Smile/b.mp4")
    listing = list_driving(tmp_path)
    assert [clip.path.name for clip in listing.clips] == ["b.mp4"]
    assert any("'smile/left'" in warning for warning in listing.warnings)


def test_no_driving_clip_is_a_usage_error_that_says_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no driving clip"):
        list_driving(tmp_path)
    put(tmp_path, "dance/x.mp4")
    with pytest.raises(UsageError, match="1 clips in 'dance' left out"):
        list_driving(tmp_path)


def test_a_driving_table_fills_every_field(tmp_path: Path) -> None:
    for name in ("long.mp4", "b.mp4"):
        put(tmp_path, name)
    table = put(
        tmp_path,
        "driving.csv",
        "\ufefffile,action,take,actor,mirrored,start_s,end_s,consent\n"
        "long.mp4,Right Slope,2,A,yes,4.5,6,form 12\n"
        "long.mp4,surpise,1,A,,0,2.5,form 12\n"
        "\n"
        f"{tmp_path / 'b.mp4'},blink,,,false,,,\n",
    )
    for listing in (list_driving(table), list_driving(tmp_path)):
        assert listing.reader == "csv"
        rows = [
            (c.path.name, c.action, c.take, c.actor, c.mirrored, c.start_s, c.end_s, c.consent)
            for c in listing.clips
        ]
        assert rows == [
            ("b.mp4", Action.BLINK, "b", "", False, 0.0, None, ""),
            ("long.mp4", Action.SURPRISE, "1", "A", False, 0.0, 2.5, "form 12"),
            ("long.mp4", Action.RIGHT_SLOPE, "2", "A", True, 4.5, 6.0, "form 12"),
        ]
        assert listing.clips[1].sha256 == hashlib.sha256(b"long.mp4").hexdigest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.mp4\n", "line 1: column 'action' is absent"),
        ("file,action,start\na.mp4,blink,0\n", "unknown column 'start'; did you mean 'start_s'?"),
        ("file,action,action\na.mp4,blink,nod\n", "column 'action' stands there twice"),
        ("file,action\na.mp4,dance\n", "line 2, column action: 'dance' is no action; known are"),
        ("file,action\na.mp4,blink\nb.mp4,nod\n", "line 3, column file"),
        ("file,action\n../x.mp4,nod\n", "line 2, column file: '../x.mp4' leads out of"),
        ("file,action\nsub/../../x.mp4,nod\n", "leads out of"),
        ("file,action\n/etc/passwd,nod\n", "leads out of"),
        ("file,action\n ,nod\n", "line 2, column file: must name a file"),
        ("file,action\na\0.mp4,nod\n", "must name a file"),
        ("file,action\n.,nod\n", "leads out of"),
        ("file,action\nsub,nod\n", "is no regular file"),
        ("file,action,mirrored\na.mp4,nod,maybe\n", "column mirrored: must be true or false"),
        ("file,action,start_s\na.mp4,nod,1:30\n", "column start_s: must be seconds"),
        ("file,action,start_s\na.mp4,nod,-1\n", "column start_s: must be seconds"),
        ("file,action,start_s\na.mp4,nod,nan\n", "column start_s: must be seconds"),
        ("file,action,start_s,end_s\na.mp4,nod,2,2\n", "column end_s: must lie after start_s"),
        ("file,action\na.mp4,nod,1\n", "line 2: 3 cells under 2 columns"),
        ("file,action\n", "no rows under the header"),
        ("", "column 'file' is absent; found nothing"),
        ('file,action\n"a.mp4,nod\n', "not a comma-separated table"),
    ],
)
def test_a_wrong_driving_table_names_line_and_column(
    tmp_path: Path, text: str, message: str
) -> None:
    put(tmp_path, "data/a.mp4")
    put(tmp_path, "x.mp4")
    (tmp_path / "data/sub").mkdir()
    table = put(tmp_path, "data/takes.csv", text)
    with pytest.raises(UsageError) as caught:
        list_driving(table)
    assert message in str(caught.value)


def test_a_driving_table_reads_names_that_are_not_utf8(tmp_path: Path) -> None:
    put(tmp_path, os.fsdecode(b"bad\xff.mp4"), "1")
    table = tmp_path / "t.csv"
    table.write_bytes(b"file,action\nbad\xff.mp4,nod\n")
    assert list_driving(table).clips[0].take == "bad\\udcff"


def test_equal_driving_content_is_listed_once_per_action_and_range(tmp_path: Path) -> None:
    put(tmp_path, "nod/1.mp4", "same")
    put(tmp_path, "nod/2.mp4", "same")
    put(tmp_path, "yaw/1.mp4", "same")
    listing = list_driving(tmp_path)
    assert [clip.path.relative_to(tmp_path).as_posix() for clip in listing.clips] == [
        "nod/1.mp4",
        "yaw/1.mp4",
    ]
    assert any("one content stands under nod, yaw" in warning for warning in listing.warnings)
    assert [(a.name, b.name) for a, b in listing.duplicates] == [("2.mp4", "1.mp4")]
