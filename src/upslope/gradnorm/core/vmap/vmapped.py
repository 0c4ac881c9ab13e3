"""Operators under `torch.vmap`, run outside of it on whole tensors.

A function that a model maps over a dimension (of the samples, of positions, of an ensemble) is
called once, with tensors that hide that dimension. Whoever watches operators sees tensors that it
has never met, in the shapes of one row. So an operator under `vmap` is taken out of it: its
tensors are unwrapped, with the mapped dimension in front, the operator that means the same for one
dimension more (`vmapped_operators`) runs where every mode sees an ordinary one, and what it makes
is wrapped again. Nested maps are left one by one. Where no such operator is known, the whole
tensors go to one operator that maps by itself, and that nobody looks into (`EachRow`).

Called by `trace/intercept` and, around what watches a pass, by `proofs/batch_run`.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only, tree_unflatten

from upslope.gradnorm.core.program.operator_names import is_only_outlined
from upslope.gradnorm.core.torch_functions import without_torch_function_dispatch
from upslope.gradnorm.core.vmap.vmapped_operators import RULES
from upslope.gradnorm.core.vmap.vmapped_rows import Rows

_functorch: Any = torch._C._functorch

is_transforming: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether `vmap`, `grad` or the like is under way. Asked of every operator."""

_MADE_OF_OTHERS = frozenset({"torch.nn.functional", "torch.functional", "torch._tensor"})
"""Modules of functions in Python whose operators come here one by one."""

_ASKING = frozenset(
    {"dim", "ndimension", "size", "numel", "nelement", "stride", "__len__", "is_floating_point",
     "is_complex", "is_contiguous", "element_size"}
)  # fmt: skip
"""Operators that tell of a tensor: of a mapped one, what a row is like."""

_TRANSPOSING = frozenset({Tensor.T.__get__, Tensor.mT.__get__})  # type: ignore[attr-defined]
"""Attributes that are no properties of a tensor, but operators."""


class SeesThroughVmap(TorchFunctionMode):
    """Shows the modes that were entered before it ordinary operators in place of mapped ones."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operator, outside of `vmap` if it is under it."""
        kwargs = kwargs or {}
        if is_transforming():
            with self:
                out = run_outside(func, args, kwargs)
            if out is not NotImplemented:
                return out
        return func(*args, **kwargs)


