"""Models and losses that mix samples on some batches only are never answered wrongly."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracle import norms_one_by_one, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.errors import GradientNormError, GradientNormWarning
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.trace.memory import memory_of

D = torch.float64


def squares(z: Tensor) -> Tensor:
    return z.flatten(1).square().sum(dim=1)


class Between(nn.Module):
    """Two linear layers with an operator of choice between them."""

    def __init__(self, operator: Callable[[Tensor], Tensor]):
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)
        self.operator = operator
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(F.silu(self.operator(self.first(x))))
        return out


def ordered(h: Tensor) -> Tensor:
    """Samples in the order of their sizes, by a matrix product, if the first is not small."""
    order = torch.where(
        h[:1].abs().amax(1) < 100, torch.arange(len(h)), torch.arange(len(h)).flip(0)
    )
    return F.one_hot(order, len(h)).to(h) @ h


def half_as_large(h: Tensor) -> Tensor:
    """Samples above the median of a batch with one that is large."""
    sizes = h.detach().norm(dim=1)
    return h * torch.where((sizes > sizes.median()) & (sizes.max() > 60), 0.5, 1.0)[:, None]


LATER = {
    "by the median": half_as_large,
    "clipped by the largest": lambda h: h * torch.clamp(20 / h.abs().max(), max=1.0),
    "clipped by a detached one": lambda h: h * torch.clamp(20 / h.detach().abs().max(), max=1.0),
    "at most ten times the mean": lambda h: torch.minimum(h, 10 + h.detach().mean(0)),
    "by a condition": lambda h: h * torch.where(h.norm(dim=1).max() > 60, 0.5, 1.0),
    "by a product with a condition": lambda h: h * (1 - 0.5 * (h.norm(dim=1).max() > 60).to(h)),
    "permuted by a matrix": ordered,
}


@pytest.mark.filterwarnings("default::upslope.errors.GradientNormWarning")
@pytest.mark.parametrize("operator", LATER.values(), ids=LATER.keys())
@pytest.mark.parametrize("n", [4, 6, 40])
def test_a_model_that_mixes_on_later_batches_is_refused_there(operator, n) -> None:
    torch.manual_seed(n)
    model = Between(operator)
    for batch in range(2):
        x = torch.randn(n, 5, dtype=D)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            norms = gradient_norms(model, x, squares)
        truth = norms_one_by_one(model, x, lambda z, _: squares(z)[0])
        assert relative_error(norms, truth) < 1e-9
        told = [str(w.message) for w in caught if w.category is GradientNormWarning]
        assert told or batch > 0
    x[0] *= 500
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, x, squares)


def test_a_flag_of_python_is_another_program() -> None:
    torch.manual_seed(0)
    model = Between(lambda h: h - h.mean(0) if model.centre else h)
    model.centre = False
    for _ in range(3):
        gradient_norms(model, torch.randn(6, 5, dtype=D), squares)
    model.centre = True
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, torch.randn(6, 5, dtype=D), squares)


def test_words_whose_vectors_are_scaled_by_the_batch() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.last = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, ids: Tensor) -> Tensor:
            h = self.table(ids).mean(dim=1)
            out: Tensor = self.last(h * torch.clamp(3 / h.detach().abs().max(), max=1))
            return out

    torch.manual_seed(0)
    model = Words().double().eval()
    with torch.no_grad():
        model.table.weight[8] = 50
    gradient_norms(model, torch.randint(8, (6, 4)), squares)
    ids = torch.randint(8, (6, 4))
    ids[2] = 8
    with pytest.raises(GradientNormError, match="change when others"):
        gradient_norms(model, ids, squares)


@pytest.mark.parametrize(
    "bound",
    [
        lambda losses: torch.minimum(losses, 10 * losses.detach().mean()),
        lambda losses: torch.where(losses > 10 * losses.mean(), losses * 0, losses),
    ],
    ids=["minimum", "where"],
)
def test_a_loss_that_mixes_on_later_batches_is_refused_there(bound) -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    loss = lambda z: bound(squares(z))  # noqa: E731
    x = torch.randn(40, 5, dtype=D)
    for _ in range(2):
        truth = norms_one_by_one(model, x, lambda z, _: squares(z)[0])
        assert relative_error(gradient_norms(model, x, loss), truth) < 1e-9
    x[7] *= 500
    with pytest.raises(GradientNormError, match="enter the losses of others"):
        gradient_norms(model, x, loss)


def own(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, dtype=D)


class Padded(nn.Module):
    """Attention with a mask for padding, normalisation, and a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 8, padding_idx=0)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids == 0
        h = self.layer(self.words(ids), src_key_padding_mask=mask)
        h = h.masked_fill(mask[..., None], 0).sum(1) / (~mask).sum(1, keepdim=True)
        out: Tensor = self.last(h)
        return out


