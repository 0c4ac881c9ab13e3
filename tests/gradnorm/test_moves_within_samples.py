"""Entries that the data move about within each sample: neighbours, patches, points."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from oracle import TOLERANCE, assert_unchanged, norms_one_by_one, relative_error, state
from torch import Tensor, nn

from upslope.errors import GradientNormError
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.trace.forward import Forward
from upslope.gradnorm.trace.routing.indexing import takes_own_rows
from upslope.gradnorm.trace.rows_in_front import keeps_in_front


def nearest(x: Tensor, count: int = 3) -> Tensor:
    """(n, p, c) -> (n, p, count): the nearest points of each."""
    return torch.cdist(x, x).topk(count, largest=False).indices


def by_gather(x: Tensor) -> Tensor:
    x = x.transpose(1, 2).contiguous()
    index = nearest(x.transpose(1, 2))
    wide = x.unsqueeze(-1).expand(-1, -1, -1, 3)
    return torch.gather(wide, 2, index.unsqueeze(1).expand(-1, x.shape[1], -1, -1)).movedim(1, -1)


def by_rows(x: Tensor) -> Tensor:
    index = nearest(x)
    rows = torch.arange(len(x)).view(-1, 1, 1).expand_as(index)
    return x[rows, index, :] - x[:, :, None]


def by_flat_rows(x: Tensor) -> Tensor:
    n, p, c = x.shape
    index = nearest(x) + torch.arange(n).view(-1, 1, 1) * p
    return x.contiguous().view(n * p, c)[index.view(-1)].view(n, p, 3, c)


def by_index_select(x: Tensor) -> Tensor:
    n, p, c = x.shape
    index = (nearest(x) + torch.arange(n).view(-1, 1, 1) * p).flatten()
    return torch.index_select(x.reshape(n * p, c), 0, index).view(n, p, 3, c)


def by_take_along_dim(x: Tensor) -> Tensor:
    order = x.sum(dim=-1, keepdim=True).argsort(dim=1)
    return torch.take_along_dim(x, order, dim=1)[:, :, None]


def by_mask_of_distances(x: Tensor) -> Tensor:
    d = -2 * torch.matmul(x, x.permute(0, 2, 1))
    d += torch.sum(x**2, -1).view(len(x), -1, 1)
    d += torch.sum(x**2, -1).view(len(x), 1, -1)
    index = torch.where(d > 1, torch.zeros_like(d), 1 - d).sort(dim=-1, descending=True)[1]
    return x[torch.arange(len(x))[:, None, None], index[:, :, :3]]


GATHERING = {
    f.__name__: f
    for f in (by_gather, by_rows, by_flat_rows, by_index_select, by_take_along_dim,
              by_mask_of_distances)
}  # fmt: skip


class Points(nn.Module):
    """Neighbours of points, then of their features, then the greatest of each."""

    def __init__(self, gather) -> None:
        super().__init__()
        self.gather = gather
        self.first, self.second, self.head = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(self.gather(x))).amax(dim=2)
        x = torch.tanh(self.second(self.gather(x))).amax(dim=2)
        return self.head(x.mean(dim=1))


def probes(model: nn.Module, batches) -> int:
    """How many of some batches took probing passes; each is held against the oracle."""
    with mock.patch.object(Forward, "probe", autospec=True, side_effect=Forward.probe) as probe:
        for x in batches:
            before = state(model)
            found = gradient_norms(model, x, "entropy")
            assert_unchanged(before, state(model))
            assert relative_error(found, norms_one_by_one(model, x)) < TOLERANCE
    return probe.call_count


def batches_of(count: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("name", GATHERING)
@pytest.mark.parametrize("points", [7, 4])
def test_layouts_are_remembered(name, points):
    torch.manual_seed(0)
    model = Points(GATHERING[name]).double().eval()
    assert probes(model, batches_of(7, 4, points, 3)) == 1


class Transposed(nn.Module):
    """Samples in dimension 1 while entries of dimension 0, 1 or both are moved by the data."""

    def __init__(self, move) -> None:
        super().__init__()
        self.move, self.layer, self.head = move, nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        moved = self.move(x.transpose(0, 1))
        return self.head(torch.tanh(self.layer(moved)).mean(dim=0))


def along_points(x: Tensor) -> Tensor:
    return torch.gather(x, 0, x.argsort(dim=0))


def along_samples(x: Tensor) -> Tensor:
    return torch.gather(x, 1, x.argsort(dim=1))


def along_samples_by_rows(x: Tensor) -> Tensor:
    return x[torch.arange(len(x))[:, None], x[:, :, 0].argsort(dim=1)]


def test_entries_that_move_along_others_than_the_samples():
    torch.manual_seed(0)
    model = Transposed(along_points).double().eval()
    probes(model, batches_of(6, 4, 4, 3))


@pytest.mark.parametrize("move", [along_samples, along_samples_by_rows])
def test_entries_that_move_from_sample_to_sample_are_refused(move):
    torch.manual_seed(0)
    model = Transposed(move).double().eval()
    for x in batches_of(6, 4, 4, 3):
        with pytest.raises(GradientNormError):
            gradient_norms(model, x, "entropy")


def sort_samples(x: Tensor, order: Tensor) -> Tensor:
    return x[order]


def sort_samples_in_place(x: Tensor, order: Tensor) -> Tensor:
    x = x.clone()
    x.copy_(x[order])
    return x


def sort_samples_through_a_view(x: Tensor, order: Tensor) -> Tensor:
    x = x.clone()
    x[:, :].copy_(x[order])
    return x


class Sorted(nn.Module):
    """Samples that are put into an order by the data, moved within, and put back."""

    def __init__(self, sort) -> None:
        super().__init__()
        self.sort, self.layer, self.head = sort, nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0, 0].argsort()
        rows = torch.arange(len(x))[:, None, None]
        moved = self.sort(x, order)
        moved = moved[rows, nearest(moved), :].mean(dim=2)
        return self.head(torch.tanh(self.layer(moved)).mean(dim=1))[order.argsort()]


@pytest.mark.parametrize("sort", [sort_samples, sort_samples_in_place, sort_samples_through_a_view])
def test_samples_in_an_order_of_the_data_are_never_misattributed(sort):
    torch.manual_seed(0)
    model = Sorted(sort).double().eval()
    probes(model, batches_of(6, 4, 5, 3))


class Reaching(nn.Module):
    """Flat rows, of which a sample takes some of another if a number of its own is large.

    step: how many samples behind its own the other is.
    """

    def __init__(self, step: int = 1) -> None:
        super().__init__()
        self.step, self.layer, self.head = step, nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, p, c = x.shape
        index = nearest(x) + torch.arange(n).view(-1, 1, 1) * p
        index = index + self.step * p * (x[:, :1, :1] > 9)
        moved = x.reshape(n * p, c)[index.view(-1) % (n * p)].view(n, p, 3, c)
        return self.head(torch.tanh(self.layer(moved)).mean(dim=(1, 2)))


def test_flat_rows_that_reach_into_another_sample_are_no_batch_of_the_same_program():
    torch.manual_seed(0)
    model = Reaching().double().eval()
    batches = batches_of(6, 4, 5, 3)
    assert probes(model, batches) == 1
    batches[-1][2, 0, 0] = 10
    with mock.patch.object(Forward, "probe", autospec=True, side_effect=Forward.probe) as probe:
        with pytest.raises(GradientNormError):
            gradient_norms(model, batches[-1], "entropy")
        assert probe.call_count > 0


@pytest.mark.parametrize(("n", "step"), [(2, 1), (4, 1), (4, 2), (7, 3), (18, 1), (18, 7)])
def test_whichever_sample_reaches_whichever_other_is_refused(n, step):
    torch.manual_seed(0)
    model = Reaching(step).double().eval()
    probes(model, batches_of(3, n, 5, 3))
    for sample in range(n):
        (batch,) = batches_of(1, n, 5, 3)
        batch[sample, 0, 0] = 10
        with pytest.raises(GradientNormError, match="treats each sample by itself"):
            gradient_norms(model, batch, "entropy")


def test_constant_rows_in_another_order():
    torch.manual_seed(0)

    def swap(x: Tensor) -> Tensor:
        rows = torch.arange(len(x)).flip(0)[:, None, None]
        once = x[rows, nearest(x).flip(0)].mean(dim=2)
        return once[rows, nearest(once).flip(0)]

    model = Points(swap).double().eval()
    probes(model, batches_of(6, 4, 5, 3))


def write_uncounted(x: Tensor) -> Tensor:
    y = x * 1
    if len(x) == x.shape[1]:
        y.data.copy_(x.transpose(0, 1))
        return y
    return x.transpose(0, 1)


def put_uncounted(x: Tensor) -> Tensor:
    y = x * 1
    y.data = x.transpose(0, 1).contiguous()
    return y


SAMPLES_SECOND = {
    "dimension by name": lambda x: x.transpose(1, dim1=0),
    "destination by name": lambda x: x.movedim(1, destination=0),
    "arrays apart": lambda x: x[:, :, :, None][
        :, np.arange(x.shape[1]), :, np.zeros(x.shape[1], int)
    ],
    "ranges apart": lambda x: x[:, :, None, :, None][:, range(x.shape[1]), :, :, range(1)][:, :, 0],
    "a write that is not counted": write_uncounted,
    "other memory": put_uncounted,
}
"""Ways to bring samples into the second dimension."""


class ReachingSecond(nn.Module):
    """Gathers along the samples' dimension: its own entries, but for the largest numbers."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.layer = SAMPLES_SECOND[way], nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.way(x)
        n = x.shape[1] if x.shape[0] != x.shape[1] else len(x)
        index = (torch.arange(n) + (x[:, :n, 0] > 3).long()) % n
        moved = x.gather(1, index[:, :, None].expand(-1, -1, 5))
        return torch.tanh(self.layer(moved)).transpose(0, 1).mean(1)


