"""A worker process of a comparison: runs the seeds that it is sent, and reports."""

from __future__ import annotations

import os
import pickle
import queue
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch

from upslope.errors import UpslopeError
from upslope.memory import as_memory_error, take_buffers
from upslope.processes import end_with_parent_thread, follow_parent, make_portable
from upslope.progress import Interrupted, Observer, Progress, Stop

_QUIET_SECONDS = 0.1  # between two reports of the same phase


class Runs(Protocol):
    """What a worker is given: `upslope.comparison.RunMatrix`."""

    def names(self, seed: int) -> list[str]:
        """The runs of one seed, in order."""
        ...

    def run(self, name: str, seed: int, observer: Observer, stop: Stop) -> None:
        """Run one strategy under one `seed`, from where it stands.

        name: of the strategy. observer: is told of progress. stop: a request to stop, looked at
        between batches.
        """
        ...


@dataclass(frozen=True)
class Failure:
    """What a worker sends for an error that ends the comparison."""

    error: BaseException


@dataclass(frozen=True)
class Free:
    """What a worker sends when its seed is done, or when it has stopped on request."""


def work(connection: Connection, parcel: Any, threads: int) -> None:
    """Be a worker: run seeds from `connection`, and send back Progress, then Free or Failure.

    parcel: holds the pickled plan. threads: of torch in this process.
    """
    try:
        _run_seeds(connection, parcel, threads)
    except Interrupted:
        connection.send(Free())
    except BaseException as error:
        connection.send(Failure(_with_origin(error)))
    threading.Event().wait()  # until the parent, which has heard all there is to hear, ends this


def _run_seeds(connection: Connection, parcel: Any, threads: int) -> None:
    follow_parent()
    end_with_parent_thread()
    torch.set_num_threads(threads)
    take_buffers()
    stop = Stop()
    seeds: queue.SimpleQueue[int] = queue.SimpleQueue()

    def listen() -> None:
        """Take seeds, and the request to stop, while the work goes on."""
        try:
            while True:
                message = connection.recv()
                if message is None:
                    stop.request()
                else:
                    seeds.put(message)
        finally:
            # The parent is gone, or this thread has failed: who hears nothing would wait for ever.
            os._exit(1)

    threading.Thread(target=listen, daemon=True, name="upslope-listen").start()
    plan: Runs = pickle.loads(parcel.open())  # written by the parent, to a file without a name
    while True:
        _run_seed(plan, seeds.get(), connection, stop)
        connection.send(Free())


def _run_seed(plan: Runs, seed: int, connection: Connection, stop: Stop) -> None:
    last: dict[str, float] = {}

    def report(progress: Progress) -> None:
        now = time.monotonic()
        edge = progress.done in (0, progress.total) or progress.phase == "cycle"
        if edge or now - last.get(progress.phase, 0.0) > _QUIET_SECONDS:
            last[progress.phase] = now
            connection.send(progress)

    for name in plan.names(seed):
        stop.check()
        plan.run(name, seed, report, stop)
        connection.send(Progress("run", 1, 1, run=f"{name}/seed-{seed}"))


def _with_origin(error: BaseException) -> BaseException:
    """Return the error as another process can take it, with where it came from in its notes; of a
    want of memory, which that process need not have, what to tell."""
    error = as_memory_error(error) or error
    if not isinstance(error, UpslopeError):
        error.add_note("In a worker:\n" + "".join(traceback.format_exception(error)))
    return make_portable(error)
