"""Tables 7 and 8: accuracy by class where classes are of unequal size."""

from __future__ import annotations

import math

import numpy as np

from upslope.report.text_tables import DASH
from upslope.reproduction import paper
from upslope.reproduction.output.formats import format_value
from upslope.reproduction.output.results import (
    Result,
    Row,
    Table,
    Value,
    exact_values,
    mean_over_seeds,
    to_panel,
)
from upslope.reproduction.scales import ENTROPY, EXPECTED
from upslope.reproduction.studies.runner import StudyRunner


def table_7(runner: StudyRunner) -> Result:
    """Measure the accuracy by class in the runs of expected-gradnorm."""
    return _class_wise(runner, EXPECTED, paper.TABLE_7)


def table_8(runner: StudyRunner) -> Result:
    """Measure the accuracy by class in the runs of entropy-gradnorm."""
    return _class_wise(runner, ENTROPY, paper.TABLE_8)


def _class_wise(runner: StudyRunner, name: str, paper_figures: tuple[float, ...]) -> Result:
    study = runner.scale.class_wise
    runs = runner.runs(study)
    pool = runner.open(study).setup.splits.pool
    classes, targets = pool.classes, pool.targets(range(len(pool)))
    sizes = [int((targets == c).sum()) for c in range(len(classes))]
    rows = [Row("samples in the pool", exact_values(sizes))]
    shares: dict[str, np.ndarray] = {}
    for strategy in (name, "random"):
        figures = [run.cycles[-1].metrics for run in runs[strategy]]
        # NaN for a class of which the test set has no sample.
        shares[strategy] = 100 * np.array(
            [[f.get(f"accuracy/{c}", math.nan) for c in classes] for f in figures]
        )
        rows.append(Row(f"{strategy}, accuracy", _means(shares[strategy])))
        counts = [
            [sum(run.labels[i] == c for i in run.labels) for c in range(len(classes))]
            for run in runs[strategy]
        ]
        rows.append(Row(f"{strategy}, labels", mean_over_seeds(counts)))
    fits = len(classes) == len(paper_figures)
    if fits:
        rows.append(Row("samples in SVHN's test set", exact_values(paper.SVHN_TEST), "paper"))
        rows.append(Row(f"{name}, accuracy", exact_values(paper_figures), "paper"))
    table = Table(
        f"Test accuracy by class in percent after the last cycle, {name}",
        "class",
        tuple(classes),
        tuple(rows),
    )
    order = np.argsort(sizes)
    rare, common = order[: len(order) // 2], order[len(order) // 2 :]
    halves = {
        strategy: {part: _over(shares[strategy], where) for part, where in
                   (("rare", rare), ("common", common))}
        for strategy in (name, "random")
    }  # fmt: skip
    class_table = Table(
        table.title,
        "class",
        table.columns,
        tuple(row for row in rows if row.label.endswith("accuracy")),
    )
    return Result(
        (table,),
        (to_panel(class_table, tuple(classes), "", "accuracy (%)"),),
        (
            f"On the rarer half of the classes, in percent: {name} {halves[name]['rare']}, random "
            f"{halves['random']['rare']}; on the commoner half {halves[name]['common']} and "
            f"{halves['random']['common']}.",
        ),
        _notes(runner.scale.studies[study].substitute),
        paper.SVHN,
        (study,),
    )


def _notes(substitute: str | None) -> tuple[str, ...]:
    random_words = "Random selection, which the paper does not show, is set beside."
    if substitute is None:
        return (random_words,)
    return (
        random_words,
        "Not SVHN: classes of this data set in the proportions of SVHN's; classes of one column "
        "have nothing else in common. The test set is as it was, balanced.",
    )


def _means(shares: np.ndarray) -> tuple[Value | None, ...]:
    """Return the mean over seeds, one per class, None for one that the test set lacks."""
    return tuple(
        None if np.isnan(column).any() else mean_over_seeds(column[:, None])[0]
        for column in shares.T
    )


def _over(shares: np.ndarray, where: np.ndarray) -> str:
    """Return the mean over some classes, of those tested, with its interval over seeds."""
    means = _means(shares[:, where])
    present = shares[:, where][:, [mean is not None for mean in means]]
    if not present.size:
        return DASH
    return format_value(mean_over_seeds(present.mean(axis=1, keepdims=True))[0], 1)
