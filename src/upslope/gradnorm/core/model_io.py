"""A batch of samples as the engine sees it: the inputs, and which of their tensors have samples.

Made once, at the door of the engine (`trace/sharing.open_batch`); everything behind it cuts samples
out of a batch by `Batch.rows` alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from upslope.errors import GradientNormError

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What a model takes, samples in dimension 0: a tensor, or a tuple or dict of them."""

_OF_A_LEAF = tree_flatten(None)[1]
"""How inputs that are one tensor are put back together."""

_MOST_SHARED = 2
"""Tensors that are tried as shared at once. Models with more such inputs at a batch whose size is
theirs by chance are refused; 2 covers a mask and a table of weights."""


def _flatten(inputs: Inputs) -> tuple[list[Any], Any]:
    """Return the leaves of inputs, and how to put them back together."""
    # torch's own way leaves a circle of objects behind, that Python has to look for.
    if type(inputs) is tuple and all(type(x) is Tensor for x in inputs):
        return list(inputs), _spec_of_tuple(len(inputs))
    return tree_flatten(dict(inputs) if isinstance(inputs, Mapping) else inputs)


@cache
def _spec_of_tuple(size: int) -> Any:
    """Return how a tuple of leaves is put back together."""
    return tree_flatten((None,) * size)[1]


@dataclass(frozen=True)
class Batch:
    """A batch of n samples, in the leaves of a model's inputs.

    leaves: the inputs, flattened; spec: how to put them back together. n: the number of samples.
    per_sample: of each leaf, whether its dimension 0 counts the samples. Others are shared by all.
    first: which sample of the caller's batch is the first here, for messages.
    """

    leaves: tuple[Any, ...]
    spec: Any
    n: int
    per_sample: tuple[bool, ...]
    first: int = 0

    @classmethod
    def of(cls, inputs: Inputs) -> Batch:
        """Read a batch off a model's inputs; n is the length of the first tensor.

        Every tensor of that length is held to have one row per sample; see `resolve_shared`.

        Raises:
            GradientNormError: there is no tensor with a dimension.
        """
        if type(inputs) is Tensor and inputs.dim() > 0 and not _lacks_rows(inputs):
            return cls((inputs,), _OF_A_LEAF, inputs.shape[0], (True,))  # as nearly all are
        leaves, spec = _flatten(inputs)
        # Numbers without a dimension are options of the model, not samples.
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > 0]
        if not tensors:
            raise GradientNormError(
                "Expected `inputs` to be a tensor, or a tuple or dict of tensors, with the samples "
                f"in dimension 0 but got {type(inputs).__name__} without such a tensor."
            )
        n = tensors[0].size(0)  # nested tensors may have no `shape`
        per_sample = tuple(_has_rows(leaf, n) for leaf in leaves)
        for place, (leaf, has_rows) in enumerate(zip(leaves, per_sample, strict=True)):
            if has_rows and _lacks_rows(leaf):
                advice = (
                    "`x.to_padded_tensor(0)` and the lengths, or a mask; nest it in `forward`"
                    if leaf.is_nested
                    else "`x.to_dense()`"
                )
                raise GradientNormError(
                    f"Expected inputs in which every sample has rows of its own but input {place} "
                    f"(counted from 0) is {_kind_of(leaf)}, of which no samples can be taken. Give "
                    f"the model {advice}."
                )
        return cls(tuple(leaves), spec, n, per_sample)

    @property
    def tensors(self) -> list[Tensor]:
        """The leaves that are tensors."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    def with_shared(self, places: Sequence[int]) -> Batch:
        """Return the same batch, with the leaves at these places shared by all samples."""
        per_sample = tuple(
            has_rows and i not in places for i, has_rows in enumerate(self.per_sample)
        )
        return Batch(self.leaves, self.spec, self.n, per_sample, self.first)

    def with_leaves(self, leaves: tuple[Any, ...]) -> Batch:
        """Return the same batch, with other leaves in the places of its own."""
        return Batch(leaves, self.spec, self.n, self.per_sample, self.first)

    def rows(self, rows: slice | Tensor) -> Batch:
        """Return a batch of some of the samples. rows: a slice, or their indices, (m,)."""
        leaves = tuple(
            leaf[rows] if has_rows else leaf
            for leaf, has_rows in zip(self.leaves, self.per_sample, strict=True)
        )
        start = (rows.start or 0) if isinstance(rows, slice) else int(rows.min())
        n = len(range(self.n)[rows]) if isinstance(rows, slice) else len(rows)
        return Batch(leaves, self.spec, n, self.per_sample, self.first + start)

    def to(self, dtype: torch.dtype) -> Batch:
        """Return the same batch, with its floating tensors in another floating type."""
        leaves = tuple(
            leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
            for leaf in self.leaves
        )
        return Batch(leaves, self.spec, self.n, self.per_sample, self.first)

    def map(self, change: Callable[[Tensor, bool], Any]) -> Any:
        """Return the inputs put back together, each tensor in them changed.

        change: gets a tensor, and whether it has a row for each sample.
        """
        leaves = [
            change(leaf, has_rows) if isinstance(leaf, Tensor) else leaf
            for leaf, has_rows in zip(self.leaves, self.per_sample, strict=True)
        ]
        return leaves[0] if self.spec is _OF_A_LEAF else tree_unflatten(leaves, self.spec)

    def call(self, model: nn.Module) -> Any:
        """Return the model's outputs. It gets copies, for it may write into what it is given."""
        return call(model, self.map(lambda tensor, _: tensor.detach().clone()))

    @cached_property
    def shapes(self) -> tuple[Any, ...]:
        """Shape and type of each tensor, and what is none, as a key."""
        return tuple(
            (tuple(x.shape), x.dtype) if isinstance(x, Tensor) else repr(x) for x in self.leaves
        )

    def doubtful(self) -> list[int]:
        """The leaves that may be as long as the batch by chance, so that all samples share them.

        Those of the first tensor's length in dimension 0, unless dimension 1 agrees with the first
        tensor as well and is not itself n: (n, length) ids beside an (n, length) mask.
        """
        first = self.per_sample.index(True)
        second = self.leaves[first].shape[1:2]

        def clear(tensor: Tensor) -> bool:
            sizes = tensor.shape[1:2]
            return len(sizes) == 1 and sizes == second and sizes != (self.n,)

        return [
            i
            for i, has_rows in enumerate(self.per_sample)
            if has_rows and i != first and not clear(self.leaves[i])
        ]


