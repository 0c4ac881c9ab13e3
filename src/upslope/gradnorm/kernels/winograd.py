"""3 x 3 convolutions of stride one by Winograd's minimal filtering, in two dimensions.

With E_k the evaluation of polynomials of k coefficients at five points and infinity (Toom and
Cook), the transposition principle gives, for a tile d of 6 pixels along each axis,

    F(4, 3), the convolution:         y  = E_4^T [ (E_3 w) * (E_6^-T d) ]
    F(3, 4), its weight's gradient:   dw = E_3^T [ (E_4 g) * (E_6^-T d) ]

(Lavin & Gray 2016, arXiv:1509.09308), with 36 products for 144. The transforms between are worth
it only where they are fused, so this is used with compilation alone, and where it wins a `race`.
Sums of larger terms round more: float32 results are good to about 1e-6, and float64 does not come
here.

Layout: channels last; x: (n, h, w, c), y and g: (n, h, w, o), transforms: (6, 6, n, tiles, c).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm.kernels.geometry import Geometry

_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
_CHUNK = 4096
"""Pixels that are transformed together: what keeps the transforms in the cache."""


def fits(x: Tensor, shape: Sequence[int], geometry: Geometry) -> bool:
    """Whether a convolution of x, (n, c, h, w), by a weight of this shape can come here."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and tuple(shape[2:]) == (3, 3)
        and geometry == Geometry((1, 1), (1, 1), (1, 1), 1)
        and min(shape[:2]) >= 32
        and min(x.shape[2:]) >= 4
        # The weight's transform is paid once a batch.
        and 9 * shape[0] * shape[1] <= len(x) * math.prod(x.shape[2:]) * sum(shape[:2])
    )


def conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d(x, weight, bias, padding=1). x: (n, c, h, w), weight: (o, c, 3, 3)."""
    n, _, h, w = x.shape
    transformed = _weight(weight)
    images = x.permute(0, 2, 3, 1)
    out = torch.empty(n, weight.shape[0], h, w, dtype=x.dtype, memory_format=torch.channels_last)
    rows = out.permute(0, 2, 3, 1)
    size = max(1, min(n, _CHUNK // (h * w)))
    for start in range(0, n, size):
        piece = _padded(images[start : start + size], size)
        product = torch.bmm(_fused(_input)(piece).flatten(0, 1), transformed)
        result = _fused(_output)(product, bias, size, h, w)
        rows[start : start + size] = result[: n - start]
    return out


def input_gradient(g: Tensor, weight: Tensor) -> Tensor:
    """The gradient of conv's input: g convolved with the flipped weight, channels exchanged."""
    return conv(g, weight.flip(2, 3).transpose(0, 1), None)


def sqnorm(x: Tensor, g: Tensor, scratch: int) -> Tensor:
    """(n,): squared norms of the weight gradients. x: (n, c, h, w), g: (n, o, h, w)."""
    n, c, h, w = x.shape
    o = g.shape[1]
    x, g = x.permute(0, 2, 3, 1), g.permute(0, 2, 3, 1)
    each = 36 * x.element_size() * (o * c + _tiles(h) * _tiles(w) * (o + c))
    size = max(1, min(n, _CHUNK // (h * w), scratch // each))
    out = []
    for start in range(0, n, size):
        d = _fused(_input)(_padded(x[start : start + size], size))
        e = _fused(_gradient)(_padded(g[start : start + size], size))
        # (36, size * tiles, channels) -> one product for each frequency and sample
        d = d.view(36 * size, -1, c)
        e = e.view(36 * size, -1, o)
        squares = _fused(_squares)(torch.bmm(e.mT, d).view(6, 6, size, o, c))
        out.append(squares[: n - start])
    return torch.cat(out)


def _padded(x: Tensor, size: int) -> Tensor:
    """The last chunk filled up, so that one compiled form serves all."""
    missing = size - len(x)
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, missing)) if missing else x


@functools.cache
def _fused(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=False)


