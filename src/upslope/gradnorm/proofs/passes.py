"""Ordinary passes of some samples of a batch, which meet nothing of the others.

A model that draws no random numbers is run on these samples alone. One that does would draw other
numbers for them; it is run on the whole batch, from the same state of the generators, with the
others replaced by copies of these samples: whatever is drawn, is drawn in the same places. Where
what is drawn depends on the numbers of the samples (a dropout behind a choice of tokens, say), such
passes cannot be compared (`DrawsFollowData`).

Called by `mixing`, `proof` and `per_sample_loop`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from upslope.errors import GradientNormError, first_line
from upslope.gradnorm.core.model_io import Batch, opens, tensors_in
from upslope.gradnorm.proofs.batch_run import BatchRun, Watch
from upslope.gradnorm.proofs.draws import DrawsLog


class DrawsFollowData(Exception):  # noqa: N818
    """Which random numbers a sample meets depends on the numbers of other samples."""


def run_without_others(run: BatchRun, rows: Tensor) -> tuple[Tensor, Any]:
    """Run the model on some samples without the others; return those that went, and its outputs.

    Raises:
        GradientNormError: the model runs on the batch as it is only.
    """
    if run.is_random and run.n > 1:
        return rows, _run_with_others_replaced(run, rows)
    return run_fewer(run, rows)


def run_fewer(run: BatchRun, rows: Tensor, watch: Watch | None = None) -> tuple[Tensor, Any]:
    """Run the model on some samples alone; return those that went, and its outputs.

    A single sample goes twice where the model squeezes one or does not take it. Where a model wants
    its samples in order (of length, for packed sequences), they go in their own. watch: runs with
    the model.

    Raises:
        GradientNormError: the model runs on the whole batch only.
        Exception: the model's own error, where it does not run on the whole batch either.
    """
    try:
        outputs = run.run_plain(run.batch.rows(rows), watch=watch)
        if len(rows) > 1 or all(len(x) == 1 for x in tensors_in(outputs)):
            return rows, outputs
    # Another try would fail as well; the caller must choose a smaller batch.
    except torch.OutOfMemoryError:
        raise
    except Exception:  # the second try below tells what the model does not like
        pass
    other = rows.sort().values if len(rows) > 1 else rows.repeat(2)
    try:
        return other, run.run_plain(run.batch.rows(other), watch=watch)
    except torch.OutOfMemoryError:
        raise
    # Any type: it is the model's own error, told by name below.
    except Exception as error:
        # Kernels may take what PyTorch does not: a type that autocast has made, say.
        run.run_plain(run.batch)
        raise GradientNormError(
            f"Expected a model that runs on any number of samples but on {len(other)} of the "
            f"{run.n} it fails with {type(error).__name__}: {first_line(error)}. Take the "
            "number of samples from the inputs (`len(x)`), not from a constant."
            + _advice_on_shared(run.batch)
        ) from error


def _advice_on_shared(batch: Batch) -> str:
    """Return what to do if the samples share an input that is held to have a row for each."""
    places = batch.doubtful()
    if not places:
        return ""
    shapes = ", ".join(f"{place} of shape {tuple(batch.leaves[place].shape)}" for place in places)
    return (
        f" Or is an input that all samples share as long as the batch by chance (input {shapes}, "
        "counted from 0)? Then give it to the model in a closure or an attribute, or take another "
        "number of samples."
    )


def _run_with_others_replaced(run: BatchRun, rows: Tensor) -> Any:
    """Run the whole batch with copies of some samples in the place of the others.

    Returns the outputs of these samples, in their order.
    """
    try:
        outputs = run.run_plain(with_others_replaced(run, rows))
    except torch.OutOfMemoryError:
        raise
    # Any type: it is the model's own error, told by name below.
    except Exception as error:
        raise GradientNormError(
            "Expected a model that takes any samples but with copies of samples "
            f"{rows[:5].tolist()} in the place of the others it fails with "
            f"{type(error).__name__}: {first_line(error)}. Random numbers are drawn, so that no "
            "sample can be looked at but in its place of the batch: `model.eval()`."
        ) from error

    def take_rows(tensor: Tensor) -> Tensor:
        return tensor[rows.to(tensor.device)] if tensor.shape[:1] == (run.n,) else tensor

    # Objects that cannot be taken apart are only looked at (`tensors_in`).
    whole = outputs if opens(outputs) else tensors_in(outputs)
    return tree_map_only(Tensor, take_rows, whole)


def with_others_replaced(run: BatchRun, rows: Tensor) -> Batch:
    """Return the batch with copies of some samples in the place of the others."""
    batch = run.batch.rows(_replacement(run.n, rows))
    if not run.draws_follow_counts:
        return batch
    leaves = tuple(
        new if isinstance(old, Tensor) and old.is_floating_point() else old
        for old, new in zip(run.batch.leaves, batch.leaves, strict=True)
    )
    return dataclasses.replace(batch, leaves=leaves)


def _replacement(n: int, rows: Tensor) -> Tensor:
    """For each of n places the sample that goes there: of `rows` each in its own.

    The next one before it, or after it, in the others, so that samples in order stay in order.
    """
    sorted_rows = rows.sort().values
    at = torch.searchsorted(sorted_rows, torch.arange(n), right=True) - 1
    return sorted_rows[at.clamp(min=0)]


def note_draws_that_follow_data(run: BatchRun, rows: Tensor) -> None:
    """See whether other random numbers are drawn when copies of some samples replace the others.

    Where they are, whole numbers stay from now on, for lengths often decide; where they are even
    so, no other pass meets the random numbers of the batch. Of the whole batch none is replaced.

    Raises:
        DrawsFollowData: they are.
    """
    if len(rows) == run.n:
        return
    as_is, log_with_replacement = DrawsLog(), DrawsLog()
    batch_with_copies = with_others_replaced(run, rows)
    run.run_plain(run.batch, watch=as_is)
    run.run_plain(batch_with_copies, watch=log_with_replacement)
    # Other lengths may add up to as many draws, which then go to other places.
    is_replay = log_with_replacement.is_replay_of(as_is)
    if is_replay and not _has_other_counts(run.batch, batch_with_copies):
        return
    if run.draws_follow_counts:
        run.draws_follow_data = True
    run.draws_follow_counts = True
    raise DrawsFollowData


def _has_other_counts(batch: Batch, other: Batch) -> bool:
    """Whether any whole numbers differ between two batches of one form."""
    pairs = zip(batch.leaves, other.leaves, strict=True)
    counts = [(a, b) for a, b in pairs if isinstance(a, Tensor) and not a.is_floating_point()]
    return any(a.is_nested or not torch.equal(a, b) for a, b in counts)
