"""Gradients of parameters through weights made of them (`weights/derived_gradients`)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from oracle import TOLERANCE, norms_one_by_one, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.weights import derived_gradients, leaf_gradients
from upslope.gradnorm.core.weights.derived_gradients import DerivedGradients
from upslope.gradnorm.core.weights.weights import Weights
from upslope.gradnorm.trace.memory import Memory

Leaves = dict[str, Tensor]
Make = Callable[[Leaves], Tensor]

MADE: dict[str, Make] = {
    "a linear layer": lambda p: F.linear(p["x"], p["w"], p["bias"]),
    "without bias": lambda p: F.linear(p["x"], p["w"]),
    "in three dimensions": lambda p: F.linear(p["x"][None], p["w"], p["bias"]).squeeze(0),
    "of a constant": lambda p: F.linear(torch.ones(7, 6), p["w"], p["bias"]),
    "by a constant": lambda p: F.linear(p["x"], torch.eye(6)[:4], p["bias"][:4]),
    "a bias of a row each": lambda p: torch.addmm(p["column"], p["x"], p["w"]),
    "a bias for all": lambda p: torch.addmm(p["one"], p["x"], p["w"]),
    "with factors": lambda p: torch.addmm(p["bias"], p["x"], p["w"], beta=0.5, alpha=2),
    "two layers": lambda p: F.linear(torch.tanh(F.linear(p["x"], p["w"])), p["w"], p["bias"]),
    "normalised before": lambda p: F.linear(F.layer_norm(p["x"], (6,)), p["w"], p["bias"]),
    "heads": lambda p: (p["x"] @ p["w"]).view(1, 7, 2, 3).permute(0, 2, 1, 3).reshape(2, 7, 3),
    "negative dimensions": lambda p: (p["x"] @ p["w"]).view(7, 2, 3).permute(-1, 0, -2),
    "transposed": lambda p: (p["x"] @ p["w"].t()).transpose(-1, -2).contiguous(),
    "itself twice": lambda p: p["w"] @ p["w"],
    "a layer and its input": lambda p: p["x"] @ p["w"] + p["x"],
    "of many dimensions": lambda p: p["x"].unsqueeze(1).expand(-1, 2, -1).transpose(0, 2).mT,
    "softmax of rows": lambda p: torch.softmax(p["x"] @ p["w"], dim=-1) @ p["w"],
    "softmax of columns": lambda p: F.softmax(p["x"], dim=0) + p["x"].softmax(dim=1),
    "softmax of one row": lambda p: p["bias"].softmax(dim=0)[None] * torch.ones(7, 1),
    "log of a softmax": lambda p: torch.log_softmax(p["x"] @ p["w"], dim=-1) @ p["w"],
    "a sum of exponentials": lambda p: (
        p["x"].unsqueeze(-1) * torch.exp(-p["x"].exp()[..., None] * torch.arange(5))
    ).sum(1),
    "of complex numbers": lambda p: _diagonal(p["x"], p["w"]),
    "a spectrum": lambda p: torch.view_as_real(torch.fft.rfft(p["x"].tanh(), n=15)),
    "a spectrum of complex numbers": lambda p: torch.fft.fft2(1j * p["x"] + p["x"]).abs(),
    "all of a spectrum": lambda p: torch.fft.fft(p["x"].sin(), dim=0).imag,
    "divided by norms": lambda p: p["column"] * p["x"] / p["x"].norm(dim=1, keepdim=True),
    "a norm of all": lambda p: p["x"] / (p["w"].norm() + p["one"]),
    "another norm": lambda p: p["x"] / p["x"].norm(p=3, dim=0),
    "means": lambda p: (p["x"].exp() - p["x"].mean(1, keepdim=True)) * p["w"].sigmoid().mean(),
    "a mean of means": lambda p: p["bias"] * p["x"].square().mean((0, 1)) + p["x"].mean(0).mean(),
    "sums of products": lambda p: (p["column"] * p["bias"] * p["one"]).sum((0, 1)) * p["x"],
    "rounded": lambda p: _rounded(p["x"] / p["column"]) * p["column"],
    "broadcast ahead": lambda p: (p["bias"].exp() * p["one"]).expand(2, 7, 6) - 3 * p["x"][None],
    "shifted and scaled": lambda p: torch.sub(p["x"], p["bias"], alpha=2) / (2 + p["one"] ** 2),
    "used again": lambda p: (p["x"].exp() * p["x"].exp().sum(0)).tanh() + p["x"].exp().log1p(),
    "twice in each of many steps": lambda p: functools.reduce(
        lambda y, _: y * y.cos(), range(20), p["x"]
    ),
    "an outer product": lambda p: (p["column"] @ p["bias"][None]).softmax(-1),
    "a product with a column": lambda p: (p["x"] @ p["bias"][:, None]).sigmoid().mT,
    "rows of one": lambda p: torch.bmm(p["x"][:, None], p["w"].exp().expand(7, 6, 6)).squeeze(1),
    "in single precision": lambda p: (p["x"].float() * torch.arange(6)).exp().double() * p["x"],
    "whole numbers": lambda p: p["x"].exp() * torch.arange(1, 7) / torch.arange(1, 7),
    "a border": lambda p: F.pad(p["x"].exp(), (1, 2, 0, 3)),
    "without its border": lambda p: F.pad(p["x"].exp(), (-1, 2)),
    "an operator without a batched rule": lambda p: Twice.apply(p["x"] @ p["w"]) @ p["w"],
}  # fmt: skip


def _diagonal(x: Tensor, w: Tensor) -> Tensor:
    """The kernel of a diagonal state space, as it is usually written."""
    a = -x.exp() + 1j * w[0]
    steps = a.unsqueeze(-1) * w[1, 0].exp() * torch.arange(5)
    c = torch.view_as_complex(torch.stack([x, x.tanh()], dim=-1)) * (a.exp() - 1) / a
    return 2 * torch.einsum("hn,hnl->hl", c, steps.exp()).real


def _rounded(x: Tensor) -> Tensor:
    """Rounded, with the gradient of what was not."""
    clamped = x.clamp(-3, 3)
    return (clamped.round() - clamped).detach() + clamped


class Twice(torch.autograd.Function):
    """2 x, with a rule of its own."""

    @staticmethod
    def forward(_: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(_: object, g: Tensor) -> Tensor:
        return 2 * g


@pytest.fixture
def leaves() -> Leaves:
    torch.manual_seed(0)
    shapes = {"x": (7, 6), "w": (6, 6), "bias": (6,), "column": (7, 1), "one": ()}
    return {
        name: torch.randn(shape, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }


@pytest.fixture(autouse=True)
def _double() -> object:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


@pytest.mark.parametrize("reached", ["all rows", "two rows", "no row"])
@pytest.mark.parametrize("name", MADE)
def test_rows_are_those_of_autograd(name: str, reached: str, leaves: Leaves) -> None:
    weight = MADE[name](leaves)
    gradients = torch.randn(3, *weight.shape)
    if reached != "all rows":
        kept = torch.zeros(weight.shape[0])
        kept[[1, 4] if reached == "two rows" and len(kept) > 4 else []] = 1
        gradients = gradients * kept.view(-1, *(1,) * (weight.dim() - 1))
    derived = DerivedGradients()
    derived.add(weight, gradients)
    found = derived.of_parameters(leaves)
    for i, g in enumerate(gradients):
        expected = torch.autograd.grad(
            weight, leaves.values(), g, retain_graph=True, allow_unused=True
        )
        for leaf, truth in zip(leaves, expected, strict=True):
            assert (truth is None) == (leaf not in found)
            if truth is not None:
                torch.testing.assert_close(found[leaf][i], truth)


def test_gradients_of_several_weights_are_added(leaves: Leaves) -> None:
    shared = F.layer_norm(leaves["x"], (6,))
    weights = [F.linear(shared, leaves["w"]), shared @ leaves["w"], Twice.apply(shared)]
    gradients = [torch.randn(3, *weight.shape) for weight in weights]
    derived = DerivedGradients()
    for weight, g in zip(weights, gradients, strict=True):
        derived.add(weight, g)
    found = derived.of_parameters({name: leaves[name] for name in ("x", "w")})
    for i in range(3):
        expected = torch.autograd.grad(
            weights, [leaves["x"], leaves["w"]], [g[i] for g in gradients], retain_graph=True
        )
        torch.testing.assert_close((found["x"][i], found["w"][i]), expected)


class RelativePositions(nn.Module):
    """A table of distances that is normalised and goes through a layer that words go through too.

    (n, words) -> (n, classes); a text reaches the distances that occur in it alone.
    """

    def __init__(self, distances: int = 40, dim: int = 8, classes: int = 3):
        super().__init__()
        self.words, self.table = nn.Embedding(20, dim), nn.Embedding(distances, dim)
        self.norm, self.key = nn.LayerNorm(dim), nn.Linear(dim, dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        n, length, dim = x.shape
        table = self.key(self.norm(self.table.weight)[None])
        heads = table.view(1, -1, 2, dim // 2).permute(0, 2, 1, 3).reshape(2, -1, dim // 2)
        keys = heads.repeat(n, 1, 1)
        queries = self.key(x).view(n, length, 2, -1).transpose(1, 2).reshape(2 * n, length, -1)
        places = torch.arange(length)
        distances = (places[:, None] - places + len(self.table.weight) // 2).expand(2 * n, -1, -1)
        scores = (queries @ keys.mT).gather(-1, distances).softmax(dim=-1)
        mixed = scores.view(n, 2, length, length).mean(dim=1) @ x
        return self.head(torch.tanh(mixed).mean(dim=1))


@pytest.mark.parametrize("length", [5, 20])
def test_positions_that_no_text_reaches_are_left_out(length: int) -> None:
    torch.manual_seed(0)
    model, words = RelativePositions(), torch.randint(20, (6, length))
    rows = []
    find = leaf_gradients.live_rows

    def watch(g: Tensor) -> Tensor | None:
        rows.append(find(g))
        return rows[-1]

    with mock.patch.object(leaf_gradients, "live_rows", watch):
        for _ in range(2):
            norms = gradient_norms(model, words, lambda y: y.logsumexp(1) - y[:, 0])
    truth = norms_one_by_one(model, words, lambda y, _: y.logsumexp(1) - y[:, 0])
    assert relative_error(norms, truth) < TOLERANCE
    counts = {len(row) if row is not None else 40 for row in rows}
    assert counts == {2 * length - 1 if length < 16 else 40}


def test_a_layer_of_words_and_of_a_table_is_not_formed() -> None:
    torch.manual_seed(0)
    model, words = RelativePositions().double(), torch.randint(20, (6, 5))
    names: set[str] = set()
    pull = Weights.gradients_of_parameters

    def note_names(self: Weights, parameters: Leaves, gradients: Any) -> dict[str, Tensor]:
        names.update(parameters)
        return pull(self, parameters, gradients)

    gradient_norms(model, words, "entropy")  # a program of its own, which is proven
    with (
        mock.patch.object(Weights, "gradients_of_parameters", note_names),
        mock.patch.object(Memory, "draw_proof", return_value=False),
    ):
        norms = gradient_norms(model, words, "entropy")
    assert names == {"table.weight", "norm.weight", "norm.bias"}
    assert relative_error(norms, norms_one_by_one(model, words)) < TOLERANCE


def test_numbers_that_are_not_finite_are_no_rows_to_leave_out(leaves: Leaves) -> None:
    gradients = torch.zeros(2, 7, 6)
    gradients[0, 3, 2] = torch.nan
    derived = DerivedGradients()
    derived.add(leaves["x"] @ leaves["w"], gradients)
    assert derived.of_parameters(leaves)["w"][0].isnan().any()


@pytest.mark.parametrize("name", ["a sum of exponentials", "of complex numbers", "rounded"])
def test_autograd_is_not_asked_of_entries(name: str, leaves: Leaves) -> None:
    weight = MADE[name](leaves)
    derived = DerivedGradients()
    derived.add(weight, torch.randn(3, *weight.shape))
    with mock.patch.object(derived_gradients, "_differentiate", side_effect=AssertionError):
        if name == "of complex numbers":  # `stack` is left to it
            with pytest.raises(AssertionError):
                derived.of_parameters(leaves)
        else:
            assert derived.of_parameters(leaves)


def test_gradients_have_the_type_of_their_parameter() -> None:
    x = torch.randn(3, 4, dtype=torch.float32, requires_grad=True)
    weight = torch.view_as_real((1j * x).exp() * torch.arange(4)) * torch.ones((), dtype=x.dtype)
    derived = DerivedGradients()
    derived.add(weight, torch.randn_like(weight)[None])
    assert derived.of_parameters({"x": x})["x"].dtype == torch.float32