def run_outside(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator under `vmap` outside of it, and return what it makes, wrapped.

    NotImplemented, with nothing run, where it must be run as it is: the innermost transform is
    another, or draws random numbers for each row; the operator asks for a shape or a type; the data
    say where its entries go (`core/program`), or it writes, in a way that no rule covers.
    """
    if tells_of_row(func):
        return NotImplemented
    interpreter = _functorch.peek_interpreter_stack()
    if interpreter.key() != _functorch.TransformType.Vmap:
        return NotImplemented
    mapping = _functorch.CVmapInterpreterPtr(interpreter)  # which does not keep what it looks into
    if mapping.randomness() != _functorch.RandomnessType.Error:
        return NotImplemented
    level = mapping.level()
    leaves, spec = tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if _is_mapped(leaf, level)]
    with _outside():
        if not places:
            return func(*args, **kwargs)
        whole = list(leaves)
        for i in places:
            whole[i] = _with_rows_in_front(leaves[i])
        out = _run_on_whole(func, whole, spec, Rows(mapping.batchSize(), places, whole))
    if out is NotImplemented:
        is_open = isinstance(func, types.FunctionType) and func.__module__ in _MADE_OF_OTHERS
        return without_torch_function_dispatch(func)(*args, **kwargs) if is_open else out
    # Tensors keep their Python objects under the wrapping, and so their marks (`tensor_marks`).
    row_of = {id(whole[i]): leaves[i] for i in places}

    def wrap(tensor: Tensor) -> Any:
        # What an operator wrote into is the very tensor that it took.
        row = row_of.get(id(tensor))
        return row if row is not None else _functorch._add_batch_dim(tensor, 0, level)

    return tree_map_only(Tensor, wrap, out)


def tells_of_row(func: Callable[..., Any]) -> bool:
    """Whether an operator asks for what a tensor is like, and is told of a row under `vmap`."""
    name = getattr(func, "__name__", "")
    return name in _ASKING or (name == "__get__" and func not in _TRANSPOSING)


def _run_on_whole(func: Callable[..., Any], whole: list[Any], spec: TreeSpec, rows: Rows) -> Any:
    """Run an operator on tensors with the mapped dimension in front, or return NotImplemented.

    whole, spec: its arguments, as `tree_flatten` gives them. rows: which of them are mapped.
    """
    name = getattr(func, "__name__", "")
    rule = RULES.get(name)
    if rule is not None:
        args, kwargs = tree_unflatten(whole, spec)
        out = rule(rows, func, args, kwargs)
        if out is not NotImplemented:
            return out
    writes = name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
    if writes or isinstance(func, types.FunctionType):
        return NotImplemented
    if not is_only_outlined(name) or "out" in spec.unflatten(whole)[1]:
        return NotImplemented
    return EachRow(func, whole, spec, rows)(*(x for x in whole if isinstance(x, Tensor)))


class EachRow:
    """An operator on whole tensors: another one, mapped over their rows.

    func: the other one. whole, spec: its arguments, as `tree_flatten` gives them. rows: which of
    them are mapped. It is called with all tensors among the arguments.
    """

    def __init__(self, func: Callable[..., Any], whole: Sequence[Any], spec: TreeSpec, rows: Rows):
        self._func, self._spec = func, spec
        self._others = [None if isinstance(x, Tensor) else x for x in whole]
        self._places = [i for i, x in enumerate(whole) if isinstance(x, Tensor)]
        self._dims = tuple(0 if rows.has(whole[i]) else None for i in self._places)
        # All that it is given but tensors, and in which places, be they keywords: a program is told
        # from others by names (`core/program`), and of equal operators one may run for the other.
        others = [_text_of(x) for x in self._others]
        self.__name__ = f"each row: {func.__name__} {self._dims} {others} {spec}"

    def __eq__(self, other: object) -> bool:
        """Return whether both do the same, so that what is known of the one holds for the other."""
        if not isinstance(other, EachRow):
            return False
        return self.__name__ == other.__name__ and bool(self._func == other._func)

    def __hash__(self) -> int:
        return hash(self.__name__)

    def __call__(self, *tensors: Tensor) -> Any:
        """Run it. tensors: all those among the arguments, in order."""
        if has_torch_function(tensors):
            return handle_torch_function(self, tensors, *tensors)
        return torch.vmap(self._on_row, self._dims)(*tensors)

    def _on_row(self, *tensors: Tensor) -> Any:
        leaves = list(self._others)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self._spec)
        return self._func(*args, **kwargs)


def _text_of(value: Any) -> str:
    """Return a text that tells an argument from others: an array's own leaves out its middle."""
    if isinstance(value, np.ndarray):
        return f"{value.shape} {value.dtype.str} {value.tobytes()!r}"
    return repr(value)


@contextlib.contextmanager
def _outside() -> Iterator[None]:
    """Leave the innermost transform for a while."""
    transform = _functorch.pop_dynamic_layer_stack()
    try:
        yield
    finally:
        _functorch.push_dynamic_layer_stack(transform)


def _is_mapped(value: Any, level: int) -> bool:
    return (
        isinstance(value, Tensor)
        and _functorch.is_batchedtensor(value)
        and _functorch.maybe_get_level(value) == level
    )


def _with_rows_in_front(tensor: Tensor) -> Tensor:
    """Return the tensor that a mapped one hides, with the mapped dimension in front."""
    whole: Tensor = _functorch.get_unwrapped(tensor)
    dim = _functorch.maybe_get_bdim(tensor)
    return whole if dim == 0 else whole.movedim(dim, 0)