class Routed(nn.Module):
    """Two experts, and every sample to the one that it scores highest."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(5, 2)
        self.experts = nn.ModuleList(nn.Linear(5, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        weight, best = self.gate(x).softmax(dim=1).max(dim=1)
        out = torch.zeros(len(x), 3, dtype=x.dtype)
        for i, expert in enumerate(self.experts):
            rows = (best == i).nonzero().flatten()
            out = out.index_add(0, rows, expert(x[rows]) * weight[rows, None])
        return out


APART = {
    "convolutions": lambda: (
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4), nn.Flatten(),
            nn.Linear(64, 3),
        ),
        own((6, 3, 6, 6)),
    ),
    "padded text": lambda: (Padded(), torch.randint(9, (6, 5)).index_fill(1, torch.tensor(0), 1)),
    "recurrence": lambda: (
        nn.Sequential(nn.LSTM(5, 4, batch_first=True), Last(), nn.Linear(4, 3)), own((6, 7, 5)),
    ),
    "routed": lambda: (Routed(), own((6, 5))),
}  # fmt: skip


class Last(nn.Module):
    """The last step of a recurrence."""

    def forward(self, outputs: tuple[Tensor, Tensor]) -> Tensor:
        return outputs[0][:, -1]


@pytest.mark.parametrize("make", APART.values(), ids=APART.keys())
def test_models_that_keep_samples_apart_are_not_told_of(make) -> None:
    torch.manual_seed(0)
    model, x = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gradient_norms(model.double().eval(), x, squares)
    assert not [w for w in caught if "may depend on the other" in str(w.message)]


def test_rows_that_are_a_dimension_of_the_outputs_are_refused() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(6, 4), nn.Linear(5, 4)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            out: Tensor = self.left(a) @ self.right(b).T
            return out

    model = Pairs().double()
    with pytest.raises(GradientNormError, match="every sample is compared with every row"):
        gradient_norms(model, (own((4, 6)), own((4, 5))), squares)
    assert len(gradient_norms(model, (own((3, 6)), own((4, 5))), squares)) == 3


def test_a_model_that_counts_its_calls_is_told_so() -> None:
    calls = itertools.count()

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x) * (1 + 0.1 * next(calls))
            return out

    with pytest.raises(GradientNormError, match="counts its calls"):
        gradient_norms(Counting().double(), own((4, 5)), squares)


@pytest.mark.parametrize("draw", [np.random.rand, random.random], ids=["numpy", "python"])
def test_other_generators_move_as_by_one_pass(draw) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x) * (1 + draw())
            return out

    model, x = Noisy().double(), own((4, 5))
    random.seed(0)
    np.random.seed(0)
    factor, following = 1 + draw(), draw()
    random.seed(0)
    np.random.seed(0)
    norms = gradient_norms(model, x, squares)
    assert draw() == following
    plain = norms_one_by_one(model.layer, x, lambda z, _: squares(z * factor)[0])
    assert relative_error(norms, plain) < 1e-9


def test_rounding_that_depends_on_the_batch_is_no_mixing() -> None:
    """As float32 products on a GPU have three digits, and others for another size of batch."""

    class Rough(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.first(x))
            if x.dtype == torch.float32:
                h = h * (1 + 1e-3 * (len(x) % 7))
            out: Tensor = self.second(h)
            return out

    torch.manual_seed(0)
    model = Rough()
    for n in (4, 40):
        x = torch.randn(n, 5)
        norms = gradient_norms(model, x, squares)
        truth = norms_one_by_one(model, x, lambda z, _: squares(z)[0])
        assert relative_error(norms, truth) < 2e-2


def test_mixing_in_single_precision_is_mixing() -> None:
    model = Between(lambda h: h - 1e-2 * h.mean(0)).float()
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, torch.randn(6, 5), squares)


WHOLE = {
    "divided": lambda x: x / 25,
    "times one": lambda x: x * 1.0,
    "shifted": lambda x: x - 0.5,
    "beside a constant": lambda x: torch.cat([x, torch.ones(len(x), 1)], dim=1)[:, :5],
    "looked up": lambda x: torch.linspace(0, 9, 250)[x.long()],
    "chosen": lambda x: torch.linspace(0, 9, 250).index_select(0, x.long().flatten()).view(-1, 5),
}


@pytest.mark.parametrize("floating", WHOLE.values(), ids=WHOLE.keys())
def test_whole_numbers_are_spoilt_where_they_become_floating(floating) -> None:
    torch.manual_seed(0)
    clip = Between(LATER["clipped by a detached one"])

    class Bytes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = clip

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.body(floating(x).double())
            return out

    model = Bytes()
    with pytest.warns(GradientNormWarning, match="may depend on the other"):
        gradient_norms(model, torch.randint(9, (6, 5), dtype=torch.uint8), squares)


def test_text_is_remembered() -> None:
    """Words are looked up in a table of weights: the data decide on no place of a sample."""
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3))
    for _ in range(2):
        gradient_norms(model, torch.randint(9, (6, 5)), squares)
    assert len(memory_of(model)._programs) == 1


UNNAMED = {
    "overload": lambda h, o: torch.ops.aten.index.Tensor(h, [o]),
    "bag": lambda h, o: F.embedding_bag(o[:, None], h, mode="sum"),
    "sparse": lambda h, o: F.one_hot(o, len(o)).to(h).to_sparse() @ h,
    "narrow": lambda h, o: torch.cat([torch.narrow(h, 0, k, 1) for k in o]),
}


@pytest.mark.parametrize("take", UNNAMED.values(), ids=UNNAMED.keys())
def test_samples_sorted_and_put_back_by_seldom_operators(take) -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            order = x[:, 0].argsort()
            h = take(torch.tanh(self.first(x)), order)
            return take(self.second(h), order.argsort())

    torch.manual_seed(0)
    model = Sorted().double()
    for batch in range(4):
        x = own((6, 5))
        if batch < 2:  # the first ones are in order
            x = x[x[:, 0].argsort()]
        truth = norms_one_by_one(model, x, lambda z, _: squares(z)[0])
        assert relative_error(gradient_norms(model, x, squares), truth) < 1e-9


@pytest.mark.parametrize(
    "put_out",
    [
        lambda z: z.to(torch.complex64),
        lambda z: torch.cat([z, torch.full_like(z[:, :1], -torch.inf)], dim=1),
    ],
    ids=["complex", "masked"],
)
def test_mixing_is_seen_beside_outputs_that_are_no_plain_numbers(put_out) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Between(lambda h: h - 0.5 * h.detach().mean(0)).float()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = put_out(self.body(x))
            return out

    def loss(z: Tensor) -> Tensor:
        z = torch.view_as_real(z).flatten(1) if z.is_complex() else z[:, :3]
        return z.square().sum(dim=1)

    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(Masked(), torch.randn(6, 5), loss)


def until_close(z: Tensor) -> Tensor:
    """A fixed point by as many steps as some sample of the batch takes; NaN is never close."""
    point = torch.zeros_like(z)
    while True:
        with torch.no_grad():
            far = (0.5 * point.cos() + 0.1 * z - point).abs().max()
        point = 0.5 * point.cos() + 0.1 * z
        if far < 1e-12:
            return point


@pytest.mark.filterwarnings("default::upslope.errors.GradientNormWarning")
def test_a_loop_that_goes_on_until_numbers_are_close_ends() -> None:
    """With samples of NaN it never would; of single samples it ends at the same numbers."""
    torch.manual_seed(0)
    x = torch.randn(6, 5, dtype=D)
    model = Between(until_close)
    truth = norms_one_by_one(model, x, lambda z, _: squares(z)[0])
    assert relative_error(gradient_norms(model, x, squares), truth) < 1e-9
    assert torch.is_grad_enabled()

    linear = nn.Linear(5, 3).double()
    truth = norms_one_by_one(linear, x, lambda z, _: squares(until_close(z))[0])
    found = gradient_norms(linear, x, lambda z: squares(until_close(z)))
    assert relative_error(found, truth) < 1e-9
    assert torch.is_grad_enabled()
