from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from upslope.reproduction.artefacts.confound import _stretch
from upslope.reproduction.artefacts.figures_1_2_4 import _against_random
from upslope.reproduction.output.formats import (
    escape_latex,
    format_value,
    to_csv,
    to_latex,
    to_markdown,
)
from upslope.reproduction.output.picture import draw_picture, save_picture
from upslope.reproduction.output.results import (
    Panel,
    Row,
    Series,
    Table,
    Value,
    align,
    exact_values,
    mean_over_seeds,
)
from upslope.training import TrainingSettings

TABLE = Table(
    "Overlap, in percent of K = 2,500",
    "labels",
    ("10%", "15%"),
    (
        Row("core_set", (Value(12.345, 0.678, 3), None)),
        Row("core_set", exact_values([8.7, None]), "paper"),
        Row("chance", exact_values([10, 12_000]), "chance"),
    ),
)


def test_over_seeds_is_student_t() -> None:
    values = np.array([[1.0, 2.0], [2.0, 2.0], [4.0, 2.0]])
    first, second = mean_over_seeds(values)
    low, high = stats.t.interval(0.95, 2, loc=values[:, 0].mean(), scale=stats.sem(values[:, 0]))
    assert first.mean == pytest.approx(7 / 3)
    assert first.half == pytest.approx((high - low) / 2)
    assert (first.seeds, second.half) == (3, 0.0)
    assert math.isnan(mean_over_seeds([[1.0]])[0].half)


def test_at_takes_the_columns_that_both_have() -> None:
    assert align([10, 25, 41], [10, 15, 25], [1.0, 2.0, 3.0]) == [1.0, 3.0, None]


def test_seeds_of_one_value_have_no_half_in_a_cell() -> None:
    """They had ±0.0, or ±5.9e-17 where their mean was rounded."""
    for values in ([[2.0]] * 3, [[0.1]] * 3):
        assert "±" not in format_value(mean_over_seeds(values)[0], 1)


def test_cells() -> None:
    assert format_value(Value(12.345, 0.678), 1) == "12.3 ±0.7"
    assert format_value(Value(12.0), 2) == "12.00"
    assert format_value(Value(12_000.0, count=True), 1) == "12,000"
    assert format_value(Value(0.0004), 1) == "4.0e-04"
    assert format_value(None, 1) == "–"


def test_markdown_marks_what_is_not_ours() -> None:
    lines = to_markdown(TABLE).splitlines()
    assert "| core_set | 12.3 ±0.7 | – |" in lines
    assert "| *core_set (paper)* | 8.7 | – |" in lines
    assert "| *chance* | 10 | 12,000 |" in lines


def test_csv_is_long_and_exact() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv([TABLE]))))
    assert len(rows) == 4
    assert rows[0]["mean"] == "12.345"
    assert rows[0]["half_interval"] == "0.678"
    assert (rows[1]["source"], rows[1]["half_interval"], rows[1]["seeds"]) == ("paper", "", "")


def test_latex_escapes_and_balances() -> None:
    text = to_latex([TABLE])
    assert r"core\_set & 12.3 $\pm$0.7 & -- \\" in text
    assert r"\textit{8.7}" in text
    assert r"10\%" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert escape_latex("a_b & 5% #{}") == r"a\_b \& 5\% \#\{\}"


def test_as_many_steps_as_whole_passes_allow() -> None:
    training = TrainingSettings(
        epochs=200, batch_size=128, schedule="milestones", milestones=(160,), lr=0.1
    )
    # The warm start of the paper's code: 137,600 steps over seven cycles; all labels: 78,200.
    labels = range(5_000, 20_001, 2_500)
    assert sum(training.steps_for(n) for n in labels) == 137_600
    assert training.steps_for(50_000) == 78_200
    longer = _stretch(training, 137_600, 50_000)
    assert longer.steps_for(50_000) == pytest.approx(137_600, abs=391 / 2)
    assert longer.milestones[0] / longer.epochs == pytest.approx(0.8, abs=0.01)


def test_a_picture_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    bars = Panel("Bars", "%", "", ("a", "b"), (Series("ours", (1.0, 2.0), (0.1, 0.2)),))
    for path in save_picture((bars,), tmp_path):
        path.write_bytes(b"old")
        path.with_suffix(".link").hardlink_to(path)  # the old file, under another name
        save_picture((bars,), tmp_path)
        assert path.with_suffix(".link").read_bytes() == b"old"
        assert path.read_bytes() != b"old"
        path.with_suffix(".link").unlink()


