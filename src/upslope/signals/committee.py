"""A committee of networks that saw the same labels from other starting points.

Its disagreement is the Jensen-Shannon divergence of the members' posteriors p_m, with p their mean,

    H[p] - (1/M) sum_m H[p_m]                     in nats; mean over the positions of a dense task

(Seung et al. 1992 for the idea; Kuo et al. 2018 for this measure.) A member has the task model's
layers with fresh weights, and is trained on the labelled set with Adam at 1e-3.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from upslope.errors import ModelError
from upslope.options import Options
from upslope.signals.base import FitContext
from upslope.signals.fitting import batches, read, seeded
from upslope.signals.mc_dropout import bald
from upslope.signals.probabilities import over_positions
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
        members = []
        for place in range(self.members):
            with seeded(context), torch.enable_grad():
                members.append(self._trained(fresh(context.model), context, place))
        return FittedCommittee(tuple(members))

    def check(self, model: nn.Module, task: Task, inputs: Tensor) -> None:  # noqa: ARG002
        """Raise ModelError for a network that cannot be started anew."""
        check_resets(model)

    def _trained(self, member: nn.Module, context: FitContext, place: int) -> nn.Module:
        member.train()
        adam = torch.optim.Adam(member.parameters(), lr=RATE)
        stream = batches(context, context.labelled, BATCH)
        steps = self.epochs * -(-len(context.labelled) // BATCH)
        for step in range(steps):
            places = next(stream)
            inputs = read(context, [context.labelled[i] for i in places])
            targets = context.targets[places].to(context.device)
            inputs, targets = context.task.augment(inputs, targets, context.rng)
            adam.zero_grad()
            context.task.losses(member(inputs), targets).mean().backward()  # type: ignore[no-untyped-call]
            adam.step()
            context.progress(place * steps + step + 1, self.members * steps)
        return member.eval()


@dataclass(frozen=True)
class FittedCommittee:
    """The Jensen-Shannon divergence of the members' posteriors: (n,)."""

    members: tuple[nn.Module, ...]
    name: ClassVar[str] = "committee"

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:  # noqa: ARG002
        """(n,) for a prepared batch."""
        with torch.no_grad():
            p = [task.logits(member(inputs)).float().softmax(dim=1) for member in self.members]
        return over_positions(bald(torch.stack(p, dim=1)))


def fresh(model: nn.Module) -> nn.Module:
    """A copy with weights drawn anew, by every module's own `reset_parameters`, all of it trained.

    Raises:
        ModelError: a module has parameters of its own and no such method.
    """
    check_resets(model)
    member = copy.deepcopy(model)
    for module in member.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return member.requires_grad_()


def check_resets(model: nn.Module) -> None:
    """Raise ModelError where a module has parameters of its own and no `reset_parameters`."""
    for name, module in model.named_modules():
        own = next(module.parameters(recurse=False), None) is not None
        if own and not callable(getattr(module, "reset_parameters", None)):
            raise ModelError(
                f"Expected every module with parameters to have `reset_parameters`, so that the "
                f"members of a committee start differently, but {name or 'the model'} "
                f"({type(module).__name__}) has not. Add the method to that class."
            )
