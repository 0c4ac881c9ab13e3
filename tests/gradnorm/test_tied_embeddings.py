"""The norm of a table's gradient, where the table is looked up and multiplied with."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_agrees
from torch import Tensor, nn

from upslope.gradnorm.core.gradients.lookup_gradients import LookupGradient
from upslope.gradnorm.core.gradients.per_sample_gradients import Dense, OuterProducts
from upslope.gradnorm.core.gradients.tied_gradients import norms_of_sum

ROWS = 50


def draw(n: int, t: int, e: int) -> tuple[Tensor, Tensor, LookupGradient]:
    """x (n, t, e), g (n, t, ROWS), and rows of 5 look-ups, some of the same row."""
    ids = torch.randint(0, 7, (n, 5))
    x, g, r = torch.randn(n, t, e), torch.randn(n, t, ROWS), torch.randn(n, 5, e)
    return x.double(), g.double(), LookupGradient(ids, r.double(), ROWS)


@pytest.mark.parametrize("scratch", [1, 1 << 20])
@pytest.mark.parametrize(("t", "e"), [(1, 8), (3, 60), (40, 6)])
def test_sum_of_products_and_rows(t: int, e: int, scratch: int) -> None:
    torch.manual_seed(0)
    x, g, rows = draw(4, t, e)
    more = draw(4, t, e)
    parts = [rows, OuterProducts(x, g), more[2], OuterProducts(*more[:2])]
    every = slice(0, 4)
    wanted = torch.stack([part.materialize(every) for part in parts]).sum(dim=0)
    norms = norms_of_sum(parts, scratch)
    assert norms is not None
    assert torch.allclose(norms, wanted.square().sum(dim=(1, 2)), rtol=1e-12)


def test_other_forms_must_be_formed() -> None:
    x, g, rows = draw(4, 3, 6)
    dense = Dense(torch.zeros(4, ROWS, 6).double())
    assert norms_of_sum([rows, OuterProducts(x, g), dense], 1 << 20) is None
    assert norms_of_sum([rows, dense], 1 << 20) is None
    assert norms_of_sum([OuterProducts(x.cfloat(), g.cfloat()), rows], 1 << 20) is None


@pytest.mark.parametrize("rest", [1e-1, 1e-3, 1e-6, 0.0])
def test_digits_are_kept_where_both_cancel(rest: float) -> None:
    torch.manual_seed(0)
    n, t, e = 6, 5, 16
    ids = torch.stack([torch.randperm(ROWS)[:t] for _ in range(n)])
    x, g = torch.randn(n, t, e), nn.functional.one_hot(ids, ROWS).float()
    r = -x
    r[::2] *= 1 - rest  # every other sample keeps a little; of the rest nothing is left
    r[1] = 1.0  # and of one sample nothing cancels
    norms = norms_of_sum([OuterProducts(x, g), LookupGradient(ids, r, ROWS)], 1 << 20)
    assert norms is not None
    wanted = (x.double() + r.double()).square().sum(dim=(1, 2))
    assert torch.allclose(norms.double(), wanted, rtol=2e-3, atol=0)


class LanguageModel(nn.Module):
    """Embeds tokens, mixes them, and puts out a number for each token by the same table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(ROWS, 12), nn.Linear(12, 12)

    def forward(self, ids: Tensor) -> Tensor:
        h = torch.tanh(self.mix(self.table(ids)).cumsum(1))
        return nn.functional.linear(h, self.table.weight).mean(1)


def test_a_model_with_a_tied_table() -> None:
    torch.manual_seed(0)
    assert_agrees(LanguageModel().double(), torch.randint(0, ROWS, (5, 9)))
