"""Inputs and outputs of unusual kinds: exact, or refused by name with the way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from oracle import norms_one_by_one, relative_error
from torch import Tensor, nn

from upslope.errors import GradientNormError
from upslope.gradnorm import explain, gradient_norms, samples_that_fit

D = torch.float64


def squares(outputs: Tensor) -> Tensor:
    return outputs.square().flatten(1).sum(dim=1)


class Model(nn.Module):
    """Two layers. around: what is made of the model and its inputs."""

    def __init__(self, around: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.first, self.last = nn.Embedding(7, 5), nn.Linear(5, 8), nn.Linear(8, 3)
        self.around, self.factor = around, 0.0
        self.double()

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.around(self, *inputs)

    def layers(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).tanh())
        return out


def batch(n: int = 4) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(1), dtype=D)


def one(outputs: Tensor, _: int) -> Tensor:
    return squares(outputs)[0]


def test_inputs_that_hang_on_parameters_are_refused_by_name() -> None:
    model = Model(lambda m, x: m.layers(x))
    made = model.words(torch.tensor([0, 1, 1, 2]))
    with pytest.raises(GradientNormError, match=r"input 0.*computed from `words.weight`.*detach"):
        gradient_norms(model, made, squares)
    truth = norms_one_by_one(model.last, model.first(made).tanh().detach(), one)
    # Of parameters that the input does not hang on, nothing is missing.
    norms = gradient_norms(model, made, squares, parameters=["last"])
    assert relative_error(norms, truth) < 1e-9
    assert len(gradient_norms(model, made.detach(), squares)) == 4
    shared = Model(lambda m, x, w: m.layers(x * w))
    with pytest.raises(GradientNormError, match=r"input 1.*`first.weight`"):
        gradient_norms(shared, (batch(), shared.first.weight[0]), squares)


def test_a_graph_that_does_not_reach_the_model_is_no_matter() -> None:
    model = Model(lambda m, x: m.layers(x))
    x = nn.Linear(5, 5).double()(batch())
    truth = norms_one_by_one(model, x.detach(), one)
    assert relative_error(gradient_norms(model, x, squares), truth) < 1e-9


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[:, :], lambda x: x.flip(1)])
@pytest.mark.parametrize("writes", [False, True])
def test_inputs_that_are_one_tensor(view, writes) -> None:
    def around(m: Any, x: Tensor, y: Tensor) -> Tensor:
        if writes:
            x.data += 1
        return m.layers(y) + x[:, :3]

    model, x = Model(around), batch()
    y = view(x)
    apart = y is not x and y.data_ptr() != x.data_ptr()
    if writes and not apart:
        with pytest.raises(GradientNormError, match=r"inputs \[0, 1\].*share memory.*clone"):
            gradient_norms(model, (x, y), squares)
        return
    truth = norms_one_by_one(model, (x, y), one)
    assert relative_error(gradient_norms(model, (x, y), squares), truth) < 1e-9


WITHOUT_DERIVATIVE = {
    "unique": lambda x: torch.stack([row.round().unique().sum() for row in x]),
    "heaviside": lambda x: torch.heaviside(x[:, 0], torch.ones((), dtype=D)),
    "igamma": lambda x: torch.igamma(x[:, 0].abs() + 1, x[:, 1].abs()),
    "zeta": lambda x: torch.special.zeta(x[:, 0].abs() + 2, x[:, 1].abs() + 1),
    "numpy": lambda x: torch.from_numpy(x.numpy()[:, 0] + 1),
}


@pytest.mark.parametrize("name", WITHOUT_DERIVATIVE)
@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("with_parameters", [False, True])
def test_operators_without_a_derivative_at_the_inputs_on_the_slow_path(
    name, mixes, with_parameters
) -> None:
    def around(m: Any, x: Tensor) -> Tensor:
        factor = WITHOUT_DERIVATIVE[name](x)
        if mixes:
            factor = factor + factor.mean()
        h = torch.utils.checkpoint.checkpoint(m.layers, x, use_reentrant=False)
        return h * factor[:, None]

    model, x = Model(around), batch()

    def loss(outputs: Tensor) -> Tensor:
        return squares(outputs) * (model.last.bias[0] if with_parameters else 1)

    if mixes:
        with pytest.raises(GradientNormError, match="mixes samples"):
            gradient_norms(model, x, loss)
        return
    truth = norms_one_by_one(model, x, lambda out, _: loss(out)[0])
    assert relative_error(gradient_norms(model, x, loss), truth) < 1e-9


def _nested(rows: Tensor, layout: torch.layout) -> Tensor:
    parts = [row.expand(k + 1, -1) for k, row in enumerate(rows)]
    return torch.nested.as_nested_tensor(parts, layout=layout)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m, x: m.layers(x).to_sparse(), "layout torch.sparse_coo.*to_dense"),
        (lambda m, x: _nested(m.layers(x), torch.strided), "nested tensor of layout torch.strided"),
        (lambda m, x: _nested(m.layers(x), torch.jagged), "torch.jagged.*to_padded_tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_outputs_without_rows_are_refused_by_name(make, words) -> None:
    with pytest.raises(GradientNormError, match=words):
        gradient_norms(Model(make), batch(), lambda out: squares(out.to_dense()))


def test_complex_losses_are_refused_by_name() -> None:
    model = Model(lambda m, x: m.layers(x))
    with pytest.raises(GradientNormError, match=r"real losses but got torch.complex128.*abs"):
        gradient_norms(model, batch(), lambda out: torch.complex(out[:, 0], out[:, 1]))


@pytest.mark.parametrize("convert", [Tensor.to_sparse, Tensor.to_sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_sparse_inputs_are_refused_by_name(convert) -> None:
    model = Model(lambda m, x: m.last((x @ m.first.weight.T).tanh()))
    with pytest.raises(GradientNormError, match=r"input 0.*layout torch.sparse.*to_dense"):
        gradient_norms(model, convert(batch()), squares)


def test_explain_takes_classes_that_are_masked() -> None:
    mask = torch.tensor([False, True, False])
    model = Model(lambda m, x: m.layers(x).masked_fill(mask, -torch.inf))
    assert [use.operator for use in explain(model, batch()).uses] == ["linear", "linear"]


@pytest.mark.parametrize("other", [0.5, 1.0])
def test_a_factor_of_zero_that_becomes_another_is_another_program(other) -> None:
    def around(m: Any, x: Tensor) -> Tensor:
        h = m.first(x).tanh()
        return m.last(torch.addmm(h.roll(1, 0), h, torch.eye(8, dtype=D), beta=m.factor))

    model, x = Model(around), batch()
    truth = norms_one_by_one(model, x, one)
    assert relative_error(gradient_norms(model, x, squares), truth) < 1e-9
    model.factor = other
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, x, squares)


class Masked(nn.Module):
    """Attention under a mask that all samples share. weight: of what attention adds."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.embed, self.head, self.weight = nn.Linear(5, 8), nn.Linear(8, 3), weight
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.embed(x)
        added = self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        out: Tensor = self.head((y + self.weight * added).mean(dim=1))
        return out


