"""The loss prediction module of LL4AL, and the loss it learns by (Yoo and Kweon, CVPR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 128
MARGIN = 1.0


class LossPrediction(nn.Module):
    """Predicts the loss from stage outputs of these widths: list of (n, c, ...) -> (n,)."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Linear(width, WIDTH) for width in widths)
        self.head = nn.Linear(WIDTH * len(widths), 1)

    def forward(self, outputs: list[Tensor]) -> Tensor:
        """Return one number per sample, (n,)."""
        units = [layer(pooled(x)).relu() for layer, x in zip(self.stages, outputs, strict=True)]
        prediction: Tensor = self.head(torch.cat(units, dim=1))
        return prediction.flatten()


def pooled(x: Tensor) -> Tensor:
    """The mean over positions, whatever their number: (n, c, ...) -> (n, c)."""
    return (x.flatten(start_dim=2).mean(dim=2) if x.ndim > 2 else x).float()


def ranking_loss(predicted: Tensor, losses: Tensor) -> Tensor:
    """mean over pairs of max(0, 1 - sign(l_i - l_j) (l^_i - l^_j)), i from the first half of the
    batch and j from the end. Both (n,), n >= 2; the middle one of an odd batch has no partner.
    """
    half = len(losses) // 2
    gap = (predicted - predicted.flip(0))[:half]
    losses = losses.detach()
    # Equal losses count as the first being smaller, as in the source.
    sign = torch.where((losses - losses.flip(0))[:half] > 0, 1.0, -1.0)
    return (MARGIN - sign * gap).clamp(min=0).mean()
