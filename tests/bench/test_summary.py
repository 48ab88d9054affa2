"""Tables of the README are those of the committed reports."""

from __future__ import annotations

import json
from pathlib import Path

from dfm_bench.summary import REGION, summary, updated

ROW = {
    "shape": [4, 3, 256, 256],
    "unit": "frames/s",
    "dtype": "float32",
    "ceiling": None,
    "ceiling_of": "",
    "share": None,
    "median_s": 1.0,
}
FACTS = {"gpus": [], "cores": 2.0, "cpu": "AMD EPYC", "date": "2026-01-02"}


def test_the_readmes_numbers_are_those_of_the_reports(repo: Path) -> None:
    text = (repo / "README.md").read_text(encoding="utf-8")
    assert REGION.search(text), "the README names no report"
    assert updated(text, repo) == text, "run: python -m dfm_bench.summary README.md"


def test_each_way_has_its_best_batch_and_its_ratio_to_the_loop(tmp_path: Path) -> None:
    rows = [
        {**ROW, "name": "generator", "variant": "reference loop", "rate": 2.0},
        {**ROW, "name": "generator", "variant": "fast", "rate": 5.0},
        {**ROW, "name": "generator", "variant": "fast", "rate": 7.0, "shape": [8, 3, 256, 256]},
        {**ROW, "name": "generator", "variant": "", "rate": 9.0},  # a ceiling of the build
        {**ROW, "name": "x264", "variant": "c23", "rate": 300.0, "ceiling": 600, "share": 0.5},
    ]
    report = {"facts": FACTS, "command": "dfm-engine bench x", "verb": "throughput", "rows": rows}
    found = summary(report, "results/a.json")
    assert found.startswith("2 cores of AMD EPYC, 2026-01-02; `dfm-engine bench x` ([all of it](")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found.splitlines()[4:]]
    assert [line[:3] for line in lines] == [
        ["generator: reference loop, batch 4", "2.00 frames/s", "1x"],
        ["generator: fast, batch 8", "7.00 frames/s", "3.5x"],
        ["x264 c23", "300 frames/s", ""],
    ]
    assert lines[2][4] == "50%"
    (tmp_path / "a.json").write_text(json.dumps(report))
    text = "before\n<!-- results: a.json -->\nold\n<!-- end of results -->\nafter\n"
    once = updated(text, tmp_path)
    assert "old" not in once
    assert "3.5x" in once
    assert updated(once, tmp_path) == once
    assert (once.startswith("before\n"), once.endswith("\nafter\n")) == (True, True)


def test_a_kernel_is_held_against_a_copy_and_torch() -> None:
    rows = [
        {**ROW, "name": "copy", "variant": "", "rate": 3000.0},
        {**ROW, "name": "warp", "variant": "kernel", "rate": 2400.0, "share": 0.8},
        {**ROW, "name": "warp", "variant": "torch", "rate": 300.0, "median_s": 8.0},
    ]
    facts = {**FACTS, "gpus": ["H100"]}
    report = {"facts": facts, "command": "c", "verb": "kernels", "rows": rows}
    found = summary(report, "r.json")
    assert found.startswith("H100, 2 cores of AMD EPYC")
    assert found.splitlines()[-1].split("|")[1:-1][0].strip() == "warp"
    assert [c.strip() for c in found.splitlines()[-1].split("|")[2:-1]] == [
        *("2 400 GB/s", "80%", "8.0x", ""),
    ]
