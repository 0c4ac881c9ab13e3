"""The costs of labels, read per sample from a file."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from upslope.errors import ConfigError, SelectionError
from upslope.reading import file_stamp


def read_costs(path: str) -> Mapping[str, float]:
    """Id -> cost, from a CSV file with the columns `id` and `cost`; read anew once it has changed.

    Raises:
        ConfigError: no such file or column, or one twice; a cost that is no positive number; an id
            twice.
    """
    return _read(path, file_stamp(Path(path)))


@lru_cache(maxsize=4)
def _read(path: str, stamp: tuple[int, ...]) -> Mapping[str, float]:  # noqa: ARG001
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
            names = list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"Expected `costs` to be unit, boundary, or a CSV file with the columns id and cost, "
            f"but {path!r} cannot be read: {error}."
        ) from error
    if not rows or not {"id", "cost"} <= rows[0].keys():
        columns = ", ".join(map(str, rows[0])) if rows else "no rows"
        raise ConfigError(f"Expected the columns id and cost in {path} but got {columns}.")
    if names.count("id") > 1 or names.count("cost") > 1:
        raise ConfigError(
            f"Expected one column id and one column cost in {path} but got {', '.join(names)}. "
            "Rename the others."
        )
    costs: dict[str, float] = {}
    for line, row in enumerate(rows, 2):
        try:
            cost = float(row["cost"])
        except (TypeError, ValueError):
            cost = math.nan
        if not 0 < cost < math.inf or row["id"] in costs:
            raise ConfigError(
                f"Expected one positive cost for each id but line {line} of {path} says "
                f"{row['cost']!r} for {row['id']!r}."
            )
        costs[row["id"]] = cost
    return costs


def costs_of(ids: Sequence[str], path: str) -> list[float]:
    """The costs of these samples.

    Raises:
        SelectionError: the file has none for some of them.
    """
    costs = read_costs(path)
    missing = [i for i in ids if i not in costs]
    if missing:
        raise SelectionError(
            f"Expected a cost for every candidate in {path} but {len(missing)} of {len(ids)} have "
            f"none, first {missing[:3]}."
        )
    return [costs[i] for i in ids]
