"""Influence of a label on the loss over a reference set (ISAL: Liu et al., ICCV 2021).

With v the gradient of the mean loss over labelled reference samples, H its Hessian and g_x the
gradient that the sample x would bring, adding x to the training set changes the reference loss by
-v^T (H + damping I)^-1 g_x, up to the step. The score is

    v^T (H + damping I)^-1 g_x = s^T g_x:   high where the loss would fall most.

The label of x being unknown, g_x is the gradient of

    pseudo    the cross-entropy at the most probable class
    expected  the loss expected under the posterior, with the posterior differentiated too: held
              fixed, its gradient is p - p = 0 for every x, and so would be every score.

s is solved for once, by conjugate gradients; s^T g_x of a whole batch is one forward-mode
derivative, here as a derivative of a derivative. Only tensors of two or more dimensions count, as
in the source. The test set is never touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from upslope.autodiff import differentiating_twice, directional_derivative, hessian_product
from upslope.closed_forms import keeping_digits
from upslope.conjugate_gradients import Product, descend, scale_of
from upslope.errors import ModelError
from upslope.gradnorm import entropy_over
from upslope.options import Options
from upslope.signals.base import FitContext
from upslope.signals.fitting import read
from upslope.tasks.base import Task

BATCH = 128
TOLERANCE = 1e-4

Vectors = tuple[Tensor, ...]
"""One tensor for each weight."""


@dataclass(frozen=True)
class Influence(Options):
    """How much a label would lower the loss of labelled samples, by influence functions: (n,)."""

    name: ClassVar[str] = "influence"

    label: Annotated[
        Literal["pseudo", "expected"], Field(description="what stands for the unknown label")
    ] = "pseudo"
    damping: Annotated[float, Field(gt=0, description="added to the Hessian's diagonal")] = 100.0
    iterations: Annotated[int, Field(ge=1, description="most conjugate gradient steps")] = 20
    reference: Annotated[int, Field(ge=1, description="most labelled samples taken")] = 1000

    def check(self, model: nn.Module, task: Task, inputs: Tensor) -> None:
        """Raise for a task without posteriors, whose most probable class there is none of."""
        with torch.no_grad():
            task.logits(model(inputs))

    def fit(self, context: FitContext) -> FittedInfluence:
        """Solve (H + damping I) s = v over a random part of the labelled set.

        Raises:
            ModelError: nothing is labelled.
        """
        if not context.labelled:
            raise ModelError(
                "Expected labelled samples, whose loss isal wants to lower, but there are none. "
                "Start with another strategy."
            )
        order = torch.randperm(len(context.labelled), generator=context.rng)
        places = order[: self.reference].tolist()

        def losses() -> Iterator[Tensor]:
            """Yield the mean loss over the reference, in parts that add up to it."""
            for start in range(0, len(places), BATCH):
                part = places[start : start + BATCH]
                inputs = read(context, [context.labelled[i] for i in part])
                targets = context.targets[part].to(context.device)
                yield context.task.losses(context.model(inputs), targets).sum() / len(places)

        parameters = weights(context.model)
        shapes = [p.shape for p in parameters]
        steps = count(1)
        with differentiating_twice(context.model), keeping_digits():
            v = total(gradients_of(loss, parameters) for loss in losses())

            def times(x: Tensor) -> Tensor:
                """Return (H + damping I) x, one pass over the reference."""
                parts = split(x, shapes)
                product = total(hessian_product(loss, parameters, parts) for loss in losses())
                context.progress(next(steps), self.iterations)
                return product + self.damping * x

            s = solve(times, v, self.iterations)
        return FittedInfluence(self.label, split(s, shapes))


@dataclass(frozen=True)
class FittedInfluence:
    """The influence s^T g_x of each sample on the reference, (n,)."""

    label: str
    direction: Vectors
    name: ClassVar[str] = "influence"

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:
        """(n,) for a prepared batch."""
        with differentiating_twice(model), keeping_digits():
            outputs = model(inputs)
            if self.label == "expected":
                losses = entropy_over(1)(task.logits(outputs))
            else:
                losses = task.losses(outputs, task.logits(outputs).argmax(dim=1))
            return directional_derivative(losses, weights(model), self.direction).detach()


def weights(model: nn.Module) -> list[nn.Parameter]:
    """The trainable tensors of two or more dimensions."""
    return [p for p in model.parameters() if p.requires_grad and p.ndim > 1]


def gradients_of(loss: Tensor, parameters: Sequence[Tensor]) -> Vectors:
    """Return the gradient of a loss, tensor by tensor; zeros where a weight has no part in it."""
    return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)


def total(parts: Iterator[Vectors]) -> Tensor:
    """Return the sum of vectors of several tensors, (p,)."""
    result = torch.cat([part.flatten() for part in next(parts)])
    for vectors in parts:
        result = result + torch.cat([part.flatten() for part in vectors])
    return result


def split(x: Tensor, shapes: Sequence[torch.Size]) -> Vectors:
    """Return the tensors of these shapes that a vector is made of. x: (p,)."""
    parts = torch.split(x, [shape.numel() for shape in shapes])
    return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))


def solve(times: Product, v: Tensor, iterations: int) -> Tensor:
    """Return x with A x = v, to a relative residual of 1e-4 or as far as `iterations` bring it.

    Along a direction of negative curvature, where damping is too small for A to be positive, it
    stops at what it has; before the first step, at v.

    times: returns A times a vector. v: (p,).
    """
    scale = scale_of(v)
    if scale == 0:
        return v
    b = v / scale
    enough = TOLERANCE * float(b.norm())
    x, steps, quotient = descend(times, torch.zeros_like(b), b, enough, iterations)
    return v if quotient is not None and steps == 1 else x * scale
