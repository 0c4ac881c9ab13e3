"""Per-sample gradients of the parameters that a weight is made of, without forming the weight's.

A weight may be made of others by a few operators whose gradients keep the form of its own: a scale
before it (equalised learning rates), a low-rank update merged into a base (LoRA), transposes,
weight normalisation, spectral normalisation (`divided_weights`). They are read from autograd's
graph, and each is gone through backwards with all samples at once:

    W = a U + V        dU = a G,  dV = G
    W = P Q            dP = G Q^T = sum_s g_s (Q x_s)^T,  dQ = P^T G = sum_s (P^T g_s) x_s^T
    W = T[ids]         dT has G_k added to row ids_k: of a table of relative positions, say

Called by `reductions` for weights that are used once. Of any other operator autograd is asked
(`weights`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.divided_weights import gradients_through_division
from upslope.gradnorm.core.per_sample_gradients import (
    Dense,
    OuterProducts,
    PerSampleGradient,
    TransposedGradient,
)
from upslope.gradnorm.core.weight_norm import WEIGHT_NORM_NODE, gradients_through_weight_norm

OfParents = Sequence[PerSampleGradient | None] | None
"""The gradient of each input of a node of autograd's graph, None for one that is constant; None in
place of them all where no rule here covers the node."""

_ROWS_PER_ID = 4
"""Rows of a table per row that is taken from it up to which its gradient is formed: with more, it
is mostly zeros. Set by hand."""


def gradients_of_leaves(
    weight: Tensor, part: PerSampleGradient, scratch: int
) -> list[tuple[Tensor, PerSampleGradient]]:
    """Return the leaves that a weight is made of, with their gradients.

    A leaf that the weight depends on in several ways is there for each of them. The list is empty
    if some operator between is not known here.

    part: the gradients of the weight. scratch: bytes that a chunk of them may take.
    """
    node = weight.grad_fn
    return [] if node is None or weight.is_complex() else _pull(node, part, scratch) or []


def _pull(
    node: Any, part: PerSampleGradient, scratch: int
) -> list[tuple[Tensor, PerSampleGradient]] | None:
    """Return the same for the output of a node of autograd's graph; None for an empty list."""
    leaf = getattr(node, "variable", None)
    if leaf is not None:
        return [(leaf, part)]
    if type(node).__name__ == WEIGHT_NORM_NODE:
        return gradients_through_weight_norm(node, part, scratch)
    of_divided = gradients_through_division(node, part, scratch)
    if of_divided is not None:
        return of_divided
    rule = _RULES.get(type(node).__name__)
    of_parents = None if rule is None else rule(node, part)
    if of_parents is None:
        return None
    leaves: list[tuple[Tensor, PerSampleGradient]] = []
    for (parent, _), part_of_parent in zip(node.next_functions, of_parents, strict=False):
        if parent is None or part_of_parent is None:  # a constant
            continue
        more = _pull(parent, part_of_parent, scratch)
        if more is None:
            return None
        leaves += more
    return leaves


def _sum(node: Any, part: PerSampleGradient) -> OfParents:
    """Return the gradients of u + alpha v, of tensors of one shape."""
    shape = node._input_metadata[0].shape
    parents = [parent for parent in node.next_functions if parent[0] is not None]
    if any(parent._input_metadata[place].shape != shape for parent, place in parents):
        return None
    return part, part if node._saved_alpha == 1 else scale(part, node._saved_alpha)


def _difference(node: Any, part: PerSampleGradient) -> OfParents:
    """Return the gradients of u - alpha v, of tensors of one shape."""
    of_parents = _sum(node, part)
    return None if of_parents is None else (part, scale(part, -node._saved_alpha))


def _multiple(node: Any, part: PerSampleGradient) -> OfParents:
    """Return the gradients of a tensor times a number, in either order."""
    parents = [parent for parent, _ in node.next_functions]
    if None not in parents:
        return None
    factor = node._saved_other if parents[0] is not None else node._saved_self
    if factor is None or factor.dim() > 0:
        return None
    of_tensor = scale(part, factor.item())
    return (of_tensor, None) if parents[0] is not None else (None, of_tensor)


def _quotient(node: Any, part: PerSampleGradient) -> OfParents:
    """Return the gradient of a tensor that was divided by a number."""
    if node.next_functions[1][0] is not None or node._saved_other.dim() > 0:
        return None
    return (scale(part, 1 / node._saved_other.item()),)


def _reshape(node: Any, part: PerSampleGradient) -> OfParents:
    """Return the gradient of a tensor that was brought to another shape, in the same order."""
    parent, place = node.next_functions[0]
    shape = parent._input_metadata[place].shape
    return (rearrange(part, lambda values: values.reshape(len(values), *shape)),)


def _permutation(node: Any, part: PerSampleGradient) -> OfParents:
    """Return the gradient of a tensor whose dimensions were permuted."""
    rank = len(node._saved_dims)
    order = [_with_sign(dim) % rank for dim in node._saved_dims]
    back = [1 + place for place in sorted(range(rank), key=order.__getitem__)]
    return (rearrange(part, lambda values: values.permute(0, *back)),)


def _exchange(node: Any, part: PerSampleGradient) -> OfParents:
    """Return the gradient of a tensor of which two dimensions were exchanged."""
    parent, place = node.next_functions[0]
    rank = len(parent._input_metadata[place].shape)
    dims = [1 + _with_sign(dim) % rank for dim in (node._saved_dim0, node._saved_dim1)]
    return (rearrange(part, lambda values: values.transpose(*dims)),)


