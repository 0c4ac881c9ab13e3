"""The 0-1 knapsack: the samples of largest total value that a budget of annotation costs buys.

    maximise sum_i v_i x_i   subject to   sum_i c_i x_i <= Q,   x_i in {0, 1}

exactly, by dynamic programming over whole costs (Bellman 1957), in O(n Q) time and n Q bits. With
unit costs it takes the Q largest values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from upslope.errors import SelectionError

MOST = 2**33
"""Entries of the table of decisions, one bit each: 1 GB."""


def knapsack(values: Sequence[float], costs: Sequence[int], budget: int) -> list[int]:
    """Positions of an optimal choice, in ascending order.

    values: v_i >= 0. costs: c_i >= 1, whole. budget: Q. Among optimal choices, one to which nothing
    more can be added; of equal samples, those at smaller positions.

    Raises:
        SelectionError: a value below 0, a cost below 1, a budget that buys nothing, or a table of
            more than 2^33 entries.
    """
    if any(v < 0 for v in values) or any(c < 1 for c in costs):
        raise SelectionError(
            f"Expected values of at least 0 and whole costs of at least 1 but got "
            f"{min(values)} and {min(costs)} among them."
        )
    if not len(costs) or min(costs) > budget:
        raise SelectionError(
            f"Expected a cost budget that buys a label at least but got {budget}, and the cheapest "
            f"of {len(costs)} costs {min(costs, default=0)}. Raise `cost_budget`."
        )
    budget = min(budget, sum(costs))
    if len(costs) * budget > MOST:
        raise SelectionError(
            f"Expected candidates times cost budget to be at most {MOST:,} but {len(costs)} times "
            f"{budget} is {len(costs) * budget:,}. Count in coarser units: raise `cost_unit`."
        )
    best = np.zeros(budget + 1)  # best[q]: the largest value for q, of the samples seen so far
    choices: dict[int, np.ndarray] = {}  # sample -> whether best[q] takes it, packed bits
    # Backwards and with >=, so that ties go to what comes first, and no worthless room is left.
    for i in reversed(range(len(costs))):
        if costs[i] <= budget:
            with_it = best[: budget + 1 - costs[i]] + values[i]
            better = with_it >= best[costs[i] :]
            best[costs[i] :] = np.where(better, with_it, best[costs[i] :])
            choices[i] = np.packbits(better)
    positions, left = [], budget
    for i in range(len(costs)):
        if i in choices and costs[i] <= left:
            bit = left - costs[i]
            if choices[i][bit // 8] >> (7 - bit % 8) & 1:
                positions.append(i)
                left = bit
    return positions
