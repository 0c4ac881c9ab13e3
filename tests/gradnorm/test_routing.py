"""Rows that the data send to one layer or another: no batch is like the next."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from oracle import TOLERANCE, assert_agrees, norms_one_by_one, relative_error, watched
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.layouts.layout_probe import LayoutProbe


class Experts(nn.Module):
    """Each row goes to the expert that its own entries choose."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:  # (n, t, 4)
        rows = x.flatten(0, 1)
        out = torch.zeros_like(rows)
        for i, expert in enumerate(self.experts):
            chosen = rows[:, 0].gt(0) == bool(i)
            out[chosen] = torch.tanh(expert(rows[chosen]))
        return self.head(out.unflatten(0, x.shape[:2]).mean(dim=1))


@pytest.mark.parametrize("seed", range(6))
def test_rows_that_are_routed_by_their_content_are_never_misattributed(seed):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(0)
    model = Experts().double().eval()
    for _ in range(4):
        x = torch.randn(4, 4, 4, generator=generator, dtype=torch.float64)
        truth = norms_one_by_one(model, x)
        assert relative_error(gradient_norms(model, x, "entropy"), truth) < TOLERANCE


def test_balanced_routing_in_an_order_that_two_halves_cannot_tell_from_the_usual():
    torch.manual_seed(0)
    model = Experts().double().eval()
    # Eight rows a time for each expert, of samples 0 0 1 1 1 2 3 3 and the rest.
    signs = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]]).double() * 2 - 1
    for order in torch.cartesian_prod(torch.arange(4), torch.arange(4))[:8]:
        x = torch.randn(4, 4, 4).double()
        x[:, :, 0] = x[:, :, 0].abs() * signs.roll(order.tolist(), (0, 1))
        truth = norms_one_by_one(model, x)
        assert relative_error(gradient_norms(model, x, "entropy"), truth) < TOLERANCE


class StackedExperts(nn.Module):
    """Each row goes to two experts of one stack, by a product in groups or by a loop."""

    def __init__(self, loop: bool) -> None:
        super().__init__()
        self.router, self.loop = nn.Linear(4, 3), loop
        self.up, self.down = nn.Parameter(torch.randn(3, 4, 8)), nn.Parameter(torch.randn(3, 8, 4))

    def forward(self, x: Tensor) -> Tensor:  # (n, t, 4)
        rows = x.flatten(0, 1)
        share, experts = self.router(rows).softmax(dim=1).topk(2, dim=1)
        if self.loop:
            out = torch.zeros_like(rows)
            for expert in experts.unique():
                row, rank = torch.where(experts == expert)
                moved = (rows[row] @ self.up[expert]).sin() @ self.down[expert]
                out.index_add_(0, row, moved * share[row, rank, None])
        else:
            order = experts.flatten().argsort()
            ends = experts.flatten().bincount(minlength=3).cumsum(dim=0).to(torch.int32)
            moved = F.grouped_mm(rows[order // 2], self.up, offs=ends).sin()
            moved = F.grouped_mm(moved, self.down, offs=ends) * share.flatten()[order, None]
            out = torch.zeros_like(rows).index_add(0, order // 2, moved)
        return out.unflatten(0, x.shape[:2]).mean(dim=1)[:, :3]


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_stacks_of_experts_chosen_in_a_loop(n):
    torch.manual_seed(0)
    assert_agrees(StackedExperts(True), torch.randn(n, 3, 4))


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_stacks_of_experts_by_products_in_groups(n):
    torch.manual_seed(0)
    model, x = StackedExperts(True).double(), torch.randn(n, 3, 4).double()
    truth = norms_one_by_one(model, x)
    model.loop = False  # torch has this product in single precision alone
    with watched() as seen:
        found = gradient_norms(model.float(), x.float(), "entropy")
    assert relative_error(found, truth) < 1e-4
    assert seen.path == "kernels"


class Dispatched(nn.Module):
    """Rows sorted by their expert, which the engine does not read off."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.tanh(self.first(x)).flatten(0, 1)
        second = rows[:, 0] > 0
        order = torch.cat([(~second).nonzero()[:, 0], second.nonzero()[:, 0]])
        parts = rows[order].tensor_split([int((~second).sum())])
        moved = torch.cat([f(part) for f, part in zip(self.experts, parts, strict=True)])
        out = torch.zeros_like(rows).index_copy(0, order, moved)
        return self.last(out.unflatten(0, x.shape[:2]).mean(dim=1))


def test_every_batch_that_is_routed_in_an_unknown_way_is_probed():
    torch.manual_seed(0)
    model, probed = Dispatched().double().eval(), []
    on_gradient = LayoutProbe.on_gradient

    def watched_hear(self: LayoutProbe, index: int, *heard: Any) -> None:
        probed.append(index)
        on_gradient(self, index, *heard)

    with mock.patch.object(LayoutProbe, "on_gradient", watched_hear):
        for n in (4, 4, 4, 6, 1):
            x = torch.randn(n, 4, 4).double()
            probed.clear()
            truth = norms_one_by_one(model, x)
            assert relative_error(gradient_norms(model, x, "entropy"), truth) < TOLERANCE
            assert bool(probed) == (n > 1)


class Permuted(nn.Module):
    """Sorts its samples by what they hold, and puts them back; the index is given by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        h = torch.tanh(self.first(torch.index_select(x, dim=0, index=order)))
        return torch.index_select(input=self.last(h), dim=0, index=order.argsort())


def test_samples_chosen_by_an_index_that_is_named():
    torch.manual_seed(0)
    model = Permuted()
    for _ in range(3):  # each batch in an order of its own
        assert_agrees(model, torch.randn(4, 4))
