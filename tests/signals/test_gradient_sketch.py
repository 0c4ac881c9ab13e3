"""The sketch signal against gradients that autograd writes out, sample by sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from upslope.errors import UpslopeError
from upslope.pool import Need
from upslope.signals import build
from upslope.tasks.classification import Classification
from upslope.tasks.segmentation import Segmentation


def network(dense: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh()]
    layers += [nn.Conv2d(4, 3, 1)] if dense else [nn.Flatten(), nn.Linear(64, 3)]
    return nn.Sequential(*layers).eval()


def gradients(model: nn.Module, x: Tensor, loss: str) -> Tensor:
    rows = []
    for one in x:
        log_p = model(one[None]).log_softmax(dim=1)
        each = -(log_p.exp() * log_p).sum(dim=1) if loss == "entropy" else -log_p.amax(dim=1)
        parts = torch.autograd.grad(each.mean(), list(model.parameters()))
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("loss", ["entropy", "likely-label"])
def test_lengths_are_exact_and_angles_near(loss: str, dense: bool) -> None:
    model, x = network(dense), torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    task = Segmentation(num_classes=3) if dense else Classification(num_classes=3)
    v = build(Need.of("gradient-sketch", loss=loss, dim=2048)).compute(model, task, x)
    assert v.shape == (12, 2048)
    g = gradients(model, x, loss)
    assert torch.allclose(v.norm(dim=1), g.norm(dim=1), rtol=1e-4)
    cosines, expected = (torch.nn.functional.normalize(m) for m in (v, g))
    assert (cosines @ cosines.T - expected @ expected.T).abs().max() < 5 * (2 / 2048) ** 0.5


def test_one_projection_for_all_batches() -> None:
    model, x = network(), torch.randn(6, 1, 4, 4)
    signal, task = build(Need.of("gradient-sketch", dim=64)), Classification(num_classes=3)
    parts = torch.cat([signal.compute(model, task, part) for part in x.split([1, 2, 3])])
    assert torch.allclose(parts, signal.compute(model, task, x), atol=1e-5)


def test_last_layer_alone() -> None:
    model, x = network(), torch.randn(5, 1, 4, 4)
    need = Need.of("gradient-sketch", dim=64, parameters="last")
    v = build(need).compute(model, Classification(num_classes=3), x)
    last = gradients(model, x, "entropy")[:, -(64 * 3 + 3) :]
    assert torch.allclose(v.norm(dim=1), last.norm(dim=1), rtol=1e-4)


def test_wrong_dimension_is_refused() -> None:
    with pytest.raises(UpslopeError, match="`dim`"):
        build(Need.of("gradient-sketch", dim=0))
