"""Table 6: a deeper network, trained from scratch on what a shallower one selected."""

from __future__ import annotations

import numpy as np

from upslope.reproduction import paper
from upslope.reproduction.output.results import (
    Result,
    Row,
    Table,
    exact_values,
    mean_over_seeds,
    to_panel,
)
from upslope.reproduction.studies.fixed_selection import FixedTrainings, ids_at_the_end
from upslope.reproduction.studies.runner import StudyRunner


def table_6(runner: StudyRunner) -> Result:
    """Measure the deeper network's test accuracy by strategy, beside the selecting one's."""
    runs = runner.runs(runner.scale.main, runner.scale.dropout)
    study = runner.open(runner.scale.main)
    seeds = study.config.seeds
    ids_by_strategy = {
        name: {run.seed: ids_at_the_end(run) for run in of_name} for name, of_name in runs.items()
    }
    jobs = FixedTrainings(study, runner.folder("deeper"), ids_by_strategy, runner.scale.deeper)
    runner.run_jobs(
        f"deeper: {len(ids_by_strategy) * len(seeds)} trainings", jobs, seeds, study.config.workers
    )
    names = tuple(runs)
    key = next(iter(runs.values()))[0].primary
    deeper = {
        name: [100 * r.cycles[0].metrics[key] for r in jobs.results(name, seeds)] for name in names
    }
    shallow = {name: [100 * r.cycles[-1].metrics[key] for r in runs[name]] for name in names}
    network = str(runner.scale.deeper["name"])
    table = Table(
        "Test accuracy in percent on the labels selected",
        "network",
        names,
        (
            Row(network, tuple(mean_over_seeds([[x] for x in deeper[n]])[0] for n in names)),
            Row("ResNet-50", exact_values([paper.TABLE_6.get(n) for n in names]), "paper"),
            Row(
                f"{study.config.model.name}, which selected",
                tuple(mean_over_seeds([[x] for x in shallow[n]])[0] for n in names),
            ),
        ),
        decimals=2,
    )
    means = {n: float(np.mean(deeper[n])) for n in names}
    best = max(means, key=lambda n: means[n])
    comparison_words = (
        f", random reaches {means['random']:.1f}%" if "random" in means and best != "random" else ""
    )
    return Result(
        (table,),
        (to_panel(table, names, "", "accuracy (%)"),),
        (f"{network} is best on the labels of {best}, at {means[best]:.1f}%{comparison_words}.",),
        (
            f"{network} is trained as {study.config.model.name}, from scratch, on all labels of "
            "the last cycle, for the epochs of one cycle"
            + (
                f"; behind {study.config.model.name} are those of all cycles."
                if runner.scale.variant.retrain == "warm"
                else "."
            ),
            "mc-dropout's samples were selected by a network with dropout 0.5 before its head.",
        ),
        paper.CIFAR,
        (runner.scale.main, runner.scale.dropout),
    )
