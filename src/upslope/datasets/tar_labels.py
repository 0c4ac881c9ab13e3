"""Labels of a WebDataset: the content of one extension, or a field of its JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from upslope.counts import format_count
from upslope.datasets.arrays import Labels
from upslope.datasets.decoding import decode_utf8
from upslope.datasets.split_labels import OPTION, read_split_labels
from upslope.datasets.tar_index import read_content
from upslope.datasets.tar_samples import LABELS, TarSamples
from upslope.datasets.unlabelled import class_names
from upslope.errors import ConfigError, DataError
from upslope.files import from_json, object_of_pairs

_NUMBER = re.compile(r"-1|0|[1-9]\d{0,17}", re.ASCII)
_FIELDS = ("label", "cls", "class")
_MOST_FIELDS = 10  # named in a message


def choose_label(samples: TarSamples, extension: str | None, field: str | None) -> str | None:
    """Return the extension whose content is the label: the one given, or the first there is.

    extension, field: the options `label` and `field`.

    Raises:
        ConfigError: no sample has that extension, or a field is named of labels that are no JSON.
    """
    if extension is not None:
        extension = extension.lower().lstrip(".")
        if not any(extension in members for members in samples.members):
            raise ConfigError(
                f"Expected `data.label` to be the extension of labels in {samples.paths[0]} but no "
                f"sample has a .{extension}. Usual ones: {', '.join(LABELS)}."
            )
    extensions = {e for members in samples.members for e in members if e in LABELS}
    first = "json" if field else next((e for e in LABELS if e in extensions), None)
    extension = extension or first
    if field is not None and extension != "json":
        raise ConfigError(
            f"Expected `data.field` with labels in .json but they are in .{extension}. Leave it "
            "out."
        )
    return extension


def read_labels(
    samples: TarSamples,
    label: str | None,
    field: str | None,
    class_list: Sequence[object] | None,
    words: list[str] | None,
    folder: Path,
) -> tuple[tuple[str, ...], Labels, tuple[str, ...]]:
    """Return (names of the classes, (n,) labels, notes).

    label: the extension; None where there is none. field, class_list, words: the options `field`,
    `classes` and `missing_labels`.

    Raises:
        DataError: labels of several kinds, beyond the names given, or in JSON without the field.
    """
    import pyarrow as pa

    stated_names = None if class_list is None else tuple(class_names((), class_list, folder))
    field_names: set[str] = set()
    values = [_value(samples, i, label, field, field_names) for i in range(len(samples.ids))]
    _refuse_other_fields(field_names, field, folder)
    if stated_names is None and all(value is None for value in values):
        raise DataError(
            f"Expected labels in .cls, .json or .txt of {folder} but no sample has one. Name the "
            "extension with `data.label`, or the classes with `data.classes` where nothing is "
            "labelled yet."
        )
    values = _whole_numbers(values)
    _refuse_several_kinds(samples, values, label, folder)
    column = pa.chunked_array([pa.array(values)])
    names, labels, notes = read_split_labels(
        {"the shards": column}, {OPTION: stated_names}, f".{label}", folder, words
    )
    return names, labels["the shards"], (*notes, *_notes(samples, values, label))


def _refuse_other_fields(field_names: set[str], field: str | None, folder: Path) -> None:
    """Raise where there is JSON and none of its fields is one in which labels are looked for."""
    if field_names and field_names.isdisjoint([field] if field else _FIELDS):
        raise DataError(
            f"Expected the field `{field or _FIELDS[0]}` in .json of {folder} but the fields there "
            f"are {', '.join(sorted(field_names)[:_MOST_FIELDS])}. Name one with `data.field`."
        )


def _whole_numbers(values: list[Any]) -> list[Any]:
    """Return the labels as whole numbers, where all of them are written so; else as they are."""
    if all(v is None or (isinstance(v, str) and _NUMBER.fullmatch(v)) for v in values):
        return [None if value is None else int(value) for value in values]
    return values


def _refuse_several_kinds(
    samples: TarSamples, values: list[Any], label: str | None, folder: Path
) -> None:
    labelled = [(i, value) for i, value in enumerate(values) if value is not None]
    for i, value in labelled:
        first = labelled[0][1]
        if type(value) is not type(first):
            raise DataError(
                f"Expected labels of one kind in .{label} of {folder} but got {first!r} and, in "
                f"{samples.name_of(i)}, {value!r}. Write them alike."
            )


def _notes(samples: TarSamples, values: list[Any], label: str | None) -> Iterator[str]:
    """Yield what a user should know of the labels: samples without one, and labels that are not
    read.
    """
    if label is None:
        return
    without = [i for i, value in enumerate(values) if value is None]
    if without:
        count = format_count(len(without), "sample has", "samples have")
        yield f"{count} no label in .{label}, first {samples.name_of(without[0])}: unlabelled."
    kinds_there = [e for e in LABELS if any(e in members for members in samples.members)]
    if others := [e for e in kinds_there if e != label]:
        yield (
            f"Labels are read from .{label}, not from .{' and .'.join(others)}: `data.label` says "
            "which."
        )


def _value(
    samples: TarSamples, position: int, label: str | None, field: str | None, field_names: set[str]
) -> Any:
    """Return the label of a sample as it is written; None where it has none.

    field_names: takes in the fields that its JSON has.
    """
    member = samples.members[position].get(label or "")
    if member is None:
        return None
    name = f".{label} of the sample {samples.name_of(position)}"
    shard = samples.shard[position]
    content = read_content(samples.paths[shard], member._replace(name=name), samples.stamps[shard])
    if label != "json":
        return decode_utf8(content, name).strip() or None
    try:
        record = from_json(content, object_of_pairs)
    except (ValueError, RecursionError) as error:
        raise DataError(f"Expected JSON in {name} but: {error}.") from error
    if not isinstance(record, dict):
        raise DataError(
            f"Expected an object with the field `{field or _FIELDS[0]}` in {name} but got "
            f"{str(record)[:80]}."
        )
    field_names.update(record)
    key = field or next((k for k in _FIELDS if k in record), None)
    value = record.get(key)
    if value is not None and not (
        isinstance(value, str | bool) or (isinstance(value, int) and abs(value) < 2**63)
    ):
        raise DataError(
            f"Expected a class as text or a whole number in the field `{key}` of {name} but got "
            f"{str(value)[:80]}. Name another field with `data.field`."
        )
    return value
