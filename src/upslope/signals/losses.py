"""The losses whose gradients are scored: one loss a sample, from the logits, no label needed.

Every criterion here is a loss L_i(z) of the logits z for each class i the label could be. Its
expectation under the model's own posterior p = softmax(z) is Eq. 6 of the paper,

    sum_i p_i L_i,

and for L_i = -log p_i that sum **is** the entropy of Eq. 7.

    cross-entropy    L_i = -log p_i
    label-smoothing  L_i = -(1 - e) log p_i - (e / C) sum_j log p_j,  e = 0.1  (Szegedy 2016)
    focal            L_i = -(1 - p_i)^g log p_i,  g = 2  (Lin 2017)
    hinge            L_i = (1 / C) sum_{j != i} max(0, 1 - z_i + z_j)  (Weston 1999)

e and g are the values those papers recommend.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from upslope.signals.probabilities import over_positions

Criterion = Literal["cross-entropy", "label-smoothing", "focal", "hinge"]

SMOOTHING = 0.1
FOCUS = 2.0


def class_losses(logits: Tensor, criterion: Criterion) -> Tensor:
    """L_i for every class i. logits: (n, C, ...), returns (n, C, ...)."""
    if criterion == "hinge":
        gaps = 1 - logits.unsqueeze(2) + logits.unsqueeze(1)  # (n, i, j, ...)
        # The term j = i is the constant 1; it has no gradient, and is taken off.
        return (gaps.clamp(min=0).sum(dim=2) - 1) / logits.shape[1]
    log_p = logits.log_softmax(dim=1)
    if criterion == "label-smoothing":
        return -(1 - SMOOTHING) * log_p - SMOOTHING * log_p.mean(dim=1, keepdim=True)
    if criterion == "focal":
        return -((1 - log_p.exp()) ** FOCUS) * log_p
    return -log_p


def expected_loss(logits: Tensor, criterion: Criterion, *, detached: bool = False) -> Tensor:
    """Eq. 6, sum_i p_i L_i: (n,), mean over the positions of a dense task.

    detached: whether the posterior that weighs the losses is held fixed under differentiation.
    """
    p = logits.softmax(dim=1)
    weights = p.detach() if detached else p
    return over_positions((weights * class_losses(logits, criterion)).sum(dim=1))


def entropy_loss(logits: Tensor) -> Tensor:
    """Eq. 7, -sum_i p_i log p_i: (n,), mean over the positions of a dense task."""
    log_p = logits.log_softmax(dim=1)
    return over_positions(-(log_p.exp() * log_p).sum(dim=1))
