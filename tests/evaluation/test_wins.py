"""Win matrices and ranks: by hand, and against published quantiles."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from upslope.errors import DataError
from upslope.evaluation import rank, win_matrix


def test_counts_pairs_of_seed_and_budget_and_halves_ties() -> None:
    a = [[0.5, 0.6, 0.9], [0.5, 0.7, 0.8]]
    b = [[0.5, 0.5, 0.9], [0.5, 0.8, 0.7]]
    wins = win_matrix({"a": a, "b": b}, first=1)
    # Of four pairs a is ahead in two, behind in one, level in one.
    assert wins[0, 1] == pytest.approx(2.5 / 4)
    assert wins[1, 0] == pytest.approx(1.5 / 4)
    assert np.isnan(np.diag(wins)).all()
    assert win_matrix({"a": a, "b": b})[0, 1] == pytest.approx(3.5 / 6)


def test_entries_and_their_mirror_images_sum_to_one() -> None:
    rng = np.random.default_rng(0)
    wins = win_matrix({name: rng.integers(0, 3, (5, 4)) for name in "abcd"})
    off = ~np.eye(4, dtype=bool)
    assert (wins + wins.T)[off] == pytest.approx(1)


def test_curves_of_different_seeds_are_refused() -> None:
    with pytest.raises(DataError, match="seeds that all have"):
        win_matrix({"a": np.zeros((3, 4)), "b": np.zeros((2, 4))})
    with pytest.raises(DataError, match="after the first 4"):
        win_matrix({"a": np.zeros((3, 4)), "b": np.zeros((3, 4))}, first=4)


@pytest.mark.parametrize(("k", "q"), [(3, 2.343), (4, 2.569), (5, 2.728), (7, 2.949), (10, 3.164)])
def test_critical_difference_has_the_published_quantiles(k: int, q: float) -> None:
    """Demsar 2006, Table 5(a), at 0.05."""
    n = 14
    values = np.random.default_rng(k).normal(size=(n, k))
    ranking = rank(values)
    assert ranking.critical_difference == pytest.approx(
        q * (k * (k + 1) / (6 * n)) ** 0.5, rel=1e-3
    )
    assert ranking.p == pytest.approx(stats.friedmanchisquare(*values.T).pvalue)


def test_ranks_by_hand() -> None:
    ranking = rank([[0.9, 0.8, 0.7], [0.9, 0.9, 0.5]])
    assert ranking.ranks.tolist() == [1.25, 1.75, 3.0]
    assert rank([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]).p == 1.0
    with pytest.raises(DataError, match="two cells"):
        rank([[0.9, 0.8, 0.7]])


def test_a_figure_that_is_far_off_makes_no_ties_of_the_others() -> None:
    """As R² of a network that diverged, which ranks last and says nothing of the others."""
    array = np.array([[0.2, 0.3, -1e14], [0.5, 0.6, 0.4], [0.4, 0.5, 0.3]])
    ranking = rank(array)
    assert ranking.ranks.tolist() == [2, 1, 3]
    assert ranking.p == pytest.approx(stats.friedmanchisquare(*array.T).pvalue)
