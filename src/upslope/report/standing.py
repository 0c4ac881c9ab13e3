"""Every strategy against every other: the win matrix, mean ranks and their critical difference.

Within one data set the seeds are what is ranked over; over several, the data sets are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from upslope.evaluation import Ranking, rank, win_matrix
from upslope.evaluation.curves import Array
from upslope.report.summary import Summary, areas_of


@dataclass(frozen=True)
class Wins:
    """names: in order. shares: (k, k), how often the row beats the column; NaN where the two have
    no seed, or no data set, in common."""

    names: tuple[str, ...]
    shares: Array


@dataclass(frozen=True)
class Ranks:
    """names: in the order of `ranking.ranks`. blocks: how many seeds, or data sets, were ranked."""

    names: tuple[str, ...]
    ranking: Ranking
    blocks: int


def wins_of(summary: Summary) -> Wins | None:
    """Return the win matrix of one data set, each pair over the seeds that both have.

    The first budget is left out where all runs of a seed share its model. None for one strategy.
    """
    names = tuple(row.strategy for row in summary.rows)
    if len(names) < 2:
        return None
    first = 1 if _share_first_model(summary) else 0
    shares = np.full((len(names), len(names)), np.nan)
    for i, j in combinations(range(len(names)), 2):
        theirs = set(summary.rows[j].seeds)
        seeds = [seed for seed in summary.rows[i].seeds if seed in theirs]
        if seeds:
            pair = {name: summary.study.curves(name, seeds) for name in (names[i], names[j])}
            shares[i, j] = win_matrix(pair, first)[0, 1]
            shares[j, i] = 1 - shares[i, j]
    return Wins(names, shares)


def ranks_of(summary: Summary) -> Ranks | None:
    """Return mean ranks in area over the seeds that all strategies have.

    None for fewer than three strategies or two such seeds.
    """
    seeds = shared_seeds(summary)
    if len(summary.rows) < 3 or len(seeds) < 2:
        return None
    values = np.stack([_areas(summary, row.strategy, seeds) for row in summary.rows], axis=1)
    return Ranks(tuple(row.strategy for row in summary.rows), rank(values), len(seeds))


def wins_over(summaries: Sequence[Summary], names: Sequence[str]) -> Wins | None:
    """Return the mean over data sets of their win matrices, each set counting alike.

    names: the strategies, in order.
    """
    if len(names) < 2:
        return None
    total, counts = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)))
    for summary in summaries:
        one = wins_of(summary)
        if one is None:
            continue
        places = [names.index(name) for name in one.names]
        has_share = np.isfinite(one.shares)
        total[np.ix_(places, places)] += np.where(has_share, one.shares, 0)
        counts[np.ix_(places, places)] += has_share
    with np.errstate(invalid="ignore"):
        return Wins(tuple(names), np.where(counts > 0, total / counts, np.nan))


def ranks_over(summaries: Sequence[Summary]) -> Ranks | None:
    """Return mean ranks in area over data sets, of the strategies that every set has.

    The area in a set is the mean over the seeds that all of these have there. None for fewer than
    three such strategies, two sets, or a set without such a seed.
    """
    names = [
        row.strategy
        for row in summaries[0].rows
        if all(row.strategy in [other.strategy for other in s.rows] for s in summaries)
    ]
    if len(names) < 3 or len(summaries) < 2:
        return None
    values = []
    for summary in summaries:
        seeds = shared_seeds(summary, names)
        if not seeds:
            return None
        values.append([float(_areas(summary, name, seeds).mean()) for name in names])
    return Ranks(tuple(names), rank(values), len(values))


def shared_seeds(summary: Summary, names: Sequence[str] | None = None) -> list[int]:
    """Return the seeds that all strategies, or those named, have; in order."""
    rows = [row for row in summary.rows if names is None or row.strategy in names]
    return sorted(set.intersection(*(set(row.seeds) for row in rows)))


def _areas(summary: Summary, name: str, seeds: Sequence[int]) -> Array:
    return areas_of(summary.budgets, summary.study.curves(name, seeds))


def _share_first_model(summary: Summary) -> bool:
    """Tell whether runs of a seed have one figure at the first budget, and there are others."""
    first: dict[int, set[float]] = {}
    for row in summary.rows:
        for seed, run in summary.study.complete(row.strategy).items():
            first.setdefault(seed, set()).add(run.scores[0])
    return len(summary.budgets) > 1 and all(len(figures) == 1 for figures in first.values())
