"""`DaliReader`: the pictures that framing needs, decoded and cut on a GPU where NVDEC can.

The same graph and the same routing as `DaliSampler` serve one clip at a time here: every n-th
picture whole, to look for the face, and later all of them cut to the box. Which stored picture a
frame shows is worked out from the packets' times (`media.outline`), so a clip gives the same
frames as by PyAV, up to the rounding of colours and weights; a picture that is shown twice is
decoded once.

What NVDEC does not take, did not survive, or sees differently goes to `PyavReader`, and so does
every still. Only a file with the hash it was listed with is decoded here: NVDEC does not tell
damage.

A pipeline serves one clip at a time, of which one NVDEC engine decodes. So a reader that several
threads call has several pipelines, and a thread borrows one for as long as it draws a clip.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfm_engine.clip import Box, Pixels
from dfm_engine.errors import EnvironmentUnfit, MediaError
from dfm_engine.faces.pictures import ClipRange, FrameReader, PyavReader
from dfm_engine.media.containers import open_media
from dfm_engine.media.outline import ClipOutline, native_indices, read_outline
from dfm_engine.recipe import Clips, Limits
from dfm_engine.store.dali_graph import GraphSpec, load_dali
from dfm_engine.store.dali_run import DaliRunner, Failed
from dfm_engine.store.nvdec import Router, gpu_router, gpu_spec, is_same_picture, parts_of
from dfm_engine.store.routing import Stream

__all__ = ["DaliReader"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Open:
    """A clip that goes to the GPU.

    Attributes:
        file: its bytes, uint8 (N,).
        outline, stream: what it is.
        natives: per frame, the stored picture that it shows.
        needs_check: compare the first picture with PyAV's.
    """

    file: NDArray[np.uint8]
    outline: ClipOutline
    stream: Stream
    natives: NDArray[np.int32]
    needs_check: bool


class _GaveUp(Exception):
    """The GPU does not decode this clip after all."""


class _Pipelines:
    """At most so many, made when all others are taken; the first at once."""

    def __init__(self, make: Callable[[], DaliRunner], most: int) -> None:
        self._make = make
        self._all = [make()]
        self._free = list(self._all)
        self._most = most
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def borrow(self) -> Iterator[DaliRunner]:
        """One that nobody else has; waits while there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or len(self._all) < self._most)
            if not self._free:
                self._add()
            runner = self._free.pop()
        try:
            yield runner
        finally:
            with self._changed:
                self._free.append(runner)
                self._changed.notify()

    def _add(self) -> None:
        """One more; where there is no room for it beside the generator, wait for one there is.

        Made under the lock: whoever gives one back meanwhile waits, a second at a run's start.
        """
        try:
            made = self._make()
        except EnvironmentUnfit as error:
            _log.warning("DALI: %d pipelines are all there will be: %s", len(self._all), error)
            self._most = len(self._all)
            self._changed.wait_for(lambda: self._free)
        else:
            self._all.append(made)
            self._free.append(made)

    def close(self) -> None:
        for runner in self._all:
            runner.close()


