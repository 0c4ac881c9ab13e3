"""The contents of an artefact: tables of values, panels of a picture, sentences and notes.

Artefacts make a `Result` of them, and `write` puts it on disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from upslope.evaluation import mean_interval, told_interval
from upslope.reproduction.paper import Protocol

Source = Literal["ours", "paper", "chance"]


@dataclass(frozen=True)
class Value:
    """A number in a table.

    mean: over seeds, or the number itself. half: of its 95% Student t interval; NaN for none.
    seeds: how many there are. count: whether it is a whole number, shown without decimals.
    """

    mean: float
    half: float = math.nan
    seeds: int = 1
    count: bool = False


@dataclass(frozen=True)
class Row:
    """One line of a table.

    label: heads it. values: one per column, None for an empty cell. source: whose numbers they are.
    """

    label: str
    values: tuple[Value | None, ...]
    source: Source = "ours"

    @property
    def name(self) -> str:
        """Return the label, marked where the numbers are the paper's."""
        return f"{self.label} (paper)" if self.source == "paper" else self.label


@dataclass(frozen=True)
class Table:
    """A table of an artefact.

    title: what the numbers are, and their unit. corner: heads the column of labels.
    columns: heads of the others. rows: as many values in each. decimals: shown of each number.
    """

    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    decimals: int = 1


@dataclass(frozen=True)
class Series:
    """A curve, or a set of bars.

    label: its name in the legend. y: over the panel's x, NaN where there is no value.
    half: of the interval of each; empty for none. source: whose numbers they are.
    """

    label: str
    y: tuple[float, ...]
    half: tuple[float, ...] = ()
    source: Source = "ours"


@dataclass(frozen=True)
class Panel:
    """One part of a figure: curves over numbers, or bars over names.

    title, ylabel, xlabel: its texts. x: numbers or names. series: curves or bars.
    level: name and height of a horizontal line. logarithmic: the scale of y.
    """

    title: str
    ylabel: str
    xlabel: str
    x: tuple[float, ...] | tuple[str, ...]
    series: tuple[Series, ...]
    level: tuple[str, float] | None = None
    logarithmic: bool = False

    @property
    def bars(self) -> bool:
        """Return whether x are names, over which bars are drawn."""
        return bool(self.x) and isinstance(self.x[0], str)


@dataclass(frozen=True)
class Result:
    """An artefact, measured.

    tables, panels: its numbers. findings: sentences made from them. notes: what a reader must know.
    protocol: the paper's, which is set beside ours. studies: names of those the numbers come from.
    extra: numbers for `meta.json` that no table shows.
    seeds: how many seeds the numbers are of; None for all that the studies have.
    """

    tables: tuple[Table, ...]
    panels: tuple[Panel, ...]
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    protocol: Protocol
    studies: tuple[str, ...]
    extra: Mapping[str, object] = field(default_factory=dict)
    seeds: int | None = None


def mean_over_seeds(values: ArrayLike) -> tuple[Value, ...]:
    """Return the mean over seeds and its interval, one value per column; without an interval where
    there are too few seeds for it.

    values: (n_seeds, n_columns).

    Raises:
        UpslopeError: a number is not finite.
    """
    rows = np.atleast_2d(np.asarray(values, dtype=np.float64))
    interval = told_interval(mean_interval(rows))
    half = np.asarray(interval.high, dtype=np.float64) - np.asarray(interval.mean, dtype=np.float64)
    return tuple(
        Value(float(m), float(h), len(rows))
        for m, h in zip(np.atleast_1d(interval.mean), np.atleast_1d(half), strict=True)
    )


def exact_values(numbers: Sequence[float | None]) -> tuple[Value | None, ...]:
    """Return values without an interval, such as the paper's.

    numbers: None for an empty cell; an `int` is a count.
    """
    return tuple(None if n is None else Value(float(n), count=isinstance(n, int)) for n in numbers)


def align(
    columns: Sequence[float], paper_columns: Sequence[float], numbers: Sequence[float]
) -> list[float | None]:
    """Return the paper's number for each of our columns, None where the paper has no such column.

    columns: ours. paper_columns: the paper's, one for each of `numbers`.
    """
    by_column = dict(zip(paper_columns, numbers, strict=True))
    return [by_column.get(column) for column in columns]


def to_series(label: str, values: Sequence[Value | None], source: Source = "ours") -> Series:
    """Return the values of a row as a curve or a set of bars; empty cells become NaN."""
    return Series(
        label,
        tuple(math.nan if v is None else v.mean for v in values),
        tuple(math.nan if v is None else v.half for v in values),
        source,
    )


def to_panel(table: Table, x: Sequence[float] | Sequence[str], xlabel: str, ylabel: str) -> Panel:
    """Return a panel of all rows of a table: curves, or bars where x are names.

    x: one entry per column of the table.
    """
    series = tuple(to_series(row.label, row.values, row.source) for row in table.rows)
    return Panel(table.title, ylabel, xlabel, tuple(x), series)  # type: ignore[arg-type]
