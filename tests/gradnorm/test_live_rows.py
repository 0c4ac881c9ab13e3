"""Rows without a gradient are left out of products (`gradients/live_rows`)."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from oracle import TOLERANCE, norms_one_by_one, relative_error
from torch import Tensor, nn

from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.gradients import live_rows as rows
from upslope.gradnorm.core.gradients.live_rows import live_rows, live_rows_of_product, put_rows
from upslope.gradnorm.kernels import linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("live", [[0], [7], [2, 5], [], [0, 1, 2, 3, 4, 5]])
def test_rows_that_any_sample_reaches_are_live(live: list[int], dtype: torch.dtype) -> None:
    g = torch.zeros(3, 8, 5, dtype=dtype)
    for k, row in enumerate(live):
        g[k % 3, row, k % 5] = (-1) ** k * 1e-30
    assert live_rows(g).tolist() == live


def test_no_row_is_dropped_where_most_are_live() -> None:
    g = torch.zeros(2, 8, 5)
    g[0, :7] = 1
    assert live_rows(g) is None


def test_what_is_no_number_is_live() -> None:
    g = torch.zeros(2, 8, 5)
    g[1, 3, 4] = torch.nan
    assert live_rows(g).tolist() == [3]


def test_rows_go_back_to_their_places() -> None:
    values = torch.randn(2, 2, 5)
    out = put_rows(values, torch.tensor([1, 6]), 8)
    assert torch.equal(out[:, [1, 6]], values)
    assert out.count_nonzero() == values.count_nonzero()


def test_small_products_and_such_without_a_gradient_are_not_looked_at() -> None:
    g = torch.zeros(2, 8, 5)
    g[:, -1] = 1
    assert live_rows_of_product(g, 4) is None
    with mock.patch.object(rows, "_WORTH_A_LOOK", 1):
        assert live_rows_of_product(g, 4).tolist() == [7]
        assert live_rows_of_product(torch.zeros_like(g), 4) is None
        assert live_rows_of_product(g.to(torch.complex64), 4) is None
        assert live_rows_of_product(g[:, :1], 4) is None
        assert live_rows_of_product(g[0], 4) is None


class OfOnePosition(nn.Module):
    """Layers over all positions, of which one counts; (n, t, 6), or (t, n, 6) -> (n, 3)."""

    def __init__(self, position: int, *, time_first: bool, tied: bool = False):
        super().__init__()
        self.position, self.time_first, self.tied = position, time_first, tied
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1) if self.time_first else x
        y = torch.tanh(self.first(x))
        y = torch.tanh(self.first(y) if self.tied else self.second(y))
        return self.head(y)[self.position] if self.time_first else self.head(y)[:, self.position]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("position", [0, 4, -1])
def test_norms_are_exact_where_one_position_counts(
    position: int, time_first: bool, tied: bool
) -> None:
    torch.manual_seed(0)
    model = OfOnePosition(position, time_first=time_first, tied=tied).double()
    looks = mock.Mock(wraps=live_rows_of_product)
    with (
        mock.patch.object(rows, "_WORTH_A_LOOK", 1),
        mock.patch.object(linear, "live_rows_of_product", looks),
    ):
        for _ in range(3):
            x = torch.randn(5, 9, 6, dtype=torch.float64)
            found = gradient_norms(model, x, lambda y: y.square().sum(dim=1))
            truth = norms_one_by_one(model, x, lambda y, _: y.square().sum(dim=1))
            assert relative_error(found, truth) < TOLERANCE
    assert looks.called


def test_short_texts_in_padded_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(4, 9, 4, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor([1, 3, 2, 3])[:, None]

    def loss(y: Tensor, of: Tensor) -> Tensor:
        return (y.square().sum(dim=2) * of).sum(dim=1)

    with mock.patch.object(rows, "_WORTH_A_LOOK", 1):
        found = gradient_norms(model, x, lambda y: loss(y, mask))
    truth = norms_one_by_one(model, x, lambda y, i: loss(y, mask[i : i + 1]))
    assert relative_error(found, truth) < TOLERANCE
