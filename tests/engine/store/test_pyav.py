from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dfm_engine.errors import EnvironmentUnfit
from dfm_engine.store import pyav
from dfm_engine.store.pyav import PART_ROWS, SLOTS, PyavSampler
from dfm_engine.store.sampler import ClipToSample, Refused, Sampled

SIZE = 24


def pictures(folder: Path, name: str, count: int) -> Path:
    """A clip whose k-th picture is of the one value that name and k give."""
    clip = folder / name
    clip.mkdir(parents=True)
    for k in range(count):
        value = (sum(name.encode()) + k) % 256
        Image.new("RGB", (SIZE, SIZE), (value, value, value)).save(clip / f"{k}.png")
    return clip


def order(paths: Sequence[Path], frames: int) -> Iterator[ClipToSample]:
    for place, path in enumerate(paths):
        count = len(list(path.iterdir())) if path.is_dir() else frames
        yield ClipToSample(
            place=place,
            path=path,
            kind="pictures",
            clip_frames=count,
            wanted=np.arange(count, dtype=np.int32),
        )


def gather(items: Iterator[Sampled | Refused]) -> list[NDArray[np.uint8] | Refused]:
    """Per clip the value of each frame, or the refusal."""
    found: list[NDArray[np.uint8] | Refused] = []
    parts: list[NDArray[np.uint8]] = []
    for item in items:
        if isinstance(item, Refused):
            found.append(item)
            parts = []
            continue
        assert (item.frames == item.frames[:, :1, :1, :1]).all()
        parts.append(item.frames[:, 0, 0, 0].copy())
        if item.is_last:
            assert len(item.sha256) == 64
            found.append(np.concatenate(parts))
            parts = []
    return found


def sampler(workers: int = 2) -> PyavSampler:
    return PyavSampler(size_px=SIZE, layout="rgb24", workers=workers)


def test_clips_come_in_order_long_ones_in_parts(tmp_path: Path) -> None:
    long = SLOTS * PART_ROWS * 2 + 3  # its worker has to wait for parts to come free
    lengths = [3, long, 1, PART_ROWS, PART_ROWS + 1, 2, long, 5]
    paths = [pictures(tmp_path, f"clip{k}", length) for k, length in enumerate(lengths)]
    gone = tmp_path / "gone"
    found = gather(sampler().sample(order([*paths[:3], gone, *paths[3:]], 4)))
    refused = found.pop(3)
    assert isinstance(refused, Refused)
    assert (refused.clip.path, refused.error.kind) == (gone, "unreadable")
    for path, length, values in zip(paths, lengths, found, strict=True):
        expected = (sum(path.name.encode()) + np.arange(length)) % 256
        np.testing.assert_array_equal(values, expected.astype(np.uint8))


def test_clips_are_drawn_no_further_ahead_than_workers_can_use(tmp_path: Path) -> None:
    path = pictures(tmp_path, "clip", 1)
    drawn = 0

    def endless() -> Iterator[ClipToSample]:
        nonlocal drawn
        while True:
            drawn += 1
            yield next(order([path], 1))

    items = sampler().sample(endless())
    for _ in range(40):
        next(items)
    ahead = drawn - 40
    items.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert 0 < ahead <= 2 * (SLOTS + pyav.AHEAD)


def test_a_clip_that_kills_its_workers_is_refused_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [pictures(tmp_path, f"clip{k}", PART_ROWS + 2) for k in range(5)]
    bomb = pictures(tmp_path, "bomb", 3)
    play(tmp_path, monkeypatch, "if path.name == 'bomb': os.kill(os.getpid(), signal.SIGKILL)")
    found = gather(sampler().sample(order([*paths[:2], bomb, *paths[2:]], 0)))
    refused = found.pop(2)
    assert isinstance(refused, Refused)
    assert (refused.error.kind, refused.attempts) == ("decoder-crash", 3)
    assert [len(values) for values in found if not isinstance(values, Refused)] == [18] * 5


def test_a_clip_that_kills_one_worker_is_given_whole_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies after some parts were used: they must not come twice, nor the others be lost."""
    length = 3 * PART_ROWS + 5
    paths = [pictures(tmp_path, name, length) for name in ("first", "once", "last")]
    play(
        tmp_path,
        monkeypatch,
        f"if path.name == 'once' and number == {2 * PART_ROWS + 3} and not mark.exists():\n"
        "    mark.touch(); time.sleep(0.3); os._exit(7)",
    )
    found = gather(sampler(1).sample(order(paths, 0)))
    assert (tmp_path / "mark").exists()
    for path, values in zip(paths, found, strict=True):
        expected = (sum(path.name.encode()) + np.arange(length)) % 256
        np.testing.assert_array_equal(values, expected.astype(np.uint8))


def test_workers_that_do_not_start_are_an_error_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(9)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    clip = pictures(tmp_path, "clip", 1)
    with pytest.raises(EnvironmentUnfit, match=r"did not start \(exit status 9\)"):
        gather(sampler().sample(order([clip], 0)))


def test_closing_the_iterator_ends_the_workers(tmp_path: Path) -> None:
    paths = [pictures(tmp_path, f"clip{k}", 2) for k in range(9)]
    run = pyav._Run(order(paths, 0), sampler()._settings, 2)
    results = run.results()
    next(results)
    pids = [worker.process.pid for worker in run._pool]
    run.end()
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, signal.SIG_DFL)


def play(folder: Path, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    """Have the workers run `trouble` before they hand on each picture of a clip."""
    lines = "\n".join(f"        {line}" for line in trouble.splitlines())
    (folder / "sitecustomize.py").write_text(
        "import os, signal, time\nfrom pathlib import Path\n"
        f"mark = Path({str(folder / 'mark')!r})\n"
        "import dfm_engine.store.sampling as sampling\n"
        "plain = sampling._pictures\n"
        "def troubled(path, *rest):\n"
        "    for number, frame in enumerate(plain(path, *rest)):\n"
        f"{lines}\n"
        "        yield frame\n"
        "sampling._pictures = troubled\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
