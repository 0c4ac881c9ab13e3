"""Copies of the memory of many tensors at once, and what of it has changed since.

Used by `model_state`. A model has a hundred buffers and parameters, most of them small: one
question for all of them costs less than one for each.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from upslope.gradnorm.core.state_memory import Stretch

_SMALL = 1 << 20
"""Bytes up to which stretches are compared all at once: calls cost more than the copy."""

_SEEN_OF_EACH = 16
"""Numbers of each parameter that are watched."""


def few_of(stretches: Iterable[Stretch]) -> list[Tensor]:
    """Return a few numbers of each stretch of memory, as bytes."""
    few = []
    for stretch in stretches:
        bytes_read = stretch.own.clone() if len(stretch.own) <= 8 * _SEEN_OF_EACH else stretch.own
        if len(bytes_read) > 8 * _SEEN_OF_EACH:
            longs = bytes_read[: len(bytes_read) // 8 * 8].view(torch.int64)
            bytes_read = longs[:: len(longs) // _SEEN_OF_EACH].clone().view(torch.uint8)
        few.append(bytes_read)
    return few


def are_same(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two lists of bytes are the same: one question for each device."""
    devices = {t.device for t in first}
    pairs = (
        [torch.cat([t for t in bytes_read if t.device == d]) for bytes_read in (first, second)]
        for d in devices
    )
    return all(torch.equal(a, b) for a, b in pairs)


class OddTensor:
    """A tensor without plain memory: sparse, nested, quantised. It is compared by its version."""

    def __init__(self, original: Tensor):
        self.original = self.now = original
        self._before = original.detach().clone()
        self._first = self._version = _version(original)

    def replace(self) -> dict[int, Tensor]:
        """Return what stands for it from now on, if it was written to."""
        if _version(self.now) == self._version:
            return {}
        self.now = self._before.clone()
        self._version = _version(self.now)
        return {id(self.original): self.now}

    def restore(self) -> None:
        """Let the tensor hold again what it held."""
        if _version(self.original) != self._first:
            self.original.copy_(self._before)
        self.now, self._version = self.original, _version(self.original)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def copy_bytes(stretches: Iterable[Stretch]) -> None:
    """Copy what stretches of memory hold."""
    for small, large in _by_device(stretches):
        for stretch in large:
            stretch.before = stretch.own.clone()
        if small:
            all_bytes = torch.cat([stretch.own for stretch in small])
            parts = torch.split(all_bytes, [len(stretch.own) for stretch in small])
            for stretch, part in zip(small, parts, strict=True):
                stretch.before = part


def find_changed(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Return the stretches of memory that were written to."""
    stretches_written = [stretch for stretch in stretches if stretch.has_moved()]
    ids = {id(stretch) for stretch in stretches_written}
    for small, large in _by_device(s for s in stretches if id(s) not in ids):
        stretches_written += [stretch for stretch in large if stretch.has_other_values()]
        if small:
            now = torch.cat([stretch.now for stretch in small])
            before = torch.cat([stretch.before for stretch in small if stretch.before is not None])
            # One question for all: on a GPU each costs a round trip.
            if not torch.equal(now, before):
                stretches_written += [stretch for stretch in small if stretch.has_other_values()]
    return stretches_written


def _by_device(stretches: Iterable[Stretch]) -> Iterable[tuple[list[Stretch], list[Stretch]]]:
    """The small and the large stretches of memory of each device."""
    devices: dict[torch.device, tuple[list[Stretch], list[Stretch]]] = {}
    for stretch in stretches:
        small, large = devices.setdefault(stretch.own.device, ([], []))
        (small if len(stretch.own) <= _SMALL else large).append(stretch)
    return devices.values()
