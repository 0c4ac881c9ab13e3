"""Data sets: one file per format, one line per name in `REGISTRY`.

    splits = load("digits")
    splits = load("cifar10", "path/to/folder", limit=5000, validation=0.1)

Nothing is downloaded unless the name says so, hf:owner/dataset: where files are missing, the error
names them and where to get them.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from upslope import registry
from upslope.datasets import (
    built_in,
    caltech,
    camvid,
    cifar,
    cityscapes,
    coco,
    digits,
    folder,
    hugging_face,
    idx,
    imagenet,
    mask_folder,
    npz,
    parquet,
    simulated,
    subtomograms,
    svhn,
    table,
    text,
    voc,
    webdataset,
)
from upslope.datasets.base import Dataset
from upslope.datasets.checks import BUILT_IN, check_name, check_root, check_splits
from upslope.datasets.common_options import COMMON, apply_common_options, limit_samples
from upslope.datasets.overview import class_counts, overview
from upslope.datasets.paths import list_ids
from upslope.datasets.published import outline
from upslope.datasets.splits import Splits
from upslope.datasets.statistics import statistics
from upslope.datasets.subset import Subset
from upslope.datasets.unlabelled import (
    check_labelled,
    row_contents,
    sample_file,
    wants_people,
)
from upslope.errors import DataError, UpslopeError
from upslope.memory import raise_memory_error
from upslope.progress import Observer, no_progress
from upslope.reading import limited_to, said

__all__ = [
    "REGISTRY",
    "SIMULATED_SETS",
    "Dataset",
    "Splits",
    "Subset",
    "check_labelled",
    "check_options",
    "check_root",
    "check_splits",
    "class_counts",
    "describe",
    "list_ids",
    "load",
    "load_outline",
    "load_to_score",
    "loader",
    "overview",
    "recorded_root",
    "root_of",
    "row_contents",
    "sample_file",
    "statistics",
    "wants_people",
]

REGISTRY: Mapping[str, Callable[..., Splits]] = {
    "digits": digits.load,
    "breast-cancer": built_in.breast_cancer,
    "diabetes": built_in.diabetes,
    "mnist": idx.mnist,
    "fashion-mnist": idx.fashion_mnist,
    "cifar10": cifar.cifar10,
    "cifar100": cifar.cifar100,
    "svhn": svhn.load,
    "tiny-imagenet-32": parquet.tiny_imagenet_32,
    "caltech101": caltech.load,
    "imagenet": imagenet.load,
    "idx": idx.load,
    "parquet": parquet.load,
    "folder": folder.load,
    "hf": hugging_face.load,
    "npz": npz.load,
    "webdataset": webdataset.load,
    "table": table.load,
    "text": text.load,
    "camvid": camvid.load,
    "cityscapes": cityscapes.load,
    "voc": voc.load,
    "coco": coco.load,
    "mask-folder": mask_folder.load,
    "50c-clean": simulated.clean_50,
    "50c-snr005": simulated.noisy_50,
    "cryoet-simulated": simulated.load,
    "subtomograms": subtomograms.load,
}
"""name -> loader, called as `loader(root, progress=..., **options)`."""

SIMULATED_SETS = ("50c-clean", "50c-snr005")
"""Those that are made before they are read, which takes a while."""

_DATA_ARGUMENTS = ("root", "progress", "splits", "name")


def load(
    name: str, root: str | Path | None = None, *, progress: Observer = no_progress, **options: Any
) -> Splits:
    """Return the pool and the test set of a data set that is opened.

    name: a key of `REGISTRY`, or hf:owner/dataset. root: its file or folder, or the folder above
    one of that name; the environment's `UPSLOPE_DATA` where not given. options: those that
    `describe` lists, the ones every data set has (`limit`, `test_limit`, `validation`) among them.

    progress: is told of samples read.

    Raises:
        ConfigError: an unknown name or option, a value out of range, or a data set in its place.
        DataError: files that are missing, damaged or not of the format; the message names them.

    Example:
        >>> splits = load("digits", limit=100, validation=0.1)
        >>> len(splits.pool), len(splits.validation), splits.pool.input_shape
        (90, 10, (1, 8, 8))
    """
    check_name(name)
    check_root(root, name)
    valid_options = check_options(name, options)
    common = {key: valid_options.pop(key) for key in COMMON if key in valid_options}
    key, _ = _entry(name)
    with _opening(name, root, valid_options):
        splits = REGISTRY[key](root_of(key, root), progress=progress, **valid_options)
        return apply_common_options(splits, name, **common)


def load_outline(name: str, **options: Any) -> Splits | None:
    """Return the data set as published, in number and shape, without its files: random content.

    To plan with, and to measure what a run costs. None where the sizes are not published.

    name, options: as of `load`.

    Raises:
        ConfigError: as for `load`.
    """
    valid_options = check_options(name, options)
    common = {key: valid_options.pop(key) for key in COMMON if key in valid_options}
    splits = outline(name, valid_options)
    return None if splits is None else apply_common_options(splits, name, **common)


def load_to_score(
    name: str, root: str | Path | None = None, *, progress: Observer = no_progress, **options: Any
) -> Dataset:
    """Return the pool that scoring reads: of a `folder`, every image, labelled or not; else as
    `load`.

    Of a folder nothing is set apart or labelled: options of splits and labels, such as `test_share`
    and `classes`, do nothing. The pool has no classes: images do not tell which a network knows.

    name, root, options: as of `load`. progress: is told of samples read.

    Raises:
        ConfigError, DataError: as for `load`.
    """
    check_name(name)
    check_root(root, name)
    if name != "folder":
        return load(name, root, progress=progress, **options).pool
    valid_options = check_options(name, options)
    limit = valid_options.pop("limit", None)
    parameters = inspect.signature(folder.to_score).parameters
    own_options = {key: value for key, value in valid_options.items() if key in parameters}
    with _opening(name, root, valid_options):
        pool = folder.to_score(root_of(name, root), progress=progress, **own_options)
        return pool if limit is None else limit_samples(pool, limit)


@contextmanager
def _opening(name: str, root: object, options: dict[str, Any]) -> Iterator[None]:
    """Hold readers to the option `read_limit`, which this takes out of `options`, and turn what
    they raise beside Upslope's own errors into a DataError."""
    try:
        with limited_to(options.pop("read_limit", None)):
            yield
    except (UpslopeError, Warning):
        raise
    except Exception as error:
        raise_memory_error(error, of_file=True)
        # Readers name what they expect; this is for damage that none of them foresaw.
        raise DataError(
            f"Expected files of the data set {name!r} in {root} that can be read but got "
            f"{type(error).__name__}: {said(error)}. If the files are sound, report this as a "
            "fault of Upslope."
        ) from error


