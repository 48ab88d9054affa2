"""Write procedural faces as files: driving clips per action, and real clips per identity.

Files are 4:2:0, BT.601 limited range, so that a build decodes, detects, crops and encodes them like
anybody's clips: FFV1 in Matroska, what a careful camera would deliver, or H.264 in MP4, what most
real clips are (FFV1 takes a decoder ten times as long).

    <folder>/demo-set.json                    what was asked for; a rerun must ask for the same
    <folder>/driving/<action>/<name>.mkv or .mp4
    <folder>/real/<identity>/<name>.mkv or .mp4
"""

from __future__ import annotations

import io
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, cast

import av
import torch
from av.video.stream import VideoStream

from dfm_engine.actions import Action
from dfm_engine.clip import Pixels
from dfm_engine.durable import write_durably
from dfm_engine.errors import UsageError
from dfm_engine.media.encode import rgb_to_i420
from dfm_engine.synthetic.identity import RENDERER_VERSION, Identity
from dfm_engine.synthetic.renderer import render
from dfm_engine.synthetic.state import States, action_states, idle_states

__all__ = ["DemoSet", "DemoSetSettings", "write_clip", "write_demo_set"]

Codec = Literal["ffv1", "h264"]
_SUFFIXES: dict[Codec, str] = {"ffv1": ".mkv", "h264": ".mp4"}
_WRITERS: dict[str, tuple[str, str, dict[str, str]]] = {
    ".mkv": ("matroska", "ffv1", {}),
    ".mp4": ("mp4", "libx264", {"crf": "18", "preset": "medium"}),
}


def write_clip(path: Path, frames: Pixels, *, fps: int = 25) -> None:
    """Write frames; equal frames give equal bytes.

    Args:
        path: `.mkv` for FFV1, without loss but that of 4:2:0, or `.mp4` for H.264 at crf 18; its
            folder is made. Appears whole or not at all.
        frames: uint8 (T, H, W, 3) RGB, sides even.
        fps: frames per second.
    """
    planes = rgb_to_i420(frames)
    target = io.BytesIO()
    container_name, codec, settings = _WRITERS[path.suffix]
    options = {"fflags": "+bitexact"}  # no random identifiers, no date
    with av.open(target, "w", format=container_name, options=options) as container:
        options = {"flags": "+bitexact", **settings}
        stream = cast("VideoStream", container.add_stream(codec, rate=fps, options=options))
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in planes:
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, target.getbuffer())


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSetSettings:
    """What a demo set holds; seeds of drivers and sources should not overlap.

    Attributes:
        drivers: identity seeds; each performs every action of `actions` once.
        sources: identity seeds of the real half.
        clips_per_source: real clips of each source.
        driving_frames: length of a driving clip.
        real_frames: length of a real clip; a source must be at least as long as its driver.
        size: side of the frames, pixels.
        fps: frames per second.
        actions: what is performed.
        seed: of the performances; identities are fixed by their own seeds.
        codec: of the files.
    """

    drivers: tuple[int, ...]
    sources: tuple[int, ...]
    clips_per_source: int = 1
    driving_frames: int = 45
    real_frames: int = 60
    size: int = 256
    fps: int = 25
    actions: tuple[Action, ...] = tuple(Action)
    seed: int = 0
    codec: Codec = "ffv1"
    renderer_version: int = field(default=RENDERER_VERSION, init=False)

    @property
    def suffix(self) -> str:
        """Of the files."""
        return _SUFFIXES[self.codec]


@dataclass(frozen=True, slots=True)
class DemoSet:
    """Where a demo set lies.

    Attributes:
        driving: files, action by action.
        real: files, identity by identity.
        written: how many of them this call made; the rest were there.
    """

    driving: tuple[Path, ...]
    real: tuple[Path, ...]
    written: int

    def to_json(self) -> dict[str, int]:
        """Counts for a program."""
        return {"driving": len(self.driving), "real": len(self.real), "written": self.written}


@dataclass(frozen=True, slots=True)
class _Job:
    path: Path
    identity: int
    states: States
    size: int
    fps: int
    noise_seed: int


def write_demo_set(
    folder: Path, settings: DemoSetSettings, *, workers: int = 1, device: str = "cpu"
) -> DemoSet:
    """Render and write all clips; files that are there already are kept.

    Args:
        folder: made if absent.
        settings: what to draw.
        workers: processes; above 1 each draws whole clips with one thread.
        device: used with one worker.

    Raises:
        UsageError: the folder holds a demo set made with other settings.
    """
    plan = folder / "demo-set.json"
    facts = asdict(settings)
    if settings.codec == "ffv1":  # not in the files of before there was a choice
        del facts["codec"]
    wanted = json.dumps(facts, indent=1).encode()
    if not plan.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(plan, wanted)
    elif plan.read_bytes() != wanted:
        raise UsageError(f"{plan} was made with other settings; remove {folder} or name another")
    driving, real = list(_driving_jobs(folder, settings)), list(_real_jobs(folder, settings))
    todo = [job for job in driving + real if not job.path.exists()]
    if workers > 1 and len(todo) > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
            list(pool.map(_write, todo))
    else:
        for job in todo:
            _write(job, device)
    return DemoSet(tuple(j.path for j in driving), tuple(j.path for j in real), len(todo))


def _driving_jobs(folder: Path, settings: DemoSetSettings) -> Iterator[_Job]:
    for action in settings.actions:
        for driver in settings.drivers:
            take = settings.seed * 100_003 + driver
            states = action_states(action, settings.driving_frames, take, fps=settings.fps)
            path = folder / "driving" / action.value / f"{_name(driver)}{settings.suffix}"
            yield _Job(path, driver, states, settings.size, settings.fps, take)


def _real_jobs(folder: Path, settings: DemoSetSettings) -> Iterator[_Job]:
    for source in settings.sources:
        for number in range(settings.clips_per_source):
            take = (settings.seed * 100_003 + source) * 100 + number + 1
            states = idle_states(settings.real_frames, take, fps=settings.fps)
            path = folder / "real" / _name(source) / f"talk-{number:02d}{settings.suffix}"
            yield _Job(path, source, states, settings.size, settings.fps, take)


def _name(seed: int) -> str:
    return f"face{seed:06d}"


def _one_thread() -> None:
    torch.set_num_threads(1)


def _write(job: _Job, device: str = "cpu") -> None:
    drawn = render(
        Identity.draw(job.identity), job.states, job.size, device=device, noise_seed=job.noise_seed
    )
    write_clip(job.path, drawn.frames.cpu().numpy(), fps=job.fps)
