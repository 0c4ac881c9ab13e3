"""A weight that is divided by a number made of itself: spectral normalisation and its like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import assert_agrees, relative_error
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from upslope.gradnorm.core.gradients.per_sample_gradients import Dense, OuterProducts
from upslope.gradnorm.core.gradients.sums_of_squares import squared_norms
from upslope.gradnorm.core.weights import divided_weights, leaf_gradients
from upslope.gradnorm.core.weights.divided_weights import (
    DividedGradient,
    gradients_through_division,
)
from upslope.gradnorm.core.weights.weights import Weights
from upslope.gradnorm.kernels.conv.methods import ConvWeightGradient
from upslope.gradnorm.kernels.conv.operands import Geometry

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "on positions": (lambda: nn.Linear(4, 3), (6, 4)),
    "a single row": (lambda: nn.Linear(4, 1), (4,)),
    "conv1d": (lambda: nn.Conv1d(4, 3, 3), (4, 7)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 6, 5)),
    "in groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 6, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 3, 3), (4, 3, 4)),
    "channels last": (
        lambda: nn.Conv2d(4, 6, 3, padding=1).to(memory_format=torch.channels_last),
        (4, 6, 5),
    ),
}


def _network(layer: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    with torch.no_grad():
        size = layer(torch.randn(2, *shape)).flatten(1).shape[1]
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(size, 3))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_spectral_normalisation(name: str, n: int) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    model = _network(parametrizations.spectral_norm(make()), shape)
    assert_agrees(model, torch.randn(n, *shape))


def test_autograd_is_not_asked_for_each_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 3)))
    asked: list[int] = []
    ask = Weights.gradients_of_parameters

    def count(self: Weights, parameters: Any, weight_gradients: Any) -> dict[str, Tensor]:
        asked.append(len(weight_gradients))
        return ask(self, parameters, weight_gradients)

    monkeypatch.setattr(Weights, "gradients_of_parameters", count)
    assert_agrees(model, torch.randn(5, 4))
    assert not any(asked)


DIVISORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "its norm": lambda w, _: w.norm(),
    "its largest entry": lambda w, _: w.abs().amax(),
    "its own sum and a constant": lambda w, _: 2 + w.exp().sum(),
    "another parameter": lambda w, p: p.exp().sum(),
    "its norm and another parameter": lambda w, p: w.norm() + p.exp().sum(),
    "a norm for each row": lambda w, _: w.norm(dim=1, keepdim=True),
    "a number": lambda *_: torch.tensor(3.0),
}


class Divided(nn.Module):
    def __init__(self, divisor: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.divisor = divisor
        self.w, self.p = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.w / self.divisor(self.w, self.p)) * self.p[0]


@pytest.mark.parametrize("name", DIVISORS)
def test_any_divisor(name: str) -> None:
    torch.manual_seed(0)
    assert_agrees(Divided(DIVISORS[name]), torch.randn(3, 4))


@pytest.mark.parametrize("name", DIVISORS)
def test_which_divisions_have_the_closed_form(name: str) -> None:
    model = Divided(DIVISORS[name])
    quotient = model.w / DIVISORS[name](model.w, model.p)
    leaves = gradients_through_division(quotient.grad_fn, Dense(torch.randn(2, 3, 4)), 1 << 20)
    has_form = name in {"its norm", "its largest entry", "its own sum and a constant"}
    assert (leaves is not None) == has_form
    if leaves is None and name == "a number":
        assert leaf_gradients.gradients_of_leaves(quotient, Dense(torch.randn(2, 3, 4)), 1 << 20)


@pytest.mark.parametrize("share", [1.0, 1e-2, 1e-4, 0.0])
def test_digits_are_kept_where_division_takes_out_most(share: float) -> None:
    """Of a gradient along the weight, division by its norm leaves nothing."""
    torch.manual_seed(0)
    x, g = torch.randn(2, 5, 1, 4), torch.randn(5, 1, 3)
    w = (g[0].mT @ x[0, 0] + share * torch.randn(3, 4)).requires_grad_()
    part = OuterProducts(x[0], g)
    truth_part = OuterProducts(x[0].double(), g.double())
    (divided,) = (
        p for _, p in gradients_through_division((w / w.norm()).grad_fn, part, 1 << 20) or ()
    )
    double = w.detach().double().requires_grad_()
    values = truth_part.materialize(slice(None))
    quotient = double / double.norm()
    rows = [torch.autograd.grad(quotient, double, v, retain_graph=True)[0] for v in values]
    truth = squared_norms(torch.stack(rows))
    squares = divided.squared_norms(1 << 20)
    size = squared_norms(values) / double.detach().norm() ** 2
    assert float(((squares - truth) / size).abs().max()) < 1e-6
    if share > 1e-3:
        assert relative_error(squares.double(), truth) < 1e-3
    assert torch.allclose(
        divided.materialize(slice(1, 4)).double(), torch.stack(rows)[1:4], atol=1e-5
    )


def test_gradients_without_inner_products_are_formed() -> None:
    torch.manual_seed(0)
    values, w = torch.randn(5, 3, 4).double(), torch.randn(3, 4).double().requires_grad_()
    ((leaf, divided),) = gradients_through_division((w / w.norm()).grad_fn, Dense(values), 99) or ()
    assert leaf is w
    assert isinstance(divided, DividedGradient)
    assert len(divided) == 5
    rows = divided.materialize(slice(None))
    assert relative_error(divided.squared_norms(1 << 20), squared_norms(rows)) < 1e-12


@pytest.mark.parametrize("size", [6, 40])
def test_of_few_positions_no_gradient_is_formed(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, g = torch.randn(3, 1, 40, size, size), torch.randn(3, 1, 5, size - 2, size - 2)
    geometry = Geometry((1, 1), (0, 0), (1, 1), 1)
    part = ConvWeightGradient(x.double(), g.double(), geometry, (5, 40, 3, 3))
    w = torch.randn(5, 40, 3, 3, dtype=torch.float64, requires_grad=True)
    quotient = w / w.norm()
    truth = torch.stack(
        [
            torch.autograd.grad(quotient, w, values, retain_graph=True)[0]
            for values in part.materialize(slice(None))
        ]
    )
    if size == 6:
        monkeypatch.setattr(ConvWeightGradient, "dense_pieces", None)
    ((_, divided),) = gradients_through_division(quotient.grad_fn, part, 1 << 20) or ()
    assert relative_error(divided.squared_norms(1 << 20), squared_norms(truth)) < 1e-9


@pytest.mark.parametrize("rank", [1, 2])
def test_slopes_of_rank_one_are_known(rank: int) -> None:
    torch.manual_seed(0)
    left, right = torch.randn(5, rank), torch.randn(7, rank)
    factors = divided_weights._factors(left @ right.mT)
    assert (factors is not None) == (rank == 1)
    if factors is not None:
        assert relative_error(torch.outer(*factors), left @ right.mT) < 1e-5
    assert divided_weights._factors(torch.zeros(5, 7)) is None
