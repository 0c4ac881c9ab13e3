"""The per-sample gradients of a convolution's weight, as a `PerSampleGradient`.

The library forms the gradient of a batch in one call; those of its samples would take as many calls
as there are samples. `methods` has the ways to their norms with less work than that, and
`cost_model` says which is the cheapest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.gradnorm.core.per_sample_gradients import PerSampleGradient
from upslope.gradnorm.kernels.conv import cost_model
from upslope.gradnorm.kernels.conv.geometry import ConvOperands
from upslope.gradnorm.kernels.conv.gradients import grouped
from upslope.gradnorm.kernels.conv.methods import METHODS


@dataclass(frozen=True)
class ConvWeightGradient(ConvOperands):
    """The gradients of a convolution's weight, from its operands."""

    def squared_norms(self, scratch: int) -> Tensor:
        """See `PerSampleGradient`. By the cheapest method."""
        if self.is_pointwise:
            return self.pointwise().squared_norms(scratch)
        return METHODS[cost_model.best(self)](self, scratch)

    def materialize(self, rows: slice) -> Tensor:
        """See `PerSampleGradient`. By one grouped convolution."""
        return grouped(self, rows)

    def add(self, others: Sequence[PerSampleGradient]) -> PerSampleGradient | None:
        """See `PerSampleGradient`. More images per sample, if all images have one size."""
        same = [
            self,
            *(o for o in others if isinstance(o, ConvWeightGradient) and self._matches(o)),
        ]
        if len(same) <= len(others):
            return None
        x, g = torch.cat([o.x for o in same], dim=1), torch.cat([o.g for o in same], dim=1)
        return ConvWeightGradient(x, g, self.geometry, self.shape)

    def _matches(self, other: ConvWeightGradient) -> bool:
        return (
            self.geometry == other.geometry
            and self.x.shape[2:] == other.x.shape[2:]
            and self.g.shape[2:] == other.g.shape[2:]
        )
