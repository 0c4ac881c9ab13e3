"""The network of a run is told from others whose weights have the same names and shapes."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from small_tasks import TASK, Points, splits
from test_changed_inputs import run
from upslope import ExperimentSettings, compare, strategies
from upslope.cli.app import app
from upslope.config import scoring
from upslope.config.recorded import find_source
from upslope.errors import ModelError
from upslope.ledger import read_run
from upslope.network_record import (
    describe_lastingly,
    describe_network,
    network_differences,
)
from upslope.progress import Interrupted
from upslope.training import TrainingSettings


@dataclass(frozen=True)
class Options:
    gain: float = 1.0
    steps: tuple[int, ...] = (1, 2)


class Scaled(nn.Module):
    """A layer whose settings are attributes that its representation does not show."""

    def __init__(self, gain: float = 1.0, options: Options | None = None, fn: Any = torch.relu):
        super().__init__()
        self._gain, self.options, self.fn = gain, options or Options(), fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fn(x) * self._gain * self.options.gain


def network(
    rate: float = 0.1,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    layer: Callable[[], nn.Module] = nn.ReLU,
    trained: bool = True,
    double: bool = False,
    more: bool = False,
) -> nn.Module:
    norm = nn.BatchNorm1d(8, eps, momentum)
    layers = [nn.Linear(2, 8), norm, layer(), nn.Dropout(rate), nn.Linear(8, 3)]
    model = nn.Sequential(*layers, *([nn.Softsign()] if more else []))
    model[0].requires_grad_(trained)
    return model.double() if double else model


OTHERS = {
    "dropout": {"rate": 0.9},
    "epsilon": {"eps": 0.5},
    "momentum": {"momentum": None},
    "activation": {"layer": nn.Tanh},
    "options of an activation": {"layer": partial(nn.Hardtanh, 0.0, float("inf"))},
    "a frozen layer": {"trained": False},
    "type": {"double": True},
    "one more layer": {"more": True},
}


@pytest.mark.parametrize("change", OTHERS)
@pytest.mark.parametrize("stop_at", [("train", 0, 1), ("train", 1, 3)], ids=["first", "next"])
def test_a_run_is_not_gone_on_with_under_another_network(
    tmp_path: Path, change: str, stop_at: tuple[str, int, int]
) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, stop_at, model=network)
    with pytest.raises(ModelError, match=r"another network: .* instead of "):
        run(tmp_path, model=partial(network, **OTHERS[change]))  # type: ignore[arg-type]
    run(tmp_path, model=network)
    assert read_run(tmp_path).finished


class Failing(nn.Module):
    """A network that fails as soon as it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise ZeroDivisionError
        return self.layer(inputs)


def test_a_network_that_was_never_trained_may_be_exchanged(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, model=Failing)
    with pytest.raises(Interrupted):
        run(tmp_path, ("train", 1, 3), model=network)
    with pytest.raises(ModelError, match=r"3\.p 0\.1 instead of 0\.2"):
        run(tmp_path, model=partial(network, 0.2))
    run(tmp_path, model=network)
    recorded = read_run(tmp_path).info["network"]
    assert {**describe_network(network()), "outputs": recorded["outputs"]} == recorded


@pytest.mark.parametrize(
    ("one", "other", "key"),
    [
        (Scaled(1.0), Scaled(2.0), "_gain 1.0 instead of 2.0"),
        (Scaled(options=Options(1.0)), Scaled(options=Options(2.0)), "options {'gain': 1.0,"),
        (Scaled(fn=torch.relu), Scaled(fn=torch.tanh), "fn relu instead of tanh"),
        (
            Scaled(fn=partial(nn.functional.leaky_relu, negative_slope=0.1)),
            Scaled(fn=partial(nn.functional.leaky_relu, negative_slope=0.2)),
            "fn .*0.1.* instead of .*0.2",
        ),
        (nn.MaxPool2d(2, stride=2), nn.MaxPool2d(2, stride=1), "stride 2 instead of 1"),
        (nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3, padding="same"), r"padding \[0, 0\] instead of"),
        (nn.LSTM(2, 2, 2, dropout=0.1), nn.LSTM(2, 2, 2, dropout=0.2), "dropout 0.1 instead of"),
    ],
)
def test_settings_held_as_attributes_are_told_apart(
    one: nn.Module, other: nn.Module, key: str
) -> None:
    differences = network_differences(describe_network(one), describe_network(other))
    assert any(re.search(key, difference) for difference in differences), differences


