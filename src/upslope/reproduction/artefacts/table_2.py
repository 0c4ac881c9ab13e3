"""Table 2: the samples that Eq. 5 selects against those that Eq. 3 selects."""

from __future__ import annotations

from dataclasses import asdict

from upslope.reproduction import paper
from upslope.reproduction.artefacts.common import describe_limit, percent_of_k
from upslope.reproduction.metrics import definitions
from upslope.reproduction.metrics.metric_cache import Metric, Numbers, measure
from upslope.reproduction.output.results import (
    Result,
    Row,
    Table,
    Value,
    align,
    exact_values,
    mean_over_seeds,
    to_panel,
)
from upslope.reproduction.scales import ENTROPY
from upslope.reproduction.studies.runner import StudyRunner


def table_2(runner: StudyRunner) -> Result:
    """Measure the share of samples that both select, for three pairs of losses."""
    options = asdict(runner.scale.influence)
    most = options.pop("seeds")
    options.pop("candidates")
    options = {**options, "scheme": "entropy", "norm": runner.scale.variant.norm}
    metric = Metric("consistency", definitions.consistency, options)
    seeds = measure(runner, runner.scale.main, metric, (ENTROPY,), most)[ENTROPY]
    cycles = list(range(len(seeds[0]["by_scheme"])))
    k = seeds[0]["k"]
    rows = [
        Row("Eq. 5 by entropy, Eq. 3 by label", _row(seeds, "by_scheme")),
        Row("both by label", _row(seeds, "by_label")),
        Row("both by entropy", _row(seeds, "all_scheme")),
        Row(
            "Eq. 5 and Eq. 3",
            exact_values(align(cycles, range(7), [100 * n / paper.K for n in paper.TABLE_2])),
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
    influence = runner.scale.influence
    residual = max(r for f in seeds for r in f["residual"])
    return Result(
        (table,),
        (to_panel(table, cycles, "cycle", "overlap (% of K)"),),
        tuple(
            f"{row.label}: {row.values[0].mean:.0f}% in cycle 0, {row.values[-1].mean:.0f}% in "
            f"cycle {cycles[-1]}; chance {100 * k / seeds[0]['candidates'][-1]:.0f}%."
            for row in rows[:3]
            if row.values[0] and row.values[-1]
        ),
        (
            "Eq. 3 selects the K of largest signed influence on the total test loss, with T^c; H "
            "is the Gauss-Newton matrix over "
            f"{describe_limit(influence.train, 'labelled samples')}, plus {influence.damping:g}; "
            "the test gradient is over "
            f"{describe_limit(influence.test, 'test samples')}. Conjugate gradients, at most "
            f"{influence.iterations} steps; largest residual {residual:.1e}.",
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
    return mean_over_seeds([percent_of_k(f[key], f["k"]) for f in seeds])
