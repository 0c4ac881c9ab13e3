"""A committee of networks that saw the same labels from other starting points.

Its disagreement is the Jensen-Shannon divergence of the members' posteriors p_m, with p their mean,

    H[p] - (1/M) sum_m H[p_m]                     in nats; a dense task reduces its positions

(Seung et al. 1992 for the idea; Kuo et al. 2018 for this measure.) A member has the task model's
layers with fresh weights, and is trained on the labelled set with Adam at 1e-3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from upslope.errors import ModelError
from upslope.options import Options
from upslope.signals.base import FitContext
from upslope.signals.fitting import batches, batches_per_pass, read, seeding
from upslope.signals.mc_dropout import bald
from upslope.tasks.base import Task

BATCH = 64
RATE = 1e-3


@dataclass(frozen=True)
class Committee(Options):
    """Disagreement of networks trained on the labels from other starting points: (n,)."""

    name: ClassVar[str] = "committee"

    members: Annotated[int, Field(ge=2, description="M, networks in the committee")] = 3
    epochs: Annotated[int, Field(ge=1, description="passes over the labelled set, each member")] = (
        20
    )

    def fit(self, context: FitContext) -> FittedCommittee:
        """Train the members, one after the other."""
        everything = range(len(context.labelled))
        places = [everything] * self.members
        return FittedCommittee(trained_members(context, places, self.epochs))

    def check(self, model: nn.Module, task: Task, inputs: Tensor) -> None:
        """Raise for a network that cannot be started anew, or a task without posteriors."""
        check_resets(model)
        with torch.no_grad():
            task.logits(model(inputs))


@dataclass(frozen=True)
class FittedCommittee:
    """The Jensen-Shannon divergence of the members' posteriors: (n,)."""

    members: tuple[nn.Module, ...]
    name: ClassVar[str] = "committee"

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:  # noqa: ARG002
        """(n,) for a prepared batch."""
        with torch.no_grad():
            member_posteriors = [
                task.logits(member(inputs)).float().softmax(dim=1) for member in self.members
            ]
        p = torch.stack(member_posteriors, dim=1)
        return task.per_sample(bald(p), p.mean(dim=1).argmax(dim=1))


def trained_members(
    context: FitContext, places: Sequence[Sequence[int]], epochs: int
) -> tuple[nn.Module, ...]:
    """A network of fresh weights for each of `places`, trained there, in eval mode.

    places: for each member, places in the labelled set. epochs: passes over them.
    """
    members: list[nn.Module] = []
    steps = [epochs * batches_per_pass(len(of_member), BATCH) for of_member in places]
    for number, places_of_member in enumerate(places):
        with seeding(context), torch.enable_grad():
            member = fresh(context.model).train()
            adam = torch.optim.Adam(member.parameters(), lr=RATE)
            stream = batches(context, places_of_member, BATCH)
            for step in range(steps[number]):
                batch_places = [places_of_member[i] for i in next(stream)]
                inputs = read(context, [context.labelled[i] for i in batch_places])
                targets = context.targets[batch_places].to(context.device)
                inputs, targets = context.task.augment(inputs, targets, context.rng)
                adam.zero_grad()
                context.task.losses(member(inputs), targets).mean().backward()  # type: ignore[no-untyped-call]
                adam.step()
                context.progress(sum(steps[:number]) + step + 1, sum(steps))
        members.append(member.eval())
    return tuple(members)


def fresh(model: nn.Module) -> nn.Module:
    """A copy with weights drawn anew, by every module's own `reset_parameters`, all of it trained.

    Raises:
        ModelError: a module has parameters of its own and no such method.
    """
    check_resets(model)
    member = copy.deepcopy(model)
    for module in member.modules():
        reset = _reset_of(module)
        if reset is not None:
            reset()
    return member.requires_grad_()


def check_resets(model: nn.Module) -> None:
    """Raise ModelError where a module has parameters of its own and no `reset_parameters`."""
    for name, module in model.named_modules():
        has_parameters = next(module.parameters(recurse=False), None) is not None
        if has_parameters and _reset_of(module) is None:
            raise ModelError(
                f"Expected every module with parameters to have `reset_parameters`, so that the "
                f"members of a committee start differently, but {name or 'the model'} "
                f"({type(module).__name__}) has not. Add the method to that class."
            )


def _reset_of(module: nn.Module) -> Callable[[], object] | None:
    """The method that draws a module's own weights anew; None where it has none."""
    # PyTorch's attention has it under the second name.
    for name in ("reset_parameters", "_reset_parameters"):
        reset = getattr(module, name, None)
        if callable(reset):
            method: Callable[[], object] = reset
            return method
    return None
