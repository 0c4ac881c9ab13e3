"""Weights that are made of leaves entry by entry (`weights/entrywise_weights`)."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from oracle import assert_agrees, relative_error
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from upslope.gradnorm.core.gradients.per_sample_gradients import Dense, OuterProducts
from upslope.gradnorm.core.gradients.sums_of_squares import squared_norms
from upslope.gradnorm.core.weights.entrywise_weights import gradients_through_entries

Make = Callable[[Tensor, Tensor], Tensor]

STEP = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64)


def _rounded(v: Tensor, _: Tensor) -> Tensor:
    scaled = (v / STEP).clamp(-8, 7)
    return ((scaled.round() - scaled).detach() + scaled) * STEP


ENTRYWISE: dict[str, Make] = {
    "masked": lambda v, _: v * (torch.arange(4) % 2),
    "rounded": _rounded,
    "a mean and a deviation": lambda v, w: v + F.softplus(w) * torch.linspace(-1, 1, 4),
    "of both": lambda v, w: (v.exp() / (1 + w.square()) - 0.5 * v).clone() * w,
    "of one in two ways": lambda v, _: v.tanh() * v.sigmoid() + 3 * v,
}
OTHERS: dict[str, Make] = {
    "its transpose": lambda v, _: v[:, :3].exp() * v[:, :3].mT.exp(),
    "a row for all": lambda v, w: v * w[:1].exp(),
    "a number for each row": lambda v, w: v.exp() * w.mean(1, keepdim=True),
    "in the order of another": lambda v, w: v * w.flip(0),
    "paths without end": lambda v, _: _doubled(v),
}


def _doubled(v: Tensor) -> Tensor:
    for _ in range(12):
        v = v * v.cos()
    return v


def _leaves() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    v, w = torch.randn(2, 3, 4, dtype=torch.float64).unbind()
    return v.requires_grad_(), w.clone().requires_grad_()


@pytest.mark.parametrize("positions", [1, 5])
@pytest.mark.parametrize("name", ENTRYWISE)
def test_gradients_are_those_of_autograd(name: str, positions: int) -> None:
    leaves = _leaves()
    weight = ENTRYWISE[name](*leaves)
    x, g = torch.randn(6, positions, 4).double(), torch.randn(6, positions, 3).double()
    part = OuterProducts(x, g)
    gradients = gradients_through_entries(weight, part) or []
    assert gradients
    for leaf, of_leaf in gradients:
        truth = torch.stack(
            [
                torch.autograd.grad(weight, leaf, values, retain_graph=True)[0]
                for values in part.materialize(slice(None))
            ]
        )
        assert len(of_leaf) == 6
        assert relative_error(of_leaf.materialize(slice(1, 4)), truth[1:4]) < 1e-12
        assert relative_error(of_leaf.squared_norms(1 << 20), squared_norms(truth)) < 1e-12
        v = torch.randn_like(leaf)
        products = of_leaf.inner_products(v)
        assert products is not None
        assert relative_error(products, (truth * v).sum((1, 2))) < 1e-9


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_made_in_another_way_is_left(name: str) -> None:
    weight = OTHERS[name](*_leaves())
    part = Dense(torch.randn(2, *weight.shape).double())
    assert gradients_through_entries(weight, part) is None


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0])
def test_digits_of_small_gradients_are_kept(size: float) -> None:
    v = torch.randn(3, 4, requires_grad=True)
    x, g = 1e20 * torch.randn(2, 1, 4), size * torch.randn(2, 1, 3)
    x[:, :, 1] = 0
    ((_, gradients),) = gradients_through_entries(v * 2, OuterProducts(x, g)) or ()
    truth = 4 * squared_norms(g.double().mT @ x.double()).float()
    assert torch.allclose(gradients.squared_norms(1 << 20), truth, rtol=1e-4) or size == 1.0


class Bayesian(nn.Module):
    """A layer of a Bayesian network, with the noise of one draw."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.randn(outputs, inputs))
        self.spread = nn.Parameter(torch.randn(outputs, inputs))
        self.register_buffer("noise", torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mean + F.softplus(self.spread) * self.noise)


@pytest.mark.parametrize("shape", [(6,), (5, 6)])
def test_a_bayesian_network(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Bayesian(6, 8), nn.Tanh(), Bayesian(8, 3), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(4, *shape)
    model(x)
    assert_agrees(model, x)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_pruned_network(groups: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=groups), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3)
    )
    for layer in (model[0], model[3]):
        prune.l1_unstructured(layer, "weight", 0.5)
    assert_agrees(model, torch.randn(3, 4, 6, 6))


class Quantised(nn.Linear):
    """A layer whose weight is rounded, with a scale for each row."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.detach().abs().amax(1, keepdim=True) / 7
        scaled = self.weight / scale
        rounded = ((scaled.round() - scaled).detach() + scaled).clamp(-8, 6.5) * scale
        return F.linear(x, rounded, self.bias)


@pytest.mark.parametrize("shape", [(6,), (5, 6)])
def test_a_quantised_network(shape: tuple[int, ...]) -> None:
    """Derivatives are taken within the backward pass, where nodes compute what that asks for."""
    torch.manual_seed(0)
    model = nn.Sequential(Quantised(6, 8), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(4, *shape)
    model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # samples do not go one by one
        assert_agrees(model, x)


@pytest.mark.parametrize("positions", [(), (5,)])
@pytest.mark.parametrize("sizes", [(), (8, 1), (8, 6)])
def test_a_weight_between_learned_bounds(
    sizes: tuple[int, ...], positions: tuple[int, ...]
) -> None:
    """`torch.clamp` with tensors has gradients for these as well."""

    class Bounded(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 8)
            self.low = nn.Parameter(torch.full(sizes, -0.1))
            self.high = nn.Parameter(torch.full(sizes, 0.2))

        def forward(self, x: Tensor) -> Tensor:
            weight = torch.clamp(self.weight, self.low, self.high)
            return F.linear(x, weight, self.bias).flatten(1)

    torch.manual_seed(0)
    assert_agrees(Bounded(), torch.randn(4, *positions, 6))
