"""Weights made by sums, multiples, transposes and products (`weights/leaf_gradients`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from oracle import TOLERANCE, assert_agrees, norms_one_by_one, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.gradnorm import gradient_inner_products, gradient_norms, gradient_sketches
from upslope.gradnorm.core.uses import reducing_listener
from upslope.gradnorm.core.weights.weights import Weights
from upslope.gradnorm.trace.memory import Memory

Make = Callable[[Any], Tensor]


class Model(nn.Module):
    """A layer whose weight (6, 6) is made by a function of the model, and a head."""

    def __init__(self, make: Make, apply: Callable[[Tensor, Tensor], Tensor] = F.linear):
        super().__init__()
        self.make, self.apply_weight = make, apply
        self.w, self.v = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6, 6))
        self.up, self.down = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 6))
        self.row = nn.Parameter(torch.randn(6))
        self.register_buffer("fixed", torch.randn(6, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.apply_weight(x, self.make(self)))
        return self.head(y.flatten(1, -2).mean(1) if y.dim() > 2 else y)


def by_convolution(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv1d(x.mT, weight.view(6, 3, 2), groups=2, padding=1).mT


LAZY: dict[str, Make] = {
    "a multiple": lambda m: 0.5 * m.w,
    "a multiple of a multiple": lambda m: -(m.w * 3) / 2,
    "a fixed base": lambda m: m.fixed + m.w,
    "a low-rank update": lambda m: m.w + 0.5 * (m.up @ m.down),
    "a low-rank update of a fixed base": lambda m: m.fixed - 2 * m.up @ m.down,
    "a product": lambda m: m.w @ m.v,
    "a product with a constant": lambda m: m.fixed @ m.w @ m.fixed,
    "three factors": lambda m: m.up @ m.down @ m.w,
    "a transposed product": lambda m: (m.w @ m.v).t(),
    "of transposed ones": lambda m: m.w.t() @ m.v.t(),
    "a symmetric one": lambda m: m.w + m.w.t(),
    "a square": lambda m: m.w @ m.w,
    "a difference": lambda m: torch.sub(m.w, m.v, alpha=0.3),
    "a weighted sum": lambda m: torch.add(m.w, m.v, alpha=0.3),
}

DENSE: dict[str, Make] = {
    "a masked one": lambda m: m.w * (m.fixed > 0),
    "two multiplied": lambda m: m.w * m.v,
    "a row added": lambda m: m.w + m.row,
    "a number of a parameter": lambda m: m.w * m.row.sum(),
    "standardised": lambda m: (m.w - m.w.mean(1, keepdim=True)) / m.w.std(1, keepdim=True),
    "an exponential": lambda m: m.w.exp() @ m.v,
    "divided by a parameter": lambda m: m.w / m.row[0],
}


@pytest.mark.parametrize("positions", [(), (4,), (2, 4)], ids=str)
@pytest.mark.parametrize("case", LAZY)
def test_the_weight_s_gradient_is_not_formed(case, positions):
    torch.manual_seed(0)
    model = Model(LAZY[case])
    x = torch.randn(5, *positions, 6).double()
    assert_agrees(model, x)
    gradient_norms(model, x, "entropy")  # a program of its own, which is proven
    with (
        mock.patch.object(Weights, "gradients_of_parameters", side_effect=AssertionError("formed")),
        mock.patch.object(Memory, "draw_proof", return_value=False),
    ):
        gradient_norms(model, x, "entropy")


IDS = torch.tensor([3, 0, 3, -1, 2, 0, 3, 5])
ADDED: dict[str, Make] = {
    "rows of a table": lambda m: m.w[IDS[:4]],
    "relative positions": lambda m: m.w[IDS].view(4, 2, 6).permute(1, 0, 2).contiguous()[None],
    "rows of a multiple": lambda m: (2 * m.w)[IDS].view(2, 4, 6)[:, None].transpose(0, 1)[0],
    "positions looked up": lambda m: F.embedding(IDS[:3], m.w).repeat(1, 1)[:, None] + m.fixed[:1],
    "positions twice": lambda m: F.embedding(IDS[:3].abs(), m.w) + m.w[IDS[5:]] - m.v[3:],
    "a vector transposed": lambda m: (2 * m.row).t(),
    "few rows of a table": lambda m: m.w[IDS[:1]],
    "rows by a mask": lambda m: m.w[m.fixed[:, 0] > -9],
    "entries by two indices": lambda m: m.w[IDS.abs()[:4, None], IDS.abs()[:6]],
}


@pytest.mark.parametrize("case", ADDED)
def test_rows_of_tables_that_are_added_to_samples(case):
    torch.manual_seed(0)
    model = Model(ADDED[case], torch.add)
    model.make = make = ADDED[case]
    shape = make(model).shape
    assert_agrees(model, torch.randn(5, *([1] * (3 - len(shape))), *shape[-3:]))


def test_relative_positions_are_added_up_for_all_samples_at_once():
    torch.manual_seed(0)
    model = Model(ADDED["relative positions"], torch.add).double()
    x = torch.randn(5, 2, 4, 6).double()
    gradient_norms(model, x, "entropy")
    with (
        mock.patch.object(
            Weights, "gradients_of_parameters", side_effect=AssertionError("by autograd")
        ),
        mock.patch.object(Memory, "draw_proof", return_value=False),
    ):
        gradient_norms(model, x, "entropy")


@pytest.mark.parametrize("case", DENSE)
def test_other_functions_are_differentiated_by_autograd(case):
    torch.manual_seed(0)
    assert_agrees(Model(DENSE[case]), torch.randn(5, 4, 6))


@pytest.mark.parametrize("case", [*LAZY, *DENSE])
def test_products_from_the_other_side(case):
    torch.manual_seed(0)
    make = {**LAZY, **DENSE}[case]
    assert_agrees(Model(make, lambda x, weight: x @ weight), torch.randn(5, 4, 6))


@pytest.mark.parametrize("case", ["a multiple", "a low-rank update", "a weighted sum"])
def test_convolutions(case):
    torch.manual_seed(0)
    assert_agrees(Model(LAZY[case], by_convolution), torch.randn(5, 4, 6))


class ScaledConvolution(nn.Module):
    """A convolution with an equalised learning rate."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.conv2d(x, self.weight * 0.2).relu().mean((2, 3)))