def test_what_differs_by_place_or_by_call_is_no_difference() -> None:
    numbers = itertools.count()

    def make(device: str = "cpu", path: str = "/home/ann/w.pt") -> nn.Module:
        model = Scaled()
        model.number, model.name = next(numbers), f"net {os.urandom(4).hex()}"
        model.device, model.path, model.loaded = device, path, [path]
        model.itself = {}
        model.itself["again"] = model.itself
        model.words = [f"word {i}" for i in range(10_000)]
        return model

    before = describe_lastingly(make)
    assert len(json.dumps(before)) < 1000
    assert before == json.loads(json.dumps(before))
    now = describe_network(make("cuda:1", "C:\\w.pt"))
    assert network_differences(before, now) == []
    later_version = {**now, "settings": {**now["settings"], "new": 3}}
    assert network_differences(before, later_version) == []


def halve(model: nn.Module, labelled: Any, context: Any, factor: float = 0.5) -> nn.Module:
    """A loop with a setting, in place of ours."""
    with torch.no_grad():
        model[4].weight.mul_(factor)  # type: ignore[index, operator, union-attr]
    return model


class Renamed(Points):
    """Points of which one that no probe looks at has another id."""

    @property
    def ids(self) -> tuple[str, ...]:
        first, _, *others = super().ids
        return (first, "another", *others)


@pytest.mark.parametrize(
    "other",
    [
        {"model": partial(network, 0.9)},
        {"task": replace(TASK, label_smoothing=0.2)},
        {"trainer": partial(halve, factor=0.1)},
        {"splits": replace(splits(), pool=Points(200, seed=7))},
        {"splits": replace(splits(), test=Renamed(len(splits().test), seed=1))},
    ],
    ids=["model", "task", "trainer", "pool", "ids of the test set"],
)
def test_a_first_model_of_other_objects_is_not_shared(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    common: dict[str, Any] = {
        "seeds": [0],
        "splits": splits(),
        "task": TASK,
        "model": network,
        "trainer": partial(halve, factor=0.5),
        "settings": ExperimentSettings(initial=20, budget=10, cycles=2),
        "device": "cpu",
    }
    if "trainer" not in other:
        common |= {"trainer": None, "training": TrainingSettings(epochs=2, batch_size=8)}
    compare(tmp_path / "both", strategies={"random": strategies.build("random")}, **common)
    later = {**common, **other, "strategies": {"margin": strategies.build("margin")}}
    beside, alone = (compare(tmp_path / folder, **later) for folder in ("both", "alone"))
    first, second = (result.runs["margin"][0].cycles for result in (beside, alone))
    assert [c.model_sha256 for c in first] == [c.model_sha256 for c in second]
    assert not first[0].reused


OWN = """
from torch import nn
def make(num_classes, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), nn.Hardtanh(0.0, {top}))
"""
OWN_FORWARD = """
from torch import nn
class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(64, classes)
    def forward(self, x):
        return self.layer(x.flatten(1)).clamp(0.0, {top})
def make(num_classes, input_shape):
    return Net(num_classes)
"""


@pytest.mark.parametrize(
    ("code", "words"),
    [(OWN, "2.max_val 1.0 instead of 0.025"), (OWN_FORWARD, "other outputs of the same modules")],
)
def test_the_network_of_a_trained_run_has_its_settings_or_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_net_of_a_run", raising=False)
    (tmp_path / "own_net_of_a_run.py").write_text(code.format(top=1.0))
    options = ["model.name=own_net_of_a_run:make", "experiment.cycles=1", "training.epochs=1"]
    sets = [word for option in options for word in ("-s", option)]
    command = ["run", "--strategy", "random", "--device", "cpu", "-o", "runs", *sets]
    assert CliRunner().invoke(app, command).exit_code == 0
    source = find_source(tmp_path / "runs")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        scoring.load_trained_model(source)
        assert not told
        del sys.modules["own_net_of_a_run"]
        # Of another length: within a second, Python takes its compiled form of the first for it.
        (tmp_path / "own_net_of_a_run.py").write_text(code.format(top=0.025))
        scoring.load_trained_model(source)
    assert words in str(told[0].message)
