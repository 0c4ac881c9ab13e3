"""Products with symmetric matrices in double precision, half of which is computed or read."""

from __future__ import annotations

import torch
from torch import Tensor

SIDE = 128
"""Rows of a block of a symmetric form, of which only blocks up to the diagonal are computed."""
HALF = 0.7
"""Rows, for each row of a block, from which halving the block, which is read more often, pays."""
ROWS = 2048
"""Candidates at a time, whose products stay in a processor's cache."""


def forms(block: Tensor, h: Tensor) -> Tensor:
    """Return h^T block h of every row: (n,). block: (d, d); h: (n, d)."""
    result = torch.zeros(len(h), dtype=block.dtype)
    if len(h) < HALF * len(block):
        return (torch.from_numpy(h.numpy() @ block.numpy()) * h).sum(dim=1)
    symmetric = block + block.T
    for side in range(0, len(block), SIDE):
        # What lies before the diagonal block counts twice, so what lies after it is left out.
        end = min(side + SIDE, len(block))
        half = symmetric[:end, side:end].clone()
        half[side:] /= 2
        for part, of_part in zip(torch.split(result, ROWS), torch.split(h, ROWS), strict=True):
            products = of_part[:, :end].numpy() @ half.numpy()
            part += (torch.from_numpy(products) * of_part[:, side:end]).sum(dim=1)
    return result


def inverses(
    labelled: Tensor, ridge: float, pool: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return M^-1 and M^-1 F M^-1, and numbers of covariance M, for M = labelled + ridge, F = pool.

    noise: (n,) independent normal numbers, which are made those of covariance M.
    """
    from scipy.linalg import blas, lapack  # takes a while to import, and most commands need it not

    if not bool(labelled.any()):
        inverse = torch.eye(len(labelled), dtype=labelled.dtype) / ridge
        return inverse, pool / ridge**2, noise * ridge**0.5
    matrix = labelled + ridge * torch.eye(len(labelled), dtype=labelled.dtype)
    # Column by column is row by row of a symmetric matrix, upper its lower triangle.
    factor, info = lapack.dpotrf(matrix.T.numpy(), overwrite_a=1)
    if info:
        reason = f"no Cholesky factor of the information: dpotrf says {info}"
        raise torch.linalg.LinAlgError(reason)  # type: ignore[attr-defined]
    draw = torch.from_numpy(blas.dtrmv(factor, noise.numpy(), trans=1))
    inverse = torch.from_numpy(lapack.dpotri(factor, overwrite_c=1)[0]).T.contiguous()
    lower = inverse.tril_()
    lower += lower.tril(-1).T
    spread = symmetric_product(torch.from_numpy(lower.numpy() @ pool.numpy()), lower)
    return lower, spread, draw


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return a symmetric matrix times a vector, (n,): half of the matrix is read."""
    from scipy.linalg import blas

    product: Tensor = torch.from_numpy(blas.dsymv(1.0, matrix.T.numpy(), vector.numpy()))
    return product


def symmetric_product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right where that is known to be symmetric: half of the multiplications."""
    size = len(left)
    result = left.new_empty(size, size)
    side = max(SIDE, size // 16)
    for start in range(0, size, side):
        end = min(start + side, size)
        result[start:end, :end] = torch.from_numpy(left[start:end].numpy() @ right[:, :end].numpy())
        result[:start, start:end] = result[start:end, :start].T
    return result
