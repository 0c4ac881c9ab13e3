"""Rounding at kinks: settled at the same activations, where a wrong kernel is not excused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from oracle import relative_error
from torch import Tensor, nn

from upslope.errors import GradientNormWarning
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.gradients.per_sample_gradients import OuterProducts
from upslope.gradnorm.core.weights.weights import Weights
from upslope.gradnorm.kernels.conv.convolution import Convolution
from upslope.gradnorm.kernels.conv.fused import FusedConvolution
from upslope.gradnorm.kernels.linear import Linear
from upslope.gradnorm.proofs.comparison import GradientsDiffer
from upslope.gradnorm.proofs.kernel_results import ProofFailed
from upslope.gradnorm.trace import reducing
from upslope.gradnorm.trace.recording import Recording


def spread_loss(z: Tensor) -> Tensor:
    """A loss per sample whose gradient is zero nowhere."""
    z = z.flatten(1)
    mix = torch.randn(z.shape[1], generator=torch.Generator().manual_seed(7))
    return torch.tanh(z) @ mix + 0.5 * (z * z).mean(1)


def truth(model: nn.Module, inputs: Tensor) -> Tensor:
    norms = []
    for i in range(len(inputs)):
        loss = spread_loss(model(inputs[i : i + 1])).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        norms.append(torch.cat([g.flatten() for g in gradients if g is not None]).norm())
    return torch.stack(norms)


@contextlib.contextmanager
def parted(error: type[ProofFailed] = GradientsDiffer) -> Iterator[list[bool | None]]:
    """Let the ordinary comparison fail; yields what the one at the same activations says.

    Float64 excuses nothing, so that this comparison alone decides.
    """
    right, verdicts = reducing.agree_at_same_activations, list[bool | None]()

    def noted(*arguments):
        verdicts.append(right(*arguments))
        return verdicts[-1]

    with (
        mock.patch.object(reducing, "check_gradients", side_effect=error("rounding")),
        mock.patch.object(reducing, "agree_at_same_activations", noted),
        mock.patch.object(Recording, "holds_in_double", return_value=False),
    ):
        yield verdicts


def network(*, normalised: bool = True) -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6) if normalised else nn.GroupNorm(2, 6)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), norm, nn.ReLU(inplace=True),
        nn.Conv2d(6, 4, 3, stride=2), nn.PReLU(4), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip
    return model.eval()


class Tokens(nn.Module):
    """An encoder with positions, a token of its own, and attention."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True)
        self.embed, self.body = nn.Linear(5, 8), nn.TransformerEncoder(layer, 2)
        self.first = nn.Parameter(torch.randn(1, 1, 8))
        self.places = nn.Parameter(torch.randn(1, 7, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(len(x), -1, -1), self.embed(x)], dim=1)
        x += self.places
        return self.head(self.body(x)[:, 0])


def recurrent() -> nn.Module:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x)[0][:, -1])

    torch.manual_seed(0)
    return Last().eval()


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return Tokens().eval()


