"""Monte-Carlo dropout: T posteriors per sample, each from a network with some units dropped.

With p_t the posterior of pass t and p = (1/T) sum_t p_t (Gal, Islam and Ghahramani 2017):

    bald             H[p] - (1/T) sum_t H[p_t]           (Houlsby et al. 2011), in nats
    entropy          H[p]
    variation-ratio  1 - (votes of the class most often first) / T
    mean-std         mean over classes of the standard deviation of p_t over t

Only dropout is random: BatchNorm and everything else stay in eval mode. Pass t drops the same
units for every sample, as one network drawn from the posterior over weights would. So a score does
not depend on the batch that its sample came in, and joint quantities over samples have a meaning.
What lies before the first dropout layer runs once; from there on, the T passes run as one batch.
Where a branch goes around that layer, as in a residual block, the passes are whole forwards; see
`dropped_units`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from upslope.options import Options
from upslope.posterior import entropy
from upslope.signals.dropped_units import DroppedUnits
from upslope.tasks.base import Task

ROWS = 2**16
"""Most rows, samples times passes, behind the first dropout layer at once."""

Passes = Annotated[int, Field(ge=2, description="T, the number of passes; the paper takes 1000")]
Seed = Annotated[int, Field(ge=0, description="which units each pass drops")]


def posteriors(model: nn.Module, task: Task, inputs: Tensor, passes: int, seed: int) -> Tensor:
    """T posteriors of every sample, on the CPU: (n, T, C, ...).

    Raises:
        ModelError: no dropout layer would drop anything, or none runs.
    """
    network = DroppedUnits(model, task, passes, seed)
    parts = []
    with torch.no_grad():
        for x in inputs.split(max(1, ROWS // passes)):  # type: ignore[no-untyped-call]
            p = network.logits(x).float().softmax(dim=1)
            parts.append(p.reshape(len(x), passes, *p.shape[1:]).cpu())
    return torch.cat(parts)


def bald(p: Tensor) -> Tensor:
    """Mutual information of label and network. p: (n, T, C, ...), returns (n, ...).

    As the mean of KL(p_t || p), for the two entropies agree in most of their digits.
    """
    parts = _Passes(p)
    total = torch.zeros_like(parts.rest)
    for others, rest in parts:
        total += (torch.xlogy(others, others) - torch.xlogy(others, parts.others)).sum(dim=1)
        total += torch.special.xlog1py(1 - rest, -rest) - (1 - rest) * torch.log1p(-parts.rest)
    return (total / p.shape[1]).clamp(min=0).to(p.dtype)


def variation_ratio(p: Tensor) -> Tensor:
    """Share of the passes that disagree with the most frequent class. p: (n, T, C, ...)."""
    votes: Tensor = nn.functional.one_hot(p.argmax(dim=2), p.shape[2]).float().mean(dim=1)
    return 1 - votes.amax(dim=-1)


def mean_std(p: Tensor) -> Tensor:
    """Mean over classes of the (population) standard deviation. p: (n, T, C, ...)."""
    parts = _Passes(p)
    of_others, of_first = torch.zeros_like(parts.others), torch.zeros_like(parts.rest)
    for others, rest in parts:
        of_others += (others - parts.others).square()
        of_first += (rest - parts.rest).square()
    variances = torch.cat([of_others, of_first[:, None]], dim=1) / p.shape[1]
    return (variances.sqrt().sum(dim=1) / p.shape[2]).to(p.dtype)


class _Passes:
    """Posteriors (n, T, C, ...), pass by pass, in double precision.

    The class that is most probable on average is left out: where a network is sure, its share
    rounds to 1, but the sum of the others, `rest`, has all its digits. others: (n, C, ...), with 0
    at that class, and rest: (n, ...); of the object itself, their means over the passes.
    """

    def __init__(self, p: Tensor) -> None:
        self.p = p
        mean = p.mean(dim=1, dtype=torch.float64)
        self.first = mean.argmax(dim=1, keepdim=True)
        self.others, self.rest = torch.zeros_like(mean), torch.zeros_like(mean[:, 0])
        for others, rest in self:
            self.others += others / p.shape[1]
            self.rest += rest / p.shape[1]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for part in self.p.unbind(dim=1):
            q = part.double()
            others = (q / q.sum(dim=1, keepdim=True)).scatter(1, self.first, 0.0)
            yield others, others.sum(dim=1).clamp(max=1)


MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "bald": bald,
    "entropy": lambda p: entropy(p.mean(dim=1)),
    "variation-ratio": variation_ratio,
    "mean-std": mean_std,
}


@dataclass(frozen=True)
class McDropout(Options):
    """Disagreement of T networks with units dropped, T passes behind the first dropout: (n,)."""

    name: ClassVar[str] = "mc-dropout"

    measure: Annotated[
        Literal["bald", "entropy", "variation-ratio", "mean-std"],
        Field(description="what is read from the T posteriors"),
    ] = "bald"
    passes: Passes = 100
    seed: Seed = 0

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:
        """(n,) for a prepared batch; a dense task reduces its positions."""
        p = posteriors(model, task, inputs, self.passes, self.seed)
        return task.per_sample(MEASURES[self.measure](p), p.mean(dim=1).argmax(dim=1))


@dataclass(frozen=True)
class McPosteriors(Options):
    """The T posteriors of Monte-Carlo dropout themselves: (n, T, classes)."""

    name: ClassVar[str] = "mc-posteriors"

    passes: Passes = 100
    seed: Seed = 0

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:
        """(n, T, C) for a prepared batch."""
        return posteriors(model, task, inputs, self.passes, self.seed)
