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
    # With M = L L^T: M^-1 F M^-1 = L^-T (L^-1 F L^-T) L^-1, two thirds of the multiplications.
    root = torch.from_numpy(lapack.dtrtri(factor, overwrite_c=1)[0]).T.tril_()
    spread = _lower_last(root, _lower_first(root, pool))
    inverse = torch.from_numpy(lapack.dlauum(root.T.numpy(), overwrite_c=1)[0]).T.tril_()
    inverse += inverse.tril(-1).T
    return inverse, spread, draw


def _lower_first(lower: Tensor, matrix: Tensor) -> Tensor:
    """L matrix L^T for a lower triangular L and a symmetric matrix: N^3 / 2 multiplications."""
    size = len(lower)
    result = lower.new_empty(size, size)
    left, right = lower.numpy(), matrix.numpy()
    blocks = _blocks(size)
    for rows in blocks:
        product = left[rows, : rows.stop] @ right[: rows.stop, : rows.stop]
        for columns in blocks[: blocks.index(rows) + 1]:
            part = product[:, : columns.stop] @ left[columns, : columns.stop].T
            result[rows, columns] = torch.from_numpy(part)
        result[: rows.start, rows] = result[rows, : rows.start].T
    return result


def _lower_last(lower: Tensor, matrix: Tensor) -> Tensor:
    """L^T matrix L for the same, in as many multiplications."""
    size = len(lower)
    result, product = lower.new_empty(size, size), lower.new_empty(size, size)
    left, right = lower.numpy(), matrix.numpy()
    for part in _blocks(size):
        columns = right[part.start :, part.start :] @ left[part.start :, part]
        product[part.start :, part] = torch.from_numpy(columns)
    for part in _blocks(size):
        rows = left[part.start :, part].T @ product[part.start :, : part.stop].numpy()
        result[part, : part.stop] = torch.from_numpy(rows)
        result[: part.start, part] = result[part, : part.start].T
    return result


def _blocks(size: int) -> list[slice]:
    """Blocks of rows whose products still run at full speed."""
    side = max(SIDE, size // 16)
    return [slice(start, min(start + side, size)) for start in range(0, size, side)]


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return a symmetric matrix times a vector, (n,): half of the matrix is read."""
    from scipy.linalg import blas

    product: Tensor = torch.from_numpy(blas.dsymv(1.0, matrix.T.numpy(), vector.numpy()))
    return product


def symmetric_product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right where that is known to be symmetric: half of the multiplications."""
    size = len(left)
    result = left.new_empty(size, size)
    for rows in _blocks(size):
        part = left[rows].numpy() @ right[:, : rows.stop].numpy()
        result[rows, : rows.stop] = torch.from_numpy(part)
        result[: rows.start, rows] = result[rows, : rows.start].T
    return result
