"""Entropy and expected loss: where the classes are, and logits that are masked, short or odd."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from oracle import TOLERANCE, assert_agrees, norms_one_by_one, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.errors import GradientNormError
from upslope.gradnorm import (
    entropy,
    entropy_over,
    expected,
    expected_gradient_length,
    gradient_norms,
    label_free,
    supervised,
)
from upslope.signals.criteria import CRITERIA


class Tokens(nn.Module):
    """Logits (n, positions, classes), or (n, classes, positions), in some container."""

    def __init__(self, last: bool, wrap) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.last, self.wrap = nn.Linear(4, 7), last, wrap

    def forward(self, x: Tensor):
        z = self.body(x)
        return self.wrap(z if self.last else z.transpose(1, 2))


def plain(z):
    return z


def as_object(z):
    return SimpleNamespace(logits=z)


def as_dict(z):
    return {"logits": z, "other": z}


def token_entropy(outputs, _):
    """Classes last."""
    z = outputs if isinstance(outputs, Tensor) else (
        outputs["logits"] if isinstance(outputs, dict) else outputs.logits)  # fmt: skip
    return torch.special.entr(z[0].softmax(dim=-1)).sum(dim=-1).mean()


X = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LOSSES = {
    "entropy": ("entropy", entropy_over),
    "expected": ("expected", lambda dim: expected(dim=dim)),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("last", [True, False])
def test_tensors_of_three_dimensions_are_refused_unless_the_classes_are_told(loss, last):
    name, over = LOSSES[loss]
    model = Tokens(last, plain).double()
    shape = r"\(3, 5, 7\)" if last else r"\(3, 7, 5\)"
    with pytest.raises(GradientNormError, match=rf"{shape} may be .*`entropy_over\(1\)`"):
        gradient_norms(model, X, name)
    truth = norms_one_by_one(Tokens(True, plain).double(), X, token_entropy)
    for dim in (2, -1) if last else (1, -2):
        assert relative_error(gradient_norms(model, X, over(dim)), truth) < TOLERANCE


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("wrap", [as_object, as_dict])
def test_tokens_in_objects_have_their_classes_last(loss, wrap):
    model = Tokens(True, wrap).double()
    truth = norms_one_by_one(model, X, token_entropy)
    assert relative_error(gradient_norms(model, X, loss), truth) < TOLERANCE


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("space", [(4, 4), (3, 4, 4)])
def test_pixels_and_voxels_have_their_classes_in_dimension_one(loss, space):
    torch.manual_seed(0)
    conv = (nn.Conv2d if len(space) == 2 else nn.Conv3d)(2, 3, 1)
    assert_agrees(conv, torch.randn(3, 2, *space), loss=loss)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dim", [0, 3, -3, -4])
def test_a_class_dimension_that_is_not_there_or_the_samples_is_refused(loss, dim):
    with pytest.raises(GradientNormError, match="`dim` to be a dimension of the logits"):
        gradient_norms(Tokens(True, plain).double(), X, LOSSES[loss][1](dim))


class NoClasses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :0]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Linear(4, 1), torch.randn(5, 4)),
        (nn.Conv2d(1, 1, 3), torch.randn(5, 1, 6, 6)),
        (nn.Sequential(nn.Linear(4, 3), NoClasses()), torch.randn(5, 4)),
    ],
)
def test_a_single_class_is_refused_with_the_way_out(loss, model, x):
    with pytest.raises(GradientNormError, match=r"at least two classes.*torch\.zeros_like"):
        gradient_norms(model, x, loss)


def test_the_way_out_of_a_single_logit_is_the_binary_entropy():
    torch.manual_seed(0)

    def with_zero(z: Tensor) -> Tensor:
        return entropy_over(1)(torch.cat((torch.zeros_like(z), z), dim=1))

    def binary(z: Tensor, _: int) -> Tensor:
        p = z[0].sigmoid()
        return (torch.special.entr(p) + torch.special.entr(1 - p)).mean()

    assert_agrees(nn.Linear(4, 1), torch.randn(5, 4), loss=label_free(with_zero), point_loss=binary)
    assert_agrees(
        nn.Conv2d(1, 1, 3), torch.randn(5, 1, 6, 6), loss=label_free(with_zero), point_loss=binary
    )


def test_a_single_class_has_no_expected_length():
    with pytest.raises(GradientNormError, match="at least two classes"):
        expected_gradient_length(nn.Linear(4, 1), torch.randn(5, 4))


def test_a_single_logit_with_a_criterion_of_its_own_is_as_before():
    torch.manual_seed(0)
    targets = torch.tensor([[0.0], [1.0], [1.0]], dtype=torch.float64)
    assert_agrees(
        nn.Linear(4, 1), torch.randn(3, 4),
        loss=supervised(targets, F.binary_cross_entropy_with_logits),
        point_loss=lambda z, i: F.binary_cross_entropy_with_logits(z[0], targets[i]),
    )  # fmt: skip


class Masked(nn.Module):
    """Classes that the sample cannot have are masked with minus infinity."""

    def __init__(self, value: float = -math.inf) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.value = nn.Linear(4, 6), value

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).masked_fill(torch.arange(6) % 3 == (x[:, :1] > 0), self.value)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n", [1, 4])
def test_masked_classes_add_nothing(loss, n):
    """As do classes whose logits are so low that their probability is zero."""
    x = torch.randn(n, 4, dtype=torch.float64)

    def plainly(z: Tensor, _: int) -> Tensor:
        log_p = z[0].log_softmax(dim=0)
        return -(log_p.exp() * log_p).sum()

    truth = norms_one_by_one(Masked(-1e5).double(), x, plainly)
    assert relative_error(gradient_norms(Masked().double(), x, loss), truth) < TOLERANCE


@pytest.mark.parametrize("name", ["focal", "hinge"])
@pytest.mark.parametrize("posterior", ["graph", "detached"])
def test_masked_classes_add_nothing_whatever_the_criterion(name, posterior):
    """The gradient of the focal loss is NaN where a class has no probability at all."""
    torch.manual_seed(0)
    x, criterion = torch.randn(4, 4, dtype=torch.float64), CRITERIA[name]

    def plainly(z: Tensor, _: int) -> Tensor:
        z = z[:, z[0].isfinite()]
        p = z[0].softmax(dim=0)
        p = p.detach() if posterior == "detached" else p
        losses = [criterion(z, torch.tensor([i]), reduction="none") for i in range(z.shape[1])]
        # The hinge loss is divided by the number of classes.
        scale = z.shape[1] / 6 if name == "hinge" else 1
        return scale * (p * torch.cat(losses)).sum()

    truth = norms_one_by_one(Masked().double(), x, plainly)
    norms = gradient_norms(Masked().double(), x, expected(criterion, posterior=posterior))
    assert relative_error(norms, truth) < TOLERANCE


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_logits_that_are_not_numbers_are_refused_naming_the_samples(loss, value):
    with pytest.raises(GradientNormError, match=r"samples \[0, 1, 2\] are \[nan"):
        gradient_norms(Masked(value).double(), torch.randn(3, 4, dtype=torch.float64), loss)


def test_entropy_of_half_precision_logits_is_summed_in_single_precision():
    torch.manual_seed(0)
    logits = torch.randn(4, 1000)
    for dtype in (torch.bfloat16, torch.float16):
        for loss in (entropy, expected()):
            found = loss(logits.to(dtype))
            assert found.dtype == torch.float32
            assert torch.equal(found, loss(logits.to(dtype).float()))


@pytest.mark.parametrize("loss", LOSSES)
def test_outputs_that_are_no_floating_point_numbers_are_refused(loss):
    class Labels(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).round().long()

    with pytest.raises(GradientNormError, match=r"floating-point logits.*torch\.int64"):
        gradient_norms(Labels(4, 3), torch.randn(3, 4), loss)
