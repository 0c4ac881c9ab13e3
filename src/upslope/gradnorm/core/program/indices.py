"""The indices of one pass by which entries move, and what their numbers say of places.

Kept by `program`. Of indices of the samples that are noted in outline (`trace/routing`) the numbers
are at hand in case that the outlines turn out not to be enough. Random whole numbers may be an
order of the samples: they are followed to the operator that takes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.tensor_marks import mark, marks_of


class MovingIndices:
    """The indices of one pass, and the random orders."""

    def __init__(self) -> None:
        self.is_placed_by_data = False
        """Whether entries went where the numbers of an index of this batch say, which are noted."""
        self.reads_constants = False
        """Whether constants that move entries along other dimensions than the samples' are noted in
        outline: they were other ones in batches that did not differ in anything else."""
        self.hashes: list[int] = []
        """Of the numbers of indices of which an outline was not enough."""
        self._indices_read: list[tuple[Tensor, int | None]] = []
        """Indices of which no more was noted than an outline, and their versions."""
        self._draws_unused: set[int] = set()
        """The `id`s of random orders that no operator has taken yet."""

    def add_read(self, tensors: Iterable[Tensor]) -> None:
        """Take in the tensors of an operator that is noted in outline."""
        self._indices_read += [
            (t, None if t.is_inference() else t._version) for t in tensors if is_whole(t)
        ]

    def note_read(self) -> bool:
        """Note the numbers of all that were taken in; return whether these are what they were."""
        self.is_placed_by_data, indices = True, self._indices_read
        self._indices_read = []
        if any(version is None or version != index._version for index, version in indices):
            return False
        if any(index.layout != torch.strided for index, _ in indices):
            return False
        self.hashes += [hash_numbers(index) for index, _ in indices]
        return True

    def add_draw(self, out: Any) -> bool:
        """Take in what a random operator has made; return whether it can be followed."""
        if not (self.reads_constants and isinstance(out, Tensor) and is_whole(out)):
            return False
        mark(out).is_drawn = True
        self._draws_unused.add(id(out))
        return True

    def take_draws(self, tensors: Iterable[Tensor]) -> bool:
        """Take in what an operator takes; return whether random orders are among it."""
        draws = [id(t) for t in tensors if marks_of(t).is_drawn]
        self._draws_unused.difference_update(draws)
        return bool(draws)

    @property
    def has_lost_draws(self) -> bool:
        """Whether random orders were made that no operator has taken: they went unseen."""
        return bool(self._draws_unused)


def is_whole(tensor: Tensor) -> bool:
    """Whether a tensor holds whole numbers, or what is true or false."""
    return not (tensor.is_floating_point() or tensor.is_complex())


def may_move_within(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator may move entries by an index, along others than the first dimension.

    name, args, kwargs: the operator and what it gets.
    """
    among: Sequence[Any] = (*args[1:], *kwargs.values())
    if name in {"__getitem__", "__setitem__"}:
        among = args[1][1:] if isinstance(args[1], tuple) else ()
    return any(isinstance(t, Tensor) and is_whole(t) for t in among)


def is_made_of_samples(value: Any) -> bool:
    """Whether a value is a tensor that depends on the samples."""
    return isinstance(value, Tensor) and marks_of(value).samples_in is not None


def is_index(value: Any) -> bool:
    """Whether a value is a tensor of samples by which entries may be taken."""
    return isinstance(value, Tensor) and is_whole(value) and is_made_of_samples(value)


def hash_numbers(tensor: Tensor) -> int:
    """Return what is equal for tensors of the same shape and numbers."""
    shape, numbers = tuple(tensor.shape), tensor.detach()
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and shape[dim] > 1:  # expanded: the same numbers again
            numbers = numbers.narrow(dim, 0, 1)
    # Two ways to the same numbers, one of them expanded, would be two programs: both are proven.
    # NumPy takes no numbers that are still to be conjugated or negated.
    numbers = numbers.resolve_conj().resolve_neg()
    return hash((shape, numbers.shape, numbers.cpu().numpy().tobytes()))