def require_module(model: Any) -> None:
    """Refuse a model that is none.

    Raises:
        GradientNormError: it is not a `torch.nn.Module`.
    """
    if not isinstance(model, nn.Module):
        advice = (
            " Make the function the `forward` of a module that owns its parameters."
            if callable(model)
            else ""
        )
        raise GradientNormError(
            f"Expected `model` to be a torch.nn.Module but got {in_words(model)}.{advice}"
        )


def in_words(value: Any) -> str:
    """Return a value as an error names it: of what is long, the type and the shape alone."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
    is_short = value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype))
    return repr(value) if is_short else f"an object of type {type(value).__name__}"


def _has_rows(leaf: Any, n: int) -> bool:
    """Whether a leaf of inputs is a tensor of n rows."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.size(0) == n


def refuse_outputs_without_rows(outputs: Any) -> None:
    """Refuse outputs that are sparse or nested tensors.

    Raises:
        GradientNormError: naming the layout.
    """
    for leaf in leaves_of(outputs):
        if isinstance(leaf, Tensor) and _lacks_rows(leaf):
            raise GradientNormError(
                "Expected outputs in which every sample has rows of its own but one is "
                f"{_kind_of(leaf)}, of which no samples can be taken. Return a dense tensor: "
                "`to_dense()`, or `to_padded_tensor(0)` of a nested one."
            )


def _lacks_rows(tensor: Tensor) -> bool:
    """Whether no rows of samples can be taken from a tensor, for its layout."""
    return tensor.is_nested or tensor.layout != torch.strided


def _kind_of(tensor: Tensor) -> str:
    return f"a {'nested ' if tensor.is_nested else ''}tensor of layout {tensor.layout}"


def call(model: nn.Module, inputs: Any) -> Any:
    """Return the model's outputs for inputs in any of the forms of `Inputs`."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def shared_choices(places: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the sets of leaves to try as shared, none first."""
    for count in range(min(_MOST_SHARED, len(places)) + 1):
        yield from combinations(places, count)


