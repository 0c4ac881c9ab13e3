"""Describe the splits of a data set to people: classes with counts, what is unlabelled, notes.

The command line prints it in the plan, before a run begins.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from upslope.datasets.arrays import UNKNOWN, ArrayDataset
from upslope.datasets.base import Dataset, HasLabels
from upslope.datasets.encoded import EncodedDataset
from upslope.datasets.map_style import MapStyleDataset
from upslope.datasets.published import Outline
from upslope.datasets.splits import Splits
from upslope.datasets.subset import Subset, labels_of
from upslope.datasets.subtomograms import SubtomogramDataset
from upslope.datasets.targets import RowsWithTargets
from upslope.datasets.volumes import VolumeDataset

MOST_CLASSES = 20
"""Classes whose counts are written out; of more, the range of the counts."""

_OF_ONE_CLASS = (ArrayDataset, EncodedDataset, SubtomogramDataset, VolumeDataset)
"""Data sets whose `labels` are positions in `classes`; of others, `labels` only divide."""


def overview(splits: Splits) -> tuple[tuple[str, str], ...]:
    """Return lines of (title, text): one per split, then one per note with the title "note".

    A split's text counts its samples, those of each class or label, and the unlabelled ones.

    splits: the data.
    """
    parts = {"pool": splits.pool, "test": splits.test, "validation": splits.validation}
    lines = [(title, _count_words(part)) for title, part in parts.items() if part is not None]
    notes = (*_absent(splits), *splits.notes)
    return (*lines, *(("note", note) for note in notes))


def class_counts(dataset: Dataset) -> Mapping[str, int] | None:
    """Return the number of samples of each class, or with each of several labels.

    None where that is not known without reading every sample, as for masks, or where targets are
    numbers.

    dataset: the samples to count.
    """
    base, positions = _base(dataset)
    if isinstance(base, RowsWithTargets):
        values = base.target_columns.values[positions]
        if values.dtype.kind == "f":
            return None
        return dict(zip(base.classes, (values == 1).sum(axis=0).tolist(), strict=True))
    if isinstance(base, MapStyleDataset):
        if base.values is None or base.values.ndim != 1:
            return None
    elif not isinstance(base, _OF_ONE_CLASS):
        return None
    labels = base.labels[positions]
    sizes = np.bincount(labels[labels != UNKNOWN], minlength=len(base.classes))
    return dict(zip(base.classes, sizes.tolist(), strict=True))


def unlabelled_count(dataset: Dataset) -> int | None:
    """Return the number of samples without a label; None where the data set does not say."""
    base, positions = _base(dataset)
    if isinstance(base, Outline) or not isinstance(base, HasLabels):
        return None
    return int((labels_of(base)[positions] == UNKNOWN).sum())


def _absent(splits: Splits) -> tuple[str, ...]:
    """Return a sentence about classes that test samples have and no labelled sample of the pool."""
    pool, test = class_counts(splits.pool), class_counts(splits.test)
    if not pool or not test or not any(pool.values()):
        return ()
    absent = [name for name, n in test.items() if n and not pool.get(name)]
    if not absent:
        return ()
    name_list = ", ".join(repr(name) for name in absent[:MOST_CLASSES])
    more = f" and {len(absent) - MOST_CLASSES:,} more" if len(absent) > MOST_CLASSES else ""
    return (f"No labelled sample of the pool is of {name_list}{more}, and test samples are.",)


def _base(dataset: Dataset) -> tuple[Dataset, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Return the data set that subsets were taken of, and the positions in it."""
    positions = np.arange(len(dataset), dtype=np.int64)
    while isinstance(dataset, Subset):
        positions = dataset.positions[positions]
        dataset = dataset.dataset
    return dataset, positions


def _count_words(dataset: Dataset) -> str:
    counts = class_counts(dataset)
    unlabelled = unlabelled_count(dataset)
    parts = [f"{len(dataset):,}"]
    if counts is not None and any(counts.values()):
        parts.append(_classes(counts))
    elif dataset.classes and not isinstance(_base(dataset)[0], Outline):
        names = ", ".join(dataset.classes[:MOST_CLASSES])
        rest = len(dataset.classes) - MOST_CLASSES
        parts.append(f"{names} and {rest:,} more" if rest > 0 else names)
    if unlabelled:
        parts.append(f"unlabelled ({unlabelled:,})")
    return f"{parts[0]}: {'; '.join(parts[1:])}" if parts[1:] else parts[0]


def _classes(counts: Mapping[str, int]) -> str:
    absent = [name for name, n in counts.items() if not n]
    if len(counts) <= MOST_CLASSES:
        return ", ".join(f"{name} ({n:,})" for name, n in counts.items())
    sizes = sorted(counts.values())
    if sizes[0] == sizes[-1]:
        return f"{len(counts):,} classes of {sizes[0]:,} samples each"
    least = min(counts, key=counts.__getitem__)
    text = f"{len(counts):,} classes of {sizes[0]:,} ({least}) to {sizes[-1]:,} samples"
    return text + (f", {len(absent):,} of them without any" if absent else "")
