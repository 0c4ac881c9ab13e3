"""LSTM, GRU and RNN, whole and as cells, against the oracle."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_agrees, norms_one_by_one, relative_error
from torch import Tensor, nn

from upslope.gradnorm import expected_gradient_length, gradient_norms
from upslope.gradnorm.kernels import lstm


class Sequences(nn.Module):
    def __init__(self, kind: str, **options) -> None:
        super().__init__()
        name, _, nonlinearity = kind.partition(" ")
        if nonlinearity:
            options["nonlinearity"] = nonlinearity
        self.rnn = getattr(nn, name)(3, 4, **options)
        width = options.get("proj_size") or 4
        self.head = nn.Linear(width * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x: Tensor) -> Tensor:  # (n, t, 3)
        batch_first = self.rnn.batch_first
        out, state = self.rnn(x if batch_first else x.transpose(0, 1))
        last = state[0] if isinstance(state, tuple) else state
        pooled = out.mean(dim=1 if batch_first else 0)
        return self.head(pooled) + last.sum(dim=(0, 2))[:, None] * pooled[:, :3]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN tanh", "RNN relu"])
def test_recurrent_networks(kind, layers, bidirectional, batch_first):
    torch.manual_seed(layers)
    model = Sequences(kind, num_layers=layers, bidirectional=bidirectional, batch_first=batch_first)
    assert_agrees(model, torch.randn(3, 5, 3))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("n", [1, 5])
def test_as_many_samples_as_steps_and_a_single_sample(n, batch_first):
    torch.manual_seed(0)
    assert_agrees(Sequences("LSTM", batch_first=batch_first), torch.randn(n, 5, 3))


def test_without_biases():
    torch.manual_seed(0)
    assert_agrees(Sequences("GRU", bias=False, batch_first=True), torch.randn(3, 4, 3))


def test_lstm_with_projection():
    torch.manual_seed(0)
    assert_agrees(Sequences("LSTM", proj_size=3, batch_first=True), torch.randn(3, 4, 3))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_lstm_in_blocks_of_steps(monkeypatch, bidirectional):
    """Coefficients are found for a few steps at a time: here for two, and one is left over."""
    monkeypatch.setattr(lstm, "_BLOCK", 2 * 3 * 16)
    torch.manual_seed(0)
    model = Sequences("LSTM", bidirectional=bidirectional, batch_first=True)
    assert_agrees(model, torch.randn(3, 5, 3))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN tanh"])
def test_long_sequences_share_a_gram_matrix_or_do_without(kind):
    torch.manual_seed(0)
    for steps in (2, 40):
        assert_agrees(Sequences(kind, batch_first=True), torch.randn(2, steps, 3))


def test_frozen_weights_and_a_part_of_the_parameters():
    torch.manual_seed(0)
    model = Sequences("LSTM", num_layers=2, batch_first=True)
    model.rnn.weight_ih_l0.requires_grad_(False)
    model.rnn.bias_hh_l1.requires_grad_(False)
    assert_agrees(model, torch.randn(3, 5, 3))
    chosen = ["rnn.weight_hh_l0"]
    assert_agrees(model, torch.randn(3, 5, 3), parameters=chosen, wanted=lambda n: n in chosen)


class WritesIntoStates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x.transpose(0, 1))
        return self.head(states.mul_(2).sum(dim=0))


def test_a_write_into_the_states_is_noticed():
    torch.manual_seed(0)
    assert_agrees(WritesIntoStates(), torch.randn(3, 5, 3), path="one by one")


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_several_losses_share_a_forward_pass(kind):
    """Each backward pass goes through time again, from what the one forward pass kept."""
    torch.manual_seed(0)
    model, x = Sequences(kind, batch_first=True).double().eval(), torch.randn(3, 5, 3).double()
    found = expected_gradient_length(model, x).scores
    p = model(x).softmax(dim=1).detach()
    alone = torch.zeros(3, dtype=torch.float64)
    for label in range(3):
        alone += p[:, label] * norms_one_by_one(
            model, x, lambda out, _, label=label: -out.log_softmax(dim=1)[0, label]
        )
    torch.testing.assert_close(found, alone, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN tanh", "RNN relu"])
def test_half_precision_stays_near(kind):
    torch.manual_seed(0)
    model, x = Sequences(kind, batch_first=True).eval(), torch.randn(8, 5, 3)
    exact = gradient_norms(model, x, "entropy")
    half = gradient_norms(model, x, "entropy", dtype=torch.bfloat16)
    assert relative_error(half, exact) < 0.1


class Cells(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        name, _, nonlinearity = kind.partition(" ")
        options = {"nonlinearity": nonlinearity} if nonlinearity else {}
        self.cell, self.head = getattr(nn, name)(3, 4, **options), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell tanh", "RNNCell relu"])
def test_cells(kind):
    torch.manual_seed(0)
    assert_agrees(Cells(kind), torch.randn(3, 4, 3))


class LearnedStart(nn.Module):
    """The first hidden state is a parameter, expanded to the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.rnn = nn.Parameter(torch.randn(1, 1, 4)), nn.GRU(3, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x, self.start.expand(1, len(x), 4).contiguous())
        return self.head(out[:, -1])


def test_a_learned_initial_state():
    torch.manual_seed(0)
    assert_agrees(LearnedStart(), torch.randn(3, 4, 3))


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, (h, _) = self.rnn(packed)
        return self.head(h[-1])


def test_packed_sequences_take_the_exact_slow_path():
    torch.manual_seed(0)
    assert_agrees(Packed(), (torch.randn(3, 5, 3), torch.tensor([5, 2, 4])), path="one by one")
