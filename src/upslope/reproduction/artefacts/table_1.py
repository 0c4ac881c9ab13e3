"""Table 1: how much of what a strategy selects has a large gradient norm."""

from __future__ import annotations

import numpy as np

from upslope.reproduction import paper
from upslope.reproduction.artefacts.common import percent_of_k, percent_of_pool
from upslope.reproduction.metrics import definitions
from upslope.reproduction.metrics.metric_cache import Metric, measure
from upslope.reproduction.metrics.overlaps import chance_overlap
from upslope.reproduction.output.results import (
    Result,
    Row,
    Table,
    align,
    exact_values,
    mean_over_seeds,
    to_panel,
)
from upslope.reproduction.scales import GRADIENT_NORM_STRATEGIES, MC_DROPOUT
from upslope.reproduction.studies.runner import StudyRunner

OVERLAP = Metric("overlap", definitions.overlap)
"""The metric of every row."""


def table_1(runner: StudyRunner) -> Result:
    """Measure the overlap with the true top K by gradient norm, beside chance."""
    names = list(runner.runs(runner.scale.main))
    numbers = measure(runner, runner.scale.main, OVERLAP, names)
    numbers |= measure(runner, runner.scale.dropout, OVERLAP, (MC_DROPOUT,))
    budgets = percent_of_pool(runner, runner.scale.main)
    rows: list[Row] = []
    for name, seeds in numbers.items():
        rows.append(Row(name, mean_over_seeds([percent_of_k(f["overlap"], f["k"]) for f in seeds])))
        if name in paper.TABLE_1:
            paper_shares = [100 * n / paper.K for n in paper.TABLE_1[name]]
            rows.append(
                Row(name, exact_values(align(budgets, paper.BUDGETS, paper_shares)), "paper")
            )
    first = next(iter(numbers.values()))[0]
    chance = [100 * chance_overlap(first["k"], n) / first["k"] for n in first["candidates"]]
    rows.append(Row("chance", exact_values(chance), "chance"))
    theirs = 100 * chance_overlap(paper.K, paper.CANDIDATES) / paper.K
    rows.append(Row("chance", exact_values([theirs] * len(budgets)), "paper"))
    columns = tuple(f"{b}%" for b in budgets)
    table = Table(
        f"Selected samples among the K of largest gradient norm, in percent of K = {first['k']:,}",
        "labels",
        columns,
        tuple(rows),
    )
    last = {
        name: float(np.mean([f["overlap"][-1] / f["k"] for f in s])) for name, s in numbers.items()
    }
    best = max(last, key=lambda name: last[name])
    return Result(
        (table,),
        (to_panel(table, budgets, "labels (% of the pool)", "overlap (% of K)"),),
        (
            f"After the last cycle {best} has the largest share, {100 * last[best]:.0f}%; "
            + ", ".join(
                f"{n} {100 * last[n]:.0f}%"
                for n in GRADIENT_NORM_STRATEGIES
                if n in last and n != best
            )
            + f"; chance is {chance[-1]:.0f}%.",
        ),
        (
            "The true norm is that of the whole gradient, in both readings, at the known label, "
            "among the same candidates. Nothing is selected after the last cycle; what would be "
            "was found with its model.",
            "Strategies without a line of the paper's are not in its table. mc-dropout's network "
            "has dropout 0.5 before its head; that of the others has none.",
        ),
        paper.CIFAR,
        (runner.scale.main, runner.scale.dropout),
    )