def clone_rows(tensor: Tensor) -> Tensor:
    """Return a copy that belongs to the engine."""
    return tensor.detach().clone() if tensor.requires_grad else tensor.clone()


def half(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of two complementary random halves of n samples.

    Each in reverse order: a model that sorts its samples would put halves in order into the same
    places as the whole.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    first, second = order[: n // 2], order[n // 2 :]
    return first.sort(descending=True).values, second.sort(descending=True).values


def opens(outputs: Any) -> bool:
    """Return whether outputs are tensors and containers of them: others cannot be built anew."""
    leaves = tree_flatten(outputs)[0]
    return all(isinstance(x, (Tensor, bool, int, float, str, type(None))) for x in leaves)


def leaves_of(outputs: Any) -> list[Any]:
    """Return what a model returned, flattened. Most models return a tensor: it is the only leaf."""
    return [outputs] if type(outputs) is Tensor else tree_flatten(outputs)[0]


_DEPTH = 4
"""Objects within objects that are opened."""


def tensors_in(outputs: Any) -> list[Tensor]:
    """The tensors of numbers in what a model returned: a tensor, a container or an object."""
    leaves = leaves_of(outputs)
    if type(outputs) is Tensor:
        return leaves if _has_numbers(outputs) else []
    opened_ids: set[int] = set()
    for _ in range(_DEPTH):  # an object in an object: an independent distribution, say
        objects = [leaf for leaf in leaves if _is_object(leaf) and id(leaf) not in opened_ids]
        if not objects:
            break
        opened_ids.update(map(id, objects))
        leaves += [inner for leaf in objects for inner in tree_flatten(vars(leaf))[0]]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and _has_numbers(leaf)]


def _has_numbers(tensor: Tensor) -> bool:
    """Whether a tensor has a dimension, and numbers that may have a gradient."""
    return (tensor.is_floating_point() or tensor.is_complex()) and tensor.dim() > 0


def copy_objects(outputs: Any) -> Any:
    """Return outputs whose objects are copies, for a loss to read: some keep what they are asked.

    A distribution computes its probabilities when it is first asked for them, and then holds one
    tensor more than a model puts out. The tensors themselves are the same.
    """
    if type(outputs) is Tensor:
        return outputs
    return tree_map(lambda leaf: copy.copy(leaf) if _is_object(leaf) else leaf, outputs)


def _is_object(value: Any) -> bool:
    """Whether a value may hold tensors in its attributes."""
    has_no_parts = (Tensor, nn.Module, type, FunctionType, ModuleType)
    return hasattr(value, "__dict__") and not isinstance(value, has_no_parts)


def check_losses(losses: Any, n: int, first: int = 0) -> None:
    """Refuse all but n finite losses. first: the index of the first sample, for the message.

    Raises:
        GradientNormError: the loss is reduced, of another shape, complex, NaN or infinite.
    """
    if not isinstance(losses, Tensor) or losses.shape != (n,):
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        is_reduced = got == ()
        raise GradientNormError(
            f"Expected the loss to be one number per sample, shape ({n},), but got {got}. "
            + ('A reduced loss mixes the samples: use reduction="none".' if is_reduced else
               "Reduce what each sample holds (positions, pixels) and nothing else.")
        )  # fmt: skip
    if losses.is_complex():
        raise GradientNormError(
            f"Expected real losses but got {losses.dtype}: a complex number has no one gradient. "
            "Take its size or its real part, `losses.abs()` or `losses.real`."
        )
    # A finite sum has finite terms, and costs half of asking each.
    if not math.isfinite(losses.detach().sum()) and not bool(torch.isfinite(losses).all()):
        bad = (~torch.isfinite(losses)).nonzero().flatten()[:5].tolist()
        names = [first + i for i in bad]
        raise GradientNormError(
            f"Expected finite losses but those of samples {names} are {losses[bad].tolist()}. Look "
            "at these inputs, and at the model's weights."
        )


def differentiable(leaf: Any) -> bool:
    """Whether a leaf of the outputs is a tensor with a graph behind it."""
    return isinstance(leaf, Tensor) and leaf.requires_grad


Loss = Callable[[Any], Tensor]
"""From a model's output to one loss per sample, (n,)."""
