"""Figures of a classifier, accumulated over batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from upslope.posterior import BINS, calibration_bins
from upslope.tasks.output_checks import refuse_unknown


class _HasLogits(Protocol):
    def logits(self, outputs: Any) -> Tensor: ...


class ClassificationMetrics:
    """accuracy, mean_class_accuracy, loss (mean negative log-likelihood), calibration_error
    (expected, 15 bins of equal width over the confidence), and accuracy/<class> of every class
    that was seen."""

    def __init__(self, task: _HasLogits, classes: Sequence[str]) -> None:
        self._task = task
        self._classes = tuple(classes)
        count = len(self._classes)
        self._counts = torch.zeros(count, dtype=torch.float64)
        self._right = torch.zeros(count, dtype=torch.float64)
        self._loss = 0.0
        # A row a bin of confidence: samples, right answers, summed confidence.
        self._bins = torch.zeros(BINS, 3, dtype=torch.float64)

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Count n samples.

        outputs: what the model returned for them. targets: (n,).

        Raises:
            ModelError: outputs that are NaN, of which nothing is the answer.
        """
        logits = self._task.logits(outputs).detach().float()
        confidence, answer = logits.softmax(dim=1).max(dim=1)
        refuse_unknown(confidence.isnan(), "probabilities")
        targets = targets.long()
        self._loss += F.cross_entropy(logits, targets, reduction="sum").item()
        targets = targets.cpu()
        right = (answer.cpu() == targets).double()
        self._counts += torch.bincount(targets, minlength=len(self._counts))
        self._right += torch.bincount(targets, right, minlength=len(self._counts))
        confidence = confidence.cpu().double()
        figures = torch.stack((torch.ones_like(right), right, confidence), dim=1)
        self._bins.index_add_(0, calibration_bins(confidence), figures)

    def compute(self) -> dict[str, float]:
        """Return the figures over everything seen; empty before the first `update`."""
        total = self._counts.sum().item()
        if not total:
            return {}
        has_samples = self._counts > 0
        shares = self._right[has_samples] / self._counts[has_samples]
        gaps = (self._bins[:, 1] - self._bins[:, 2]).abs().sum().item()
        names = [
            name
            for name, is_there in zip(self._classes, has_samples.tolist(), strict=True)
            if is_there
        ]
        return {
            "accuracy": self._right.sum().item() / total,
            "mean_class_accuracy": shares.mean().item(),
            "loss": self._loss / total,
            "calibration_error": gaps / total,
            **{
                f"accuracy/{name}": share
                for name, share in zip(names, shares.tolist(), strict=True)
            },
        }
