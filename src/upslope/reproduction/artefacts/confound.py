"""Not in the paper: its comparison of 40% of the labels with all of them, at equal total steps.

The authors' code goes on from the weights of the cycle before. By the last cycle its model has
seen all cycles' optimiser steps, and the reference on all labels only its own: "40% of the labels
beat all of them" compares trainings of different length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from upslope.ledger import RunResult
from upslope.reproduction import paper
from upslope.reproduction.output.results import (
    Panel,
    Result,
    Row,
    Table,
    exact_values,
    mean_over_seeds,
    to_series,
)
from upslope.reproduction.scales import ENTROPY
from upslope.reproduction.studies.fixed_selection import FixedTrainings, ids_at_the_end
from upslope.reproduction.studies.runner import StudyRunner
from upslope.training import TrainingSettings


def confound(runner: StudyRunner) -> Result:
    """Measure accuracy, labels and steps of warm, fresh and long trainings, side by side."""
    scale = runner.scale
    ours, other = runner.runs(scale.main), runner.runs(scale.other_start)
    warm, fresh = (ours, other) if scale.variant.retrain == "warm" else (other, ours)
    study = runner.open(scale.main)
    seeds, pool, once = study.config.seeds, study.setup.splits.pool, study.training
    labels, _ = warm[ENTROPY][0].curve()
    total = sum(once.steps_for(n) for n in labels)
    ids_by_seed = {run.seed: ids_at_the_end(run) for run in warm[ENTROPY]}
    everything = {seed: tuple(pool.ids) for seed in seeds}
    jobs = FixedTrainings(
        study,
        runner.folder("equal-steps"),
        {"selected": ids_by_seed, "all": everything},
        training={
            "selected": _stretch(once, total, labels[-1]),
            "all": _stretch(once, total, len(pool)),
        },
    )
    runner.run_jobs(f"equal steps: {2 * len(seeds)} trainings", jobs, seeds, study.config.workers)
    last, size = labels[-1], len(pool)
    full = runner.result(scale.main).full_data
    long_all, long_selected = _steps(jobs, "all", size), _steps(jobs, "selected", last)
    rows = [
        _row(f"{ENTROPY}, warm start", warm[ENTROPY], last, total),
        _row("random, warm start", warm["random"], last, total),
        _row("all labels, as long as one cycle", full, size, once.steps_for(size)),
        _row("all labels, as many steps", jobs.results("all", seeds), size, long_all),
        _row(f"{ENTROPY}, from scratch", fresh[ENTROPY], last, once.steps_for(last)),
        _row("random, from scratch", fresh["random"], last, once.steps_for(last)),
        _row(f"what {ENTROPY} selected, from scratch, as many steps",
             jobs.results("selected", seeds), last, long_selected),
        Row(f"{ENTROPY}, 40% of CIFAR-10", exact_values(
            [paper.POOL * paper.BUDGETS[-1] // 100, None, paper.ENTROPY_AT_40]), "paper"),
        Row("all of CIFAR-10, from scratch", exact_values(
            [paper.POOL, None, paper.FULL_DATA]), "paper"),
    ]  # fmt: skip
    table = Table(
        "Test accuracy in percent, with the labels and optimiser steps it took",
        "training",
        ("labels", "steps in all", "accuracy"),
        tuple(rows),
        decimals=2,
    )
    accuracies = {row.label: row.values[2] for row in rows if row.source == "ours"}
    accuracy = {label: value.mean for label, value in accuracies.items() if value}
    names = [row.label for row in rows if row.source == "ours"]
    first = accuracy[names[0]]
    return Result(
        (table,),
        (
            Panel(
                "Accuracy at equal and at unequal steps",
                "accuracy (%)",
                "",
                tuple(names),
                (to_series("accuracy", [accuracies[n] for n in names]),),
            ),
        ),
        (
            f"The paper's comparison: {first:.1f}% with {100 * last / size:.0f}% of the labels, "
            f"warm start, {total:,} steps, against {accuracy[names[2]]:.1f}% with all labels and "
            f"{once.steps_for(size):,} steps. With as many steps, all labels give "
            f"{accuracy[names[3]]:.1f}%.",
            f"From scratch, as long as one cycle, the selected labels give "
            f"{accuracy[names[4]]:.1f}%, and {accuracy[names[6]]:.1f}% with as many steps as the "
            "warm start had.",
        ),
        (
            'Not in the paper. Steps of a warm start are those of all cycles. "As many steps" '
            "are as many whole passes as come nearest, its learning rate schedule stretched.",
        ),
        paper.CIFAR,
        (scale.main, scale.other_start),
    )


def _row(label: str, runs: Sequence[RunResult], labels: int, steps: int) -> Row:
    accuracy = mean_over_seeds([[100 * run.curve()[1][-1]] for run in runs])[0] if runs else None
    return Row(label, (*exact_values([labels, steps]), accuracy))


def _stretch(training: TrainingSettings, steps: int, labels: int) -> TrainingSettings:
    """Return training settings stretched to so many steps, as nearly as whole epochs allow."""
    epochs = max(1, round(steps / training.steps_per_epoch(labels)))
    stretch = epochs / training.epochs_for(labels)
    milestones = tuple(max(1, round(m * stretch)) for m in training.milestones)
    return replace(training, epochs=epochs, milestones=milestones)


def _steps(jobs: FixedTrainings, name: str, labels: int) -> int:
    return jobs.settings(name).steps_for(labels)
