"""Text classification: softmax cross-entropy on token ids.

A sample is one integer tensor, (2, t): token ids, and a mask that is 1 at the tokens and 0 at the
padding. The loss, the entropy whose gradient is measured, the posteriors and the figures are those
of classification. Networks that take ids and mask apart, as those of Hugging Face do, are
wrapped in `upslope.models.SequenceClassifier`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from upslope.errors import DataError
from upslope.tasks.answers import class_answer, class_label
from upslope.tasks.metrics import ClassificationMetrics
from upslope.tasks.softmax import SoftmaxTask
from upslope.tasks.target_checks import as_classes, check_classes


@dataclass(frozen=True)
class TextClassification(SoftmaxTask):
    """One of `num_classes` labels per text, by softmax and cross-entropy on token ids and a mask.

    Inputs are (n, 2, t), ids and mask. Outputs are logits, (n, num_classes), or an object that
    carries them as `.logits`.
    """

    label_smoothing: Annotated[
        float, Field(ge=0, lt=1, description="share of the target spread over all classes")
    ] = 0.0

    primary = "accuracy"

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each sample, (n,), with label smoothing where asked for.

        Raises:
            DataError: targets that are not (n,) whole numbers.
        """
        logits = self.logits(outputs)
        classes = as_classes(targets, (len(logits),), "text-classification")
        return F.cross_entropy(
            logits, classes, reduction="none", label_smoothing=self.label_smoothing
        )

    def check_targets(self, targets: Tensor, id_of: Callable[[int], str]) -> None:
        """Raise DataError unless targets are classes, (n,). id_of: of each sample."""
        classes = as_classes(targets, (len(targets),), "text-classification")
        check_classes(classes, self.num_classes, id_of)

    def label(self, answer: Any, classes: Sequence[str]) -> int:
        """Return the number of the class that an annotator names. Raises DataError."""
        return class_label(answer, classes)

    def read_answer(self, text: str, classes: Sequence[str]) -> str | int:
        """Return the answer that a cell of text is, as `label` takes it."""
        return class_answer(text, classes)

    def metrics(self) -> ClassificationMetrics:
        """A fresh accumulator of accuracy, loss, calibration error and accuracy by class."""
        return ClassificationMetrics(self, self.class_names)

    def prepare(self, inputs: Tensor) -> Tensor:
        """(n, 2, t) integers, as they are.

        Raises:
            DataError: they are not ids and mask.
        """
        if inputs.is_floating_point() or inputs.ndim != 3 or inputs.shape[1] != 2:
            raise DataError(
                "Expected token ids and their mask, integers of shape (n, 2, t), for the task "
                f"text-classification but got {inputs.dtype} of shape {tuple(inputs.shape)}. Give "
                "a data set of texts, such as `text`."
            )
        return inputs

    def check(self, model: nn.Module, sample: Tensor) -> None:
        """Run a prepared batch of one or more, (n, 2, t), through the model in eval mode.

        The mode of every module is as before afterwards.

        Raises:
            ModelError: the model fails on it, or its output is not finite logits (n, num_classes).
        """
        self.check_outputs(model, sample, (), "logits", "one row per text and one column per class")
