"""CIFAR-10 and CIFAR-100 in each form that they are published in, found in this order:

    train-*.parquet, test-*.parquet                            Hugging Face
    cifar-10-batches-bin/*.bin  or  cifar-100-binary/*.bin     the authors' binary archive, unpacked
    cifar-10-batches-py/        or  cifar-100-python/          the authors' Python archive, unpacked

A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.

The Python archive consists of pickles, and loading a pickle runs what it says. Here it is only
cut into its tokens (`pickletools.genops`, which builds nothing and imports nothing), among which
the pixels are one long string and the labels a run of integers.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from upslope.datasets import parquet
from upslope.datasets.arrays import Array, ArrayDataset, build_dataset
from upslope.datasets.decoding import read_utf8
from upslope.datasets.folder import Statistic, normalise_splits
from upslope.datasets.paths import check_md5, needed_root
from upslope.datasets.published import PUBLISHED_SPLITS
from upslope.datasets.splits import Splits
from upslope.errors import DataError
from upslope.progress import Observer, no_progress
from upslope.reading import check_room, reporting_damage

PIXELS = 3 * 32 * 32
"""A row: red, green, blue planes of 32x32, row by row."""


@dataclass(frozen=True)
class _PublishedForm:
    """How one of the two is laid out in the authors' archives."""

    name: str
    binary: str
    python: str
    train: tuple[str, ...]
    test: str
    label_bytes: int
    """Label bytes in front of the pixels of a binary row; the last is the (fine) label."""
    key: str
    """Key of the labels in a pickled batch."""
    names_files: tuple[str, str]
    """File of the class names: text beside the binary files, pickle in the Python archive."""
    names_key: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    md5: tuple[str, ...]
    """Of the files of the Python archive: `train`, then `test`."""
    rows: tuple[int, int]
    """Images in each file of `train`, and in that of `test`."""


