"""The run that faults are made in: small, stopped in the middle, so that all its files are read."""

from __future__ import annotations

from pathlib import Path

import run_to_kill
from upslope.progress import Interrupted, Progress, Stop


def stop_midway(folder: Path) -> None:
    """Run until the second cycle is in training, with its checkpoint written."""
    stop = Stop()
    run = run_to_kill.experiment(folder)
    run._stop = stop

    def watch(progress: Progress) -> None:
        if progress.phase == "train" and progress.cycle == 1 and progress.done == 3:
            stop.request()

    run._observer = watch
    try:
        with run:
            run.run()
    except Interrupted:
        return
    raise AssertionError("it was to be stopped")


def go_on(folder: Path) -> object:
    """Finish the run, and return what must be the same whatever happened."""
    with run_to_kill.experiment(folder) as run:
        result = run.run()
    return [
        result.initial,
        result.labels,
        [(c.metrics, c.train_loss, c.model_sha256, c.asked) for c in result.cycles],
    ]
