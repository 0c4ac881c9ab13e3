"""What a model gives to every sample before samples and weights meet: copies, zeros, one row."""

from __future__ import annotations

import pytest
import torch
from oracle import TOLERANCE, assert_agrees, norms_one_by_one, relative_error
from test_uses_of_parameters import Functional
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.gradnorm import gradient_norms


def tokens_of(copies):
    """Learned tokens, one set a sample, that scale what is seen of it."""

    def function(m, x):
        return (torch.tanh(x @ m.w)[:, None] * copies(m.t, len(x))).sin().mean(1)

    return function


COPIES = {
    "stack": lambda t, n: torch.stack([t] * n),
    "stack of views": lambda t, n: torch.stack([t[:] for _ in range(n)]),
    "stack in the middle": lambda t, n: torch.stack([t] * n, dim=1).transpose(0, 1),
    "cat": lambda t, n: torch.cat([t[None]] * n),
    "cat of rows": lambda t, n: torch.cat([t] * n, dim=0).view(n, 3, 6),
    "cat of columns": lambda t, n: torch.cat([t] * n, -1).view(3, n, 6).transpose(0, 1),
    "cat of twice as many": lambda t, n: torch.cat([t[None]] * (2 * n)).view(n, 2, 3, 6).sum(1),
    "repeat_interleave": lambda t, n: t.repeat_interleave(n, dim=0).view(3, n, 6).transpose(0, 1),
    "repeat_interleave of all": lambda t, n: t.repeat_interleave(n).view(3, 6, n).movedim(-1, 0),
    "repeat_interleave of one": lambda t, n: torch.repeat_interleave(t[None], n, 0),
    "index of zeros": lambda t, n: t[None][torch.zeros(n, dtype=torch.long)],
    "index of one row": lambda t, n: t.sin()[torch.ones(n, dtype=torch.long)][:, None],
    "index_select": lambda t, n: torch.index_select(t, 0, torch.ones(n, dtype=torch.long))[:, None],
    "rows of positions": lambda t, n: t[torch.arange(3).repeat(n, 1)],
    "embedding": lambda t, n: F.embedding(torch.arange(3).repeat(n, 1), t),
}


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("case", COPIES)
def test_copies_of_one_parameter_for_every_sample(case, n):
    torch.manual_seed(0)
    model = Functional(tokens_of(COPIES[case]), t=(3, 6), w=(5, 6))
    assert_agrees(model, torch.randn(n, 5))


def test_as_many_different_weights_as_samples_are_no_copies():
    torch.manual_seed(0)

    def mixture(m, x):
        experts = torch.stack([m.a, m.b, m.a + m.b])
        return torch.einsum("ne,ek->nk", x.softmax(1), experts)

    assert_agrees(Functional(mixture, a=(4,), b=(4,)), torch.randn(3, 3))


CHANCES = {
    "rows of a table": lambda m, x: x @ m.t[torch.zeros(3, dtype=torch.long)].T.sin() * m.s,
    "a product of ones": lambda m, x: x @ F.linear(torch.ones(3, 2).double(), m.t.T).T * m.s,
    "copies side by side": lambda m, x: x @ torch.stack([m.t[0]] * 3).T.sin() * m.s,
}


@pytest.mark.parametrize("case", CHANCES)
def test_as_many_rows_as_samples_by_chance(case):
    """Where nothing can be held to be given to each sample, nothing is; whatever came before."""
    torch.manual_seed(0)
    model = Functional(CHANCES[case], t=(2, 4), s=(3,)).double()
    for n in (3, 3, 2, 6, 3):
        x = torch.randn(n, 4, dtype=torch.float64)
        found = gradient_norms(model, x, "entropy")
        assert relative_error(found, norms_one_by_one(model, x)) < TOLERANCE, n


class Recurrence(nn.Module):
    """The recurrence of the tutorials: the state starts from zeros, which meet a weight first."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.state, self.out = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 6, dtype=x.dtype)
        for t in range(x.shape[1]):
            h = torch.tanh(self.inner(x[:, t]) + self.state(h))
        return self.out(h)


class Cells(nn.Module):
    """Two cells, the upper of which has a state before it is given one."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.lower, self.upper, self.out = kind(5, 6), kind(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        zeros = x.new_zeros(len(x), 6)
        lstm = isinstance(self.lower, nn.LSTMCell)
        low = high = (zeros, zeros) if lstm else zeros
        for t in range(x.shape[1]):
            low = self.lower(x[:, t], low)
            high = self.upper(low[0] if lstm else low, high)
        return self.out(high[0] if lstm else high)


