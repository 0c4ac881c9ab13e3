"""Batches of one shape whose samples lie elsewhere than in those that were proven."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracle import TOLERANCE, norms_one_by_one, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.errors import GradientNormError
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.losses import identify

Way = Callable[[nn.Module, Tensor, int], Tensor]
"""From a layer, (n, t, 5) inputs and the turn of the batch to outputs, each sample by itself."""


def stacked(layer: nn.Module, x: Tensor, turn: int) -> Tensor:
    """The parts of the batch go through the layer in another order, and are put back."""
    order = [*np.roll(range(len(x)), turn)]
    parts = x.unbind(0)
    out = torch.tanh(layer(torch.stack([parts[i] for i in order]))).unbind(0)
    return torch.stack([out[order.index(i)] for i in range(len(x))])


def joined(layer: nn.Module, x: Tensor, turn: int) -> Tensor:
    halves = torch.split(x * 2, (len(x) + 1) // 2)
    is_turned = turn > 0 and len(halves) == 2 and len(halves[0]) == len(halves[1])
    out = torch.tanh(layer(torch.cat(halves[::-1] if is_turned else halves)))
    return torch.cat(out.chunk(2)[::-1]) if is_turned else out


def shuffled(layer: nn.Module, x: Tensor, turn: int) -> Tensor:
    order = list(range(len(x)))
    random.Random(turn).shuffle(order)
    parts = [row + 1 for row in x]
    out = [*torch.tanh(layer(torch.stack([parts[i] for i in order])))]
    return torch.stack([out[order.index(i)] for i in range(len(x))])


def transposed(layer: nn.Module, x: Tensor, turn: int) -> Tensor:
    """Samples are in the first dimension, or in the second."""
    samples_first, samples_second = x + 0, x.transpose(0, 1) + 0
    out = torch.tanh(layer(samples_second if turn else samples_first))
    return out.transpose(0, 1) if turn else out


def rolled_by_numpy_number(layer: nn.Module, x: Tensor, turn: int) -> Tensor:
    n = len(x)

    def roll(z: Tensor, k: np.int64) -> Tensor:
        rows = F.pad(z.flatten(1).t()[None], (k, n - k), mode="circular")[0, :, :n]
        return rows.t().reshape(z.shape)

    k = np.int64(turn) % n
    return roll(torch.tanh(layer(roll(x, k))), (n - k) % n)


def indexed_by_numpy_array(layer: nn.Module, x: Tensor, turn: int) -> Tensor:
    """An array of more than 1,000 numbers, of which the middle changes."""
    rows = x.repeat(1, 100, 1).flatten(0, 1)
    order = np.arange(len(rows))
    np.random.default_rng(turn).shuffle(order[5:-5])
    out = torch.tanh(layer(rows[order]))[np.argsort(order)]
    return out.view(len(x), -1, 5)


WAYS: list[Way] = [
    stacked, joined, shuffled, transposed, rolled_by_numpy_number, indexed_by_numpy_array,
]  # fmt: skip


class Turning(nn.Module):
    """Goes another way with each turn, which nothing tells but the program."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way, self.turn, self.layer = way, 0, nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self.layer, x, self.turn).flatten(1).mean(dim=1, keepdim=True).exp()


@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_samples_that_lie_elsewhere_in_a_batch_of_the_same_shape(way):
    torch.manual_seed(0)
    model = Turning(way).double()
    for turn in (0, 0, 0, 1, 1, 2, 0, 3):
        model.turn = turn
        x = torch.randn(4, 4, 5, dtype=torch.float64)
        norms = gradient_norms(model, x, lambda out: out[:, 0].square())
        truth = norms_one_by_one(model, x, lambda out, _: out.square().sum())
        assert relative_error(norms, truth) < TOLERANCE


