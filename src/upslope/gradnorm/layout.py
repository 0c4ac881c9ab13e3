"""Where the samples of a batch are inside a tensor.

Most layers keep the batch in dimension 0. Attention may transpose it to dimension 1, window
attention folds windows into it, sequence models flatten positions into rows. A `Layout` says
which entries belong to which sample. It is not guessed: a `LayoutProbe` reads it off two
backward passes, one from half of the losses and one from the other half. Under the right layout
the gradient that reaches a use is zero exactly where the samples of the other half are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Entry j of dimension `dim`, of size a*n*b, belongs to sample (j // b) % n.

    b = None stands for the whole of size // n: each sample's entries lie together.
    """

    dim: int = 0
    b: int | None = None

    def samples(self, tensor: Tensor, n: int) -> Tensor:
        """(n, k, *other dimensions): the k = a*b entries of each sample along `dim`."""
        moved = tensor.movedim(self.dim, 0)
        k = moved.shape[0] // n
        b = k if self.b is None else self.b
        if b == k:
            return moved.reshape(n, k, *moved.shape[1:])
        return moved.reshape(k // b, n, b, *moved.shape[1:]).transpose(0, 1).flatten(1, 2)

    def explains(self, gradient: Tensor, kept: Tensor) -> bool:
        """Whether `gradient` is zero for all samples but those of `kept`, (n,) bool."""
        return not bool(self.samples(gradient, len(kept))[~kept].any())


class Inseparable(Exception):  # noqa: N818 (a finding that the engine acts on, not an error)
    """A use whose samples cannot be told apart; the engine then goes sample by sample."""


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
            Inseparable: the samples are in one of the last `keep` dimensions.
        """
        if self.layout.dim >= tensor.dim() - keep:
            raise Inseparable("samples lie in a dimension that a weight acts on")
        return self.front(tensor).flatten(1, -1 - keep)

    def summed(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """(n, *shape): the sum over the entries that one entry of `shape` is broadcast to.

        Raises:
            Inseparable: `shape` tells apart entries along the dimension of the samples.
        """
        full = (1,) * (tensor.dim() - len(shape)) + tuple(shape)
        if self.n == 1:
            return tensor.sum_to_size(full).reshape(1, *shape)
        if full[self.layout.dim] != 1:
            raise Inseparable("a weight has entries for single samples of the batch")
        front = self.front(tensor)
        others = full[: self.layout.dim] + full[self.layout.dim + 1 :]
        over = [1, *(2 + d for d, size in enumerate(others) if size == 1)]
        return front.sum(dim=over).reshape(self.n, *shape)

    def owners(self, tensor: Tensor) -> Tensor:
        """To which sample each entry belongs, (1, ..., size, ..., 1) along the samples."""
        size = tensor.shape[self.layout.dim]
        order = Layout(0, self.layout.b).samples(torch.arange(size, device=tensor.device), self.n)
        owners = torch.empty(size, dtype=torch.int64, device=tensor.device)
        owners[order] = torch.arange(self.n, device=tensor.device)[:, None]
        return owners.view(-1, *(1,) * (tensor.dim() - 1 - self.layout.dim))


def candidates(tensor: Tensor, n: int) -> Iterator[Layout]:
    """The layouts in which n samples fit into a tensor of this shape, the likeliest first."""
    for dim, size in enumerate(tensor.shape):
        if size and size % n == 0:
            yield Layout(dim)
            k = size // n
            yield from (Layout(dim, b) for b in range(1, k) if k % b == 0)


@dataclass
class LayoutProbe:
    """Listens to backward passes from some of the losses, and keeps what explains them all."""

    kept: Tensor
    """(n,) bool: the samples whose losses are summed in the pass that comes."""
    fitting: dict[int, list[Layout]] = field(default_factory=dict)
    heard: set[int] = field(default_factory=set)
    """The uses that some pass reached with more than zeros."""
    silent: set[int] = field(default_factory=set)
    """The uses that some pass reached with nothing but zeros, which proves nothing."""

    def hear(self, index: int, g: Tensor, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG002
        """See `Listener`."""
        (self.heard if bool(g.any()) else self.silent).add(index)
        if index not in self.fitting:
            self.fitting[index] = list(candidates(g, len(self.kept)))
        among = self.fitting[index]
        self.fitting[index] = [layout for layout in among if layout.explains(g, self.kept)]

    def layouts(self) -> tuple[dict[int, Layout], dict[int, Layout]]:
        """use -> layout: for this batch, and those that hold for other batches as well.

        Raises:
            Inseparable: the samples of some use cannot be told apart.
        """
        if not all(self.fitting.values()):
            raise Inseparable("the samples cannot be told apart in the input of some layer")
        found = {index: fits[0] for index, fits in self.fitting.items() if index in self.heard}
        return found, {index: at for index, at in found.items() if index not in self.silent}


def halves(n: int) -> Iterator[Tensor]:
    """Two complementary (n,) masks without a pattern that a tensor's shape could imitate."""
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
    chosen = itertools.islice(itertools.combinations(range(count), count // 2), n)
    table = torch.tensor(list(chosen))  # (n, count // 2)
    for i in range(count):
        yield (table == i).any(dim=1)
