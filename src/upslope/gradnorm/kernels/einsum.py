"""Einstein sums of a sample and a weight, brought to the form of a matrix product.

Of each index it is told whether it is in the sample x, the weight w and the output:

    in x and w: summed over (a column of the matrix), or kept (one matrix for each value)
    in x alone: a position, or summed before; in w alone: a row of the matrix, or summed before
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.kernels.linear import matmul
from upslope.gradnorm.tape import Tape


def einsum(tape: Tape, equation: str, *operands: Any) -> Any:
    """`torch.einsum` of two tensors, one of them a weight, no index twice in one of them."""
    tensors = operands[0] if len(operands) == 1 else operands
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "." in equation or len(terms) != 2 or len(tensors) != 2:
        return NotImplemented
    if any(len(set(term)) < len(term) for term in (*terms, out)):
        return NotImplemented
    order = (1, 0) if tape.weights.made_of(tensors[0]) else (0, 1)
    x, w = (tensors[i] for i in order)
    x_term, w_term = (terms[i] for i in order)
    if tape.weights.made_of(x):
        return NotImplemented
    positions = [i for i in x_term if i in out and i not in w_term]
    kept = [i for i in x_term if i in out and i in w_term]
    summed = [i for i in x_term if i in w_term and i not in out]
    rows = [i for i in w_term if i in out and i not in x_term]
    size = {**dict(zip(x_term, x.shape, strict=True)), **dict(zip(w_term, w.shape, strict=True))}
    x = torch.einsum(f"{x_term}->{''.join(positions + kept + summed)}", x)
    w = torch.einsum(f"{w_term}->{''.join(kept + summed + rows)}", w)
    p, g, s, r = ([size[i] for i in group] for group in (positions, kept, summed, rows))
    x = x.reshape(*p, *([math.prod(g), 1] if kept else []), math.prod(s))
    w = w.reshape(*([math.prod(g)] if kept else []), math.prod(s), math.prod(r))
    tape.weights.adopt(w)
    product = matmul(tape, x, w)  # (*p, [g, 1,] r)
    if product is NotImplemented:
        return NotImplemented
    product = product.reshape(*p, *g, *r)
    found = positions + kept + rows
    result: Tensor = product.permute([found.index(i) for i in out])
    return result
