"""Notice samples with exactly the same inputs: in pool and test set, or with different labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from upslope.counts import format_count
from upslope.datasets.arrays import UNKNOWN, Array, ArrayDataset, Labels
from upslope.datasets.base import Dataset


def duplicate_notes(
    keys: Sequence[object],
    ids: Sequence[str],
    pool: Sequence[int],
    test: Sequence[int],
    labels: Labels | None = None,
    what: str = "rows",
) -> tuple[str, ...]:
    """Return sentences about samples with the same inputs; none where all differ.

    keys: one hashable per sample, equal where the inputs are. pool, test: positions. labels: (n,)
    classes, to tell same inputs of different classes; None where the targets are no classes.
    """
    notes: list[str] = []
    first: dict[object, int] = {}
    for i in pool:
        first.setdefault(keys[i], i)
    test_copies = [i for i in test if keys[i] in first]
    if test_copies:
        notes.append(
            f"{len(test_copies):,} of {len(test):,} test {what} have the same inputs as one of the "
            f"pool, first {ids[test_copies[0]]!r} as {ids[first[keys[test_copies[0]]]]!r}: figures "
            "on them "
            "show memory. Remove them from either where the test set is to be independent."
        )
    if len(first) < len(pool):
        twice = next(i for i in pool if first[keys[i]] != i)
        notes.append(
            f"{len(pool) - len(first):,} of {len(pool):,} pool {what} repeat the inputs of an "
            f"earlier one, first {ids[twice]!r} those of {ids[first[keys[twice]]]!r}: each may be "
            "asked for, and costs a label."
        )
    if labels is not None and (test_copies or len(first) < len(pool)):
        said: dict[object, int] = {}
        keys_of_two_classes = set()
        for i in np.flatnonzero(labels != UNKNOWN).tolist():
            if said.setdefault(keys[i], int(labels[i])) != labels[i]:
                keys_of_two_classes.add(keys[i])
        if keys_of_two_classes:
            notes.append(
                f"{format_count(len(keys_of_two_classes), 'group')} of {what} with the same inputs "
                "and "
                "different labels: no network can fit them all."
            )
    return tuple(notes)


def array_duplicate_notes(pool: Dataset, test: Dataset, what: str = "images") -> tuple[str, ...]:
    """Return `duplicate_notes` of data sets whose inputs are in memory; none for others."""
    if not isinstance(pool, ArrayDataset) or not isinstance(test, ArrayDataset):
        return ()
    keys = [row_key(row) for images in (pool.images, test.images) for row in images]
    count = len(pool)
    return duplicate_notes(
        keys,
        (*pool.ids, *test.ids),
        range(count),
        range(count, len(keys)),
        np.concatenate([pool.labels, test.labels]) if pool.classes == test.classes else None,
        what,
    )


def row_key(row: Array) -> bytes:
    """Return a digest of a sample's inputs, equal for equal inputs."""
    return hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=16).digest()
