"""The Fisher information of the weights of a last layer, over many samples (see `bait`).

With the classes i < j of a sample of posterior p, S = diag(p) - p p^T is a sum over pairs,

    S = sum_(i < j) p_i p_j (e_i - e_j)(e_i - e_j)^T,

so that the information over samples is made of one weighted Gram matrix sum_x p_i p_j h h^T a pair.
Most weights are tiny beside the largest. Those that together weigh so little that their rounding in
single precision may be no more than that of all in double precision are summed in single precision.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROWS = 1024
"""Samples at a time, which stay in a processor's cache."""
NARROW = 2.0**-41
"""Share of a Gram matrix, times the number of samples, that is summed in single precision. A sum of
n numbers may be wrong by n 2^-53 of their sizes; one in single precision, of `2 ROWS` samples at a
time, by 2^-13: half as much where it has n 2^-41 of the whole."""


def information(p: Tensor, h: Tensor) -> Tensor:
    """Return sum_x B^T (diag(p) - p p^T) B (x) h h^T, the square matrix of (C - 1) d rows.

    p: (n, C), in double precision; h: (n, d), likewise.
    """
    classes, d = p.shape[1], h.shape[1]
    total = h.new_zeros(classes, d, classes, d)
    squares, narrow = h.square().sum(dim=1), h.float()
    for i in range(classes):
        for j in range(i):
            gram = _weighted_gram(p[:, i] * p[:, j], h, narrow, squares)
            total[i, :, j] = total[j, :, i] = -gram
            total[i, :, i] += gram
            total[j, :, j] += gram
    b = basis(classes)
    c = b.shape[1]
    half = (b.T @ total.view(classes, -1)).view(c, d, classes, d)
    whole = torch.einsum("cdje,jk->cdke", half, b)
    return whole.reshape(c * d, c * d)


def _weighted_gram(weights: Tensor, h: Tensor, narrow: Tensor, squares: Tensor) -> Tensor:
    """sum_x w h h^T: (d, d). narrow: h in single precision. squares: (n,) of the lengths of h."""
    from scipy.linalg import blas  # takes a while to import, and most commands need it not

    sizes = weights * squares
    order = sizes.argsort()
    sums = sizes[order].cumsum(dim=0)
    few = int(torch.searchsorted(sums, len(sums) * NARROW * sums[-1])) if len(sums) else 0
    none = int(torch.searchsorted(sums, 2.0**-53 * sums[-1])) if len(sums) else 0
    gram = torch.zeros(h.shape[1], h.shape[1], dtype=h.dtype)
    roots = weights.clamp(min=0).sqrt()
    # One buffer each: memory that is asked for anew comes page by page.
    buffer, narrow_buffer = h.new_empty(ROWS, h.shape[1]), narrow.new_empty(2 * ROWS, h.shape[1])
    narrow_gram = narrow.new_zeros(gram.shape)
    # Only an upper triangle is written, of what is column by column the lower of `gram`.
    for rows in torch.split(order[few:], ROWS):
        part = _scale_rows(h, rows, roots, buffer)
        blas.dsyrk(1.0, part, 1.0, gram.T.numpy(), overwrite_c=1)
    for rows in torch.split(order[none:few], 2 * ROWS):
        part = _scale_rows(narrow, rows, roots, narrow_buffer)
        blas.ssyrk(1.0, part, c=narrow_gram.T.numpy(), overwrite_c=1)
        gram += narrow_gram
    gram = gram.tril()
    return gram + gram.tril(-1).T


def _scale_rows(h: Tensor, rows: Tensor, roots: Tensor, buffer: Tensor) -> NDArray[np.floating]:
    """Return rows of h times their roots as columns, (d, k), in the memory of the buffer."""
    part = torch.index_select(h, 0, rows, out=buffer[: len(rows)])
    columns: NDArray[np.floating] = part.mul_(roots[rows, None].to(h.dtype)).T.numpy()
    return columns


def roots(p: Tensor) -> Tensor:
    """Square A with A A^T = B^T (diag(p) - p p^T) B. p: (n, C), returns (n, C - 1, C - 1).

    diag(p) - p p^T = diag(s) (1 - s s^T) diag(s) with s = sqrt(p), of length 1. A Householder
    reflection takes s to the last axis, so that its other columns Z have Z Z^T = 1 - s s^T.
    """
    if p.shape[1] == 1:
        return torch.zeros(len(p), 1, 1, dtype=p.dtype)
    s = p.sqrt()
    v = s.clone()
    v[:, -1] += 1
    z = torch.eye(p.shape[1], dtype=p.dtype)[:, :-1] - v[:, :, None] * (s / v[:, -1:])[:, None, :-1]
    return basis(p.shape[1]).T @ (s[:, :, None] * z)


def basis(classes: int) -> Tensor:
    """B: orthonormal columns that sum to 0, (C, C - 1); of one class, which has none, (1, 1)."""
    if classes == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    centring = torch.eye(classes, dtype=torch.float64) - 1 / classes
    columns: Tensor = torch.linalg.qr(centring[:, :-1]).Q
    return columns
