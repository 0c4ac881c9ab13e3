"""Sums of squares and of products, in types and forms that rounding errors do not spoil.

Called by the forms of per-sample gradients and by kernels, for norms and inner products.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDINGS = 1000
"""Roundings of a product's size below which a sum of products is formed another way: its relative
error is then about a thousandth."""

_SMALL_ROWS = 32 << 10
"""Bytes of a tensor that is kept to be squared with others. Set by hand: to copy more takes longer
than a call."""

_MOST_ROWS = 1 << 20
"""Bytes of such tensors that are kept at a time: they stay in the cache."""

_PRECISE = (torch.float32, torch.float64)
"""Types whose squares are summed as they are."""

_DIMENSIONS = {2: (1,), 3: (1, 2)}
"""Number of dimensions -> those that are not of the samples."""


def norms(values: Tensor) -> Tensor:
    """(n, ...) -> (n,): norms of all entries of each, accumulated in float32 or better."""
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    dimensions = values.dim()
    if dimensions not in (2, 3):
        values, dimensions = values.reshape(values.shape[0], -1), 2
    # Squares of half precision overflow at 256, and sums of them lose every small one.
    options = {} if values.dtype in _PRECISE else {"dtype": torch.float32}
    roots: Tensor = torch.linalg.vector_norm(values, 2, _DIMENSIONS[dimensions], **options)
    return roots


def squared_norms(values: Tensor) -> Tensor:
    """(n, ...) -> (n,): sums of squares, accumulated in float32 or better."""
    return norms(values).square_()


def frobenius_norms(matrices: Tensor) -> Tensor:
    """(n, ...) -> (n,): the norms of all entries of each."""
    norms: Tensor = torch.linalg.vector_norm(matrices, dim=tuple(range(1, matrices.dim())))
    return norms


class SumOfSquares:
    """Sums of squares of n samples' numbers, (n,), added up from many tensors.

    To square and sum a bias costs more in calls than in arithmetic. So small tensors are kept until
    there are many, and are squared and summed together; and so are norms.
    """

    def __init__(self) -> None:
        self._rows: dict[torch.dtype, list[Tensor]] = {}
        self._room = _MOST_ROWS
        self._norms: list[Tensor] = []
        self._squares: list[Tensor] = []

    def add_rows(self, values: Tensor) -> None:
        """Add the squares of values, (n, ...), to which nobody writes any more."""
        if values.dim() != 2:
            values = values.reshape(values.shape[0], -1)
        # Its whole memory is held, of which it may be a small part.
        size = values.untyped_storage().nbytes()
        if size > _SMALL_ROWS:
            self._norms.append(norms(values))
            return
        self._rows.setdefault(values.dtype, []).append(values)
        self._room -= size
        if self._room < 0:
            self._sum_rows()

    def add_norms(self, norms: Tensor) -> None:
        """Add the squares of norms, (n,)."""
        self._norms.append(norms)

    def add_squares(self, squares: Tensor) -> None:
        """Add sums of squares, (n,)."""
        self._squares.append(squares)

    def total(self) -> Tensor | None:
        """Return the sum, (n,) float64; None if nothing was added."""
        self._sum_rows()
        squares = [torch.stack(self._squares)] if self._squares else []
        if self._norms:
            squares.append(torch.stack(self._norms).square_())
        # In double: small tensors' squares would be lost beside those of large ones.
        sums = [terms.sum(dim=0, dtype=torch.float64) for terms in squares]
        return sum(sums[1:], sums[0]) if sums else None

    def _sum_rows(self) -> None:
        self._norms += [
            norms(torch.cat(rows, dim=1) if len(rows) > 1 else rows[0])
            for rows in self._rows.values()
        ]
        self._rows.clear()
        self._room = _MOST_ROWS


def cancels(squares: Tensor, sizes: Tensor) -> Tensor | None:
    """(n,) bool: sums of products that cancel to so little that rounding errors count.

    squares: the sums. sizes: the products of the norms of both factors, which bound them. Inputs
    far from zero, whose gradients sum to zero over the positions, are of this kind.
    None where no sum does.
    """
    if sizes.dtype not in (torch.float32, torch.float64):
        return None  # halves have too few digits to ask
    least = _ROUNDINGS * torch.finfo(sizes.dtype).eps
    # One number for all samples first: in most batches no sum cancels. NaN is not above zero.
    if float(torch.sub(squares, sizes, alpha=least).amin()) >= 0:
        return None
    mask = squares < least * sizes
    return mask if bool(mask.any()) else None


def as_type_of(other: Tensor, tensor: Tensor) -> Tensor:
    """Return a tensor in the type of another one: itself, where it has that type."""
    return tensor if tensor.dtype == other.dtype else tensor.to(other.dtype)


def upcast(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 if it is in half precision, in which sums lose small terms."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def to_double(tensor: Tensor) -> Tensor:
    """Return floating-point or complex numbers in double precision."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
