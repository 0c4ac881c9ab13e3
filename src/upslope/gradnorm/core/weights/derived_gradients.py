"""Gradients of parameters, a row for each sample, from those of the weights made of them.

A weight may be made of parameters by any operators. Autograd differentiates them, for all samples
in one batched pass. It has no such rule for weight normalisation and softmax, which are gone
through by hand, as are operators whose derivatives all samples share (`factored_gradients`). Called
by `weights`, for what `leaf_gradients` has not taken apart.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from upslope.gradnorm.core.weights.factored_gradients import (
    FactoredGradient,
    pull_back,
    shape_of,
    with_sign,
)
from upslope.gradnorm.core.weights.weight_norm import weight_norm_of


class DerivedGradients:
    """Gradients on their way from weights back to parameters, all of the same m samples."""

    def __init__(self) -> None:
        self._leaves: dict[int, tuple[Tensor, Tensor]] = {}
        """Id of a leaf of the graph -> the leaf, and its gradients, (m, *shape)."""
        self._edges: dict[GradientEdge, Tensor] = {}
        """Outputs of nodes from which autograd goes on, with their gradients, (m, *shape)."""
        self._waiting: dict[tuple[Any, int], FactoredGradient] = {}
        """Outputs of nodes that are still to be gone through, with their gradients."""
        self._order: list[tuple[int, int, Any, int]] = []
        """A heap of these, those that were made last in front, as autograd goes."""
        self._numbers = itertools.count()

    def add(self, weight: Tensor, gradients: Tensor) -> None:
        """Take in the gradients of a weight that was made of others, (m, *weight.shape)."""
        self._arrive(weight.grad_fn, weight.output_nr, FactoredGradient(gradients))

    def _arrive(self, node: Any, output: int, gradients: FactoredGradient) -> None:
        """Take in what reaches an output of a node."""
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            _add_to(self._leaves, id(leaf), leaf, gradients.dense(leaf.shape))
            return
        so_far = self._waiting.get((node, output))
        if so_far is None:
            entry = -node._sequence_nr(), next(self._numbers), node, output
            heapq.heappush(self._order, entry)
        else:
            shape = shape_of(node, output)
            gradients = FactoredGradient(so_far.dense(shape) + gradients.dense(shape))
        self._waiting[node, output] = gradients

    def _pull(self, node: Any, output: int, gradients: FactoredGradient) -> None:
        """Go back from an output of a node to its inputs."""
        norm = weight_norm_of(node)
        if norm is not None:
            pairs = zip(
                (norm.direction, norm.length), norm.pull(gradients.dense(norm.u.shape)), strict=True
            )
            for leaf, of_leaf in pairs:
                _add_to(self._leaves, id(leaf), leaf, of_leaf)
            return
        of_parents = pull_back(node, output, gradients)
        if of_parents is None:
            g = gradients.dense(shape_of(node, output))
            rule = _RULES.get(type(node).__name__)
            of_parent = None if rule is None else rule(node, g)
            if of_parent is None:
                edge = GradientEdge(node, output)
                self._edges[edge] = self._edges[edge] + g if edge in self._edges else g
                return
            of_parents = [FactoredGradient(of_parent)]
        for (parent, place), of_input in zip(node.next_functions, of_parents, strict=True):
            if parent is not None and of_input is not None:
                self._arrive(parent, place, of_input)

    def of_parameters(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return name -> gradients, (m, *shape), of the parameters that any were made of.

        parameters: name -> parameter, those that are asked for.
        """
        while self._order:
            _, _, node, output = heapq.heappop(self._order)
            self._pull(node, output, self._waiting.pop((node, output)))
        edges, gradients = list(self._edges), list(self._edges.values())
        every = list(parameters.values())
        rows: Sequence[Tensor | None] = [None] * len(every)
        if edges and len(gradients[0]) == 1:  # without the calls of a batched pass
            rows = [
                None if row is None else row[None]
                for row in _differentiate(edges, every, [g[0] for g in gradients])
            ]
        elif edges:
            try:
                rows = _differentiate(edges, every, gradients, is_grads_batched=True)
            except RuntimeError:  # an operator that cannot be batched: one sample at a time
                single = [
                    _differentiate(edges, every, [g[i] for g in gradients])
                    for i in range(len(gradients[0]))
                ]
                rows = [
                    None if column[0] is None else torch.stack(column)
                    for column in zip(*single, strict=True)
                ]
        totals: dict[str, Tensor] = {}
        for (name, parameter), row in zip(parameters.items(), rows, strict=True):
            _, of_leaf = self._leaves.get(id(parameter), (None, None))
            if of_leaf is not None:
                totals[name] = of_leaf if row is None else row + of_leaf
            elif row is not None:
                totals[name] = row
        return totals


def _differentiate(
    edges: Sequence[GradientEdge],
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    is_grads_batched: bool = False,
) -> Sequence[Tensor | None]:
    return torch.autograd.grad(
        edges,
        parameters,
        gradients,
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=is_grads_batched,
    )


def _through_softmax(node: Any, g: Tensor) -> Tensor | None:
    """Return the gradient of what a softmax was taken of; autograd takes it row by row."""
    result, dim = node._saved_result.detach(), 1 + with_sign(node._saved_dim) % (g.dim() - 1)
    if result.dtype != g.dtype:
        return None
    if type(node).__name__ == "LogSoftmaxBackward0":
        return torch.addcmul(g, result.exp(), g.sum(dim, keepdim=True), value=-1)
    terms = g * result
    return torch.addcmul(terms, result, terms.sum(dim, keepdim=True), value=-1)


def _add_to(
    leaves: dict[int, tuple[Tensor, Tensor]], key: int, leaf: Tensor, gradients: Tensor
) -> None:
    _, so_far = leaves.get(key, (leaf, None))
    leaves[key] = (leaf, gradients if so_far is None else so_far + gradients)


_RULES: Mapping[str, Callable[[Any, Tensor], Tensor | None]] = {
    "LogSoftmaxBackward0": _through_softmax,
    "SoftmaxBackward0": _through_softmax,
}
"""Name of a node of autograd's graph -> the gradient of its input, from that of its output."""
