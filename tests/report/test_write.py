from __future__ import annotations

import csv
import json
import math
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from studies import BUDGETS, made_up

from upslope.report import Run, Study, Summary, figures, read_look, summarise, write
from upslope.report.protocol import environment_lines
from upslope.report.tables import as_csv, as_json, cells, header, markdown


@pytest.fixture
def summary() -> Summary:
    study = made_up({"random": 0, "margin": 0.03, "egl": 0.0})
    half = Run("egl", 9, BUDGETS[:3], (0.8, 0.81, 0.82), 7)
    config = {"data": {"name": "digits <b>"}, "experiment": {"initial": 0.1}}
    return summarise(replace(study, runs=(*study.runs, half), config=config))


def test_everything_is_written(summary: Summary, tmp_path: Path) -> None:
    files = write(summary, tmp_path / "report", "Digits")
    with Image.open(files.png) as picture:
        assert picture.size[0] > 1000
        colours = picture.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 50
    assert "<svg" in files.svg.read_text()
    assert files.page.stat().st_size < 500_000


def test_no_engine_is_no_line_of_the_protocol() -> None:
    machine = {"threads": 2, "engine": None, "commit": None}
    assert environment_lines(machine) == [["threads", "2"], ["commit", "not known"]]
    assert environment_lines({"engine": "ray"}) == [["engine", "ray"]]


def test_pictures_are_the_same_bytes_each_time(summary: Summary, tmp_path: Path) -> None:
    one, two = write(summary, tmp_path / "1"), write(summary, tmp_path / "2")
    assert one.svg.read_bytes() == two.svg.read_bytes()
    assert one.page.read_bytes() == two.page.read_bytes()


def test_table_has_a_cell_for_each_column(summary: Summary) -> None:
    for row in summary.rows:
        assert len(cells(summary, row)) == len(header(summary))
    lines = markdown(summary).splitlines()
    assert lines[2].startswith("| random | ")
    assert {line.count("|") for line in lines[:5]} == {len(header(summary)) + 1}


def test_csv_and_json_hold_the_figures_in_full(summary: Summary) -> None:
    rows = list(csv.DictReader(as_csv(summary).splitlines()))
    assert len(rows) == 3 * len(BUDGETS)
    assert float(rows[0]["mean"]) == float(summary.rows[0].curve.mean[0])
    document = json.loads(as_json(summary))
    assert document["strategies"][1]["against_reference"]["verdict"] == "better"
    assert document["incomplete"] == [{"strategy": "egl", "seed": 9, "done": 3, "cycles": 7}]
    assert document["full_data"] == pytest.approx(0.97)


def test_one_seed_without_reference_still_reports(tmp_path: Path) -> None:
    summary = summarise(made_up({"margin": 0.0}, seeds=1))
    files = write(summary, tmp_path)
    assert "One seed" in files.markdown.read_text()
    assert json.loads(files.json.read_text())["strategies"][0]["low"][0] is None


def test_many_strategies_keep_their_names_apart(tmp_path: Path) -> None:
    summary = summarise(made_up({"random": 0.0, **{f"strategy-{i}": 0.0 for i in range(24)}}, 2))
    svg = write(summary, tmp_path).svg.read_text()
    places = [
        float(y)
        for y in re.findall(
            r"translate\([\d.]+ ([\d.]+)\)[^>]*>(?:<tspan[^>]*>)?(?:strategy-\d+|random)<", svg
        )
    ] or [
        float(y)
        for y in re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>(?:strategy-\d+|random)</text>', svg)
    ]
    assert len(places) == 25
    gaps = [b - a for a, b in zip(sorted(places), sorted(places)[1:], strict=False)]
    assert min(gaps) > 6


def near_the_top(seeds: int) -> Summary:
    """Accuracies between 97 and 100%, whose Student t intervals reach beyond."""
    levels = [0.970, 1.0, 0.985, 0.999]
    runs = tuple(
        Run(name, seed, (10, 20, 30), (levels[seed] - 0.02, levels[seed] - shift, levels[seed]), 3)
        for seed in range(seeds)
        for name, shift in (("random", 0.02), ("margin", 0.0))
    )
    return summarise(Study(runs))


def test_charts_stay_within_what_accuracy_can_be() -> None:
    summary = near_the_top(3)
    assert summary.rows[0].curve.high[-1] > 1.0  # the interval does not know
    axes = figures.curves_figure(summary).axes[0]
    assert axes.get_ylim()[1] <= 100
    assert axes.get_ylim()[0] >= 0
    bands = [path.vertices for c in axes.collections for path in c.get_paths()]
    assert len(bands) == 2
    assert max(band[:, 1].max() for band in bands) == 100
    assert figures.bounds("r2") == (-math.inf, 1.0)


def test_two_seeds_are_points_and_three_a_band() -> None:
    two, three = (figures.curves_figure(near_the_top(n)).axes[0] for n in (2, 3))
    assert not two.collections
    points = [line for line in two.lines if line.get_linestyle() == "None"]
    drawn = {tuple(line.get_ydata().tolist()) for line in points}
    assert drawn == {
        tuple(100 * score for score in run.scores) for run in near_the_top(2).study.runs
    }
    assert len(three.collections) == 2
    assert all(line.get_linestyle() != "None" for line in three.lines)


def test_tables_of_two_seeds_tell_the_mean_without_an_interval() -> None:
    """Of 0.970 and 1.0 the Student t interval would be ±19 points; of three seeds it is told."""
    two, three = near_the_top(2), near_the_top(3)
    assert cells(two, two.rows[1])[:5] == ["margin", "96.5", "98.5", "98.5", "98.0"]
    assert cells(two, two.rows[1])[5] == "+1.00"
    assert "±" not in markdown(two)
    assert "2 seeds: no interval" in markdown(two)
    assert all(line.split(",")[3:5] == ["", ""] for line in as_csv(two).splitlines()[1:])
    stored = json.loads(as_json(two))["strategies"][1]
    assert stored["mean"] == pytest.approx([0.965, 0.985, 0.985])
    assert stored["low"] == [None] * 3
    assert (stored["area"]["low"], stored["against_reference"]["high"]) == (None, None)
    assert "±" in cells(three, three.rows[1])[1]
    half = 4.302652729911275 * statistics.stdev([0.95, 0.98, 0.965]) / math.sqrt(3)
    assert cells(three, three.rows[1])[1] == f"96.5 ±{100 * half:.1f}"


def test_a_report_made_again_keeps_title_order_and_colours(tmp_path: Path) -> None:
    study = made_up({"random": 0, "margin": 0.03, "egl": 0.0})
    write(summarise(study), tmp_path, "Digits")
    look = read_look(tmp_path / "none", tmp_path)
    assert look.title == "Digits"
    other = made_up({"badge": 0.01, "egl": 0.0, "margin": 0.03, "random": 0})
    again = summarise(other, reference="margin", look=look)
    before = dict(zip(("random", "margin", "egl"), figures.looks(summarise(study)), strict=True))
    after = {r.strategy: x for r, x in zip(again.rows, figures.looks(again), strict=True)}
    assert {name: after[name] for name in before} == before
    assert len(set(after.values())) == 4
    assert [row.strategy for row in again.rows] == ["margin", "random", "egl", "badge"]
    files = write(again, tmp_path)
    assert "<title>Digits</title>" in files.page.read_text()
    assert "<title>Other</title>" in write(again, tmp_path, "Other").page.read_text()
    (tmp_path / "results.json").write_text("{")
    assert read_look(tmp_path).slots == {}
