"""Models that mix samples have no loss gradient for a single one, and are refused."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from upslope.errors import GradientNormError
from upslope.gradnorm.core.model_io import Loss, differentiable, half, tensors_in
from upslope.gradnorm.core.restoring import without_traces
from upslope.gradnorm.proofs.at_outputs import (
    companies,
    loss_mixes,
    losses_change,
)
from upslope.gradnorm.proofs.batch_run import BatchRun

_NEAR = {torch.float64: 1e-7, torch.float32: 5e-4}

_NEAR_HALF = 3e-2
"""How far an output may move with the company of a sample, relative to the largest of its kind:
other sizes of batch go through other kernels of the libraries, which round differently."""


def compare_outputs(
    run: BatchRun,
    outputs: Any,
    rows: Tensor,
    unused: Collection[int] = (),
    *,
    may_be_shorter: bool = False,
) -> None:
    """Refuse a model whose outputs for some samples change when the others are not there.

    outputs: of the samples `rows` alone. unused: the places among the tensors of the outputs
    (`tensors_in`) that the loss does not look at, and that may be what they like. may_be_shorter:
    whether outputs may lack what pads them to the longest sample of the batch (`shares_alone`).

    Raises:
        GradientNormError: they do.
    """
    whole, some = tensors_in(run.outputs), tensors_in(outputs)
    if len(whole) != len(some):
        raise model_mixes(run, rows)
    near = _NEAR.get(run.precision, _NEAR_HALF)
    for place, (all_, own) in enumerate(zip(whole, some, strict=True)):
        counted = all_.shape[:1] == (run.n,) and own.shape[:1] == (len(rows),)
        # What the loss does not look at may depend on anything.
        if place in unused or not counted:
            continue
        ours = all_.detach()[rows.to(all_.device)]
        if may_be_shorter and is_shorter(own, ours):
            ours = crop(ours, own)
        if ours.shape != own.shape:
            raise model_mixes(run, rows)
        if ours.numel() == 0:
            continue
        size = torch.where(torch.isfinite(ours), ours.abs(), 0).max()
        same = (own.detach() - ours).abs() <= near * size + near**2
        same |= (own.detach() == ours) | (own.detach().isnan() & ours.isnan())
        if not bool(same.all()) and not _agree_in_double(run, rows):
            wrong = (~same).reshape(len(rows), -1).any(dim=1).cpu()
            raise model_mixes(run, rows[wrong])


def _agree_in_double(run: BatchRun, rows: Tensor) -> bool:
    """Whether outputs change with the company by rounding alone: in float64 they are the same.

    TF32, of which GPUs make float32 products, has three digits.
    """
    # There is nothing more precise to ask.
    if run.precision == torch.float64:
        return False
    try:
        model = copy.deepcopy(run.model).double()
        batch = run.batch.double()
        with torch.no_grad(), without_traces(model):
            whole, some = (tensors_in(b.call(model)) for b in (batch, batch.rows(rows)))
    except Exception:  # a model for its own type alone
        return False
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


def refuse_company(run: BatchRun, outputs: Any, losses: Tensor) -> None:
    """Refuse a model whose outputs change with the company, where the loss cannot be cut off.

    outputs, losses: of a pass of the whole batch, with their graph.

    Raises:
        GradientNormError: what the loss looks at changes.
    """
    ends = [x for x in tensors_in(outputs) if x.requires_grad]
    gradients = (
        torch.autograd.grad(losses.sum(), ends, retain_graph=True, allow_unused=True)
        if ends
        else ()
    )
    unused = _places_without(outputs, ends, gradients)
    # One alone: a model may do something else for few samples.
    for rows in (*half(run.n, seed=run.n), torch.tensor([run.n // 2])):
        with torch.no_grad():
            try:
                company, own = run_without_others(run, rows)
            except Exception:  # a model for this size of batch alone: nothing can be said
                return
        compare_outputs(run, own, company, unused)


def refuse_other_outputs(run: BatchRun, outputs: Any, losses: Tensor) -> None:
    """Refuse a model that puts out other numbers in a second pass of the same batch.

    outputs, losses: of that pass, with their graph.

    Raises:
        GradientNormError: what the loss looks at has changed.
    """
    ends = [x for x in tensors_in(outputs) if x.requires_grad]
    unused = set()
    if ends and losses.requires_grad:
        gradients = torch.autograd.grad(
            losses.sum(), ends, retain_graph=True, allow_unused=True, materialize_grads=False
        )
        unused = _places_without(outputs, ends, gradients)
    compare_outputs(run, outputs, torch.arange(run.n), unused)


def refuse_losses_in_company(run: BatchRun, loss: Loss) -> None:
    """Refuse losses that change when the inputs of other samples do.

    For losses that cannot be cut off from the model, and may depend on other samples.

    Raises:
        GradientNormError: some loss has changed.
    """
    if run.n < 2 or run.is_random:
        return
    losses = loss(run.run_plain(run.batch)).detach()
    for stay, change in companies(run.n):
        try:
            other = loss(run.run_plain(run.batch, change=change)).detach()
        except GradientNormError:
            raise
        except Exception:  # a model may not take such numbers
            continue
        if other.shape != losses.shape:
            continue
        changed = losses_change(other, losses) & stay.to(losses.device)
        if bool(changed.any()):
            raise loss_mixes(changed)


def is_shorter(some: Tensor, whole: Tensor) -> bool:
    """Whether outputs of some samples have fewer entries along any dimension but the samples'."""
    a, b = some.shape[1:], whole.shape[1:]
    return len(a) == len(b) and a != b and all(x <= y for x, y in zip(a, b, strict=True))


