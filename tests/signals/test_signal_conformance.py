"""Every signal of the registry keeps the contract of `Signal` or `FittedSignal`.

A new signal is tested with its defaults; what takes long gets smaller options in `OPTIONS`.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import context

from upslope.errors import ConfigError
from upslope.pool import Need
from upslope.seeds import global_generator
from upslope.signals import REGISTRY, FitContext, FittedSignal, Signal, build, describe
from upslope.tasks import Classification, Segmentation, Task

CPU = torch.device("cpu")
OPTIONS: dict[str, dict[str, Any]] = {
    "vaal": {"steps": 4, "latent": 4, "width": 4},
    "sraal": {"steps": 4, "latent": 4, "width": 4},
    "latents": {"steps": 4, "latent": 4, "width": 4},
    "contrastive-features": {"steps": 2},
    "committee": {"members": 2, "epochs": 1},
    "model-change": {"members": 2, "epochs": 1},
    "mc-dropout": {"passes": 4},
    "mc-posteriors": {"passes": 4},
    "extracted-features": {"extractor": "extractor_of_tests:make"},
}
RANDOM = {"mc-dropout", "mc-posteriors"}
"""Signals whose values come from dropout: they depend on the generator and on the whole batch."""
OF_MASKS = {"boundary-length"}


class Network(nn.Module):
    """Two hidden layers with dropout and batch normalisation, for images of 1 x 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Tanh())
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.body(x)))
        return logits


def prepared(name: str) -> tuple[nn.Module, Task, FitContext]:
    with global_generator(0, "weights", device=CPU):
        model = nn.Conv2d(1, 2, 3, padding=1) if name in OF_MASKS else Network()
    task = Segmentation(2) if name in OF_MASKS else Classification(2)
    return model.eval(), task, context(model=model.eval())


def ready(name: str, of: FitContext) -> Signal:
    """The signal to compute with, trained where it must be."""
    signal = build(Need.of(name, **OPTIONS.get(name, {})))
    trainable: object = signal
    if isinstance(trainable, FittedSignal):
        of.rng.manual_seed(5)
        return trainable.fit(of)
    return signal


@pytest.fixture(autouse=True)
def extractor(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "extractor_of_tests.py").write_text(
        "import torch\n\n\ndef make(num_classes, input_shape):\n    return torch.nn.Flatten()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


every_signal = pytest.mark.parametrize("name", sorted(REGISTRY))


@every_signal
def test_values_are_finite_one_row_per_sample_and_repeatable(name: str) -> None:
    model, task, of = prepared(name)
    signal, again = ready(name, of), ready(name, of)
    x = of.dataset.inputs(range(7))
    values = []
    for one in (signal, again):
        with global_generator(0, "signals", device=CPU):
            values.append(one.compute(model, task, x))
    assert len(values[0]) == 7
    assert bool(torch.isfinite(values[0]).all())
    assert not values[0].requires_grad
    assert torch.equal(values[0], values[1])


@pytest.mark.parametrize("name", sorted(REGISTRY.keys() - RANDOM))
def test_the_value_of_a_sample_does_not_depend_on_the_others(name: str) -> None:
    model, task, of = prepared(name)
    signal = ready(name, of)
    x = of.dataset.inputs([0, 70, 3, 90])
    whole = signal.compute(model, task, x)
    for i in range(4):
        torch.testing.assert_close(
            signal.compute(model, task, x[[i]])[0], whole[i], atol=1e-5, rtol=1e-4
        )


@every_signal
def test_the_model_is_left_as_it_was(name: str) -> None:
    model, task, of = prepared(name)
    before = copy.deepcopy(model.state_dict())
    signal = ready(name, of)
    with global_generator(0, "signals", device=CPU):
        signal.compute(model, task, of.dataset.inputs(range(5)))
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@every_signal
def test_it_is_described_and_takes_no_other_option(name: str) -> None:
    (line,) = [line for line in describe() if line.name == name]
    assert line.summary
    assert all(option.help for option in line.options), name
    assert REGISTRY[name].name == name
    with pytest.raises(ConfigError, match="no_such_option"):
        build(Need.of(name, no_such_option=1))
