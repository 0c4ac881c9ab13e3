"""Copies of what a model keeps in memory, and which of that has changed since.

Many stretches of memory are copied and compared in one operation, since a model has a hundred
buffers and parameters, most of them small. Used by `model_state`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from upslope.gradnorm.core.state.state_memory import Stretch, equal_bytes

_SMALL = 1 << 20
"""Bytes up to which stretches are compared all at once: calls cost more than the copy. Of a digest,
the bytes that are summed up together."""

_SEEN_OF_EACH = 16
"""Numbers of 8 bytes that `FewNumbers` copies of each stretch of memory; fewer than twice as many,
where the length is no multiple."""

_COPIED_OF_FROZEN = 64 << 20
"""Bytes of frozen parameters up to which they are copied: less than a process takes by itself."""

_REQUIRES_GRAD = operator.attrgetter("requires_grad")


class JointCopy:
    """Views of many stretches of memory, copied into one tensor for each device and type.

    One copy and one comparison serve all stretches.

    stretches, views: as many; each view is of the stretch's memory. They are copied at once.
    """

    def __init__(self, stretches: Sequence[Stretch], views: Sequence[Tensor]):
        groups: dict[tuple[torch.device, torch.dtype], list[tuple[Stretch, Tensor]]] = {}
        for stretch, view in zip(stretches, views, strict=True):
            groups.setdefault((view.device, view.dtype), []).append((stretch, view))
        self.groups = [([s for s, _ in group], [v for _, v in group]) for group in groups.values()]
        self.copies: list[Tensor] = []
        self.copy_again()

    def copy_again(self) -> None:
        """Copy the views as they are now."""
        self.copies = [torch.cat(views) for _, views in self.groups]

    def find_changed(self) -> list[Stretch]:
        """Return the stretches whose views hold other numbers than those that were copied."""
        stretches_changed = []
        for (stretches, views), before in zip(self.groups, self.copies, strict=True):
            now = torch.cat(views)
            if equal_bytes(now, before):
                continue
            sizes = list(map(len, views))
            parts = torch.split(now, sizes), torch.split(before, sizes)
            rows = zip(stretches, *parts, strict=True)
            stretches_changed += [stretch for stretch, a, b in rows if not torch.equal(a, b)]
        return stretches_changed


class FewNumbers(JointCopy):
    """Copies of a few numbers of each of many stretches of memory."""

    def __init__(self, stretches: Sequence[Stretch]):
        super().__init__(stretches, [_few_of(stretch.own) for stretch in stretches])


class Digests:
    """Sums over all bytes of many stretches of memory, which tell whether one was written to.

    For memory that is too large to be copied. Writes that change no sum, of the numbers and of
    their multiples by their places, are not told.
    """

    def __init__(self, stretches: Sequence[Stretch]):
        self._digests = [(stretch, _digest_of(stretch.own)) for stretch in stretches]

    def find_changed(self) -> list[Stretch]:
        """Return the stretches that hold other numbers than they did."""
        return [s for s, digest in self._digests if not torch.equal(_digest_of(s.now), digest)]


def _digest_of(memory: Tensor) -> Tensor:
    """Return sums over bytes, as numbers of 8 where these fit: (pieces, 2), modulo 2^64."""
    count = len(memory) // 8 * 8
    longs, rest = memory[:count].view(torch.int64), memory[count:].to(torch.int64)
    # Odd, so that no multiple loses a bit; a piece at a time, for the products have memory too.
    odd = torch.arange(1, 2 * _SMALL // 8, 2, device=memory.device)
    pieces = [*torch.split(longs, len(odd)), rest]
    return torch.stack([torch.stack([x.sum(), (x * odd[: len(x)]).sum()]) for x in pieces])


class WholeCopies:
    """Copies of all bytes of many stretches of memory, handed out as `Stretch.before` of each."""

    def __init__(self, stretches: Sequence[Stretch]):
        small = [stretch for stretch in stretches if len(stretch.own) <= _SMALL]
        self._large = [stretch for stretch in stretches if len(stretch.own) > _SMALL]
        # Those of parameters apart: most are let go after one pass, and a joint copy goes whole.
        kinds = [[s for s in small if bool(s.parameters) is kind] for kind in (False, True)]
        self._small = [JointCopy(kind, [s.own for s in kind]) for kind in kinds if kind]
        for joint, _ in self._joints():
            start = 0
            for stretch in joint:
                stretch.copy_start = start
                start += len(stretch.own)
        self._hand_out()

    def copy_again(self) -> None:
        """Copy the bytes as they are now."""
        for small in self._small:
            small.copy_again()
        self._hand_out()

    def _joints(self) -> Iterator[tuple[list[Stretch], Tensor]]:
        """Give the stretches that are copied together, and their copy."""
        for small in self._small:
            for (stretches, _), copy in zip(small.groups, small.copies, strict=True):
                yield stretches, copy

    def _hand_out(self) -> None:
        for stretches, copy in self._joints():
            for stretch in stretches:
                stretch.copy = copy
        for stretch in self._large:
            stretch.copy, stretch.copy_start = stretch.own.clone(), 0

    def let_go(self) -> None:
        """Free the memory of the copies."""
        for stretches in (self._large, *(joint for joint, _ in self._joints())):
            for stretch in stretches:
                stretch.copy = None
        for small in self._small:
            small.copies = []

    def are_current(self) -> bool:
        """Whether the memory holds what was copied. Asked while no tensor has been replaced."""
        return not any(small.find_changed() for small in self._small) and not any(
            stretch.has_other_values() for stretch in self._large
        )


def too_large_to_copy(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Return the stretches of frozen parameters alone, if copies of them would take much memory."""
    frozen = [s for s in stretches if s.parameters and not any(map(_REQUIRES_GRAD, s.parameters))]
    return frozen if sum(len(s.own) for s in frozen) > _COPIED_OF_FROZEN else []


