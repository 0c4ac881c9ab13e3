"""Ways to the norm of a sum of outer products, G_n = sum_s g_ns x_ns^T, for each of n samples.

- product: of one position, ||x|| ||g||.
- direct: the matrices are formed and their squares summed: t i o multiply-adds for t positions. All
  at once where they are small; otherwise a few at a time, or a block of rows of each.
- ghost: from two Gram matrices, t^2 (i + o) multiply-adds (Li et al. 2021, arXiv:2110.05679):

      ||G||^2 = sum_{s,s'} <x_s, x_s'> <g_s, g_s'>      (complex numbers: <a, b> = a^T conj(b))

Throughout, x: (n, t, i), g: (n, t, o), scratch: bytes that may be taken at a time. Called by
`per_sample_gradients`.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from upslope.gradnorm.core.chunks import CACHE, chunks, in_cache
from upslope.gradnorm.core.gradients.sums_of_squares import (
    cancels,
    frobenius_norms,
    norms,
    squared_norms,
    upcast,
)
from upslope.gradnorm.core.matrix_products import (
    batched_products,
    linear,
    prefers_onednn_for_each,
)

WIDE = 32
"""Rows and columns of a result from which oneDNN is the faster one for a sum of outer products."""

_BLOCK = CACHE // 8
"""Bytes of products that are formed at a time: they stay in the second-level cache."""

_AT_ONCE = CACHE // 4
"""Bytes of products up to which those of all samples are formed by one call. Set by hand: 32 of
96 x 96, 1.1 MiB, took 0.3 ms so and 0.4 ms in two pieces; 8 of 384 x 384, 4.5 MiB, the reverse."""

_GRAM_ENTRY, _PRODUCT_ENTRY = 200, 16
"""What an entry of a pair of Gram matrices, and of a product, costs beside its multiply-adds, in
such: it is written, and read again. Set by hand, as the next."""

_CALLS_OF_GHOST = 3_000_000
"""What the more numerous calls of the ghost norm cost, in multiply-adds."""


@functools.lru_cache(4096)  # every use in every batch asks, and networks have few shapes
def method_of(x: torch.Size, o: int, grams: int, element: int, scratch: int, threads: int) -> str:
    """Return the cheapest way: "product", "direct, at once", "direct" or "ghost".

    x: (n, t, i). o: entries of a row of g. grams: entries of rows whose Gram matrices are to be
    formed. element: bytes of an entry. scratch: bytes. threads: that torch has.
    """
    n, t, i = x
    if t == 1:
        return "product"
    ghost = _CALLS_OF_GHOST + n * t * t * (grams + _GRAM_ENTRY)
    if ghost < n * i * o * (t + _PRODUCT_ENTRY):
        return "ghost"
    bytes_each = element * max(1, i * o)
    at_once = min(max(threads, in_cache(_AT_ONCE, scratch) // bytes_each), scratch // bytes_each)
    return "direct, at once" if n <= at_once else "direct"


def of_one_position(x: Tensor, g: Tensor) -> Tensor:
    """(n,): the norms, of t = 1."""
    return norms(x).mul_(norms(g))


def direct_at_once(x: Tensor, g: Tensor) -> Tensor:
    """(n,): the norms, from the products of all samples."""
    # The longer side goes along the rows of the result: a thin product is far slower otherwise.
    left, right = (g, x) if g.shape[2] <= x.shape[2] else (x, g)
    return norms(batched_products(gather(left).mT, gather(right)))


def direct(x: Tensor, g: Tensor, scratch: int) -> Tensor:
    """(n,): the squared norms, from the products of a few samples, or blocks of rows of each.

    All go to one small buffer, which stays in the second-level cache to be read once more.
    """
    # The longer side along the rows, as in `direct_at_once`.
    left, right = (g, x) if g.shape[2] <= x.shape[2] else (x, g)
    n, t, o = left.shape
    i, size = right.shape[2], right.element_size()
    width = max(1, min(o, scratch // (i * size)))
    if min(i, o) >= WIDE and prefers_onednn_for_each(t * i * width, left, right):
        return torch.stack([_norm_by_blocks(a, b, width) for a, b in zip(left, right, strict=True)])
    together = max(torch.get_num_threads(), in_cache(_BLOCK, scratch) // (i * width * size))
    together = max(1, min(n, together, scratch // (i * width * size)))
    buffer = right.new_empty(together, width, i)
    out = []
    for start in range(0, n, together):
        rows = slice(start, start + together)
        b, a = gather(right[rows]), gather(left[rows]).mT
        squares = []
        for k in range(0, o, width):
            block = a[:, k : k + width]
            product = torch.bmm(block, b, out=buffer[: len(b), : block.shape[1]])
            squares.append(squared_norms(product))
        out.append(torch.stack(squares).sum(dim=0))
    return torch.cat(out)


def _norm_by_blocks(left: Tensor, right: Tensor, width: int) -> Tensor:
    """The squared norm of left^T right, `width` rows at a time. left: (t, o), right: (t, i)."""
    blocks = torch.split(left, width, dim=1)
    roots = [torch.linalg.vector_norm(linear(block.mT, right.mT)) for block in blocks]
    return torch.stack(roots).square().sum()


def ghost(x: Tensor, g: Tensor, gg: Tensor | None, scratch: int) -> Tensor:
    """(n,): the squared norms, from both Gram matrices. gg: those of g, if they are known."""
    n, t, _ = x.shape
    pieces = [*chunks(n, 2 * t * t * x.element_size(), scratch)]
    if len(pieces) > 1:
        return torch.cat(
            [ghost(x[c], g[c], None if gg is None else gg[c], scratch) for c in pieces]
        )
    x, g = gather(x), gather(g)
    xx = batched_products(x, x.mH)  # (n, t, t)
    gg = batched_products(g, g.mH) if gg is None else gg
    sizes = frobenius_norms(xx).mul_(frobenius_norms(gg))
    total = upcast(xx).mul_(gg).sum(dim=(1, 2))
    # A sum of products of either sign can round to just below zero.
    total = (total.real if total.is_complex() else total).clamp_min_(0)
    if (has_cancelled := cancels(total, sizes)) is not None:
        total[has_cancelled] = direct(x[has_cancelled], g[has_cancelled], scratch)
    return total


def gather(x: Tensor) -> Tensor:
    """(n, t, i), copied if a sample's rows lie far apart: a product would miss the caches."""
    return x.contiguous() if x.stride(2) == 1 and x.stride(1) > 2 * x.shape[2] else x
