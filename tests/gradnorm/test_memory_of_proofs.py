"""Proofs hold one gradient of a parameter at a time, and copy no large one to look at it."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from oracle import norms_one_by_one, relative_error
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.layouts import layout as layouts
from upslope.gradnorm.core.layouts import layout_probe
from upslope.gradnorm.core.layouts.layout import Layout
from upslope.gradnorm.proofs.backward import hand_out_gradients, pull_back
from upslope.gradnorm.trace.forward import Forward

D = torch.float64


class Reader(nn.Module):
    """Words, read twice through one layer, beside a table of which sparse gradients are made."""

    def __init__(self, *, reentrant: bool = False) -> None:
        super().__init__()
        self.words, self.rare = nn.Embedding(9, 4), nn.Embedding(9, 4, sparse=True)
        self.body, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        z = self.words(x) + self.rare(x)
        for _ in range(2):
            z = checkpoint(self.body, z, use_reentrant=True) if self.reentrant else self.body(z)
        return z.tanh().sum(1)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_that_are_handed_out_are_those_that_are_pulled_back(reentrant: bool) -> None:
    torch.manual_seed(0)
    model, x = Reader(reentrant=reentrant).to(D), torch.randint(9, (3, 5))
    parameters = dict(model.named_parameters())
    handle = model.body.bias.register_hook(lambda g: 3 * g)  # the caller's own
    shares = [torch.randn(3, 4, dtype=D)]
    wanted = pull_back([model(x)], shares, list(parameters.values()))
    taken: dict[str, Tensor] = {}

    def take(name: str, gradient: Tensor) -> None:
        assert name not in taken
        taken[name] = gradient.to_dense().clone()

    hand_out_gradients([model(x)], shares, parameters, take)
    assert taken.keys() == {
        name for name, g in zip(parameters, wanted, strict=True) if g is not None
    }
    assert "unused.weight" not in taken
    for name, gradient in zip(parameters, wanted, strict=True):
        if gradient is not None:
            torch.testing.assert_close(taken[name], gradient.to_dense(), rtol=0, atol=1e-15)
    handle.remove()
    assert model.words.weight._backward_hooks is None
    assert all(p.grad is None for p in parameters.values())


def test_no_gradient_stays_when_the_next_is_formed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(6)))
    held: list[int] = []

    right = torch.autograd.grad

    def grad(*args, **kwargs):
        found = right(*args, **kwargs)
        held.append(sum(g.untyped_storage().nbytes() for g in found))
        return found

    with mock.patch.object(torch.autograd, "grad", grad):
        hand_out_gradients(
            [model(torch.randn(2, 64))], [torch.randn(2, 64)], dict(model.named_parameters()),
            lambda *_: None,
        )  # fmt: skip
    assert held == [4 * 12]  # one number in place of each


@pytest.mark.parametrize("copied", [1, 1 << 20])
@pytest.mark.parametrize(("dim", "b"), [(0, None), (0, 1), (0, 2), (1, None), (1, 3), (2, 1)])
def test_layouts_that_explain_a_gradient(dim: int, b: int | None, copied: int) -> None:
    n, rng = 4, torch.Generator().manual_seed(0)
    layout, mask = Layout(dim, b), torch.tensor([True, False, True, False])
    owners = layout.owners(24, n)
    kept = mask[owners].to(D).view(*(1,) * dim, 24, *(1,) * (2 - dim))
    gradient = torch.randn(24, 24, 24, generator=rng, dtype=D)
    with mock.patch.object(layouts, "_BYTES_AT_ONCE", copied):
        assert layout.explains(gradient * kept, mask)
        assert not layout.explains(gradient, mask)
        for other in (5, 23):
            one = gradient * kept
            place = [0, 0, 0]
            place[dim] = other
            one[tuple(place)] = 1.0
            assert layout.explains(one, mask) == bool(mask[owners[other]])


class Turned(nn.Module):
    """Tokens in front of the samples in one layer, behind them in another, one of them read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        z = self.second(torch.tanh(self.first(x)).transpose(0, 1)).transpose(0, 1)
        return self.head(z)[torch.arange(len(x)), places]


@pytest.mark.parametrize("length", [4, 8, 5])
@pytest.mark.parametrize("large", [0, 1 << 20])
def test_checksums_of_large_gradients(length: int, large: int) -> None:
    passes = 0
    backward = Forward.backward

    def counted(self, *args, **kwargs):
        nonlocal passes
        passes += 1
        return backward(self, *args, **kwargs)

    def loss(z: Tensor) -> Tensor:
        return (z * z).sum(1) + z[:, 0]

    for seed in range(6):
        torch.manual_seed(seed)
        model, n = Turned().to(D), 4
        x = torch.randn(n, length, 3, dtype=D), torch.randint(length, (n,))
        expected = norms_one_by_one(model, x, lambda z, _: loss(z)[0])
        with (
            mock.patch.object(layout_probe, "_LARGE", large),
            mock.patch.object(Forward, "backward", counted),
        ):
            assert relative_error(gradient_norms(model, x, loss), expected) < 1e-9
            assert relative_error(gradient_norms(model, x, loss), expected) < 1e-9
    assert passes >= 6 * 4
