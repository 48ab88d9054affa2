"""Runs the DALI graph over any number of clips, and survives every one of them.

A DALI pipeline dies of its first bad clip ("Current pipeline object is no longer valid"), and does
not say which it was. So when a run fails, the pipeline is built anew and every clip that was under
way is run alone: the one that fails again is the culprit and gives a `Failed` in its place, the
others lose nothing. Whoever feeds the graph opens files first: what cannot be read never gets here,
so no input of the graph ever raises.

A pipeline is trusted only after it has run a clip known to be good (`stub`), when it is new and
after every failure. If that fails, it is the machine and not the clip: `EnvironmentUnfit`. The same
clip tells how far the decoder's colours are off, which every later frame is corrected by
(`dali_trial`).
"""

from __future__ import annotations

import logging
import math
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dfm_engine.errors import EnvironmentUnfit, ShapeError
from dfm_engine.store.dali_graph import GraphSpec, Source, build_graph
from dfm_engine.store.dali_trial import (
    SIDE_PX,
    GreySteps,
    affine_colour,
    decoder_bias,
    grey_steps,
)

__all__ = ["BATCH_BYTES", "DaliRunner", "Failed", "Part", "Run", "to_device", "to_host"]

_log = logging.getLogger(__name__)

BATCH_BYTES = 4 << 30
"""Decoded pictures of one run that are held at once."""

