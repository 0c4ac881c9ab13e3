"""Warnings and errors about a whole model: it is slow, looks around, or is cut off.

Each warning is given once per model (`memory`).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from upslope.errors import GradientNormError, warn_user
from upslope.gradnorm.core.memory import Memory
from upslope.gradnorm.core.weights import Weights


def warn_of_slowness(model: nn.Module, memory: Memory, reason: str | None) -> None:
    """Warn that samples go one by one. reason: why, as `Ladder.fallback_reason`."""
    if reason is None or "slow" in memory.told:
        return
    memory.told.add("slow")
    warn_user(
        f"{type(model).__name__}: per-sample gradients are found one sample at a time, "
        f"exactly and slowly, because {reason.rstrip('.')}. "
        "`explain(model, inputs)` shows every use of a parameter."
    )


def warn_of_looking_around(model: nn.Module, memory: Memory) -> None:
    """Warn that samples may depend on others, so that every batch is proven."""
    if "around" in memory.told:
        return
    memory.told.add("around")
    warn_user(
        f"{type(model).__name__}: the numbers of a sample may depend on the other "
        "samples of its batch, in the model or in the loss (they moved, or could not be "
        "had, when others were replaced by NaN or by extreme values, or they meet a "
        "statistic of the batch: a mean, a maximum, a running sum over the samples). Every "
        "batch is proven, which takes several times as long; a batch that does mix samples "
        "is refused."
    )


def closed_outputs(outputs: Any) -> GradientNormError:
    """The error for losses that look around, at outputs that cannot be taken apart."""
    return GradientNormError(
        "Expected a loss in which each sample's number depends on that sample's outputs "
        "alone but losses move when the samples of others do, and outputs of type "
        f"{type(outputs).__name__} cannot be taken apart to see how. Return a tensor, "
        "or a tuple or dict of tensors, from the model."
    )


def cut_off(weights: Weights) -> GradientNormError:
    """The error for a loss that depends on none of the parameters."""
    names = list(weights.parameters)
    shown = ", ".join(f"`{name}`" for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return GradientNormError(
        f"Expected a loss that depends on the parameters asked for ({shown}) but no gradient "
        "reaches any of them: the model is cut off from autograd (`torch.no_grad`, `.detach()`, "
        "`.numpy()` or an integer output inside), or the loss does not look at what they make."
    )
