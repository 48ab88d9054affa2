"""`allocator`: a buffer that is freed and wanted again costs no page faults.

Each case is a process of its own, for what an allocator was told cannot be taken back.
"""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from dfm_engine import allocator

ROUNDS, MIB = 20, 48  # above what glibc's own adapting would ever keep
PAGES = ROUNDS * MIB * 1024 // 4

PROGRAM = f"""
import resource, threading
import numpy as np
from dfm_engine.allocator import keep_freed_memory

is_told = {{told}}

def work():
    def once():
        np.ones({MIB} << 20, np.uint8)
    once()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({ROUNDS}):
        once()
    print(is_told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if {{threaded}}:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
else:
    work()
"""

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")


def faults(*, told: bool, threaded: bool = False, env: dict[str, str] | None = None):
    program = PROGRAM.format(told="keep_freed_memory()" if told else "None", threaded=threaded)
    clean = {"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env={**clean, **(env or {})},
    )
    answer, count = done.stdout.split()
    return answer, int(count)


@needs_glibc
@pytest.mark.parametrize("threaded", [False, True])
def test_a_buffer_wanted_again_is_not_mapped_again(threaded):
    _, untold = faults(told=False, threaded=threaded)
    answer, told = faults(told=True, threaded=threaded)
    assert untold > PAGES / 600  # every page, or every piece of 2 MiB where those are handed out
    assert answer == "True"
    assert told < untold / 10


@needs_glibc
@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "131072", "False"),
        ("MALLOC_ARENA_MAX", "4", "False"),
        ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=7", "False"),
        ("GLIBC_TUNABLES", "glibc.rtld.optional_static_tls=4096", "True"),  # not of memory
    ],
)
def test_what_the_environment_says_goes_first(name, value, wanted):
    answer, _ = faults(told=True, env={name: value})
    assert answer == wanted


@needs_glibc
def test_not_even_gibibytes_are_given_back():
    program = """
import ctypes
from dfm_engine.allocator import keep_freed_memory
assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.sbrk.argtypes = [ctypes.c_ssize_t]
block = libc.malloc(3 << 30)  # never touched: it costs nothing
assert block
before = libc.sbrk(0)
libc.free(block)
assert libc.sbrk(0) == before
"""
    env = {"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=env)


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", None)  # calling it would raise
    assert allocator.keep_freed_memory() is False
