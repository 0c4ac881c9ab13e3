"""Data sets of arrays that a program holds: NumPy arrays, tensors, sequences of numbers.

    splits = Splits.from_arrays(x_train, y_train, x_test, y_test)

The checks are those of files: see `array_form` for shapes, `target_values` for targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from upslope.datasets.argument_names import as_arguments, options_as_arguments
from upslope.datasets.array_form import Layout, channels_first
from upslope.datasets.arrays import (
    UNKNOWN,
    Array,
    ArrayDataset,
    Labels,
    finite_floats,
    number_ids,
)
from upslope.datasets.base import Dataset
from upslope.datasets.duplicates import duplicate_notes, row_key
from upslope.datasets.images_with_masks import ImagesWithMasks
from upslope.datasets.splits import Splits
from upslope.datasets.subset import Subset, draw, knows_labels, labels_of
from upslope.datasets.target_values import (
    TargetKind,
    TargetValues,
    as_array,
    read_target_values,
)
from upslope.datasets.targets import RowsWithTargets, TargetColumns
from upslope.datasets.unlabelled import NoTestSet
from upslope.errors import ConfigError, DataError

RESIDENT_BYTES = 4 * 2**30
"""Inputs up to this size may be kept on the device in training; larger ones are streamed."""
_BLOCK = 1024  # samples looked at together
_COMPARED_BYTES = 2 * 2**30  # inputs up to this size are compared for duplicates: seconds


@dataclass(frozen=True, eq=False)
class MaskArrays(ImagesWithMasks):
    """Images (n, c, h, w) with a mask each, (n, h, w) uint8, 255 where ignored."""

    name: str
    ids: Sequence[str]
    classes: tuple[str, ...]
    images: Array
    masks: Array
    resident: bool = True


def from_arrays(
    inputs: Any,
    targets: Any = None,
    test_inputs: Any = None,
    test_targets: Any = None,
    *,
    ids: Sequence[object] | None = None,
    test_ids: Sequence[object] | None = None,
    classes: Sequence[str] | None = None,
    kind: TargetKind = "class",
    layout: Layout = "auto",
    test_share: float | None = None,
) -> Splits:
    """Make the splits of arrays; see `Splits.from_arrays`."""
    if (test_inputs is None) and not (test_targets is None and test_ids is None):
        raise ConfigError(
            "Expected `test_inputs` beside `test_targets` or `test_ids` but got none. Give the "
            "inputs of the test set too."
        )
    with options_as_arguments():
        parts = {"pool": input_array(inputs, layout, "the arrays/pool")}
        if test_inputs is not None:
            parts["test"] = input_array(test_inputs, layout, "the arrays/test")
        targets_by_part = {"pool": targets, "test": test_targets}
        sizes = {part: len(array) for part, array in parts.items()}
        read = read_target_values(
            {p: targets_by_part[p] for p in parts}, sizes, kind, classes, "the arrays"
        )
        names = {"pool": ids, "test": test_ids}
        ids_by_part = {p: sample_ids(names[p], len(parts[p]), p, f"the arrays/{p}") for p in parts}
        datasets = {p: array_dataset(p, parts[p], read, p, ids_by_part[p], kind) for p in parts}
        return assemble_splits(datasets, "the arrays", test_share, read.notes)


def input_array(inputs: Any, layout: Layout, where: str) -> Array:
    """Return the samples as uint8 or finite float32, channels in front.

    A tensor of torch has its channels in front already, unless `layout` says that they are last.
    Arrays of text are refused.

    Raises:
        DataError: no samples, integers other than uint8, NaN or infinity, text.
        ConfigError: channels that may be at either end.
    """
    tensor = isinstance(inputs, Tensor)
    array = as_array(inputs, f"the inputs of {where}")
    if array.dtype.kind in "OUS":
        raise DataError(
            f"Expected numbers as the inputs of {where} but got {array.dtype}. Texts, and columns "
            "of numbers and categories, are for Splits.from_table; rows of different shapes must "
            "be brought to one."
        )
    if not len(array):
        raise DataError(f"Expected at least one sample in {where} but got none.")
    if tensor and layout == "auto" and array.ndim > 3:
        layout = "channels-first"
    array = channels_first(array, layout, where)
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.float32:  # a memory map of floats is checked without being read in whole
        for start in range(0, len(array), _BLOCK):
            finite_floats(array[start : start + _BLOCK], f"{where}, from row {start}")
        return array
    return finite_floats(array, where)


def sample_ids(
    names: Sequence[object] | None, count: int, prefix: str, where: str
) -> tuple[str, ...]:
    """Return the ids given, as text, or numbered ones.

    Raises:
        DataError: another number of ids than samples, ids that are neither text nor whole numbers,
            empty or not distinct.
    """
    if names is None:
        return number_ids(prefix, count)
    id_list = as_array(names, f"the ids of {where}").tolist()
    ids = tuple(str(value) for value in id_list)
    wrong = [v for v in id_list if isinstance(v, bool) or not isinstance(v, str | int) or v == ""]
    if wrong:
        raise DataError(
            f"Expected the ids of {where} to be text or whole numbers but got {wrong[0]!r}."
        )
    if len(ids) != count:
        raise DataError(
            f"Expected one id for each of the {count:,} samples of {where} but got {len(ids):,}."
        )
    if len(set(ids)) != count:
        earlier_ids: set[str] = set()
        twice = next(i for i in ids if i in earlier_ids or earlier_ids.add(i))  # type: ignore[func-returns-value]
        raise DataError(f"Expected the ids of {where} to be distinct but {twice!r} comes twice.")
    return ids


def array_dataset(
    name: str, inputs: Array, targets: TargetValues, part: str, ids: Sequence[str], kind: str
) -> Dataset:
    """Return the data set of one part, by the kind of its targets."""
    values, resident = targets.parts[part], inputs.nbytes <= RESIDENT_BYTES
    if kind == "class":
        return ArrayDataset(name, ids, targets.names, inputs, values, resident=resident)
    if kind == "masks":
        if values.shape[1:] != inputs.shape[2:]:
            raise DataError(
                f"Expected masks of the height and width of their images, {inputs.shape[2:]}, in "
                f"{part} but got {values.shape[1:]}."
            )
        return MaskArrays(name, ids, targets.names, inputs, values, resident)
    target_columns = TargetColumns(targets.names, targets.names, values)
    return RowsWithTargets(name, ids, targets.names, inputs, target_columns, resident)


def assemble_splits(
    parts: Mapping[str, Dataset], where: str, test_share: float | None, notes: Sequence[str]
) -> Splits:
    """Return the splits of "pool" and, where they are there, "test" and "validation".

    test_share: of the labelled samples of the pool, to test on where no test set is given.

    Raises:
        ConfigError: a share beside a test set, or no share.
        DataError: parts whose inputs differ in shape or type; test samples without a target.
    """
    pool, test = parts["pool"], parts.get("test")
    for name, part in parts.items():
        _check_alike(pool, part, name, where)
        if name != "pool":
            _check_has_labels(part, name, where)
    if test_share is not None:
        is_share = isinstance(test_share, int | float) and 0 < test_share < 1
        if test is not None or not is_share:
            raise ConfigError(
                "Expected `test_share` to be above 0 and below 1, where no test set is given, but "
                f"got {test_share!r}{' beside a test set' if test is not None else ''}."
            )
        labels = labels_of(pool)
        with_label = np.flatnonzero(labels != UNKNOWN)
        positions, _ = draw(
            [pool.ids[i] for i in with_label.tolist()],
            labels[with_label],
            round(test_share * len(with_label)),
            "test",
        )
        rest = np.setdiff1d(np.arange(len(pool)), with_label[positions])
        if not len(positions) or not len(rest):
            raise DataError(
                f"Expected samples to learn from and to test on in {where} but a test_share of "
                f"{test_share} of {len(with_label)} labelled samples leaves {len(rest)} and "
                f"{len(positions)}."
            )
        pool, test = Subset(pool, rest.tolist()), Subset(pool, with_label[positions].tolist())
    notes = (*notes, *_duplicates(pool, test))
    all_notes = tuple(as_arguments(note) for note in notes)
    return Splits(
        pool, NoTestSet(pool) if test is None else test, parts.get("validation"), all_notes
    )


def _check_alike(pool: Dataset, part: Dataset, name: str, where: str) -> None:
    one, other = pool.inputs([0]), part.inputs([0])
    if one.shape != other.shape or one.dtype != other.dtype:
        raise DataError(
            f"Expected the samples of pool and {name} in {where} to be of one shape and type but "
            f"got {tuple(one.shape[1:])} {one.dtype} and {tuple(other.shape[1:])} {other.dtype}."
        )


def _check_has_labels(part: Dataset, name: str, where: str) -> None:
    has_label = knows_labels(part)
    missing = np.flatnonzero(labels_of(part) == UNKNOWN).tolist() if has_label else []
    if missing:
        raise DataError(
            f"Expected a target for every sample of {where}/{name} but {len(missing):,} of "
            f"{len(part):,} have none, first {part.ids[missing[0]]!r}. Leave these out, or leave "
            "the part out: then no figures on it are recorded."
        )


def _duplicates(pool: Dataset, test: Dataset | None) -> tuple[str, ...]:
    """Return sentences about equal inputs, where all are in memory and comparing them takes
    seconds.
    """
    arrays, positions = [], []
    labels: list[Labels] = []
    ids: list[str] = []
    for part in (pool, test):
        if part is None:
            continue
        base = part.dataset if isinstance(part, Subset) else part
        if isinstance(base, ArrayDataset | MaskArrays):
            values = base.images
        elif isinstance(base, RowsWithTargets):
            values = base.values
        else:
            return ()
        rows = part.positions if isinstance(part, Subset) else np.arange(len(part))
        arrays.append((values, rows))
        if isinstance(base, ArrayDataset):
            labels.append(labels_of(part))
        positions.append(range(len(ids), len(ids) + len(part)))
        ids += part.ids
    if sum(values.nbytes for values, _ in arrays) > _COMPARED_BYTES:
        return ()
    keys = [row_key(values[i]) for values, rows in arrays for i in rows]
    classes = np.concatenate(labels) if labels else None
    return duplicate_notes(
        keys, ids, positions[0], positions[1] if len(positions) > 1 else (), classes, "samples"
    )
