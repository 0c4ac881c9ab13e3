"""Threads that work for another one, which waits for them only while they live.

A thread of `concurrent.futures` that ends between two pieces of work, as for want of memory, leaves
the next piece undone, and who waits for it would wait for ever. So a wait looks at the threads now
and then: those of a pool live as long as the pool, and one that ended has failed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from types import TracebackType
from typing import TypeVar

Result = TypeVar("Result")

_LOOK_SECONDS = 1.0
"""How long a wait lasts before it looks at the threads."""


class Threads:
    """Some threads; a context manager that ends them.

    count: of threads. name: their name begins with it.
    """

    def __init__(self, count: int, name: str) -> None:
        self._threads: list[threading.Thread] = []
        self._pool = ThreadPoolExecutor(count, name, initializer=self._begin)

    def __enter__(self) -> Threads:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def submit(self, work: Callable[..., Result], *arguments: object) -> Future[Result]:
        """Have a thread call `work`.

        Raises:
            MemoryError: the threads have failed.
        """
        try:
            return self._pool.submit(work, *arguments)
        except BrokenThreadPool as error:
            raise _failure() from error

    def wait(self, future: Future[Result]) -> Result:
        """Return what a call returned, or raise what it raised.

        Raises:
            MemoryError: a thread ended, so that the call may never be made.
        """
        try:
            return wait_for(future, self._threads)
        except BrokenThreadPool as error:
            raise _failure() from error

    def map(self, work: Callable[[int], Result], values: Iterable[int]) -> Iterator[Result]:
        """Yield what the calls of `work` with each value return, in the order of the values."""
        futures = [self.submit(work, value) for value in values]
        for future in futures:
            yield self.wait(future)

    def end(self) -> None:
        """Let the threads finish what they are at, and end them."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self) -> None:
        self._threads.append(threading.current_thread())


def wait_for(future: Future[Result], threads: Sequence[threading.Thread]) -> Result:
    """Return what a call returned, or raise what it raised.

    threads: those without which the call is never made.

    Raises:
        MemoryError: one of them ended.
    """
    while True:
        try:
            return future.result(timeout=_LOOK_SECONDS)
        except TimeoutError:  # of this wait, or of the call itself
            if future.done():
                return future.result()
            if not all(thread.is_alive() for thread in threads):
                raise _failure() from None


def _failure() -> MemoryError:
    return MemoryError("a thread ended before its work was done")