_DALI_ERRORS = (RuntimeError, IndexError, ValueError, TypeError, MemoryError)
_IDENTITY = np.eye(3, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Some pictures of one clip: one sample of the graph.

    Attributes:
        name: of the clip, for messages.
        payload: its file as uint8 (N,), or its pictures as uint8 (F, H, W, 3).
        wanted: (F,) int32, which pictures, by their place in the order of showing; None with
            pictures.
        box: x0 y0 x1 y1 in pixel edges of the stored picture.
        size: (h, w) of the result.
        decoded_bytes: of the pictures before they are cropped.
        colour: (3, 3) on (R, G, B) after cropping.
    """

    name: str
    payload: NDArray[np.uint8]
    wanted: NDArray[np.int32] | None
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    decoded_bytes: int
    colour: NDArray[np.float32] = field(default_factory=lambda: _IDENTITY)

    def __post_init__(self) -> None:
        # DALI takes the process down over a box that is not a number.
        x0, y0, x1, y1 = self.box
        if not (all(map(math.isfinite, self.box)) and x0 < x1 and y0 < y1):
            raise ShapeError(f"{self.name}: the box {self.box} is empty or not finite")
        if min(self.size) < 1 or self.payload.dtype != np.uint8 or not self.payload.size:
            raise ShapeError(
                f"{self.name}: {self.payload.dtype} {self.payload.shape} to {self.size} px"
            )
        if (self.payload.ndim == 1) != (self.wanted is not None) or self.payload.ndim not in (1, 4):
            raise ShapeError(f"{self.name}: a file needs `wanted`, pictures (F, H, W, 3) have none")
        if self.wanted is not None and not (self.wanted.size and (self.wanted >= 0).all()):
            raise ShapeError(f"{self.name}: wants no picture, or one before the first")


@dataclass(frozen=True, slots=True)
class Failed:
    """What took the place of a part that the graph does not survive."""

    part: Part
    reason: str


Run = tuple[Part, Any]
"""A part and its result: what `take` made of it, or `Failed`."""


def to_host(output: Any) -> list[NDArray[np.uint8]]:
    """Copy a graph's output to NumPy arrays: uint8 (F, h, w, 3) each, or float (F, 3, h, w)."""
    output = output.as_cpu() if hasattr(output, "as_cpu") else output
    return [np.array(output[place]) for place in range(len(output))]


def to_device(output: Any) -> list[Any]:
    """Copy a graph's output to torch tensors where it lies; the graph keeps its own buffers."""
    import torch

    tensors = [torch.from_dlpack(output[place]).clone() for place in range(len(output))]
    if tensors and tensors[0].is_cuda:
        torch.cuda.current_stream().synchronize()  # the buffers go back right after this
    return tensors


class DaliRunner:
    """Owns a pipeline and its successors.

    Args:
        spec: the graph.
        take: turns an output into one item per clip while its buffers last.
        build: makes the pipeline; for tests.
        batch_bytes: decoded pictures held in one run.

    Attributes:
        rebuilt: how often the pipeline had to be made anew.
        bias: (3,) levels that the decoder adds to R, G and B, taken off every frame; zeros where
            nothing is decoded.
    """

    def __init__(
        self,
        spec: GraphSpec,
        *,
        take: Callable[[Any], list[Any]] = to_host,
        build: Callable[[GraphSpec], Any] = build_graph,
        batch_bytes: int = BATCH_BYTES,
    ) -> None:
        """Build, and run a clip known to be good.

        Raises:
            EnvironmentUnfit: the graph does not build, fails on that clip, or shows it in colours
                that no constant mends.
        """
        self.spec = spec
        self.rebuilt = -1
        self.bias: NDArray[np.float64] = np.zeros(3)
        self._take = take
        self._build = build
        self._batch_bytes = batch_bytes
        self._steps = _steps(spec.source)
        self._stub = _stub(self._steps)
        self._pipeline: Any = None
        self._renew()

    def run(self, parts: Iterable[Part]) -> Generator[Run, None, None]:
        """Yield every part with its result, in order.

        Parts are drawn `depth` batches ahead of what is yielded.

        Raises:
            EnvironmentUnfit: the graph fails on a clip known to be good.
        """
        under_way: deque[list[Part]] = deque()
        try:
            yield from self._run(self._batches(parts), under_way)
        finally:
            if under_way:  # whoever drew from here has stopped: nothing of it may be left inside
                self._drain(len(under_way))

    def _run(self, batches: Iterator[list[Part]], under_way: deque[list[Part]]) -> Iterator[Run]:
        while True:
            while len(under_way) < self.spec.depth and (batch := next(batches, None)):
                under_way.append(batch)
                try:
                    self._schedule(batch)
                except _DALI_ERRORS as error:
                    yield from self._one_by_one(under_way, error)
            if not under_way:
                return
            try:
                results = self._collect(self._take)
            except _DALI_ERRORS as error:
                yield from self._one_by_one(under_way, error)
            else:
                yield from zip(under_way.popleft(), results, strict=True)

    def _drain(self, runs: int) -> None:
        try:
            for _ in range(runs):
                self._collect(self._take)
        except _DALI_ERRORS:
            self._renew()

    def close(self) -> None:
        """Let the pipeline and its memory go."""
        self._pipeline = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _one_by_one(self, under_way: deque[list[Part]], error: BaseException) -> Iterator[Run]:
        """Find the culprit among the parts under way, which are all answered afterwards."""
        suspects = [part for batch in under_way for part in batch]
        under_way.clear()
        _log.info("DALI gave up on one of %d clips: %s", len(suspects), _reason(error))
        self._renew()
        for part in suspects:
            try:
                self._schedule([part])
                (result,) = self._collect(self._take)
            except _DALI_ERRORS as alone:
                self._renew()
                _log.warning("%s: DALI does not take it: %s", part.name, _reason(alone))
                yield part, Failed(part, _reason(alone))
            else:
                yield part, result

    def _renew(self) -> None:
        """Build a pipeline, see it work, and measure its decoder's colours."""
        self._pipeline = None  # let its memory go first
        self._pipeline = self._build(self.spec)
        self.rebuilt += 1
        self.bias = np.zeros(3)
        shown: list[NDArray[Any]] = []
        try:
            # DALI's first scheduled run starts as many as it holds at once: feed them all.
            for _ in range(self.spec.depth):
                self._feed([self._stub])
            self._pipeline.schedule_run()
            for _ in range(self.spec.depth):
                shown = self._collect(self._try)
        except _DALI_ERRORS as error:
            raise EnvironmentUnfit(
                f"DALI's {self.spec.source} graph fails on a clip that is known to be good "
                f"({_reason(error)}); `dfm-engine doctor` says what is missing, --decode pyav "
                "does without"
            ) from error
        if self._steps is not None:
            self.bias = decoder_bias(_levels(shown[0], self.spec)[0], self._steps)
            if not self.rebuilt:
                told = "DALI's decoder is %+.2f, %+.2f, %+.2f levels off in R, G, B; taken off"
                _log.info(told, *self.bias)

    def _try(self, output: Any) -> list[NDArray[Any]]:
        """Take an output as ever, to see that work too, and to the host."""
        self._take(output)
        return to_host(output)

    def _batches(self, parts: Iterable[Part]) -> Iterator[list[Part]]:
        """Group parts by count and by decoded size; one too large for both comes alone."""
        batch: list[Part] = []
        held = 0
        for part in parts:
            is_full = len(batch) == self.spec.batch_size
            if batch and (is_full or held + part.decoded_bytes > self._batch_bytes):
                yield batch
                batch, held = [], 0
            batch.append(part)
            held += part.decoded_bytes
        if batch:
            yield batch

    def _schedule(self, batch: list[Part]) -> None:
        self._feed(batch)
        self._pipeline.schedule_run()

    def _feed(self, batch: list[Part]) -> None:
        fed: dict[str, list[Any]] = {
            "box": [np.asarray(part.box, np.float32) for part in batch],
            "size": [np.asarray(part.size, np.float32) for part in batch],
            "colour": [affine_colour(part.colour, self.bias) for part in batch],
        }
        if self.spec.source == "frames":
            fed["frames"] = [part.payload for part in batch]
        else:
            fed["bytes"] = [part.payload for part in batch]
            fed["wanted"] = [part.wanted for part in batch]
        for name in self.spec.inputs:
            self._pipeline.feed_input(name, fed[name])

    def _collect(self, take: Callable[[Any], list[Any]]) -> list[Any]:
        (output,) = self._pipeline.share_outputs()
        try:
            return take(output)
        finally:
            self._pipeline.release_outputs()


def _reason(error: BaseException) -> str:
    """The sentence in DALI's page of a message."""
    text = str(error)
    _, _, told = text.partition("encountered:")
    lines = [line.strip() for line in (told or text).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("C++ context", "Current pipe"))]
    return re.sub(r"\s+", " ", kept[0]) if kept else type(error).__name__


def _levels(output: NDArray[Any], spec: GraphSpec) -> NDArray[Any]:
    """(F, h, w, 3) in levels of 0-255, of what a graph with or without mean and std gives."""
    if spec.mean is None:
        return output
    return np.moveaxis(output, 1, -1) * np.asarray(spec.std) + np.asarray(spec.mean)


def _steps(source: Source) -> GreySteps | None:
    """What a decoder is tried on; none where PyAV decodes."""
    if source == "frames":
        return None
    return grey_steps("libx264" if source == "nvdec" else "libvpx-vp9")


def _stub(steps: GreySteps | None) -> Part:
    """A clip that every graph of this source takes, as it is stored: nothing is resampled."""
    grey = np.full((1, SIDE_PX, SIDE_PX, 3), 128, np.uint8)
    return Part(
        name="the clip for trials",
        payload=grey if steps is None else steps.file,
        wanted=None if steps is None else np.zeros(1, np.int32),
        box=(0.0, 0.0, float(SIDE_PX), float(SIDE_PX)),
        size=(SIDE_PX, SIDE_PX),
        decoded_bytes=grey.nbytes,
    )
