"""Models that mix samples have no loss gradient for a single one, and are refused."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from upslope.errors import GradientNormError
from upslope.gradnorm.core.model_io import Loss, differentiable, half, tensors_in
from upslope.gradnorm.core.state.restoring import without_traces
from upslope.gradnorm.proofs.at_outputs import (
    companies,
    loss_mixes,
    losses_change,
)
from upslope.gradnorm.proofs.batch_run import BatchRun
from upslope.gradnorm.proofs.draws import ConstantDraws, Quantiles
from upslope.gradnorm.proofs.passes import (
    note_draws_that_follow_data,
    run_fewer,
    run_without_others,
    with_others_replaced,
)

_NEAR = {torch.float64: 1e-7, torch.float32: 5e-4}

_NEAR_HALF = 3e-2
"""How far an output may move with the company of a sample, relative to the largest of its kind:
other sizes of batch go through other kernels of the libraries, which round differently."""


def compare_outputs(
    run: BatchRun,
    outputs: Any,
    rows: Tensor,
    unused_places: Collection[int] = (),
    *,
    may_be_shorter: bool = False,
) -> None:
    """Refuse a model whose outputs for some samples change when the others are not there.

    outputs: of the samples `rows` alone. unused_places: the places among the tensors of the outputs
    (`tensors_in`) that the loss does not look at, and that may be what they like. may_be_shorter:
    whether outputs may lack what pads them to the longest sample of the batch (`shares_alone`).

    Raises:
        GradientNormError: they do.
        DrawsFollowData: the two passes have met other random numbers.
    """
    changed_rows = changed_samples(
        run, run.outputs, outputs, rows, unused_places, may_be_shorter=may_be_shorter
    )
    if changed_rows is None or agree_in_double(run, rows):
        return
    if run.is_random:
        note_draws_that_follow_data(run, rows)
    raise model_mixes(run, changed_rows)


def changed_samples(
    run: BatchRun,
    whole: Any,
    outputs: Any,
    rows: Tensor,
    unused_places: Collection[int],
    *,
    may_be_shorter: bool,
) -> Tensor | None:
    """Return which of some samples have other outputs than in the batch, `whole`; None if none."""
    before, some = tensors_in(whole), tensors_in(outputs)
    if len(before) != len(some):
        return rows
    near = _NEAR.get(run.precision, _NEAR_HALF)
    for place, (all_, some_rows) in enumerate(zip(before, some, strict=True)):
        has_rows = all_.shape[:1] == (run.n,) and some_rows.shape[:1] == (len(rows),)
        # What the loss does not look at may depend on anything.
        if place in unused_places or not has_rows:
            continue
        ours = all_.detach()[rows.to(all_.device)]
        if may_be_shorter and is_shorter(some_rows, ours):
            ours = crop(ours, some_rows)
        if ours.shape != some_rows.shape:
            return rows
        if ours.numel() == 0:
            continue
        size = torch.where(torch.isfinite(ours), ours.abs(), 0).max()
        same = (some_rows.detach() - ours).abs() <= near * size + near**2
        same |= (some_rows.detach() == ours) | (some_rows.detach().isnan() & ours.isnan())
        if not bool(same.all()):
            wrong = (~same).reshape(len(rows), -1).any(dim=1).cpu()
            return rows[wrong]
    return None


def agree_in_double(run: BatchRun, rows: Tensor, quantiles: Quantiles | None = None) -> bool:
    """Whether outputs change with the company by rounding alone: in float64 they are the same.

    TF32, of which GPUs make float32 products, has three digits. quantiles: of constant draws.
    """
    # There is nothing more precise to ask.
    if run.precision == torch.float64:
        return False
    replays = run.is_random and quantiles is None
    some_samples = with_others_replaced(run, rows) if replays else run.batch.rows(rows)
    try:
        model = copy.deepcopy(run.model).double()
        pair = []
        for part in (run.batch.to(torch.float64), some_samples.to(torch.float64)):
            constant = contextlib.nullcontext() if quantiles is None else ConstantDraws(quantiles)
            with torch.no_grad(), without_traces(model), constant:
                pair.append(tensors_in(part.call(model)))
        whole, some = pair
    except Exception:  # a model for its own type alone
        return False
    if replays:
        some = [b[rows] if len(b) == run.n else b for b in some]
    pairs = [(a[rows], b) for a, b in zip(whole, some, strict=False) if len(a) == run.n]
    pairs = [(crop(a, b) if is_shorter(b, a) else a, b) for a, b in pairs]
    if len(whole) != len(some) or not pairs or any(a.shape != b.shape for a, b in pairs):
        return False
    near = _NEAR[torch.float64]
    for a, b in pairs:
        # Of what is finite: classes that a model masks with -inf are close to nothing.
        size = float(torch.where(torch.isfinite(a), a.abs(), 0).max()) if a.numel() else 0.0
        if not bool(torch.isclose(a, b, near, near * size, equal_nan=True).all()):
            return False
    return True


def unused_outputs(outputs: Any, shares: Sequence[Tensor]) -> set[int]:
    """The places of the outputs that no gradient of the loss reaches.

    shares: the gradient at each output that has a graph, in order. Where it is zero at all of them,
    the losses are flat just now, and no output is held to be unused.
    """
    ends = [x for x in tree_flatten(outputs)[0] if differentiable(x)]
    if len(ends) != len(shares):
        return set()
    return _places_without(outputs, ends, shares)


def _places_without(
    outputs: Any, ends: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> set[int]:
    """The places of those outputs whose gradient is zero; none, where that is so of all."""
    still = {
        id(end) for end, g in zip(ends, gradients, strict=True) if g is None or not bool(g.any())
    }
    if len(still) == len(ends):
        return set()
    return {place for place, tensor in enumerate(tensors_in(outputs)) if id(tensor) in still}


def unread_outputs(outputs: Any, losses: Tensor) -> set[int]:
    """Return the places of the outputs that no gradient of the losses reaches.

    outputs, losses: of one pass, with their graph.
    """
    ends = [x for x in tensors_in(outputs) if x.requires_grad]
    if not ends or not losses.requires_grad:
        return set()
    gradients = torch.autograd.grad(losses.sum(), ends, retain_graph=True, allow_unused=True)
    return _places_without(outputs, ends, gradients)


def groups_without_others(run: BatchRun) -> list[Tensor]:
    """Return the samples that are to go together, without the others.

    Both halves; and one alone, or each, for a model may do something else for few samples.
    """
    samples = range(run.n) if run.may_mix_samples else [run.n // 2]
    return [*half(run.n, seed=run.n), *(torch.tensor([i]) for i in samples)]


def refuse_company(run: BatchRun, outputs: Any, losses: Tensor) -> None:
    """Refuse a model whose outputs change with the company, where the loss cannot be cut off.

    outputs, losses: of a pass of the whole batch, with their graph.

    Raises:
        GradientNormError: what the loss looks at changes.
    """
    unused_places = unread_outputs(outputs, losses)
    for rows in groups_without_others(run):
        with torch.no_grad():
            try:
                company, outputs_alone = run_without_others(run, rows)
            except Exception:  # a model for this size of batch alone: nothing can be said
                return
            compare_outputs(run, outputs_alone, company, unused_places)


def refuse_other_outputs(run: BatchRun, outputs: Any, losses: Tensor) -> None:
    """Refuse a model that puts out other numbers in a second pass of the same batch.

    outputs, losses: of that pass, with their graph.

    Raises:
        GradientNormError: what the loss looks at has changed.
    """
    rows = torch.arange(run.n)
    compare_outputs(run, outputs, rows, unread_outputs(outputs, losses))


def refuse_losses_in_company(run: BatchRun, loss: Loss) -> None:
    """Refuse losses that change when the inputs of other samples do.

    For losses that cannot be cut off from the model, and may depend on other samples.

    Raises:
        GradientNormError: some loss has changed.
    """
    if run.n < 2:
        return
    losses = loss(run.run_plain(run.batch)).detach()
    for stay, change in companies(run.n):
        try:
            other = loss(run.run_plain(run.batch, change=change)).detach()
        except GradientNormError:  # Upslope's own refusal, not a failure of the model
            raise
        except Exception:  # a model may not take such numbers
            continue
        if other.shape != losses.shape:
            continue
        has_changed = losses_change(other, losses) & stay.to(losses.device)
        if bool(has_changed.any()):
            raise loss_mixes(has_changed)


def is_shorter(some: Tensor, whole: Tensor) -> bool:
    """Whether outputs of some samples have fewer entries along any dimension but the samples'."""
    a, b = some.shape[1:], whole.shape[1:]
    return len(a) == len(b) and a != b and all(x <= y for x, y in zip(a, b, strict=True))


