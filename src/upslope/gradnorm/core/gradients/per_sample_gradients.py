"""Lazy forms of per-sample gradients: their norms are computed without forming them.

The gradient of one sample's loss with respect to one weight is a `PerSampleGradient`. Most weights
meet their input in a sum over positions s of products, G = sum_s g_s x_s^T (`OuterProducts`);
`outer_norms` has the ways to its norm.

Gradients stay in the order of the samples: row k of everything is sample k. Embeddings have a form
of their own (`lookup_gradients`), and so have weights that are made of others (`leaf_gradients`,
`weight_norm`) and convolutions (`kernels/conv/methods`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from upslope.gradnorm.core.chunks import CACHE, SCRATCH, chunks, join
from upslope.gradnorm.core.gradients import outer_norms
from upslope.gradnorm.core.gradients.outer_norms import WIDE, gather
from upslope.gradnorm.core.gradients.sums_of_squares import (
    SumOfSquares,
    as_type_of,
    squared_norms,
    to_double,
    upcast,
)
from upslope.gradnorm.core.matrix_products import batched_products

LARGE = 8 << 20
"""Bytes of operands from which the gradients may take their place while they wait for others."""


class OuterPieces(NamedTuple):
    """Sums of outer products g x^T of some samples, over t positions in any number of dimensions.

    x: of each entry of a kernel, (m, *positions, i); of a matrix, one. g: (m, t, o), or whole
    numbers, (m, t): each product is the one row of the matrix that such a number says.
    """

    x: Sequence[Tensor]
    g: Tensor


class RowsOfProducts(Protocol):
    """Gradients that are sums of products of a number for each row, with something for all rows."""

    @property
    def positions(self) -> int:
        """How many products a sample has."""
        ...

    def products_of_rows(self, v: Tensor) -> Tensor:
        """(n, rows): <G_nr, V_r> of each row. v: (rows, ...), or (1, ...) of a row for all."""
        ...

    def times_rows(self, factors: Tensor) -> PerSampleGradient:
        """Return the gradients with each row times a number. factors: (rows,)."""
        ...


class PerSampleGradient(ABC):
    """The gradients of n samples' losses with respect to one weight, in some form."""

    @abstractmethod
    def __len__(self) -> int:
        """Return n, the number of samples."""

    @abstractmethod
    def squared_norms(self, scratch: int) -> Tensor:
        """(n,): squared Frobenius norms, in chunks of at most `scratch` bytes where possible."""

    def add_squares(self, total: SumOfSquares, scratch: int) -> None:
        """Add the squared norms to a sum of such; `scratch` as of `squared_norms`."""
        total.add_squares(self.squared_norms(scratch))

    @abstractmethod
    def materialize(self, rows: slice) -> Tensor:
        """(len(rows), *weight.shape): the gradients themselves, for some of the samples."""

    def add(self, others: Sequence[PerSampleGradient]) -> PerSampleGradient | None:  # noqa: ARG002
        """Return the sum with other gradients of the same weight; None without a common form."""
        return None

    def inner_products(self, v: Tensor) -> Tensor | None:  # noqa: ARG002
        """(n,): <G_n, V> with a direction of the weight's shape; None if G must be formed first."""
        return None

    def rank_one_products(self, left: Tensor, right: Tensor) -> Tensor | None:  # noqa: ARG002
        """(n,): <G_n, V> with V = left (x) right; None if G must be formed first.

        left: (rows,). right: (numel / rows,).
        """
        return None

    def by_rows(self) -> RowsOfProducts | None:
        """Return what tells of each row of the weight by itself, where no gradient is formed."""
        return None

    def outer_products(self, scratch: int, most: float) -> Iterator[OuterPieces] | None:  # noqa: ARG002
        """Yield the gradients as sums of outer products, a few samples at a time.

        None where they are none, or where a sample has more than `most` of them. scratch: bytes
        that a piece may take.
        """
        return None

    def dense_pieces(self, scratch: int) -> Iterator[Tensor] | None:  # noqa: ARG002
        """Yield the gradients themselves (m, *shape), a few samples at a time, in order.

        None where `materialize` is as good as any other way. scratch: bytes that a piece may take.
        """
        return None

    def pieces(self, bytes_each: int, scratch: int) -> Iterator[Tensor]:
        """Yield the gradients themselves (m, *shape), a few samples at a time, in order.

        By `dense_pieces`, or else formed. bytes_each: what is made of a sample's gradient takes as
        well. scratch: bytes that a piece may take.
        """
        pieces = self.dense_pieces(scratch)
        if pieces is not None:
            return pieces
        slices = chunks(len(self), bytes_each, scratch)
        return (self.materialize(samples) for samples in slices)

    def operand_bytes(self) -> int:
        """Return the size of what the gradients are formed from; 0 where that is little."""
        return 0

    def condense(self, bytes_each: int, scratch: int) -> PerSampleGradient:
        """Return the gradients formed, where their operands are large, and larger than they.

        For a use that waits for others of its weight. bytes_each: of the gradient of one sample.
        """
        size = self.operand_bytes()
        if size < LARGE or size < 2 * len(self) * bytes_each:
            return self
        pieces = map(upcast, self.pieces(bytes_each, scratch))  # half precision sums in float32
        return Dense(join(pieces, len(self)))

    def in_double(self) -> PerSampleGradient:
        """Return the gradients in float64, where squares of their operands are taken.

        Float32 may hold neither these, nor digits of them, and yet the gradients.
        """
        return self

    def cost(self) -> tuple[str, float]:
        """Return the method of the norm, "" where there is one alone, and what a sample costs.

        The cost is in multiply-adds of the layer and the norm, for `explain`.
        """
        return "", 0.0


