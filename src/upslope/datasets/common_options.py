"""Options that every data set has beyond its own: a smaller pool, a validation split."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from upslope.datasets.arrays import UNKNOWN
from upslope.datasets.base import Dataset, HasLabels
from upslope.datasets.splits import Splits
from upslope.datasets.subset import Subset, draw, labels_of
from upslope.datasets.unlabelled import NoTestSet
from upslope.errors import ConfigError, DataError
from upslope.reading import READ_LIMIT

COMMON = ("limit", "test_limit", "validation")
"""The options of `apply_common_options` that act on samples."""


def apply_common_options(
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
    read_limit: Annotated[
        float,
        Field(
            gt=0,
            description="GiB of memory that reading one file may take, an eighth of it for an "
            "image; more is refused by the file's header",
        ),
    ] = READ_LIMIT,
) -> Splits:
    """Apply the options that every data set has, and check what every data set must keep.

    read_limit: for the readers, before; see `reading.limited_to`.
    """
    del read_limit
    pool, test, validation_set = splits.pool, splits.test, splits.validation
    if validation and validation_set is not None:
        raise ConfigError(
            f"data set {name!r}: Expected `data.validation` to be 0 but got {validation}: the "
            f"files hold a validation split of their own ({len(validation_set)} samples)."
        )
    if limit is not None:
        pool = limit_samples(pool, limit)
    if test_limit is not None:
        test = limit_samples(test, test_limit)
    if validation:
        pool, validation_set = _set_apart(pool, validation, name)
    for part, part_needed in (("pool", pool), ("test", test)):
        if not len(part_needed) and not isinstance(part_needed, NoTestSet):
            raise DataError(f"data set {name!r}: Expected at least one {part} sample but got none.")
    for part, dataset in (("test", test), ("validation", validation_set)):
        if dataset is not None and isinstance(dataset, HasLabels):
            _check_all_have_labels(dataset, part, name)
    return Splits(pool, test, validation_set, splits.notes)


def _set_apart(pool: Dataset, share: float, name: str) -> tuple[Dataset, Dataset]:
    """Return (pool, validation): a stratified share of the labelled samples, or of all where the
    data set has no label per sample to stratify by.
    """
    labels = labels_of(pool)
    with_label = np.flatnonzero(labels != UNKNOWN)
    candidates = with_label if len(with_label) else np.arange(len(pool))
    count = round(share * len(candidates))
    if not 1 <= count < len(pool):
        raise ConfigError(
            f"data set {name!r}: Expected `data.validation` to leave samples on both sides but "
            f"{share} of {len(candidates)} labelled samples is {count}."
        )
    positions, _ = draw(
        [pool.ids[i] for i in candidates.tolist()], labels[candidates], count, "validation"
    )
    rows = candidates[positions]
    rest = np.setdiff1d(np.arange(len(pool)), rows)
    return Subset(pool, rest.tolist()), Subset(pool, rows.tolist())


def _check_all_have_labels(dataset: Dataset, part: str, name: str) -> None:
    missing = np.flatnonzero(labels_of(dataset) == UNKNOWN)
    if len(missing):
        raise DataError(
            f"data set {name!r}: Expected every {part} sample to have a label but {len(missing)} "
            f"of {len(dataset)} have none, first {dataset.ids[missing[0]]!r}. Label them, or move "
            "them to the pool."
        )


def limit_samples(dataset: Dataset, limit: int) -> Dataset:
    """So many samples, stratified; all of them where there are no more."""
    if limit >= len(dataset):
        return dataset
    positions, _ = draw(dataset.ids, labels_of(dataset), limit, "limit")
    return Subset(dataset, positions.tolist())
