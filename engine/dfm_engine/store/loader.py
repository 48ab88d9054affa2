"""Rows of a store as tensors on the device, from wherever its frames fit.

    device   all frames in the device's memory; a gather is one kernel
    host     all frames in main memory, pinned where there is CUDA; gather, then one copy
    memmap   frames stay in the shards, the operating system keeps what is read often
    stream   no frames at all: the clips are decoded again each time

The four give the same bytes for the same rows: the first three always, `stream` with the decoder
that filled the store. `auto` takes the first that fits. `ahead.py` gathers the next batch while the
present one is trained on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfm_engine.errors import EnvironmentUnfit, InputError, UsageError
from dfm_engine.machine import read_memory
from dfm_engine.store.frames import Store
from dfm_engine.store.index import StoreIndex
from dfm_engine.store.meta import StoreMeta, shard_path
from dfm_engine.store.stream import ClipSource

if TYPE_CHECKING:
    from dfm_engine.store.sampler import FrameSampler

__all__ = ["MODES", "Loader", "Mode", "open_loader"]

Mode = Literal["auto", "device", "host", "memmap", "stream"]
MODES: tuple[Mode, ...] = ("auto", "device", "host", "memmap", "stream")

RESERVE_SHARE = 0.25
"""Of the device's or the machine's memory, what `auto` leaves for everything but frames."""

_ROWS_AT_ONCE = 256  # of a shard on its way to a device

Rows = NDArray[np.int64]
Bytes = NDArray[np.uint8]


class Loader(Protocol):
    """Gives frames; owns the memory that they lie in."""

    @property
    def mode(self) -> Mode:
        """Which of the four."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the frames go."""
        ...

    @property
    def store(self) -> Store:
        """Whose they are."""
        ...

    def gather(self, rows: Rows) -> Tensor:
        """Frames of rows.

        Args:
            rows: (B,) int64, in any order, repeats allowed.

        Returns:
            uint8 (B, *frame_shape) on the device, frame k being row `rows[k]`; the caller's own.
        """
        ...

    def follow(self, coming: Iterable[Rows]) -> None:
        """Say what will be gathered from now on, in order; only `stream` makes use of it."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


def open_loader(
    store: Store | str | os.PathLike[str],
    mode: Mode = "auto",
    *,
    device: torch.device | str = "cpu",
    data: str | os.PathLike[str] | None = None,
    sampler: FrameSampler | None = None,
) -> Loader:
    """Open a loader in a mode, or in the first that fits.

    Args:
        store: an open one or its folder; for `stream` its shards may be absent.
        mode: see the module.
        device: where the frames go.
        data: stream: the folder of the clips that the store was made of.
        sampler: stream: decodes them, in the store's size and layout; None: PyAV.

    Raises:
        UsageError: no such mode, or `stream` without `data`.
        EnvironmentUnfit: the mode asked for needs more memory than there is.
        InputError: a store that is not whole, or a shard that holds other bytes than it should.
    """
    if mode not in MODES:
        raise UsageError(f"the loader's mode is one of {', '.join(MODES)}, found {mode!r}")
    where = torch.device(device)
    if mode == "stream":
        if data is None:
            raise UsageError(
                "the loader stream decodes the clips again: give the folder that they are in"
            )
        if not isinstance(store, Store):
            folder = Path(store)
            store = Store(folder, StoreMeta.read(folder), StoreIndex.read(folder))
        sampler = sampler or _pyav_sampler(store)
        return HostLoader(ClipSource(store, Path(data), sampler), where, mode="stream")
    store = store if isinstance(store, Store) else Store.open(store)
    if mode == "auto":
        mode = choose_mode(store.meta.size_bytes, where)
    if mode == "device":
        return DeviceLoader(store, where)
    if mode == "host":
        return HostLoader(ResidentSource(store, pinned=where.type == "cuda"), where, mode="host")
    return HostLoader(store, where, mode="memmap")


def choose_mode(size_bytes: int, device: torch.device) -> Mode:
    """The first of `device` (on a GPU), `host` and `memmap` that has room for the frames."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        if size_bytes <= free - RESERVE_SHARE * total:
            return "device"
    total, free = read_memory()
    return "host" if size_bytes <= free - RESERVE_SHARE * total else "memmap"


class DeviceLoader:
    """All frames on the device."""

    def __init__(self, store: Store, device: torch.device) -> None:
        """Copy the frames there.

        Raises:
            EnvironmentUnfit: they do not fit.
            InputError: a shard holds other bytes than it should.
        """
        self.mode: Mode = "device"
        self.store, self.device = store, device
        try:
            self._frames = torch.empty(
                (store.rows, *store.meta.frame_shape), dtype=torch.uint8, device=device
            )
        except RuntimeError as error:
            raise _no_room(store, str(device), error) from error
        into = 0
        for shard in _checked_shards(store):
            for start in range(0, len(shard), _ROWS_AT_ONCE):
                piece = torch.from_numpy(shard[start : start + _ROWS_AT_ONCE].copy())
                self._frames[into : into + len(piece)].copy_(piece)
                into += len(piece)

    def gather(self, rows: Rows) -> Tensor:
        """See `Loader.gather`."""
        _check(rows, self.store)
        return self._frames.index_select(0, torch.from_numpy(rows).to(self.device))

    def follow(self, coming: Iterable[Rows]) -> None:
        """All is here."""

    def close(self) -> None:
        """Give the memory back."""
        self._frames = self._frames[:0].clone()


