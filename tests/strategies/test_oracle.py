"""The oracle: the best of the batches that it tries, and refused where nobody may look ahead."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
from pools import generator, hash_of, make_pool

from upslope import ExperimentSettings, TrainingSettings, config, datasets, models, query, tasks
from upslope.errors import ConfigError, SelectionError
from upslope.experiment import Experiment
from upslope.strategies import REGISTRY, build


def test_takes_the_batch_of_the_best_figure() -> None:
    oracle = build("oracle", batches=21)
    pool = make_pool(oracle.needs, 30, 6)
    tried: list[tuple[float, tuple[str, ...]]] = []

    def look_ahead(ids: list[str]) -> float:
        tried.append((float(sum(hash_of(id_) for id_ in ids)), tuple(ids)))
        return tried[-1][0]

    selection = oracle.select(dataclasses.replace(pool, look_ahead=look_ahead), 4, generator())
    assert len(tried) == 21
    assert selection.ids == max(tried, key=lambda one: one[0])[1]
    assert selection.notes["figure"] == max(figure for figure, _ in tried)


def test_without_true_labels_it_is_refused() -> None:
    oracle = build("oracle")
    pool = dataclasses.replace(make_pool(oracle.needs, 30, 6), look_ahead=None)
    with pytest.raises(SelectionError, match="simulations alone"):
        oracle.select(pool, 4, generator())


def test_all_strategies_are_those_that_see_no_label() -> None:
    names = [choice.name for choice in config.load(overrides={"strategies": "all"}).strategies]
    assert names == [name for name in REGISTRY if name != "oracle"]


def test_runs_in_a_simulation_and_is_refused_where_people_label(tmp_path: Path) -> None:
    splits = datasets.load("digits", limit=200, test_limit=50)
    task = tasks.build("classification", num_classes=10, mean=(0.3,), std=(0.4,))
    network = partial(
        models.build, "mlp", num_classes=10, input_shape=splits.pool.input_shape, hidden=8
    )

    def run(folder: str) -> Experiment:
        return Experiment(
            tmp_path / folder,
            splits=splits,
            task=task,
            model=network,
            strategy=build("oracle", batches=7),
            settings=ExperimentSettings(initial=20, budget=5, cycles=2, candidates=60),
            training=TrainingSettings(epochs=3),
            device="cpu",
            progress=False,
        )

    with run("simulated") as simulated:
        result = simulated.run()
    assert [cycle.n_labelled for cycle in result.cycles] == [20, 25]
    with run("people") as people, pytest.raises(ConfigError, match="where people label"):
        people.ask()
    with pytest.raises(SelectionError, match="simulations alone"):
        query(network(), splits.pool, 5, "oracle", task=task, progress=False)
