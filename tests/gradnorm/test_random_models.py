"""Models that draw random numbers: exact as one pass draws them, and refused where samples mix."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from short_forms import mark_rest_long
from upslope.errors import GradientNormError, GradientNormWarning
from upslope.gradnorm import gradient_norms, label_free

D = torch.float64
SIZES = mark_rest_long((2, 6, 20, 64), 2)


def squares(z: Tensor) -> Tensor:
    return z.square().flatten(1).sum(1)


def seed(value: int) -> None:
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)


def in_one_pass(model: nn.Module, *x: Tensor) -> Tensor:
    """The norms by autograd, from the losses of one ordinary pass of the whole batch."""
    losses, parameters = squares(model(*x)), list(model.parameters())
    norms = []
    for value in losses:
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        norms.append(sum(g.square().sum() for g in gradients if g is not None).sqrt())
    return torch.stack(norms)


class Between(nn.Module):
    """Two layers, with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.between = nn.Linear(5, 8), nn.Linear(8, 3), between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


class Sequences(nn.Module):
    """Words as vectors of 4 numbers, from 5 numbers each."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.words, self.body, self.last = nn.Linear(1, 4), body, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(self.words(x[:, :, None]))
        return self.last((out[0] if isinstance(out, tuple) else out).mean(1))


class Packed(nn.Module):
    """Sequences of different lengths: what is drawn between layers depends on all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nn.LSTM(1, 4, 2, dropout=0.3, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            x[:, :, None], lengths, batch_first=True, enforce_sorted=False
        )
        _, (h, _) = self.body(packed)
        return self.last(h[-1])


class Experts(nn.Module):
    """Every expert draws its own dropout, for as many samples as choose it."""

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__()
        self.router = nn.Linear(5, 3)
        self.experts = nn.ModuleList(nn.Linear(5, 3) for _ in range(3))
        self.capacity = capacity

    def forward(self, x: Tensor) -> Tensor:
        weight, expert = self.router(x).softmax(1).max(1)
        out = x.new_zeros(len(x), 3)
        for place, layer in enumerate(self.experts):
            rows = (expert == place).nonzero()[: self.capacity, 0]
            out = out.index_add(0, rows, weight[rows, None] * F.dropout(layer(x[rows]), 0.3))
        return out


