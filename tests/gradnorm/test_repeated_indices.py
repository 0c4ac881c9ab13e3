"""Entries that an index of the samples moves in a way that is known by its numbers alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from oracle import TOLERANCE, norms_one_by_one, relative_error
from torch import Tensor, nn

from upslope.errors import GradientNormError
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.proofs import company
from upslope.gradnorm.trace.forward import Forward
from upslope.gradnorm.trace.memory import Memory

N, T, WIDTH = 4, 6, 5


class Marked(nn.Module):
    """A function of positions, and of a mask of some of them; positions are those with a 1."""

    def __init__(self, between: Callable[[Tensor, Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head, self.between = nn.Linear(WIDTH, 3), between
        self.double().eval()

    def forward(self, x: Tensor, marks: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return self.head(self.between(x, marks == 1, self.second).mean(dim=1))


def attended_by_all(x: Tensor, mask: Tensor, layer: nn.Module) -> Tensor:
    """Marked positions are gathered, padded to the sample that has most, and attended by all."""
    count = mask.sum(dim=1)
    taken = mask.nonzero(as_tuple=True)
    there = torch.arange(int(count.max())) < count[:, None]
    put = there.nonzero(as_tuple=True)
    marked = x.new_zeros(len(x), there.shape[1], x.shape[2])
    marked[put] = x[taken]
    scores = torch.einsum("ntd,nsd->nts", x, layer(marked))
    y = x + (torch.sigmoid(scores) * there[:, None]) @ marked
    y[taken] = (2 * y[taken]).view(len(taken[0]), WIDTH)
    return y


def taken_and_put_elsewhere(x: Tensor, mask: Tensor, layer: nn.Module) -> Tensor:
    """Marked rows go to a tensor that has its samples in the other order, and come back."""
    n, places = len(x), mask.nonzero()
    elsewhere = x.new_zeros(x.shape).index_put(((n - 1) - places[:, 0], places[:, 1]), x[mask])
    return x + layer(elsewhere).flip(0)


def batches_of(masks: list[list[int]], count: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of other numbers, with the positions marked that each sample's list says."""
    marks = torch.zeros(len(masks), T, dtype=torch.int64)
    for row, places in zip(marks, masks, strict=True):
        row[places] = 1
    generator = torch.Generator().manual_seed(sum(map(len, masks)))
    shape = (len(masks), T, WIDTH)
    return [
        (torch.randn(shape, generator=generator, dtype=torch.float64), marks.clone())
        for _ in range(count)
    ]


def probes(model: nn.Module, batches) -> list[bool]:
    """Which of some batches took probing passes; each is held against the oracle."""
    probed = []
    for batch in batches:
        with mock.patch.object(Forward, "probe", autospec=True, side_effect=Forward.probe) as probe:
            found = gradient_norms(model, batch, "entropy")
        assert relative_error(found, norms_one_by_one(model, batch)) < TOLERANCE
        probed.append(probe.call_count > 0)
    return probed


FIRST = [[0], [0], [0], [0]]
SOME = [[0, 2], [5], [1, 3], [4]]
NONE = [[0, 2], [], [1, 3], []]


@pytest.mark.parametrize("between", [attended_by_all, taken_and_put_elsewhere])
@pytest.mark.parametrize("masks", [FIRST, SOME])
def test_batches_of_the_same_indices_are_probed_twice_in_all(between, masks):
    torch.manual_seed(0)
    batches = batches_of(masks, 8)
    assert probes(Marked(between), batches) == [True] * 2 + [False] * 6


@pytest.mark.parametrize("between", [attended_by_all, taken_and_put_elsewhere])
def test_other_indices_are_other_programs(between):
    torch.manual_seed(0)
    sets = [FIRST, SOME, [[5], [4], [3], [2]], NONE]
    rounds = [*zip(*(batches_of(masks, 6) for masks in sets), strict=True)]
    model = Marked(between)
    assert all(probes(model, rounds[0]))
    for batches in rounds[1:5]:
        probes(model, batches)
    # Samples without a mark are never seen in what is made of marks alone.
    assert not any(probes(model, rounds[5][:3]))


def in_order_of_the_marks(x: Tensor, mask: Tensor, layer: nn.Module) -> Tensor:
    """Samples change places by their marks, and change back behind a layer."""
    order = (mask.long() * torch.arange(1, T + 1)).sum(dim=1).argsort()
    y = torch.zeros_like(x).index_put((order,), layer(x[order]))
    return x + y.tanh()


def test_samples_in_another_order_than_in_the_batches_before():
    torch.manual_seed(0)
    model = Marked(in_order_of_the_marks)
    orders = [[[0], [1], [2], [3]], [[3], [2], [1], [0]], [[1], [0], [3], [2]]]
    for masks in [*orders, *orders, *orders, *orders]:
        probes(model, batches_of(masks, 2))


def left_in_another_order(x: Tensor, mask: Tensor, layer: nn.Module) -> Tensor:
    """Samples change places by their marks, and stay there: outputs are those of others."""
    order = (mask.long() * torch.arange(1, T + 1)).sum(dim=1).argsort()
    return x + layer(x[order])


