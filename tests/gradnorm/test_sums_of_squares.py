"""Sums of squares over many tensors, and the ways to the norm of a sum of outer products."""

from __future__ import annotations

import copy
import math
import warnings
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from upslope.errors import GradientNormWarning
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.gradients.per_sample_gradients import OfOneSample, OuterProducts
from upslope.gradnorm.core.gradients.sums_of_squares import SumOfSquares

SCRATCH = 64 << 20


def brute_force(tensors: list[Tensor]) -> Tensor:
    """(n,) float64."""
    doubles = [t.to(torch.complex128 if t.is_complex() else torch.float64) for t in tensors]
    squares = [t.abs().square().reshape(len(t), -1).sum(dim=1) for t in doubles]
    return torch.stack(squares).sum(dim=0)


def test_total_of_tensors_of_many_shapes_and_types():
    torch.manual_seed(0)
    large = torch.randn(3, 200_000)
    tensors = [
        torch.randn(3, 4),
        torch.randn(3, 2, 5),
        torch.randn(3),
        torch.randn(3, 6, dtype=torch.float64),
        torch.randn(3, 6, dtype=torch.complex64).conj(),
        torch.randn(3, 7).to(torch.bfloat16),
        large,
        large[:, :5],  # holds the memory of the large one: it is not kept
        torch.randn(4, 3, 2).transpose(0, 1),
        *(torch.randn(3, 2000) for _ in range(100)),  # more than are kept at a time
    ]
    total = SumOfSquares()
    for tensor in tensors:
        total.add_rows(tensor)
    norms, squares = torch.rand(3), torch.rand(3, dtype=torch.float64)
    total.add_norms(norms)
    total.add_squares(squares)
    expected = brute_force(tensors) + norms.double() ** 2 + squares
    found = total.total()
    assert found is not None
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_total_of_nothing_is_none():
    assert SumOfSquares().total() is None


def test_half_precision_does_not_overflow():
    total = SumOfSquares()
    total.add_rows(torch.full((2, 3), 6e4, dtype=torch.float16))
    found = total.total()
    assert found is not None
    torch.testing.assert_close(
        found, brute_force([torch.full((2, 3), 6e4, dtype=torch.float16)]), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(
    ("n", "t", "i", "o", "method"),
    [
        (3, 1, 5, 4, "product"),
        (3, 6, 5, 4, "direct, at once"),
        (2, 6, 4, 5, "direct, at once"),
        (40, 60, 90, 100, "direct"),
        (40, 4, 200, 90, "ghost"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_each_way_to_the_norms_of_outer_products(n, t, i, o, method, dtype):
    torch.manual_seed(0)
    x, g = torch.randn(n, t, i, dtype=dtype), torch.randn(n, t, o, dtype=dtype)
    part = OuterProducts(x, g)
    if dtype == torch.float64:
        assert part.method(SCRATCH) == method
    total = SumOfSquares()
    part.add_squares(total, SCRATCH)
    found = total.total()
    assert found is not None
    expected = brute_force([part.materialize(slice(0, n))])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(part.squared_norms(SCRATCH), expected)
    torch.testing.assert_close(part.squared_norms(1), expected)  # one row of a product at a time


@pytest.mark.parametrize("parameters", [None, ["0.weight"]])
def test_first_batch_and_later_ones_agree(parameters):
    """The first is proven parameter by parameter; the others add up what is small at the end."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(5, 4, 6, dtype=torch.float64)

    def loss(outputs: Tensor) -> Tensor:
        return outputs.square().sum(dim=(1, 2))

    first = gradient_norms(model, x, loss, parameters=parameters)
    for _ in range(3):
        later = gradient_norms(model, x, loss, parameters=parameters)
        torch.testing.assert_close(later, first, rtol=1e-12, atol=0)
    by_pieces = gradient_norms(model, x, loss, parameters=parameters, max_memory=1)
    torch.testing.assert_close(by_pieces, first, rtol=1e-12, atol=0)


def test_squares_that_overflow_are_exact_in_every_batch():
    model, x = nn.Linear(3, 2), torch.full((2, 3), 1e20)

    def loss(y: Tensor) -> Tensor:
        return (y * 1e-15).sum(dim=1) * 1e15

    wanted = gradient_norms(copy.deepcopy(model).double(), x.double(), loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientNormWarning)  # its inputs overflow: one by one
        for _ in range(3):
            assert torch.allclose(gradient_norms(model, x, loss), wanted, rtol=1e-4)
    model = nn.Linear(3, 2)
    gradient_norms(model, torch.ones(2, 3), loss)
    wanted = gradient_norms(copy.deepcopy(model).double(), x.double(), loss)
    norms = gradient_norms(model, x, loss)  # of a batch that is not proven
    assert torch.allclose(norms, wanted, rtol=1e-4)


def test_a_tensor_that_is_written_to_before_it_is_squared_is_no_silent_error():
    """Small gradients are kept until the end: in the pass that is proven, both sums must agree."""
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    x = torch.randn(5, 6)
    truth = gradient_norms(model, x, "entropy")
    add_rows = SumOfSquares.add_rows

    def spoil(self: SumOfSquares, values: Tensor) -> None:
        values = values.clone()
        add_rows(self, values)
        values.mul_(3)

    fresh = copy.deepcopy(model)
    with mock.patch.object(SumOfSquares, "add_rows", spoil), warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientNormWarning)  # it goes one by one, and says so
        torch.testing.assert_close(gradient_norms(fresh, x, "entropy"), truth)


def test_an_infinite_square_of_one_sample_is_no_number_of_another():
    part = OfOneSample(3, 1, torch.tensor([1e30, 2.0]))
    assert part.squared_norms(SCRATCH).tolist() == [0, math.inf, 0]
