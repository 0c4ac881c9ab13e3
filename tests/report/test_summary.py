from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.lines import Line2D
from studies import BUDGETS, made_up

from upslope.errors import RunError
from upslope.report import Look, Run, Study, summarise, summarise_sets
from upslope.report.figures import curves_figure
from upslope.report.standing import ranks_over
from upslope.report.tables import cells, format_signed, notes, p_value
from upslope.report.verdict import equality, verdict, verdict_over


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
    with pytest.raises(RunError, match="random, margin, but got 'margn'; did you mean `margin`"):
        summarise(made_up({"random": 0, "margin": 0}), reference="margn")


def on_a_test_set(rng: np.random.Generator, seeds: int, size: int, strategies: int) -> Study:
    """A study without a difference: accuracies on `size` samples, as hard for all models."""
    runs = []
    for seed in range(seeds):
        hard = rng.random(size)
        for name in ("random", *(f"s{i}" for i in range(strategies))):
            hardness = np.where(rng.random(size) < 0.15, rng.random(size), hard)
            scores = tuple(float((hardness < level).mean()) for level in (0.8, 0.9))
            runs.append(Run(name, seed, (10, 20), scores, 2))
    return Study(tuple(runs))


def test_on_a_small_test_set_no_more_than_one_study_in_twenty_shows_a_difference() -> None:
    """Family-wise, of six strategies and two seeds; it was one study in four."""
    rng, studies, wrong = np.random.default_rng(2), 200, 0
    for _ in range(studies):
        rows = summarise(on_a_test_set(rng, 2, 100, 6)).rows
        wrong += any(r.comparison.verdict in ("better", "worse") for r in rows if r.comparison)
    assert wrong / studies <= 0.05 + 3 * (0.05 * 0.95 / studies) ** 0.5


def test_seeds_of_one_difference_show_none_of_six_strategies() -> None:
    """One sample more of a hundred in all three seeds was "better", with p below 0.001."""
    runs = [Run("random", seed, (10,), (0.5 + seed / 10,), 1) for seed in range(3)]
    for i, more in enumerate((0.01, 0.0, 0.0, 0.0, 0.0, 0.0)):
        runs += [
            Run(f"s{i}", seed, (10,), (0.5 + seed / 10 + more + (i > 0) * (seed - 1) / 50,), 1)
            for seed in range(3)
        ]
    summary = summarise(Study(tuple(runs)))
    comparison = summary.rows[1].comparison
    assert comparison is not None
    assert comparison.verdict == "no difference shown"
    assert np.isnan(comparison.area.difference.low)
    assert any("s0: the same difference in all seeds" in note for note in notes(summary))


def test_the_same_difference_in_two_seeds_is_told_and_nothing_is_shown() -> None:
    runs = tuple(
        Run(name, seed, (10, 20), (0.5 + more, 0.6 + more + seed / 8), 2)
        for name, more in (("random", 0.0), ("up", 0.0625))
        for seed in (0, 1)
    )
    summary = summarise(Study(runs))
    comparison = summary.rows[1].comparison
    assert comparison is not None
    assert comparison.verdict == "no difference shown"
    assert any("up: the same difference in both seeds" in note for note in notes(summary))
    equal = equality(summary, summary.rows[1])
    assert equal is not None
    assert equal.p_equal == 1.0
    assert equal.p_not_worse == 0.25


def test_notes_do_not_depend_on_the_order_in_which_folders_are_listed() -> None:
    runs = tuple(
        replace(run, unfitted=(180,), changes=(f"{run.strategy} grew",))
        for run in made_up({"random": 0, "up": 0.02, "alpha": 0.01}, seeds=2).runs
    )
    runs += tuple(Run(name, 7, BUDGETS[:1], (0.1,), 7) for name in ("up", "alpha"))
    look = Look(slots={"random": -1, "up": 0, "alpha": 1})
    first = notes(summarise(Study(runs), look=look))
    listed = tuple(sorted(runs, key=lambda run: (run.strategy, run.seed)))
    assert notes(summarise(Study(listed), look=look)) == first
    assert any("in random at 180 labels; up at 180 labels; alpha" in note for note in first)


def test_what_to_do_about_unfitted_networks_holds_for_a_training_loop_of_ones_own() -> None:
    """`training.epochs` alone was advised, which such a run does not have."""
    runs = tuple(replace(run, unfitted=(180,)) for run in made_up({"random": 0}).runs)
    assert any("(training.epochs, or in your loop)" in n for n in notes(summarise(Study(runs))))


def test_numbers_of_seeds_are_told_of_the_strategies_that_have_them() -> None:
    """One strategy with a single seed had the report say "no test" of all, beside their tests."""
    runs = made_up({"random": 0, "up": 0.02, "new": 0.01}).runs
    kept = tuple(run for run in runs if run.strategy != "new" or run.seed == 0)
    told = notes(summarise(Study(kept)))
    assert any(note.startswith("One seed (new): no interval") for note in told)
    assert any(note.startswith("5 seeds (random, up) are few") for note in told)


