"""Posteriors that are sure of a class, or of none: float32 keeps every class's part of a gradient.

The oracle is float64, in which one minus the probability of the likeliest class is the sum of the
others', at the logits that float32 has.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.closed_forms import cross_entropy, entropy_of
from upslope.gradnorm import (
    entropy,
    entropy_over,
    estimated_rms_length,
    expected,
    expected_gradient_length,
    gradient_inner_products,
    gradient_norms,
    gradient_sketches,
    label_free,
    supervised,
)

GAPS = [0.0, 1e-6, 1e-3, 0.3, 5.0, 12.0, 16.0, 18.0, 20.0, 40.0, 80.0]
"""How far one logit lies above the others, which differ by as much, or by one if that is less."""


def logits(gap: float, classes: int = 7, shape: tuple[int, ...] = ()) -> Tensor:
    generator = torch.Generator().manual_seed(int(1e3 * gap))
    z = torch.randn(50, classes, *shape, generator=generator) * min(gap, 1.0)
    z[:, 1] += gap
    return z


def posterior(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p / p_first and p in float64, classes in dimension 1."""
    a = z.double() - z.double().amax(dim=1, keepdim=True)
    return a, a.softmax(dim=1)


def rest_of(p: Tensor, label: Tensor) -> Tensor:
    """Return one minus the probability of each sample's class, as a sum. label: (n, 1, ...)."""
    return p.scatter(1, label, 0).sum(dim=1, keepdim=True)


