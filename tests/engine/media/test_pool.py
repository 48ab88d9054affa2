"""The encode pool: same bytes, back-pressure, and what it does when processes are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfm_engine.clip import QUALITIES, Quality
from dfm_engine.errors import EnvironmentUnfit, ShapeError, WorkerDied
from dfm_engine.media.encode import encode_clip, provenance_comment, rgb_to_i420
from dfm_engine.media.pool import EncodeFuture, EncodePool

COMMENT = provenance_comment({"synthetic": True})


def clip(seed: int = 0, count: int = 4, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def send(pool: EncodePool, path: Path, frames: np.ndarray | None = None) -> EncodeFuture:
    """Submit one raw clip."""
    return pool.submit(
        clip() if frames is None else frames, outputs={"raw": path}, comment=COMMENT, fps=25
    )


def wait_for(condition: Callable[[], object], *, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.fixture(scope="module")
def pool() -> Iterator[EncodePool]:
    """One worker that is ready, and room for one waiting clip."""
    with EncodePool(1, queue_clips=1) as pool:
        wait_for(lambda: pool.stats[0].pid)
        yield pool


def hold(pool: EncodePool, path: Path) -> Path:
    """Make the worker's next write to `path` block until somebody reads: it writes to a fifo."""
    fifo = path.with_name(f"{path.name}.tmp-{pool.stats[0].pid}")
    os.mkfifo(fifo)
    return fifo


def wait_until_held(pid: int) -> None:
    """Until the worker sleeps in opening the fifo."""
    wait_for(lambda: "wait_for_partner" in Path(f"/proc/{pid}/wchan").read_text() or in_open(pid))


def in_open(pid: int) -> bool:
    call = Path(f"/proc/{pid}/syscall").read_text().split()[0]
    return call in ("2", "257", "56")  # open, openat on x86-64 and arm64


def test_pool_writes_what_the_encoder_writes(tmp_path: Path, pool: EncodePool) -> None:
    frames = clip(1, count=9, size=64)
    outputs: dict[Quality, Path] = {
        quality: tmp_path / f"pool.{quality}.mp4" for quality in QUALITIES
    }
    before = pool.stats[0].frames
    files = pool.submit(frames, outputs=outputs, comment=COMMENT, fps=25).result(30)
    i420 = rgb_to_i420(frames)
    for quality in QUALITIES:
        alone = encode_clip(i420, tmp_path / "alone.mp4", quality=quality, fps=25, comment=COMMENT)
        assert files[quality].path == outputs[quality]
        assert outputs[quality].read_bytes() == alone.path.read_bytes()
        assert files[quality].sha256 == alone.sha256
    wait_for(lambda: not pool.stats[0].is_busy)
    assert pool.stats[0].frames == before + 9
    assert pool.stats[0].busy_s > 0


def test_frames_may_be_reused_and_buffers_grow(tmp_path: Path, pool: EncodePool) -> None:
    futures, expected = [], []
    for index, count in enumerate([2, 12, 3, 20]):
        frames = clip(index, count=count)
        path = tmp_path / f"{index}.mp4"
        expected.append(
            encode_clip(
                rgb_to_i420(frames), tmp_path / "alone.mp4", quality="raw", fps=25, comment=COMMENT
            ).sha256
        )
        futures.append(send(pool, path, frames))
        frames[:] = 0
    assert [future.result(30)["raw"].sha256 for future in futures] == expected


def test_a_name_that_is_not_utf8_survives_the_pipe(tmp_path: Path, pool: EncodePool) -> None:
    path = tmp_path / os.fsdecode(b"\xff\n.mp4")
    files = send(pool, path).result(30)
    assert files["raw"].path == path
    assert path.stat().st_size == files["raw"].size_bytes


def test_worker_never_maps_torch(pool: EncodePool) -> None:
    maps = Path(f"/proc/{pool.stats[0].pid}/maps").read_text()
    assert "libx264" in maps or "libavcodec" in maps
    assert "torch" not in maps


def test_worker_ignores_ctrl_c(tmp_path: Path, pool: EncodePool) -> None:
    pid = pool.stats[0].pid
    os.kill(pid, signal.SIGINT)
    send(pool, tmp_path / "x.mp4").result(30)
    assert pool.stats[0].pid == pid
    assert os.getpgid(pid) != os.getpgid(0)


