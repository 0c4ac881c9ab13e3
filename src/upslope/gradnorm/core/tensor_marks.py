"""Marks on tensors: what the engine knows of a tensor while a model holds it.

A model is given tensors, computes with them and hands them on; the engine meets them again in the
next operator. What it knows of one of them must therefore be kept on the tensor itself. All of it
stands in one object, in one attribute, which no view, copy or result of an operator inherits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

MARKS = "_upslope_marks"
"""The name of that attribute, by which `trace/tensor_kinds` reads it of every tensor."""


@dataclass(slots=True, eq=False)
class Marks:
    """What is known of one tensor. Read by `marks_of`, written by `mark`."""

    samples_in: int | None = None
    """The session of the interceptor in which it depends on the samples (`trace/intercept`)."""
    made_of: object = None
    """The key of the `Weights` of which alone it is computed (`core/weights`)."""
    order: Tensor | None = None
    """(n,): the sample in each of its places, where a sequence is sorted (`sequence_order`)."""
    is_packed: bool = False
    """Whether the rows of several samples of unequal length are mingled in it, as the number of
    samples at each step says (`sequence_order`)."""
    is_copy: bool = False
    """Whether it is a copy where the model has asked for a view (`trace/operators`)."""
    convolution: int | None = None
    """The place of the convolution that put it out, counted over the pass (`conv_bn_fusion`)."""
    is_sized_by_data: bool = False
    """Whether its size is a number of the samples, as that of what `nonzero` returns."""
    own_lengths: Tensor | None = None
    """(n,): how long it would be for each sample alone, if its size is a number of the samples."""
    own_numbers: Tensor | None = None
    """(n,): of a number of all samples, what it would be for each alone (`program/steering`)."""
    own_counts: Any = None
    """Of a count of all samples, and what is asked of it, those of each (`program/steering`)."""
    placeholder_of: int | None = None
    """The place of the convolution for whose output it stands (`trace/conv_bn_fusion`)."""
    statistic: tuple[object, str, Tensor | None] | None = None
    """The watch that has seen it, whether it holds samples or a statistic of them, and the sample
    of each entry where that is known (`proofs/statistics`, `proofs/owners`)."""
    route: Any = None
    """What is known of rows that the data have sent here (`trace/routing`)."""
    decision: Any = None
    """Of whole numbers that are made of a router's numbers, how (`routing/decisions`)."""
    in_front: int = -1
    """The tensor's version, by its count of writes, at which it had each sample's entries together
    in dimension 0 (`trace/rows_in_front`); below zero where that is not known."""
    is_drawn: bool = False
    """Whether it holds random whole numbers, which may be an order (`program/indices`)."""
    is_told: bool = False
    """Whether it is one of several numbers that have been noted together (`program/steering`)."""
    whole_numbers_of: object = None
    """The watch that has seen that it is made of the whole numbers of a batch
    (`proofs/independence`)."""


class SharedMarks(Marks):
    """Marks that several tensors have in common, and that cannot be written therefore."""

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"write `{name}` by `mark`, not by `marks_of`")

    def __reduce__(self) -> Any:
        # A model may copy what it keeps, and pickle it.
        return shared_marks, (self.samples_in, self.in_front)


def shared_marks(samples_in: int | None, in_front: int = -1) -> SharedMarks:
    """Return what is known of every tensor of which nothing else is.

    samples_in, in_front: as of `Marks`.
    """
    marks, plain = object.__new__(SharedMarks), Marks(samples_in, in_front=in_front)
    for name in Marks.__slots__:
        object.__setattr__(marks, name, getattr(plain, name))
    return marks


NO_MARKS = shared_marks(None)
"""The marks of every tensor that has none."""


def marks_of(tensor: Tensor) -> Marks:
    """Return the marks of a tensor, to be read. Called for every operator: it must be fast."""
    marks: Marks = tensor.__dict__.get(MARKS, NO_MARKS)
    return marks


def mark(tensor: Tensor) -> Marks:
    """Return the marks of a tensor, to be written."""
    marks: Marks | None = tensor.__dict__.get(MARKS)
    if marks is None:
        marks = tensor.__dict__[MARKS] = Marks()
    elif type(marks) is SharedMarks:  # this tensor alone has more from now on
        marks = tensor.__dict__[MARKS] = Marks(marks.samples_in, in_front=marks.in_front)
    return marks


def remove_marks(tensor: Tensor) -> None:
    """Forget what is known of a tensor: one that outlives the pass in which it was marked."""
    tensor.__dict__.pop(MARKS, None)
