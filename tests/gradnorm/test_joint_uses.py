"""A weight that one operator takes again and again is reduced once, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import assert_agrees
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.gradients import per_sample_gradients
from upslope.gradnorm.core.gradients.per_sample_gradients import (
    Dense,
    OuterProducts,
    PerSampleGradient,
)
from upslope.gradnorm.core.uses import joint_uses
from upslope.gradnorm.core.uses.joint_uses import JointUses, Use
from upslope.gradnorm.kernels.conv.convolution import Convolution
from upslope.gradnorm.kernels.linear import Linear


class Loop(nn.Module):
    """A step that is taken `steps` times; x: (n, 4, ...)."""

    def __init__(self, step: Callable[[Loop, Tensor], Tensor], layer: nn.Module, steps: int = 3):
        super().__init__()
        self.step, self.layer, self.steps = step, layer, steps
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.steps):
            x = torch.tanh(self.step(self, x))
        x = x.flatten(2).mean(dim=2) if x.dim() > 2 else x
        return self.head(x)


class Transposed(nn.Module):
    """x @ W, without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 4), (4,)),
    "without a bias": (lambda: nn.Linear(4, 4, bias=False), (4,)),
    "of the transpose": (Transposed, (4,)),
    "on positions": (lambda: nn.Linear(4, 4), (4, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 4, 3, padding=1), (4, 6)),
    "conv2d": (lambda: nn.Conv2d(4, 4, 3, padding=1), (4, 5, 6)),
    "in groups": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2), (4, 5, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 5, 6)),
    "pixels": (lambda: nn.Conv2d(4, 4, 1), (4, 5, 6)),
    "conv3d": (lambda: nn.Conv3d(4, 4, 3, padding=1), (4, 3, 4, 2)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 3, padding=1), (4, 5, 6)),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), (4,)),
    "weight norm of conv1d": (
        lambda: parametrizations.weight_norm(nn.Conv1d(4, 4, 3, padding=1)),
        (4, 6),
    ),
}


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_is_called_again(name: str, n: int) -> None:
    make, shape = LAYERS[name]
    assert_agrees(Loop(lambda m, x: m.layer(x), make()), torch.randn(n, *shape))


FORMED = {"on positions", "conv2d", "in groups", "depthwise", "pixels", "conv3d", "transposed"}


@pytest.mark.parametrize("name", LAYERS)
def test_steps_whose_operands_fill_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients take the place of operands that are larger, and are summed."""
    monkeypatch.setattr(joint_uses, "_ROOM", 1)
    monkeypatch.setattr(per_sample_gradients, "LARGE", 1)
    formed: list[PerSampleGradient] = []
    condense = PerSampleGradient.condense

    def spy(part: PerSampleGradient, bytes_each: int, scratch: int) -> PerSampleGradient:
        condensed = condense(part, bytes_each, scratch)
        formed.extend([condensed] if condensed is not part else [])
        return condensed

    monkeypatch.setattr(PerSampleGradient, "condense", spy)
    make, shape = LAYERS[name]
    model = Loop(lambda m, x: m.layer(x), make(), steps=7)
    assert_agrees(model, torch.randn(3, *shape))
    assert formed or name not in FORMED


def test_what_fills_memory_is_summed_in_single_precision() -> None:
    ones = torch.ones(2, 3_000_000, 1, dtype=torch.bfloat16)
    part = OuterProducts(ones, ones).condense(4, 1 << 20)
    assert isinstance(part, Dense)
    assert part.values.dtype == torch.float32


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_with_a_frozen_half(name: str, frozen: str) -> None:
    make, shape = LAYERS[name]
    model = Loop(lambda m, x: m.layer(x), make())
    getattr(model.layer, frozen).requires_grad_(False)
    assert_agrees(model, torch.randn(3, *shape))


def test_channels_that_lie_last_in_memory() -> None:
    make, shape = LAYERS["conv2d"]
    model = Loop(lambda m, x: m.layer(x), make()).to(memory_format=torch.channels_last)
    x = torch.randn(3, *shape).contiguous(memory_format=torch.channels_last)
    assert_agrees(model, x)


def _shrink(m: Any, x: Tensor) -> Tensor:
    return m.layer(x)[..., :-1]


def _with_another_bias(m: Any, x: Tensor) -> Tensor:
    return F.linear(torch.tanh(m.layer(x)), m.layer.weight, m.head.weight[0])


def _transposed_in_turn(m: Any, x: Tensor) -> Tensor:
    return torch.tanh(m.layer(x)) @ m.layer.weight


def _as_one_sample_more_is_a_position(m: Any, x: Tensor) -> Tensor:
    return m.layer(x.transpose(0, 1)).transpose(0, 1)


def _also_as_a_scale(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) * m.layer.weight[0]


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (_shrink, "conv1d"),
        (_shrink, "conv2d"),
        (_with_another_bias, "linear"),
        (_transposed_in_turn, "linear"),
        (_as_one_sample_more_is_a_position, "on positions"),
        (_also_as_a_scale, "linear"),
    ],
)
def test_uses_that_are_not_all_alike(step: Callable[[Any, Tensor], Tensor], name: str) -> None:
    make, shape = LAYERS[name]
    assert_agrees(Loop(step, make()), torch.randn(3, *shape))


def test_a_step_that_no_gradient_reaches() -> None:
    def step(m: Any, x: Tensor) -> Tensor:
        m.layer(x)
        return m.layer(x)

    assert_agrees(Loop(step, nn.Linear(4, 4)), torch.randn(3, 4))


def test_steps_in_different_numbers() -> None:
    model, x = Loop(lambda m, x: m.layer(x), nn.Linear(4, 4)).double(), torch.randn(3, 4).double()
    for steps in (2, 5, 1, 5):
        model.steps = steps
        assert_agrees(model, x)


@pytest.mark.parametrize("kind", [Linear, Convolution])
@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_all_steps_are_described_once(
    name: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    describe = kind.weight_gradients

    def count(self: Any, g: Tensor, *inputs: Tensor, **options: Any) -> Any:
        rows.append(len(g))
        return describe(self, g, *inputs, **options)

    make, shape = LAYERS[name]
    model, x = Loop(lambda m, x: m.layer(x), make(), steps=6), torch.randn(2, *shape)
    model.requires_grad_(requires_grad=False)
    model.layer.requires_grad_()
    for _ in range(5):
        gradient_norms(model, x, lambda out: out.sum(dim=1))
    monkeypatch.setattr(kind, "weight_gradients", count)
    gradient_norms(model, x, lambda out: out.sum(dim=1))
    is_its = (kind is Linear) == (name == "linear")
    assert rows == ([12] if is_its else [])


def test_rows_of_one_place_lie_together() -> None:
    class Kernel(Linear):
        joint_key = "the same"

        def __init__(self) -> None:
            """Take no weights: only operands are joined."""

    kernel, uses = Kernel(), JointUses()
    tensors = [torch.full((2, 1), float(i)) + torch.tensor([[0.0], [10.0]]) for i in range(3)]
    assert uses.keep(Use(kernel, tensors[0], (tensors[0],)), 3) is None
    assert uses.keep(Use(kernel, tensors[1], (tensors[1],)), 3) is None
    joint = uses.keep(Use(kernel, tensors[2], (tensors[2],)), 3)
    assert joint is not None
    assert joint.number == 3
    assert joint.g.flatten().tolist() == [0, 1, 2, 10, 11, 12]
    assert uses.take_rest() == []
