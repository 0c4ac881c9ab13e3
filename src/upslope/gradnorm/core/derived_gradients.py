"""Gradients of parameters, a row for each sample, from those of the weights made of them.

A weight may be made of parameters by any operators. Autograd differentiates them, for all samples
in one batched pass. It has no such rule for weight normalisation and softmax, which are gone
through by hand, as are views on the way to them. Called by `weights`, for what `leaf_gradients` has
not taken apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from upslope.gradnorm.core.weight_norm import weight_norm_of

OfParents = Sequence[Tensor | None]
"""The gradients of the inputs of a node of autograd's graph, (m, *shape); None of a constant."""


class DerivedGradients:
    """Gradients on their way from weights back to parameters, all of the same m samples."""

    def __init__(self) -> None:
        self._leaves: dict[int, tuple[Tensor, Tensor]] = {}
        """Id of a leaf of the graph -> the leaf, and its gradients, (m, *shape)."""
        self._edges: dict[GradientEdge, Tensor] = {}
        """Outputs of nodes from which autograd goes on, with their gradients, (m, *shape)."""

    def add(self, weight: Tensor, gradients: Tensor) -> None:
        """Take in the gradients of a weight that was made of others, (m, *weight.shape)."""
        self._pull(weight.grad_fn, weight.output_nr, gradients)

    def _pull(self, node: Any, output: int, g: Tensor) -> None:
        """Go back from an output of a node, as far as the rules here reach."""
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            _add_to(self._leaves, id(leaf), leaf, g)
            return
        norm = weight_norm_of(node)
        if norm is not None:
            for leaf, of_leaf in zip((norm.direction, norm.length), norm.pull(g), strict=True):
                _add_to(self._leaves, id(leaf), leaf, of_leaf)
            return
        rule = _RULES.get(type(node).__name__)
        of_parents = None if rule is None else rule(node, g)
        if of_parents is None:
            edge = GradientEdge(node, output)
            self._edges[edge] = self._edges[edge] + g if edge in self._edges else g
            return
        for (parent, place), of_parent in zip(node.next_functions, of_parents, strict=True):
            if parent is not None and of_parent is not None:
                self._pull(parent, place, of_parent)

    def of_parameters(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return name -> gradients, (m, *shape), of the parameters that any were made of.

        parameters: name -> parameter, those that are asked for.
        """
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


def _shape_of(node: Any, output: int) -> torch.Size:
    """Return the shape of an output of a node."""
    shape: torch.Size = node._input_metadata[output].shape
    return shape


def _reshape(node: Any, g: Tensor) -> OfParents:
    """Return the gradient of what had the same entries in the same order."""
    return (g.reshape(len(g), *_shape_of(*node.next_functions[0])),)


def _permute(node: Any, g: Tensor) -> OfParents:
    dims = [_as_signed(dim) % (g.dim() - 1) for dim in node._saved_dims]
    places = sorted(range(len(dims)), key=dims.__getitem__)
    return (g.permute(0, *(1 + place for place in places)),)


def _transpose(node: Any, g: Tensor) -> OfParents:
    dims = (_as_signed(dim) % (g.dim() - 1) for dim in (node._saved_dim0, node._saved_dim1))
    return (g.transpose(*(1 + dim for dim in dims)),)


def _through_softmax(node: Any, g: Tensor) -> OfParents | None:
    """Return the gradient of what a softmax was taken of; autograd takes it row by row."""
    result, dim = node._saved_result.detach(), 1 + _as_signed(node._saved_dim) % (g.dim() - 1)
    if result.dtype != g.dtype:
        return None
    if type(node).__name__ == "LogSoftmaxBackward0":
        return (torch.addcmul(g, result.exp(), g.sum(dim, keepdim=True), value=-1),)
    terms = g * result
    return (torch.addcmul(terms, result, terms.sum(dim, keepdim=True), value=-1),)


def _as_signed(dim: int) -> int:
    """Return a dimension that autograd's graph may show as an unsigned number."""
    return dim - 2**64 if dim >= 2**63 else dim


def _add_to(
    leaves: dict[int, tuple[Tensor, Tensor]], key: int, leaf: Tensor, gradients: Tensor
) -> None:
    _, so_far = leaves.get(key, (leaf, None))
    leaves[key] = (leaf, gradients if so_far is None else so_far + gradients)


_RULES: Mapping[str, Callable[[Any, Tensor], OfParents | None]] = {
    "AliasBackward0": _reshape,
    "CloneBackward0": _reshape,
    "LogSoftmaxBackward0": _through_softmax,
    "PermuteBackward0": _permute,
    "ReshapeAliasBackward0": _reshape,
    "SoftmaxBackward0": _through_softmax,
    "SqueezeBackward0": _reshape,
    "SqueezeBackward1": _reshape,
    "TBackward0": lambda node, g: (g if g.dim() < 3 else g.mT,),  # noqa: ARG005
    "TransposeBackward0": _transpose,
    "UnsafeViewBackward0": _reshape,
    "UnsqueezeBackward0": _reshape,
    "ViewBackward0": _reshape,
}
"""Name of a node of autograd's graph -> the gradients of its inputs, from that of its output."""
