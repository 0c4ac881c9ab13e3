"""A run whose strategy fits its temperature: it trains on part of the labels, and resumes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from upslope import ExperimentSettings, TrainingSettings, datasets, models, strategies, tasks
from upslope.experiment import Experiment
from upslope.progress import Progress


def test_a_run_fits_its_temperature_with_its_own_training(tmp_path: Path) -> None:
    splits = datasets.load("digits")
    mean, std = datasets.statistics(splits.pool)
    task = tasks.build("classification", num_classes=10, mean=mean, std=std)
    network = partial(
        models.build, "mlp", num_classes=10, input_shape=splits.pool.input_shape, hidden=16
    )
    batches: list[int] = []
    done = [0]

    def observe(progress: Progress) -> None:
        if progress.phase == "train":
            if not done[0] or progress.done < done[0]:
                batches.append(progress.total)
            done[0] = progress.done

    chosen: dict[str, list[tuple[str, ...]]] = {}
    for name, temperature in (("one", 1.0), ("fitted", "fitted"), ("again", "fitted")):
        with Experiment(
            tmp_path / name,
            splits=splits,
            task=task,
            model=network,
            strategy=strategies.build("margin", temperature=temperature),
            settings=ExperimentSettings(initial=40, budget=10, cycles=2, candidates=200),
            training=TrainingSettings(epochs=3, batch_size=4),
            device="cpu",
            observer=observe,
        ) as run:
            result = run.run()
        chosen[name] = [cycle.asked for cycle in result.cycles]
    whole, part, more = 3 * 10, 3 * 7, 3 * 13  # of 40 labels, of 28 of them, and of 50
    assert batches == [whole, more, whole, part, more, whole, part, more]
    assert chosen["fitted"] == chosen["again"]
