"""Sums of squares and of products, in types and forms that rounding errors do not spoil.

Called by the forms of per-sample gradients and by kernels, for norms and inner products.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDINGS = 1000
"""Roundings of a product's size below which a sum of products is formed another way: its relative
error is then about a thousandth."""


def squared_norms(values: Tensor) -> Tensor:
    """(n, ...) -> (n,): sums of squares, accumulated in float32 or better."""
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    # Squares of half precision overflow at 256, and sums of them lose every small one.
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    flat = values if values.dim() == 2 else values.reshape(values.shape[0], -1)
    norms: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=dtype)
    return norms.square()


def frobenius_norms(matrices: Tensor) -> Tensor:
    """(n, ...) -> (n,): the norms of all entries of each."""
    norms: Tensor = torch.linalg.vector_norm(matrices.flatten(1), dim=1)
    return norms


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


def upcast(gram: Tensor) -> Tensor:
    """A Gram matrix in a type whose sums can be trusted."""
    return gram.float() if gram.dtype in (torch.bfloat16, torch.float16) else gram
