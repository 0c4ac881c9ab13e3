"""From one number per pixel to one per image, by a stated rule.

mean            over all pixels, as in Eq. 7
top             over the `share` of the pixels where it is highest, rounded up: an image is worth
                what its hardest part is, however much easy ground is around it
class-balanced  over the pixels answered c, then over the classes c that are answered: a small
                object counts as much as the sky
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Rule = Literal["mean", "top", "class-balanced"]


def reduce_pixels(
    values: Tensor, answers: Tensor, rule: Rule, share: float, classes: int
) -> Tensor:
    """Return (n,) from values (n, h, w) and the class answered at each pixel, (n, h, w)."""
    values, answers = values.flatten(start_dim=1), answers.flatten(start_dim=1)
    if rule == "mean":
        return values.mean(dim=1)
    if rule == "top":
        # Rounded up, but for what the product has of rounding: 0.07 of 100 pixels are 7.
        highest = math.ceil(share * values.shape[1] * (1 - 1e-12))
        return values.topk(highest, dim=1).values.mean(dim=1)
    total = torch.zeros_like(values[:, 0])
    answer_counts = torch.zeros_like(total)
    for label in range(classes):  # not scattered: sums in one order, on any device
        there = answers == label
        count = there.sum(dim=1)
        total += (values * there).sum(dim=1) / count.clamp(min=1)
        answer_counts += count > 0
    return total / answer_counts
