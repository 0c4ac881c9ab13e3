"""The Winograd forms are the convolution, its input gradient and its weight gradient's norm."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm import gradient_norms
from upslope.gradnorm.kernels import race, winograd
from upslope.gradnorm.kernels.conv_part import ConvPart
from upslope.gradnorm.kernels.geometry import Geometry
from upslope.gradnorm.parts import SCRATCH
from upslope.models import build


@pytest.fixture
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_fused", lambda function: function)


@pytest.mark.usefixtures("_uncompiled")
@pytest.mark.parametrize(
    "shape", [(3, 2, 5, 4, 4), (2, 3, 4, 7, 9), (5, 4, 3, 16, 6), (1, 2, 2, 5, 12)]
)
def test_every_form_is_exact(shape: tuple[int, ...]) -> None:
    n, c, o, h, w = shape
    torch.manual_seed(0)
    x = torch.randn(n, c, h, w, dtype=torch.float64)
    weight, bias = torch.randn(o, c, 3, 3, dtype=torch.float64), torch.randn(o, dtype=torch.float64)
    g = torch.randn(n, o, h, w, dtype=torch.float64)
    y = winograd.conv(x, weight, bias)
    torch.testing.assert_close(y, F.conv2d(x, weight, bias, padding=1), rtol=1e-10, atol=1e-10)
    pulled = winograd.input_gradient(g, weight)
    expected = F.conv_transpose2d(g, weight, padding=1)
    torch.testing.assert_close(pulled, expected, rtol=1e-10, atol=1e-10)
    squares = winograd.sqnorm(x, g, SCRATCH)
    geometry = Geometry((1, 1), (1, 1), (1, 1), 1)
    gradients = ConvPart(x[:, None], g[:, None], geometry, tuple(weight.shape)).dense(slice(0, n))
    torch.testing.assert_close(squares, gradients.flatten(1).square().sum(dim=1), rtol=1e-9, atol=0)


@pytest.mark.usefixtures("_uncompiled")
@pytest.mark.parametrize("winner", ["plain", "winograd"])
def test_the_option_agrees_with_float64_on_a_network(
    winner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: set[str] = set()

    def decided(key: object, forms: dict[str, Callable[[], Tensor]]) -> Tensor:
        name = winner if winner in forms else min(set(forms) - {"winograd"})
        ran.add(name)
        return forms[name]()

    monkeypatch.setattr(race, "fastest", decided)
    torch.manual_seed(0)
    model = build("resnet18-cifar", num_classes=10, input_shape=(3, 32, 32)).eval()
    x = torch.randn(8, 3, 32, 32)
    fast = gradient_norms(model, x, "entropy", compile=True)
    exact = gradient_norms(model.double(), x.double(), "entropy")
    assert float(((fast - exact) / exact).abs().median()) < 1e-5
    assert winner in ran


def test_a_race_runs_each_form_and_remembers_the_winner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "_won", {})
    runs: list[str] = []

    def slow() -> Tensor:
        runs.append("slow")
        time.sleep(0.02)
        return torch.zeros(1)

    def fast() -> Tensor:
        runs.append("fast")
        return torch.ones(1)

    for _ in range(3):
        assert race.fastest("a shape", {"slow": slow, "fast": fast}) == 1
    assert runs.count("slow") == 4
    assert runs[-3:] == ["fast"] * 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_transforms_run() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 32, 8, 8), torch.randn(32, 32, 3, 3)
    assert winograd.fits(x, weight.shape, Geometry((1, 1), (1, 1), (1, 1), 1))
    y = winograd.conv(x, weight, None)
    torch.testing.assert_close(y, F.conv2d(x, weight, padding=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_three_digits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = build("resnet-small", num_classes=5, input_shape=(3, 16, 16)).eval()
    x = torch.randn(24, 3, 16, 16)
    half = gradient_norms(model, x, "entropy", dtype=dtype)
    exact = gradient_norms(model.double(), x.double(), "entropy")
    assert float(((half - exact) / exact).abs().median()) < 2e-2
    assert {p.dtype for p in model.parameters()} == {torch.float64}
