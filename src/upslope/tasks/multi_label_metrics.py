"""Figures of label sets, from the scores of the whole set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.tasks.output_checks import refuse_unknown


class _HasLogits(Protocol):
    def logits(self, outputs: Any) -> Tensor: ...


class MultiLabelMetrics:
    """map, micro_f1, macro_f1, exact_match, loss, and average_precision/<label>.

    The average precision of a label is the sum over its thresholds of the rise in recall times
    the precision, without interpolation; equal scores are one threshold. map is the mean over the
    labels that some sample has. The F1 figures and exact_match (all labels right) answer "present"
    above one half. loss is the mean binary cross-entropy.
    """

    def __init__(self, task: _HasLogits, classes: Sequence[str]) -> None:
        self._task = task
        self._classes = tuple(classes)
        self._scores: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Count n samples. outputs: what the model returned for them; targets: (n, labels).

        Raises:
            ModelError: outputs that are NaN.
        """
        logits = self._task.logits(outputs).detach().double()
        scores = (logits[:, 1] - logits[:, 0]).cpu()
        refuse_unknown(scores.isnan(), "probabilities")
        self._scores.append(scores)
        self._targets.append(targets.bool().cpu())

    def compute(self) -> dict[str, float]:
        """Return the figures over everything seen; empty before the first label that is present."""
        if not self._scores:
            return {}
        z, truth = torch.cat(self._scores), torch.cat(self._targets)
        if not bool(truth.any()):
            return {}
        precision = [
            (name, average_precision(z[:, i].numpy(), truth[:, i].numpy()))
            for i, name in enumerate(self._classes)
            if bool(truth[:, i].any())
        ]
        answer = z > 0
        hits = (answer & truth).sum(dim=0).double()
        sizes = (answer.sum(dim=0) + truth.sum(dim=0)).double()
        occurs = sizes > 0
        losses = torch.nn.functional.binary_cross_entropy_with_logits(z, truth.double())
        return {
            "map": sum(value for _, value in precision) / len(precision),
            "micro_f1": float(2 * hits.sum() / sizes.sum()),
            "macro_f1": float((2 * hits[occurs] / sizes[occurs]).mean()),
            "exact_match": float((answer == truth).all(dim=1).double().mean()),
            "loss": float(losses),
            **{f"average_precision/{name}": value for name, value in precision},
        }


def average_precision(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Return sum_k (R_k - R_{k-1}) P_k over the distinct scores, highest first. Both are (n,)."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(truth[order])[ends]
    precision = hits / (ends + 1)
    recall = hits / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))
