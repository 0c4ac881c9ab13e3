"""A batch in pieces: as many samples at a time as keep every activation in the cache.

A tensor of tens of megabytes is slow twice: its pages are fresh from the system each time, and what
one operator wrote has left the cache before the next one reads it. With a loss that looks at
outputs alone, or whose labels are known sample by sample, each piece goes by itself. Others may
hold the labels of the whole batch: then the forward passes go piece by piece, the losses are those
of all outputs together, and the backward passes go piece by piece from the gradient at the outputs.
How many samples make a piece follows from shapes alone: results do not depend on what else the
machine does.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import numbers
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from upslope.autodiff import tensors_saved_for_backward
from upslope.errors import GradientNormError
from upslope.gradnorm.core.chunks import SCRATCH, evenly, has_caches
from upslope.gradnorm.core.heap import give_pages_back, keep_pages
from upslope.gradnorm.core.model_io import Batch, Inputs, Loss, in_words, tensors_in
from upslope.gradnorm.core.state.containers import Walk
from upslope.gradnorm.core.state.inventory import Inventory
from upslope.gradnorm.core.state.model_state import ModelState
from upslope.gradnorm.core.state.restoring import in_turn, restoring_state, without_traces
from upslope.gradnorm.core.state.stateful_losses import keeping_loss
from upslope.gradnorm.core.uses.reductions import Reduction
from upslope.gradnorm.core.uses.tape import ComputeOptions
from upslope.gradnorm.core.weights.weights import Weights
from upslope.gradnorm.losses import identify, is_label_free, losses_by_rows
from upslope.gradnorm.proofs.at_outputs import gradients_at_outputs, with_gradients
from upslope.gradnorm.proofs.batch_run import showing_batch_last
from upslope.gradnorm.proofs.independence import loss_may_mix_samples
from upslope.gradnorm.proofs.mixing import shared_tensors
from upslope.gradnorm.trace.memory import memory_of
from upslope.gradnorm.trace.recording import Recording
from upslope.gradnorm.trace.sharing import open_batch

_LARGEST = 13 << 20
"""Bytes of a piece's largest activation: a share of the last cache.