@pytest.mark.parametrize("weight", [0.0, 1e-6, 1.0])
def test_a_shared_mask_as_long_as_the_batch_is_told_however_little_it_moves(weight: float) -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        model = Masked(weight).double().eval()
        for n, length in ((6, 4), (6, 6), (4, 4), (2, 2)):
            x = torch.randn(n, length, 5, dtype=D)
            mask = torch.ones(length, length, dtype=torch.bool).triu(1)
            norms = gradient_norms(model, (x, mask), squares)
            truth = norms_one_by_one(_Fixed(model, mask), x, one)
            assert relative_error(norms, truth) < 1e-9


class _Fixed(nn.Module):
    """A model with its second input held."""

    def __init__(self, model: nn.Module, held: Tensor) -> None:
        super().__init__()
        self.model, self.held = model, held

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x, self.held)
        return out


def test_where_an_input_may_be_shared_the_refusal_of_half_a_batch_says_what_to_do() -> None:
    model = Model(lambda m, x, table: m.layers(x) + table.view(4, 6).sum() * x.sum())
    with pytest.raises(GradientNormError) as caught:
        gradient_norms(model, (batch(), torch.randn(4, 6, dtype=D)), squares)
    said = str(caught.value)
    assert ".." not in said
    assert "input 1 of shape (4, 6)" in said


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("place", [0, 1])
def test_nested_inputs_are_refused_by_name(layout: torch.layout, place: int) -> None:
    def around(m: Any, *inputs: Tensor) -> Tensor:
        return torch.stack([row.sum(dim=0) for row in m.layers(inputs[place]).unbind()])

    model, rows = Model(around), [batch(2), batch(4), batch(3)]
    nested = torch.nested.nested_tensor(rows, layout=layout)
    inputs = (nested,) if place == 0 else (batch(3), nested)
    words = rf"input {place} .*nested tensor of layout torch.*to_padded_tensor.*in `forward`"
    with pytest.raises(GradientNormError, match=words):
        gradient_norms(model, inputs, squares)
    with pytest.raises(GradientNormError, match=words):
        samples_that_fit(model, inputs)
