"""The batch size that fits."""

from __future__ import annotations

import torch
from torch import nn

from upslope.gradnorm import samples_that_fit


def test_it_counts_what_one_sample_saves() -> None:
    model = nn.Sequential(nn.Linear(100, 1000), nn.Tanh(), nn.Linear(1000, 10))
    # Saved for the backward pass: the input (100) and tanh's output (1000), four bytes each.
    each = 3 * 4 * 1100
    assert samples_that_fit(model, torch.randn(5, 100), memory=7 * each) == 7
    assert samples_that_fit(model, torch.randn(5, 100), memory=1) == 1
    assert samples_that_fit(model, torch.randn(1, 100)) == (4 << 30) // each


def test_parameters_do_not_count() -> None:
    wide = nn.Linear(4000, 4000)
    assert samples_that_fit(wide, torch.randn(1, 4000), memory=3 * 4 * 4000 * 9) == 9
