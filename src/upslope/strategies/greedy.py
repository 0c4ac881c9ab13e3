"""Lazy greedy maximisation of a submodular set function (Minoux 1978).

The gain of a sample only falls while others are taken. So a gain computed earlier bounds it now,
and only the gains at the top need to be computed anew.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FIRST = 32
"""Gains recomputed at once to begin with; twice as many each time that was not enough."""


def lazy_greedy(
    gains: Tensor,
    budget: int,
    gains_of: Callable[[Tensor], Tensor],
    take: Callable[[int], None],
    most: int,
) -> list[int]:
    """The positions of largest gain, one after the other; ties go to the smaller position.

    gains: (n,), at the start. gains_of: positions (b,), b <= most, -> their gains now (b,).
    take: called with each position as it is taken.
    """
    gains = gains.clone()
    exact = torch.ones(len(gains), dtype=torch.bool)
    taken: list[int] = []
    for _ in range(budget):
        at_once = FIRST
        while not exact[best := int(gains.argmax())]:
            open_gains = gains.masked_fill(exact, -torch.inf)
            stale = open_gains.topk(min(at_once, most, len(gains))).indices
            stale = stale[~exact[stale]]
            gains[stale] = gains_of(stale)
            exact[stale] = True
            at_once *= 2
        taken.append(best)
        take(best)
        gains[best] = -torch.inf
        # A gain of nothing cannot fall further.
        exact = gains <= 0
    return taken