def _evaluation(k: int) -> Tensor:
    """E_k, (6, k) float64."""
    rows = [[p**j for j in range(k)] for p in _POINTS] + [[0.0] * (k - 1) + [1.0]]
    return torch.tensor(rows, dtype=torch.float64)


_E3, _E4 = _evaluation(3).tolist(), _evaluation(4).tolist()
_E3T, _E4T = _evaluation(3).T.tolist(), _evaluation(4).T.tolist()
_BT = torch.linalg.inv(_evaluation(6)).T.tolist()


def _combined(coefficients: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    total: Any = None
    for factor, term in zip(coefficients, terms, strict=True):
        if abs(factor) > 1e-12:
            scaled = term if factor == 1.0 else factor * term
            total = scaled if total is None else total + scaled
    assert isinstance(total, Tensor)
    return total


def _tiles(extent: int) -> int:
    return -(-extent // 4)


def _input(x: Tensor) -> Tensor:
    """(n, h, w, c) -> (6, 6, n * tiles, c): B^T d B of every tile of 6 x 6 pixels, padded by 1."""
    h, w = x.shape[1:3]
    ty, tx = _tiles(h), _tiles(w)
    x = F.pad(x, (0, 0, 1, 1 + 4 * tx - w, 1, 1 + 4 * ty - h))
    rows = [x[:, j : j + 4 * (ty - 1) + 1 : 4] for j in range(6)]
    down = torch.stack([_combined(row, rows) for row in _BT])  # (6, n, ty, w, c)
    columns = [down[:, :, :, j : j + 4 * (tx - 1) + 1 : 4] for j in range(6)]
    return torch.stack([_combined(row, columns) for row in _BT], dim=1).flatten(2, 4)


def _gradient(g: Tensor) -> Tensor:
    """(n, h, w, o) -> (6, 6, n * tiles, o): E_4 g E_4^T of every tile of 4 x 4."""
    h, w = g.shape[1:3]
    ty, tx = _tiles(h), _tiles(w)
    g = F.pad(g, (0, 0, 0, 4 * tx - w, 0, 4 * ty - h))
    down = torch.stack([_combined(row, [g[:, j::4] for j in range(4)]) for row in _E4])
    columns = [down[:, :, :, j::4] for j in range(4)]
    return torch.stack([_combined(row, columns) for row in _E4], dim=1).flatten(2, 4)


def _output(product: Tensor, bias: Tensor | None, n: int, h: int, w: int) -> Tensor:
    """(36, n * tiles, o) -> (n, h, w, o): A^T m A of every tile, cut to the image."""
    ty, tx = _tiles(h), _tiles(w)
    m = product.view(6, 6, n, ty, tx, -1)
    down = torch.stack([_combined(row, [m[j] for j in range(6)]) for row in _E4T])
    both = [_combined(row, [down[:, j] for j in range(6)]) for row in _E4T]
    y = torch.stack(both)  # (4 along x, 4 along y, n, ty, tx, o)
    y = y.permute(2, 3, 1, 4, 0, 5)
    y = y.reshape(n, 4 * ty, 4 * tx, -1)[:, :h, :w]
    return (y if bias is None else y + bias).contiguous()


def _squares(m: Tensor) -> Tensor:
    """(6, 6, n, o, c) -> (n,): the weight gradients A^T m A, squared and summed."""
    down = [_combined(row, [m[j] for j in range(6)]) for row in _E3T]
    total: Any = 0
    for part in down:
        for row in _E3T:
            entry = _combined(row, [part[j] for j in range(6)])
            total = total + (entry * entry).sum(dim=(1, 2))
    assert isinstance(total, Tensor)
    return total


def _weight(weight: Tensor) -> Tensor:
    """(o, c, 3, 3) -> (36, c, o): G w G^T."""
    e = _evaluation(3).to(weight)
    u = torch.kron(e, e) @ weight.permute(2, 3, 0, 1).reshape(9, -1)  # (36, o * c)
    return u.view(36, weight.shape[0], weight.shape[1]).mT
