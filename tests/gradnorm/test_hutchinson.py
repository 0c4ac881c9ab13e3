"""Random probes estimate the exact root mean square, as well as they say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from upslope.errors import GradientNormError
from upslope.gradnorm import estimated_rms_length, expected_gradient_length
from upslope.gradnorm.trace import microbatches

X = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 30)).double().eval()


@pytest.mark.long
def test_errors_are_as_large_as_stated_and_no_bias_is_seen() -> None:
    model = network()
    exact = expected_gradient_length(model, X, kind="rms").scores
    deviations = []
    for seed in range(100):
        found = estimated_rms_length(model, X, probes=24, seed=seed)
        deviations.append((found.scores - exact) / found.standard_error)
    every = torch.stack(deviations)  # (100, 40): about standard normal
    assert 0.8 < float(every.square().mean().sqrt()) < 1.3
    # Samples share the signs of a seed: the mean over seeds and samples has at least 100 draws.
    assert abs(float(every.mean())) < 3 / 100**0.5


def test_more_probes_come_closer() -> None:
    model = network()
    exact = expected_gradient_length(model, X, kind="rms").scores

    def error(probes: int) -> float:
        found = estimated_rms_length(model, X, probes=probes).scores
        return float(((found - exact) / exact).abs().mean())

    assert error(256) < 0.5 * error(8)
    assert error(256) < 0.05


def test_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    whole = estimated_rms_length(model, X)
    monkeypatch.setattr(microbatches, "_LARGEST", 1)
    monkeypatch.setattr(microbatches, "_BLOCK", 0)
    microbatches._sizes.clear()
    for one, other in zip(whole, estimated_rms_length(model, X), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=0)


def test_one_probe_has_no_spread() -> None:
    with pytest.raises(GradientNormError, match="at least 2"):
        estimated_rms_length(network(), X, probes=1)
