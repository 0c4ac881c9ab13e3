"""Gradients of tables of which samples look up sums of rows: no row is formed for their norms."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_agrees
from torch import Tensor, nn

from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.gradients.lookup_gradients import BagGradient, LookupGradient
from upslope.gradnorm.core.gradients.per_sample_gradients import Dense
from upslope.gradnorm.core.gradients.sums_of_squares import SumOfSquares
from upslope.gradnorm.core.gradients.tied_gradients import norms_of_sum

ROWS, WIDTH = 6, 3
SIZES = torch.tensor([4, 0, 9, 1])
EVERY = slice(0, 4)


def draw(*, has_factors: bool) -> BagGradient:
    """Bags of several sizes; that of nine holds some of six rows more than once."""
    torch.manual_seed(0)
    total = int(SIZES.sum())
    factors = torch.randn(total).double() if has_factors else None
    ids, g = torch.randint(ROWS, (total,)), torch.randn(4, WIDTH).double()
    return BagGradient(ids, SIZES, factors, g, ROWS)


def formed(part: BagGradient) -> Tensor:
    """(n, ROWS, WIDTH), look-up by look-up."""
    total, place = torch.zeros(4, ROWS, WIDTH).double(), 0
    for n, size in enumerate(SIZES.tolist()):
        for i in range(place, place + size):
            factor = 1.0 if part.factors is None else part.factors[i]
            total[n, part.ids[i]] += factor * part.g[n]
        place += size
    return total


@pytest.mark.parametrize("has_factors", [False, True])
def test_norms_and_products_of_bags(has_factors: bool) -> None:
    part = draw(has_factors=has_factors)
    wanted = formed(part)
    assert torch.allclose(part.squared_norms(1), wanted.square().sum(dim=(1, 2)), rtol=1e-12)
    assert torch.allclose(part.materialize(slice(1, 3)), wanted[1:3], rtol=1e-12)
    left, right = torch.randn(ROWS).double(), torch.randn(WIDTH).double()
    v = torch.randn(ROWS, WIDTH).double()
    for direction, products in (
        (v, part.inner_products(v)),
        (torch.outer(left, right), part.rank_one_products(left, right)),
    ):
        assert products is not None
        assert torch.allclose(products, (wanted * direction).sum(dim=(1, 2)), rtol=1e-12)


@pytest.mark.parametrize("has_factors", [False, True])
def test_sums_of_bags_and_rows(has_factors: bool) -> None:
    part = draw(has_factors=has_factors)
    rows = LookupGradient(torch.randint(ROWS, (4, 5)), torch.randn(4, 5, WIDTH).double(), ROWS)
    wanted = 2 * formed(part) + rows.materialize(EVERY)
    for parts in ([part, rows, part], [rows, part, part]):
        norms = norms_of_sum(parts, 1 << 20)
        assert norms is not None
        assert torch.allclose(norms, wanted.square().sum(dim=(1, 2)), rtol=1e-12)
    assert part.add([Dense(wanted)]) is None


@pytest.mark.parametrize("lookups", [1, 4])
def test_squares_of_lookups_in_a_sum_of_others(lookups: int) -> None:
    torch.manual_seed(0)
    ids, g = torch.randint(ROWS, (4, lookups)), torch.randn(4, lookups, WIDTH).double()
    bag, total = draw(has_factors=False), SumOfSquares()
    parts = [LookupGradient(ids, g, ROWS), bag]
    for part in parts:
        part.add_squares(total, 1 << 20)
    wanted = sum(part.materialize(EVERY).square().sum(dim=(1, 2)) for part in parts)
    assert torch.allclose(total.total(), wanted, rtol=1e-12)


@pytest.mark.parametrize("has_factors", [False, True])
def test_who_looks_nothing_up_has_no_gradient(has_factors: bool) -> None:
    part = draw(has_factors=has_factors)
    part.g[1] = torch.inf
    norms = part.squared_norms(1)
    assert norms[1] == 0
    assert torch.isfinite(norms).all()
    part.g[0] = torch.nan
    assert part.squared_norms(1)[0].isnan()


def test_rows_of_large_tables_stay_apart() -> None:
    """Sample and row, as one number, have more than 31 bits."""
    count = 1 << 31 - 1
    ids = torch.tensor([0, count - 1, 0, count - 1], dtype=torch.int32)
    part = BagGradient(ids, torch.tensor([1, 1, 1, 1]), None, torch.ones(4, 1), count)
    assert part.squared_norms(1).tolist() == [1, 1, 1, 1]
    part = BagGradient(ids, torch.tensor([0, 0, 0, 4]), None, torch.ones(4, 1), count)
    assert part.squared_norms(1).tolist() == [0, 0, 0, 8]


def test_half_precision_keeps_its_digits() -> None:
    ids, sizes = torch.zeros(600, dtype=torch.int64), torch.tensor([600])
    g = torch.ones(1, 2, dtype=torch.float16)
    for factors in (None, torch.ones(600, dtype=torch.float16)):
        norms = BagGradient(ids, sizes, factors, g, 1).squared_norms(1)
        assert norms.tolist() == pytest.approx([720_000])  # which is no number of float16


class Words(nn.Module):
    """Bags of one table, used as the options say."""

    def __init__(self, *, twice: bool, tied: bool, **options: object) -> None:
        super().__init__()
        self.bags, self.mix = nn.EmbeddingBag(9, 4, **options), nn.Linear(4, 4)
        self.out = nn.Linear(4, 9)
        self.twice = twice
        if tied:
            self.out.weight = self.bags.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.bags(ids)
        if self.twice:
            x = x * self.bags(ids[:, ::2])
        return self.out(torch.tanh(self.mix(x)))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize(
    "options",
    [{"mode": "sum"}, {"mode": "mean", "padding_idx": 2}, {"mode": "mean", "sparse": True}],
)
def test_tables_of_bags_that_have_more_uses(options: dict, twice: bool, tied: bool) -> None:
    torch.manual_seed(0)
    ids = torch.randint(9, (5, 20))
    ids[1], ids[2] = 2, 3
    assert_agrees(Words(twice=twice, tied=tied, **options).double(), ids)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_ids_of_either_type(mode: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Words(twice=False, tied=False, mode=mode).double()
    assert_agrees(model, torch.randint(9, (4, 30), dtype=dtype))


def test_a_batch_of_many_bags() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(2000, 8), nn.Linear(8, 3))
    ids = torch.randint(2000, (700, 50))
    norms = gradient_norms(model, ids, "entropy")
    few = torch.cat([gradient_norms(model, rows, "entropy") for rows in ids.split(100)])
    assert torch.allclose(norms, few, rtol=1e-5)
