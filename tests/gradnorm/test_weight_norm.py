"""Weights normalised by row, whose gradients are found in closed form (`weights/weight_norm`)."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from oracle import TOLERANCE, assert_agrees, norms_one_by_one, relative_error
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from upslope.gradnorm import gradient_norms

weight_norm = parametrizations.weight_norm


class Head(nn.Module):
    """A network (n, ...) -> (n, 6), and a head behind it."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers, self.head = nn.Sequential(*layers, nn.Flatten()), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layers(x)))


class Bare(nn.Module):
    """`torch._weight_norm` along a dimension, of a weight used `times` times."""

    def __init__(self, dim: int, *, times: int = 1, again: bool = False, tied: bool = False):
        super().__init__()
        self.v, self.dim, self.times = nn.Parameter(torch.randn(4, 6)), dim, times
        self.g = nn.Parameter(torch.rand(4, 1) if dim == 0 else torch.rand(1, 6))
        self.again, self.tied = again, tied
        self.head = nn.Linear(6, 3)

    def weight(self) -> Tensor:
        return torch._weight_norm(self.v, self.g, self.dim)

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight()
        for _ in range(self.times):
            x = torch.tanh(x @ w) @ w.mT
            w = self.weight() if self.again else w
        y = x @ w
        return self.head(y + x @ self.v if self.tied else y)


def convolutions() -> nn.Module:
    return Head(
        weight_norm(nn.Conv1d(2, 4, 3, dilation=2, padding=2)), nn.ReLU(),
        weight_norm(nn.Conv1d(4, 6, 1)), nn.Tanh(),
        weight_norm(nn.Conv1d(6, 6, 4, groups=2), dim=2), nn.AdaptiveAvgPool1d(1),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: Head(weight_norm(nn.Linear(4, 6))), (5, 4)),
    "one input": (lambda: Head(weight_norm(nn.Linear(1, 6))), (5, 1)),
    "one sample": (lambda: Head(weight_norm(nn.Linear(4, 6))), (1, 4)),
    "convolutions": (convolutions, (5, 2, 8)),
    "images": (lambda: Head(weight_norm(nn.Conv2d(3, 6, 3)), nn.AdaptiveAvgPool2d(1)),
               (5, 3, 4, 4)),
    "a table": (lambda: Bare(0), (5, 4)),
    "the last dimension": (lambda: Bare(1), (5, 4)),
    "used twice": (lambda: Bare(0, times=2), (5, 4)),
    "made twice": (lambda: Bare(1, times=2, again=True), (5, 4)),
    "with the plain weight": (lambda: Bare(0, tied=True), (5, 4)),
    "all entries": (lambda: Head(weight_norm(nn.Linear(4, 6), dim=None)), (5, 4)),
    "an older way": (lambda: _older(Head(nn.Linear(4, 6))), (5, 4)),
}  # fmt: skip


def _older(model: Head) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model.layers[0])
    return model


@pytest.mark.parametrize("case", MODELS)
def test_norms_agree(case):
    torch.manual_seed(0)
    make, shape = MODELS[case]
    assert_agrees(make(), torch.randn(*shape))


@pytest.mark.parametrize("leaf", ["original0", "original1"])
@pytest.mark.parametrize("is_frozen", [True, False])
def test_one_of_the_two_leaves(leaf, is_frozen):
    torch.manual_seed(0)
    model, x = Head(weight_norm(nn.Linear(4, 6))).double(), torch.randn(5, 4).double()
    if is_frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.endswith(leaf))
        assert_agrees(model, x)
    else:
        truth = norms_one_by_one(model, x, wanted=lambda name: name.endswith(leaf))
        names = [name for name, _ in model.named_parameters() if name.endswith(leaf)]
        found = gradient_norms(model, x, "entropy", parameters=names)
        assert relative_error(found, truth) < TOLERANCE


@pytest.mark.parametrize("count", [2, 5])
def test_gradients_along_the_weight_itself(count):
    """Of a layer whose outputs are normalised: almost nothing is left across the weight.

    Of `count` samples of five, that is.
    """
    torch.manual_seed(0)
    model = Head(weight_norm(nn.Linear(4, 1)), nn.Unflatten(1, (1, 1)))
    model.head = nn.Linear(1, 3)
    noise = torch.randn(5, 4)
    noise[:count] *= 1e-6
    x = torch.randn(5, 1) * model.layers[0].weight.detach() + noise
    assert_agrees(model, x)


@pytest.mark.filterwarnings("error")
def test_nothing_goes_by_autograd_of_one_sample_after_the_other(monkeypatch):
    """Nor does it warn, as `vmap` does of operators without a rule."""
    torch.manual_seed(0)

    def refuse(*_args, **_options):
        raise AssertionError("a batched backward pass")

    model, x = convolutions().double(), torch.randn(5, 2, 8).double()
    proven_norms = gradient_norms(model, x, "entropy")  # proven, which takes autograd's own passes
    pull = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad",
        lambda *args, **options: refuse() if options.get("is_grads_batched")
        else pull(*args, **options),
    )  # fmt: skip
    torch.testing.assert_close(gradient_norms(model, x, "entropy"), proven_norms)
