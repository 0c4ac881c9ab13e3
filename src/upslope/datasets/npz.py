"""NumPy archives: arrays of images or of any float features, with their labels.

Either `x_train, y_train, x_test, y_test`, or `images, labels, split`, where `split` holds "train"
or "test" for each sample. Optional: `classes`, the names; `ids` (with the second form). A label of
-1 means that nobody knows it. Nothing is unpickled: arrays of Python objects are refused.

What becomes of the shapes of samples, and how channels are told, is in `array_form`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from upslope.counts import format_count
from upslope.datasets.array_form import Layout, channels_first
from upslope.datasets.arrays import (
    UNKNOWN,
    Array,
    ArrayDataset,
    absent_number_notes,
    are_sparse,
    build_dataset,
    refuse_wrapped,
)
from upslope.datasets.decoding import decode_text
from upslope.datasets.paths import needed_root, visible
from upslope.datasets.splits import Splits
from upslope.errors import DataError
from upslope.progress import Observer, no_progress
from upslope.reading import read_npz, reporting_damage

_FOUR = ("x_train", "y_train", "x_test", "y_test")
_THREE = ("images", "labels", "split")


def load(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    layout: Annotated[
        Layout, Field(description="where images and volumes have their channels")
    ] = "auto",
) -> Splits:
    """Arrays in one .npz file: x_train, y_train, x_test, y_test, or images, labels, split."""
    del progress
    path = _the_file(needed_root(root, "npz", "your own arrays, saved with numpy.savez"))
    with reporting_damage(
        f"an .npz archive of plain arrays in {path}",
        "Save it again with numpy.savez; arrays of Python objects are not read.",
    ):
        arrays = read_npz(path)
    if all(key in arrays for key in _FOUR):
        parts: dict[str, tuple[Array, Array, list[str] | None]] = {
            "train": (arrays["x_train"], arrays["y_train"], None),
            "test": (arrays["x_test"], arrays["y_test"], None),
        }
    elif all(key in arrays for key in _THREE):
        parts = _by_split(arrays, path)
    else:
        raise DataError(
            f"Expected the arrays {', '.join(_FOUR)}, or {', '.join(_THREE)}, in {path} but got "
            f"{', '.join(arrays) or 'none'}. Rename them with numpy.savez."
        )
    labels = {name: _labels(part[1], path) for name, part in parts.items()}
    if "classes" in arrays:
        classes = _texts(arrays["classes"], "classes", path)
        if len(set(classes)) < len(classes) or not all(name.strip() for name in classes):
            raise DataError(
                f"Expected `classes` in {path} to be distinct names but got {classes[:10]}. Name "
                "each class, once."
            )
    else:
        highest = max(int(part.max(initial=0)) for part in labels.values())
        if are_sparse(labels.values()):
            raise DataError(
                f"Expected labels that count the classes from 0 in {path} but got {highest}: ids, "
                "or a damaged file. Number the classes 0, 1, 2, ..."
            )
        refuse_wrapped(
            labels.values(), f"labels in {path}", "save the names of all in the array `classes`"
        )
        classes = [str(i) for i in range(max(2, highest + 1))]

    def build(name: str) -> ArrayDataset:
        images, _, ids = parts[name]
        images = channels_first(images, layout, path)
        return build_dataset(f"npz/{name}", images, labels[name], classes, source=path, ids=ids)

    pool, test = build("train"), build("test")
    if pool.input_shape != test.input_shape or pool.images.dtype != test.images.dtype:
        raise DataError(
            f"Expected training and test samples of one shape and type in {path} but got "
            f"{pool.input_shape} {pool.images.dtype} and {test.input_shape} {test.images.dtype}."
        )
    return Splits(pool, test, notes=_notes(arrays, labels, classes))


def _notes(
    arrays: Mapping[str, Array], labels: Mapping[str, Array], classes: Sequence[str]
) -> tuple[str, ...]:
    """Sentences on arrays that are not read, samples without a label, and numbers without one."""
    notes = []
    read = (*(_FOUR if all(key in arrays for key in _FOUR) else (*_THREE, "ids")), "classes")
    if unread := [f"{key!r} {arrays[key].shape}" for key in arrays if key not in read]:
        notes.append(
            f"Left out {format_count(len(unread), 'array')} not among {', '.join(read)}: "
            f"{', '.join(unread)}."
        )
    everything = np.concatenate(list(labels.values()))
    if count := int((everything == UNKNOWN).sum()):
        notes.append(f"{count:,} of {len(everything):,} samples are unlabelled: their label is -1.")
    absent = absent_number_notes(everything, len(classes), "labels")
    return (*notes, *(absent if "classes" not in arrays else ()))


def _texts(values: Array, name: str, path: Path) -> list[str]:
    """Names from an array of text, of bytes in UTF-8, or of whole numbers.

    Raises:
        DataError: an array of another type or shape, or bytes that are not UTF-8.
    """
    if values.dtype.kind not in "USiu" or values.ndim != 1:
        raise DataError(
            f"Expected `{name}` in {path} to be one text or whole number each but got an array of "
            f"type {values.dtype} and shape {values.shape}. Save them as text."
        )
    if values.dtype.kind == "S":
        return [decode_text(bytes(value), f"`{name}` in {path}") for value in values]
    return [str(value) for value in values]


def _the_file(root: Path) -> Path:
    if root.is_file():
        return root
    files = visible(root.glob("*.npz"))
    if len(files) != 1:
        raise DataError(
            f"Expected one .npz file in {root} but got {[p.name for p in files] or 'none'}. Give "
            "the path of the file itself."
        )
    return files[0]


def _by_split(
    arrays: dict[str, Array], path: Path
) -> dict[str, tuple[Array, Array, list[str] | None]]:
    images, labels = arrays["images"], arrays["labels"]
    split = np.array(_texts(arrays["split"], "split", path))
    ids = np.array(
        _texts(arrays["ids"], "ids", path)
        if "ids" in arrays
        else [f"sample-{i:05d}" for i in range(len(split))]
    )
    if not len(images) == len(labels) == len(split) == len(ids):
        raise DataError(
            f"Expected images, labels, split and ids of one length in {path} but got "
            f"{len(images)}, {len(labels)}, {len(split)} and {len(ids)}."
        )
    if len(np.unique(ids)) != len(ids):
        raise DataError(f"Expected `ids` in {path} to differ but some are equal.")
    others = set(np.unique(split).tolist()) - {"train", "test"}
    if others:
        raise DataError(
            f"Expected `split` in {path} to hold 'train' or 'test' but got {sorted(others)}."
        )
    return {
        name: (images[split == name], labels[split == name], ids[split == name].tolist())
        for name in ("train", "test")
    }


def _labels(labels: Array, path: Path) -> Array:
    """(n,) from (n,) or (n, 1), as Keras saves them."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"Expected one integer label per sample in {path} but got an array of type "
            f"{labels.dtype} and shape {labels.shape}. One-hot rows become labels by argmax(1)."
        )
    return labels