class Strided(nn.Module):
    """Reads windows of its inputs from where they lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(2, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.as_strided((len(x), 3, 2), (4, 1, 1))
        return self.head(torch.tanh(self.layer(windows)).mean(dim=1))


def test_inputs_of_one_shape_that_lie_in_memory_in_another_order():
    """A model that reads other samples' numbers then is refused, and is as it was before."""
    torch.manual_seed(0)
    model = Strided().double()
    for is_transposed in (False, False, True, False, True):
        x = torch.randn(4, 4, dtype=torch.float64)
        if is_transposed:
            with pytest.raises(GradientNormError, match="mixes samples"):
                gradient_norms(model, x.t(), "entropy")
        else:
            norms = gradient_norms(model, x, "entropy")
            assert relative_error(norms, norms_one_by_one(model, x)) < TOLERANCE


class Pickled(nn.Module):
    """Copies its inputs by a way of Python's, and takes the next sample's row of large ones."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = pickle.loads(pickle.dumps(x))
        return self.head(torch.where(y[:, :1] > 3, y.flip(0), y)).tanh()


def test_numbers_that_leave_in_a_pickle():
    torch.manual_seed(0)
    model = Pickled().double()
    for turn in range(4):
        x = torch.randn(4, 3, dtype=torch.float64).clamp(-2, 2)
        if turn < 2:
            norms = gradient_norms(model, x, "entropy")
            assert relative_error(norms, norms_one_by_one(model, x)) < TOLERANCE
            continue
        x[turn, 0] = 4
        with pytest.raises(GradientNormError, match="mixes samples"):
            gradient_norms(model, x, "entropy")


class AlongDim(nn.Module):
    """Works along a dimension that the caller's code may change."""

    def __init__(self, work: Callable[[Tensor, int], Tensor]):
        super().__init__()
        self.layer, self.work, self.dim = nn.Linear(4, 4), work, -1

    def forward(self, x: Tensor) -> Tensor:
        return self.work(torch.tanh(self.layer(x)), self.dim)


ALONG: dict[str, Callable[[Tensor, int], Tensor]] = {
    "softmax": lambda h, dim: h.softmax(dim),
    "functional softmax": lambda h, dim: F.softmax(h, dim=dim),
    "cumsum": lambda h, dim: h.cumsum(dim),
    "flip": lambda h, dim: h.flip((dim,)),
    "roll": lambda h, dim: torch.roll(h, 1, dims=dim),
    "unbind": lambda h, dim: torch.stack(h.unbind(dim), dim=-1),
    "permute": lambda h, dim: h.permute(-3 - dim, dim) + 0,
    "index_select": lambda h, dim: h.index_select(dim, torch.arange(h.shape[dim] - 1, -1, -1)),
}


@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning")
@pytest.mark.parametrize("case", ALONG)
def test_minus_one_and_minus_two_are_two_programs(case: str) -> None:
    """Python's hashes of the two are one."""
    torch.manual_seed(0)
    model = AlongDim(ALONG[case]).double()

    def loss(outputs: Tensor) -> Tensor:
        return outputs.square().sum(dim=1)

    for _ in range(2):
        gradient_norms(model, torch.randn(4, 4).double(), loss)
    model.dim = -2  # that of the samples
    with pytest.raises(GradientNormError, match="model mixes samples"):
        gradient_norms(model, torch.randn(4, 4).double(), loss)


