"""Uncertainties of posteriors in single precision against the formulas in double precision."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from upslope.posterior import (
    calibration_bins,
    closeness,
    entropy,
    in_double,
    least_confidence,
    margin,
)
from upslope.signals.mc_dropout import bald
from upslope.signals.temperature import calibration_error
from upslope.tasks.classification import Classification

GAPS = torch.tensor([0.0, 1.0, 3.0, 8.0, 14.0, 17.5, 20.0, 40.0, 60.0])


def logits(classes: int) -> Tensor:
    """Rows whose first class is ahead by more and more: (9, classes)."""
    z = torch.randn(len(GAPS), classes, generator=torch.Generator().manual_seed(classes))
    return z - z[:, :1] - (torch.arange(classes) > 0) * (GAPS[:, None] + 3)


def plain(p: Tensor) -> dict[str, Tensor]:
    """The formulas as they are written."""
    first, second = p.topk(2, dim=1).values.unbind(dim=1)
    return {
        "least-confidence": 1 - first,
        "margin": 1 - (first - second),
        "entropy": -torch.xlogy(p, p).sum(dim=1),
    }


@pytest.mark.parametrize("classes", [2, 3, 100])
def test_sure_posteriors_keep_their_digits(classes: int) -> None:
    """In single precision p_(1) is 1 from a gap of 17 on, and 1 - p_(1) was 0 for all alike."""
    z = logits(classes)[:7]
    expected = plain(z.double().softmax(dim=1))
    p = z.softmax(dim=1)
    for name, values in {
        "least-confidence": least_confidence(p), "margin": closeness(p), "entropy": entropy(p),
    }.items():  # fmt: skip
        assert values.dtype == torch.float32
        assert torch.allclose(values.double(), expected[name], rtol=2e-6, atol=0), name


def test_surest_posteriors_stay_in_order() -> None:
    p = logits(3).softmax(dim=1)
    for measure in (least_confidence, closeness, entropy):
        assert (measure(p).diff() < 0).all()
        assert measure(p)[-1] > 0


def test_ties_and_certainty_are_exact() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0], [0.4, 0.4, 0.2], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert closeness(p).tolist() == [1, 1, 0, 0]
    assert margin(p).tolist() == [0, 0, 1, 1]
    assert least_confidence(p)[2:].tolist() == [0, 0]
    assert entropy(p)[2:].tolist() == [0, 0]
    single = torch.ones(2, 1)
    assert closeness(single).tolist() == entropy(single).tolist() == [0, 0]
    assert margin(single).tolist() == [1, 1]
    assert torch.equal(margin(torch.ones(2, 1, 3)), torch.ones(2, 3))


def test_maps_and_another_dimension() -> None:
    z = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)) * 4
    p = z.softmax(dim=1)
    for measure in (least_confidence, closeness, entropy):
        assert torch.equal(measure(p)[1, 2, 3], measure(p[:, :, 2, 3])[1])
    assert torch.allclose(entropy(p.movedim(1, -1), -1), entropy(p))


def test_mutual_information_of_sure_networks() -> None:
    z = torch.randn(8, 50, 3, generator=torch.Generator().manual_seed(0)) * 0.3
    z[:, :, 0] += torch.arange(8)[:, None] * 3.0
    expected = bald(z.double().softmax(dim=-1))
    assert torch.allclose(bald(z.softmax(dim=-1)).double(), expected, rtol=1e-3, atol=0)


def test_a_confidence_at_an_edge_belongs_to_the_lower_bin() -> None:
    edges = torch.arange(1, 16, dtype=torch.float64) / 15
    assert calibration_bins(edges).tolist() == list(range(15))
    assert calibration_bins(torch.tensor([0.0, 1e-9, 0.07, 1.0])).tolist() == [0, 0, 1, 14]


def test_a_confidence_in_single_precision_belongs_to_the_bin_of_its_number() -> None:
    """0.2 in single precision is above 3 / 15, its product with 15 in single precision is 3."""
    confidence = torch.tensor([0.2, 0.4, 0.8])
    edges = [Fraction(k, 15) for k in (3, 6, 12)]
    assert all(value > edge for value, edge in zip(confidence.tolist(), edges, strict=True))
    assert calibration_bins(confidence).tolist() == [3, 6, 12]


def test_posteriors_in_double_sum_to_one() -> None:
    p = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0)).softmax(dim=-1).half()
    exact = in_double(p)
    assert exact.dtype == torch.float64
    assert torch.allclose(exact.sum(dim=-1), torch.ones(5, 4, dtype=torch.float64), rtol=1e-15)
    sizes = p.double().numpy()
    assert np.allclose(exact.numpy(), sizes / sizes.sum(axis=-1)[..., None], rtol=1e-15)


def test_both_calibration_errors_are_one_number() -> None:
    z = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(200) % 3
    metrics = Classification(3).metrics()
    metrics.update(z, targets)
    error = calibration_error(z.softmax(dim=1), targets)
    assert metrics.compute()["calibration_error"] == pytest.approx(error, rel=1e-12)
