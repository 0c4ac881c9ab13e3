"""Products of groups of rows with a matrix each: tokens sorted by the expert that they go to.

    y_s = x_s W_e        for offsets[e - 1] <= s < offsets[e]

Called for mixtures of experts. Each group is one product with a matrix (`linear`).
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.tape import Tape
from upslope.gradnorm.kernels.linear import matmul


def grouped_mm(
    tape: Tape,
    input: Tensor,
    mat2: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Any:
    """`torch._grouped_mm`, `F.grouped_mm`. x: (s, i), W: (e, i, o), offs: (e,) -> (s, o)."""
    if bias is not None or offs is None or input.dim() != 2 or mat2.dim() != 3:
        return NotImplemented
    if tape.weights.is_weight(input) or not tape.weights.is_weight(mat2):
        return NotImplemented
    bounds = [0, *offs.tolist()]
    if bounds[-1] != len(input):
        return NotImplemented
    tape.route()  # the data decide which rows are multiplied with which matrix
    products = [
        matmul(tape, input[a:b], tape.weights.view(matrix))
        for matrix, (a, b) in zip(mat2, itertools.pairwise(bounds), strict=True)
        if a < b
    ]
    return torch.cat(products).to(out_dtype or input.dtype) if products else NotImplemented
