"""Products with a stack of matrices, one for each group, against the oracle."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_agrees
from torch import Tensor, nn

from upslope.errors import GradientNormError
from upslope.gradnorm import entropy_over, explain, gradient_norms


class Stack(nn.Module):
    """A product of samples and a stack, the mean over all positions, then logits."""

    def __init__(self, shape: tuple[int, ...], product, kind: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.stack = nn.Parameter(torch.randn(shape, dtype=kind))
        self.product, self.head = product, nn.LazyLinear(3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.product(self.stack, x))
        return self.head((y.abs() if y.is_complex() else y).reshape(len(x), -1))


PRODUCTS = {
    "one row for each group": ((4, 5, 3), (6, 4, 1, 5), lambda w, x: x @ w),
    "several rows": ((4, 5, 3), (6, 4, 7, 5), lambda w, x: x @ w),
    "many rows": ((2, 5, 3), (3, 2, 60, 5), lambda w, x: x @ w),
    "groups of two dimensions": ((2, 3, 5, 4), (6, 2, 3, 2, 5), lambda w, x: x @ w),
    "positions between groups": ((2, 1, 5, 4), (6, 2, 3, 2, 5), lambda w, x: x @ w),
    "positions ahead of groups": ((3, 5, 4), (6, 2, 3, 2, 5), lambda w, x: x @ w),
    "one for all groups": ((3, 5, 4), (6, 1, 2, 5), lambda w, x: x @ w),
    "no dimension of groups": ((3, 5, 4), (6, 5), lambda w, x: (x @ w).transpose(0, 1)),
    "capsules": ((1, 4, 2, 3, 5), (6, 4, 5), lambda w, x: w @ x[:, :, None, :, None]),
    "stack on the left": ((3, 4, 5), (6, 3, 5, 2), lambda w, x: w @ x),
    "stack of one": ((1, 1, 5, 4), (6, 2, 5), lambda w, x: x @ w),
    "samples in rows": ((4, 5, 3), (6, 4, 5), lambda w, x: (x.transpose(0, 1) @ w).movedim(1, 0)),
    "bmm": ((4, 5, 3), (6, 4, 5), lambda w, x: torch.bmm(x.transpose(0, 1), w).movedim(1, 0)),
    "transposed": ((4, 3, 5), (6, 4, 2, 5), lambda w, x: x @ w.mT),
    "used twice": ((4, 5, 5), (6, 4, 2, 5), lambda w, x: torch.tanh(x @ w) @ w),
    "einsum": ((4, 5, 3), (6, 7, 4, 5), lambda w, x: torch.einsum("kio,ntki->ntko", w, x)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_norms_agree(name):
    torch.manual_seed(0)
    shape, inputs, product = PRODUCTS[name]
    x = torch.randn(inputs)
    model = Stack(shape, product)
    model(x.double())
    assert_agrees(model, x)
    assert_agrees(model, x[:1])


def test_a_stack_is_one_use():
    torch.manual_seed(0)
    model = Stack((40, 5, 3), lambda w, x: x @ w).double()
    x = torch.randn(6, 40, 2, 5, dtype=torch.float64)
    model(x)
    uses = [use.operator for use in explain(model, x).uses]
    assert sum("matmul" in use for use in uses) == 1


def test_complex_stack():
    torch.manual_seed(0)
    model = Stack(
        (4, 5, 3), lambda w, x: torch.complex(x, -x.flip(0) * 0 + x) @ w, torch.complex128
    )
    x = torch.randn(6, 4, 2, 5)
    model.double()
    model(x.double())
    assert_agrees(model, x)


def test_matrices_of_single_samples_are_refused():
    torch.manual_seed(0)
    model = Stack((6, 5, 3), lambda w, x: (x[:, None] @ w[: len(x)])[:, 0])
    x = torch.randn(6, 5, dtype=torch.float64)
    model(x)
    with pytest.raises(GradientNormError):
        gradient_norms(model, x, entropy_over(1))
