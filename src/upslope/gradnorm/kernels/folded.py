"""Convolution and batch normalisation with fixed statistics, as one convolution.

    z = conv(x, W) + b        y = (z - mean) r w + beta        r = 1 / sqrt(var + eps)

is the convolution by s W with s = r w, in every row (output channel) by itself. With the gradient g
of y, and D the weight gradient that x and g would have by themselves, sample by sample,

    dL/dW = s D    dL/db = s sum(g)    dL/dbeta = sum(g)
    dL/dw = r (sum(g z) - mean sum(g)) = r (<W, D> + (b - mean) sum(g)),   row by row,

since sum(g z) is linear in W. So z is neither written nor kept, nothing is divided by w, and one
pass over g is left of what normalisation costs. D itself must be formed: where Gram matrices are
cheaper, the two stay apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from upslope.gradnorm.kernels import conv_gradients, conv_methods
from upslope.gradnorm.kernels.batch_norm import Normalisation
from upslope.gradnorm.kernels.conv import Convolution
from upslope.gradnorm.kernels.conv_part import ConvPart
from upslope.gradnorm.layout import Samples
from upslope.gradnorm.parts import SCRATCH, Dense, Part
from upslope.gradnorm.tape import Tape

GRADIENTS = {
    "direct": conv_gradients.direct,
    "alone": conv_gradients.alone,
    "slices": conv_gradients.slices,
    "exchanged": conv_gradients.exchanged,
    "columns": conv_gradients.columns,
}
_WORTH = 2
"""Entries of the output for one of the weight from which folding pays: s W is made anew."""


class FoldedConvolution(Convolution):
    """A convolution that puts out what the normalisation of its output would."""

    def __init__(self, tape: Tape, plain: Convolution, norm: Normalisation):
        super().__init__(tape, plain.weight, plain.bias, plain.geometry, None)
        self.unfolded, self.norm = (plain.weight, plain.bias), norm
        self.weights = tape.weights.asked(plain.weight, plain.bias, norm.weight, norm.bias)
        self.name = f"{plain.name} + batch_norm (eval)"
        with torch.no_grad():
            self.rate = (norm.var + norm.eps).rsqrt()
            self.scale = self.rate if norm.weight is None else self.rate * norm.weight
            self.offset = -norm.mean if plain.bias is None else plain.bias - norm.mean
            shift = self.offset * self.scale
            self.bias = shift if norm.bias is None else shift + norm.bias
            self.weight = plain.laid() * _along_rows(self.scale, plain.weight)

    def parts(self, g: Tensor, *inputs: Tensor, samples: Samples) -> Iterator[tuple[Tensor, Part]]:
        """See `Kernel`."""
        x, front = samples.front(inputs[0]), samples.front(g)
        weight, bias = self.unfolded
        plain = ConvPart(x, front, self.geometry, tuple(weight.shape))
        part = FoldedPart(plain, self.scale, weight.detach())
        total = front.sum(dim=(1, *range(3, front.dim())))  # (n, o)
        for asked in self.weights:
            if asked is weight:
                yield weight, part  # taken first: what is along the weight comes with its norm
            elif asked is bias:
                yield asked, Dense(total * self.scale)
            elif asked is self.norm.weight:
                yield asked, Dense((part.along_weight() + self.offset * total) * self.rate)
            else:
                yield asked, Dense(total)


def foldable(kernel: Convolution, x: Tensor, norm: Normalisation) -> bool:
    """Whether folding the normalisation into this convolution of x is possible, and cheaper."""
    asked = kernel.weights
    whole = any(w is kernel.weight for w in asked) and not kernel.transposed
    one_type = kernel.dtype is None and kernel.weight.dtype == norm.mean.dtype == x.dtype
    if not (whole and one_type and x.shape[0] > 0):
        return False
    s, p, d, _ = kernel.geometry
    space = [
        (size + 2 * pad - gap * (k - 1) - 1) // step + 1
        for size, k, step, pad, gap in zip(
            x.shape[2:], kernel.weight.shape[2:], s, p, d, strict=True
        )
    ]
    g = x.new_empty(()).expand(x.shape[0], 1, kernel.weight.shape[0], *space)
    part = ConvPart(x[:, None], g, kernel.geometry, tuple(kernel.weight.shape))
    if math.prod(g.shape) < _WORTH * kernel.weight.numel():
        return False
    if part.is_pointwise:
        t, (o, i, *_) = math.prod(space), part.shape
        return t * (i + o) >= i * o
    return conv_methods.best(part) in GRADIENTS


@dataclass(frozen=True)
class FoldedPart:
    """The gradient of W: s D, with D the gradient of `plain`, and <W, D> for each row."""

    plain: ConvPart
    scale: Tensor
    weight: Tensor
    _along: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.plain)

    def sqnorm(self, scratch: int) -> Tensor:
        """See `Part`."""
        squares, along = [], []
        for gradient in self._gradients(scratch):
            rows, own = _rows(gradient, self.weight)
            if rows.stride(2) == 1:
                found = torch.linalg.vector_norm(rows, dim=2).square()
            else:  # rows that lie side by side: the other operator is slow then
                found = rows.square().sum(dim=2)
            squares.append((found * self.scale.square()).sum(dim=1))
            along.append((rows * own).sum(dim=2))
        self._along[:] = [torch.cat(along)]
        return torch.cat(squares)

    def along_weight(self) -> Tensor:
        """(n, o): <W, D> for each row."""
        if not self._along:
            self.sqnorm(SCRATCH)
        return self._along[0]

    def _gradients(self, scratch: int) -> Iterator[Tensor]:
        if self.plain.is_pointwise:
            return conv_gradients.pointwise(self.plain, scratch)
        return GRADIENTS[conv_methods.best(self.plain)](self.plain, scratch)

    def dense(self, rows: slice) -> Tensor:
        """See `Part`."""
        return self.plain.dense(rows) * _along_rows(self.scale, self.weight)

    def plus(self, others: Sequence[Part]) -> Part | None:
        """See `Part`. As convolutions alone, with the scale in the gradients."""
        scaled = (other._scaled() if isinstance(other, FoldedPart) else other for other in others)
        return self._scaled().plus(list(scaled))

    def _scaled(self) -> ConvPart:
        g = self.plain.g
        return replace(self.plain, g=g * self.scale.view(-1, *(1,) * (g.dim() - 3)))


def _along_rows(scale: Tensor, weight: Tensor) -> Tensor:
    """(o,) -> (o, 1, ...)."""
    return scale.view(-1, *(1,) * (weight.dim() - 1))


def _rows(gradient: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(m, o, c * taps) and (o, c * taps), both in the order of the gradient's memory."""
    if gradient.stride(2) == 1:
        gradient, weight = gradient.movedim(2, -1), weight.movedim(1, -1)
    return gradient.flatten(2), weight.flatten(1)
