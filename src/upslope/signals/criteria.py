"""Criteria whose expectation Eq. 6 takes, called as `criterion(logits, labels, reduction="none")`.

    cross-entropy    L_i = -log p_i
    label-smoothing  L_i = -(1 - e) log p_i - (e / C) sum_j log p_j,  e = 0.1  (Szegedy 2016)
    focal            L_i = -(1 - p_i)^g log p_i,                      g = 2    (Lin 2017)
    hinge            L_i = (1 / C) sum_{j != i} max(0, 1 - z_i + z_j)          (Weston 1999)

e and g are the values that those papers recommend. The first three take dense logits as well.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

Criterion = Literal["cross-entropy", "label-smoothing", "focal", "hinge"]

FOCUS = 2.0


def focal(logits: Tensor, labels: Tensor, *, reduction: str = "none") -> Tensor:
    """-(1 - p_i)^2 log p_i, one per entry. logits: (n, C, ...), labels: (n, ...)."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    losses = (1 - (-losses).exp()) ** FOCUS * losses
    return losses if reduction == "none" else losses.mean()


CRITERIA: dict[str, Any] = {
    "cross-entropy": F.cross_entropy,
    "label-smoothing": partial(F.cross_entropy, label_smoothing=0.1),
    "focal": focal,
    "hinge": F.multi_margin_loss,
}
