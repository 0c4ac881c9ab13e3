"""Samples held in one array: what every small data set becomes once it is read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.errors import DataError

UNKNOWN = -1
"""The label of a sample that nobody has labelled."""

_LOSS_SHARE = 1e-3
"""Of the deviation of inputs in double precision: where more is lost in single, it is told."""
_ROUNDING = 1e-13
"""Of the largest input: a deviation below is that of sums in double precision."""
_LOOKED_AT = 1 << 20
"""Numbers by which a loss of digits is told."""
_SPARSE = 1000
"""Class numbers without a sample at most, where these are more than the others: more are ids."""
_LARGEST_UNSIGNED = (2**8 - 1, 2**16 - 1)
"""What -1 becomes in unsigned types. Of longer ones it is refused as too large for a class."""

Array = NDArray[np.generic]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ArrayDataset:
    """A data set over an array of inputs, (n, *input_shape), and its labels, (n,).

    images: uint8 in 0..255, or float32 taken as it is. labels: `UNKNOWN` where nobody knows.
    mean, std: published statistics a channel of the images scaled to 0..1; empty where unknown.
    place: what messages call the data set, the path that the user gave; `name`, if not given.

    Build one with `build_dataset`, which refuses what cannot be learnt from.
    """

    name: str
    ids: Sequence[str]
    classes: tuple[str, ...]
    images: Array
    labels: Labels
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resident: bool = True
    place: str = ""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of the input of one sample."""
        return tuple(self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.ids)

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """(n, *input_shape), a copy."""
        return torch.from_numpy(self.images[np.asarray(indices, dtype=np.int64)])

    def targets(self, indices: Sequence[int]) -> Tensor:
        """(n,) int64. Raises DataError for a sample without a label."""
        return known_targets(self.labels, self.ids, indices)