def true_entropy(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the entropy and its gradient."""
    a, p = posterior(z)
    mean = (p * a).sum(dim=1, keepdim=True)
    rest = rest_of(p, a.argmax(dim=1, keepdim=True))
    log_first = torch.where(rest < 0.5, (-rest).log1p(), (1 - rest).log())
    return (-log_first - mean).squeeze(1), p * (mean - a)


def true_cross_entropy(z: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy and its gradient. label: (n, ...)."""
    place, (_, p) = label.unsqueeze(1), posterior(z)
    rest = rest_of(p, place)
    values = torch.where(rest < 0.5, -(-rest).log1p(), -z.double().log_softmax(1).gather(1, place))
    return values.squeeze(1), p.scatter(1, place, -rest)


def assert_near(z: Tensor, loss: Callable[[Tensor], Tensor], truth: tuple[Tensor, Tensor]) -> None:
    z = z.clone().requires_grad_()
    values = loss(z)
    (gradient,) = torch.autograd.grad(values.sum(), z)
    error = (gradient - truth[1]).flatten(1).norm(dim=1)
    assert bool((error <= 1e-5 * truth[1].flatten(1).norm(dim=1)).all())
    # What is sure of nothing lies within rounding of log C, and its loss too.
    assert torch.allclose(values.double(), truth[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("classes", [2, 7, 300])
@pytest.mark.parametrize("gap", GAPS)
def test_entropy_and_its_gradient_have_all_their_digits(gap, classes, shape):
    z = logits(gap, classes, shape)
    assert_near(z, entropy_of, true_entropy(z))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("gap", GAPS)
def test_cross_entropy_and_its_gradient_have_all_their_digits(gap, label, shape):
    z = logits(gap, 7, shape)
    labels = torch.full((len(z), *shape), label)
    truth = true_cross_entropy(z, labels)
    assert_near(z, lambda z: cross_entropy(z, labels), truth)
    one_hot = F.one_hot(labels, 7).movedim(-1, 1).float()
    assert_near(z, lambda z: cross_entropy(z, one_hot), truth)


def test_images_with_their_channels_last_have_the_same_losses():
    z = logits(18.0, 5, (4, 6)).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 5, (len(z), 4, 6))
    assert_near(z, entropy_of, true_entropy(z))
    assert_near(z, lambda z: cross_entropy(z, labels), true_cross_entropy(z, labels))


def test_cross_entropy_is_that_of_torch():
    z = torch.randn(6, 5, 3, dtype=torch.float64)
    labels, shares = torch.randint(0, 5, (6, 3)), torch.rand(6, 5, 3, dtype=torch.float64)
    labels[2, 1] = -100
    for targets in (labels, shares):
        plain = F.cross_entropy(z, targets, reduction="none")
        torch.testing.assert_close(cross_entropy(z, targets), plain)


def test_masked_classes_have_no_share_in_cross_entropy():
    z = torch.randn(4, 5, dtype=torch.float64)
    z[1, 3] = z[2, 1] = -math.inf  # of the third sample it is the label's
    labels = torch.tensor([0, 2, 1, -100], dtype=torch.int64)
    outputs = z.requires_grad_(), z.detach().clone().requires_grad_()
    ours = cross_entropy(outputs[0], labels)
    plain = F.cross_entropy(outputs[1], labels, reduction="none")
    torch.testing.assert_close(ours, plain)
    gradients = [
        torch.autograd.grad(v.sum(), z)[0] for v, z in zip((ours, plain), outputs, strict=True)
    ]
    torch.testing.assert_close(*gradients)


def plain_entropy(z: Tensor) -> Tensor:
    log_p = z.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


LABEL, SHARES = torch.tensor([2]), torch.tensor([[0.1, 0.2, 0.0, 0.6, 0.1]], dtype=torch.float64)
FUNCTIONS = {
    "entropy": (entropy_of, plain_entropy),
    "labels": (lambda z: cross_entropy(z, LABEL), lambda z: F.cross_entropy(z, LABEL)[None]),
    "shares": (lambda z: cross_entropy(z, SHARES), lambda z: F.cross_entropy(z, SHARES)[None]),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_derivatives_are_those_of_the_plain_form(name):
    """By every order of passes, forward twice among them."""
    exact, plain = (
        lambda v, loss=loss: loss(v[None])[0] for loss in FUNCTIONS[name]
    )  # of one sample
    v = torch.randn(5, dtype=torch.float64, requires_grad=True)
    by_torch = torch.autograd.functional.hessian(plain, v)
    torch.testing.assert_close(torch.autograd.functional.hessian(exact, v), by_torch)
    for inner in (torch.func.jacrev, torch.func.jacfwd):
        for outer in (torch.func.jacrev, torch.func.jacfwd):
            torch.testing.assert_close(outer(inner(exact))(v.detach()), by_torch)
    rows = torch.randn(4, 5, dtype=torch.float64)
    of_rows = (torch.func.vmap(torch.func.grad(loss))(rows) for loss in (exact, plain))
    torch.testing.assert_close(*of_rows)
    assert torch.autograd.gradcheck(exact, v, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(exact, v, check_fwd_over_rev=True)


def true_hessian_product(z: Tensor, v: Tensor, *, of_entropy: bool) -> Tensor:
    """Return the second derivative along v: of the entropy, or of a cross-entropy at any class.

    A shift of all logits changes nothing, so that v may be 0 at the likeliest class.
    """
    a, p = posterior(z)
    v = v.double() - v.double().gather(1, a.argmax(dim=1, keepdim=True))
    p_along = p * (v - (p * v).sum(dim=1, keepdim=True))
    if not of_entropy:
        return p_along
    mean = (p * a).sum(dim=1, keepdim=True)
    mean_along = (p_along * a + p * v).sum(dim=1, keepdim=True)
    return p_along * (mean - a) + p * (mean_along - v)


@pytest.mark.parametrize("name", ["entropy", "first label", "other label", "shares"])
@pytest.mark.parametrize("gap", GAPS)
def test_second_derivatives_have_all_their_digits(gap, name):
    z = logits(gap).requires_grad_()
    targets = {
        "first label": torch.ones(50, dtype=torch.int64),
        "other label": torch.zeros(50, dtype=torch.int64),
        "shares": torch.full((50, 7), 1 / 7),
    }
    v = torch.randn(50, 7, generator=torch.Generator().manual_seed(3))
    losses = entropy_of(z) if name == "entropy" else cross_entropy(z, targets[name])
    (gradient,) = torch.autograd.grad(losses.sum(), z, create_graph=True)
    (product,) = torch.autograd.grad((gradient * v).sum(), z)
    truth = true_hessian_product(z.detach(), v, of_entropy=name == "entropy")
    error = (product - truth).norm(dim=1)
    assert bool((error <= 2e-5 * truth.norm(dim=1)).all())


def test_second_derivatives_beside_masked_classes():
    z = torch.randn(3, 5, dtype=torch.float64)
    z[:, 4] = -math.inf
    labels = torch.tensor([0, 1, 3])
    for loss in (entropy_of, lambda z: cross_entropy(z, labels)):
        products = []
        for logits in (z, z[:, :4]):
            logits = logits.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(logits).sum(), logits, create_graph=True)
            products.append(torch.autograd.grad(gradient.square().sum(), logits)[0])
        torch.testing.assert_close(products[0][:, :4], products[1])
        assert bool((products[0][:, 4] == 0).all())


class Sure(nn.Module):
    """Raises the logit of the first class by a number that comes with the sample."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, gap: Tensor) -> Tensor:
        z = self.body(x)
        gap = gap.view(-1, *(1,) * (z.dim() - 1))
        return torch.cat((z[:, :1] + gap, z[:, 1:]), dim=1)


def dense(classes: int = 5) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, classes))
    return Sure(body), (torch.randn(8, 6), torch.linspace(10, 20, 8))


def pixels() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 4, 1))
    return Sure(body), (torch.randn(8, 2, 5, 5), torch.linspace(10, 20, 8))


@label_free
def binary_entropy(z: Tensor) -> Tensor:
    return entropy_over(1)(torch.cat((torch.zeros_like(z), z), dim=1))


def in_double(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return copy.deepcopy(model).double(), tuple(x.double() for x in inputs)


@pytest.mark.parametrize("make", [dense, pixels])
@pytest.mark.parametrize("loss", ["entropy", "expected", "label"])
@pytest.mark.parametrize("norm", ["global", "tensor-sum"])
def test_norms_of_sure_samples_are_those_of_float64(make, loss, norm):
    model, inputs = make()
    if loss == "label":
        shape = model(*inputs)[:, 0].shape
        loss = supervised(torch.zeros(shape, dtype=torch.int64))
    wanted = gradient_norms(*in_double(model, inputs), loss, norm=norm)
    for _ in range(2):  # a batch that is proven, and one that is not
        norms = gradient_norms(model, inputs, loss, norm=norm)
        assert torch.allclose(norms, wanted, rtol=2e-5, atol=0)


def test_a_single_logit_that_is_sure():
    torch.manual_seed(0)
    model, inputs = Sure(nn.Linear(6, 1)), (torch.randn(8, 6), torch.linspace(-20, 20, 8))
    wanted = gradient_norms(*in_double(model, inputs), binary_entropy)
    assert torch.allclose(gradient_norms(model, inputs, binary_entropy), wanted, rtol=2e-5, atol=0)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("kind", ["mean", "rms"])
def test_expected_lengths_of_sure_samples(kind, classes):
    model, inputs = dense(classes)
    for norm in ("global", "tensor-sum"):
        wanted, lengths = (
            expected_gradient_length(*of, kind=kind, norm=norm).scores
            for of in (in_double(model, inputs), (model, inputs))
        )
        assert torch.allclose(lengths, wanted, rtol=2e-5, atol=0)


def test_sketches_products_and_estimates_of_sure_samples():
    model, inputs = dense()
    double, of_double = in_double(model, inputs)
    sketches = gradient_sketches(model, inputs, "entropy", dim=16)
    wanted = gradient_sketches(double, of_double, "entropy", dim=16)
    assert torch.allclose(sketches.vectors.double(), wanted.vectors.double(), rtol=1e-4, atol=1e-12)
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    products = gradient_inner_products(model, inputs, "entropy", direction)
    along = {name: v.double() for name, v in direction.items()}
    of_float64 = gradient_inner_products(double, of_double, "entropy", along)
    lengths = wanted.norms * math.sqrt(sum(float(v.square().sum()) for v in along.values()))
    assert bool(((products - of_float64).abs() < 1e-5 * lengths).all())
    estimates = estimated_rms_length(model, inputs, probes=4)
    of_float64 = estimated_rms_length(double, of_double, probes=4).scores
    assert torch.allclose(estimates.scores, of_float64, rtol=2e-5, atol=0)


def test_losses_of_models_in_half_precision_are_computed_in_float32():
    model, inputs = dense()
    half = copy.deepcopy(model).bfloat16()
    z = half(*(x.bfloat16() for x in inputs)).detach()
    labels = torch.zeros(8, dtype=torch.int64)
    assert supervised(labels)(z).dtype == torch.float32
    for loss in (entropy, supervised(labels), expected()):
        assert torch.equal(loss(z), loss(z.float()))
        of_half, of_single = (v.clone().requires_grad_() for v in (z, z.float()))
        (g,) = torch.autograd.grad(loss(of_half).sum(), of_half)
        (wanted,) = torch.autograd.grad(loss(of_single).sum(), of_single)
        assert torch.equal(g, wanted.bfloat16())
