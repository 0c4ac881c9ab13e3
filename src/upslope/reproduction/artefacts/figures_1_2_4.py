"""Figures 1, 2 and 4: accuracy, or mean IoU, over labels, and what the curves differ by."""

from __future__ import annotations

import numpy as np

from upslope.evaluation import area, holm, paired_comparison
from upslope.evaluation.curves import difference_of
from upslope.ledger import RunResult
from upslope.report.tables import name_of
from upslope.reproduction import paper
from upslope.reproduction.artefacts.common import percent_of_pool
from upslope.reproduction.output.results import (
    Panel,
    Result,
    Row,
    Table,
    Value,
    exact_values,
    mean_over_seeds,
    to_series,
)
from upslope.reproduction.paper import Protocol
from upslope.reproduction.scales import GRADIENT_NORM_STRATEGIES
from upslope.reproduction.studies.runner import StudyRunner

REFERENCE = "random"
Runs = dict[str, tuple[RunResult, ...]]


def figure_1(runner: StudyRunner) -> Result:
    """Measure the curves of classification."""
    ours = (paper.ENTROPY_AT_25, paper.ENTROPY_AT_40, None)
    paper_table = Table(
        "The paper's text: accuracy in percent on CIFAR-10",
        "",
        ("25% of the labels", "40%", "all"),
        (
            Row(
                "entropy-gradnorm",
                exact_values(ours),
                "paper",
            ),
            Row("from scratch", exact_values([None, None, paper.FULL_DATA]), "paper"),
        ),
        decimals=2,
    )
    return _curves(runner, runner.scale.figure_1, paper.CLASSIFICATION, (paper_table,))


def figure_2(runner: StudyRunner) -> Result:
    """Measure the curves of a data set of many classes and of segmentation."""
    return _curves(runner, runner.scale.figure_2, paper.LARGE)


def figure_4(runner: StudyRunner) -> Result:
    """Measure the curves of subtomograms, clean and noisy."""
    return _curves(runner, runner.scale.figure_4, paper.CRYOET)


def _curves(
    runner: StudyRunner,
    groups: tuple[tuple[str, ...], ...],
    protocol: Protocol,
    more: tuple[Table, ...] = (),
) -> Result:
    tables: list[Table] = []
    panels: list[Panel] = []
    findings: list[str] = []
    ceilings = False
    for group in groups:
        runs = runner.runs(*group)
        title = runner.describe_data(group[0])
        metric = _inside(name_of(next(iter(runs.values()))[0].primary))
        columns = percent_of_pool(runner, group[0])
        ceiling = _ceiling(runner.result(group[0]).full_data)
        rows = [Row(name, mean_over_seeds(_figures(of_name))) for name, of_name in runs.items()]
        row_names = list(rows)
        if ceiling is not None:
            ceilings = True
            row_names.append(Row("all labels", (None,) * (len(columns) - 1) + (ceiling,)))
        tables.append(
            Table(f"{title}: {metric} in percent", "labels",
                  tuple(f"{c}%" for c in columns), tuple(row_names))
        )  # fmt: skip
        panels.append(
            Panel(
                title,
                f"{metric} (%)",
                "labels (% of the pool)",
                tuple(columns),
                tuple(to_series(row.label, row.values) for row in rows),
                None if ceiling is None else ("all labels", ceiling.mean),
            )
        )
        against_random, sentence = _against_random(title, runs)
        tables += against_random
        findings.append(sentence)
    return Result(
        (*tables, *more),
        tuple(panels),
        tuple(findings),
        (
            "Means over seeds, ± half of the 95% Student t interval; area: the mean over the "
            "budgets (trapezoid rule). Differences are paired within the seed, p is of the paired "
            "t test with Holm's correction.",
            "The paper draws its curves without numbers: what its text says is all there is to "
            "set beside.",
            *_more_notes(runner, groups, ceilings),
        ),
        protocol,
        tuple(name for group in groups for name in group),
    )


def _against_random(title: str, runs: Runs) -> tuple[list[Table], str]:
    """Return the areas, and their paired differences to random."""
    areas = {name: area(_budgets(of_name), _figures(of_name)) for name, of_name in runs.items()}
    others = [name for name in areas if name != REFERENCE]
    differences = {name: difference_of(areas[name], areas[REFERENCE]) for name in others}
    comparisons = {name: paired_comparison(areas[name], areas[REFERENCE]) for name in others}
    p_values = dict(zip(others, holm([t.p for t in comparisons.values()]).tolist(), strict=True))
    rows = [Row(REFERENCE, (mean_over_seeds(areas[REFERENCE][:, None])[0], None, None))]
    for name in others:
        p = p_values[name]
        rows.append(
            Row(
                name,
                (
                    mean_over_seeds(areas[name][:, None])[0],
                    mean_over_seeds(differences[name][:, None])[0],
                    None if np.isnan(p) else Value(p),
                ),
            )
        )
    table = Table(
        f"{title}: area under the curve in percent, and its difference to {REFERENCE}",
        "strategy",
        ("area", f"less {REFERENCE}'s", "p (Holm)"),
        tuple(rows),
        decimals=3,
    )
    said = []
    for name in (n for n in others if n in GRADIENT_NORM_STRATEGIES):
        mean, p = float(np.mean(differences[name])), p_values[name]
        p_words = "one seed, not tested" if np.isnan(p) else f"p = {p:.2g}"
        said.append(f"{name} {mean:+.2f} points of area against {REFERENCE} ({p_words})")
    best = max(areas, key=lambda name: float(np.mean(areas[name])))
    return [table], f"{title}: {', '.join(said)}; the largest mean area is that of {best}."


def _figures(runs: tuple[RunResult, ...]) -> np.ndarray:
    return 100 * np.array([run.curve()[1] for run in runs])


def _budgets(runs: tuple[RunResult, ...]) -> tuple[int, ...]:
    return runs[0].curve()[0]


def _ceiling(full_data: tuple[RunResult, ...]) -> Value | None:
    if not full_data:
        return None
    return mean_over_seeds([[100 * run.curve()[1][-1]] for run in full_data])[0]


def _inside(name: str) -> str:
    """Return a figure's name inside a sentence: mean IoU."""
    return name[:1].lower() + name[1:]


def _more_notes(
    runner: StudyRunner, groups: tuple[tuple[str, ...], ...], ceilings: bool
) -> list[str]:
    said = []
    if ceilings and runner.scale.variant.retrain == "warm":
        said.append(
            "All labels are trained on from scratch, for the epochs of one cycle; at the last "
            "budget the strategies' models have had those of all cycles. `confound` has both at "
            "equal steps."
        )
    if any(runner.scale.dropout in group for group in groups):
        said.append(
            "mc-dropout's network has dropout 0.5 before its head; that of the others has none. "
            "ll4al trains a second loss from the first model on. The first point of both is their "
            "own."
        )
    return said