@dataclass(frozen=True)
class Dense(PerSampleGradient):
    """Gradients small enough to be there: biases, scales, bare parameters. values: (n, *shape)."""

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def squared_norms(self, scratch: int) -> Tensor:  # noqa: ARG002
        """Return the squared norms; see `PerSampleGradient`."""
        return squared_norms(self.values)

    def add_squares(self, total: SumOfSquares, scratch: int) -> None:  # noqa: ARG002
        """Add the squared norms to a sum; see `PerSampleGradient`."""
        total.add_rows(self.values)

    def materialize(self, rows: slice) -> Tensor:
        """Return the gradients themselves; see `PerSampleGradient`."""
        return self.values[rows]

    def add(self, others: Sequence[PerSampleGradient]) -> PerSampleGradient | None:
        """Return the sum with other gradients; see `PerSampleGradient`."""
        values = [self.values, *(other.values for other in others if isinstance(other, Dense))]
        if len(values) <= len(others):
            return None
        size = self.values.numel() * self.values.element_size()
        # The steps of a recurrence are many, and small enough to be copied to one tensor.
        if len(values) > 2 and len(values) * size <= CACHE // 8:
            return Dense(torch.stack(values).sum(dim=0))
        return Dense(sum(values[1:], values[0]))


@dataclass(frozen=True)
class OfOneSample(PerSampleGradient):
    """The gradient of one sample of n, whose own this use of a weight is; the others have none.

    value: of the weight's shape.
    """

    n: int
    sample: int
    value: Tensor

    def __len__(self) -> int:
        return self.n

    def squared_norms(self, scratch: int) -> Tensor:  # noqa: ARG002
        """Return the squared norms; see `PerSampleGradient`."""
        square = squared_norms(self.value[None])
        return square.new_zeros(self.n).index_copy_(0, self._place, square)

    def materialize(self, rows: slice) -> Tensor:
        """Return the gradients themselves; see `PerSampleGradient`."""
        dense = self.value.new_zeros(self.n, *self.value.shape)
        dense[self.sample] = self.value
        return dense[rows]

    def add(self, others: Sequence[PerSampleGradient]) -> PerSampleGradient | None:
        """Return the sum with other gradients; see `PerSampleGradient`."""
        same = [other for other in (self, *others) if isinstance(other, OfOneSample)]
        if len(same) <= len(others):
            return None
        total = self.value.new_zeros(self.n, *self.value.shape)
        for part in same:
            total[part.sample] += part.value
        return Dense(total)

    @property
    def _place(self) -> Tensor:
        return torch.tensor([self.sample], device=self.value.device)


