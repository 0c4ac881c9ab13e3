"""Figures of a segmentation, from one confusion matrix over the whole set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from upslope.tasks.output_checks import refuse_unknown


class _HasLogits(Protocol):
    def logits(self, outputs: Any) -> Tensor: ...


class SegmentationMetrics:
    """miou, pixel_accuracy, mean_class_accuracy, loss (a valid pixel), and iou/<class>.

    With N_tp pixels of class t answered p, summed over all samples before any division:
    IoU_c = N_cc / (sum_p N_cp + sum_t N_tc - N_cc), and miou is its mean over the classes that
    occur, in the targets or in the answers (M. Cordts et al., The Cityscapes Dataset, 2016).
    Averages of one IoU an image, which favour images without rare classes, are not the same.
    """

    def __init__(self, task: _HasLogits, classes: Sequence[str], ignore_index: int) -> None:
        self._task = task
        self._classes = tuple(classes)
        self._ignore = ignore_index
        self.matrix = torch.zeros(len(self._classes), len(self._classes), dtype=torch.int64)
        """Pixels by (class in the target, class answered)."""
        self._loss = 0.0

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Count n samples. outputs: what the model returned for them; targets: (n, h, w).

        Raises:
            ModelError: outputs that are NaN at valid pixels.
        """
        logits = self._task.logits(outputs).detach().float()
        targets = targets.long()
        losses = F.cross_entropy(logits, targets, ignore_index=self._ignore, reduction="none")
        refuse_unknown(losses.isnan(), "probabilities")
        self._loss += losses.double().sum().item()
        valid = targets != self._ignore
        count = len(self._classes)
        cells = targets[valid] * count + logits.argmax(dim=1)[valid]
        # Counted on the CPU: integer sums there are the same on every device.
        self.matrix += torch.bincount(cells.cpu(), minlength=count * count).view(count, count)

    def compute(self) -> dict[str, float]:
        """Return the figures over everything seen; empty before the first valid pixel."""
        matrix = self.matrix.double()
        total = matrix.sum().item()
        if not total:
            return {}
        right, targets, answers = matrix.diagonal(), matrix.sum(dim=1), matrix.sum(dim=0)
        union = targets + answers - right
        occurs = union > 0
        iou = right / union
        names = [n for n, there in zip(self._classes, occurs.tolist(), strict=True) if there]
        return {
            "miou": iou[occurs].mean().item(),
            "pixel_accuracy": right.sum().item() / total,
            "mean_class_accuracy": (right / targets)[targets > 0].mean().item(),
            "loss": self._loss / total,
            **{f"iou/{n}": v for n, v in zip(names, iou[occurs].tolist(), strict=True)},
        }
