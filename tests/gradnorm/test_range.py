"""Gradients that float32 can hold, and their squares not: tiny ones, and huge ones."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from upslope.errors import GradientNormWarning
from upslope.gradnorm import (
    estimated_rms_length,
    expected_gradient_length,
    gradient_inner_products,
    gradient_norms,
    gradient_sketches,
    label_free,
)
from upslope.gradnorm.trace import recording

SCALES = [1e-21, 1.0, 0.0, 1e-25, 1e20, 1e25, 1e-40, 1e-13]
"""Of the losses: the squares of most of their gradients are outside float32."""


def scaled_loss(outputs: Tensor) -> Tensor:
    scales = torch.tensor(SCALES, dtype=torch.float64)
    return outputs.flatten(1).square().mean(dim=1) * scales.to(outputs)


def dense() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)), torch.randn(len(SCALES), 6)


def convolutional() -> tuple[nn.Module, Tensor]:
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 5)
    return nn.Sequential(*layers).eval(), torch.randn(len(SCALES), 3, 12, 12)


def positions() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3)), torch.randn(len(SCALES), 5, 64)


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return torch.where(g.abs() < 1e3, g, g.round() * 0.5)


class WithCustomFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(Rounded.apply(self.first(x)))


def check_norms(
    model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], rtol: float
) -> Tensor:
    """Hold both norms in float32 to those in float64, and return those of tensors in float64."""
    double = copy.deepcopy(model).double()
    for norm in ("global", "tensor-sum"):
        wanted = gradient_norms(double, x.double(), loss, norm=norm)
        assert torch.allclose(gradient_norms(model, x, loss, norm=norm), wanted, rtol=rtol, atol=0)
    return wanted


@pytest.mark.parametrize("make", [dense, convolutional, positions])
def test_norms_sketches_and_products_whose_squares_leave_float32(
    make: Callable[[], tuple[nn.Module, Tensor]],
) -> None:
    torch.manual_seed(0)
    model, x = make()
    double = copy.deepcopy(model).double()
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for _ in range(2):  # a batch that is proven, and one that is not
        check_norms(model, x, scaled_loss, rtol=1e-4)
        sketches = gradient_sketches(model, x, scaled_loss, dim=8)
        of_double = gradient_sketches(double, x.double(), scaled_loss, dim=8)
        assert torch.allclose(sketches.norms, of_double.norms, rtol=1e-4, atol=0)
        assert sketches.vectors.dtype == torch.float32
        apart = (sketches.vectors.double() - of_double.vectors).abs().amax(dim=1)
        assert bool((apart <= 1e-4 * of_double.norms).all())
        products = gradient_inner_products(model, x, scaled_loss, direction)
        size = of_double.norms * sum(float(v.square().sum()) for v in direction.values()) ** 0.5
        wanted = gradient_inner_products(double, x.double(), scaled_loss, direction)
        assert bool(((products - wanted).abs() <= 1e-4 * size).all())


def test_other_samples_of_such_a_batch_keep_their_bits() -> None:
    torch.manual_seed(0)
    model, x = dense()
    scales = torch.tensor([1.0] * len(SCALES))

    def loss(outputs: Tensor) -> Tensor:
        return outputs.square().sum(dim=1) * scales

    before = gradient_norms(model, x, loss)
    scales[3] = 1e-30
    after = gradient_norms(model, x, loss)
    assert after[3] > 0
    assert torch.equal(after[[0, 1, 2, 4, 5, 6, 7]], before[[0, 1, 2, 4, 5, 6, 7]])


def test_expected_lengths_of_posteriors_that_are_nearly_certain() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(6, 3), torch.randn(5, 6)
    with torch.no_grad():
        model.bias += torch.tensor([62.0, 0.0, 0.0])
    double = copy.deepcopy(model).double()
    for kind in ("mean", "rms"):
        scores = expected_gradient_length(model, x, kind=kind).scores
        wanted = expected_gradient_length(double, x.double(), kind=kind).scores
        assert torch.allclose(scores, wanted, rtol=1e-3, atol=0)
    norms = gradient_norms(model, x, "entropy")
    assert torch.allclose(norms, gradient_norms(double, x.double(), "entropy"), rtol=1e-3, atol=0)
    estimate = estimated_rms_length(model, x * 0 + x[:1], probes=8)
    of_double = estimated_rms_length(double, x.double() * 0 + x[:1].double(), probes=8)
    assert torch.allclose(estimate.scores, of_double.scores, rtol=1e-3, atol=0)


def test_pieces_and_half_precision() -> None:
    torch.manual_seed(0)
    model, x = dense()
    tiny = label_free(lambda outputs: outputs.square().sum(dim=1) * 1e-24)
    wanted = gradient_norms(copy.deepcopy(model).double(), x.double(), tiny)
    assert torch.allclose(gradient_norms(model, x, tiny, max_memory=100), wanted, rtol=1e-4, atol=0)
    half = gradient_norms(model, x, tiny, dtype=torch.bfloat16)
    assert torch.allclose(half, wanted, rtol=5e-2, atol=0)
    dropout = nn.Sequential(model, nn.Dropout(0.5)).train()
    torch.manual_seed(1)
    norms = gradient_norms(dropout, x, tiny)
    torch.manual_seed(1)
    once = gradient_norms(dropout, x, lambda outputs: outputs.square().sum(dim=1))
    assert torch.allclose(norms, once * 1e-24, rtol=1e-4, atol=0)


def test_a_custom_function_never_meets_scaled_gradients() -> None:
    torch.manual_seed(0)
    model, x = WithCustomFunction(), torch.randn(5, 6)
    tiny = lambda outputs: outputs.square().sum(dim=1) * 1e-26  # noqa: E731
    wanted = gradient_norms(copy.deepcopy(model).double(), x.double(), tiny)
    with pytest.warns(GradientNormWarning, match="one sample at a time"):
        norms = gradient_norms(model, x, tiny)
    assert torch.allclose(norms, wanted, rtol=1e-4, atol=0)


def test_losses_that_are_flat_take_no_other_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = dense()
    calls: list[int] = []
    model[0].register_forward_hook(lambda module, args, out: calls.append(len(out)))
    margin = lambda outputs: (0.1 - outputs[:, 0]).clamp(min=0)  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norms = gradient_norms(model, x, margin)
    assert bool((norms == 0).any())
    assert bool((norms > 0).any())

    def refuse(*_: Any) -> None:
        raise AssertionError("the losses were scaled")

    monkeypatch.setattr(recording, "reduce_scaled", refuse)
    assert torch.equal(gradient_norms(model, x, margin), norms)


SIZES = torch.tensor([1.0, 1e-15, 1e-22, 1e-25, 1e-30, 1e-36, 1e21, 1e25, 1e30, 0.0])
"""Of the inputs: the squares of most of them are outside float32, and their gradients are not."""
RATES = torch.where(SIZES > 1, 1e-3 / SIZES, 1.0)
"""Of the losses, so that no gradient is large."""


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (x.transpose(0, 1) @ self.weight).transpose(0, 1)


def rated_loss(outputs: Tensor) -> Tensor:
    return outputs.flatten(1).sum(dim=1) * RATES.to(outputs)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 3, bias=False), (6,)),
        (nn.Linear(64, 64, bias=False), (5, 64)),
        (nn.Linear(256, 256, bias=False), (3, 256)),
        (nn.Conv2d(32, 64, 3, bias=False), (32, 4, 4)),
        (nn.Conv2d(32, 64, 1, bias=False), (32, 2, 2)),
        (nn.Conv1d(3, 4, 3, bias=False), (3, 20)),
        (Stack(), (3, 6)),
    ],
)
def test_inputs_whose_squares_leave_float32(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(len(SIZES), *shape) * SIZES.view(-1, *(1,) * len(shape))
    for _ in range(2):  # a batch that is proven, and one that is not
        wanted = check_norms(layer, x, rated_loss, rtol=1e-5)
        sketches = gradient_sketches(layer, x, rated_loss, dim=8)
        assert torch.allclose(sketches.norms, wanted, rtol=1e-5, atol=0)


def _squares(outputs: Tensor) -> Tensor:
    return outputs.square().sum(dim=1)


@pytest.mark.parametrize("power", [-38, -30, -24, 20, 26, 34])
def test_batches_whose_squares_all_leave_float32_go_by_kernels(
    power: int, recwarn: pytest.WarningsRecorder
) -> None:
    """Norms of zero, or infinite ones, stood for the size of gradients that were compared."""
    torch.manual_seed(0)
    for make in (dense, convolutional, positions):
        model, x = make()
        check_norms(model, x, lambda z: z.flatten(1).tanh().sum(dim=1) * 10.0**power, rtol=1e-4)
    assert not [w for w in recwarn if issubclass(w.category, GradientNormWarning)]


class Fading(nn.Module):
    """Layers behind each of which a gradient is smaller by `factor`."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        z = self.second(self.first(x) * self.factor + x)
        return self.last(z * self.factor) * self.factor


