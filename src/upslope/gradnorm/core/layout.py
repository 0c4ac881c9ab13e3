"""Where the samples of a batch are inside a tensor.

Most layers keep the batch in dimension 0. Attention may transpose it to dimension 1, window
attention folds windows into it, sequence models flatten positions into rows. A `Layout` says
which entries belong to which sample. It is not guessed: a `LayoutProbe` reads it off two
backward passes, one from half of the losses and one from the other half. Under the right layout
the gradient that reaches a use is zero exactly where the samples of the other half are. Where both
passes leave more than one layout, or none, more passes (`codes`) tell the sample of every entry:
whatever explains all of them is right for every entry that a gradient reached. Where the data
decide (rows sent to experts), nothing else will do: `IndexedLayout`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from upslope.gradnorm.core.separation import checksum

_MOST_BYTES = 64 << 20
"""Bytes of gradients of a weight that has entries for single samples: one by one is better."""


@dataclass(frozen=True)
class Layout:
    """Entry j of dimension `dim`, of size a*n*b, belongs to sample (j // b) % n.

    b = None stands for the whole of size // n: each sample's entries lie together.
    """

    dim: int = 0
    b: int | None = None

    def samples(self, tensor: Tensor, n: int) -> Tensor:
        """(n, k, *other dimensions): the k = a*b entries of each sample along `dim`."""
        rows_first = tensor.movedim(self.dim, 0)
        k = rows_first.shape[0] // n
        b = k if self.b is None else self.b
        if b == k:
            return rows_first.reshape(n, k, *rows_first.shape[1:])
        return rows_first.reshape(k // b, n, b, *rows_first.shape[1:]).transpose(0, 1).flatten(1, 2)

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

    def explains(self, gradient: Tensor, mask: Tensor) -> bool:
        """Whether `gradient` is zero for all samples but those of `mask`, (n,) bool."""
        return not bool(self.samples(gradient, len(mask))[~mask].any())


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
        rows_first = self._in_a_row(tensor)
        places, there = self._places
        there = there.view(*there.shape, *(1,) * (rows_first.dim() - 1))
        return torch.where(there, rows_first[places], 0)

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
        place = torch.arange(size).view(along).expand(tensor.shape[self.dim : self.last + 1])
        with_owner = self._rows_with_owner
        target = self.owner[with_owner] * size + place.reshape(-1)[with_owner].to(self.owner.device)
        total = rows.new_zeros(self.n * size, *rows.shape[1:])
        total.index_add_(0, target.to(rows.device), rows[with_owner.to(rows.device)])
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
        """(n, k): where each sample's entries are, and whether it has so many."""
        owned_rows = self._rows_with_owner
        who, order = self.owner[owned_rows].sort(stable=True)
        count = torch.bincount(who, minlength=self.n)
        rank = torch.arange(len(who), device=who.device) - (count.cumsum(0) - count)[who]
        places = who.new_zeros(self.n, int(count.max()))
        there = torch.zeros_like(places, dtype=torch.bool)
        places[who, rank], there[who, rank] = owned_rows[order], True
        return places, there


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
        return front.sum(dim=over).reshape(self.n, *shape)

    def owners(self, tensor: Tensor) -> Tensor:
        """To which sample each entry belongs, (1, ..., size, ..., 1) along the samples."""
        layout = self.layout
        sizes = tensor.shape[layout.dim : layout.last + 1]
        owners = layout.owners(math.prod(sizes), self.n).to(tensor.device)
        return owners.view(*sizes, *(1,) * (tensor.dim() - 1 - layout.last))


def candidates(tensor: Tensor, n: int) -> Iterator[Layout]:
    """The layouts in which n samples fit into a tensor of this shape, the likeliest first."""
    for dim, size in enumerate(tensor.shape):
        if size and size % n == 0:
            yield Layout(dim)
            k = size // n
            yield from (Layout(dim, b) for b in range(1, k) if k % b == 0)


def is_ambiguous_in_front(entries: Tensor, n: int, dim: int | None) -> bool:
    """Return whether another layout than that in front gives each entry to the same sample.

    entries: bool, (a multiple of n, ...), which entries count. dim: where the samples must be,
    if the operator tells.
    """
    front = Layout()
    owners_in_front = front.owners(len(entries), n)
    entries_along: dict[int, Tensor] = {}
    for layout in candidates(entries, n):
        if layout == front or dim not in (None, layout.dim):
            continue
        if layout.dim not in entries_along:
            others = [d for d in range(1, entries.dim()) if d != layout.dim]
            entries_along[layout.dim] = (entries.any(dim=others) if others else entries).cpu()
        owners = layout.owners(entries.shape[layout.dim], n)
        rows = owners_in_front if layout.dim == 0 else owners_in_front[:, None]
        if not bool((entries_along[layout.dim] & (rows != owners)).any()):
            return True
    return False


class HasLayout(Protocol):
    """What an operator knows of where its samples are: all, the dimension, or nothing."""

    layout: Layout | None
    dim: int | None


@dataclass
class LayoutProbe:
    """Listens to backward passes from some of the losses, and keeps what explains them all."""

    kept: Tensor
    """(n,) bool: the samples whose losses are summed in the pass that comes."""
    uses: Sequence[HasLayout]
    """What the operators themselves know, to be held against the passes."""
    by_codes: bool = False
    """Whether the passes are those of `codes`, which tell the sample of every single entry."""
    fitting: dict[int, list[Layout]] = field(default_factory=dict)
    heard: set[int] = field(default_factory=set)
    """The uses that some pass reached with more than zeros."""
    silent: set[int] = field(default_factory=set)
    """The uses that some pass reached with nothing but zeros, which proves nothing."""
    unheard: Container[int] = ()
    """The uses that are not asked: the samples of their rows are told otherwise."""
    u: Tensor | None = None
    """(n,): a power of two for each sample, by which its loss was multiplied (`separation`)."""
    sums: dict[int, dict[Layout, Tensor]] = field(default_factory=dict)
    """Checksums (n,) of what reached each use in the passes from halves, by layout."""
    reached: dict[int, list[tuple[Tensor, list[Tensor]]]] = field(default_factory=dict)
    """`kept`, and where the gradient was not zero, of each pass: along each dimension, and then
    along the first two."""
    filled: dict[int, Tensor] = field(default_factory=dict)
    """Where the gradient of each use was not zero in some pass of codes."""
    indexed: set[int] = field(default_factory=set)
    """The uses whose samples codes have told, entry by entry, with no number missing."""

    def on_gradient(self, index: int, g: Tensor, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG002
        """Take in the gradient that reached one use; see `Listener`.

        Numbers below zero stand for tensors beside the uses (`trace/routing`).
        """
        if index in self.unheard:
            return
        (self.heard if bool(g.any()) else self.silent).add(index)
        if index not in self.fitting:
            self.fitting[index] = list(self._candidates(index, g))
        among = self.fitting[index]
        self.fitting[index] = [layout for layout in among if layout.explains(g, self.kept)]
        if self.u is not None and not self.by_codes:
            sums_by_layout = self.sums.setdefault(index, {})
            for layout in self.fitting[index]:
                n = len(self.kept)
                sums_by_layout[layout] = (
                    sums_by_layout.get(layout, 0) + checksum(layout.samples(g, n))[0]
                )
        if self.by_codes:
            along = [_rows_reached(g, dim) for dim in range(g.dim())]
            if g.dim() > 2:
                along.append(_rows_reached(g.flatten(0, 1), 0))
            self.reached.setdefault(index, []).append((self.kept, along))
            self.filled[index] = (g != 0) | self.filled.get(
                index, torch.zeros((), dtype=torch.bool)
            )

    def layouts(self) -> dict[int, Layout]:
        """use -> layout, for this batch.

        Raises:
            SamplesNotSeparable: the samples of some use cannot be told apart.
        """
        return {index: self._layout(index) for index in self.heard}

    def checksums(self, layouts: Mapping[int, Layout]) -> dict[int, Tensor] | None:
        """use -> checksum (n,) of u times the losses; None where codes had to tell the layouts."""
        if self.u is None or self.by_codes:
            return None
        return {index: self.sums[index][layout] for index, layout in layouts.items()}

    @property
    def is_settled(self) -> bool:
        """Whether there is one layout for every use that some gradient reached.

        Where codes told the samples of each entry, those entries that no gradient reached belong
        to nobody; that none reaches them is asked of each batch (`reductions`).
        """
        return all(len(self.fitting[i]) == 1 or i in self.indexed for i in self.heard)

    def _candidates(self, index: int, g: Tensor) -> Iterator[Layout]:
        use = self.uses[index] if index >= 0 else None
        if use is not None and use.layout is not None:
            yield use.layout
            return
        for layout in candidates(g, len(self.kept)):
            if use is None or use.dim in (None, layout.dim):
                yield layout

    def _layout(self, index: int) -> Layout:
        if self.fitting[index]:
            return self.fitting[index][0]
        passes = self.reached.get(index, [])
        codes = torch.stack([mask for mask, _ in passes]) if passes else self.kept[None]
        for place, codes_along in enumerate(zip(*(along for _, along in passes), strict=True)):
            pair = place > 1 and place == len(passes[0][1]) - 1  # the first two as one
            dim = 0 if pair else place
            known_dim = self.uses[index].dim if index >= 0 else None
            if known_dim not in (None, dim) or (pair and known_dim == 0):
                continue
            owner = _owners(codes, torch.stack(codes_along))
            if owner is not None:
                dims = 2 if pair else 1
                layout = IndexedLayout(dim, owner=owner, n=len(self.kept), dims=dims)
                # Where a number is zero, it may be another sample's in the next batch.
                if not layout.has_zeros(self.filled[index]):
                    self.indexed.add(index)
                return layout
        raise SamplesNotSeparable("the samples cannot be told apart in the input of some layer")


def _rows_reached(g: Tensor, dim: int) -> Tensor:
    """(size,): where along `dim` some entry is not zero."""
    if g.numel() == 0:  # no sample has come this way: an expert that none has chosen, say
        return g.new_zeros(g.shape[dim], dtype=torch.bool)
    return g.movedim(dim, 0).reshape(g.shape[dim], -1).any(dim=1)


def _owners(codes: Tensor, codes_along: Tensor) -> Tensor | None:
    """(size,): the sample whose code (passes, n) each entry was reached by, (passes, size).

    -1 for what no pass reached; None if some entry was reached from several samples.
    """
    same = (codes.mT[:, None] == codes_along.mT).all(dim=2)  # (n, size)
    silent = ~codes_along.any(dim=0)
    if not bool((same.any(dim=0) | silent).all()):
        return None
    return torch.where(silent, -1, same.long().argmax(dim=0))


def halves(n: int) -> Iterator[Tensor]:
    """Two complementary (n,) masks without a pattern that a tensor's shape could imitate."""
    # Even and odd samples could be the rows of some shape; a random half is none.
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    first = torch.zeros(n, dtype=torch.bool)
    first[order[: (n + 1) // 2]] = True
    yield first
    yield ~first


def codes(n: int) -> Iterator[Tensor]:
    """(n,) masks that tell every sample from every other, for places that follow no pattern.

    Each sample is in half of the masks, and no two in the same half of them: were an entry held to
    belong to another sample than its own, some mask would show it.
    """
    count = next(m for m in itertools.count(2) if math.comb(m, m // 2) >= n)
    code_pairs = itertools.islice(itertools.combinations(range(count), count // 2), n)
    table = torch.tensor(list(code_pairs))  # (n, count // 2)
    for i in range(count):
        yield (table == i).any(dim=1)
