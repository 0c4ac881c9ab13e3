"""Float32 keeps its digits where the cheap forms of a norm cancel."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle import norms_one_by_one, relative_error
from torch import Tensor, nn

from upslope.gradnorm import gradient_norms


class Centred(nn.Module):
    """A linear layer whose outputs are centred over the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64, bias=False), nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        out: Tensor = self.last((h - h.mean(1, keepdim=True)).tanh().flatten(1))
        return out


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(32, 64, 3, bias=False), nn.InstanceNorm1d(64), nn.Tanh(),
        nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(128, 3),
    )  # fmt: skip


@pytest.mark.parametrize("offset", [0, 300, 1000])
@pytest.mark.parametrize(
    ("make", "shape"), [(Centred, (6, 4, 64)), (convolutional, (6, 32, 7))], ids=["linear", "conv"]
)
def test_inputs_far_from_zero(make, shape, offset) -> None:
    torch.manual_seed(0)
    model = make().eval()
    first = next(name for name, _ in model.named_parameters())
    for shift in (0, offset):
        x = torch.randn(shape) + shift
        norms = gradient_norms(model, x, lambda z: z.square().sum(1), parameters=[first])
        double = copy.deepcopy(model).double()
        for name, p in double.named_parameters():
            p.requires_grad_(name == first)
        truth = norms_one_by_one(double, x.double(), lambda z, _: z.square().sum())
        assert relative_error(norms, truth) < 5e-3
