"""What a run is warned of: each figure against the committed curves, and when the line is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from upslope.cli.app import app
from upslope.config import load, plan, to_plan, warnings
from upslope.config.evidence import BEHIND, CELLS, CONFIRMATION, EVIDENCE
from upslope.config.schema import Choice
from upslope.evaluation import area, holm, paired_comparison
from upslope.strategies import REGISTRY

RESULTS = Path(__file__).parents[1] / "results" / "verdict"
SAME = {"expected-gradnorm": "entropy-gradnorm"}  # by its defaults the same number


def behind_random(cell: str, strategy: str, by: str = "random") -> float:
    """Points of area that a strategy is behind another, over the seeds that both have."""
    record = json.loads((RESULTS / f"{cell}.json").read_text(encoding="utf-8"))
    ours, theirs = (record["strategies"][name]["curves"] for name in (strategy, by))
    seeds = sorted(ours.keys() & theirs.keys())
    a, b = (area(record["budgets"], [curves[seed] for seed in seeds]) for curves in (ours, theirs))
    return float(100 * (b - a).mean())


@pytest.mark.parametrize("known", BEHIND, ids=lambda known: known.strategy)
def test_every_figure_is_that_of_the_committed_curves(known) -> None:
    name = SAME.get(known.strategy, known.strategy)
    assert known.strategy in REGISTRY
    assert behind_random(known.cell, name) == pytest.approx(known.points, abs=0.05)
    cells = {*CELLS, *CONFIRMATION}
    assert cells == {p.stem for p in (*RESULTS.glob("*-low.json"), *RESULTS.glob("confirm-*.json"))}
    behind = {cell: behind_random(cell, name) for cell in cells}
    assert max(behind, key=lambda cell: behind[cell]) == known.cell
    assert sum(points > 0 for points in behind.values()) == known.behind
    assert all(behind_random(cell, known.better) < 0 for cell in cells)
    record = json.loads((RESULTS / f"{known.cell}.json").read_text(encoding="utf-8"))
    assert record["budgets"][-1] / 10 == known.labels_per_class


def test_what_strategies_are_best_for_is_that_of_the_committed_curves() -> None:
    """Points against random in the cells of few labels, over the seeds that all measured share."""
    names = [*EVIDENCE, "random"]
    gains: dict[str, list[float]] = {name: [] for name in EVIDENCE}
    shown = dict.fromkeys(EVIDENCE, 0)
    for cell in CELLS:
        record = json.loads((RESULTS / f"{cell}.json").read_text(encoding="utf-8"))
        curves = {n: record["strategies"][SAME.get(n, n)]["curves"] for n in names}
        seeds = sorted(set.intersection(*(set(one) for one in curves.values())))
        areas = {n: area(record["budgets"], [one[s] for s in seeds]) for n, one in curves.items()}
        tests = {
            n: paired_comparison(areas[n], areas["random"]) for n in set(names) - {*SAME, "random"}
        }
        adjusted = dict(zip(tests, holm([test.p_t for test in tests.values()]), strict=True))
        for name in EVIDENCE:
            gains[name].append(float(100 * tests[SAME.get(name, name)].difference.mean))
            shown[name] += bool(adjusted[SAME.get(name, name)] < 0.05)
        assert max(gains, key=lambda name: gains[name][-1]) == "u-herding"
    for name, known in EVIDENCE.items():
        assert (known.least, known.most) == pytest.approx(
            (min(gains[name]), max(gains[name])), abs=0.0501
        ), name
        assert known.shown == shown[name], name


def test_the_list_tells_what_was_measured_from_what_was_published() -> None:
    def told(name: str) -> str:
        return " ".join(CliRunner().invoke(app, ["list", name]).output.split())

    assert "best for: 2 to 20 labels per class on frozen features: 3.3 to 4.1" in told("u-herding")
    assert "best for: no budget that was measured: 0.8 to 4.4 points" in told("entropy-gradnorm")
    assert "published for, not measured here:" in told("core-set")
    assert "best for: the baseline" in told("random")


def lines(strategies: str, initial: int, cycles: int = 3) -> list[str]:
    sets = [f"strategies={strategies}", f"experiment.initial={initial}"]
    config = load(sets=[*sets, "experiment.budget=20", f"experiment.cycles={cycles}"])
    setup, _ = to_plan(config)
    return warnings(config, plan(config, setup))


def test_is_told_for_the_strategy_and_the_budget_alone() -> None:
    (line,) = lines("[random, entropy-gradnorm, margin]", 30)
    assert line.startswith("entropy-gradnorm: with up to 20 labels per class")
    assert "this run begins with 3." in line
    assert lines("[entropy-gradnorm]", 200) == []  # 20 per class
    assert lines("[random, margin, u-herding]", 30) == []
    assert lines("[entropy-gradnorm]", 30, cycles=1) == []  # selects nothing
    focal = "[{name: expected-gradnorm, criterion: focal}]"
    assert lines(focal, 30) == []
    assert len(lines("[expected-gradnorm]", 30)) == 1


def test_the_gradient_norms_are_ahead_of_random_where_classes_are_imbalanced() -> None:
    for name in ("entropy-gradnorm", "egl"):
        assert behind_random("confirm-imbalanced", name) < -4


def test_other_tasks_were_not_measured_and_are_not_warned_of() -> None:
    config = load(sets=["strategies=[entropy-gradnorm]", "experiment.initial=30"])
    sizes = plan(config, to_plan(config)[0])
    assert len(warnings(config, sizes)) == 1
    for task in ("segmentation", "multi-label", "regression"):
        assert warnings(replace(config, task=Choice(task)), sizes) == []


def test_the_command_line_tells_it_once_before_it_begins() -> None:
    arguments = ["compare", "--dry-run", "--device", "cpu", "--strategies", "random,egl"]
    small = ["-s", "experiment.initial=20", "-s", "experiment.budget=10"]
    result = CliRunner().invoke(app, [*arguments, *small])
    assert result.exit_code == 0, result.output
    assert result.output.count("Warning: egl: with up to 20 labels per class") == 1


def test_curves_of_a_cell_are_paired_and_complete() -> None:
    for path in RESULTS.glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        for row in record["strategies"].values():
            curves = np.array(list(row["curves"].values()))
            assert curves.shape[1] == len(record["budgets"])
        first = {
            (seed, curve[0])
            for row in record["strategies"].values()
            for seed, curve in row["curves"].items()
        }
        assert len(first) == len({seed for seed, _ in first}), path  # one first model per seed
