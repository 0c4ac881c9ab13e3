"""IDX files: MNIST, Fashion-MNIST and their kin as published, gzipped or not.

An IDX file is two zero bytes, a type code (8 is uint8), the number of dimensions, each dimension
as a big-endian 32-bit integer, then the values: http://yann.lecun.com/exdb/mnist/.
"""

from __future__ import annotations

import math
import struct
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from upslope.datasets.arrays import Array, ArrayDataset, absent_number_notes, build_dataset
from upslope.datasets.paths import check_md5, needed_root
from upslope.datasets.splits import Splits
from upslope.errors import DataError
from upslope.progress import Observer, no_progress
from upslope.reading import check_room, count_rest, open_unpacked, reporting_damage

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
COUNTS = {"train": 60_000, "test": 10_000}
MNIST_MD5 = (
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "d53e105ee54ea40749a09fcbcd1e9432",
    "9fb629c4189551a2d022fa330f9573f3",
    "ec29112dd5afa0611ce80d1b7f02629c",
)
FASHION_MD5 = (
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79",
    "bb300cfdad3c16e7a12a480ee83cd310",
)
"""Of the gzipped files, in the order of `FILES`."""
_UINT8 = 8

DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def mnist(root: Path | None = None, *, progress: Observer = no_progress) -> Splits:
    """MNIST: handwritten digits, 60,000 and 10,000 of 28x28, grey; the four published IDX files."""
    where = "https://ossci-datasets.s3.amazonaws.com/mnist/"
    del progress  # decompression takes a second
    return _read(root, "mnist", where, DIGITS, (0.1307,), (0.3081,), MNIST_MD5)


def fashion_mnist(root: Path | None = None, *, progress: Observer = no_progress) -> Splits:
    """Fashion-MNIST: clothes, 60,000 and 10,000 of 28x28, grey; the four published IDX files."""
    where = "https://github.com/zalandoresearch/fashion-mnist (folder data/fashion)"
    del progress
    return _read(root, "fashion-mnist", where, CLOTHES, (0.2860,), (0.3530,), FASHION_MD5)


def load(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    classes: Annotated[
        list[str] | None, Field(min_length=2, description="names; the labels found, if not given")
    ] = None,
) -> Splits:
    """Any IDX image set under the file names of MNIST: KMNIST, EMNIST and the like."""
    del progress
    return _read(root, "idx", "where the data set is published", classes, (), ())


def _read(
    root: Path | None,
    name: str,
    where: str,
    classes: tuple[str, ...] | list[str] | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    md5: tuple[str, ...] = (),
) -> Splits:
    folder = needed_root(root, name, where)
    paths = {(split, file): _find(folder, file) for split in FILES for file in FILES[split]}
    missing = [file for (_, file), path in paths.items() if path is None]
    if missing:
        raise DataError(
            f"Expected the files {', '.join(missing)} (each may end in .gz) in {folder} but they "
            f"are missing. Get them from {where}; nothing is downloaded for you."
        )
    arrays = {key: read_idx(path) for key, path in paths.items() if path is not None}
    for (split, file), digest in zip(paths, md5, strict=bool(md5)):
        path = paths[split, file]
        # Unpacked, or in part, a file has no published checksum.
        if path and path.suffix == ".gz" and len(arrays[split, file]) == COUNTS[split]:
            check_md5(path, digest, where)
    names = classes or [
        str(i) for i in range(1 + max(int(arrays[s, FILES[s][1]].max(initial=0)) for s in FILES))
    ]
    part = partial(_split, name, paths, arrays, names, mean, std)
    pool, test = part("train"), part("test")
    every_label = np.concatenate([pool.labels, test.labels])
    notes = () if classes else absent_number_notes(every_label, len(names), "labels")
    return Splits(pool, test, notes=notes)


def _split(
    name: str,
    paths: dict[tuple[str, str], Path | None],
    arrays: dict[tuple[str, str], Array],
    classes: tuple[str, ...] | list[str],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    split: str,
) -> ArrayDataset:
    image_key, label_key = ((split, file) for file in FILES[split])
    for key, dimensions, what in ((image_key, 3, "images"), (label_key, 1, "labels")):
        if arrays[key].ndim != dimensions:
            raise DataError(
                f"Expected {what} of {dimensions} dimension(s) in {paths[key]} but got shape "
                f"{arrays[key].shape}. Files may have been renamed."
            )
    return build_dataset(
        f"{name}/{split}",
        arrays[image_key][:, None],  # (n, 1, h, w)
        arrays[label_key],
        classes,
        source=paths[image_key],
        mean=mean,
        std=std,
    )


def _find(folder: Path, file: str) -> Path | None:
    """Return `file`, gzipped or not, under its name or the one with a dot that some mirrors give
    it.
    """
    for name in (file, file.replace("-idx", ".idx")):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def read_idx(path: Path) -> Array:
    """Return the uint8 array of an IDX file, read-only.

    Raises:
        DataError: not an IDX file of uint8, cut short, longer than its header says, of more values
            than memory may be taken for, or a damaged gzip stream.
    """
    kind = "a whole gzip file" if path.suffix == ".gz" else "an IDX file"
    with reporting_damage(f"{kind} in {path}", "Get it again."), open_unpacked(path) as file:
        head = file.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] != _UINT8 or not head[3]:
            raise DataError(
                f"Expected an IDX file of uint8 (first bytes 00 00 08 and the number of "
                f"dimensions) in {path} but got {head.hex(' ') or 'an empty file'}. Get the file "
                "again."
            )
        sizes = file.read(4 * head[3])
        if len(sizes) < 4 * head[3]:
            raise DataError(
                f"Expected a header of {4 + 4 * head[3]} bytes in {path} but the file has "
                f"{4 + len(sizes)}. It is cut short: get it again."
            )
        shape = struct.unpack(f">{head[3]}I", sizes)
        count = math.prod(shape)
        check_room(count, path)
        data = file.read(count + 1)
        if len(data) != count:
            got = len(data) + count_rest(file, path, len(data))
            raise DataError(
                f"Expected {count} values in {path}, as its header says (shape {shape}), but got "
                f"{got}. The file is damaged: get it again."
            )
        return np.frombuffer(data, dtype=np.uint8).reshape(shape)
