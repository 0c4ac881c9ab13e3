"""Table 1: how much of what a strategy selects has a large gradient norm. Table 2: Eq. 3 and 5."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from upslope.reproduction import definitions, paper
from upslope.reproduction.studies.runner import StudyRunner
from upslope.reproduction.metrics.metric_cache import Numbers, Metric
from upslope.reproduction.scales.schema import ENTROPY, EXPECTED, MC_DROPOUT
from upslope.reproduction.output.results import (
    Result,
    Row,
    Table,
    Value,
    at,
    exact_values,
    mean_over_seeds,
    panel_of,
)
from upslope.reproduction.metrics.norms import chance_overlap

OURS = (EXPECTED, ENTROPY)
OVERLAP = Metric("overlap", definitions.overlap)


def percent_of_pool(runner: StudyRunner, study: str) -> list[int]:
    """Labels of each cycle, in percent of the pool."""
    runs = next(iter(runner.runs(study).values()))
    pool = len(runner.opened(study).job.splits.pool)
    return [round(100 * cycle.n_labelled / pool) for cycle in runs[0].cycles]


def table_1(runner: StudyRunner) -> Result:
    """Overlap with the true top K by gradient norm, and the level of chance."""
    names = list(runner.runs(runner.scale.main))
    found = runner.measured(runner.scale.main, OVERLAP, names)
    found |= runner.measured(runner.scale.dropout, OVERLAP, (MC_DROPOUT,))
    budgets = percent_of_pool(runner, runner.scale.main)
    rows: list[Row] = []
    for name, seeds in found.items():
        rows.append(Row(name, mean_over_seeds([_share(f["overlap"], f["k"]) for f in seeds])))
        if name in paper.TABLE_1:
            printed = [100 * n / paper.K for n in paper.TABLE_1[name]]
            rows.append(Row(name, exact_values(at(budgets, paper.BUDGETS, printed)), "paper"))
    first = next(iter(found.values()))[0]
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
        name: float(np.mean([f["overlap"][-1] / f["k"] for f in s])) for name, s in found.items()
    }
    best = max(last, key=lambda name: last[name])
    return Result(
        (table,),
        (panel_of(table, budgets, "labels (% of the pool)", "overlap (% of K)"),),
        (
            f"After the last cycle {best} has the largest share, {100 * last[best]:.0f}%; "
            + ", ".join(f"{n} {100 * last[n]:.0f}%" for n in OURS if n in last and n != best)
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


def table_2(runner: StudyRunner) -> Result:
    """What Eq. 5 selects against what Eq. 3 selects."""
    theory = asdict(runner.scale.theory)
    most = theory.pop("seeds")
    theory.pop("candidates")
    options = {**theory, "scheme": "entropy", "norm": runner.scale.variant.norm}
    measure = Metric("consistency", definitions.consistency, options)
    seeds = runner.measured(runner.scale.main, measure, (ENTROPY,), most)[ENTROPY]
    cycles = list(range(len(seeds[0]["by_scheme"])))
    k = seeds[0]["k"]
    rows = [
        Row("Eq. 5 by entropy, Eq. 3 by label", _row(seeds, "by_scheme")),
        Row("both by label", _row(seeds, "by_label")),
        Row("both by entropy", _row(seeds, "all_scheme")),
        Row(
            "Eq. 5 and Eq. 3",
            exact_values(at(cycles, range(7), [100 * n / paper.K for n in paper.TABLE_2])),
            "paper",
        ),
        Row("chance", exact_values([100 * k / n for n in seeds[0]["candidates"]]), "chance"),
    ]
    table = Table(
        f"Samples that Eq. 5 and Eq. 3 both select, in percent of K = {k:,}",
        "cycle",
        tuple(str(c) for c in cycles),
        tuple(rows),
    )
    theory_of = runner.scale.theory
    residual = max(r for f in seeds for r in f["residual"])
    return Result(
        (table,),
        (panel_of(table, cycles, "cycle", "overlap (% of K)"),),
        tuple(
            f"{row.label}: {row.values[0].mean:.0f}% in cycle 0, {row.values[-1].mean:.0f}% in "
            f"cycle {cycles[-1]}; chance {100 * k / seeds[0]['candidates'][-1]:.0f}%."
            for row in rows[:3]
            if row.values[0] and row.values[-1]
        ),
        (
            "Eq. 3 selects the K of largest signed influence on the total test loss, with T^c; H "
            f"is the Gauss-Newton matrix over {all_or(theory_of.train, 'labelled samples')}, plus "
            f"{theory_of.damping:g}; the test gradient is over "
            f"{all_or(theory_of.test, 'test samples')}. Conjugate gradients, at most "
            f"{theory_of.iterations} steps; largest residual {residual:.1e}.",
            "The test gradient in Eq. 3 is of the loss at the known label in all lines. Norms by "
            "label are of the whole gradient, norms by entropy those that the strategy selects by.",
            "The paper does not say how it inverts H, with what damping, or which loss is at "
            "either end: three readings are measured. Runs of entropy-gradnorm.",
        ),
        paper.CIFAR,
        (runner.scale.main,),
        {"residual": [f["residual"] for f in seeds]},
        len(seeds),
    )


def _row(seeds: list[Numbers], key: str) -> tuple[Value, ...]:
    return mean_over_seeds([_share(f[key], f["k"]) for f in seeds])


def _share(counts: list[float], k: int) -> list[float]:
    return [100 * n / k for n in counts]


def all_or(most: int | None, what: str) -> str:
    """How many of them, in words."""
    return f"all {what}" if most is None else f"at most {most:,} {what}"
