"""Distances between feature vectors, in blocks: never an n x n matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 2**22
"""Entries of one block of a distance matrix: 16 MB in float32. What is larger, the system maps
anew for every block, page by page."""


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
    nearest = torch.full((len(x),), torch.inf)
    for rows, squared in distance_blocks(x, y):
        nearest[rows] = squared.amin(dim=1)
    return nearest


def centred(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """All of them less the mean of the first: distances stay, and lose no digits to an offset."""
    x = x.flatten(start_dim=1).float()
    mean = x.mean(dim=0) if len(x) else 0
    return (x - mean, *(other.flatten(start_dim=1).float() - mean for other in others))


def normalised(x: Tensor) -> Tensor:
    """Rows of unit length; a row of zeros stays. x: (n, ...), returns (n, d)."""
    return torch.nn.functional.normalize(x.flatten(start_dim=1).float(), dim=1)


def smallest_distance(x: Tensor) -> float:
    """The smallest distance above zero between two rows; 1 where no two differ. x: (n, d)."""
    smallest = torch.inf
    for _, squared in distance_blocks(x, x):
        # Below this, what is left of a difference of unit vectors is rounding.
        squared[squared < 1e-6] = torch.inf
        smallest = min(smallest, float(squared.min()))
    return smallest**0.5 if smallest < torch.inf else 1.0
