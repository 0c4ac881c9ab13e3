"""Packed sequences: the steps of samples of unequal length, in the order of `PackedSequence`.

Step t of the samples that have one lies in rows sum(sizes[:t]) and on, the longest sample first. A
recurrence runs over all steps of the longest, (t, n, i): what it does behind a sample's end reaches
no output. Backwards, each sample starts at its own end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from upslope.gradnorm.layout import Layout, Scattered


class Packed:
    """sizes: (t,), how many samples have each step. order: (n,), which ones they are, if known."""

    def __init__(self, sizes: Tensor, device: torch.device, order: Tensor | None):
        self.layout: Layout | None = None
        """Where the samples are in what `spread` gives."""
        if order is not None:
            self.layout = Scattered(1, owner=order, n=len(order))
        sizes = sizes.to(device)
        self.sizes: list[int] = sizes.tolist()
        n = self.sizes[0]
        self._sample = torch.arange(n, device=device)
        step = torch.arange(len(sizes), device=device)[:, None]
        self._there = self._sample < sizes[:, None]  # (t, n)
        self._lengths = self._there.sum(dim=0)
        rows = (sizes.cumsum(dim=0) - sizes)[:, None] + self._sample
        turned = (self._lengths - 1 - step).clamp(min=0)
        self._rows = [torch.where(self._there, r, 0) for r in (rows, rows.gather(0, turned))]
        self._places = [(s * n + self._sample)[self._there] for s in (step, turned)]

    def spread(self, data: Tensor, reverse: bool) -> Tensor:
        """(rows, i) -> (t, n, i): the steps in the order that they are taken, then zeros."""
        return torch.where(self._there[..., None], data[self._rows[reverse]], 0)

    def joined(self, steps: Tensor, reverse: bool) -> Tensor:
        """The inverse of `spread`."""
        return steps.flatten(0, 1)[self._places[reverse]]

    def last(self, states: Tensor) -> Tensor:
        """(t + 1, n, h) -> (n, h): the states after each sample's last step."""
        return states[self._lengths, self._sample]