@pytest.mark.parametrize("factor", [1e-8, 1e-11, 1e-13, 1e-14])
def test_layers_that_only_scaled_losses_reach(
    factor: float, recwarn: pytest.WarningsRecorder
) -> None:
    """An untrained deep network fades so; it went one sample at a time, where it is tried first."""
    torch.manual_seed(0)
    model, x = Fading(factor), torch.randn(2, 6)
    with torch.no_grad():
        model.last.bias.zero_()
    check_norms(model, x, _squares, rtol=1e-4)
    assert not [w for w in recwarn if issubclass(w.category, GradientNormWarning)]


def test_uses_that_batches_reach_in_turn_are_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one batch had shown was forgotten with the next, which had not reached it."""
    torch.manual_seed(0)
    left, right = nn.Linear(6, 5), nn.Linear(6, 5)
    head = nn.Linear(5, 3)

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = left, right, head

        def forward(self, x: Tensor) -> Tensor:
            gates = x[:, :1].clamp(0, 1), (-x[:, :1]).clamp(0, 1)
            z: Tensor = self.head(self.left(x) * gates[0] + self.right(x) * gates[1])
            return z

    probes = []
    probe = recording.Forward.probe

    def counted(self: Any, losses: Tensor) -> Any:
        probes.append(losses.dtype)
        return probe(self, losses)

    monkeypatch.setattr(recording.Forward, "probe", counted)
    model, counts = Gated(), []
    for sign in (1, -1, 1, -1, 1, -1):
        x = torch.randn(4, 6)
        x[:, 0] = sign * x[:, 0].abs()
        norms = gradient_norms(model, x, _squares)
        wanted = gradient_norms(copy.deepcopy(model).double(), x.double(), _squares)
        torch.testing.assert_close(norms, wanted, rtol=1e-4, atol=0)
        counts.append(probes.count(torch.float32))
    assert counts[1] > counts[0] > 0
    assert set(counts[2:]) == {counts[1]}
