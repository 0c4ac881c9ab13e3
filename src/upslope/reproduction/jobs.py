"""Work beside the comparisons, seed by seed: here, or in the same worker processes."""

from __future__ import annotations

from collections.abc import Sequence

from upslope.comparison.workers import Runs, run_in_workers
from upslope.progress import Observer, Progress, silent, stop_on_signals


def each(jobs: Runs, seeds: Sequence[int], workers: int, observer: Observer = silent) -> None:
    """Do everything that `jobs` names; what is done already costs nothing.

    jobs: picklable where `workers` is above 1.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the same call goes on.
        UpslopeError: a job failed; the finished ones stay.
    """
    with stop_on_signals() as stop:
        if workers > 1:
            run_in_workers(jobs, seeds, workers, observer, stop)
            return
        named = [(seed, name) for seed in seeds for name in jobs.names(seed)]
        observer(Progress("run", 0, len(named)))
        for done, (seed, name) in enumerate(named, 1):
            stop.check()
            jobs.run(name, seed, observer, stop)
            observer(Progress("run", done, len(named), run=f"{name}/seed-{seed}"))
