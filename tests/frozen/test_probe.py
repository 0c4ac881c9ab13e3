"""Made-up samples of which a network gives numbers that are not finite, as logarithms are."""

import warnings

import pytest
import torch
from torch import nn

from upslope import ExperimentSettings, TrainingSettings, strategies, tasks
from upslope.datasets import Splits
from upslope.experiment import Experiment
from upslope.frozen import freeze, same_summary
from upslope.frozen.probe import summary

NAN, INF = float("nan"), float("inf")


class OfLogarithms(nn.Module):
    """A network of positive inputs, such as powers of a spectrum."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.body, self.head = nn.Linear(6, 5, bias=False), nn.Linear(5, 3)
        self.factor = factor
        with torch.no_grad():
            self.body.weight.copy_(torch.linspace(-1, 1, 30).reshape(5, 6))

    def forward(self, x):
        return self.head(self.body(torch.log(x)) * self.factor)


def positive():
    rng = torch.Generator().manual_seed(0)
    x = (torch.rand(60, 6, generator=rng) + 0.1).numpy()
    y = torch.arange(60).remainder(3).numpy()
    return Splits.from_arrays(x[:40], y[:40], x[40:], y[40:])


def test_its_features_are_kept_and_its_run_is_gone_on_with(tmp_path):
    task = tasks.build("classification", num_classes=3)

    def frozen():
        return freeze(
            positive(), task, OfLogarithms, device="cpu", folder=tmp_path / "kept", progress=False
        )

    def run(made):
        return Experiment(
            tmp_path / "run", splits=made.splits, task=task, model=made.head,
            strategy=strategies.build("margin"), device="cpu", progress=False,
            settings=ExperimentSettings(initial=5, budget=5, cycles=2),
            training=TrainingSettings(epochs=1),
        )  # fmt: skip

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = frozen()
        blocks = {path: path.stat().st_mtime_ns for path in tmp_path.glob("kept/*/*.npy")}
        frozen()
        with run(made) as first:
            asked = first.ask()
        with run(frozen()) as again:
            assert again.ask() == asked
    assert blocks
    assert blocks == {path: path.stat().st_mtime_ns for path in tmp_path.glob("kept/*/*.npy")}


@pytest.mark.parametrize(
    ("then", "now", "same"),
    [
        ([1.0, NAN, 2.0], [1.0, NAN, 2.0], True),
        ([1.0, INF, 2.0], [1.0, 0.0, 2.0], True),
        ([1.0, NAN, 2.0], [1.1, NAN, 2.0], False),
        ([1.0, 2.0], [1.0], False),
        ([0.0, 0.0], [0.0, 0.0], True),
    ],
)
def test_finite_numbers_alone_tell_networks_apart(then, now, same):
    assert same_summary(then, now) is same


def test_a_summary_is_finite():
    numbers = summary(torch.tensor([[NAN, 1, 2, INF, 4, -INF, 6, 8.0]]))
    assert numbers == [0.5, 1.0, 2.0, 7.0]