def test_a_scaled_convolution():
    torch.manual_seed(0)
    assert_agrees(ScaledConvolution(), torch.randn(5, 3, 6, 6))


@pytest.mark.parametrize("case", LAZY)
def test_some_of_the_parameters(case):
    torch.manual_seed(0)
    model, x = Model(LAZY[case]).double(), torch.randn(5, 4, 6).double()
    used = {name for name, p in model.named_parameters() if _is_used(model, x, p)}
    for wanted in sorted(used - {"head.weight", "head.bias"}):
        truth = norms_one_by_one(model, x, wanted=lambda name, wanted=wanted: name == wanted)
        found = gradient_norms(model, x, "entropy", parameters=[wanted])
        assert relative_error(found, truth) < TOLERANCE


def _is_used(model: nn.Module, x: Tensor, parameter: Tensor) -> bool:
    (g,) = torch.autograd.grad(model(x).sum(), parameter, allow_unused=True)
    return g is not None


@pytest.mark.parametrize("case", ["a low-rank update", "a symmetric one", "a multiple"])
def test_weights_used_twice_beside_their_parts(case):
    torch.manual_seed(0)

    def twice(x: Tensor, weight: Tensor) -> Tensor:
        return torch.tanh(x @ weight) @ weight + x @ model.w

    model = Model(LAZY[case], twice)
    assert_agrees(model, torch.randn(5, 4, 6))


@pytest.mark.parametrize("case", LAZY)
def test_sketches_and_inner_products(case):
    torch.manual_seed(0)
    model, x = Model(LAZY[case]).double(), torch.randn(5, 4, 6).double()
    rows = []
    for i in range(5):
        value = torch.distributions.Categorical(logits=model(x[i : i + 1])).entropy()[0]
        gradients = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
        rows.append([torch.zeros(()) if g is None else g for g in gradients])
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    truth = torch.stack(
        [sum((g * v).sum() for g, v in zip(row, direction.values(), strict=True)) for row in rows]
    )
    assert torch.allclose(gradient_inner_products(model, x, "entropy", direction), truth)
    sketches, norms = gradient_sketches(model, x, "entropy"), gradient_norms(model, x, "entropy")
    assert relative_error(sketches.norms, norms) < TOLERANCE


class Rearranged(nn.Module):
    """A product with a weight (3, 6, 6) whose entries are put into other places, and a head."""

    def __init__(self, apply: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.apply_weight = apply
        self.w, self.head = nn.Parameter(torch.randn(3, 6, 6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.apply_weight(x, self.w)).mean(dim=1))


REARRANGED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "two dimensions as rows": lambda x, w: torch.einsum("ntgi,gio->nto", x, w),
    "the outer two as rows": lambda x, w: torch.einsum("ntgi,goi->nto", x, w),
    "exchanged": lambda x, w: x.flatten(2) @ w.transpose(0, 1).reshape(-1, 6),
    "a permuted copy": lambda x, w: x.flatten(2) @ w.permute(2, 0, 1).contiguous().view(-1, 6),
    "a squeezed copy": lambda x, w: x.flatten(2) @ w.mT[None].clone().squeeze(0).reshape(-1, 6),
    "a transposed copy": lambda x, w: F.linear(x.flatten(2), w.reshape(18, 6).t().contiguous()),
    "a multiple of a copy": lambda x, w: x.flatten(2) @ (2 * w.transpose(0, 2)).reshape(-1, 6),
}


@pytest.mark.parametrize("case", REARRANGED)
def test_entries_in_other_places_have_the_same_norm(case):
    torch.manual_seed(0)
    model, x = Rearranged(REARRANGED[case]), torch.randn(5, 4, 3, 6).double()
    assert_agrees(model, x)
    gradient_norms(model, x, "entropy")
    with (
        mock.patch.object(reducing_listener, "dense_sums", side_effect=AssertionError("formed")),
        mock.patch.object(Memory, "draw_proof", return_value=False),
    ):
        gradient_norms(model, x, "entropy")


def test_sketches_of_entries_in_other_places():
    torch.manual_seed(0)
    model = Rearranged(REARRANGED["the outer two as rows"]).double()
    x = torch.randn(5, 4, 3, 6).double()
    sketches = gradient_sketches(model, x, "entropy", dim=4096)
    truth = norms_one_by_one(model, x)
    assert relative_error(sketches.norms, truth) < TOLERANCE
    assert relative_error(sketches.vectors.norm(dim=1).double(), truth) < 0.2
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    found = gradient_inner_products(model, x, "entropy", direction)
    for i in range(len(x)):
        loss = torch.special.entr(model(x[i : i + 1]).softmax(dim=1)).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        pairs = zip(gradients, direction.values(), strict=True)
        expected = torch.stack([(g * v).sum() for g, v in pairs]).sum()
        assert torch.allclose(found[i], expected, rtol=1e-9)
