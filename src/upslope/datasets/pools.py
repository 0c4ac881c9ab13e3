"""Make a pool of whatever a program holds: the samples that `upslope.query` chooses from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from upslope.datasets.argument_names import options_as_arguments
from upslope.datasets.array_form import Layout
from upslope.datasets.arrays import UNKNOWN, ArrayDataset, number_ids
from upslope.datasets.base import Dataset
from upslope.datasets.folder import to_score
from upslope.datasets.in_memory import RESIDENT_BYTES, input_array
from upslope.datasets.map_style import (
    MapStyleDataset,
    check_map_style,
    check_repeats,
    form_of_item,
    input_of,
    item_keys,
    part_of,
    read_item,
    warn_of_doubles,
)
from upslope.datasets.paths import refuse_empty_path
from upslope.datasets.splits import Splits
from upslope.errors import ConfigError

_MEMBERS = ("ids", "classes", "input_shape", "resident", "inputs", "targets")


def as_pool(
    pool: Any, name: str = "pool", *, layout: Layout = "auto", size: int | None = None
) -> Dataset:
    """Return the samples as a data set; none of them need have a label.

    pool: (n, ...) array or tensor; a map-style data set of torch or Hugging Face; a folder of
    images, by its path; a data set of ours, or `Splits`, of which the pool is taken. name: begins
    the ids of samples that have none. layout: where arrays have their channels. size: images of
    Pillow and of a folder are brought to size x size.

    Raises:
        ConfigError: something else, or options that it does not take.
        DataError: samples that cannot be used.
    """
    if isinstance(pool, Splits):
        pool = pool.pool
    if all(hasattr(pool, member) for member in _MEMBERS):
        _refuse(size is not None or layout != "auto", "a data set of Upslope")
        dataset: Dataset = pool
        return dataset
    with options_as_arguments():
        if isinstance(pool, str | Path):
            _refuse(layout != "auto", "a folder of images")
            refuse_empty_path(pool, "the pool")
            return _folder(Path(pool).expanduser(), size)
        numbers = isinstance(pool, list | tuple) and len(pool) and _is_numbers(pool[0])
        if isinstance(pool, np.ndarray | Tensor) or numbers:
            _refuse(size is not None, "an array")
            array = input_array(pool, layout, name)
            labels = np.full(len(array), UNKNOWN, dtype=np.int64)
            resident = array.nbytes <= RESIDENT_BYTES
            ids = number_ids(name, len(array))
            return ArrayDataset(name, ids, (), array, labels, resident=resident)
        return _map_style(pool, name, layout, size)


def _refuse(wrong: bool, what: str) -> None:
    if wrong:
        raise ConfigError(
            f"Expected `size` for images of Pillow or a folder and `layout` for arrays but got one "
            f"of them for {what}, which does not take it. Leave it out."
        )


def _is_numbers(item: Any) -> bool:
    """Return a row of numbers, as in a list of lists."""
    return isinstance(item, list) and bool(item) and isinstance(item[0], int | float | list)


def _folder(path: Path, size: int | None) -> Dataset:
    if not path.is_dir():
        raise ConfigError(
            f"Expected the path of a folder of images but got {str(path)!r}, which is "
            f"{'a file' if path.exists() else 'not there'}. Open tables and archives with "
            "upslope.datasets.load, and give its pool."
        )
    return to_score(path, size=size)


def _map_style(items: Any, name: str, layout: Layout, size: int | None) -> Dataset:
    count = check_map_style(items, f"the {name}")
    where = f"{name}, item 0"
    first = read_item(items, 0, where)
    keys = item_keys(first, None, None, where)
    value = part_of(first, keys.input, where)
    form = form_of_item(value, layout, None, size, None)
    array = input_of(value, form, where)
    dataset = MapStyleDataset(
        name, number_ids(name, count), (), items, keys, form, tuple(array.shape), array.dtype, None
    )
    check_repeats(dataset.input, count, f"the {name}")
    warn_of_doubles(items, count, keys.input, f"the {name}")
    return dataset
