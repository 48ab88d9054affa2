"""A process that Ctrl-C meets in `overlap` ends by its own exit code, whatever it was at."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("how", ["Ahead(work(), depth=1", "MapAhead(hold, [1], workers=1, depth=1"])
def test_a_process_that_is_interrupted_while_leaving_ends_by_its_own_exit_code(how: str):
    script = f"""
import os, signal, sys, threading, time
from dfm_engine.interrupts import Interrupted, stop_on_signals
from dfm_engine.overlap import Ahead, MapAhead

entered = threading.Event()

def hold(_):
    entered.set()
    time.sleep(0.5)
    print("done", flush=True)

def work():
    yield hold(0)

def interrupt():
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)

try:
    with stop_on_signals():
        with {how}, name="x"):
            entered.wait()
            threading.Thread(target=interrupt).start()
except Interrupted as error:
    print("interrupted", flush=True)
    sys.exit(error.exit_code)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()) == (130, ["interrupted", "done"]), done.stderr


@pytest.mark.parametrize(
    "how", ["Ahead(items(), depth=4", "MapAhead(int, items(), workers=8, depth=32"]
)
def test_a_process_that_is_interrupted_while_threads_start_ends(how: str):
    script = f"""
import os, signal, sys, time
from dfm_engine.interrupts import Interrupted, stop_on_signals
from dfm_engine.overlap import Ahead, MapAhead

def items():
    os.kill(os.getpid(), signal.SIGINT)  # while the others are being started
    number = 0
    while True:
        yield number
        number += 1

try:
    with stop_on_signals():
        with {how}, name="x"):
            time.sleep(20)
except Interrupted as error:
    sys.exit(error.exit_code)
"""
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
        assert done.returncode == 130
