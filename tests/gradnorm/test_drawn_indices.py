"""Entries that random indices move: within each sample, and from sample to sample and back."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from oracle import TOLERANCE, alone, norms_one_by_one, relative_error
from torch import Tensor, nn

from upslope.errors import GradientNormError
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.trace import recording
from upslope.gradnorm.trace.forward import Forward
from upslope.gradnorm.trace.memory import Memory

N, T, WIDTH = 6, 6, 5
Move = Callable[[Tensor, nn.Module], Tensor]


class Moved(nn.Module):
    """Positions, moved by a function that draws; (n, T, WIDTH) to (n, 3)."""

    def __init__(self, move: Move) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head, self.move = nn.Linear(WIDTH, 3), move
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return self.head(self.move(x, self.second).mean(dim=1))


def some_positions(x: Tensor, layer: nn.Module) -> Tensor:
    return layer(x[:, torch.randint(0, T, (3,))]).tanh()


def without_some_positions(x: Tensor, layer: nn.Module) -> Tensor:
    """A random part goes on, and comes back into its places, as in masked autoencoders."""
    order = torch.rand(T).argsort()
    index = order[None, :, None].expand(len(x), -1, WIDTH)
    rest = layer(torch.gather(x, dim=1, index=index[:, :4])).tanh()
    filled = torch.cat([rest, torch.zeros(len(x), 2, WIDTH, dtype=x.dtype)], dim=1)
    return x + torch.gather(filled, dim=1, index=index.argsort(dim=1))


def queries_of_most_weight(x: Tensor, layer: nn.Module) -> Tensor:
    """The strongest positions by a random part of the others are written, as in Informer."""
    score = (x @ x[:, torch.randint(0, T, (2,))].transpose(1, 2)).amax(dim=2)
    top, rows = score.topk(2, sorted=False)[1], torch.arange(len(x)).unsqueeze(-1)
    context = x.mean(dim=1, keepdim=True).expand_as(x).clone()
    context[rows, top, :] = layer(x[rows, top]).tanh()
    return context * x


def batch(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, T, WIDTH, generator=generator, dtype=torch.float64)


def norms_alone(model: nn.Module, x: Tensor, seed: int) -> Tensor:
    """Each sample by itself, with the draws of the batch."""
    rows = []
    for i in range(len(x)):
        torch.manual_seed(seed)
        rows.append(norms_one_by_one(model, alone(x, i)))
    return torch.cat(rows)


def probes(model: nn.Module, count: int) -> list[bool]:
    """Which of some batches took probing passes; each is held against the oracle."""
    probed = []
    for seed in range(count):
        x = batch(seed)
        wanted_norms = norms_alone(model, x, seed)
        torch.manual_seed(seed)
        with mock.patch.object(Forward, "probe", autospec=True, side_effect=Forward.probe) as probe:
            norms = gradient_norms(model, x, "entropy")
        assert relative_error(norms, wanted_norms) < TOLERANCE
        probed.append(probe.call_count > 0)
    return probed


@pytest.mark.parametrize("move", [some_positions, without_some_positions, queries_of_most_weight])
def test_what_moves_within_samples_is_probed_until_it_is_known_to_change(move, monkeypatch):
    monkeypatch.setattr(Memory, "draw_proof", lambda _: False)
    torch.manual_seed(0)
    model = Moved(move)
    assert not any(probes(model, 9)[3:])
    torch.manual_seed(9)
    with mock.patch.object(recording, "reduce_proven", side_effect=AssertionError("proven")):
        gradient_norms(model, batch(9), "entropy")


def with_draws_within(move: Move) -> Move:
    """Return a function that also takes random positions, by which draws are known to change."""
    return lambda x, layer: some_positions(x, layer)[:, :1] + move(x, layer)


def put_back(x: Tensor, layer: nn.Module) -> Tensor:
    order = torch.randperm(len(x))
    return layer(x[order]).tanh()[order.argsort()]


def put_back_in_another_dimension(x: Tensor, layer: nn.Module) -> Tensor:
    order = torch.randperm(len(x))
    return layer(x.transpose(0, 1)[:, order]).tanh()[:, order.argsort()].transpose(0, 1)


def gathered_and_put_back(x: Tensor, layer: nn.Module) -> Tensor:
    order = torch.randperm(len(x))
    index = order[None, :, None].expand(T, -1, WIDTH)
    moved = layer(x.transpose(0, 1).gather(1, index)).tanh()
    return moved.gather(1, order.argsort()[None, :, None].expand(T, -1, WIDTH)).transpose(0, 1)


def multiplied_and_put_back(x: Tensor, layer: nn.Module) -> Tensor:
    turn = torch.eye(len(x), dtype=x.dtype)[torch.randperm(len(x))]
    moved = layer((turn @ x.flatten(1)).view_as(x)).tanh()
    return (turn.T @ moved.flatten(1)).view_as(x)


def multiplied_by_what_was_gathered(x: Tensor, layer: nn.Module) -> Tensor:
    order = torch.randperm(len(x))
    turn = torch.eye(len(x), dtype=x.dtype).gather(0, order[:, None].expand(-1, len(x)))
    moved = layer((turn @ x.flatten(1)).view_as(x)).tanh()
    return (turn.T @ moved.flatten(1)).view_as(x)


def in_a_loop_and_put_back(x: Tensor, layer: nn.Module) -> Tensor:
    order = torch.randperm(len(x)).tolist()
    moved = layer(torch.stack([x[i] for i in order])).tanh()
    return torch.stack([moved[order.index(i)] for i in range(len(x))])


def written_and_put_back(x: Tensor, layer: nn.Module) -> Tensor:
    rows, order = torch.arange(T)[:, None], torch.randperm(len(x)).expand(T, -1)
    moved = torch.zeros_like(x.transpose(0, 1)) * x.transpose(0, 1)
    moved[rows, order] = x.transpose(0, 1)
    return layer(moved).tanh()[rows, order].transpose(0, 1)


BACK = [
    put_back, put_back_in_another_dimension, gathered_and_put_back, multiplied_and_put_back,
    multiplied_by_what_was_gathered, in_a_loop_and_put_back, written_and_put_back,
]  # fmt: skip


@pytest.mark.parametrize("move", BACK)
@pytest.mark.parametrize("is_alone", [True, False])
def test_random_orders_of_samples_are_exact_in_every_batch(move, is_alone, monkeypatch):
    monkeypatch.setattr(Memory, "draw_proof", lambda _: False)
    torch.manual_seed(0)
    model = Moved(move if is_alone else with_draws_within(move))
    for seed in range(9):
        x = batch(seed)
        # The random positions are drawn first, and the same for any number of samples.
        wanted_norms = norms_alone(model, x, seed)
        torch.manual_seed(seed)
        assert relative_error(gradient_norms(model, x, "entropy"), wanted_norms) < TOLERANCE


def left_in_another_order(x: Tensor, layer: nn.Module) -> Tensor:
    return x + layer(x[torch.randperm(len(x))]).tanh()


def written_to_others(x: Tensor, layer: nn.Module) -> Tensor:
    """As in Informer, along the dimension of the samples."""
    x = x.transpose(0, 1)
    rows, context = torch.arange(T)[:, None], x.clone()
    order = (x.detach().sum(dim=2) + torch.rand(x.shape[1], dtype=x.dtype)).argsort(dim=1)
    context[rows, order, :] = layer(x).tanh()
    return context.transpose(0, 1)


@pytest.mark.parametrize("move", [left_in_another_order, written_to_others])
@pytest.mark.parametrize("is_alone", [True, False])
def test_samples_that_are_left_in_another_order_are_refused(move, is_alone):
    torch.manual_seed(0)
    model = Moved(move if is_alone else with_draws_within(move))
    for seed in range(6):
        torch.manual_seed(seed)
        with pytest.raises(GradientNormError):
            gradient_norms(model, batch(seed), "entropy")
