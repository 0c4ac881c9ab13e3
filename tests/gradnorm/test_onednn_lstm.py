"""LSTM layers in float32 on a CPU, whose gates are read from oneDNN's workspace."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from oracle import norms_one_by_one, relative_error
from torch import Tensor, nn

from upslope.errors import GradientNormWarning
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.kernels.recurrent import onednn

pytestmark = pytest.mark.skipif(
    not onednn.fits(torch.zeros(1)), reason="PyTorch runs no LSTM by oneDNN here"
)


class Sequences(nn.Module):
    """An LSTM with a head; (n, t, 3) -> (n, 3)."""

    def __init__(self, width: int = 5, **options) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, width, **options)
        self.head = nn.Linear(width * (2 if self.rnn.bidirectional else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        batch_first = self.rnn.batch_first
        out, (h, c) = self.rnn(x if batch_first else x.transpose(0, 1))
        pooled = self.head(out.mean(dim=1 if batch_first else 0))
        return pooled + h.sum(dim=(0, 2))[:, None] * pooled + c.square().sum(dim=(0, 2))[:, None]


def run_by_definition(
    x: Tensor, start: tuple[Tensor, Tensor], weights: list[Tensor], reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, the gates and the cells of `onednn.run`, step by step in float64."""
    w_x, w_h, *biases = (w.double() for w in weights)
    h, c = (s.double() for s in start)
    outputs, gates, cells = [], [], [c]
    for row in (x.flip(0) if reverse else x).double():
        i, f, g, o = (row @ w_x.mT + h @ w_h.mT + sum(biases)).chunk(4, dim=1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * c + i * g
        h = o * c.tanh()
        outputs.append(h)
        gates.append(torch.stack([i, f, g, o], dim=1))
        cells.append(c)
    output = torch.stack(outputs)
    return output.flip(0) if reverse else output, torch.stack(gates), torch.stack(cells)


@pytest.mark.parametrize("has_biases", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize(
    ("t", "n", "i", "h"),
    [(5, 8, 3, 4), (3, 2, 5, 7), (2, 16, 1, 1), (20, 6, 32, 32), (4, 3, 17, 33), (3, 5, 6, 64)],
)
def test_gates_and_cells_are_those_of_the_definition(t, n, i, h, reverse, has_biases):
    torch.manual_seed(t)
    x = torch.randn(n, t, i).transpose(0, 1)  # as a model with the batch first hands it in
    shapes = [(4 * h, i), (4 * h, h), *[(4 * h,)] * (2 * has_biases)]
    weights = [torch.randn(shape) / 2 for shape in shapes]
    start = torch.randn(n, h), torch.randn(n, h)
    steps = onednn.run(x, start, weights, reverse)
    assert steps is not None
    for read, expected in zip(steps, run_by_definition(x, start, weights, reverse), strict=True):
        torch.testing.assert_close(read.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("steps_at_once", [2, 7])
def test_norms_and_outputs(monkeypatch, bidirectional, bias, batch_first, steps_at_once):
    """In one call of oneDNN, and in several."""
    monkeypatch.setattr(onednn, "_MOST", steps_at_once * 4 * 5)
    torch.manual_seed(0)
    model = Sequences(
        num_layers=2, bidirectional=bidirectional, bias=bias, batch_first=batch_first
    ).eval()
    x = torch.randn(4, 7, 3)
    exact = norms_one_by_one(copy.deepcopy(model).double(), x.double())
    with mock.patch.object(onednn, "run", wraps=onednn.run) as run:
        norms = gradient_norms(model, x, "entropy")
    assert run.called
    assert relative_error(norms, exact) < 1e-4


def test_an_operator_that_is_called_wrongly_is_found_by_the_proof(monkeypatch):
    """In float64 layers go step by step and are right, which is no excuse."""
    right = onednn._call

    def take_memory_as_it_lies(x, start, weights, reverse):
        t, n, i = x.shape
        return right(x.transpose(0, 1).reshape(t, n, i), start, weights, reverse)

    torch.manual_seed(0)
    model, x = Sequences(32, batch_first=True).eval(), torch.randn(6, 20, 3)
    gradient_norms(model, x, "entropy")  # the places in a workspace are known
    other = Sequences(32, batch_first=True).eval()
    monkeypatch.setattr(onednn, "_call", take_memory_as_it_lies)
    with pytest.warns(GradientNormWarning, match="one sample at a time"):
        norms = gradient_norms(other, x, "entropy")
    exact = norms_one_by_one(copy.deepcopy(other).double(), x.double())
    assert relative_error(norms, exact) < 1e-4


def test_layers_whose_workspace_is_not_understood_go_step_by_step(monkeypatch):
    torch.manual_seed(0)
    model, x = Sequences(bidirectional=True, batch_first=True).eval(), torch.randn(4, 7, 3)
    read = gradient_norms(model, x, "entropy")
    monkeypatch.setattr(onednn, "_places", lambda *_: None)
    torch.testing.assert_close(gradient_norms(model, x, "entropy"), read, rtol=1e-5, atol=0)


def test_a_workspace_in_which_the_last_step_is_wrong_is_not_believed(monkeypatch):
    torch.manual_seed(0)
    x, start = torch.randn(5, 8, 3), (torch.randn(8, 4), torch.randn(8, 4))
    weights = [torch.randn(16, 3), torch.randn(16, 4), torch.randn(16), torch.randn(16)]
    places = onednn._places(x.shape, 4, torch.get_num_threads(), onednn._precision())
    for wrong in (places._replace(row=places.row + 16), places._replace(cells=places.cells + 32)):
        monkeypatch.setattr(onednn, "_places", lambda *_, wrong=wrong: wrong)
        assert onednn.run(x, start, weights, reverse=False) is None


def test_a_single_step_is_not_read():
    x, start = torch.randn(1, 8, 3), (torch.zeros(8, 4), torch.zeros(8, 4))
    assert onednn.run(x, start, [torch.randn(16, 3), torch.randn(16, 4)], reverse=False) is None


def test_parts_cover_all_steps_and_have_two_at_least():
    for steps in range(1, 40):
        for states in (1, onednn._MOST // 7, onednn._MOST, 3 * onednn._MOST):
            parts = [*onednn.parts(steps, states)]
            assert [t for part in parts for t in range(steps)[part]] == [*range(steps)]
            assert steps == 1 or all(part.stop - part.start >= 2 for part in parts)
