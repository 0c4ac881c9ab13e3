"""The places of the samples, read off backward passes from some of the losses.

Under the right layout the gradient that reaches a use is zero exactly where the samples of the
other half are, in two passes from complementary `halves` of the losses. Where both leave more than
one layout, or none, more passes (`codes`) tell the sample of every entry. Called by
`trace/forward` for programs that are not known yet; those that are known by other shapes alone may
be guessed instead (`FrontGuess`), and the proof of the batch is that of the guess.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from upslope.gradnorm.core.layouts.doubtful_rows import doubtful_rows
from upslope.gradnorm.core.layouts.layout import IndexedLayout, Layout, SamplesNotSeparable
from upslope.gradnorm.core.layouts.separation import checksum


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


_LARGE = 1 << 20
"""Bytes of a gradient of which no copies are made as long as they may not be needed."""


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
    rows: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """Where along a dimension the gradient of a use was not zero in some pass: by use and
    dimension, for those that have several entries of each sample."""
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
        for dim in {layout.dim for layout in self.fitting[index]}:
            if g.shape[dim] > len(self.kept):
                has_gradient = _rows_reached(g, dim)
                self.rows[index, dim] = has_gradient | self.rows.get((index, dim), has_gradient)
        if self.u is not None and not self.by_codes:
            self._add_checksums(index, g)
        if self.by_codes:
            along = [_rows_reached(g, dim) for dim in range(g.dim())]
            if g.dim() > 2:
                along.append(_rows_reached(g.flatten(0, 1), 0))
            self.reached.setdefault(index, []).append((self.kept, along))
            self.filled[index] = (g != 0) | self.filled.get(
                index, torch.zeros((), dtype=torch.bool)
            )

    def _add_checksums(self, index: int, g: Tensor) -> None:
        """Add what reached a use to its checksums, for each layout that still explains it.

        Of a large gradient those of samples in front come without a copy, and are most likely asked
        for: as long as they may be, no others are made.
        """
        is_first = index not in self.sums
        layouts, sums_by_layout = self.fitting[index], self.sums.setdefault(index, {})
        front = [layout for layout in layouts if layout.is_usual]
        if front and g.nbytes > _LARGE:
            layouts = front
        if not is_first:  # a layout without the sums of the first pass has none
            layouts = [layout for layout in layouts if layout in sums_by_layout]
        for layout in layouts:
            rows = layout.samples(g, len(self.kept))
            sums_by_layout[layout] = sums_by_layout.get(layout, 0) + checksum(rows)[0]

    def layouts(self) -> dict[int, Layout]:
        """use -> layout, for this batch.

        Raises:
            SamplesNotSeparable: the samples of some use cannot be told apart.
        """
        return {index: self._layout(index) for index in self.heard}

    def checksums(self, layouts: Mapping[int, Layout]) -> dict[int, Tensor] | None:
        """use -> checksum (n,) of u times the losses; None where these passes have not made it."""
        if self.u is None or self.by_codes:
            return None
        if any(layout not in self.sums[index] for index, layout in layouts.items()):
            return None
        return {index: self.sums[index][layout] for index, layout in layouts.items()}

    @property
    def is_settled(self) -> bool:
        """Whether there is one layout for every use that some gradient reached.

        Where codes told the samples of each entry, those entries that no gradient reached belong
        to nobody; that none reaches them is asked of each batch (`reducing_listener`).
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
            return _with_doubts(self.fitting[index][0], self.rows, index, len(self.kept))
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


def _with_doubts(
    layout: Layout, rows: Mapping[tuple[int, int], Tensor], index: int, n: int
) -> Layout:
    """Return a layout that was read off gradients, with the entries that it may say wrongly."""
    has_gradient = rows.get((index, layout.dim))
    if type(layout) is not Layout or has_gradient is None:
        return layout
    doubtful = doubtful_rows(layout, has_gradient, n)
    return layout if doubtful is None else replace(layout, doubtful=doubtful)


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


class LayoutUnknown(SamplesNotSeparable):
    """A gradient reached a use whose layout is not known: none had reached it before."""


class FrontGuess:
    """Holds all samples of a batch to be in front, as in batches of other shapes.

    It hears the pass that is reduced, ahead of those who read layouts, and the proof of that pass
    is the proof of the guess: powers of two tell whose loss reached which rows (`separation`). Two
    things the proof cannot tell are asked here. Of more samples than there are powers, some share
    one: so every sample must have reached every use. And gradients may be zero wherever samples in
    another dimension would have shown: then the numbers of this batch are right, but the layout is
    not one to remember.

    n: the samples, two or more. uses: what the operators themselves know of their layouts.
    """

    def __init__(self, n: int, uses: Sequence[HasLayout]):
        self._n, self._uses = n, uses
        self.layouts: dict[int, Layout] = {}
        """Layouts of the uses that the pass has reached so far with more than zeros."""
        self.is_settled = True
        """Whether no other layout explains what reached some use."""

    def on_gradient(self, index: int, g: Tensor, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG002
        """Take in the gradient that reached one use; see `Listener`.

        Raises:
            LayoutUnknown: the samples cannot be in front, or not all have reached the use.
        """
        use = self._uses[index]
        if not bool(g.any()):
            return
        if use.layout is not None:
            self.layouts[index] = use.layout
            return
        if g.dim() == 0 or len(g) % self._n or use.dim not in (None, 0):
            raise LayoutUnknown("samples that were in front are elsewhere in this batch")
        # A gradient without zeros has, in each row, entries that others would own elsewhere.
        doubtful: Tensor | None = None
        if not bool(g.all()):
            entries = g != 0
            if not bool(entries.reshape(self._n, -1).any(dim=1).all()):
                raise LayoutUnknown("samples that no gradient reaches do not show where they are")
            self.is_settled &= not is_ambiguous_in_front(entries, self._n, use.dim)
            doubtful = doubtful_rows(Layout(), _rows_reached(g, 0), self._n)
        self.layouts[index] = Layout() if doubtful is None else Layout(doubtful=doubtful)
