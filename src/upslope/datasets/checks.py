"""Checks of what is passed where a data set is expected: the error says what to pass instead."""

from __future__ import annotations

from pathlib import Path

from upslope.datasets.base import Dataset
from upslope.datasets.paths import refuse_empty_path
from upslope.datasets.readable import input_type
from upslope.datasets.splits import Splits
from upslope.errors import ConfigError, DataError

_ADVICE = (
    "Samples that a program holds become Splits with Splits.from_arrays, from_torch, "
    "from_hugging_face or from_table; those in files with datasets.load, such as "
    "datasets.load('folder', root); see docs/data.md. Or write a class with the members of "
    "upslope.datasets.Dataset, and pass Splits(pool, test) of it."
)
_MOST_NAMES = 5
_MEMBERS = ("ids", "classes", "input_shape", "resident", "inputs", "targets")


def check_name(name: object) -> None:
    """Raise ConfigError unless `name` is text, the name of a data set."""
    if not isinstance(name, str):
        raise ConfigError(
            f"Expected the name of a data set, such as 'digits' or 'folder', but got "
            f"{_describe(name)}. {_ADVICE}"
        )


BUILT_IN = ("digits", "breast-cancer", "diabetes")
"""Data sets that scikit-learn brings: they read no file."""


def check_root(root: object, name: str) -> None:
    """Check a root that was given for a data set; None is one that was not.

    Raises:
        ConfigError: it is no path, or the data set of this name reads no file.
        DataError: there is nothing there.
    """
    if root is None:
        return
    if not isinstance(root, str | Path):
        raise ConfigError(
            f"Expected `root` to be the path of a file or folder but got {_describe(root)}. "
            f"{_ADVICE}"
        )
    refuse_empty_path(root, "`root`")
    try:
        there = Path(root).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, with a NUL, the home of nobody
        there = False
    if not there:
        raise DataError(
            f"Expected `root` to be a file or folder but there is no such path: {root}. Correct "
            "it, or leave it out where the data set needs no files."
        )
    if name in BUILT_IN:
        raise ConfigError(
            f"data.root: expected none for {name}, which scikit-learn brings and which reads no "
            f"file, but got {root}. Leave it out; for files of yours, say also how they "
            "are read, as data.name=folder (`upslope list datasets`)."
        )


def check_splits(splits: object) -> None:
    """Raise ConfigError unless `splits` is a `Splits` of data sets.

    Raises:
        DataError: a test or validation set of other classes, or of another type of numbers.
    """
    if not isinstance(splits, Splits):
        raise ConfigError(
            f"Expected `splits` to be upslope.datasets.Splits, as datasets.load gives, but got "
            f"{_describe(splits)}. {_ADVICE}"
        )
    parts = {"pool": splits.pool, "test": splits.test, "validation": splits.validation}
    for name, part in parts.items():
        missing = [member for member in _MEMBERS if not hasattr(part, member)]
        if missing and (part is not None or name != "validation"):
            raise ConfigError(
                f"Expected the {name} of `splits` to have the members of upslope.datasets.Dataset "
                f"but {_describe(part)} has no {', '.join(missing)}. {_ADVICE}"
            )
    for name, part in (("test set", splits.test), ("validation set", splits.validation)):
        if part is not None and len(part) and len(splits.pool):
            _check_alike(splits.pool, part, name)


def _check_alike(pool: Dataset, part: Dataset, name: str) -> None:
    """Refuse a part that the same network would see, or count, otherwise than the pool."""
    if part.classes and pool.classes and tuple(part.classes) != tuple(pool.classes):
        raise DataError(
            f"Expected the {name} to have the classes of the pool in its order, "
            f"{list(pool.classes)[:_MOST_NAMES]}, as targets are positions among them, but its "
            f"`classes` are {list(part.classes)[:_MOST_NAMES]}. Bring both to one order."
        )
    types = [input_type(one) for one in (pool, part)]
    if None not in types and types[0] != types[1]:
        raise DataError(
            f"Expected the samples of the {name} to be {types[0]}, as those of the pool, but got "
            f"{types[1]}: uint8 is standardised, and floats are taken as they are, so that the "
            "network would see other numbers. Bring both to one type."
        )


def _describe(value: object) -> str:
    """Return the type of a value in words, and what it is to torch where that is known."""
    from torch.utils.data import DataLoader
    from torch.utils.data import Dataset as TorchDataset

    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if isinstance(value, TorchDataset):
        return f"{kind}, a torch Dataset"
    return f"{kind}, a torch DataLoader" if isinstance(value, DataLoader) else kind
