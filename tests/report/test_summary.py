from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from studies import BUDGETS, made_up

from upslope.errors import RunError
from upslope.report import Run, Study, summarise


def test_means_areas_and_times_by_hand() -> None:
    runs = (
        Run("random", 0, (10, 20), (0.5, 0.7), 2, training_seconds=4.0),
        Run("random", 1, (10, 20), (0.7, 0.9), 2, training_seconds=6.0),
    )
    row = summarise(Study(runs)).rows[0]
    assert row.curve.mean == pytest.approx([0.6, 0.8])
    assert row.area.mean == pytest.approx(0.7)
    assert row.training_seconds == 5.0
    assert row.comparison is None


def test_verdicts_follow_the_offsets() -> None:
    found = {
        row.strategy: row.comparison.verdict
        for row in summarise(made_up({"random": 0, "up": 0.04, "down": -0.04, "same": 0})).rows
        if row.comparison
    }
    assert found == {"up": "better", "down": "worse", "same": "no difference shown"}


def test_differences_are_within_the_seed() -> None:
    study = made_up({"random": 0, "up": 0.02}, noise=0.0)
    comparison = summarise(study).rows[1].comparison
    assert comparison is not None
    # The seeds differ by far more than the offset; within a seed the offset is exact.
    assert comparison.curve.mean == pytest.approx(np.linspace(0, 0.02, 7))
    assert comparison.curve.high - comparison.curve.low == pytest.approx(np.zeros(7), abs=1e-12)


def test_only_shared_seeds_are_compared() -> None:
    study = made_up({"random": 0, "up": 0.02})
    cut = replace(study, runs=tuple(r for r in study.runs if (r.strategy, r.seed) != ("up", 2)))
    comparison = summarise(cut).rows[1].comparison
    assert comparison is not None
    assert comparison.seeds == (0, 1, 3, 4)


def test_incomplete_runs_count_for_nothing() -> None:
    study = made_up({"random": 0, "up": 0.02})
    half = Run("up", 9, BUDGETS[:3], (0.1, 0.1, 0.1), 7)
    with_half = replace(study, runs=(*study.runs, half))
    assert with_half.incomplete == (half,)
    before, after = summarise(study).rows[1], summarise(with_half).rows[1]
    assert after.seeds == before.seeds
    assert after.area.mean == before.area.mean


def test_one_seed_is_shown_and_not_tested() -> None:
    comparison = summarise(made_up({"random": 0, "up": 0.02}, seeds=1)).rows[1].comparison
    assert comparison is not None
    assert comparison.verdict == "not tested"


def test_a_single_budget_has_the_figure_for_its_area() -> None:
    runs = (Run("random", 0, (10,), (0.5,), 1), Run("up", 0, (10,), (0.6,), 1))
    rows = summarise(Study(runs)).rows
    assert rows[1].area.mean == pytest.approx(0.6)


def test_what_cannot_be_summarised_is_named() -> None:
    with pytest.raises(RunError, match="random seed 0 at 1 of 7 cycles"):
        summarise(Study((Run("random", 0, (10,), (0.5,), 7),)))
    runs = (Run("a", 0, (10, 20), (0.5, 0.6), 2), Run("a", 1, (10, 30), (0.5, 0.6), 2))
    with pytest.raises(RunError, match="same budgets"):
        summarise(Study(runs))
    with pytest.raises(RunError, match="seed 0 twice"):
        summarise(Study((runs[0], runs[0])))
    with pytest.raises(RunError, match="but got 'margin'"):
        summarise(made_up({"random": 0}), reference="margin")
