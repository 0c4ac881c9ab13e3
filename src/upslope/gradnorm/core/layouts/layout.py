"""Where the samples of a batch are inside a tensor.

Most layers keep the batch in dimension 0. Attention may transpose it to dimension 1, window
attention folds windows into it, sequence models flatten positions into rows. A `Layout` says
which entries belong to which sample. It is not guessed: `layout_probe` reads it off backward passes
from some of the losses. Where the data decide (rows sent to experts), no dimension tells it, and
the sample of each entry is listed: `IndexedLayout`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

_MOST_BYTES = 64 << 20
"""Bytes of gradients of a weight that has entries for single samples: one by one is better."""

_BYTES_AT_ONCE = 1 << 20
"""Bytes of a gradient that are copied at a time to be looked at."""


@dataclass(frozen=True)
class Layout:
    """Entry j of dimension `dim`, of size a*n*b, belongs to sample (j // b) % n.

    b = None stands for the whole of size // n: each sample's entries lie together.
    """

    dim: int = 0
    b: int | None = None
    doubtful: Tensor | None = field(default=None, compare=False, repr=False, kw_only=True)
    """(size,) bool: entries along `dim` that may be another sample's (`doubtful_rows`)."""

    def samples(self, tensor: Tensor, n: int) -> Tensor:
        """(n, k, *other dimensions): the k = a*b entries of each sample along `dim`."""
        if self.b is None:
            rows_first = tensor.movedim(self.dim, 0)
            return rows_first.reshape(n, rows_first.shape[0] // n, *rows_first.shape[1:])
        return self._blocks(tensor, n).flatten(1, 2)

    def _blocks(self, tensor: Tensor, n: int) -> Tensor:
        """(n, a, b, *other dimensions): the entries of each sample, as a view of the tensor."""
        rows_first = tensor.movedim(self.dim, 0)
        k = rows_first.shape[0] // n
        b = k if self.b is None else self.b
        return rows_first.reshape(k // max(1, b), n, b, *rows_first.shape[1:]).transpose(0, 1)

    def owners(self, size: int, n: int) -> Tensor:
        """(size,): to which sample each entry along `dim` belongs."""
        order = Layout(0, self.b).samples(torch.arange(size), n)
        owners = torch.empty(size, dtype=torch.int64)
        owners[order] = torch.arange(n)[:, None]
        return owners

    @property
    def last(self) -> int:
        """The last of the dimensions in which samples are told apart."""
        return self.dim

    @functools.cached_property
    def is_usual(self) -> bool:
        """Whether the entries of each sample lie together in dimension 0; asked of each use."""
        return type(self) is Layout and self.dim == 0 and self.b is None

    def reaches_others(self, gradient: Tensor) -> bool:
        """Whether a gradient is not zero at an entry that may belong to another sample, or none."""
        if self.doubtful is None:
            return False
        return bool(gradient.movedim(self.dim, 0)[self.doubtful.to(gradient.device)].any())

    def settled_by(self, other: Layout | None) -> Layout:
        """Return this layout, with the doubts alone that another batch has left as well.

        other: the layout that the other batch has shown, if it has shown one.
        """
        if self.doubtful is None or other != self:
            return self
        if other.doubtful is None:
            return other
        return replace(self, doubtful=self.doubtful & other.doubtful)

    def explains(self, gradient: Tensor, mask: Tensor) -> bool:
        """Whether `gradient` is zero for all samples but those of `mask`, (n,) bool."""
        rows = self._blocks(gradient, len(mask))
        # A few samples at a time: a copy of half of the largest gradient is seldom needed.
        size = rows[:1].numel() * rows.element_size()
        others = (~mask).nonzero().flatten()
        few = max(1, _BYTES_AT_ONCE // max(1, size))
        return not any(bool(rows[others[a : a + few]].any()) for a in range(0, len(others), few))


@dataclass(frozen=True, eq=False)
class IndexedLayout(Layout):
    """Entry j of dimension `dim` belongs to sample owner[j]; to none, that matters, where -1.

    With more `dims` than one, j counts the entries of as many dimensions from the first on, as if
    they were one: tokens of which those of a class lie elsewhere than those of the patches, say.
    """

    owner: Tensor = field(kw_only=True)
    n: int = field(kw_only=True)
    dims: int = field(default=1, kw_only=True)

    @property
    def last(self) -> int:
        """The last of the dimensions in which samples are told apart."""
        return self.dim + self.dims - 1

    def samples(self, tensor: Tensor, n: int) -> Tensor:  # noqa: ARG002
        """As `Layout`, with zeros for what a sample has less than the one that has most."""
        places, empty = self._places
        at, device = places.flatten(), tensor.device
        rows = self._in_a_row(tensor).index_select(0, at.to(device))
        return rows.index_fill_(0, empty.to(device), 0).view(*places.shape, *rows.shape[1:])

    def _blocks(self, tensor: Tensor, n: int) -> Tensor:
        return self.samples(tensor, n)

    def owners(self, size: int, n: int) -> Tensor:  # noqa: ARG002
        """Return the sample of each entry; see `Layout`."""
        return self.owner

    def sum_by_sample(self, tensor: Tensor, full: Sequence[int]) -> Tensor:
        """Return the sum by sample, (n, *full), over entries that one of `full` is broadcast to.

        full: as many dimensions as the tensor has. It may tell apart entries along the dimensions
        of the samples.

        Raises:
            SamplesNotSeparable: it has rows for each sample, and too many to be there n times.
        """
        rows = self._in_a_row(tensor)
        along, others = list(full[self.dim : self.last + 1]), list(full)
        del others[self.dim : self.last + 1]
        over = [1 + d for d, size in enumerate(others) if size == 1 and rows.shape[1 + d] != 1]
        rows = rows.sum(dim=over, keepdim=True) if over else rows
        size = math.prod(along)
        numbers = self.n * size * rows[:1].numel()
        if along[0] % self.n == 0 and numbers * rows.element_size() > _MOST_BYTES:
            raise SamplesNotSeparable("a weight has entries for single samples of the batch")
        target, with_owner = self.owner, self._rows_with_owner
        if size > 1:
            place = torch.arange(size).view(along).expand(tensor.shape[self.dim : self.last + 1])
            target = target * size + place.reshape(-1).to(target.device)
        if len(with_owner) < len(target):
            target, rows = target[with_owner], rows[with_owner.to(rows.device)]
        total = rows.new_zeros(self.n * size, *rows.shape[1:])
        total.index_add_(0, target.to(rows.device), rows)
        total = total.view(self.n, *along, *others)
        # The dimensions of the samples go back to where they were among the others.
        back = range(1, 1 + self.dims), range(1 + self.dim, 1 + self.dim + self.dims)
        return total.movedim(*map(tuple, back))

    def has_zeros(self, gradient: Tensor) -> bool:
        """Whether an entry that belongs to a sample has a zero among its numbers."""
        return not bool(self._in_a_row(gradient)[self._rows_with_owner.to(gradient.device)].all())

    def reaches_others(self, gradient: Tensor) -> bool:
        """Whether a gradient is not zero at an entry that belongs to no sample."""
        if self._gaps is None:
            return False
        return bool(self._in_a_row(gradient)[self._gaps.to(gradient.device)].any())

    def _in_a_row(self, tensor: Tensor) -> Tensor:
        """Return a tensor with the entries that are told apart in dimension 0."""
        if self.dims > 1:
            tensor = tensor.flatten(self.dim, self.last)
        return tensor.movedim(self.dim, 0)

    @functools.cached_property
    def _rows_with_owner(self) -> Tensor:
        return (self.owner >= 0).nonzero()[:, 0]

    @functools.cached_property
    def _gaps(self) -> Tensor | None:
        gaps = (self.owner < 0).nonzero()[:, 0]
        return gaps if len(gaps) else None

    @functools.cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """(n, k): where each sample's entries are; and the places among n * k of those it lacks."""
        owned_rows = self._rows_with_owner
        who, order = self.owner[owned_rows].sort(stable=True)
        count = torch.bincount(who, minlength=self.n)
        rank = torch.arange(len(who), device=who.device) - (count.cumsum(0) - count)[who]
        places = who.new_zeros(self.n, int(count.max()))
        there = torch.zeros_like(places, dtype=torch.bool)
        places[who, rank], there[who, rank] = owned_rows[order], True
        return places, (~there).flatten().nonzero()[:, 0]


@dataclass(frozen=True)
class LayoutOfOne(Layout):
    """All entries belong to one sample: a row that a model writes for it alone."""

    sample: int = field(kw_only=True)

    def samples(self, tensor: Tensor, n: int) -> Tensor:
        """As `Layout`, with zeros for all samples but one."""
        rows = tensor.new_zeros(n, *tensor.shape)
        rows[self.sample] = tensor
        return rows

    def owners(self, size: int, n: int) -> Tensor:  # noqa: ARG002
        """Return the sample of each entry; see `Layout`."""
        return torch.full((size,), self.sample)

    def explains(self, gradient: Tensor, mask: Tensor) -> bool:
        """Whether `gradient` is zero unless the sample is one of `mask`, (n,) bool."""
        return bool(mask[self.sample]) or not bool(gradient.any())


class SamplesNotSeparable(Exception):  # noqa: N818 (a finding that the engine acts on, not an error)
    """A use whose samples cannot be told apart; the engine then goes sample by sample."""


class GradientsHooked(SamplesNotSeparable):
    """Hooks may change gradients: each must be given those of one sample."""


@dataclass(frozen=True)
class Samples:
    """Brings n samples, kept in some layout, to the front of a tensor."""

    n: int
    layout: Layout = Layout()

    def front(self, tensor: Tensor) -> Tensor:
        """(n, k, *other dimensions)."""
        return self.layout.samples(tensor, self.n)

    def rows(self, tensor: Tensor, keep: int = 1) -> Tensor:
        """(n, t, *the last `keep` dimensions): all positions of a sample in a row.

        Raises:
            SamplesNotSeparable: the samples are in one of the last `keep` dimensions.
        """
        layout = self.layout
        if layout.is_usual and tensor.dim() > keep:  # in one step: asked of each use
            # Most tensors have this shape already, or lack no more than a dimension of one.
            if tensor.shape[0] == self.n and tensor.dim() <= keep + 2:
                return tensor if tensor.dim() == keep + 2 else tensor.unsqueeze(1)
            if tensor.shape[0] % self.n == 0 and tensor.numel() > 0:
                return tensor.reshape(self.n, -1, *tensor.shape[tensor.dim() - keep :])
        if layout.last >= tensor.dim() - keep:
            raise SamplesNotSeparable("samples lie in a dimension that a weight acts on")
        return self.front(tensor).flatten(1, -1 - keep)

    def sum_to_shape(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """(n, *shape): the sum over the entries that one entry of `shape` is broadcast to.

        Raises:
            SamplesNotSeparable: `shape` tells apart entries along the dimension of the samples.
        """
        shape, ahead = tuple(shape), tensor.dim() - len(shape)
        # The usual place, and one row of the weight for all positions, in one step.
        if ahead > 0 and self.layout.is_usual and tensor.shape[ahead:] == shape:
            if ahead < 3 and tensor.shape[0] == self.n:
                return tensor if ahead == 1 else tensor.sum(dim=1)
            if tensor.shape[0] % self.n == 0 and tensor.numel() > 0:
                return tensor.reshape(self.n, -1, *shape).sum(dim=1)
        full = (1,) * ahead + shape
        # All of it is the one sample's, also where it has no dimension for it.
        if self.n == 1:
            return tensor.sum_to_size(full).reshape(1, *shape)
        if isinstance(self.layout, IndexedLayout):
            return self.layout.sum_by_sample(tensor, full).reshape(self.n, *shape)
        if full[self.layout.dim] != 1:
            raise SamplesNotSeparable("a weight has entries for single samples of the batch")
        front = self.front(tensor)
        others = full[: self.layout.dim] + full[self.layout.dim + 1 :]
        over = [1, *(2 + d for d, size in enumerate(others) if size == 1)]
        over = [d for d in over if front.shape[d] != 1]  # a sum of one term would be a copy
        return (front.sum(dim=over) if over else front).reshape(self.n, *shape)

    def owners(self, tensor: Tensor) -> Tensor:
        """To which sample each entry belongs, (1, ..., size, ..., 1) along the samples."""
        layout = self.layout
        sizes = tensor.shape[layout.dim : layout.last + 1]
        owners = layout.owners(math.prod(sizes), self.n).to(tensor.device)
        return owners.view(*sizes, *(1,) * (tensor.dim() - 1 - layout.last))
