"""The backward pass that counts: per-sample gradients reduced, use by use, and proven if asked.

Called by `recording` once the layouts of a batch are known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from upslope.gradnorm.core.layout import Layout
from upslope.gradnorm.core.listeners import ReducingListener, Reduction
from upslope.gradnorm.core.separation import scales
from upslope.gradnorm.losses import Loss
from upslope.gradnorm.proofs.batch_run import BatchRun
from upslope.gradnorm.proofs.proof import (
    BothListeners,
    Checksums,
    KernelGradients,
    ProofFailed,
    ProvenReduction,
    check_gradients,
    check_separation,
)
from upslope.gradnorm.trace.forward import Forward


class ReducedGradients(NamedTuple):
    """rows: name -> (n, ...), of every parameter that a gradient reached."""

    rows: dict[str, Tensor]
    has_reached: bool
    """Whether the backward pass came to any use of a weight, be it with zeros."""


def reduce_unproven(
    run: BatchRun,
    forward: Forward,
    reduction: Reduction,
    losses: Tensor,
    layouts: Mapping[int, Layout],
    *,
    last: bool,
) -> ReducedGradients:
    """Return the reduced gradients of a batch whose program is proven.

    run, forward: the batch and its pass. losses: (n,). layouts: use -> where its samples are.
    last: whether no other pass follows.
    """
    listener = ReducingListener(forward.tape, run.n, layouts, reduction)
    forward.backward(losses, torch.ones_like(losses), listener, last=last)
    return ReducedGradients(listener.finish(), listener.reached)


def reduce_proven(
    run: BatchRun,
    forward: Forward,
    reduction: Reduction,
    loss: Loss,
    losses: Tensor,
    layouts: Mapping[int, Layout],
    scaled: Mapping[int, Tensor] | None,
    *,
    last: bool,
    holds_in_double: Callable[[Loss], bool],
) -> ReducedGradients:
    """Return the same, held against what autograd alone says of this batch.

    scaled: use -> checksums (n,) of a pass with u times the losses, where probing took one.
    holds_in_double: whether a loss proves right in float64. It is asked where float32 may have
    rounded an activation to the other side of a kink: two right ways then differ by more than
    rounding errors.

    Raises:
        ProofFailed: the two do not agree.
    """
    noting = ProvenReduction(reduction)
    parts = ReducingListener(forward.tape, run.n, layouts, noting)
    once, again = (Checksums(run.n, layouts, forward.tape.kernels) for _ in range(2))
    # A single sample cannot be mixed with others; and probing may have taken the scaled pass.
    enough = run.n == 1 or scaled is not None
    both = BothListeners(once, parts)
    forward.backward(losses, torch.ones_like(losses), both, last=last and enough)
    rows = parts.finish()
    if run.n > 1:
        u = scales(run.n, losses, precision=run.options.dtype)
        if scaled is None:
            forward.backward(losses, u, again, last=last)
            scaled = {index: sums for index, (sums, _) in again.sums.items()}
        scaled = {index: scaled[index] for index in scaled if index in once.sums}
        check_separation(run, forward.tape.kernels, once, scaled, u)
    own = KernelGradients(
        rows, noting.products, losses.detach(), forward.tape.kernels, forward.repeats
    )
    try:
        check_gradients(run, loss, own, reduction)
    # A rounding at a kink is no fault of a kernel: float64 tells the two apart. In other types
    # there is nothing better to ask.
    except ProofFailed:
        single = any(p.dtype == torch.float32 for p in run.weights.parameters.values())
        if not (single and run.precision == torch.float32 and holds_in_double(loss)):
            raise
    return ReducedGradients(rows, parts.reached)
