"""Table 3: training accuracy less test accuracy."""

from __future__ import annotations

import numpy as np

from upslope.ledger import RunResult
from upslope.reproduction import paper
from upslope.reproduction.artefacts.common import percent_of_pool
from upslope.reproduction.output.results import (
    Result,
    Row,
    Table,
    align,
    exact_values,
    mean_over_seeds,
    to_panel,
)
from upslope.reproduction.scales import GRADIENT_NORM_STRATEGIES
from upslope.reproduction.studies.runner import StudyRunner


def table_3(runner: StudyRunner) -> Result:
    """Measure the gap at every budget but the first, at which all strategies share their labels."""
    runs = runner.runs(runner.scale.main, runner.scale.dropout)
    budgets = percent_of_pool(runner, runner.scale.main)[1:]
    rows: list[Row] = []
    last: dict[str, float] = {}
    for name, seeds in runs.items():
        gaps = [_gap(run) for run in seeds]
        rows.append(Row(name, mean_over_seeds(gaps)))
        last[name] = float(np.mean([gap[-1] for gap in gaps]))
        if name in paper.TABLE_3:
            paper_gaps = align(budgets, paper.BUDGETS[1:], paper.TABLE_3[name])
            rows.append(Row(name, exact_values(paper_gaps), "paper"))
    table = Table(
        "Training less test accuracy, in points",
        "labels",
        tuple(f"{b}%" for b in budgets),
        tuple(rows),
        decimals=2,
    )
    order = sorted(last, key=lambda name: last[name])
    return Result(
        (table,),
        (to_panel(table, budgets, "labels (% of the pool)", "gap (points)"),),
        (
            f"At the last budget the smallest gap is that of {order[0]} ({last[order[0]]:.1f} "
            f"points) and the largest that of {order[-1]} ({last[order[-1]]:.1f}); "
            + ", ".join(f"{n}: {last[n]:.1f}" for n in GRADIENT_NORM_STRATEGIES if n in last)
            + ".",
        ),
        (
            "mc-dropout's network has dropout 0.5 before its head; that of the others has none.",
            "Training accuracy is that on the labelled set, in eval mode and without augmentation. "
            "A strategy that selects hard samples has a smaller gap for that alone: its labelled "
            "set is harder than the test set.",
        ),
        paper.CIFAR,
        (runner.scale.main, runner.scale.dropout),
    )


def _gap(run: RunResult) -> list[float]:
    key = run.primary
    return [100 * (c.train_metrics[key] - c.metrics[key]) for c in run.cycles[1:]]
