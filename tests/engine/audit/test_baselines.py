"""A planted leak is flagged by the baseline that can see it; a clean set is not flagged at all."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from dfmtest_audit import make_set, row

from dfm_engine.audit.baselines import (
    BASELINES,
    MAX_CLIPS,
    MIN_PEOPLE,
    _sample,
    audit_or_note,
    audit_rows,
    features_of,
    names_of,
)
from dfm_engine.audit.command import run_audit
from dfm_engine.audit.features import read_features
from dfm_engine.audit.result import MEANINGS, AuditReport
from dfm_engine.audit.telling import most_telling
from dfm_engine.clip import Pixels
from dfm_engine.columns import Row
from dfm_engine.errors import MediaError, UsageError
from dfm_engine.report.audit_section import shortcuts


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    out = tmp_path_factory.mktemp("clean")
    return out, make_set(out, people=12, qualities=("raw", "c23", "c40"))


def _flagged(report: AuditReport) -> set[str]:
    return {row.baseline for row in report.flagged}


def _black_edge(frames: Pixels) -> Pixels:
    edged = frames.copy()
    edged[:, :2] = edged[:, -2:] = 0
    edged[:, :, :2] = edged[:, :, -2:] = 0
    return edged


def test_a_clean_set_is_not_flagged_and_says_how_small_it_is(clean) -> None:
    out, rows = clean
    report = audit_rows(rows, out)
    assert len(report.rows) == 15  # five baselines, three qualities
    assert {(r.baseline, r.quality) for r in report.rows} == {
        (name, quality) for name in BASELINES for quality in ("raw", "c23", "c40")
    }
    assert _flagged(report) == set()
    assert report.clips == report.clips_in_set == 24
    assert all((r.fakes, r.reals, r.people) == (12, 12, 12) for r in report.rows)
    assert "24 clips of 12 people" in report.notes[0]
    assert "wide intervals" in report.notes[1]
    widest = max(r.interval[1] - r.interval[0] for r in report.rows)
    assert widest > 0.3


def test_shuffled_labels_are_not_flagged_where_the_true_ones_are(tmp_path: Path) -> None:
    rows = make_set(tmp_path, change_fake=_black_edge)
    assert "border" in _flagged(audit_rows(rows, tmp_path))
    coin = np.random.default_rng(4)
    for person in sorted({r["identity"] for r in rows}):
        if coin.random() < 0.5:  # swap the twins' labels
            for r in rows:
                if r["identity"] == person:
                    r["label"] = "real" if r["label"] == "fake" else "fake"
    assert _flagged(audit_rows(rows, tmp_path)) == set()


@pytest.mark.parametrize(
    ("leak", "seen_by", "not_by"),
    [
        ({"fake_encoder": {"crf": "30"}}, {"codec", "container"}, {"first frame"}),
        ({"fake_encoder": {"preset": "ultrafast"}}, {"codec", "container"}, {"first frame"}),
        ({"change_fake": _black_edge}, {"border"}, {"container"}),
        ({"fake_comment": "x"}, {"container"}, {"codec", "border", "first frame", "file size"}),
        (
            {"change_fake": lambda frames: (frames * 0.5).astype(np.uint8)},
            {"first frame"},
            {"container"},
        ),
    ],
    ids=["crf", "preset", "border", "comment length", "brightness"],
)
def test_a_planted_leak_is_flagged_by_what_can_see_it(
    tmp_path: Path, leak: dict, seen_by: set[str], not_by: set[str]
) -> None:
    report = audit_rows(make_set(tmp_path, **leak), tmp_path)
    assert seen_by <= _flagged(report)
    assert not not_by & _flagged(report)
    assert "better than chance" in report.verdict()


@pytest.mark.parametrize(
    ("leak", "baseline", "telling"),
    [
        ({"fake_encoder": {"crf": "40"}}, "codec", r"^(mean )?quantiser.* \(larger in 100% of"),
        (
            {"fake_comment": "x"},
            "container",
            r"^bytes of the comment: .* \(larger in 100% of pairs",
        ),
        ({"change_fake": _black_edge}, "border", r"^(luma|step to the next) of ring [12]: "),
        (
            {"change_fake": lambda frames: (frames * 0.5).astype(np.uint8)},
            "first frame",
            r"^luma of square \d, \d of 8: .*\(smaller in",
        ),
    ],
)
def test_a_flag_names_what_tells_most_and_what_can_be_done(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    leak: dict,
    baseline: str,
    telling: str,
) -> None:
    report = audit_rows(make_set(tmp_path, **leak), tmp_path)
    (found,) = (r for r in report.rows if r.baseline == baseline)
    assert re.search(telling, found.telling), found.telling
    report.print(tmp_path)
    said = " ".join(capsys.readouterr().err.split())
    page = shortcuts(report)
    for name in BASELINES:
        assert (f"{name} is above chance." in said) == (name in _flagged(report))
        assert (MEANINGS[name] in said) == (name in _flagged(report))
        assert (name in report.to_json()["meanings"]) == (name in _flagged(report))
        assert (f"<b>{name}</b>" in page) == (name in _flagged(report))
    assert f"c23: {found.telling}" in said


def test_what_tells_most_is_the_number_that_splits_best() -> None:
    fake = np.arange(4) % 2 == 1
    features = np.array([[5.0, 0, 1, 7], [5, 1, 9, 3], [5, 0, 2, 8], [5, 0, 8, 4]])
    names = ["constant", "poor", "good", "good the other way"]
    assert most_telling(features, names, fake) == (
        "good: 8.5 in fakes, 1.5 in real clips (larger in 100% of pairs)"
    )
    assert most_telling(features[:, [0, 1, 3]], ["a", "b", "c"], fake) == (
        "c: 3.5 in fakes, 7.5 in real clips (smaller in 100% of pairs)"
    )
    assert most_telling(features[:, :1], ["constant"], fake) == ""


def test_file_size_alone_is_flagged_from_the_manifest(clean) -> None:
    out, rows = clean
    grown = [r | {"size_bytes": r["size_bytes"] * (3 if r["label"] == "fake" else 1)} for r in rows]
    report = audit_rows(grown, out)
    assert {r.quality for r in report.flagged if r.baseline == "file size"} == {"raw", "c23", "c40"}
    assert _flagged(report) == {"file size"}


def test_the_same_set_gives_the_same_report(clean) -> None:
    out, rows = clean
    first, again = audit_rows(rows, out), audit_rows(rows, out)
    assert dataclasses.replace(again, seconds=first.seconds) == first


def _bare(people: int, fakes: int) -> list[Row]:
    made: list[Row] = []
    for person in range(people):
        for fake in range(fakes):
            ids = f"f{person}-{fake}", f"r{person}-{fake}"
            who = {"identity": f"p{person}", "quality": "c23"}
            made.append(row(*ids, f"{ids[0]}.mp4", 10, label="fake", **who))
            made.append(row(ids[1], "", f"{ids[1]}.mp4", 10, label="real", **who))
    return made


def _looked_at(rows: Sequence[Row], tmp_path: Path, most: int) -> list[str]:
    """Which files an audit opens: all fail, and it counts them."""
    seen: list[str] = []

    class Spy(type(tmp_path)):
        def __truediv__(self, name):
            seen.append(str(name))
            return super().__truediv__(name)

    audit_rows(rows, Spy(tmp_path), max_clips=most)
    return seen


def test_a_large_set_is_sampled_pair_by_pair_over_as_many_people_as_possible(
    tmp_path: Path,
) -> None:
    rows = _bare(people=20, fakes=50)
    seen = _looked_at(rows, tmp_path, 40)
    assert len(seen) == 40
    fakes = {name for name in seen if name.startswith("f")}
    assert {f"r{name[1:]}" for name in fakes} == {name for name in seen if name.startswith("r")}
    assert len({name.split("-")[0] for name in fakes}) == 20  # one pair of everybody
    assert sorted(_looked_at(rows[::-1], tmp_path, 40)) == sorted(seen)
    report = audit_rows(rows, tmp_path, max_clips=40)
    assert (report.clips, report.clips_in_set, report.unreadable) == (40, 2000, 40)
    assert "40 of 2000 clips (40 of 2000 files), drawn by their ids" in report.notes[0]


def test_of_60_000_files_an_audit_reads_1_200() -> None:
    rows = [r | {"quality": q} for r in _bare(200, 50) for q in ("raw", "c23", "c40")]
    assert len(rows) == 60_000
    chosen = _sample(rows, MAX_CLIPS)
    assert sum(r["clip_id"] in chosen for r in rows) == 1200
    assert {r["identity"] for r in rows if r["clip_id"] in chosen} == {f"p{n}" for n in range(200)}


def test_refused_and_extra_clips_are_not_in_the_set(tmp_path: Path) -> None:
    rows = _bare(people=8, fakes=1)
    rows[0]["outcome"] = "refused"
    rows[2]["is_extra"] = True
    rows[4]["path"] = None
    seen = _looked_at(rows, tmp_path, 400)
    assert len(seen) == 13
    assert not {"f0-0.mp4", "f1-0.mp4", "f2-0.mp4"} & set(seen)


def test_too_few_people_are_a_note_and_no_file_is_read(tmp_path: Path) -> None:
    report = audit_rows(_bare(people=MIN_PEOPLE - 1, fakes=3), tmp_path)
    assert report.rows == ()
    assert "15 fake and 15 real files of 5 people" in report.notes[0]
    assert report.unreadable == 0
    assert report.verdict() == "not audited"


def test_a_file_that_cannot_be_read_costs_that_file(clean, tmp_path: Path) -> None:
    out, rows = clean
    rows = [dict(r) for r in rows if r["quality"] == "c23"]
    (tmp_path / "cut.mp4").write_bytes((out / rows[0]["path"]).read_bytes()[:400])
    rows[0]["path"] = str(tmp_path / "cut.mp4")
    rows[5]["path"] = "data/absent.mp4"
    report = audit_rows(rows, out)
    assert report.unreadable == 2
    assert {r.fakes + r.reals for r in report.rows} == {22}
    assert "2 files could not be read, the first: " in report.notes[-1]
    with pytest.raises(MediaError, match="does not decode"):
        read_features(tmp_path / "cut.mp4")


def test_an_audit_never_ends_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean
) -> None:
    out, rows = clean
    monkeypatch.setattr(
        "dfm_engine.audit.baselines._test", lambda *a, **k: np.linalg.inv(np.zeros((2, 2)))
    )
    report = audit_or_note(rows, out)
    assert report.rows == ()
    assert "The audit failed: LinAlgError" in report.notes[0]
    assert "audit failed" in shortcuts(report)
    assert audit_or_note([{}], tmp_path).notes[0].startswith("The audit failed: KeyError")


def test_features_are_what_the_file_holds(tmp_path: Path) -> None:
    """Quantisers against the crf, planes against the painted picture."""

    def painted(frames: Pixels) -> Pixels:
        frames = np.full_like(frames, 128)
        frames[:, :3] = frames[:, -3:] = frames[:, :, :3] = frames[:, :, -3:] = 255
        return frames

    rows = make_set(tmp_path, people=1, qualities=("c23", "c40"), change_fake=painted)
    files = {(r["label"], r["quality"]): read_features(tmp_path / r["path"]) for r in rows}
    low, high = files["real", "c23"], files["real", "c40"]
    assert 10 < high.codec[-3] - low.codec[-3] < 24  # mean quantiser: 17 crf apart
    assert low.codec[9:12].sum() == pytest.approx(1)  # shares of I, P and B pictures
    assert low.codec[9] == pytest.approx(1 / 12)
    fake = files["fake", "c23"]
    white, grey = 235, 16 + 128 * 219 / 255
    assert fake.border[:2] == pytest.approx([white, white], abs=3)
    assert fake.border[4:8] == pytest.approx([grey] * 4, abs=3)
    steps = fake.border[16:24]
    assert steps.argmax() == 2  # between the third ring and the fourth
    luma = fake.first_frame[:64].reshape(8, 8)
    assert luma[3, 3] == pytest.approx(grey, abs=2)
    expected = (white * (64 - 25) + grey * 25) / 64  # of the corner square of 8 x 8 pixels
    assert luma[0, 0] == pytest.approx(expected, abs=3)
    assert fake.first_frame[64:] == pytest.approx(128, abs=2)
    assert any(fact.startswith("options=cabac=1") for fact in fake.facts)
    assert not any("comment" in fact for fact in fake.facts)
    assert len(features_of("first frame", [(rows[0], low)])[0]) == 96
    for name in BASELINES:
        assert len(names_of(name, [(rows[0], low)])) == features_of(name, [(rows[0], low)]).shape[1]
    named = dict(zip(names_of("border", []), fake.border, strict=True))
    assert named["step to the next of ring 3"] == steps.max()
    assert named["luma of ring 1"] == pytest.approx(white, abs=3)
    named = dict(zip(names_of("codec", []), high.codec, strict=True))
    assert named["share of I pictures"] == pytest.approx(1 / 12)
    assert named["mean quantiser"] == high.codec[-3]
    assert named["log of the first packet"] > named["mean log of the packets"]


def test_the_command_reads_a_finished_set(
    tmp_path: Path, clean, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=r"holds no manifest\.parquet"):
        run_audit(tmp_path)
    out, rows = clean
    (out / "manifest.parquet").touch()
    monkeypatch.setattr("dfm_engine.audit.command.read_manifest", lambda path: rows)
    counted: list[tuple[int, int]] = []
    report = run_audit(out, progress=lambda done, total: counted.append((done, total)))
    assert counted[-1] == (72, 72)
    said = json.loads(json.dumps(report.to_json()))
    assert said["flagged"] == []
    assert said["rows"][0]["flagged"] is False
    report.print(out)
    text = capsys.readouterr().err
    assert "none of 15 shortcuts does better than chance" in text
    assert "0." in text.splitlines()[1]


def test_the_page_shows_every_row_and_explains_a_flag(tmp_path: Path) -> None:
    report = audit_rows(make_set(tmp_path, fake_comment="x"), tmp_path)
    page = shortcuts(report)
    assert page.count("above chance") == 1
    assert "A flag is a question" in page
    assert "1.00 (1.00–1.00)" in page
    assert "1 of 5 shortcuts do better than chance: container" in page


def test_a_build_says_in_its_report_what_the_audit_found(whole: Path) -> None:
    page = (whole / "report.html").read_text()
    assert '<section id="audit"><h2>Shortcuts</h2>' in page
    assert "of 3 people; both classes and 6 people are needed" in page
