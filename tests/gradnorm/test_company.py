"""What a sample's own pass shows: padded outputs, odd backward passes, objects, small batches."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import norms_one_by_one, relative_error
from torch import Tensor, nn

from upslope.errors import GradientNormError, GradientNormWarning
from upslope.gradnorm import gradient_norms

D = torch.float64


def squares(z: Tensor) -> Tensor:
    return z.square().sum(dim=1)


class Hidden(nn.Module):
    """Two layers, with something between them and something behind them."""

    def __init__(
        self,
        between: Callable[[Tensor], Tensor] = lambda h: h,
        behind: Callable[[Tensor], Any] = lambda z: z,
    ) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.between, self.behind = between, behind
        self.double().eval()

    def forward(self, x: Tensor) -> Any:
        return self.behind(self.last(self.between(torch.tanh(self.first(x)))))


class Padded(nn.Module):
    """Outputs as long as the longest sample of the batch, (n, positions, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        lengths = (x[:, :, 0] != 0).sum(1)
        return self.last(torch.tanh(self.first(x)))[:, : int(lengths.max())]


def of_lengths(*lengths: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(len(lengths), 9, 5, dtype=D)
    for row, length in zip(x, lengths, strict=True):
        row[length:] = 0
    return x, torch.tensor(lengths)


@pytest.mark.parametrize("lengths", [(3, 9, 5, 4), (9, 9, 2), (4,), (2, 3, 4, 5, 6, 7) * 4])
def test_outputs_padded_to_the_longest_sample_are_exact(lengths) -> None:
    x, count = of_lengths(*lengths)
    model, labels = Padded(), torch.randint(3, x.shape[:2])

    def loss(z: Tensor, own: slice = slice(None)) -> Tensor:
        inside = torch.arange(z.shape[1]) < count[own, None]
        right = z.gather(2, labels[own, : z.shape[1], None])[..., 0]
        return ((z.logsumexp(2) - right) * inside).sum(1) / count[own]

    truth = norms_one_by_one(model, x, lambda z, i: loss(z, slice(i, i + 1))[0])
    assert relative_error(gradient_norms(model, x, loss), truth) < 1e-9


@pytest.mark.parametrize(
    "over",
    [
        lambda z, inside: (z.square().sum(2) * inside).mean(1),
        lambda z, inside: z.square().sum((1, 2)),
        lambda z, inside: (z.square().sum(2) * inside).sum(1) * (1 + 0.1 * z.shape[1]),
    ],
    ids=["mean over the padding", "sum over the padding", "by the length"],
)
def test_losses_that_look_at_padding_are_refused(over) -> None:
    x, count = of_lengths(3, 9, 5, 4)

    def loss(z: Tensor) -> Tensor:
        return over(z, torch.arange(z.shape[1]) < count[:, None])

    with pytest.raises(GradientNormError, match="pads their outputs"):
        gradient_norms(Padded(), x, loss)


def test_losses_that_cannot_be_asked_of_shorter_outputs_are_refused_by_name() -> None:
    x, count = of_lengths(3, 9, 5, 4)
    inside = torch.arange(9) < count[:, None]
    with pytest.raises(GradientNormError, match="outputs of any length"):
        gradient_norms(Padded(), x, lambda z: (z.square().sum(2) * inside).sum(1))


class Clamped(torch.autograd.Function):
    """The same numbers; gradients are clipped."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g.clamp(-0.05, 0.05)


class Normalised(Clamped):
    """Gradients of each sample have length 1."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g / g.norm(dim=1, keepdim=True).clamp(min=1e-9)


class Rounded(Clamped):
    """Gradients have few digits."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return (g * 128).round() / 128


class Shared(Clamped):
    """Gradients lose the mean over the batch."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g.clamp(-1, 1) - g.mean(0)


@pytest.mark.parametrize("function", [Clamped, Normalised, Rounded])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_backward_passes_that_are_not_linear_are_exact(function, n) -> None:
    torch.manual_seed(n)
    model, x = Hidden(function.apply), torch.randn(n, 5, dtype=D)
    truth = norms_one_by_one(model, x, lambda z, _: squares(z)[0])
    for loss in (squares, lambda z: squares(z) + 0 * model.last.bias.sum()):
        assert relative_error(gradient_norms(model, x, loss), truth) < 1e-9


def test_backward_passes_that_mix_are_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(Hidden(Shared.apply), torch.randn(4, 5, dtype=D), squares)


class WithInput(nn.Module):
    """A number, and the input by which a loss differentiates it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 1)
        self.double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        return self.last(torch.tanh(self.first(x))), x


@pytest.mark.parametrize("unused", [False, True])
@pytest.mark.parametrize("n", [1, 4])
def test_losses_that_differentiate_outputs_are_exact(unused, n) -> None:
    def penalised(outputs: tuple[Tensor, Tensor]) -> Tensor:
        y, x = outputs
        (g,) = torch.autograd.grad(y.sum(), x, create_graph=True, allow_unused=unused)
        return y[:, 0].square() + (0 if g is None else g.square().sum(1))

    torch.manual_seed(n)
    model, x = WithInput(), torch.randn(n, 5, dtype=D)
    truth = norms_one_by_one(model, x, lambda z, _: penalised(z)[0])
    assert relative_error(gradient_norms(model, x, penalised), truth) < 1e-9


class Lazy:
    """Computes what it is asked for once, and keeps it."""

    def __init__(self, z: Tensor):
        self.z, self.p = z, None

    def probabilities(self) -> Tensor:
        if self.p is None:
            self.p = self.z.softmax(1)
        return self.p


OBJECTS = {
    "normal": (
        lambda z: torch.distributions.Normal(z, z.exp()),
        lambda o: -o.log_prob(torch.ones(3)).sum(1),
    ),
    "independent": (
        lambda z: torch.distributions.Independent(torch.distributions.Normal(z, z.exp()), 1),
        lambda o: -o.log_prob(torch.ones(3)),
    ),
    "categorical": (
        lambda z: torch.distributions.Categorical(logits=z), lambda o: o.entropy() + o.probs[:, 0]
    ),
    "lazy": (Lazy, lambda o: o.probabilities().square().sum(1)),
}  # fmt: skip


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("n", [1, 4])
def test_objects_that_keep_what_they_are_asked_are_outputs(kind, n) -> None:
    wrap, loss = OBJECTS[kind]
    torch.manual_seed(n)
    model, x = Hidden(behind=wrap), torch.randn(n, 5, dtype=D)
    truth = norms_one_by_one(model, x, lambda o, _: loss(o)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientNormWarning)
        assert relative_error(gradient_norms(model, x, loss), truth) < 1e-9


def test_objects_whose_samples_mix_are_refused() -> None:
    model = Hidden(lambda h: h - h.detach().mean(0), torch.distributions.Categorical)
    model.behind = lambda z: torch.distributions.Categorical(logits=z)
    with pytest.raises(GradientNormError):
        gradient_norms(model, torch.randn(4, 5, dtype=D), lambda o: o.entropy())


class Counting(nn.Module):
    """Counts its calls where the engine does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(5, 3), itertools.count(1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * next(self.calls)


@pytest.mark.parametrize("with_parameters", [False, True])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_calls_that_are_counted_are_refused_at_every_size(n, with_parameters) -> None:
    model = Counting()

    def loss(z: Tensor) -> Tensor:
        return squares(z) + model.layer.bias.sum() if with_parameters else squares(z)

    with pytest.raises(GradientNormError, match="counts its calls"):
        gradient_norms(model, torch.randn(n, 5, dtype=D), loss)


class BySize(nn.Module):
    """Does something else for few samples: in its outputs, or in its gradients alone."""

    def __init__(self, in_outputs: bool, bound: int) -> None:
        super().__init__()
        self.first, self.last, self.other = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.in_outputs, self.bound = in_outputs, bound
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if len(x) > self.bound:
            return self.last(h)
        return self.other(h) if self.in_outputs else self.last(h.detach())


@pytest.mark.parametrize("in_outputs", [True, False])
@pytest.mark.parametrize("bound", [1, 3])
@pytest.mark.parametrize("n", [2, 5, 8, 40])
def test_models_that_do_something_else_for_few_samples(in_outputs, bound, n) -> None:
    torch.manual_seed(n)
    model, x = BySize(in_outputs, bound), torch.randn(n, 5, dtype=D)
    truth = norms_one_by_one(copy.deepcopy(model), x, lambda z, _: squares(z)[0])
    if n <= bound:
        assert relative_error(gradient_norms(model, x, squares), truth) < 1e-9
        return
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, x, squares)


def test_losses_that_do_something_else_for_one_sample_are_refused() -> None:
    model, x = Hidden(), torch.randn(8, 5, dtype=D)
    with pytest.raises(GradientNormError, match="enter the losses of others"):
        gradient_norms(model, x, lambda z: squares(z) * (2 if len(z) > 1 else 1))


def penalty(outputs: tuple[Tensor, Tensor]) -> Tensor:
    (g,) = torch.autograd.grad(outputs[0].sum(), outputs[1], create_graph=True)
    return g.square().sum(1)


class TimeFirst(nn.Module):
    """Outputs (steps, n, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).transpose(0, 1)


MIXING = {
    "a penalty and a mean": (WithInput, lambda o, _: penalty(o) + o[0].mean()),
    "a penalty over a size": (WithInput, lambda o, _: penalty(o) / o[0].detach().abs().mean()),
    "parameters over a size": (
        Hidden, lambda z, m: squares(z) / z.detach().abs().mean() + m.last.bias.sum()
    ),
    "steps over a size": (
        TimeFirst, lambda z, _: z.square().sum((0, 2)) / z.detach().abs().mean()
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MIXING)
def test_losses_that_cannot_be_cut_off_and_mix_are_refused(kind) -> None:
    make, loss = MIXING[kind]
    torch.manual_seed(0)
    model = make()
    x = torch.randn(4, 4, 5, dtype=D) if make is TimeFirst else torch.randn(4, 5, dtype=D)
    for _ in range(2):
        with pytest.raises(GradientNormError, match="enter the losses of others"):
            gradient_norms(model, x, lambda o: loss(o, model))


@pytest.mark.parametrize("n", [1, 4])
def test_objects_beside_tensors_are_outputs(n) -> None:
    torch.manual_seed(n)
    model = Hidden(behind=lambda z: (z, torch.distributions.Categorical(logits=z)))
    x = torch.randn(n, 5, dtype=D)

    def loss(o: Any) -> Tensor:
        return o[1].entropy() + o[1].probs[:, 0] + squares(o[0])

    truth = norms_one_by_one(model, x, lambda o, _: loss(o)[0])
    assert relative_error(gradient_norms(model, x, loss), truth) < 1e-9