NAMED: dict[str, tuple[Callable[..., Tensor], dict[str, int], dict[str, int]]] = {
    "roll": (torch.roll, {"dims": 1, "shifts": 0}, {"shifts": 1, "dims": 0}),
    "sort": (lambda h, **options: torch.sort(h, **options)[0],
             {"descending": False, "dim": 1}, {"dim": 0, "descending": True}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning")
@pytest.mark.parametrize("case", NAMED)
def test_options_of_other_names_make_another_program(case: str) -> None:
    """Their values, in the order in which they are written, are the same."""
    torch.manual_seed(0)
    work, apart, across = NAMED[case]
    model = AlongDim(lambda h, _: work(h, **options)).double()
    options = apart
    for _ in range(2):
        gradient_norms(model, torch.randn(4, 4).double(), "entropy")
    options = across
    with pytest.raises(GradientNormError, match="model mixes samples"):
        gradient_norms(model, torch.randn(4, 4).double(), "entropy")


def _places(order: Tensor) -> Tensor:
    return order[:, None] * 4 + torch.arange(4)


BY_CONSTANT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index_reduce": lambda h, order: torch.zeros_like(h).index_reduce(
        0, order, h, "mean", include_self=False),
    "index_reduce_": lambda h, order: torch.zeros_like(h).index_reduce_(
        0, order, h, "amax", include_self=False),
    "put": lambda h, order: torch.zeros_like(h).put(_places(order), h),
    "put_": lambda h, order: torch.zeros_like(h).put_(_places(order), h),
    "masked_select": lambda h, order: torch.cat([h, h.flip(0)]).masked_select(
        torch.cat([order == torch.arange(len(h)), order != torch.arange(len(h))])[:, None]
    ).view(-1, 4),
    "segment_reduce": lambda h, order: torch.segment_reduce(
        h, "sum", lengths=torch.tensor([1] * len(h) if order[0] == 0 else [2, 0] * (len(h) // 2))),
}  # fmt: skip
"""Operators that send rows where whole numbers of no sample say."""


class ByOrder(nn.Module):
    def __init__(self, send: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.layer, self.send, self.order = nn.Linear(4, 4), send, torch.arange(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.send(torch.tanh(self.layer(x)), self.order[: len(x)] % len(x))


@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning")
@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("case", BY_CONSTANT)
def test_constants_that_send_rows_elsewhere_make_another_program(case: str) -> None:
    torch.manual_seed(0)
    model = ByOrder(BY_CONSTANT[case]).double()
    for _ in range(2):
        gradient_norms(model, torch.randn(4, 4).double(), "entropy")
    model.order = torch.tensor([1, 2, 3, 0])
    with pytest.raises(GradientNormError, match="model mixes samples"):
        gradient_norms(model, torch.randn(4, 4).double(), "entropy")


TABLE = torch.ones(4, 4).double().tril() + torch.eye(4).double()

SWAPPED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "attributes": (lambda h: h.real, lambda h: h.T),
    "matmul": (lambda h: h @ TABLE, lambda h: TABLE @ h),
    "by names": (
        lambda h: torch.matmul(input=h, other=TABLE), lambda h: torch.matmul(input=TABLE, other=h)),
    "linear": (lambda h: F.linear(h, TABLE), lambda h: F.linear(TABLE, h)),
    "einsum": (
        lambda h: torch.einsum("ij,jk->ik", h, TABLE),
        lambda h: torch.einsum("ij,jk->ik", TABLE, h)),
}  # fmt: skip
"""Operators on samples and a table of one shape, and what they are with the two exchanged."""


@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning")
@pytest.mark.parametrize("case", SWAPPED)
def test_a_table_behind_samples_and_before_them_make_two_programs(case: str) -> None:
    torch.manual_seed(0)
    apart, across = SWAPPED[case]
    model = AlongDim(lambda h, dim: (apart if dim == -1 else across)(h)).double()
    for _ in range(2):
        gradient_norms(model, torch.randn(4, 4).double(), "entropy")
    model.dim = -2
    with pytest.raises(GradientNormError, match="model mixes samples"):
        gradient_norms(model, torch.randn(4, 4).double(), "entropy")


def by_position(inner: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda out, inner=inner: inner(out)


def by_name(inner: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda out, *, inner=inner: inner(out)


@pytest.mark.parametrize("make", [by_position, by_name])
def test_losses_with_other_functions_as_defaults_are_others(make: Callable[..., object]) -> None:
    first, second = (lambda out: out.sum(dim=1)), (lambda out: out.mean(dim=1))
    assert identify(make(first)) == identify(make(first))
    assert identify(make(first)) != identify(make(second))


def test_a_loss_with_a_name_that_has_no_value_yet() -> None:
    def loss(out: Tensor) -> Tensor:
        return out.sum(dim=1) if out.dim() > 1 else later(out)

    assert gradient_norms(nn.Linear(3, 2), torch.ones(2, 3), loss).shape == (2,)

    def later(out: Tensor) -> Tensor:
        return out
