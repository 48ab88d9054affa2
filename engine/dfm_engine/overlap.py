"""Stages that work at the same time: a generator in a thread of its own, behind a bounded queue.

    with Ahead(open_jobs(wave), depth=2, name="open") as jobs:
        for job in jobs:            # the next two are opened meanwhile
            ...

The order is that of the generator, so what comes out does not depend on the timing. A full queue
holds the generator back; whoever stops reading ends it. Torch, PyAV and the encoders' pipes release
Python's lock while they work, so threads are enough.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

__all__ = ["Ahead"]

T = TypeVar("T")


class Ahead(Generic[T]):
    """The items of an iterator, made up to `depth` items ahead of who reads them.

    Enter it to start, leave it to end: the thread finishes the item that it is at, and is joined.

    Args:
        items: run in the thread; closed there when it ends early.
        depth: items that may wait. Memory is that of `depth` + 1 of them.
        name: of the thread.
    """

    def __init__(self, items: Iterator[T], *, depth: int, name: str) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.depth = depth
        self._items = items
        self._made: deque[T] = deque()
        self._changed = threading.Condition()
        self._is_ended = False  # nothing more will be made
        self._is_closed = False  # nothing more is wanted
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def waiting(self) -> int:
        """Items made and not yet taken."""
        return len(self._made)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        self._made.clear()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """The next item; what the generator raises is raised here, after the items before it."""
        with self._changed:
            self._changed.wait_for(lambda: self._made or self._is_ended)
            if self._made:
                item = self._made.popleft()
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def _run(self) -> None:
        try:
            while self._has_room():
                item = next(self._items, self)
                if item is self:
                    break
                with self._changed:
                    self._made.append(item)  # pyright: ignore[reportArgumentType]
                    self._changed.notify_all()
                del item
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
        except BaseException as error:  # of the reader: it is raised in its thread
            self._error = error
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()

    def _has_room(self) -> bool:
        """Wait for it; False once nothing more is wanted."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._made) < self.depth or self._is_closed)
            return not self._is_closed
