"""Win matrices and ranks of studies whose strategies have other seeds: counted one by one."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from upslope.report import summarise
from upslope.report.savings import savings
from upslope.report.standing import ranks_of, ranks_over, wins_of, wins_over
from upslope.report.study import Run, Study
from upslope.report.summary import Summary

BUDGETS = (10, 20, 40)
SEEDS = {"random": (0, 1, 2, 3), "margin": (1, 2, 3, 4), "egl": (0, 2, 3), "badge": (7,)}


def made_up(seed: int, *, share_first: bool, names: tuple[str, ...] = tuple(SEEDS)) -> Summary:
    """Figures of few values, so that some tie. share_first: all of a seed begin with one."""
    rng = np.random.default_rng(seed)
    first = rng.integers(1, 9, 10) / 10
    runs = []
    for name in names:
        for of_run in SEEDS[name]:
            scores = rng.integers(1, 9, 3) / 10
            if share_first:
                scores[0] = first[of_run]
            runs.append(Run(name, of_run, BUDGETS, tuple(scores.tolist()), 3))
    return summarise(Study(tuple(runs)))


def counted(summary: Summary, one: str, other: str, first: int) -> float:
    """The share of pairs that one wins, ties counting half."""
    ours, theirs = (summary.study.complete(name) for name in (one, other))
    pairs = [
        (a, b)
        for seed in ours
        if seed in theirs
        for a, b in zip(ours[seed].scores[first:], theirs[seed].scores[first:], strict=True)
    ]
    return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs) if pairs else float("nan")


@pytest.mark.parametrize("share_first", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_wins_are_counted_over_the_seeds_that_both_have(seed: int, share_first: bool) -> None:
    summary = made_up(seed, share_first=share_first)
    wins = wins_of(summary)
    assert wins is not None
    for (i, one), (j, other) in permutations(enumerate(wins.names), 2):
        expected = counted(summary, one, other, int(share_first))
        assert wins.shares[i, j] == pytest.approx(expected, nan_ok=True)
    assert np.isnan(np.diag(wins.shares)).all()


def test_ranks_are_of_areas_over_the_seeds_that_all_have() -> None:
    summary = made_up(0, share_first=True, names=("random", "margin", "egl"))
    ranks = ranks_of(summary)
    assert ranks is not None
    assert ranks.blocks == 2  # the seeds 2 and 3
    weights = np.array([1 / 6, 1 / 2, 1 / 3])
    areas = [
        [np.dot(weights, summary.study.complete(name)[seed].scores) for name in ranks.names]
        for seed in (2, 3)
    ]
    expected = stats.rankdata(-np.round(areas, 12), axis=1).mean(axis=0)
    assert ranks.ranking.ranks.tolist() == expected.tolist()
    assert ranks_of(made_up(0, share_first=True)) is None  # badge has no seed of the others'


def test_over_data_sets_each_counts_alike() -> None:
    names = ("random", "margin", "egl")
    summaries = [made_up(seed, share_first=False, names=names) for seed in range(3)]
    summaries.append(made_up(3, share_first=False))
    wins = wins_over(summaries, (*names, "badge"))
    assert wins is not None
    for (i, one), (j, other) in permutations(enumerate(wins.names), 2):
        shares = [
            counted(s, one, other, 0)
            for s in summaries
            if {one, other} <= {row.strategy for row in s.rows}
        ]
        told = [share for share in shares if not np.isnan(share)]
        expected = np.mean(told) if told else np.nan
        assert wins.shares[i, j] == pytest.approx(expected, nan_ok=True)
    ranks = ranks_over(summaries)
    assert ranks is not None
    assert ranks.blocks == 4
    weights = np.array([1 / 6, 1 / 2, 1 / 3])
    areas = [
        [
            np.mean([np.dot(weights, s.study.complete(name)[seed].scores) for seed in (2, 3)])
            for name in ranks.names
        ]
        for s in summaries
    ]
    expected_ranks = stats.rankdata(-np.round(areas, 12), axis=1).mean(axis=0)
    assert ranks.ranking.ranks.tolist() == expected_ranks.tolist()
    other_order = ranks_over(summaries[::-1])  # whose first has a strategy that the others lack
    assert other_order is not None
    assert other_order.names == ranks.names
    assert other_order.ranking.ranks.tolist() == expected_ranks.tolist()


def test_the_fewest_that_are_compared_and_ranked() -> None:
    pair, three = ("random", "margin"), ("random", "margin", "egl")
    two = made_up(0, share_first=False, names=pair)
    wins = wins_of(two)
    over = wins_over([two], pair)
    assert wins is not None
    assert over is not None
    assert over.shares[0, 1] == wins.shares[0, 1] == counted(two, *pair, 0)
    assert wins_of(made_up(0, share_first=False, names=("random",))) is None
    assert ranks_of(two) is ranks_over([two, two]) is None
    several = made_up(0, share_first=False, names=three)
    assert ranks_over([several]) is None
    ranks = ranks_over([several, several])
    assert ranks is not None
    assert ranks.blocks == 2


def test_of_a_single_budget_no_figure_is_left_out() -> None:
    runs = [Run(n, s, (10,), (0.5,), 1) for n in ("random", "margin") for s in (0, 1)]
    summary = summarise(Study(tuple(runs)))
    wins = wins_of(summary)
    assert wins is not None
    assert wins.shares[0, 1] == 0.5
    assert savings(summary, summary.rows[1]) == ()


def test_savings_are_labels_less_those_of_the_reference() -> None:
    """At half of its labels, where its curve has begun by then, and at all."""
    runs = [
        Run(name, seed, (100, 200, 300), tuple(scores), 3)
        for seed in range(3)
        for name, scores in (("random", [0.5, 0.6, 0.7]), ("margin", [0.5, 0.7, 0.6]))
    ]
    summary = summarise(Study(tuple(runs)))
    row = next(row for row in summary.rows if row.strategy == "margin")
    half, whole = savings(summary, row)
    assert (half.share, half.needed.reference, half.needed.labels) == (0.5, 150, 125)
    assert (whole.share, whole.needed.reference, whole.needed.labels) == (1.0, 300, 200)
    assert (half.saved, whole.saved) == (25, 100)
    assert half.told
    assert whole.reached
    late = [Run(r.strategy, r.seed, (200, 250, 300), r.scores, 3) for r in runs]
    summary = summarise(Study(tuple(late)))
    assert [s.share for s in savings(summary, summary.rows[1])] == [1.0]
    assert savings(summary, summary.rows[0]) == ()
