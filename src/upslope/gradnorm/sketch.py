"""Sketches of per-sample gradients: few numbers that keep norms and inner products.

A count sketch adds every entry of a vector, with a random sign, to one of d buckets; for any x, y

    E <Sx, Sy> = <x, y>        Var <Sx, Sy> <= (||x||^2 ||y||^2 + <x, y>^2) / d

(Charikar, Chen & Farach-Colton 2002; Weinberger et al. 2009, arXiv:0902.2206). The sketches of all
parameters are added up in the same buckets. Of a matrix, entry (o, i) goes to bucket a_o + b_i mod
d with sign s_o r_i, so that the sketch of an outer product is the circular convolution of two
sketches (Pham & Pagh 2013) and a large product of few positions is never formed; with such hashes
the variance is at most three times as large.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from upslope.gradnorm.arguments import Call, whole_number
from upslope.gradnorm.core.dense_sums import Uses, dense_sum
from upslope.gradnorm.core.model_io import Inputs, Loss
from upslope.gradnorm.core.per_sample_gradients import OuterPieces
from upslope.gradnorm.core.restoring import in_turn
from upslope.gradnorm.core.sums_of_squares import squared_norms
from upslope.gradnorm.core.weights import Weights
from upslope.gradnorm.losses import resolve_loss
from upslope.gradnorm.parameters import Parameters

_TRANSFORM = 4
"""What the transforms of a position cost per bucket, in additions of one entry. Set by hand."""

_LONG = 64
"""Entries from which on rows are added to buckets as a whole: a call for each costs as much as the
additions of so many single entries. Set by hand."""

_REMEMBERED_ENTRIES = 1 << 18
"""Most entries of a weight whose buckets are kept for the next batch: 2 MiB of numbers."""


class Sketches(NamedTuple):
    """norms: (n,) float64, exact. vectors: (n, dim), their random projections."""

    norms: Tensor
    vectors: Tensor


@in_turn
def gradient_sketches(
    model: nn.Module,
    inputs: Inputs,
    loss: str | Loss,
    *,
    dim: int = 512,
    seed: int = 0,
    parameters: Parameters = None,
    max_memory: int | None = None,
) -> Sketches:
    """Return random projections of each sample's whole gradient, and its exact norm, from one pass.

    dim: numbers a sketch; inner products are kept to about sqrt(2 / dim) of the norms' product.
    seed: which projection; sketches of different batches compare if made with one seed.
    The other arguments are those of `gradient_norms`.

    model, inputs: as of `gradient_norms`. max_memory: bytes of scratch.

    Raises:
        GradientNormError: as `gradient_norms`; `dim` is not positive, or `seed` no whole number.
    """
    dim, seed = whole_number("dim", dim, at_least=1), whole_number("seed", seed)
    call = Call.of(model, inputs, parameters, max_memory)
    rows = call.reduce(_NormsAndSketches(Projection(dim, seed)), resolve_loss(loss))
    total = torch.stack(list(rows.values())).sum(dim=0)
    # In double, as `gradient_norms` returns them.
    return Sketches(total[:, 0].double().sqrt(), total[:, 1:])


class Projection:
    """The buckets and signs of every parameter, from its name and shape and a seed alone."""

    def __init__(self, dim: int, seed: int):
        self.dim, self.seed = dim, seed
        self._last_entries: tuple[Any, Tensor] | None = None
        """What `_of_entries` was asked last: a parameter's gradients come in pieces."""

    def hashes(self, name: str, size: int, side: str) -> tuple[Tensor, Tensor]:
        """Buckets in 0..dim-1 and signs, (size,) each; not to be written to."""
        return _draw_hashes(self.dim, f"{self.seed}/{name}/{side}", size)

    def dense(self, name: str, rows: Tensor) -> Tensor:
        """Return the sketches (m, dim) of gradients (m, *shape)."""
        rows = rows if rows.dim() > 1 else rows[:, None]
        has_channels_last = rows.dim() > 3 and rows.stride(2) == 1
        # In the order of memory, for a copy would take as long as the sketch.
        flat = (rows.movedim(2, -1) if has_channels_last else rows).flatten(1)
        halves = rows.new_zeros(len(rows), 2 * self.dim)
        buckets = self._of_entries(name, rows, has_channels_last)
        return self._difference(halves.scatter_add_(1, buckets.expand(len(rows), -1), flat), 1)

    def _of_entries(self, name: str, rows: Tensor, has_channels_last: bool) -> Tensor:
        """Return the bucket of each entry of a gradient in the order of memory, (numel,).

        As of `_by_sign`.
        """
        shape = rows.shape[1:]
        key = name, shape, rows.device, has_channels_last
        if self._last_entries is None or self._last_entries[0] != key:
            is_remembered = len(shape) > 1 and shape.numel() <= _REMEMBERED_ENTRIES
            draw = _remembered_buckets if is_remembered else _buckets_of_entries
            places = draw(self.dim, f"{self.seed}/{name}", shape, has_channels_last)
            self._last_entries = key, places.to(rows.device)
        return self._last_entries[1]

    def outer(self, name: str, piece: OuterPieces) -> Tensor:
        """(m, dim), of sums of outer products that are not formed."""
        if 0 in piece.g.shape[:2]:  # an expert that no row has chosen; transforms take no nothing
            return piece.g.new_zeros(len(piece.g), self.dim)
        (a, s), (b, r) = self._both(name, piece.g.shape[2], piece.x.shape[2], piece.g)
        if piece.columns is not None:
            b, r = b[piece.columns], r[piece.columns]
        g = torch.fft.rfft(self._side(piece.g, a, s))
        x = torch.fft.rfft(self._side(piece.x, b, r))
        sketch: Tensor = torch.fft.irfft((g * x).sum(dim=1), n=self.dim)
        return sketch

    def _side(self, values: Tensor, buckets: Tensor, signs: Tensor) -> Tensor:
        """Return the sketches (m, t, dim) of the rows of values (m, t, size)."""
        m, t, size = values.shape
        places = _by_sign(buckets, signs, self.dim)
        if values.is_cpu and m * t >= _LONG:
            # The entries of all positions are one row, added as a whole.
            halves = values.new_zeros(m, 2 * self.dim, t).index_add_(1, places, values.mT)
            return self._difference(halves, 1).mT
        halves = values.new_zeros(m, t, 2 * self.dim)
        return self._difference(halves.scatter_add_(2, places.expand(m, t, size), values), 2)

    def _difference(self, halves: Tensor, axis: int) -> Tensor:
        """Return the buckets, from those of positive and of negative signs."""
        return halves.narrow(axis, 0, self.dim) - halves.narrow(axis, self.dim, self.dim)

    def _both(
        self, name: str, rows: int, columns: int, like: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        sides = ((rows, "rows"), (columns, "columns"))
        hashes = (self.hashes(name, size, side) for size, side in sides)
        return [(buckets.to(like.device), signs.to(like)) for buckets, signs in hashes]


def _by_sign(buckets: Tensor, signs: Tensor, dim: int) -> Tensor:
    """Return buckets in 0..2 dim-1, the second half for negative signs: no entry is multiplied."""
    return torch.where(signs < 0, buckets + dim, buckets)


def _buckets_of_entries(dim: int, name: str, shape: torch.Size, has_channels_last: bool) -> Tensor:
    """Return the bucket of each entry of a weight, (numel,), as of `_by_sign`."""
    outer = shape[0] if len(shape) > 1 else 1
    a, s = _draw_hashes(dim, f"{name}/rows", outer)
    b, r = _draw_hashes(dim, f"{name}/columns", shape.numel() // max(1, outer))
    places = a[:, None] + b
    places = torch.where(places >= dim, places - dim, places)
    places = _by_sign(places, s[:, None] * r, dim).view(shape)
    return (places.movedim(1, -1) if has_channels_last else places).flatten()


_remembered_buckets = functools.lru_cache(16)(_buckets_of_entries)  # the same for every batch


@functools.lru_cache(1024)  # the same for every batch
def _draw_hashes(dim: int, name: str, size: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    buckets = torch.randint(dim, (size,), generator=rng)
    return buckets, torch.randint(2, (size,), generator=rng) * 2.0 - 1.0


class _NormsAndSketches:
    """Squared norms and sketches side by side, (n, 1 + dim)."""

    def __init__(self, projection: Projection):
        self.projection = projection

    def of_uses(self, weights: Weights, name: str, uses: Uses, scratch: int) -> Tensor:
        """Reduce the sum of all uses of a parameter; see `Reduction`."""
        (weight, part), *more = uses
        if not more and not weight.is_complex() and weights.tracks(weight) and weight.dim() > 1:
            rows, columns = len(weight), weight[0].numel()
            # A place in a bucket for every entry of the gradient, or transforms of both sides.
            numbers_per_entry = rows + columns + _TRANSFORM * self.projection.dim
            outer = part.outer_products(scratch, rows * columns / numbers_per_entry)
            if outer is not None:
                sketches = torch.cat([self.projection.outer(name, piece) for piece in outer])
                return torch.cat([part.squared_norms(scratch)[:, None], sketches], dim=1)
        dense = part.dense_pieces(scratch) if not more and weights.tracks(weight) else None
        if dense is None:
            dense = (rows for _, rows in dense_sum(weights, name, uses, scratch))
        return torch.cat([self.of_dense(name, rows) for rows in dense])

    def of_dense(self, name: str, gradients: Tensor) -> Tensor:
        """Reduce gradients that are formed already; see `Reduction`."""
        if gradients.dim() > 3 and gradients.stride(2) == 1:  # in the order of memory, uncopied
            squares = squared_norms(gradients.movedim(2, -1))
        else:
            squares = squared_norms(gradients)
        if gradients.is_complex():
            gradients = torch.view_as_real(gradients.resolve_conj())
        return torch.cat([squares[:, None], self.projection.dense(name, gradients)], dim=1)

    def sizes(self, name: str, gradients: Tensor) -> Tensor:
        """Return the largest number of each row, (m,)."""
        return self.of_dense(name, gradients).abs().amax(dim=1)
