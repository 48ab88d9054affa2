"""A probe that kills its worker costs its file alone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import dfmtest_probe
import pytest

from dfm_engine.errors import MediaError
from dfm_engine.media.probe import probe
from dfm_engine.media.probe_workers import AHEAD, CRASH_ATTEMPTS, probe_all
from dfm_engine.recipe import Limits


def test_a_file_that_kills_its_worker_is_named_and_the_others_are_probed(tmp_path: Path):
    names = [f"fine{number}" for number in range(2 * AHEAD)]
    names[3], names[4], names[9] = "kill1", "kill2", "once1"
    paths = [tmp_path / name for name in names]
    found = list(probe_all(paths, limits=Limits(), workers=2, look=dfmtest_probe.look))
    assert [index for index, _, _ in found] == list(range(len(paths)))
    for index, outcome, attempts in found:
        if names[index].startswith("kill"):
            assert isinstance(outcome, MediaError)
            assert (outcome.path, outcome.kind) == (paths[index], "decoder-crash")
            assert attempts == CRASH_ATTEMPTS
        else:
            assert isinstance(outcome, tuple)
            name, _, has_torch = outcome
            assert name == names[index]
            assert attempts == (names[index] == "once1")
            assert not has_torch


def test_workers_give_what_a_probe_in_this_process_gives(tmp_path: Path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_bytes(b"no video " * 50)
    paths = [tmp_path / name for name in ("empty.mp4", "absent.mp4", "text.mp4")]
    found = list(probe_all(paths, limits=Limits(), workers=1))
    assert found == [(index, probe(path), 0) for index, path in enumerate(paths)]
    assert list(probe_all([], limits=Limits(), workers=1)) == []


def test_leaving_early_ends_the_workers_at_once(tmp_path: Path):
    paths = [tmp_path / "fine"] + [tmp_path / f"pid{number}" for number in range(3)]
    rows = probe_all(paths, limits=Limits(), workers=1, look=dfmtest_probe.look)
    _, (_, pid, _), _ = next(rows)
    os.kill(pid, signal.SIGSTOP)  # as busy as can be
    rows.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path):
    paths = [tmp_path / "pid"]
    parent = os.fork()
    if parent == 0:
        list(probe_all(paths, limits=Limits(), workers=1, look=dfmtest_probe.hang))
        os._exit(0)
    deadline = time.monotonic() + 60
    while not (paths[0].exists() and paths[0].read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    worker = int(paths[0].read_text())
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    while is_running(worker):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
