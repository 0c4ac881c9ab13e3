"""Sees every operator that a network runs, and puts a kernel where a weight meets a sample.

A `torch.overrides.TorchFunctionMode` gets every call of a torch function, whoever makes it and
however the parameter came there: through `nn.Linear`, through `F.linear(x, self.w.t())`, through a
bare `x * self.scale`. Tensors are of three kinds: those that depend on the samples, weights
(parameters, and what is computed from parameters alone), and all others, which are constants.
Where weights and samples meet, in this order:

1. a kernel of the table computes the operator and knows its per-sample gradients;
2. an operator written in Python, or composed of others (`kernels/compositions.py`), is run with
   the interceptor inside, and meets again below;
3. in an operator that works entry by entry, weights are expanded to the samples' shape first;
4. anything else is replayed: exact, and slow (`kernels/replay.py`).

What escapes even this (TorchScript, custom autograd functions holding a parameter) leaves a
gradient on the parameter itself, which the engine looks for.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from upslope.gradnorm.core.inventory import Inventory
from upslope.gradnorm.core.layout import GradientsHooked, SamplesNotSeparable
from upslope.gradnorm.core.program import Program
from upslope.gradnorm.core.tape import FusionMismatch, Tape
from upslope.gradnorm.core.tensor_marks import mark, marks_of, remove_marks
from upslope.gradnorm.core.torch_functions import without_torch_function_dispatch
from upslope.gradnorm.core.vmapped import is_transforming, run_outside
from upslope.gradnorm.kernels import COMPOSITIONS, REGISTRY
from upslope.gradnorm.kernels.expand import expand_to_samples
from upslope.gradnorm.kernels.replay import replay
from upslope.gradnorm.torch_faults import run_exactly
from upslope.gradnorm.trace.batch_expansion import (
    expansion_by_joining,
    gives_to_each,
    is_batch_expansion,
    looks_up_for_each,
    repeat_weight,
    repeats,
    row_of_sample,
)
from upslope.gradnorm.trace.decisions import note_decision
from upslope.gradnorm.trace.operators import (
    CALLED_BY,
    CHOOSING,
    DIRECT,
    EXPANDING,
    JOINING,
    LIKE_ANOTHER,
    REPEATING,
    as_type,
    is_entrywise,
    is_ordinary,
    is_written_in_python,
    refuse_write_through_copy,
    tensors_of,
    traits_of,
    view_samples,
    writes,
)
from upslope.gradnorm.trace.refusals import (
    BATCH_NORMS,
    EMBEDDINGS,
    module_with_backward_hook,
    refuse_batch_statistics,
    refuse_mixing_embeddings,
)
from upslope.gradnorm.trace.route_reader import MAY_ROUTE
from upslope.gradnorm.trace.routing import Routes
from upslope.gradnorm.trace.sequence_order import OrderUnknown, SequenceOrders, mark_order
from upslope.gradnorm.trace.tensor_kinds import TensorKinds

_SAMPLES_AND_WEIGHTS = frozenset(["sample", "weight"])
_MEETING = _SAMPLES_AND_WEIGHTS | {"constant"}
"""Kinds of tensors that meet in most operators with weights."""

_NO_WEIGHTS = frozenset(["sample", "constant"])
"""Kinds of tensors (`tensor_kinds`) that meet in an operator without weights."""


class Interceptor(TorchFunctionMode):
    """Records on `tape` every meeting of weights and samples while it is entered."""

    def __init__(self, tape: Tape, inventory: Inventory, n: int, copies: bool = True):
        super().__init__()
        self.tape, self.model, self.n = tape, inventory.modules[0], n
        self._copies = copies
        self.copied = False
        """Whether weights were held to be copied to every sample (`batch_expansion`)."""
        self._orders = SequenceOrders(n)
        self.routes = Routes(n)
        self._reads_rows = False
        """Whether the operator that runs is one whose rows are followed by `routes`."""
        self.program = Program(n)
        self._kinds = TensorKinds(tape, self.program, self._orders)
        self._kind, self._is_sample = self._kinds.of, self._kinds.is_sample
        self._module_with_hook = module_with_backward_hook(inventory)
        self._buffers = inventory.buffer_ids
        self._tensors_written: list[Tensor] = []
        """Buffers that samples were written into: they lose their mark when the model has run."""
        self._depth = 0

    def __enter__(self) -> Interceptor:
        """Start to see operators.

        Raises:
            GradientsHooked: a module has hooks on gradients, which are those of single samples.
        """
        if self._module_with_hook is not None:
            raise GradientsHooked(
                f"{self._module_with_hook} has a backward hook, which may change gradients"
            )
        super().__enter__()  # type: ignore[no-untyped-call]
        self._depth += 1
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop to intercept operators."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._depth -= 1
        while self._depth == 0 and self._tensors_written:
            remove_marks(self._tensors_written.pop())

    def as_sample(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the engine's own, marked as one that depends on the samples."""
        return self._kinds.as_sample(tensor)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operator, through a kernel if weights and samples meet in it."""
        kwargs = kwargs or {}
        if is_transforming():  # tensors of one row: this comes again, with those of all rows
            with self:
                out = run_outside(func, args, kwargs)
            if out is not NotImplemented:
                return out
        call = CALLED_BY[func](*args, **kwargs) if func in CALLED_BY else None
        if call is not None:
            (func, args), kwargs = call, {}
        traits = traits_of(func)
        # Nothing is computed, and these are asked for hundreds of times per pass.
        if traits.asks:
            # A loop over routed rows asks for their dimensions, and is noted when it takes them.
            is_routed = isinstance(args[0], Tensor) and marks_of(args[0]).route is not None
            if traits.asks_size and not (func is Tensor.dim and is_routed):
                self.program.steering.ask_size(args[0])
            return func(*args, **kwargs)
        tells_places = traits.name == "where" and len(args) == 1
        if traits.is_short and not self._orders.met and not tells_places:
            outline = self._kinds.outline(traits.name, args, kwargs, moves=traits.moves)
            if outline is not None:
                out = traits.run(*args, **kwargs)
                if isinstance(out, Tensor) and not out.shape:
                    self.program.steering.follow(func, traits.name, args, kwargs, out)
                self.program.note_outline(outline)
                self._mark_samples(out)
                if traits.decides:
                    note_decision(func, traits.name, args, kwargs, out)
                return out
        # The engine could not tell such a hook which sample a gradient belongs to.
        if func is Tensor.register_hook:
            raise GradientsHooked(
                "the model registers a hook on a tensor, which may change gradients"
            )
        tensors = tensors_of((*args, *kwargs.values()) if kwargs else args)
        name = getattr(func, "__name__", "")
        routes = self.routes
        if (routes.is_met or name in MAY_ROUTE) and routes.concern(name, args, tensors):
            return self._follow_rows(func, name, args, kwargs, tensors)
        return self._run(func, name, args, kwargs, tensors)

    def _follow_rows(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
    ) -> Any:
        """Run an operator on rows that the data have sent somewhere (`routing`).

        func, name, args, kwargs: the operator and what it got. tensors: those among it.
        """
        routes, first = self.routes, len(self.tape.kernels)
        reading = None
        if not self._orders.met:
            reading = routes.read(name, args, kwargs, {id(t): self._kind(t) for t in tensors})
        if reading is None:
            if any(marks_of(t).route is not None for t in tensors):
                if name == "unbind":
                    self.program.steering.leave(None, len(args[0]))
                self._lose_rows()
            return self._run(func, name, args, kwargs, tensors)
        self._reads_rows = True
        try:
            with self.program.noting(reading.outline):
                out = self._run(func, name, args, kwargs, tensors)
        finally:
            self._reads_rows = False
        if not routes.take(reading, out, tensors_of(out), range(first, len(self.tape.kernels))):
            self._lose_rows()
        if reading.loop is not None:
            note = self.program.steering.leave_one_by_one(args[0], out)
            routes.add_loop(note, reading.loop)
        return out

    def _lose_rows(self) -> None:
        """Give up to read where the samples are: from here on, no batch is like another."""
        self.routes.lose()
        self.tape.route()

    def _run(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
    ) -> Any:
        """Run an operator; arguments as of `_follow_rows`."""
        kinds = self._kinds.of_all(tensors)
        # Most operators of a network: no weight, and nothing to be asked but where entries go.
        ordinary = is_ordinary(name, of_one_sample_tensor=len(tensors) == 1 and "sample" in kinds)
        if ordinary and kinds <= _NO_WEIGHTS and not self._orders.met:
            out = func(*args, **kwargs)
            self.program.note(func, args, kwargs, out, "sample" in kinds)
            if "sample" in kinds:
                self._mark_samples(out)
            return out
        return self._intercept(func, name, args, kwargs, tensors, kinds)

    def _intercept(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        kinds: set[str],
    ) -> Any:
        """Run an operator that takes weights, or of which more is to be asked.

        func, name, args, kwargs: the operator and what it got. tensors, kinds: those among it.
        """
        meets = name in DIRECT and kinds <= _MEETING and kinds >= _SAMPLES_AND_WEIGHTS
        if meets and not self._orders.met:
            out = self._meet(func, args, kwargs)
            self.program.note(func, args, kwargs, out, True)
            self._mark_samples(out)
            return out
        # Positions repeated for each sample are constants, and yet each row looked up is one
        # sample's.
        if name == "embedding" and looks_up_for_each(args, self.n):
            kinds.add("sample")
        if name in LIKE_ANOTHER and args and self._kind(args[0]) == "constant":
            kinds.discard("sample")  # which only lends a shape or a type
        among_weights = "weight" in kinds and "sample" not in kinds
        operands = (
            among_weights
            and self._may_copy()
            and gives_to_each(name, args, kwargs, tensors, self.tape.weights, self.n)
        )
        if operands:
            self.copied = True
            kinds.add("sample")
        normalising = func in BATCH_NORMS
        # Only the normalisation that was fused may meet a placeholder: its numbers are NaN.
        if "placeholder" in kinds:
            if not (normalising and "weight" in kinds):
                places = (marks_of(t).placeholder_of for t in tensors)
                raise FusionMismatch(next(place for place in places if place is not None))
            kinds = kinds - {"placeholder"} | {"sample"}
        # Before it runs, for a batch normalisation in training mode would also move its
        # statistics.
        if "sample" in kinds and normalising:
            refuse_batch_statistics(self.model, func, args, kwargs)
        if func in EMBEDDINGS:
            is_weight = self.tape.weights.is_weight
            refuse_mixing_embeddings(self.model, func, args, kwargs, is_weight)
        order = None
        if "sample" in kinds:
            places = (kwargs[key] for key in ("input", "dim", "index", "mask") if key in kwargs)
            order = self._order_behind(func, (*args, *places), tensors)
        if "other" in kinds:
            # A parameter that is not asked about is a constant: no gradient need reach it.
            args, kwargs = tree_map_only(nn.Parameter, self._without_gradient, (args, kwargs))
        if "weight" not in kinds:
            if "sample" in kinds:
                refuse_write_through_copy(func, args)
            is_reshape = func is Tensor.view and not as_type(args, kwargs) and "sample" in kinds
            out = view_samples(*args, **kwargs) if is_reshape else run_exactly(func, args, kwargs)
            self.program.note(func, args, kwargs, out, "sample" in kinds)
            # Encoded positions meet no sample yet, and still have one copy per sample from here
            # on.
            if "sample" not in kinds and self._expanded_constant(func, tensors, out):
                self.copied = True
                kinds.add("sample")
        elif "sample" in kinds and not self._takes_kind_of_first(func, args):
            first = len(self.tape.kernels)
            out = self._meet(func, args, kwargs)
            self.program.note(func, args, kwargs, out, True)
            if (
                operands
            ):  # told apart from the same uses of samples, of which layouts are remembered
                for kernel in self.tape.kernels[first:]:
                    kernel.name = f"{kernel.name} of constants"
        else:
            out, copies = self._among_weights(func, args, kwargs, tensors)
            if not copies:
                for tensor in tensors_of(out):
                    self.tape.weights.mark_derived(tensor)
                return out
            self.copied = True
            kinds.add("sample")
        if "sample" in kinds:
            self._mark_samples(args[:1] if out is None else out)
            if order is not None:
                mark_order(func, out, order)
        return out

    def _mark_samples(self, out: Any) -> None:
        """Mark what an operator made, or wrote into, as tensors that depend on the samples."""
        for tensor in tensors_of(out):
            self.tape.types.add(tensor.dtype)
            marks = mark(tensor)
            if marks.placeholder_of is None:
                marks.samples_in = self._kinds.session
            if id(tensor) in self._buffers:
                self._tensors_written.append(tensor)

    def _order_behind(
        self, func: Callable[..., Any], args: Any, tensors: list[Tensor]
    ) -> Tensor | None:
        """In which order an operator leaves the samples, if it is not theirs (`sequence_order`)."""
        chooses = func in CHOOSING and not self._reads_rows and self._chooses(args)
        if not (chooses or self._orders.met):
            return None
        try:
            return self._orders.behind(func, args, tensors, chooses)
        # No error: from here on each batch is probed by itself, which is exact and slower.
        except OrderUnknown:
            self.tape.route()
            return None

    def _takes_kind_of_first(self, func: Callable[..., Any], args: Any) -> bool:
        """Whether samples only tell a weight's shape or type, or which of its rows to take."""
        one_row = func is Tensor.__getitem__ and all(i.dim() == 0 for i in tensors_of(args[1:]))
        taking = one_row or getattr(func, "__name__", "") in LIKE_ANOTHER
        return taking and any(self._kind(first) == "weight" for first in args[:1])

    def _meet(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in LIKE_ANOTHER:
            return func(*args, **kwargs)
        tensors = tensors_of((*args, *kwargs.values()) if kwargs else args)
        if any(tensor.is_nested for tensor in tensors):
            raise SamplesNotSeparable(f"`{name}` takes a nested tensor, whose sizes are no numbers")
        into_weight = writes(name) and any(self.tape.weights.is_weight(first) for first in args[:1])
        # What was written would be read as a weight, whose samples nobody could tell apart.
        if kwargs.get("out") is not None or into_weight:
            raise SamplesNotSeparable(
                f"`{name}` writes samples into a weight, or into an `out` of its own"
            )
        rule, composition = REGISTRY.get(name), COMPOSITIONS.get(name)
        if (
            rule is not None
            and not is_written_in_python(func)
            and _takes(rule, 1 + len(args), tuple(kwargs))
        ):
            out = rule(self.tape, *args, **kwargs)
            if out is not NotImplemented:
                return out
        if composition is not None and not is_written_in_python(func) and _takes(
            composition, len(args), tuple(kwargs)
        ):  # fmt: skip
            with self:
                out = composition(*args, **kwargs)
            if out is not NotImplemented:
                return out
        # Python code that calls other operators, which come back here one by one.
        if isinstance(func, types.FunctionType):
            with self:
                return without_torch_function_dispatch(func)(*args, **kwargs)
        if is_entrywise(name):
            return self._entrywise(func, args, kwargs)
        if name in JOINING:
            expanded_call = self._expand((args, kwargs), None)
            return func(*expanded_call[0], **expanded_call[1])
        if name == "__setitem__":
            sample = row_of_sample(args, self.n) if self.copied else None
            return self._write(func, args, sample)
        return replay(self.tape, func, args, kwargs, self._is_sample)

    def _write(self, func: Callable[..., Any], args: Any, sample: int | None) -> Any:
        """Write a weight into entries of samples. sample: whose they are, where it is known."""
        target, index, value = args
        shape = target[index].shape
        return func(target, index, expand_to_samples(self.tape, value, shape, sample))

    def _may_copy(self) -> bool:
        """Whether weights may be held to be copied to every sample (`batch_expansion`)."""
        return self._copies and self.n > 1 and torch.is_grad_enabled()

    def _among_weights(
        self, func: Callable[..., Any], args: Any, kwargs: Any, tensors: list[Tensor]
    ) -> tuple[Any, bool]:
        """What weights and constants make, and whether it is copies, one for each sample."""
        name = getattr(func, "__name__", "")
        weights = [t for t in tensors if self.tape.weights.is_weight(t)]
        may_copy = self._may_copy()
        if may_copy and is_entrywise(name):  # asked first: it may work in place
            shape = torch.broadcast_shapes(*(t.shape for t in tensors))  # type: ignore[no-untyped-call]
            if is_batch_expansion(shape, weights, self.n):
                return self._entrywise(func, args, kwargs), True
        if may_copy and (same := expansion_by_joining(name, args, kwargs, self.n)) is not None:
            expansion = expand_to_samples(
                self.tape, self.tape.weights.view(same.weight), same.shape
            )
            return expansion.flatten(*same.merged) if same.merged else expansion, True
        if may_copy and name == "__setitem__" and not self.tape.weights.is_weight(args[0]):
            sample = row_of_sample(args, self.n)
            if sample is not None:
                return self._write(func, args, sample), True
        repeating = name in REPEATING and not kwargs
        out = repeat_weight(args) if repeating else func(*args, **kwargs)
        copying = may_copy and (repeating or name in EXPANDING) and out.requires_grad
        if not (copying and is_batch_expansion(out.shape, weights, self.n)):
            return out, False
        if repeating:
            view, repeats_of_dims, shape = repeats(args)
            return expand_to_samples(
                self.tape, self.tape.weights.view(view), repeats_of_dims
            ).reshape(shape), True
        return expand_to_samples(self.tape, weights[0], out.shape), True

    def _expanded_constant(self, func: Callable[..., Any], tensors: list[Tensor], out: Any) -> bool:
        """Whether numbers that know no sample, such as encoded positions, have one copy each."""
        expanding = getattr(func, "__name__", "") in EXPANDING | REPEATING
        if not (self._copies and expanding and out.is_floating_point()):
            return False
        return is_batch_expansion(out.shape, tensors[:1], self.n)

    def _entrywise(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        shapes = (t.shape for t in tensors_of((args, tuple(kwargs.values()))))
        shape = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
        args, kwargs = self._expand((args, kwargs), shape)
        return func(*args, **kwargs)

    def _expand(self, tree: Any, shape: torch.Size | None) -> Any:
        def one(tensor: Tensor) -> Tensor:
            if self._kind(tensor) != "weight":
                return tensor
            return expand_to_samples(self.tape, tensor, tensor.shape if shape is None else shape)

        return tree_map_only(Tensor, one, tree)

    def _without_gradient(self, parameter: nn.Parameter) -> Tensor:
        return parameter if self.tape.weights.tracks(parameter) else parameter.detach()

    def _chooses(self, args: tuple[Any, ...]) -> bool:
        """Whether x[index] takes by data what may be another sample's; x[range, index] does not."""
        index = tensors_of(args[1:])
        has_index_per_sample = any(
            len(i) == self.n for i in index if i.dim() == 1 and not self._is_sample(i)
        )
        index_depends_on_samples = any(map(self._is_sample, index))
        return self._is_sample(args[0]) and index_depends_on_samples and not has_index_per_sample


@functools.cache
def _takes(rule: Callable[..., Any], count: int, names: tuple[str, ...]) -> bool:
    """Whether a rule has these arguments: so many without a name, then those of these names."""
    try:
        inspect.signature(rule).bind(*range(count), **dict.fromkeys(names))
    # A call that the rule does not cover is replayed, not refused:
    except TypeError:  # torch has other names for some, and forms of old
        return False
    return True