class DaliReader:
    """A `FrameReader` that decodes with NVDEC; for any number of threads.

    Args:
        spec: the graph; the one for this machine where left out.
        router: where a clip goes; by the rules and this device's sizes where left out.
        fallback: reads the others.
        pipelines: clips decoded at once, at most.

    Attributes:
        name: with DALI's version: another may round otherwise.
        routes: how many times a clip was read where (`nvdec`, or why not).
    """

    def __init__(
        self,
        *,
        spec: GraphSpec | None = None,
        router: Router | None = None,
        fallback: FrameReader | None = None,
        pipelines: int = 1,
    ) -> None:
        """Build the graph and try it.

        Raises:
            EnvironmentUnfit: this machine does not decode with DALI.
        """
        self.name = f"dali {load_dali().__version__}"
        self.routes: Counter[str] = Counter()
        self._router = gpu_router() if router is None else router
        self._fallback = fallback or PyavReader()
        spec = gpu_spec() if spec is None else spec
        self._pipelines = _Pipelines(lambda: DaliRunner(spec), pipelines)
        self._given_up: set[Path] = set()
        self._lock = threading.Lock()  # of the counter

    def look(
        self, clip: ClipRange, *, every_n: int, limits: Limits, clips: Clips
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """See `FrameReader.look`; holds two parts of a clip, a part being up to 1 GiB."""
        done = -1
        if opened := self._open(clip, limits=limits, clips=clips, every_n=every_n):
            count = len(opened.natives)
            frames = sorted({*range(0, count, every_n), count - 1})
            try:
                pictures = self._pictures(opened, opened.natives[frames], None, None)
                for done, picture in zip(frames, pictures, strict=True):
                    yield done, np.ascontiguousarray(picture[:, ::-1]) if clip.mirrored else picture
                return
            except _GaveUp:
                self._given_up.add(clip.path)
        for index, picture in self._fallback.look(
            clip, every_n=every_n, limits=limits, clips=clips
        ):
            if index > done:  # what was handed on stays: it was right
                yield index, picture

    def crop(
        self,
        clip: ClipRange,
        box: Box,
        *,
        size: int,
        limits: Limits,
        clips: Clips,
        first_frame: int,
    ) -> Pixels:
        """See `FrameReader.crop`."""
        opened = self._open(clip, limits=limits, clips=clips)
        if opened is not None and len(opened.natives) > first_frame:
            try:
                return self._crop(opened, clip, box, size, opened.natives[first_frame:])
            except _GaveUp:
                self._given_up.add(clip.path)
        return self._fallback.crop(
            clip, box, size=size, limits=limits, clips=clips, first_frame=first_frame
        )

    def close(self) -> None:
        """Let the GPU's memory go."""
        self._pipelines.close()

    def _crop(
        self, opened: _Open, clip: ClipRange, box: Box, size: int, natives: NDArray[np.int32]
    ) -> Pixels:
        _, width = opened.outline.upright_size
        if clip.mirrored:
            box = Box(width - box.x1, box.y0, width - box.x0, box.y1)
        wanted, place = np.unique(natives, return_inverse=True)
        frames = np.stack(list(self._pictures(opened, wanted, box, size)))[place]
        return np.ascontiguousarray(frames[:, :, ::-1]) if clip.mirrored else frames

    def _open(
        self, clip: ClipRange, *, limits: Limits, clips: Clips, every_n: int = 1
    ) -> _Open | None:
        """Read a clip that is to go to the GPU; None sends it to the other reader."""
        try:
            found = self._try(clip, limits=limits, clips=clips, every_n=every_n)
        except MediaError as error:
            found = error.kind  # the other reader says it better
        with self._lock:
            self.routes[found.split(":")[0] if isinstance(found, str) else "nvdec"] += 1
        if isinstance(found, str):
            _log.debug("%s: decoded on the CPU: %s", clip.path, found)
            return None
        return found

    def _try(self, clip: ClipRange, *, limits: Limits, clips: Clips, every_n: int) -> _Open | str:
        if clip.is_still or clip.sha256 is None:
            return "still" if clip.is_still else "unknown-hash"
        if clip.path in self._given_up:
            return "gave-up"
        with open_media(clip.path, limits=limits) as file:
            content = file.read()
        if hashlib.sha256(content).hexdigest() != clip.sha256:
            return "changed"
        outline = read_outline(clip.path, limits=limits)
        natives = native_indices(outline, fps=clips.fps, start_s=clip.start_s, end_s=clip.end_s)
        natives = np.asarray(natives[: clips.max_frames], np.int32)
        stream = Stream.of_outline(outline)
        way = self._router(stream, len(natives[::every_n]))
        if way.to == "cpu":
            return way.reason
        return _Open(np.frombuffer(content, np.uint8), outline, stream, natives, way.needs_check)

    def _pictures(
        self, opened: _Open, wanted: NDArray[np.int32], box: Box | None, size: int | None
    ) -> Iterator[Pixels]:
        """Yield stored pictures by number, upright, whole or cut; repeats are decoded once.

        Raises:
            _GaveUp: the graph does not take the clip, or sees another first picture than PyAV.
        """
        outline = opened.outline
        height, width = outline.upright_size
        whole = Box(0.0, 0.0, float(width), float(height))
        unique, place = np.unique(wanted, return_inverse=True)
        if opened.needs_check:
            unique = np.concatenate([np.zeros(1, np.int32), unique])
        target = (size, size) if size is not None else (outline.height, outline.width)
        parts = parts_of(outline, opened.stream, opened.file, unique, box=box or whole, size=target)
        repeats = np.bincount(place)
        number = -1 if opened.needs_check else 0
        with (
            self._pipelines.borrow() as runner,
            contextlib.closing(runner.run(parts)) as results,
        ):
            for _, result in results:
                if isinstance(result, Failed):
                    raise _GaveUp(result.reason)
                for picture in outline.orientation.apply(result):
                    if number < 0:
                        _refuse_another(picture, outline, box)
                    else:
                        yield from [picture] * int(repeats[number])
                    number += 1


def _refuse_another(picture: Pixels, outline: ClipOutline, box: Box | None) -> None:
    if not is_same_picture(picture, outline, box):
        _log.warning(
            "%s: the GPU's first picture is not the CPU's; the CPU decodes it", outline.path
        )
        raise _GaveUp("another first picture")
