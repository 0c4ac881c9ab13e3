"""Figure 3: the target and its bounds."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from upslope.reproduction import paper
from upslope.reproduction.artefacts.common import describe_limit, format_range
from upslope.reproduction.metrics import definitions
from upslope.reproduction.metrics.metric_cache import Metric, measure
from upslope.reproduction.output.results import (
    Panel,
    Result,
    Row,
    Table,
    Value,
    mean_over_seeds,
    to_series,
)
from upslope.reproduction.scales import ENTROPY, EXPECTED
from upslope.reproduction.studies.runner import StudyRunner

TERMS = ("Target", "Approx-1", "Approx-2", "Approx-3")
"""The rows of each table, as the paper calls them."""


def figure_3(runner: StudyRunner) -> Result:
    """Measure Target, Approx-1, -2 and -3, averaged over unlabelled samples, for both schemes."""
    options = asdict(runner.scale.influence)
    most = options.pop("seeds")
    tables: list[Table] = []
    panels: list[Panel] = []
    findings: list[str] = []
    extra: dict[str, object] = {}
    falling: list[tuple[str, tuple[Value, ...]]] = []
    residual = 0.0
    for scheme, name in (("expected", EXPECTED), ("entropy", ENTROPY)):
        metric = Metric(f"terms-{scheme}", definitions.terms, {**options, "scheme": scheme})
        seeds = measure(runner, runner.scale.main, metric, (name,), most)[name]
        cycles = [c + 1 for c in range(len(seeds[0]["Target"]))]
        rows = tuple(Row(term, mean_over_seeds([f[term] for f in seeds])) for term in TERMS)
        tables.append(
            Table(f"{name}: means per test sample", "cycle", tuple(map(str, cycles)), rows, 4)
        )
        series = tuple(to_series(row.label, row.values) for row in rows)
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
        + ", ".join(
            f"{format_range(shares)} of the unlabelled ({name})" for name, shares in falling
        )
        + ", by cycle."
    )
    influence = runner.scale.influence
    return Result(
        tuple(tables),
        tuple(panels),
        tuple(findings),
        (
            f"Means over {describe_limit(influence.candidates, 'unlabelled samples')}; the sum "
            f"over {describe_limit(influence.test, 'test samples')} is divided by their number. "
            "On a logarithmic axis, which a target below zero leaves out.",
            "Both gradients are of the scheme's loss, their norms those of the whole gradient in "
            "both readings. H is the Gauss-Newton matrix of the training loss over "
            f"{describe_limit(influence.train, 'labelled samples')}, plus "
            f"{influence.damping:g}; conjugate gradients, at most {influence.iterations} steps, "
            f"largest residual {residual:.1e}. The paper names neither its H nor its "
            "damping, and draws the figure without numbers.",
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
