"""Data sets: one file a format, one line a name in `TABLE`.

    splits = load("digits")
    splits = load("cifar10", "path/to/folder", limit=5000, validation=0.1)

Nothing is ever downloaded: where files are missing, the error names them and where to get them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from upslope import tables
from upslope.datasets import digits
from upslope.datasets.base import Dataset, Splits
from upslope.datasets.progress import Progress, silent
from upslope.datasets.statistics import statistics
from upslope.datasets.subset import Subset, draw, labels_of
from upslope.errors import ConfigError, DataError

__all__ = [
    "TABLE",
    "Dataset",
    "Splits",
    "Subset",
    "check_options",
    "describe",
    "load",
    "statistics",
]

TABLE: Mapping[str, Callable[..., Splits]] = {
    "digits": digits.load,
}
"""name -> loader, called as `loader(root, progress=..., **options)`."""

_GIVEN = ("root", "progress")


def load(
    name: str, root: str | Path | None = None, *, progress: Progress = silent, **options: Any
) -> Splits:
    """Open a data set.

    name: a key of `TABLE`. root: its file or folder, or the folder above one of that name; the
    environment's `UPSLOPE_DATA` where not given. options: those that `describe` lists, the ones
    every data set has (`limit`, `test_limit`, `validation`) among them.

    Raises:
        ConfigError: an unknown name or option, or a value out of range.
        DataError: files that are missing, damaged or not of the format; the message names them.
    """
    checked = check_options(name, options)
    common = {key: checked.pop(key) for key in _COMMON if key in checked}
    splits = TABLE[name](_find_root(name, root), progress=progress, **checked)
    return _shape(splits, name, **common)


def check_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `load` with their types and ranges checked; opens no file.

    Raises:
        ConfigError: an unknown data set; every unknown or wrong option, in one message.
    """
    loader = tables.lookup("data set", TABLE, name)
    where = f"data set {name!r}"
    common = {key: value for key, value in options.items() if key in _COMMON}
    rest = {key: value for key, value in options.items() if key not in _COMMON}
    problems: list[str] = []
    checked: dict[str, Any] = {}
    for target, part, given in ((loader, rest, _GIVEN), (_shape, common, ("splits", "name"))):
        try:
            checked |= tables.check_options(where, target, part, given)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return checked


def describe() -> list[tables.Description]:
    """Every data set: its name, one line about it, and its options with defaults and help."""
    common = tables.describe("", _shape, ("splits", "name")).options
    lines = [tables.describe(name, loader, _GIVEN) for name, loader in TABLE.items()]
    return [replace(line, options=line.options + common) for line in lines]


def _shape(
    splits: Splits,
    name: str,
    limit: Annotated[
        int | None, Field(ge=1, description="keep so many samples of the pool, stratified")
    ] = None,
    test_limit: Annotated[
        int | None, Field(ge=1, description="keep so many test samples, stratified")
    ] = None,
    validation: Annotated[
        float, Field(ge=0, lt=1, description="share of the (limited) pool set apart to validate")
    ] = 0.0,
) -> Splits:
    """Apply the options that every data set has, and check what every data set must keep."""
    pool, test, held = splits.pool, splits.test, splits.validation
    if validation and held is not None:
        raise ConfigError(
            f"data set {name!r}: Expected `validation` to be 0 but got {validation}: the files "
            f"hold a validation split of their own ({len(held)} samples)."
        )
    if limit is not None:
        pool = _limited(pool, limit)
    if test_limit is not None:
        test = _limited(test, test_limit)
    if validation:
        labels = labels_of(pool)
        known = (labels >= 0).nonzero()[0] if (labels >= 0).any() else range(len(pool))
        candidates = Subset(pool, list(known))
        count = round(validation * len(candidates))
        if not 1 <= count < len(pool):
            raise ConfigError(
                f"data set {name!r}: Expected `validation` to leave samples on both sides but "
                f"{validation} of {len(candidates)} labelled samples is {count}."
            )
        drawn, _ = draw(candidates.ids, candidates.labels, count, "validation")
        chosen = {candidates.ids[i] for i in drawn}
        held = Subset(pool, [i for i, id_ in enumerate(pool.ids) if id_ in chosen])
        pool = Subset(pool, [i for i, id_ in enumerate(pool.ids) if id_ not in chosen])
    for part, dataset in (("test", test), ("validation", held)):
        if dataset is not None and hasattr(dataset, "labels"):
            missing = (labels_of(dataset) < 0).nonzero()[0]
            if len(missing):
                raise DataError(
                    f"data set {name!r}: Expected every {part} sample to have a label but "
                    f"{len(missing)} of {len(dataset)} have none, first "
                    f"{dataset.ids[missing[0]]!r}. Label them, or move them to the pool."
                )
    return Splits(pool, test, held)


def _limited(dataset: Dataset, limit: int) -> Dataset:
    if limit >= len(dataset):
        return dataset
    drawn, _ = draw(dataset.ids, labels_of(dataset), limit, "limit")
    return Subset(dataset, drawn.tolist())


_COMMON = ("limit", "test_limit", "validation")


def _find_root(name: str, root: str | Path | None) -> Path | None:
    """The folder of this data set: `root` itself, or its subfolder of that name."""
    given = root if root is not None else os.environ.get("UPSLOPE_DATA")
    if given is None:
        return None
    path = Path(given).expanduser()
    return path / name if (path / name).is_dir() else path