_TEN = _PublishedForm(
    "cifar10",
    "cifar-10-batches-bin",
    "cifar-10-batches-py",
    tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test_batch",
    1,
    "labels",
    ("batches.meta.txt", "batches.meta"),
    "label_names",
    (0.4914, 0.4822, 0.4465),
    (0.2470, 0.2435, 0.2616),
    (
        "c99cafc152244af753f735de768cd75f",
        "d4bba439e000b95fd0a9bffe97cbabec",
        "54ebc095f3ab1f0389bbae665268c751",
        "634d18415352ddfa80567beed471001a",
        "482c414d41f54cd18b22e5b47cb7c3cb",
        "40351d587109b95175f43aff81a1287e",
    ),
    (10_000, 10_000),
)
_HUNDRED = _PublishedForm(
    "cifar100",
    "cifar-100-binary",
    "cifar-100-python",
    ("train",),
    "test",
    2,
    "fine_labels",
    ("fine_label_names.txt", "meta"),
    "fine_label_names",
    (0.5071, 0.4865, 0.4409),
    (0.2673, 0.2564, 0.2762),
    ("16019d7e3df5f24257cddd939b257f8d", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
    (50_000, 10_000),
)


def cifar10(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    mean: Statistic = None,
    std: Statistic = None,
) -> Splits:
    """CIFAR-10: 50,000 and 10,000 of 32x32, ten classes; Parquet or either archive."""
    return _load(_TEN, root, progress, mean, std)


def cifar100(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    mean: Statistic = None,
    std: Statistic = None,
) -> Splits:
    """CIFAR-100: 50,000 and 10,000 of 32x32, 100 fine classes; Parquet or either archive."""
    return _load(_HUNDRED, root, progress, mean, std)


def _load(
    form: _PublishedForm,
    root: Path | None,
    progress: Observer,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Splits:
    splits = _open(form, root, progress)
    default_statistics = (form.mean, form.std) if mean is None and std is None else (mean, std)
    return replace(
        splits,
        pool=normalise_splits(splits.pool, *default_statistics),
        test=normalise_splits(splits.test, *default_statistics),
    )


def _open(form: _PublishedForm, root: Path | None, progress: Observer) -> Splits:
    where = "https://www.cs.toronto.edu/~kriz/cifar.html"
    folder = needed_root(root, form.name, where)
    if parquet.has_files(folder):
        splits = parquet.load(folder, progress=progress)
        class_count, count = PUBLISHED_SPLITS[form.name].classes, len(splits.pool.classes)
        if count != class_count:  # beside it may lie another data set of the same layout
            raise DataError(
                f"Expected {form.name!r}, of {class_count} classes, in {folder} but the Parquet "
                "files "
                f"there have {count}: they are another data set's. Get it from {where}."
            )
        return splits
    for name, has_pickles in ((form.binary, False), (form.python, True)):
        inside = folder if folder.name == name else folder / name
        if inside.is_dir():
            return _archive(form, inside, has_pickles, where)
    raise DataError(
        f"Expected the data set {form.name!r} in {folder}: files train-*.parquet and "
        f"test-*.parquet, or a folder {form.binary} or {form.python}. Get and "
        f"unpack an archive from {where}; nothing is downloaded for you."
    )


def _archive(form: _PublishedForm, folder: Path, has_pickles: bool, where: str) -> Splits:
    suffix = "" if has_pickles else ".bin"
    names_file = form.names_files[has_pickles]
    file_names = [f"{file}{suffix}" for file in (*form.train, form.test)] + [names_file]
    if missing := [file for file in file_names if not (folder / file).is_file()]:
        raise DataError(
            f"Expected the files {', '.join(missing)} in {folder} but they are missing. Unpack the "
            f"archive again, or get it from {where}; nothing is downloaded for you."
        )
    if has_pickles:
        names = _strings_after(form.names_key, folder / names_file)
    else:
        names = read_utf8(folder / names_file).split()

    md5 = dict(zip((*form.train, form.test), form.md5, strict=True))

    def split(name: str, files: tuple[str, ...]) -> ArrayDataset:
        read = _read_pickle if has_pickles else _binary
        parts = [read(folder / f"{file}{suffix}", form) for file in files]
        for file, (_, labels) in zip(files, parts, strict=True):
            # A part that somebody cut out has no published checksum, nor have binary files.
            if has_pickles and len(labels) == form.rows[name == "test"]:
                check_md5(folder / file, md5[file], where)
        return build_dataset(
            f"{form.name}/{name}",
            np.concatenate([images for images, _ in parts]),
            np.concatenate([labels for _, labels in parts]),
            names,
            source=folder,
        )

    return Splits(pool=split("train", form.train), test=split("test", (form.test,)))


def _binary(path: Path, form: _PublishedForm) -> tuple[Array, Array]:
    """Return (images (n, 3, 32, 32) uint8, labels (n,)) of rows of label bytes and pixels."""
    data = np.fromfile(path, dtype=np.uint8)
    row = form.label_bytes + PIXELS
    if not len(data) or len(data) % row:
        raise DataError(
            f"Expected rows of {row} bytes in {path} but got {len(data)} bytes, which is no "
            "multiple. The file is cut short: unpack the archive again."
        )
    rows = data.reshape(-1, row)
    return rows[:, form.label_bytes :].reshape(-1, 3, 32, 32), rows[:, form.label_bytes - 1]


def _read_pickle(path: Path, form: _PublishedForm) -> tuple[Array, Array]:
    """Return (images, labels) as `_binary`, from the tokens of a pickled dict."""
    pixels: bytes | None = None
    labels: list[int] = []
    key: object = None
    for value in _tokens(path):
        if isinstance(value, str):
            if len(value) >= PIXELS:  # no other string is a row long
                pixels = _bytes(value, path)
            key = value
        elif key == form.key and isinstance(value, int):
            labels.append(value)
    if pixels is None or len(pixels) != len(labels) * PIXELS:
        raise DataError(
            f"Expected {PIXELS} bytes of `data` for each of `{form.key}` in {path} but got "
            f"{len(pixels or b'')} bytes and {len(labels)} labels. Unpack the archive again."
        )
    images = np.frombuffer(pixels, dtype=np.uint8).reshape(-1, 3, 32, 32)
    return images, np.array(labels)


def _bytes(text: str, path: Path) -> bytes:
    with reporting_damage(f"pixels as bytes in {path}", "Unpack the archive again."):
        return text.encode("latin-1")


def _strings_after(key: str, path: Path) -> list[str]:
    """Return the strings of the list that follows `key` in a pickled dict, up to its end."""
    strings: list[str] | None = None
    for value in _tokens(path):
        if strings is None:
            strings = [] if value == key else None
        elif isinstance(value, str):
            strings.append(value)
        elif value is _END and strings:
            return strings
    raise DataError(f"Expected a list `{key}` in {path} but got none. Unpack the archive again.")


_END = object()
"""Stands for the end of a list among the tokens."""

_STRINGS = frozenset(("STRING", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE"))
_INTEGERS = frozenset(("INT", "BININT", "BININT1", "BININT2"))


def _tokens(path: Path) -> Iterator[object]:
    """Yield strings (bytes as latin-1) and integers of a pickle in order, and `_END` after each
    list.
    """
    with reporting_damage(
        f"a pickle of protocol 2, as published, in {path}", "Unpack the archive again."
    ):
        check_room(path.stat().st_size, path)
        tokens = list(pickletools.genops(path.read_bytes()))
    for opcode, argument, _ in tokens:
        if opcode.name in _STRINGS | _INTEGERS:
            yield argument
        elif opcode.name == "APPENDS":
            yield _END
