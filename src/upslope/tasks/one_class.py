"""Base of the tasks with one class per sample: cross-entropy, targets, answers, figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from upslope.closed_forms import task_cross_entropy
from upslope.tasks.answers import class_answer, class_label
from upslope.tasks.metrics import ClassificationMetrics
from upslope.tasks.softmax import SoftmaxTask
from upslope.tasks.target_checks import as_classes, check_classes

LabelSmoothing = Annotated[
    float, Field(ge=0, lt=1, description="share of the target spread over all classes")
]


class OneClassTask(SoftmaxTask):
    """One of `num_classes` labels per sample, by softmax and cross-entropy; targets are (n,).

    A dataclass of this kind has a field `label_smoothing`, which stands among its other options.
    """

    label_smoothing: float
    primary = "accuracy"
    name: ClassVar[str]
    """The task in messages."""

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each sample, (n,), with label smoothing where asked for.

        Raises:
            DataError: targets that are not (n,) whole numbers.
        """
        logits = self.logits(outputs)
        classes = as_classes(targets, (len(logits),), self.name)
        return task_cross_entropy(logits, classes, label_smoothing=self.label_smoothing)

    def check_targets(self, targets: Tensor, id_of: Callable[[int], str]) -> None:
        """Raise DataError unless targets are classes, (n,). id_of: of each sample."""
        classes = as_classes(targets, (len(targets),), self.name)
        check_classes(classes, self.num_classes, id_of)

    def label(self, answer: Any, classes: Sequence[str]) -> int:
        """Return the number of the class that an annotator names. Raises DataError."""
        return class_label(answer, classes)

    def read_answer(self, text: str, classes: Sequence[str]) -> str | int:
        """Return the answer that a cell of text is, as `label` takes it."""
        return class_answer(text, classes)

    def metrics(self) -> ClassificationMetrics:
        """Return a fresh accumulator of accuracy, loss, calibration error and accuracy by class."""
        return ClassificationMetrics(self, self.class_names)
