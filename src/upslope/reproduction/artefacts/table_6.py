"""Table 6: a deeper network, trained from scratch on what a shallower one selected."""

from __future__ import annotations

import numpy as np

from upslope.reproduction import paper
from upslope.reproduction.studies.runner import StudyRunner
from upslope.reproduction.studies.fixed_selection import FixedTrainings, labels_of
from upslope.reproduction.output.results import Result, Row, Table, exact_values, mean_over_seeds, panel_of


def table_6(runner: StudyRunner) -> Result:
    """Its test accuracy, by strategy; that of the network which selected beside it."""
    runs = runner.runs(runner.scale.main, runner.scale.dropout)
    opened = runner.opened(runner.scale.main)
    seeds = opened.config.seeds
    chosen = {name: {run.seed: labels_of(run) for run in found} for name, found in runs.items()}
    jobs = FixedTrainings(opened, runner.folder("deeper"), chosen, runner.scale.deeper)
    runner.train(f"deeper: {len(chosen) * len(seeds)} trainings", jobs, opened)
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
                f"{opened.config.model.name}, which selected",
                tuple(mean_over_seeds([[x] for x in shallow[n]])[0] for n in names),
            ),
        ),
        decimals=2,
    )
    means = {n: float(np.mean(deeper[n])) for n in names}
    best = max(means, key=lambda n: means[n])
    compared = (
        f", random reaches {means['random']:.1f}%" if "random" in means and best != "random" else ""
    )
    return Result(
        (table,),
        (panel_of(table, names, "", "accuracy (%)"),),
        (f"{network} is best on the labels of {best}, at {means[best]:.1f}%{compared}.",),
        (
            f"{network} is trained as {opened.config.model.name}, from scratch, on all labels of "
            "the last cycle, for the epochs of one cycle"
            + (
                f"; behind {opened.config.model.name} are those of all cycles."
                if runner.scale.variant.retrain == "warm"
                else "."
            ),
            "mc-dropout's samples were selected by a network with dropout 0.5 before its head.",
        ),
        paper.CIFAR,
        (runner.scale.main, runner.scale.dropout),
    )
