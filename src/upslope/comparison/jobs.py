"""Jobs of several seeds, run here, in worker processes or by Ray.

`compare` and reproductions call it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from upslope.comparison.ray_tasks import run_as_tasks
from upslope.comparison.workers import Runs, run_in_workers
from upslope.distributed.engine import current
from upslope.distributed.ray_engine import RayEngine
from upslope.progress import Observer, Progress, Stop


def run_jobs(
    jobs: Runs,
    seeds: Sequence[int],
    workers: int,
    observer: Observer,
    stop: Stop,
    folder: Path | None = None,
) -> None:
    """Run the jobs of every seed, one seed after the other, or a seed per worker process.

    Within an engine of Ray each job is a task of its own, and `workers` is the engine's.

    jobs: what each job is; picklable where `workers` is above 1. It does nothing where a job has
        been finished before.
    seeds: in this order. workers: processes; 1 runs all jobs in this process.
    observer: is told of each job that ends. stop: ends the work between two jobs when requested.
    folder: on whose disk the jobs are handed to workers; by default, that of temporary files.

    Raises:
        Interrupted: a stop was requested; the same call goes on.
        ConfigError: `jobs` cannot be pickled and `workers` is above 1.
        UpslopeError: a job failed; what others recorded stays.
    """
    engine = current()
    count = sum(len(jobs.names(seed)) for seed in seeds)
    if isinstance(engine, RayEngine) and count > 1:
        run_as_tasks(jobs, seeds, engine, observer, stop, folder)
        return
    if workers > 1 and not isinstance(engine, RayEngine):
        run_in_workers(jobs, seeds, workers, observer, stop, folder)
        return
    names = [(seed, name) for seed in seeds for name in jobs.names(seed)]
    observer(Progress("run", 0, len(names)))
    for number, (seed, name) in enumerate(names, 1):
        stop.check()
        jobs.run(name, seed, observer, stop)
        observer(Progress("run", number, len(names), run=f"{name}/seed-{seed}"))