Models of more bytes have pieces whose largest activation is as large as they are."""

_AVERAGE = 8 << 20
"""Bytes that its activations may have on average: with less, the prices of calls count."""

_BLOCK = 31 << 20
"""Bytes of the largest activation that this allows: malloc has a limit of its own."""

_sizes: WeakKeyDictionary[nn.Module, dict[Any, int]] = WeakKeyDictionary()


def reduce_per_sample(
    model: nn.Module,
    batch: Batch,
    weights: Weights,
    options: ComputeOptions,
    reduction: Reduction,
    loss: Loss,
    walk: Walk | None = None,
) -> dict[str, Tensor]:
    """name -> (n, ...): a reduction of each weight's per-sample gradient of `loss`.

    The model is left as it was found. walk: as of `ModelState`.
    """
    keep_pages()
    is_bounded = options.scratch < SCRATCH
    heap = give_pages_back() if is_bounded else contextlib.nullcontext()
    with (
        heap,
        restoring_state(model, walk) as state,
        showing_batch_last(model, batch, state),
        keeping_loss(loss, model) as loss,
    ):
        records = recordings(model, batch, weights, options, state)
        first = next(records)
        if first.n == batch.n:
            return first.reduce_per_sample(reduction, loss, last=True)
        pieces = itertools.chain([first], records)
        del first  # its activations go as soon as it is done
        if is_label_free(loss):
            return _stack(piece.reduce_per_sample(reduction, loss, last=True) for piece in pieces)
        loss_of = losses_by_rows(loss, batch.n)
        if loss_of is None:
            rows = _with_joined_outputs(list(pieces), reduction, loss)
        else:
            rows = _with_labels_of_rows(pieces, reduction, loss_of)
        if rows is None:
            state.renew()
            whole = Recording(model, batch, weights, options, state)
            rows = whole.reduce_per_sample(reduction, loss, last=True)
        return rows


def recordings(
    model: nn.Module, batch: Batch, weights: Weights, options: ComputeOptions, state: ModelState
) -> Iterator[Recording]:
    """Yield a recording of each microbatch; of the whole batch where the model draws numbers.

    In pieces random numbers would be drawn in another order than by an ordinary pass. state: of the
    model, renewed before each pass.
    """
    for microbatch in microbatches(state.inventory, batch, options):
        state.renew()  # a piece does not meet what another piece has written
        record = Recording(model, microbatch, weights, options, state)
        if record.run.is_random and microbatch.first == batch.first and record.n < batch.n:
            record.run.rewind()
            state.renew()
            yield Recording(model, batch, weights, options, state)
            return
        yield record
        del record


def microbatches(inventory: Inventory, batch: Batch, options: ComputeOptions) -> Iterator[Batch]:
    """Yield the batch, cut along the samples; in one piece where nothing is gained by more.

    inventory: of the model. batch, options: of the call.

    Where the caller bounds the scratch there are two pieces at least: the activations that the
    second does not hold yet make room for what the engine needs beside those of the first.
    """
    if True in inventory.training:
        yield batch  # in pieces, random numbers would be drawn in another order
        return
    most = _most(inventory.modules[0], batch, is_bounded=options.scratch < SCRATCH)
    slices = list(evenly(batch.n, most)) if most < batch.n else []
    if len(slices) < 2:
        yield batch
        return
    yield from map(batch.rows, slices)


def _most(model: nn.Module, batch: Batch, *, is_bounded: bool) -> int:
    """Return the most samples that a microbatch may have."""
    limit = (batch.n + 1) // 2 if is_bounded else batch.n
    if not all(map(has_caches, batch.tensors)):
        return limit  # a GPU has no such caches
    sizes_of_model = _sizes.setdefault(model, {})
    # Of batches of one size, as nearly all are, one key serves here and for their program.
    most = sizes_of_model.get(batch.shapes)
    if most is None:
        most = sizes_of_model[batch.shapes] = _most_in_cache(model, batch, sizes_of_model)
    return min(limit, most)


def _most_in_cache(model: nn.Module, batch: Batch, sizes_of_model: dict[Any, int]) -> int:
    """Return the most samples whose activations a cache has room for.

    sizes_of_model: what is known already, by shapes of single samples.
    """
    key = tuple((x.shape[1:], x.dtype) for x in batch.tensors)
    if key not in sizes_of_model:
        sizes_of_model[key] = _number_in_cache(model, _bytes_of_first(model, batch, 1))
    if sizes_of_model[key] >= batch.n:
        return sizes_of_model[key]
    # Before a batch is cut, what does not grow with the samples is left out: weights that are made
    # of parameters (divided by a norm, merged with an update), which are made anew for each piece.
    exact = (key, "two samples")
    if exact not in sizes_of_model:
        of_one, of_two = (_bytes_of_first(model, batch, count) for count in (1, 2))
        growth = [b - a for a, b in zip(of_one, of_two, strict=False) if b > a]
        is_known = len(of_one) == len(of_two) and bool(growth)
        sizes_of_model[exact] = _number_in_cache(model, growth) if is_known else sizes_of_model[key]
    return sizes_of_model[exact]


def _bytes_of_first(model: nn.Module, batch: Batch, count: int) -> list[int]:
    """Return the bytes of each floating tensor that the first samples keep; [] if unknown."""
    try:
        # Bytes are a library's notes: a fused recurrence keeps all its steps in one tensor.
        tensor_bytes, _ = _held_by_first(model, batch, count)
        return [size for size, floating in tensor_bytes if floating]
    except Exception:  # whatever a model does not like about samples by themselves
        return []


def _number_in_cache(model: nn.Module, sizes: list[int]) -> int:
    """Return how many samples a cache has room for. sizes: bytes of a sample's activations."""
    largest, average = max(sizes, default=1), sum(sizes) / max(1, len(sizes))
    # Every piece goes through all weights: large ones want large pieces.
    weights = sum(p.nbytes for p in model.parameters())
    enough = min(_AVERAGE / max(1, average), _BLOCK / max(1, largest))
    return max(1, int(max(_LARGEST, weights) / max(1, largest)), int(enough))


def _with_labels_of_rows(
    records: Iterator[Recording], reduction: Reduction, loss_of: Callable[[slice], Loss]
) -> dict[str, Tensor] | None:
    """None where outputs are padded to the longest sample of a piece, and labels to that of all."""
    results, shapes = [], None
    for record in records:
        first = record.run.batch.first
        shapes_of_piece = [t.shape[1:] for t in tensors_in(record.outputs)]
        if shapes not in (None, shapes_of_piece):
            return None
        shapes, loss = shapes_of_piece, loss_of(slice(first, first + record.n))
        try:
            results.append(record.reduce_per_sample(reduction, loss, last=True))
        except GradientNormError:
            raise
        except Exception:  # a criterion to which its labels do not fit: all of them may
            return None
    return _stack(results)


