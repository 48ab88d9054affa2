"""`bench throughput --quick` as anybody runs it: gates passed, one report in three forms."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_quick_form_leaves_a_report_of_what_passed_its_gates(tmp_path: Path):
    command = [sys.executable, "-m", "dfm_engine.cli", "bench", "throughput", "--quick"]
    command += ["--device", "cpu", "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    variants = [row["variant"] for row in report["rows"] if row["name"] == "generator"]
    assert variants[:4] == [
        *("reference loop", "torch fp32", "torch fp32, rewritten", "onnxruntime fp32")
    ]
    assert {"build"} == {row["name"] for row in report["rows"][:2]}
    assert report["outlook"]["limit"] in {stage["name"] for stage in report["stages"]}
    for name in ("torch fp32", "onnxruntime fp32"):
        assert f"{name}: " in report["remark"]
        assert "from the loop at most" in report["remark"]
    suffixes = {path.suffix for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert suffixes == {".json", ".md", ".html"}
