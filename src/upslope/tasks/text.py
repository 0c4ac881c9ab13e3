"""Text classification: softmax cross-entropy on token ids.

A sample is one integer tensor, (2, t): token ids, and a mask that is 1 at the tokens and 0 at the
padding. The loss, the entropy whose gradient is measured, the posteriors and the figures are those
of classification. Networks that take ids and mask apart, as those of Hugging Face do, are
wrapped in `upslope.models.SequenceClassifier`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from upslope.errors import DataError
from upslope.tasks.one_class import LabelSmoothing, OneClassTask


@dataclass(frozen=True)
class TextClassification(OneClassTask):
    """One of `num_classes` labels per text, by softmax and cross-entropy on token ids and a mask.

    Inputs are (n, 2, t), ids and mask. Outputs are logits, (n, num_classes), or an object that
    carries them as `.logits`.
    """

    label_smoothing: LabelSmoothing = 0.0

    name = "text-classification"

    def prepare(self, inputs: Tensor) -> Tensor:
        """Return (n, 2, t) integers, as they are.

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
