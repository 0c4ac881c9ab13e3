"""Gradient norms: the paper's acquisition scores, and the expected gradient length.

    entropy-gradnorm   || grad H ||                        Eq. 7
    expected-gradnorm  || grad sum_i p_i L_i ||            Eq. 6; with cross-entropy, Eq. 7 again
    egl                sum_i p_i || grad L_i ||            Settles, Craven and Ray 2007
    egl-rms            sqrt(sum_i p_i || grad L_i ||^2)    its root mean square

The norm is that of the whole gradient ("global", the paper's text) or the sum over parameter
tensors of their norms ("tensor-sum", the paper's code). Batches are scored in eval mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from upslope.errors import ConfigError
from upslope.gradnorm import (
    entropy_over,
    expected,
    expected_gradient_length,
    gradient_norms,
    label_free,
)
from upslope.gradnorm.core.model_io import Loss
from upslope.options import Norm, Options, Parameters, Temperature
from upslope.signals.criteria import CRITERIA, Criterion
from upslope.signals.temperature import scale_logits
from upslope.tasks.base import Task


def parse_parameters(parameters: str | None) -> str | list[str] | None:
    """ "fc, layer4" as the engine takes it: names, or prefixes of names, of parameters."""
    if parameters is None or "," not in parameters:
        return parameters
    return [name.strip() for name in parameters.split(",")]


@dataclass(frozen=True)
class GradNorm(Options):
    """The norm of the loss gradient, one forward and backward per sample: (n,)."""

    name: ClassVar[str] = "gradnorm"

    loss: Annotated[Literal["entropy", "expected"], Field(description="Eq. 7, or Eq. 6")] = (
        "entropy"
    )
    criterion: Annotated[Criterion, Field(description="the loss that Eq. 6 expects")] = (
        "cross-entropy"
    )
    posterior: Annotated[
        Literal["graph", "detached"],
        Field(description="whether Eq. 6 differentiates its posterior, or holds it fixed"),
    ] = "graph"
    norm: Norm = "global"
    parameters: Parameters = None
    temperature: Temperature = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_zero_gradient(self.criterion, self.posterior)

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:
        """(n,) for a prepared batch."""
        of_logits: Loss = entropy_over(1)
        if self.loss == "expected":
            of_logits = expected(CRITERIA[self.criterion], posterior=self.posterior, dim=1)
        return gradient_norms(
            model,
            inputs,
            label_free(
                lambda outputs: of_logits(scale_logits(task.logits(outputs), self.temperature))
            ),
            norm=self.norm,
            parameters=parse_parameters(self.parameters),
        )


def refuse_zero_gradient(criterion: str, posterior: str) -> None:
    """Raise ConfigError where Eq. 6 has no gradient for any sample: d/dz sum_i q_i L_i = p - q = 0
    at q = p, so every score would be rounding noise."""
    if criterion == "cross-entropy" and posterior == "detached":
        raise ConfigError(
            "Expected a gradient to measure but with `criterion` cross-entropy and `posterior` "
            "detached it is zero for every sample. Take posterior=graph (which is "
            "entropy-gradnorm), another criterion, or egl."
        )


@dataclass(frozen=True)
class ExpectedGradientLength(Options):
    """The expected gradient length, at most C backwards per sample: (n,)."""

    name: ClassVar[str] = "egl"

    kind: Annotated[
        Literal["mean", "rms"], Field(description="mean, or root mean square, over the classes")
    ] = "mean"
    share: Annotated[
        float, Field(gt=0, le=1, description="share of the posterior whose classes are summed")
    ] = 1.0
    norm: Norm = "global"
    parameters: Parameters = None
    temperature: Temperature = 1.0

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:
        """(n,) for a prepared batch; the task's logits are (n, C).

        Raises:
            GradientNormError: the task has a posterior at every position, where the expectation
                runs over all label maps, C to the power of the positions.
        """
        return expected_gradient_length(
            model,
            inputs,
            share=self.share,
            norm=self.norm,
            parameters=parse_parameters(self.parameters),
            kind=self.kind,
            logits=lambda outputs: scale_logits(task.logits(outputs), self.temperature),
        ).scores