def test_pairs_over_other_seeds_than_their_row_are_told() -> None:
    runs = made_up({"random": 0, "up": 0.02, "new": 0.01}).runs
    kept = tuple(
        run
        for run in runs
        if (run.strategy == "random" and run.seed < 3)
        or (run.strategy == "up" and run.seed > 0)
        or (run.strategy == "new" and run.seed > 2)
    )
    told = notes(summarise(Study(kept)))
    assert "Not compared: new: no seed in common with random." in told
    assert any("in common with random: up over 2 of 4 seeds" in note for note in told)
    assert not any("in common" in note for note in notes(summarise(Study(runs))))


def test_an_area_that_is_the_reference_s_in_every_seed_is_told_as_that() -> None:
    """The note said that p was a chance on a finite test set, beside a p of 1."""
    runs = made_up({"random": 0}).runs
    summary = summarise(Study((*runs, *(replace(run, strategy="same") for run in runs))))
    comparison = summary.rows[1].comparison
    assert comparison is not None
    assert comparison.p_adjusted == 1.0
    told = notes(summary)
    assert "same: the area of the reference in every seed, so that p is 1." in told
    assert not any("largest chance" in note for note in told)


def test_the_verdict_without_a_test_says_why() -> None:
    """It was "as there is no reference" beside a reference, and "0.0 points ahead" of a tie."""
    runs = made_up({"random": 0, "up": 0.02}, seeds=4).runs
    alone = [run for run in runs if run.strategy == "random"]
    assert verdict(summarise(Study(tuple(alone)))).endswith("as there is no other strategy.")
    apart = [run for run in runs if (run.strategy == "up") == (run.seed > 1)]
    assert verdict(summarise(Study(tuple(apart)))).endswith(
        "as no strategy has a seed in common with random."
    )
    tie = (alone[0], replace(alone[0], strategy="same"))
    assert verdict(summarise(Study(tie))) == (
        "same has the area of random in one seed: nothing can be tested."
    )


def test_data_sets_without_a_common_seed_are_told_as_that() -> None:
    """It was "no three have runs in all of them" where all three had, of other seeds."""
    runs = made_up({"random": 0, "up": 0.02, "down": -0.02}, seeds=2).runs
    apart = tuple(run for run in runs if (run.strategy == "up") == (run.seed == 1))
    summaries = summarise_sets([Study(runs, name="one"), Study(apart, name="two")])
    assert ranks_over(summaries) is None
    assert verdict_over(summaries, None) == (
        "Over 2 data sets: nothing can be ranked, as no three strategies have runs of one seed in "
        "each of them."
    )


def test_no_p_below_the_level_is_written_as_the_level() -> None:
    """0.0497 stood as 0.050 beside "better", which is said of a p below 0.05."""
    assert [p_value(p) for p in (0.0004, 0.0494, 0.0497, 0.04999999)] == [
        "<0.001", "0.049", "<0.05", "<0.05",
    ]  # fmt: skip
    assert [p_value(p) for p in (0.05, 0.0504, 0.2)] == ["0.050", "0.050", "0.200"]


def test_what_rounds_to_zero_has_no_sign() -> None:
    assert [format_signed(x, 2) for x in (-0.001, 0.001)] == ["0.00", "0.00"]
    assert [format_signed(x, 2) for x in (-0.3, 0.3)] == ["-0.30", "+0.30"]


def test_seeds_of_one_value_have_no_interval_at_that_budget() -> None:
    """Three seeds at 0.6 stood as "60.0 ±0.0", as if the figure were certain."""
    runs = tuple(
        Run("random", seed, (10, 20, 30), (0.5 + seed / 50, 0.6, 0.7 + seed / 40), 3)
        for seed in range(3)
    )
    summary = summarise(Study(runs))
    row = summary.rows[0]
    assert np.isnan(row.curve.high).tolist() == [False, True, False]
    assert cells(summary, row)[1:4] == ["52.0 ±5.0", "60.0", "72.5 ±6.2"]
    assert any(note.startswith("No ± where all seeds have one value") for note in notes(summary))
    assert curves_figure(summary).axes


def test_curves_are_told_apart_without_colours() -> None:
    names = ("random", "margin", "egl", "badge")
    runs = tuple(Run(name, s, (10, 20), (0.5, 0.6), 2) for name in names for s in (0, 1, 2))
    figure = curves_figure(summarise(Study(runs)))
    shapes = {line.get_marker() for line in figure.axes[0].lines}
    assert len(shapes) == len(names)
    marks = [mark for mark in figure.artists if isinstance(mark, Line2D)]  # beside the names
    assert {mark.get_marker() for mark in marks} == shapes


def test_an_area_of_one_value_has_no_interval() -> None:
    runs = tuple(Run("random", seed, (10, 20), (0.5, 0.6), 2) for seed in range(3))
    summary = summarise(Study(runs))
    assert cells(summary, summary.rows[0])[1:4] == ["50.0", "60.0", "55.0"]
