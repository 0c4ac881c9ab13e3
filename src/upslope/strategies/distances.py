"""Distances between feature vectors, in blocks: never an n x n matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 2**22
"""Entries of one block of a distance matrix: 16 MB in float32. What is larger, the system maps
anew for every block, page by page."""
_FEW_PAIRS = 1 / 64  # of all, whose distances one by one take less time than those of a block


def squared_distances(x: Tensor, y: Tensor, squares: Tensor | None = None) -> Tensor:
    """||x_i - y_j||^2 >= 0. x: (n, d), y: (m, d), returns (n, m). squares: ||y_j||^2, if known."""
    squares = y.square().sum(dim=1) if squares is None else squares
    products = torch.addmm(squares, x, y.T, alpha=-2)
    return products.add_(x.square().sum(dim=1, keepdim=True)).clamp_(min=0)


def distance_blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """`squared_distances`, some rows at a time, and which rows. Nothing where y is empty."""
    squares = y.square().sum(dim=1)
    size = max(1, BLOCK // max(1, len(y)))
    for start in range(0, len(x), size) if len(y) else ():
        rows = slice(start, min(start + size, len(x)))
        yield rows, squared_distances(x[rows], y, squares)


def nearest_squared(x: Tensor, y: Tensor) -> Tensor:
    """min_j ||x_i - y_j||^2, infinite where y is empty. x: (n, d), y: (m, d), returns (n,)."""
    nearest = torch.full((len(x),), torch.inf, dtype=x.dtype)
    squares = y.square().sum(dim=1)
    # Wide tiles, because matrix products with few rows run at two thirds of the speed.
    height = max(1, math.isqrt(BLOCK) // 2)
    for columns in slices(len(y), max(1, BLOCK // height)):
        for rows in slices(len(x), height):
            products = torch.addmm(squares[columns], x[rows], y[columns].T, alpha=-2)
            nearest[rows] = torch.minimum(nearest[rows], products.amin(dim=1))
    # Adding ||x_i||^2 and cutting at 0 keep the order, so that once after the minimum is enough.
    return nearest.add_(x.square().sum(dim=1)).clamp_(min=0)


def nearest_rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return min_j ||x_i - y_j||^2 and the first j that has it, (n,) each.

    x: (n, d), y: (m, d), m >= 1, in double precision. Products in single precision tell which rows
    of y may be the nearest; distances to these are computed in double precision.
    """
    nearest = torch.empty(len(x), dtype=x.dtype)
    indices = torch.empty(len(x), dtype=torch.int64)
    squares, narrow = y.square().sum(dim=1), y.float()
    # Relative to squared lengths, twice what single precision can miss in d products.
    slack = (x.shape[1] + 8) * torch.finfo(torch.float32).eps
    narrow_squares = (squares * (1 - slack)).float()
    size = max(1, BLOCK // len(y))
    for rows in slices(len(x), size):
        part, lengths = x[rows], x[rows].square().sum(dim=1)
        products = torch.addmm(narrow_squares, part.float(), narrow.T, alpha=-2)
        least, place = products.min(dim=1)
        bounds = least + 2 * slack * (lengths + squares[place]).float()
        i, j = (products <= bounds[:, None]).nonzero().unbind(dim=1)
        if len(i) > _FEW_PAIRS * products.numel() or not bounds.isfinite().all():
            nearest[rows], indices[rows] = squared_distances(part, y, squares).min(dim=1)
            continue
        of_pairs = torch.cat(
            [(part[i[p]] * y[j[p]]).sum(dim=1) for p in slices(len(i), BLOCK // x.shape[1])]
        )
        of_pairs = (lengths[i] + squares[j] - 2 * of_pairs).clamp_(min=0)
        best = torch.full_like(lengths, torch.inf).scatter_reduce_(0, i, of_pairs, "amin")
        is_best = of_pairs == best[i]
        first = torch.full((len(part),), len(y))
        nearest[rows] = best
        indices[rows] = first.scatter_reduce_(0, i[is_best], j[is_best], "amin")
    return nearest, indices


def symmetric_tiles(x: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield the squared distances within x on and above the diagonal, tile by tile.

    x: (n, d). Yields rows, columns and the squared distances between them; where the slices
    differ, the mirrored tile does not come. Rows ascend, and columns within the rows. The next
    tile takes the memory of the last.
    """
    squares = x.square().sum(dim=1)
    side = max(1, math.isqrt(BLOCK))
    # One buffer: small tensors that callers keep would hold the memory of every tile apart.
    buffer = x.new_empty(min(side, len(x)) ** 2)
    for rows in slices(len(x), side):
        for columns in slices(len(x), side, rows.start):
            # In this order of additions both triangles would be equal to the last bit.
            left, right = squares[rows, None], squares[columns]
            squared_distances = buffer[: len(left) * len(right)].view(len(left), len(right))
            torch.add(left, right, out=squared_distances).addmm_(x[rows], x[columns].T, alpha=-2)
            yield rows, columns, squared_distances.clamp_(min=0)


def slices(length: int, size: int, start: int = 0) -> Iterator[slice]:
    """Yield the slices of `size` positions, the last one shorter, from `start` to `length`."""
    for begin in range(start, length, size):
        yield slice(begin, min(begin + size, length))


def subtract_mean(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """All of them less the mean of the first: distances stay, and lose no digits to an offset."""
    # Double precision is given up after the offset, for which its digits may be needed.
    dtype = torch.promote_types(x.dtype, torch.float32)
    x = x.flatten(start_dim=1).to(dtype)
    mean = x.mean(dim=0) if len(x) else 0
    rest = (other.flatten(start_dim=1).to(dtype) - mean for other in others)
    return tuple(part.float() for part in (x - mean, *rest))


def normalise(x: Tensor) -> Tensor:
    """Rows of unit length; a row of zeros stays. x: (n, ...), returns (n, d)."""
    return torch.nn.functional.normalize(x.flatten(start_dim=1).float(), dim=1)
