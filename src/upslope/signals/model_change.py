"""Expected change of the model: gradient norms at what a committee says instead of a label.

Cai, Zhang and Zhou (ICDM 2013): K members f_k of a committee, each with fresh weights and trained
on a bootstrap of the labelled set, stand for the label that nobody has given yet,

    (1 / K) sum_k || grad L(f(x), f_k(x)) ||

with L the loss of the task and the gradient that of the task model f over all parameters. With the
squared error of one number it is || grad f(x) || times the mean absolute pseudo-residual
|f(x) - f_k(x)|: a gradient norm for regression, where a posterior over classes gives none. With
classes f_k(x) is the class most probable to the member, and this is the expected gradient length
under the committee's votes; with masks, the mask that it would draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from upslope.closed_forms import keeping_digits
from upslope.errors import ModelError
from upslope.gradnorm import gradient_norms
from upslope.options import Norm, Options, Parameters
from upslope.signals.base import FitContext
from upslope.signals.committee import check_resets, trained_members
from upslope.signals.gradnorm import parse_parameters
from upslope.tasks.base import Task


@dataclass(frozen=True)
class ModelChange(Options):
    """The expected gradient norm of the loss at a bootstrap committee's answers: (n,)."""

    name: ClassVar[str] = "model-change"

    members: Annotated[int, Field(ge=1, description="K, networks in the committee")] = 4
    epochs: Annotated[int, Field(ge=1, description="passes over a bootstrap, each member")] = 20
    norm: Norm = "global"
    parameters: Parameters = None

    def fit(self, context: FitContext) -> FittedModelChange:
        """Train the members, each on as many labelled samples drawn with replacement.

        Raises:
            ModelError: nothing is labelled, so that no member could say anything.
        """
        n = len(context.labelled)
        if not n:
            raise ModelError(
                "Expected labelled samples, on which the committee of emcm learns what to answer, "
                "but there are none. Start with another strategy, such as random."
            )
        rng = context.rng
        places = [torch.randint(n, (n,), generator=rng).tolist() for _ in range(self.members)]
        members = trained_members(context, places, self.epochs)
        return FittedModelChange(members, self.norm, self.parameters)

    def check(self, model: nn.Module, task: Task, inputs: Tensor) -> None:  # noqa: ARG002
        """Raise ModelError for a network that cannot be started anew."""
        check_resets(model)


@dataclass(frozen=True)
class FittedModelChange:
    """The mean over members of the gradient norm at their answers: (n,)."""

    members: tuple[nn.Module, ...]
    norm: str
    parameters: str | None
    name: ClassVar[str] = "model-change"

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:
        """(n,) for a prepared batch."""
        norms = []
        for member in self.members:
            with torch.no_grad():
                answers = task.predictions(member(inputs))

            def losses(outputs: Any, answers: Tensor = answers) -> Tensor:
                with keeping_digits():
                    return task.losses(outputs, answers)

            norms.append(
                gradient_norms(
                    model,
                    inputs,
                    losses,
                    norm=self.norm,
                    parameters=parse_parameters(self.parameters),
                )
            )
        return torch.stack(norms).mean(dim=0)
