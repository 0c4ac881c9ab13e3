"""Gradients of a table that is both looked up and multiplied with: of tied embeddings.

A language model that takes the table of its input for its output too has, for sample n,

    G = sum_s g_s x_s^T + sum_u e_{i_u} r_u^T

with e_i the unit vector of row i, i_u the rows that were looked up and r_u what reached them. Its
norm follows from those of both sums, O and R, without forming G, as large as the vocabulary:

    ||G||^2 = ||O||^2 + ||R||^2 + 2 <O, R>        <O, R> = sum_{s,u} g_s[i_u] <x_s, r_u>
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from upslope.gradnorm.core.chunks import chunks
from upslope.gradnorm.core.gradients.lookup_gradients import LookupGradient, lookups_in
from upslope.gradnorm.core.gradients.per_sample_gradients import OuterProducts, PerSampleGradient
from upslope.gradnorm.core.gradients.sums_of_squares import cancels, squared_norms, upcast


def norms_of_sum(parts: Sequence[PerSampleGradient], scratch: int) -> Tensor | None:
    """(n,): squared norms of the sum of gradients of one weight; None where they must be formed."""
    total = parts[0].add(parts[1:])
    if total is not None:
        return total.squared_norms(scratch)
    rows = lookups_in(parts)
    outer = [part for part in parts if isinstance(part, OuterProducts)]
    if not rows or not outer or len(rows) + len(outer) < len(parts):
        return None
    products, lookups = outer[0].add(outer[1:]), rows[0].add(rows[1:])
    assert isinstance(products, OuterProducts)
    assert isinstance(lookups, LookupGradient)
    return None if products.g.is_complex() else _norms_of_tied(products, lookups, scratch)


def _norms_of_tied(products: OuterProducts, rows: LookupGradient, scratch: int) -> Tensor:
    squares = products.squared_norms(scratch) + rows.squared_norms(scratch)
    # The cross term has either sign, and may leave little of two squares that cancel.
    total = squares + 2 * _inner_products(products, rows, scratch)
    if (has_cancelled := cancels(total, squares)) is not None:
        for i in has_cancelled.nonzero()[:, 0].tolist():
            one = slice(i, i + 1)
            total[one] = squared_norms(products.materialize(one) + rows.materialize(one))
    return total.clamp_min_(0)


def _inner_products(products: OuterProducts, rows: LookupGradient, scratch: int) -> Tensor:
    """(n,): <O, R>, from the products of each row of x and each row that was looked up."""
    n, s, _ = products.x.shape
    u = rows.ids.shape[1]
    pieces = []
    for c in chunks(n, 3 * s * u * products.x.element_size(), scratch):
        g, ids = products.g[c], rows.ids[c]
        # Row u of the table's gradient takes g_s[i_u] x_s from O: one number for each pair (s, u).
        gram = upcast(products.x[c] @ rows.g[c].mT)
        gram.mul_(g.gather(2, ids[:, None].expand(-1, s, -1)))
        pieces.append(gram.sum(dim=(1, 2)))
    return torch.cat(pieces)
