"""The arguments that the public functions share: what to compute of which parameters, and how."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from upslope.errors import GradientNormError
from upslope.gradnorm.core.chunks import DEVICE_SCRATCH, SCRATCH, has_caches
from upslope.gradnorm.core.half_precision import HALF_TYPES, in_single_precision
from upslope.gradnorm.core.model_io import Batch, Inputs, Loss, in_words
from upslope.gradnorm.core.state.containers import Walk, borrow_walk, give_back
from upslope.gradnorm.core.state.restoring import restoring_state
from upslope.gradnorm.core.uses.reductions import Reduction, SquaredNorms, TotalSquaredNorms
from upslope.gradnorm.core.uses.tape import ComputeOptions
from upslope.gradnorm.core.weights.weights import Weights
from upslope.gradnorm.parameters import Parameters, select_of_walk
from upslope.gradnorm.proofs.batch_run import showing_batch_last
from upslope.gradnorm.trace.input_checks import (
    refuse_inputs_of_parameters,
    refuse_written_twins,
    twins_in,
)
from upslope.gradnorm.trace.microbatches import recordings, reduce_per_sample, require_bytes
from upslope.gradnorm.trace.recording import Recording
from upslope.gradnorm.trace.sharing import open_batch


@dataclass(frozen=True)
class Call:
    """One call of a public function, with its arguments checked.

    `reduce` or `recordings` carries it out: once, and before anything else changes the model.
    """

    model: nn.Module
    batch: Batch
    weights: Weights
    options: ComputeOptions
    walk: Walk
    """What the model is made of, as it was found; borrowed until its state is put back."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        inputs: Inputs,
        parameters: Parameters = None,
        max_memory: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Call:
        """Return the call with these arguments, which are those of `gradient_norms`.

        Raises:
            GradientNormError: an argument is of a wrong type or out of range, or inputs and model
                do not go together.
        """
        batch = open_batch(model, inputs)
        parameters_chosen, walk = select_of_walk(borrow_walk(model), parameters, batch)
        if twins := twins_in(batch):
            give_back(walk)  # for the model runs
            refuse_written_twins(model, batch, twins)
            walk = borrow_walk(model)
        weights = Weights(parameters_chosen)
        refuse_inputs_of_parameters(batch, weights.parameters)
        return cls(model, batch, weights, _compute_options(max_memory, dtype, weights), walk)

    def reduce(self, reduction: Reduction, loss: Loss) -> dict[str, Tensor]:
        """Return name -> (n, ...), the reduced per-sample gradients of a loss."""
        if self.options.dtype is not None:
            loss = in_single_precision(loss, self._device)
        with self._in_half_precision():
            return reduce_per_sample(
                self.model, self.batch, self.weights, self.options, reduction, loss, self.walk
            )

    @contextmanager
    def recordings(self) -> Iterator[Iterator[Recording]]:
        """Give a recording of each microbatch, for several losses of one forward pass.

        The model is as it was once the block is left.
        """
        with (
            self._in_half_precision(),
            restoring_state(self.model, self.walk) as state,
            showing_batch_last(self.model, self.batch, state),
        ):
            yield recordings(self.model, self.batch, self.weights, self.options, state)

    def _in_half_precision(self) -> AbstractContextManager[Any]:
        """Enter the type of products that the caller asked for, if any."""
        dtype = self.options.dtype
        if dtype is None:
            return nullcontext()
        # No copies are kept: the state of a model is put back between its passes.
        return torch.autocast(self._device, dtype, cache_enabled=False)

    @property
    def _device(self) -> str:
        return next(iter(self.weights.parameters.values())).device.type


def _compute_options(
    max_memory: int | None, dtype: torch.dtype | None, weights: Weights
) -> ComputeOptions:
    """Return how to compute, of the caller's options.

    Raises:
        GradientNormError: a bound that is not positive, or a type that is not a half.
    """
    if max_memory is not None:
        require_bytes("max_memory", max_memory)
    if dtype not in (None, *HALF_TYPES):
        raise GradientNormError(
            "Expected `dtype` to be None, torch.bfloat16 or torch.float16 but got "
            f"{in_words(dtype)}. For float64, convert the model and its inputs."
        )
    # Autocast leaves float64 as it is; its proofs must then be those of float64 too.
    if all(p.dtype == torch.float64 for p in weights.parameters.values()):
        dtype = None
    is_on_processor = all(map(has_caches, weights.parameters.values()))
    most = SCRATCH if is_on_processor else DEVICE_SCRATCH
    # Whole, for samples are counted by it: a bound may be written `1e6`.
    scratch = most if max_memory is None else max(1, int(min(most, max_memory)))
    return ComputeOptions(scratch, dtype)


def is_number(value: Any) -> bool:
    """Whether an argument is a real number of Python's or NumPy's."""
    return isinstance(value, numbers.Real)


def whole_number(name: str, value: Any, at_least: int | None = None) -> int:
    """Return an argument that must be a whole number. name: of the argument.

    Raises:
        GradientNormError: it is none, or is less than `at_least`.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:  # told below, by the name of the argument
        number = None
    if number is None or (at_least is not None and number < at_least):
        bound = "" if at_least is None else f" of at least {at_least}"
        raise GradientNormError(
            f"Expected `{name}` to be a whole number{bound} but got {in_words(value)}."
        )
    return number


def squares_for(norm: str) -> SquaredNorms:
    """Return what a norm of this name needs of each parameter: squares, or their sum alone."""
    return TotalSquaredNorms() if norm == "global" else SquaredNorms()


def reduction(name: str) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return what makes the norm of this name, (n,) float64, of squared norms by parameter.

    name: "global" or "tensor-sum".

    Raises:
        GradientNormError: there is no norm of this name; or, when the result is applied, a norm is
            not finite.
    """
    table = {"global": _global, "tensor-sum": _tensor_sum}
    if not isinstance(name, str) or name not in table:
        raise GradientNormError(
            f"Expected `norm` to be one of {sorted(table)} but got {in_words(name)}."
        )

    def reduce(squares: dict[str, Tensor]) -> Tensor:
        norms = table[name](squares)
        refuse_infinite(norms, "norms")
        return norms

    return reduce


def refuse_infinite(values: Tensor, what: str) -> None:
    """Refuse numbers of which some are NaN or infinite.

    values: (n,). what: the noun for them in the message, "norms" for instance.

    Raises:
        GradientNormError: there are such numbers.
    """
    # A finite sum has finite terms. It costs a fourth of asking each.
    if not math.isfinite(values.sum()) and not bool(torch.isfinite(values).all()):
        bad = (~torch.isfinite(values)).nonzero().flatten()[:5].tolist()
        raise GradientNormError(
            f"Expected finite gradients but the {what} of samples {bad} are "
            f"{values[bad].tolist()}, though their losses are finite. Look for roots, divisions "
            "and norms at zero in the model or the loss; or compute in float64."
        )


def _global(squares: dict[str, Tensor]) -> Tensor:
    # In double: small tensors' squares would be lost beside those of large ones.
    return torch.stack(list(squares.values())).sum(dim=0, dtype=torch.float64).sqrt()


def _tensor_sum(squares: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(squares.values())).double().sqrt().sum(dim=0)
