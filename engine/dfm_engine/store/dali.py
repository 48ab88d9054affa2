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
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from dfm_engine.clip import Box, Pixels
from dfm_engine.errors import EnvironmentUnfit, MediaError
from dfm_engine.machine import read_cores
from dfm_engine.media.colour import RgbConverter
from dfm_engine.media.containers import open_media
from dfm_engine.media.cropping import BoxCropper, middle_square
from dfm_engine.media.outline import ClipOutline, read_outline
from dfm_engine.nvidia import NvidiaFacts, read_nvidia
from dfm_engine.recipe import Limits
from dfm_engine.store.dali_graph import GraphSpec, load_dali
from dfm_engine.store.dali_run import DaliRunner, Failed, Part
from dfm_engine.store.routing import Route, SizeLimits, Stream, by_size, rgb_correction, route
from dfm_engine.store.sampler import ClipToSample, FrameSampler, Refused, Sampled

__all__ = ["DaliSampler", "gpu_spec", "parts_of", "why_not_dali"]

_log = logging.getLogger(__name__)

WINDOW_CLIPS = 256
WINDOW_BYTES = 1 << 30  # of cropped frames, held until they are handed on in order
LEAST_THREADS = 4
SAME_PICTURE = 3.0
"""Mean distance in levels below which two decoders saw the same first picture. Colour arithmetic
alone gives 0.4; a picture with moved or lost rows is tens away."""

Router = Callable[[Stream, int], Route]

T = TypeVar("T")


def why_not_dali(facts: NvidiaFacts | None = None) -> str:
    """What keeps this machine from decoding through DALI, in words; "" if nothing does."""
    facts = read_nvidia() if facts is None else facts
    if not facts.gpus:
        return facts.cuda_error or "CUDA sees no device"
    if not facts.nvdec:
        return facts.nvdec_error or "NVDEC is not usable"
    try:
        load_dali()
    except EnvironmentUnfit as error:
        return str(error)
    return ""


def gpu_spec(facts: NvidiaFacts | None = None) -> GraphSpec:
    """The graph for this machine's first GPU: two decoding threads per engine, a clip for each.

    Raises:
        EnvironmentUnfit: there is none that DALI decodes on.
    """
    facts = read_nvidia() if facts is None else facts
    if reason := why_not_dali(facts):
        raise EnvironmentUnfit(
            f"decoding with DALI: {reason}; use --decode auto or pyav, or see `dfm-engine doctor`"
        )
    engines = max((facts.nvdec or {}).values(), default=1)
    threads = max(LEAST_THREADS, 2 * engines)
    return GraphSpec(source="nvdec", device_id=0, threads=threads, batch_size=2 * threads)


def size_limits(facts: NvidiaFacts) -> Mapping[str, SizeLimits] | None:
    """What the device says it decodes; None where it says nothing."""
    if not facts.nvdec_sizes:
        return None
    return {codec: SizeLimits(*size) for codec, size in facts.nvdec_sizes.items()}


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
        if spec is None or router is None:
            facts = read_nvidia()
            spec = spec or gpu_spec(facts)
            sizes = size_limits(facts)
            router = router or (lambda stream, wanted: route(stream, wanted=wanted, limits=sizes))
        self.routes: Counter[str] = Counter()
        self._size_px = size_px
        self._fallback = fallback
        self._limits = limits or Limits()
        self._spec = spec
        self._router = router

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
            held += len(clip.wanted) * self._size_px**2 * 3
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
            distance = _distance(frames[0], outline, _box_of(found.clip, outline))
            if distance > SAME_PICTURE:
                found.why_cpu = "other-picture: NVDEC's first picture is not PyAV's"
                _log.warning(
                    "%s: the GPU's first picture is %.1f levels from the CPU's; the CPU decodes it",
                    found.clip.path,
                    distance,
                )
                return
            frames = frames[1:]
        found.frames = frames

    def _hand_on(self, window: list[_Loaded]) -> Iterator[Sampled | Refused]:
        others = self._fallback.sample(found.clip for found in window if found.frames is None)
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


def parts_of(
    outline: ClipOutline,
    stream: Stream,
    file: NDArray[np.uint8],
    wanted: NDArray[np.int32],
    *,
    box: Box,
    size: tuple[int, int],
) -> list[Part]:
    """What the graph is given for a clip: one part, or more where its pictures fill too much.

    Args:
        outline: of the clip.
        stream: its facts.
        file: its bytes, uint8 (N,).
        wanted: (F,) int32, pictures by their place in the order of showing.
        box: in pixels of the upright picture.
        size: (h, w) of the result, in stored orientation.
    """
    stored = outline.orientation.stored_box(box, *outline.upright_size)
    wanted = np.ascontiguousarray(wanted, np.int32)
    step = stream.chunk_frames
    return [
        Part(
            name=os.fspath(outline.path),
            payload=file,
            wanted=some,
            box=stored,
            size=size,
            decoded_bytes=len(some) * stream.width * stream.height * 3,
            colour=rgb_correction(stream.matrix),
        )
        for some in (wanted[start : start + step] for start in range(0, len(wanted), step))
    ]


def _box_of(clip: ClipToSample, outline: ClipOutline) -> Box:
    """What is cut out of the upright picture."""
    return Box(*middle_square(*outline.upright_size)) if clip.box is None else Box(*clip.box)


def _distance(frame: NDArray[np.uint8], outline: ClipOutline, box: Box) -> float:
    """Mean distance, in levels, of a cropped first picture from the one that PyAV decoded."""
    picture = RgbConverter().convert(outline.first)
    height, width, _ = picture.shape
    expected = BoxCropper(height, width, box, len(frame))(picture)
    return float(np.abs(frame.astype(np.int16) - expected).mean())


def _known(value: T | None) -> T:
    """Narrow away the None of a field that is set by now."""
    assert value is not None
    return value
