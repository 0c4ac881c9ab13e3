"""Semantic segmentation: softmax cross-entropy at every pixel, one mask per sample.

The acquisition scores take the mean over pixels of the posterior's entropy (Eq. 7): the expected
cross-entropy of a whole mask under per-pixel posteriors is the sum of the pixels' entropies, so
that the C^(h w) masks of A.4 need not be enumerated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import torch
from pydantic import Field
from torch import Tensor, nn

from upslope.closed_forms import task_cross_entropy
from upslope.errors import ConfigError, ModelError
from upslope.reading import is_file
from upslope.tasks.answers import MaskNeededError
from upslope.tasks.confusion import SegmentationMetrics
from upslope.tasks.mask_answers import PREFIX, mask_of
from upslope.tasks.masks import random_window
from upslope.tasks.pixels import Rule, reduce_pixels
from upslope.tasks.sliding import slide_windows
from upslope.tasks.softmax import SoftmaxTask
from upslope.tasks.target_checks import as_classes, check_classes


@dataclass(frozen=True)
class Segmentation(SoftmaxTask):
    """One of `num_classes` labels per pixel, by softmax and cross-entropy.

    Outputs are logits (n, num_classes, h, w) at the size of the input, or an object that carries
    them as `.logits`. Targets are masks (n, h, w) of any integer type.
    """

    ignore_index: Annotated[
        int, Field(ge=-100, le=255, description="mask value of pixels that count nowhere")
    ] = 255
    crop: Annotated[
        int | None, Field(ge=1, description="train on random crop x crop; whole images without")
    ] = None
    flip: Annotated[bool, Field(description="mirror left-right, half of the time, in training")] = (
        False
    )
    scale: Annotated[
        float,
        Field(ge=1, le=8, description="train at sizes from 1/scale to scale times; 1 for none"),
    ] = 1.0
    evaluation: Annotated[
        Literal["whole", "sliding"],
        Field(description="evaluate on whole images, or on windows whose logits are averaged"),
    ] = "whole"
    window: Annotated[
        int | None, Field(ge=1, description="side of a sliding window; `crop` where not given")
    ] = None
    overlap: Annotated[
        float, Field(ge=0, lt=1, description="share of a window's side that the next one covers")
    ] = 0.5
    pixels: Annotated[
        Rule,
        Field(description="how the uncertainties of an image's pixels become one number"),
    ] = "mean"
    top_share: Annotated[float, Field(gt=0, le=1, description="of the pixels, for pixels=top")] = (
        0.1
    )

    primary = "miou"

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 <= self.ignore_index < self.num_classes:
            raise ConfigError(
                f"Expected `task.ignore_index` to be no class but {self.ignore_index} is one of "
                f"the {self.num_classes}, numbered from 0. Take 255."
            )
        if self.evaluation == "sliding" and not (self.window or self.crop):
            raise ConfigError(
                "Expected `task.window`, the side of the windows of task.evaluation=sliding, but "
                f"got {self.window}, and no `task.crop` to take instead. Give the size of training "
                "windows."
            )

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each sample, (n,): the mean over its valid pixels; 0 if none
        is.

        Training takes the mean of these, in which every image weighs the same, however much of it
        is ignored.

        Raises:
            DataError: targets that are not whole numbers, (n, h, w) as the outputs are.
        """
        logits = self.logits(outputs)
        targets = as_classes(targets, (len(logits), *logits.shape[2:]), "segmentation")
        losses = task_cross_entropy(logits, targets, ignore_index=self.ignore_index)
        valid = (targets != self.ignore_index).flatten(1).sum(dim=1)
        return losses.flatten(1).sum(dim=1) / valid.clamp(min=1)

    def check_targets(self, targets: Tensor, id_of: Callable[[int], str]) -> None:
        """Raise DataError unless targets are masks of classes, (n, h, w). id_of: of each sample."""
        shape = (
            (len(targets), *targets.shape[1:]) if targets.ndim == 3 else (len(targets), "h", "w")
        )
        masks = as_classes(targets, shape, "segmentation")
        check_classes(masks, self.num_classes, id_of, self.ignore_index)

    def per_sample(self, values: Tensor, answers: Tensor) -> Tensor:
        """Return (n,) for (n, h, w), by the rule `pixels`; (n,) as it is."""
        if values.ndim == 1:
            return values
        return reduce_pixels(values, answers, self.pixels, self.top_share, self.num_classes)

    def predict(self, model: nn.Module, inputs: Tensor) -> Any:
        """Return the outputs for a prepared batch (n, c, h, w): of whole images, or put together
        from windows. Scoring takes whole images in either case.
        """
        side = self.window or self.crop
        if self.evaluation == "whole" or side is None:
            return model(inputs)
        return slide_windows(lambda part: self.logits(model(part)), inputs, side, self.overlap)

    def label(self, answer: Any, classes: Sequence[str]) -> str:  # noqa: ARG002
        """Return the mask, as text, that an answer is: an array, or a file of class numbers.

        Raises:
            MaskNeededError: None, which stands for the data set's own mask, or no mask at all.
            DataError: a mask of other classes, a file that cannot be read.
        """
        text = isinstance(answer, str) and not answer.startswith(PREFIX)
        if answer is None or (text and not is_file(Path(answer))):
            raise MaskNeededError(
                f"Expected a mask, an array (h, w) or the path of a file, or None where it was "
                f"drawn into the data set, but got {answer!r}."
            )
        return mask_of(answer, self.num_classes, self.ignore_index)

    def read_answer(self, text: str, classes: Sequence[str]) -> NoReturn:  # noqa: ARG002
        """Raise MaskNeededError: a mask is drawn into the data set, and no cell holds one."""
        raise MaskNeededError(
            f"Expected an empty cell, as the mask is the data set's to say, but got {text!r}. Draw "
            "the mask into the data set."
        )

    def metrics(self) -> SegmentationMetrics:
        """Return a fresh accumulator of mean IoU, pixel accuracy, loss and IoU by class."""
        return SegmentationMetrics(self, self.class_names, self.ignore_index)

    def augment(
        self, inputs: Tensor, targets: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return a random window of a prepared batch (n, c, h, w) and its masks (n, h, w).

        What lies outside an image is black, and ignored in the mask. `rng` lives on the CPU.
        """
        if self.crop is None and not self.flip and self.scale == 1:
            return inputs, targets
        size = (self.crop, self.crop) if self.crop else (inputs.shape[2], inputs.shape[3])
        return random_window(
            inputs,
            targets,
            size,
            flip=self.flip,
            scale=self.scale,
            border=self.border_value(inputs),
            ignore_index=self.ignore_index,
            rng=rng,
        )

    def check(self, model: nn.Module, sample: Tensor) -> None:
        """Run a prepared batch of one or more, (n, c, h, w), through the model in eval mode.

        The mode of every module is as before afterwards.

        Raises:
            ModelError: samples that are no images, the model fails on them, or its output is not
                finite logits (n, num_classes, h, w).
        """
        if sample.ndim < 3:
            raise ModelError(
                "Expected images, (n, channels, height, width), for the task segmentation, whose "
                f"labels are masks, but got samples of shape {tuple(sample.shape[1:])}. Take "
                "another task, such as classification, for one label per sample."
            )
        where = "one row per sample, one plane per class, at the size of the image"
        self.check_outputs(model, sample, tuple(sample.shape[2:]), "logits", where)
