"""A run in a process of its own, for the tests that kill and interrupt it; not a test itself."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from upslope import datasets, models, strategies, tasks
from upslope.errors import UpslopeError
from upslope.experiment import Experiment, ExperimentSettings
from upslope.progress import Progress
from upslope.training import TrainingSettings, loop


def experiment(
    path: Path, watch: Callable[[Progress], None] | None = None, **settings: object
) -> Experiment:
    splits = datasets.load("digits", limit=400, test_limit=100)
    mean, std = datasets.statistics(splits.pool)
    shape = splits.pool.input_shape

    return Experiment(
        path,
        splits=splits,
        task=tasks.build(
            "classification", num_classes=10, mean=mean, std=std, augmentation="shift"
        ),
        model=partial(models.build, "cnn-small", num_classes=10, input_shape=shape),
        strategy=strategies.build("margin"),
        settings=ExperimentSettings(
            **{"initial": 40, "budget": 20, "cycles": 3, "keep_models": "all", **settings}
        ),
        training=TrainingSettings(epochs=6, batch_size=16, optimizer="adam", lr=2e-3),
        device="cpu",
        observer=watch,
        progress=False,
    )


def main(path: Path, hold: Path | None = None, kill: tuple[int, float] | None = None) -> int:
    """Run to the end.

    hold: a file; in its fifth batch the training says so and waits until the file is there. kill:
    after so many calls of the observer and so many seconds more, the process is killed: moments
    are told by the work that is done, so that they are the same on a machine with other work.
    """
    torch.set_num_threads(1)
    loop.CHECKPOINT_SECONDS = 0.05  # a checkpoint every few batches: kills land beside them
    calls = 0

    def watch(progress: Progress) -> None:
        nonlocal calls
        calls += 1
        if kill is not None:
            if calls == kill[0]:
                threading.Timer(kill[1], os.kill, (os.getpid(), signal.SIGKILL)).start()
            time.sleep(0.004)
        if hold is not None and progress.phase == "train" and calls == 5:
            print("training", flush=True)
            while not hold.exists():
                time.sleep(0.01)

    try:
        with experiment(path, watch) as run:
            print("started", flush=True)
            run.run()
    except UpslopeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
