"""Searches written out, that strategies are held against."""

from __future__ import annotations

from collections.abc import Callable


def least_traces(trace: Callable[[list[int]], float], n: int, budget: int) -> list[int]:
    """Add twice as many of n samples as the budget, each time the best, then drop the least missed.

    trace: of a set of samples, what is to be small.
    """
    chosen: list[int] = []
    while len(chosen) < min(2 * budget, n):
        rest = [i for i in range(n) if i not in chosen]
        chosen.append(min(rest, key=lambda i: trace([*chosen, i])))
    while len(chosen) > budget:
        chosen.remove(min(chosen, key=lambda i: trace([j for j in chosen if j != i])))
    return chosen
