"""Readings of autograd's graph of a weight, of which each row is made of one row of a leaf.

Weight standardisation, rows divided by their norms and their like make w_r = a v_r + b of row r of
a leaf v, with numbers a and b that depend on the row's sum, its sum of squares and gains alone,
one for each row. A row is what lies behind dimension 0. All that such a row is made of lies in a
plane: with u_1 = (1, ..., 1) / sqrt(k) and u_2 the direction of v_r less its mean,

    v_r = x_1 u_1 + x_2 u_2        w_r = y_1 u_1 + y_2 u_2

So the graph is gone through once more with two numbers in place of each row, and these are what
`row_weights` differentiates. Every node of the graph must be known here: of any other weight
nothing is said. Constants that are added are no part of a graph; the values behind them are read
off what later nodes have kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from upslope.gradnorm.core.weights.row_rules import ENTRIES, NUMBERS, RULES, Node, Reading, RowSizes


class RowGraph(NamedTuple):
    """The leaves that a weight is made of, and two numbers for each row in place of the rows."""

    leaf: Tensor
    x: Tensor
    """(2, rows, 2): the places of the leaf's rows in their planes, twice."""
    gains: list[tuple[Tensor, Tensor]]
    """The leaves of a number for each row, with these numbers, (2, rows), twice."""
    y: Tensor
    """(2, rows, 2): the places of the weight's rows, with a graph of `x` and the gains' numbers."""

    def slopes(self) -> list[Tensor]:
        """Return the derivatives of y, (rows, 2, ...): by x, (..., 2), and by each gain."""
        with torch.enable_grad():
            total = self.y[0, :, 0].sum() + self.y[1, :, 1].sum()
        of = [self.x, *(numbers for _, numbers in self.gains)]
        gradients = torch.autograd.grad(total, of, allow_unused=True, materialize_grads=True)
        return [gradient.transpose(0, 1) for gradient in gradients]


def row_graph_of(weight: Tensor, places: Callable[[Tensor], Tensor]) -> RowGraph | None:
    """Return how a weight, (rows, ...), is made of rows of a leaf; None if it is not.

    places: from the leaf to the places of its rows in their planes, (rows, 2).
    """
    if weight.dim() < 2 or len(weight) < 2 or weight.numel() < 3 * len(weight):
        return None
    reader = _Reader(RowSizes(len(weight), weight.numel()), places)
    with torch.enable_grad():
        reading = reader.read(weight.grad_fn, weight.output_nr)
    if reading is None or reading.kind != ENTRIES or reading.behind != weight.dim() - 1:
        return None
    if reader.leaf is None:
        return None
    return RowGraph(*reader.leaf, reader.gains, reading.value)


class _Reader:
    """Reads nodes of a graph. sizes: of the weight, and of the leaf whose rows it has."""

    def __init__(self, sizes: RowSizes, places: Callable[[Tensor], Tensor]):
        self._sizes, self._places = sizes, places
        self.leaf: tuple[Tensor, Tensor] | None = None
        self.gains: list[tuple[Tensor, Tensor]] = []
        self._readings: dict[tuple[Any, int], Reading | None] = {}

    def read(self, node: Any, place: int) -> Reading | None:
        """Return what is known of an output of a node; None where it is nothing of these."""
        key = node, place
        if key not in self._readings:
            self._readings[key] = self._read(node, place)
        return self._readings[key]

    def _read(self, node: Any, place: int) -> Reading | None:
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            return self._read_leaf(leaf)
        rule = RULES.get(type(node).__name__)
        if rule is None:
            return None
        parents: list[Reading | None] = []
        for parent, place_of_parent in node.next_functions:
            reading = None if parent is None else self.read(parent, place_of_parent)
            if reading is None and parent is not None:
                return None
            parents.append(reading)
        shape = tuple(node._input_metadata[place].shape)
        return rule(Node(self._sizes, node, place, shape), parents)

    def _read_leaf(self, leaf: Tensor) -> Reading | None:
        kind = ENTRIES if leaf.numel() == self._sizes.size else NUMBERS
        behind = self._sizes.count_behind(kind, tuple(leaf.shape))
        if behind is None or not leaf.is_floating_point():
            return None
        if kind == NUMBERS:
            numbers = leaf.detach().flatten().repeat(2, 1).requires_grad_()
            self.gains.append((leaf, numbers))
            return Reading(kind, behind, numbers, True)
        if self.leaf is not None and self.leaf[0] is not leaf:
            return None
        if self.leaf is None:
            self.leaf = leaf, self._places(leaf.detach()).repeat(2, 1, 1).requires_grad_()
        return Reading(kind, behind, self.leaf[1], True)
