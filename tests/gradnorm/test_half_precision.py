"""Half precision keeps three digits of a norm, and leaves the model's own type alone."""

from __future__ import annotations

import pytest
import torch

from upslope.gradnorm import gradient_norms
from upslope.models import build


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_three_digits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = build("resnet-small", num_classes=5, input_shape=(3, 16, 16)).eval()
    x = torch.randn(24, 3, 16, 16)
    half = gradient_norms(model, x, "entropy", dtype=dtype)
    exact = gradient_norms(model.double(), x.double(), "entropy")
    assert float(((half - exact) / exact).abs().median()) < 2e-2
    assert {p.dtype for p in model.parameters()} == {torch.float64}
