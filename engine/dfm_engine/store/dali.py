"""`DaliSampler`: fills a store through NVDEC, and sends to the CPU what NVDEC does not take.

    clips ─► read, hash, outline (threads) ─► route ─┬─► sorted by size ─► DALI graph ─┐
                                                     └─► fallback (PyAV) ──────────────┴─► in order

Whatever is odd about a clip, DALI never meets it: a file that does not hash as it should, has
another number of pictures or goes by a rule of `routing.RULES` is the fallback's, whose words then
stand in the quarantine. So is a clip that the graph does not survive (`dali_run`), and one whose
first picture is not the one that PyAV sees, where that is compared at all. NVDEC decodes damage
without a word, so only files known by their hash are given to it.

A window's clips are loaded while the one before is decoded. Frames are RGB: DALI hands out no
luma and chroma.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from dfm_engine.clip import Box, Pixels
from dfm_engine.errors import MediaError
from dfm_engine.machine import read_cores
from dfm_engine.media.containers import open_media
from dfm_engine.media.cropping import middle_square
from dfm_engine.media.outline import ClipOutline, read_outline
from dfm_engine.recipe import Limits
from dfm_engine.store.dali_graph import GraphSpec
from dfm_engine.store.dali_run import DaliRunner, Failed, Part
from dfm_engine.store.nvdec import Router, gpu_router, gpu_spec, is_same_picture, parts_of
from dfm_engine.store.routing import Route, Stream, by_size
from dfm_engine.store.sampler import ClipToSample, FrameSampler, Refused, Sampled

__all__ = ["DaliSampler"]

_log = logging.getLogger(__name__)

WINDOW_CLIPS = 256
WINDOW_BYTES = 1 << 30  # of files while they are decoded, and of frames until they are handed on
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Loaded:
    """A clip on its way; `frames` once DALI has given all of them."""

    clip: ClipToSample
    why_cpu: str = ""
    outline: ClipOutline | None = None
    stream: Stream | None = None
    route: Route | None = None
    file: NDArray[np.uint8] | None = None
    sha256: str = ""
    pieces: list[Pixels] = field(default_factory=list)
    frames: Pixels | None = None


class DaliSampler:
    """A `FrameSampler` on the GPU.

    Args:
        size_px: side of the frames.
        fallback: samples what does not go to NVDEC; of the same size, RGB.
        limits: what a file may ask for.
        spec: the graph; the one for this machine where left out.
        router: where a clip goes; by the rules and this device's sizes where left out.

    Attributes:
        routes: how many clips went where, by reason (`nvdec` and `cpu`), of the last `sample`.
    """

    name: Literal["pyav", "dali"] = "dali"

    def __init__(
        self,
        *,
        size_px: int,
        fallback: FrameSampler,
        limits: Limits | None = None,
        spec: GraphSpec | None = None,
        router: Router | None = None,
    ) -> None:
        """Nothing is opened yet.

        Raises:
            EnvironmentUnfit: no `spec` is given and this machine cannot decode with DALI.
        """
        self.routes: Counter[str] = Counter()
        self._size_px = size_px
        self._fallback = fallback
        self._limits = limits or Limits()
        self._spec = gpu_spec() if spec is None else spec
        self._router = gpu_router() if router is None else router

    def sample(self, clips: Iterable[ClipToSample]) -> Iterator[Sampled | Refused]:
        """Yield every clip's frames, or why it has none, in order; see `FrameSampler`.

        Raises:
            EnvironmentUnfit: DALI does not work on this machine.
        """
        self.routes.clear()
        workers = max(1, min(8, int(read_cores())))
        pool = ThreadPoolExecutor(workers, thread_name_prefix="outline")
        try:
            with DaliRunner(self._spec) as runner:
                for window in self._windows(clips, pool):
                    self._decode(window, runner)
                    yield from self._hand_on(window)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        _log.info("decoded by: %s", ", ".join(f"{k} {v}" for k, v in self.routes.items()))

    def _windows(
        self, clips: Iterable[ClipToSample], pool: ThreadPoolExecutor
    ) -> Iterator[list[_Loaded]]:
        """Loaded clips in groups; the next group loads while one is used."""
        source = iter(clips)
        ahead: deque[list[Future[_Loaded]]] = deque()
        while True:
            while len(ahead) < 2 and (group := self._group(source)):
                ahead.append([pool.submit(self._load, clip) for clip in group])
            if not ahead:
                return
            yield [future.result() for future in ahead.popleft()]

    def _group(self, clips: Iterator[ClipToSample]) -> list[ClipToSample]:
        group: list[ClipToSample] = []
        held = 0
        for clip in clips:
            group.append(clip)
            held += len(clip.wanted) * self._size_px**2 * 3 + _file_bytes(clip)
            if len(group) == WINDOW_CLIPS or held >= WINDOW_BYTES:
                break
        return group

    def _load(self, clip: ClipToSample) -> _Loaded:
        """Read and route a clip; whatever is wrong with it, the fallback says."""
        found = _Loaded(clip)
        if clip.kind != "video":
            found.why_cpu = "pictures"
        elif clip.sha256 is None:
            found.why_cpu = "unknown-hash: NVDEC does not tell a damaged file"
        else:
            try:
                self._look(found)
            except (MediaError, OSError) as error:
                found.why_cpu = getattr(error, "kind", "unreadable")
        return found

    def _look(self, found: _Loaded) -> None:
        clip = found.clip
        with open_media(clip.path, limits=self._limits) as file:
            content = file.read()
        found.sha256 = hashlib.sha256(content).hexdigest()
        if found.sha256 != clip.sha256:
            found.why_cpu = "changed"
            return
        outline = found.outline = read_outline(clip.path, limits=self._limits)
        if len(outline.times_s) != clip.clip_frames:
            found.why_cpu = "frame-count"
            return
        found.stream = Stream.of_outline(outline)
        found.route = self._router(found.stream, len(clip.wanted))
        if found.route.to == "cpu":
            found.why_cpu = found.route.reason
            return
        found.file = np.frombuffer(content, np.uint8)

    def _decode(self, window: list[_Loaded], runner: DaliRunner) -> None:
        """Let the graph have what is its own; sorted by size, for the sake of its sessions."""
        ours = [found for found in window if found.file is not None]
        ours = by_size(ours, lambda found: _known(found.stream))
        jobs = [(found, part) for found in ours for part in self._parts(found)]
        owners = iter(jobs)
        for _, result in runner.run(part for _, part in jobs):
            found, _ = next(owners)
            if isinstance(result, Failed):
                found.why_cpu = f"gave-up: {result.reason}"
            elif not found.why_cpu:
                found.pieces.append(result)
        for found in ours:
            if not found.why_cpu:
                self._finish(found)
            found.file = None
            found.pieces.clear()

    def _parts(self, found: _Loaded) -> list[Part]:
        clip, outline, stream = found.clip, _known(found.outline), _known(found.stream)
        wanted = clip.wanted
        if _known(found.route).needs_check:
            wanted = np.concatenate([np.zeros(1, np.int32), wanted])
        size = self._size_px, self._size_px
        return parts_of(
            outline, stream, _known(found.file), wanted, box=_box_of(clip, outline), size=size
        )

    def _finish(self, found: _Loaded) -> None:
        """Join the parts and turn them; compare the first picture where it was asked for."""
        outline = _known(found.outline)
        frames = found.pieces[0] if len(found.pieces) == 1 else np.concatenate(found.pieces)
        frames = outline.orientation.apply(frames)
        if _known(found.route).needs_check:
            if not is_same_picture(frames[0], outline, _box_of(found.clip, outline)):
                found.why_cpu = "other-picture: NVDEC's first picture is not PyAV's"
                _log.warning("%s: %s; the CPU decodes it", found.clip.path, found.why_cpu)
                return
            frames = frames[1:]
        found.frames = frames

    def _hand_on(self, window: list[_Loaded]) -> Iterator[Sampled | Refused]:
        others = self._fallback.sample([found.clip for found in window if found.frames is None])
        try:
            for found in window:
                self.routes[found.why_cpu.split(":")[0] if found.why_cpu else "nvdec"] += 1
                if found.frames is None:
                    for item in others:
                        yield item
                        if isinstance(item, Refused) or item.is_last:
                            break
                else:
                    yield Sampled(clip=found.clip, frames=found.frames, sha256=found.sha256)
                    found.frames = None
        finally:
            if hasattr(others, "close"):
                others.close()  # pyright: ignore[reportAttributeAccessIssue]


def _file_bytes(clip: ClipToSample) -> int:
    """What its file takes in memory, at most; an absent one is the fallback's to refuse."""
    try:
        return clip.path.stat().st_size
    except OSError:
        return 0


def _box_of(clip: ClipToSample, outline: ClipOutline) -> Box:
    """What is cut out of the upright picture."""
    return Box(*middle_square(*outline.upright_size)) if clip.box is None else Box(*clip.box)


def _known(value: T | None) -> T:
    """Narrow away the None of a field that is set by now."""
    assert value is not None
    return value