def crop(whole: Tensor, some: Tensor) -> Tensor:
    """Return the entries of outputs that shorter ones have as well."""
    return whole[(slice(None), *(slice(size) for size in some.shape[1:]))]


def shared_tensors(run: BatchRun) -> set[int]:
    """Return the places among `tensors_in` of outputs that are as long as the batch by chance.

    A table of prototypes, or outputs with time first: with fewer samples they are as long as ever.
    """
    if run.shared_outputs is None:
        run.shared_outputs = _find_shared(run)
    return run.shared_outputs


def _find_shared(run: BatchRun) -> set[int]:
    whole = tensors_in(run.outputs)
    if run.n < 2 or all(len(x) != run.n for x in whole):
        return set()
    try:
        with torch.no_grad():
            rows, outputs = run_fewer(run, torch.arange(min(2, run.n - 1)))
    except Exception:  # for this size of batch alone, or in no mode but the ordinary one
        return set()
    fewer = tensors_in(outputs)
    if len(rows) == run.n or len(fewer) != len(whole):
        return set()
    pairs = enumerate(zip(whole, fewer, strict=True))
    return {place for place, (a, b) in pairs if len(a) == len(b) == run.n}


def shared_leaves(run: BatchRun) -> set[int]:
    """Return the places of those outputs among the leaves of `tree_flatten`."""
    tensors = tensors_in(run.outputs)
    shared_ids = {id(tensors[place]) for place in shared_tensors(run)}
    return {i for i, leaf in enumerate(tree_flatten(run.outputs)[0]) if id(leaf) in shared_ids}


