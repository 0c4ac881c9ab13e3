"""Rows that no gradient has reached, of which the layout of a batch may be wrong."""

from __future__ import annotations

import random

import pytest
import torch
from oracle import TOLERANCE, norms_one_by_one, relative_error
from torch import Tensor, nn

from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.layouts.doubtful_rows import doubtful_rows
from upslope.gradnorm.core.layouts.layout import Layout


def layouts_of_part(rows: int, n: int) -> list[Tensor]:
    """The samples of the entries of a part, with so many rows of each sample."""
    every = torch.arange(n * rows)
    return [every // b % n for b in range(1, rows + 1) if rows % b == 0] or [every]


def by_trying_all(layout: Layout, has_gradient: Tensor, n: int) -> Tensor:
    size = len(has_gradient)
    owners, doubtful = layout.owners(size, n), torch.zeros(size, dtype=torch.bool)
    for head in range(size // n + 1):
        for start in range(head, size // n + 1):
            if has_gradient[n * head : n * start].any():
                continue
            parts = (slice(0, n * head), slice(n * start, size))
            fitting = [
                [own for own in layouts_of_part((part.stop - part.start) // n, n)
                 if bool((own == owners[part])[has_gradient[part]].all())]
                for part in parts
            ]  # fmt: skip
            if all(fitting):
                doubtful[n * head : n * start] = True
                for part, every_own in zip(parts, fitting, strict=True):
                    for own in every_own:
                        doubtful[part] |= own != owners[part]
    return doubtful


@pytest.mark.parametrize("seed", range(4))
def test_they_are_those_of_which_some_two_parts_say_something_else(seed):
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    for _ in range(100):
        n, rows = rng.choice([2, 3, 4, 5]), rng.randint(2, 8)
        layouts = [Layout(), *(Layout(0, b) for b in range(1, rows) if rows % b == 0)]
        layout, share = rng.choice(layouts), rng.choice([0.1, 0.3, 0.6, 0.9])
        has_gradient = torch.rand(n * rows, generator=generator) < share
        if not has_gradient.any() or has_gradient.all():
            continue
        truth = by_trying_all(layout, has_gradient, n)
        doubtful = doubtful_rows(layout, has_gradient, n)
        assert torch.equal(truth, torch.zeros_like(truth) if doubtful is None else doubtful)


def test_padding_leaves_no_doubt():
    """One text of the longest length tells whose the rows of all texts are."""
    lengths = torch.tensor([5, 12, 7, 3])
    has_gradient = (torch.arange(12) < lengths[:, None]).flatten()
    assert doubtful_rows(Layout(), has_gradient, 4) is None


class Parts(nn.Module):
    """A layer takes the first tokens of all samples, and behind or before these all others."""

    def __init__(self, first_ahead: bool) -> None:
        super().__init__()
        self.layer, self.head, self.first_ahead = nn.Linear(3, 4), nn.Linear(4, 2), first_ahead

    def forward(self, x: Tensor) -> Tensor:
        first, others = x[:, 0], x[:, 1:].flatten(0, 1)
        n, counts = len(x), (x[:, 1:, :1] > 0).to(x)
        if self.first_ahead:
            y = torch.tanh(self.layer(torch.cat([first, others])))
            of_first, of_others = y[:n], y[n:]
        else:
            y = torch.tanh(self.layer(torch.cat([others, first])))
            of_first, of_others = y[-n:] * (x[:, 0, :1] > 5).to(x), y[:-n]
        return self.head(of_first + (of_others.view(n, -1, 4) * counts).sum(dim=1))


@pytest.mark.parametrize("first_ahead", [True, False])
def test_gradients_that_come_to_a_part_of_which_none_had_come_before(first_ahead):
    torch.manual_seed(0)
    model = Parts(first_ahead).double()
    for turn in range(6):
        x = torch.randn(4, 9, 3, dtype=torch.float64)
        if turn < 2:
            x[:, 1:, 0] = -x[:, 1:, 0].abs()
            x[:, -1, 0] = -1.0 if first_ahead else 1.0
        norms = gradient_norms(model, x, "entropy")
        assert relative_error(norms, norms_one_by_one(model, x)) < TOLERANCE
