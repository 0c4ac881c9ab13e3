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
import hashlib
import math
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from upslope.gradnorm.arguments import Call, reduction, whole_number
from upslope.gradnorm.core.gradients.per_sample_gradients import (
    Dense,
    OuterPieces,
    PerSampleGradient,
)
from upslope.gradnorm.core.gradients.sums_of_squares import squared_norms, upcast
from upslope.gradnorm.core.model_io import Inputs, Loss
from upslope.gradnorm.core.state.restoring import in_turn
from upslope.gradnorm.core.uses.dense_sums import Uses, dense_sum
from upslope.gradnorm.core.weights.weights import Weights
from upslope.gradnorm.losses import resolve_loss
from upslope.gradnorm.parameters import Parameters

_TRANSFORM, _RUN = 2, 0.5
"""What a position costs, in additions of one entry: its transforms for each bucket, and an entry
that is added in a run. Set by hand, by sixteen shapes of matrices and convolutions."""

_WORTH_A_CALL = 1 << 13
"""Entries from which on runs are added to buckets as a whole: a call for each costs as much as the
additions of so many single entries. Set by hand."""


class Sketches(NamedTuple):
    """Norms and sketches of gradients.

    norms: (n,) float64, exact. vectors: (n, dim), random projections of the gradients.
    """

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

    model, inputs, loss, parameters, max_memory: as of `gradient_norms`.
    dim: how many numbers a sketch has; inner products are kept to about sqrt(2 / dim) of the
        product of the norms.
    seed: which projection; sketches of different batches can be compared if made with one seed.

    Raises:
        GradientNormError: as `gradient_norms`; `dim` is not positive, or `seed` no whole number.
    """
    dim, seed = whole_number("dim", dim, at_least=1), whole_number("seed", seed)
    call = Call.of(model, inputs, parameters, max_memory)
    rows = call.reduce(_NormsAndSketches(Projection(dim, seed)), resolve_loss(loss))
    norms = reduction("global")({name: row[:, 0] for name, row in rows.items()})
    # Numbers that float32 could not square come in float64.
    types = {p.dtype for p in call.weights.parameters.values()}
    dtype = torch.float64 if types & {torch.float64, torch.complex128} else torch.float32
    vectors = torch.stack([row[:, 1:].to(dtype) for row in rows.values()]).sum(dim=0)
    return Sketches(norms, vectors)


def projection_digest(dim: int, seed: int) -> str:
    """Return a digest of a projection, by that of the sketches of made-up gradients.

    Sketches can be compared if the digests of their projections are equal: another version of
    Upslope may project otherwise.

    dim, seed: as of `gradient_sketches`.
    """
    projection = Projection(dim, seed)
    sketches = []
    for shape in ((5,), (3, 2 * dim + 1), (3, 5, 2, 2)):
        # Sums of small whole numbers, which no machine rounds.
        gradients = torch.arange(math.prod(shape)).remainder(97).float().view(1, *shape)
        sketches.append(projection.dense("weight", gradients).flatten())
    numbers = torch.cat(sketches).long().tolist()
    return hashlib.sha256(str(numbers).encode()).hexdigest()[:16]


class Projection:
    """The buckets and signs of every parameter, from its name and shape and a seed alone."""

    def __init__(self, dim: int, seed: int):
        self.dim, self.seed = dim, seed
        self._last_places: tuple[Any, Tensor] | None = None
        """Arguments and result of the last call of `_places_of`: the gradients of a parameter come
        in pieces, which ask for the same."""

    def dense(self, name: str, rows: Tensor) -> Tensor:
        """Return the sketches (m, dim) of gradients (m, *shape)."""
        if rows.dim() < 3:
            return self._columns(name, [rows if rows.dim() > 1 else rows[:, None]])
        has_channels_last = rows.dim() > 3 and rows.stride(2) == 1
        # In the order of memory, for a copy would take as long as the sketch.
        flat = (rows.movedim(2, -1) if has_channels_last else rows).flatten(1)
        places = self._places_of(name, rows, has_channels_last)
        return self._add_at(places.expand(len(rows), -1), flat)

    def _places_of(self, name: str, rows: Tensor, has_channels_last: bool) -> Tensor:
        """Return the place of each entry of a gradient in the order of memory, (numel,)."""
        o, c, *kernel = rows.shape[1:]
        key = name, rows.shape[1:], rows.device, has_channels_last
        if self._last_places is None or self._last_places[0] != key:
            of_rows = _draw_rows(self.dim, self._address(name), o)
            of_columns = _draw_columns(self.dim, self._address(name), c, math.prod(kernel))
            columns = of_columns.places if has_channels_last else of_columns.places.T
            places = of_rows.places[:, None] + columns.flatten()
            self._last_places = key, places.flatten().to(rows.device)
        return self._last_places[1]

    def _add_at(self, places: Tensor, values: Tensor) -> Tensor:
        """Return the sketches (m, dim) of numbers (m, k) at places (m, k); see `_Hashes`."""
        sums = values.new_zeros(len(values), 6 * self.dim).scatter_add_(1, places, values)
        positive, negative, positive_again = sums.view(-1, 3, 2, self.dim).sum(dim=2).unbind(1)
        return positive - negative + positive_again

    def outer(self, name: str, piece: OuterPieces, rows: int) -> Tensor:
        """(m, dim), of sums of outer products that are not formed. rows: of the weight."""
        if 0 in piece.g.shape[:2]:  # an expert that no row has chosen; transforms take no nothing
            return piece.x[0].new_zeros(len(piece.g), self.dim)
        if piece.g.dim() == 2:
            return self._looked_up(name, piece.x[0], piece.g, rows)
        # Transforms know no half precision.
        g = torch.fft.rfft(self._rows(name, upcast(piece.g)))
        x = torch.fft.rfft(self._columns(name, [*map(upcast, piece.x)]).flatten(1, -2))
        sketch: Tensor = torch.fft.irfft((g * x).sum(dim=1), n=self.dim)
        return sketch

    def _looked_up(self, name: str, x: Tensor, ids: Tensor, rows: int) -> Tensor:
        """Return the sketches (m, dim) of numbers for the columns of some rows, (m, t, i)."""
        of_rows = _draw_rows(self.dim, self._address(name), rows).places.to(ids.device)
        of_columns = _draw_columns(self.dim, self._address(name), x.shape[2], 1).places
        places = of_rows[ids][:, :, None] + of_columns.to(ids.device)
        return self._add_at(places.flatten(1), x.flatten(1))

    def _rows(self, name: str, values: Tensor) -> Tensor:
        """Return the sketches (m, t, dim) of numbers for the rows of a weight, (m, t, o)."""
        hashes = _draw_rows(self.dim, self._address(name), values.shape[2])
        return _add_one_by_one(values, hashes.buckets, hashes.signs, self.dim)

    def _columns(self, name: str, taps: Sequence[Tensor]) -> Tensor:
        """Return the sketches (..., dim) of rows of a weight.

        taps: of each entry of the kernel, (..., c).
        """
        *space, channels = taps[0].shape
        key = self.dim, self._address(name), channels, len(taps)
        hashes = _draw_columns(*key)
        if math.prod(space) * min(channels, self.dim) < _WORTH_A_CALL:
            pairs = zip(taps, hashes.buckets, hashes.signs, strict=True)
            sketches = [_add_one_by_one(*pair, self.dim) for pair in pairs]
            return sum(sketches[1:], sketches[0])
        signs, total = hashes.signs.to(taps[0]), taps[0].new_zeros(*space, self.dim)
        for values, signs_of_tap, runs in zip(taps, signs, _runs(*key), strict=True):
            for columns, buckets in runs:
                total[..., buckets].addcmul_(values[..., columns], signs_of_tap[columns])
        return total

    def _address(self, name: str) -> str:
        return f"{self.seed}/{name}"


def _add_one_by_one(values: Tensor, buckets: Tensor, signs: Tensor, dim: int) -> Tensor:
    """Return the sketches (..., dim) of values (..., k). buckets, signs: (k,)."""
    places = buckets.to(values.device).expand(values.shape)
    sketches = values.new_zeros(*values.shape[:-1], dim)
    return sketches.scatter_add_(-1, places, values * signs.to(values))


class _Hashes(NamedTuple):
    """The bucket and the sign of each row, or column. buckets: in 0..dim-1. signs: 1 or -1.

    places: the bucket, and 2 dim for a negative sign. So those of a row and of a column have a sum,
    below 6 dim, from which both buckets and both signs can be told: nothing else need be computed
    for each entry of a matrix.
    """

    buckets: Tensor
    signs: Tensor
    places: Tensor


@functools.lru_cache(1024)  # the same for every batch
def _draw_rows(dim: int, name: str, size: int) -> _Hashes:
    """Return the hashes of the rows of a weight, (size,)."""
    rng = _generator(f"{name}/rows")
    return _with_signs(torch.randint(dim, (size,), generator=rng), dim, rng)


@functools.lru_cache(1024)
def _draw_columns(dim: int, name: str, channels: int, taps: int) -> _Hashes:
    """Return the hashes (taps, channels) of the columns of a weight (o, channels, *kernel)."""
    rng = _generator(f"{name}/columns")
    first = torch.randint(dim, (taps, -(-channels // dim), 1), generator=rng)
    buckets = ((first + torch.arange(dim)) % dim).flatten(1)[:, :channels]
    return _with_signs(buckets, dim, rng)


@functools.lru_cache(1024)
def _runs(dim: int, name: str, channels: int, taps: int) -> Sequence[Sequence[tuple[slice, slice]]]:
    """Return, of each tap, columns that lie side by side in buckets as well, and these buckets."""
    runs = []
    for first in _draw_columns(dim, name, channels, taps).buckets[:, ::dim].tolist():
        of_tap = []
        for start, bucket in zip(range(0, channels, dim), first, strict=True):
            end = min(start + dim, channels)
            turn = min(start + dim - bucket, end)  # from where on it goes on at bucket 0
            of_tap.append((slice(start, turn), slice(bucket, bucket + turn - start)))
            of_tap.append((slice(turn, end), slice(0, end - turn)))
        runs.append([(columns, run) for columns, run in of_tap if columns.start < columns.stop])
    return runs


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def _with_signs(buckets: Tensor, dim: int, rng: torch.Generator) -> _Hashes:
    is_negative = torch.randint(2, buckets.shape, generator=rng)
    return _Hashes(buckets, 1.0 - 2.0 * is_negative, buckets + 2 * dim * is_negative)


class _NormsAndSketches:
    """Squared norms and sketches side by side, (n, 1 + dim)."""

    degree = 2

    def __init__(self, projection: Projection):
        self.projection = projection

    def of_uses(self, weights: Weights, name: str, uses: Uses, scratch: int) -> Tensor:
        """Reduce the sum of all uses of a parameter; see `Reduction`."""
        (weight, part), *more = uses
        is_alone = not more and weights.tracks(weight)
        if is_alone and isinstance(part, Dense):
            return self.of_dense(name, part.values)
        sketches = self._of_form(name, weight, part, scratch) if is_alone else None
        if sketches is not None:
            return torch.cat([part.squared_norms(scratch)[:, None], sketches], dim=1)
        dense = part.dense_pieces(scratch) if is_alone else None
        if dense is None:
            dense = (rows for _, rows in dense_sum(weights, name, uses, scratch))
        return torch.cat([self.of_dense(name, rows) for rows in dense])

    def _of_form(
        self, name: str, weight: Tensor, part: PerSampleGradient, scratch: int
    ) -> Tensor | None:
        """Return the sketches (n, dim) where gradients need not be formed; None elsewhere."""
        if weight.is_complex() or weight.dim() < 2:
            return None
        rows, columns = len(weight), weight[0].numel()
        # A place in a bucket for every entry of the gradient, or transforms of both sides.
        additions = rows + _RUN * columns + _TRANSFORM * self.projection.dim
        outer = part.outer_products(scratch, rows * columns / additions)
        if outer is None:
            return None
        return torch.cat([self.projection.outer(name, piece, rows) for piece in outer])

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
