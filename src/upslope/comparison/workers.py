"""The runs of a comparison in several processes, a whole seed at a time.

A seed is not divided, so that its runs find the first model already trained. The parent and each
worker talk over a pipe of their own: a worker that dies can neither hold a lock that others wait
for, nor leave half a message where the parent waits for the rest.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import time
import warnings
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from upslope.comparison import pickling
from upslope.comparison.handover import Parcel, handed_over
from upslope.comparison.worker import Failure, Runs, work
from upslope.errors import ConfigError, RunError
from upslope.memory import is_limited
from upslope.processes import blocking_signals, out_of_memory_kills
from upslope.progress import Observer, Progress, Stop

__all__ = ["Runs", "run_in_workers"]

_TICK_SECONDS = 0.1  # between two looks at which workers live and whether a stop is requested
_PATIENCE_SECONDS = 1.0  # for workers to write a checkpoint once they are asked to stop
_ATTEMPTS = 2  # workers that a seed may cost before the comparison is given up
_GOES_ON = "Nothing recorded is lost: the same command goes on."


def run_in_workers(
    plan: Runs,
    seeds: Sequence[int],
    workers: int,
    observer: Observer,
    stop: Stop,
    folder: Path | None = None,
) -> None:
    """Run all seeds in `workers` processes; the first error, or a stop, ends the others too.

    The seed of a worker that dies is taken over by the others, with a warning.

    folder: on whose disk the plan is handed over, in a file without a name; by default, that of
    temporary files.

    observer: is told of progress of all runs.

    Raises:
        ConfigError: the plan cannot be pickled.
        RunError: workers died, and none is left or one seed has cost two of them.
        Interrupted: a stop was requested.
        UpslopeError: a run failed.
    """
    threads = max(1, torch.get_num_threads() // workers)
    with handed_over(_pickle(plan), folder) as parcel:
        crew = _Crew(plan, deque(seeds), observer, stop)
        try:
            crew.start(min(workers, len(seeds)), parcel, threads)
            crew.work()
        finally:
            crew.end()
    stop.check()


@dataclass(eq=False)
class _Worker:
    """A worker process. seed: what it runs, None while it has nothing to do."""

    number: int
    process: SpawnProcess
    connection: Connection
    seed: int | None = None


@dataclass(eq=False)
class _Crew:
    """All workers of a comparison. waiting: seeds that nobody runs yet. deaths: workers lost while
    they ran a seed, by the seed; None: before they had one."""

    plan: Runs
    waiting: deque[int]
    observer: Observer
    stop: Stop
    workers: list[_Worker] = field(default_factory=list)
    deaths: dict[int | None, int] = field(default_factory=dict)
    done: int = 0

    def __post_init__(self) -> None:
        self.total = sum(len(self.plan.names(seed)) for seed in self.waiting)
        self.killed_for_memory = out_of_memory_kills()

    def start(self, count: int, parcel: Parcel, threads: int) -> None:
        """Start the processes. What they are sent at the start fits into a pipe, so that this never
        waits for one that died."""
        self.observer(Progress("run", 0, self.total))
        context = multiprocessing.get_context("spawn")
        with blocking_signals():
            for number in range(1, count + 1):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=work, args=(theirs, parcel, threads), name=f"upslope-worker-{number}"
                )
                process.start()
                theirs.close()  # so that a dead worker's pipe is at its end
                self.workers.append(_Worker(number, process, ours))

    def work(self) -> None:
        """Hand out seeds and hear reports until all are done, one fails, or a stop is requested."""
        until = float("inf")
        while self.waiting or any(worker.seed is not None for worker in self.workers):
            if self.stop.requested and until == float("inf"):
                until = time.monotonic() + _PATIENCE_SECONDS
                for worker in self.workers:
                    _send(worker, None)
            if until < float("inf"):
                if time.monotonic() > until or all(w.seed is None for w in self.workers):
                    return
            else:
                self._hand_out()
            wait([w.connection for w in self.workers], timeout=_TICK_SECONDS)
            for worker in list(self.workers):
                self._hear(worker)

    def end(self) -> None:
        """End every worker. What counts is recorded, and a killed run goes on: no need to wait for
        orderly exits."""
        with blocking_signals():
            for worker in self.workers:
                worker.connection.close()
                worker.process.kill()
            for worker in self.workers:
                worker.process.join()

    def _hand_out(self) -> None:
        for worker in self.workers:
            if self.waiting and worker.seed is None:
                worker.seed = self.waiting.popleft()
                _send(worker, worker.seed)

    def _hear(self, worker: _Worker) -> None:
        """Take in what a worker has sent, and its death."""
        dead = not worker.process.is_alive()  # asked first: what it sent before is then all there
        while True:
            try:
                if not worker.connection.poll():
                    break
                message = worker.connection.recv()
            except (EOFError, OSError):
                worker.process.join(_PATIENCE_SECONDS)
                dead = True
                break
            if isinstance(message, Failure):
                raise message.error
            if isinstance(message, Progress):
                self._report(message)
            else:  # its seed is done, or it has stopped
                worker.seed = None
        if dead:
            self._lose(worker)

    def _report(self, progress: Progress) -> None:
        if progress.phase == "run":
            self.done += 1
            progress = Progress("run", self.done, self.total, run=progress.run)
        self.observer(progress)

    def _lose(self, worker: _Worker) -> None:
        """Give the seed of a dead worker to the others.

        Raises:
            RunError: none is left, or this seed has cost as many workers as it may.
        """
        self.workers.remove(worker)
        worker.connection.close()
        worker.process.kill()
        # Signals sent to a whole group end workers of the same request that this process has.
        time.sleep(_TICK_SECONDS)
        if self.stop.requested:
            return
        self.deaths[worker.seed] = self.deaths.get(worker.seed, 0) + 1
        task = "" if worker.seed is None else f" seed {worker.seed}"
        fault = (
            f"Expected worker {worker.number} (process {worker.process.pid}) to keep running{task} "
            f"but {self._cause(worker)}."
        )
        if not self.workers:
            raise RunError(f"{fault} No other worker is left. {_GOES_ON}")
        if worker.seed is None:
            return
        if self.deaths[worker.seed] >= _ATTEMPTS:
            raise RunError(
                f"{fault} It is the second that ended with this seed. {_GOES_ON} Fewer workers "
                "need less memory."
            )
        self.waiting.appendleft(worker.seed)
        warnings.warn(f"{fault} The other workers take it over.", stacklevel=2)

    def _cause(self, worker: _Worker) -> str:
        code = worker.process.exitcode
        if code == -signal.SIGKILL and out_of_memory_kills() > self.killed_for_memory:
            return (
                "the system killed it for want of memory: take fewer workers, or a smaller "
                "training.batch_size or experiment.score_batch"
            )
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            memory = ", as systems do where memory is short" if code == -signal.SIGKILL else ""
            return f"it was ended by {name}{memory}{self._limit()}"
        return (
            f"it ended with exit code {code}. What it printed says why; a script must call "
            f'`compare` under `if __name__ == "__main__":`{self._limit()}'
        )

    def _limit(self) -> str:
        """What may be the cause where processes may take so much memory and no more."""
        if not is_limited():
            return ""
        return (
            ". Memory is limited here (ulimit -v), which ends what starts with too little in such "
            "ways: raise the limit, or take fewer workers"
        )


def _send(worker: _Worker, message: int | None) -> None:
    with suppress(OSError):  # it is dead, which `_hear` tells
        worker.connection.send(message)


def _pickle(plan: Runs) -> bytes:
    try:
        return pickling.dumps(plan)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"Expected everything given to workers to be picklable but got: {error}. Define the "
            "model factory at the top of a module (functools.partial is fine, a lambda is not), or "
            "use workers=1."
        ) from error