@pytest.mark.parametrize("way", SAMPLES_SECOND)
def test_samples_that_are_second_are_not_held_to_be_in_front(way):
    torch.manual_seed(0)
    model = ReachingSecond(way).double()
    for batch in batches_of(8, 4, 4, 5):
        batch = batch.clamp(-2, 2)
        norms = gradient_norms(model, batch, lambda out: out.square().sum(dim=1))
    batch[0, 1, 0] = 4
    with pytest.raises(GradientNormError, match="treats each sample by itself"):
        gradient_norms(model, batch, lambda out: out.square().sum(dim=1))
    assert bool(norms.isfinite().all())


class RowsAndRange(nn.Module):
    """`x[rows, arange(t)]`, with rows of the samples' own until a number is large."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, t = x.shape[:2]
        rows = (torch.arange(n)[:, None] + (x[:, :, 0] > 3).long()) % n
        return torch.tanh(self.layer(x[rows, torch.arange(t)])).mean(1)


@pytest.mark.parametrize("t", [4, 6])
def test_a_constant_as_long_as_the_batch_excuses_no_rows_of_others(t):
    torch.manual_seed(0)
    model = RowsAndRange().double()
    for batch in batches_of(6, 4, t, 5):
        gradient_norms(model, batch.clamp(-2, 2), "entropy")
    batch = batch.clamp(-2, 2)
    batch[1, 0, 0] = 4
    with pytest.raises(GradientNormError, match="treats each sample by itself"):
        gradient_norms(model, batch, "entropy")


def test_own_rows():
    x = torch.zeros(6, 2)
    assert takes_own_rows(x, torch.tensor([0, 1, 1, 2, -3, 3, 4, 4, -1]), 3) is True
    assert takes_own_rows(x, torch.tensor([0, 1, 2, 2, -3, 3, 4, 4, -1]), 3) is False
    assert takes_own_rows(x, torch.tensor([[0], [-4], [4]]), 3) is True
    assert takes_own_rows(x, torch.tensor([0, 2, 4, 5]), 3) is False


KEEPING = {
    "entry by entry": (torch.mul, [(4, 3), (4, 3)], {}, True),
    "broadcast along the samples": (torch.mul, [(2, 4, 3), (4, 3)], {}, False),
    "rows of several": (torch.reshape, [(4, 6)], {"shape": (8, 3)}, True),
    "rows of none": (torch.reshape, [(4, 6)], {"shape": (3, 8)}, False),
    "transposed": (torch.transpose, [(4, 4)], {"dim0": 0, "dim1": 1}, False),
    "permuted": (torch.permute, [(4, 4, 2)], {"dims": (0, 2, 1)}, True),
    "permuted in front": (torch.permute, [(4, 4, 2)], {"dims": (1, 0, 2)}, False),
    "sum": (torch.sum, [(4, 4, 3)], {"dim": 1}, True),
    "sum over samples": (torch.sum, [(4, 4, 3)], {"dim": 0}, False),
    "sum over samples, from the end": (torch.sum, [(4, 4, 3)], {"dim": -3}, False),
    "sort": (torch.sort, [(4, 4)], {}, True),
    "sort of samples": (torch.sort, [(4, 4)], {"dim": 0}, False),
    "product": (torch.matmul, [(4, 4, 4), (4, 4, 4)], {}, True),
    "product of samples": (torch.matmul, [(4, 4), (4, 4)], {}, False),
    "joined": (torch.cat, [(4, 4), (4, 4)], {"dim": 1}, True),
    "joined samples": (torch.cat, [(4, 4), (4, 4)], {"dim": 0}, False),
    "places of a mask": (torch.where, [(4,)], {}, False),
    "unknown": (torch.roll, [(4, 4)], {"shifts": 1, "dims": 0}, False),
}


@pytest.mark.parametrize("name", KEEPING)
def test_operators_that_keep_samples_in_front(name):
    func, shapes, options, kept = KEEPING[name]
    tensors = [torch.ones(shape) for shape in shapes]
    args = (tensors,) if func is torch.cat else tuple(tensors)
    named = dict(options)
    if func is torch.transpose:
        args, named = (*args, *options.values()), {}
    out = func(*args, **named)
    results = [out] if isinstance(out, Tensor) else list(out)

    def is_in_front(tensor: Tensor) -> bool:
        return any(tensor is t for t in tensors)

    answer = keeps_in_front(func.__name__, args, named, results, is_in_front, lambda _: True, 4)
    assert answer is kept


class Inference(nn.Module):
    """Neighbours that are found where nothing counts writes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            near = by_rows(2 * x)
        return self.head(torch.tanh(self.layer(near.clone())).mean(dim=(1, 2)))


