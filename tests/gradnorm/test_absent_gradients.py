"""Operators that give a weight no gradient, or outputs no entry, and single numbers."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_agrees
from test_uses_of_parameters import Functional
from torch import nn


class WithoutGradient(torch.autograd.Function):
    """A product whose backward pass has no gradient for the second factor."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(w)
        return x * w

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None


@pytest.mark.parametrize("n", [1, 4])
def test_a_custom_function_need_not_have_a_gradient_for_its_weight(n):
    torch.manual_seed(0)
    model = Functional(lambda m, x: WithoutGradient.apply(x * m.s, m.w), s=(4,), w=(4,))
    assert_agrees(model, torch.randn(n, 4))


@pytest.mark.parametrize("n", [1, 4])
def test_a_norm_of_order_zero_has_no_gradient(n):
    torch.manual_seed(0)
    model = Functional(
        lambda m, x: x * m.s * torch.linalg.vector_norm(x * m.w, ord=0, dim=1, keepdim=True),
        s=(4,), w=(4,),
    )  # fmt: skip
    assert_agrees(model, torch.randn(n, 4))


@pytest.mark.parametrize("n", [1, 4])
def test_a_replayed_operator_may_leave_its_weight_unused(n):
    torch.manual_seed(0)
    model = Functional(
        lambda m, x: x * m.s + torch.cdist((x * m.s)[:, :0], m.w[:, :0]), s=(4,), w=(4, 2)
    )
    assert_agrees(model, torch.randn(n, 4), path="replayed")


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_single_number_may_be_replayed(n):
    def function(m, x):
        distances = torch.stack([torch.dist(row, m.w) for row in torch.tanh(x * m.s)])
        return distances[:, None] * m.v

    torch.manual_seed(0)
    model = Functional(function, s=(4,), w=(4,), v=(3,))
    assert_agrees(model, torch.randn(n, 4), path="replayed")


class Detector(nn.Module):
    """Puts out scores, and a box for each of no objects."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        h = self.layer(x)
        return {"logits": h, "boxes": h[:, :0]}


@pytest.mark.parametrize("n", [1, 4])
def test_an_output_may_have_no_entries(n):
    torch.manual_seed(0)
    assert_agrees(Detector(), torch.randn(n, 4), loss="entropy")
