"""Multi-label classification: any number of labels per sample, each present or absent by itself.

A sigmoid is a softmax of two classes: with z the model's number for a label,

    sigmoid(z) = softmax(0, z) at class 1,     BCE(z, y) = cross-entropy((0, z), y)

So the task shows its L labels as L positions of two classes, (n, 2, L), absent and present, and
whatever is written for posteriors at positions holds without change. In particular the 2^L label
sets need not be enumerated: the labels are independent given the model, so that the loss expected
over all label sets is the mean of the labels' expected losses, with cross-entropy the mean of
their binary entropies (Eq. 6 and 7). The means here are the sums over labels divided by L, a
constant: no ranking depends on which is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from upslope.closed_forms import task_cross_entropy
from upslope.errors import DataError
from upslope.tasks.answers import label_set, label_set_answer
from upslope.tasks.multi_label_metrics import MultiLabelMetrics
from upslope.tasks.softmax import SoftmaxTask
from upslope.tasks.target_checks import refuse_wrong


@dataclass(frozen=True)
class MultiLabel(SoftmaxTask):
    """Each of `num_classes` labels present or absent, by sigmoids and binary cross-entropy.

    Outputs are one number per label, (n, num_classes), or an object that carries them as `.logits`.
    Targets are (n, num_classes): 1 where a label is present, 0 where it is absent.
    """

    primary = "map"

    def logits(self, outputs: Any) -> Tensor:
        """Return (n, 2, num_classes): of absence, which is 0, and of presence. Raises
        ModelError.
        """
        z = super().logits(outputs)
        return torch.stack((torch.zeros_like(z), z), dim=1)

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the mean binary cross-entropy over the labels of each sample, (n,).

        Raises:
            DataError: targets that are not (n, num_classes).
        """
        logits = self.logits(outputs)
        self._check_shape(targets, len(logits))
        return task_cross_entropy(logits, targets.long()).mean(dim=1)

    def check_targets(self, targets: Tensor, id_of: Callable[[int], str]) -> None:
        """Raise DataError unless targets are 0 or 1, (n, num_classes). id_of: of each sample."""
        self._check_shape(targets, len(targets))
        refuse_wrong(
            targets,
            (targets != 0) & (targets != 1),
            id_of,
            "0 or 1 for each label",
            "Repair the targets, or take the task regression where they are numbers.",
        )

    def label(self, answer: Any, classes: Sequence[str]) -> list[int]:
        """Return 0 or 1 for each label, of the labels an annotator names. Raises DataError."""
        return label_set(answer, classes)

    def read_answer(self, text: str, classes: Sequence[str]) -> list[str]:
        """Return the answer that a cell of text is, as `label` takes it."""
        return label_set_answer(text, classes)

    def metrics(self) -> MultiLabelMetrics:
        """Return a fresh accumulator of mean average precision, F1, exact matches and loss."""
        return MultiLabelMetrics(self, self.class_names)

    def check(self, model: nn.Module, sample: Tensor) -> None:
        """Run a prepared batch of one or more, (n, ...), through the model in eval mode.

        The mode of every module is as before afterwards.

        Raises:
            ModelError: the model fails on it, or its output is not finite (n, num_classes).
        """
        self.check_outputs(
            model, sample, (), "outputs", "one row per sample and one number per label"
        )

    def _check_shape(self, targets: Tensor, n: int) -> None:
        if targets.shape != (n, self.num_classes):
            raise DataError(
                f"Expected targets of shape {(n, self.num_classes)}, one of 0 and 1 a label, for "
                f"the task multi-label but got {tuple(targets.shape)}. Give a data set whose "
                "targets are label sets (`table` with `kind: labels`), or take the task "
                "classification."
            )
