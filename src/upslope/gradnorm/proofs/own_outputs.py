"""Gradients of the losses at the outputs of a batch, and of samples that went without the others.

Called by `proof`, `company` and `per_sample_loop`. Lengths may deceive: an output may be as long as
the batch by chance, and outputs may be padded to the longest sample of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten

from upslope.errors import GradientNormError, first_line
from upslope.gradnorm.core.model_io import Loss, differentiable
from upslope.gradnorm.proofs.at_outputs import (
    Outputs,
    gradients_at_outputs,
    losses_change,
)
from upslope.gradnorm.proofs.batch_run import BatchRun
from upslope.gradnorm.proofs.kernel_results import ProofFailed
from upslope.gradnorm.proofs.mixing import (
    compare_outputs,
    crop,
    is_shorter,
    shared_leaves,
    unused_outputs,
)
from upslope.gradnorm.proofs.passes import run_without_others


def shares_alone(
    run: BatchRun, loss: Loss, shares: Sequence[Tensor], outputs: Any, rows: Tensor
) -> list[Tensor]:
    """Return the gradients at the outputs of some samples that went without the others.

    Outputs may be padded to the longest sample of a batch, and so be shorter without it. The loss
    must then look at nothing of the padding, nor at how much there is.

    shares: the gradients at the outputs of the whole batch. outputs: of the samples `rows` alone.

    Raises:
        GradientNormError: it does, or cannot be called on shorter outputs.
    """
    ends = [x for x in tree_flatten(outputs)[0] if differentiable(x)]
    own_shares = [share[rows.to(share.device)] for share in shares]
    pairs = list(zip(own_shares, ends, strict=False))
    if len(ends) != len(own_shares) or not any(is_shorter(end, g) for g, end in pairs):
        return own_shares
    cut = [crop(g, end) if is_shorter(end, g) else g for g, end in pairs]
    for whole, part in zip(own_shares, cut, strict=True):
        beyond = whole.flatten(1).count_nonzero(dim=1) > part.flatten(1).count_nonzero(dim=1)
        if bool(beyond.any()):
            raise _looks_at_padding(rows[beyond.cpu()])
    _refuse_losses_by_length(run, loss, outputs, rows)
    return cut


def _refuse_losses_by_length(run: BatchRun, loss: Loss, outputs: Any, rows: Tensor) -> None:
    """Refuse losses of some samples that change when all outputs are cut to these samples'."""
    leaves, spec = tree_flatten(run.outputs)
    fewer = tree_flatten(outputs)[0]
    whole = Outputs(leaves, spec, run.n)
    values = [x.detach() if isinstance(x, Tensor) else x for x in leaves]
    cut = [
        crop(x, shorter) if whole.has_samples(i) and is_shorter(shorter, x) else x
        for i, (x, shorter) in enumerate(zip(values, fewer, strict=True))
    ]
    before = whole.losses(loss, values)
    try:
        after = whole.losses(loss, cut)
    except Exception as error:  # a user's loss may fail in any way
        raise GradientNormError(
            "Expected a loss that takes outputs of any length, for the model's are padded to the "
            f"longest sample of the batch, but on those of samples {rows[:5].tolist()} alone it "
            f"fails with {type(error).__name__}: {first_line(error)}. Whether it depends on the "
            "longest sample cannot be told. Cut what it holds to the length of the outputs, "
            "`labels[:, : outputs.shape[1]]`, or pad the outputs to a length of their own."
        ) from error
    places = rows.to(before.device)
    if after.shape != before.shape or bool(losses_change(after, before)[places].any()):
        raise _looks_at_padding(rows)


def _looks_at_padding(samples: Tensor) -> GradientNormError:
    return GradientNormError(
        "Expected a loss in which each sample's number depends on that sample's outputs alone but "
        f"those of samples {samples[:5].tolist()} depend on how far the longest sample of the "
        "batch pads their outputs. Mask what is padded, and divide by each sample's own length."
    )


def gradients_at_own_outputs(
    run: BatchRun, loss: Loss, parameters: Sequence[Tensor]
) -> list[Tensor] | None:
    """Return the gradients of the losses at the outputs of a batch (`gradients_at_outputs`).

    Raises:
        GradientNormError: a sample's loss depends on the outputs of others.
    """
    try:
        return gradients_at_outputs(run.outputs, parameters, run.n, loss)
    except GradientNormError:
        # A pass of its own, only where lengths may have deceived.
        shared_places = shared_leaves(run)
        if not shared_places:
            raise
    return gradients_at_outputs(run.outputs, parameters, run.n, loss, shared_places=shared_places)


def run_without_company(
    run: BatchRun, loss: Loss, shares: Sequence[Tensor], rows: Tensor
) -> tuple[Tensor, Any, list[Tensor]]:
    """Run some samples without the others.

    Returns those that went, their outputs, and the gradients of the losses at these.

    Raises:
        ProofFailed: the outputs are other ones than in the batch.
    """
    unused_places = unused_outputs(run.outputs, shares)
    company, outputs = run_without_others(run, rows)
    try:
        compare_outputs(run, outputs, company, unused_places, may_be_shorter=True)
        own_shares = shares_alone(run, loss, shares, outputs, company)
    except GradientNormError as error:  # or a kernel is wrong: one by one, it will show
        raise ProofFailed("outputs are not those of ordinary passes without company") from error
    if not run.is_random:
        run.groups_apart.add(frozenset(rows.tolist()))
    return company, outputs, own_shares
