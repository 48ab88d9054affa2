"""All benchmarks unattended: one that fails or hangs costs its own report and no other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dfm_bench import everything
from dfm_engine.errors import UsageError

FAKE = """
import pathlib, sys, time
words = sys.argv[1:]
verb, out = words[words.index("bench") + 1], pathlib.Path(words[words.index("--out") + 1])
if verb == "hangs":
    time.sleep(1000)
if verb == "fails":
    sys.stderr.write("dfm-engine: no numbers for this\\n")
    sys.exit(5)
(out / f"{verb}-page.html").write_text(" ".join(words))
"""


@pytest.fixture(autouse=True)
def fake_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m dfm_engine.cli bench ...` becomes a small script."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)

    def popen(command: list[str], popen=subprocess.Popen, **options):
        if command[1:3] == ["-m", "dfm_engine.cli"]:
            command = [sys.executable, str(script), *command[3:]]
        return popen(command, **options)  # git and nvidia-smi among them

    monkeypatch.setattr(everything.subprocess, "Popen", popen)


def test_a_failure_costs_its_own_report_alone(tmp_path: Path):
    out = tmp_path / "out"
    result = everything.run_everything(
        out=out, device="cpu", quick=True, limit_s=60, verbs=("first", "fails", "last")
    )
    assert [(o.verb, o.exit_code, o.pages) for o in result.outcomes] == [
        ("first", 0, ("first-page.html",)),
        ("fails", 5, ()),
        ("last", 0, ("last-page.html",)),
    ]
    assert result.exit_code == 5
    assert "--device cpu --quick" in (out / "last-page.html").read_text()
    page = (out / "report.html").read_text()
    assert '<a href="last-page.html">' in page
    assert "exit 5: dfm-engine: no numbers for this" in page
    assert json.loads((out / "report.json").read_text()) == result.to_json()


def test_one_that_hangs_is_stopped_and_what_is_left_is_said(tmp_path: Path):
    result = everything.run_everything(
        out=tmp_path / "out", device="cpu", quick=False, limit_s=3, verbs=("first", "hangs", "last")
    )
    assert [o.exit_code for o in result.outcomes] == [0, None, None]
    assert result.exit_code == 1
    assert result.outcomes[1].words.startswith("stopped after")


def test_nothing_to_do_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="nothing to do"):
        everything.run_everything(out=tmp_path, device="cpu", quick=True, limit_s=0)
