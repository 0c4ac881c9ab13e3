"""Threads that fail: who waits for them is told."""

from __future__ import annotations

import threading
import time
from concurrent.futures import thread as pools

import pytest

from upslope import threads
from upslope.threads import Threads


def test_results_come_in_order_and_errors_as_they_are() -> None:
    def halve(value: int) -> float:
        time.sleep(0.01 * (value % 2))
        return 6 / value

    with Threads(2, "test") as pool:
        assert list(pool.map(halve, [1, 2, 3])) == [6, 3, 2]
        with pytest.raises(ZeroDivisionError):
            pool.wait(pool.submit(halve, 0))
    assert not [t for t in threading.enumerate() if t.name.startswith("test")]


def test_an_error_of_time_is_the_works_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_LOOK_SECONDS", 0.01)

    def late(value: int) -> int:
        time.sleep(0.05)
        raise TimeoutError(str(value))

    with Threads(1, "test") as pool, pytest.raises(TimeoutError, match="7"):
        pool.wait(pool.submit(late, 7))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_does_not_keep_who_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threads, "_LOOK_SECONDS", 0.01)
    with Threads(2, "test") as pool:
        assert pool.wait(pool.submit(int, 1)) == 1

        def fail(item: object) -> None:
            raise MemoryError

        monkeypatch.setattr(pools._WorkItem, "run", fail)
        with pytest.raises(MemoryError, match="ended before its work was done"):
            pool.wait(pool.submit(int, 2))
    assert "Exception in worker" in caplog.text


def test_a_thread_that_cannot_begin_does_not_keep_who_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(pool: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Threads, "_begin", fail)
    with Threads(1, "test") as pool:
        with pytest.raises(MemoryError, match="ended before"):
            pool.wait(pool.submit(int, 1))
        with pytest.raises(MemoryError, match="ended before"):
            pool.submit(int, 2)
    assert "Exception in initializer" in caplog.text
