"""Tables 4 and 5: norms that fall from a cycle to the next."""

from __future__ import annotations

from upslope.reproduction import paper
from upslope.reproduction.artefacts.common import format_range
from upslope.reproduction.metrics import definitions
from upslope.reproduction.metrics.metric_cache import Metric, measure
from upslope.reproduction.metrics.norms import Scheme
from upslope.reproduction.output.results import (
    Result,
    Row,
    Table,
    align,
    exact_values,
    mean_over_seeds,
    to_panel,
)
from upslope.reproduction.scales import ENTROPY, EXPECTED
from upslope.reproduction.studies.runner import StudyRunner


def table_4(runner: StudyRunner) -> Result:
    """Measure how many norms fall by the loss of Eq. 6, in the runs of expected-gradnorm."""
    return _count_reduced(runner, "expected", EXPECTED, paper.TABLE_4)


def table_5(runner: StudyRunner) -> Result:
    """Measure how many norms fall by the loss of Eq. 7, in the runs of entropy-gradnorm."""
    return _count_reduced(runner, "entropy", ENTROPY, paper.TABLE_5)


def _count_reduced(
    runner: StudyRunner, scheme: Scheme, name: str, paper_shares: tuple[int, ...]
) -> Result:
    options = {"scheme": scheme, "norm": runner.scale.variant.norm}
    metric = Metric(f"reduced-{scheme}", definitions.norms_reduced, options)
    seeds = measure(runner, runner.scale.main, metric, (name,))[name]
    k = seeds[0]["k"]
    cycles = [c + 1 for c in range(len(seeds[0]["reduced"]))]
    ours = mean_over_seeds([[100 * n / k for n in f["reduced"]] for f in seeds])
    others = mean_over_seeds([[100 * share for share in f["random_share"]] for f in seeds])
    theirs = exact_values(align(cycles, range(1, 7), [100 * n / paper.K for n in paper_shares]))
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
        (to_panel(table, cycles, "cycle", "no larger (% of K)"),),
        (
            f"Of the samples that {name} selected {format_range(ours)} have no larger norm in the "
            f"next cycle; of candidates not selected {format_range(others)}.",
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
