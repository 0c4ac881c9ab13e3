"""Progress reports of long work, and requests to stop it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any


@dataclass(frozen=True)
class Progress:
    """One report. `done` of `total` in `phase`; a phase starts at done=0 and ends at done=total.

    phase: "read", "simulate", "compare" (samples of a data set that is opened), "features"
    (samples of a frozen network), "train" (batches over all epochs), "evaluate", "fit", "score"
    (samples), "shards" (of a pool that is scored), "select", "cycle" (a cycle is finished:
    `metrics` holds its test figures, `train` those on its labels, and `fitted` is False where the
    network has not learnt these), "run" (runs of a comparison).
    run: which run of a comparison, as "<strategy>/seed-<s>"; empty for a single run.

    cycle, cycles: of the run. labelled: labels in use.
    """

    phase: str
    done: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    run: str = ""
    cycle: int = 0
    cycles: int = 0
    labelled: int = 0
    train: Mapping[str, float] = field(default_factory=dict)
    fitted: bool = True


Observer = Callable[[Progress], None]
"""Called often, from the thread that works: keep it quick. The work itself never prints."""


def no_progress(_: Progress) -> None:
    """The observer that looks away."""


def with_context(observer: Observer, **context: object) -> Observer:
    """Return an observer that fills in `run`, `cycle`, `cycles`, `labelled` on the way to
    `observer`.
    """
    return lambda progress: observer(replace(progress, **context))  # type: ignore[arg-type]


class Interrupted(KeyboardInterrupt):
    """The work was asked to stop and did, between two batches, with everything recorded."""


class Stop:
    """A request to stop, looked at between batches."""

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        """Ask the work to stop at its next batch."""
        self.requested = True

    def check(self) -> None:
        """Raise Interrupted if a stop was requested."""
        if self.requested:
            raise Interrupted("Stopped on request; the same call goes on from here.")


class Interrupts:
    """Answers a signal as Python answers Ctrl-C, by KeyboardInterrupt, and notes that it came.

    Python drops an exception that meets it in a callback of the garbage collector, and libraries
    turn one into an error of theirs. `stop_on_signals` then stops all the same, and whoever tells
    of errors knows that this one is none. seen: a signal came.
    """

    def __init__(self) -> None:
        self.seen = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        """Answer the signal: note it, and raise KeyboardInterrupt where the program is."""
        self.seen = True
        raise KeyboardInterrupt


@contextmanager
def noting_interrupts(*names: str) -> Iterator[Interrupts]:
    """Let `Interrupts` answer Ctrl-C while the block runs; in other threads, nothing changes.

    Where Ctrl-C is ignored, as in the background, it stays so. names: signals that are answered
    likewise where they would end the process, as "SIGTERM"; those that a system lacks are left out.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", *names) if hasattr(signal, name)]
    tell = sys.unraisablehook

    def tell_but_of_interrupts(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            tell(unraisable)

    usual = (signal.default_int_handler, signal.SIG_DFL)
    before = {number: signal.getsignal(number) for number in numbers}
    handlers = {number: handler for number, handler in before.items() if handler in usual}
    for number in handlers:
        signal.signal(number, interrupts)
    sys.unraisablehook = tell_but_of_interrupts
    try:
        yield interrupts
    finally:
        sys.unraisablehook = tell
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Ctrl-C, SIGTERM and SIGHUP request a stop; a second one interrupts at once, as Python does.

    Outside the main thread no handler can be set: the stop is then never requested. SIGHUP is left
    alone where it is ignored: `answering_signals`.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.request()

    sigint_handler = signal.getsignal(signal.SIGINT)
    if isinstance(sigint_handler, Interrupts) and sigint_handler.seen:  # and nobody heard of it
        stop.request()
    with answering_signals(handle):
        yield stop


@contextmanager
def answering_signals(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let `handle` answer Ctrl-C, SIGTERM and SIGHUP while the block runs, in the main thread.

    SIGHUP, a terminal that closes, is left alone where it is ignored, as under `nohup`.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