class ConvolutionalRecurrence(nn.Module):
    """Gates by a convolution of the state alone, and of the input alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.state = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 4, *x.shape[-2:], dtype=x.dtype)
        for t in range(x.shape[1]):
            h = torch.tanh(self.inner(x[:, t]) + self.state(h))
        return self.out(h.mean((2, 3)))


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_recurrences_written_by_hand_start_from_zeros(n):
    torch.manual_seed(0)
    assert_agrees(Recurrence(), torch.randn(n, 3, 5))
    assert_agrees(ConvolutionalRecurrence(), torch.randn(n, 2, 2, 5, 5))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_cells_start_from_zeros(kind, n):
    torch.manual_seed(0)
    assert_agrees(Cells(kind), torch.randn(n, 3, 5))


class Decoder(nn.Module):
    """Sentences, or several beams of each, begin with the same token, whose vector is looked up."""

    def __init__(self, beams: int) -> None:
        super().__init__()
        self.table, self.state = nn.Embedding(6, 4), nn.Linear(5, 4)
        self.cell, self.out = nn.GRUCell(4, 4), nn.Linear(4, 6)
        self.beams = beams

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.state(x)).repeat_interleave(self.beams, 0)
        token, steps = torch.full((len(h),), 1), []
        for _ in range(3):
            h = self.cell(self.table(token), h)
            steps.append(self.out(h))
            token = steps[-1].argmax(-1)
        return torch.stack(steps, -1).view(len(x), self.beams, 6, 3).transpose(1, 2)


@pytest.mark.parametrize("n", [2, 4, 6])
@pytest.mark.parametrize("beams", [1, 3])
def test_sentences_that_begin_with_one_token(beams, n):
    torch.manual_seed(0)
    assert_agrees(Decoder(beams), torch.randn(n, 5))


class Buffers(nn.Module):
    """A buffer brought to the type of a sample is the buffer itself, and no sample."""

    def __init__(self, bring) -> None:
        super().__init__()
        self.register_buffer("basis", torch.eye(5))
        self.w, self.out, self.bring = nn.Parameter(torch.randn(6, 5)), nn.Linear(6, 3), bring

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(F.linear(x, self.w @ self.bring(self.basis, x))))


@pytest.mark.parametrize("n", [1, 4, 5])
@pytest.mark.parametrize(
    "bring",
    [
        lambda b, x: b.to(x),
        lambda b, x: b.type_as(x),
        lambda b, x: b.to(x.dtype).contiguous(),
        lambda b, x: b.view_as(x[:1].T * x[:1]),
        lambda b, x: b.reshape_as(x[:1].T * x[:1]),
    ],
    ids=["to", "type_as", "contiguous", "view_as", "reshape_as"],
)
def test_buffers_brought_to_the_type_of_a_sample_are_no_samples(bring, n):
    torch.manual_seed(0)
    model = Buffers(bring)
    seen = assert_agrees(model, torch.randn(n, 5))  # and nothing is left on the buffer
    assert seen.path == "kernels"


class Remembers(nn.Module):
    """Writes what it has seen into a buffer, which is put back; no mark is left on it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(5))
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.last.copy_(x.detach().mean(0))
        return self.out(x)


@pytest.mark.parametrize("n", [1, 4])
def test_no_mark_is_left_on_buffers_that_samples_are_written_into(n):
    torch.manual_seed(0)
    assert_agrees(Remembers(), torch.randn(n, 5))


@pytest.mark.parametrize("n", [1, 2, 4])
def test_weight_normalisation_along_the_taps_of_a_grouped_convolution(n):
    torch.manual_seed(0)
    conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 8, 4, padding=2, groups=2), dim=2)
    model = nn.Sequential(conv, nn.Tanh(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3))
    assert_agrees(model, torch.randn(n, 8, 20))


def distances_between_positions(m, x):
    """Attention whose scores have a learned number for each distance, as T5's."""
    t = x.shape[1]
    places = torch.arange(t)
    bias = F.embedding(places[None] - places[:, None] + t - 1, m.table)  # (t, t, 1)
    scores = x @ m.w @ x.transpose(1, 2) + bias[..., 0]
    return (scores.softmax(-1) @ x).sin().mean(1)


@pytest.mark.parametrize("n", [1, 3, 4, 5])
def test_distances_between_as_many_positions_as_samples(n):
    torch.manual_seed(0)
    model = Functional(distances_between_positions, table=(7, 1), w=(6, 6))
    assert_agrees(model, torch.randn(n, 4, 6))
