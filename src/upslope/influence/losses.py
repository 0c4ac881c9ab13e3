"""The losses of the paper as functions of outputs and targets: Eq. 6, Eq. 7 and the true label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from upslope.closed_forms import cross_entropy
from upslope.errors import InfluenceError
from upslope.gradnorm import entropy, expected
from upslope.gradnorm.losses import logits_of

LossFunction = Callable[[Any, Any], Tensor]
"""From a model's outputs and the targets of a batch to one loss per sample, (n,)."""


def label_loss(outputs: Any, targets: Tensor) -> Tensor:
    """Return the cross-entropy at the true label, (n,); the mean over pixels or voxels if any.

    outputs: logits. targets: labels.
    """
    # By hand, for what is wrong with labels is told by the place of their batch (`network`).
    losses = cross_entropy(logits_of(outputs), targets)
    return losses.flatten(1).mean(dim=1) if losses.dim() > 1 else losses


def entropy_loss(outputs: Any, _targets: Any) -> Tensor:
    """Return the entropy of the posterior in nats (Eq. 7), (n,).

    outputs: logits. _targets: not looked at.
    """
    return entropy(outputs)


def expected_loss(outputs: Any, _targets: Any) -> Tensor:
    """Return the expected cross-entropy (Eq. 6), (n,): the entropy, its posterior in the graph.

    outputs: logits. _targets: not looked at.
    """
    return expected()(outputs)


_LOSSES: dict[str, LossFunction] = {
    "label": label_loss,
    "entropy": entropy_loss,
    "expected": expected_loss,
}


def loss_named(loss: str | LossFunction) -> LossFunction:
    """Return the loss itself, or the one of this name: "label", "entropy" (Eq. 7), "expected" (Eq.
    6).

    Raises:
        InfluenceError: there is no loss of this name.
    """
    if callable(loss):
        return loss
    if loss not in _LOSSES:
        raise InfluenceError(
            f"Expected `loss` to be a callable of outputs and targets or one of {sorted(_LOSSES)} "
            f"but got {loss!r}."
        )
    return _LOSSES[loss]
