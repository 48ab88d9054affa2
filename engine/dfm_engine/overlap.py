"""Stages that work at the same time: a generator in a thread of its own, behind a bounded queue.

    with Ahead(open_jobs(wave), depth=2, name="open") as jobs:
        for job in jobs:            # the next two are opened meanwhile
            ...

    with MapAhead(screen, clips, workers=3, depth=4, name="screen") as verdicts:
        for verdict in verdicts:    # three clips are looked at meanwhile
            ...

The order is that of the generator, so what comes out does not depend on the timing, nor on how many
threads a stage has. A full queue holds the generator back; whoever stops reading ends it. Torch,
PyAV and the encoders' pipes release Python's lock while they work, so threads are enough.

Leaving waits for the threads. A signal may end the waiting, but not the threads: each is at a call
into FFmpeg or CUDA, beneath which the process must not end, so Python joins them at its own end.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

__all__ = ["Ahead", "MapAhead"]

S = TypeVar("S")
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
        self._thread = threading.Thread(target=self._run, name=name)

    @property
    def waiting(self) -> int:
        """Items made and not yet taken."""
        return len(self._made)

    def __enter__(self) -> Self:
        try:
            self._thread.start()
        except BaseException:  # a signal, say: nobody will leave what was not entered
            self._is_closed = True
            with self._changed:
                self._changed.notify_all()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_closed = True  # first of all: whatever cuts this short, the thread ends
        with self._changed:
            self._changed.notify_all()
            # Not by join: one that a signal ends takes the thread for over.
            self._changed.wait_for(lambda: self._is_ended)
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


class MapAhead(Generic[S, T]):
    """A function of every item, computed by several threads; the results in the items' order.

    Enter it to start, leave it to end: every thread finishes the call that it is at, and is joined.
    What an item or a call raises is raised at its place, and ends the iteration. The items are all
    drawn by one thread, also closed by it.

    Args:
        function: called from `workers` threads.
        items: drawn as there is room.
        workers: threads that call.
        depth: items that are drawn and whose results are not taken: those at work, and those done
            that wait for one before them. At least `workers`. Memory is that of so many items or
            results, and of the one that the reader has.
        name: of the threads, which are numbered; the one that draws has it plain.
        within: entered by each thread that calls, for as long as it lives.
    """

    def __init__(
        self,
        function: Callable[[S], T],
        items: Iterable[S],
        *,
        workers: int,
        depth: int,
        name: str,
        within: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        if workers < 1 or depth < workers:
            raise ValueError(f"needs 1 <= workers <= depth, got {workers} and {depth}")
        self.depth = depth
        self._function = function
        self._items = iter(items)
        self._within = within
        self._line: deque[_Place] = deque()  # drawn and not taken, in order
        self._to_do: deque[_Place] = deque()  # the part of it that nobody is at
        self._changed = threading.Condition()
        self._is_fed = False  # nothing more will be drawn
        self._is_closed = False  # nothing more is wanted
        self._threads = [
            threading.Thread(target=self._until_over, args=(run,), name=called)
            for called, run in (
                (name, self._draw),
                *((f"{name}-{number}", self._work) for number in range(workers)),
            )
        ]
        self._left = len(self._threads)  # that are not over

    @property
    def waiting(self) -> int:
        """Results that are there and not yet taken."""
        with self._changed:
            return sum(place.is_done for place in self._line)

    def __enter__(self) -> Self:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:  # a signal, say: nobody will leave what was not entered
            self._is_closed = True
            with self._changed:
                self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_closed = True  # first of all: whatever cuts this short, the threads end
        with self._changed:
            self._end()
            self._changed.wait_for(lambda: not self._left)
        for thread in self._threads:
            thread.join()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """The next result, or what was raised in its place."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._line[0].is_done if self._line else self._is_fed or self._is_closed
            )
            if not self._line:
                raise StopIteration
            place = self._line.popleft()
            if place.error is not None:
                self._end()
            self._changed.notify_all()
        if place.error is not None:
            raise place.error
        return place.result

    def _until_over(self, run: Callable[[], None]) -> None:
        try:
            run()
        finally:
            with self._changed:
                self._left -= 1
                self._changed.notify_all()

    def _draw(self) -> None:
        try:
            while self._has_room():
                item = next(self._items, self)
                if item is self:
                    break
                place = _Place(item)
                with self._changed:
                    if not (self._is_fed or self._is_closed):
                        self._line.append(place)
                        self._to_do.append(place)
                    self._changed.notify_all()
                del item, place
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
        except BaseException as error:  # of the reader: it is raised in its thread
            with self._changed:
                self._line.append(_Place(None, is_done=True, error=error))
        with self._changed:
            self._is_fed = True
            self._changed.notify_all()

    def _work(self) -> None:
        try:
            with self._within():
                while (place := self._next_place()) is not None:
                    try:
                        result, error = self._function(place.item), None
                    except BaseException as raised:  # of the reader, likewise
                        result, error = None, raised
                    with self._changed:
                        place.item = None
                        place.result, place.error, place.is_done = result, error, True
                        if error is not None:  # what was drawn after it is not wanted
                            self._to_do.clear()
                            self._is_fed = True
                        self._changed.notify_all()
                    del place, result, error
        except BaseException as error:  # of `within`: no item is to blame, so it comes first
            with self._changed:
                self._line.appendleft(_Place(None, is_done=True, error=error))
                self._is_fed = True
                self._changed.notify_all()

    def _next_place(self) -> _Place | None:
        """The next one to work at; None once there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self._to_do or self._is_fed or self._is_closed)
            return self._to_do.popleft() if self._to_do else None

    def _has_room(self) -> bool:
        """Wait for it; False once nothing more is to be drawn."""
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._line) < self.depth or self._is_fed or self._is_closed
            )
            return not (self._is_fed or self._is_closed)

    def _end(self) -> None:
        """Nothing more is wanted; the lock is held."""
        self._is_closed = True
        self._to_do.clear()
        self._line.clear()
        self._changed.notify_all()


class _Place:
    """An item, and what came of it."""

    __slots__ = ("error", "is_done", "item", "result")

    def __init__(
        self, item: Any, *, is_done: bool = False, error: BaseException | None = None
    ) -> None:
        self.item = item
        self.result: Any = None
        self.error = error
        self.is_done = is_done
