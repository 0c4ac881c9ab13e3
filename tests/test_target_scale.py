"""Targets that are far from 1, and outputs in other units than the task's, are told."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from upslope import Experiment, ExperimentSettings, Splits, strategies
from upslope.errors import ModelError
from upslope.ledger.status import lines, status
from upslope.tasks import Regression
from upslope.training import TrainingSettings

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 3)).astype(np.float32)
Y = X @ np.array([1.0, -2.0, 0.5]) + 0.1 * RNG.normal(size=120)


def by_the_task(model, labelled, context):
    return fit(model, labelled, context.task.losses)


def by_a_loss_of_its_own(model, labelled, context):
    return fit(model, labelled, lambda outputs, y: (outputs - y).square().sum(dim=1))


def by_least_squares(model, labelled, context):
    x, y = labelled.arrays()
    ones = np.ones((len(x), 1))
    solution = np.linalg.lstsq(np.hstack([x, ones]), y.astype(np.float64), rcond=None)[0]
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(solution[:-1].T))
        model.bias.copy_(torch.from_numpy(solution[-1]))
    return model


def fit(model, labelled, losses):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(40):
        for x, y in torch.utils.data.DataLoader(labelled, batch_size=8):
            optimizer.zero_grad()
            losses(model(x), y).mean().backward()
            optimizer.step()
    return model


def perceptron():
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))


def run(folder, y, task, trainer=None, model=perceptron):
    y = y.astype(np.float64)
    splits = Splits.from_arrays(X[:80], y[:80], X[80:], y[80:], kind="numbers", classes=["price"])
    training = None if trainer else TrainingSettings(epochs=60, lr=0.02, batch_size=8)
    with Experiment(
        folder, splits=splits, task=task, model=model, trainer=trainer,
        strategy=strategies.build("random"), training=training, device="cpu", progress=False,
        settings=ExperimentSettings(initial=40, budget=20, cycles=2),
    ) as experiment:  # fmt: skip
        return experiment.run()


def stated(text):
    """The task that a message asks for."""
    centre, scale = re.findall(r"task\.(?:centre|scale)=\[([^]]*)\]", text)
    return Regression(1, classes=("price",), centre=(float(centre),), scale=(float(scale),))


PLAIN = Regression(1, classes=("price",))


@pytest.mark.parametrize("factor", [1e-6, 1e6])
@pytest.mark.parametrize("trainer", [None, by_the_task], ids=["our loop", "own loop"])
def test_what_the_words_ask_for_is_as_good_as_in_plain_units(tmp_path, factor, trainer):
    far = factor * (Y + 5)
    if trainer is None and factor > 1:
        with pytest.raises(ModelError, match="finite training loss") as told:
            run(tmp_path / "far", far, PLAIN)
        text = str(told.value)
        assert "Lower `training.lr`" not in text
    else:
        with pytest.warns(
            UserWarning, match="about 1 but, of 40 labelled samples, 'price'"
        ) as told:
            before = run(tmp_path / "far", far, PLAIN, trainer)
        (warning,) = told  # once, in two cycles
        text = str(warning.message)
        assert before.cycles[0].train_metrics["r2"] < 0.9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = run(tmp_path / "stated", far, stated(text), trainer)
        plain = run(tmp_path / "plain", Y, PLAIN, trainer)
    for one, other in zip(after.cycles, plain.cycles, strict=True):
        assert one.metrics["r2"] == pytest.approx(other.metrics["r2"], abs=0.03)
        assert one.metrics["r2"] > 0.9
        assert one.metrics["rmse"] / factor == pytest.approx(other.metrics["rmse"], rel=0.5)


def test_what_was_learnt_nevertheless_is_not_told(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run(tmp_path, 1e6 * (Y + 5), PLAIN, by_least_squares, lambda: nn.Linear(3, 1))
    assert result.cycles[-1].metrics["r2"] > 0.99
    assert result.unfitted == ()


def test_a_loop_that_leaves_the_units_out_is_told(tmp_path):
    task = Regression(1, classes=("price",), centre=(100.0,), scale=(50.0,))
    with pytest.warns(
        UserWarning, match=r"outputs of \(target - centre\) / scale but R² of 'price'"
    ):
        result = run(tmp_path, 50 * Y + 100, task, by_a_loss_of_its_own)
    assert [cycle.cycle for cycle in result.unfitted] == [0, 1]
    words = dict(lines(status(result)))["not fitted"]
    assert words.startswith("cycles 1, 2: training R² below 0")
    assert "task.centre" in words


def test_only_the_target_that_was_not_learnt_is_named():
    y = torch.tensor([[1.0, 2e-4], [2.0, 3e-4], [4.0, 1e-4]], dtype=torch.float64)
    task = Regression(2, classes=("a", "b"))
    deviation = y.std(dim=0, unbiased=False)
    errors = {"rmse/a": float(deviation[0]), "rmse/b": 10 * float(deviation[1])}
    text = task.advice(y, errors)
    assert "'b' has mean 0.0002 and deviation 8.16e-05" in text
    assert "R² is -99 on them" in text
    assert "task.centre=[2.3, 0.0002] and task.scale=[1.2, 8.2e-05]" in text
    assert task.advice(y, {**errors, "rmse/b": 0.1 * float(deviation[1])}) == ""
    constant = torch.full((3, 1), 1e6)
    assert PLAIN.advice(constant, {"rmse": 1e6}) == ""
    assert "deviation 2.5e+29" in PLAIN.advice(torch.tensor([[1e30], [0.5e30]]))
