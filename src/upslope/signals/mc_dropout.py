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
Where a branch goes around that layer, as in a residual block, the passes are whole forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from upslope.errors import ModelError
from upslope.options import Options
from upslope.posterior import entropy
from upslope.tasks.base import Task

ROWS = 2**16
"""Most rows, samples times passes, behind the first dropout layer at once."""

INPUT_ROWS = 2**10
"""The same for whole forwards."""

# How many trailing dimensions of (n, c, ...) are dropped together, by kind of layer.
CHANNELWISE: dict[type[nn.Module], int] = {
    nn.Dropout: 0,
    nn.Dropout1d: 1,
    nn.Dropout2d: 2,
    nn.Dropout3d: 3,
}

Passes = Annotated[int, Field(ge=2, description="T, the number of passes; the paper takes 1000")]
Seed = Annotated[int, Field(ge=0, description="which units each pass drops")]


def posteriors(model: nn.Module, task: Task, inputs: Tensor, passes: int, seed: int) -> Tensor:
    """T posteriors of every sample, on the CPU: (n, T, C, ...).

    Raises:
        ModelError: no dropout layer would drop anything.
    """
    layers = [m for m in model.modules() if type(m) in CHANNELWISE and _rate(m) > 0]
    if not layers:
        raise ModelError(
            f"Expected {type(model).__name__} to have a dropout layer that drops something but "
            "none of its modules is an nn.Dropout with p above 0. Build the network with dropout, "
            "as with `--set model.dropout=0.5`; functional dropout cannot be seen."
        )
    at_once = max(1, ROWS // passes)
    parts = []
    with torch.no_grad():
        for x in inputs.split(at_once):  # type: ignore[no-untyped-call]
            logits = _behind_the_first(model, layers, task, x, passes, seed)
            if logits is None:
                logits = _from_the_start(model, layers, task, x, passes, seed)
            p = logits.float().softmax(dim=1)
            parts.append(p.reshape(len(x), passes, *p.shape[1:]).cpu())
    return torch.cat(parts)


def _behind_the_first(
    model: nn.Module, layers: list[nn.Module], task: Task, x: Tensor, passes: int, seed: int
) -> Tensor | None:
    """Logits of n T rows, sample by sample; None where a branch past the dropout layer, which
    still has n rows, meets the T passes of the other."""
    with _dropping(layers, len(x), passes, seed):
        try:
            logits = task.logits(model(x))
        except RuntimeError:
            return None
    return logits if len(logits) == len(x) * passes else None


def _from_the_start(
    model: nn.Module, layers: list[nn.Module], task: Task, x: Tensor, passes: int, seed: int
) -> Tensor:
    """The same at the price of T whole forwards."""
    at_once = max(1, INPUT_ROWS // passes)
    with _dropping(layers, None, passes, seed):
        parts = x.split(at_once)  # type: ignore[no-untyped-call]
        return torch.cat(
            [task.logits(model(part.repeat_interleave(passes, dim=0))) for part in parts]
        )


@contextmanager
def _dropping(layers: list[nn.Module], n: int | None, passes: int, seed: int) -> Iterator[None]:
    """Dropout with fixed masks on n T rows; n rows become n T at the first layer that runs."""

    def drop(layer: nn.Module, place: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        rng = torch.Generator()

        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            rows = output.repeat_interleave(passes, dim=0) if len(output) == n else output
            shape = [*rows.shape[1:]]
            whole = CHANNELWISE[type(layer)]
            shape[len(shape) - whole :] = [1] * whole
            # The same masks for every batch: they depend on the seed and the layer alone.
            keep = 1 - _rate(layer)
            masks = torch.rand(passes, *shape, generator=rng.manual_seed(seed + 7919 * place))
            masks = (masks < keep).to(rows) / max(keep, 1e-12)
            return (rows.reshape(-1, passes, *rows.shape[1:]) * masks).flatten(0, 1)

        return hook

    handles = [m.register_forward_hook(drop(m, i)) for i, m in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rate(layer: nn.Module) -> float:
    return float(layer.p)  # type: ignore[arg-type]


def bald(p: Tensor) -> Tensor:
    """Mutual information of label and network. p: (n, T, C, ...), returns (n, ...)."""
    n, passes = p.shape[:2]
    pass_entropies = entropy(p.flatten(0, 1))
    pass_entropies = pass_entropies.reshape(n, passes, *pass_entropies.shape[1:]).mean(dim=1)
    return (entropy(p.mean(dim=1)) - pass_entropies).clamp(min=0)


def variation_ratio(p: Tensor) -> Tensor:
    """Share of the passes that disagree with the most frequent class. p: (n, T, C, ...)."""
    votes: Tensor = nn.functional.one_hot(p.argmax(dim=2), p.shape[2]).float().mean(dim=1)
    return 1 - votes.amax(dim=-1)


def mean_std(p: Tensor) -> Tensor:
    """Mean over classes of the (population) standard deviation. p: (n, T, C, ...)."""
    return p.std(dim=1, correction=0).mean(dim=1)


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
