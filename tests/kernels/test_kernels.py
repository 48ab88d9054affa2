"""The kernels run here too: interpreted by Triton on a CPU, natively on a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PARITY = [Path(__file__).with_name(name) for name in ("kernel_parity.py", "epilogue_parity.py")]
FAST, ALL = 79, 120  # of them; fewer means that some were not found


def run_parity(marked: str, **environment: str) -> str:
    """The parity tests in a process of their own: Triton decides at import how it runs."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, *PARITY],
        env={**os.environ, **environment},
        cwd=PARITY[0].parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


def passed(output: str) -> int:
    found = re.findall(r"(\d+) passed", output)
    assert "skipped" not in output
    return int(found[-1])


@pytest.mark.parametrize(
    ("marked", "least"), [("not slow", FAST), pytest.param("", ALL, marks=pytest.mark.slow)]
)
def test_interpreted_kernels_agree_with_their_references(marked: str, least: int) -> None:
    pytest.importorskip("triton", reason="this torch comes without triton")
    assert passed(run_parity(marked, TRITON_INTERPRET="1")) >= least


@pytest.mark.gpu
def test_native_kernels_agree_with_their_references() -> None:
    assert passed(run_parity("", TRITON_INTERPRET="0", DFM_KERNEL_DEVICE="cuda")) >= ALL
