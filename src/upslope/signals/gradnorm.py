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
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from upslope.errors import ConfigError, ModelError
from upslope.gradnorm import expected_gradient_length, gradient_norms
from upslope.options import Options
from upslope.signals.losses import Criterion, entropy_loss, expected_loss
from upslope.tasks.base import Task

Norm = Annotated[
    Literal["global", "tensor-sum"],
    Field(description="norm of the whole gradient, or the sum over parameter tensors of theirs"),
]
Parameters = Annotated[
    str | None, Field(description="name patterns of parameters, as fc.*,layer4.*; none for all")
]


class Logits(nn.Module):
    """The model followed by the task's reading of its output: inputs -> (n, C, ...)."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.training = model.training

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, C, ...)."""
        return self.task.logits(self.model(inputs))


def parameters_named(model: nn.Module, patterns: str | None) -> list[nn.Parameter] | None:
    """The trainable parameters whose names match one of the comma-separated patterns.

    Raises:
        ModelError: a pattern matches none.
    """
    if patterns is None:
        return None
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    chosen: dict[str, nn.Parameter] = {}
    for pattern in patterns.split(","):
        matched = {n: p for n, p in trainable.items() if fnmatchcase(n, pattern.strip())}
        if not matched:
            raise ModelError(
                f"Expected `parameters` to name trainable parameters but {pattern.strip()!r} "
                f"matches none of the {len(trainable)}: {', '.join(list(trainable)[-6:])} ... "
                "Write names as in `model.named_parameters()`; * stands for anything."
            )
        chosen |= matched
    return list(chosen.values())


@dataclass(frozen=True)
class GradNorm(Options):
    """The norm of the loss gradient, one forward and backward a sample: (n,)."""

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

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_zero_gradient(self.criterion, self.posterior)

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:
        """(n,) for a prepared batch."""
        norms: Tensor = gradient_norms(
            Logits(model, task),
            inputs,
            self._loss,
            norm=self.norm,
            parameters=parameters_named(model, self.parameters),
        )
        return norms.detach()

    def _loss(self, logits: Tensor) -> Tensor:
        if self.loss == "entropy":
            return entropy_loss(logits)
        return expected_loss(logits, self.criterion, detached=self.posterior == "detached")


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
    """The expected gradient length, at most C backwards a sample: (n,)."""

    name: ClassVar[str] = "egl"

    kind: Annotated[
        Literal["mean", "rms"], Field(description="mean, or root mean square, over the classes")
    ] = "mean"
    share: Annotated[
        float, Field(gt=0, le=1, description="share of the posterior whose classes are summed")
    ] = 1.0
    norm: Norm = "global"
    parameters: Parameters = None

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:
        """(n,) for a prepared batch.

        Raises:
            ModelError: the task has a posterior at every position, where the expectation runs
                over all label maps, C to the power of the positions.
        """
        logits_of = Logits(model, task)
        with torch.no_grad():
            shape = logits_of(inputs[:1]).shape
        if len(shape) != 2:
            raise ModelError(
                f"Expected logits of shape (n, classes) but got {tuple(shape)}: the expected "
                "gradient length of a dense task sums over every label map. Use entropy-gradnorm."
            )
        result = expected_gradient_length(
            logits_of,
            inputs,
            share=self.share,
            norm=self.norm,
            parameters=parameters_named(model, self.parameters),
            kind=self.kind,
        )
        return result.scores.detach()
