"""Which program a model ran on a batch: whether layouts seen once hold for the batch that comes.

Where the samples are in each tensor follows from the operators that a model runs, from the shapes
of its tensors, and from the order in which it takes entries. All of it is a function of the inputs'
shapes, as long as no number of a sample leaves torch for Python (`bool(mask.all())`,
`lengths.tolist()`) and no entry is taken by an index made of samples. So a program is identified by

- the shapes of the inputs and what is no tensor among them, the modules in training mode, and the
  operators that met weights, in order;
- every other operator that meets samples, with the shapes of its tensors and its options, numbers
  with a fraction apart; of those that move entries, all their indices as well;
- of those that take entries from where they lie in memory, where that is;
- which tensors each of these takes: those of a model may be of one shape, and a loop may go through
  the parts of a batch in any order;
- every number of a sample that left for Python;
- the model's buffers and parameters of a single number, which may be switches.

Where entries were taken by the data themselves, the numbers of every such index are noted as well:
a mask of the first position, say, is the same in all batches. Two batches with one identity have
their samples in the same places. Where numbers left in a way that cannot be read (`numpy()`), no
two batches are held to be the same, and each is proven by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.program.argument_outlines import descriptor_of, outline_of
from upslope.gradnorm.core.program.indices import (
    MovingIndices,
    hash_numbers,
    is_index,
    is_made_of_samples,
    may_move_within,
)
from upslope.gradnorm.core.program.operator_names import (
    BY_INDEX,
    BY_STRIDES,
    DRAWING_OPERATORS,
    LEAVING,
    LOOKING_UP,
    MOVING,
    NAMELESS,
    OF_INTEREST,
    POINTING,
    SIZED_OPERATORS,
    UNREADABLE,
    label_of,
    name_of,
)
from upslope.gradnorm.core.program.steering import Steering
from upslope.gradnorm.core.state.inventory import Inventory
from upslope.gradnorm.core.tensor_marks import marks_of
from upslope.gradnorm.core.torch_functions import tensors_among


class Program:
    """The identity of one forward pass, built while it runs."""

    def __init__(self, n: int) -> None:
        self._hashes: list[int] = []
        """Of what is known of each operator, in order. To keep that itself would be work for the
        garbage collector."""
        self.note_hash: Callable[[int], None] = self._hashes.append
        """Takes in an operator of which no more than its outline is noted (`is_noted_in_outline`):
        the hash of its name, `outline_of` each argument, `numbers_of` them, and the names of those
        that have some. Called for most: it must be fast."""
        self.numbers: dict[int, int] = {}
        """`id` of a tensor of samples -> its number among those that the pass has made. One that is
        gone may have lent its `id` to another, which then has a number of its own."""
        self.steering = Steering(n)
        self.repeats = True
        """Whether a batch of the same identity has its samples in the same places."""
        self.indices = MovingIndices()
        self._shapes_of_moves: list[tuple[int, int]] = []
        """Of operators that may move entries within samples, noted with the numbers of an index,
        their places among the hashes, and what their hashes would be without."""
        self._is_reading = False
        """Whether the operator that runs is noted by an outline of the caller's (`noting`)."""
        self._count = 0
        """How many tensors of samples the pass has made."""

    def note(
        self, func: Callable[..., Any], args: Any, kwargs: Any, out: Any, of_samples: bool
    ) -> None:
        """Take in one operator. Called for every one: it must be fast."""
        name = name_of(func)
        if name in DRAWING_OPERATORS:
            self.repeats &= self.indices.add_draw(out)
            return
        if not of_samples:
            return
        if isinstance(out, Tensor) and out.dim() == 0:
            self.steering.follow(func, name, args, kwargs, out)
        if name in OF_INTEREST or not (_is_strided(args) and _is_strided(kwargs.values())):
            self._note_of_interest(name, args, kwargs, out)
        elif not self._is_reading:
            self._add_outline(label_of(func), args, kwargs)

    def _note_of_interest(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Take in an operator of which more than its outline may decide on places."""
        self.steering.mark_sizes(name, args, out)
        if name in MOVING or name in SIZED_OPERATORS:
            sizes = args[1:] if name in MOVING else args  # behind the tensor that is moved
            self.steering.take_arguments((*sizes, *kwargs.values()))
        if self._is_reading and name not in LEAVING and name not in UNREADABLE:
            return  # the caller's outline stands for all that would be noted
        by_index = self._is_placed_by_index(name, args, kwargs)
        if self._is_placed_unseen(name, args, kwargs):
            self.repeats = False
        elif by_index or name in MOVING or name in BY_STRIDES:
            self._note_move(name, args, kwargs, by_index=by_index)
        elif name in LEAVING:
            self._note_leaving(name, args, out)
        elif name in UNREADABLE:
            self.repeats = False
            if name not in POINTING:
                self.steering.leave(None, None)
        else:
            self._add_outline(name, args, kwargs)

    def _note_move(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, by_index: bool
    ) -> None:
        """Note an operator that puts entries elsewhere. by_index: where samples' numbers say."""
        values = (*args, *kwargs.values())
        numbers = self.numbers_of(values)
        may_take_index = name == "__getitem__" or name in BY_INDEX
        if may_take_index and may_move_within(name, args, kwargs):
            outline = name, *map(outline_of, values), numbers, *kwargs
            self._shapes_of_moves.append((len(self._hashes), hash(outline)))
        self._add((name, *map(descriptor_of, values), numbers, *kwargs))
        if name in BY_STRIDES:
            self._add(tuple((t.stride(), t.storage_offset()) for t in tensors_among(values)))
        if by_index:
            self.note_indices(values)

    def _note_leaving(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        """Note numbers of samples that leave for Python."""
        self._add((name, repr(out)))
        if name == "__contains__" and len(args) == 2:
            self.steering.leave_whether_contained(args[0], args[1], out)
        else:
            self.steering.leave(args[0] if args else None, out)

    def number(self, tensor: Tensor) -> None:
        """Give a tensor of samples the next number. Called for every one of them."""
        numbers = self.numbers
        self._count += 1
        numbers[id(tensor)] = self._count

    def numbers_of(self, values: Iterable[Any]) -> tuple[int | None, ...]:
        """Return the numbers of the tensors of samples among some arguments, in order.

        None stands for any other tensor: a table may be before the samples, or behind them.
        """
        tensors, number_of = tensors_among(tuple(values)), self.numbers.get
        return tuple(number_of(id(t)) if is_made_of_samples(t) else None for t in tensors)

    @contextlib.contextmanager
    def noting(self, outline: Any, tensors: Iterable[Tensor]) -> Iterator[None]:
        """Note an outline for the operator that runs, in place of all that decides on places.

        For those of which it is known otherwise where each sample's entries go (`routing`).
        tensors: that it takes.
        """
        count, repeats = len(self._hashes), self.repeats
        self.indices.add_read(tensors)
        self._is_reading = True
        try:
            yield
        finally:
            self._is_reading = False
        self._drop_shapes(count)
        self._hashes[count:], self.repeats = [hash(descriptor_of(outline))], repeats

    def note_indices(self, values: Iterable[Any]) -> None:
        """Note the numbers of the indices of samples among some arguments: entries follow them."""
        self.indices.is_placed_by_data = True
        indices = [t for t in tensors_among(tuple(values)) if is_index(t)]
        # Under `vmap` their numbers are those of one row.
        if _is_strided(indices) and torch._C._functorch.peek_interpreter_stack() is None:
            self._add(tuple(map(hash_numbers, indices)))
        else:
            self.repeats = False

    def take_draws(self, tensors: Iterable[Tensor], *, is_known: bool) -> None:
        """Take in the random orders among some tensors that an operator takes.

        is_known: whether what it does with them is noted in outline. After any other the samples
        may be in that order.
        """
        self.repeats &= not self.indices.take_draws(tensors) or is_known

    def close(self) -> None:
        """Take in that the pass of the model is over."""
        self.repeats &= not self.indices.has_lost_draws

    def note_indices_read(self) -> None:
        """Note the numbers of all indices that were noted in outline so far (`noting`).

        For their outlines do not say where each sample's entries went, after all.
        """
        self.repeats &= self.indices.note_read() and self.steering.counts_writes

    def _is_placed_by_index(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether entries may go where an index says that is made of samples."""
        values = (*args, *kwargs.values())
        if name == "repeat_interleave":
            return _is_indexed_by_samples((*args[1:], kwargs.get("repeats")))
        if name in BY_INDEX:
            return _is_indexed_by_samples(values) and not _stays_in_place(name, args, kwargs)
        is_looked_up = name in LOOKING_UP
        return is_looked_up and any(is_made_of_samples(v) and not is_index(v) for v in values)

    def _is_placed_unseen(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether entries may go where neither shapes nor an index say."""
        if name in BY_INDEX or name in LOOKING_UP:
            return False
        if name == NAMELESS:
            return True
        if name in MOVING and torch._C._functorch.peek_interpreter_stack() is not None:
            return True  # under `vmap` shapes are those of one row
        # Sparse and jagged tensors keep entries where their own indices say.
        return not _is_strided((*args, *kwargs.values()))

    def _add_outline(self, name: str, args: Any, kwargs: Any) -> None:
        values = (*args, *kwargs.values())
        self._add((name, *map(outline_of, values), self.numbers_of(values), *kwargs))

    def _drop_shapes(self, count: int) -> None:
        """Forget what was noted of indices of all but the first `count` operators."""
        while self._shapes_of_moves and self._shapes_of_moves[-1][0] >= count:
            self._shapes_of_moves.pop()

    def _add(self, description: Any) -> None:
        self._hashes.append(hash(description))

    def rewind(self, point: tuple[int, int, int]) -> None:
        """Go back to an earlier point: another loss follows on the same forward pass."""
        count, numbers, self._count = point
        self._drop_shapes(count)
        del self._hashes[count:]
        self.steering.rewind(numbers)

    @property
    def point(self) -> tuple[int, int, int]:
        """How far the pass has come, for `rewind`."""
        return len(self._hashes), len(self.steering.numbers), self._count

    @property
    def identity(self) -> int:
        """Equal for two passes that moved entries alike."""
        return hash((tuple(self._hashes), tuple(self.indices.hashes)))

    @property
    def identity_of_shapes(self) -> int:
        """Equal for two passes that moved entries alike, but for the numbers of constants."""
        hashes = list(self._hashes)
        for place, outline in self._shapes_of_moves:
            hashes[place] = outline
        return hash((tuple(hashes), tuple(self.indices.hashes)))


def switches_of(inventory: Inventory) -> tuple[str, ...]:
    """Return the buffers and parameters of a single number, as text: flags, schedules, gates.

    A model may do something else once one of them has another value.
    """
    return tuple(
        f"{name}={tensors[name].item()}"
        for name, tensors in inventory.places_of_numbers
        # A pass that failed may have put something else there.
        if name in tensors and tensors[name] is not None and tensors[name].numel() == 1
    )


def _is_strided(values: Iterable[Any]) -> bool:
    """Whether no tensor among some arguments keeps its entries where indices of its own say."""
    return all(v.layout == torch.strided for v in values if isinstance(v, Tensor))


def _is_indexed_by_samples(values: Any) -> bool:
    return any(
        not value.is_floating_point() and marks_of(value).samples_in is not None
        if isinstance(value, Tensor)
        else isinstance(value, (tuple, list)) and _is_indexed_by_samples(value)
        for value in values
    )


def _stays_in_place(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator of `BY_INDEX` leaves all entries of samples where shapes say.

    `gather` looks up entries of a table of constants as `embedding` does rows; and an index of
    constants is the same for every batch, whatever is written there.
    """
    if name in {"gather", "take_along_dim"}:
        table = args[0] if args else kwargs.get("input")
        return isinstance(table, Tensor) and not is_made_of_samples(table)
    return name == "__setitem__" and len(args) == 3 and not _is_indexed_by_samples(args[1:2])
