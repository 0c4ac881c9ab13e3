"""Per-sample gradients of the parameters that a weight is made of, without forming the weight's.

A weight may be made of others by a few operators whose gradients keep the form of its own: a scale
before it (equalised learning rates), a low-rank update merged into a base (LoRA), transposes,
weight normalisation, spectral normalisation (`divided_weights`), standardised rows
(`row_weights`), what is made entry by entry (`entrywise_weights`). They are read from autograd's
graph, and each is gone through backwards with all samples at once:

    W = a U + V        dU = a G,  dV = G
    W = P Q            dP = G Q^T = sum_s g_s (Q x_s)^T,  dQ = P^T G = sum_s (P^T g_s) x_s^T
    Y = X W + b        dW = X^T G,  dX = G W^T,  db = G summed over rows: of a projected table
    W = T[ids]         dT has G_k added to row ids_k: of a table of relative positions, say

Of the rows of G those alone are gone through that some sample has reached: a short text has a
fraction of all distances. Called by `pending_uses`. Of any other operator autograd is asked
(`weights`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.gradients.live_rows import live_rows, put_rows
from upslope.gradnorm.core.gradients.per_sample_gradients import (
    Dense,
    OuterProducts,
    PerSampleGradient,
    TransposedGradient,
)
from upslope.gradnorm.core.weights.divided_weights import gradients_through_division
from upslope.gradnorm.core.weights.entrywise_weights import gradients_through_entries
from upslope.gradnorm.core.weights.factored_gradients import with_sign
from upslope.gradnorm.core.weights.row_weights import gradients_through_rows
from upslope.gradnorm.core.weights.weight_norm import (
    WEIGHT_NORM_NODE,
    gradients_through_weight_norm,
)

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

    A leaf that the weight depends on in several ways is there for each of them. In place of leaves
    there may be a factor of a product that was made by an operator which is not known here. Where
    any other operator is not known, the list is empty.

    part: the gradients of the weight. scratch: bytes that a chunk of them may take.
    """
    node = weight.grad_fn
    if node is None or weight.is_complex():
        return []
    leaves = _pull(node, part, scratch)
    if leaves is None:
        leaves = gradients_through_rows(weight, part, scratch)
    return (gradients_through_entries(weight, part) or []) if leaves is None else leaves


def _pull(
    node: Any, part: PerSampleGradient, scratch: int
) -> list[tuple[Tensor, PerSampleGradient]] | None:
    """Return what `gradients_of_leaves` does, for the output of a node of autograd's graph.

    None where an operator is not known. part: the gradients of that output.
    """
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
    parents = zip(node.next_functions, of_parents, strict=False)
    for place, ((parent, _), part_of_parent) in enumerate(parents):
        if parent is None or part_of_parent is None:  # a constant
            continue
        more = _pull(parent, part_of_parent, scratch)
        if more is None:
            factor = _factor(node, place)
            if factor is None:
                return None
            more = [(factor, part_of_parent)]
        leaves += more
    return leaves


def _factor(node: Any, place: int) -> Tensor | None:
    """Return an input of a product, with its graph; None where the product has not kept it."""
    name = _FACTORS.get(type(node).__name__, {}).get(place)
    factor: Tensor | None = None if name is None else getattr(node, f"_saved_{name}")
    return factor


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
    order = [with_sign(dim) % rank for dim in node._saved_dims]
    back = [1 + place for place in sorted(range(rank), key=order.__getitem__)]
    return (rearrange(part, lambda values: values.permute(0, *back)),)


def _exchange(node: Any, part: PerSampleGradient) -> OfParents:
    """Return the gradient of a tensor of which two dimensions were exchanged."""
    parent, place = node.next_functions[0]
    rank = len(parent._input_metadata[place].shape)
    dims = [1 + with_sign(dim) % rank for dim in (node._saved_dim0, node._saved_dim1)]
    return (rearrange(part, lambda values: values.transpose(*dims)),)


