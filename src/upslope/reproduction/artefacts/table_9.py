"""Table 9: what the cycles of a strategy cost, in training and in selecting."""

from __future__ import annotations

import numpy as np

from upslope.reproduction import paper
from upslope.reproduction.output.results import (
    Panel,
    Result,
    Row,
    Series,
    Table,
    exact_values,
    mean_over_seeds,
)
from upslope.reproduction.scales import ENTROPY
from upslope.reproduction.studies.runner import StudyRunner


def table_9(runner: StudyRunner) -> Result:
    """Measure the seconds of a run, also in multiples of those of entropy-gradnorm."""
    tables, panels, findings = [], [], []
    studies: list[str] = []
    for group in runner.scale.figure_1:
        runs = runner.runs(*group)
        studies += group
        data = runner.describe_data(group[0])
        split = {
            name: [
                (
                    sum(c.train_seconds for c in run.cycles),
                    sum(c.select_seconds for c in run.cycles),
                )
                for run in of_name
            ]
            for name, of_name in runs.items()
        }
        basis = float(np.mean([sum(pair) for pair in split[ENTROPY]]))
        rows = [
            Row(
                name,
                mean_over_seeds([[t, s, t + s, (t + s) / basis] for t, s in pairs]),
            )
            for name, pairs in split.items()
        ]
        tables.append(
            Table(
                f"{data}: seconds of a run",
                "strategy",
                ("training", "selecting", "together", f"in multiples of {ENTROPY}"),
                tuple(rows),
                decimals=2,
            )
        )
        names = tuple(split)
        panels.append(
            Panel(
                data,
                "seconds of a run",
                "",
                names,
                tuple(
                    Series(part, tuple(float(np.mean([p[i] for p in split[n]])) for n in names))
                    for i, part in enumerate(("training", "selecting"))
                ),
                logarithmic=True,
            )
        )
        times = {n: float(np.mean([sum(p) for p in split[n]])) / basis for n in names}
        by_time = sorted((n for n in names if n != ENTROPY), key=lambda n: -times[n])
        said = ", ".join(f"{n} {times[n]:.1f}" for n in by_time)
        findings.append(f"{data}, in multiples of {ENTROPY}: {said}.")
    tables.append(_paper_table())
    return Result(
        tuple(tables),
        tuple(panels),
        tuple(findings),
        (
            "Wall time on this machine, means over seeds; other work on it counts in. The first "
            "model, which strategies share, counts as training in each. Steps and widths of the "
            "auxiliary networks of vaal and sraal decide their times.",
            "Hours and seconds of different machines do not compare; multiples of one strategy "
            "do, to a degree.",
        ),
        paper.CLASSIFICATION,
        tuple(studies),
    )


def _paper_table() -> Table:
    first = paper.TABLE_9[ENTROPY]
    rows = []
    for name, hours in paper.TABLE_9.items():
        multiples = [h / b for h, b in zip(hours, first, strict=True)]
        rows.append(Row(name, exact_values([*hours, *multiples]), "paper"))
    columns = (
        *(f"{d}, hours" for d in paper.TABLE_9_DATA),
        *(f"{d}, multiples" for d in paper.TABLE_9_DATA),
    )
    return Table(
        f"The paper: hours, and in multiples of {ENTROPY}", "strategy", columns, tuple(rows), 2
    )
