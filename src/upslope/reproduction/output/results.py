"""What an artefact is made of: tables of estimates, pictures, and what to know to read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from upslope.evaluation import mean_interval
from upslope.reproduction.paper import Protocol

Source = Literal["ours", "paper", "chance"]


@dataclass(frozen=True)
class Value:
    """A mean over `seeds`, and half of its 95% Student t interval; NaN where there is none.

    count: a whole number, shown without decimals.
    """

    mean: float
    half: float = math.nan
    seeds: int = 1
    count: bool = False


@dataclass(frozen=True)
class Row:
    """One line of a table, a value a column, None where there is none."""

    label: str
    values: tuple[Value | None, ...]
    source: Source = "ours"

    @property
    def name(self) -> str:
        """The label, with where it comes from where that is not a measurement of ours."""
        return f"{self.label} (paper)" if self.source == "paper" else self.label


@dataclass(frozen=True)
class Table:
    """`title` says what the numbers are and their unit; `corner` heads the column of labels."""

    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    decimals: int = 1


@dataclass(frozen=True)
class Series:
    """A curve or a set of bars: y over the panel's x, NaN where there is none."""

    label: str
    y: tuple[float, ...]
    half: tuple[float, ...] = ()
    source: Source = "ours"


@dataclass(frozen=True)
class Panel:
    """One picture: curves over numbers, or bars over names."""

    title: str
    ylabel: str
    xlabel: str
    x: tuple[float, ...] | tuple[str, ...]
    series: tuple[Series, ...]
    level: tuple[str, float] | None = None
    """A horizontal line, and what it is called."""
    logarithmic: bool = False

    @property
    def bars(self) -> bool:
        """Whether x are names."""
        return bool(self.x) and isinstance(self.x[0], str)


@dataclass(frozen=True)
class Result:
    """findings: sentences made from the numbers. notes: what a reader must know. protocol: the
    paper's, which is set beside ours; studies: names of those that the numbers come from."""

    tables: tuple[Table, ...]
    panels: tuple[Panel, ...]
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    protocol: Protocol
    studies: tuple[str, ...]
    extra: Mapping[str, object] = field(default_factory=dict)
    """Numbers for `meta.json` that no table shows."""
    seeds: int | None = None
    """Of how many seeds the numbers are, where not of all that the studies have."""


def mean_over_seeds(values: ArrayLike) -> tuple[Value, ...]:
    """One value a column of (n_seeds, n_columns)."""
    rows = np.atleast_2d(np.asarray(values, dtype=np.float64))
    found = mean_interval(rows)
    half = np.asarray(found.high, dtype=np.float64) - np.asarray(found.mean, dtype=np.float64)
    return tuple(
        Value(float(m), float(h), len(rows))
        for m, h in zip(np.atleast_1d(found.mean), np.atleast_1d(half), strict=True)
    )


def exact_values(numbers: Sequence[float | None]) -> tuple[Value | None, ...]:
    """Numbers without an interval, such as the paper's; whole ones are counts."""
    return tuple(None if n is None else Value(float(n), count=isinstance(n, int)) for n in numbers)


def at(
    columns: Sequence[float], known: Sequence[float], numbers: Sequence[float]
) -> list[float | None]:
    """The paper's `numbers`, known at `known`, at those of our columns that it has too."""
    by_place = dict(zip(known, numbers, strict=True))
    return [by_place.get(column) for column in columns]


def curve(label: str, values: Sequence[Value | None], source: Source = "ours") -> Series:
    """A row of a table as a curve."""
    return Series(
        label,
        tuple(math.nan if v is None else v.mean for v in values),
        tuple(math.nan if v is None else v.half for v in values),
        source,
    )


def panel_of(table: Table, x: Sequence[float] | Sequence[str], xlabel: str, ylabel: str) -> Panel:
    """All rows of a table as curves, or as bars where x are names."""
    series = tuple(curve(row.label, row.values, row.source) for row in table.rows)
    return Panel(table.title, ylabel, xlabel, tuple(x), series)  # type: ignore[arg-type]