def _with_joined_outputs(
    records: list[Recording], reduction: Reduction, loss: Loss
) -> dict[str, Tensor] | None:
    """None where the outputs cannot be joined, or the losses look beyond their own sample's."""
    outputs = _join([record.outputs for record in records])
    if outputs is None:
        return None
    run = records[0].run
    parameters = list(run.weights.parameters.values())
    total = sum(record.n for record in records)
    memory = memory_of(run.model)
    keys: list[Hashable] = []

    def is_known(operators: Hashable) -> bool:
        key = (identify(loss), operators, total, run.batch.shapes)
        if memory.knows_loss(key):
            return True
        keys.append(key)
        return False

    # The loss is called once, with all outputs, as its labels may be those of the whole batch.
    try:
        gradients = gradients_at_outputs(outputs, parameters, total, loss, is_known=is_known)
    except GradientNormError:  # outputs that look as long as the batch may be shared by all
        if not shared_tensors(run):
            raise
        return None
    except Exception:  # a loss that reads what the model kept of the last piece, for instance
        gradients = None
    if gradients is None:
        return None
    if keys and loss_may_mix_samples(loss, outputs, total) is False:
        memory.keep_loss(keys[0])

    def rows() -> Iterator[dict[str, Tensor]]:
        while records:
            record = records.pop(0)  # its activations go as soon as it is done
            first = record.run.batch.first
            rows_of_gradients = [g[first : first + record.n] for g in gradients]
            yield record.reduce_per_sample(reduction, with_gradients(rows_of_gradients), last=True)

    return _stack(rows())


def _stack(results: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    every = list(results)
    return {name: torch.cat([rows[name] for rows in every]) for name in every[0]}


def _join(outputs: list[Any]) -> Any:
    """All samples' outputs in one, or None: an object that cannot be opened, a shared number."""
    flat = [tree_flatten(output) for output in outputs]
    columns = list(zip(*(leaves for leaves, _ in flat), strict=False))
    if any(spec != flat[0][1] for _, spec in flat):
        return None
    leaves = []
    for column in columns:
        if all(isinstance(leaf, Tensor) and leaf.dim() > 0 for leaf in column):
            if any(leaf.shape[1:] != column[0].shape[1:] for leaf in column):
                return None  # padded to the longest sample of each piece
            whole = torch.cat([leaf.detach() for leaf in column])  # holds no activation
            leaves.append(whole.requires_grad_(any(leaf.requires_grad for leaf in column)))
        elif all(leaf is None or isinstance(leaf, (bool, int, str)) for leaf in column):
            leaves.append(column[0])
        else:
            return None
    return tree_unflatten(leaves, flat[0][1])


_CPU = 4 << 30
"""Bytes on a CPU, where what is free changes from run to run and results must not."""

_TRANSIENT = 3
"""The saved activations, and as much again twice for gradients and copies on their way."""


@in_turn
def samples_that_fit(model: nn.Module, inputs: Inputs, memory: int | None = None) -> int:
    """The batch size that `memory` holds for `gradient_norms`, at least 1.

    inputs: one sample or more, in dimension 0; the first is run forward, once.
    memory: bytes; by default 4 GiB on a CPU and 70% of what is free on a GPU.

    model: the network.

    Raises:
        GradientNormError: the inputs hold no samples, or `memory` is no positive number.
    """
    if memory is not None:
        require_bytes("memory", memory)
    batch = open_batch(model, inputs)
    if batch.n == 0:
        raise GradientNormError(
            "Expected `inputs` to hold one sample or more but got none: how much a sample takes is "
            "seen by running one."
        )
    sample_bytes, device = _held_by_first(model, batch, 1)
    if memory is None:
        cuda = device.type == "cuda"
        memory = int(0.7 * torch.cuda.mem_get_info(device)[0]) if cuda else _CPU
    return max(1, int(memory // max(1, _TRANSIENT * sum(size for size, _ in sample_bytes))))


def require_bytes(name: str, value: Any) -> None:
    """Refuse what is no number of bytes. name: of the argument.

    Raises:
        GradientNormError: it is no number, or not positive and finite.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise GradientNormError(
            f"Expected `{name}` to be a positive number of bytes but got {in_words(value)}. "
            "1 GiB is `2**30`."
        )


def _held_by_first(
    model: nn.Module, batch: Batch, count: int
) -> tuple[list[tuple[int, bool]], torch.device]:
    """What some of the first samples keep for the backward pass, and the device of their outputs.

    Bytes of each tensor, and whether it holds floating numbers. Parameters and buffers are not
    among it; of views of one tensor there is one. count: how many samples.
    """
    hooks = tensors_saved_for_backward(model)
    with without_traces(model), torch.enable_grad(), hooks as saved_sizes:
        outputs = batch.rows(slice(0, count)).call(model)
    tensors = tensors_in(outputs)
    tensor_bytes = [
        (t.untyped_storage().nbytes(), t.is_floating_point()) for t in saved_sizes.values()
    ]
    return tensor_bytes, tensors[0].device if tensors else torch.device("cpu")
