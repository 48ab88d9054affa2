"""Make what will be asked for next in a thread, while the present one is in use."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

__all__ = ["Prefetch"]

Key = TypeVar("Key", bound=Hashable)
Made = TypeVar("Made")


class Prefetch(Generic[Key, Made]):
    """Owns the thread. What is asked for out of turn is made as well, just not ahead.

    Args:
        make: the work; called in the thread.
        after: what is asked for after a key; None at the end.
        depth: how many are made before they are asked for.
    """

    def __init__(
        self,
        make: Callable[[Key], Made],
        after: Callable[[Key], Key | None],
        *,
        depth: int = 1,
    ) -> None:
        self._make, self._after, self._depth = make, after, depth
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="next-batch")
        self._under_way: dict[Key, Future[Made]] = {}

    def get(self, key: Key) -> Made:
        """What belongs to a key, made before or now; then what follows is begun.

        Whatever `make` raises comes out here.
        """
        wanted = self._under_way.pop(key, None) or self._thread.submit(self._make, key)
        coming: dict[Key, Future[Made]] = {}
        follows = self._after(key)
        while follows is not None and len(coming) < self._depth:
            coming[follows] = self._under_way.pop(follows, None) or self._thread.submit(
                self._make, follows
            )
            follows = self._after(follows)
        for unwanted in self._under_way.values():  # somebody jumped
            unwanted.cancel()
        self._under_way = coming
        return wanted.result()

    def wait(self) -> None:
        """Until all that is under way is made; errors wait for `get`."""
        for future in self._under_way.values():
            future.exception()

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(cancel_futures=True)
        self._under_way.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
