"""Uses of the same weights by the same operator, as a loop makes them, reduced as one.

A recurrence that is written out, a fixed point or a layer that is called again multiplies by one
weight in each of its steps. Where an operator works on each row of dimension 0 by itself, these
uses are one, of the rows of all steps. So a step's operands are only kept while the backward pass
goes through the steps: one description and one norm serve them all, and they are put side by side
once. Where they fill more memory than gradients would, some steps at a time. Called by
`reducing_listener`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from upslope.gradnorm.core.uses.tape import Kernel

_ROOM = 16 << 20
"""Bytes of operands that are kept in any case."""


class Use(NamedTuple):
    """A kernel, the gradient of its output, and its inputs. number: how many uses it stands for."""

    kernel: Kernel
    g: Tensor
    inputs: tuple[Tensor, ...]
    number: int = 1


class JointUses:
    """The uses that a backward pass has come to, and that others may follow."""

    def __init__(self) -> None:
        self._uses: dict[Hashable, list[Use]] = {}

    def keep(self, use: Use, most: int) -> Use | None:
        """Keep a use, whose samples are the rows of dimension 0, in order; return all as one.

        most: how many uses its weights have. None as long as they are not all there, and their
        operands not so many that the gradients themselves may take less memory.
        """
        shapes = [x.shape for x in use.inputs]
        key = use.kernel.joint_key, use.g.shape, *shapes
        uses = self._uses.setdefault(key, [])
        uses.append(use)
        is_complete = len(uses) == most or _are_large(use, len(uses))
        return _join(self._uses.pop(key)) if is_complete else None

    def take_rest(self) -> list[Use]:
        """Return the uses of which not all are alike, and forget them."""
        rest = [_join(uses) for uses in self._uses.values()]
        self._uses.clear()
        return rest


def _are_large(use: Use, count: int) -> bool:
    """Whether so many uses like this one should not be kept any longer."""
    size = count * (use.g.nbytes + sum(x.nbytes for x in use.inputs))
    if size < _ROOM:
        return False
    numbers = sum(weight.numel() for weight in use.kernel.weights)
    return size >= 2 * len(use.g) * numbers * use.g.element_size()


def _join(uses: Sequence[Use]) -> Use:
    """Return several uses as one, of all their rows."""
    first = uses[0]
    if len(uses) == 1:
        return first
    inputs = zip(*(use.inputs for use in uses), strict=True)
    g = _join_rows([use.g for use in uses])
    return Use(first.kernel, g, tuple(map(_join_rows, inputs)), len(uses))


def _join_rows(tensors: Sequence[Tensor]) -> Tensor:
    """(r, ...) of t tensors -> (r t, ...): their rows, those of the same place together."""
    first = tensors[0]
    last = first.movedim(1, -1)
    # Images that have their channels last in memory keep them there: rows are copied as they are.
    if last.is_contiguous() and not first.is_contiguous():
        return torch.stack([t.movedim(1, -1) for t in tensors], dim=1).flatten(0, 1).movedim(-1, 1)
    return torch.stack([*tensors], dim=1).flatten(0, 1)
