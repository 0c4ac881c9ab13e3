"""A made-up pool: features in clusters, and every signal made from them as a network would.

A class has several clusters of several sizes, so that there is something to cover; posteriors are
those of a linear layer on the features, sure inside a cluster and unsure between two; sketches of
gradients are long where the posterior is unsure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.pool import Need, PoolView

CLUSTERS = 5
"""A class."""
RANK = 40
"""Directions in which the samples of a cluster differ, as far as there are features."""


@dataclass(frozen=True)
class Size:
    """n candidates, m labelled, d features, C classes."""

    candidates: int
    labelled: int
    features: int
    classes: int


def made_up(needs: Iterable[Need], size: Size, seed: int = 0) -> PoolView:
    """The pool with these signals over it."""
    rng = torch.Generator().manual_seed(seed)
    total = size.candidates + size.labelled
    h, z = _features(total, size, rng)
    order = torch.randperm(total, generator=rng)
    new, known = order[: size.candidates], order[size.candidates :]
    signals: dict[Need, Tensor] = {}
    of_labelled: dict[Need, Tensor] = {}
    for need in needs:
        signals[need] = _signal(need, h[new], z[new], rng)
        if need.labelled:
            of_labelled[need] = _signal(need, h[known], z[known], rng)
    return PoolView(
        candidates=[f"c{i:06d}" for i in range(len(new))],
        signals=signals,
        labelled=[f"l{i:06d}" for i in range(len(known))],
        labelled_signals=of_labelled,
        labels=z[known].argmax(dim=1),
    )


def _features(total: int, size: Size, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features (total, d), not negative, as behind a ReLU; logits (total, C)."""
    d, c = size.features, size.classes
    centres = torch.randn(c, 1, d, generator=rng) + 0.7 * torch.randn(c, CLUSTERS, d, generator=rng)
    shares = torch.rand(c * CLUSTERS, generator=rng).square() + 0.01
    of = torch.multinomial(shares, total, replacement=True, generator=rng)
    rank = min(RANK, d)
    spread = torch.randn(rank, d, generator=rng) / rank**0.5
    h = centres.flatten(0, 1)[of]
    h += 1.5 * torch.randn(total, rank, generator=rng) @ spread
    h += 0.2 * torch.randn(total, d, generator=rng)
    h.relu_()
    means = torch.stack([h[of // CLUSTERS == k].mean(dim=0) for k in range(c)]).nan_to_num()
    z = h @ (means - means.mean(dim=0)).T
    return h, 6 * (z - z.mean(dim=0)) / z.std()


def _signal(need: Need, h: Tensor, z: Tensor, rng: torch.Generator) -> Tensor:
    """(n, ...). h: (n, d) features; z: (n, C) logits."""
    n, c = z.shape
    options = dict(need.options)
    p = z.softmax(dim=1)
    if need.name == "probabilities":
        return p
    if need.name in ("features", "extracted-features"):
        return h
    if need.name == "predicted-classes":
        return torch.nn.functional.one_hot(p.argmax(dim=1), c).float()
    if need.name == "mc-posteriors":
        noise = torch.randn(n, int(options["passes"] or 0), c, generator=rng)
        return noise.add_(z[:, None]).softmax(dim=2)
    if need.name == "gradient-sketch":
        return _sketch(p, h, int(options["dim"] or 0))
    # One number per sample: uncertain samples score high, and all of them differ.
    return (1 - p.amax(dim=1)) * (0.5 + torch.rand(n, generator=rng)) + 1e-4


def _sketch(p: Tensor, h: Tensor, dim: int) -> Tensor:
    """(p - e) h^T, e the most probable class, in `dim` numbers: columns of h under signs that
    differ from class to class, added where they fall together."""
    rng = torch.Generator().manual_seed(1)  # one projection for candidates and labelled
    errors = p - torch.nn.functional.one_hot(p.argmax(dim=1), p.shape[1])
    result = torch.zeros(len(h), dim)
    for error in errors.T:
        signs = torch.randint(2, (h.shape[1],), generator=rng) * 2.0 - 1
        places = torch.randint(dim, (h.shape[1],), generator=rng)
        result.index_add_(1, places, h * signs * error[:, None])
    return result