def check_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `load` with their types and ranges checked; opens no file.

    name, options: as of `load`.

    Raises:
        ConfigError: an unknown data set; every unknown or wrong option, in one message.
    """
    every_option = {**options, **_entry(name)[1]}
    return registry.check_options(
        f"data set {name!r}", loader(name), every_option, _DATA_ARGUMENTS, apply_common_options
    )


def _entry(name: str) -> tuple[str, dict[str, Any]]:
    """Return (key of `REGISTRY`, options that the name itself gives): "hf:owner/dataset"
    is "hf".
    """
    key, colon, path = name.partition(":")
    return (key, {"path": path}) if colon and key == "hf" and path else (name, {})


def loader(name: str) -> Callable[..., Splits]:
    """Return the function that reads a data set, whose keyword parameters are its options.

    name: as of `load`.

    Raises:
        ConfigError: an unknown data set.
    """
    function: Callable[..., Splits] = registry.lookup("data set", REGISTRY, _entry(name)[0])
    return function


def options(name: str) -> tuple[str, ...]:
    """Return the names of the options of a data set.

    Raises:
        ConfigError: an unknown data set.
    """
    both = (
        registry.describe(name, one, _DATA_ARGUMENTS)
        for one in (loader(name), apply_common_options)
    )
    return tuple(option.name for line in both for option in line.options)


def describe() -> list[registry.Description]:
    """Return every data set: its name, one line about it, and its options with defaults
    and help.
    """
    common = registry.describe("", apply_common_options, _DATA_ARGUMENTS).options
    lines = [registry.describe(name, reader, _DATA_ARGUMENTS) for name, reader in REGISTRY.items()]
    return [replace(line, options=line.options + common) for line in lines]


def recorded_root(config: Mapping[str, Any], info: Mapping[str, Any]) -> Any:
    """Return where a run has recorded that its data lie; None for a data set that reads no file.

    Runs of earlier versions recorded the folder of `UPSLOPE_DATA` for those, too.

    config, info: of the run.
    """
    data = config.get("data")
    name = data.get("name") if isinstance(data, Mapping) else None
    return None if name in BUILT_IN else info.get("root")


def root_of(name: str, root: str | Path | None) -> Path | None:
    """Return the file or folder of this data set: `root` itself, or its subfolder of that name;
    that of the environment's `UPSLOPE_DATA` where no root is given. None for one that reads no
    file.
    """
    if name in BUILT_IN:
        return None
    # A variable that is empty is one that is not set: as a path it would be the current folder.
    root_path = root if root is not None else os.environ.get("UPSLOPE_DATA") or None
    if root_path is None:
        return None
    path = Path(root_path).expanduser()
    return path / name if (path / name).is_dir() else path