@pytest.mark.parametrize("n", [1, 4])
def test_tensors_that_count_no_writes(n):
    torch.manual_seed(0)
    probes(Inference().double().eval(), batches_of(3, n, 5, 3))


def test_no_samples():
    torch.manual_seed(0)
    model = Points(by_take_along_dim).double().eval()
    assert gradient_norms(model, torch.zeros(0, 4, 3, dtype=torch.float64), "entropy").shape == (0,)


class Masked(nn.Module):
    """Tokens in an order of the data, some of them left out, and a mask that tells which."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.layer, self.head = dim, nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        order = noise.argsort(dim=1)
        back = order.argsort(dim=1)
        x = torch.tanh(self.layer(x))
        kept = torch.gather(x, 1, order[:, :3, None].expand(-1, -1, 4))
        mask = torch.ones(noise.shape, dtype=x.dtype)
        mask[:, :3] = 0
        mask = torch.gather(mask, self.dim, back)
        weights = torch.gather(mask, 1, back).unsqueeze(-1)
        return self.head((torch.tanh(x) * (1 + weights)).mean(1) + kept.sin().mean(1))


@pytest.mark.parametrize("tokens", [4, 6])
def test_masks_that_are_put_into_an_order_of_the_data(tokens):
    torch.manual_seed(0)
    model = Masked(1).double().eval()
    inputs = zip(batches_of(6, 4, tokens, 3), batches_of(6, 4, tokens), strict=True)
    assert probes(model, list(inputs)) == 1


def test_masks_that_are_looked_up_in_rows_of_other_samples_are_refused():
    torch.manual_seed(0)
    model = Masked(0).double().eval()
    for pair in zip(batches_of(6, 4, 4, 3), batches_of(6, 4, 4), strict=True):
        with pytest.raises(GradientNormError):
            gradient_norms(model, pair, "entropy")