def test_a_file_that_cannot_be_written_is_the_jobs_error(tmp_path: Path, pool: EncodePool) -> None:
    (tmp_path / "data").write_text("in the way")
    future = send(pool, tmp_path / "data/x.mp4")
    with pytest.raises(EnvironmentUnfit, match=r"encoding x\.mp4: writing .*File exists"):
        future.result(30)
    send(pool, tmp_path / "x.mp4").result(30)


def test_i420_made_on_the_way_gives_the_same_file(tmp_path: Path, pool: EncodePool) -> None:
    send(pool, tmp_path / "rgb.mp4").result(30)
    send(pool, tmp_path / "i420.mp4", rgb_to_i420(clip())).result(30)
    assert (tmp_path / "rgb.mp4").read_bytes() == (tmp_path / "i420.mp4").read_bytes()


def test_odd_sides_and_wrong_types_are_refused(tmp_path: Path, pool: EncodePool) -> None:
    wrong_type: Any = clip().astype(np.float32)
    with pytest.raises(ShapeError, match="float32"):
        send(pool, tmp_path / "x.mp4", wrong_type)
    with pytest.raises(ShapeError, match="even"):
        send(pool, tmp_path / "x.mp4", clip(size=33)).result(30)


def test_submit_blocks_while_the_queue_is_full(tmp_path: Path, pool: EncodePool) -> None:
    os.kill(pool.stats[0].pid, signal.SIGSTOP)
    futures = [send(pool, tmp_path / f"{index}.mp4") for index in range(2)]
    third = threading.Thread(target=lambda: futures.append(send(pool, tmp_path / "2.mp4")))
    third.start()
    third.join(0.2)
    assert third.is_alive()  # one encoding, one waiting: the third clip has to wait outside
    assert len(futures) == 2
    os.kill(pool.stats[0].pid, signal.SIGCONT)
    third.join(30)
    assert [future.result(30)["raw"].frames for future in futures] == [4, 4, 4]


def test_a_worker_killed_at_a_job_fails_that_job_alone(tmp_path: Path, pool: EncodePool) -> None:
    stats = pool.stats[0]
    victim, deaths = stats.pid, stats.deaths
    hold(pool, tmp_path / "victim.c23.mp4")
    outputs: dict[Quality, Path] = {
        quality: tmp_path / f"victim.{quality}.mp4" for quality in QUALITIES
    }
    lost = pool.submit(clip(1), outputs=outputs, comment=COMMENT, fps=25)
    after = send(pool, tmp_path / "a.mp4")
    wait_until_held(victim)
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(WorkerDied, match=r"encoding victim\.raw\.mp4: .*SIGKILL") as caught:
        lost.result(30)
    assert (caught.value.pid, str(victim) in caught.value.cause) == (victim, False)
    assert after.result(30)["raw"].frames == 4
    assert stats.pid != victim
    assert stats.deaths == deaths + 1
    # the quality before the death is whole, the one after it never began
    assert sorted(p.name for p in tmp_path.glob("victim*")) == [
        f"victim.c23.mp4.tmp-{victim}",
        "victim.raw.mp4",
    ]


def test_a_worker_killed_between_jobs_costs_no_job(tmp_path: Path, pool: EncodePool) -> None:
    victim = pool.stats[0].pid
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: not is_running(victim))
    future = send(pool, tmp_path / "x.mp4")
    assert future.result(30)["raw"].frames == 4
    assert pool.stats[0].pid != victim


def test_a_job_that_a_dead_worker_never_read_is_given_to_the_next(
    tmp_path: Path, pool: EncodePool
) -> None:
    victim = pool.stats[0].pid
    os.kill(victim, signal.SIGSTOP)
    future = send(pool, tmp_path / "x.mp4")
    wait_for(lambda: pool.stats[0].is_busy)
    os.kill(victim, signal.SIGKILL)
    assert future.result(30)["raw"].frames == 4


