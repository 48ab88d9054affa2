"""`bench compare` finds what became slower, and nothing that only wavers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dfm_bench.compare import run_compare
from dfm_engine.errors import InputError

FACTS = {
    "cpu": "a processor",
    "cores": 2,
    "gpus": [],
    "driver": None,
    "versions": {"dfm-engine": "0.1.0", "torch": "2.14.1"},
}


def row(name: str, rate: float, *, spread: float = 0.02, variant: str = "") -> dict[str, object]:
    call_s = 10 / rate
    return {
        "name": name,
        "variant": variant,
        "device": "cpu",
        "shape": [8, 3],
        "dtype": "float32",
        "unit": "frames/s",
        "rate": rate,
        "median_s": call_s,
        "p5_s": call_s * (1 - spread),
        "p95_s": call_s * (1 + spread),
    }


def write(path: Path, *rows: dict[str, object], **facts: object) -> Path:
    report = {"schema_version": 1, "verb": "build", "facts": {**FACTS, **facts}, "rows": rows}
    path.write_text(json.dumps(report))
    return path


def test_a_row_that_lost_more_than_allowed_is_a_regression(tmp_path):
    before = write(tmp_path / "a.json", row("decode", 100), row("crop", 50, variant="fast"))
    after = write(tmp_path / "b.json", row("decode", 85), row("crop", 49, variant="fast"))
    found = run_compare(before, after, max_regression=0.1)
    assert [change.name for change in found.regressions] == ["decode 8x3"]
    assert found.changes[0].change == pytest.approx(-0.15)
    assert found.exit_code == 5
    assert "| decode 8x3 | 100 frames/s | 85.0 frames/s | -15.0% | slower |" in found.markdown()
    assert run_compare(before, after, max_regression=0.2).exit_code == 0


def test_a_loss_within_the_spread_of_the_calls_is_no_regression(tmp_path):
    before = write(tmp_path / "a.json", row("decode", 100, spread=0.3))
    after = write(tmp_path / "b.json", row("decode", 85, spread=0.3))
    assert run_compare(before, after, max_regression=0.1).exit_code == 0


def test_a_row_that_is_gone_is_a_failure_and_a_new_one_is_not(tmp_path):
    one = write(tmp_path / "a.json", row("decode", 100))
    two = write(tmp_path / "b.json", row("decode", 100), row("crop", 50))
    gone = run_compare(two, one, max_regression=0.1)
    assert (gone.missing, gone.exit_code) == (("crop 8x3",), 5)
    new = run_compare(one, two, max_regression=0.1)
    assert (new.added, new.exit_code) == (("crop 8x3",), 0)


def test_another_machine_is_named_and_another_commit_is_not(tmp_path):
    before = write(tmp_path / "a.json", row("decode", 100), commit="1")
    versions = {"dfm-engine": "0.2.0", "torch": "2.15.0"}
    after = write(tmp_path / "b.json", row("decode", 100), commit="2", versions=versions, cores=4)
    found = run_compare(before, after, max_regression=0.1)
    assert found.different_facts == ("cores 2 and 4", "torch 2.14.1 and 2.15.0")


@pytest.mark.parametrize("place", [0, 1])
def test_rows_that_repeat_another_are_refused_by_name(tmp_path, place):
    """Else the last of them would stand for all, and hide what became slower."""
    good = write(tmp_path / "good.json", row("decode", 100), row("crop", 50))
    twice = write(tmp_path / "twice.json", row("decode", 10), row("crop", 50), row("decode", 100))
    pair = [good, good]
    pair[place] = twice
    with pytest.raises(InputError, match=r"twice\.json: 1 rows .* 'decode 8x3' in frames/s on cpu"):
        run_compare(*pair, max_regression=0.1)


def test_what_differs_from_run_to_run_tells_no_rows_apart(tmp_path):
    before = write(tmp_path / "a.json", row("decode", 100) | {"note": "NVDEC 80 % busy"})
    after = write(tmp_path / "b.json", row("decode", 100) | {"note": "NVDEC 81 % busy"})
    found = run_compare(before, after, max_regression=0.1)
    assert (found.missing, found.added, found.exit_code) == ((), (), 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "no report"),
        ("{", "reading the bench report"),
        ('{"schema_version": 2, "verb": "", "facts": {}, "rows": []}', "schema version 2"),
        ('{"schema_version": 1, "verb": "", "facts": {}, "rows": [{}]}', "damaged"),
        ('{"schema_version": 1, "verb": "x", "facts": {}, "rows": []}', "no row in common"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, text, words):
    bad = tmp_path / "bad.json"
    bad.write_text(text)
    with pytest.raises(InputError, match=words):
        run_compare(write(tmp_path / "a.json", row("decode", 1)), bad, max_regression=0.1)


def test_a_rate_of_nothing_is_damage(tmp_path):
    path = write(tmp_path / "a.json", row("decode", 1) | {"rate": float("nan")})
    with pytest.raises(InputError, match="not a positive number"):
        run_compare(path, path, max_regression=0.1)
