"""Products of matrices, by the faster of the two libraries that torch carries on a CPU.

torch multiplies float32 matrices by BLAS and convolves by oneDNN. Where its BLAS does not make full
use of the processor (MKL on those of AMD with AVX-512, of which it uses AVX2 alone) oneDNN
multiplies more than twice as fast; elsewhere MKL is as fast for large products, and faster for
small ones. A call of oneDNN costs more, so small products stay with BLAS, as does everything where
torch was built without it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

_AVAILABLE: bool = torch.backends.mkldnn.is_available() and all(  # type: ignore[no-untyped-call]
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
)


def _is_mkl_at_full_speed() -> bool:
    """Whether BLAS is MKL on a processor of which it uses all vector units."""
    tell = getattr(torch.cpu, "get_capabilities", None)  # not in every version of torch
    if tell is None or not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False
    processor = tell()
    has_avx2_alone = processor.get("avx2", False) and not processor.get("avx512_f", True)
    return has_avx2_alone or str(processor.get("cpu_name", "")).startswith("Intel")


_BLAS_SUFFICES = _is_mkl_at_full_speed()
WORTH = 1_500_000
"""Multiply-adds from which the dearer call pays."""
WORTH_EACH = 32_000_000
"""Multiply-adds of each of several products from which a call for each pays. Set by hand: on the
machine of benchmarks/RESULTS.md, 8 products of 65 x 768 by 768 x 65 take 0.9 ms by BLAS and 1.0 to
1.9 ms by oneDNN, and those of 256 x 512 by 512 x 256 6.7 ms by either."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b without autograd. x: (..., i), weight: (o, i), bias: (o,)."""
    # Asked first: to count the multiply-adds takes as long as a small product.
    if not _BLAS_SUFFICES and prefers_onednn(x.numel() * weight.shape[0], x, weight):
        return _product(x, _pack(weight), bias)
    return F.linear(x, weight, bias)


def batched_products(a: Tensor, b: Tensor) -> Tensor:
    """(n, r, i) @ (n, i, o) -> (n, r, o), each product by itself, without autograd."""
    # BLAS gives each core a product of its own; oneDNN has them share one, in a call for each.
    _, r, i = a.shape
    if prefers_onednn_for_each(r * i * b.shape[2] // torch.get_num_threads(), a, b):
        pairs = zip(torch.unbind(a), torch.unbind(_pack(b.mT)), strict=True)
        return torch.stack([_product(x, w, None) for x, w in pairs])
    return torch.bmm(a, b)


def prepare_product(weight: Tensor, rows: int) -> Callable[[Tensor, Tensor], Tensor]:
    """(x, y) -> y + x W^T as a new tensor, for x after x: the weight is laid out once.

    weight: W, (o, i), or several, (d, o, i), each for x and y of its own. rows: how many each x,
    (rows, i), and y, (rows, o), has; y may have one row, or one number.
    """
    if weight.dim() == 3:
        if prefers_onednn(rows * weight[0].numel(), weight):
            products = [prepare_product(w, rows) for w in weight]
            shape = len(weight), rows, weight.shape[1]
            return lambda x, y: torch.stack(
                [f(a, b) for f, a, b in zip(products, x, y.expand(shape), strict=True)]
            )
        matrices = weight.mT
        return lambda x, y: torch.baddbmm(y, x, matrices)
    if prefers_onednn(rows * weight.numel(), weight):
        reordered_weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        return lambda x, y: _product(x, reordered_weight, None).add_(y)
    matrix = weight.mT
    return lambda x, y: torch.addmm(y, x, matrix)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return out


def _pack(weight: Tensor) -> Tensor:
    """(..., o, i), copied if rows or columns lie apart, for which the product has a slow path."""
    o, i = weight.shape[-2:]
    fits = weight.stride()[-2:] in ((i, 1), (1, o))
    return weight if fits else weight.contiguous()


def prefers_onednn(work: int, *tensors: Tensor) -> bool:
    """Whether a product of so many multiply-adds goes to oneDNN."""
    return (
        work >= WORTH
        and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
        and bool(torch.backends.mkldnn.enabled)
        and _AVAILABLE
        and not _BLAS_SUFFICES
    )


def prefers_onednn_for_each(work: int, *tensors: Tensor) -> bool:
    """Whether several products, each of so many multiply-adds, go to oneDNN one by one."""
    return work >= WORTH_EACH and prefers_onednn(work, *tensors)