class Masked(nn.Module):
    """Half of the positions of every sample, drawn at random, as masked autoencoders see."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Linear(1, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x[:, :, None])
        rows = torch.rand(x.shape).argsort(1)[:, :2]
        return self.last(h.gather(1, rows[:, :, None].expand(-1, -1, 4)).tanh().flatten(1))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True)
    return Sequences(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 4, 3), nn.Dropout1d(0.3), nn.GroupNorm(2, 4),
        nn.ReLU(), nn.AlphaDropout(0.2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(12, 3),
    )  # fmt: skip


def stochastic_depth(draw: Callable[[Tensor], Any]) -> Callable[[], nn.Module]:
    return lambda: Between(lambda h: h + h.tanh() * draw(h))


ORDINARY: dict[str, Callable[[], nn.Module]] = {
    "perceptron": lambda: nn.Sequential(
        nn.Linear(5, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 8), nn.Dropout(0.5),
        nn.Linear(8, 3),
    ),
    "convolutions": convolutions,
    "encoder": encoder,
    "lstm": lambda: Sequences(nn.LSTM(4, 4, 2, dropout=0.3, batch_first=True)),
    "packed": Packed,
    "noise": lambda: Between(lambda h: h.tanh() + 0.1 * torch.randn_like(h)),
    "numpy": lambda: Between(
        lambda h: h * torch.from_numpy(np.random.rand(*h.shape))
    ),
    "depth, each": stochastic_depth(lambda h: (torch.rand(len(h), 1) < 0.5).to(h)),
    "depth, once": stochastic_depth(lambda h: (torch.rand(()) < 0.5).to(h)),
    "depth, bool": stochastic_depth(lambda h: float(torch.rand(()) < 0.5)),
    "depth, python": stochastic_depth(lambda h: float(random.random() < 0.5)),
    "gumbel": lambda: Between(lambda h: F.gumbel_softmax(h, hard=True)),
    "normal": lambda: Between(lambda h: torch.distributions.Normal(h, 0.2).rsample()),
    "rrelu": lambda: Between(lambda h: F.rrelu(h, training=True)),
    "features first": lambda: Between(lambda h: h + torch.randn(h.shape[1], len(h)).to(h).T),
    "unused": lambda: Between(lambda h: h.tanh() + 0 * torch.rand(()).to(h)),
    "experts": Experts,
    "masked": Masked,
}  # fmt: skip


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", ORDINARY)
def test_models_that_draw_are_exact_and_not_told_of(kind: str, n: int) -> None:
    seed(n)
    model = ORDINARY[kind]().double().train()
    for batch in range(3):
        x: tuple[Tensor, ...] = (torch.randn(n, 5, dtype=D),)
        if kind == "packed":
            x = *x, torch.randint(2, 6, (n,))
        seed(batch)
        truth = in_one_pass(model, *x)
        after = torch.get_rng_state(), random.getstate(), np.random.rand()
        seed(batch)
        with warnings.catch_warnings():
            warnings.simplefilter("error", GradientNormWarning)
            norms = gradient_norms(model, x, squares)
        assert torch.allclose(norms, truth, rtol=1e-9, atol=1e-12)
        left = torch.get_rng_state(), random.getstate(), np.random.rand()
        assert torch.equal(left[0], after[0])
        assert left[1:] == after[1:]


def nearest(h: Tensor) -> Tensor:
    apart = torch.cdist(h.detach(), h.detach()).fill_diagonal_(torch.inf)
    return h + h.detach()[apart.argmin(1)]


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "maximum": lambda h: h / h.detach().abs().max(),
    "winners": lambda h: h * (h >= h.flatten().topk(h.numel() // 4 + 1)[0][-1]),
    "nearest": nearest,
    "count": lambda h: h / len(h),
    "mean": lambda h: h - h.detach().mean(0),
    "any": lambda h: h * (2 if bool((h > h.detach().median()).any()) and len(h) > 1 else 1),
    "neighbour": lambda h: h + h.detach().roll(1, 0),
    "few": lambda h: h if len(h) > 1 else 2 * h,
    "bank": lambda h: h + h.detach().softmax(0),
}
DRAWING: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda h: F.dropout(h, 0.3),
    "noise": lambda h: h + 0.1 * torch.randn_like(h),
    "by hand": lambda h: h * (torch.rand_like(h) < 0.5) / 0.5,
    "unused": lambda h: h + 0 * torch.rand(()).to(h),
}


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("draw", DRAWING)
@pytest.mark.parametrize("mix", MIXING)
def test_models_that_draw_and_mix_are_refused(mix: str, draw: str, n: int) -> None:
    seed(n)
    model = Between(lambda h: DRAWING[draw](MIXING[mix](h))).double().train()
    for batch in range(2):
        seed(batch)
        with pytest.raises(GradientNormError, match="treats each sample by itself"):
            gradient_norms(model, torch.randn(n, 5, dtype=D), squares)


@pytest.mark.parametrize("n", [6, 20, 64])
def test_mixing_that_a_later_batch_sets_off_is_refused_there(n: int) -> None:
    seed(0)
    model = Between(lambda h: F.dropout(h / h.detach().abs().max().clamp(min=50), 0.3))
    model.double().train()
    for batch in range(2):
        x = torch.randn(n, 5, dtype=D)
        seed(batch)
        truth = in_one_pass(model, x)
        seed(batch)
        assert torch.allclose(gradient_norms(model, x, squares), truth, rtol=1e-9)
    x[n // 2] *= 1000
    with pytest.raises(GradientNormError, match="treats each sample by itself"):
        gradient_norms(model, x, squares)


@pytest.mark.parametrize("n", [12, 40])
def test_experts_of_a_capacity_that_draw_are_refused(n: int) -> None:
    seed(0)
    model = Experts(capacity=2).double().train()
    for _ in range(2):
        with pytest.raises(GradientNormError):
            gradient_norms(model, torch.randn(n, 5, dtype=D), squares)


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "share": lambda o: squares(o) * (squares(o) / squares(o).sum()).detach(),
    "rank": lambda o: squares(o) * (1 + squares(o).detach().argsort().argsort()),
    "advantage": lambda o: (
        o.log_softmax(1)[:, 0] * ((squares(o) - squares(o).mean()) / squares(o).std()).detach()
    ),
    "any": lambda o: squares(o) * (1 + int((squares(o) > squares(o).mean()).any())),
}


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("train", [True, False])
def test_losses_that_mix_are_refused_whether_the_model_draws_or_not(
    train: bool, kind: str, n: int
) -> None:
    seed(0)
    model = ORDINARY["perceptron"]().double().train(train)
    for _ in range(2):
        with pytest.raises(GradientNormError, match="enter the losses of others"):
            gradient_norms(model, torch.randn(n, 5, dtype=D), LOSSES[kind])


@pytest.mark.parametrize("train", [True, False])
def test_losses_that_draw_are_refused(train: bool) -> None:
    seed(0)
    model = ORDINARY["perceptron"]().double().train(train)
    x = torch.randn(6, 5, dtype=D)
    losses = [
        lambda o: squares(F.dropout(o, 0.3)),
        lambda o: squares(o) + 0 * torch.rand(()),
        *([lambda o: squares(o - model(x))] if train else []),
    ]
    for loss in losses:
        for _ in range(2):
            with pytest.raises(GradientNormError, match="draws random numbers"):
                gradient_norms(model, x, loss)


@pytest.mark.parametrize("mark", mark_rest_long([lambda loss: loss, label_free], 2))
def test_batches_are_not_cut_where_a_model_draws_in_eval_mode(mark: Any) -> None:
    seed(0)
    model = nn.Sequential(nn.Linear(5, 20000), nn.Unflatten(1, (8, 2500)), nn.AvgPool1d(500),
                          Between(lambda h: F.dropout(h, 0.3))).double().eval()  # fmt: skip
    x = torch.randn(150, 5, dtype=D)
    seed(1)
    truth = in_one_pass(model, x)
    after = torch.get_rng_state()
    seed(1)
    norms = gradient_norms(model, x, mark(squares))
    assert torch.allclose(norms, truth, rtol=1e-9)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("n", [6, 20])
def test_models_without_kernels_are_held_to_their_company_as_well(n: int) -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return x @ w.T

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
            x, w = ctx.saved_tensors
            return g @ w, g.T @ x

    class Own(nn.Module):
        def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.first, self.last, self.mix = nn.Linear(5, 8), nn.Linear(8, 3), mix

        def forward(self, x: Tensor) -> Tensor:
            h = Doubled.apply(F.dropout(x, 0.2), self.first.weight)
            return self.last(F.dropout(self.mix(h.tanh()), 0.3))

    seed(0)
    apart, mixed = (Own(mix).double().train() for mix in (lambda h: h, MIXING["maximum"]))
    for batch in range(2):
        x = torch.randn(n, 5, dtype=D)
        seed(batch)
        truth = in_one_pass(apart, x)
        seed(batch)
        assert torch.allclose(gradient_norms(apart, x, squares), truth, rtol=1e-9)
        with pytest.raises(GradientNormError, match="treats each sample by itself"):
            gradient_norms(mixed, x, squares)
