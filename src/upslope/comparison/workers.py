"""The runs of a comparison in several processes, a whole seed at a time.

A seed is not divided, so that its runs find the first model already trained.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

import torch

from upslope.errors import ConfigError
from upslope.progress import Interrupted, Observer, Progress, Stop

_QUIET_SECONDS = 0.1  # between two reports of the same phase of the same process
_PATIENCE_SECONDS = 1.0  # for workers to write a checkpoint once they are asked to stop


class Runs(Protocol):
    """What a worker is given: `upslope.comparison.Plan`."""

    def names(self, seed: int) -> list[str]:
        """The runs of one seed, in order."""
        ...

    def run(self, name: str, seed: int, observer: Observer, stop: Stop) -> None:
        """Run one, from where it stands."""
        ...


def run_in_workers(
    plan: Runs, seeds: Sequence[int], workers: int, observer: Observer, stop: Stop
) -> None:
    """Run all seeds in `workers` processes; the first error, or a stop, ends the others too."""
    pickled = _pickle(plan)
    context = multiprocessing.get_context("spawn")
    stopping, reports = context.Event(), context.Queue()
    threads = max(1, torch.get_num_threads() // workers)
    total, done = sum(len(plan.names(seed)) for seed in seeds), 0
    observer(Progress("run", 0, total))

    def drain() -> None:
        nonlocal done
        while True:
            try:
                report = reports.get_nowait()
            except queue.Empty:
                return
            if report.phase == "run":
                done += 1
                report = Progress("run", done, total, run=report.run)
            observer(report)

    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(
        workers, context, initializer=_start, initargs=(pickled, stopping, reports, threads)
    ) as executor:
        waiting: set[Future[None]] = {executor.submit(_run_seed, seed) for seed in seeds}
        errors: list[BaseException] = []
        until = float("inf")
        while waiting and time.monotonic() < until:
            finished, waiting = wait(waiting, timeout=0.1, return_when=FIRST_EXCEPTION)
            drain()
            errors += [e for f in finished if not f.cancelled() and (e := f.exception())]
            if (stop.requested or errors) and not stopping.is_set():
                stopping.set()
                until = time.monotonic() + _PATIENCE_SECONDS
                for future in waiting:
                    future.cancel()
        if stopping.is_set():
            # What counts is recorded, and a killed run goes on: no need to wait for orderly exits.
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
    if not stopping.is_set():  # a killed worker may have left half a report
        drain()
    if stop.requested:
        # SIGTERM can reach a whole group of processes: then the workers died of the same request.
        errors = [e for e in errors if not isinstance(e, BrokenProcessPool)]
    for error in sorted(errors, key=lambda e: isinstance(e, Interrupted)):
        raise error
    stop.check()


class _SharedStop(Stop):
    """A stop that another process requests."""

    def __init__(self, event: Any) -> None:
        super().__init__()
        self._event = event

    @property
    def requested(self) -> bool:
        return bool(self._event.is_set())

    @requested.setter
    def requested(self, value: bool) -> None:
        pass


_worker: dict[str, Any] = {}
"""What `_start` leaves for `_run_seed` in a worker process."""


def _start(pickled: bytes, stopping: Any, reports: Any, threads: int) -> None:
    # Ctrl-C reaches every process of a terminal; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _worker.update(plan=pickle.loads(pickled), stop=_SharedStop(stopping), reports=reports)


def _die_with_parent() -> None:
    """A killed parent cannot end its workers, which would hold their locks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_seed(seed: int) -> None:
    plan, stop, reports = _worker["plan"], _worker["stop"], _worker["reports"]
    last: dict[str, float] = {}

    def report(progress: Progress) -> None:
        now = time.monotonic()
        edge = progress.done in (0, progress.total) or progress.phase == "cycle"
        if edge or now - last.get(progress.phase, 0.0) > _QUIET_SECONDS:
            last[progress.phase] = now
            reports.put(progress)

    for name in plan.names(seed):
        stop.check()
        plan.run(name, seed, report, stop)
        reports.put(Progress("run", 1, 1, run=f"{name}/seed-{seed}"))


def _pickle(plan: Runs) -> bytes:
    try:
        return pickle.dumps(plan)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"Expected everything given to workers to be picklable but got: {error}. Define the "
            "model factory at the top of a module (functools.partial is fine, a lambda is not), or "
            "use workers=1."
        ) from error