def _rows_by_index(node: Any, part: PerSampleGradient) -> OfParents:
    """Return the gradient of a table of which rows were taken: `table[ids]`."""
    ids, *more = node._saved_indices
    if more or ids is None or ids.dtype not in (torch.int32, torch.int64):
        return None
    return _rows_of_table(node, part, ids)


def _rows_of_embedding(node: Any, part: PerSampleGradient) -> OfParents:
    """Return the gradient of a table of which rows were taken by `F.embedding`."""
    if with_sign(node._saved_padding_idx) >= 0 or node._saved_scale_grad_by_freq:
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


def _transpose(node: Any, part: PerSampleGradient) -> OfParents:  # noqa: ARG001
    """Return the gradient of a matrix that was transposed."""
    outer = _outer(part)
    if outer is not None:
        return (OuterProducts(outer.g, outer.x),)
    # A vector stays as it is.
    return (rearrange(part, lambda values: values if values.dim() < 3 else values.mT),)


def _product(node: Any, part: PerSampleGradient) -> OfParents:
    """Return the gradients of both factors of P Q."""
    return _factors(part, *_operands(node, "self", "mat2"))


def _affine(node: Any, part: PerSampleGradient) -> OfParents:
    """Return the gradients of b and of both factors, of b + P Q."""
    if node._saved_alpha != 1 or node._saved_beta != 1 or not isinstance(part, Dense):
        return None
    of_factors = _factors(part, *_operands(node, "mat1", "mat2"))
    if of_factors is None:
        return None
    (bias, place), of_bias = node.next_functions[0], None
    if bias is not None:
        shape, values = bias._input_metadata[place].shape, part.values
        as_matrix = (len(values), *(1,) * (2 - len(shape)), *shape)
        of_bias = Dense(values.sum_to_size(as_matrix).reshape(len(values), *shape))
    return (of_bias, *of_factors)


def _operands(node: Any, *names: str) -> Iterator[Tensor | None]:
    """Return what an operator has kept of its factors; None of one that it needed for none."""
    for name in names:
        tensor = getattr(node, f"_saved_{name}")
        yield None if tensor is None else tensor.detach()


def _factors(part: PerSampleGradient, p: Tensor | None, q: Tensor | None) -> OfParents:
    """Return the gradients of both factors of P Q.

    p: (r, i), None where Q is constant. q: (i, o), None where P is.
    """
    outer = _outer(part)
    values = part.values if isinstance(part, Dense) else None
    sides = [outer.x, outer.g] if outer is not None else [t for t in (values,) if t is not None]
    if not sides or any(t is not None and t.dtype != sides[0].dtype for t in (p, q, *sides)):
        return None
    if outer is not None:
        of_p = None if q is None else OuterProducts(outer.x @ q.mT, outer.g)
        return of_p, None if p is None else OuterProducts(outer.x, outer.g @ p)
    return _factors_by_rows(sides[0], p, q)


def _factors_by_rows(values: Tensor, p: Tensor | None, q: Tensor | None) -> OfParents:
    """Return what `_factors` does, from the gradients of P Q themselves. values: (n, r, o)."""
    rows = values.shape[1]
    live = live_rows(values)
    if live is not None and len(live):
        values, p = values[:, live], None if p is None else p[live]
    of_p = None if q is None else values @ q.mT
    if of_p is not None and live is not None and len(live):
        of_p = put_rows(of_p, live, rows)
    # P has the same rows for each sample: a sum of as many outer products.
    of_q = None if p is None else OuterProducts(values, p.expand(len(values), -1, -1))
    return None if of_p is None else Dense(of_p), of_q


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
    "AddmmBackward0": _affine,
}
"""Name of a node of autograd's graph -> the gradients of its inputs, from that of its output."""

_FACTORS: Mapping[str, Mapping[int, str]] = {
    "MmBackward0": {0: "self", 1: "mat2"},
    "AddmmBackward0": {1: "mat1", 2: "mat2"},
}
"""Name of a node of a product -> the place of each factor among its inputs, and its name there."""
