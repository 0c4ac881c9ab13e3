"""Sketches of per-sample gradients: few numbers that keep norms and inner products.

A count sketch adds every entry of a vector, with a random sign, to one of d buckets; for any x, y

    E <Sx, Sy> = <x, y>        Var <Sx, Sy> <= (||x||^2 ||y||^2 + <x, y>^2) / d

(Charikar, Chen & Farach-Colton 2002; Weinberger et al. 2009, arXiv:0902.2206). The sketches of all
parameters are added up in the same buckets. Of a matrix, entry (o, i) goes to bucket a_o + b_i mod
d with sign s_o r_i, so that the sketch of an outer product is the circular convolution of two
sketches (Pham & Pagh 2013) and a large product of few positions is never formed; with such hashes
the variance is at most three times as large.

All signs and a are drawn one by one, of b the first of every d neighbours: b_(i+1) = b_i + 1 within
such a run. No more is needed than that any two entries of a row meet with probability 1/d at most;
those of one run never do, and a run is added to the buckets as a whole. Of a convolution, each
entry of the kernel has runs of its own, along the channels.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from upslope.gradnorm.arguments import Call, whole_number
from upslope.gradnorm.core.dense_sums import Uses, dense_sum
from upslope.gradnorm.core.model_io import Inputs, Loss
from upslope.gradnorm.core.per_sample_gradients import Dense, OuterPieces
from upslope.gradnorm.core.restoring import in_turn
from upslope.gradnorm.core.sums_of_squares import squared_norms
from upslope.gradnorm.core.weights import Weights
from upslope.gradnorm.losses import resolve_loss
from upslope.gradnorm.parameters import Parameters

_TRANSFORM = 4
"""What the transforms of a position cost per bucket, in additions of one entry. Set by hand."""

_WORTH_A_CALL = 1 << 13
"""Entries from which on runs are added to buckets as a whole: a call for each costs as much as the
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

    def dense(self, name: str, rows: Tensor) -> Tensor:
        """Return the sketches (m, dim) of gradients (m, *shape)."""
        if rows.dim() < 3:
            return self._columns(name, [rows if rows.dim() > 1 else rows[:, None]])
        has_channels_last = rows.dim() > 3 and rows.stride(2) == 1
        # In the order of memory, for a copy would take as long as the sketch.
        flat = (rows.movedim(2, -1) if has_channels_last else rows).flatten(1)
        halves = rows.new_zeros(len(rows), 2 * self.dim)
        buckets = self._of_entries(name, rows, has_channels_last)
        halves.scatter_add_(1, buckets.expand(len(rows), -1), flat)
        return halves[:, : self.dim] - halves[:, self.dim :]

    def _of_entries(self, name: str, rows: Tensor, has_channels_last: bool) -> Tensor:
        """Return the bucket of each entry of a gradient in the order of memory; see below."""
        shape = rows.shape[1:]
        key = name, shape, rows.device, has_channels_last
        if self._last_entries is None or self._last_entries[0] != key:
            is_remembered = shape.numel() <= _REMEMBERED_ENTRIES
            draw = _remembered_buckets if is_remembered else _buckets_of_entries
            places = draw(self.dim, f"{self.seed}/{name}", shape, has_channels_last)
            self._last_entries = key, places.to(rows.device)
        return self._last_entries[1]

    def outer(self, name: str, piece: OuterPieces) -> Tensor:
        """(m, dim), of sums of outer products that are not formed."""
        if 0 in piece.g.shape[:2]:  # an expert that no row has chosen; transforms take no nothing
            return piece.g.new_zeros(len(piece.g), self.dim)
        g = torch.fft.rfft(self._rows(name, piece.g))
        x = torch.fft.rfft(self._columns(name, piece.x).flatten(1, -2))
        sketch: Tensor = torch.fft.irfft((g * x).sum(dim=1), n=self.dim)
        return sketch

    def _rows(self, name: str, values: Tensor) -> Tensor:
        """Return the sketches (m, t, dim) of numbers for the rows of a weight, (m, t, o)."""
        buckets, signs = _draw_rows(self.dim, f"{self.seed}/{name}", values.shape[2])
        places = buckets.to(values.device).expand(values.shape)
        sketches = values.new_zeros(*values.shape[:2], self.dim)
        return sketches.scatter_add_(2, places, values * signs.to(values))

    def _columns(self, name: str, taps: Sequence[Tensor]) -> Tensor:
        """Return the sketches (..., dim) of rows of a weight.

        taps: of each entry of the kernel, (..., c).
        """
        *space, channels = taps[0].shape
        hashes = _draw_columns(self.dim, f"{self.seed}/{name}", channels, len(taps))
        signs, buckets = hashes.signs.to(taps[0]), hashes.buckets
        sketches = taps[0].new_zeros(*space, self.dim)
        adds_runs = math.prod(space) * min(channels, self.dim) >= _WORTH_A_CALL
        for k, values in enumerate(taps):
            if not adds_runs:
                places = buckets[k].to(values.device).expand(values.shape)
                sketches.scatter_add_(-1, places, values * signs[k])
                continue
            for columns, run in hashes.runs[k]:
                sketches[..., run].addcmul_(values[..., columns], signs[k, columns])
        return sketches


