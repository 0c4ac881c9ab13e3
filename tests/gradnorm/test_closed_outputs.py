"""Outputs that nobody can take apart, of models in which the data say where entries go."""

from __future__ import annotations

import torch
from oracle import TOLERANCE, norms_one_by_one, relative_error
from torch import Tensor, nn

from upslope.gradnorm import gradient_norms

WIDTH = 5


class Closed:
    """A pair of logits and what no library knows how to open."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class SortedByExpert(nn.Module):
    """Rows of all samples, sorted by the expert that each has chosen, and sorted back."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 3)
        self.double().eval()

    def logits(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        which = self.router(rows).argmax(dim=1)
        order = which.sort().indices
        sizes = which.bincount(minlength=3).tolist()
        parts = zip(rows[order].split(sizes), self.experts, strict=True)
        moved = torch.cat([expert(part) for part, expert in parts])
        y = torch.zeros_like(rows).index_add(0, order, moved)
        return self.head(y.unflatten(0, x.shape[:2]).mean(dim=1))

    def forward(self, x: Tensor) -> Closed:
        return Closed(self.logits(x))


def test_the_same_indices_again_are_not_refused():
    torch.manual_seed(0)
    model, x = SortedByExpert(), torch.randn(2, 6, WIDTH, dtype=torch.float64)

    def entropy_of_one(outputs: Closed, _: int) -> Tensor:
        log_p = outputs.logits.log_softmax(dim=1)
        return -(log_p.exp() * log_p).sum()

    truth = norms_one_by_one(model, x, entropy_of_one)
    for _ in range(4):
        assert relative_error(gradient_norms(model, x, "entropy"), truth) < TOLERANCE
