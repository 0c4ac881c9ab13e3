"""Closed forms of entropy and cross-entropy against PyTorch's own in double precision.

Values, first and second derivatives, each loss with a weight of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.closed_forms import cross_entropy, entropy_of, keeping_digits, task_cross_entropy

Loss = Callable[[Tensor], Tensor]


def logits(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    z = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z[0, :2] = z[0].amax(dim=0) + 1  # a tie for the first
    z[1, 2] += 30  # a class that is sure
    return z.to(dtype)


def classes(*shape: int) -> Tensor:
    return torch.randint(4, shape, generator=torch.Generator().manual_seed(1))


def probabilities(*shape: int) -> Tensor:
    """Of which some rows do not sum to 1."""
    p = torch.rand(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return p / torch.cat([p.sum(dim=1, keepdim=True)[:-1], torch.ones_like(p[-1:, :1])])


def derivatives(loss: Loss, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, the gradient of their weighted sum, and the gradient of a product with that."""
    z = z.clone().requires_grad_()
    losses = loss(z)
    weights = torch.linspace(0.5, 2, losses.numel(), dtype=z.dtype).view_as(losses)
    (gradient,) = torch.autograd.grad((weights * losses).sum(), z, create_graph=True)
    direction = torch.linspace(-1, 1, z.numel(), dtype=z.dtype).view_as(z).sin()
    (product,) = torch.autograd.grad((gradient * direction).sum(), z)
    plain = z.detach().requires_grad_()
    (once,) = torch.autograd.grad((weights * loss(plain)).sum(), plain)
    assert torch.allclose(once, gradient, rtol=1e-12, atol=1e-14)
    return losses.detach(), gradient.detach(), product


def written_entropy(z: Tensor) -> Tensor:
    return -(z.softmax(dim=1) * z.log_softmax(dim=1)).sum(dim=1)


Pairs = dict[str, tuple[Loss, Loss]]


def pairs(*shape: int) -> Pairs:
    """Name -> ours and what is written down, for logits of a shape."""
    labels, shares = classes(shape[0], *shape[2:]), probabilities(*shape)
    return {
        "entropy": (entropy_of, written_entropy),
        "classes": (
            lambda z: cross_entropy(z, labels),
            lambda z: F.cross_entropy(z, labels, reduction="none"),
        ),
        "probabilities": (
            lambda z: cross_entropy(z, shares),
            lambda z: F.cross_entropy(z, shares, reduction="none"),
        ),
    }


NAMES = list(pairs(3, 4))


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 2, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_derivatives_are_those_of_the_formula(name: str, shape: tuple[int, ...]) -> None:
    ours, written = (derivatives(loss, logits(*shape)) for loss in pairs(*shape)[name])
    for value, expected in zip(ours, written, strict=True):
        assert torch.allclose(value, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by PyTorch itself
@pytest.mark.parametrize("name", NAMES)
def test_derivatives_in_transforms_are_those_of_the_formula(name: str) -> None:
    ours, written = pairs(5, 4)[name]
    z = logits(5, 4)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        found, expected = (transform(loss)(z) for loss in (ours, written))
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-13)
        found, expected = (
            transform(torch.func.jacrev(lambda x, loss=loss: loss(x).sum()))(z)
            for loss in (ours, written)
        )
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("ignored", [-100, 255])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_task_losses_are_pytorch_s_in_either_form(smoothing: float, ignored: int) -> None:
    targets = torch.tensor([0, 1, ignored, 3, 2])

    def loss(z: Tensor) -> Tensor:
        return task_cross_entropy(z, targets, ignore_index=ignored, label_smoothing=smoothing)

    def written(z: Tensor) -> Tensor:
        log_p = z.log_softmax(dim=1)
        there = log_p.gather(1, targets.where(targets != ignored, 0)[:, None])[:, 0]
        losses = (smoothing - 1) * there - smoothing * log_p.mean(dim=1)
        return losses.where(targets != ignored, 0)

    expected, as_trained = (derivatives(form, logits(5, 4)) for form in (written, loss))
    with keeping_digits():
        in_closed_form = derivatives(loss, logits(5, 4))
    for found in (as_trained, in_closed_form):
        for value, other in zip(found, expected, strict=True):
            assert torch.allclose(value, other, rtol=1e-10, atol=1e-13)


def test_digits_are_kept_within_the_block_alone() -> None:
    z = torch.tensor([[20.0, 0.0, 0.0]], requires_grad=True)

    def gradient() -> float:
        loss = task_cross_entropy(z, torch.tensor([0])).sum()
        return float(torch.autograd.grad(loss, z)[0][0, 0])

    exact = -2 / (torch.tensor(20.0, dtype=torch.float64).exp() + 2)
    with keeping_digits():
        assert gradient() == pytest.approx(float(exact), rel=1e-6)
    assert gradient() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_taken_in_single(dtype: torch.dtype) -> None:
    z = logits(5, 4, dtype=dtype)
    losses = cross_entropy(z, classes(5))
    assert losses.dtype == torch.float32
    expected = F.cross_entropy(z.double(), classes(5), reduction="none")
    assert torch.allclose(losses.double(), expected, rtol=1e-6, atol=1e-7)
