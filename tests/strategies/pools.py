"""Pools to select from, with made-up signals of the right shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from upslope.pool import Need, PoolView

CLASSES = 4
WIDTH = 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_signal(need: Need, n: int, rng: torch.Generator) -> Tensor:
    if need.name == "probabilities":
        return (2 * torch.randn(n, CLASSES, generator=rng)).softmax(dim=1)
    if need.name == "predicted-classes":
        return torch.eye(CLASSES)[torch.randint(CLASSES, (n,), generator=rng)]
    if need.name in ("features", "gradient-sketch"):
        return torch.randn(n, WIDTH, generator=rng)
    if need.name == "mc-posteriors":
        return (2 * torch.randn(n, 5, CLASSES, generator=rng)).softmax(dim=2)
    return torch.rand(n, generator=rng)


def make_pool(needs: tuple[Need, ...], n: int, labelled: int, seed: int = 0) -> PoolView:
    rng = generator(seed)
    return PoolView(
        candidates=[f"u{i:03d}" for i in range(n)],
        signals={need: make_signal(need, n, rng) for need in needs},
        labelled=[f"l{i:03d}" for i in range(labelled)],
        labelled_signals={
            need: make_signal(need, labelled, rng) for need in needs if need.labelled
        },
        labels=torch.randint(CLASSES, (labelled,), generator=rng),
        look_ahead=lambda ids: float(sum(hash_of(id_) for id_ in ids)),
    )


def hash_of(id_: str) -> int:
    """A figure that a sample adds: the same whatever the order."""
    return int(id_[1:]) * 7919 % 101


def permuted(pool: PoolView, seed: int = 1) -> PoolView:
    """The same pool, its candidates and its labelled set in another order."""
    rng = generator(seed)
    order = torch.randperm(len(pool), generator=rng)
    back = torch.randperm(len(pool.labelled), generator=rng)
    assert pool.labels is not None
    return PoolView(
        candidates=[pool.candidates[i] for i in order],
        signals={need: values[order] for need, values in pool.signals.items()},
        labelled=[pool.labelled[i] for i in back],
        labelled_signals={need: values[back] for need, values in pool.labelled_signals.items()},
        labels=pool.labels[back],
        look_ahead=pool.look_ahead,
    )
