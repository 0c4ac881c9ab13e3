"""Sketches of per-sample gradients: vectors whose lengths are exact and whose angles are estimated.

The sketch of a gradient g over all parameters is a random projection Sg of `dim` numbers, the same
S for every sample, rescaled to the length of g:

    v = ||g|| Sg / ||Sg||     ||v|| = ||g|| exactly,  cos(v, v') = cos(g, g') +- O(1 / sqrt(dim))

where g is the gradient of

    entropy       H(p), the entropy of the posterior (Eq. 7)
    likely-label  the loss at y, the most probable class (BADGE: by the last layer alone)

(`upslope.gradnorm.gradient_sketches` has the projection and its sources.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.closed_forms import keeping_digits
from upslope.gradnorm import entropy_over, gradient_sketches, label_free
from upslope.gradnorm.sketch import projection_digest
from upslope.options import Options, Parameters
from upslope.signals.gradnorm import parse_parameters
from upslope.tasks.base import Task


@dataclass(frozen=True)
class GradientSketch(Options):
    """The gradient as few numbers, of its exact length, one backward per sample: (n, dim)."""

    name: ClassVar[str] = "gradient-sketch"

    loss: Annotated[
        Literal["entropy", "likely-label"],
        Field(description="entropy of the posterior, or loss at the most probable class"),
    ] = "entropy"
    dim: Annotated[int, Field(ge=1, description="numbers a sketch")] = 512
    seed: Annotated[int, Field(ge=0, description="which projection, for all batches alike")] = 0
    parameters: Parameters = None

    @property
    def projection(self) -> str:
        """Return what tells the projection from that of another version, dim or seed."""
        return projection_digest(self.dim, self.seed)

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:
        """(n, dim) for a prepared batch."""

        @label_free
        def losses(outputs: Any) -> Tensor:
            logits = task.logits(outputs)
            if self.loss == "entropy":
                return entropy_over(1)(logits)
            with keeping_digits():
                return task.losses(outputs, logits.argmax(dim=1))

        sketches = gradient_sketches(
            model,
            inputs,
            losses,
            dim=self.dim,
            seed=self.seed,
            parameters=parse_parameters(self.parameters),
        )
        vectors = sketches.vectors.double()
        return (sketches.norms[:, None] * F.normalize(vectors, eps=1e-300)).float()
