"""Weights of which each row is made of one row of a leaf: standardised, divided by norms."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from oracle import assert_agrees, norms_one_by_one, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.gradients.per_sample_gradients import Dense, OuterProducts
from upslope.gradnorm.core.weights import row_weights
from upslope.gradnorm.core.weights.leaf_gradients import gradients_of_leaves
from upslope.gradnorm.core.weights.row_weights import RowGradient, gradients_through_rows

REST = (1, 2, 3)


@pytest.fixture(autouse=True)
def _of_any_size(monkeypatch):
    monkeypatch.setattr(row_weights, "_LEAST_ENTRIES", 0)


def standardised(v: Tensor, g: Tensor) -> Tensor:
    w = v - v.mean(REST, keepdim=True)
    return w / (w.std(REST, keepdim=True) + 1e-2)


def step_by_step(v: Tensor, g: Tensor) -> Tensor:
    mean = v.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
    w = v - mean
    return w / (w.reshape(len(w), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-2).expand_as(w)


def with_gain(v: Tensor, g: Tensor) -> Tensor:
    var, mean = torch.var_mean(v, dim=REST, keepdim=True, unbiased=False)
    return (v - mean) * torch.rsqrt(torch.clamp(var * v[0].numel(), min=1e-4)) * g


def with_moving_mean(v: Tensor, g: Tensor) -> Tensor:
    return g * v * 0.5 + (v.mean(REST, keepdim=True) * g - 0.3) + v.sum(REST, keepdim=True).abs()


def by_batch_norm(v: Tensor, g: Tensor) -> Tensor:
    gain = (g * 0.5).view(-1)
    w = v.reshape(1, len(v), -1)
    return F.batch_norm(w, None, None, training=True, eps=1e-2, weight=gain).reshape_as(v)


def by_layer_norm(v: Tensor, g: Tensor) -> Tensor:
    return F.layer_norm(v.flatten(1), (v[0].numel(),)).view_as(v)


def normalised(v: Tensor, g: Tensor) -> Tensor:
    return F.normalize(v.flatten(1)).view_as(v) * g


def divided_by_norm(v: Tensor, g: Tensor) -> Tensor:
    return -v / torch.sqrt((v**2).sum(REST, keepdim=True) + 1e-8)


def by_product(v: Tensor, g: Tensor) -> Tensor:
    return v * torch.maximum((v * v).mean(REST, keepdim=True).exp(), g)


KNOWN = {
    f.__name__: f
    for f in (standardised, step_by_step, with_gain, with_moving_mean, by_batch_norm,
              by_layer_norm, normalised, divided_by_norm, by_product)
}  # fmt: skip


class Layer(nn.Module):
    """A convolution by a weight that is made of leaves."""

    def __init__(self, make, o: int = 4, kernel: int = 3) -> None:
        super().__init__()
        self.make = make
        self.v = nn.Parameter(torch.randn(o, 3, kernel, kernel))
        self.g = nn.Parameter(torch.rand(o, 1, 1, 1) + 0.5)
        self.head = nn.Linear(o, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(F.conv2d(x, self.make(self.v, self.g), padding=1))
        return self.head(y.mean(dim=(2, 3)))


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("last", [False, True])
def test_norms_agree(name, last):
    torch.manual_seed(0)
    model = Layer(KNOWN[name]).double()
    x = torch.randn(5, 3, 8, 8)
    if last:
        model, x = (
            model.to(memory_format=torch.channels_last),
            x.contiguous(memory_format=torch.channels_last),
        )
    assert_agrees(model, x)


@pytest.mark.parametrize("name", KNOWN)
def test_gradients_of_leaves_are_those_of_autograd(name):
    torch.manual_seed(0)
    v = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    g = (torch.rand(4, 1, 1, 1, dtype=torch.float64) + 0.5).requires_grad_()
    weight = KNOWN[name](v, g)
    # The last of the samples has a gradient in the planes alone.
    values = torch.randn(6, *weight.shape, dtype=torch.float64)
    values[-1] = torch.randn(4, 1, 1, 1) * v.detach() + torch.randn(4, 1, 1, 1)
    leaves = gradients_of_leaves(weight, Dense(values), 1 << 20)
    assert isinstance(leaves[0][1], RowGradient)
    for leaf, part in leaves:
        rows = [torch.autograd.grad(weight, leaf, value, retain_graph=True)[0] for value in values]
        truth = torch.stack(rows)
        assert torch.allclose(part.materialize(slice(0, 6)), truth, rtol=1e-9, atol=1e-12)
        assert torch.allclose(part.squared_norms(1 << 20), truth.flatten(1).square().sum(1),
                              rtol=1e-9)  # fmt: skip


def columns(v: Tensor, g: Tensor) -> Tensor:
    return v / v.norm(dim=0, keepdim=True)


def crossed(v: Tensor, g: Tensor) -> Tensor:
    return v * g.view(-1)[: v.shape[3]]


def masked(v: Tensor, g: Tensor) -> Tensor:
    return v * torch.ones_like(v).tril() * g


def added_to(v: Tensor, g: Tensor) -> Tensor:
    return (v + torch.arange(v.numel(), dtype=v.dtype).view_as(v)) * v.mean(REST, keepdim=True) * g


def largest(v: Tensor, g: Tensor) -> Tensor:
    return v / v.abs().amax(REST, keepdim=True) * g


def cubes(v: Tensor, g: Tensor) -> Tensor:
    return v / (v**3).sum(REST, keepdim=True) * g


def partly(v: Tensor, g: Tensor) -> Tensor:
    return v - v.mean((1, 2), keepdim=True) * g


def of_all(v: Tensor, g: Tensor) -> Tensor:
    return (v - v.mean()) * g


def by_layer_norm_with_scale(v: Tensor, g: Tensor) -> Tensor:
    scale = torch.arange(1.0, 1 + v[0].numel(), dtype=v.dtype)
    return F.layer_norm(v.flatten(1), scale.shape, scale).view_as(v) * g


def transposed(v: Tensor, g: Tensor) -> Tensor:
    square = v.flatten(1)[:, :4]
    return (square - square.t().mean(1, keepdim=True)) * g.flatten(1)


OTHERS = (columns, crossed, masked, added_to, largest, cubes, partly, of_all,
          by_layer_norm_with_scale, transposed)  # fmt: skip


@pytest.mark.parametrize("make", OTHERS)
def test_other_weights_are_not_held_to_be_made_row_by_row(make):
    torch.manual_seed(0)
    v = torch.randn(4, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    g = torch.rand(4, 1, 1, 1, dtype=torch.float64).requires_grad_()
    weight = make(v, g)
    assert gradients_through_rows(weight, Dense(torch.zeros(1, *weight.shape)), 1 << 20) is None


@pytest.mark.parametrize("make", [masked, added_to, largest, of_all])
def test_other_weights_agree(make):
    torch.manual_seed(0)
    assert_agrees(Layer(make), torch.randn(5, 3, 6, 6))


def test_row_that_is_constant():
    torch.manual_seed(0)
    model = Layer(with_gain)
    with torch.no_grad():
        model.v[1] = 0.25
    assert_agrees(model, torch.randn(5, 3, 6, 6))


def test_layers_of_a_weight_used_twice():
    torch.manual_seed(0)

    class Twice(Layer):
        def forward(self, x: Tensor) -> Tensor:
            w = self.make(self.v, self.g)
            y = torch.tanh(F.conv2d(F.conv2d(x, w, padding=1)[:, :3], w, padding=1))
            return self.head(y.mean(dim=(2, 3)))

    assert_agrees(Twice(standardised), torch.randn(5, 3, 6, 6))


def test_cosine_classifier():
    torch.manual_seed(0)

    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.weight = nn.Linear(5, 8), nn.Parameter(torch.randn(6, 8))

        def forward(self, x: Tensor) -> Tensor:
            return 4 * F.linear(F.normalize(self.body(x)), F.normalize(self.weight))

    assert_agrees(Cosine(), torch.randn(7, 5))


def test_single_precision_keeps_its_digits():
    torch.manual_seed(0)
    v = torch.randn(8, 64, requires_grad=True)
    weight = (v - v.mean(1, keepdim=True)) / v.std(1, keepdim=True)
    values = v.detach() * torch.linspace(0.5, 1, 8)[:, None] + 1e-3 * torch.randn(3, 8, 64)
    ((_, part),) = gradients_of_leaves(weight, Dense(values), 1 << 20)
    double = v.detach().double().requires_grad_()
    exact = (double - double.mean(1, keepdim=True)) / double.std(1, keepdim=True)
    truth = [torch.autograd.grad(exact, double, value.double(), retain_graph=True)[0].norm()
             for value in values]  # fmt: skip
    ratio = part.squared_norms(1 << 20).double().sqrt() / torch.stack(truth)
    assert math.isclose(float((ratio - 1).abs().max()), 0, abs_tol=1e-3)


class Scaled(nn.Module):
    """A gain for each row, times a number of Python's, which autograd keeps in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.randn(6, 16)), nn.Parameter(torch.randn(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        v = self.weight - self.weight.mean(1, keepdim=True)
        return F.linear(x, v / v.std(1, keepdim=True) * (self.gain * 16**-0.5))


