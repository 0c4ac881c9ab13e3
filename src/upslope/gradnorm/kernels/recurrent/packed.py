"""Packed sequences: the steps of samples of unequal length, in the order of `PackedSequence`.

The rows of step t are those of the samples that have one, the longest sample first; they begin at
row sum(sizes[:t]). A recurrence runs over padded sequences, all steps of the longest, (t, n, i):
what it computes beyond the end of a sample reaches no output. Backwards, each sample starts at its
own end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from upslope.gradnorm.core.layout import IndexedLayout, Layout


class Packed:
    """The rows of a packed batch, and their places in a padded one.

    sizes: (t,), how many samples have each step. order: (n,), which samples they are, where known.
    """

    def __init__(self, sizes: Tensor, device: torch.device, order: Tensor | None):
        self.layout: Layout | None = None
        """Where the samples are in padded sequences, where their order is known."""
        if order is not None:
            self.layout = IndexedLayout(1, owner=order, n=len(order))
        sizes = sizes.to(device)  # torch keeps them on the CPU; all indices are on one device
        self.sizes: list[int] = sizes.tolist()
        n = self.sizes[0]
        self._sample = torch.arange(n, device=device)
        step = torch.arange(len(sizes), device=device)[:, None]
        self._has_step = self._sample < sizes[:, None]  # (t, n)
        self._lengths = self._has_step.sum(dim=0)
        rows = (sizes.cumsum(dim=0) - sizes)[:, None] + self._sample
        reversed_step = (self._lengths - 1 - step).clamp(min=0)
        # Forwards, then backwards. Where a sample has no step, row 0 stands in and is masked.
        self._rows = [
            torch.where(self._has_step, r, 0) for r in (rows, rows.gather(0, reversed_step))
        ]
        self._places = [(s * n + self._sample)[self._has_step] for s in (step, reversed_step)]

    def pad(self, data: Tensor, reverse: bool) -> Tensor:
        """(rows, i) -> (t, n, i): the steps in the order in which they are taken, then zeros."""
        return torch.where(self._has_step[..., None], data[self._rows[reverse]], 0)

    def pack(self, steps: Tensor, reverse: bool) -> Tensor:
        """(t, n, i) -> (rows, i): the inverse of `pad`."""
        return steps.flatten(0, 1)[self._places[reverse]]

    def last(self, states: Tensor) -> Tensor:
        """(t + 1, n, h) -> (n, h): the states after each sample's last step."""
        return states[self._lengths, self._sample]
