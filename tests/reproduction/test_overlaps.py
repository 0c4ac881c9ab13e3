"""Overlaps, chance and reduced norms, against sets, expectations and random choices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from upslope.errors import SelectionError
from upslope.reproduction.metrics.overlaps import chance_overlap, count_reduced, top_overlap


def test_overlap_is_that_of_sets_where_scores_differ() -> None:
    scores = torch.rand(50, generator=torch.Generator().manual_seed(0))
    selected = torch.randperm(50, generator=torch.Generator().manual_seed(1))[:12].tolist()
    largest = set(scores.argsort(descending=True)[:12].tolist())
    assert top_overlap(scores, selected, 12) == len(largest & set(selected))
    assert top_overlap(scores, list(largest), 12) == 12
    assert top_overlap(scores, [], 12) == 0
    assert top_overlap(scores, range(50), 50) == 50


def test_ties_at_the_cut_count_by_their_expectation() -> None:
    scores = torch.tensor([3.0, 1, 1, 1, 1, 0])  # two places for four
    assert top_overlap(scores, [0, 1, 2], 3) == 2  # 1 + 2 * 2 / 4
    assert top_overlap(scores, [0, 3, 4], 3) == 2
    assert top_overlap(scores, [1, 2, 3, 4], 3) == 2
    assert top_overlap(scores, [5], 3) == 0
    assert top_overlap(scores, [1], 3) == 1  # one half, up
    # By position either of these would have all, the other none.
    constant = torch.zeros(100)
    assert top_overlap(constant, range(20), 20) == 4 == chance_overlap(20, 100)
    assert top_overlap(constant, range(80, 100), 20) == 4


def test_chance_is_the_mean_over_random_choices() -> None:
    rng = torch.Generator().manual_seed(0)
    scores = torch.rand(40, generator=rng)
    draws = [
        top_overlap(scores, torch.randperm(40, generator=rng)[:10].tolist(), 10)
        for _ in range(2000)
    ]
    assert sum(draws) / 2000 == pytest.approx(chance_overlap(10, 40), abs=0.1)
    assert chance_overlap(2500, 25000) == 250  # Table 1, as core-set and VAAL find


def test_reduced_counts_as_the_captions_have_it() -> None:
    assert count_reduced(torch.tensor([1.0, 2, 3, 0]), torch.tensor([0.5, 2, 3.1, 0])) == 3


@pytest.mark.parametrize(
    ("scores", "selected", "k", "message"),
    [
        (torch.zeros(3), [0], 4, "`k` from 1 to n but got shape .3,. and 4"),
        (torch.zeros(3), [0], 0, "and 0"),
        (torch.zeros(3, 1), [0], 1, r"got shape \(3, 1\)"),
        (torch.tensor([0.0, torch.nan]), [0], 1, "position 1 of 2 is NaN"),
        (torch.zeros(3), [0, 3], 1, "from 0 to 2 but got 3"),
        (torch.zeros(3), [-1], 1, "from 0 to 2 but got -1"),
        (torch.zeros(3), [1, 1], 1, "got one of them twice"),
    ],
)
def test_overlaps_that_are_not_defined(
    scores: Tensor, selected: list[int], k: int, message: str
) -> None:
    with pytest.raises(SelectionError, match=message):
        top_overlap(scores, selected, k)


def test_counts_that_are_not_defined() -> None:
    with pytest.raises(SelectionError, match="from 1 to the number of candidates, 5, but got 6"):
        chance_overlap(6, 5)
    with pytest.raises(SelectionError, match=r"\(2,\) and \(3,\)"):
        count_reduced(torch.zeros(2), torch.zeros(3))
    with pytest.raises(SelectionError, match="finite"):
        count_reduced(torch.zeros(2), torch.tensor([0.0, torch.nan]))