def test_numbers_of_python_in_single_precision():
    torch.manual_seed(0)
    model, x = Scaled(), torch.randn(7, 16)
    norms = gradient_norms(model, x, "entropy")  # by no slower way: warnings are errors
    truth = norms_one_by_one(copy.deepcopy(model).double(), x.double())
    assert relative_error(norms, truth) < 1e-4


@pytest.mark.parametrize("name", ["standardised", "with_gain", "by_batch_norm"])
@pytest.mark.parametrize(("size", "stride", "kernel"), [(4, 2, 3), (3, 1, 1), (5, 3, 2)])
def test_few_positions(name, size, stride, kernel):
    torch.manual_seed(0)

    class Few(Layer):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(F.conv2d(x, self.make(self.v, self.g), stride=stride))
            return self.head(y.mean(dim=(2, 3)))

    model = Few(KNOWN[name])
    model.v = nn.Parameter(torch.randn(4, 20, kernel, kernel))
    assert_agrees(model, torch.randn(5, 20, size, size))


def test_few_positions_in_the_planes_alone():
    torch.manual_seed(0)
    v = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    weight = F.normalize(v - v.mean(1, keepdim=True))
    x = torch.randn(3, 2, 12, dtype=torch.float64)
    x[1] = torch.ones(12)
    products = OuterProducts(x, torch.randn(3, 2, 4, dtype=torch.float64))
    ((_, part),) = gradients_of_leaves(weight, products, 1 << 20)
    values = products.materialize(slice(0, 3))
    truth = torch.stack(
        [torch.autograd.grad(weight, v, value, retain_graph=True)[0] for value in values]
    )
    assert torch.allclose(part.squared_norms(1 << 20), truth.flatten(1).square().sum(1))
