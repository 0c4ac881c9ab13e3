"""The per-sample gradient of a convolution's weight.

For output position l and offset k of the kernel, dL/dW[:, :, k] = sum_l g_l x_(l*s + k*d)^T. The
gradient of a batch is one call of the library; those of its samples are as many. `conv_methods` has
the ways to their norms without most of that work, and what each costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm.kernels import conv_methods
from upslope.gradnorm.kernels.geometry import Geometry
from upslope.gradnorm.parts import Outer, Part


@dataclass(frozen=True)
class ConvPart:
    """x: (n, k, c, *space), g: (n, k, o, *positions): k images a sample. shape: the weight's."""

    x: Tensor
    g: Tensor
    geometry: Geometry
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.g)

    def sqnorm(self, scratch: int) -> Tensor:
        """See `Part`. The method is chosen by counting multiply-adds and bytes moved."""
        if self.is_pointwise:
            return self.pointwise().sqnorm(scratch)
        return conv_methods.METHODS[conv_methods.best(self)](self, scratch)

    @property
    def is_pointwise(self) -> bool:
        """Whether `pointwise` has it."""
        return math.prod(self.shape[2:]) == 1 and self.g.shape[1] == 1 and self.geometry.groups == 1

    def pointwise(self) -> Outer:
        """The same gradient as a sum of outer products, where the kernel has a single entry."""
        x = self.padded(self.x[:, 0])
        strided = (slice(None), *(slice(None, None, s) for s in self.geometry.stride))
        x = x.movedim(1, -1)[strided].flatten(1, -2)  # (n, t, c)
        return Outer(x, self.g[:, 0].flatten(2).mT)

    def dense(self, rows: slice) -> Tensor:
        """See `Part`. All samples and groups side by side, as the groups of one convolution."""
        x, g = self.x[rows], self.g[rows]
        n = len(x)
        s, p, d, groups = self.geometry
        stencil = x.new_empty(()).expand(n * self.shape[0], *self.shape[1:])
        _, gradient, _ = torch.ops.aten.convolution_backward(
            side_by_side(g), side_by_side(x), stencil, None, s, p, d,
            False, [0] * len(s), n * groups, (False, True, False),
        )  # fmt: skip
        out: Tensor = gradient.unflatten(0, (n, -1))
        return out

    def plus(self, others: Sequence[Part]) -> Part | None:
        """See `Part`. More images a sample, if all images have one size."""
        same = [self, *(o for o in others if isinstance(o, ConvPart) and self._matches(o))]
        if len(same) <= len(others):
            return None
        x, g = torch.cat([o.x for o in same], dim=1), torch.cat([o.g for o in same], dim=1)
        return ConvPart(x, g, self.geometry, self.shape)

    def _matches(self, other: ConvPart) -> bool:
        return (
            self.geometry == other.geometry
            and self.x.shape[2:] == other.x.shape[2:]
            and self.g.shape[2:] == other.g.shape[2:]
        )

    def padded(self, x: Tensor) -> Tensor:
        """The images with their border."""
        sides = [side for pad in reversed(self.geometry.padding) for side in (pad, pad)]
        return F.pad(x, sides) if any(sides) else x  # padding by nothing would copy


def side_by_side(x: Tensor) -> Tensor:
    """(n, k, c, *space) -> (k, n * c, *space): samples become groups of channels.

    Channels that lie last in memory stay there: whole rows of them are copied.
    """
    n, k, c = x.shape[:3]
    if x.dim() >= 5 and x.stride(2) == 1:
        last = x.movedim((0, 2), (-2, -1)).flatten(-2)  # (k, *space, n * c)
        return last.movedim(-1, 1)
    return x.transpose(0, 1).reshape(k, n * c, *x.shape[3:])
