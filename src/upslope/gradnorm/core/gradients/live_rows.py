"""Rows that some sample's gradient has reached: products with the others are of zeros.

A language model of which the last position is asked has logits at all of them, a transformer that
puts out its first token has a last block for all tokens, and a short text reaches a fraction of a
table of distances. Autograd multiplies the zeros.
"""

from __future__ import annotations

from torch import Tensor

_WORTH_A_LOOK = 1 << 25
"""Multiply-adds of a product from which it pays to look at its rows. Set by hand: a look at two of
them takes 10 us, about a fiftieth of such a product."""


def live_rows(g: Tensor) -> Tensor | None:
    """Return the indices of the rows that some sample has reached; None if these are most.

    g: gradients, (n, rows, columns), real.
    """
    # NaN is no zero. `any` takes several times as long, and absolute values memory of their own.
    is_live = (g.amax(dim=2).ne(0) | g.amin(dim=2).ne(0)).any(dim=0)
    live = is_live.nonzero()[:, 0]
    return live if 4 * len(live) <= 3 * len(is_live) else None


def live_rows_of_product(g: Tensor, width: int) -> Tensor | None:
    """Return `live_rows` of gradients that are to be multiplied with a matrix.

    None also where the product is too small to be worth a look, or no row is live; and on a GPU,
    which would have to wait for the answer.

    g: gradients, (n, rows, columns). width: the other size of the matrix.
    """
    if g.dim() != 3 or g.numel() * width < _WORTH_A_LOOK or not g.is_cpu or g.is_complex():
        return None
    rows = g.shape[1]
    # Where the first and the last row of a sample are live, the others are taken to be.
    if rows < 2 or bool(g[0, :: rows - 1].any(dim=1).all()):
        return None
    live = live_rows(g)
    return live if live is not None and len(live) else None


def put_rows(values: Tensor, live: Tensor, rows: int) -> Tensor:
    """(n, live rows, columns) -> (n, rows, columns), with zeros in the others."""
    return values.new_zeros(len(values), rows, values.shape[2]).index_copy_(1, live, values)
