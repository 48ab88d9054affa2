"""Whose the cores were: what /proc/stat says, less what is our own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dfm_bench.bystanders import CoresWatch

TICKS = os.sysconf("SC_CLK_TCK")


def write_stat(path: Path, user: float, idle: float, guest: float = 0.0) -> None:
    columns = [user, 0, 0, idle, 7, 0, 0, 0, guest, 0]
    path.write_text(f"cpu  {' '.join(str(int(s * TICKS)) for s in columns)}\ncpu0 1 2 3\n")


def test_others_are_what_the_machine_did_and_we_did_not(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    write_stat(stat, 100, 1000)
    with CoresWatch(stat) as cores:
        started, began = time.perf_counter(), time.process_time()
        while time.process_time() < began + 0.2:
            pass
        wall_s = time.perf_counter() - started
        write_stat(stat, 100 + 3 * wall_s, 2000, guest=500)
    assert cores.own == pytest.approx(0.2 / wall_s, rel=0.2)
    assert cores.others is not None
    assert cores.own + cores.others == pytest.approx(3, rel=0.1)
    assert f"{cores.own:.2f} of 4 cores and others {cores.others:.2f}" in cores.sentence(4)


def test_a_child_that_has_ended_is_our_own(tmp_path: Path) -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    with CoresWatch(tmp_path / "absent") as cores:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", spin], check=True)
        wall_s = time.perf_counter() - started
    assert cores.own * wall_s >= 0.28
    assert cores.others is None
    assert cores.sentence(2) == ""
