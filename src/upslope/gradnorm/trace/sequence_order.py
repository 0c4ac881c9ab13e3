"""Samples that are sorted by length for a packed sequence, and put back.

`pack_padded_sequence` and its inverse choose by data, which would make the places of all samples
behind them doubtful (`Tape.route`). They only permute: what is sorted carries the order, the
recurrence takes it (`kernels/recurrent/rules`), and what is put back is as before. Anything else
that is done with sorted samples makes them doubtful after all. So does anything that is done with
the rows of a packed sequence, sorted here or by the caller: whose they are say the lengths of this
batch, and those of another may add up to as many rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.tensor_marks import mark, marks_of
from upslope.gradnorm.trace.operators import PACKING, tensors_of

PADDING = "_pad_packed_sequence"
RECURRENT = frozenset(["lstm", "gru", "rnn_tanh", "rnn_relu"])


class SequenceOrders:
    """The orders of n samples in one forward pass."""

    def __init__(self, n: int):
        self.n = n
        self.met = False
        """Whether samples were sorted: what no operator put out may be so as well."""

    @staticmethod
    def with_places(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return an operator's arguments, and behind them those with names that say places."""
        return (*args, *(kwargs[key] for key in ("input", "dim", "index", "mask") if key in kwargs))

    def are_taken_by_data(self, args: tuple[Any, ...], is_sample: Callable[[Tensor], bool]) -> bool:
        """Whether x[index] takes by data what may be another sample's; x[range, index] does not.

        args: as of `with_places`. is_sample: whether a tensor depends on the samples.
        """
        index = tensors_of(args[1:])
        if not (is_sample(args[0]) and any(map(is_sample, index))):
            return False
        first = index[0]
        is_range = first.shape == (self.n,) and not is_sample(first)
        return not (is_range and torch.equal(first, torch.arange(self.n, device=first.device)))

    def behind(
        self, func: Callable[..., Any], args: tuple[Any, ...], tensors: list[Tensor], chooses: bool
    ) -> Tensor | None:
        """The order in which an operator leaves its samples; None where it is their own.

        chooses: whether it takes entries by data.

        Raises:
            OrderUnknown: nothing can be said.
        """
        marks = [marks_of(t).order for t in tensors] if self.met else []
        orders = [order for order in marks if order is not None]
        if not chooses:
            if orders and not takes_packed_rows(func, args):
                raise OrderUnknown
            return orders[0] if orders else None
        index = self._permutation(func, args)
        if index is None or (orders and not _puts_back(index, orders[0])):
            raise OrderUnknown
        self.met = True
        return None if orders else index

    def _permutation(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Tensor | None:
        """The index of an `index_select` that permutes the samples."""
        if getattr(func, "__name__", "") != "index_select" or len(args) != 3:
            return None
        tensor, dim, index = args
        if tensor.shape[dim] != self.n or index.shape != (self.n,):
            return None
        every = torch.arange(self.n, device=index.device)
        return index if torch.equal(index.sort().values, every) else None


def takes_packed_rows(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Return whether an operator packs, unpacks, or runs over packed sequences.

    func, args: the operator and what it takes, a sequence first.
    """
    name = getattr(func, "__name__", "")
    if name not in RECURRENT:
        return name in (PACKING, PADDING)
    return isinstance(args[1], Tensor) and not args[1].is_floating_point()  # the sizes of steps


class OrderUnknown(Exception):  # noqa: N818 (a finding, not an error)
    """The places of samples are doubtful from here on."""


def mark_packed(func: Callable[..., Any], args: tuple[Any, ...], out: Any) -> None:
    """Note what packs samples, or runs over a packed sequence; arguments as above.

    out: what the operator has made.
    """
    if takes_packed_rows(func, args) and getattr(func, "__name__", "") != PADDING:
        mark(out[0]).is_packed = True


def mark_order(func: Callable[..., Any], out: Any, order: Tensor) -> None:
    """Note the order of an operator's output."""
    if isinstance(out, Tensor):
        mark(out).order = order
        return
    # Of the two that packing puts out, the number of samples at each step has no order.
    for tensor in out[:1] if getattr(func, "__name__", "") == PACKING else out:
        mark(tensor).order = order


def _puts_back(index: Tensor, order: Tensor) -> bool:
    """Whether selecting `index` from what has this order gives samples 0, 1, 2 ..."""
    return torch.equal(order[index], torch.arange(len(order), device=order.device))
