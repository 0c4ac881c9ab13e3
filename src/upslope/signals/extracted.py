"""Features of a network of the user's own: pretrained, or trained without labels.

Early features of the task model say little, being learnt from the few labels there are. Strategies
for few labels were published on features learnt without any; which, their user decides:

    def features(num_classes, input_shape):         # in my_package/nets.py
        network = ...                               # its weights loaded
        return network                              # prepared inputs (n, *input_shape) -> (n, d)

under the name `my_package.nets:features`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from upslope import models
from upslope.errors import ModelError
from upslope.models.features import mean_over_positions
from upslope.options import Options
from upslope.signals.base import FitContext
from upslope.signals.fitting import seeding
from upslope.tasks.base import Task


@dataclass(frozen=True)
class ExtractedFeatures(Options):
    """What a feature extractor of the user's own puts out, one forward of it per sample: (n, d)."""

    name: ClassVar[str] = "extracted-features"

    extractor: Annotated[
        str,
        Field(
            pattern=":",
            title='a function as "package.module:function"',
            description="package.module:function, which returns the network",
        ),
    ] = ""

    def fit(self, context: FitContext) -> ExtractorSignal:
        """Build the network; nothing is trained."""
        dataset = context.dataset
        with seeding(context):
            network = self._build(len(dataset.classes), tuple(dataset.input_shape))
        return ExtractorSignal(network.to(context.device).eval(), self.extractor)

    def check(self, model: nn.Module, task: Task, inputs: Tensor) -> None:
        """Build the network and run it on the batch, so that a fault is told before any training.

        Raises:
            ConfigError: it cannot be imported or built.
            ModelError: it does not give (n, d) numbers.
        """
        with torch.no_grad():
            classes = task.logits(model(inputs)).shape[1]
        with torch.random.fork_rng():
            network = self._build(classes, tuple(inputs.shape[1:])).to(inputs.device).eval()
        ExtractorSignal(network, self.extractor).compute(model, task, inputs)

    def _build(self, classes: int, shape: tuple[int, ...]) -> nn.Module:
        return models.build(self.extractor, num_classes=classes, input_shape=shape)


@dataclass(frozen=True)
class ExtractorSignal:
    """The features that an extractor puts out, (n, d)."""

    network: nn.Module
    extractor: str
    name: ClassVar[str] = "extracted-features"

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:  # noqa: ARG002
        """(n, d) for a prepared batch; feature maps are averaged over their positions."""
        with torch.no_grad():
            features = self.network(inputs)
        if not isinstance(features, Tensor) or features.ndim < 2 or len(features) != len(inputs):
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ModelError(
                f"Expected the network of {self.extractor} to put out features ({len(inputs)}, d) "
                f"for {len(inputs)} samples but got {got}."
            )
        return mean_over_positions(features.float())
