"""The runs of a comparison as tasks of Ray, one per strategy and seed, in one folder of ledgers.

A task whose machine dies is given out again, and goes on from its ledger: so every machine must see
the folder, which each task looks for before it begins.
"""

from __future__ import annotations

import pickle
import uuid
import warnings
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from upslope.comparison import pickling
from upslope.comparison.worker import Runs
from upslope.distributed.ray_engine import RayEngine
from upslope.errors import ConfigError, RunError
from upslope.files import disk_errors
from upslope.progress import Observer, Progress, Stop, no_progress

_LOOK_SECONDS = 0.5
"""Between two looks at whether a stop is requested."""


def run_as_tasks(
    jobs: Runs,
    seeds: Sequence[int],
    engine: RayEngine,
    observer: Observer,
    stop: Stop,
    folder: Path | None,
) -> None:
    """Run every job as a task, as many at a time as the engine has workers.

    folder: where the jobs write, that of the comparison. Other arguments as of `run_jobs`.

    Raises:
        ConfigError: the jobs cannot be pickled.
        RunError: processes died again and again, or a machine does not see the folder.
        Interrupted: a stop was requested; the tasks are ended, and the same call goes on.
        UpslopeError: a job failed; what others recorded stays.
    """
    plan = engine.put(_pickle(jobs))
    waiting = deque((seed, name) for seed in seeds for name in jobs.names(seed))
    total, count = len(waiting), 0
    observer(Progress("run", 0, total))
    running: dict[Any, str] = {}
    mark = _Mark(folder)
    try:
        while waiting or running:
            stop.check()
            while waiting and len(running) < engine.workers:
                seed, name = waiting.popleft()
                task = engine.submit(_run, plan, name, seed, engine.threads, mark.path)
                running[task] = f"{name}/seed-{seed}"
            for task in engine.wait(list(running), _LOOK_SECONDS):
                label = running.pop(task)
                for message in engine.result(task):
                    warnings.warn(message, stacklevel=2)
                count += 1
                observer(Progress("run", count, total, run=label))
    finally:
        engine.cancel(list(running))
        mark.remove()


class _Mark:
    """A file in a folder, by which tasks on other machines know it."""

    def __init__(self, folder: Path | None) -> None:
        self.path = str(folder.absolute() / f".seen-{uuid.uuid4().hex}") if folder else ""
        if folder:
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                Path(self.path).touch()

    def remove(self) -> None:
        """Remove the file, once no task looks for it any more."""
        if self.path:
            Path(self.path).unlink(missing_ok=True)


def _run(plan: bytes, name: str, seed: int, threads: int, mark: str) -> list[str]:
    """Be a task: run one job; returns the warnings that it gave."""
    torch.set_num_threads(threads)
    if mark and not Path(mark).exists():
        raise RunError(
            f"Expected every machine of the Ray cluster to see {Path(mark).parent} but one does "
            "not. Give a folder of a file system that all of them mount."
        )
    jobs: Runs = pickle.loads(plan)  # written by the process that started the cluster's job
    with warnings.catch_warnings(record=True) as task_warnings:
        warnings.simplefilter("always", UserWarning)
        jobs.run(name, seed, no_progress, Stop())
    return [str(one.message) for one in task_warnings if issubclass(one.category, UserWarning)]


def _pickle(jobs: Runs) -> bytes:
    from ray import cloudpickle

    try:
        return pickling.dumps(jobs, cloudpickle.CloudPickler)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"Expected everything given to tasks of Ray to be picklable but got: {error}. Define "
            "networks, tasks and data sets at the top of a module, or leave the engine out."
        ) from error
