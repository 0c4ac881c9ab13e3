"""A run is gone on with on the data that it began with, also where ids are counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from upslope import Experiment, ExperimentSettings, Splits, strategies, tasks
from upslope.errors import RunError
from upslope.experiment.sample_probe import other_samples, probe_samples
from upslope.training import TrainingSettings

X = np.random.default_rng(0).integers(0, 256, (60, 3, 5, 5), dtype=np.uint8)
Y = np.arange(60) % 3


def splits(pool=X[:40], labels=Y[:40], test=X[40:], test_labels=Y[40:]):
    return Splits.from_arrays(pool, labels, test, test_labels)


def run(folder, data, cycles):
    experiment = Experiment(
        folder,
        splits=data,
        task=tasks.build("classification", num_classes=3),
        model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(75, 3)),
        strategy=strategies.build("random"),
        settings=ExperimentSettings(initial=5, budget=5, cycles=cycles),
        training=TrainingSettings(epochs=1),
    )
    try:
        return experiment.run()
    finally:
        experiment.close()


OTHERS = {
    "test inputs": {"test": X[40:][::-1].copy()},
    "test labels": {"test_labels": 2 - Y[40:]},
    "order of the pool": {"pool": X[:40][::-1].copy(), "labels": Y[:40][::-1].copy()},
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_samples_under_the_same_ids_are_refused(tmp_path, what):
    before = run(tmp_path, splits(), 2)
    with pytest.raises(RunError, match="others under the same ids"):
        run(tmp_path, splits(**OTHERS[what]), 3)
    after = run(tmp_path, splits(), 3)
    assert after.cycles[0].asked == before.cycles[0].asked
    assert len(after.cycles) == 3


def test_rounding_is_passed_over_and_samples_that_are_gone():
    whole = splits().pool
    probe = probe_samples(whole)
    assert len(probe) == 16
    noise = np.random.default_rng(1).integers(-1, 2, X[:40].shape)
    decoded_otherwise = np.clip(X[:40] + noise, 0, 255).astype(np.uint8)
    assert other_samples(probe, splits(decoded_otherwise).pool) == ()
    assert other_samples(probe, splits(X[:3], Y[:3]).pool) == ()
    assert len(other_samples(probe, splits(255 - X[:40]).pool)) == 16


def test_numbers_that_a_ledger_cannot_hold_are_passed_over():
    class Gaps:
        ids, classes, input_shape = ("a", "b"), ("x", "y"), (2,)

        def __len__(self):
            return 2

        def inputs(self, indices):
            return torch.tensor([[1.0, float("nan")], [1.0, 2.0]])[list(indices)]

    assert list(probe_samples(Gaps())) == ["b"]


def test_targets_of_any_shape_are_told():
    masks = np.random.default_rng(2).integers(0, 3, (40, 5, 5))
    data = Splits.from_arrays(X[:40], masks, X[40:], masks[:20], kind="masks")
    probe = probe_samples(data.test, with_targets=True)
    assert other_samples(probe, data.test, with_targets=True) == ()
    changed = Splits.from_arrays(X[:40], masks, X[40:], masks[20:], kind="masks")
    assert len(other_samples(probe, changed.test, with_targets=True)) == 16
    assert torch.equal(data.test.inputs([0]), changed.test.inputs([0]))