@dataclass(frozen=True)
class OuterProducts(PerSampleGradient):
    """G_n = sum_s g_ns x_ns^T, of shape (o, i). x: (n, t, i), g: (n, t, o).

    gg: g's Gram matrices, (n, t, t), where they are known already.
    """

    x: Tensor
    g: Tensor
    gg: Tensor | None = None

    def __len__(self) -> int:
        return self.g.shape[0]  # of tensors `len` takes several times as long

    def squared_norms(self, scratch: int) -> Tensor:
        """See `PerSampleGradient`. By the cheapest method."""
        roots = self._norms_at_once(scratch)
        return self._squared_norms_in_pieces(scratch) if roots is None else roots.square_()

    def add_squares(self, total: SumOfSquares, scratch: int) -> None:
        """Add the squared norms to a sum; see `PerSampleGradient`."""
        roots = self._norms_at_once(scratch)
        if roots is None:
            total.add_squares(self._squared_norms_in_pieces(scratch))
        else:
            total.add_norms(roots)

    def _norms_at_once(self, scratch: int) -> Tensor | None:
        """(n,): the norms, where few calls have them for all samples; None elsewhere."""
        method = self.method(scratch)
        if method == "direct, at once":
            return outer_norms.direct_at_once(self.x, self.g)
        return outer_norms.of_one_position(self.x, self.g) if method == "product" else None

    def _squared_norms_in_pieces(self, scratch: int) -> Tensor:
        """(n,): the squared norms, a few samples or a block of rows at a time."""
        return self.ghost(scratch) if self.method(scratch) == "ghost" else self.direct(scratch)

    def method(self, scratch: int) -> str:
        """Return the cheapest way to the norms (`outer_norms`)."""
        x, o, threads = self.x, self.g.shape[2], torch.get_num_threads()
        grams = x.shape[2] + (o if self.gg is None else 0)
        return outer_norms.method_of(x.shape, o, grams, x.element_size(), scratch, threads)

    def ghost(self, scratch: int) -> Tensor:
        """(n,): squared norms from both Gram matrices."""
        return outer_norms.ghost(self.x, self.g, self.gg, scratch)

    def direct(self, scratch: int) -> Tensor:
        """(n,): squared norms of the products themselves."""
        return outer_norms.direct(self.x, self.g, scratch)

    def gradients(self, scratch: int) -> Iterator[Tensor]:
        """(m, o, i): the products themselves, a few samples at a time, in either memory order."""
        # The longer side along the rows, as in `direct`.
        left, right = sorted((self.g, self.x), key=lambda side: side.shape[2])
        size = right.element_size() * left.shape[2] * right.shape[2]
        times = batched_products if left.shape[2] >= WIDE else torch.bmm
        for c in chunks(len(self), size, scratch):
            product = times(gather(left[c]).mT, gather(right[c]))
            yield product if left is self.g else product.mT

    def materialize(self, rows: slice) -> Tensor:
        """Return the gradients themselves; see `PerSampleGradient`."""
        return self.g[rows].mT @ self.x[rows]

    def operand_bytes(self) -> int:
        """Return the size of both sides; see `PerSampleGradient`."""
        return self.x.nbytes + self.g.nbytes

    def add(self, others: Sequence[PerSampleGradient]) -> PerSampleGradient | None:
        """See `PerSampleGradient`. More positions: a sum of sums of outer products is one."""
        same = [self, *(other for other in others if isinstance(other, OuterProducts))]
        if len(same) <= len(others):
            return None
        return OuterProducts(
            torch.cat([p.x for p in same], dim=1), torch.cat([p.g for p in same], dim=1)
        )

    def outer_products(self, scratch: int, most: float) -> Iterator[OuterPieces] | None:  # noqa: ARG002
        """Yield the products themselves; see `PerSampleGradient`."""
        return iter([OuterPieces([self.x], self.g)]) if self.x.shape[1] <= most else None

    def in_double(self) -> OuterProducts:
        """Return the gradients in float64; see `PerSampleGradient`."""
        return OuterProducts(to_double(self.x), to_double(self.g))

    def inner_products(self, v: Tensor) -> Tensor | None:
        """Return <G_n, V> = sum_s g_ns^T V x_ns; see `PerSampleGradient`."""
        if v.dim() != 2:
            return None
        return ((as_type_of(v, self.x) @ v.mT) * self.g).flatten(1).sum(dim=1)

    def by_rows(self) -> OuterProducts | None:
        """See `PerSampleGradient`. Row r of G_n is sum_s g_nsr x_ns^T."""
        return None if self.g.is_complex() else self

    @property
    def positions(self) -> int:
        """How many products a sample has; see `RowsOfProducts`."""
        return self.g.shape[1]

    def products_of_rows(self, v: Tensor) -> Tensor:
        """Return <G_nr, V_r> = sum_s g_nsr V_r x_ns; see `RowsOfProducts`."""
        return ((as_type_of(v, self.x) @ v.mT) * self.g).sum(dim=1)

    def times_rows(self, factors: Tensor) -> OuterProducts:
        """Return the gradients with each row times a number; see `RowsOfProducts`."""
        return OuterProducts(self.x, self.g * factors)

    def rank_one_products(self, left: Tensor, right: Tensor) -> Tensor | None:
        """Return sum_s (g_ns . left)(x_ns . right); see `PerSampleGradient`."""
        products = (as_type_of(left, self.g) @ left) * (as_type_of(right, self.x) @ right)
        return products.sum(dim=1)

    def cost(self) -> tuple[str, float]:
        """Return the method of the norm, and what it costs; see `PerSampleGradient`."""
        (t, i), o = self.x.shape[1:], self.g.shape[2]
        direct, ghost = float(t * i * o), float(t * t * (i + o))
        method = self.method(SCRATCH).partition(",")[0]
        norm = {"product": direct + i + o, "direct": 2 * direct, "ghost": direct + ghost}
        return method, direct + norm[method]


