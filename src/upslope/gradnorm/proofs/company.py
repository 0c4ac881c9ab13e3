"""Whether samples are what they are without the others, where numbers of theirs steer the model.

A batch is cut to its longest sample, a mask is left out where every sample fills its row: of such
numbers (`program/steering`) each sample has its own. Those for which they would be others than the
batch's are run without the others, the ones of equal numbers together: what comes out must be what
comes out in the batch. What was seen of some numbers once holds for the next sample that has them.

Called by `trace/recording` for each batch in which numbers have left for Python.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from upslope.errors import GradientNormError
from upslope.gradnorm.core.model_io import Loss, opens, tensors_in
from upslope.gradnorm.core.program.steering import Steering
from upslope.gradnorm.proofs.at_outputs import Outputs, loss_mixes, losses_change
from upslope.gradnorm.proofs.batch_run import BatchRun
from upslope.gradnorm.proofs.count import refuse_count
from upslope.gradnorm.proofs.kernel_results import ProofFailed
from upslope.gradnorm.proofs.mixing import compare_outputs, shared_leaves
from upslope.gradnorm.proofs.own_outputs import gradients_at_own_outputs, run_without_company
from upslope.gradnorm.proofs.passes import DrawsFollowData, run_without_others

Ways = set[tuple[str, ...]]


def check_steered(
    run: BatchRun, loss: Loss, steering: Steering, settled_ways: Collection[tuple[str, ...]]
) -> Ways:
    """Run samples that the numbers of others may have steered, without those; return what is known.

    run: the batch, whose outputs are there. steering: the numbers that left. settled_ways: of
    samples that need not be tried again.

    Raises:
        ProofFailed: some outputs are other ones without company.
        GradientNormError: a sample's loss depends on the outputs of others.
    """
    groups = _groups(run.n, steering, settled_ways)
    if groups:
        _refuse_losses(run, loss, groups)
        # A proof of this batch has run some of them already.
        left = [rows for rows, _ in groups if frozenset(rows.tolist()) not in run.groups_apart]
        parameters = list(run.weights.parameters.values())
        shares = gradients_at_own_outputs(run, loss, parameters) if left else None
        with torch.no_grad():
            for rows in left:
                _run_alone(run, loss, shares, rows)
    return {group.way for group in groups if group.way is not None}


def refuse_steered_losses(run: BatchRun, loss: Loss, steering: Steering) -> None:
    """Refuse losses that other samples' numbers steer; arguments as of `check_steered`.

    Raises:
        GradientNormError: the loss of some sample is another one without the others.
    """
    _refuse_losses(run, loss, _groups(run.n, steering, ()))


class _Group(NamedTuple):
    """Samples that would have gone one way alone. way: None where that is not known."""

    rows: Tensor
    way: tuple[str, ...] | None


def _refuse_losses(run: BatchRun, loss: Loss, groups: Collection[_Group]) -> None:
    """Refuse losses that change where a group's outputs stand in the places of all others.

    Raises:
        GradientNormError: the loss of some sample is another one without the others.
    """
    if run.n < 2 or not opens(run.outputs) or not groups:
        return
    result = _compare_losses(run, loss, groups, ())
    is_right = isinstance(result, Tensor) and not bool(result.any())
    # A pass of its own, only where lengths may have deceived.
    if not is_right and (shared_places := shared_leaves(run)):
        result = _compare_losses(run, loss, groups, shared_places)
    if isinstance(result, GradientNormError):  # Upslope's own refusal, not a failure of the loss
        raise result
    # A loss that fails is more than a function of the outputs: these are compared later.
    if isinstance(result, Tensor) and bool(result.any()):
        raise loss_mixes(result)


def _compare_losses(
    run: BatchRun, loss: Loss, groups: Iterable[_Group], shared_places: Collection[int]
) -> Tensor | Exception:
    """Return which samples' losses change, (n,) bool, or how the loss fails.

    The first group shows it in which some do. shared_places: as of `Outputs`.
    """
    leaves, spec = tree_flatten(run.outputs)
    outputs = Outputs(leaves, spec, run.n, shared_places)
    values = [x.detach() if isinstance(x, Tensor) else x for x in leaves]
    before: Tensor | None = None
    has_changed = torch.zeros(run.n).bool()
    for rows, _ in groups:
        index = rows.repeat(run.n)[: run.n].index_copy(0, rows, rows)
        rows_alone = [
            x[index.to(x.device)] if outputs.has_samples(i) else x for i, x in enumerate(values)
        ]
        try:
            before = outputs.losses(loss, values) if before is None else before
            after = outputs.losses(loss, rows_alone)
        except Exception as error:  # a user's loss may fail in any way
            return error
        if before.shape == after.shape:
            has_changed[rows] = losses_change(after, before)[rows.to(before.device)].cpu()
            if bool(has_changed.any()):
                break
    return has_changed


def _groups(n: int, steering: Steering, settled_ways: Collection[tuple[str, ...]]) -> list[_Group]:
    """Return the samples that are to be tried, in groups that go together."""
    together, ways = steering.together, steering.ways()
    if not steering.numbers:
        return []
    if ways is None:
        return [_Group(torch.tensor([i]), None) for i in range(n)]
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, way in enumerate(ways):
        if way != together and steering.has_lengths:
            way = (*together, *way)  # lengths of a batch may be others in the next one
        if not (way == together or way in settled_ways):
            groups.setdefault(way, []).append(i)
    # Of several samples a router may decide otherwise than of each.
    if steering.has_decisions:
        return [_Group(torch.tensor([i]), way) for way, rows in groups.items() for i in rows]
    # All samples together are the batch, which shows nothing: one of them goes alone. So it does of
    # equal lengths, for it has its own then; several have their sum.
    return [
        _Group(torch.tensor(rows[:1] if steering.has_lengths or len(rows) == n else rows), way)
        for way, rows in groups.items()
    ]


def _run_alone(run: BatchRun, loss: Loss, shares: list[Tensor] | None, rows: Tensor) -> None:
    """Run some samples without the others, by passes that meet the same random numbers."""
    while not run.draws_follow_data:
        try:
            if shares is not None:
                run_without_company(run, loss, shares, rows)
            else:  # the loss cannot be cut off: of the outputs it may look at all
                _compare(run, rows)
            # The others then kept their whole numbers, lengths among them.
            if run.draws_follow_counts:
                break
            return
        except DrawsFollowData:  # twice at most: the run has taken note of what they follow
            continue
    refuse_count(run, [rows], ())


def _compare(run: BatchRun, rows: Tensor) -> None:
    company, outputs = run_without_others(run, rows)
    if not any(x.shape[:1] == (run.n,) for x in tensors_in(run.outputs)):
        raise ProofFailed("numbers of other samples steer the model, whose outputs are closed")
    try:
        compare_outputs(run, outputs, company)
    except GradientNormError as error:  # or a kernel is wrong: one by one, it will show
        raise ProofFailed("numbers of other samples steer the model") from error