def test_an_order_that_mixes_is_refused_after_one_that_does_not():
    torch.manual_seed(0)
    model = Marked(left_in_another_order)
    probes(model, batches_of([[0], [1], [2], [3]], 6))
    (batch,) = batches_of([[1], [0], [3], [2]], 1)
    with pytest.raises(GradientNormError):
        gradient_norms(model, batch, "entropy")


def marked_by_the_mean_of_all(x: Tensor, mask: Tensor, layer: nn.Module) -> Tensor:
    """Rows above the mean of the batch are moved: the same ones in all batches but the last."""
    size = x[:, :, 0].detach()
    taken = ((size > size.mean()) & mask).nonzero(as_tuple=True)
    elsewhere = torch.zeros_like(x)
    elsewhere[taken[0], (taken[1] + 1) % T] = x[taken]
    return x + layer(elsewhere)


def test_indices_that_come_of_all_samples_are_refused_when_that_matters():
    torch.manual_seed(0)
    model = Marked(marked_by_the_mean_of_all)
    with torch.no_grad():
        model.first.weight.copy_(torch.eye(WIDTH))
        model.first.bias.zero_()
    (batch,) = batches_of(FIRST, 1)
    batch[0][:, :, 0] = torch.tensor([2.0, *[-2.0] * (T - 1)])
    # Alone as in the batch, the marked rows are above the mean.
    for scale in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        x = batch[0] * scale
        found = gradient_norms(model, (x, batch[1]), "entropy")
        assert relative_error(found, norms_one_by_one(model, (x, batch[1]))) < TOLERANCE
    # In the batch they are above the mean again, and of one sample, alone, the marked row is not.
    x = batch[0].clone()
    x[0, :, 0] = torch.tensor([0.5, *[1.0] * (T - 1)])
    assert ((x[:, :, 0].tanh() > x[:, :, 0].tanh().mean()) & (batch[1] == 1)).sum() == N
    with pytest.raises(GradientNormError):
        gradient_norms(model, (x, batch[1]), "entropy")


def scaled_by_their_number(x: Tensor, mask: Tensor, layer: nn.Module) -> Tensor:
    """Marked positions per sample: one in the first batches, alone as in company."""
    return layer(x) * (len(mask.nonzero()) / len(x))


def test_a_number_of_positions_of_all_samples_is_refused_when_it_matters():
    torch.manual_seed(0)
    model = Marked(scaled_by_their_number)
    probes(model, batches_of(FIRST, 6))
    (batch,) = batches_of([[0, 2], [1], [3], []], 1)
    with pytest.raises(GradientNormError):
        gradient_norms(model, batch, "entropy")


def counted_positions(x: Tensor, mask: Tensor, layer: nn.Module) -> Tensor:
    """The number of marked positions decides, and makes no difference."""
    places = mask.nonzero()
    return layer(x) if len(places) > 1 else layer(x.clone())


def test_the_number_of_positions_of_a_sample_alone_is_tried_in_four_batches(monkeypatch):
    monkeypatch.setattr(Memory, "draw_proof", lambda _: False)
    torch.manual_seed(0)
    model = Marked(counted_positions)
    groups_of, groups, tried = company._groups, list[Any](), list[int]()
    monkeypatch.setattr(company, "_groups", lambda *a: groups.extend(groups_of(*a)) or groups)
    for batch in batches_of(SOME, 6):
        groups.clear()
        found = gradient_norms(model, batch, "entropy")
        assert relative_error(found, norms_one_by_one(model, batch)) < TOLERANCE
        tried.append(len(groups))
    assert tried == [2, 2, 2, 2, 0, 0]  # of samples with one position, and with two


def best_of_all(x: Tensor, mask: Tensor, layer: nn.Module) -> Tensor:
    """As experts with a capacity: of those above zero, only the two largest of the batch."""
    score = x[:, :, 0].detach().mean(dim=1)
    best = score.topk(min(2, len(x)), dim=0).indices
    best = best[score[best] > 0]
    y = x.clone()
    y[best] = layer(x[best]).tanh()
    return y


def best_by_order(x: Tensor, mask: Tensor, layer: nn.Module) -> Tensor:
    """The same by the order of all."""
    score = x[:, :, 0].detach().mean(dim=1)
    order = score.argsort(descending=True)[:2]
    taken = order[score.index_select(0, order) > 0]
    return x.index_copy(0, taken, layer(x.index_select(0, taken)).tanh())


@pytest.mark.parametrize("between", [best_of_all, best_by_order])
def test_the_same_indices_do_not_hide_that_they_come_of_all_samples(between, monkeypatch):
    monkeypatch.setattr(Memory, "draw_proof", lambda _: False)
    torch.manual_seed(0)
    model = Marked(between)
    with torch.no_grad():
        model.first.weight.copy_(torch.eye(WIDTH))
        model.first.bias.zero_()
    (batch,) = batches_of(FIRST, 1)
    for scale in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        x = batch[0] * scale
        x[:, :, 0] = torch.tensor([2.0, 1.0, -1.0, -2.0])[:, None] * scale
        found = gradient_norms(model, (x, batch[1]), "entropy")
        assert relative_error(found, norms_one_by_one(model, (x, batch[1]))) < TOLERANCE
    x[2, :, 0] = 0.1
    with pytest.raises(GradientNormError):
        gradient_norms(model, (x, batch[1]), "entropy")