def test_closing_now_cancels_what_waits_and_kills_what_runs(tmp_path: Path) -> None:
    pool = EncodePool(1, queue_clips=1)
    wait_for(lambda: pool.stats[0].pid)
    pid = pool.stats[0].pid
    hold(pool, tmp_path / "0.mp4")
    running, waiting = (send(pool, tmp_path / f"{i}.mp4") for i in range(2))
    wait_until_held(pid)
    with pytest.raises(KeyboardInterrupt), pool:
        raise KeyboardInterrupt
    assert waiting.cancelled()
    assert isinstance(running.exception(0), WorkerDied)
    assert not is_running(pid)
    with pytest.raises(RuntimeError, match="closed"):
        send(pool, tmp_path / "x.mp4")


def test_leaving_the_block_finishes_what_was_submitted(tmp_path: Path) -> None:
    with EncodePool(2, queue_clips=3) as pool:
        futures = [send(pool, tmp_path / f"{i}.mp4", clip(i)) for i in range(5)]
    assert all(future.done() for future in futures)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{i}.mp4" for i in range(5)]
    assert sum(stats.clips for stats in pool.stats) == 5
    assert not any(is_running(stats.pid) for stats in pool.stats if stats.pid)


def test_workers_that_never_start_are_an_error_not_a_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with EncodePool(1, queue_clips=0) as pool:
        with pytest.raises(EnvironmentUnfit, match=r"did not start .exited with 1"):
            send(pool, tmp_path / "x.mp4").result(30)
        with pytest.raises(EnvironmentUnfit, match="did not start"):
            send(pool, tmp_path / "x.mp4")


PARENT = """
import os, sys, time
from pathlib import Path
import numpy as np
from dfm_engine.media.pool import EncodeFuture, EncodePool
pool = EncodePool(1, queue_clips=0)
while not pool.stats[0].pid:
    time.sleep(0.01)
path = Path(sys.argv[1])
if sys.argv[2] == "hold":
    os.mkfifo(f"{path}.tmp-{pool.stats[0].pid}")
frames = np.zeros((2, 32, 32, 3), np.uint8)
future = pool.submit(frames, outputs={"raw": path}, comment="", fps=25)
if sys.argv[2] == "leave":
    future.result(30)
print(pool.stats[0].pid, flush=True)
if sys.argv[2] == "hold":
    time.sleep(60)
"""


def test_workers_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, tmp_path / "x.mp4", "hold"], stdout=subprocess.PIPE
    )
    with parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        wait_until_held(worker)
        parent.kill()
        wait_for(lambda: not is_running(worker), timeout_s=10)
    assert [p.name for p in tmp_path.iterdir()] == [f"x.mp4.tmp-{worker}"]


def test_a_parent_that_forgets_to_close_ends_in_silence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PARENT, tmp_path / "x.mp4", "leave"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    wait_for(lambda: not is_running(int(done.stdout)), timeout_s=10)
    assert [p.name for p in tmp_path.iterdir()] == ["x.mp4"]


@pytest.mark.slow
def test_no_clip_is_lost_while_workers_are_killed_at_random(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clips = [clip(index, count=20, size=64) for index in range(24)]
    expected = [
        encode_clip(
            rgb_to_i420(frames), tmp_path / "alone.mp4", quality="c23", fps=25, comment=COMMENT
        ).sha256
        for frames in clips
    ]
    done, deaths, is_over = {}, 0, threading.Event()

    def kill_some(pool: EncodePool) -> None:
        while not is_over.wait(rng.uniform(0.2, 0.6)):
            pid = pool.stats[rng.integers(2)].pid
            if pid and is_running(pid):
                os.kill(pid, signal.SIGKILL)

    with EncodePool(2, queue_clips=2) as pool:
        killer = threading.Thread(target=kill_some, args=(pool,))
        killer.start()
        try:
            for turn in range(100):
                todo = [index for index in range(len(clips)) if index not in done]
                if turn == 4:
                    is_over.set()
                futures = {
                    index: pool.submit(
                        clips[index],
                        outputs={"c23": tmp_path / f"{index}.mp4"},
                        comment=COMMENT,
                        fps=25,
                    )
                    for index in todo
                }
                for index, future in futures.items():
                    try:
                        done[index] = future.result(60)["c23"].sha256
                    except WorkerDied:
                        deaths += 1
                if len(done) == len(clips):
                    break
        finally:
            is_over.set()
            killer.join()
    assert [done[index] for index in range(len(clips))] == expected
    assert deaths > 0
    assert sum(stats.clips for stats in pool.stats) == len(clips)
