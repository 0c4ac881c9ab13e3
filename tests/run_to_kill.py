"""A run in a process of its own, for the tests that kill and interrupt it; not a test itself."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import torch

from upslope import datasets, models, strategies, tasks
from upslope.errors import UpslopeError
from upslope.experiment import Experiment, ExperimentSettings
from upslope.progress import Progress
from upslope.training import TrainingSettings, loop


def experiment(path: Path, pause: float = 0.0, **settings: object) -> Experiment:
    splits = datasets.load("digits", limit=400, test_limit=100)
    mean, std = datasets.statistics(splits.pool)
    shape = splits.pool.input_shape

    def watch(progress: Progress) -> None:
        time.sleep(pause)
        if progress.phase == "train":
            print("training", flush=True)

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
    )


def main(path: Path, pause: float = 0.0) -> int:
    torch.set_num_threads(1)
    loop.CHECKPOINT_SECONDS = 0.05  # a checkpoint every few batches: kills land beside them
    try:
        with experiment(path, pause) as run:
            print("started", flush=True)
            run.run()
    except UpslopeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