class _ColumnHashes(NamedTuple):
    """The buckets and signs of the columns of a weight, (taps, channels)."""

    buckets: Tensor
    signs: Tensor
    runs: tuple[tuple[tuple[slice, slice], ...], ...]
    """Of each tap, the channels that lie side by side in buckets as well, and these."""


@functools.lru_cache(1024)  # the same for every batch
def _draw_rows(dim: int, name: str, size: int) -> tuple[Tensor, Tensor]:
    """Return the buckets in 0..dim-1 and the signs of the rows of a weight, (size,) each."""
    rng = _generator(f"{name}/rows")
    return torch.randint(dim, (size,), generator=rng), _draw_signs(rng, size)


@functools.lru_cache(1024)
def _draw_columns(dim: int, name: str, channels: int, taps: int) -> _ColumnHashes:
    """Return the hashes of the columns of a weight (o, channels, *kernel) or (channels,)."""
    rng = _generator(f"{name}/columns")
    first = torch.randint(dim, (taps, -(-channels // dim)), generator=rng)
    buckets = ((first[:, :, None] + torch.arange(dim)) % dim).flatten(1)[:, :channels]
    runs = []
    for firsts in first.tolist():
        of_tap = []
        for start, bucket in zip(range(0, channels, dim), firsts, strict=True):
            end = min(start + dim, channels)
            turn = min(start + dim - bucket, end)  # from where on it goes on at bucket 0
            of_tap.append((slice(start, turn), slice(bucket, bucket + turn - start)))
            if turn < end:
                of_tap.append((slice(turn, end), slice(0, end - turn)))
        runs.append(tuple(of_tap))
    return _ColumnHashes(buckets, _draw_signs(rng, taps, channels), tuple(runs))


def _buckets_of_entries(dim: int, name: str, shape: torch.Size, has_channels_last: bool) -> Tensor:
    """Return the bucket of each entry of a weight (o, c, *kernel), (numel,).

    In 0..2 dim-1, the second half for negative signs: no entry is multiplied.
    """
    a, s = _draw_rows(dim, name, shape[0])
    columns = _draw_columns(dim, name, shape[1], shape[2:].numel())
    buckets = a[:, None] + columns.buckets.T.flatten()
    buckets = torch.where(buckets >= dim, buckets - dim, buckets)
    is_negative = s[:, None] * columns.signs.T.flatten() < 0
    buckets = torch.where(is_negative, buckets + dim, buckets).view(shape)
    return (buckets.movedim(1, -1) if has_channels_last else buckets).flatten()


_remembered_buckets = functools.lru_cache(16)(_buckets_of_entries)


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def _draw_signs(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(2, shape, generator=rng) * 2.0 - 1.0


class _NormsAndSketches:
    """Squared norms and sketches side by side, (n, 1 + dim)."""

    def __init__(self, projection: Projection):
        self.projection = projection

    def of_uses(self, weights: Weights, name: str, uses: Uses, scratch: int) -> Tensor:
        """Reduce the sum of all uses of a parameter; see `Reduction`."""
        (weight, part), *more = uses
        if not more and isinstance(part, Dense) and weights.tracks(weight):
            return self.of_dense(name, part.values)
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
