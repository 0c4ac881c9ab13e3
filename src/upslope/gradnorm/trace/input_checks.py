"""Refusals of inputs that mean more than their numbers: a graph of their own, or shared memory.

A model is given copies of its inputs in every pass of the engine. A path from an input back to the
model's own parameters would be cut off there, and two inputs that are one tensor would be two.
Called by `arguments` before anything is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from upslope.errors import GradientNormError
from upslope.gradnorm.core.model_io import Batch, call
from upslope.gradnorm.core.state.restoring import without_traces
from upslope.gradnorm.core.state.state_memory import has_memory, stretches_of
from upslope.gradnorm.core.weights.weights import leaves


def refuse_inputs_of_parameters(batch: Batch, parameters: Mapping[str, Tensor]) -> None:
    """Refuse inputs that are parameters of the model, or computed from them.

    batch: the inputs. parameters: name -> what is differentiated by.

    Raises:
        GradientNormError: naming the input and the parameter.
    """
    for place, leaf in enumerate(batch.leaves):
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            names = {id(p): name for name, p in parameters.items()}
            parameter_names = [names[id(t)] for t in (leaf, *leaves(leaf)) if id(t) in names]
            if parameter_names:
                raise GradientNormError(
                    f"Expected inputs that do not depend on the model's parameters but input "
                    f"{place} (counted from 0) is computed from `{parameter_names[0]}`, or is it: "
                    "part of the gradient would go through the input, where it is not seen. Give "
                    "the model what the input was computed from (the ids instead of their "
                    "embeddings), or `detach()` the input, so that this part does not count."
                )


def twins_in(batch: Batch) -> list[int]:
    """Return the places of the inputs that share memory with others, counted from 0."""
    if len(batch.tensors) < 2:
        return []
    tensors = {id(leaf): leaf for leaf in batch.tensors if has_memory(leaf)}
    twice = {i for i in tensors if sum(leaf is tensors[i] for leaf in batch.leaves) > 1}
    if len({leaf.untyped_storage().data_ptr() for leaf in tensors.values()}) < len(tensors):
        for stretch in stretches_of(list(tensors.values())):
            # Views of one table overlap, or they do not: those that do cannot be copied one by one.
            if len(stretch.own) < sum(at.original.nbytes for at in stretch.looking):
                twice |= {id(at.original) for at in stretch.looking}
    return [i for i, leaf in enumerate(batch.leaves) if id(leaf) in twice]


def refuse_written_twins(model: nn.Module, batch: Batch, places: Sequence[int]) -> None:
    """Refuse inputs that share memory, if the model writes into one of them.

    model, batch: of the call. places: as of `twins_in`.

    Raises:
        GradientNormError: it does.
    """
    for few in (batch.rows(slice(0, 2)), batch):
        copies: list[tuple[Tensor, Tensor]] = []

        def take(tensor: Tensor, _: bool, copies: list[tuple[Tensor, Tensor]] = copies) -> Tensor:
            copies.append((tensor, tensor.detach().clone()))
            return copies[-1][1]

        try:
            with torch.no_grad(), without_traces(model):
                call(model, few.map(take))
        except Exception:  # the model's own error will be raised by the pass that counts
            continue
        if any(copy._version > 0 or not torch.equal(copy, tensor) for tensor, copy in copies):
            raise GradientNormError(
                f"Expected inputs that are tensors of their own but inputs {places} (counted from "
                "0) share memory, and the model writes into its inputs: what it writes to one "
                "shows in the other. Give it copies (`x.clone()`), or do not write in `forward`."
            )
        return
