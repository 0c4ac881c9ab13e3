"""Sees every operator that a network runs, and puts a kernel where a weight meets a sample.

A `torch.overrides.TorchFunctionMode` gets every call of a torch function, whoever makes it and
however the parameter came there: through `nn.Linear`, through `F.linear(x, self.w.t())`, through a
bare `x * self.scale`. Tensors are of three kinds: those that depend on the samples, weights
(parameters, and what is computed from parameters alone), and all others, which are constants.

Of most operators one look at their arguments tells all (`tensor_kinds`): that no weight is among
them, or that samples and weights meet. `meetings` says what runs then, `operator_runs` what is
asked of all others.

What escapes even this (TorchScript, custom autograd functions holding a parameter) leaves a
gradient on the parameter itself, which the engine looks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from upslope.gradnorm.core.state.inventory import Inventory
from upslope.gradnorm.core.tensor_marks import SharedMarks, marks_of, remove_marks
from upslope.gradnorm.core.uses.tape import Tape
from upslope.gradnorm.core.vmap.vmapped import is_transforming, run_outside
from upslope.gradnorm.trace.meetings import Meetings
from upslope.gradnorm.trace.operator_facts import Operator, operator_of
from upslope.gradnorm.trace.operator_runs import OperatorRuns
from upslope.gradnorm.trace.operators import refuse_write_through_copy, tensors_of
from upslope.gradnorm.trace.refusals import module_with_backward_hook, refuse_backward_hooks
from upslope.gradnorm.trace.routing.decisions import note_decision
from upslope.gradnorm.trace.tensor_kinds import (
    CONSTANTS,
    MEETING,
    MEETING_ROWS,
    ROWS,
    SAMPLES,
    WEIGHTS,
)


class Interceptor(OperatorRuns):
    """Records on `tape` every meeting of weights and samples while it is entered.

    Arguments are those of `OperatorRuns`.
    """

    def __init__(
        self,
        tape: Tape,
        inventory: Inventory,
        n: int,
        copies: bool = True,
        meetings: type[Meetings] = Meetings,
    ):
        super().__init__(tape, inventory, n, copies, meetings)
        self._mark_sample = self._kinds.mark_sample
        self._module_with_hook = module_with_backward_hook(inventory)
        self._depth = 0

    def __enter__(self) -> Interceptor:
        """Start to see operators.

        Raises:
            GradientsHooked: a module has hooks on gradients, which are those of single samples.
        """
        refuse_backward_hooks(self._module_with_hook)
        super().__enter__()  # type: ignore[no-untyped-call]
        self._depth += 1
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop to intercept operators."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._depth -= 1
        while self._depth == 0 and self._kinds.buffers_written:
            remove_marks(self._kinds.buffers_written.pop())

    @property
    def copied(self) -> bool:
        """Whether weights were held to be copied to every sample (`batch_expansion`)."""
        return self._meetings.copied

    def as_sample(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the engine's own, marked as one that has a row for each sample."""
        return self._kinds.as_samples_in_front(tensor, self.n)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operator, through a kernel if weights and samples meet in it."""
        operator = operator_of(func)
        # Nothing is computed, and these are asked for hundreds of times per pass.
        if operator.asks:
            if operator.asks_size and type(marks_of(args[0])) is not SharedMarks:
                self._note_question(func, args[0])
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        if is_transforming():  # tensors of one row: this comes again, with those of all rows
            with self:
                out = run_outside(func, args, kwargs)
            if out is not NotImplemented:
                return out
        if operator.inner_call is not None:
            call = operator.inner_call(*args, **kwargs)
            if call is not None:
                (func, args), kwargs = call, {}
                operator = operator_of(func)
        if self._orders.met or (operator.tells_places and len(args) == 1):
            return self._run_asking(operator, args, kwargs)
        kinds, outline = self._kinds.read(operator, args, kwargs)
        if kinds == SAMPLES:
            if operator.writes:
                refuse_write_through_copy(args)
            out = operator.run(*args, **kwargs)
        elif kinds == MEETING:
            out = self._meetings.meet(operator, args, kwargs, self)
        elif kinds == CONSTANTS:
            return func(*args, **kwargs)
        elif kinds == WEIGHTS:
            return self._run_on_weights(operator, args, kwargs)
        elif kinds in (ROWS, MEETING_ROWS):
            return self._run_on_rows(operator, args, kwargs, outline, kinds == MEETING_ROWS)
        else:
            return self._run_asking(operator, args, kwargs)
        self.program.note_hash(hash((*outline, *kwargs) if kwargs else outline))
        if isinstance(out, Tensor):
            if not out.dim():
                self.program.steering.follow(func, operator.name, args, kwargs, out)
            self._mark_sample(out)
        else:
            self._mark_samples(args[:1] if operator.puts else out)
        if self._kinds.meets_front:
            self._follow_front(operator, args, kwargs, args[:1] if operator.puts else out)
        if operator.decides:
            note_decision(func, operator.name, args, kwargs, out)
        return out

    def _note_question(self, func: Callable[..., Any], tensor: Tensor) -> None:
        """Note that the model asks, by `func`, how long a tensor is."""
        # A loop over routed rows asks for their dimensions, and is noted when it takes them.
        if func is not Tensor.dim or marks_of(tensor).route is None:
            self.program.steering.ask_size(tensor)

    def _run_on_weights(
        self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run an operator on weights and constants alone; arguments as of `_run_asking`."""
        tensors = tensors_of((*args, *kwargs.values()) if kwargs else args)
        if self._meetings.gives_to_each(operator, args, kwargs, tensors):
            return self._run(operator, args, kwargs, tensors)
        out, is_copied = self._meetings.among_weights(operator, args, kwargs, tensors)
        if not is_copied:
            return self._mark_derived(out)
        self._meetings.copied = True
        self._mark_samples(out)
        return out
