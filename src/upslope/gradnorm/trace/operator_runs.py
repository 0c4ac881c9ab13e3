"""Runs the operators of which more is to be asked than which kinds of tensors they take.

Whether entries are taken by the data, whether an operator mixes samples, whether a tensor stands
for another: it is asked in this order, before and after it runs. The base of the interceptor, which
hands on what one look at the arguments does not tell.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from upslope.gradnorm.core.program.program import Program
from upslope.gradnorm.core.state.inventory import Inventory
from upslope.gradnorm.core.tensor_marks import marks_of
from upslope.gradnorm.core.uses.tape import FusionMismatch, Tape
from upslope.gradnorm.torch_faults import run_exactly
from upslope.gradnorm.trace.batch_expansion import looks_up_for_each
from upslope.gradnorm.trace.meetings import Meetings
from upslope.gradnorm.trace.operator_facts import UNCOUNTED_WRITES, Operator
from upslope.gradnorm.trace.operators import (
    PACKING,
    as_type,
    refuse_write_through_copy,
    tensors_of,
    view_samples,
)
from upslope.gradnorm.trace.refusals import (
    refuse_batch_statistics,
    refuse_mixing_embeddings,
    refuse_nested,
    refuse_tensor_hooks,
)
from upslope.gradnorm.trace.routing.route_reader import MAY_ROUTE
from upslope.gradnorm.trace.routing.routing import Routes
from upslope.gradnorm.trace.rows_in_front import keeps_in_front
from upslope.gradnorm.trace.sequence_order import (
    RECURRENT,
    OrderUnknown,
    SequenceOrders,
    mark_order,
    mark_packed,
    takes_packed_rows,
)
from upslope.gradnorm.trace.tensor_kinds import TensorKinds


class OperatorRuns(TorchFunctionMode):
    """The operators of one pass.

    tape: of the pass. inventory: of the model. n: the number of samples. copies: whether weights
    may be held to be copied to every sample (`batch_expansion`). meetings: what runs where weights
    meet samples.
    """

    def __init__(
        self,
        tape: Tape,
        inventory: Inventory,
        n: int,
        copies: bool,
        meetings: type[Meetings],
    ):
        super().__init__()
        self.tape, self.model, self.n = tape, inventory.modules[0], n
        self._orders = SequenceOrders(n)
        self._reads_rows = False
        """Whether the operator that runs is one whose rows are followed by `routes`."""
        self.program = Program(n)
        self._kinds = TensorKinds(tape, self.program, self._orders, inventory.buffer_ids)
        self.routes = Routes(n, self._kinds.is_in_front)
        self._kind, self._is_sample = self._kinds.of, self._kinds.is_sample
        self._meetings = meetings(tape, self._kinds, n, copies)

    def _run_asking(self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator of which more is to be asked than the kinds of what it takes.

        operator, args, kwargs: the operator and what it got.
        """
        tensors = tensors_of((*args, *kwargs.values()) if kwargs else args)
        refuse_tensor_hooks(operator.func, tensors)
        routes, name = self.routes, operator.name
        if (routes.is_met or name in MAY_ROUTE) and routes.concern(name, args, tensors):
            return self._follow_rows(operator, args, kwargs, tensors)
        if self.program.indices.reads_constants:
            self.program.take_draws(tensors, is_known=False)
        return self._run(operator, args, kwargs, tensors)

    def _follow_rows(
        self,
        operator: Operator,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
    ) -> Any:
        """Run an operator on rows that the data have sent somewhere (`routing`).

        operator, args, kwargs: the operator and what it got. tensors: those among it.
        """
        routes, first = self.routes, len(self.tape.kernels)
        self.tape.expansions = None  # what a use of routed rows is, they tell themselves
        reading = None
        if not self._orders.met:
            kinds = {id(t): self._kind(t) for t in tensors}
            if self.program.indices.reads_constants:
                kinds = routes.take_for_samples(operator.name, args, kwargs, kinds)
            reading = routes.read(operator.name, args, kwargs, kinds)
        if self.program.indices.reads_constants:
            self.program.take_draws(tensors, is_known=reading is not None)
        if reading is None:
            if any(marks_of(t).route is not None for t in tensors):
                if operator.name == "unbind":
                    self.program.steering.leave(None, len(args[0]))
                self._lose_rows()
            return self._run(operator, args, kwargs, tensors)
        self._reads_rows = True
        try:
            numbers = self.program.numbers_of((*args, *kwargs.values()))
            with self.program.noting((reading.outline, numbers), tensors):
                out = self._run(operator, args, kwargs, tensors)
        finally:
            self._reads_rows = False
        if not routes.take(reading, out, tensors_of(out), range(first, len(self.tape.kernels))):
            self._lose_rows()
        if reading.fills is not None:
            self._kinds.mark_in_front(reading.fills)
        if reading.loop is not None:
            note = self.program.steering.leave_one_by_one(args[0], out)
            routes.add_loop(note, reading.loop)
        return out

    def _run_on_rows(
        self,
        operator: Operator,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outline: tuple[Any, ...],
        meets: bool,
    ) -> Any:
        """Run an operator on routed rows, as `_follow_rows` does, in fewer steps where it can be.

        outline: as of `TensorKinds.read`. meets: whether it takes weights.
        """
        routes, rows, first = self.routes, self._kinds.rows, len(self.tape.kernels)
        lends = operator.is_like_another and (meets or marks_of(args[0]).route is None)
        if (
            lends
            or self.program.indices.reads_constants
            or not routes.works_by_row(operator.name, args, kwargs)
        ):
            return self._run_asking(operator, args, kwargs)
        self.tape.expansions = None  # what a use of routed rows is, they tell themselves
        if operator.writes:
            refuse_write_through_copy(args)
        if meets:
            out = self._meetings.meet(operator, args, kwargs, self)
        else:
            out = run_exactly(operator.func, args, kwargs)
        self.program.note_hash(hash((*outline, *kwargs) if kwargs else outline))
        self._mark_samples(out)
        if not routes.take_rows(rows, tensors_of(out), range(first, len(self.tape.kernels))):
            self._lose_rows()
        return out

    def _lose_rows(self) -> None:
        """Give up to read where the samples are: the numbers of all indices have to say it."""
        self.routes.lose()
        self.program.note_indices_read()

    def _run(
        self,
        operator: Operator,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
    ) -> Any:
        """Run an operator; arguments as of `_follow_rows`."""
        kinds = self._kinds_taken(operator, args, tensors)
        meetings = self._meetings
        gives = (
            "weight" in kinds
            and "sample" not in kinds
            and meetings.gives_to_each(operator, args, kwargs, tensors)
        )
        if gives:
            meetings.copied = True
            kinds.add("sample")
        # Only the normalisation that was fused may meet a placeholder: its numbers are NaN.
        if "placeholder" in kinds:
            if not (operator.normalises and "weight" in kinds):
                places = (marks_of(t).placeholder_of for t in tensors)
                raise FusionMismatch(next(place for place in places if place is not None))
            kinds = kinds - {"placeholder"} | {"sample"}
        self._refuse_mixing(operator, args, kwargs, kinds)
        order = self._order_behind(operator, args, kwargs, tensors) if "sample" in kinds else None
        if "other" in kinds:
            # A parameter that is not asked about is a constant: no gradient need reach it.
            args, kwargs = tree_map_only(nn.Parameter, self._without_gradient, (args, kwargs))
        if "sample" in kinds and operator.writes:
            refuse_write_through_copy(args)
        if "weight" not in kinds:
            out = self._run_without_weights(operator, args, kwargs, tensors, kinds)
        elif "sample" in kinds and not meetings.takes_kind_of_first(operator, args):
            out = self._meet(operator, args, kwargs, tensors, gives)
        else:
            out, copies = meetings.among_weights(operator, args, kwargs, tensors)
            if not copies:
                return self._mark_derived(out)
            meetings.copied = True
            kinds.add("sample")
        if "sample" in kinds:
            self._follow_samples(operator, args, kwargs, tensors, out, order)
        return out

    def _kinds_taken(
        self, operator: Operator, args: tuple[Any, ...], tensors: list[Tensor]
    ) -> set[str]:
        """Return the kinds of tensors that an operator takes numbers of."""
        kinds = self._kinds.of_all(tensors)
        if "sample" in kinds and operator.func in UNCOUNTED_WRITES:
            self.program.steering.counts_writes = False
        # Positions repeated for each sample are constants, and yet each row looked up is one
        # sample's.
        looks_up = "sample" not in kinds and operator.name == "embedding"
        if looks_up and looks_up_for_each(args, self.n):
            kinds.add("sample")
        if operator.is_like_another and args and self._kind(args[0]) == "constant":
            kinds.discard("sample")  # which only lends a shape or a type
        return kinds

    def _refuse_mixing(
        self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any], kinds: set[str]
    ) -> None:
        """Refuse statistics of the batch, and embeddings that write by it.

        Before they run, for a batch normalisation in training mode would also move its statistics.
        """
        if "sample" in kinds and operator.normalises:
            refuse_batch_statistics(self.model, self.n, operator.func, args, kwargs)
        if operator.embeds:
            is_weight = self.tape.weights.is_weight
            refuse_mixing_embeddings(self.model, operator.func, args, kwargs, is_weight)

    def _run_without_weights(
        self,
        operator: Operator,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        kinds: set[str],
    ) -> Any:
        """Run an operator that takes no weights.

        kinds: of what it takes; a sample is added where constants become one copy for each.
        """
        func, is_sample = operator.func, "sample" in kinds
        is_reshape = func is Tensor.view and not as_type(args, kwargs) and is_sample
        out = view_samples(*args, **kwargs) if is_reshape else run_exactly(func, args, kwargs)
        self.program.note(func, args, kwargs, out, is_sample)
        # Encoded positions meet no sample yet, and still have one copy per sample from here on.
        if not is_sample and self._meetings.is_expanded(operator, tensors, out):
            self._meetings.copied = True
            kinds.add("sample")
        return out

    def _meet(
        self,
        operator: Operator,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        gives: bool,
    ) -> Any:
        """Run an operator that takes weights and samples, by its kernel.

        gives: whether the samples are constants of which it makes one copy for each.
        """
        if not operator.is_like_another:
            refuse_nested(operator.name or str(operator.func), tensors)
        first = len(self.tape.kernels)
        out = self._meetings.meet(operator, args, kwargs, self)
        self.program.note(operator.func, args, kwargs, out, True)
        if gives:
            # Told apart from the same uses of samples, of which layouts are remembered.
            for kernel in self.tape.kernels[first:]:
                kernel.name = f"{kernel.name} of constants"
        return out

    def _follow_samples(
        self,
        operator: Operator,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        out: Any,
        order: Tensor | None,
    ) -> None:
        """Mark what an operator made of samples, or wrote into; order: as of `_order_behind`."""
        out_or_target = args[:1] if out is None else out
        self._mark_samples(out_or_target)
        if operator.puts or any(map(self._kinds.is_in_front, tensors)):
            self._follow_front(operator, args, kwargs, out_or_target)
        if order is not None:
            mark_order(operator.func, out, order)
        elif self.n > 1 and (operator.name == PACKING or operator.name in RECURRENT):
            mark_packed(operator.func, args, out)

    def _follow_front(
        self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Mark what an operator made of samples that are in front, if they are there still.

        Of what has a gradient, a backward pass shows where they are (`rows_in_front`).
        """
        kinds = self._kinds
        kinds.meets_front = False
        results = [out] if isinstance(out, Tensor) else tensors_of(out)
        for tensor in results:
            if tensor.requires_grad:
                return
        if operator.puts:  # numbers of no sample leave the entries of all where they are
            if kinds.was_in_front(args[0]) and all(map(kinds.is_constant, tensors_of(args[1:]))):
                kinds.mark_in_front(args[0])
            return
        if keeps_in_front(
            operator.name, args, kwargs, results, kinds.is_in_front, kinds.is_constant, self.n
        ):
            for tensor in results:
                kinds.mark_in_front(tensor)

    def _order_behind(
        self,
        operator: Operator,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
    ) -> Tensor | None:
        """In which order an operator leaves the samples, if it is not theirs (`sequence_order`)."""
        is_packed = any(marks_of(t).is_packed for t in tensors)
        if is_packed and not takes_packed_rows(operator.func, args):
            self.tape.route()
        args = self._orders.with_places(args, kwargs)
        chooses = operator.chooses and not self._reads_rows
        chooses = chooses and self._orders.are_taken_by_data(args, self._is_sample)
        if not (chooses or self._orders.met):
            return None
        self.tape.expansions = None  # the samples may lie in another order from here on
        try:
            return self._orders.behind(operator.func, args, tensors, chooses)
        # No error: each batch with other numbers is probed by itself, which is exact and slower.
        except OrderUnknown:
            if self._orders.met:
                self.tape.route()
            else:
                self.program.note_indices((*args, *kwargs.values()))
            return None

    def _without_gradient(self, parameter: nn.Parameter) -> Tensor:
        return parameter if self.tape.weights.tracks(parameter) else parameter.detach()

    def _mark_derived(self, out: Any) -> Any:
        """Mark and return what an operator made of weights alone."""
        for tensor in tensors_of(out):
            self.tape.weights.mark_derived(tensor)
        return out

    def _mark_samples(self, out: Any) -> None:
        """Mark what an operator made, or wrote into, as tensors that depend on the samples."""
        for tensor in tensors_of(out):
            self._kinds.mark_sample(tensor)
