"""Models that map a function by `torch.vmap`: over samples, positions, ensembles, nested."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from oracle import TOLERANCE, assert_agrees, norms_one_by_one, relative_error
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten

from upslope.errors import GradientNormError
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.vmap.vmapped import EachRow
from upslope.gradnorm.core.vmap.vmapped_rows import Rows
from upslope.gradnorm.trace.forward import Forward

Run = Callable[[Any, Tensor], Tensor]


class Model(nn.Module):
    """Layers and bare weights that the forward pass of a case may use, and a head."""

    def __init__(self, forward: Run, width: int = 4):
        super().__init__()
        self.run = forward
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.norm, self.table = nn.LayerNorm(4), nn.Embedding(7, 4)
        self.w, self.v = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))
        self.several = nn.Parameter(torch.randn(3, 4, 4))
        self.shifts = nn.Parameter(torch.randn(3, 4))
        self.conv = nn.Conv1d(2, 2, 3, padding=1)
        self.groups, self.batch = nn.GroupNorm(2, 2), nn.BatchNorm1d(2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(self, x).flatten(1))


def rows(n: int, *shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(n, *shape)


def words() -> Tensor:
    return torch.randint(7, (5, 3))


def _perceptron(m: Any) -> Callable[[Tensor], Tensor]:
    return lambda row: m.b(F.gelu(m.a(row))) + row


def _recurrence(m: Any, row: Tensor) -> Tensor:
    h = torch.zeros(4, dtype=row.dtype)
    for step in row.unbind(0):
        h = torch.tanh(m.a(step) + m.c(h))
    return h


def _attend(m: Any, row: Tensor) -> Tensor:
    scores = m.a(row) @ m.b(row).transpose(-2, -1) / 2
    return F.softmax(scores, dim=-1) @ m.c(row)


def _in_chunks(m: Any, row: Tensor) -> Tensor:
    a, b = m.a(row).chunk(2, dim=-1)
    return torch.cat([a * torch.sigmoid(b), b[..., :1], row.new_ones(1)])


def _scaled_rows(m: Any, row: Tensor) -> Tensor:
    row = m.norm(row)
    row = (row - row.mean()) / (row.var(dim=-1) + 1).sqrt()
    return row * m.v + (row * m.v).sum() + m.v.sum()


def _stack_in_rows(m: Any, row: Tensor) -> Tensor:
    return torch.stack([row @ m.w, m.w @ row, row * m.v], dim=-1).sum(-1)


def _with_mask(m: Any, row: Tensor) -> Tensor:
    y = m.a(row)
    return torch.where(y > 0, y, 0.1 * y).masked_fill(row > 2, 0.0)


def _reshaped(m: Any, row: Tensor) -> Tensor:
    y = m.a(row).reshape(2, 2).t().flatten()
    return y.view(-1, 2).permute(1, 0).unsqueeze(0).squeeze(0).reshape(-1)[None].expand(2, -1)[1]


MAPPED: dict[str, tuple[Run, Callable[[], Tensor]]] = {
    "layers": (lambda m, x: vmap(_perceptron(m))(x), rows(5, 4)),
    "as many rows as entries": (lambda m, x: vmap(_perceptron(m))(x), rows(4, 4)),
    "one sample": (lambda m, x: vmap(_perceptron(m))(x), rows(1, 4)),
    "torch.vmap of a layer": (lambda m, x: torch.vmap(m.a)(x), rows(5, 4)),
    "behind a layer": (lambda m, x: m.b(vmap(lambda r: m.v * torch.tanh(r))(m.a(x))), rows(5, 4)),
    "bare products": (lambda m, x: vmap(lambda r: torch.tanh(r @ m.w) * r.sum())(x), rows(5, 4)),
    "normalised, with numbers of each row": (lambda m, x: vmap(lambda r: _scaled_rows(m, r))(x),
                                             rows(5, 4)),
    "stacked": (lambda m, x: vmap(lambda r: _stack_in_rows(m, r))(x), rows(5, 4)),
    "masked": (lambda m, x: vmap(lambda r: _with_mask(m, r))(x), rows(5, 4)),
    "reshaped": (lambda m, x: vmap(lambda r: _reshaped(m, r))(x), rows(5, 4)),
    "in place": (lambda m, x: vmap(lambda r: m.a(r).mul_(m.v).add_(1).relu_())(x), rows(5, 4)),
    "einsum": (lambda m, x: vmap(lambda r: torch.einsum("i,ij->j", r, m.w))(x), rows(5, 4)),
    "a tied weight": (lambda m, x: vmap(lambda r: m.a(r) @ m.a.weight + m.a.bias)(x), rows(5, 4)),
    "tokens": (lambda m, x: vmap(lambda r: _attend(m, r))(x).mean(1), rows(5, 3, 4)),
    "as many tokens as samples": (lambda m, x: vmap(lambda r: _attend(m, r))(x).mean(1),
                                  rows(3, 3, 4)),
    "attention": (lambda m, x: vmap(
        lambda r: F.scaled_dot_product_attention(m.a(r), m.b(r), m.c(r)))(x).mean(1),
        rows(5, 3, 4)),
    "words": (lambda m, x: vmap(lambda r: m.a(m.table(r)).sum(0))(x), words),
    "words by index": (lambda m, x: vmap(lambda r: m.a(m.table.weight[r]).sum(0))(x), words),
    "steps of a recurrence": (lambda m, x: vmap(lambda r: _recurrence(m, r))(x), rows(5, 3, 4)),
    "unbatched images": (lambda m, x: vmap(lambda r: m.conv(r).sum(0))(x), rows(5, 2, 4)),
    "batches of one image": (
        lambda m, x: vmap(lambda r: m.groups(m.batch(m.conv(r[None]))).relu()[0].sum(0))(x),
        rows(5, 2, 4),
    ),
    "over positions": (lambda m, x: vmap(_perceptron(m), in_dims=1, out_dims=1)(x).sum(1),
                       rows(5, 3, 4)),
    "over as many positions": (lambda m, x: vmap(_perceptron(m), in_dims=1, out_dims=1)(x).sum(1),
                               rows(4, 4, 4)),
    "over the last dimension": (
        lambda m, x: vmap(_perceptron(m), in_dims=-1, out_dims=-1)(x).sum(2), rows(5, 4, 3)),
    "with one for all": (
        lambda m, x: vmap(lambda r, w: m.a(r) @ w, in_dims=(0, None))(x, m.w), rows(5, 4)),
    "an ensemble of weights": (
        lambda m, x: vmap(lambda w, b: torch.tanh(F.linear(x, w, b)))(m.several, m.shifts).sum(0),
        rows(5, 4)),
    "as many members as samples": (
        lambda m, x: vmap(lambda w, b: torch.tanh(F.linear(x, w, b)))(m.several, m.shifts).sum(0),
        rows(3, 4)),
    "an ensemble of products": (
        lambda m, x: vmap(lambda w: torch.tanh(x @ w) * w.sum())(m.several).sum(0), rows(5, 4)),
    "a head for each part": (
        lambda m, x: vmap(torch.matmul, in_dims=(1, 0), out_dims=1)(x, m.several).sum(1),
        rows(5, 3, 4)),
    "an ensemble of shifts": (
        lambda m, x: vmap(lambda b: torch.tanh(F.linear(x, m.w, b)))(m.shifts).sum(0), rows(5, 4)),
    "as many shifts as samples": (
        lambda m, x: vmap(lambda b: torch.tanh(F.linear(x, m.w, b)))(m.shifts).sum(0), rows(3, 4)),
    "shifts of one sample": (
        lambda m, x: vmap(lambda b: torch.tanh(F.linear(x, m.w, b)))(m.shifts).sum(0), rows(1, 4)),
    "in the type of a row": (
        lambda m, x: vmap(lambda r: m.a(r * torch.arange(4.0).to(r)))(x), rows(5, 4)),
    "in the type of as many rows": (
        lambda m, x: vmap(lambda r: m.a(r * torch.arange(4.0).type_as(r)))(x), rows(4, 4)),
    "nested, samples outside": (
        lambda m, x: vmap(vmap(_perceptron(m)))(x).sum(1), rows(5, 3, 4)),
    "nested, samples inside": (
        lambda m, x: vmap(vmap(_perceptron(m)), in_dims=1, out_dims=1)(x).sum(1), rows(5, 3, 4)),
    "nested, members and samples": (
        lambda m, x: vmap(lambda w: vmap(lambda r: torch.tanh(r @ w))(x))(m.several).sum(0),
        rows(5, 4)),
    "an operator without a rule": (
        lambda m, x: vmap(lambda r: m.b(torch.sort(m.a(r)).values))(x), rows(5, 4)),
    "several outputs": (
        lambda m, x: sum(vmap(lambda r: (m.a(r), (m.b(r), r * m.v)))(x)[1]), rows(5, 4)),
}  # fmt: skip


@pytest.mark.parametrize("case", MAPPED)
def test_a_mapped_function_goes_at_once(case):
    torch.manual_seed(0)
    forward, draw = MAPPED[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_agrees(Model(forward), draw())


def _without_mean(m: Any, x: Tensor) -> Tensor:
    mean = x.mean(0)
    return vmap(lambda r: m.a(r - mean))(x)


MIXING: dict[str, tuple[Run, Callable[[], Tensor]]] = {
    "a mean from outside": (_without_mean, rows(5, 4)),
    "a mean inside": (lambda m, x: vmap(lambda c: c - c.mean(0), in_dims=1, out_dims=1)(m.a(x)),
                      rows(5, 4)),
    "attention over samples": (
        lambda m, x: vmap(lambda c: F.softmax(c @ c.mT, -1) @ c, in_dims=1, out_dims=1)(
            m.a(x)).sum(1),
        rows(5, 3, 4)),
    "the batch for each": (
        lambda m, x: vmap(lambda r, every: r * (m.a(every) @ r).tanh().sum(), (0, None))(x, x),
        rows(5, 4)),
}  # fmt: skip


@pytest.mark.parametrize("case", MIXING)
@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning")
def test_a_mapped_function_that_mixes_samples_is_refused(case):
    torch.manual_seed(0)
    forward, draw = MIXING[case]
    x = draw().double()
    model = Model(forward).double().eval()
    for _ in range(2):
        with pytest.raises(GradientNormError):
            gradient_norms(model, x, "entropy")


def _energy(m: Any, row: Tensor) -> Tensor:
    return m.b(torch.tanh(m.a(row))).sum()


def _functional(m: Any, x: Tensor) -> Tensor:
    layers = nn.ModuleList([m.a, m.b])
    states = {name: torch.stack([p, q]) for (name, p), q in zip(
        m.a.named_parameters(), m.b.parameters(), strict=True)}  # fmt: skip
    return vmap(lambda state, y: functional_call(layers[0], state, (y,)), (0, None))(
        states, x).sum(0)  # fmt: skip


OTHERS: dict[str, tuple[Run, Callable[[], Tensor]]] = {
    "the gradient of each row": (
        lambda m, x: m.c(vmap(grad(lambda row: _energy(m, row)))(x)), rows(5, 4)),
    "a Jacobian of each row": (
        lambda m, x: vmap(jacrev(lambda row: torch.tanh(m.a(row))))(x).diagonal(dim1=1, dim2=2),
        rows(5, 4)),
    "a map in a gradient": (
        lambda m, x: grad(lambda y: vmap(lambda r: _energy(m, r))(y).sum())(x), rows(5, 4)),
    "random numbers allowed": (
        lambda m, x: vmap(_perceptron(m), randomness="different")(x), rows(5, 4)),
    "chunks": (lambda m, x: vmap(_perceptron(m), chunk_size=2)(x), rows(5, 4)),
    "an index of each row": (
        lambda m, x: vmap(lambda r: m.a(r)[torch.argsort(r)] * m.v)(x), rows(5, 4)),
    "a write into each row": (
        lambda m, x: vmap(lambda r: torch.zeros_like(r).index_copy(
            0, torch.arange(4), m.a(r)) * m.v)(x), rows(5, 4)),
    "a function of the state": (_functional, rows(5, 4)),
    "operators written in Python": (
        lambda m, x: vmap(lambda r: F.normalize(F.pad(m.a(r), (1, 0))[:4], dim=0) * m.v)(x),
        rows(5, 4)),
    "attention of a module": (
        lambda m, x: vmap(lambda r: m.attention(r, r, r, need_weights=False)[0])(x).mean(1),
        rows(5, 3, 4)),
    "a recurrent module's weights": (
        lambda m, x: vmap(lambda r: torch.rnn_tanh_cell(r[None], 0 * r[None], m.w, m.w, m.v, m.v))(
            x),
        rows(5, 4)),
    "outputs at the back": (
        lambda m, x: vmap(m.a, out_dims=1)(vmap(lambda r: 2 * r, out_dims=1)(x).mT).mT,
        rows(5, 4)),
    "the last row's number for all": (
        lambda m, x: vmap(lambda r: (m.a(r), m.v.sum()), out_dims=(0, None))(x)[0] * 2,
        rows(5, 4)),
}  # fmt: skip
"""What is at least right, at whatever price."""


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning")
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch's own map
def test_other_maps_are_right(case):
    torch.manual_seed(0)
    forward, draw = OTHERS[case]
    model, x = Model(forward).double().eval(), draw().double()
    truth = norms_one_by_one(model, x)
    for inputs in (x, x):
        found = gradient_norms(model, inputs, "entropy")
        assert relative_error(found, truth) < TOLERANCE


def test_a_mapped_operator_with_another_option_is_another():
    """Of two options with one value, no operator runs for the other, nor is one proven by it."""
    torch.manual_seed(0)
    options: dict[str, int] = {"correction": 0}
    model = Model(lambda m, x: vmap(lambda r: m.a(r) / (r + m.v).std(**options))(x)).double()
    x = torch.randn(5, 4).double()
    for option in ("correction", "dim", "correction"):
        options.clear()
        options[option] = 0
        assert_agrees(model, x)
        found = gradient_norms(model, x, "entropy")
        assert relative_error(found, norms_one_by_one(model, x)) < TOLERANCE


def test_mapped_operators_are_told_apart_by_every_entry_of_an_array():
    x, some, others = torch.randn(2, 3), np.zeros(4000), np.zeros(4000)
    others[2000] = 1e-12
    operators = []
    for array in (some, some.copy(), others):
        whole, spec = tree_flatten(((x, array), {}))
        operators.append(EachRow(torch.add, whole, spec, Rows(2, [0], whole)))
    assert operators[0] == operators[1] != operators[2]


def test_the_layouts_of_a_mapped_program_are_remembered():
    torch.manual_seed(0)
    model = Model(MAPPED["tokens"][0]).double().eval()
    gradient_norms(model, torch.randn(5, 3, 4).double(), "entropy")
    with mock.patch.object(Forward, "probe", side_effect=AssertionError("probed again")):
        for _ in range(3):
            x = torch.randn(5, 3, 4).double()
            found = gradient_norms(model, x, "entropy")
            assert relative_error(found, norms_one_by_one(model, x)) < TOLERANCE