class HostLoader:
    """Frames gathered in main memory, then copied to the device.

    With CUDA they are gathered into pinned memory, and copied in a stream of their own: called
    from a thread (`Prefetch`), neither the gather nor the copy holds up a step.
    """

    def __init__(
        self, source: Store | ResidentSource | ClipSource, device: torch.device, *, mode: Mode
    ) -> None:
        self.mode: Mode = mode
        self.device = device
        self.store = source if isinstance(source, Store) else source.store
        self._source = source
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._staging: Tensor | None = None

    def gather(self, rows: Rows) -> Tensor:
        """See `Loader.gather`."""
        _check(rows, self.store)
        shape = (len(rows), *self.store.meta.frame_shape)
        if self._stream is None:
            frames = torch.empty(shape, dtype=torch.uint8)
            self._source.read(rows, frames.numpy())
            return frames.to(self.device)
        if self._staging is None or len(self._staging) < len(rows):
            self._staging = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        staging = self._staging[: len(rows)]
        self._source.read(rows, staging.numpy())
        with torch.cuda.stream(self._stream):
            frames = staging.to(self.device, non_blocking=True)
        self._stream.synchronize()  # the copy is over: the staging memory is free again
        frames.record_stream(torch.cuda.default_stream(self.device))
        return frames

    def follow(self, coming: Iterable[Rows]) -> None:
        """Let clips be decoded ahead."""
        if isinstance(self._source, ClipSource):
            self._source.follow(coming)

    def close(self) -> None:
        """Give the memory back; end what decodes."""
        self._staging = None
        if not isinstance(self._source, Store):
            self._source.close()


class ResidentSource:
    """All frames in main memory."""

    def __init__(self, store: Store, *, pinned: bool) -> None:
        """Read them.

        Raises:
            EnvironmentUnfit: they do not fit.
            InputError: a shard holds other bytes than it should.
        """
        self.store = store
        shape = (store.rows, *store.meta.frame_shape)
        try:
            self._memory = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        except RuntimeError as error:
            raise _no_room(store, "the machine", error) from error
        self._frames = self._memory.numpy()
        into = 0
        for shard in _checked_shards(store):
            self._frames[into : into + len(shard)] = shard
            into += len(shard)

    def read(self, rows: Rows, out: Bytes | None = None) -> Bytes:
        """See `Store.read`; rows have been checked. One copy, without the interpreter's lock."""
        return np.take(self._frames, rows, axis=0, out=out, mode="clip")

    def close(self) -> None:
        """Give the memory back."""
        self._memory, self._frames = torch.empty(0), np.empty(0, np.uint8)


def _checked_shards(store: Store) -> Iterator[Bytes]:
    """Each shard's frames, after a look whether they are what was written."""
    for number, (shard, facts) in enumerate(
        zip(store.each_shard(), store.meta.shards, strict=True)
    ):
        found = hashlib.sha256(shard.data).hexdigest()
        if found != facts.sha256:
            raise InputError(
                f"the store's shard {os.fspath(shard_path(store.path, number))!r} was changed "
                f"after it was written (sha256 {found[:12]}, expected {facts.sha256[:12]}); copy "
                "the store again, or delete its folder and prepare it again"
            )
        yield shard


def _pyav_sampler(store: Store) -> FrameSampler:
    from dfm_engine.machine import read_cores
    from dfm_engine.store.pyav import PyavSampler

    meta = store.meta
    workers = max(1, round(read_cores()))
    return PyavSampler(size_px=meta.size_px, layout=meta.layout, workers=workers)


def _check(rows: Rows, store: Store) -> None:
    if rows.ndim != 1 or rows.dtype != np.int64:
        raise UsageError(f"rows to gather must be int64 (B,), got {rows.dtype} {rows.shape}")
    if len(rows) and not (rows.min() >= 0 and rows.max() < store.rows):
        raise IndexError(f"rows {rows.min()} .. {rows.max()} of a store that has {store.rows}")


def _no_room(store: Store, where: str, error: RuntimeError) -> EnvironmentUnfit:
    return EnvironmentUnfit(
        f"the {store.meta.size_bytes / 2**30:.1f} GiB of frames of {os.fspath(store.path)!r} do "
        f"not fit into the memory of {where} ({str(error).splitlines()[0]}); choose the loader "
        "memmap or auto, or prepare fewer frames per clip"
    )