def model_mixes(run: BatchRun, samples: Tensor) -> GradientNormError:
    """The error for a model that mixes samples. samples: the indices of those that show it."""
    which = [run.batch.first + int(i) for i in samples[:3]]
    if not _is_repeatable(run):
        return GradientNormError(
            "Expected a model that puts out the same numbers for the same samples but a second "
            "pass of the same batch gives others: it counts its calls, or keeps a state between "
            "them (`model.eval()` does not reset it) out of reach, in a closure or a global name. "
            "Reset the state in `forward`, or keep it in buffers or attributes of the model, which "
            "are put back before every pass."
        )
    return GradientNormError(
        "Expected a model that treats each sample by itself but its outputs for samples "
        f"{which} of {run.n} change when others of the batch are not there: the model mixes "
        "samples, so that none has a loss gradient of its own. Layers that normalise or attend "
        "over the batch must be in eval mode or be replaced."
    )


def _is_repeatable(run: BatchRun) -> bool:
    """Whether another pass of the same batch puts out the same numbers."""
    try:
        with torch.no_grad():
            first, second = (tensors_in(run.run_plain(run.batch)) for _ in range(2))
    except Exception:  # then it is not this that is wrong
        return True
    near = _NEAR.get(run.precision, _NEAR_HALF)
    for a, b in zip(first, second, strict=False):
        if a.shape == b.shape and not torch.allclose(a, b, near, near**2, equal_nan=True):
            return False
    return True
