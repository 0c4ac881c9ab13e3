"""Splits of map-style data sets: held in memory where all fits, streamed where not.

See `map_style` for what an item may be. One pass reads everything where the decoded inputs fit in
`memory`. Where they do not, inputs are read when they are asked for, and targets are taken from the
data set's own list of them (`targets` or `labels`, as torchvision keeps it) if it agrees with the
items looked at, or else in one pass through all items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from upslope.datasets.argument_names import options_as_arguments
from upslope.datasets.array_form import Layout
from upslope.datasets.arrays import Array
from upslope.datasets.base import Dataset
from upslope.datasets.in_memory import array_dataset, assemble_splits, sample_ids
from upslope.datasets.left_out import LeftOut
from upslope.datasets.map_style import (
    InputForm,
    ItemKeys,
    Key,
    MapStyleDataset,
    check_alike,
    check_map_style,
    check_repeats,
    form_of_item,
    input_of,
    item_keys,
    part_of,
    read_item,
    target_of,
    warn_of_doubles,
)
from upslope.datasets.splits import Splits
from upslope.datasets.target_values import TargetKind, TargetValues, as_array, read_target_values
from upslope.errors import ConfigError, DataError
from upslope.images import Mode
from upslope.progress import Observer, Progress, no_progress

_OF_ITEMS = " of the items"
_MOST_NAMES = 5  # of classes, in a message
_ITEMS_TO_COMPARE = 20  # items whose targets are compared with the data set's own list


@dataclass(frozen=True, eq=False)
class _Part:
    """One data set as it is opened."""

    name: str
    items: Any
    size: int
    keys: ItemKeys
    form: InputForm

    def where(self, position: int) -> str:
        return f"{self.name}, item {position}"

    def read(self, position: int) -> tuple[Array, Any]:
        """(input, target) of an item."""
        where = self.where(position)
        item = read_item(self.items, position, where)
        array = input_of(part_of(item, self.keys.input, where), self.form, where)
        return array, target_of(item, self.keys.target, where)


class _Content(NamedTuple):
    """What was read of a data set as it was opened."""

    inputs: Array | None
    """(n, ...), or None where they are streamed."""
    targets: Any
    """As `target_values` takes them; None where they are streamed, or there are none."""
    ids: Sequence[object] | None


def from_torch(
    pool: Any,
    test: Any = None,
    *,
    validation: Any = None,
    input: Key = None,
    target: Key = None,
    id: Key = None,
    ids: Sequence[object] | None = None,
    classes: Sequence[str] | None = None,
    kind: TargetKind = "class",
    layout: Layout = "auto",
    mode: Mode | None = None,
    size: int | None = None,
    white: int | None = None,
    memory: float = 4.0,
    test_share: float | None = None,
    progress: Observer = no_progress,
) -> Splits:
    """Make the splits of map-style data sets; see `Splits.from_torch`."""
    datasets_given = {"pool": pool, "test": test, "validation": validation}
    with options_as_arguments():
        if id is not None and ids is not None:
            raise ConfigError("Expected one of `id`, a key of the items, and `ids` but got both.")
        parts: dict[str, _Part] = {}
        for name, items in datasets_given.items():
            if items is not None:
                parts[name] = _open(name, items, parts, input, target, (layout, mode, size, white))
        fits = sum(_bytes(part) for part in parts.values()) <= memory * 2**30
        read = _read_all if fits else _read_targets
        contents = {name: read(part, id, kind, progress) for name, part in parts.items()}
        if ids is not None:
            contents["pool"] = contents["pool"]._replace(ids=ids)
        _check_class_order(parts)
        names = classes if classes is not None else getattr(pool, "classes", None)
        streams_masks = kind == "masks" and not fits
        targets = _targets_of(parts, contents, "class" if streams_masks else kind, names)
        own_ids = {
            name: sample_ids(contents[name].ids, part.size, name, name)
            for name, part in parts.items()
        }
        datasets: dict[str, Dataset] = {}
        for name, part in parts.items():
            inputs = contents[name].inputs
            if inputs is not None:
                datasets[name] = array_dataset(name, inputs, targets, name, own_ids[name], kind)
            else:
                targets_of_part = None if streams_masks else targets.parts[name]
                datasets[name] = _open_on_demand(
                    part, own_ids[name], targets.names, targets_of_part
                )
        notes = (*targets.notes, *_left_out_notes(parts, id))
        return assemble_splits(datasets, "the data set", test_share, notes)


def _targets_of(
    parts: Mapping[str, _Part],
    contents: Mapping[str, _Content],
    kind: TargetKind,
    names: Sequence[object] | None,
) -> TargetValues:
    """Return the targets of all parts, read together: classes are those of all of them."""
    return read_target_values(
        {
            name: None if part.keys.target is None else contents[name].targets
            for name, part in parts.items()
        },
        {name: part.size for name, part in parts.items()},
        kind,
        names,
        "the data set",
    )


def _left_out_notes(parts: Mapping[str, _Part], id: Key) -> tuple[str, ...]:
    """Sentences on what the items hold beside input, target and id."""
    left_out = LeftOut()
    for part in parts.values():
        item = read_item(part.items, 0, part.where(0))
        keys = part.keys.input, part.keys.target, id
        if isinstance(item, Mapping):
            noun, names = "key", [str(key) for key in item if key not in keys]
        elif isinstance(item, tuple | list):
            places = {key % len(item) for key in keys if isinstance(key, int)}
            noun, names = "place", [str(i) for i in range(len(item)) if i not in places]
        else:
            continue
        for name in names:
            if name not in left_out.paths.get((noun, _OF_ITEMS), []):
                left_out.add(noun, name, _OF_ITEMS)
    return left_out.notes()


def _open_on_demand(
    part: _Part, ids: tuple[str, ...], names: tuple[str, ...], targets: Any
) -> MapStyleDataset:
    """Return a data set whose inputs are read when they are asked for; targets as well, if None."""
    shape_and_type = _shape_and_type(part)
    return MapStyleDataset(
        part.name, ids, names, part.items, part.keys, part.form, *shape_and_type, targets
    )


def _check_class_order(parts: Mapping[str, _Part]) -> None:
    """Targets are positions among the classes: all parts count these alike.

    Raises:
        DataError: a part names other classes than the pool, or in another order.
    """
    of_pool = getattr(parts["pool"].items, "classes", None)
    for name, part in parts.items():
        classes = getattr(part.items, "classes", None)
        if of_pool is None or classes is None or part.keys.target is None:
            continue
        if list(classes) != list(of_pool):
            names, others = list(of_pool)[:_MOST_NAMES], list(classes)[:_MOST_NAMES]
            raise DataError(
                f"Expected the {name} to have the classes of the pool in its order, {names}, but "
                f"its `classes` are {others}. Bring its targets to that order, and its "
                "`classes` too."
            )


def _open(
    name: str, items: Any, others: dict[str, _Part], input: Key, target: Key, form: Any
) -> _Part:
    """Look at the first item, and read some twice."""
    size = check_map_style(items, f"the {name}")
    where = f"{name}, item 0"
    first = read_item(items, 0, where)
    keys = item_keys(first, input, target, where)
    pool = others.get("pool")
    # The test set is brought to the form of the pool: its mode, and its size.
    input_form = pool.form if pool else form_of_item(part_of(first, keys.input, where), *form)
    part = _Part(name, items, size, keys, input_form)
    check_repeats(lambda position: part.read(position)[0], size, f"the {name}")
    warn_of_doubles(items, size, keys.input, f"the {name}")
    return part


def _shape_and_type(part: _Part) -> tuple[tuple[int, ...], np.dtype[Any]]:
    first = part.read(0)[0]
    return tuple(first.shape), first.dtype


def _bytes(part: _Part) -> int:
    return part.read(0)[0].nbytes * part.size


def _read_all(part: _Part, id: Key, kind: str, progress: Observer) -> _Content:
    """Read the input, target and id of every item."""
    first = part.read(0)[0]
    inputs = np.empty((part.size, *first.shape), dtype=first.dtype)
    targets: list[Any] = []
    ids: list[Any] | None = None if id is None else []
    for position in range(part.size):
        where = part.where(position)
        item = read_item(part.items, position, where)
        array = input_of(part_of(item, part.keys.input, where), part.form, where)
        check_alike(array, first.shape, first.dtype, where)
        inputs[position] = array
        targets.append(target_of(item, part.keys.target, where))
        if ids is not None:
            ids.append(target_of(item, id, where))
        progress(Progress("read", position + 1, part.size))
    return _Content(inputs, _gather(targets, kind), ids)


def _read_targets(part: _Part, id: Key, kind: str, progress: Observer) -> _Content:
    """Read the targets and ids of every item, without its input where that can be."""
    if part.keys.target is None and id is None:
        return _Content(None, None, None)
    own_targets = None if id is not None or kind == "masks" else _own_list(part)
    if own_targets is not None or (kind == "masks" and id is None):
        return _Content(None, own_targets, None)
    targets: list[Any] = []
    ids: list[Any] | None = None if id is None else []
    for position in range(part.size):
        where = part.where(position)
        item = read_item(part.items, position, where)
        if kind != "masks":
            targets.append(target_of(item, part.keys.target, where))
        if ids is not None:
            ids.append(target_of(item, id, where))
        progress(Progress("read", position + 1, part.size))
    return _Content(None, None if kind == "masks" else _gather(targets, kind), ids)


def _own_list(part: _Part) -> Any:
    """The data set's own list of targets, where it agrees with the items looked at."""
    for attribute in ("targets", "labels"):
        values = getattr(part.items, attribute, None)
        if values is None:
            continue
        try:
            values_of_attribute = as_array(values, attribute)
            if len(values_of_attribute) != part.size:
                continue
            looked_at = np.unique(
                np.linspace(0, part.size - 1, _ITEMS_TO_COMPARE).astype(int)
            ).tolist()
            if all(part.read(i)[1] == values_of_attribute[i].tolist() for i in looked_at):
                return values_of_attribute
        except (TypeError, ValueError, AttributeError):  # no list of targets after all
            continue
    return None


def _gather(targets: list[Any], kind: str) -> Any:
    """Targets as `target_values` takes them: classes of single numbers with -1 for None."""
    if kind == "class" or any(target is None for target in targets):
        width = next((len(t) for t in targets if isinstance(t, list)), 0)
        if kind in ("labels", "numbers") and width:
            missing = [np.nan if kind == "numbers" else -1] * width
            return np.asarray([missing if t is None else t for t in targets])
        array = np.empty(len(targets), dtype=object)
        array[:] = [t[0] if isinstance(t, list) and len(t) == 1 else t for t in targets]
        return array
    return np.asarray(targets)
