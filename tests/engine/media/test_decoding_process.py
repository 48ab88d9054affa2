"""What a file does to the process that reads it costs that call alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import dfmtest_probe
import numpy as np
import pytest

from dfm_engine.errors import MediaError, WorkerDied
from dfm_engine.media.decoding_process import DecodingProcess, decoding_here


@pytest.fixture(scope="module")
def decoding() -> Iterator[DecodingProcess]:
    with DecodingProcess() as made:
        yield made


def test_what_a_function_yields_comes_out_of_another_process(decoding: DecodingProcess) -> None:
    path = Path("a\udcff.mp4")
    there = list(decoding.stream(dfmtest_probe.pieces, path, 3))
    here = list(decoding_here.stream(dfmtest_probe.pieces, path, 3))
    pids = [{pid for _, pid, _ in pieces} for pieces in (there, here)]
    assert pids[1] == {os.getpid()}
    assert len(pids[0]) == 1
    assert pids[0] != pids[1]
    assert all(not has_torch for _, _, has_torch in there)
    for (one, _, _), (other, _, _) in zip(there, here, strict=True):
        assert one.dtype == np.uint8
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("refuse", "truncated", "ends early"),
        ("oserror", "unreadable", "stale file handle"),
        ("memory", "unreadable", "MemoryError"),
        ("ffmpeg", "unreadable", "Invalid data"),
    ],
)
def test_errors_cross_and_the_process_lives_on(
    decoding: DecodingProcess, name: str, kind: str, reason: str
) -> None:
    (before,) = {pid for _, pid, _ in decoding.stream(dfmtest_probe.pieces, Path("fine"), 1)}
    stream = decoding.stream(dfmtest_probe.pieces, Path(name), 1)
    next(stream)
    with pytest.raises(MediaError, match=reason) as raised:
        next(stream)
    assert (raised.value.path, raised.value.kind) == (Path(name), kind)
    (after,) = {pid for _, pid, _ in decoding.stream(dfmtest_probe.pieces, Path("fine"), 1)}
    assert after == before


def test_a_process_that_dies_is_told_and_replaced(decoding: DecodingProcess) -> None:
    stream = decoding.stream(dfmtest_probe.pieces, Path("kill"), 2)
    _, pid, _ = next(stream)
    next(stream)
    with pytest.raises(WorkerDied, match=r"reading 'kill': .* SIGKILL") as raised:
        next(stream)
    assert raised.value.pid == pid
    assert len(list(decoding.stream(dfmtest_probe.pieces, Path("fine"), 2))) == 2


def test_a_stream_left_early_ends_its_process_and_is_no_part_of_the_next(
    decoding: DecodingProcess,
) -> None:
    stream = decoding.stream(dfmtest_probe.pieces, Path("fine"), 9)
    _, pid, _ = next(stream)
    stream.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    pieces = list(decoding.stream(dfmtest_probe.pieces, Path("fine"), 2))
    assert [piece[0, 0] for piece, _, _ in pieces] == [0, 1]
