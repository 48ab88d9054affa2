"""Framing in processes: the outcomes of threads, whoever dies meanwhile; nobody is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import dfmtest_framing
import numpy as np
import pytest
import torch
from dfmtest_build import Hook, Workbench, contents
from dfmtest_drawn_clips import draw, encode

from dfm_engine import machinery
from dfm_engine.clip import SourceClip
from dfm_engine.errors import EnvironmentUnfit, UsageError
from dfm_engine.framing_workers import FramingWorkers
from dfm_engine.interrupts import Interrupted
from dfm_engine.lanes import lane, plan_framing
from dfm_engine.media.reading_process import CRASH_ATTEMPTS
from dfm_engine.options import BuildOptions, list_inputs
from dfm_engine.prepare import Prepared, PreparedStore, prepare_clips
from dfm_engine.progress import Meters
from dfm_engine.quarantine import read_quarantine
from dfm_engine.recipe import BuildRecipe, Limits
from dfm_engine.synthetic import write_clip


def workers(recipe: BuildRecipe, count: int = 2, load: Callable | None = None) -> FramingWorkers:
    return FramingWorkers(
        recipe=recipe, size=64, count=count, load=load or dfmtest_framing.load_by_name
    )


@pytest.fixture(scope="module")
def recipe() -> BuildRecipe:
    return BuildRecipe()


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., list[list[SourceClip]]]:
    """Whole clips with names that say what happens to who frames them."""
    content = tmp_path / "clip.mp4"
    encode(content, draw(3))

    def make(*names: str) -> list[list[SourceClip]]:
        made = []
        for name in names:
            path = tmp_path / f"{name}.mp4"
            path.write_bytes(b"no video" if name.startswith("text") else content.read_bytes())
            made.append([SourceClip(path=path, sha256=name, identity=name, dataset="folder")])
        return made

    return make


@pytest.fixture(autouse=True)
def _nobody_is_left() -> object:
    yield
    assert multiprocessing.active_children() == []
    assert not any(thread.name.startswith("frame") for thread in threading.enumerate())


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(path: Path) -> int:
    """The number that a worker writes there."""
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(path.read_text())


@pytest.mark.parametrize(
    ("cores", "device", "count"),
    [
        *((64, "cpu", 0), (1, "cuda", 0), (3, "cuda", 0)),
        *((4, "cuda", 3), (16, "cuda", 15), (200, "cuda", 32)),
    ],
)
def test_processes_frame_beside_a_gpu_with_cores_to_spare(cores: int, device: str, count: int):
    assert plan_framing(cores, device) == count


def test_a_file_costs_nobody_else_anything(recipe, files):
    names = ["good-1", "kill-2", "no-faceless", "once-4", "text-5", "good-66", "once-faceless"]
    given = files(*names, "good-long")
    given[0] += [given[0][0], given[0][0]]  # three clips of one file
    meters = Meters()
    found = list(workers(recipe).outcomes(given, meters=meters))
    assert [clip.path.stem for clip, _ in found] == ["good-1", "good-1", *names, "good-long"]
    by_name = {clip.path.stem: outcome for clip, outcome in found}
    assert {name: (o.kind, o.attempts, o.frames) for name, o in by_name.items()} == {
        "good-1": (None, 0, 7),
        "kill-2": ("decoder-crash", CRASH_ATTEMPTS, 0),
        "no-faceless": ("no-face", 0, 0),
        "once-4": (None, 0, 7),
        "text-5": ("not-a-video", 0, 0),
        "good-66": (None, 0, 8),
        "once-faceless": ("no-face", 1, 0),
        "good-long": (None, 0, 10),
    }
    assert by_name["kill-2"].stage == "probe"
    assert by_name["no-faceless"].stage == "face"
    assert by_name["good-66"].box is not None
    done = meters.stages
    assert (done["probe"].clips, done["frame"].clips) == (7, 6)  # of files, and of good clips
    assert done["frame"].frames == 3 * 7 + 7 + 8 + 10
    assert done["probe"].busy_s > 0
    assert done["probe"].workers == done["frame"].workers == 2


def test_a_worker_killed_from_outside_is_replaced(recipe, files):
    given = files(*(f"good-{number}" for number in range(12)))
    found = workers(recipe, 1).outcomes(given, meters=Meters())
    outcomes = [next(found)]
    (worker,) = multiprocessing.active_children()
    worker.kill()
    outcomes += found
    assert [clip for clip, _ in outcomes] == [clip for (clip,) in given]
    assert all(outcome.is_usable for _, outcome in outcomes)


def test_leaving_early_ends_the_workers_at_once(recipe, files):
    given = files("good-0", "slow-1", "slow-2", "good-3")
    found = workers(recipe).outcomes(given, meters=Meters())
    next(found)
    busy = wait_for(given[1][0].path.with_suffix(".begun"))
    started = time.monotonic()
    found.close()
    assert not is_running(busy)
    assert time.monotonic() - started < 10


def test_what_no_file_is_to_blame_for_is_raised(recipe, files):
    with pytest.raises(RuntimeError, match=r"(?s)bug-1.*failed in a worker.*ZeroDivisionError"):
        list(workers(recipe).outcomes(files("good-0", "bug-1"), meters=Meters()))
    nothing = workers(recipe, 1, dfmtest_framing.load_nothing)
    with pytest.raises(EnvironmentUnfit, match="did not start"):
        list(nothing.outcomes(files("good-0"), meters=Meters()))


def test_ctrl_c_does_not_reach_a_worker_that_is_loading(recipe, files, tmp_path, monkeypatch):
    monkeypatch.setenv("DFMTEST_LOADING", str(tmp_path / "loading"))
    slowly = workers(recipe, 1, dfmtest_framing.load_slowly)
    found: list[Prepared] = []
    thread = threading.Thread(
        target=lambda: found.extend(
            outcome for _, outcome in slowly.outcomes(files("good-0"), meters=Meters())
        )
    )
    thread.start()
    os.kill(wait_for(tmp_path / "loading"), signal.SIGINT)
    thread.join(60)
    assert [outcome.frames for outcome in found] == [7]


def test_a_few_files_start_no_worker_and_are_kept_the_same(recipe, files, tmp_path):
    clips = [clip for (clip,) in files("good-0", "no-faceless", "text-2", "good-33", "good-444")]
    kept = []
    for count, started in ((2, True), (3, False)):  # 5 files are worth two workers
        framing = workers(recipe, count)
        store = PreparedStore(
            tmp_path / f"prepared-{count}", recipe, frame_size=64, framed_by=framing.name
        )
        framed_here: list[SourceClip] = []

        def here(clip, framing=framing, framed_here=framed_here):
            framed_here.append(clip)
            if clip.path.stem.startswith("good"):
                return dfmtest_framing.framed(1 + len(clip.path.stem), 64)
            return framing.framer()(clip)

        look = partial(
            prepare_clips, clips, store, here, limits=Limits(), workers=1, framing=framing
        )
        found = list(look(meters=Meters(), framers=2))
        assert [clip for clip, _ in found] == clips
        assert framed_here == ([] if started else [c for c in clips if c.path.stem != "text-2"])
        assert list(look(meters=Meters())) == found  # read, not framed again
        folder = tmp_path / f"prepared-{count}"
        kept.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert len(kept[0]) == 5
    assert kept[0] == kept[1]
    another = PreparedStore(tmp_path / "prepared-2", recipe, frame_size=64)
    assert all(another.read(clip) is None for clip in clips)


def test_who_frames_here_beside_workers_has_neither_the_detector_nor_the_reader_of_the_run(
    workbench: Workbench, tiny_yaml: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(machinery, "plan_framing", lambda cores, device: 3)
    monkeypatch.setattr(machinery, "open_reader", lambda *given, **how: None)
    monkeypatch.setattr(machinery, "Mtcnn", SimpleNamespace(load=lambda device: None))
    before = torch.get_num_threads()
    made = machinery.load_machinery(
        workbench.recipe, weights="random", config=tiny_yaml, device="cpu"
    )
    torch.set_num_threads(before)
    assert made.framing == FramingWorkers(recipe=workbench.recipe, size=64, count=3)
    path = min((workbench.clips / "real").rglob("*.mkv"))
    clip = SourceClip(path=path, sha256="0", identity="a", dataset="folder")
    framed = made.framer(clip)
    assert framed.frames.shape == (9, 64, 64, 3)
    assert framed.box == workbench.framer(clip).box


def test_a_stopped_build_leaves_no_worker(workbench: Workbench, tmp_path: Path):
    stop = Hook(1, lambda: setattr(stop, "signum", signal.SIGINT))
    with pytest.raises(Interrupted):
        workbench.build(tmp_path / "set", framing=workers(workbench.recipe), stop=stop)
    assert (tmp_path / "set" / "prepared").exists()  # and the fixture: nobody is left


def test_a_build_is_the_one_of_threads_and_is_not_mixed_with_theirs(
    workbench: Workbench, whole: Path, tmp_path: Path
):
    """Good clips, a damaged one and a faceless one."""
    framing = workers(workbench.recipe, load=dfmtest_framing.load_checked)
    bad = tmp_path / "real" / "bad"
    bad.mkdir(parents=True)
    for path in (workbench.clips / "real").iterdir():
        (tmp_path / "real" / path.name).symlink_to(path)
    good = min((workbench.clips / "real").rglob("*.mkv"))
    (bad / "cut.mkv").write_bytes(good.read_bytes()[:-9000])
    write_clip(bad / "grey.mkv", np.full((18, 128, 128, 3), 128, np.uint8))
    out = tmp_path / "set"
    summary = workbench.build(out, real=tmp_path / "real", framing=framing)
    assert summary.timings["frame"]["workers"] == 2
    clips_of = {
        name: {path: data for path, data in contents(folder).items() if path.endswith(".mp4")}
        for name, folder in (("here", out), ("threads", whole))
    }
    assert len(clips_of["here"]) == 27
    assert clips_of["here"] == clips_of["threads"]
    rows = read_quarantine(out / "quarantine.parquet")
    assert sorted((row.path, row.kind) for row in rows) == [
        ("cut.mkv", "truncated"),
        ("grey.mkv", "no-face"),
    ]
    inputs = list_inputs(
        BuildOptions(
            recipe=workbench.recipe,
            real=tmp_path / "real",
            driving=workbench.clips / "driving",
            out=tmp_path,
        )
    )
    store = PreparedStore(
        tmp_path / "prepared", workbench.recipe, frame_size=64, framed_by=framing.name
    )
    by_threads = prepare_clips(
        [*inputs.sources.clips, *inputs.driving.clips],
        store,
        workbench.framer,
        limits=workbench.recipe.limits,
        workers=1,
        meters=Meters(),
        framers=2,
        within=partial(lane, "cpu"),
    )
    assert len(list(by_threads)) == 7
    for path in (tmp_path / "prepared").iterdir():
        assert (out / "prepared" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(UsageError, match="frame was 'mtcnn cpu, pyav', is now None"):
        workbench.build(out, real=tmp_path / "real")
