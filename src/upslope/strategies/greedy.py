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


class LazyGreedy:
    """The search: takes the position of largest gain, over and over.

    bounds: (n,), at least the gains at the start. gains_of: positions (b,), b <= most, -> their
    gains now (b,). take: called with each position as it is taken. exact: whether the bounds are
    the gains themselves. Ties go to the smaller position.
    """

    def __init__(
        self,
        bounds: Tensor,
        gains_of: Callable[[Tensor], Tensor],
        take: Callable[[int], None],
        most: int,
        *,
        exact: bool = True,
    ) -> None:
        self.gains = bounds.clone()
        self.exact = torch.full((len(bounds),), exact)
        self.gains_of, self.take, self.most = gains_of, take, most
        self.taken_gains: list[float] = []

    def search(self, count: int) -> list[int]:
        """Take `count` positions and return them, in order; `taken_gains` goes on with the gain
        of each."""
        gains, exact = self.gains, self.exact
        positions: list[int] = []
        for _ in range(count):
            at_once = FIRST
            while not exact[best := int(gains.argmax())]:
                open_gains = gains.masked_fill(exact, -torch.inf)
                stale = open_gains.topk(min(at_once, self.most, len(gains))).indices
                stale = stale[~exact[stale]]
                gains[stale] = self.gains_of(stale).to(gains.dtype)
                exact[stale] = True
                at_once *= 2
            positions.append(best)
            self.taken_gains.append(float(gains[best]))
            self.take(best)
            gains[best] = -torch.inf
            # A gain of nothing cannot fall further.
            torch.le(gains, 0, out=exact)
        return positions


def lazy_greedy(
    gains: Tensor,
    budget: int,
    gains_of: Callable[[Tensor], Tensor],
    take: Callable[[int], None],
    most: int,
) -> list[int]:
    """Return the positions of largest gain, one after the other; see `LazyGreedy`.

    gains: (n,), at the start.
    """
    return LazyGreedy(gains, gains_of, take, most).search(budget)