def crop(whole: Tensor, some: Tensor) -> Tensor:
    """Return the entries of outputs that shorter ones have as well."""
    return whole[(slice(None), *(slice(size) for size in some.shape[1:]))]


def run_without_others(run: BatchRun, rows: Tensor) -> tuple[Tensor, Any]:
    """Run the model on some samples alone; return those that went, and its outputs.

    A single sample goes twice where the model squeezes one or does not take it. Where a model wants
    its samples in order (of length, for packed sequences), they go in their own.

    Raises:
        GradientNormError: the model runs on the whole batch only.
    """
    try:
        outputs = run.run_plain(run.batch.rows(rows))
        if len(rows) > 1 or all(len(x) == 1 for x in tensors_in(outputs)):
            return rows, outputs
    # Another try would fail as well; the caller must choose a smaller batch.
    except torch.OutOfMemoryError:
        raise
    except Exception:  # the second try below tells what the model does not like
        pass
    other = rows.sort().values if len(rows) > 1 else rows.repeat(2)
    try:
        return other, run.run_plain(run.batch.rows(other))
    except torch.OutOfMemoryError:
        raise
    # Any type: it is the model's own error, told by name below.
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise GradientNormError(
            f"Expected a model that runs on any number of samples but on {len(other)} of the "
            f"{run.n} it fails with {type(error).__name__}: {reason}. Take the number of "
            "samples from the inputs (`len(x)`), not from a constant."
        ) from error


def shared_tensors(run: BatchRun) -> set[int]:
    """Return the places among `tensors_in` of outputs that are as long as the batch by chance.

    A table of prototypes, or outputs with time first: with fewer samples they are as long as ever.
    """
    if run.shared_outputs is None:
        run.shared_outputs = _find_shared(run)
    return run.shared_outputs


def _find_shared(run: BatchRun) -> set[int]:
    whole = tensors_in(run.outputs)
    if run.n < 2 or run.is_random or all(len(x) != run.n for x in whole):
        return set()
    try:
        with torch.no_grad():
            rows, outputs = run_without_others(run, torch.arange(min(2, run.n - 1)))
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
    own = {id(tensors[place]) for place in shared_tensors(run)}
    return {i for i, leaf in enumerate(tree_flatten(run.outputs)[0]) if id(leaf) in own}


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
