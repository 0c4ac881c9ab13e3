"""A weight that meets many tensors of one shape is expanded once, where that is the same."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_agrees, norms_one_by_one, watched
from torch import Tensor, nn

from upslope.gradnorm import entropy_over, gradient_norms
from upslope.gradnorm.kernels.expand import Expansion

N = 5


class Gated(nn.Module):
    """A network with a scale s, a shift b and a head."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.s, self.b = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))
        self.head = nn.Linear(width, 3)


class Recurrence(Gated):
    """(n, t, width): steps with one scale, one shift and a gate that is made of the shift."""

    def forward(self, x: Tensor) -> Tensor:
        h, gate = torch.zeros_like(x[:, 0]), torch.sigmoid(self.b)
        for t in range(x.shape[1]):
            h = torch.tanh(h * self.s + x[:, t] + self.b) * gate
        return self.head(h)


class Transposes(Gated):
    """(n, n, width): the same weight, where the samples are in front and where they are not."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.tanh(x * self.s) + self.b
        columns = torch.tanh(x.transpose(0, 1) * self.s) * self.b
        return self.head(rows.sum(1) + columns.cumsum(0).sum(0))


class Sorts(Gated):
    """(n, width): the same weight before and after the samples are sorted, and put back."""

    def forward(self, x: Tensor) -> Tensor:
        order = x.sum(1).argsort()
        y = (torch.tanh(x * self.s) + self.b)[order]
        y = torch.tanh(y * self.s + self.b)
        return self.head(y[order.argsort()])


class LooksFirst(Gated):
    """(n, width): takes the weights without gradients first."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            size = (x * self.s + self.b).abs().amax(1, keepdim=True)
        return self.head(torch.tanh(x * self.s + self.b) / size)


class WritesToWeight(Gated):
    """(n, width): what is made of a weight is another one after it was written to."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.s * 2
        y = torch.tanh(x + w)
        w = w.mul_(self.b)
        return self.head(torch.tanh(y + w))


@pytest.mark.parametrize(
    ("model", "shape", "path"),
    [
        (Recurrence, (N, 4, 6), "kernels"),
        (Transposes, (N, N, 6), "kernels"),
        (Transposes, (N, 4, 6), "kernels"),
        (Sorts, (N, 6), "kernels"),
        (LooksFirst, (N, 6), "kernels"),
        (WritesToWeight, (N, 6), "one by one"),
    ],
)
def test_norms_are_exact(model: type[Gated], shape: tuple[int, ...], path: str) -> None:
    torch.manual_seed(0)
    assert_agrees(model(), torch.randn(shape), path=path)


def test_entries_that_share_their_memory_have_gradients_of_their_own() -> None:
    torch.manual_seed(0)
    model, x = Recurrence().double(), torch.randn(N, 4, 6, dtype=torch.float64)
    gradient_norms(model, x, entropy_over(1))  # as it is seen first, so that nothing is proven anew
    model.s.data = torch.randn(1, dtype=torch.float64).expand(6)
    model.b.data = torch.randn(1, dtype=torch.float64).expand(6)
    norms = gradient_norms(model, x, entropy_over(1))
    torch.testing.assert_close(norms, norms_one_by_one(model, x), rtol=1e-9, atol=0)


def test_one_use_for_all_steps() -> None:
    torch.manual_seed(0)
    with watched() as seen:
        gradient_norms(Recurrence(), torch.randn(N, 9, 6), entropy_over(1))
    assert seen.operators.count(Expansion.name) == 3  # s, b, and the gate
