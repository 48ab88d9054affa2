"""Verdict files from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfm_engine.errors import InputError
from dfm_engine.screen import import_verdicts


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "verdicts.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_verdicts_are_found_by_clip_id_and_by_the_end_of_a_path(tmp_path):
    path = write(
        tmp_path,
        "clip_id,path,gate,verdict,score\n"
        "abc,,liveness,pass,0.93\n"
        ",fake/nod/x.raw.mp4,liveness,FAIL,\n"
        "abc,,action,fail,\n",
    )
    verdicts = import_verdicts(path)
    assert len(verdicts) == 3
    assert [(v.gate, v.passed, v.score) for v in verdicts.of("abc")] == [
        ("liveness", True, 0.93),
        ("action", False, None),
    ]
    by_path = verdicts.of("other", "/out/data/fake/nod/x.raw.mp4")
    assert [(v.gate, v.passed) for v in by_path] == [("liveness", False)]
    assert verdicts.of("other", "/out/data/fake/nod/ax.raw.mp4") == ()
    assert verdicts.of("") == ()


def test_a_repeated_row_counts_once(tmp_path):
    path = write(tmp_path, "clip_id,gate,verdict\na,g,pass\na,g,pass\n")
    assert len(import_verdicts(path)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'gate'"),
        ("clip_id,gate,verdit\n", "unknown column 'verdit'"),
        ("gate,verdict\n", "needs a column 'clip_id' or 'path'"),
        ("clip_id,gate,verdict\n,g,pass\n", "line 2: names no clip_id"),
        ("clip_id,gate,verdict\na,,pass\n", "line 2: names no gate"),
        (
            "clip_id,gate,verdict\na,g,maybe\n",
            "line 2: verdict must be pass or fail, found 'maybe'",
        ),
        ("clip_id,gate,verdict,score\na,g,pass,high\n", "score must be a number, found 'high'"),
        ("clip_id,gate,verdict,score\na,g,pass,nan\n", "score must be a number, found 'nan'"),
        ("clip_id,gate,verdict\na,g,pass,1\n", "more cells than columns"),
        ("clip_id,gate,verdict\na,g,pass\na,g,fail\n", "both pass and fail of 'a'"),
    ],
)
def test_a_bad_file_is_refused_by_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        import_verdicts(write(tmp_path, text))


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(InputError, match=r"reading verdicts from .*absent\.csv"):
        import_verdicts(tmp_path / "absent.csv")
