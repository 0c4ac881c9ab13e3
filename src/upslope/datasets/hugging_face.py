"""Images through Hugging Face `datasets`: from its Hub, or saved on the disk.

    data: {name: "hf:owner/dataset"}    from the Hub or its cache, downloading if need be
    data: {name: hf, root: folder}      what `save_to_disk` wrote, or .arrow files

This is the one reader that may download, and only of the first form: asking for `hf:` is asking
for that. No code of a data set's is run. Parquet files need no library: see `parquet`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from upslope.counts import format_count
from upslope.datasets.array_form import channels_first
from upslope.datasets.arrays import UNKNOWN, Labels, build_dataset, check_labels, number_ids
from upslope.datasets.arrow import check_ipc
from upslope.datasets.base import Dataset
from upslope.datasets.duplicates import array_duplicate_notes
from upslope.datasets.encoded import (
    Decoders,
    EncodedDataset,
    Memory,
    ModeOption,
    OnError,
    SizeOption,
    materialise,
)
from upslope.datasets.image_form import White, form_of
from upslope.datasets.image_survey import survey_parts
from upslope.datasets.left_out import name_some
from upslope.datasets.missing import MissingLabels
from upslope.datasets.paths import check_all_shards, needed_root, visible
from upslope.datasets.split_labels import read_split_labels
from upslope.datasets.splits import Splits
from upslope.errors import ConfigError, DataError
from upslope.extras import import_package
from upslope.images import Mode
from upslope.progress import Observer, no_progress
from upslope.reading import reporting_damage

if TYPE_CHECKING:
    import pyarrow as pa

WHERE = "a folder that `datasets` saved, or give the name hf:owner/dataset to take it from the Hub"
TESTS = ("test", "validation", "valid", "val")
_ROWS = 4096  # read at once


def load(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    path: Annotated[
        str | None, Field(description="owner/dataset on the Hub; hf:owner/dataset is short for it")
    ] = None,
    subset: Annotated[
        str | None, Field(description="configuration of the data set, where it has several")
    ] = None,
    train: Annotated[str, Field(description="split to learn from")] = "train",
    test: Annotated[
        str | None, Field(description="split to test on; test, or validation, if not given")
    ] = None,
    image: Annotated[
        str | None, Field(description="column of images; the one of that type, if not given")
    ] = None,
    label: Annotated[
        str | None, Field(description="column of labels; the one of classes, if not given")
    ] = None,
    missing_labels: MissingLabels = None,
    mode: ModeOption = None,
    size: SizeOption = None,
    on_error: OnError = "raise",
    memory: Memory = 4.0,
    decoders: Decoders = 0,
    white: White = None,
) -> Splits:
    """Images through Hugging Face `datasets`: hf:owner/dataset from the Hub, or a saved folder."""
    splits = _from_hub(path, subset) if path else _from_disk(needed_root(root, "hf", WHERE))
    return from_splits(
        splits, path or str(root), train, test, image, label, missing_labels, mode, size, on_error,
        memory, decoders, white, progress,
    )  # fmt: skip


def from_splits(
    splits: Mapping[str, Any],
    name: str,
    train: str,
    test: str | None,
    image: str | None,
    label: str | None,
    missing_labels: Collection[str] | None,
    mode: Mode | None,
    size: int | None,
    on_error: str,
    memory: float,
    decoders: int,
    white: int | None,
    progress: Observer = no_progress,
) -> Splits:
    """Open splits of images; name is what messages call them, the rest are options of `load`."""
    splits = {split: without_format(rows, f"{name}/{split}") for split, rows in splits.items()}
    stated_test, test = test, test or next((s for s in TESTS if s in splits), "test")
    if missing := [s for s in (train, test) if s not in splits]:
        raise DataError(
            f"Expected the splits {train} and {test} in {name} but {' and '.join(missing)} is not "
            f"among {', '.join(splits)}. Name them with `data.train` and `data.test`."
        )
    features = splits[train].features
    columns = _image_column(features, image, name), label_column(features, label, name)
    names, labels, notes = read_split_labels(
        {split: column_of(splits[split], columns[1]) for split in (train, test)},
        {split: _names(splits[split].features[columns[1]]) for split in (train, test)},
        columns[1],
        name,
        missing_labels,
    )
    refuse_unlabelled_test(labels[test] == UNKNOWN, f"{name}/{test}", "data.test")
    notes = (*notes, *notes_on_other_splits(splits, (train, test)))
    if others := [column for column in features if column not in columns]:
        notes += (f"Left out {format_count(len(others), 'column')}: {name_some(others)}.",)
    if stated_test is None and test != TESTS[0]:
        notes += (f"The split {test} is the test set: there is none called {TESTS[0]}.",)
    if type(features[columns[0]]).__name__ != "Image":
        form_options = {"mode": mode, "size": size}
        if any(form_options.values()):
            raise ConfigError(
                "data set 'hf': Expected `data.mode` and `data.size` for encoded images alone but "
                f"got {form_options}, and {columns[0]!r} of {name} holds arrays."
            )
        pool, test_set = (
            _of_arrays(splits[split], f"{name}/{split}", columns[0], labels[split], names)
            for split in (train, test)
        )
        return Splits(pool, test_set, notes=(*notes, *array_duplicate_notes(pool, test_set)))
    ids_by_split = {split: number_ids(split, len(splits[split])) for split in (train, test)}
    cells = {
        split: _Rows(_without_decoding(splits[split], columns[0]), columns[0])
        for split in (train, test)
    }
    form, shape = form_of(cells[train], ids_by_split[train], mode, size, on_error, white)

    def open_split(split: str) -> Dataset:
        ids = ids_by_split[split]
        dataset = EncodedDataset(
            f"{name}/{split}",
            ids,
            names,
            cells[split],
            check_labels(labels[split], names, ids, f"{name}/{split}"),
            form,
            shape,
            decoders=decoders,
        )
        return materialise(dataset, on_error, memory, progress)

    datasets = open_split(train), open_split(test)
    parts = [(cells[split], ids_by_split[split]) for split in (train, test)]
    notes += survey_parts(parts, form, on_error)
    return Splits(*datasets, notes=(*notes, *array_duplicate_notes(*datasets)))


def without_format(rows: Any, where: str) -> Any:
    """Return the same rows without a format, which would hand out cells of another type.

    where: what messages call them.

    Raises:
        ConfigError: they have a transform, which may make other inputs of them, and other ones each
            time; it is not read.
    """
    if rows.format["type"] == "custom":
        raise ConfigError(
            f"Expected {where} to give its samples as they are but it has a transform "
            "(with_transform, set_transform), which would not be applied. Apply it by map, or take "
            "it away by reset_format(); the task's option `augmentation` varies images in training "
            "alone."
        )
    return rows.with_format(None)


def notes_on_other_splits(splits: Mapping[str, Any], names: Collection[str]) -> tuple[str, ...]:
    """Return a sentence on the splits that are not read; none where all are."""
    others = [
        f"{split} ({len(rows):,} rows)" for split, rows in splits.items() if split not in names
    ]
    return (
        (f"Left out {format_count(len(others), 'split')}: {', '.join(others)}.",) if others else ()
    )


def refuse_unlabelled_test(unknown: NDArray[np.bool_], where: str, option: str) -> None:
    """Refuse a test set in which labels are missing: nothing can be measured on it.

    unknown: (n,) of its samples. where, option: what messages call it, and what chooses it.

    Raises:
        DataError: some are unknown.
    """
    if count := int(unknown.sum()):
        raise DataError(
            f"Expected a label for each sample of {where} but {count:,} of {len(unknown):,} have "
            f"none. Leave these out, or choose another split with `{option}`."
        )


@dataclass(frozen=True, eq=False)
class _Rows:
    """position -> the encoded bytes, or the file where only a path is stored."""

    rows: Any
    column: str

    def __call__(self, position: int) -> bytes | Path:
        value = self.rows[position][self.column] or {}
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        return Path(value["path"]) if value.get("path") else b""


def _library() -> Any:
    return import_package("datasets", "for the data set 'hf'", "hf")


def _from_hub(path: str, subset: str | None) -> dict[str, Any]:
    """Return the splits of a data set on the Hub, from the cache where it is there."""
    library = _library()
    try:
        return dict(library.load_dataset(path, subset))
    # Whatever goes wrong between here and the Hub: the library has no base of its errors.
    except Exception as error:
        raise DataError(
            f"Expected the data set {path!r} on the Hugging Face Hub or in its cache but loading "
            f"it failed: {type(error).__name__}: {error}. Without a network, save it where there "
            "is one (`save_to_disk`) and give the folder as `data.root` with the name hf."
        ) from error


def _from_disk(folder: Path) -> dict[str, Any]:
    """Return the splits of what `save_to_disk` wrote, or of files train*.arrow, test*.arrow."""
    library = _library()
    files_by_split: dict[str, list[Path]] = {}
    with reporting_damage(f"a data set that `datasets` saved in {folder}", "Save it again."):
        for file in visible(folder.glob("**/*.arrow")):
            check_ipc(file)
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            rows = library.load_from_disk(str(folder))
            return dict(rows) if isinstance(rows, dict) else {"train": rows}
        for file in visible(folder.glob("*.arrow")):
            if file.name.startswith("cache-"):  # of the library's own
                continue
            split = next((s for s in ("train", *TESTS) if file.name.startswith(s)), file.stem)
            files_by_split.setdefault(split, []).append(file)
        for files in files_by_split.values():
            check_all_shards(files)
        shards = {
            split: [library.Dataset.from_file(str(file)) for file in files]
            for split, files in files_by_split.items()
        }
    if not {"train", *TESTS} & shards.keys():
        raise DataError(
            f"Expected dataset_dict.json, as `save_to_disk` writes it, or files train*.arrow and "
            f"test*.arrow in {folder} but there are none. Parquet files are for the data set "
            "`parquet`."
        )
    return {split: library.concatenate_datasets(parts) for split, parts in shards.items()}


def _image_column(features: Any, option: str | None, name: str) -> str:
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    fitting = [c for c, kind in kinds.items() if kind in ("Image", "Array2D", "Array3D")]
    return _choose_column("image", option, fitting, kinds, name)


def label_column(features: Any, column: str | None, name: str) -> str:
    """Return the column of the classes of images: the one given, or the one that is likely.

    features: of a data set of Hugging Face. name: what messages call it.

    Raises:
        ConfigError: no such column, or none that is likely.
    """
    kinds = {c: getattr(f, "dtype", type(f).__name__) for c, f in features.items()}
    nested_columns = [
        c for c, f in features.items() if type(f).__name__ not in ("Value", "ClassLabel")
    ]
    classes = [c for c, f in features.items() if type(f).__name__ == "ClassLabel"]
    usual = [c for c in ("label", "fine_label", "labels") if c in kinds and c not in nested_columns]
    return _choose_column("label", column, classes if len(classes) == 1 else usual[:1], kinds, name)


def _choose_column(
    what: str, option: str | None, fitting: list[str], kinds: dict[str, Any], name: str
) -> str:
    """Return the column wanted, or the one that fits.

    Raises:
        ConfigError: no such column; none that fits, or several.
    """
    if option is not None and option in kinds:
        return option
    if option is None and len(fitting) == 1:
        return fitting[0]
    columns = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
    raise ConfigError(
        f"data set 'hf': Expected `data.{what}` to name a column of {name} but got {option!r}; "
        f"it has {columns}."
    )


def _without_decoding(rows: Any, image: str) -> Any:
    """Return `rows` that give encoded images as they lie, so that we alone decode them."""
    return rows.cast_column(image, _library().Image(decode=False)).select_columns([image])


def column_of(rows: Any, label: str) -> pa.ChunkedArray:
    """Return the label column in the order of `rows`."""
    if rows._indices is not None:  # a selection of rows that are not in this order on the disk
        rows = rows.flatten_indices()
    column: pa.ChunkedArray = rows.data.column(label)
    return column


def _names(feature: Any) -> tuple[str, ...] | None:
    """Return the names that a ClassLabel feature states."""
    class_names = getattr(feature, "names", None)
    return None if class_names is None else tuple(str(one) for one in class_names)


def _of_arrays(rows: Any, name: str, image: str, labels: Labels, names: tuple[str, ...]) -> Dataset:
    """Return images stored as arrays, (c, h, w), (h, w, c) or (h, w), in the type that
    they have.
    """
    feature = rows.features[image]
    kind = getattr(feature, "dtype", type(feature).__name__)
    if kind != "uint8" and not str(kind).startswith("float"):
        raise DataError(
            f"Expected encoded images, or arrays of uint8 or floats, in the column {image!r} of "
            f"{name} but got {kind}. Name another column with `data.image`."
        )
    cells = rows.select_columns([image]).with_format("arrow")
    starts = range(0, len(rows), _ROWS)
    if empty := sum(cells[i : i + _ROWS].column(image).null_count for i in starts):
        raise DataError(
            f"Expected an array in every row of {name} but {empty:,} of {len(rows):,} have none in "
            f"the column {image!r}. Leave these rows out."
        )
    # Unless told, the library hands out integers as int64.
    arrays = cells.with_format("numpy", dtype=np.dtype(str(kind)))
    parts = [np.asarray(arrays[i : i + _ROWS][image]) for i in starts]
    if any(part.shape[1:] != parts[0].shape[1:] or part.dtype.kind == "O" for part in parts):
        raise DataError(
            f"Expected arrays of one size in the column {image!r} of {name} but they differ. Bring "
            "them to one size, or save them as encoded images."
        )
    images = np.concatenate(parts)
    if images.ndim == 3:
        images = images[:, None]
    elif (images.shape[1] in (1, 3)) == (images.shape[3] in (1, 3)):
        raise DataError(
            f"Expected 1 or 3 channels either in front or at the end of the arrays in the column "
            f"{image!r} of {name} but got the shape {images.shape[1:]}. Give them to "
            "`Splits.from_arrays`, whose `layout` says where the channels are."
        )
    else:
        images = channels_first(images, "auto", name)
    return build_dataset(
        name,
        images,
        labels,
        names,
        source=name,
        ids=number_ids(name.rpartition("/")[2], len(images)),
    )