@dataclass(frozen=True)
class TransposedGradient(PerSampleGradient):
    """The transposes of other gradients: those of W in x @ W, where others are of x @ W.T."""

    part: OuterProducts

    def __len__(self) -> int:
        return len(self.part)

    def squared_norms(self, scratch: int) -> Tensor:
        """Return the squared norms; see `PerSampleGradient`."""
        return self.part.squared_norms(scratch)

    def materialize(self, rows: slice) -> Tensor:
        """Return the gradients themselves; see `PerSampleGradient`."""
        return self.part.materialize(rows).mT

    def add(self, others: Sequence[PerSampleGradient]) -> PerSampleGradient | None:
        """Return the sum with other gradients; see `PerSampleGradient`."""
        same = [other.part for other in others if isinstance(other, TransposedGradient)]
        total = self.part.add(same) if len(same) == len(others) else None
        return TransposedGradient(total) if isinstance(total, OuterProducts) else None

    def inner_products(self, v: Tensor) -> Tensor | None:
        """Return the inner products with a direction; see `PerSampleGradient`."""
        return self.part.inner_products(v.mT)

    def rank_one_products(self, left: Tensor, right: Tensor) -> Tensor | None:
        """Return the inner products with left (x) right; see `PerSampleGradient`."""
        return self.part.rank_one_products(right, left)

    def cost(self) -> tuple[str, float]:
        """Return the method and its cost; see `PerSampleGradient`."""
        return self.part.cost()
