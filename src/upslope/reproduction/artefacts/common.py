"""Helpers of several artefacts: shares of the pool and of K, limits in words."""

from __future__ import annotations

from collections.abc import Sequence

from upslope.reproduction.output.results import Value
from upslope.reproduction.studies.runner import StudyRunner


def percent_of_pool(runner: StudyRunner, study: str) -> list[int]:
    """Return the number of labels in each cycle, in percent of the pool, rounded.

    study: its name; it is run where it is not finished.
    """
    runs = next(iter(runner.runs(study).values()))
    pool = len(runner.open(study).setup.splits.pool)
    return [round(100 * cycle.n_labelled / pool) for cycle in runs[0].cycles]


def percent_of_k(counts: Sequence[float], k: int) -> list[float]:
    """Return counts out of k in percent."""
    return [100 * n / k for n in counts]


def describe_limit(most: int | None, what: str) -> str:
    """Return how many of `what` are taken, in words; None for all."""
    return f"all {what}" if most is None else f"at most {most:,} {what}"


def format_range(values: Sequence[Value]) -> str:
    """Return the lowest and the highest mean, in percent."""
    means = [value.mean for value in values]
    return f"{min(means):.0f}% to {max(means):.0f}%"