def build_dataset(
    name: str,
    images: Array,
    labels: Array,
    classes: Sequence[str],
    *,
    source: object,
    ids: Sequence[str] | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> ArrayDataset:
    """An `ArrayDataset` after the checks that every array must pass.

    images: (n, ...) uint8 or floats; labels: (n,) integers in 0..len(classes)-1, or `UNKNOWN`.
    source: the file that messages name. ids: `<last word of the name>-00042` where not given.

    Raises:
        DataError: no samples, counts that differ, NaN or infinite inputs, labels out of range.
    """
    if len(images) == 0:
        raise DataError(f"Expected at least one sample in {source} but got none.")
    if len(images) != len(labels):
        raise DataError(
            f"Expected one label for each of the {len(images)} images of {source} but got "
            f"{len(labels)} labels. The two come from different sets, or one file is cut short."
        )
    if images.dtype != np.uint8:
        images = finite_floats(images, source)
    if ids is None:
        ids = number_ids(name.rpartition("/")[2], len(images))
    return ArrayDataset(
        name,
        ids,
        tuple(classes),
        images,
        check_labels(labels, classes, ids, source),
        mean,
        std,
        place=str(source),
    )


def number_ids(prefix: str, count: int) -> tuple[str, ...]:
    """Ids for samples that have none of their own: `train-00000`, `train-00001`, ..."""
    width = max(5, len(str(count - 1)))
    return tuple(f"{prefix}-{i:0{width}d}" for i in range(count))


def finite_floats(values: Array, source: object) -> NDArray[np.float32]:
    """Float32, or a DataError where the numbers are no floats, or are NaN or infinite."""
    if values.dtype.kind != "f":
        raise DataError(
            f"Expected images of type uint8 (0..255) or of a float type in {source} but got "
            f"{values.dtype}. Convert them, e.g. `x.astype('uint8')` where they lie in 0..255."
        )
    with np.errstate(over="ignore"):  # infinity, which is refused below
        floats = values.astype(np.float32)
    bad = ~np.isfinite(floats).all(axis=tuple(range(1, floats.ndim)))
    if bad.any():
        raise DataError(
            f"Expected finite numbers in {source} but {int(bad.sum())} of {len(floats)} samples "
            f"hold NaN or infinity (in float32), first at rows {np.flatnonzero(bad)[:3].tolist()}. "
            "Remove or repair these rows."
        )
    warn_of_lost_digits(values, source)
    return floats


def warn_of_lost_digits(values: Array, source: object) -> None:
    """Warn where single precision moves double ones by much of what tells samples apart.

    Seconds since 1970, or coordinates in metres, become one number for many samples. Some of the
    samples are looked at.

    values: (n, ...) as they are given. source: what messages name.
    """
    if values.dtype.itemsize < 8 or len(values) < 2:
        return
    width = max(1, values[0].size)
    positions = np.unique(np.linspace(0, len(values) - 1, max(2, _LOOKED_AT // width)).astype(int))
    doubles = values[positions].reshape(len(positions), width).astype(np.float64)
    largest_error = np.abs(doubles.astype(np.float32) - doubles).max(axis=0)
    deviation = doubles.std(axis=0)
    is_noise = deviation <= _ROUNDING * np.abs(doubles).max(axis=0)
    columns = np.flatnonzero((largest_error > _LOSS_SHARE * deviation) & ~is_noise)
    if len(columns):
        first = columns[0]
        warnings.warn(
            f"Single precision, of 7 digits, in which inputs are kept, moves {len(columns):,} of "
            f"{width:,} numbers of each sample of {source} by more than a thousandth of their "
            f"deviation, first number {first} (mean {doubles[:, first].mean():.7g}, deviation "
            f"{deviation[first]:.3g}). Take off what samples have in common, about their mean.",
            stacklevel=3,
        )


def check_labels(
    labels: Array, classes: Sequence[str], ids: Sequence[str], source: object
) -> Labels:
    """(n,) int64 in 0..len(classes)-1 or `UNKNOWN`; DataError otherwise."""
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"Expected one integer label per sample in {source} but got an array of type "
            f"{labels.dtype} and shape {labels.shape}."
        )
    numbers = labels.astype(np.float64)  # as int64, the largest of uint64 would be -1, no label
    bad = np.flatnonzero((numbers < UNKNOWN) | (numbers >= len(classes)))
    if len(bad):
        raise DataError(
            f"Expected labels between 0 and {len(classes) - 1} ({len(classes)} classes), or -1 for "
            f"a sample without a label, in {source} but got {labels[bad[0]]} at "
            f"{ids[bad[0]]!r} ({len(bad)} such labels). Name all classes or repair the labels."
        )
    return labels.astype(np.int64)


def refuse_wrapped(parts: Iterable[Array], what: str, remedy: str) -> None:
    """Refuse class numbers that are 255 or 65,535 far above all others, where no names are stated.

    That is what -1, no label, becomes in uint8 and uint16; classes up to it would be made.

    parts: (n,) whole numbers each. what: "labels in a.npz", for messages. remedy: how classes are
    named there.

    Raises:
        DataError: such a number.
    """
    numbers = np.unique(np.concatenate([np.unique(part).astype(np.float64) for part in parts]))
    if len(numbers) > 1 and numbers[-1] in _LARGEST_UNSIGNED and numbers[-2] < numbers[-1] - 1:
        raise DataError(
            f"Expected {what} to count from 0 but got {int(numbers[-1])}, which -1, no label, "
            f"becomes in uint{int(numbers[-1]).bit_length()}, beside others up to "
            f"{int(numbers[-2])}. Write -1 in a signed type such as int64; or, where "
            f"{int(numbers[-1])} is a class, {remedy}."
        )


def are_sparse(parts: Iterable[Array]) -> bool:
    """Say whether class numbers leave out so many below the highest that they are ids.

    parts: (n,) whole numbers each.
    """
    numbers = np.unique(np.concatenate([np.unique(part).astype(np.float64) for part in parts]))
    class_count = int((numbers >= 0).sum())
    return bool(class_count and numbers[-1] + 1 - class_count > max(_SPARSE, class_count))


def absent_number_notes(numbers: Labels, count: int, noun: str) -> tuple[str, ...]:
    """Return a sentence on class numbers from 0 to `count` that no sample has, if any has one.

    numbers: (n,), `UNKNOWN` where nobody knows. noun: what samples have, as "labels".
    """
    absent = sorted(set(range(count)) - set(np.unique(numbers).tolist()))
    if not 0 < len(absent) < count:
        return ()
    advice = f"subtract 1 from {noun} that begin at 1."
    if len(absent) > count - len(absent):
        advice = "where these are ids, number the classes 0, 1, 2, ... without gaps."
    return (
        f"{len(absent):,} of {count:,} classes have no sample: "
        f"{', '.join(map(str, absent[:5]))}{', ...' if len(absent) > 5 else ''}. "
        f"{noun.capitalize()} count from 0: {advice}",
    )


def known_targets(labels: Labels, ids: Sequence[str], indices: Sequence[int]) -> Tensor:
    """(n,) int64 labels of the samples at `indices`; DataError where one is `UNKNOWN`."""
    positions = np.asarray(indices, dtype=np.int64)
    values = labels[positions]
    missing = positions[values == UNKNOWN]
    if len(missing):
        raise DataError(
            f"Expected a label for {ids[missing[0]]!r} but the data set has none "
            f"({len(missing)} of {len(positions)} asked for). An annotator must give it."
        )
    return torch.from_numpy(values)
