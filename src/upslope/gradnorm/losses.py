"""Losses that need no label: what a sample's gradient is taken of when nobody has labelled it.

- `entropy` (Eq. 7): the entropy of the posterior.
- `expected` (Eq. 6): the expectation of a criterion over the classes under the posterior. With
  cross-entropy and the posterior in the graph this is the entropy, number for number; with the
  posterior detached its gradient is zero, everywhere. Other criteria give scores of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.errors import GradientNormError

Loss = Callable[[Any], Tensor]
"""From a model's output to one loss a sample, (n,)."""
Criterion = Callable[[Tensor, Tensor], Tensor]
"""From logits (n, c, ...) and labels (n, ...) to losses (n, ...), one an entry."""


def label_free(loss: Loss) -> Loss:
    """Mark a loss that takes of each sample its outputs alone: no labels, nothing of the batch.

    It may then be called with the outputs of a part of the batch, which saves memory.
    """
    loss.__dict__["label_free"] = True
    return loss


def is_label_free(loss: Loss) -> bool:
    """Whether a loss is marked so."""
    return getattr(loss, "label_free", False) is True


def logits_of(outputs: Any) -> Tensor:
    """The logits in what a model returned: a tensor, or an object or dict with `logits`.

    Raises:
        GradientNormError: there is no such tensor, or it has no class dimension.
    """
    found = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if found is None and isinstance(outputs, dict):
        found = outputs.get("logits")
    if not isinstance(found, Tensor) or found.dim() < 2:
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(outputs)
        raise GradientNormError(
            f"Expected logits of shape (n, classes, ...) from the model but got {what}. Pass a "
            "callable as `loss`, from the model's output to one loss a sample."
        )
    return found


@label_free
def entropy(outputs: Any) -> Tensor:
    """Entropy of the posterior in nats (Eq. 7), (n,); the mean over pixels or voxels if any."""
    log_p = F.log_softmax(logits_of(outputs), dim=1)
    return _per_sample(-(log_p.exp() * log_p).sum(dim=1))


def expected(criterion: Criterion = F.cross_entropy, *, posterior: str = "graph") -> Loss:
    """The expected loss (Eq. 6) of any criterion, sum_i p_i L_i.

    criterion: called as `criterion(logits, labels, reduction="none")`.
    posterior: "graph" differentiates p_i as well, "detached" holds it constant.

    Raises:
        GradientNormError: `posterior` is neither.
    """
    if posterior not in ("graph", "detached"):
        raise GradientNormError(
            f'Expected `posterior` to be "graph" or "detached" but got {posterior!r}.'
        )

    @label_free
    def loss(outputs: Any) -> Tensor:
        logits = logits_of(outputs)
        p = logits.softmax(dim=1)
        p = p.detach() if posterior == "detached" else p
        total: Tensor | None = None
        for label in range(logits.shape[1]):
            labels = torch.full_like(logits[:, 0], label, dtype=torch.int64)
            term = p[:, label] * criterion(logits, labels, reduction="none")  # type: ignore[call-arg]
            total = term if total is None else total + term
        assert total is not None
        return _per_sample(total)

    return loss


def supervised(targets: Tensor, criterion: Criterion = F.cross_entropy) -> Loss:
    """The loss at known labels. targets: (n, ...)."""

    def loss(outputs: Any) -> Tensor:
        losses = criterion(logits_of(outputs), targets, reduction="none")  # type: ignore[call-arg]
        return _per_sample(losses)

    return loss


def named(loss: str | Loss) -> Loss:
    """The loss itself, or the one of this name: "entropy", "expected".

    Raises:
        GradientNormError: there is no loss of this name.
    """
    if callable(loss):
        return loss
    table: dict[str, Loss] = {"entropy": entropy, "expected": expected()}
    if loss not in table:
        raise GradientNormError(
            f"Expected `loss` to be a callable or one of {sorted(table)} but got {loss!r}."
        )
    return table[loss]


def _per_sample(losses: Tensor) -> Tensor:
    return losses.flatten(1).mean(dim=1) if losses.dim() > 1 else losses