def _few_of(memory: Tensor) -> Tensor:
    """Return a view of a few of the bytes, all of them where there are few."""
    if len(memory) <= 8 * _SEEN_OF_EACH:
        # As int64 where the bytes fit: stretches of one type are copied and compared together.
        return memory if len(memory) % 8 else memory.view(torch.int64)
    longs = memory[: len(memory) // 8 * 8].view(torch.int64)
    return longs[:: len(longs) // _SEEN_OF_EACH]


def find_changed(stretches: Sequence[Stretch], *, may_have_moved: bool = True) -> list[Stretch]:
    """Return the stretches of memory that were written to.

    may_have_moved: whether tensors may have been written to in a way that PyTorch counts.
    """
    stretches_written = [s for s in stretches if s.has_moved()] if may_have_moved else []
    ids = {id(stretch) for stretch in stretches_written}
    for small, large in _by_device(s for s in stretches if id(s) not in ids):
        stretches_written += [stretch for stretch in large if stretch.has_other_values()]
        if small:
            now = torch.cat([stretch.now for stretch in small])
            before = _join_copies(small)
            # One comparison for all: on a GPU each costs a round trip.
            if not torch.equal(now, before):
                stretches_written += [stretch for stretch in small if stretch.has_other_values()]
    return stretches_written


def _join_copies(stretches: Sequence[Stretch]) -> Tensor:
    """Return the bytes that stretches held: as they were copied, if none is left out."""
    joint, end = stretches[0].copy, 0
    for stretch in stretches:
        if stretch.copy is not joint or stretch.copy_start != end:
            break
        end += len(stretch.own)
    else:
        if joint is not None and end == len(joint):
            return joint
    return torch.cat([stretch.before for stretch in stretches if stretch.before is not None])


def _by_device(stretches: Iterable[Stretch]) -> Iterable[tuple[list[Stretch], list[Stretch]]]:
    """Return the small and the large stretches of memory of each device."""
    devices: dict[torch.device, tuple[list[Stretch], list[Stretch]]] = {}
    for stretch in stretches:
        small, large = devices.setdefault(stretch.own.device, ([], []))
        (small if len(stretch.own) <= _SMALL else large).append(stretch)
    return devices.values()


class CopyPlan(NamedTuple):
    """How the memory of a model is copied, to be copied in the same way by the next call."""

    written_ids: set[int]
    """The parameters that a pass writes."""
    stretches_to_copy: list[Stretch]
    stretches_to_watch: list[Stretch]
    copies: WholeCopies
    few: FewNumbers
