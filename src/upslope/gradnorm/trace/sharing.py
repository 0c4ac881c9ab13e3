"""Inputs that all samples share, and that are as long as the batch by chance.

A mask of shape (length, length), a table of class weights: where the batch has as many samples as
these have rows, shapes do not tell them from inputs with one row per sample. The model does: with
half of the samples, it puts out the same numbers for them if what it shares stays whole.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from upslope.errors import GradientNormError
from upslope.gradnorm.core.model_io import (
    Batch,
    Inputs,
    half,
    require_module,
    shared_choices,
    tensors_in,
)
from upslope.gradnorm.core.state.restoring import without_traces

_NEAR = 1e-2
"""How far outputs may differ, relative to the largest: wrong rows differ by as much as the
outputs."""

_choices: WeakKeyDictionary[nn.Module, dict[Hashable, tuple[int, ...]]] = WeakKeyDictionary()


def open_batch(model: nn.Module, inputs: Inputs) -> Batch:
    """Return the batch that a caller's inputs are: the door of the engine.

    model: the network that takes them, which tells inputs with one row per sample from those that
    all samples share. inputs: a tensor, or a tuple or dict of them.

    Raises:
        GradientNormError: the model is no module, there is no tensor with samples, or no telling
            whose its rows are.
    """
    require_module(model)
    return resolve_shared(model, Batch.of(inputs))


def resolve_shared(model: nn.Module, batch: Batch) -> Batch:
    """Return the batch with the inputs that its samples share told from those with rows for each.

    Where that cannot be told (the model is random, or mixes samples), every input as long as the
    batch is held to have one row per sample.
    """
    # One sample alone has nothing that it could share with others.
    doubtful = batch.doubtful() if batch.n > 1 else []
    if not doubtful:
        return batch
    choices_of_model = _choices.setdefault(model, {})
    if batch.shapes not in choices_of_model:
        with torch.inference_mode(False):  # what is made here may be recorded later
            choices_of_model[batch.shapes] = _choose(model, batch, doubtful)
    return batch.with_shared(choices_of_model[batch.shapes])


def _choose(model: nn.Module, batch: Batch, doubtful: list[int]) -> tuple[int, ...]:
    """Return the leaves that are shared: under this choice, halves put out what the batch does."""
    with torch.no_grad():
        try:
            with without_traces(model):
                whole = tensors_in(batch.call(model))
        except Exception:  # the model's own error will be raised by the pass that counts
            return ()
        for places in shared_choices(doubtful):
            if any(_has_no_order(model, batch, place, whole) for place in places):
                continue
            if _explains(model, batch.with_shared(places), whole):
                for place in places:
                    _refuse_pairs(model, batch, place, whole)
                return places
    return ()


def _has_no_order(model: nn.Module, batch: Batch, place: int, whole: list[Tensor]) -> bool:
    """Whether a model puts out the same with the rows of an input in another order, and one more.

    It then takes a number of all of them, as the largest of the samples' lengths. What samples
    share is made of rows that each have a meaning: words of a mask, classes of a table. The order
    alone does not tell: a mask may move the outputs by less than wrong rows would. One row more
    does, for it does not fit.
    """
    leaf = batch.leaves[place]
    reordered_rows = leaf.roll(1, 0)
    if torch.equal(reordered_rows, leaf):
        return False
    return all(
        _puts_out(model, batch, place, other, whole)
        for other in (reordered_rows, torch.cat((reordered_rows, leaf[:1])))
    )


def _puts_out(
    model: nn.Module, batch: Batch, place: int, leaf: Tensor, whole: list[Tensor]
) -> bool:
    """Whether a model puts out the same with another tensor in the place of an input."""
    leaves = list(batch.leaves)
    leaves[place] = leaf
    try:
        with without_traces(model):
            outputs = tensors_in(batch.with_leaves(tuple(leaves)).call(model))
    except Exception:  # it takes the tensor in this order, or of this length, alone
        return False
    pairs = list(zip(whole, outputs, strict=False))
    return all(a.shape == b.shape and _near(a, b) for a, b in pairs)


def _refuse_pairs(model: nn.Module, batch: Batch, place: int, whole: list[Tensor]) -> None:
    """Refuse an input as long as the batch whose rows are a dimension of the outputs.

    A table of similarities, (n, n): whether n images meet the n texts that belong to them, or n
    classes that all share, no shape tells.

    Raises:
        GradientNormError: half of its rows make half of a dimension of the outputs.
    """
    leaves = list(batch.leaves)
    leaves[place] = leaves[place][: batch.n // 2]
    fewer = batch.with_leaves(tuple(leaves))
    try:
        with without_traces(model):
            outputs = tensors_in(fewer.call(model))
    except Exception:  # a mask that was cut does not fit: the input is no list of rows
        return
    for all_, some in zip(whole, outputs, strict=False):
        cut = [d for d, (a, b) in enumerate(zip(all_.shape, some.shape, strict=False)) if a != b]
        if cut and cut[0] > 0 and some.shape[cut[0]] == batch.n // 2:
            raise GradientNormError(
                f"Expected inputs whose rows belong to the {batch.n} samples one by one but input "
                f"{place} (counted from 0), of shape {tuple(batch.leaves[place].shape)}, makes "
                f"dimension {cut[0]} of the outputs: every sample is compared with every row of "
                "it. If its rows are samples too, the model mixes samples and none has a loss "
                "gradient of its own. If all samples share them (classes to compare with), give "
                "them to the model in a closure or an attribute, not as an input."
            )


def _explains(model: nn.Module, batch: Batch, whole: list[Tensor]) -> bool:
    for rows in half(batch.n, seed=batch.n):
        try:
            with without_traces(model):
                outputs_alone: list[Any] = tensors_in(batch.rows(rows).call(model))
        except Exception:  # a mask that was cut does not fit: not this choice
            return False
        same = [
            _near(all_[rows], some)
            for all_, some in zip(whole, outputs_alone, strict=False)
            if all_.shape[:1] == (batch.n,) and some.shape[:1] == (len(rows),)
            and all_.shape[1:] == some.shape[1:]
        ]  # fmt: skip
        if not same or not all(same):
            return False
    return True


def _near(reference: Tensor, value: Tensor) -> bool:
    size = torch.where(torch.isfinite(reference), reference.abs(), 0).max()
    close = (value - reference).abs() <= _NEAR * size + torch.finfo(value.dtype).tiny
    return bool((close | (value == reference) | (value.isnan() & reference.isnan())).all())
