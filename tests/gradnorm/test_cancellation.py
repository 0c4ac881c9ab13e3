"""Float32 keeps its digits where the cheap forms of a norm cancel."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle import norms_one_by_one, relative_error
from torch import Tensor, nn

from upslope.errors import GradientNormError
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


class Attention(nn.Module):
    """Attention whose weights do not depend on the biases of its keys: a shift of all scores."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        scores = (self.query(x) @ self.key(x).mT).softmax(dim=-1)
        out: Tensor = self.head((scores @ self.value(x)).mean(dim=1))
        return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["attention", "instance normalisation"])
def test_gradients_that_are_rounding_alone_are_no_mixing(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    if name == "attention":
        model, bias, x = Attention(), "key.bias", torch.randn(5, 6, 8, dtype=dtype)
    else:
        body: list[nn.Module] = [nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), nn.Flatten()]
        model, bias = nn.Sequential(*body, nn.Linear(64, 3)), "0.bias"
        x = torch.randn(5, 2, 6, 6, dtype=dtype)
    model = model.to(dtype).eval()
    with pytest.raises(GradientNormError, match=f"those of {bias} are what rounding leaves"):
        gradient_norms(model, x, "entropy", parameters=[bias])
    others = [p for p, _ in model.named_parameters() if p != bias]
    torch.testing.assert_close(
        gradient_norms(model, x, "entropy"), gradient_norms(model, x, "entropy", parameters=others)
    )


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.layer(x))
        return h / torch.linalg.vector_norm(h, dim=1, keepdim=True)


def test_a_constant_loss_is_no_mixing_of_samples() -> None:
    """Its gradients are rounding errors, of which no two ways have the same."""
    torch.manual_seed(0)
    model, refusals = Normalised().double(), []
    for _ in range(8):
        try:
            gradient_norms(model, torch.randn(7, 6).double(), lambda out: out.square().sum(dim=1))
        except GradientNormError as error:
            refusals.append(str(error))
    assert refusals
    assert all("are what rounding leaves" in refusal for refusal in refusals)
