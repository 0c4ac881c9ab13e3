"""Figures that are equal but for the order in which they were summed are equal."""

from __future__ import annotations

import numpy as np
import pytest

from upslope.evaluation import (
    labels_needed,
    labels_to_reach,
    paired_comparison,
    rank,
    win_matrix,
)

SUM, LITERAL = 0.1 + 0.2, 0.3  # 0.30000000000000004 and 0.3


def test_a_constant_difference_by_rounding_is_none() -> None:
    """It was the same in every seed, and so p was 0."""
    result = paired_comparison([SUM] * 5, [LITERAL] * 5)
    assert result.p_t == result.p_sign_flip == 1.0
    assert result.wins == 0
    assert float(result.difference.mean) == 0.0
    assert paired_comparison([0.31] * 5, [LITERAL] * 5).p_t == 0.0


def test_ranks_tie_where_figures_differ_by_rounding() -> None:
    ranking = rank([[SUM, LITERAL, 0.1], [SUM, LITERAL, 0.2], [SUM, LITERAL, 0.1]])
    assert ranking.ranks.tolist() == [1.5, 1.5, 3.0]
    assert rank([[0.0, 0.0, 0.0]] * 2).ranks.tolist() == [2.0, 2.0, 2.0]


def test_nobody_wins_by_rounding() -> None:
    """A figure summed in another order won every pair."""
    shares = win_matrix({"a": [[SUM, 0.5]], "b": [[LITERAL, 0.4]]})
    assert shares[0, 1] == 0.75
    assert shares[1, 0] == 0.25


def test_a_figure_is_reached_that_is_the_target_but_for_rounding() -> None:
    assert labels_to_reach([10, 20], [0.1, LITERAL], SUM) == 20
    assert labels_to_reach([10, 20], [LITERAL, 0.4], SUM) == 10


@pytest.mark.parametrize("seed", range(20))
def test_seeds_whose_differences_cancel_reach_the_reference(seed: int) -> None:
    """The mean difference at the last budget is 0 in exact arithmetic: it was now and then -10^-17,
    and the labels needed infinite."""
    rng = np.random.default_rng(seed)
    last = rng.integers(50, 950, 5) / 1000
    curves = np.stack([last - 0.2, rng.permutation(last)], axis=1)
    reference = np.stack([last - 0.1, last], axis=1)
    assert labels_needed([10, 20], curves, reference).labels == 20
