"""Networks that differ in their `forward` alone, and what their outputs for made-up inputs tell."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from small_tasks import perceptron
from test_changed_inputs import run
from upslope import models
from upslope.errors import ModelError
from upslope.ledger import read_run
from upslope.network_outputs import describe_outputs, same_outputs
from upslope.progress import Interrupted

SAMPLE = torch.zeros(3, 2)


class Of(nn.Module):
    """Two layers, with a function between that no attribute holds."""

    function: Callable[[torch.Tensor], Any] = staticmethod(F.relu)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(type(self).function(self.first(x)))


def network(monkeypatch: pytest.MonkeyPatch, function: Callable[[torch.Tensor], Any]) -> None:
    monkeypatch.setattr(Of, "function", staticmethod(function))


def outputs(build: Callable[[], nn.Module] = Of, sample: torch.Tensor = SAMPLE) -> list[float]:
    return describe_outputs(build, lambda: sample)


@pytest.mark.parametrize("stop_at", [("train", 0, 1), ("train", 1, 3)], ids=["first", "next"])
def test_a_run_is_not_gone_on_with_under_another_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: tuple[str, int, int]
) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, stop_at, model=Of)
    network(monkeypatch, F.gelu)
    with pytest.raises(ModelError, match=r"other outputs of the same modules \(`forward`, or what"):
        run(tmp_path, model=Of)
    network(monkeypatch, lambda x: x.clamp(min=0))  # written otherwise, and the same
    run(tmp_path, model=Of)
    assert read_run(tmp_path).finished


def test_one_that_was_never_trained_may_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    network(monkeypatch, fail)
    with pytest.raises(ModelError, match="raised ZeroDivisionError"):
        run(tmp_path, model=Of)
    network(monkeypatch, F.gelu)
    run(tmp_path, model=Of)
    recorded = read_run(tmp_path).info["network"]["outputs"]["numbers"]
    assert recorded == outputs()


def test_functions_are_told_apart_whatever_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for function in (F.relu, F.gelu, F.silu, lambda x: F.leaky_relu(x, 0.05), lambda x: 2 * x):
        network(monkeypatch, function)
        torch.manual_seed(len(told))
        told.append(outputs())
        torch.manual_seed(99)
        assert outputs() == told[-1]
    for i, one in enumerate(told):
        assert [same_outputs(one, other) for other in told] == [j == i for j in range(len(told))]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + torch.rand_like(x),
        lambda x: x.double(),
        lambda x: x[:, :3],
        lambda x: 1 / 0,
        lambda x: torch.sin(1e5 * x),
    ],
    ids=["random", "type", "shape", "error", "magnifies rounding"],
)
def test_what_would_not_last_tells_nothing(
    monkeypatch: pytest.MonkeyPatch, function: Callable[[torch.Tensor], Any]
) -> None:
    network(monkeypatch, function)
    assert outputs() == []
    assert same_outputs([], [1.0])
    assert same_outputs([1.0], [])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_networks_of_another_precision_tell_what_they_compute_in_float32(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    network(monkeypatch, F.relu)
    one = outputs(lambda: Of().to(dtype), SAMPLE.to(dtype))
    assert one
    assert same_outputs(one, outputs())
    network(monkeypatch, F.gelu)
    assert not same_outputs(one, outputs(lambda: Of().to(dtype), SAMPLE.to(dtype)))


def test_what_the_function_keeps_is_left_as_it_was() -> None:
    kept = perceptron(norm=True, dropout=0.5).train()
    before = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert outputs(lambda: kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert kept.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.state_dict().items())


@pytest.mark.parametrize("name", ["mlp", "cnn-small", "resnet18-cifar", "resnet50-cifar"])
def test_networks_of_all_depths_have_outputs_that_tell(name: str) -> None:
    numbers = outputs(
        lambda: models.build(name, num_classes=4, input_shape=(3, 32, 32)),
        torch.zeros(1, 3, 32, 32),
    )
    assert len(numbers) == 4
    assert any(abs(number) > 1e-6 for number in numbers)