def test_pictures_of_curves_and_bars() -> None:
    curves = Panel(
        "Curves", "%", "labels", (10.0, 15.0),
        (
            Series("ours", (1.0, 2.0), (0.1, 0.2)),
            Series("ours", (1.5, math.nan), (), "paper"),
            Series("chance", (1.0, 1.0), (), "chance"),
        ),
        ("all labels", 3.0),
    )  # fmt: skip
    bars = Panel("Bars", "%", "", ("a", "b"), (Series("ours", (1.0, 2.0), (0.1, 0.2)),))
    figure = draw_picture((curves, bars))
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes] == [
        "Curves", "Bars",
    ]  # fmt: skip
    named = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert named == ["ours", "ours (paper)", "chance", "all labels"]
    low, high = figure.axes[0].get_ylim()
    assert low < 1.0 < 3.0 < high


def test_intervals_are_drawn_of_all_curves_of_a_panel_or_of_none() -> None:
    def panel(half: float, *, logarithmic: bool = False) -> Panel:
        curves = (Series("a", (1.0, 3.0), (half, half)), Series("b", (1.5, 2.0), (0.1, 0.1)))
        return Panel("Curves", "points", "labels", (1.0, 2.0), curves, logarithmic=logarithmic)

    def shades(shown: Panel) -> int:
        return len(draw_picture((shown,)).axes[0].collections)

    assert shades(panel(0.2)) == 2
    assert shades(panel(9.0)) == 0
    assert shades(panel(0.2, logarithmic=True)) == 2
    assert shades(panel(1.5, logarithmic=True)) == 0  # to below zero, which has no logarithm
    bars = Panel("Bars", "%", "", ("a", "b"), (Series("ours", (50.0, 60.0), (5.0, 90.0)),))
    assert not draw_picture((bars,)).axes[0].collections


def test_a_curve_on_another_is_dashed_and_shares_stay_in_the_frame() -> None:
    curves = (Series("a", (90.0, 99.0)), Series("b", (90.0, 99.0)), Series("c", (1.0, 2.0)))
    axes = draw_picture((Panel("Same", "share (%)", "labels", (1.0, 2.0), curves),)).axes[0]
    assert [line.is_dashed() for line in axes.lines] == [False, True, False]
    low, high = axes.get_ylim()
    assert -6 < low < 0
    assert 100 < high < 105


def test_names_stand_above_bars_of_a_logarithmic_axis() -> None:
    series = (Series("training", (10.0, 10.0)), Series("selecting", (0.1, 1.0)))
    axes = draw_picture((Panel("Time", "s", "", ("a", "b"), series, logarithmic=True),)).axes[0]
    assert axes.get_ylim()[1] > 30


@dataclass(frozen=True)
class Finished:
    """A run of three budgets."""

    scores: tuple[float, ...]

    def curve(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        return (10, 20, 40), self.scores


def test_areas_beside_those_of_random() -> None:
    """Equal areas differed by what rounding leaves, as -3.6e-15 points."""
    rng = np.random.default_rng(0)
    curves = {name: rng.random((4, 3)) for name in ("random", "entropy-gradnorm", "margin")}
    # The same area from another curve: 10 more in the middle weigh as 15 / 10 less at the start.
    curves["expected-gradnorm"] = curves["random"] + [0.09, -0.03, 0.0]
    runs = {name: tuple(Finished(tuple(c)) for c in curve) for name, curve in curves.items()}
    (table,), sentence = _against_random("points", runs)  # type: ignore[arg-type]
    rows = {row.label: row.values for row in table.rows}
    areas = {name: 100 * c @ [1 / 6, 1 / 2, 1 / 3] for name, c in curves.items()}
    p_values = []
    for name in ("entropy-gradnorm", "margin"):
        area, less, _ = rows[name]
        oracle = stats.ttest_rel(areas[name], areas["random"])
        interval = oracle.confidence_interval()
        assert area.mean == pytest.approx(areas[name].mean())
        assert less.mean == pytest.approx((areas[name] - areas["random"]).mean())
        assert less.half == pytest.approx((interval.high - interval.low) / 2)
        p_values.append(oracle.pvalue)
    first, second = np.argsort(p_values)
    ours = [rows[name][2].mean for name in ("entropy-gradnorm", "margin")]
    assert ours[first] == pytest.approx(min(1, 3 * p_values[first]))
    assert ours[second] == pytest.approx(min(1, max(ours[first], 2 * p_values[second])))
    assert rows["expected-gradnorm"][1:] == (Value(0.0, 0.0, 4), Value(1.0))
    assert "expected-gradnorm +0.00 points of area against random (p = 1)" in sentence
    assert sentence.endswith(f"that of {max(areas, key=lambda name: areas[name].mean())}.")
