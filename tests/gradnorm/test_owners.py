"""Sizes that agree by chance: rows, outputs and tables that are as long as the batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from oracle import norms_one_by_one, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.errors import GradientNormError, GradientNormWarning
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.proofs.statistics import StatisticsWatch

D = torch.float64


def silently(model: nn.Module, x: Tensor, loss: Callable, point_loss: Callable | None = None):
    """Assert that norms are those of single samples, and that nothing is told."""
    truth = norms_one_by_one(model, x, lambda z, i: (point_loss or loss)(z)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientNormWarning)
        norms = gradient_norms(model, x, loss)
    assert relative_error(norms, truth) < 1e-9


BY_ROWS = {
    "counted": lambda z: torch.stack([(z[k] * z[k]).sum() for k in range(len(z))]),
    "iterated": lambda z: torch.stack([r.square().sum() for r in z]),
    "unbound": lambda z: torch.stack([-r.log_softmax(0)[1] + r.norm() for r in z.unbind(0)]),
    "joined": lambda z: torch.cat([r.softmax(1).square().sum(1) for r in z.split(1)]),
    "written": lambda z: written(z),
    "transposed": lambda z: (z.T * z.T).sum(0),
    "transposed rows": lambda z: torch.stack([*z.T]).square().sum(0),
    "a class beside": lambda z: torch.cat([torch.zeros_like(z), z], 1).log_softmax(1)[:, 0],
}


def written(z: Tensor) -> Tensor:
    out = torch.zeros(len(z), dtype=z.dtype)
    for k, row in enumerate(z):
        out[k] = row.exp().mean()
    return out


@pytest.mark.parametrize("loss", BY_ROWS.values(), ids=BY_ROWS.keys())
@pytest.mark.parametrize("n", [2, 4, 5, 10])
def test_losses_row_by_row_where_rows_are_as_long_as_the_batch(loss, n) -> None:
    torch.manual_seed(n)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 10)).double()
    silently(model, torch.randn(n, 5, dtype=D), loss)


@pytest.mark.parametrize("n", [2, 4])
def test_losses_row_by_row_that_hold_labels(n) -> None:
    labels = torch.arange(n)
    torch.manual_seed(n)
    model, x = nn.Linear(5, 4).double(), torch.randn(n, 5, dtype=D)
    truth = norms_one_by_one(model, x, lambda z, i: F.cross_entropy(z, labels[i : i + 1]))

    def loss(z: Tensor) -> Tensor:
        rows = zip(z, labels, strict=True)
        return torch.stack([r.logsumexp(0) - r[label] for r, label in rows])

    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientNormWarning)
        assert relative_error(gradient_norms(model, x, loss), truth) < 1e-9


class ByRows(nn.Module):
    """A model that goes through its batch row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.last(torch.tanh(self.first(r - r.mean()))) for r in x])


class TimeFirst(nn.Module):
    """Outputs (steps, n, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).transpose(0, 1)


class Prototypes(nn.Module):
    """Vectors of samples, and a table to compare them with: trained, or held constant."""

    def __init__(self, trained: bool) -> None:
        super().__init__()
        self.layer, self.trained = nn.Linear(5, 4), trained
        self.table = nn.Parameter(torch.randn(3, 4))
        self.double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), self.table if self.trained else self.table.detach()


def nearest(outputs: tuple[Tensor, Tensor]) -> Tensor:
    return torch.logsumexp(outputs[0] @ outputs[1].T, 1)


@pytest.mark.parametrize("n", [3, 4, 5])
def test_lengths_that_agree_by_chance(n) -> None:
    torch.manual_seed(n)
    x = torch.randn(n, 4, 5, dtype=D)
    silently(TimeFirst(), x, lambda z: z.square().sum((0, 2)))
    silently(ByRows(), x[:, 0], lambda z: z.square().sum(1))
    for trained in (True, False):
        silently(Prototypes(trained), x[:, 0], nearest)


class Hidden(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]):
        super().__init__()
        self.first, self.last, self.between = nn.Linear(5, 8), nn.Linear(8, 3), between
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.between(self.first(x))))


def copied_and_clipped(h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for k in range(len(h)):
        out[k] = h[k] * torch.clamp(1e6 / h[0].detach().abs().max(), max=1)
    return out


LATER = {
    "by the first": lambda h: h * torch.clamp(1e6 / h[0].detach().abs().max(), max=1),
    "row by row": copied_and_clipped,
    "by a sum of rows": lambda h: h * (1e6 / sum(r.detach().abs().sum() for r in h)).clamp(max=1),
    "after a transposition": lambda h: h * torch.clamp(1e6 / h.T.detach().abs().amax(1), max=1),
    "in another order": lambda h: torch.where(h.detach().abs().max() > 1e6, h.flip(0), h),
}  # fmt: skip


@pytest.mark.parametrize("between", LATER.values(), ids=LATER.keys())
def test_statistics_of_other_rows_are_told_and_refused_once_they_count(between) -> None:
    torch.manual_seed(0)
    model, x = Hidden(between), torch.randn(6, 5, dtype=D)
    with pytest.warns(GradientNormWarning, match="may depend on the other samples"):
        gradient_norms(model, x, lambda z: z.square().sum(1))
    x[0] *= 1e8
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, x, lambda z: z.square().sum(1))


@pytest.mark.parametrize(
    "mix",
    [
        lambda z: torch.stack([(r * z[0]).sum() for r in z]),
        lambda z: torch.stack([r.sum() / z.detach().sum() for r in z]),
        lambda z: torch.stack([r.square().sum() for r in z]).cumsum(0),
        lambda z: (z.T * z.T).sum(0).flip(0),
    ],
)
def test_losses_row_by_row_that_mix_are_refused(mix) -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 4).double()
    with pytest.raises(GradientNormError, match="enter the losses of others"):
        gradient_norms(model, torch.randn(4, 5, dtype=D), mix)


def test_the_watch_follows_rows_through_operators() -> None:
    watch = StatisticsWatch(4)
    with watch:
        z = watch.mark(torch.randn(4, 4))
        apart = torch.stack([r.exp().sum() for r in z])
        moved = z.T.reshape(2, 2, 4).unsqueeze(0).sum((0, 1, 2))
        both = z[0] - z[1]
    assert not watch.finish([apart, moved])
    assert watch.finish([z, both])
