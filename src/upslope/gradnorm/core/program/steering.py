"""Numbers of samples that leave torch for Python, where they may steer a model.

`x[:, : lengths.max()]`, `if mask.all():`, `for k in lengths.tolist():` are harmless where what they
decide makes no difference to a sample: padding behind a mask, a shortcut. Where it does, each
sample depends on the others, and no operator shows it. So each number that leaves is noted with
what it would be for each sample alone, if that is known: the largest length with each sample's
own. Samples for which it would be another one are then run without the others (`proofs/company`).

Called by `program` for every operator that takes samples.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from upslope.gradnorm.core.tensor_marks import mark, marks_of

_EXTREMES = frozenset({"_is_all_true", "_is_any_true", "all", "amax", "amin", "any", "max", "min"})
"""Reductions that are the same for many copies of one sample as for one."""

_ALONG_ROWS = {"max": "amax", "min": "amin", "_is_all_true": "all", "_is_any_true": "any"}
"""Those that take no dimension, or return indices along one, and which do the same along one."""

SIZED_BY_DATA = frozenset({"argwhere", "masked_select", "nonzero", "unique", "unique_consecutive"})
"""Operators that return as many entries as the data have."""

_TELLING_PLACES = frozenset({"argwhere", "nonzero"})
"""Those whose entries are as many as there are numbers of each sample that are not zero."""

_UNANIMOUS = {"all": True, "any": False, "_is_all_true": True, "_is_any_true": False}
"""What is said of all samples together only if it is said of each."""

_EQUAL = frozenset({"__eq__", "eq"})

_BY_ENTRY = frozenset(
    {
        "__add__", "__eq__", "__floordiv__", "__ge__", "__gt__", "__invert__", "__le__", "__lt__",
        "__mul__", "__ne__", "__neg__", "__radd__", "__rmul__", "__rsub__", "__sub__", "abs", "add",
        "bool", "clamp", "cpu", "detach", "eq", "float", "ge", "gt", "int", "le", "logical_not",
        "long", "lt", "mul", "ne", "sub", "to",
    }
)  # fmt: skip
"""Operators that may follow, each entry of whose result is made of the entry in its place."""


_PLAIN_NUMBERS = frozenset({bool, int, float})


class OwnCounts(NamedTuple):
    """How many places of each sample a mask has chosen, behind the count of all samples together.

    counts: (n,). numel_of_each: how many places each sample has. has_all: whether the number is no
    more the count, but whether it is that of all places there are.
    """

    counts: Tensor
    numel_of_each: int
    has_all: bool = False

    def texts(self) -> list[str]:
        """Return whether each sample alone would have all its places chosen.

        That the batch's size was meant is likely, and not sure: what this makes is no text of what
        leaves, so that each answer is tried once (`proofs/company`).
        """
        return [f"all: {count == self.numel_of_each}" for count in self.counts.tolist()]


class Steering:
    """The numbers that have left in one pass. n: the number of samples."""

    def __init__(self, n: int):
        self._n = n
        self.numbers: list[tuple[str, list[str] | None]] = []
        """What has left, as text; and what would have for each sample alone, where it is known."""
        self.counts_writes = True
        """Whether each write to a tensor of samples so far has moved its version."""
        self.untold: list[tuple[int, Tensor, type]] = []
        """Of numbers of which no sample's own is known: their places, the tensors that they were,
        and their types in Python. How a router's numbers decide may tell (`routing/decisions`)."""
        self.has_lengths = False
        """Whether some are lengths: of several samples together, the sum of those of each."""
        self.has_decisions = False
        """Whether some were decided again for each sample: of several, they may be others."""

    def follow(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Take in an operator that makes a single number, with what it makes of each sample.

        func, name, args, kwargs: the operator and what it got. out: what it has made.
        """
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is None or any(isinstance(x, Tensor) for x in (*args[1:], *kwargs.values())):
            return
        marks = marks_of(first)
        if marks.is_told:
            mark(out).is_told = True
        elif marks.own_numbers is not None and name in _BY_ENTRY:
            mark(out).own_numbers = func(marks.own_numbers, *args[1:], **kwargs)
        elif (counts := marks.own_counts) is not None:
            # As many as there are: of each sample, as many as there are of it.
            if name in _EQUAL and not kwargs and args[1] == counts.numel_of_each * self._n:
                mark(out).own_counts = counts._replace(has_all=True)
        elif name == "sum" and len(args) == 1 and not kwargs:
            if first.dtype == torch.bool and self._is_in_front(first):
                size = first.numel() // self._n
                counts = first.detach().reshape(self._n, size).sum(dim=1)
                mark(out).own_counts = OwnCounts(counts, size)
        else:
            is_whole = not (args[1:] or kwargs)
            own_numbers = self._reduce_alone(name, first, out, is_whole=is_whole)
            if own_numbers is not None:
                mark(out).own_numbers = own_numbers

    def _reduce_alone(
        self, name: str, tensor: Tensor, out: Tensor, *, is_whole: bool
    ) -> Tensor | None:
        """Return what a reduction to one number would be for each sample alone; None if not known.

        name: of the operator. tensor, out: what it got and made. is_whole: whether it got no more.
        """
        if name in _UNANIMOUS and bool(out) is _UNANIMOUS[name]:
            # Of a view of its own the garbage collector would see no circle.
            return out.clone().expand(self._n)
        if name not in _EXTREMES or not is_whole or not self._has_rows_in_front(tensor):
            return None
        rows = tensor.detach().reshape(self._n, -1)
        if rows.shape[1] == 0:
            return None
        numbers: Tensor = getattr(rows, _ALONG_ROWS.get(name, name))(dim=1)
        return numbers

    def leave(self, tensor: Any, value: Any) -> None:
        """Take in a number that leaves, or a list of them. tensor: what it was. value: what is."""
        own_numbers: list[str] | None = None
        if isinstance(tensor, Tensor):
            if marks_of(tensor).is_told:
                return
            numbers, counts = marks_of(tensor).own_numbers, marks_of(tensor).own_counts
            if numbers is not None:
                own_numbers = [repr(number) for number in numbers.tolist()]
            elif counts is not None and counts.has_all:
                own_numbers = counts.texts()
            elif isinstance(value, list) and self._is_in_front(tensor):
                own_numbers = [repr(row) for row in value]
            if own_numbers is None and type(value) in _PLAIN_NUMBERS:
                self.untold.append((len(self.numbers), tensor, type(value)))
        self.numbers.append((repr(value), own_numbers))

    def leave_one_by_one(self, tensor: Tensor, parts: Sequence[Tensor]) -> int:
        """Take in the rows of a tensor, which a loop goes through; return the place of their note.

        tensor: of numbers that the data decide on. parts: its rows, of which each is told by that.
        """
        for part in parts:
            mark(part).is_told = True
        self.numbers.append((repr(tensor.tolist()), None))
        return len(self.numbers) - 1

    def add_own_numbers(self, place: int, own_numbers: list[str]) -> None:
        """Say what a number that has left would have been for each sample alone.

        place: of the number. own_numbers: n of them, as text.
        """
        self.numbers[place] = self.numbers[place][0], own_numbers
        self.has_decisions |= any(number == place for number, *_ in self.untold)

    def leave_whether_contained(self, tensor: Any, element: Any, value: bool) -> None:
        """Take in what `element in tensor` says: what none of all has, no sample alone has."""
        own_numbers: list[str] | None = None
        if not value:
            own_numbers = [repr(value)] * self._n
        elif isinstance(tensor, Tensor) and self._is_in_front(tensor):
            equal = (tensor.detach() == element).reshape(self._n, -1).any(dim=1)
            own_numbers = [repr(is_equal) for is_equal in equal.tolist()]
        self.numbers.append((repr(value), own_numbers))

    def ask_size(self, tensor: Any) -> None:
        """Take in that the model asks for the size of a tensor: a number that leaves, or none."""
        if not isinstance(tensor, Tensor):
            return
        marks = marks_of(tensor)
        if marks.is_sized_by_data or marks.route is not None:
            own_numbers, rest = None, tensor.shape[1:]
            own_lengths = None if tensor.is_inference() else marks.own_lengths
            if own_lengths is not None and tensor._version == 0:
                own_numbers = [str((length, *rest)) for length in own_lengths.tolist()]
                self.has_lengths = True
            self.numbers.append((str(tuple(tensor.shape)), own_numbers))

    def mark_sizes(self, name: str, args: Any, out: Any) -> None:
        """Mark what an operator makes, if the data decide on its size; arguments as of `follow`."""
        by_data = name in SIZED_BY_DATA
        if name == "__getitem__":
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            tensors = [x for x in index if isinstance(x, Tensor) and x.dim() > 0]
            by_data = any(
                (x.dtype == torch.bool and marks_of(x).samples_in is not None)
                or marks_of(x).is_sized_by_data
                for x in tensors
            )
        if by_data:
            own_lengths = self._own_lengths(name, args)
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, Tensor):
                    mark(tensor).is_sized_by_data = True
                    mark(tensor).own_lengths = own_lengths

    def _own_lengths(self, name: str, args: Any) -> Tensor | None:
        """Return how many places an operator would tell of each sample alone, (n,), if known."""
        mask = args[0] if args and name in _TELLING_PLACES else None
        if not isinstance(mask, Tensor) or mask.is_inference() or not mask.numel():
            return None
        if not self._has_rows_in_front(mask):
            return None
        return mask.detach().reshape(self._n, -1).count_nonzero(dim=1)

    def take_arguments(self, values: Sequence[Any]) -> None:
        """Take in the arguments of an operator in which single numbers are sizes or places."""
        for value in values:
            if isinstance(value, slice):
                self.take_arguments((value.start, value.stop, value.step))
            elif isinstance(value, (tuple, list)):
                self.take_arguments(value)
            elif isinstance(value, Tensor) and _is_whole_number(value):
                self.leave(value, value.item())

    def rewind(self, count: int) -> None:
        """Forget all but the first `count` numbers: another loss follows on the same pass."""
        del self.numbers[count:]
        self.untold = [number for number in self.untold if number[0] < count]

    def ways(self) -> list[tuple[str, ...]] | None:
        """Return the numbers of each sample alone, n of them; None where some are not known."""
        if any(own_numbers is None for _, own_numbers in self.numbers):
            return None
        if not self.numbers:
            return [()] * self._n
        return list(
            zip(
                *(own_numbers for _, own_numbers in self.numbers if own_numbers is not None),
                strict=True,
            )
        )

    def ways_apart(self) -> list[Hashable] | None:
        """Return n values, equal for samples that may go together in a proof; None as `ways`.

        What was decided again for each sample may be another thing for several of them together.
        """
        ways, together = self.ways(), self.together
        if ways is None or not self.has_decisions:
            return None if ways is None else [*ways]
        return [way if way == together else (i, way) for i, way in enumerate(ways)]

    @property
    def together(self) -> tuple[str, ...]:
        """The numbers of all samples together."""
        return tuple(number for number, _ in self.numbers)

    def _is_in_front(self, tensor: Tensor) -> bool:
        """Whether the samples are in dimension 0 of a tensor, and nothing else is as long."""
        return tensor.dim() > 0 and len(tensor) == self._n and self._n not in tensor.shape[1:]

    def _has_rows_in_front(self, tensor: Tensor) -> bool:
        """Whether each sample's entries are together in dimension 0 of a tensor."""
        if self._is_in_front(tensor):
            return True
        place = marks_of(tensor).in_front if self.counts_writes and tensor.dim() > 0 else -1
        return place >= 0 and place == tensor._version and len(tensor) % self._n == 0


def _is_whole_number(tensor: Tensor) -> bool:
    """Whether a tensor is one whole number of the samples, and not so by chance as routed rows."""
    marks = marks_of(tensor)
    is_one = tensor.dim() == 0 or (tensor.numel() == 1 and marks.route is None)
    is_of_samples = is_one and marks.samples_in is not None
    return is_of_samples and not (tensor.is_floating_point() or tensor.is_complex())
