"""Convolution and batch normalisation with fixed statistics, as one convolution.

    z = conv(x, W) + b        y = (z - mean) r w + beta        r = 1 / sqrt(var + eps)

is the convolution by s W with s = r w, in every row (output channel) by itself. With the gradient g
of y, and D the weight gradient that x and g would have by themselves, sample by sample,

    dL/dW = s D    dL/db = s sum(g)    dL/dbeta = sum(g)
    dL/dw = r (sum(g z) - mean sum(g)) = r (<W, D> + (b - mean) sum(g)),   row by row,

since sum(g z) is linear in W. So z is neither written nor kept, nothing is divided by w, and
the normalisation costs no more than one pass over g. D itself must be formed: where a ghost norm
is cheaper, convolution and normalisation stay two kernels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from upslope.gradnorm.core.chunks import SCRATCH, has_caches
from upslope.gradnorm.core.gradients.per_sample_gradients import Dense, PerSampleGradient
from upslope.gradnorm.core.layouts.layout import Samples
from upslope.gradnorm.core.uses.tape import Tape
from upslope.gradnorm.kernels.batch_norm import Normalisation
from upslope.gradnorm.kernels.conv import cost_model, gradients
from upslope.gradnorm.kernels.conv.convolution import Convolution, in_front, sum_of_positions
from upslope.gradnorm.kernels.conv.methods import ConvWeightGradient
from upslope.gradnorm.kernels.conv.operands import ORDERS, ConvOperands, Geometry

_WORTH = 2
"""Entries of the output per entry of the weight from which folding pays, since s W has to be
computed for each batch: with fewer, that costs more than the normalisation. Set by hand."""


class FusedConvolution(Convolution):
    """A convolution whose output is normalised already: y above, in place of z."""

    def __init__(self, tape: Tape, plain: Convolution, norm: Normalisation):
        super().__init__(tape, plain.weight, plain.bias, plain.geometry, None)
        self.separate, self.norm = (plain.weight, plain.bias), norm
        self.weights = tape.weights.select_weights(plain.weight, plain.bias, norm.weight, norm.bias)
        self.name = f"{plain.name} + batch_norm (eval)"
        with torch.no_grad():
            self.rate = (norm.var + norm.eps).rsqrt_()
            self.scale = self.rate if norm.weight is None else self.rate * norm.weight
            self.centre = norm.mean if plain.bias is None else norm.mean - plain.bias
            if norm.bias is None:
                self.bias = -self.centre * self.scale
            else:
                self.bias = torch.addcmul(norm.bias, self.centre, self.scale, value=-1)
            weight, order = plain.weight, ORDERS.get(plain.weight.dim())
            if order is not None and has_caches(weight):  # a GPU takes it as it is (`arrangement`)
                weight = tape.weights.in_memory_format(weight, order)
            self.weight = weight * _along_rows(self.scale, weight)

    def weight_gradients(
        self, g: Tensor, *inputs: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, PerSampleGradient]]:
        """Yield the per-sample gradients of the weights; see `Kernel`."""
        x = inputs[0] if inputs[0].dtype == g.dtype else inputs[0].to(g.dtype)
        x, front = in_front(samples, x), in_front(samples, g)
        weight, bias = self.separate
        plain = ConvWeightGradient(x, front, self.geometry, tuple(weight.shape))
        part = FusedWeightGradient(plain, self.scale, weight.detach())
        total = sum_of_positions(front)  # (n, o)
        for tensor in self.weights:
            if tensor is weight:
                # First, because its norm also gives <W, D>, which `along_weight` returns below.
                yield weight, part
            elif tensor is bias:
                yield tensor, Dense(total * self.scale)
            elif tensor is self.norm.weight:
                difference = torch.addcmul(part.along_weight(), self.centre, total, value=-1)
                yield tensor, Dense(difference.mul_(self.rate))
            else:
                yield tensor, Dense(total)


def is_fusible(kernel: Convolution, x: Tensor, norm: Normalisation) -> bool:
    """Return whether folding the normalisation into a convolution of x is possible, and cheaper."""
    weight, dtype = kernel.weight, x.dtype
    whole = kernel.weights and kernel.weights[0] is weight and not kernel.is_transposed
    one_type = weight.dtype == dtype and norm.mean.dtype == dtype
    # Two samples have shown which follows; with other numbers of them, another convolution may be
    # at this place.
    of_outputs = norm.mean.shape == weight.shape[:1]
    if not (whole and one_type and of_outputs and x.shape[0] > 0):
        return False
    vectors = [id(v) for v in (kernel.bias, norm.weight, norm.bias) if v is not None]
    if len(set(vectors)) < len(vectors):  # one parameter in two places, with a gradient for each
        return False
    device, threads = "cpu" if has_caches(x) else "meta", torch.get_num_threads()
    return _is_cheaper(x.shape, weight.shape, kernel.geometry, dtype, device, threads, _WORTH)


@functools.lru_cache(4096)  # every layer of every batch asks, and networks have few shapes
def _is_cheaper(
    x_shape: torch.Size,
    shape: torch.Size,
    geometry: Geometry,
    dtype: torch.dtype,
    device: str,
    threads: int,  # noqa: ARG001 (the costs depend on it)
    worth: int,
) -> bool:
    """Whether a convolution of images of this shape is cheaper with its normalisation folded."""
    s, p, d, _ = geometry
    space = [
        (size + 2 * pad - gap * (k - 1) - 1) // step + 1
        for size, k, step, pad, gap in zip(x_shape[2:], shape[2:], s, p, d, strict=True)
    ]
    n, channels = x_shape[:2]
    nothing = torch.empty((), dtype=dtype, device=device)
    x, g = nothing.expand(n, 1, channels, *x_shape[2:]), nothing.expand(n, 1, shape[0], *space)
    if g.numel() < worth * math.prod(shape):
        return False
    operands = ConvOperands(x, g, geometry, tuple(shape))
    if operands.is_pointwise:
        t, (o, i, *_) = math.prod(space), shape
        return t * (i + o) >= i * o
    return cost_model.best(operands) in gradients.GRADIENTS


@dataclass(frozen=True)
class FusedWeightGradient(PerSampleGradient):
    """The gradient of W: s D, with D the gradient of `plain`, and <W, D> for each row."""

    plain: ConvWeightGradient
    scale: Tensor
    weight: Tensor
    _along: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.plain)

    def squared_norms(self, scratch: int) -> Tensor:
        """Return the squared norms; see `PerSampleGradient`."""
        squares, along = list[Tensor](), list[Tensor]()
        rates = self.scale.square()
        for gradient in self._gradients(scratch):
            rows, weight = _rows(gradient, self.weight)
            if rows.stride(2) == 1:
                norms = torch.linalg.vector_norm(rows, dim=2).square_()
            else:  # `vector_norm` is slow where a row's entries are not neighbours in memory
                norms = rows.square().sum(dim=2)
            squares.append(norms.to(rates.dtype) @ rates)
            along.append((rows * weight).sum(dim=2))
        one = len(along) == 1
        self._along[:] = along if one else [torch.cat(along)]
        return squares[0] if one else torch.cat(squares)

    def along_weight(self) -> Tensor:
        """Return <W, D> for each row of the weight, (n, o)."""
        if not self._along:
            self.squared_norms(SCRATCH)
        return self._along[0]

    def _gradients(self, scratch: int) -> Iterator[Tensor]:
        """Yield D, a few samples at a time."""
        if self.plain.is_pointwise:
            return gradients.pointwise(self.plain, scratch)
        return gradients.GRADIENTS[cost_model.best(self.plain)](self.plain, scratch)

    def dense_pieces(self, scratch: int) -> Iterator[Tensor] | None:
        """Yield the gradients themselves; see `PerSampleGradient`. <W, D> is taken on the way."""
        return self._scaled_pieces(scratch)

    def _scaled_pieces(self, scratch: int) -> Iterator[Tensor]:
        along = []
        for gradient in self._gradients(scratch):
            rows, weight = _rows(gradient, self.weight)
            along.append((rows * weight).sum(dim=2))
            yield gradient.mul_(_along_rows(self.scale, self.weight))  # nobody else has it
        self._along[:] = [torch.cat(along)]

    def materialize(self, rows: slice) -> Tensor:
        """Return the gradients themselves; see `PerSampleGradient`."""
        return self.plain.materialize(rows) * _along_rows(self.scale, self.weight)

    def add(self, others: Sequence[PerSampleGradient]) -> PerSampleGradient | None:
        """See `PerSampleGradient`. The scale goes to the output gradients."""
        scaled_entries = (
            other._scale_plain() if isinstance(other, FusedWeightGradient) else other
            for other in others
        )
        return self._scale_plain().add(list(scaled_entries))

    def rank_one_products(self, left: Tensor, right: Tensor) -> Tensor | None:
        """Return the inner products with left (x) right; see `PerSampleGradient`."""
        return self.plain.rank_one_products(left * self.scale.to(left), right)

    def cost(self) -> tuple[str, float]:
        """Return the method and its cost; see `PerSampleGradient`."""
        return self.plain.cost()

    def _scale_plain(self) -> ConvWeightGradient:
        g = self.plain.g
        return replace(self.plain, g=g * self.scale.view(-1, *(1,) * (g.dim() - 3)))


def _along_rows(scale: Tensor, weight: Tensor) -> Tensor:
    """Return a scale per output channel, (o,), as (o, 1, ...)."""
    return scale.view(-1, *(1,) * (weight.dim() - 1))


def _rows(gradient: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(m, o, c * taps) and (o, c * taps), both in the order of the gradient's memory."""
    if gradient.is_contiguous():
        return gradient.view(*gradient.shape[:2], -1), weight.reshape(weight.shape[0], -1)
    if gradient.stride(2) == 1:
        gradient, weight = gradient.movedim(2, -1), weight.movedim(1, -1)
    return gradient.flatten(2), weight.flatten(1)
