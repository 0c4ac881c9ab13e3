"""The run that bits are flipped in: small, with a companion and a first model that others share,
stopped in the middle of a training, so that all its files are read."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

from tests.faults.commands import frequent_checkpoints, what_counts

from upslope import datasets, models, strategies, tasks
from upslope.experiment import Experiment, ExperimentSettings
from upslope.progress import Interrupted, Observer, Progress, Stop, no_progress
from upslope.training import TrainingSettings

_STRATEGIES = ("margin", "ll4al", "random")
"""The first shares its first model with the third; the second has a companion."""
_data = cache(partial(datasets.load, "digits", limit=120, test_limit=40))


def stop_midway(folder: Path) -> None:
    """Run two strategies until their second cycle is in training, with a checkpoint written."""
    frequent_checkpoints()
    for name in _STRATEGIES[:2]:
        stop = Stop()

        def watch(progress: Progress, stop: Stop = stop) -> None:
            if progress.phase == "train" and progress.cycle == 1 and progress.done == 2:
                stop.request()

        try:
            with _experiment(folder, name, stop, watch) as run:
                run.run()
        except Interrupted:
            continue
        raise AssertionError("it was to be stopped")


def go_on(folder: Path) -> list[object]:
    """Finish all runs, and return what must be the same whatever happened."""
    for name in _STRATEGIES:
        with _experiment(folder, name) as run:
            run.run()
    return [what_counts(folder / name) for name in _STRATEGIES]


def _experiment(
    folder: Path, name: str, stop: Stop | None = None, observer: Observer = no_progress
) -> Experiment:
    splits = _data()
    mean, std = datasets.statistics(splits.pool)
    shape = splits.pool.input_shape
    return Experiment(
        folder / name,
        splits=splits,
        task=tasks.build("classification", num_classes=10, mean=mean, std=std),
        model=partial(models.build, "cnn-small", num_classes=10, input_shape=shape, width=4),
        strategy=strategies.build(name),
        settings=ExperimentSettings(initial=20, budget=10, cycles=3, keep_models="all"),
        training=TrainingSettings(epochs=3, batch_size=16),
        device="cpu",
        observer=observer,
        shared=folder / ".first-models",
        stop=stop,
    )
