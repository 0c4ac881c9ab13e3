"""Tables 4 and 5: norms that fall from a cycle to the next. Figure 3: the target and its bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

import numpy as np

from upslope.reproduction import definitions, paper
from upslope.reproduction.studies.runner import StudyRunner
from upslope.reproduction.metrics.metric_cache import Metric
from upslope.reproduction.artefacts.tables_1_2 import all_or
from upslope.reproduction.scales.schema import ENTROPY, EXPECTED
from upslope.reproduction.output.results import (
    Panel,
    Result,
    Row,
    Table,
    Value,
    at,
    curve,
    exact_values,
    mean_over_seeds,
    panel_of,
)

TERMS = ("Target", "Approx-1", "Approx-2", "Approx-3")
Scheme = Literal["expected", "entropy"]


def table_4(runner: StudyRunner) -> Result:
    """By the loss of Eq. 6, in the runs of expected-gradnorm."""
    return _reduced(runner, "expected", EXPECTED, paper.TABLE_4)


def table_5(runner: StudyRunner) -> Result:
    """By the loss of Eq. 7, in the runs of entropy-gradnorm."""
    return _reduced(runner, "entropy", ENTROPY, paper.TABLE_5)


def _reduced(runner: StudyRunner, scheme: Scheme, name: str, printed: tuple[int, ...]) -> Result:
    options = {"scheme": scheme, "norm": runner.scale.variant.norm}
    measure = Metric(f"reduced-{scheme}", definitions.norms_reduced, options)
    seeds = runner.measured(runner.scale.main, measure, (name,))[name]
    k = seeds[0]["k"]
    cycles = [c + 1 for c in range(len(seeds[0]["reduced"]))]
    ours = mean_over_seeds([[100 * n / k for n in f["reduced"]] for f in seeds])
    others = mean_over_seeds([[100 * share for share in f["random_share"]] for f in seeds])
    theirs = exact_values(at(cycles, range(1, 7), [100 * n / paper.K for n in printed]))
    table = Table(
        f"Samples whose norm is no larger in the next cycle, in percent of K = {k:,}",
        "cycle",
        tuple(str(c) for c in cycles),
        (
            Row("selected", ours),
            Row("selected", theirs, "paper"),
            Row("not selected, at random", others),
        ),
    )
    return Result(
        (table,),
        (panel_of(table, cycles, "cycle", "no larger (% of K)"),),
        (
            f"Of the samples that {name} selected {_range(ours)} have no larger norm in the next "
            f"cycle; of candidates not selected {_range(others)}.",
        ),
        (
            f"The norm is the score of {name} itself, at the models of the cycle that selected and "
            "of the next, which was trained on the sample. What was selected for its large norm "
            "would seldom have a larger one at any other model: candidates not selected, and not "
            "trained on, are set beside.",
        ),
        paper.CIFAR,
        (runner.scale.main,),
    )


def figure_3(runner: StudyRunner) -> Result:
    """Target, Approx-1, -2 and -3, averaged over the unlabelled samples, for both schemes."""
    options = asdict(runner.scale.theory)
    most = options.pop("seeds")
    tables: list[Table] = []
    panels: list[Panel] = []
    findings: list[str] = []
    extra: dict[str, object] = {}
    falling: list[tuple[str, tuple[Value, ...]]] = []
    residual = 0.0
    for scheme, name in (("expected", EXPECTED), ("entropy", ENTROPY)):
        measure = Metric(f"terms-{scheme}", definitions.terms, {**options, "scheme": scheme})
        seeds = runner.measured(runner.scale.main, measure, (name,), most)[name]
        cycles = [c + 1 for c in range(len(seeds[0]["Target"]))]
        rows = tuple(Row(term, mean_over_seeds([f[term] for f in seeds])) for term in TERMS)
        tables.append(
            Table(f"{name}: means per test sample", "cycle", tuple(map(str, cycles)), rows, 4)
        )
        series = tuple(curve(row.label, row.values) for row in rows)
        panels.append(
            Panel(name, "mean per test sample", "cycle", tuple(cycles), series, logarithmic=True)
        )
        means = {t: float(np.mean([f[t] for f in seeds])) for t in TERMS}
        findings.append(
            f"{name}, over all cycles: "
            + ", ".join(_ratio(means, u, v) for u, v in zip(TERMS[1:], TERMS, strict=False))
            + "."
        )
        falling.append(
            (name, mean_over_seeds([[100 * share for share in f["reduced_share"]] for f in seeds]))
        )
        residual = max(residual, *(r for f in seeds for r in f["residual"]))
        extra[name] = {"residual": [f["residual"] for f in seeds]}
    tables.append(
        Table(
            "Unlabelled samples whose norm is no larger at the next model, in percent",
            "cycle",
            tables[0].columns,
            tuple(Row(name, shares) for name, shares in falling),
        )
    )
    findings.append(
        "The norm is no larger at the next model for "
        + ", ".join(f"{_range(shares)} of the unlabelled ({name})" for name, shares in falling)
        + ", by cycle."
    )
    theory = runner.scale.theory
    return Result(
        tuple(tables),
        tuple(panels),
        tuple(findings),
        (
            f"Means over {all_or(theory.candidates, 'unlabelled samples')}; the sum over "
            f"{all_or(theory.test, 'test samples')} is divided by their number. On a logarithmic "
            "axis, which a target below zero leaves out.",
            "Both gradients are of the scheme's loss, their norms those of the whole gradient in "
            "both readings. H is the Gauss-Newton matrix of the training loss over "
            f"{all_or(theory.train, 'labelled samples')}, plus {theory.damping:g}; conjugate "
            f"gradients, at most {theory.iterations} steps, largest residual {residual:.1e}. The "
            "paper names neither its H nor its damping, and draws the figure without numbers.",
            "Target <= Approx-1 <= Approx-2 must hold for every sample, and was checked. Approx-3 "
            "is no smaller than Approx-2 for samples whose norm is no larger at the next model, "
            "and for those alone.",
        ),
        paper.CIFAR,
        (runner.scale.main,),
        extra,
        min(most, len(runner.config(runner.scale.main).seeds)),
    )


def _ratio(means: dict[str, float], upper: str, lower: str) -> str:
    if means[lower] <= 0:
        return f"{lower} is {means[lower]:.3g} and {upper} {means[upper]:.3g}"
    return f"{upper} is {means[upper] / means[lower]:.1f} times {lower}"


def _range(values: Sequence[Value]) -> str:
    means = [value.mean for value in values]
    return f"{min(means):.0f}% to {max(means):.0f}%"
