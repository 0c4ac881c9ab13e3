"""Comparisons: pairing by seed, the shared first model, references, workers, resumption."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from small_tasks import MODEL, TASK, splits
from upslope import datasets, models, strategies, tasks
from upslope.comparison import ComparisonResult, compare, read_comparison
from upslope.errors import ConfigError, ModelError, RunError
from upslope.experiment import ExperimentSettings
from upslope.progress import Progress
from upslope.training import TrainingSettings

STRATEGIES = {name: strategies.build(name) for name in ("random", "margin")}


def run(out: Path, **options: Any) -> ComparisonResult:
    arguments = {
        "strategies": STRATEGIES,
        "seeds": [0, 1],
        "splits": splits(),
        "task": TASK,
        "model": MODEL,
        "settings": ExperimentSettings(initial=20, budget=10, cycles=2),
        "training": TrainingSettings(epochs=2, batch_size=8),
        "device": "cpu",
        **options,
    }
    return compare(out, **arguments)


def fingerprints(result: ComparisonResult) -> dict[str, list[str]]:
    return {
        name: [c.model_sha256 for r in runs for c in r.cycles] for name, runs in result.runs.items()
    }


def test_runs_are_paired_by_seed_and_share_their_first_model(tmp_path: Path) -> None:
    result = run(tmp_path, full_data_seeds=[0])
    assert result.finished
    assert list(result.runs) == ["random", "margin"]
    for first, second in zip(*result.runs.values(), strict=True):
        assert first.seed == second.seed
        assert first.initial == second.initial
        one, other = first.cycles[0], second.cycles[0]
        assert (one.reused, other.reused) == (False, True)
        assert one.model_sha256 == other.model_sha256
        assert (one.metrics, one.train_seconds) == (other.metrics, other.train_seconds)
        assert not second.cycles[1].reused
    (reference,) = result.full_data
    assert reference.curve()[0] == (200,)
    assert read_comparison(tmp_path).runs.keys() == result.runs.keys()


def test_a_shared_model_is_the_one_that_would_have_been_trained(tmp_path: Path) -> None:
    shared = run(tmp_path / "both")
    alone = run(tmp_path / "alone", strategies={"margin": STRATEGIES["margin"]})
    assert fingerprints(shared)["margin"] == fingerprints(alone)["margin"]


def test_seeds_may_be_an_array(tmp_path: Path) -> None:
    """They were refused as no whole numbers."""
    result = run(tmp_path, strategies={"random": STRATEGIES["random"]}, seeds=np.arange(1))
    assert [run.seed for run in result.runs["random"]] == [0]


def test_strategies_and_seeds_may_be_added(tmp_path: Path) -> None:
    run(tmp_path, strategies={"random": STRATEGIES["random"]}, seeds=[0])
    seen: list[Progress] = []
    result = run(tmp_path, observer=seen.append)
    assert result.finished
    assert "random/seed-0" not in {p.run for p in seen if p.phase == "train"}
    assert [p.done for p in seen if p.phase == "run"] == [0, 1, 2, 3, 4]
    with pytest.raises(RunError, match=r"training\.epochs"):
        run(tmp_path, training=TrainingSettings(epochs=3, batch_size=8))


@pytest.mark.slow
def test_workers_give_the_same_runs(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = run(tmp_path / "here", full_data_seeds=[1])
    finally:
        torch.set_num_threads(threads)
    seen: list[Progress] = []
    torch.set_num_threads(2)
    try:
        there = run(tmp_path / "there", full_data_seeds=[1], workers=2, observer=seen.append)
    finally:
        torch.set_num_threads(threads)
    assert fingerprints(there) == fingerprints(here)
    assert seen[-1].done == seen[-1].total == 5
    assert {p.run for p in seen if p.phase == "cycle"} >= {"margin/seed-0", "margin/seed-1"}


@pytest.mark.long
def test_workers_meet_images_in_the_order_in_which_they_lie(tmp_path: Path) -> None:
    """Convolutions of the same numbers in another order in memory round differently."""
    digits = datasets.load("digits", limit=80, test_limit=20)
    assert digits.pool.inputs([0, 1]).stride() != (64, 64, 8, 1)  # channels last, of one channel
    options = {
        "splits": digits,
        "task": tasks.build("classification", num_classes=10, mean=(0.3,), std=(0.4,)),
        "model": partial(models.build, "cnn-small", num_classes=10, input_shape=(1, 8, 8)),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = run(tmp_path / "here", **options)
        there = run(tmp_path / "there", workers=2, **options)
    finally:
        torch.set_num_threads(threads)
    assert fingerprints(there) == fingerprints(here)


def test_a_failure_in_a_worker_is_told(tmp_path: Path) -> None:
    diverging = TrainingSettings(lr=1e30, schedule="constant")
    with pytest.raises(ModelError, match="finite training loss"):
        run(tmp_path, training=diverging, workers=2, seeds=[0])


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, strategies={"../out": STRATEGIES["random"]}, seeds=[-1], workers=0)
    assert all(words in str(caught.value) for words in ("folders", "seeds", "workers"))
    with pytest.raises(ConfigError, match="each of `seeds` once but got 1 again"):
        run(tmp_path, seeds=[1, 0, 1])  # it counted twice: an interval of no width from one run
    with pytest.raises(ConfigError, match="each of `full_data_seeds` once"):
        run(tmp_path, full_data_seeds=[0, 0])
    with pytest.raises(ConfigError, match="picklable"):
        run(tmp_path, model=lambda: MODEL(), workers=2)
    with pytest.raises(RunError, match="there are none"):
        read_comparison(tmp_path)