NETWORKS = {
    "convolutions": (network, (3, 8, 8)),
    "group normalisation": (lambda: network(normalised=False), (3, 8, 8)),
    "attention": (encoder, (6, 5)),
    "recurrence": (recurrent, (5, 4)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_right_kernels_agree_with_autograd_at_the_same_activations(name, recwarn):
    make, shape = NETWORKS[name]
    model, x = make(), torch.randn(5, *shape)
    with parted() as verdicts:
        norms = gradient_norms(model, x, spread_loss)
    assert verdicts == [True]
    assert not recwarn.list
    assert relative_error(norms, truth(model, x)) < 1e-4


def assert_goes_one_by_one(model, x, fault):
    """A batch whose kernels have a fault is refused at the same activations, and is exact so.

    Float64, whose kernels may be others, does not excuse it.
    """
    with (
        fault,
        parted() as verdicts,
        mock.patch.object(Recording, "holds_in_double", return_value=True),
        pytest.warns(GradientNormWarning, match="one sample at a time"),
    ):
        norms = gradient_norms(model, x, spread_loss)
    assert verdicts == [False]
    assert relative_error(norms, truth(model, x)) < 1e-4


@pytest.mark.parametrize(
    ("kernel", "method", "factor"),
    [
        (Linear, "forward", 1.001),
        (Linear, "input_gradients", 1.02),
        (Linear, "weight_gradients", 1.02),
        (Convolution, "forward", 1.001),
        (Convolution, "input_gradients", 1.02),
        (FusedConvolution, "forward", 1.001),
    ],
)
def test_wrong_kernels_do_not(kernel, method, factor):
    model, x = network(), torch.randn(5, 3, 8, 8)
    right = getattr(kernel, method)

    def wrong(self, *args, **options):
        out = right(self, *args, **options)
        if method == "weight_gradients":
            return ((w, type(p)(*(factor * v for v in vars(p).values() if v is not None)))
                    for w, p in out)  # fmt: skip
        if isinstance(out, tuple):
            return tuple(None if o is None else factor * o for o in out)
        return factor * out

    assert_goes_one_by_one(model, x, mock.patch.object(kernel, method, wrong))


def test_a_wrong_norm_does_not():
    model, x = network(), torch.randn(5, 3, 8, 8)
    right = OuterProducts.squared_norms
    fault = mock.patch.object(OuterProducts, "squared_norms", lambda s, k: 1.02 * right(s, k))
    assert_goes_one_by_one(model, x, fault)


def test_what_other_proofs_find_is_not_settled_by_it():
    model, x = network(), torch.randn(5, 3, 8, 8)
    with parted(ProofFailed) as verdicts, pytest.warns(GradientNormWarning, match="rounding"):
        gradient_norms(model, x, spread_loss)
    assert verdicts == []


def test_kernels_that_round_to_the_other_side_of_kinks():
    """Both ways are right to seven digits of the largest entry, and their gradients differ."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
    with torch.no_grad():
        model[0].bias.zero_()
        model[0].weight[1:, 1:] = 0  # all units but one are at the kink
    x = torch.randn(6, 4)
    x[:, 0] = 1e-9 * x[:, 0].sign()
    right = Linear.forward

    def rounded(self, *inputs):
        out = right(self, *inputs)
        return torch.where(out.abs() < 1e-7, -out, out)

    settled = reducing.agree_at_same_activations
    with (
        mock.patch.object(Linear, "forward", rounded),
        mock.patch.object(reducing, "agree_at_same_activations", wraps=settled) as called,
        mock.patch.object(Recording, "holds_in_double", return_value=False),
    ):
        gradient_norms(model, x, spread_loss)  # told nothing: warnings are errors
    assert called.call_count == 1


def test_the_model_is_left_as_it_was():
    model, x = network(), torch.randn(5, 3, 8, 8)
    with parted() as verdicts:
        gradient_norms(model, x, spread_loss)
    assert verdicts == [True]
    for parameter in model.parameters():
        assert parameter.grad is None
        assert parameter._backward_hooks is None


def test_no_copy_of_a_weight_outlasts_its_operator_beside_autograds_activations():
    right, copies = Weights.in_memory_format, list[int]()
    recorded = list[int]()

    def noted(weights: Weights, weight: Tensor, order: torch.memory_format) -> Tensor:
        found = right(weights, weight, order)
        copies.append(len(weights._copies_in_format))
        return found

    def verdict(run, forward, *arguments):
        copies.clear()
        said = agree(run, forward, *arguments)
        recorded.extend(copies)
        return said

    model = network().to(memory_format=torch.contiguous_format)
    x = torch.randn(3, 3, 17, 17).contiguous(memory_format=torch.channels_last)
    agree = reducing.agree_at_same_activations
    with (
        mock.patch.object(Weights, "in_memory_format", noted),
        mock.patch.object(reducing, "agree_at_same_activations", verdict),
        mock.patch.object(reducing, "check_gradients", side_effect=GradientsDiffer("rounding")),
    ):
        assert relative_error(gradient_norms(model, x, spread_loss), truth(model, x)) < 1e-4
    assert len(recorded) >= 2
    assert max(recorded) == 1
