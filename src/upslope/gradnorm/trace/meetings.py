"""Runs the operators that have weights among their tensors.

Called by `intercept` for each such operator. Where weights and samples meet, in this order:

1. a kernel of the table computes the operator and knows its per-sample gradients;
2. an operator written in Python, or composed of others (`kernels/compositions.py`), is run with
   the interceptor inside, and meets again below;
3. in an operator that works entry by entry, weights are expanded to the samples' shape first;
4. anything else is replayed: exact, and slow (`kernels/replay.py`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch._C import _infer_size

from upslope.gradnorm.core.layouts.layout import SamplesNotSeparable
from upslope.gradnorm.core.torch_functions import without_torch_function_dispatch
from upslope.gradnorm.core.uses.tape import Tape
from upslope.gradnorm.kernels.expand import expand_operand, expand_to_samples
from upslope.gradnorm.kernels.replay import replay
from upslope.gradnorm.trace.batch_expansion import (
    expansion_by_joining,
    gives_to_each,
    is_batch_expansion,
    repeat_weight,
    repeats,
    row_of_sample,
)
from upslope.gradnorm.trace.operator_facts import Operator
from upslope.gradnorm.trace.operators import EXPANDING, REPEATING, tensors_of
from upslope.gradnorm.trace.tensor_kinds import TensorKinds


class Meetings:
    """The operators of one pass that take weights.

    tape, kinds: of the pass. n: the number of samples. copies: whether weights may be held to be
    copied to every sample (`batch_expansion`).
    """

    def __init__(self, tape: Tape, kinds: TensorKinds, n: int, copies: bool):
        self._tape, self._kinds, self._n, self._copies = tape, kinds, n, copies
        self.copied = False
        """Whether weights were held to be copied to every sample."""

    def meet(
        self,
        operator: Operator,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        interceptor: AbstractContextManager[Any],
    ) -> Any:
        """Return what an operator makes of weights and samples.

        args, kwargs: what it got. interceptor: sees operators while it is entered.
        """
        if operator.is_like_another or operator.leaves:
            return operator.func(*args, **kwargs)
        # What was written would be read as a weight, whose samples nobody could tell apart.
        if (kwargs and kwargs.get("out") is not None) or (
            operator.writes and any(map(self._tape.weights.is_weight, args[:1]))
        ):
            raise SamplesNotSeparable(
                f"`{operator.name or operator.func}` writes samples into a weight, or into an "
                "`out` of its own"
            )
        rule, composition = operator.rule, operator.composition
        if rule is not None and (
            _takes(rule, 1 + len(args), tuple(kwargs))
            if kwargs
            else len(args) in operator.rule_counts
        ):
            out = rule(self._tape, *args, **kwargs)
            if out is not NotImplemented:
                return out
        if composition is not None and _takes(composition, len(args), tuple(kwargs)):
            with interceptor:
                out = composition(*args, **kwargs)
            if out is not NotImplemented:
                return out
        func = operator.func
        # Python code that calls other operators, which come back here one by one.
        if operator.is_composed:
            with interceptor:
                return without_torch_function_dispatch(func)(*args, **kwargs)
        if operator.is_entrywise:
            return self._entrywise(func, args, kwargs)
        if operator.joins_tensors:
            args, kwargs = self._expand((args, kwargs), None)
            return func(*args, **kwargs)
        if operator.name == "__setitem__":
            sample = row_of_sample(args, self._n) if self.copied else None
            return self._write(func, args, sample)
        return replay(self._tape, func, args, kwargs, self._kinds.is_sample)

    def takes_kind_of_first(self, operator: Operator, args: tuple[Any, ...]) -> bool:
        """Whether samples only tell a weight's shape or type, or which of its rows to take."""
        taking = operator.is_like_another or (
            operator.func is Tensor.__getitem__ and all(i.dim() == 0 for i in tensors_of(args[1:]))
        )
        return taking and any(self._kinds.of(first) == "weight" for first in args[:1])

    def gives_to_each(
        self,
        operator: Operator,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
    ) -> bool:
        """Whether weights meet constants that have the same row for each sample."""
        return self._may_copy() and gives_to_each(
            operator.name, args, kwargs, tensors, self._tape.weights, self._n
        )

    def _write(self, func: Callable[..., Any], args: Any, sample: int | None) -> Any:
        """Write a weight into entries of samples. sample: whose they are, where it is known."""
        target, index, value = args
        shape = target[index].shape
        return func(target, index, expand_to_samples(self._tape, value, shape, sample))

    def _may_copy(self) -> bool:
        """Whether weights may be held to be copied to every sample (`batch_expansion`)."""
        return self._copies and self._n > 1 and torch.is_grad_enabled()

    def among_weights(
        self,
        operator: Operator,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
    ) -> tuple[Any, bool]:
        """Run an operator on weights and constants, none of which is a sample.

        Returns what it makes, and whether that is copies, one for each sample.

        operator, args, kwargs: the operator and what it got. tensors: those among it.
        """
        func, name, may_copy = operator.func, operator.name, self._may_copy()
        weights = [t for t in tensors if self._tape.weights.is_weight(t)]
        entrywise = may_copy and operator.is_entrywise  # asked first: it may work in place
        if entrywise and is_batch_expansion(_broadcast_shape(tensors), weights, self._n):
            return self._entrywise(func, args, kwargs), True
        if may_copy and (same := expansion_by_joining(name, args, kwargs, self._n)) is not None:
            expansion = expand_to_samples(
                self._tape, self._tape.weights.view(same.weight), same.shape
            )
            return expansion.flatten(*same.merged) if same.merged else expansion, True
        if may_copy and name == "__setitem__" and not self._tape.weights.is_weight(args[0]):
            sample = row_of_sample(args, self._n)
            if sample is not None:
                return self._write(func, args, sample), True
        repeating = name in REPEATING and not kwargs
        out = repeat_weight(args) if repeating else func(*args, **kwargs)
        copying = may_copy and (repeating or name in EXPANDING) and out.requires_grad
        if not (copying and is_batch_expansion(out.shape, weights, self._n)):
            return out, False
        if repeating:
            view, repeats_of_dims, shape = repeats(args)
            return expand_to_samples(
                self._tape, self._tape.weights.view(view), repeats_of_dims
            ).reshape(shape), True
        return expand_to_samples(self._tape, weights[0], out.shape), True

    def is_expanded(self, operator: Operator, tensors: list[Tensor], out: Any) -> bool:
        """Whether numbers that know no sample, such as encoded positions, have one copy each."""
        expanding = operator.name in EXPANDING or operator.name in REPEATING
        if not (self._copies and expanding and out.is_floating_point()):
            return False
        return is_batch_expansion(out.shape, tensors[:1], self._n)

    def _entrywise(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run an operator that works entry by entry, its weights expanded to what it makes."""
        shape = _broadcast_shape(tensors_of((*args, *kwargs.values()) if kwargs else args))
        args = self._expand(args, shape)
        return func(*args, **self._expand(kwargs, shape)) if kwargs else func(*args)

    def _expand(self, tree: Any, shape: torch.Size | None) -> Any:
        """Return arguments with their weights expanded: to a shape, or each to its own."""
        if isinstance(tree, Tensor):
            if not self._tape.weights.is_weight(tree):
                return tree
            # In one dimension alone may the samples be, and so in all tensors of this shape.
            if shape is None or self.copied or shape.count(self._n) != 1:
                return expand_to_samples(self._tape, tree, tree.shape if shape is None else shape)
            return expand_operand(self._tape, tree, shape)
        if isinstance(tree, dict):
            return {name: self._expand(value, shape) for name, value in tree.items()}
        if isinstance(tree, (tuple, list)):
            values = [self._expand(value, shape) for value in tree]
            return values if isinstance(tree, list) else tuple(values)
        return tree


def _broadcast_shape(tensors: list[Tensor]) -> torch.Size:
    """Return the shape that tensors broadcast to. `torch.broadcast_shapes` would take longer."""
    shape = tensors[0].shape
    for tensor in tensors[1:]:
        shape = _infer_size(shape, tensor.shape)
    return shape


@functools.cache
def _takes(rule: Callable[..., Any], count: int, names: tuple[str, ...]) -> bool:
    """Whether a rule has these arguments: so many without a name, then those of these names."""
    try:
        inspect.signature(rule).bind(*range(count), **dict.fromkeys(names))
    # A call that the rule does not cover is replayed, not refused:
    except TypeError:  # torch has other names for some, and forms of old
        return False
    return True