def _rows_by_index(node: Any, part: PerSampleGradient) -> OfParents:
    """Return the gradient of a table of which rows were taken: `table[ids]`."""
    ids, *more = node._saved_indices
    if more or ids is None or ids.dtype not in (torch.int32, torch.int64):
        return None
    return _rows_of_table(node, part, ids)


def _rows_of_embedding(node: Any, part: PerSampleGradient) -> OfParents:
    """Return the gradient of a table of which rows were taken by `F.embedding`."""
    if _with_sign(node._saved_padding_idx) >= 0 or node._saved_scale_grad_by_freq:
        return None
    return _rows_of_table(node, part, node._saved_indices)


def _rows_of_table(node: Any, part: PerSampleGradient, ids: Tensor) -> OfParents:
    """Return the gradient of a table (rows, ...), which has that of each id added to its row."""
    parent, place = node.next_functions[0]
    rows, *shape = parent._input_metadata[place].shape
    # All rows of the table are formed, for each sample: of a large one that would be too much.
    if not isinstance(part, Dense) or rows > _ROWS_PER_ID * ids.numel():
        return None
    values = part.values.reshape(len(part), ids.numel(), *shape)
    total = values.new_zeros(len(part), rows, *shape)
    return (Dense(total.index_add_(1, ids.flatten() % rows, values)),)  # negative ids from the end


def _with_sign(number: int) -> int:
    """Return a number that a node of the graph has kept without its sign."""
    return number - 2**64 if number >= 2**63 else number


def _transpose(node: Any, part: PerSampleGradient) -> OfParents:  # noqa: ARG001
    """Return the gradient of a matrix that was transposed."""
    outer = _outer(part)
    if outer is not None:
        return (OuterProducts(outer.g, outer.x),)
    return (rearrange(part, lambda values: values.mT),)


def _product(node: Any, part: PerSampleGradient) -> OfParents:
    """Return the gradients of both factors of P Q."""
    outer = _outer(part)
    if outer is None:
        return None
    (left, _), (right, _) = node.next_functions
    of_left = of_right = None
    if left is not None:
        q = node._saved_mat2.detach()
        if q.dtype != outer.x.dtype:
            return None
        of_left = OuterProducts(outer.x @ q.mT, outer.g)
    if right is not None:
        p = node._saved_self.detach()
        if p.dtype != outer.g.dtype:
            return None
        of_right = OuterProducts(outer.x, outer.g @ p)
    return of_left, of_right


def _outer(part: PerSampleGradient) -> OuterProducts | None:
    """Return gradients as sums of outer products; None where they are none."""
    if isinstance(part, TransposedGradient):
        return OuterProducts(part.part.g, part.part.x)
    return part if isinstance(part, OuterProducts) else None


def scale(part: PerSampleGradient, factor: float) -> PerSampleGradient:
    """Return gradients times a number."""
    outer = _outer(part)
    if outer is not None:
        return OuterProducts(outer.x, outer.g * factor)
    return ScaledGradient(part, factor)


def rearrange(part: PerSampleGradient, back: Callable[[Tensor], Tensor]) -> PerSampleGradient:
    """Return gradients whose entries are put into other places. back: of values (m, *shape)."""
    return Dense(back(part.values)) if isinstance(part, Dense) else RearrangedGradient(part, back)


@dataclass(frozen=True)
class ScaledGradient(PerSampleGradient):
    """Other gradients times a number."""

    part: PerSampleGradient
    factor: float

    def __len__(self) -> int:
        return len(self.part)

    def squared_norms(self, scratch: int) -> Tensor:
        """Return the squared norms; see `PerSampleGradient`."""
        return self.part.squared_norms(scratch) * self.factor**2

    def materialize(self, rows: slice) -> Tensor:
        """Return the gradients themselves; see `PerSampleGradient`."""
        return self.part.materialize(rows) * self.factor

    def cost(self) -> tuple[str, float]:
        """Return the method and its cost; see `PerSampleGradient`."""
        return self.part.cost()


@dataclass(frozen=True)
class RearrangedGradient(PerSampleGradient):
    """The entries of other gradients in other places, each in one of its own.

    back: puts the values of some samples, (m, *shape), into their places.
    """

    part: PerSampleGradient
    back: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.part)

    def squared_norms(self, scratch: int) -> Tensor:
        """Return the squared norms; see `PerSampleGradient`."""
        return self.part.squared_norms(scratch)

    def materialize(self, rows: slice) -> Tensor:
        """Return the gradients themselves; see `PerSampleGradient`."""
        return self.back(self.part.materialize(rows))

    def cost(self) -> tuple[str, float]:
        """Return the method and its cost; see `PerSampleGradient`."""
        return self.part.cost()


_RULES: Mapping[str, Callable[[Any, PerSampleGradient], OfParents]] = {
    "AddBackward0": _sum,
    "SubBackward0": _difference,
    "MulBackward0": _multiple,
    "DivBackward0": _quotient,
    "NegBackward0": lambda node, part: (scale(part, -1.0),),  # noqa: ARG005
    "TBackward0": _transpose,
    "ReshapeAliasBackward0": _reshape,
    "SqueezeBackward0": _reshape,
    "SqueezeBackward1": _reshape,
    "SqueezeBackward2": _reshape,
    "UnsafeViewBackward0": _reshape,
    "UnsqueezeBackward0": _reshape,
    "ViewBackward0": _reshape,
    "CloneBackward0": lambda node, part: (part,),  # noqa: ARG005
    "PermuteBackward0": _permutation,
    "TransposeBackward0": _exchange,
    "IndexBackward0": _rows_by_index,
    "EmbeddingBackward0": _rows_of_embedding,
    "MmBackward0": _product,
}
"""Name of a node of autograd's graph -> the gradients of its inputs, from that of its output."""
